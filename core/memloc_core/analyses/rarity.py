"""Rarity: which heads attend to tokens that are rare in the corpus (paper section 6; README).

The paper sums attention by rank. Ranks that few tokens have then get little of it whatever the head does. Here each
rank has its mean attention, which is the same for all ranks where attention is uniform, and every value has a null.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import torch

from memloc_core import statistics
from memloc_core.analyses.attention import attention_rows, entropy, query_position
from memloc_core.devices import PeakMemory
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.memory import free_memory
from memloc_core.requests import Progress, Rarity, RarityScores

if TYPE_CHECKING:
    from memloc_core.requests import Floats, Ints
    from memloc_core.statistics import Doubles

_FEWEST_TOKENS = 5  # a rank that fewer tokens have is left out: its mean is noise that counts as much as any other
_FEWEST_RANKS = 5
_SHUFFLES_A_STEP = 20
_TINY = 1e-30  # instead of 0, to divide by


def run(lm: LanguageModel, request: Rarity) -> Generator[Progress, None, RarityScores]:
    """One pass per paragraph, then the statistic, its null and its interval from the attention that was kept."""
    lm.architecture("Attention")
    rows = lm.rows(request.paragraphs, request.prefix_length)
    p, n = request.prefix_length, len(rows)
    query = query_position(request.query, p, rows.shape[1])
    if query < p - 1:
        raise UsageError(f"Position {query} does not see the whole prefix; give {p - 1} or a later one.")
    counts, first = corpus_counts(request.counts, n, p, "Rarity")
    ranks = token_ranks(counts)
    clusters = statistics.clusters_of(request.clusters, rows[:, first:].numpy())
    statistics.check_sample(clusters, request.resamples, "The correlation of attention with rarity")
    layers, heads = lm.info.layers, lm.info.heads
    each = 2 * (p - first) * layers * heads * 8  # a paragraph's attention, and the same by rank
    if n > (most := free_memory() // 4 // each):
        raise UsageError(f"The attention of {n:,} paragraphs takes too much memory here; give at most {most:,}.")
    # In float64: rounding in the sums would put ranks with equal attention in an order.
    attention = torch.empty(n, p - first, layers * heads, dtype=torch.float64)
    entropies = torch.zeros(layers, heads)
    peak = PeakMemory(lm.device, held=n * each)

    def look(start: int, stop: int) -> None:
        weights = attention_rows(lm, rows[start:stop], query)
        lm.refuse_no_numbers(weights)
        # A head whose window ends before the prefix gives it nothing.
        prefix = weights[..., first:p]
        prefix = prefix / prefix.sum(-1, keepdim=True).clamp_min(_TINY)
        attention[start:stop] = prefix.flatten(1, 2).mT.double()
        entropies.add_(entropy(weights).sum(0))  # last: a batch that runs out of memory is taken again

    steps = n + 2 * request.resamples
    for done in lm.in_batches(look, n, query + 1, peak=peak):
        yield Progress(done, steps, "steps")

    tokens = np.bincount(ranks.ravel())
    compared = (tokens >= _FEWEST_TOKENS).nonzero()[0]
    if len(compared) < _FEWEST_RANKS:
        raise UsageError(
            f"A correlation needs at least {_FEWEST_RANKS} ranks of rarity with {_FEWEST_TOKENS} tokens each; "
            f"these paragraphs have {len(compared)}."
        )
    size = len(tokens)

    def tau(means: Doubles) -> Doubles:
        return statistics.kendall_tau_b(means[..., compared], compared.astype(np.float64))

    def mean_by_rank(ranks: Ints) -> Doubles:
        """Mean attention of each rank, [layers * heads, size]; ranks that no token has are 0."""
        sums = torch.zeros(size, layers * heads, dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(ranks.ravel()), attention.flatten(0, 1))
        return np.asarray(sums.numpy().T / np.maximum(tokens, 1))

    means = mean_by_rank(ranks)
    value = tau(means)
    generator = np.random.default_rng((request.seed, 0))
    null = []
    for done in range(1, request.resamples + 1):
        if request.shuffle == "positions":
            null.append(tau(mean_by_rank(generator.permuted(ranks, axis=1))))
        else:
            null.append(tau(mean_by_rank(ranks[generator.permutation(n)])))
        if done % _SHUFFLES_A_STEP == 0:
            yield Progress(n + done, steps, "steps")

    # A resample of paragraphs is a weighting of each paragraph's own sums by rank.
    sums = torch.zeros(n, size, layers * heads, dtype=torch.float64)
    sums.scatter_add_(1, torch.from_numpy(ranks)[..., None].expand_as(attention), attention)
    seen = np.stack([np.bincount(row, minlength=size) for row in ranks]).astype(np.float64)
    every_weights = statistics.resampled_weights(clusters, request.resamples, request.seed)
    resampled = []
    for start in range(0, request.resamples, _SHUFFLES_A_STEP):
        weights = every_weights[start : start + _SHUFFLES_A_STEP]
        total = (torch.from_numpy(weights) @ sums.flatten(1)).view(-1, size, layers * heads)
        tokens_then = weights @ seen  # a rank may have none left
        resampled.append(tau(total.numpy().swapaxes(1, 2) / np.where(tokens_then > 0, tokens_then, np.nan)[:, None]))
        yield Progress(n + request.resamples + start + len(weights), steps, "steps")

    def by_head(x: Doubles) -> Floats:
        return x.astype(np.float32).reshape(layers, heads, *x.shape[1:])

    null_values = np.stack(null)
    p_value, p_all = _p_values(value, null_values)
    null_low, null_high = np.quantile(null_values, (0.025, 0.975), axis=0)
    low, high = np.quantile(np.concatenate(resampled), (0.025, 0.975), axis=0)
    drawn = np.where((p_all < 0.05) & (value < null_values.mean(0)), value, np.inf)
    strongest, found = int(drawn.argmin()), bool(np.isfinite(drawn.min()))
    return RarityScores(
        query=query,
        ranks=compared,
        tokens_per_rank=tokens[compared],
        attention=by_head(means[:, compared]),
        tau=by_head(value),
        low=by_head(low),
        high=by_head(high),
        null_mean=by_head(null_values.mean(0)),
        null_low=by_head(null_low),
        null_high=by_head(null_high),
        p=by_head(p_value),
        p_all=by_head(p_all),
        entropy=(entropies / n).numpy(),
        strongest=divmod(strongest, heads) if found else None,
        stands_out=found and bool(high[strongest] < np.delete(value, strongest).min(initial=np.inf)),
        peak_bytes=peak.bytes,
    )


def corpus_counts(counts: tuple[tuple[int, ...], ...], n: int, p: int, what: str) -> tuple[Ints, int]:
    """The corpus counts of the prefixes' text, [n, p - first], and `first`, where it begins: 1 after a begin-of-text
    token (`ParagraphSet.prefix_counts`), else 0. Raises UsageError where there is not one for every token.
    """
    if len(counts) != n or any(len(own) != p for own in counts):
        raise UsageError(f"{what} needs one corpus count for every prefix token of every paragraph.")
    found = np.array(counts)
    first = int((found[:, 0] < 0).all())
    if (found[:, first:] < 0).any():
        raise UsageError("Only a begin-of-text token has no corpus count, and then every paragraph begins with it.")
    return found[:, first:], first


def token_ranks(counts: Ints) -> Ints:
    """Dense rank of each prefix token's corpus count [n, p] within its prefix, [n, p], 0 the rarest."""
    return np.stack([np.unique(own, return_inverse=True)[1] for own in counts])


def _p_values(value: Doubles, null: Doubles) -> tuple[Doubles, Doubles]:
    """Two-sided p of each head [h] against its own null [resamples, h], and against the largest of all heads'."""
    centre, spread = null.mean(0), null.std(0)
    scale = np.where(spread > 0, spread, np.inf)
    far, null_far = np.abs(value - centre) / scale, np.abs(null - centre) / scale
    # A head whose null does not vary at all, like uniform attention's, differs from it by nothing.
    of = 1 + len(null)
    return (1 + (null_far >= far).sum(0)) / of, (1 + (null_far.max(1)[:, None] >= far).sum(0)) / of
