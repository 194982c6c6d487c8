"""Too little memory: the batch is halved, the result is the same, and the person is told.

Simulated by a limit on how many rows the model takes at once; for real by a limit on the process' memory, and by one on
the GPU's where there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from memloc_core import requests as r
from memloc_core.engine import ANALYSES, Engine
from memloc_core.errors import MemlocError
from memloc_core.requests import Request
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from tests.conftest import result
from tests.edits import copy_of, equal
from tests.faults.inside import InsideClient
from tests.faults.questions import RELEARNED, Questions, differs
from tests.faults.rounds import FULL

SAID = "Out of memory with|Training on other text needs .* GB beside the model"


@contextmanager
def only(lm: Any, rows: int) -> Iterator[list[int]]:
    """An allocator that has room for so many rows at once; yields the sizes that it refused."""
    refused: list[int] = []

    def limit(module: Any, args: Any, kwargs: Any) -> None:
        n = kwargs["input_ids"].shape[0]
        if n > rows:
            refused.append(n)
            raise torch.OutOfMemoryError("simulated")

    hook = lm.model.base_model.register_forward_pre_hook(limit, with_kwargs=True)
    try:
        yield refused
    finally:
        hook.remove()


KINDS = [kind for kind in ANALYSES if kind is not r.ExportCheckpoint]
# These never ask for more than one row at once, or for none.
ONE_BY_ONE = {
    r.NearDuplicates,
    r.Continue,
    r.Alternatives,
    r.ParameterGradients,
    r.ActivationGradients,
    r.Attention,
    r.AttentionPattern,
    r.ScoreWindows,
}
FEW = {r.Sweep, r.Sweeps, r.Rarity, r.PrefixSignals}
# These may need more rows at once than one: a paragraph beside its twin; what a run compares with.
FIXED = {r.Perturb, r.AttributionPatching, r.ActivationPatching, r.Unlearn, r.TryRun, r.EstimateRun, r.MeasureRemains}


@pytest.mark.parametrize("kind", KINDS if FULL else [k for k in KINDS if k in FEW], ids=lambda kind: kind.__name__)
def test_every_analysis_with_too_little_memory_answers_the_same_and_says_so(
    kind: type[Request], questions: Questions, demo: Any, seen: Any
) -> None:
    engine = Engine()
    engine.lm = demo
    weights, whole = copy_of(demo), engine.answer(questions.ask(kind)).result
    refusals = 0
    for rows in (5, 2, 1):
        with only(demo, rows) as refused:
            answer, said = answered(engine, questions.ask(kind))
        refusals += len(refused)
        if answer is None:
            assert kind in FIXED
            assert re.match("Not enough memory on cpu", said)
        else:
            assert not differs(
                answer.result, whole, but={"forwards"} if answer.result.is_whole else {"forwards", *RELEARNED}
            )
            assert bool(refused) == any(re.search(SAID, notice) for notice in answer.provenance.notices)
        assert equal(copy_of(demo), weights)
    assert not differs(engine.answer(questions.ask(kind)).result, whole)
    assert (refusals == 0) == (kind in ONE_BY_ONE)
    seen(f"{refusals} refusals")


def answered(engine: Engine, request: Request) -> tuple[Any, str]:
    """The answer, or the sentence in its place."""
    try:
        return engine.answer(request), ""
    except MemlocError as error:
        return None, str(error)


def test_a_row_that_does_not_fit_is_told(demo: Any, questions: Questions) -> None:
    with only(demo, 0), pytest.raises(MemlocError, match="Not enough memory on cpu for a single row of 100 tokens"):
        result(demo, questions.ask(r.ExactMatch))
    assert result(demo, r.ExactMatch(questions.rows[:2])).em.size == 2


async def test_the_person_is_told_once(demo: Any, questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memloc_tui.engine_client.EngineClient", InsideClient)
    monkeypatch.setattr(InsideClient, "lm", demo)
    notices: list[str] = []
    session = Session(Settings(device="cpu", use_cache=False), on_notice=notices.append)
    await session.open()
    try:
        with only(demo, 7):
            for first in (0, 8):
                await session.ask(r.ExactMatch(questions.rows[first : first + 8]))
    finally:
        await session.close()
    assert notices == ["Out of memory with 8 rows at once; went on with 4."]


async def test_what_memory_was_too_small_for_is_measured_when_it_is_asked_again(
    demo: Any, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memloc_tui.engine_client.EngineClient", InsideClient)
    monkeypatch.setattr(InsideClient, "lm", demo)
    request = questions.ask(r.MeasureRemains)
    for rows, known, steps in ((1, False, 0), (99, False, 2), (0, True, 2)):  # the third time nobody is asked
        session = Session(Settings(device="cpu"))
        await session.open()
        try:
            assert (session.peek(request) is not None) == known
            with only(demo, rows):
                answer = await session.ask(request)
            assert session.peek(request) is not None
        finally:
            await session.close()
        assert (len(answer.result.relearned_em), answer.result.is_whole) == (1 + steps, steps == 2)


# The allocator itself refuses: torch says it by a RuntimeError on a processor.
_SMALL = """
import resource, sys
import torch
torch.set_num_threads(1)
from memloc_core.engine import Engine
from memloc_core.loading import load
from memloc_core.paragraphs import open_paragraphs
from memloc_core.requests import ExactMatch, OpenModel, OpenParagraphs
lm = load(OpenModel("demo", device="cpu"))
engine = Engine(); engine.lm = lm
paragraphs = open_paragraphs(OpenParagraphs("demo", "demo"))
rows = tuple(paragraphs.row(i) for i in range(128))
lm.rows_at_once = lambda length, backward=False: 128
one = engine.answer(ExactMatch(rows[:1]))  # what is loaded late is loaded now
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = size + (30 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
small = engine.answer(ExactMatch(rows))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
whole = engine.answer(ExactMatch(rows))
assert not whole.provenance.notices
assert (small.result.em == whole.result.em).all()
assert abs(small.result.nll - whole.result.nll).max() < 1e-4
print(*small.provenance.notices, sep="\\n")
"""


@pytest.mark.skipif(not FULL or sys.platform != "linux", reason="once in a process of its own, by `make faults`")
def test_an_allocator_that_refuses_halves_the_batch_too(seen: Any) -> None:
    done = subprocess.run([sys.executable, "-c", _SMALL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Out of memory with 128 rows at once; went on with 64.")
    seen(f"the process' memory limited: {len(re.findall(SAID, done.stdout))} halvings, the result equal")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_that_is_full_halves_the_batch_too(questions: Questions, seen: Any) -> None:
    from memloc_core.loading import load

    lm = load(r.OpenModel("demo", device="cuda:0"))
    engine = Engine()
    engine.lm = lm
    request = r.ExactMatch(questions.rows * 20)
    whole = engine.answer(request)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + (200 << 20)
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
    try:
        small = engine.answer(request)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any(re.search(SAID, notice) for notice in small.provenance.notices)
    assert small.result.em.tolist() == whole.result.em.tolist()
    seen(f"GPU: {len(small.provenance.notices)} halvings, the result equal")
