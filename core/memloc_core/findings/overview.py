"""The set at a glance: recitation by repetition count, strata with their diversity, and where their gradients lie.

The paper's Figure 2 (exact match and NLL against how often a paragraph stood in the training text) and Figure 9 (the
layers' share of the gradient in each stratum).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from memloc_core.findings.setting import Setting
from memloc_core.requests import ParameterGradients

if TYPE_CHECKING:
    from memloc_core.requests import ComponentGradients, Ints

MOST_COUNTS = 16  # different counts that are shown each; more are put together by powers of two
STRATUM_CUTS = (0.2, 0.6)  # of the continuation: the paper's 0..10, 11..29, 30..49 and 50 of 50
LOOKED_AT = 512  # paragraphs of a stratum whose words are compared
GRADIENTS = (8, 24)  # of each stratum, quick and in full
_CODE = re.compile(
    r"[{};]\s*$|^\s*(?:#include|import |from \S+ import|def |class |function|public |private )"
    r"|^\s*(?:return\b|var |let |const )"
    r"|</?[A-Za-z][^>]*>|/\*|\*/|//|=>|::|\w+\([^)]*\)\s*[;{]|[=!<>]=",
    re.MULTILINE,
)
CODE_SIGNS = 3  # so many signs of markup or program text in a paragraph make it code


@dataclass(frozen=True)
class CountRow:
    """Paragraphs that stood in the training text from `low` to `high` times."""

    low: int
    high: int
    n: int
    em: float  # mean
    nll: float  # mean, nats per token
    memorized: int
    row: int  # the paragraph whose EM is nearest to the mean

    @property
    def name(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


@dataclass(frozen=True)
class StratumRow:
    """Paragraphs with an EM from `low` to `high`; shares are over the first `looked_at` of them, by their ids."""

    low: int
    high: int
    n: int
    nll: float  # mean; nan for an empty stratum
    looked_at: int
    unique: float  # mean share of different tokens among a paragraph's own
    clusters: int  # of near-duplicates and families
    code: float  # share that looks like code or markup
    row: int  # the paragraph whose NLL is nearest to the mean, -1 for none

    @property
    def name(self) -> str:
        return f"EM {self.low}" if self.low == self.high else f"EM {self.low}..{self.high}"


def by_count(setting: Setting) -> list[CountRow]:
    """Known repetition counts in ascending order; [] where the set has none."""
    counts = setting.paragraphs.repetitions[: len(setting.em)]
    known = np.flatnonzero((counts >= 0) & (setting.em >= 0))
    values = np.unique(counts[known])
    bins = [(int(v), int(v)) for v in values]
    if len(values) > MOST_COUNTS:
        edges = [0, *(2**k for k in range(int(values[-1]).bit_length() + 1))]
        bins = [(a, b - 1) for a, b in pairwise(edges)]
    rows = []
    for low, high in bins:
        inside = known[(counts[known] >= low) & (counts[known] <= high)]
        if len(inside):
            em, nll = setting.em[inside], setting.nll[inside]
            nearest = int(inside[np.abs(em - em.mean()).argmin()])
            memorized = int((em >= setting.c).sum())
            rows.append(CountRow(low, high, len(inside), float(em.mean()), float(nll.mean()), memorized, nearest))
    return rows


def strata_of(setting: Setting) -> list[tuple[int, int, Ints]]:
    """Lowest and highest EM of each of four strata, and its rows in the order of their ids, the memorized first."""
    first, second = (int(cut * setting.c) for cut in STRATUM_CUTS)
    bounds = [(setting.c, setting.c), (second, setting.c - 1), (first + 1, second - 1), (0, first)]
    ordered = setting.every(len(setting.em))
    em = setting.em[ordered]
    return [(low, high, ordered[(em >= low) & (em <= high)]) for low, high in bounds if low <= high]


def by_stratum(setting: Setting, text: Callable[[int], str]) -> list[StratumRow]:
    """Sizes and diversity; `text` gives a row's text."""
    rows = []
    for low, high, members in strata_of(setting):
        few = members[:LOOKED_AT]
        tokens = setting.paragraphs.texts[few]
        unique = [len(set(row)) / len(row) for row in tokens.tolist()]
        nll = setting.nll[members].astype(np.float64)
        rows.append(
            StratumRow(
                low,
                high,
                len(members),
                float(nll.mean()) if len(members) else float("nan"),
                len(few),
                float(np.mean(unique)) if unique else float("nan"),
                len(set(setting.related(few).tolist())),
                float(np.mean([looks_like_code(text(row)) for row in few.tolist()])) if len(few) else float("nan"),
                int(members[np.abs(nll - nll.mean()).argmin()]) if len(members) else -1,
            )
        )
    return rows


def looks_like_code(text: str) -> bool:
    """Whether a text holds several signs of program text or markup: a rule of thumb, which says so on the screen."""
    return len(_CODE.findall(text)) >= CODE_SIGNS


def gradient_questions(setting: Setting) -> list[list[ParameterGradients]]:
    """One request for each sampled paragraph of each stratum."""
    most = setting.size(*GRADIENTS)
    return [
        [ParameterGradients(setting.tokens((row,)), setting.p) for row in members[:most].tolist()]
        for _, _, members in strata_of(setting)
    ]


def shift(results: Sequence[ComponentGradients]) -> tuple[list[float], float] | None:
    """A stratum's mean share of each layer, and its mean sum over all layers; None where no gradient is known."""
    shares = [result.layer_shares()[0] for result in results]
    if not (known := [share for share in shares if np.isfinite(share).all()]):
        return None
    totals = [float(result.layer_sums().sum()) for result in results]
    return np.mean(known, 0).tolist(), float(np.mean(totals))
