"""The engine process: frames in on stdin, frames out on the descriptor that was stdout. `python -m memloc_core.worker`.

Two threads. One reads frames, so that a cancellation is seen in the middle of a forward pass and the end of input at
once; the other works, one step of the most urgent request at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, BinaryIO

from memloc_core import codec, frames
from memloc_core.engine import Engine
from memloc_core.errors import Cancelled, MemlocError
from memloc_core.frames import Kind
from memloc_core.requests import Answer, Progress, Request

_PROGRESS_SECONDS = 0.1  # progress goes out at most this often
_IDLE_SECONDS = 2.0  # without a request, before free memory is given back
_PR_SET_PDEATHSIG = 1


@dataclass
class Job:
    """A request at work or waiting."""

    number: int  # order of arrival
    id: int
    request: Request
    paused: bool = False
    steps: Generator[Progress, None, Answer[Any]] | None = None
    last_progress: float = 0.0
    last_partial: float = 0.0


class Worker:
    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._engine = Engine()
        self._inbox: queue.Queue[tuple[int, Request | bool | None]] = queue.Queue()  # paused? None: cancelled
        self._lock = threading.Lock()  # of the sink, and of which job is running
        self._running = 0

    def serve(self) -> None:
        """Work until the other side closes our stdin; then the process ends at once, whatever it is doing."""
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        jobs: list[Job] = []
        arrived = 0
        while True:
            while all(job.paused for job in jobs) or not self._inbox.empty():
                id_, request = self._next()
                if isinstance(request, bool):
                    for job in jobs:
                        job.paused = request if job.id == id_ else job.paused
                elif request is None:
                    for job in [job for job in jobs if job.id == id_]:
                        jobs.remove(job)
                        if job.steps is not None:
                            job.steps.close()
                    # Also where it has just ended: the other side kills an engine that leaves this unanswered.
                    self._send(Kind.FAILURE, id_, _failure(Cancelled("Cancelled.")))
                else:
                    arrived += 1
                    jobs.append(Job(arrived, id_, request))
            job = min((job for job in jobs if not job.paused), key=self._order)
            if not self._step(job):
                jobs.remove(job)

    def _next(self) -> tuple[int, Request | bool | None]:
        """What comes next; where nothing does for a while, memory that is free goes back to the system meanwhile."""
        try:
            return self._inbox.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            _give_back_memory()
            return self._inbox.get()

    def _order(self, job: Job) -> tuple[bool, int, int]:
        """The most urgent first; what needs a model waits until one is open, or is sure not to come."""
        waits = self._engine.lm is None and self._engine.needs_model(job.request)
        return waits, job.request.urgency, job.number

    def _step(self, job: Job) -> bool:
        """One step of a job; False when it has ended."""
        lost = False
        with self._lock:
            self._running = job.id
            if self._engine.lm is not None:
                self._engine.lm.cancelled.clear()
        try:
            if job.steps is None:
                job.steps = self._engine.steps(job.request)
            try:
                progress = next(job.steps)
            except StopIteration as stop:
                self._send(Kind.ANSWER, job.id, codec.encode(stop.value))
                return False
            now = time.monotonic()
            # What is known so far has a clock of its own, or the small steps before it would always hold it back.
            partial = progress.partial is not None
            if now - (job.last_partial if partial else job.last_progress) >= _PROGRESS_SECONDS:
                job.last_progress = now
                job.last_partial = now if partial else job.last_partial
                self._send(Kind.PROGRESS, job.id, codec.encode(progress))
            return True
        except MemlocError as error:  # also for a result that no frame can hold
            failure = error
        except Exception as error:
            traceback.print_exc()  # into the log
            text = f"The engine failed on {type(job.request).__name__}: {type(error).__name__}: {error}"
            failure = MemlocError(text)
            lost = _is_lost(error)
        finally:
            with self._lock:
                self._running = 0
        if lost:  # nothing more can be asked of this process; the next question starts another
            self._send(Kind.FAILURE, job.id, _failure(failure))
            os._exit(1)
        if job.steps is not None:
            job.steps.close()
        self._send(Kind.FAILURE, job.id, _failure(failure))
        return False

    def _send(self, kind: Kind, id_: int, body: bytes) -> None:
        frame = frames.pack(kind, id_, body)
        with self._lock:
            try:
                self._sink.write(frame)
                self._sink.flush()
            except OSError:  # nobody listens any more
                os._exit(0)

    def _read(self) -> None:
        try:
            while header := self._exactly(frames.HEADER.size):
                kind, id_, size = frames.unpack_header(header)
                body = self._exactly(size)
                if kind is Kind.ASK:
                    self._asked(id_, body)
                elif kind is Kind.CANCEL:
                    self._cancel(id_)
                elif kind in (Kind.PAUSE, Kind.RESUME):
                    self._inbox.put((id_, kind is Kind.PAUSE))
        except frames.FrameError as error:  # a broken peer: nothing that follows can be trusted
            print(f"memloc engine: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        os._exit(0)

    def _asked(self, id_: int, body: bytes) -> None:
        try:
            request = codec.decode(body)
            if not isinstance(request, Request):
                raise codec.CodecError(f"{type(request).__name__} is no request.")
        except codec.CodecError as error:
            self._send(Kind.FAILURE, id_, _failure(error))
        else:
            self._inbox.put((id_, request))

    def _cancel(self, id_: int) -> None:
        with self._lock:
            if self._running == id_ and self._engine.lm is not None:
                self._engine.lm.cancelled.set()  # the model's hooks raise Cancelled at its next block
        self._inbox.put((id_, None))
        if self._running != id_:
            self._send(Kind.FAILURE, id_, _failure(Cancelled("Cancelled.")))

    def _exactly(self, size: int) -> bytes:
        """`size` bytes, or none at the end of input."""
        data = self._source.read(size)
        return data if len(data) == size else b""


def _failure(error: MemlocError) -> bytes:
    return json.dumps({"error": type(error).__name__, "message": str(error)}).encode()


def _is_lost(error: Exception) -> bool:
    devices = sys.modules.get("memloc_core.devices")
    return devices is not None and bool(devices.is_lost(error))


def _die_with_parent(parent: int) -> None:
    """Ask Linux for a KILL when the parent's thread ends; elsewhere the end of stdin has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had already gone before the kernel knew of our wish
        os._exit(0)


def _give_back_memory() -> None:
    """The allocators keep what the largest analysis took; they give it back when asked (glibc's does)."""
    if "memloc_core.devices" in sys.modules:
        sys.modules["memloc_core.devices"].give_back()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """`python -m memloc_core.worker PARENT`: PARENT is the process that must be our parent."""
    _die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the explorer's to handle
    os.nice(5)  # both cores may be busy here while a key is pressed there
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP threads that spin at a barrier while another process holds their core made a sweep 20 times slower on a
    # two-core machine with one busy core, and keys slow. After 1,000 rounds they sleep; where nobody else wants the
    # cores that costs short steps a third of their speed, so commands have them spin longer (commands/console.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Libraries print; descriptor 1 is the protocol's alone.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    Worker(sys.stdin.buffer, sink).serve()


if __name__ == "__main__":
    main()
