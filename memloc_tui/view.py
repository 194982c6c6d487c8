"""What the panes show of one paragraph, as plain frozen data: the explorer makes it, widgets draw it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from memloc_core.requests import Ablated, Perturb, Request, Sweep
from memloc_tui.figures import head_names

if TYPE_CHECKING:
    from memloc_core.requests import Answer, Perturbation, Reference, SweepScores, Tokens

Replacements = tuple[tuple[int, int], ...]
Heads = tuple[tuple[int, int], ...]
Overlay = Literal["none", "EM drop", "rarity", "attention", "gradient"]
OVERLAYS: tuple[Overlay, ...] = ("none", "EM drop", "rarity", "attention", "gradient")


@dataclass(frozen=True)
class Score:
    """How the continuation fares under the current replacements, whichever request it came from."""

    reference: Tokens  # [c] what is matched against
    predicted: Tokens  # [c] teacher-forced argmax
    em_before: int
    em: int
    margin: float
    nll_before: float
    nll: float
    against: Reference = "true"
    ablated: Heads = ()
    token_nll: tuple[float, ...] = ()  # [c] of the reference, given the text before it
    seconds: float | None = None  # None: it was in the cache

    @property
    def drop(self) -> int:
        return self.em_before - self.em

    @property
    def took(self) -> str:
        """Where the answer came from, for the person: `cached` or how long it took."""
        return "cached" if self.seconds is None else duration(self.seconds)


@dataclass(frozen=True)
class Trial:
    """One row of a paragraph's history: replacements that were tried and kept, and their effect."""

    replacements: Replacements
    score: Score


@dataclass(frozen=True)
class SweepView:
    """A sweep's scores so far or in full, and the request that names its strategy, draws, seed and reference."""

    request: Request
    scores: SweepScores
    done: bool
    cached: bool = False
    drops: tuple[float, ...] = ()  # [p] nan where not known yet

    @property
    def known(self) -> tuple[float, ...]:
        return tuple(d for d in self.drops if d == d)

    @property
    def mean(self) -> float:
        known = self.known
        return sum(known) / len(known) if known else float("nan")

    @property
    def verified(self) -> bool:
        sweep, _ = bare(self.request)
        return isinstance(sweep, Sweep) and sweep.verified

    def said(self) -> str:
        """Strategy, draws and reference in the words of the titles."""
        sweep, heads = bare(self.request)
        assert isinstance(sweep, Sweep)
        seed = f" · seed {sweep.seed}" if sweep.strategy == "random" else ""
        without = f" · without {head_names(heads)}" if heads else ""
        return f"{sweep.strategy} ×{sweep.draws}{seed} · vs {sweep.reference}{without}"


@dataclass(frozen=True)
class View:
    """One paragraph with everything known about it under the current replacements."""

    index: int
    id: str
    tokens: Tokens
    prefix_length: int
    replacements: Replacements = ()
    score: Score | None = None
    own: Tokens = ()  # the model's real greedy tokens from the first mismatch on
    sweep: SweepView | None = None
    trials: tuple[Trial, ...] = ()
    overlay: Overlay = "none"
    overlay_values: tuple[float, ...] = ()  # [p] of attention or gradient; nan where not known yet
    overlay_says: str = ""  # what they are, or why there are none
    reference: Reference = "true"  # what a perturbation of this paragraph is matched against
    ablated: Heads = ()
    edits: str = ""  # names of the edits in the weights
    asking: bool = False
    error: str = ""
    ranks: tuple[int, ...] = field(default=(), repr=False)  # [p] rarity: 1 = the rarest of `perturbed`, 0: none
    counts: tuple[int, ...] = field(default=(), repr=False)  # [p] corpus counts of `perturbed`, -1: none

    @property
    def prefix(self) -> Tokens:
        return self.tokens[: self.prefix_length]

    @property
    def continuation(self) -> Tokens:
        return self.tokens[self.prefix_length :]

    @property
    def perturbed(self) -> Tokens:
        """The prefix under the current replacements."""
        prefix = list(self.prefix)
        for position, token in self.replacements:
            prefix[position] = token
        return tuple(prefix)


def bare(request: Request) -> tuple[Request, Heads]:
    """A request without its ablation, and the heads that it ablates."""
    return (request.request, request.heads) if isinstance(request, Ablated) else (request, ())


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def score_of(answer: Answer[Any], cached: bool) -> Score:
    """A Perturb answer as a Score."""
    result: Perturbation = answer.result
    request, heads = bare(answer.request)
    assert isinstance(request, Perturb)
    return Score(
        reference=tuple(result.reference.tolist()),
        predicted=tuple(result.predicted.tolist()),
        em_before=int(result.em_before),
        em=int(result.em_after),
        margin=float(result.margin_after),
        nll_before=float(result.nll_before),
        nll=float(result.nll_after),
        against=request.reference,
        ablated=heads,
        token_nll=tuple(result.token_nll.tolist()),
        seconds=None if cached else answer.provenance.seconds,
    )
