"""What a run left in the model: asked after it, beside what was there before (README, what remains)."""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from textual.worker import Worker

from memloc_core.errors import Cancelled, EngineDied, MemlocError, UsageError
from memloc_core.requests import MeasureRemains, Progress, Request
from memloc_tui.glyphs import visible

if TYPE_CHECKING:
    from memloc_tui.runs import Run
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.screens.unlearning import UnlearnRuns

REPAINT_EVERY = 0.25


class Measuring:
    """One per explorer; it writes what it finds into the runs."""

    def __init__(self, explorer: Explorer, runs: UnlearnRuns) -> None:
        self.explorer, self.runs = explorer, runs
        self._workers: dict[int, Worker[None]] = {}  # by a run's number

    @property
    def running(self) -> bool:
        return bool(self._workers)

    def of(self, run: Run) -> bool:
        """Whether it is being measured what this run left."""
        return run.number in self._workers

    def stop(self) -> bool:
        """Cancel what is being measured; whether there was anything."""
        for worker in self._workers.values():
            worker.cancel()
        return self.running

    def start(self, run: Run) -> None:
        """Ask what a run left, and what was there before it."""
        if run.running:
            self.explorer.memloc.say("What remains is measured when the run has ended.")
        elif not run.fingerprint:
            self.explorer.memloc.say("This run has no edit, so it left nothing to measure.")
        elif self.of(run):
            self.explorer.memloc.say("What it left is being measured: esc stops.")
        elif run.before is not None and run.after is not None:
            self.explorer.memloc.say("What it left is measured: v shows the result.")
        else:
            self.runs.change(run.number, measuring="asking …")
            worker = self.explorer.run_worker(self._measure(run.number), group="remains", exit_on_error=False)
            self._workers[run.number] = worker
            self.runs.draw()

    def look(self, run: Run) -> None:
        """A run is looked at: what was measured in an earlier sitting shows at once."""
        if run.question is None and run.fingerprint and not run.running:
            self.explorer.run_worker(self._peek(run.number), group="peek", exclusive=True, exit_on_error=False)

    async def _question(self, number: int) -> MeasureRemains:
        """The same question as when the run was new: it hangs on the exact matches under the weights below it."""
        from memloc_tui.unlearning import remains_of, waits

        run = self.runs.all[number]
        if run.question is not None:
            return run.question
        study = self.explorer.editing.known(run.below)
        rows = await asyncio.to_thread(study.catalogue.rows_of, run.request.targets) if study is not None else ()
        if study is None or waits(study.catalogue, rows):
            raise UsageError("This takes the exact matches under the weights that the run began with: E shows them.")
        if len(rows) < len(run.request.targets):
            raise UsageError("Its paragraphs are not in this set.")
        question = await asyncio.to_thread(remains_of, study.catalogue, rows, run.request)
        self.runs.change(number, question=question)
        return question

    async def _peek(self, number: int) -> None:
        try:
            question, run = await self._question(number), self.runs.all[number]
            posed = self._posed(run, question)
        except MemlocError:
            return  # said when it is asked for
        before, after = (self.explorer.session.peek(request) for request in posed)
        if before is not None or after is not None:
            self.runs.change(number, before=before and before.result, after=after and after.result)
            self.runs.draw()

    def _posed(self, run: Run, question: MeasureRemains) -> tuple[Request, Request]:
        """Before and after."""
        pose, own = self.explorer.editing.posed, {run.fingerprint: run.file}
        return pose(question, run.below), pose(question, (*run.below, run.fingerprint), own)

    async def _measure(self, number: int) -> None:
        painted = 0.0

        def progress(which: str, step: Progress) -> None:
            nonlocal painted
            if monotonic() - painted >= REPAINT_EVERY:
                painted = monotonic()
                self.runs.change(number, measuring=f"{which}: {step.done} of {step.total} {step.unit} · esc stops")
                self.runs.draw()

        says = ""
        try:
            posed = self._posed(self.runs.all[number], await self._question(number))
            for name, request in (("after", posed[1]), ("before", posed[0])):
                answer = await self.explorer.session.ask(request, partial(progress, name))
                self.runs.change(number, **{name: answer.result})
                self.runs.draw()
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
            self._workers.pop(number, None)
            self.runs.change(number, measuring=says)
            self.runs.draw()
