"""The paragraph that is studied: what the person did with it, and what is known of it. Draws nothing, asks nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from memloc_core.requests import Ablated, Reference, Request
from memloc_tui.catalogue import Catalogue
from memloc_tui.view import Heads, Overlay, Replacements, Score, SweepView, Trial, View

if TYPE_CHECKING:
    from memloc_tui.state import Resume


@dataclass
class Work:
    """What the person did with one paragraph."""

    replacements: Replacements = ()
    undo: list[Replacements] = field(default_factory=list)
    trials: tuple[Trial, ...] = ()
    sweep: SweepView | None = None
    recalled: bool = False  # whether the trials of earlier sittings were looked for


@dataclass(frozen=True)
class Question:
    """What the panes are about; an answer to any other question is late."""

    row: int
    replacements: Replacements
    reference: str
    identity: str
    ablated: Heads = ()


class Study:
    """One catalogue, the row on screen, and its answers. A new one for each paragraph set or model identity."""

    def __init__(self, resume: Resume, catalogue: Catalogue, identity: str) -> None:
        self.resume, self.catalogue, self.identity = resume, catalogue, identity
        self.current = -1
        self.work: dict[int, Work] = {}
        self.trying: Replacements | None = None  # while the chooser is open: what it tries
        self.edits = ""  # names of the edits that all of this is asked with
        self.forget()
        self._ranks: tuple[tuple[int, Replacements], tuple[int, ...], tuple[int, ...]] = ((-1, ()), (), ())

    def forget(self) -> None:
        """Nothing is known about the question on screen."""
        self.score: Score | None = None
        self.own: tuple[int, ...] = ()
        self.answered: Question | None = None
        self.error = ""
        self.asking = False

    def work_on(self, row: int) -> Work:
        return self.work.setdefault(row, Work())

    @property
    def here(self) -> Work:
        return self.work_on(self.current)

    @property
    def id(self) -> str:
        """Of the paragraph on screen."""
        return self.catalogue.paragraphs.ids[self.current]

    def fits(self, position: int, token: int) -> bool:
        """Whether this can be a replacement at all: a saved one may be from another prefix length."""
        return 0 <= position < self.catalogue.paragraphs.prefix_length and 0 <= token < len(self.catalogue.pieces)

    @property
    def replacements(self) -> Replacements:
        """What stands in the prefix now: what the chooser tries, else what was kept."""
        return self.trying if self.trying is not None else self.here.replacements

    @property
    def question(self) -> Question:
        return Question(self.current, self.replacements, self.resume.reference, self.identity, self.ablated)

    @property
    def ablated(self) -> Heads:
        """The heads that are taken out of every pass about the paragraph."""
        return tuple((layer, head) for layer, head in self.resume.ablated)

    def posed(self, request: Request) -> Request:
        """A question about the paragraph as the person studies it: with heads ablated, or not."""
        return Ablated(request, self.ablated) if self.ablated else request

    def reference(self, row: int) -> Reference:
        """What this row is matched against."""
        return self.catalogue.reference(row, self.resume.reference)

    def with_replacement(self, replacements: Replacements, position: int, token: int | None) -> Replacements:
        """`replacements` with another token at `position`; the original token (or None) means no replacement there."""
        changed = dict(replacements)
        changed.pop(position, None)
        if token is not None and token != self.catalogue.paragraphs.tokens[self.current, position]:
            changed[position] = token
        return tuple(sorted(changed.items()))

    def prefix(self, row: int, replacements: Replacements) -> tuple[int, ...]:
        """A row's prefix under replacements."""
        p = self.catalogue.paragraphs
        prefix = list(p.row(row)[: p.prefix_length])
        for position, token in replacements:
            prefix[position] = token
        return tuple(prefix)

    def record(self, trial: Trial) -> None:
        """Into the history, newest first; the same question stands there once."""
        here = self.here
        key = (trial.replacements, trial.score.against, trial.score.ablated)
        if all((t.replacements, t.score.against, t.score.ablated) != key for t in here.trials):
            here.trials = (trial, *here.trials)
            self.resume.keep_trial(self.id, trial.score.against, trial.replacements, trial.score.ablated)

    def view(self) -> View:
        """Everything known about the paragraph on screen."""
        p, here = self.catalogue.paragraphs, self.here
        if self._ranks[0] != (self.current, self.replacements):
            self._ranks = ((self.current, self.replacements), *self._rarity())
        return View(
            index=self.current,
            id=p.ids[self.current],
            tokens=p.row(self.current),
            prefix_length=p.prefix_length,
            replacements=self.replacements,
            score=self.score,
            own=self.own,
            sweep=here.sweep,
            trials=here.trials,
            overlay=cast(Overlay, self.resume.overlay),
            reference=self.reference(self.current),
            ablated=self.ablated,
            edits=self.edits,
            asking=self.asking,
            error=self.error,
            ranks=self._ranks[1],
            counts=self._ranks[2],
        )

    def _rarity(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rank of each prefix token's corpus count within the prefix, 1 for the rarest, and the counts (README). Of
        what stands there now: it is what the model reads. A begin-of-text token that was asked for has
        rank 0 and count -1."""
        prefix = self.prefix(self.current, self.replacements)
        counts = tuple(map(self.catalogue.count, prefix))
        if prefix[0] == self.catalogue.paragraphs.begin:
            counts = (-1, *counts[1:])
        rank = {count: i + 1 for i, count in enumerate(sorted(set(counts) - {-1}))}
        return tuple(rank.get(c, 0) for c in counts), counts
