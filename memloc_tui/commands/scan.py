"""`memloc-tui scan`: the engines of a scan, here or on a Ray cluster, and what a person sees of it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TextColumn
from rich.text import Text

from memloc_core import hub, sources
from memloc_core.codec import to_json
from memloc_core.errors import EngineDied, MemlocError, UsageError
from memloc_core.requests import (
    SCAN_STRATA,
    Answer,
    FindCorpus,
    ListDevices,
    ModelInfo,
    OpenModel,
    Progress,
    Request,
    ScanReport,
    scan_stratum,
)
from memloc_core.scan.folder import ScanFolder
from memloc_core.scan.job import Scan, ScanOptions, ScanState
from memloc_tui.commands.console import Ending, Out, print_json, table_of
from memloc_tui.engine_client import EngineClient
from memloc_tui.files import check_can_be_written
from memloc_tui.glyphs import visible
from memloc_tui.settings import Settings
from memloc_tui.state import state_dir

_TRIES = 3  # a block that three engines died of is not scanned a fourth time
_LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Where:
    """Which engines scan."""

    engine: str = "local"  # or "ray"
    workers: int = 0  # processes; 0: one, or one for each GPU
    address: str = ""  # of a Ray cluster; "" starts one on this machine
    gpus_per_worker: float = 0.0


class LocalEngines:
    """Engine processes of this machine."""

    def __init__(self, clients: list[EngineClient], on_notice: Callable[[str], None]) -> None:
        self._clients, self._on_notice = clients, on_notice

    async def answers(
        self, requests: Iterator[tuple[int, Request]], on_progress: Callable[[int, Progress], None]
    ) -> AsyncIterator[tuple[int, Answer[Any]]]:
        """See `memloc_core.scan.job.Engines`."""
        found: asyncio.Queue[tuple[int, Answer[Any]] | None] = asyncio.Queue()

        async def work(client: EngineClient) -> None:
            for number, request in requests:  # shared: whoever is free takes the next
                await found.put((number, await self._ask(client, number, request, on_progress)))

        async def all_of_them() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for client in self._clients:
                        group.create_task(work(client))
            finally:
                found.put_nowait(None)

        working = asyncio.create_task(all_of_them())
        try:
            while (one := await found.get()) is not None:
                yield one
            await working
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _ask(
        self, client: EngineClient, number: int, request: Request, on_progress: Callable[[int, Progress], None]
    ) -> Answer[Any]:
        for left in reversed(range(_TRIES)):
            try:
                return await client.ask(request, lambda progress: on_progress(number, progress))
            except EngineDied as error:
                if not left:
                    raise
                self._on_notice(f"{str(error).split('.')[0]}; its block {number} is done again.")
        raise AssertionError


def corpus_of(corpus: str, stream: bool) -> str:
    """What `scan` is asked for: `stream` reads from the hub, and nothing else does. Raises UsageError."""
    if not stream:
        if hub.is_on_hub(corpus):
            raise UsageError("A data set is read from the hub where that is asked for: --stream ORG/NAME.")
        return corpus
    if sources.data_set(corpus) is None:
        raise UsageError(f"--stream: {corpus!r} is no name of a data set on the hub, such as ORG/NAME@CONFIG:SPLIT.")
    hub.refuse_offline()
    return hub.on_hub(corpus)


def scan(
    settings: Settings,
    corpus: str,
    out: Path,
    options: ScanOptions,
    where: Where,
    block_tokens: int,
    restart: bool,
    as_json: bool,
) -> None:
    """Scan a corpus into a set of paragraphs, or go on with the scan into it that was stopped."""
    options.check()
    if settings.edits:
        raise UsageError(
            "A scan asks the model as it is; to scan an edited one, export it and give --model its folder."
        )
    if out.suffix.lower() != ".parquet":
        raise UsageError(f"--out {out}: the set is a .parquet file.")
    check_can_be_written(out)
    model = str(sources.model_folder(settings.model, settings.revision))
    folder = ScanFolder(out.absolute())
    console = Console(stderr=True)
    shown = _Shown(console)

    def notice(text: str) -> None:
        console.print(Text(f"memloc-tui: {visible(text)}"))

    ending = Ending()

    async def main() -> tuple[ScanReport, float]:
        ending.watch()
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            clerk = await _client(stack, FindCorpus(corpus, model))
            work = Scan(folder, corpus, model, options, clerk.ask, shown.update)
            await work.find(anew=restart)
            shown.update(ScanState("opening the model", 0, 0))
            async with AsyncExitStack() as engines_stack:
                info, engines, threads = await _engines(engines_stack, settings, where, notice)
                await work.begin(info, block_tokens, replace=restart)
                await work.scan_blocks(engines, threads)
                await work.score(engines, threads)
                if options.count_duplicates and where.engine == "ray":
                    await work.count(engines)
            if options.count_duplicates and where.engine != "ray":
                more = [await _client(stack, FindCorpus(corpus, model)) for _ in range(max(1, where.workers) - 1)]
                await work.count(LocalEngines([clerk, *more], notice))
            return await work.finish(), time.monotonic() - began

    try:
        with folder.locked(), shown:
            report, seconds = asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(
            f"memloc-tui: stopped; {len(folder.done('blocks')):,} finished blocks are kept, and the same command goes "
            "on from there.",
            err=True,
        )
        sys.exit(ending.code)
    _tell(report, seconds, folder, options, as_json)


async def _client(stack: AsyncExitStack, opening: Request) -> EngineClient:
    client = EngineClient(opening, state_dir() / "engine.log")
    stack.push_async_callback(client.close)
    await client.start()
    return client


async def _engines(
    stack: AsyncExitStack, settings: Settings, where: Where, notice: Callable[[str], None]
) -> tuple[ModelInfo, Any, int]:
    """The opened model, its engines, and the threads that each may use (0: all)."""
    opening = OpenModel(settings.model, settings.dtype, settings.device, settings.revision)
    if where.engine == "ray":
        from memloc_core.scan.cluster import RayEngines

        cluster = await asyncio.to_thread(
            RayEngines, where.address, opening, max(1, where.workers), where.gpus_per_worker
        )
        stack.callback(cluster.close)
        return (await asyncio.to_thread(cluster.open)).result, cluster, 0
    first = await _client(stack, opening)
    info = await _opened(first)
    devices = [settings.device] * max(1, where.workers)
    cores = os.cpu_count() or 1
    threads = max(1, cores // where.workers) if where.workers > 1 else 0
    if info.device.startswith("cuda"):
        threads = 0
        if settings.device in ("auto", "cuda"):
            names = (await first.ask(ListDevices())).result.names
            devices = list(names[: where.workers or len(names)])
    others = [await _client(stack, replace(opening, device=device)) for device in devices[1:]]
    for client in others:
        other = await _opened(client)
        if other.identity != info.identity:
            raise MemlocError(f"The model opened otherwise on {other.device} than on {info.device}.")
    return info, LocalEngines([first, *others], notice), threads


async def _opened(client: EngineClient) -> ModelInfo:
    assert client.opened is not None
    info: ModelInfo = (await asyncio.shield(client.opened)).result
    return info


class _Shown:
    """One line that says how far the scan is, on a terminal; a plain line now and then anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[said]}"))
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("looking for the corpus", total=None, said="")
        self._next = time.monotonic() + _LINE_SECONDS
        self._began: tuple[str, float, float] = ("", 0.0, 0.0)  # phase, when, how much was done already

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, state: ScanState) -> None:
        now = time.monotonic()
        if state.phase != self._began[0]:
            self._began = (state.phase, now, state.done)
        said = self._said(state, now)
        self._bar.update(
            self._task, description=state.phase, completed=state.done, total=state.total or None, said=said
        )
        if not self._console.is_terminal and now >= self._next:
            self._next = now + _LINE_SECONDS
            click.echo(f"memloc-tui: {state.phase} {said}", err=True)

    def _said(self, state: ScanState, now: float) -> str:
        parts = []
        if state.total:
            parts.append(f"{100 * state.done / state.total:.1f} %")
        if state.seconds > 0 and state.windows:
            parts.append(f"{state.windows / state.seconds:,.0f} windows/s")
            parts.append(f"{state.tokens / state.seconds:,.0f} tokens/s")
        done, spent = state.done - self._began[2], now - self._began[1]
        if done > 0 and spent > 1:
            left = timedelta(seconds=round((state.total - state.done) * spent / done))
            parts.append(f"{left} left")
        if state.rows:
            parts.append(f"{state.rows:,} kept")
        return " · ".join(parts)


def _tell(report: ScanReport, seconds: float, folder: ScanFolder, options: ScanOptions, as_json: bool) -> None:
    if as_json:
        print_json(
            to_json({**to_json(report), "out": str(folder.out), "counts": str(folder.counts), "seconds": seconds})
        )
        return
    import numpy as np

    c = options.window - options.prefix_length
    strata = scan_stratum(np.arange(c + 1), c)
    table = table_of("stratum", "EM", "windows", "share", "kept")
    for index, name in enumerate(SCAN_STRATA):
        ems = [em for em in range(c + 1) if strata[em] == index]
        found = sum(int(report.ems[em]) for em in ems)
        span = f"{ems[0]}" if len(ems) == 1 else f"{ems[0]}..{ems[-1]}" if ems else "–"
        share = f"{found / report.windows:.3%}" if report.windows else "–"
        table.add_row(name, span, f"{found:,}", share, f"{int(report.kept[index]):,}")
    out = Out()
    out.print(table)
    left_out = [
        f"{number:,} {what}"
        for number, what in (
            (report.repetitive, "windows of too few distinct tokens"),
            (report.short, "documents shorter than a window"),
            (report.empty, "empty documents"),
        )
        if number
    ]
    click.echo(
        f"{report.windows:,} windows of {report.documents:,} documents, {report.tokens:,} tokens"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
        + f". {report.tokens / max(report.scoring, 1e-9):,.0f} tokens/s through the model, "
        f"{report.tokens / max(report.reading, 1e-9):,.0f} tokens/s read and tokenized beside it."
    )
    if report.changed:
        click.echo(f"{report.changed:,} exact matches came out otherwise when scored one by one; those are in the set.")
    begins = "--begin-of-text " if options.begin_of_text else ""
    click.echo(f"Open it: memloc-tui {begins}--paragraphs {folder.out}")
