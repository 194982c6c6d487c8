"""The one way in which panels and overlays get their answers: peeked at, asked for, cancelled when nobody looks.

Each request wanted by what is on screen is asked once. An answer is kept under its request, so a late one can never
stand where another belongs; a request that the screen no longer wants is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from textual.worker import Worker

from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_core.requests import (
    Ablated,
    Answer,
    ContrastGradients,
    HeadAblation,
    ParameterGradients,
    Progress,
    RareTokens,
    Rarity,
    Request,
)
from memloc_tui.glyphs import visible
from memloc_tui.scene import Want

if TYPE_CHECKING:
    from textual.worker import WorkType

    from memloc_tui.screens.explorer import Explorer

PATIENCE = 0.15  # seconds before a panel says that it waits: a fast answer never flickers
REPAINT_EVERY = 0.25  # seconds between two paintings of progress
REMEMBERED = 256  # answers that are no longer on screen; the session and the cache know more
LONG = (HeadAblation, RareTokens)  # whoever started one of these is asked before it is lost
NAMES: dict[type[Request], str] = {
    ParameterGradients: "gradients",
    ContrastGradients: "contrast",
    Rarity: "rarity",
    HeadAblation: "head ablation",
    RareTokens: "rare tokens",
}


class Flight:
    """A request that is being answered."""

    def __init__(self, worker: Worker[None]) -> None:
        self.worker, self.since = worker, monotonic()
        self.progress: Progress | None = None


class Inquiry:
    """Holds what is known (it is a `scene.Known`), and asks for the rest. One per study."""

    def __init__(self, explorer: Explorer, on_change: Callable[[], None]) -> None:
        self.explorer, self._on_change = explorer, on_change
        self._answers: dict[Request, Answer[Any]] = {}
        self._missed: set[Request] = set()  # not in the cache either
        self._errors: dict[Request, str] = {}
        self._stopped: set[Request] = set()
        self._flights: dict[Request, Flight] = {}
        self._wanted: dict[Request, bool] = {}
        self._painted = 0.0

    # ---------------------------------------------------------------------------------------------- what is known

    def result(self, request: Request | None, partial: bool = False) -> Any:
        if request is None:
            return None
        if (answer := self._answers.get(request)) is not None:
            return answer.result
        flight = self._flights.get(request)
        return flight.progress.partial if partial and flight is not None and flight.progress is not None else None

    def lacks(self, request: Request | None) -> str:
        if request is None or request in self._answers:
            return ""
        if request in self._errors:
            return self._errors[request]
        if request in self._stopped:
            return "stopped · r asks again"
        flight = self._flights.get(request)
        if flight is None or monotonic() - flight.since < PATIENCE:
            return ""
        step = flight.progress
        if step is None or step.total <= 1:
            return "asking the engine …"
        return f"{step.done:,} of {step.total:,} {step.unit} · esc stops"

    def failed(self, request: Request | None) -> bool:
        return request in self._errors

    def asked(self, request: Request | None) -> bool:
        """Whether it is being answered now."""
        return request in self._flights

    def answers(self) -> list[Answer[Any]]:
        """What is on screen, with what reproduces it."""
        return [self._answers[request] for request in self._wanted if request in self._answers]

    @property
    def running(self) -> bool:
        return bool(self._flights)

    @property
    def long(self) -> bool:
        """Whether a job runs that the person started and would miss."""
        return any(isinstance(request, LONG) for request in self._flights)

    # --------------------------------------------------------------------------------------------- what is wanted

    def want(self, wants: list[Want]) -> None:
        """What is on screen now: look it up, ask for what is missing, and give up what nobody looks at any more."""
        session = self.explorer.memloc.session
        if session is None or session.model is None:
            return
        self._wanted = {}
        for request, ask in wants:
            self._wanted[request] = ask or self._wanted.get(request, False)
        for request in self._wanted.keys() - self._answers.keys() - self._missed:
            if (answer := session.peek(request)) is not None:
                self._answers[request] = answer
            else:
                self._missed.add(request)
        for request in self._flights.keys() - self._wanted.keys():
            self._flights.pop(request).worker.cancel()
        for request, ask in self._wanted.items():
            if ask and not (
                request in self._answers
                or request in self._errors
                or request in self._stopped
                or request in self._flights
            ):
                work: WorkType[None] = partial(self._ask, request)
                worker = self.explorer.run_worker(work, group="inquiry", exit_on_error=False)
                self._flights[request] = Flight(worker)
                self.explorer.set_timer(PATIENCE + 0.01, partial(self._still_asking, request))
        if len(self._answers) > REMEMBERED:
            self._answers = {request: a for request, a in self._answers.items() if request in self._wanted}
            self._missed.clear()
        self._show_job()

    def stop(self) -> bool:
        """Cancel everything that is being asked; whether there was anything."""
        stopped = bool(self._flights)
        for request, flight in self._flights.items():
            flight.worker.cancel()
            self._stopped.add(request)
        self._flights.clear()
        if stopped:
            self._show_job()
            self._on_change()
        return stopped

    def close(self) -> None:
        """Another model or paragraph set is studied now."""
        self._wanted = {}
        for flight in self._flights.values():
            flight.worker.cancel()
        self._flights.clear()
        self._show_job()

    def again(self) -> None:
        """What failed or was stopped may be asked once more."""
        self._errors.clear()
        self._stopped.clear()

    async def _ask(self, request: Request) -> None:

        def progress(step: Progress) -> None:
            flight = self._flights.get(request)
            if flight is None:
                return
            if step.notice:
                self.explorer.memloc.say(step.notice)
            if step.partial is None and flight.progress is not None:
                step = Progress(step.done, step.total, step.unit, step.notice, flight.progress.partial)
            flight.progress = step
            if monotonic() - self._painted >= REPAINT_EVERY:
                self._painted = monotonic()
                self._show_job()
                self._on_change()

        try:
            answer = await self.explorer.session.ask(request, progress)
        except Cancelled:
            if self._flights.pop(request, None) is not None:  # by the engine, not by us
                self._stopped.add(request)
        except MemlocError as error:
            if self._flights.pop(request, None) is not None:
                self._errors[request] = visible(str(error))
            if isinstance(error, EngineDied):
                self.explorer.memloc.engine_died(error)
        else:
            self._flights.pop(request, None)
            self._answers[request] = answer
        if request in self._wanted and self.explorer.is_attached:
            self._show_job()
            self._on_change()

    def _still_asking(self, request: Request) -> None:
        if request in self._flights:
            self._on_change()

    def _show_job(self) -> None:
        """The longest of what runs stands in the top line."""
        if not self.explorer.is_attached:
            return
        jobs = [(r, f.progress) for r, f in self._flights.items() if f.progress is not None and f.progress.total > 1]
        if not jobs:
            self.explorer.top.show_job("answers")
            return
        request, step = max(jobs, key=lambda job: job[1].total - job[1].done)
        inner = request.request if isinstance(request, Ablated) else request
        self.explorer.top.show_job("answers", NAMES.get(type(inner), "patching"), step.done, step.total)
