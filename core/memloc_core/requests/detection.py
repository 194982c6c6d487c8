"""Would it be recited? What a model shows while it reads the prefix alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memloc_core.requests.base import BACKGROUND, Request, Result, Tokens

if TYPE_CHECKING:
    from memloc_core.requests.base import Floats


@dataclass(frozen=True)
class Signals(Result):
    """One row of numbers per paragraph, none of which has seen the continuation."""

    names: tuple[str, ...]  # f names, such as "NLL", "min-k", "rare attention"
    values: Floats  # [n, f]
    peak_bytes: int


@dataclass(frozen=True)
class PrefixSignals(Request):
    """What might tell that a prefix's continuation is memorized, from the prefix' own tokens (all of them targets).

    "NLL" and "min-k" (mean over the least likely fifth; Shi et al., arXiv 2310.16789) are the usual baselines;
    "late NLL" and "late margin" are over the last fifth, "next margin" is of the token that would come next; "correct"
    is the share of tokens that are the argmax; "gradient" and "low gradient" are the logarithm of the summed gradient
    scores and their share in the lower half of the layers (paper section 5); "rare attention" is the mean over the
    lower half's heads of the attention from the last token to the rarest fifth, "rarest head" the largest of any head
    (paper section 6). The attention needs an adapter, and is left out where the architecture has none.
    """

    answer = Signals
    urgency = BACKGROUND
    prefixes: tuple[Tokens, ...]
    counts: tuple[tuple[int, ...], ...]  # corpus counts of each prefix token, as in `Rarity`
