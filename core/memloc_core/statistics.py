"""Rank correlation and bootstrap intervals, seeded, in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memloc_core import near_duplicates
from memloc_core.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memloc_core.requests import Ints

    Doubles = NDArray[np.float64]

FEWEST_CLUSTERS = 10  # below it a bootstrap interval or a permutation test says nothing
FEWEST_RESAMPLES = 20  # below it no p-value can be under 0.05
_PAIRS_AT_ONCE = 8_000_000  # elements of the largest array of pairwise signs


def kendall_tau_b(x: Doubles, y: Doubles) -> Doubles:
    """Kendall's tau-b between x [..., r] and y [r], [...]; 0 where all of x (or of y) is tied.

    Values of x that agree to six digits of the largest one are ties: sums of the same numbers in another order differ
    by rounding, and a ranking must not see that. Pairs with a nan are left out.
    """
    first, second = np.triu_indices(len(y), 1)
    sign_y = np.sign(y[second] - y[first])
    scale = np.fmax.reduce(np.abs(x), -1, keepdims=True)
    x = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0).round(6).reshape(-1, len(y))
    tau = np.empty(len(x))
    step = max(1, _PAIRS_AT_ONCE // max(1, len(first)))
    for start in range(0, len(x), step):
        sign_x = np.sign(x[start : start + step, second] - x[start : start + step, first])
        compared = np.abs(sign_x) >= 0
        sign_x = np.nan_to_num(sign_x)
        pairs = np.sqrt(np.abs(sign_x).sum(-1) * (compared @ np.abs(sign_y)))
        tau[start : start + step] = np.divide(sign_x @ sign_y, pairs, out=np.zeros(len(pairs)), where=pairs > 0)
    return tau.reshape(scale.shape[:-1])


def clusters_of(given: tuple[int, ...], texts: Ints) -> Ints:
    """Cluster number 0.. of each of n texts [n, t], [n]: as given, -1 standing alone, or else by near-duplicates."""
    n = len(texts)
    if not given:
        return np.array(near_duplicates.clusters(texts))
    if len(given) != n:
        raise UsageError(f"{len(given)} clusters were given for {n} paragraphs.")
    alone = np.arange(n) - n  # below any cluster's number
    return np.asarray(np.unique(np.where(np.array(given) < 0, alone, np.array(given)), return_inverse=True)[1])


def check_sample(clusters: Ints, resamples: int, statistic: str) -> None:
    """Raise UsageError where there are too few clusters of paragraphs, or resamples, for a statistic."""
    if resamples < FEWEST_RESAMPLES:
        raise UsageError(f"{statistic} needs at least {FEWEST_RESAMPLES} resamples, not {resamples}.")
    n = len(np.unique(clusters))
    if n < FEWEST_CLUSTERS:
        raise UsageError(
            f"{statistic} needs at least {FEWEST_CLUSTERS} paragraphs that are unrelated (neither near-duplicates nor "
            "of one family); "
            f"{n} {'was' if n == 1 else 'were'} given."
        )


def resampled_weights(clusters: Ints, resamples: int, seed: int) -> Doubles:
    """How often each item counts in each bootstrap resample of whole clusters, [resamples, n]."""
    count = int(clusters.max()) + 1
    drawn = np.random.default_rng((seed, 1)).multinomial(count, np.full(count, 1 / count), resamples)
    return np.asarray(drawn[:, clusters], np.float64)


def bootstrap_interval(values: Doubles, clusters: Ints, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of values [n], resampled by cluster."""
    weights = resampled_weights(clusters, resamples, seed)
    means = (weights @ values) / weights.sum(-1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
