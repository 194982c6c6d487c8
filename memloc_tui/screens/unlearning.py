"""The Unlearn tab's work: one run at a time, the runs before it, and what is kept of each.

A run goes on while the person looks at other things. Whatever ends it early (Esc, a dead engine, a closed terminal),
its best step so far is kept as an edit; the weights themselves are only ever changed within an engine's step.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from textual.worker import Worker

from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_core.requests import Answer, Edited, Progress, Request, Unlearn, Unlearning
from memloc_tui import edits as edit_store, labels as label_store
from memloc_tui.glyphs import visible
from memloc_tui.labels import Label
from memloc_tui.screens.measuring import Measuring
from memloc_tui.screens.planning import Planning

if TYPE_CHECKING:
    from memloc_tui.runs import Run, Runs
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.widgets.unlearn_panel import UnlearnPanel

REPAINT_EVERY = 0.25
SAVE_EVERY = 5.0  # seconds between two writings of a run's best step: a lost terminal loses no more
SAVED_AS_IT_GOES = 200_000  # changed weights; a larger edit takes too long to write again and again
TOO_LARGE = "Its edit is too large to be kept before the run's end."
EMPTY = "Its best step is the one before the first: nothing is saved."
TAB = "unlearn"


class UnlearnRuns:
    """One per explorer: the runs of its weights, with the form of the next one and what the last ones left."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.planning, self.measuring = Planning(explorer), Measuring(explorer, self)
        self.all: dict[int, Run] = {}  # by number
        self._labels: dict[str, Label] = {}  # what stored runs are called, by the file's name
        self._newest = -1  # the largest number so far
        self._marked: set[int] = set()
        self._reading = self._read = False  # the stored runs
        self._base = ""  # the weights that the runs are of
        self._pace = (0.0, 0, float("nan"))  # when the newest step came, its number, seconds a step
        self._worker: Worker[None] | None = None
        self._file = edit_store.RunFile()  # of the run that goes on
        self._leaving = False

    @property
    def running(self) -> bool:
        """Whether a run goes on or is paused."""
        return self._worker is not None

    def stop(self) -> bool:
        """Cancel the run, after a question where nothing of it would be kept, or else what is being measured; whether
        there was anything."""
        worker = self._worker
        if worker is None:
            return self.measuring.stop()
        if self._too_large:
            from memloc_tui.screens.confirm import Confirm

            question = f"Stop the run? {self.keeps}"
            self.explorer.app.push_screen(Confirm(question), lambda yes: worker.cancel() if yes else None)
        else:
            worker.cancel()
        return True

    @property
    def _going_on(self) -> Run | None:
        return next((run for run in self.all.values() if run.running), None)

    @property
    def _too_large(self) -> bool:
        """Whether a run goes on whose edit comes only with its end."""
        run = self._going_on
        return run is not None and bool(run.best) and run.result is not None and not len(run.result.edit)

    @property
    def keeps(self) -> str:
        """What is kept of the run that goes on if it is stopped now, as a sentence."""
        run = self._going_on
        if self._too_large:
            return f"{TOO_LARGE} None of its steps is kept."
        return "Its best step so far is kept as an edit." if run is not None and run.best else EMPTY

    def opened(self) -> None:
        """The session knows the model (again): runs of other weights are none of its."""
        model = self.explorer.session.model
        assert model is not None
        if self._base != model.fingerprint:
            self._base, self.all, self._reading, self._read = model.fingerprint, {}, False, False
            self._marked, self._newest = set(), -1

    def again(self) -> None:
        """Ask for what failed, and read the store: edits may have been made in another terminal."""
        self.planning.again()
        self._reading = False

    # ------------------------------------------------------------------------------------------------- what is shown

    def seen(self) -> Runs:
        """Everything the tab shows; while it is open, this also keeps the estimate in step with the form."""
        from memloc_tui.runs import Runs, filled

        study, resume = self.explorer.study, self.explorer.memloc.resume
        assert study is not None
        plan, form = self.planning, filled(resume.unlearn)
        if resume.tab == TAB:
            if not self._reading:
                self._reading = True
                self._labels, notice = label_store.load(self._base)
                if notice:
                    self.explorer.memloc.say(notice, "warning")
                self.explorer.run_worker(self._read_stored(), group="stored", exclusive=True, exit_on_error=False)
            plan.keep_estimate(study, form)
        on = {edit.fingerprint: edit.on for edit in self.explorer.editing.stack}
        for run in self.all.values():
            if run.on != on.get(run.fingerprint):
                self.change(run.number, on=on.get(run.fingerprint))
        newest_first = tuple(self.all[number] for number in sorted(self.all, reverse=True))
        return Runs(
            newest_first, frozenset(self._marked), form, tuple(sorted(study.catalogue.marked)),
            plan.alternative, plan.estimate, plan.lacks, plan.wrong, self.explorer.editing.edited, self._read,
        )  # fmt: skip

    def wanted(self, message: UnlearnPanel.Wants) -> None:
        """What the person did in the tab."""
        run = message.run
        if run is not None:
            of_run = {
                "look": self.measuring.look, "mark": self.mark, "measure": self.measuring.start,
                "toggle": self.explorer.editing.toggle, "name": self.name, "copy": self.copy, "delete": self.delete,
            }  # fmt: skip
            of_run[message.what](run)
        elif message.what in ("mark", "toggle", "measure", "name", "copy", "delete", "compare"):
            there = "choose one in the list" if self.all else "⏎ starts the one that the form describes"
            self.explorer.memloc.say(f"This key is about a run: {there}.")
        elif message.what == "set":
            self.planning.set(message.name, message.value)
        elif message.what == "start":
            self.start()
        elif message.what == "pause":
            self.pause()

    def mark(self, run: Run) -> None:
        """A run's curves behind the others, or not."""
        self._marked ^= {run.number}
        self.explorer.draw()

    def draw(self) -> None:
        if not self._leaving and self.explorer.is_attached and self.explorer.memloc.resume.tab == TAB:
            self.explorer.draw()

    # ----------------------------------------------------------------------------------------------------- a run

    def start(self) -> None:
        """Start what the form describes, unless something is in the way; say what."""
        from memloc_tui.runs import filled

        study, memloc = self.explorer.study, self.explorer.memloc
        if study is None or not study.identity:
            memloc.say(memloc.no_model)
        elif self.running:
            memloc.say("A run is going on, and there is one at a time: space pauses it, esc stops it.")
        else:
            work = partial(self._work, filled(memloc.resume.unlearn), self.explorer.editing.on)
            self._worker = self.explorer.run_worker(work, group="unlearn", exit_on_error=False)

    def pause(self) -> None:
        """Have the run wait, or go on."""
        run = self._going_on
        if run is None or not self.running:
            self.explorer.memloc.say("No run is going on.")
            return
        paused = run.state == "running"
        if self.explorer.session.pause(run.request, paused):
            self.change(run.number, state="paused" if paused else "running")
            self._pace = (monotonic(), self._pace[1], self._pace[2])
            self._job(self.all[run.number])
            self.draw()

    def change(self, number: int, **changes: Any) -> Run:
        self.all[number] = run = replace(self.all[number], **changes)
        return run

    def _add(self, **fields: Any) -> Run:
        from memloc_tui.runs import Run

        label = self._labels.get(Path(fields.get("file", "")).name)
        if label is not None and label.number not in self.all:
            number = label.number
        else:
            number = 1 + max(self._newest, *(kept.number for kept in self._labels.values()), -1)
        self._newest = max(self._newest, number)
        self.all[number] = run = Run(number, label=label.name if label is not None else "", **fields)
        return run

    async def _work(self, form: dict[str, str], below: tuple[str, ...]) -> None:
        try:
            await self._run(form, below)
        finally:
            self._worker = None
            if self.explorer.is_attached:
                self.explorer.top.show_run("")
                self.draw()

    async def _run(self, form: dict[str, str], below: tuple[str, ...]) -> None:
        memloc = self.explorer.memloc
        try:
            request, question, ids = await self.planning.planned(form, below)
            posed = self.explorer.editing.posed(request, below)
        except MemlocError as error:
            memloc.say(str(error), severity="error")
            self.planning.lacks, self.planning.wrong = visible(str(error)), True
            self.draw()
            return
        number = self._add(request=request, ids=ids, state="running", below=below, question=question).number
        self._file = edit_store.RunFile()  # what an earlier run could not finish stays
        started = saved = monotonic()
        painting = False
        self._pace = (started, 0, float("nan"))

        def progress(step: Progress) -> None:
            nonlocal painting, saved
            run, now = self.all[number], monotonic()
            if not run.running:
                return
            if step.notice:
                memloc.say(step.notice)
            if isinstance(step.partial, Unlearning):
                run = self.change(number, result=step.partial)
            self.change(number, left=self._seconds_left(run, now))
            if now - saved >= SAVE_EVERY:
                saved = now
                self._save_as_it_goes(number, now - started)
            if not painting:  # the newest step is painted a moment later, and so is the last one
                painting = True
                self.explorer.set_timer(REPAINT_EVERY, paint)

        def paint() -> None:
            nonlocal painting
            painting = False
            run = self.all.get(number)
            if run is not None and run.running:
                self._job(run)
                self.draw()

        self._job(self.all[number])
        self._go_to(number)
        try:
            answer = await self.explorer.session.ask(posed, progress)
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
        self.draw()
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

    # ------------------------------------------------------------------------------------------------ what is kept

    def _best_so_far(self, run: Run, seconds: float, reason: str) -> Answer[Any] | None:
        """What a run has come to, as an answer; None where no step was better than none."""
        from memloc_tui.unlearning import kept_so_far

        result, model = run.result, self.explorer.session.model
        if result is None or model is None or not run.best or not len(result.edit):
            return None
        return kept_so_far(run.request, result, model, run.below, reason, seconds)

    def _save_as_it_goes(self, number: int, seconds: float) -> None:
        run = self.all[number]
        if run.result is None or len(run.result.edit) > SAVED_AS_IT_GOES:
            return
        answer = self._best_so_far(run, seconds, f"Interrupted after step {run.steps}; this is its best step.")
        if answer is not None:
            with contextlib.suppress(MemlocError):  # said when the run ends, if it is still so
                self._file.keep(answer)

    def _keep_best(self, number: int, seconds: float, why: str) -> None:
        """A run that did not end by itself: keep its best step, and say so. Nothing here may wait."""
        run, memloc = self.all[number], self.explorer.memloc
        if not run.running:
            return
        after = f"after step {run.steps} of {run.request.steps}"
        cancelled = why == "cancelled"
        reason = f"Cancelled {after}." if cancelled else f"{why.rstrip('.')}, {after}."
        answer = self._best_so_far(run, seconds, reason)
        state: Any = "done" if cancelled else "failed"
        error = "" if cancelled else why
        if answer is None:
            nothing = TOO_LARGE if self._too_large else EMPTY
            self._file.drop()
            self.change(number, state=state, error=error or ("" if run.result is not None else "Cancelled."))
            memloc.say(f"{reason} {nothing} The weights are the original ones.", "warning")
            return
        run = self.change(number, state=state, error=error, result=answer.result, seconds=seconds)
        self._saved(run, answer)
        if name := self.all[number].name:
            memloc.say(f"{reason} Its best step, {run.best}, is kept as edit {name}; E shows the model with it.")

    async def _finished(self, number: int, answer: Answer[Any]) -> None:
        result: Unlearning = answer.result
        run = self.change(number, state="done", result=result, seconds=answer.provenance.seconds)
        if not result.best or not len(result.edit):
            self._file.drop()
            self.explorer.memloc.say(f"{visible(result.reason)} {EMPTY}", "warning")
            return
        self._saved(run, answer)
        if name := self.all[number].name:
            self.explorer.memloc.say(f"{visible(result.reason)} Kept as edit {name}; E shows the model with it.")
            self.draw()
            self.measuring.start(self.all[number])

    def _saved(self, run: Run, answer: Answer[Any]) -> None:
        """Write a run's edit, and put it on in the stack, on top of what it was made on and of nothing else."""
        try:
            path = self._file.finish(answer)
            active = edit_store.active(path)
        except MemlocError as error:
            self.change(run.number, error=visible(str(error)))
            self.explorer.memloc.say(f"{error} The run's curves stay until you quit.", "error")
            return
        fingerprint = active.fingerprint
        run = self.change(run.number, name=active.name, file=str(path), fingerprint=fingerprint)
        if path.name not in self._labels:
            self._keep_labels(run)
        self.explorer.editing.put_on(active, run.below, show=not self._leaving)

    def leave(self) -> None:
        """The program ends: what a run has come to is kept."""
        self._leaving = True
        for run in list(self.all.values()):
            if run.running:
                self._keep_best(run.number, float("nan"), "cancelled")

    # ------------------------------------------------------------------------------ names, copies, and what is deleted

    def _keep_labels(self, *runs: Run) -> None:
        """The letters and names of these for the next sitting."""
        changed = {Path(run.file).name: Label(run.number, run.label) for run in runs if run.file}
        self._labels |= changed
        try:
            label_store.keep(self._base, changed)
        except OSError as error:
            self.explorer.memloc.say(f"The runs' letters and names cannot be kept ({error.strerror}).", "warning")

    def name(self, run: Run) -> None:
        """Give a run a name of the person's own, or take it away."""
        from memloc_tui.screens.ask_line import AskLine

        def named(text: str | None) -> None:
            if text is not None and run.number in self.all:
                self._keep_labels(self.change(run.number, label=text.strip()))
                self.draw()

        says = f"It is shown in place of “{run.said}”; without one that is shown."
        self.explorer.app.push_screen(
            AskLine(f"A name for run {run.letter}", says, run.label, label_store.LONGEST), named
        )

    def copy(self, run: Run) -> None:
        """Say where the file of a run's edit lies, and copy it to where the person wants it."""
        from memloc_tui.screens.ask_line import AskLine

        async def copied(text: str) -> None:
            try:
                path = await asyncio.to_thread(edit_store.copy, run.file, text)
            except MemlocError as error:
                self.explorer.memloc.say(str(error), "error")
            else:
                self.explorer.memloc.say(f"Written: {path}")

        def wanted(text: str | None) -> None:
            if text:
                self.explorer.run_worker(copied(text), group="copy", exit_on_error=False)

        if run.file:
            says = f"The edit's file is {visible(run.file)}. Copy it to a folder, or to a new file:"
            name = f"memloc-edit-{Path(run.file).name}"
            self.explorer.app.push_screen(AskLine(f"Copy the edit of run {run.letter}", says, name), wanted)
        else:
            self.explorer.memloc.say("This run has no edit." if not run.running else "Its edit comes when it ends.")

    def delete(self, run: Run) -> None:
        """A run and its edit's file, once the person has said so; neither where one of them is needed."""
        from memloc_tui.screens.confirm import Confirm

        def said(yes: bool | None) -> None:
            if yes:
                self.explorer.run_worker(self._delete(run.number), group="delete", exit_on_error=False)

        if why := self._needed(run):
            self.explorer.memloc.say(why)
            return
        if not run.file:
            goes = "It has no edit; its curves go."
        elif self._kept_too(run):
            goes = "Its edit stays: another run has come to the same."
        else:
            goes = f"Its edit goes with it: {visible(run.file)}"
        self.explorer.app.push_screen(
            Confirm(f"Delete run {run.letter}, {run.called or visible(run.error)}? {goes}"), said
        )

    def _kept_too(self, run: Run) -> bool:
        """Whether another run, perhaps the one that goes on, has the same file."""
        others = [other.file for other in self.all.values() if other.number != run.number]
        return bool(run.file) and (self._file.path == Path(run.file) or run.file in others)

    def _needed(self, run: Run) -> str:
        """Why a run cannot be deleted, as a sentence."""
        if run.running:
            return "A run that goes on cannot be deleted: esc ends it."
        if self.measuring.of(run):
            return "What it left is being measured: esc stops that."
        if not run.fingerprint or self._kept_too(run):
            return ""
        stack = self.explorer.editing.stack
        if any(edit.on for edit in stack if edit.fingerprint == run.fingerprint):
            return "Its edit is on: t switches it off, and then it can be deleted."
        above = [edit.fingerprint for edit in stack if run.fingerprint in edit.below]
        return self._carries(run, above)

    def _carries(self, run: Run, above: list[str]) -> str:
        """Why a run cannot be deleted on whose edit others stand: runs, and edits of these fingerprints."""
        others = [o for o in self.all.values() if run.fingerprint in o.below and (o.file or o.running)]
        known = [other.fingerprint for other in others]
        names = [f"run {o.letter}" for o in others]
        names += [f"edit {one[: edit_store.SHORT]}" for one in dict.fromkeys(above) if one not in known]
        stand = "stands" if len(names) == 1 else "stand"
        return f"It cannot be deleted: {', '.join(names)} {stand} on its edit." if names else ""

    async def _delete(self, number: int) -> None:
        memloc, above = self.explorer.memloc, list[str]()
        if (run := self.all.get(number)) is not None and run.fingerprint:
            above = await asyncio.to_thread(edit_store.above, run.fingerprint)
        if (run := self.all.get(number)) is None:
            return
        kept_too = self._kept_too(run)
        if why := self._needed(run) or ("" if kept_too else self._carries(run, above)):
            memloc.say(why)
            return
        if kept_too:
            self._keep_labels(*(o for n, o in self.all.items() if n != number and o.file == run.file))
        elif run.file:
            try:
                if Path(run.file).exists():  # else it has been deleted already
                    edit_store.remove(run.file)
            except MemlocError as error:
                memloc.say(str(error), "error")
                return
            self._labels.pop(Path(run.file).name, None)
            self.explorer.editing.forget(run.fingerprint)
        self.explorer.workers.cancel_group(self.explorer, "peek")
        del self.all[number]
        self._marked.discard(number)
        memloc.say(f"Run {run.letter} is deleted.")
        self.draw()
        if memloc.resume.tab == TAB and self.explorer.panel.has_focus_within:
            self.explorer.panel.focus_inside()  # what had the keyboard may have been the run's

    # --------------------------------------------------------------------------------------- runs of earlier sittings

    async def _read_stored(self) -> None:
        """The runs of earlier sittings with this model: with their letters, or the next ones, the oldest first."""
        study = self.explorer.study
        assert study is not None
        found = await asyncio.to_thread(edit_store.runs_of, self._base)
        ids = study.catalogue.paragraphs.ids
        for path, answer, problem in found:
            if answer is None:
                said = visible(problem.replace(str(path), path.name))
                if path.exists() and all(run.error != said for run in self.all.values()):
                    self._add(request=Unlearn((), ()), stored=True, state="failed", error=said, file=str(path))
                continue
            result, request = answer.result, bare_run(answer.request)
            fingerprint = result.edit.fingerprint
            rows = await asyncio.to_thread(study.catalogue.rows_of, request.targets)
            if path == self._file.path or not path.exists():  # of the run that goes on, or deleted meanwhile
                continue
            if all(run.fingerprint != fingerprint for run in self.all.values()):
                self._add(
                    request=request, result=result, stored=True, file=str(path), fingerprint=fingerprint,
                    name=fingerprint[: edit_store.SHORT], below=result.edit.on_top_of,
                    ids=tuple(ids[row] for row in rows), seconds=answer.provenance.seconds,
                )  # fmt: skip
        self._read = True
        if new := [run for run in self.all.values() if run.file and Path(run.file).name not in self._labels]:
            self._keep_labels(*new)
        self.draw()


def bare_run(request: Request) -> Unlearn:
    """The run's own request, without the edits that it was asked with."""
    inner = request.request if isinstance(request, Edited) else request
    assert isinstance(inner, Unlearn)
    return inner
