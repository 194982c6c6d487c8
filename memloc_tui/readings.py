"""What the panels read out of results: small pure functions from a result's arrays to the numbers that are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memloc_core.requests import (
        ComponentGradients,
        HeadAblations,
        HeadGradients,
        Score,
    )

    Array = NDArray[Any]

SITES = ("q", "k", "v", "z")
Unit = Literal["magnitude", "share"]


def layers_of(gradients: ComponentGradients, score: Score, unit: Unit) -> Array:
    """Each paragraph's score per layer, [n, layers]: summed over components, or its share of all layers' sum."""
    return gradients.layer_shares(score) if unit == "share" else gradients.layer_sums(score)


def cells_of(gradients: ComponentGradients, score: Score, unit: Unit) -> Array:
    """Mean over paragraphs of each component's score (or of its share of the paragraph's sum), [layers, k]."""
    values: Array = getattr(gradients, score)
    if unit == "share":
        total = values.sum((1, 2), keepdims=True)
        values = np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)
    mean: Array = values.mean(0)
    return mean


def total_of(gradients: ComponentGradients, score: Score) -> Array:
    """Each paragraph's score summed over all layers, [n]."""
    total: Array = gradients.layer_sums(score).sum(-1)
    return total


def percentile(value: float, sample: Array) -> float:
    """Which share of the sample lies below the value; ties count half."""
    return float(((sample < value).mean() + (sample <= value).mean()) / 2)


def groups_of(components: tuple[str, ...]) -> tuple[list[tuple[str, int]], list[str]]:
    """Component names as spans of columns with one name (`W_Q`, 12) and each column's own (`H0`, `KV1`, ``)."""
    groups: list[tuple[str, int]] = []
    columns = []
    for name in components:
        kind, _, head = name.partition(" ")
        columns.append(head)
        if groups and groups[-1][0] == kind and head:
            groups[-1] = (kind, groups[-1][1] + 1)
        else:
            groups.append((kind, 1))
    return groups, columns


def top_cells(values: Array, k: int) -> list[tuple[int, int]]:
    """The k cells of the largest size, largest first; ties in order; unknown ones left out."""
    size = np.abs(values)
    order = np.argsort(-np.nan_to_num(size, nan=-1.0), axis=None, kind="stable")[:k]
    cells = [divmod(int(flat), values.shape[1]) for flat in order]
    return [cell for cell in cells if size[cell] == size[cell]]


def activation_of(gradients: HeadGradients, site: str) -> Array:
    """Max over the head dimension, [layers, h, tokens], of one of q, k, v, z, or of the largest of the four."""
    scores: Array = gradients.scores
    largest: Array = scores.max(0) if site not in SITES else scores[SITES.index(site)]
    return largest


# The scores that can colour the head grid: name -> (unit as printed, what it says).
HEAD_SCORES: dict[str, str] = {
    "rarity": "τ-b of attention with frequency",
    "entropy": "mean over attention rows, nats",
    "gradient z": "max |dNLL/dz| of this paragraph over the prefix",
    "gradient W_O": "max |dNLL/dW_O| of this paragraph",
    "ablation EM": "change of mean EM without the head",
    "ablation own EM": "change of mean EM vs own text",
    "ablation NLL": "change of NLL, nats per token",
}


def output_gradients(gradients: ComponentGradients, layers: int, heads: int) -> Array:
    """max |dNLL/dW_O| of each head, [layers, h]; nan where the model has no such component."""
    columns = [gradients.components.index(f"W_O H{h}") for h in range(heads) if f"W_O H{h}" in gradients.components]
    if len(columns) < heads:
        return np.full((layers, heads), np.nan, np.float32)
    values: Array = gradients.max[0][:, columns]
    return values


class Ablation(NamedTuple):
    """What a mean over rows is with all heads, and without each one [layers, h]; nan where not computed yet."""

    before: float
    without: Array

    @property
    def change(self) -> Array:
        return self.without - self.before


def ablations(result: HeadAblations) -> dict[str, Ablation]:
    """Per head score of an ablation."""

    def mean(values: Array) -> Array:
        if not values.shape[-1]:
            return np.full(values.shape[:-1], np.nan)
        unknown = values < 0 if values.dtype.kind == "i" else np.isnan(values)
        means: Array = np.where(unknown.any(-1), np.nan, values.astype(np.float64).mean(-1))
        return means

    return {
        "ablation EM": Ablation(float(mean(result.memorized_em_before)), mean(result.memorized_em)),
        "ablation own EM": Ablation(float(mean(result.own_em_before)), mean(result.own_em)),
        "ablation NLL": Ablation(float(mean(result.general_nll_before)), mean(result.general_nll)),
    }
