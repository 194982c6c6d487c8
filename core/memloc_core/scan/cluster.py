"""The engines of a scan on a Ray cluster: the same requests, mapped by Ray Data over actors that hold the model.

A worker that dies is started again by Ray, and only the request it was at is asked again. Corpus, checkpoint and the
scan's folder must lie at the same path on every machine. Imports ray only when asked to, and torch only on the workers.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from memloc_core import codec
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import Answer, Progress, Request

_FAILED = b'{"error"'


class Worker:
    """An engine in a Ray actor: requests and answers as the codec's bytes, since Ray would pickle anything else."""

    def __init__(self) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._engine = importlib.import_module("memloc_core.engine").Engine()
        self._opened = b""

    def open(self, opening: bytes) -> bytes:
        """Open the model, once; its answer, or what went wrong."""
        self._opened = self._opened or self._answer(opening)
        return self._opened

    def __call__(self, batch: Any) -> Any:
        """Ray Data's call: an Arrow table of one row. Not numpy, which cuts zeros off the end of bytes."""
        import pyarrow as pa

        opened = self.open(batch["opening"][0].as_py())
        if not opened.startswith(_FAILED) and codec.decode(opened).result.identity != batch["identity"][0].as_py():
            opened = _failure(MemlocError("The model is another one on this node than on the one asked first."))
        answer = opened if opened.startswith(_FAILED) else self._answer(batch["request"][0].as_py())
        return pa.table({"number": batch["number"], "answer": pa.array([answer], pa.large_binary())})

    def _answer(self, request: bytes) -> bytes:
        """The Answer, or what went wrong as JSON."""
        try:
            return codec.encode(self._engine.answer(codec.decode(request)))
        except MemlocError as error:
            return _failure(error)


class RayEngines:
    """`workers` actors with `gpus` GPUs each (which may be a share of one), or with `cpus` cores each."""

    def __init__(self, address: str, opening: Request, workers: int, gpus: float, cpus: int = 1) -> None:
        """Raises UsageError where ray is not installed, MemlocError where the cluster does not answer."""
        warnings.filterwarnings("ignore", module="ray")
        try:
            import ray
            import ray.data
        except ImportError:
            raise UsageError("--engine ray needs ray: pip install '.[cluster]' in the checkout.") from None
        self._ray = ray
        self._opening, self._identity = codec.encode(opening), ""  # of the model, once it was opened
        self._workers = workers
        self._options: dict[str, Any] = {"num_gpus": gpus} if gpus else {}
        self._options["num_cpus"] = cpus
        if not ray.is_initialized():
            quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
            try:
                ray.init(**({"address": address} if address else {"include_dashboard": False}), **quiet)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise MemlocError(f"No Ray cluster answers at {address or 'this machine'}: {reason}") from None
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        self._check_resources()

    def open(self) -> Answer[Any]:
        """The answer to the opening request, from one worker that then makes room again."""
        actor = self._ray.remote(**self._options)(Worker).remote()
        try:
            answer = _decoded(self._ray.get(actor.open.remote(self._opening)))
            self._identity = answer.result.identity
            return answer
        except self._ray.exceptions.RayError as error:
            raise MemlocError(f"A Ray worker could not start: {str(error).strip().splitlines()[-1]}") from None
        finally:
            self._ray.kill(actor)

    async def answers(
        self, requests: Iterator[tuple[int, Request]], on_progress: Callable[[int, Progress], None]
    ) -> AsyncIterator[tuple[int, Answer[Any]]]:
        """See `job.Engines`. Ray's workers tell no progress within a request."""
        same = {"opening": self._opening, "identity": self._identity}
        items = [{"number": n, "request": codec.encode(request), **same} for n, request in requests]
        if not items:
            return
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[tuple[int, bytes] | BaseException | None] = asyncio.Queue()

        def tell(what: Any) -> None:
            loop.call_soon_threadsafe(found.put_nowait, what)

        def work() -> None:
            try:
                data = self._ray.data.from_items(items, override_num_blocks=len(items))
                # Ray Data starts an actor that died again, and asks it again: that is its default.
                done = data.map_batches(
                    Worker,
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=self._ray.data.ActorPoolStrategy(size=min(self._workers, len(items))),
                    **self._options,
                )
                for table in done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                    for row in table.to_pylist():
                        tell((row["number"], row["answer"]))
                tell(None)
            except BaseException as error:
                tell(error)

        threading.Thread(target=work, name="ray data", daemon=True).start()
        while (one := await found.get()) is not None:
            if isinstance(one, BaseException):
                reason = (str(one).strip().splitlines() or [type(one).__name__])[-1]
                raise MemlocError(f"Ray gave up: {reason}")
            yield one[0], _decoded(one[1])

    def close(self) -> None:
        self._ray.shutdown()

    def _check_resources(self) -> None:
        """A request that the cluster can never serve would wait for ever."""
        have = self._ray.cluster_resources()
        for name, resource in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
            wanted, there = self._options.get(name, 0), have.get(resource, 0)
            if wanted * self._workers > there:
                raise UsageError(
                    f"{self._workers} workers with {wanted:g} {resource} each want {wanted * self._workers:g}, and the "
                    f"Ray cluster has {there:g}; give fewer --workers or another --gpus-per-worker."
                )


def _failure(error: MemlocError) -> bytes:
    return json.dumps({"error": type(error).__name__, "message": str(error)}).encode()


def _decoded(data: bytes) -> Answer[Any]:
    if data.startswith(_FAILED):
        failure = json.loads(data)
        raise (UsageError if failure["error"] == "UsageError" else MemlocError)(failure["message"])
    answer: Answer[Any] = codec.decode(data)
    return answer
