"""Rare-token causality: does replacing rare prefix tokens break the recitation more than replacing common ones?"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import torch

from memloc_core import statistics
from memloc_core.analyses.rarity import corpus_counts
from memloc_core.devices import PeakMemory
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Progress, RareTokenEffect, RareTokens

if TYPE_CHECKING:
    from memloc_core.requests import Ints


def run(lm: LanguageModel, request: RareTokens) -> Generator[Progress, None, RareTokenEffect]:
    """Two replaced rows per pair, all scored against the continuation of the clean one."""
    rows = lm.rows(request.paragraphs, request.prefix_length)
    n, length = rows.shape
    p, peak = request.prefix_length, PeakMemory(lm.device)
    counts, first = corpus_counts(request.counts, n, p, "Rare-token causality")
    clusters = statistics.clusters_of(request.clusters, rows[:, first:].numpy())
    statistics.check_sample(clusters, request.resamples, "The effect of rare tokens")
    lm.check_tokens(request.tokens, length)
    if len(set(request.tokens)) < 3:
        raise UsageError("Rare-token causality needs at least three different common tokens to replace others by.")
    positions = matched_positions(counts, request.pairs, request.seed)  # [2, n, pairs]
    positions[positions >= 0] += first
    em_before = np.empty(n, np.int64)

    def clean(start: int, stop: int) -> None:
        with torch.inference_mode():
            if request.reference == "own":
                rows[start:stop, p:] = lm.greedy(rows[start:stop, :p], length - p)[0]
            scores = lm.score(rows[start:stop], p)
        lm.refuse_no_numbers(scores.nll)
        em_before[start:stop] = scores.exact_match(rows[start:stop, p:].to(lm.device)).cpu().numpy()

    replaced = np.argwhere(positions >= 0)  # each row: rare or common, paragraph, pair
    tokens = _common_tokens(request, positions)
    drop = np.zeros_like(positions)

    def replace(start: int, stop: int) -> None:
        which, paragraph, pair = replaced[start:stop].T
        changed = rows[paragraph].clone()
        place = torch.from_numpy(positions[which, paragraph, pair])
        changed[torch.arange(len(changed)), place] = torch.from_numpy(tokens[paragraph, pair])
        with torch.inference_mode():
            em = lm.score(changed, p).exact_match(changed[:, p:].to(lm.device))
        drop[which, paragraph, pair] = em_before[paragraph] - em.cpu().numpy()

    for done in lm.in_batches(clean, n, length, peak=peak):
        yield Progress(done, n + len(replaced), "rows")
    for done in lm.in_batches(replace, len(replaced), length, peak=peak):
        yield Progress(n + done, n + len(replaced), "rows")
    found = positions[0] >= 0
    used = found.any(1)
    statistics.check_sample(clusters[used], request.resamples, "The effect of rare tokens")
    rare, common = (np.where(found, d, 0)[used].sum(1) / found[used].sum(1) for d in drop)
    clusters = np.unique(clusters[used], return_inverse=True)[1]
    low, high = statistics.bootstrap_interval(rare - common, clusters, request.resamples, request.seed)
    return RareTokenEffect(
        rare=positions[0],
        common=positions[1],
        rare_drop=drop[0],
        common_drop=drop[1],
        em_before=em_before,
        rare_mean=float(rare.mean()),
        common_mean=float(common.mean()),
        difference=float((rare - common).mean()),
        low=low,
        high=high,
        peak_bytes=peak.bytes,
    )


def matched_positions(counts: Ints, pairs: int, seed: int) -> Ints:
    """Where counts [n, p] are rarest, and for each the nearest common one not yet taken, [2, n, pairs]; -1: no pair.

    Common tokens stand in the more frequent half of the prefix. Of two equally near ones a seeded draw takes one, so
    that common tokens are not always the later ones.
    """
    n, p = counts.shape
    if not 1 <= pairs <= p // 2:
        raise UsageError(f"A prefix of {p} tokens has 1..{p // 2} pairs of a rare and a common token, not {pairs}.")
    positions = np.full((2, n, pairs), -1)
    for i, own in enumerate(counts):
        generator = np.random.default_rng((seed, i))
        order = own.argsort(kind="stable")
        free = list(order[p - p // 2 :])
        for pair, rare in enumerate(order[:pairs]):
            distance = np.abs(np.array(free) - rare) + generator.random(len(free)) / 2
            common = free.pop(int(distance.argmin()))
            if own[rare] < own[common]:
                positions[:, i, pair] = rare, common
    return positions


def _common_tokens(request: RareTokens, positions: Ints) -> Ints:
    """One common token for both halves of each pair, other than the two that stand there, [n, pairs], seeded."""
    given = np.array(sorted(set(request.tokens)))
    tokens = np.zeros(positions.shape[1:], np.int64)
    for i, pair in np.argwhere(positions[0] >= 0):
        there = [request.paragraphs[i][position] for position in positions[:, i, pair]]
        generator = np.random.default_rng((request.seed, i, pair))
        tokens[i, pair] = generator.choice(given[~np.isin(given, there)])
    return tokens
