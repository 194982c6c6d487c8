"""How numbers become a verdict: no number without enough data, no verdict without an interval.

Intervals are 95 % bootstrap intervals that resample whole clusters of related paragraphs, over all groups of a
comparison at once, so that what says the same in the same words counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memloc_core import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memloc_core.requests import Ints, Verdict

    Doubles = NDArray[np.float64]
    Statistic = Callable[[Sequence[Doubles]], Doubles]

RESAMPLES = 2000
FEWEST = statistics.FEWEST_CLUSTERS  # of unrelated paragraphs per group; below it nothing is measured


class TooLittle(Exception):
    """There is not enough data for a claim. Its text is the reason, in a sentence."""


@dataclass(frozen=True)
class Outcome:
    """What a verdict function says: a finding without the claim's own words. `best`: a row of the set, or -1."""

    verdict: Verdict
    effect: float
    low: float
    high: float
    n: int
    says: str
    best: int = -1


@dataclass(frozen=True)
class Group:
    """Values of n paragraphs: `rows` of the set, `clusters` numbered over all groups of a comparison."""

    values: Doubles  # [n] or [n, ...]
    clusters: Ints  # [n]
    rows: Ints  # [n]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mean(self) -> float:
        return float(self.values.mean())


def judge(low: float, high: float, beyond: float = 0.0, least: float | None = None) -> Verdict:
    """A verdict from the interval of an effect that the claim says is larger than `beyond`.

    It holds if the whole interval lies beyond. It does not hold if the whole interval lies below `least`, the smallest
    effect that would matter (the same as `beyond` where none is given). Else both are open.
    """
    if high < (beyond if least is None else least):
        return "does not hold"
    return "holds" if low > beyond else "inconclusive"


def enough(*groups: Group, of: str) -> None:
    """Raise TooLittle where a group has too few clusters, or a value that is no number."""
    for group in groups:
        n = len(np.unique(group.clusters))
        if n < FEWEST:
            each = " of each kind" if len(groups) > 1 else ""
            raise TooLittle(f"{of} needs at least {FEWEST} unrelated paragraphs{each}; there {_are(n)}.")
        if not np.isfinite(group.values).all():
            raise TooLittle(f"{of} could not be measured: some of the model's numbers are not finite.")


def bootstrap(groups: Sequence[Group], statistic: Statistic, seed: int) -> tuple[float, float]:
    """95 % interval of a statistic of groups: from weights [r, n] of each group's paragraphs to values [r]."""
    together = np.unique(np.concatenate([group.clusters for group in groups]), return_inverse=True)[1]
    weights = statistics.resampled_weights(together, RESAMPLES, seed)
    parts = np.split(weights, np.cumsum([len(group) for group in groups])[:-1], axis=1)
    drawn = np.logical_and.reduce([part.sum(-1) > 0 for part in parts])  # a resample may miss a group altogether
    values = statistic([part[drawn] for part in parts])
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def mean(weights: Doubles, values: Doubles) -> Doubles:
    """Weighted means of values [n] or [n, k] under weights [r, n], [r] or [r, k]."""
    total = weights.sum(-1)
    means: Doubles = (weights @ values) / (total if values.ndim == 1 else total[:, None])
    return means


def difference(more: Group, less: Group, seed: int) -> tuple[float, float, float]:
    """Mean of `more` - mean of `less`, and its interval."""
    low, high = bootstrap((more, less), lambda w: mean(w[0], more.values) - mean(w[1], less.values), seed)
    return more.mean - less.mean, low, high


def average(group: Group, seed: int) -> tuple[float, float, float]:
    """Mean of a group, and its interval."""
    low, high = bootstrap((group,), lambda w: mean(w[0], group.values), seed)
    return group.mean, low, high


def closing(verdict: Verdict, least: str = "") -> str:
    """How a sentence ends whose interval decides nothing, or lies short of the `least` effect that would matter."""
    refused = f"; it would take {least} to matter" if least else ""
    return {"inconclusive": "; the interval leaves it open", "does not hold": refused}.get(verdict, "")


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def within(low: float, high: float) -> str:
    return f"[{number(low)}, {number(high)}]"


def _are(n: int) -> str:
    return "is 1" if n == 1 else f"are {n}"
