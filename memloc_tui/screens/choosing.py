"""The chooser's candidates, and what becomes of the token that it tries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from memloc_core.errors import Cancelled, MemlocError
from memloc_core.requests import Alternatives
from memloc_tui.glyphs import visible
from memloc_tui.screens.study import Study
from memloc_tui.view import Replacements
from memloc_tui.widgets.chooser import Candidates, Chooser

if TYPE_CHECKING:
    from textual.worker import WorkType

    from memloc_tui.screens.explorer import Explorer

OFFERED = 33  # most frequent and rarest tokens in their columns
NEXT_BEST = 16


class Choosing:
    """Opens and closes the chooser over the lower pane, and keeps the study's `trying` in step with it."""

    def __init__(self, explorer: Explorer, chooser: Chooser) -> None:
        self.explorer, self.chooser = explorer, chooser

    @property
    def study(self) -> Study:
        assert self.explorer.study is not None
        return self.explorer.study

    def open(self, position: int) -> None:
        """Choose for a prefix position, and try the first random token unless the position is replaced already."""
        study, memloc = self.study, self.explorer.memloc
        p, pieces = study.catalogue.paragraphs, study.catalogue.pieces
        study.trying = study.here.replacements  # walking to another token without Enter keeps nothing
        original = int(p.tokens[study.current, position])

        def count(token: int) -> str:
            return f"{int(p.counts[token]):,}" if 0 <= token < len(p.counts) else ""

        def column(name: str, tokens: tuple[int, ...]) -> Candidates:
            return Candidates(name, [(t, count(t)) for t in tokens if t != original], "none")

        known = memloc.session.model if memloc.session is not None else None
        self.chooser.open(
            position,
            original,
            pieces,
            (
                Candidates("next best", note="asking …"),
                column("most frequent", p.ranked_tokens("most-frequent", OFFERED)),
                column("rarest", p.ranked_tokens("rarest", OFFERED)),
            ),
            count,
            memloc.resume.seed,
            known.vocabulary if known else len(pieces),
        )
        # The effect comes first: it is asked before the chooser is drawn, and before its other column is filled.
        if position not in dict(study.here.replacements):
            study.trying = study.with_replacement(study.here.replacements, position, self.chooser.try_first())
        self.explorer.asking.ask()
        if study.identity:
            work: WorkType[None] = partial(self._next_best, study, study.current, position, study.here.replacements)
            self.explorer.run_worker(work, group="chooser", exclusive=True, exit_on_error=False)
        self._show(True)

    def _show(self, shown: bool) -> None:
        """The chooser stands in the tab's place."""
        if self.chooser.display != shown:
            self.chooser.display = shown
            self.explorer.show_tab(not shown)
        if shown:
            self.explorer.set_focus(self.chooser, scroll_visible=False)
        self.explorer.name_tabs()

    async def _next_best(self, study: Study, row: int, position: int, kept: Replacements) -> None:
        """The model's own alternatives come when they come; the other columns do not wait for them."""
        session = self.explorer.session
        original = int(study.catalogue.paragraphs.tokens[row, position])
        try:
            answer: Any = await session.ask(study.posed(Alternatives(study.prefix(row, kept), position, NEXT_BEST)))
            pairs = zip(answer.result.tokens.tolist(), answer.result.probabilities.tolist(), strict=True)
            rows = [(t, f"{p:.3f}" if p >= 0.001 else f"{p:.0e}") for t, p in pairs if t != original]
            found = Candidates("next best", rows, "none")
        except Cancelled:
            return
        except MemlocError as error:
            found = Candidates("next best", note=visible(str(error)))
        if study.trying is not None and (study.current, self.chooser.position) == (row, position):
            self.chooser.show_next_best(found)

    def learned(self, replacements: dict[int, int], em: int) -> None:
        """Write an effect beside the token that had it."""
        token = replacements.get(self.chooser.position)
        if token is not None:
            self.chooser.record(token, em)

    def tried(self, message: Chooser.Tried) -> None:
        study = self.study
        if study.trying is not None and message.position == self.chooser.position:
            kept = study.here.replacements
            new = message.token
            study.trying = kept if new is None else study.with_replacement(kept, message.position, new)
            self.explorer.asking.ask()

    def done(self, keep: bool) -> None:
        """Close; what was tried is kept, or what stood there before comes back."""
        study = self.study
        tried = study.trying
        if tried is not None:
            self.close()
            if keep and tried != study.here.replacements:
                self.explorer.commit(tried)
            else:
                self.explorer.asking.ask()
            self.explorer.set_focus(self.explorer.prefix)

    def reset(self) -> None:
        """There is another study."""
        self.explorer.workers.cancel_group(self.explorer, "chooser")
        self._show(False)

    def close(self) -> None:
        """Without a word about what was tried."""
        if self.study.trying is not None:
            self.study.trying = None
            self.explorer.workers.cancel_group(self.explorer, "chooser")
            self._show(False)
