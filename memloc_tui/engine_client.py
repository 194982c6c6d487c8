"""Starts the engine process, talks to it, cancels, and starts it again when it has died.

    ask -> ASK frame -> PROGRESS frames -> ANSWER or FAILURE frame -> the awaiting task

Not multiprocessing: its start-up fails inside a running Textual app, where stderr has no file number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from memloc_core import codec, frames
from memloc_core.errors import Cancelled, EngineDied, MemlocError, UsageError
from memloc_core.frames import FrameError, Kind
from memloc_core.requests import Answer, Progress, Request

LOG_CAP = 4 << 20  # bytes of the engine's log; above it a new one is begun, and one old one kept
CANCEL_SECONDS = 2.0  # how long a cancelled request may go on before the process is killed
_ERRORS: dict[str, type[MemlocError]] = {c.__name__: c for c in (MemlocError, UsageError, Cancelled)}


@dataclass
class _Asked:
    process: asyncio.subprocess.Process
    request: Request
    future: asyncio.Future[Answer[Any]]
    on_progress: Callable[[Progress], None] | None


class EngineClient:
    """One engine process. `opening` is sent first after every start, so that a restarted engine has its model.

    `opened` becomes that request's answer; `on_state` gets "starting", "loading", "ready", "busy", "died" and, from an
    engine that could not open its model, "refused".
    """

    def __init__(self, opening: Request, log: Path, on_state: Callable[[str], None] = lambda state: None) -> None:
        self.opening = opening
        self.log = log
        self.opened: asyncio.Future[Answer[Any]] | None = None
        self._on_state = on_state
        self._state = ""
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._asked: dict[int, _Asked] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._last_id = 0
        self._closed = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def ask(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Answer[Any]:
        """The engine's answer. Cancelling the awaiting task cancels the work. Raises MemlocError, EngineDied."""
        await self.start(anew=request.keeps)  # what is read from files needs no model
        return await self._send(request, on_progress)

    def pause(self, request: Request, paused: bool) -> bool:
        """Have the engine take no further step of a request, or go on with it; False where it is not being asked."""
        found = False
        for id_, asked in self._asked.items():
            stdin = asked.process.stdin
            if asked.request == request and not asked.future.done() and stdin is not None and not stdin.is_closing():
                stdin.write(frames.pack(Kind.PAUSE if paused else Kind.RESUME, id_))
                found = True
        return found

    async def start(self, anew: bool = True) -> None:
        """Start the process unless it runs; returns as soon as it can be written to. `anew`: one that could not open
        its model is started again, because whatever kept it from that may be over."""
        async with self._starting:
            if self._closed:
                raise Cancelled("The session is closed.")
            if self._process is not None and self._process.returncode is None:
                if not (anew and self._refused()):
                    return
                refused, self._process = self._process, None  # none, so that its end is not said to be the engine's
                refused.kill()
                await refused.wait()
            self._set_state("starting")
            # -P: a torch.py or queue.py in the person's folder is not what the engine wants to import.
            command = (sys.executable, "-P", "-m", "memloc_core.worker", str(os.getpid()))
            pipe = asyncio.subprocess.PIPE
            try:
                with self._open_log() as log:
                    self._process = await asyncio.create_subprocess_exec(
                        *command, stdin=pipe, stdout=pipe, stderr=log, limit=1 << 20
                    )
            except OSError as error:
                raise EngineDied(f"The engine process cannot be started: {error.strerror or error}.") from None
            self._set_state("loading")
            self.opened = asyncio.ensure_future(self._send(self.opening, None))
            self.opened.add_done_callback(self._on_opened)
            # After it: an engine that has ended already must find whom to tell.
            self._reader = asyncio.create_task(self._read(self._process))
            # Its frame must stand first in the pipe, before any question that needs the model.
            await asyncio.sleep(0)

    def _refused(self) -> bool:
        """Whether the process could not open its model."""
        opened = self.opened
        return opened is not None and opened.done() and not opened.cancelled() and opened.exception() is not None

    async def close(self) -> None:
        """Kill the process and fail what still waits. Nothing of the engine's is worth a slow goodbye."""
        self._closed = True
        async with self._starting:  # a process that is just being started must not outlive us
            self.kill()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    def kill(self) -> None:
        """Kill the process now; whoever waits for an answer gets EngineDied, and the next `ask` starts another."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _open_log(self) -> BinaryIO:
        """The engine's log; where it cannot be written, nowhere."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > LOG_CAP:
                self.log.replace(self.log.with_suffix(".old.log"))
            return self.log.open("ab")
        except OSError:
            return Path(os.devnull).open("ab")

    async def _send(self, request: Request, on_progress: Callable[[Progress], None] | None) -> Answer[Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        self._last_id += 1
        id_ = self._last_id
        future: asyncio.Future[Answer[Any]] = asyncio.get_running_loop().create_future()
        asked = self._asked[id_] = _Asked(process, request, future, on_progress)
        try:
            process.stdin.write(frames.pack(Kind.ASK, id_, codec.encode(request)))
            self._set_state(self._working_state())
            # Where the process has ended, the reader sees it too, and says how.
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            # `wait`, because awaiting a future and being cancelled would cancel the future: nobody would see it end.
            await asyncio.wait([future])
        except asyncio.CancelledError:
            asked.on_progress = None
            process.stdin.write(frames.pack(Kind.CANCEL, id_))
            task = asyncio.create_task(self._until_it_stops(id_, asked))
            self._stopping.add(task)  # the loop itself keeps only weak references
            task.add_done_callback(self._stopping.discard)
            raise
        except BaseException:
            self._forget(id_)
            raise
        self._forget(id_)
        return future.result()

    async def _until_it_stops(self, id_: int, asked: _Asked) -> None:
        """A cancelled request that has not ended within CANCEL_SECONDS ends with the process."""
        done, _ = await asyncio.wait([asked.future], timeout=CANCEL_SECONDS)
        self._forget(id_)
        if done:
            asked.future.exception()  # retrieved: it is the cancellation that we asked for
        elif asked.process.returncode is None:
            asked.process.kill()

    def _forget(self, id_: int) -> None:
        self._asked.pop(id_, None)
        self._set_state(self._working_state())

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        wrong = ""
        try:
            while True:
                kind, id_, size = frames.unpack_header(await process.stdout.readexactly(frames.HEADER.size))
                self._received(kind, id_, await process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as error:  # a broken peer; whatever it is, those who wait must hear of it
            wrong = f" It sent something that is no answer: {error}"
            if process.returncode is None:
                process.kill()
        self._ended(process, await process.wait(), wrong)

    def _received(self, kind: Kind, id_: int, body: bytes) -> None:
        asked = self._asked.get(id_)
        if asked is None or asked.future.done():
            return
        if kind is Kind.PROGRESS:
            progress = codec.decode(body)
            if not isinstance(progress, Progress):
                raise FrameError(f"{type(progress).__name__} is no progress.")
            if asked.on_progress is not None:  # called by the loop: what a listener raises is not the engine's fault
                asyncio.get_running_loop().call_soon(asked.on_progress, progress)
        elif kind is Kind.ANSWER:
            answer = codec.decode(body)
            if not isinstance(answer, Answer) or type(answer.result) is not asked.request.answer:
                raise FrameError(f"It does not answer {type(asked.request).__name__}.")
            asked.future.set_result(answer)
        elif kind is Kind.FAILURE:
            failure = json.loads(body)
            asked.future.set_exception(_ERRORS.get(failure["error"], MemlocError)(str(failure["message"])))

    def _ended(self, process: asyncio.subprocess.Process, code: int, wrong: str) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        died = EngineDied(
            f"The engine process {how}.{wrong} It restarts with the next question; its log is {self.log}."
        )
        for asked in list(self._asked.values()):
            if asked.process is process and not asked.future.done():
                asked.future.set_exception(Cancelled("Closed.") if self._closed else died)
        if process is self._process:  # and not one that was started in the meantime
            self._set_state("died")

    def _on_opened(self, opened: asyncio.Future[Answer[Any]]) -> None:
        if not opened.cancelled() and opened.exception() is None:
            self._state = "ready"
            self._set_state(self._working_state(), again=True)
        elif opened is self.opened:
            self._set_state(self._working_state())

    def _working_state(self) -> str:
        if self._process is None or self._process.returncode is not None:
            return self._state
        if self._refused():
            return "refused"
        if self.opened is None or not self.opened.done() or self.opened.cancelled():
            return "loading"
        return "busy" if self._asked else "ready"

    def _set_state(self, state: str, again: bool = False) -> None:
        if (again or state != self._state) and not self._closed:
            self._state = state
            self._on_state(state)
