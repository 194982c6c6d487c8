"""The real engine process: what it answers, in which order, and that it dies when it should and only then."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from memloc_core import codec, frames
from memloc_core.errors import EngineDied, MemlocError, UsageError
from memloc_core.frames import Kind
from memloc_core.requests import Continue, ExactMatch, OpenModel, Perturb, ReadVocabulary, Sweep
from memloc_tui.engine_client import EngineClient
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from tests.conftest import result
from tests.e2e.conftest import alive, gone_within

ROW = tuple((13 * i + 5) % 120 for i in range(100))
LONG = Sweep(ROW, "random", 119)  # several thousand replacements


@pytest.fixture(scope="module")
def files(tiny_checkpoint, tmp_path_factory):
    """Where a session finds its model and paragraphs; the engine of one test is the engine of the next."""
    folder = tmp_path_factory.mktemp("session")
    np.save(folder / "rows.npy", np.array([ROW, ROW[::-1], ROW]))
    return folder


def settings(tiny_checkpoint, files, **changes):
    return Settings(str(tiny_checkpoint), str(files / "rows.npy"), "cpu", cache_dir=files / "cache", **changes)


@contextlib.asynccontextmanager
async def visit(chosen):
    """A session that starts no engine for what the cache knows, with the parts and notices it tells."""
    parts, notices = [], []
    session = Session(chosen, on_notice=notices.append)
    try:
        await session.open(parts.append, lazily=True)
        yield session, parts, notices
    finally:
        await session.close()


# ------------------------------------------------------------------------------------------------ a sitting, one engine


async def test_a_sitting(tiny_checkpoint, files, tiny):
    """Statements about one engine, which costs seconds to start, one after the other."""
    states, notices, parts = [], [], []
    chosen = settings(tiny_checkpoint, files, use_cache=False)
    session = Session(chosen, on_state=states.append, on_notice=notices.append)
    await session.open(parts.append)
    try:
        assert parts == ["vocabulary", "paragraphs", "model"]
        assert states[0] == "starting"
        assert states[-1] == "ready"
        assert session.paragraphs.tokens.tolist() == [list(ROW), list(ROW[::-1]), list(ROW)]
        assert session.model.identity == tiny.info.identity
        await answers_are_those_of_the_same_analysis_here(session, tiny)
        await two_equal_questions_are_computed_once(session)
        await sweeps_that_are_alike_go_to_the_engine_as_one(session)
        await a_click_is_answered_while_a_sweep_runs_and_a_cancelled_sweep_ends_at_once(session, tiny)
        await a_question_asked_again_right_after_its_cancellation_is_answered(session, tiny)
        await a_listener_that_fails_stops_nothing(session)
        await wrong_questions_are_told_and_the_engine_goes_on(session, tiny)
        await the_engine_killed_in_the_middle_is_told_and_the_next_question_starts_another(session, tiny, states)
    finally:
        pid = session._client.pid
        await session.close()
        await session.close()
    assert not alive(pid)
    assert not [notice for notice in notices if "weights" in notice]


async def answers_are_those_of_the_same_analysis_here(session, tiny):
    for request in (
        ExactMatch((ROW, ROW[::-1])),
        Continue(ROW[:50], 20),
        Perturb(ROW, ((3, 7), (40, 0))),
        Sweep(ROW, "next-best", 2),
    ):
        answer, expected = await session.ask(request), result(tiny, request)
        assert answer.request == request
        for name, value in vars(expected).items():
            np.testing.assert_allclose(getattr(answer.result, name), value, rtol=1e-4, atol=1e-5)
        assert answer.provenance.fingerprint == tiny.info.fingerprint
        assert session.peek(request) is answer


async def two_equal_questions_are_computed_once(session):
    sent = session._client._last_id
    first, second = await asyncio.gather(*(session.ask(Sweep(ROW, "random", 2, 8)) for _ in range(2)))
    assert first is second
    assert session._client._last_id == sent + 1


async def sweeps_that_are_alike_go_to_the_engine_as_one(session):
    rows = [(*ROW[i:], *ROW[:i]) for i in range(15)]
    sweeps = [Sweep(row, seed=9) for row in rows]
    other = [ExactMatch((ROW,)), Perturb(ROW, ((1, 1),)), replace(sweeps[0], seed=8), replace(sweeps[0], draws=2)]
    assert session.together(sweeps) == 10
    assert session.together([*sweeps[:4], other[2], *sweeps[4:]]) == 4
    assert [session.together([first, *sweeps]) for first in other] == [1, 1, 1, 1]
    model = session.model
    for device, n in (("cpu", 1), ("cuda:0", 15)):  # of a large model
        session.model = replace(model, parameters=10**9, device=device)
        assert session.together(sweeps) == n
    session.model = model
    await session.ask(sweeps[2])
    assert [session.together(sweeps), session.together(sweeps[2:])] == [2, 1]
    sent, heard = session._client._last_id, []
    answers = await session.ask_together(sweeps[3:], heard.append)
    assert session._client._last_id == sent + 1
    assert [answer.request for answer in answers] == sweeps[3:]
    assert all(session.peek(sweep) == answer for sweep, answer in zip(sweeps[3:], answers, strict=True))
    assert {progress.total for progress in heard} == {12}


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def a_click_is_answered_while_a_sweep_runs_and_a_cancelled_sweep_ends_at_once(session, tiny):
    heard = []
    sweep = asyncio.create_task(session.ask(LONG, heard.append))
    await until(lambda: heard)
    click = Perturb(ROW, ((9, 9),))
    answer = await session.ask(click)
    assert not sweep.done()
    assert answer.result.em_after == result(tiny, click).em_after
    heard_before = len(heard)
    await until(lambda: len(heard) > heard_before)  # and the sweep goes on
    assert heard[-1].done >= heard[0].done
    assert (heard[-1].partial.em >= 0).sum() == heard[-1].done

    before, pid = time.monotonic(), session._client.pid
    sweep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweep
    click = Perturb(ROW, ((10, 9),))
    answer = await session.ask(click)
    assert time.monotonic() - before < 2
    assert answer.result.em_after == result(tiny, click).em_after
    await asyncio.sleep(2.2)  # the client's patience with a cancelled request
    assert session._client.pid == pid
    assert alive(pid)
    assert not session._client._asked


async def a_question_asked_again_right_after_its_cancellation_is_answered(session, tiny):
    question = Sweep(ROW, "random", 20, 3)
    first = asyncio.create_task(session.ask(question))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0)
    again = await session.ask(question)
    np.testing.assert_array_equal(again.result.em, result(tiny, question).em)
    with pytest.raises(asyncio.CancelledError):
        await first


async def a_listener_that_fails_stops_nothing(session):
    loop, complaints = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: complaints.append(context["exception"]))

    def fails(progress):
        raise ZeroDivisionError

    answer = await asyncio.wait_for(session.ask(Sweep(ROW, "random", 30, 4), fails), 60)
    loop.set_exception_handler(None)
    assert (answer.result.em >= 0).all()
    assert all(isinstance(c, ZeroDivisionError) for c in complaints)
    assert complaints


async def wrong_questions_are_told_and_the_engine_goes_on(session, tiny):
    with pytest.raises(UsageError, match="5000"):
        await session.ask(Continue((1, 5000), 3))
    with pytest.raises(MemlocError):
        await session.ask(Continue("text", 3))  # no request that the explorer would send
    with pytest.raises(MemlocError):
        await session.ask(Continue((1, object()), 3))
    assert (await session.ask(Continue((1, 2), 3))).result.tokens.tolist() == result(
        tiny, Continue((1, 2), 3)
    ).tokens.tolist()


async def the_engine_killed_in_the_middle_is_told_and_the_next_question_starts_another(session, tiny, states):
    heard, pid = [], session._client.pid
    sweep = asyncio.create_task(session.ask(LONG, heard.append))
    await until(lambda: heard)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDied, match="killed by signal 9"):
        await asyncio.wait_for(sweep, 10)
    assert states[-1] == "died"
    click = Perturb(ROW, ((11, 9),))
    answer = await asyncio.wait_for(session.ask(click), 120)
    assert answer.result.em_after == result(tiny, click).em_after
    assert session._client.pid != pid
    assert states[-1] == "ready"


# --------------------------------------------------------------------------------------------------- visits and caches


async def test_a_second_visit_needs_no_engine_and_notices_weights_that_changed(make_checkpoint, files, tmp_path):
    """The cache recognises a folder by its files' names, sizes and times; the engine reads the weights."""
    from safetensors.torch import load_file, save_file

    from memloc_core.loading import load

    folder = make_checkpoint("changing")
    chosen = Settings(str(folder), str(files / "rows.npy"), "cpu", cache_dir=tmp_path / "cache")
    question, other = ExactMatch((ROW,)), ExactMatch((ROW[::-1],))

    first = Session(chosen)
    await first.open()
    stale = await first.ask(question)
    await first.close()

    async with visit(chosen) as (session, parts, notices):
        assert parts == ["vocabulary", "paragraphs", "model"]
        again = await session.ask(question)
        assert (session._client.pid, session.confirmed) == (None, False)
        assert again.request == question
        np.testing.assert_array_equal(again.result.token_nll, stale.result.token_nll)

    file = folder / "model.safetensors"
    status, tensors = file.stat(), load_file(file)
    tensors["transformer.wpe.weight"] *= 3
    save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    changed = load(OpenModel(str(folder), device="cpu"))

    async with visit(chosen) as (session, parts, notices):
        await session.ask(other)
        assert parts == ["vocabulary", "paragraphs", "model", "model"]
        assert [notice for notice in notices if "not those of the last visit" in notice]
        assert session.model.identity == changed.info.identity
        assert session.peek(question) is None
        fresh = await session.ask(question)
        np.testing.assert_allclose(fresh.result.nll, result(changed, question).nll, rtol=1e-4)
        assert fresh.result.nll != stale.result.nll

    async with visit(chosen) as (session, parts, notices):  # the correction is remembered, too
        assert session.model.identity == changed.info.identity
        assert session.peek(question).result.nll == fresh.result.nll
        assert notices == []

    file.write_bytes(b"\0" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    async with visit(chosen) as (session, parts, notices):  # what is known is shown; what is not is told why
        assert (await session.ask(question)).result.nll == fresh.result.nll
        for _ in range(2):
            with pytest.raises(MemlocError, match="changing cannot be loaded"):
                await session.ask(Continue((1, 2), 3))
    tensors["transformer.wpe.weight"] *= 2
    save_file(tensors, file, {"format": "pt"})

    async with visit(replace(chosen, dtype="bfloat16")) as (session, parts, notices):
        assert parts[:2] == ["vocabulary", "paragraphs"]
        assert session.peek(question) is None


async def test_files_that_change_places_in_a_sitting_never_give_another_models_answers(
    make_checkpoint, files, tmp_path
):
    """The engine is killed and reads what lies there now; kept under the old files' names, it would answer for them."""
    folder, aside = make_checkpoint("first"), make_checkpoint("second", vocab_size=130)
    chosen = Settings(str(folder), str(files / "rows.npy"), "cpu", cache_dir=tmp_path / "cache")
    away = folder.with_name("away")
    session = Session(chosen)
    await session.open()
    try:
        first = session.model.identity
        folder.rename(away)
        session._client.kill()
        for _ in range(2):
            with pytest.raises(MemlocError, match="no folder"):
                await until_started(session, Continue((1, 2), 3))
        aside.rename(folder)  # and an engine without a model does not stay without one
        await until_started(session, Continue((1, 2), 3))
        assert session.model.identity != first
    finally:
        await session.close()
    folder.rename(aside)
    away.rename(folder)
    async with visit(chosen) as (session, parts, _):
        assert parts == ["vocabulary", "paragraphs", "model"]
        assert session.model.identity == first


def test_a_model_folder_that_went_away_takes_no_answer_away(tmp_path):
    """What the engine read of it is right; it is only not kept under files that are not there."""
    assert not Session(Settings(str(tmp_path / "gone"), use_cache=False))._unchanged()


async def until_started(session, request):
    """The answer of the next engine: the one that was killed may still be dying."""
    while True:
        try:
            return await session.ask(request)
        except EngineDied:
            await asyncio.sleep(0.05)


async def test_without_the_cache_nothing_is_read_or_kept(tiny_checkpoint, files, tmp_path):
    chosen = Settings(str(tiny_checkpoint), str(files / "rows.npy"), "cpu", cache_dir=tmp_path / "c", use_cache=False)
    session = Session(chosen)
    opening = asyncio.create_task(session.open())
    await until(lambda: session._client is not None and session._client.pid)
    pid = session._client.pid
    await session.close()  # in the middle of opening
    with pytest.raises((MemlocError, asyncio.CancelledError)):
        await opening
    assert not alive(pid)
    assert not (tmp_path / "c").exists()


async def test_a_session_closed_while_its_engine_starts_leaves_no_process(tiny_checkpoint, files, monkeypatch):
    started = []
    really = asyncio.create_subprocess_exec

    async def slowly(*command, **options):
        process = await really(*command, **options)
        started.append(process.pid)
        await asyncio.sleep(0.2)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    session = Session(settings(tiny_checkpoint, files, use_cache=False))
    opening = asyncio.create_task(session.open())
    await until(lambda: started)
    await session.close()
    with pytest.raises((MemlocError, asyncio.CancelledError)):
        await opening
    assert not alive(started[0])


# ------------------------------------------------------------------------------------------ what stands between the two


async def test_neither_prints_nor_the_persons_folder_disturb_the_engine(files, tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, sys
        def hook(event, arguments):
            if event == "import" and arguments[0] in ("torch", "transformers"):
                print("hello from a library", flush=True)
                os.write(1, b"and from its C part")
        if "memloc_core.worker" in sys.orig_argv:
            sys.addaudithook(hook)
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    for name in ("queue", "torch", "numpy", "json"):  # somebody's own scripts
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    blocked = tmp_path / "not a folder"
    blocked.write_text("")
    async with visit(settings(tiny_checkpoint, files, use_cache=False)) as (session, _, _):
        assert (await session.ask(Continue((1, 2), 2))).result.tokens.shape == (2,)
        log = session._client.log.read_text()
    assert "hello from a library" in log
    assert "and from its C part" in log


async def test_a_log_that_cannot_be_written_is_done_without(tmp_path, tiny_checkpoint):
    (tmp_path / "file").write_text("")
    client = EngineClient(ReadVocabulary(str(tiny_checkpoint)), tmp_path / "file" / "engine.log")
    try:
        answer = await client.ask(ReadVocabulary(str(tiny_checkpoint)))
        assert len(answer.result) == 120
    finally:
        await client.close()


FAKE = """#!{python}
import os, sys, time
sys.path[:0] = {path!r}
from memloc_core import codec, frames
from memloc_core.requests import *
header = sys.stdin.buffer.read(13)
kind, id_, size = frames.unpack_header(header)
request = codec.decode(sys.stdin.buffer.read(size))
import numpy as np
good = codec.encode(Answer(request, Vocabulary(np.zeros(0, np.uint8), np.zeros(1, np.int64), "f"),
                           Provenance("", "", "", "", "", "", 0.0)))
def send(data):
    os.write(1, data)
{body}
"""


@pytest.fixture
def fake_engine(tmp_path, monkeypatch):
    """An engine process that answers its first request by the given lines of Python."""

    def make(body):
        script = tmp_path / "engine"
        script.write_text(FAKE.format(python=sys.executable, path=sys.path, body=textwrap.dedent(body)))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return EngineClient(ReadVocabulary("m"), tmp_path / "log" / "engine.log")

    return make


STAY = "time.sleep(60)"


@pytest.mark.parametrize(
    "body",
    [
        "send(b'Traceback (most recent call last), or whatever a library prints')\n" + STAY,
        "send(frames.pack(frames.Kind.ANSWER, id_, b'garbage'))\n" + STAY,
        "send(frames.pack(frames.Kind.ANSWER, id_, good[:-20]))\n" + STAY,
        "send(frames.pack(frames.Kind.ANSWER, id_, codec.encode(request)))\n" + STAY,
        "send(frames.pack(frames.Kind.ANSWER, id_, good.replace(b'Vocabulary', b'ModelInfo0')))\n" + STAY,
        "send(frames.pack(frames.Kind.PROGRESS, id_, good))\n" + STAY,
        "send(frames.pack(frames.Kind.FAILURE, id_, b'no json'))\n" + STAY,
        "send(frames.pack(frames.Kind.FAILURE, id_, b'[]'))\n" + STAY,
        "send(frames.pack(frames.Kind.FAILURE, id_, b'{}'))\n" + STAY,
        "send(frames.pack(frames.Kind.FAILURE, id_, b'\\xff'))\n" + STAY,
        "send(b'\\xff' * 13)\n" + STAY,
        "send(frames.pack(frames.Kind.ANSWER, id_, good)[:-1])",
        "sys.exit(3)",
        "os.close(1); os.close(0); os.kill(os.getpid(), 11)",
    ],
)
async def test_an_engine_that_talks_nonsense_is_an_error_and_no_hang(fake_engine, body):
    client = fake_engine(body)
    try:
        await client.start()
        with pytest.raises(MemlocError) as caught:
            await asyncio.wait_for(client.opened, 20)
        assert "\n" not in str(caught.value)
        assert gone_within(client.pid, 5)
    finally:
        await client.close()


async def test_what_an_engine_says_of_other_requests_is_no_answer(fake_engine):
    client = fake_engine(
        """
        send(frames.pack(frames.Kind.ANSWER, id_ + 7, b"garbage"))
        send(frames.pack(frames.Kind.PROGRESS, id_ + 1, b"garbage"))
        send(frames.pack(frames.Kind.PROGRESS, id_, codec.encode(Progress(1, 2))))
        send(frames.pack(frames.Kind.ANSWER, id_, good) + frames.pack(frames.Kind.FAILURE, id_, b"too late"))
        time.sleep(60)
        """
    )
    try:
        await client.start()
        assert len((await asyncio.wait_for(client.opened, 20)).result) == 0
    finally:
        await client.close()


async def test_a_cancelled_request_that_does_not_end_ends_with_its_process(fake_engine, monkeypatch):
    monkeypatch.setattr("memloc_tui.engine_client.CANCEL_SECONDS", 0.3)
    client = fake_engine("send(frames.pack(frames.Kind.ANSWER, id_, good))\n" + STAY)
    try:
        asking = asyncio.create_task(client.ask(ReadVocabulary("m")))
        await until(lambda: client.opened is not None and client.opened.done())
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        pid = client.pid
        assert alive(pid)
        await until(lambda: not alive(pid), 5)
    finally:
        await client.close()


async def test_questions_to_a_dead_engine_fail_also_while_the_next_one_starts(fake_engine):
    # Its output stays open for a second after its death: a child of its own holds it, too.
    client = fake_engine(
        "if not os.fork(): time.sleep(1); os._exit(0)\nsend(frames.pack(frames.Kind.ANSWER, id_, good))\n" + STAY
    )
    try:
        await client.start()
        await client.opened
        first = asyncio.create_task(client.ask(ReadVocabulary("m")))
        await asyncio.sleep(0.05)
        process = client._process
        process.kill()
        await until(lambda: process.returncode is not None)
        await client.start()
        with pytest.raises(EngineDied):
            await asyncio.wait_for(first, 5)
    finally:
        await client.close()


# ---------------------------------------------------------------------------------------------------- the worker alone


@pytest.fixture
def worker():
    """A worker whose parent is this process, and which is gone afterwards."""
    started = []

    def start(parent=None, **options):
        command = [sys.executable, "-m", "memloc_core.worker", str(parent or os.getpid())]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def received(process):
    kind, id_, size = frames.unpack_header(process.stdout.read(frames.HEADER.size))
    return kind, id_, process.stdout.read(size)


def test_the_worker_ends_with_its_input_whatever_it_is_doing(worker, tiny_checkpoint):
    process = worker()
    process.stdin.write(frames.pack(Kind.ASK, 1, codec.encode(OpenModel(str(tiny_checkpoint), device="cpu"))))
    process.stdin.write(frames.pack(Kind.ASK, 2, codec.encode(LONG)))
    process.stdin.flush()
    while (frame := received(process))[:2] != (Kind.PROGRESS, 2):
        assert frame[0] is not Kind.FAILURE, frame
    process.stdin.close()
    assert process.wait(1) == 0


def test_the_worker_ends_when_it_is_not_its_parents_child(worker):
    assert worker(parent=1).wait(10) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of its input has to do")
def test_the_worker_ends_with_its_parent_though_its_input_stays_open():
    reading, writing = os.pipe()
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import os, subprocess, sys, time\n"
            "worker = subprocess.Popen([sys.executable, '-m', 'memloc_core.worker', str(os.getpid())], stdin=0)\n"
            "print(worker.pid, flush=True)\n"
            "time.sleep(60)",
        ],
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        pid = int(parent.stdout.readline())
        time.sleep(1)
        assert alive(pid)
        parent.kill()
        assert gone_within(pid, 1)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        os.close(reading)
        os.close(writing)


def test_the_worker_ignores_the_terminals_interrupt(worker, tiny_checkpoint):
    process = worker()
    process.stdin.write(frames.pack(Kind.ASK, 1, codec.encode(ReadVocabulary(str(tiny_checkpoint)))))
    process.stdin.flush()
    while received(process)[0] is not Kind.ANSWER:
        pass
    process.send_signal(signal.SIGINT)
    process.stdin.write(frames.pack(Kind.ASK, 2, codec.encode(ReadVocabulary(str(tiny_checkpoint)))))
    process.stdin.flush()
    while (frame := received(process))[0] is not Kind.ANSWER:
        pass
    assert frame[1] == 2


@pytest.mark.parametrize("seed", range(4))
def test_garbage_ends_the_worker_or_is_told_to_be_garbage(worker, seed):
    rng, process = random.Random(seed), worker()
    bad = codec.encode(ReadVocabulary("m"))
    pieces = [
        frames.pack(Kind.ASK, 1, b""),
        frames.pack(Kind.ASK, 2, rng.randbytes(50)),
        frames.pack(Kind.ASK, 3, bad[: rng.randrange(len(bad))]),
        frames.pack(Kind.ASK, 4, codec.encode(result_of_nothing())),
        frames.pack(Kind.CANCEL, 5),
        frames.pack(Kind.CANCEL, 2**64 - 1, b"with a body"),
        frames.pack(Kind.ANSWER, 6, b"the wrong way"),
        frames.pack(Kind.ASK, 7, codec.encode(ReadVocabulary("/nonexistent"))),
        frames.pack(Kind.ASK, 8, codec.encode(ExactMatch((ROW,)))),  # and no model is open
    ]
    process.stdin.write(b"".join(pieces))
    process.stdin.flush()
    failed = set()
    while failed != {1, 2, 3, 4, 5, 2**64 - 1, 7, 8}:
        kind, id_, _ = received(process)
        assert kind in (Kind.FAILURE, Kind.PROGRESS)
        failed |= {id_} if kind is Kind.FAILURE else set()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"\xff" + rng.randbytes(4096))  # a length over the cap: nothing can be trusted any more
        process.stdin.flush()
    assert process.wait(5) == 0


def result_of_nothing():
    from memloc_core.requests import Progress

    return Progress(1, 2)


PARENT = """
import asyncio, sys
from pathlib import Path
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from memloc_core.requests import Sweep
async def main():
    session = Session(Settings({model!r}, {rows!r}, "cpu", use_cache=False))
    await session.open()
    row = session.paragraphs.row(0)
    def said(progress):
        print(session._client.pid, flush=True)
    await session.ask(Sweep(row, "random", 119), said)
asyncio.run(main())
"""


def test_the_engine_dies_with_an_explorer_that_is_killed(tiny_checkpoint, files):
    script = PARENT.format(model=str(tiny_checkpoint), rows=str(files / "rows.npy"))
    # A session of its own, as a terminal's: no signal reaches the engine but what its parent's death brings.
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True, stderr=subprocess.PIPE
    )
    try:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
        assert gone_within(pid, 1)
    finally:
        parent.kill()
        parent.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_free_memory_goes_back_to_the_system():
    program = """
        import gc, os
        from pathlib import Path
        from memloc_core.worker import _give_back_memory

        def held():
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        blocks = [b"x" * 100_000 for _ in range(2000)]  # from the heap; the last one keeps its end where it is
        del blocks[:-1]
        before = held()
        _give_back_memory()
        assert held() < before - 100_000_000, (before, held())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_engine_without_work_gives_its_memory_back_once_and_still_hears_what_comes(monkeypatch):
    from memloc_core import worker

    given = []
    monkeypatch.setattr(worker, "_IDLE_SECONDS", 0.01)
    monkeypatch.setattr(worker, "_give_back_memory", lambda: given.append(True))
    idle = worker.Worker(io.BytesIO(), io.BytesIO())
    threading.Timer(0.2, idle._inbox.put, [(7, True)]).start()
    assert idle._next() == (7, True)
    assert given == [True]
    idle._inbox.put((8, None))
    assert idle._next() == (8, None)
    assert given == [True]
