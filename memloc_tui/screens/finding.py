"""The claims of the paper and the overview of the set: what is known of them, the runs that find out, what to open."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from textual.worker import Worker

from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_core.findings import CLAIMS, DRAWN_FROM, Claim, Setting
from memloc_core.findings.overview import (
    CountRow,
    StratumRow,
    by_count,
    by_stratum,
    gradient_questions,
    shift,
    strata_of,
)
from memloc_core.requests import Finding
from memloc_tui import findings
from memloc_tui.glyphs import visible

if TYPE_CHECKING:
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.screens.study import Study

REPAINT_EVERY = 0.25  # seconds between two paintings of progress
OVERLAYS = {"perturb": "EM drop", "heads": "attention", "gradients": "gradient"}


@dataclass(frozen=True)
class Shift:
    """A stratum's gradients: the paragraph to open, how many were asked of how many, layer shares, and their sum."""

    row: int
    known: int
    of: int
    shares: tuple[float, ...] = ()
    total: float = float("nan")


@dataclass(frozen=True)
class Board:
    """What the Findings tab shows at one moment."""

    found: dict[str, Finding] = field(default_factory=dict)
    counts: tuple[CountRow, ...] | None = None  # None: not worked out yet
    strata: tuple[StratumRow, ...] | None = None
    shifts: tuple[Shift, ...] = ()
    running: str = ""  # the claim that is tested, or "gradients"
    done: float = 0.0  # a share of it
    left: float | None = None  # seconds of it
    waits: str = ""  # why nothing can be asked yet
    error: str = ""


class _Kept:
    """What is known about one study, quick and in full."""

    def __init__(self) -> None:
        self.found: dict[bool, dict[str, Finding]] = {}
        self.missed: set[bool] = set()  # sizes whose findings were looked up in the cache
        self.counts: tuple[CountRow, ...] | None = None
        self.strata: tuple[StratumRow, ...] | None = None
        self.shifts: dict[bool, tuple[Shift, ...]] = {}
        self.error = ""


class Finds:
    """Runs claims and the overview's gradients, one at a time, for the study on screen."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self._kept: WeakKeyDictionary[Study, _Kept] = WeakKeyDictionary()
        self._worker: Worker[None] | None = None
        self._measuring: Worker[None] | None = None
        self._of: Study | None = None  # whose worker it is
        self._running, self._done, self._painted = "", 0.0, 0.0
        self._left: float | None = None

    # ---------------------------------------------------------------------------------------------- what is known

    def seen(self) -> Board | None:
        """What is known now. Finished findings are looked up; nobody is asked."""
        study, session = self.explorer.study, self.explorer.memloc.session
        if study is None or session is None or session.model is None:
            return None
        if self._of is not None and self._of is not study:
            self.stop()
        kept, quick = self._kept.setdefault(study, _Kept()), self.quick
        catalogue = study.catalogue
        if quick not in kept.missed:
            kept.missed.add(quick)
            kept.found[quick] = findings.known(session, self._setting(study))
        m = min(DRAWN_FROM, len(catalogue.file))
        scored = int((catalogue.em[:m] >= 0).sum())
        waits = "" if scored == m else f"waits for exact matches: {scored:,} of {m:,} known"
        if not waits and kept.counts is None and self._measuring is None:
            work = partial(self._measure, study, kept)
            self._measuring = self.explorer.run_worker(work, group="overview", exit_on_error=False)
        if kept.strata is not None and quick not in kept.shifts:
            kept.shifts[quick] = self._shifts(study)
        running = self._running if self._of is study else ""
        return Board(
            dict(kept.found[quick]),
            kept.counts,
            kept.strata,
            kept.shifts.get(quick, ()),
            running,
            self._done if running else 0.0,
            self._left if running else None,
            waits,
            kept.error,
        )

    @property
    def quick(self) -> bool:
        """Whether the person chose the smaller samples, which they did unless they chose the others."""
        return self.explorer.memloc.resume.switches.get("findings_size", "quick") == "quick"

    @property
    def running(self) -> bool:
        return self._worker is not None

    def _setting(self, study: Study) -> Setting:
        session = self.explorer.session
        return findings.setting_of(study.catalogue, session.model, self.quick)

    def _shifts(self, study: Study) -> tuple[Shift, ...]:
        """The gradients of each stratum that are known already."""
        session = self.explorer.session
        setting = self._setting(study)
        shifts = []
        for (_, _, rows), questions in zip(strata_of(setting), gradient_questions(setting), strict=True):
            answers = [answer.result for question in questions if (answer := session.peek(question)) is not None]
            found = shift(answers)
            row = int(rows[0]) if len(rows) else -1
            shares, total = (tuple(found[0]), found[1]) if found else ((), float("nan"))
            shifts.append(Shift(row, len(answers), len(questions), shares, total))
        return tuple(shifts)

    async def _measure(self, study: Study, kept: _Kept) -> None:
        """Counts and strata, off the event loop: near-duplicates take a moment."""
        setting, catalogue = self._setting(study), study.catalogue

        def look() -> tuple[Any, Any]:
            return tuple(by_count(setting)), tuple(by_stratum(setting, catalogue.text))

        try:
            kept.counts, kept.strata = await asyncio.to_thread(look)
        finally:
            self._measuring = None
        self._repaint()

    # ------------------------------------------------------------------------------------------------ asking for it

    def start(self, overview: bool) -> None:
        """Test every claim that has no finding yet, or ask for the overview's gradients."""
        study, board = self.explorer.study, self.seen()
        if study is None or board is None:
            return
        kept = self._kept[study]
        if why := self._in_the_way(board, overview):
            self.explorer.memloc.say(why)
            return
        kept.error = ""
        self._of, self._done, self._left = study, 0.0, None
        self._running = "gradients" if overview else CLAIMS[0].name
        work = partial(self._gradients if overview else self._test, study, kept, self.quick)
        self._worker = self.explorer.run_worker(partial(self._run, work, kept), group="findings", exit_on_error=False)
        self._repaint()

    def _in_the_way(self, board: Board, overview: bool) -> str:
        """Why nothing begins, in a sentence; "" where there is something to ask."""
        if self.running:
            return "One thing at a time: esc stops what is being measured."
        if board.waits:
            return f"Not yet: it {board.waits}."
        other = "g takes more paragraphs" if self.quick else "g goes back to the few"
        if overview:
            done = board.shifts and all(shift.known == shift.of for shift in board.shifts)
            return f"The gradients of every stratum are measured: {other}." if done else ""
        missing = self._missing(board.found)
        return "" if missing else f"Every claim is tested: {other}."

    @staticmethod
    def _missing(found: dict[str, Finding]) -> list[Claim]:
        """The claims that have no number yet."""
        return [claim for claim in CLAIMS if claim.name not in found or found[claim.name].effect is None]

    def again(self) -> None:
        """What could not be measured may be asked once more."""
        for kept in self._kept.values():
            kept.error = ""

    def stop(self) -> bool:
        """Stop what runs; findings so far stay. Whether there was anything to stop."""
        if self._worker is None:
            return False
        self._worker.cancel()
        self._end()
        return True

    def _end(self) -> None:
        self._worker, self._of, self._running = None, None, ""
        if self.explorer.is_attached:
            self.explorer.top.show_job("claims")
            self._repaint()

    async def _run(self, work: Any, kept: _Kept) -> None:
        worker = self._worker
        try:
            await work()
        except EngineDied as error:
            kept.error = visible(str(error))
            self.explorer.memloc.engine_died(error)
        except Cancelled:
            kept.error = "stopped · t goes on"
        except MemlocError as error:
            kept.error = visible(str(error))
        finally:
            if self._worker is worker:
                self._end()

    async def _test(self, study: Study, kept: _Kept, quick: bool) -> None:
        session = self.explorer.session
        setting, pace = self._setting(study), findings.Pace()
        found = kept.found[quick]
        missing = self._missing(found)
        for claim in missing:
            self._running, self._done, self._left = claim.name, 0.0, None
            self._show_job(len(CLAIMS) - len(missing) + missing.index(claim))
            self._repaint()
            found[claim.name] = await findings.test(session, claim, setting, pace, self._heard)

    async def _gradients(self, study: Study, kept: _Kept, quick: bool) -> None:
        session = self.explorer.session
        questions = [question for part in gradient_questions(self._setting(study)) for question in part]
        started = monotonic()
        for place, question in enumerate(questions):
            await session.ask(question)
            self._done = (place + 1) / len(questions)
            self._left = (monotonic() - started) * (1 / self._done - 1)
            if monotonic() - self._painted >= REPAINT_EVERY or self._done == 1:
                kept.shifts[quick] = self._shifts(study)
                self.explorer.top.show_job("claims", "gradients of the strata", place + 1, len(questions))
                self._repaint()

    def _heard(self, step: findings.Step) -> None:
        self._done, self._left = step.done, step.left
        if monotonic() - self._painted >= REPAINT_EVERY:
            self._repaint()

    def _show_job(self, done: int) -> None:
        self.explorer.top.show_job("claims", f"claims, {done} of {len(CLAIMS)}", done, len(CLAIMS))

    def _repaint(self) -> None:
        self._painted = monotonic()
        if self.explorer.is_attached and self.explorer.memloc.resume.tab == "findings":
            self.explorer.draw()

    # --------------------------------------------------------------------------------------------------- opening it

    def open_claim(self, finding: Finding) -> None:
        """The view that shows a claim, on the paragraph that shows it best."""
        study, resume = self.explorer.study, self.explorer.memloc.resume
        ids = study.catalogue.paragraphs.ids if study is not None else ()
        if finding.paragraph in ids:
            self.open_row(ids.index(finding.paragraph))
        if finding.view in OVERLAYS:
            resume.overlay = OVERLAYS[finding.view]
        if finding.view == "heads" and (named := re.search(r"L(\d+)H(\d+)", finding.says)):
            self.explorer.locating.choose_head((int(named[1]), int(named[2])))
        self.explorer.action_panel(finding.view)

    def open_row(self, row: int) -> None:
        """This paragraph, in the list too where the filter lets it pass."""
        self.explorer.listing.go_to(row)
