"""The paragraph list's questions: every exact match, the filter, the order."""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from textual.content import Content

from memloc_core.errors import EngineDied, MemlocError
from memloc_tui.catalogue import SORTS, STRATA, Catalogue, FilterError, Sort, Term, parse_filter
from memloc_tui.glyphs import fit, visible
from memloc_tui.screens.telling import Telling
from memloc_tui.widgets.one_line import OneLine

if TYPE_CHECKING:
    from textual.worker import WorkType

    from memloc_tui.screens.explorer import Explorer

RESORT_EVERY = 0.25  # seconds: rows that jump more often cannot be read
TELL_AFTER = 0.8  # seconds in the order "told" before its signals are asked for
SLICE = 0.01  # seconds of filtering between two looks at the keyboard


class Listing:
    """Keeps the list of a study up to date."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.terms: tuple[Term, ...] = ()
        self.matching: list[int] = []
        self.filtering = False  # whether other rows may match by now
        self.resort_waits = False
        self.error = ""  # why the scores stopped coming
        self.wrong = ""  # why the filter means nothing
        self.telling = Telling(explorer)
        resume = explorer.memloc.resume
        try:
            self.terms = parse_filter(resume.filter)
        except FilterError:
            resume.filter = ""
        if resume.sort not in SORTS:
            resume.sort = "EM"

    @property
    def catalogue(self) -> Catalogue:
        assert self.explorer.study is not None
        return self.explorer.study.catalogue

    # ------------------------------------------------------------------------------------------------------ scores

    def scan(self) -> None:
        """Ask for every exact match that is not known."""
        self.error = ""
        work: WorkType[None] = self._scan
        self.explorer.run_worker(work, group="scan", exclusive=True, exit_on_error=False)

    async def _scan(self) -> None:
        """What is in the cache at once, then the engine, what is on screen first."""
        session, catalogue = self.explorer.session, self.catalogue
        firsts = {chunk: catalogue.rows_in(chunk).start for chunk in range(catalogue.chunks)}
        missing = {
            chunk for chunk, row in firsts.items() if catalogue.scored(row) is None and row not in catalogue.gone
        }
        found = False
        for chunk in sorted(missing):
            if (answer := session.peek(catalogue.request(chunk))) is not None:
                missing.discard(chunk)
                found = True
                self._learn(catalogue, chunk, answer.result, soon=False)
            await asyncio.sleep(0)
        if found:
            self.resort()
        while missing:
            wanted = [self.explorer.current, *self.explorer.list.visible_paragraphs]
            nearest = (catalogue.chunk_of(row) for row in wanted if row >= 0)
            chunk = next((chunk for chunk in nearest if chunk in missing), min(missing))
            try:
                answer = await session.ask(catalogue.request(chunk))
            except MemlocError as error:
                self.error = visible(str(error))
                self.draw_head()
                if isinstance(error, EngineDied):
                    self.explorer.memloc.engine_died(error)
                return
            missing.discard(chunk)
            self._learn(catalogue, chunk, answer.result)
        self.resort()

    def _learn(self, catalogue: Catalogue, chunk: int, result: Any, soon: bool = True) -> None:
        study = self.explorer.study
        if study is None or catalogue is not study.catalogue:
            return  # an earlier model's
        rows = catalogue.learn(chunk, result)
        self.explorer.list.repaint_paragraphs(rows)
        # Without some heads, the number before is the row's own with all of them.
        if study.current in rows and (study.score is None or study.ablated):
            self.explorer.asking.ask()
        if soon and not self.resort_waits:
            self.resort_waits = True
            self.explorer.set_timer(RESORT_EVERY, self.resort)

    def resort(self) -> None:
        """Order the rows by what is known by now; not those of a study that was put aside meanwhile."""
        self.resort_waits = False
        if self.explorer.listing is not self:
            return
        self.explorer.locating.scored()
        if any(term.field in ("em", "change", "nll", "margin", "is") for term in self.terms):
            self.filter()
        else:
            self.show_order()

    # ---------------------------------------------------------------------------------------------- filter and sort

    def typed(self, text: str) -> None:
        """Apply a filter; a term that means nothing is said above the list, which stays as it was."""
        try:
            terms = parse_filter(text)
        except FilterError as error:
            self.wrong = str(error)
            self.draw_head()
            return
        self.wrong = ""
        self.explorer.memloc.resume.filter, self.terms = text, terms
        self.explorer.memloc.save_soon()
        self.filter()

    def filter(self, then: int = -1) -> None:
        """Find the rows that match, then show paragraph `then` (or the first) if none is shown yet."""
        self.filtering = True
        work: WorkType[None] = partial(self._filter, self.terms, then)
        self.explorer.run_worker(work, group="filter", exclusive=True, exit_on_error=False)

    async def _filter(self, terms: tuple[Term, ...], then: int) -> None:
        catalogue = self.catalogue
        matching: list[int] = []
        started = monotonic()
        for part in catalogue.matching(terms):
            matching += part
            if monotonic() - started > SLICE:
                await asyncio.sleep(0)
                started = monotonic()
        if catalogue is not self.catalogue:
            return
        self.matching, self.filtering = matching, False
        self.show_order()
        if self.explorer.current < 0 and len(catalogue):
            first = self.explorer.list.order[0] if self.explorer.list.order else 0
            self.go_to(then if then >= 0 else first)

    def changed(self, what: str) -> None:
        """Other paragraphs are marked or perturbed now: a filter that asks for these lets others pass."""
        if Term("is", "has", what) in self.terms:
            self.filter()

    def go_to(self, row: int) -> None:
        """Show this paragraph, the list's cursor on it, or on none where the filter keeps it out."""
        rows = self.explorer.list
        rows.show_order(self.catalogue, rows.order, row)
        self.explorer.select(row)

    def sort(self) -> None:
        """By the next column."""
        resume = self.explorer.memloc.resume
        known = [sort for sort in SORTS if sort != "change" or self.catalogue.original is not None]
        resume.sort = known[(known.index(resume.sort) + 1) % len(known)] if resume.sort in known else known[0]
        self.telling.again()
        self.explorer.memloc.save_soon()
        self.show_order()

    def reverse(self) -> None:
        self.explorer.memloc.resume.reverse = not self.explorer.memloc.resume.reverse
        self.explorer.memloc.save_soon()
        self.show_order()

    def show_order(self) -> None:
        catalogue, resume, rows = self.catalogue, self.explorer.memloc.resume, self.explorer.list
        self._tell(catalogue)
        order = catalogue.ordered(self.matching, cast(Sort, resume.sort), resume.reverse)
        if order != rows.order or rows.catalogue is not catalogue:
            rows.show_order(catalogue, order, self.explorer.current)
        self.draw_head()

    def _tell(self, catalogue: Catalogue) -> None:
        """In the order "told", have every row's probability; not for somebody who only passes by."""
        tells, rows = self.explorer.memloc.resume.sort == "told", self.explorer.list
        if tells != rows.tells:
            rows.tells = tells
            rows.refresh()

        def begin() -> None:
            if self.explorer.memloc.resume.sort == "told" and catalogue is self.catalogue:
                self.telling.start(catalogue)
                self.draw_head()

        if tells:
            self.explorer.set_timer(TELL_AFTER, begin)

    # ------------------------------------------------------------------------------------------------------- drawing

    def draw_head(self) -> None:
        """How many, in which order, how much is known: the pane's edges and first line."""
        catalogue, resume = self.catalogue, self.explorer.memloc.resume
        shown, total, counts = len(self.matching), catalogue.there, catalogue.strata
        known = sum(counts.values())
        pane = self.explorer.query_one("#list-pane")
        names = STRATA if pane.size.width > 48 else ("mem", "part", "non")
        strata = " · ".join(f"{counts[s]:,} {name}" for s, name in zip(STRATA, names, strict=True))
        pane.border_title = f"1 Paragraphs {shown:,} of {total:,}" if shown != total else f"1 Paragraphs {total:,}"
        pane.border_subtitle = strata if known else ""
        text = f"sort {resume.sort} {'▴' if resume.reverse else '▾'}"
        if resume.filter:
            text += f"  /{visible(resume.filter)}"
        if resume.sort == "told" and self.telling.says:
            text += f"  {self.telling.says}"
        if self.error:
            text = f"EMs stopped: {self.error} r goes on"
        elif self.explorer.study is not None and self.explorer.study.identity and known < total:
            text += f"  EM {known:,}/{total:,}"
        said = Content.styled(self.wrong, "$text-error") if self.wrong else Content(text)
        self.explorer.query_one("#list-head", OneLine).say(said)
        self.draw_strip()

    def draw_strip(self) -> None:
        """The whole list in one line, for narrow terminals."""
        explorer = self.explorer
        if explorer.current < 0:
            return
        catalogue = self.catalogue
        em = int(catalogue.em[explorer.current])
        at = f"{explorer.list.cursor + 1:,}" if explorer.list.cursor >= 0 else "-"
        name = visible(catalogue.paragraphs.ids[explorer.current])[:8]
        head = f" ▸{name}  EM {em if em >= 0 else '··'}  {at}/{len(self.matching):,}  "
        room = max(0, explorer.size.width - len(head) - 24)
        text = head + fit(catalogue.snippet(explorer.current), room) + "  [ ] walk · p list"
        explorer.query_one("#strip", OneLine).say(Content(text))
