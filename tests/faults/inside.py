"""An engine in this process in the engine process' place: what a session asks, it computes at once.

For faults of memory and of text, where what matters is what comes back and where it goes, not the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memloc_core.engine import Engine
from memloc_core.errors import Cancelled, MemlocError
from memloc_core.requests import Answer, Progress, Provenance, Request


class InsideClient:
    """The interface of `EngineClient`. `lm` is the open model; `answers` holds results for requests by kind."""

    lm: Any = None
    answers: dict[type[Request], Callable[[Request], Any]] = {}
    pid = None

    def __init__(self, opening: Request, log: Path, on_state: Callable[[str], None] = lambda state: None) -> None:
        self.opening, self.on_state = opening, on_state
        self.opened: asyncio.Future[Answer[Any]] | None = None
        self.closed = False
        self.engine = Engine()
        self.engine.lm = self.lm

    async def start(self) -> None:
        if self.opened is None:
            self.opened = asyncio.get_running_loop().create_future()
            about = Provenance("", "", "", "", "", "", 0.0)
            self.opened.set_result(Answer(self.opening, self.lm.info, about))
            self.on_state("ready")

    async def ask(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Answer[Any]:
        await self.start()
        if self.closed:
            raise Cancelled("Closed.")
        await asyncio.sleep(0)
        if make := self.answers.get(type(request)):
            return Answer(request, make(request), Provenance("", "", "", "", "", "", 0.0))
        steps = self.engine.steps(request)
        try:
            while True:
                progress = next(steps)
                if on_progress is not None:
                    on_progress(progress)
                await asyncio.sleep(0)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except MemlocError:
            raise
        except Exception as error:  # as the worker says it
            name = type(request).__name__
            raise MemlocError(f"The engine failed on {name}: {type(error).__name__}: {error}") from error
        finally:
            steps.close()

    def pause(self, request: Request, paused: bool) -> bool:
        return False

    def kill(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True
