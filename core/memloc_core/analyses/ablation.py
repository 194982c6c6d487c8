"""Head ablation: what each head's output is good for (the causal side of paper section 6).

Letters in shapes: n rows, t tokens, h heads, w width.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from memloc_core.architectures import Hook, Site
from memloc_core.devices import PeakMemory
from memloc_core.engine import ANALYSES, Steps, analysis
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Ablated, Edited, HeadAblation, HeadAblations, Progress
from memloc_core.steps import within

if TYPE_CHECKING:
    from memloc_core.requests import Floats, Ints


def run_ablated(lm: LanguageModel, request: Ablated) -> Steps:
    """The inner request's steps, each with the heads' outputs at zero; between two steps the model is whole."""
    if type(request.request) not in ANALYSES or isinstance(request.request, Edited):  # edits stand outermost
        raise UsageError(f"{type(request.request).__name__} runs no model; no head can be ablated in it.")
    return within(lambda: lm.ablated(request.heads), analysis(lm, request.request))


def run(lm: LanguageModel, request: HeadAblation) -> Generator[Progress, None, HeadAblations]:
    """All heads of a layer, for a batch of rows, as one larger batch that starts where that layer starts."""
    architecture = lm.architecture("Head ablation")
    p, heads = request.prefix_length, lm.info.heads
    sets = [
        lm.rows(paragraphs, first) if paragraphs else torch.empty(0, first + 1, dtype=torch.int64)
        for paragraphs, first in ((request.memorized, p), (request.non_memorized, p), (request.general, 1))
    ]
    firsts, peak = (p, p, 1), PeakMemory(lm.device)
    if not sum(map(len, sets)):
        raise UsageError("Head ablation needs paragraphs to score.")
    done, total = 0, sum(map(len, sets)) * lm.info.layers * heads

    def decode(start: int, stop: int) -> None:
        with torch.inference_mode():
            sets[1][start:stop, p:] = lm.greedy(sets[1][start:stop, :p], sets[1].shape[1] - p)[0]

    for _ in lm.in_batches(decode, len(sets[1]), sets[1].shape[1], peak=peak):
        yield Progress(done, total, "heads x rows")
    means = torch.zeros(lm.info.layers, heads, architecture.head_dim, device=lm.device)
    if request.kind == "mean":
        for _ in _add_means(lm, sets, means, peak):
            yield Progress(done, total, "heads x rows")

    em = [np.full((lm.info.layers, heads, len(rows)), -1, np.int64) for rows in sets]
    nll = [np.full((lm.info.layers, heads, len(rows)), np.nan, np.float32) for rows in sets]
    em_before = [np.full(len(rows), -1, np.int64) for rows in sets]
    nll_before = [np.full(len(rows), np.nan, np.float32) for rows in sets]

    def so_far() -> HeadAblations:
        return HeadAblations(
            memorized_em=em[0].copy(),
            memorized_nll=nll[0].copy(),
            own_em=em[1].copy(),
            general_nll=nll[2].copy(),
            own_em_before=em_before[1].copy(),
            memorized_em_before=em_before[0].copy(),
            memorized_nll_before=nll_before[0].copy(),
            general_nll_before=nll_before[2].copy(),
            peak_bytes=peak.bytes,
        )

    def score(rows: Tensor, first: int, out: tuple[Ints, Floats], where: Ints | slice) -> None:
        """Score rows from their token `first` on, and put EM and NLL at `where` in the two flat arrays `out`."""
        scores = lm.score(rows, first)
        out[0][where] = scores.exact_match(rows[:, first:].to(lm.device)).cpu().numpy()
        out[1][where] = scores.nll.mean(-1).cpu().numpy()

    residuals: list[Tensor] = []  # what enters each layer, [rows of the batch, t, w]
    keep: list[tuple[Site, int, Hook]] = [("residual", i, residuals.append) for i in range(lm.info.layers)]

    def clean(at: int, start: int, stop: int) -> None:
        residuals.clear()
        with torch.inference_mode(), architecture.hooked(*keep):
            score(sets[at][start:stop], firsts[at], (em_before[at], nll_before[at]), slice(start, stop))
        lm.refuse_no_numbers(nll_before[at][start:stop])
        peak.held = sum(residual.nbytes for residual in residuals)

    def ablate(at: int, start: int, layer: int, begin: int, end: int) -> None:
        """Pairs begin..end of (head, row) of one layer, for the batch of set `at` that starts at `start`."""
        head, row = (torch.arange(begin, end) // len(residuals[0]), torch.arange(begin, end) % len(residuals[0]))

        def replace(z: Tensor) -> Tensor:
            z = architecture.by_head(z).clone()
            z[torch.arange(len(z)), :, head] = means[layer, head][:, None].to(z.dtype)
            return z.flatten(-2)

        flat = ((layer * heads + head) * len(sets[at]) + start + row).numpy()
        with (
            torch.inference_mode(),
            architecture.resumed(layer, residuals[layer][row]),
            architecture.hooked(("z", layer, replace)),
        ):
            score(sets[at][start + row], firsts[at], (em[at].reshape(-1), nll[at].reshape(-1)), flat)

    for at, rows in enumerate(sets):
        start = 0
        for stop in lm.in_batches(partial(clean, at), len(rows), rows.shape[1], peak=peak):
            for layer in range(lm.info.layers):
                pairs = heads * (stop - start)
                for pair in lm.in_batches(partial(ablate, at, start, layer), pairs, rows.shape[1], peak=peak):
                    yield Progress(done + pair, total, "heads x rows", partial=so_far())
                done += pairs
            start = stop
    return so_far()


def _add_means(lm: LanguageModel, sets: list[Tensor], means: Tensor, peak: PeakMemory) -> Iterator[int]:
    """Put the mean z of every head over all tokens of all rows into means [layers, h, head_dim]."""
    architecture = lm.architecture("Head ablation")
    tokens = sum(rows[:, :-1].numel() for rows in sets)
    sums: list[Tensor] = []
    hooks: list[tuple[Site, int, Hook]] = [
        ("z", layer, lambda z: sums.append(architecture.by_head(z).flatten(0, 1).sum(0, dtype=means.dtype)))
        for layer in range(len(means))
    ]
    for rows in sets:

        def add(start: int, stop: int, rows: Tensor = rows) -> None:
            sums.clear()
            with torch.inference_mode(), architecture.hooked(*hooks):
                lm.hidden(rows[start:stop, :-1])
            means.add_(torch.stack(sums) / tokens)

        yield from lm.in_batches(add, len(rows), rows.shape[1], peak=peak)
