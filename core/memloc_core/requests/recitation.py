"""What the model recites, and what a changed prefix does to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from memloc_core.requests.base import BACKGROUND, URGENT, Reference, Request, Result, Strategy, Tokens

if TYPE_CHECKING:
    from memloc_core.requests.base import Floats, Ints


@dataclass(frozen=True)
class ExactMatches(Result):
    """Exact match and its neighbourhood for n paragraphs.

    `margin`: how close the exact match is to being another number: the smallest |logit of the true token - best other
    logit| over the matched run and the first mismatch. Below about 1e-3 (bfloat16: 0.25, float16: 0.05) the exact match
    may differ between devices, and between one pass and decoding token by token.
    """

    em: Ints  # [n] 0..c
    margin: Floats  # [n] logits
    nll: Floats  # [n] nats per token, conditioned on the true text
    token_nll: Floats  # [n, c] nats
    predicted: Ints  # [n, c] teacher-forced argmax


@dataclass(frozen=True)
class ExactMatch(Request):
    """Exact match of n paragraphs by one teacher-forced pass (paper section 3; README)."""

    answer = ExactMatches
    urgency = BACKGROUND
    paragraphs: tuple[Tokens, ...]
    prefix_length: int = 50


@dataclass(frozen=True)
class Continuation(Result):
    """Greedy tokens and each one's probability."""

    tokens: Ints  # [length]
    probabilities: Floats  # [length]


@dataclass(frozen=True)
class Continue(Request):
    """`length` greedily decoded tokens after `prompt`, end-of-text treated as any other token."""

    answer = Continuation
    urgency = URGENT
    prompt: Tokens
    length: int = 50


@dataclass(frozen=True)
class Perturbation(Result):
    """Exact match before and after, against `reference`, which is the true or the model's own clean continuation."""

    reference: Ints  # [c]
    em_before: int
    em_after: int
    margin_before: float
    margin_after: float
    nll_before: float
    nll_after: float
    predicted: Ints  # [c] argmax after the perturbation, teacher-forced on `reference`
    token_nll: Floats  # [c] nats, after

    @property
    def drop(self) -> int:
        return self.em_before - self.em_after


@dataclass(frozen=True)
class Perturb(Request):
    """Replace prefix tokens, `replacements` = ((position, token), ...), and score the same continuation again.

    `reference` "own" scores against the model's own greedy continuation of the clean prefix, whose EM is c by
    construction: the paper's choice for non-memorized paragraphs.
    """

    answer = Perturbation
    urgency = URGENT
    paragraph: Tokens
    replacements: tuple[tuple[int, int], ...]
    prefix_length: int = 50
    reference: Reference = "true"


@dataclass(frozen=True)
class SweepScores(Result):
    """One replacement at a time at every prefix position. Entries still to be computed are -1 (and nan)."""

    reference: Ints  # [c]
    em_before: int
    replacements: Ints  # [p, draws]
    em: Ints  # [p, draws]
    margin: Floats  # [p, draws]
    nll: Floats  # [p, draws]
    # Of a verified sweep, else nan and 0. Margins and NLL of what was not computed again are those in bfloat16.
    error: float = math.nan  # the largest that a margin was off by in bfloat16, in logits, where both were computed
    bound: float = math.nan  # the margin from which on the exact match was trusted
    rechecked: float = 0.0  # share of replacements computed again exactly

    def drops(self) -> Floats:
        """Mean drop of exact match per position, [p]; nan where not computed."""
        import numpy as np

        known = self.em >= 0
        total = np.where(known, self.em_before - self.em, 0).sum(1)
        return np.where(known.all(1), total / self.em.shape[1], np.nan).astype(np.float32)


@dataclass(frozen=True)
class Sweep(Request):
    """Replace each prefix token in turn, `draws` times (paper section 4, Figure 3).

    strategy "random": uniform over the vocabulary without the original, seeded by (seed, position, draw);
    "next-best": the model's draw-th likeliest other token there; "most-frequent", "rarest" and "given": the draw-th of
    `tokens` that is not the original (the first two name where `tokens` came from: `ParagraphSet.ranked_tokens`).

    `verified`: compute in bfloat16, and again exactly whatever an error several times as large as any that was seen
    could change. The exact matches are those of the exact sweep, as long as no error is larger than that.
    """

    answer = SweepScores
    paragraph: Tokens
    strategy: Strategy = "random"
    draws: int = 1
    seed: int = 0
    tokens: Tokens = ()
    prefix_length: int = 50
    reference: Reference = "true"
    verified: bool = False


@dataclass(frozen=True)
class AllSweepScores(Result):
    """Of each paragraph its own sweep's scores."""

    scores: tuple[SweepScores, ...]


@dataclass(frozen=True)
class Sweeps(Request):
    """Sweeps that differ in nothing but the paragraph and what it is scored against, computed together.

    Rows of several paragraphs fill a pass where those of one do not; each answer belongs to its own `Sweep`, under
    which it is kept.
    """

    answer = AllSweepScores
    keeps = False
    sweeps: tuple[Sweep, ...]


def random_tokens(seed: int, position: int, draws: int, vocabulary: int, original: int) -> Tokens:
    """The first `draws` random replacements at a position: uniform over the vocabulary without the original.

    One generator per (seed, position): a draw depends neither on other positions nor on how many are asked for.
    """
    drawn = _drawn(seed, position, draws, vocabulary)
    return tuple((drawn + (drawn >= original)).tolist())


@lru_cache(maxsize=128)  # many paragraphs are swept with the same seed, at the same positions
def _drawn(seed: int, position: int, draws: int, vocabulary: int) -> Ints:
    import numpy as np

    return np.random.default_rng((seed, position)).integers(0, vocabulary - 1, draws)


@dataclass(frozen=True)
class TokenAlternatives(Result):
    """The model's likeliest tokens at a position, without the one that stands there, likeliest first."""

    tokens: Ints  # [k]
    probabilities: Floats  # [k]


@dataclass(frozen=True)
class Alternatives(Request):
    """What else the model expected at `position` of `prefix` (at position 0: after the begin-of-text token, if any)."""

    answer = TokenAlternatives
    urgency = URGENT
    prefix: Tokens
    position: int
    k: int = 16
