"""What became of the paper's claims: worked out from other answers by `memloc_core.findings`, kept like an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from memloc_core.requests.base import Request, Result

Verdict = Literal["holds", "does not hold", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "inconclusive")


@dataclass(frozen=True)
class Finding(Result):
    """What became of one claim of the paper on one model and one set of paragraphs.

    `effect` and its 95 % `interval` are in `unit`, None where there was too little data: then `says` is the reason and
    n is 0. `paper`: the paper's number for the same effect on GPT-Neo 125M, None where it gives none; `paper_says` in
    words.
    """

    claim: str
    sentence: str
    verdict: Verdict
    effect: float | None
    interval: tuple[float, float] | None
    n: int  # paragraphs that were looked at
    seed: int
    paper: float | None
    paper_says: str
    unit: str
    says: str
    paragraph: str  # id of the paragraph that shows it best, "" where there is none
    view: str  # the tab that shows it

    def checked(self) -> Finding:
        """Itself. Raises ValueError for numbers without data, a verdict without numbers, or what is no number."""
        numbers = (self.effect is not None, self.interval is not None, self.n > 0)
        if len(set(numbers)) > 1 or (self.effect is None and self.verdict != "inconclusive"):
            raise ValueError("A finding has all of its numbers, or none of them and no verdict.")
        if not all(map(math.isfinite, (self.effect or 0.0, *(self.interval or ())))):
            raise ValueError("A finding's numbers are finite.")
        return self


@dataclass(frozen=True)
class ClaimTest(Request):
    """One claim on a set of paragraphs. No analysis: `memloc_core.findings` turns other answers into this one."""

    answer = Finding
    version = 2
    claim: str
    paragraphs: str  # `Setting.fingerprint` of the set
    prefix_length: int
    quick: bool
    seed: int
