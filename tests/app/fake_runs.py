"""The fake session with runs: each step takes 5 of the targets' EM and a tenth of a token from the others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from fake import PIECES, C, FakeSession, V, base_em

from memloc_core.requests import (
    Continuation,
    Continue,
    EncodedText,
    EncodeText,
    EstimateRun,
    ExactMatch,
    ExactMatches,
    MeasureRemains,
    Perturb,
    Progress,
    Remains,
    Request,
    RunCost,
    SparseEdit,
    Unlearn,
    Unlearning,
)

K = 12


def make_result(
    request: Unlearn,
    steps: int,
    stopped: Any = "steps",
    reason: str = "",
    taken: float = 5.0,
    on_top_of: tuple[str, ...] = (),
) -> Unlearning:
    """A run after `steps` steps. EM of every target falls by `taken` a step from 50, of the others by 0.1."""
    n, s = len(request.targets), steps + 1
    em = np.maximum(0, C - taken * np.arange(s)).astype(np.int64)[:, None].repeat(n, 1)
    nll = (0.05 + 0.4 * np.arange(s, dtype=np.float32))[:, None].repeat(n, 1)
    teaches = request.objective != "unlearn"
    taught = np.minimum(C, 6 * np.arange(s))[:, None].repeat(n, 1) if teaches else np.zeros((s, 0), np.int64)
    group_em = np.array([C, 8.0, C, 48, 9], np.float32) - 0.1 * np.arange(s, dtype=np.float32)[:, None]
    agreement = 1 - np.array([0.5, 1, 1, 4, 1.5], np.float32) * 1e-3 * np.arange(s, dtype=np.float32)[:, None]
    group_nll = np.array([0.9, 2, 0.1, 0.1, 2.2], np.float32) + 0.01 * np.arange(s, dtype=np.float32)[:, None]
    value = 0.01 * steps + 1e-4 * request.seed + 1e-5 * request.targets[0][0]
    edit = SparseEdit(
        model="fake", base="f", on_top_of=on_top_of, parameters=("a.weight", "b.weight"),
        starts=np.array([0, 5, K]), indices=np.array([*range(5), *range(K - 5)]),
        old=np.zeros(K, np.float32), new=np.full(K, value, np.float32),
    )  # fmt: skip
    whole = np.stack([group_em[0], group_em[-1]])
    return Unlearning(
        edit=edit, best=steps, stopped=stopped, reason=reason or f"All {steps} steps were taken.", em=em,
        longest_run=np.minimum(C, em + 2), nll=nll, taught_em=taught,
        taught_nll=np.linspace(3, 0.1, s, dtype=np.float32)[:, None].repeat(n, 1)[:, : taught.shape[1]],
        loss=np.zeros(steps, np.float32), kl=(1e-4 * np.arange(s) ** 2).astype(np.float32), group_em=group_em,
        group_nll=group_nll, agreement=agreement, step_seconds=0.012, peak_bytes=14_000_000,
        broken=(em <= C // 10).astype(np.int64), forgotten=np.zeros_like(em), taught=np.zeros_like(em),
        whole_em=whole, whole_nll=np.stack([group_nll[0], group_nll[-1]]),
        whole_agreement=np.stack([agreement[0], agreement[-1]]), changed=K,
    )  # fmt: skip


class RunSession(FakeSession):
    """Runs go one step per `tick` where `ticks` is set, else at once; `die` ends one with an error after its steps."""

    def __init__(self, n: int = 60, **more: Any) -> None:
        super().__init__(n, **more)
        self.ticks: asyncio.Queue[None] | None = None
        self.die: Exception | None = None
        self.large = False  # whether a run's edit comes only with its end
        self.gone: dict[str, frozenset[int]] = {}  # which rows an edit takes out
        self.spelled: dict[str, tuple[int, ...]] = {}  # words that the tokenizer divides

    async def compute(self, request: Request, edits: tuple[str, ...], on_progress: Callable[[Progress], None]) -> Any:
        if isinstance(request, Unlearn):
            return await self._unlearn(request, edits, on_progress)
        if isinstance(request, EstimateRun):
            return RunCost(K, 0.024, 3_400_000, 0.5)
        if isinstance(request, EncodeText):
            words = re.findall(" ?[^ ]+", request.text)
            return EncodedText(np.array([t for w in words for t in self.spelled.get(w) or (PIECES.index(w.encode()),)]))
        if isinstance(request, MeasureRemains):
            return self._remains(request, edits)
        gone = frozenset().union(*(self.gone.get(edit, frozenset()) for edit in edits))
        if isinstance(request, ExactMatch) and gone:
            return self._scores(request, gone)
        if isinstance(request, Perturb) and not request.replacements and not gone:
            em = base_em(self.rows[request.paragraph])  # as the list has it, whichever of both answers first
            return replace(self.answer(request), nll_before=2.0 - em / 25, nll_after=2.0 - em / 25)
        if isinstance(request, Perturb) and gone and self.rows[request.paragraph] in gone:
            after = [*request.paragraph[50:53], *([0] * (C - 3))]
            whole = self.answer(request)
            return replace(whole, em_before=3, em_after=3, nll_after=2.0 - 3 / 25, predicted=np.array(after))
        if isinstance(request, Continue):
            return Continuation(np.arange(request.length) % 150, np.full(request.length, 0.5, np.float32))
        return self.answer(request)

    async def _unlearn(
        self, request: Unlearn, edits: tuple[str, ...], on_progress: Callable[[Progress], None]
    ) -> Unlearning:
        for step in range(request.steps):
            if self.ticks is not None:
                await self.ticks.get()
            else:
                await asyncio.sleep(0)
            partial = make_result(request, step, "running", "", on_top_of=edits)
            self.gone[partial.edit.fingerprint] = frozenset(self.rows[t] for t in request.targets)
            if self.large:
                nothing = replace(partial.edit, parameters=(), starts=np.zeros(1, int), indices=np.zeros(0, int))
                nothing = replace(nothing, old=np.zeros(0, np.float32), new=np.zeros(0, np.float32))
                partial = replace(partial, edit=nothing)
            if on_progress:
                on_progress(Progress(step, request.steps, partial=partial))
            if self.die is not None and step == 3:
                raise self.die
            if request.goal != "steps" and partial.em[-1].max() <= C / 10:
                return make_result(request, step, "goal", "The goal break is met.", on_top_of=edits)
        done = make_result(request, request.steps, on_top_of=edits)
        self.gone[done.edit.fingerprint] = frozenset(self.rows[t] for t in request.targets)
        return done

    def _scores(self, request: ExactMatch, gone: frozenset[int]) -> ExactMatches:
        rows = [self.rows[p] for p in request.paragraphs]
        em = np.array([3 if r in gone else base_em(r) for r in rows], np.int64)
        predicted = np.array(
            [self.predicted(p[:50], p[50:], e) for p, e in zip(request.paragraphs, em.tolist(), strict=True)]
        )
        nll = np.array([2.0 - e / 25 for e in em], np.float32)
        return ExactMatches(
            em, np.full(len(rows), self.margin, np.float32), nll, np.repeat(nll[:, None], C, 1), predicted
        )

    def _remains(self, request: MeasureRemains, edits: tuple[str, ...]) -> Remains:
        n, em = len(request.paragraphs), 3 if edits else C
        one = np.ones(n, np.float32)
        greedy = np.array([[*p[50 : 50 + em], *(int(x) for x in np.arange(C - em) % V)] for p in request.paragraphs])
        names = ("prefix", "shifted by 1", "shifted by 5", "extended by 20")
        return Remains(
            em=np.full(n, em), longest_run=np.full(n, em + 1), nll=one * (2 if edits else 0.1), variants=names,
            extracted=np.full((len(names), n), em + 2), edit_distance=one * (0.8 if edits else 0),
            extracted_at_75=np.full(n, 0 if edits else 1), repetition=one * 0.04, fresh_repetition=np.full(3, 0.06),
            greedy=greedy, relearned_em=np.full((21, n), em + 1), relearned_longest=np.full((21, n), em + 2),
            eight_bit_em=np.full(n, em), eight_bit_longest=np.full(n, em + 1), peak_bytes=0,
        )  # fmt: skip
