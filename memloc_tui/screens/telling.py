"""The list's order by "told": which paragraphs their prefixes alone give away as memorized."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from textual.worker import Worker

from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_tui.glyphs import visible

if TYPE_CHECKING:
    from memloc_core.requests import Progress
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.screens.explorer import Explorer

MOST = 2000  # paragraphs from the file's beginning: each takes a backward pass
REPAINT_EVERY = 0.25


class Telling:
    """Asks for the signals of every prefix, once somebody wants the order, and scores each paragraph by a detector
    that was fitted on none of its cluster. One per list."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.says = ""  # how far it is, or why there is nothing
        self._worker: Worker[None] | None = None
        self._stopped = False  # by the person or an error; r or choosing the order anew starts again

    @property
    def running(self) -> bool:
        return self._worker is not None and not self._worker.is_finished

    def start(self, catalogue: Catalogue) -> None:
        """Begin, unless it runs or is done. It waits for the exact matches, which it learns from."""
        if catalogue.known_of(slice(self._most(catalogue))) < self._most(catalogue):
            self.says = "waits for the EMs"
        elif not self.running and not self._stopped and not (catalogue.told >= 0).any():
            self.says = "asking …"
            self._worker = self.explorer.run_worker(self._run(catalogue), group="telling", exit_on_error=False)

    @staticmethod
    def _most(catalogue: Catalogue) -> int:
        return min(MOST, len(catalogue.file))

    def stop(self) -> None:
        """Cancel; what was answered is in the cache, so the next start goes on from there."""
        if self.running and self._worker is not None:
            self._worker.cancel()
            self._stopped, self.says = True, "stopped, r goes on"
            self.explorer.listing.draw_head()

    def again(self) -> None:
        """What was stopped or failed may begin once more."""
        self._stopped = False

    async def _run(self, catalogue: Catalogue) -> None:
        from memloc_tui.detecting import CHUNK, requests, told

        explorer, rows = self.explorer, list(range(self._most(catalogue)))
        session, painted = explorer.session, monotonic()
        answers: list[Any] = []

        def progress(step: Progress | None = None) -> None:
            nonlocal painted
            if monotonic() - painted >= REPAINT_EVERY:
                painted = monotonic()
                part = step.done / max(1, step.total) if step else 0.0
                self.says = f"{min(len(rows), int(CHUNK * (len(answers) + part))):,}/{len(rows):,}"
                explorer.listing.draw_head()

        try:
            for request in requests(catalogue, rows):
                answers.append(session.peek(request) or await session.ask(request, progress))
                progress()
            catalogue.told[rows] = told(catalogue, rows, answers)
            self.says = ""
        except Cancelled:
            self._stopped, self.says = True, "stopped, r goes on"
        except MemlocError as error:
            self._stopped, self.says = True, visible(str(error))
            explorer.memloc.say(self.says, severity="error")
            if isinstance(error, EngineDied):
                explorer.memloc.engine_died(error)
        if explorer.is_attached and explorer.study is not None and explorer.study.catalogue is catalogue:
            explorer.list.refresh()
            explorer.listing.show_order()
