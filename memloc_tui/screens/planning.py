"""The Unlearn tab's form: which paragraphs and how, what that would take, and the run that it describes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from memloc_core.errors import Cancelled, EngineDied, MemlocError, UsageError
from memloc_core.requests import Answer, Edited, EstimateRun, MeasureRemains, Request, Tokens, Unlearn
from memloc_tui.glyphs import visible

if TYPE_CHECKING:
    from textual.worker import WorkType

    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.screens.study import Study

ESTIMATE_AFTER = 0.6  # seconds without another change
MOST_MARKED = 4096  # paragraphs that one run changes


class Planning:
    """One per explorer; the form itself is in the state that is kept between sittings."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.estimate: Any = None
        self.lacks, self.wrong = "", False  # why there is no estimate, and whether the form is to blame
        self.alternative = ""  # what an edit teaches instead, as text
        self._asked: object = None  # what the estimate is of

    def set(self, name: str, value: str) -> None:
        """A field of the form."""
        resume = self.explorer.memloc.resume
        resume.unlearn[name] = value
        self.explorer.memloc.save_soon()
        self.explorer.draw()

    def mark_paragraph(self) -> None:
        """The paragraph on screen among those that a run changes together, or out of them."""
        study = self.explorer.study
        assert study is not None
        study.catalogue.marked ^= {study.current}
        self.explorer.list.repaint_paragraphs(range(study.current, study.current + 1))
        self.remember_marked()
        n = len(study.catalogue.marked)
        self.explorer.memloc.say(f"{n} marked to be changed together: x opens the form." if n else "None is marked.")

    def mark_shown(self) -> None:
        """All that the list shows among them too: of copies one, since each paragraph can be changed once."""
        study, memloc, listing = self.explorer.study, self.explorer.memloc, self.explorer.listing
        assert study is not None
        ids, marked = study.catalogue.paragraphs.ids, study.catalogue.marked
        known = {ids[row] for row in marked}
        shown = {ids[row]: row for row in reversed(listing.matching)}
        new = {row for id_, row in shown.items() if id_ not in known}
        if listing.filtering:
            memloc.say("The list is being filtered; mark when it stands.")
        elif len(marked) + len(new) > MOST_MARKED:
            memloc.say(f"These are {len(new):,}, and {MOST_MARKED:,} can be marked: / filters the list.", "warning")
        elif new:
            marked |= new
            self.explorer.list.refresh()
            self.remember_marked()
            now = f", {len(new):,} of them now" if len(new) < len(marked) else ""
            memloc.say(f"{len(marked):,} marked to be changed together{now}: x opens the form, M unmarks them.")
        else:
            memloc.say("All that the list shows are marked." if shown else "The list shows none to mark.")

    def unmark(self) -> None:
        """No paragraph is marked any more."""
        study = self.explorer.study
        assert study is not None
        study.catalogue.marked.clear()
        self.explorer.list.refresh()
        self.remember_marked()

    def remember_marked(self) -> None:
        """Others are marked now: so they are the next time, and the form is about them, or about none."""
        study, resume = self.explorer.study, self.explorer.memloc.resume
        assert study is not None
        ids = study.catalogue.paragraphs.ids
        resume.marked = [ids[row] for row in sorted(study.catalogue.marked)]
        resume.unlearn["paragraphs"] = "marked" if study.catalogue.marked else "on screen"
        self.explorer.memloc.save_soon()
        self.explorer.listing.changed("marked")
        self.explorer.draw()

    def _rows(self, form: dict[str, str]) -> tuple[int, ...]:
        study = self.explorer.study
        assert study is not None
        return tuple(sorted(study.catalogue.marked)) if form["paragraphs"] == "marked" else (study.current,)

    def keep_estimate(self, study: Study, form: dict[str, str]) -> None:
        """Ask for time and memory of what the form says, once it has not changed for a moment."""
        from memloc_tui.unlearning import waits

        rows = self._rows(form)
        replaced = tuple(self._replacements(study, row) for row in rows) if form["objective"] == "edit" else ()
        lacks = waits(study.catalogue, rows)
        running = self.explorer.unlearning.running
        key = (rows, tuple(form.items()), self.explorer.editing.on, replaced, lacks, running, study.identity)
        if key == self._asked:
            return
        self._asked, self.estimate, self.alternative, self.wrong = key, None, "", False
        self.lacks = "a run is going on: one at a time" if running else lacks or "estimating time and memory …"
        self.explorer.workers.cancel_group(self.explorer, "estimate")
        if not running and not lacks and study.identity:
            self.explorer.set_timer(ESTIMATE_AFTER, partial(self._estimate_now, key, form))

    def again(self) -> None:
        """Ask once more for an estimate that failed."""
        if self.estimate is None:
            self._asked = None

    def _estimate_now(self, key: object, form: dict[str, str]) -> None:
        if key == self._asked and self.explorer.is_attached:
            work: WorkType[None] = partial(self._ask_estimate, key, form)
            self.explorer.run_worker(work, group="estimate", exclusive=True, exit_on_error=False)

    async def _ask_estimate(self, key: object, form: dict[str, str]) -> None:
        try:
            on = self.explorer.editing.on
            run, *_ = await self.planned(form, on)
            posed = self.explorer.editing.posed(EstimateRun(run), on)
            found, lacks, wrong = (await self.explorer.session.ask(posed)).result, "", False
        except Cancelled:
            return
        except EngineDied:
            found, lacks, wrong = None, "The engine ended while it estimated; r asks again.", False
        except MemlocError as error:
            found, lacks, wrong = None, visible(str(error)), True
        if key == self._asked:
            self.estimate, self.lacks, self.wrong = found, lacks, wrong
            self.explorer.unlearning.draw()

    async def planned(
        self, form: dict[str, str], on: tuple[str, ...]
    ) -> tuple[Unlearn, MeasureRemains, tuple[str, ...]]:
        """The run that the form describes on these edits, the question of what it leaves, and its paragraphs' ids."""
        from memloc_tui.runs import options
        from memloc_tui.unlearning import plan, remains

        study, rows = self.explorer.study, self._rows(form)
        assert study is not None
        chosen, catalogue = options(form), study.catalogue
        if not rows:
            raise UsageError("No paragraph is marked: m marks the one on screen.")
        alternatives = await self._alternatives(study, rows, form, on) if chosen.objective == "edit" else ()
        # Finding near-duplicates among thousands of paragraphs takes a moment, which keys must not wait for.
        run = await asyncio.to_thread(plan, catalogue, rows, chosen, alternatives)
        question = await asyncio.to_thread(remains, catalogue, rows, chosen)
        return run, question, tuple(catalogue.paragraphs.ids[row] for row in rows)

    @staticmethod
    def _replacements(study: Study, row: int) -> Any:
        """What stands in a row's prefix, else the newest that was tried."""
        work = study.work.get(row)
        if work is None:
            return ()
        return work.replacements or (work.trials[0].replacements if work.trials else ())

    async def _alternatives(
        self, study: Study, rows: Sequence[int], form: dict[str, str], on: tuple[str, ...]
    ) -> tuple[Tokens, ...]:
        """What an edit teaches: each paragraph's own prefix, then what the model says to its perturbed twin, or the
        typed text and what the model says after that."""
        from memloc_tui.unlearning import perturbed_alternative, typed_alternative

        session, settings = self.explorer.session, self.explorer.memloc.settings
        catalogue, p, found = study.catalogue, study.catalogue.paragraphs, []

        async def ask(request: Request) -> Answer[Any]:
            posed = request if isinstance(request, Edited) else self.explorer.editing.posed(request, on)
            answer: Answer[Any] = await session.ask(posed)
            return answer

        for row in rows:
            if form["instead"] == "typed":
                if not form["text"]:
                    raise UsageError("Type the text that the paragraph should go on with.")
                where = (settings.model, settings.revision)
                found.append(await typed_alternative(ask, catalogue, row, form["text"], *where))
            elif replacements := self._replacements(study, row):
                found.append(await perturbed_alternative(ask, catalogue, row, replacements))
            else:
                raise UsageError(
                    f"Paragraph {visible(p.ids[row])[:10]} has no perturbation yet: replace a prefix token (⏎ on "
                    "it), or take a typed text."
                )
        pieces = catalogue.pieces
        text = b"".join(pieces[t] for t in found[0][p.prefix_length :] if 0 <= t < len(pieces))
        self.alternative = visible(text.decode("utf-8", "replace"))
        return tuple(found)
