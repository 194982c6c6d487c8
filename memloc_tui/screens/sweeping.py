"""Sweeps: one at a time, shown as they go, found again in the cache."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from textual.worker import Worker

from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_core.requests import Progress, Request, Strategy, SweepScores
from memloc_tui.screens.study import Study
from memloc_tui.view import SweepView

if TYPE_CHECKING:
    from memloc_tui.screens.explorer import Explorer

REPAINT_EVERY = 0.25  # seconds between two paintings of a job's progress


class Sweeping:
    """Runs the sweep of a study's paragraph under the person's options."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self._worker: Worker[None] | None = None

    @property
    def study(self) -> Study:
        assert self.explorer.study is not None
        return self.explorer.study

    @property
    def running(self) -> bool:
        return self._worker is not None and not self._worker.is_finished

    def request(self, study: Study, row: int) -> Request:
        """The sweep of a paragraph under the current options."""
        resume = self.explorer.memloc.resume
        given = tuple(resume.given) if resume.strategy == "given" else ()
        strategy = cast(Strategy, resume.strategy)
        options = (resume.draws, resume.seed, given, resume.reference, resume.verified)
        return study.posed(study.catalogue.sweep(row, strategy, *options))

    def peek(self) -> None:
        """An earlier sweep under the same options shows at once; of one that was stopped, what it has come to."""
        session, study = self.explorer.memloc.session, self.study
        if session is None or not study.identity or study.current < 0:
            return
        request, here = self.request(study, study.current), study.here
        if here.sweep is not None and here.sweep.request != request:
            here.sweep = None
        if here.sweep is None or not here.sweep.done:
            answer: Any = session.peek(request)
            if answer is not None:
                here.sweep = swept(request, answer.result, done=True, cached=True)

    def start(self) -> None:
        """Sweep the paragraph on screen, unless that is known or something is in the way; say what."""
        memloc, study = self.explorer.memloc, self.study
        resume = memloc.resume
        if not study.identity or study.current < 0:
            memloc.say(memloc.no_model)
        elif self.running:
            memloc.say("A sweep is running: esc stops it.")
        elif resume.strategy == "given" and not resume.given:
            memloc.say("The strategy “given” needs tokens: W opens the options.")
        else:
            resume.overlay = "EM drop"
            memloc.save_soon()
            self.peek()
            if study.here.sweep is None or not study.here.sweep.done:
                work = partial(self._run, self.request(study, study.current), study, study.current)
                self._worker = self.explorer.run_worker(work, group="sweep", exit_on_error=False)
            self.explorer.draw()

    def stop(self) -> None:
        """Cancel; what is known so far stays on screen."""
        if self._worker is not None:
            self._worker.cancel()

    async def _run(self, request: Request, study: Study, row: int) -> None:
        explorer = self.explorer
        session, here, painted = explorer.session, study.work_on(row), monotonic()
        explorer.top.show_job("sweep", "sweep")

        def show(scores: SweepScores, done: bool) -> None:
            if request != self.request(study, row):
                return  # the options are others by now; the session keeps it, once it is whole
            here.sweep = swept(request, scores, done)
            if explorer.study is study and study.current == row:
                explorer.draw()

        def progress(step: Progress) -> None:
            nonlocal painted
            if step.notice:
                explorer.memloc.say(step.notice)
            if monotonic() - painted >= REPAINT_EVERY:
                painted = monotonic()
                explorer.top.show_job("sweep", "sweep", step.done, step.total)
                if isinstance(step.partial, SweepScores):
                    show(step.partial, done=False)

        try:
            answer: Any = await session.ask(request, progress)
            show(answer.result, done=True)
            if swept(request, answer.result, done=True).verified:
                explorer.memloc.say(verification(answer.result))
        except Cancelled:
            pass
        except MemlocError as error:
            if isinstance(error, EngineDied):
                explorer.memloc.engine_died(error)
            else:
                explorer.memloc.say(str(error), severity="error")
        finally:
            if explorer.is_attached:
                explorer.top.show_job("sweep")


def verification(scores: SweepScores) -> str:
    """What the exact matches of a verified sweep rest on."""
    return (
        f"Verified: {scores.rechecked:.0%} of the replacements were computed again exactly, all with a margin up to "
        f"{scores.bound:.2g}; the largest error of bfloat16 that was seen is {scores.error:.2g}."
    )


def swept(request: Request, scores: SweepScores, done: bool, cached: bool = False) -> SweepView:
    return SweepView(request, scores, done, cached, tuple(scores.drops().tolist()))
