"""The Unlearn tab's work: the form, the estimate, one run at a time, what it left, and the edits that are on.

A run goes on while the person looks at other things. Whatever ends it early (Esc, a dead engine, a closed terminal),
its best step so far is kept as an edit; the weights themselves are only ever changed within an engine's step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from textual.worker import Worker

from memloc_core.errors import Cancelled, EngineDied, MemlocError, UsageError
from memloc_core.requests import (
    Answer,
    Continue,
    Edited,
    EstimateRun,
    MeasureRemains,
    Progress,
    Provenance,
    Request,
    Tokens,
    Unlearn,
    Unlearning,
)
from memloc_tui import edits as edit_store
from memloc_tui.edits import ActiveEdit
from memloc_tui.figures import head_names
from memloc_tui.glyphs import visible

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.runs import Run, Runs
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.screens.study import Study
    from memloc_tui.widgets.unlearn_panel import UnlearnPanel

ESTIMATE_AFTER = 0.6  # seconds without another change
REPAINT_EVERY = 0.25
SAVE_EVERY = 5.0  # seconds between two writings of a run's best step: a lost terminal loses no more
SAVED_AS_IT_GOES = 200_000  # changed weights; a larger edit takes too long to write again and again
READ_AT_MOST = 200  # stored runs, the newest
EMPTY = "Its best step is the one before the first: nothing is saved."
TAB = "unlearn"


class Editing:
    """One per explorer; it outlives studies, as the weights' edits do."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.stack: list[ActiveEdit] = []  # every edit that can be on, in the order in which they are applied
        self.edited = False  # whether the explorer shows the weights with them
        self._runs: list[Run] = []  # oldest first
        self._marked: set[int] = set()
        self._studies: dict[tuple[str, ...], Study] = {}  # by the fingerprints of the edits that are on
        self._restored = self._reading = self._read = False  # the stored runs
        self._base = ""  # the weights that the runs are of
        self._pace = (0.0, 0, float("nan"))  # when the newest step came, its number, seconds a step
        self._worker: Worker[None] | None = None
        self._measuring: dict[int, Worker[None]] = {}
        self._partial: Path | None = None  # the file of the run that goes on
        self._leaving = False
        self._asked: object = None  # what the estimate is of
        self._estimate: Any = None
        self._lacks, self._wrong, self._alternative = "", False, ""

    @property
    def _session(self) -> Any:
        return self.explorer.memloc.session

    @property
    def running(self) -> bool:
        """Whether a run goes on or is paused."""
        return self._worker is not None

    @property
    def measuring(self) -> bool:
        return bool(self._measuring)

    def stop(self) -> bool:
        """Cancel the run, or else what is being measured; whether there was anything."""
        if self.running:
            assert self._worker is not None
            self._worker.cancel()
            return True
        for worker in self._measuring.values():
            worker.cancel()
        return bool(self._measuring)

    # --------------------------------------------------------------------------------------- original and edited

    def opened(self) -> None:
        """The session knows the model (again): the edits of the last sitting, as far as they fit it."""
        session, memloc = self._session, self.explorer.memloc
        if self._base != session.model.fingerprint:
            self._base, self._runs, self._reading, self._read = session.model.fingerprint, [], False, False
        if not self._restored:
            self._restored = True
            if memloc.settings.edits:
                self.stack, self.edited = list(session.edits), True
            else:
                self._read_resume()
        try:
            session.set_edits(self._on_paper())
        except MemlocError as error:
            self.stack, self.edited = [], False
            session.set_edits(())
            memloc.say(f"{error} It was on last time; these are the original weights.", "warning")
        self.show_top()

    def _read_resume(self) -> None:
        """What was on last time. A file that is gone is said, and what stood on it goes with it."""
        resume = self.explorer.memloc.resume
        for fingerprint, file, name, on in resume.edits:
            try:
                found = edit_store.active(file)
                if found.fingerprint != fingerprint:
                    raise UsageError(f"{file} holds another edit now.")
                self.stack.append(replace(found, name=name, on=on == "on"))
            except MemlocError as error:
                said = f"The edit {visible(name)} of the last visit is off: {error}"
                self.explorer.memloc.say(said, "warning" if on == "on" else "information")
        self.edited = resume.edited and any(edit.on for edit in self.stack)

    def started(self, study: Study) -> None:
        """There is a new study under the edits as they are; those of another model or set are of no use any more."""
        self._studies = {self._on(): study}
        study.edits = self.names
        if marked := set(self.explorer.memloc.resume.marked):
            ids = study.catalogue.paragraphs.ids
            study.catalogue.marked = {row for row, id_ in enumerate(ids) if id_ in marked}

    def _on_paper(self) -> tuple[ActiveEdit, ...]:
        """The stack as the session gets it: nothing is on while the original is shown."""
        return tuple(replace(edit, on=edit.on and self.edited) for edit in self.stack)

    def _on(self) -> tuple[str, ...]:
        return tuple(edit.fingerprint for edit in self._on_paper() if edit.on)

    @property
    def names(self) -> str:
        """The edits that are on in what is shown."""
        return ", ".join(visible(edit.name) for edit in self._on_paper() if edit.on)

    def flip(self) -> None:
        """The whole explorer between the original and the edited weights."""
        if not any(edit.on for edit in self.stack):
            why = "every edit is off (t in the Unlearn tab)" if self.stack else "there is no edit yet: x makes one"
            self.explorer.memloc.say(f"These are the original weights; {why}.")
            return
        self.edited = not self.edited
        self._turn()

    def toggle(self, run: Run) -> None:
        """A run's edit on or off in the stack; shown at once if the explorer shows edited weights."""
        memloc = self.explorer.memloc
        if not run.file:
            memloc.say("This run has no edit." if not run.running else "Its edit comes when it ends.")
            return
        known = [edit.fingerprint for edit in self.stack]
        if run.fingerprint in known:
            at = known.index(run.fingerprint)
            self.stack[at] = replace(self.stack[at], on=not self.stack[at].on)
        else:
            try:
                self.stack.append(replace(edit_store.active(run.file), name=run.name))
            except MemlocError as error:
                memloc.say(str(error), "error")
                return
        self.edited = self.edited and any(edit.on for edit in self.stack)
        self._turn()

    def _turn(self) -> None:
        """Show the weights of the stack as it is now: what is known of them at once, the rest as it comes."""
        explorer, before = self.explorer, self.explorer.study
        if before is None or self._session is None:
            return
        try:
            self._session.set_edits(self._on_paper())
        except MemlocError as error:
            explorer.memloc.say(str(error), "error")
            self.edited = False
            self._session.set_edits(self._on_paper())
        self._remember()
        self.show_top()
        study = self._studies.get(self._on())
        if study is not before:
            self._show(before, study if study is not None else self._new_study(before))
        explorer.draw()

    def _show(self, before: Study, study: Study) -> None:
        """Another study of the same paragraphs: on the same one, with the same replacements."""
        from memloc_tui.screens.listing import Listing

        explorer = self.explorer
        before.trying = None
        explorer.choosing.reset()
        explorer.listing.telling.stop()
        for row, work in before.work.items():
            other = study.work_on(row)
            other.replacements, other.undo = work.replacements, work.undo
        study.current = before.current
        study.forget()
        explorer.study, explorer.listing = study, Listing(explorer)
        explorer.locating.begin()
        explorer.listing.filter(then=study.current)
        explorer.listing.scan()
        explorer.sweeping.peek()
        explorer.asking.ask()

    def _new_study(self, before: Study) -> Study:
        from memloc_tui.catalogue import Catalogue
        from memloc_tui.screens.study import Study

        catalogue = Catalogue(before.catalogue.paragraphs, self._session.vocabulary)
        catalogue.perturbed, catalogue.marked = before.catalogue.perturbed, before.catalogue.marked
        study = self._studies[self._on()] = Study(before.resume, catalogue, before.identity)
        study.edits = self.names
        return study

    def _remember(self) -> None:
        resume = self.explorer.memloc.resume
        resume.edits = [[e.fingerprint, e.file, e.name, "on" if e.on else "off"] for e in self.stack]
        resume.edited = self.edited
        self.explorer.memloc.save_soon()

    def show_top(self) -> None:
        """What differs from the model as it was loaded."""
        heads = tuple((layer, head) for layer, head in self.explorer.memloc.resume.ablated)
        ablated = f"ablated: {head_names(heads)}" if heads else ""
        names = ", ".join(visible(edit.name) for edit in self.stack if edit.on)
        said = short = ""
        if self.names:
            said, short = f"edits: {names} on (E original)", "edited (E)"
        elif names:
            said, short = f"original weights (E {names})", "original (E)"
        parts = [part for part in (said, ablated) if part]
        self.explorer.top.show_edits(" · ".join(parts), " · ".join(p for p in (short, ablated) if p), bool(self.names))

    # ------------------------------------------------------------------------------------------------- what is shown

    def seen(self) -> Runs:
        """Everything the tab shows; while it is open, this also keeps the estimate in step with the form."""
        from memloc_tui.runs import Runs, filled

        study, resume = self.explorer.study, self.explorer.memloc.resume
        assert study is not None
        form = filled(resume.unlearn)
        if resume.tab == TAB:
            if not self._reading:
                self._reading = True
                self.explorer.run_worker(self._read_stored(), group="stored", exit_on_error=False)
            self._keep_estimate(study, form)
        on = {edit.fingerprint: edit.on for edit in self.stack}
        for run in self._runs:
            if run.on != on.get(run.fingerprint):
                self._change(run.number, on=on.get(run.fingerprint))
        return Runs(
            tuple(reversed(self._runs)), frozenset(self._marked), form, tuple(sorted(study.catalogue.marked)),
            self._alternative, self._estimate, self._lacks, self._wrong, self.edited, self._read,
        )  # fmt: skip

    def wanted(self, message: UnlearnPanel.Wants) -> None:
        """What the person did in the tab."""
        run = message.run
        if run is not None:
            of_run = {"look": self.look, "mark": self.mark_run, "toggle": self.toggle, "measure": self.measure}
            of_run[message.what](run)
        elif message.what == "set":
            self.set(message.name, message.value)
        elif message.what == "start":
            self.start()
        elif message.what == "pause":
            self.pause()

    def set(self, name: str, value: str) -> None:
        """A field of the form."""
        resume = self.explorer.memloc.resume
        resume.unlearn[name] = value
        self.explorer.memloc.save_soon()
        self.explorer.draw()

    def mark_paragraph(self) -> None:
        """The paragraph on screen among those that a run changes together, or out of them."""
        study, resume = self.explorer.study, self.explorer.memloc.resume
        assert study is not None
        study.catalogue.marked ^= {study.current}
        ids = study.catalogue.paragraphs.ids
        resume.marked = [ids[row] for row in sorted(study.catalogue.marked)]
        resume.unlearn["paragraphs"] = "marked" if study.catalogue.marked else "on screen"
        self.explorer.memloc.save_soon()
        self.explorer.list.repaint_paragraphs(range(study.current, study.current + 1))
        n = len(study.catalogue.marked)
        self.explorer.memloc.say(f"{n} marked to be changed together: x opens the form." if n else "None is marked.")
        self.explorer.draw()

    def unmark(self) -> None:
        """No paragraph is marked any more."""
        study, resume = self.explorer.study, self.explorer.memloc.resume
        assert study is not None
        study.catalogue.marked.clear()
        resume.marked = []
        resume.unlearn["paragraphs"] = "on screen"
        self.explorer.memloc.save_soon()
        self.explorer.list.refresh()
        self.explorer.draw()

    def mark_run(self, run: Run) -> None:
        """A run's curves behind the others, or not."""
        self._marked ^= {run.number}
        self.explorer.draw()

    def _draw(self) -> None:
        if not self._leaving and self.explorer.is_attached and self.explorer.memloc.resume.tab == TAB:
            self.explorer.draw()

    # --------------------------------------------------------------------------------------------------- the form

    def _rows(self, form: dict[str, str]) -> tuple[int, ...]:
        study = self.explorer.study
        assert study is not None
        return tuple(sorted(study.catalogue.marked)) if form["paragraphs"] == "marked" else (study.current,)

    def _keep_estimate(self, study: Study, form: dict[str, str]) -> None:
        """Ask for time and memory of what the form says, once it has not changed for a moment."""
        rows = self._rows(form)
        replaced = tuple(self._replacements(study, row) for row in rows) if form["objective"] == "edit" else ()
        ready = study.catalogue.known == len(study.catalogue)
        key = (rows, tuple(form.items()), self._on(), replaced, ready, self.running, study.identity)
        if key == self._asked:
            return
        self._asked, self._estimate, self._wrong = key, None, False
        self._lacks = "a run is going on: one at a time" if self.running else "estimating time and memory …"
        self.explorer.workers.cancel_group(self.explorer, "estimate")
        if not self.running and study.identity:
            self.explorer.set_timer(ESTIMATE_AFTER, partial(self._estimate_now, key, form))

    def _estimate_now(self, key: object, form: dict[str, str]) -> None:
        if key == self._asked and self.explorer.is_attached:
            work = partial(self._ask_estimate, key, form)
            self.explorer.run_worker(work, group="estimate", exclusive=True, exit_on_error=False)

    async def _ask_estimate(self, key: object, form: dict[str, str]) -> None:
        try:
            run, *_ = await self._planned(form)
            answer = await self._session.ask(self._with(EstimateRun(run), self._on()))
            found, lacks, wrong = answer.result, "", False
        except Cancelled:
            return
        except EngineDied:
            found, lacks, wrong = None, "The engine ended while it estimated; a change asks again.", False
        except MemlocError as error:
            found, lacks, wrong = None, visible(str(error)), True
        if key == self._asked:
            self._estimate, self._lacks, self._wrong = found, lacks, wrong
            self._draw()

    async def _planned(self, form: dict[str, str]) -> tuple[Unlearn, MeasureRemains, tuple[str, ...]]:
        """The run that the form describes, the question of what it leaves, and its paragraphs' ids."""
        from memloc_tui.runs import options
        from memloc_tui.unlearning import plan, remains

        study, rows = self.explorer.study, self._rows(form)
        assert study is not None
        chosen, catalogue = options(form), study.catalogue
        if not rows:
            raise UsageError("No paragraph is marked: m marks the one on screen.")
        alternatives = await self._alternatives(study, rows, form) if chosen.objective == "edit" else ()
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

    async def _alternatives(self, study: Study, rows: Sequence[int], form: dict[str, str]) -> tuple[Tokens, ...]:
        """What an edit teaches: each paragraph's own prefix, then what the model says to its perturbed twin, or the
        typed text and what the model says after that."""
        p, found = study.catalogue.paragraphs, []
        beginning = spelled(form["text"], study.catalogue.pieces) if form["instead"] == "typed" else ()
        for row in rows:
            whole = p.row(row)
            prefix, length = whole[: p.prefix_length], len(whole) - p.prefix_length
            if form["instead"] == "typed":
                if not form["text"]:
                    raise UsageError("Type the text that the paragraph should go on with.")
                said = beginning[:length]
                prompt = (*prefix, *said)
            else:
                replacements = self._replacements(study, row)
                if not replacements:
                    raise UsageError(
                        f"Paragraph {visible(p.ids[row])[:10]} has no perturbation yet: replace a prefix token (⏎ on "
                        "it), or take a typed text."
                    )
                said, prompt = (), study.prefix(row, replacements)
            if len(said) < length:
                answer = await self._session.ask(self._with(Continue(prompt, length - len(said)), self._on()))
                said = (*said, *answer.result.tokens.tolist())
            found.append((*prefix, *said))
        pieces = study.catalogue.pieces
        text = b"".join(pieces[t] for t in found[0][p.prefix_length :] if 0 <= t < len(pieces))
        self._alternative = visible(text.decode("utf-8", "replace"))
        return tuple(found)

    def _with(self, request: Request, fingerprints: tuple[str, ...], files: dict[str, str] | None = None) -> Request:
        """A question with exactly these edits, whatever is on when it is asked."""
        places = {edit.fingerprint: edit.file for edit in self.stack} | (files or {})
        for fingerprint in fingerprints:
            if fingerprint not in places:
                places[fingerprint] = str(edit_store.find(fingerprint))
        return Edited(request, fingerprints, tuple(places[f] for f in fingerprints))

    # ----------------------------------------------------------------------------------------------------- a run

    def start(self) -> None:
        """Start what the form describes, unless something is in the way; say what."""
        from memloc_tui.runs import filled

        study, memloc = self.explorer.study, self.explorer.memloc
        if study is None or not study.identity:
            memloc.say("The model is still opening.")
        elif self.running:
            memloc.say("A run is going on, and there is one at a time: space pauses it, esc stops it.")
        else:
            work = partial(self._work, filled(memloc.resume.unlearn), self._on())
            self._worker = self.explorer.run_worker(work, group="unlearn", exit_on_error=False)

    def pause(self) -> None:
        """Have the run wait, or go on."""
        run = next((run for run in self._runs if run.running), None)
        if run is None or not self.running:
            self.explorer.memloc.say("No run is going on.")
            return
        paused = run.state == "running"
        if self._session.pause(run.request, paused):
            self._change(run.number, state="paused" if paused else "running")
            self._pace = (monotonic(), self._pace[1], self._pace[2])
            self._job(self._runs[run.number])
            self._draw()

    def _change(self, number: int, **changes: Any) -> Run:
        self._runs[number] = run = replace(self._runs[number], **changes)
        return run

    def _add(self, **fields: Any) -> Run:
        from memloc_tui.runs import Run

        self._runs.append(run := Run(len(self._runs), **fields))
        return run

    async def _work(self, form: dict[str, str], below: tuple[str, ...]) -> None:
        try:
            await self._run(form, below)
        finally:
            self._worker = None
            if self.explorer.is_attached:
                self.explorer.top.show_run("")
                self._draw()

    async def _run(self, form: dict[str, str], below: tuple[str, ...]) -> None:
        memloc = self.explorer.memloc
        try:
            request, question, ids = await self._planned(form)
            posed = self._with(request, below)
        except MemlocError as error:
            memloc.say(str(error), severity="error")
            self._lacks, self._wrong = visible(str(error)), True
            self._draw()
            return
        number = self._add(request=request, ids=ids, state="running", below=below, question=question).number
        started = saved = monotonic()
        painting = False
        self._pace = (started, 0, float("nan"))

        def progress(step: Progress) -> None:
            nonlocal painting, saved
            run, now = self._runs[number], monotonic()
            if not run.running:
                return
            if step.notice:
                memloc.say(step.notice)
            if isinstance(step.partial, Unlearning):
                run = self._change(number, result=step.partial)
            self._change(number, left=self._seconds_left(run, now))
            if now - saved >= SAVE_EVERY:
                saved = now
                self._save_as_it_goes(number, now - started)
            if not painting:  # the newest step is painted a moment later, and so is the last one
                painting = True
                self.explorer.set_timer(REPAINT_EVERY, paint)

        def paint() -> None:
            nonlocal painting
            painting = False
            if self._runs[number].running:
                self._job(self._runs[number])
                self._draw()

        self._job(self._runs[number])
        self._go_to(number)
        try:
            answer = await self._session.ask(posed, progress)
        except (asyncio.CancelledError, Cancelled) as error:
            self._keep_best(number, monotonic() - started, "cancelled")
            if isinstance(error, asyncio.CancelledError):
                raise
        except MemlocError as error:
            self._keep_best(number, monotonic() - started, visible(str(error)))
            if isinstance(error, EngineDied):
                memloc.engine_died(error)
        else:
            await self._finished(number, answer)

    def _seconds_left(self, run: Run, now: float) -> float:
        """At most, by what the newest steps took."""
        before, steps, pace = self._pace
        if run.steps > steps:
            took = (now - before) / (run.steps - steps)
            if steps:  # the first one waits for the mask
                pace = took if pace != pace else 0.8 * pace + 0.2 * took
            self._pace = (now, run.steps, pace)
        return pace * (run.request.steps - run.steps)

    def _go_to(self, number: int) -> None:
        """Show a run in the tab, if the tab is open."""
        self._draw()
        panel = self.explorer.panel
        if self.explorer.memloc.resume.tab == TAB and hasattr(panel, "show_number"):
            panel.show_number(number)

    def _job(self, run: Run) -> None:
        """The run in the top line."""
        from memloc_tui.widgets.unlearn_panel import clock

        if not self.explorer.is_attached:
            return
        if run.state == "paused":
            said = f"unlearn paused at {run.steps}"
        else:
            left = f" ≤{clock(run.left)}" if run.left == run.left else ""
            said = f"unlearn {run.steps}/{run.request.steps}{left}"
        self.explorer.top.show_run(said)

    def _best_so_far(self, run: Run, seconds: float, reason: str) -> Answer[Any] | None:
        """What a run has come to, as an answer; None where no step was better than none."""
        result, model = run.result, self._session.model if self._session is not None else None
        if result is None or model is None or not run.best or not len(result.edit):
            return None
        said = Provenance(
            model.name, model.fingerprint, ",".join(run.below), model.dtype, model.device, model.attention, seconds
        )
        return Answer(run.request, replace(result, stopped="cancelled", reason=reason), said)

    def _save_as_it_goes(self, number: int, seconds: float) -> None:
        run = self._runs[number]
        if run.result is None or len(run.result.edit) > SAVED_AS_IT_GOES:
            return
        answer = self._best_so_far(run, seconds, f"Interrupted after step {run.steps}; this is its best step.")
        if answer is not None:
            try:
                self._replace_partial(edit_store.store(answer))
            except MemlocError:
                return  # said when the run ends, if it is still so

    def _replace_partial(self, path: Path | None) -> None:
        """One file per run: the one before goes once the next is there."""
        if self._partial is not None and self._partial != path:
            self._partial.unlink(missing_ok=True)
        self._partial = path

    def _keep_best(self, number: int, seconds: float, why: str) -> None:
        """A run that did not end by itself: keep its best step, and say so. Nothing here may wait."""
        run, memloc = self._runs[number], self.explorer.memloc
        if not run.running:
            return
        after = f"after step {run.steps} of {run.request.steps}"
        cancelled = why == "cancelled"
        reason = f"Cancelled {after}." if cancelled else f"{why.rstrip('.')}, {after}."
        answer = self._best_so_far(run, seconds, reason)
        state: Any = "done" if cancelled else "failed"
        error = "" if cancelled else why
        if answer is None:
            large = run.result is not None and run.best and not len(run.result.edit)
            nothing = "The edit is too large to be kept before the run's end." if large else EMPTY
            self._replace_partial(None)
            self._change(number, state=state, error=error or ("" if run.result is not None else "Cancelled."))
            memloc.say(f"{reason} {nothing} The weights are the original ones.", "warning")
            return
        run = self._change(number, state=state, error=error, result=answer.result, seconds=seconds)
        self._saved(run, answer)
        if name := self._runs[number].name:
            memloc.say(f"{reason} Its best step, {run.best}, is kept as edit {name}; E shows the model with it.")

    async def _finished(self, number: int, answer: Answer[Any]) -> None:
        result: Unlearning = answer.result
        run = self._change(number, state="done", result=result, seconds=answer.provenance.seconds)
        if not result.best or not len(result.edit):
            self._replace_partial(None)
            self.explorer.memloc.say(f"{visible(result.reason)} {EMPTY}", "warning")
            return
        self._saved(run, answer)
        if name := self._runs[number].name:
            self.explorer.memloc.say(f"{visible(result.reason)} Kept as edit {name}; E shows the model with it.")
            self._draw()
            self.measure(self._runs[number])

    def _saved(self, run: Run, answer: Answer[Any]) -> None:
        """Write a run's edit, and put it on in the stack, on top of what it was made on and of nothing else."""
        try:
            path = edit_store.store(answer)
            active = edit_store.active(path)
        except MemlocError as error:
            self._change(run.number, error=visible(str(error)))
            self.explorer.memloc.say(f"{error} The run's curves stay until you quit.", "error")
            return
        self._replace_partial(path)
        self._partial = None
        fingerprint = active.fingerprint
        self._change(run.number, name=active.name, file=str(path), fingerprint=fingerprint)
        self.stack = [replace(e, on=e.fingerprint in run.below) for e in self.stack if e.fingerprint != fingerprint]
        self.stack.append(active)
        if self._leaving:
            self._remember()
        else:
            self._turn()

    def leave(self) -> None:
        """The program ends: what a run has come to is kept."""
        self._leaving = True
        for run in self._runs:
            if run.running:
                self._keep_best(run.number, float("nan"), "cancelled")

    # -------------------------------------------------------------------------------------------------- what remains

    def measure(self, run: Run) -> None:
        """Ask what a run left, and what was there before it."""
        if run.running:
            self.explorer.memloc.say("What remains is measured when the run has ended.")
        elif run.number not in self._measuring and run.file and (run.before is None or run.after is None):
            self._change(run.number, measuring="asking …")
            worker = self.explorer.run_worker(self._measure(run.number), group="remains", exit_on_error=False)
            self._measuring[run.number] = worker
            self._draw()

    def look(self, run: Run) -> None:
        """A run is looked at: what was measured in an earlier sitting shows at once."""
        if run.question is None and run.file and not run.running:
            self.explorer.run_worker(self._peek(run.number), group="peek", exclusive=True, exit_on_error=False)

    async def _question(self, number: int) -> MeasureRemains:
        """The same question as when the run was new: it hangs on the exact matches under the weights below it."""
        from memloc_tui.runs import options_of
        from memloc_tui.unlearning import remains

        run = self._runs[number]
        if run.question is not None:
            return run.question
        study = self._studies.get(run.below) or (self.explorer.study if not run.below else None)
        if study is None or study.catalogue.known < len(study.catalogue):
            raise UsageError("This takes the exact matches under the weights that the run began with: E shows them.")
        rows = await asyncio.to_thread(rows_of, study.catalogue, run.request.targets)
        if len(rows) < len(run.request.targets):
            raise UsageError("Its paragraphs are not in this set.")
        question = await asyncio.to_thread(remains, study.catalogue, rows, options_of(run.request))
        self._change(number, question=question)
        return question

    async def _peek(self, number: int) -> None:
        try:
            question, run = await self._question(number), self._runs[number]
            posed = self._posed(run, question)
        except MemlocError:
            return  # said when it is asked for
        before, after = (self._session.peek(request) for request in posed)
        if before is not None or after is not None:
            self._change(number, before=before and before.result, after=after and after.result)
            self._draw()

    def _posed(self, run: Run, question: MeasureRemains) -> tuple[Request, Request]:
        """Before and after."""
        own = {run.fingerprint: run.file}
        return self._with(question, run.below), self._with(question, (*run.below, run.fingerprint), own)

    async def _measure(self, number: int) -> None:
        painted = 0.0

        def progress(which: str, step: Progress) -> None:
            nonlocal painted
            if monotonic() - painted >= REPAINT_EVERY:
                painted = monotonic()
                self._change(number, measuring=f"{which}: {step.done} of {step.total} {step.unit} · esc stops")
                self._draw()

        says = ""
        try:
            posed = self._posed(self._runs[number], await self._question(number))
            for name, request in (("after", posed[1]), ("before", posed[0])):
                answer = await self._session.ask(request, partial(progress, name))
                self._change(number, **{name: answer.result})
                self._draw()
        except asyncio.CancelledError:
            says = "stopped · i measures it"
            raise
        except Cancelled:
            says = "stopped · i measures it"
        except MemlocError as error:
            says = visible(str(error))
            if isinstance(error, EngineDied):
                self.explorer.memloc.engine_died(error)
        finally:
            self._measuring.pop(number, None)
            self._change(number, measuring=says)
            self._draw()

    # --------------------------------------------------------------------------------------------------- stored runs

    async def _read_stored(self) -> None:
        """The runs of earlier sittings with this model, oldest first, so that they keep their letters."""
        session, study = self._session, self.explorer.study
        assert study is not None
        model = session.model
        found = await asyncio.to_thread(stored_runs, model.fingerprint)
        known = {run.fingerprint for run in self._runs}
        ids = study.catalogue.paragraphs.ids
        for path, answer, problem in found:
            if answer is None:
                said = visible(problem.replace(str(path), path.name))
                self._add(request=Unlearn((), ()), stored=True, state="failed", error=said)
                continue
            result, request = answer.result, bare_run(answer.request)
            fingerprint = result.edit.fingerprint
            if fingerprint not in known:
                rows = await asyncio.to_thread(rows_of, study.catalogue, request.targets)
                self._add(
                    request=request, result=result, stored=True, file=str(path), fingerprint=fingerprint,
                    name=fingerprint[: edit_store.SHORT], below=result.edit.on_top_of,
                    ids=tuple(ids[row] for row in rows), seconds=answer.provenance.seconds,
                )  # fmt: skip
        self._read = True
        self._draw()


def stored_runs(base: str) -> list[tuple[Path, Answer[Any] | None, str]]:
    """The stored edits of the weights `base`, oldest first: the run, or why it cannot be read."""
    found: list[tuple[Path, Answer[Any] | None, str]] = []
    for stored in edit_store.stored()[:READ_AT_MOST]:
        if stored.summary is not None and stored.summary.base != base:
            continue
        try:
            if stored.summary is None:
                raise MemlocError(stored.problem)
            found.append((stored.path, edit_store.open_edit(stored.path), ""))
        except MemlocError as error:
            found.append((stored.path, None, str(error)))
    return found[::-1]


def bare_run(request: Request) -> Unlearn:
    """The run's own request, without the edits that it was asked with."""
    inner = request.request if isinstance(request, Edited) else request
    assert isinstance(inner, Unlearn)
    return inner


def rows_of(catalogue: Catalogue, paragraphs: Sequence[Tokens]) -> tuple[int, ...]:
    """The rows of these paragraphs, as far as they are in the set."""
    import numpy as np

    tokens = catalogue.paragraphs.tokens
    rows = []
    for paragraph in paragraphs:
        if len(paragraph) == tokens.shape[1]:
            rows += np.flatnonzero((tokens == np.array(paragraph)).all(1))[:1].tolist()
    return tuple(rows)


def spelled(text: str, pieces: Sequence[bytes]) -> Tokens:
    """Tokens whose bytes are `text`, each the longest that fits. A tokenizer may divide it otherwise; the model reads
    these. Raises UsageError for a byte that no token has."""
    known: dict[bytes, int] = {}
    for token, piece in enumerate(pieces):
        if piece:
            known.setdefault(piece, token)
    data, at, tokens = text.encode(), 0, []
    longest = max(map(len, known), default=1)
    while at < len(data):
        size = next((n for n in range(min(longest, len(data) - at), 0, -1) if data[at : at + n] in known), 0)
        if not size:
            raise UsageError(f"This model has no token for {visible(data[at : at + 4].decode('utf-8', 'replace'))!r}.")
        tokens.append(known[data[at : at + size]])
        at += size
    return tuple(tokens)
