"""Nonsense on the line between explorer and engine: an error in a sentence, never a hang, a crash or a wrong answer.

To the real worker, frames of random bytes, damaged questions, and questions whose fields are of the wrong kind. From a
fake one, frames that were damaged in every way. What is damaged so that it says something else but valid is not
meant: nobody else can write on these pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memloc_core import codec, frames
from memloc_core.errors import MemlocError
from memloc_core.frames import HEADER, Kind
from memloc_core.requests import Answer, EncodeText, OpenModel, Progress, Provenance, ReadVocabulary, Vocabulary
from memloc_tui.engine_client import EngineClient
from tests.faults.questions import KINDS, Questions
from tests.faults.rounds import rounds

CANCELLED = 10.0  # seconds within which a cancelled request has to end
ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    -1e308,
    2**63,
    2**200,
    "",
    "text",
    "\x00\x1b[2J",
    [],
    [[]],
    [1, "a"],
    [None],
    {},
    "$array",
)


class Line:
    """A real worker, the frames it is sent, and those that come back."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where the worker runs, since an export may be asked for anywhere."""
        command = [sys.executable, "-P", "-m", "memloc_core.worker", str(os.getpid())]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, bufsize=0, cwd=folder)
        assert self.process.stdout
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.buffer = b""
        self.last = 0

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)

    def ask(self, body: bytes) -> int:
        self.last += 1
        self.send(frames.pack(Kind.ASK, self.last, body))
        return self.last

    def frame(self, seconds: float) -> tuple[Kind, int, bytes] | None:
        """The next frame, None if none has come in time. EOFError where the worker has ended."""
        until = time.monotonic() + seconds
        while True:
            if len(self.buffer) >= HEADER.size:
                kind, id_, size = frames.unpack_header(self.buffer[: HEADER.size])
                if len(self.buffer) >= HEADER.size + size:
                    body = self.buffer[HEADER.size : HEADER.size + size]
                    self.buffer = self.buffer[HEADER.size + size :]
                    return kind, id_, body
            left = until - time.monotonic()
            if left < 0 or not self.selector.select(left):
                return None
            data = os.read(self.process.stdout.fileno(), 1 << 20)  # type: ignore[union-attr]
            if not data:
                raise EOFError
            self.buffer += data

    def ended(self, id_: int, patience: float = 60.0) -> tuple[Kind, bytes]:
        """The last frame of a request; it is cancelled once it takes too long, and then it has to end."""
        for cancelled in (False, True):
            until = time.monotonic() + (CANCELLED if cancelled else patience)
            while (left := until - time.monotonic()) > 0:
                got = self.frame(left)
                if got is not None and got[1] == id_ and got[0] in (Kind.ANSWER, Kind.FAILURE):
                    return got[0], got[2]
            assert not cancelled, "it does not end although it was cancelled"
            self.send(frames.pack(Kind.CANCEL, id_))
        raise AssertionError

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.selector.close()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.close()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, put in, zeroed or copied elsewhere; or all of them random."""
    out = bytearray(data)
    if rng.random() < 0.1:
        return rng.randbytes(rng.choice((0, 1, 7, 8, 9, 100, 5000)))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, kind = rng.randrange(max(1, len(out))), rng.randrange(6)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.randint(1, 20))
        elif kind == 3:
            out[at : at + 30] = bytes(len(out[at : at + 30]))
        elif kind == 4:
            out[at:at] = out[: rng.randint(1, 60)]
        else:
            del out[at:]
    return bytes(out)


def twisted(data: bytes, rng: random.Random) -> bytes:
    """A question whose JSON is whole, with one place in it replaced by something of another kind, lost, or added."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    record = json.loads(header["__metadata__"]["memloc"])
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in items:
            places.append((value, key))
            walk(part)

    walk(record)
    # The outer places are few and the token ids many: each depth is as likely.
    holder, key = rng.choice(places[:12] if rng.random() < 0.6 else places)
    kind = rng.randrange(8)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder["more"] = rng.choice(ODD)
    elif kind == 2 and key == "$type":
        holder[key] = rng.choice([k.__name__ for k in KINDS] + ["Answer", "Progress", "Vocabulary", "object", "Popen"])
    else:
        holder[key] = rng.choice(ODD)
    header["__metadata__"]["memloc"] = json.dumps(record)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def test_random_frames_to_the_worker(line: Line, seen: Any) -> None:
    """No model is open: what is read, refused and answered is the protocol's own."""
    rng, n = random.Random(3), rounds(300, 20_000)
    good = codec.encode(EncodeText("a letter", "demo"))
    assert line.ended(line.ask(good))[0] is Kind.ANSWER
    refused = answered = 0
    for number in range(n):
        kind = rng.random()
        if kind < 0.1:
            line.send(
                frames.pack(rng.choice([k for k in Kind if k is not Kind.ASK]), rng.getrandbits(64), rng.randbytes(9))
            )
        elif kind < 0.15:
            line.ask(b"")
        else:
            line.ask((twisted if kind < 0.5 else damaged)(good, rng))
        if number % 50 == 49:  # it has read all of them, and answers as before
            end, body = line.ended(line.ask(good))
            assert end is Kind.ANSWER
            assert codec.decode(body).result.tokens.size
        while (got := line.frame(0)) is not None:
            refused, answered = refused + (got[0] is Kind.FAILURE), answered + (got[0] is Kind.ANSWER)
    assert line.process.poll() is None
    seen(f"{n} frames to the worker: it refused what was none, and answered the {n // 50} real questions between them")


def test_questions_of_the_wrong_kind_to_a_worker_with_a_model(line: Line, questions: Questions, seen: Any) -> None:
    """What is fit to be answered all the same is cancelled, lest it takes long: that has to be heard, too."""
    rng, n = random.Random(4), rounds(40, 3_000)
    model = line.ask(codec.encode(OpenModel("demo", device="cpu")))
    assert line.ended(model)[0] is Kind.ANSWER
    fine = codec.encode(questions.ask(KINDS[6]))
    right = line.ended(line.ask(fine))
    ends = {Kind.ANSWER: 0, Kind.FAILURE: 0}
    kinds = [kind for kind in KINDS if kind is not OpenModel]
    for number in range(n):
        body = twisted(codec.encode(questions.ask(kinds[number % len(kinds)])), rng)
        end, said = line.ended(line.ask(body), 0.1)
        ends[end] += 1
        if end is Kind.FAILURE:
            failure = json.loads(said)
            assert set(failure) == {"error", "message"}
            assert "Traceback" not in failure["message"]
    end, body = line.ended(line.ask(fine))
    assert end is Kind.ANSWER
    assert codec.decode(body).result.tokens.tolist() == codec.decode(right[1]).result.tokens.tolist()
    seen(f"{n} questions with a wrong field: {ends[Kind.FAILURE]} refused or cancelled, {ends[Kind.ANSWER]} answered")


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 13, b"\x00" * 13, b"Traceback (most recent call last)", b"\x00\x00\x00\x09\x63"]
)
def test_a_header_that_is_none_ends_the_worker(line: Line, garbage: bytes) -> None:
    line.send(garbage + b"\0" * 20)
    assert line.process.wait(10) == 0


VOCABULARY = ReadVocabulary("m")


def answer() -> bytes:
    import numpy as np

    found = Vocabulary(np.zeros(3, np.uint8), np.arange(4), "f")
    return codec.encode(Answer(VOCABULARY, found, Provenance("", "", "", "", "", "", 0.0)))


async def test_an_engine_that_has_refused_its_model_is_not_said_to_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, said, states = tmp_path / "engine", tmp_path / "said", []
    no = b'{"error": "MemlocError", "message": "no"}'
    said.write_bytes(frames.pack(Kind.FAILURE, 1, no) + frames.pack(Kind.FAILURE, 2, no))
    script.write_text(f"#!/bin/sh\ncat {said}\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    client = EngineClient(VOCABULARY, tmp_path / "engine.log", states.append)
    try:
        for _ in range(2):  # the second time the first one is ended by us, which is not said to be a death
            await client.start()
            assert client.opened is not None
            with pytest.raises(MemlocError, match="no"):
                await asyncio.wait_for(asyncio.shield(client.opened), 10)
            await asyncio.sleep(0.1)
        assert states == 2 * ["starting", "loading", "refused"]
    finally:
        await client.close()


async def test_random_frames_from_a_fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any) -> None:
    """A shell that says prepared bytes in the engine's place, and then ends."""
    rng, n, good = random.Random(5), rounds(60, 3_000), answer()
    script, said = tmp_path / "engine", tmp_path / "said"
    script.write_text(f"#!/bin/sh\nexec cat {said}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    progress = frames.pack(Kind.PROGRESS, 1, codec.encode(Progress(1, 2)))
    failure = frames.pack(Kind.FAILURE, 1, b'{"error": "MemlocError", "message": "no"}')
    right = wrong = 0
    for number in range(n):
        whole = progress * rng.randrange(3) + (frames.pack(Kind.ANSWER, 1, good) if rng.random() < 0.8 else failure)
        if number % 3 == 0:
            data = frames.pack(rng.choice(list(Kind)), rng.choice((1, 1, 2)), damaged(good, rng))
        elif number % 3 == 1:
            data = frames.pack(Kind.ANSWER, 1, twisted(good, rng))
        else:
            data = damaged(whole, rng)
        said.write_bytes(data)
        client = EngineClient(VOCABULARY, tmp_path / "engine.log")
        try:
            await client.start()
            assert client.opened is not None
            await asyncio.wait([client.opened], timeout=10)
            assert client.opened.done(), f"round {number}: it waits for ever"
            error = client.opened.exception()
            if error is None:
                assert isinstance(client.opened.result().result, Vocabulary)
                right += 1
            else:
                assert isinstance(error, MemlocError), f"round {number}: {error!r}"
                assert "\n" not in str(error)
                wrong += 1
        finally:
            await client.close()
        assert client._asked == {}
    assert min(right, wrong) > n // 20
    seen(f"{n} answers of a fake worker: {wrong} told to be none, {right} unharmed")
