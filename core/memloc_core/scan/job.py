"""A scan from its first question to its last: what is still to do, whom to ask, and what to keep.

    find -> plan -> every block -> assemble -> score the kept windows -> count them in every block -> assemble

Each arrow is on disk before the next begins, and within one every block is, so that the same call after any kill does
what is left and nothing twice. Imports no torch: the work is done by the engines.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from memloc_core import hub
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import (
    SCAN_STRATA,
    Answer,
    AssembleScan,
    Block,
    CorpusFiles,
    CountBlock,
    FindCorpus,
    ModelInfo,
    PlanScan,
    Progress,
    Request,
    ScanBlock,
    ScanPlan,
    ScanReport,
    ScoreWindows,
    scan_stratum,
)
from memloc_core.scan.folder import SCORED_TOGETHER, ScanFolder

Ask = Callable[[Request, Callable[[Progress], None] | None], Awaitable[Answer[Any]]]
Numbered = Iterator[tuple[int, Request]]

_REFRESH = 2.0  # seconds between two states of the set, at least
_REFRESH_SHARE = 0.05  # of the time that may go into them
_BLOCK_SECONDS = 20.0  # what a kill may cost
_RATES = {"cpu": 5e10, "mps": 2e12, "cuda": 3e13}  # operations per second, roughly: only the blocks' size hangs on it


class Engines(Protocol):
    """Engine processes, here or on other machines, all with the same model or all without one."""

    def answers(
        self, requests: Numbered, on_progress: Callable[[int, Progress], None]
    ) -> AsyncIterator[tuple[int, Answer[Any]]]:
        """The answers as they come, each with its request's number. An engine that dies costs only what it was at."""
        ...


@dataclass(frozen=True)
class ScanOptions:
    """What decides which rows the set holds. `keep`: per stratum of SCAN_STRATA how many, -1 for all."""

    column: str = ""
    window: int = 100
    stride: int = 50
    prefix_length: int = 50
    min_unique: float = 0.5
    keep: tuple[int, ...] = (-1, -1, 1000)
    seed: int = 0
    nll: bool = False
    count_duplicates: bool = False
    limit: int = 0
    begin_of_text: bool = False

    def check(self) -> None:
        """Raises UsageError."""
        if not 0 < self.prefix_length < self.window:
            raise UsageError(
                f"A window of {self.window} tokens cannot have a prefix of {self.prefix_length}: "
                "something has to follow it."
            )
        if not 0 <= self.min_unique <= 1:
            raise UsageError("--min-unique is a share of the window's tokens, 0 to 1.")


def keep_of(text: str) -> tuple[int, ...]:
    """`memorized,partly,non-memorized:1000` as how many of each stratum. Raises UsageError."""
    keep = dict.fromkeys(SCAN_STRATA, 0)
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if name not in keep or (colon and not (number.isdecimal() and int(number) > 0)):
            raise UsageError(
                f"--keep {text!r}: {part.strip()!r} is none of {', '.join(SCAN_STRATA)}, each alone or with a number, "
                "as in non-memorized:1000."
            )
        keep[name] = int(number) if colon else -1
    return tuple(keep.values())


@dataclass(frozen=True)
class ScanState:
    """How far a scan is, for whoever watches. Rates are of this sitting."""

    phase: str
    done: float  # of `total`
    total: float
    windows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rows: int = 0  # kept so far


class Scan:
    """One scan into `folder.out`. `model` is the checkpoint's folder, `ask` an engine that needs no model."""

    def __init__(
        self,
        folder: ScanFolder,
        corpus: str,
        model: str,
        options: ScanOptions,
        ask: Ask,
        on_state: Callable[[ScanState], None] = lambda state: None,
    ) -> None:
        options.check()
        self.folder, self.options = folder, options
        self._corpus, self._model, self._ask, self._on_state = corpus, model, ask, on_state
        self._files: CorpusFiles | None = None
        self._plan: ScanPlan | None = None
        self._seconds = 0.0

    async def find(self, *, anew: bool = False) -> None:
        """Look for the corpus; raises UsageError where there is none, or no begin-of-text token that is asked for.

        One on the hub stays at the commit that its scan was begun with, unless that begins `anew`.
        """
        commit = ""
        if hub.is_on_hub(self._corpus) and self.folder.begun and not anew:
            begun = self.folder.manifest()
            if begun["corpus"] == self._corpus and begun["files"]:
                commit = hub.HubFile(begun["files"][0]).commit
        request = FindCorpus(self._corpus, self._model, commit, self.options.begin_of_text)
        self._files = (await self._ask(request, None)).result

    async def begin(self, info: ModelInfo, block_tokens: int = 0, *, replace: bool = False) -> None:
        """Plan the scan, or take up the one that was begun; `replace`: begin anew, whatever is there.

        `block_tokens`: about how many tokens a block has, 0 for what the model reads in some 20 seconds.
        Raises UsageError, naming what is not as it was when the scan was begun.
        """
        assert self._files is not None
        out, corpus = self.folder.out.resolve(), Path(self._corpus).expanduser().resolve()
        if str(out) in self._files.files:
            raise UsageError(f"{self.folder.out} is a file of the corpus itself; give another --out.")
        if corpus.is_dir() and out.is_relative_to(corpus):  # its files would be new in the corpus when it goes on
            raise UsageError(f"{self.folder.out} would lie in the corpus itself; give an --out outside of {corpus}.")
        begins = self._files.begin >= 0
        if info.positions and self.options.window + begins > info.positions:
            raise UsageError(
                f"A window of {self.options.window} tokens{' after the begin-of-text token' if begins else ''} is more "
                f"than the {info.positions} that {info.name} can read."
            )
        if self.folder.begun and not replace:
            self._compare(self.folder.manifest(), info)
            self._plan = self.folder.plan()
            return
        for file in (self.folder.out, self.folder.counts):  # NAME.counts.npy may be of a set NAME.jsonl
            if file.exists() and not replace:
                raise UsageError(f"{file} is there already; give another --out, or --restart to replace it.")
        if block_tokens <= 0:
            block_tokens = int(_RATES.get(info.device.split(":")[0], 5e10) * _BLOCK_SECONDS / (2 * info.parameters + 1))
            block_tokens = max(8_192, min(8 << 20, block_tokens))
        options = self.options
        request = PlanScan(self._files.files, self._model, options.column, options.limit, 4 * block_tokens)

        def heard(progress: Progress) -> None:
            self._on_state(ScanState("reading the corpus", progress.done, progress.total))

        self._plan = (await self._ask(request, heard)).result
        manifest = {
            "corpus": self._corpus,
            "files": self._files.files,
            "states": self._files.states,
            "tokenizer": self._files.tokenizer,
            "model": {"name": self._model, **_identity(info)},
            "options": asdict(options),
        }
        try:
            if replace:
                self.folder.clear()  # not before all else is well: what is refused costs no finished block
            self.folder.begin(manifest, self._plan)
        except OSError as error:
            raise MemlocError(f"{self.folder.path} cannot be written: {error.strerror or error}.") from None

    def todo(self, part: str) -> list[int]:
        """The numbers of what is still to be done of "blocks", "scores" or "counts"."""
        assert self._plan is not None
        done = set(self.folder.done(part))
        total = len(self._plan)
        if part == "scores":
            import numpy as np

            total = -(-len(np.load(self.folder.windows, mmap_mode="r")) // SCORED_TOGETHER)
        return [number for number in range(total) if number not in done]

    async def scan_blocks(self, engines: Engines, threads: int = 0) -> None:
        """Scan what is left of the blocks, and let the set follow."""
        plan, options, files = self._plan, self.options, self._files
        assert plan is not None
        assert files is not None
        lowest = _Lowest(options)
        for number in self.folder.done("blocks"):
            lowest.add(self.folder.read("blocks", number))
        todo = self.todo("blocks")

        def requests() -> Numbered:
            for number in todo:
                yield (
                    number,
                    ScanBlock(
                        self._block(number),
                        options.window,
                        options.stride,
                        options.prefix_length,
                        options.min_unique,
                        options.keep,
                        lowest.below(),
                        options.seed,
                        options.nll,
                        threads,
                        files.begin,
                    ),
                )

        total, began = float(plan.size.sum()), time.monotonic()
        finished = total - float(plan.size[todo].sum())
        under_way: dict[int, Progress] = {}
        windows = tokens = 0
        rows = lowest.rows

        def tell() -> None:
            parts = sum(float(plan.size[n]) * p.done / max(1, p.total) for n, p in under_way.items())
            scored = windows + sum(p.done for p in under_way.values())
            spent = time.monotonic() - began
            each = tokens / windows if windows else options.stride
            self._on_state(ScanState("scanning", finished + parts, total, scored, int(scored * each), spent, rows))

        def heard(number: int, progress: Progress) -> None:
            under_way[number] = progress
            tell()

        tell()
        refreshing = _Refreshing(lambda: self._assemble())
        try:
            async for number, answer in engines.answers(requests(), heard):
                block = answer.result
                self.folder.keep("blocks", number, block)
                lowest.add(block)
                rows = lowest.rows
                under_way.pop(number, None)
                finished += float(plan.size[number])
                windows, tokens = windows + block.windows, tokens + block.tokens_read
                tell()
                refreshing.now_and_then()
        finally:
            await refreshing.end()

    async def score(self, engines: Engines, threads: int = 0) -> None:
        """Margin and NLL of the kept windows, each scored by itself."""
        if not self.folder.windows.is_file():
            await self._assemble(windows=True)
        import numpy as np

        k, windows, options = len(np.load(self.folder.windows, mmap_mode="r")), str(self.folder.windows), self.options
        assert self._files is not None
        todo, begin = self.todo("scores"), self._files.begin

        def requests() -> Numbered:
            for number in todo:
                start = number * SCORED_TOGETHER
                stop = min(k, start + SCORED_TOGETHER)
                yield number, ScoreWindows(windows, start, stop, options.prefix_length, threads, begin)

        await self._all("scores", "scoring what is kept", requests(), engines, len(todo))

    async def count(self, engines: Engines) -> None:
        """The exact repetitions of the kept windows, by engines without a model."""
        todo, windows = self.todo("counts"), str(self.folder.windows)
        requests = ((number, CountBlock(self._block(number), windows)) for number in todo)
        await self._all("counts", "counting repetitions", requests, engines, len(todo))

    async def finish(self) -> ScanReport:
        """The whole set; the folder goes."""
        report = await self._assemble(complete=True)
        self.folder.remove()
        return report

    async def _all(self, part: str, phase: str, requests: Numbered, engines: Engines, total: int) -> None:
        began, done = time.monotonic(), 0
        under_way: dict[int, float] = {}

        def tell() -> None:
            self._on_state(ScanState(phase, done + sum(under_way.values()), total, seconds=time.monotonic() - began))

        def heard(number: int, progress: Progress) -> None:
            under_way[number] = progress.done / max(1, progress.total)
            tell()

        async for number, answer in engines.answers(requests, heard):
            self.folder.keep(part, number, answer.result)
            under_way.pop(number, None)
            done += 1
            tell()

    async def _assemble(self, windows: bool = False, complete: bool = False) -> ScanReport:
        request = AssembleScan(str(self.folder.path), str(self.folder.out), windows, complete)
        report: ScanReport = (await self._ask(request, None)).result
        return report

    def _block(self, number: int) -> Block:
        plan, files = self._plan, self._files
        assert plan is not None
        assert files is not None
        place = int(plan.file[number]), int(plan.start[number]), int(plan.documents[number]), int(plan.first[number])
        return Block(files.files[place[0]], plan.column, *place[1:], self._model)

    def _compare(self, begun: dict[str, Any], info: ModelInfo) -> None:
        """Raise UsageError where the scan that was begun is not the one that is asked for now."""
        assert self._files is not None
        changed = []
        now, then = asdict(self.options), asdict(ScanOptions()) | begun["options"]  # of a version that had not all
        for name in now:
            before = tuple(then[name]) if isinstance(then.get(name), list) else then.get(name)
            if now[name] != before:
                changed.append(
                    f"--{_OPTION_NAMES.get(name, name.replace('_', '-'))} was {_said(name, before)}, "
                    f"now it is {_said(name, now[name])}"
                )
        states = dict(zip(begun["files"], begun["states"], strict=True))
        found = dict(zip(self._files.files, self._files.states, strict=True))
        changed += [f"{file} has changed" for file in states if file in found and states[file] != found[file]]
        changed += [f"{file} is gone" for file in states if file not in found]
        changed += [f"{file} is new in the corpus" for file in found if file not in states]
        if not changed and tuple(begun["files"]) != self._files.files:
            changed.append("the corpus' files have another order")
        if begun["tokenizer"] != self._files.tokenizer:
            changed.append("the model's tokenizer has changed")
        for name, value in _identity(info).items():
            if begun["model"].get(name, value) != value:
                changed.append(f"the model's {name} was {begun['model'].get(name)!s:.16}, now it is {value:.16}")
        if changed:
            more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UsageError(
                f"The scan into {self.folder.out} that is under way cannot go on: {'; '.join(changed[:3])}{more}. "
                "Ask as before, give another --out, or begin anew with --restart."
            )


_OPTION_NAMES = {"column": "text-column"}


def _said(name: str, value: Any) -> str:
    if name == "keep" and value is not None:
        parts = (f"{s}:{n}" if n > 0 else s for s, n in zip(SCAN_STRATA, value, strict=True) if n)
        return ",".join(parts)
    return str(value)


def _identity(info: ModelInfo) -> dict[str, str]:
    return {
        "weights": info.fingerprint,
        "dtype": info.dtype,
        "device": info.device.split(":")[0],
        "attention": info.attention,
        "configuration": info.identity,  # with all of the above
    }


class _Lowest:
    """The lowest orders seen of each stratum that is sampled: what cannot be among them any more need not be kept."""

    def __init__(self, options: ScanOptions) -> None:
        self._keep, self._c = options.keep, options.window - options.prefix_length
        self._heaps: list[list[int]] = [[] for _ in options.keep]  # of negated orders
        self._all = 0

    def add(self, block: Any) -> None:
        strata = scan_stratum(block.em, self._c)
        for stratum, (most, heap) in enumerate(zip(self._keep, self._heaps, strict=True)):
            if most < 0:
                self._all += int((strata == stratum).sum())
                continue
            for order in block.order[strata == stratum].tolist():
                if len(heap) < most:
                    heapq.heappush(heap, -order)
                elif heap and order < -heap[0]:
                    heapq.heapreplace(heap, -order)

    def below(self) -> tuple[int, ...]:
        full = zip(self._keep, self._heaps, strict=True)
        return tuple(-heap[0] if 0 < most == len(heap) else -1 for most, heap in full)

    @property
    def rows(self) -> int:
        return self._all + sum(map(len, self._heaps))


class _Refreshing:
    """Brings the set up to date beside the scan, so rarely that it takes a small share of the time."""

    def __init__(self, refresh: Callable[[], Awaitable[Any]]) -> None:
        self._refresh = refresh
        self._task: asyncio.Task[None] | None = None
        self._next = 0.0

    def now_and_then(self) -> None:
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            task.result()  # a full disk is said now
        if self._task is None and time.monotonic() >= self._next:
            self._task = asyncio.create_task(self._once())

    async def _once(self) -> None:
        began = time.monotonic()
        await self._refresh()
        ended = time.monotonic()
        self._next = ended + max(_REFRESH, (ended - began) / _REFRESH_SHARE)

    async def end(self) -> None:
        if self._task is not None:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
