"""The engine is killed at random moments, whatever it is asked: the session lives, and the next answer is right.

Right is what an engine in this process, which nobody killed, answers to the same question.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from memloc_core.demo import MODEL_FOLDER
from memloc_core.engine import Engine
from memloc_core.errors import EngineDied
from memloc_core.requests import (
    REQUESTS,
    Edited,
    ExactMatch,
    ExportCheckpoint,
    ListDevices,
    OpenModel,
    ParameterGradients,
    Request,
)
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from tests.faults.questions import KINDS, NOT_THE_ENGINES, Questions, differs
from tests.faults.rounds import FULL, rounds

STARTING = 3.0  # seconds within which an engine that starts is killed; about what it takes to import torch
PATIENCE = 180.0


def engines() -> list[int]:
    """The engine processes that are children of this one, zombies too."""
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes()
                zombie = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if zombie or b"memloc_core.worker" in line:
                found.append(int(child))
    return found


def weights_on_disk() -> str:
    return hashlib.sha256((MODEL_FOLDER / "model.safetensors").read_bytes()).hexdigest()


def files(*folders: Path) -> set[str]:
    return {str(path) for folder in folders for path in folder.rglob("*")}


class Here:
    """The engine in this process: what it answers, and how long that takes."""

    def __init__(self, lm: Any) -> None:
        self.engine, self.lm = Engine(), lm
        self.known: dict[type[Request], tuple[Any, float]] = {}

    def answer(self, kind: type[Request], request: Request) -> tuple[Any, float]:
        if kind not in self.known:
            self.engine.lm = self.lm
            began = time.perf_counter()
            self.known[kind] = self.engine.answer(request).result, time.perf_counter() - began
        return self.known[kind]


def test_every_kind_of_request_has_a_question(questions: Questions) -> None:
    assert set(questions.table) == set(REQUESTS) - NOT_THE_ENGINES


async def test_the_engine_is_killed_at_random_moments(
    questions: Questions, demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    for name in ("tmp", "state"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    rng, here, weights = random.Random(7), Here(demo), weights_on_disk()
    notices: list[str] = []
    session = Session(Settings(device="cpu", use_cache=False), on_notice=notices.append)
    order: list[type[Request]] = [Edited, ParameterGradients]
    if FULL:  # every kind twice or three times
        order = [k for _ in range(3) for k in rng.sample(KINDS, len(KINDS))][:100]
    counts = {"in the middle": 0, "while it started": 0, "after its answer": 0}
    struck: set[type[Request]] = set()
    await asyncio.wait_for(session.open(), PATIENCE)
    try:
        for number, kind in enumerate(order):
            assert session._client is not None
            asked = {kind: questions.ask(kind)}
            if FULL and number % 2:  # and another question beside it
                other = rng.choice([k for k in KINDS if k not in (kind, OpenModel)])
                asked[other] = questions.ask(other)
            expected = {k: here.answer(k, questions.ask(k)) for k in asked}
            before = files(tmp_path, questions.folder)
            starting = kind is OpenModel
            if starting:
                await kill(session)
            session._memory.clear()
            tasks = {k: asyncio.create_task(session.ask(request)) for k, request in asked.items()}
            span = STARTING if starting else 1.5 * sum(seconds for _, seconds in expected.values()) + 0.02
            await asyncio.sleep(rng.uniform(0, span))
            counts[
                "after its answer" if tasks[kind].done() else "while it started" if starting else "in the middle"
            ] += 1
            struck |= {k for k, task in tasks.items() if not task.done()}
            await kill(session)
            _, waiting = await asyncio.wait(tasks.values(), timeout=10)
            assert not waiting, f"round {number}: {kind.__name__} waits for ever"
            for k, task in tasks.items():
                if error := task.exception():
                    assert isinstance(error, EngineDied), f"round {number}: {error!r}"
                    assert "killed by signal 9" in str(error)
                else:
                    assert not differs(task.result().result, expected[k][0]), (number, k)

            session._memory.clear()  # or it would know what it was answered before
            probe = ExactMatch(questions.rows[number % 40 : number % 40 + 2])
            again = {k: anew(questions, request) for k, request in asked.items()}
            answers = await asyncio.wait_for(
                asyncio.gather(*(session.ask(request) for request in (*again.values(), probe))), PATIENCE
            )
            for k, answer in zip(again, answers, strict=False):
                wanted = again[k]
                assert answer.request == (wanted.request if isinstance(wanted, Edited) else wanted)
                wrong = differs(answer.result, expected[k][0])
                assert not wrong, f"round {number}, {k.__name__} after a kill: {wrong} differs"
            here.engine.lm = demo
            assert not differs(answers[-1].result, here.engine.answer(probe).result)
            assert answers[-1].provenance.fingerprint == demo.info.fingerprint
            assert session.model is not None
            assert session.model.identity == demo.info.identity
            assert engines() == [session._client.pid]
            assert session._client._asked == {}
            new = {path for path in files(tmp_path, questions.folder) - before if "/export-" not in path}
            assert new <= {str(tmp_path / "state" / "engine.log")}, new
            assert not [path for path in questions.folder.glob("*") if ".export" in path.name], "an unfinished export"
        born = await kill_at_birth(session, rounds(2, 30))
    finally:
        await session.close()
    assert engines() == []
    assert weights_on_disk() == weights
    assert not notices
    if FULL:
        assert counts["in the middle"] > 40
    said = ", ".join(f"{n} {when}" for when, n in counts.items())
    seen(f"{len(order)} kills ({said}), {len(struck)} of {len(KINDS)} kinds of request struck: 0 wrong answers")
    seen(f"{born} kills at birth, each told in a sentence, and the next question answered")


def anew(questions: Questions, request: Request) -> Request:
    """The same question, but for an export that was through, though not answered, into another new folder."""
    if isinstance(request, ExportCheckpoint) and (folder := Path(request.folder)).exists():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
        return questions.ask(ExportCheckpoint)
    return request


async def kill(session: Session) -> None:
    """Kill the engine; it is gone, and the session has heard of it, within a second."""
    assert session._client is not None
    process = session._client._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(1 if FULL else 5):
        while process.returncode is None or process.pid in engines():
            await asyncio.sleep(0.01)


async def kill_at_birth(session: Session, kills: int) -> int:
    """Killed as soon as it is there, again and again: each question ends with a sentence, and none is left over."""
    assert session._client is not None
    await kill(session)
    for number in range(kills):
        pid = session._client.pid
        asking = asyncio.create_task(session.ask(ListDevices()))
        async with asyncio.timeout(10):
            while session._client.pid == pid:
                await asyncio.sleep(0)
        await asyncio.sleep(0.02 * (number % 10))
        await kill(session)
        with pytest.raises(EngineDied, match="killed by signal 9"):
            await asyncio.wait_for(asking, 10)
    assert engines() == []
    answer = await asyncio.wait_for(session.ask(ListDevices()), PATIENCE)
    assert answer.result.names
    return kills
