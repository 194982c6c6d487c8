"""Telling memorized paragraphs from others by what a model shows while it reads their prefixes. Numpy only.

A logistic regression on `Signals`, judged on paragraphs of clusters that it was not fitted on. Letters: n paragraphs, f
signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memloc_core import statistics
from memloc_core.errors import UsageError

if TYPE_CHECKING:
    from memloc_core.requests import Ints
    from memloc_core.statistics import Doubles

FOLDS = 5
FEWEST = 10  # memorized, and others: below it no score is given
_RIDGE = 1.0  # penalty on the weights of standardised signals; an unpenalised fit to separable data has no end
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class Detector:
    """A fitted classifier: log odds = bias + weights . (signals - mean) / spread."""

    names: tuple[str, ...]
    weights: Doubles  # [f]
    bias: float
    mean: Doubles  # [f]
    spread: Doubles  # [f]

    def log_odds(self, values: Any, *, own_scale: bool = False) -> Doubles:
        """Log odds [n] that each paragraph is memorized.

        `own_scale` standardises by these very paragraphs: for another model, whose signals have another scale.
        """
        values = np.asarray(values, np.float64)
        mean, spread = _scale(values) if own_scale else (self.mean, self.spread)
        return np.asarray((values - mean) / spread @ self.weights + self.bias)

    def probability(self, values: Any) -> Doubles:
        """The same as a probability, [n]."""
        return np.asarray(0.5 * (1 + np.tanh(self.log_odds(values) / 2)))


def fit(names: tuple[str, ...], values: Any, memorized: Any) -> Detector:
    """Ridge-penalised logistic regression by Newton's method on signals [n, f] and labels [n]."""
    values, memorized = np.asarray(values, np.float64), np.asarray(memorized, np.float64)
    mean, spread = _scale(values)
    x = np.concatenate([(values - mean) / spread, np.ones((len(values), 1))], 1)
    penalty = np.full(x.shape[1], _RIDGE)
    penalty[-1] = 1e-6  # the bias is free
    beta = np.zeros(x.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = 0.5 * (1 + np.tanh(x @ beta / 2))
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + np.diag(penalty), x.T @ (memorized - p) - penalty * beta)
        beta += step
        if np.abs(step).max() < 1e-9:
            break
    return Detector(names, beta[:-1], float(beta[-1]), mean, spread)


def out_of_cluster(names: tuple[str, ...], values: Any, memorized: Any, clusters: Ints, seed: int = 0) -> Doubles:
    """Log odds [n] of each paragraph from a detector that was fitted on none of its cluster.

    Raises UsageError where there are too few of either kind, or too few clusters, to say anything.
    """
    check(memorized, clusters)
    drawn = np.random.default_rng(seed).permutation(int(clusters.max()) + 1)
    fold = drawn[clusters] % FOLDS
    odds = np.empty(len(fold))
    for held_out in range(FOLDS):
        inside, outside = fold == held_out, fold != held_out
        if inside.any():
            known = np.asarray(memorized)[outside]
            if known.all() or not known.any():
                raise UsageError("All memorized (or all other) paragraphs are near-duplicates; nothing can be learned.")
            odds[inside] = fit(names, np.asarray(values)[outside], known).log_odds(np.asarray(values)[inside])
    return odds


def check(memorized: Any, clusters: Ints) -> None:
    """Raise UsageError where a detector would be fitted, or judged, on too little."""
    found = int(np.sum(memorized))
    if min(found, len(memorized) - found) < FEWEST:
        raise UsageError(
            f"Detection needs at least {FEWEST} memorized and {FEWEST} non-memorized paragraphs; there are {found} and "
            f"{len(memorized) - found}."
        )
    statistics.check_sample(clusters, statistics.FEWEST_RESAMPLES, "Detection")


def auc(scores: Any, memorized: Any, weights: Any = None) -> Doubles:
    """Area under the ROC curve: the chance that a memorized paragraph scores above another, ties counting half.

    `weights` [..., n] say how often each paragraph counts; the areas are [...].
    """
    scores, memorized = np.asarray(scores, np.float64), np.asarray(memorized, bool)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    _, place = np.unique(scores, return_inverse=True)
    levels = int(place.max()) + 1
    at = np.zeros((2, *weights.shape[:-1], levels))
    for kind in (0, 1):
        for level_of, weight in zip(place[memorized == kind], weights[..., memorized == kind].T, strict=True):
            at[kind, ..., level_of] += weight
    others, found = at
    below = np.cumsum(others, -1) - others
    pairs = others.sum(-1) * found.sum(-1)
    wins = (found * (below + others / 2)).sum(-1)
    return np.asarray(np.divide(wins, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0))


def auc_interval(
    scores: Any, memorized: Any, clusters: Ints, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the area, whole clusters resampled."""
    areas = auc(scores, memorized, statistics.resampled_weights(clusters, resamples, seed))
    low, high = np.nanquantile(areas, (0.025, 0.975))
    return float(low), float(high)


def _scale(values: Doubles) -> tuple[Doubles, Doubles]:
    spread = values.std(0)
    return values.mean(0), np.where(spread > 0, spread, 1.0)
