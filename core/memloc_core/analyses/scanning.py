"""One block of a corpus: every window's exact match, the windows to keep, and the sums."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Progress, ScanBlock, ScannedBlock, ScoredWindows, ScoreWindows, scan_stratum
from memloc_core.scan.kernel import exact_matches, one_by_one
from memloc_core.scan.windows import Reading, Windows, ahead, order_of, read_block, windows_of

_WINDOWS = 4096  # scored together, or as many more as a few documents give
_GATHERED = 8  # times as many, of which those that may be wanted wait to be cut again


def run(lm: LanguageModel, request: ScanBlock) -> Generator[Progress, None, ScannedBlock]:
    """Raises UsageError for windows that the model cannot read, and for what is wrong in the corpus."""
    c = request.window - request.prefix_length
    if request.prefix_length < 1 or c < 1 or request.stride < 1:
        raise UsageError("A window needs a prefix, a continuation and a stride of at least one token each.")
    begins = int(request.begin >= 0)  # tokens before the window, which the prefix has more
    lm.check_tokens((request.begin,) * begins, request.window + begins)
    p = request.prefix_length + begins
    if request.threads and lm.device.type == "cpu":
        torch.set_num_threads(request.threads)
    reading = Reading(lm.info.vocabulary)
    ems, nlls = np.zeros(c + 1, np.int64), np.zeros(c + 1)
    kept: list[tuple[Any, ...]] = []
    repetitive = short = done = 0
    scoring = 0.0
    for windows in ahead(_together(request, reading)):
        repetitive += windows.repetitive
        short += windows.short
        rows = _begun(windows.tokens, request.begin)
        em, nll = np.zeros(len(rows), np.int64), np.zeros(len(rows))

        def score(start: int, stop: int, rows: Any = rows, em: Any = em, nll: Any = nll) -> None:
            with torch.inference_mode():
                if request.nll:
                    scores = lm.score(rows[start:stop], p)
                    lm.refuse_no_numbers(scores.nll)
                    targets = rows[start:stop, p:].to(lm.device)
                    em[start:stop] = scores.exact_match(targets).cpu()
                    nll[start:stop] = scores.nll.cpu().double().mean(-1)
                else:
                    em[start:stop] = exact_matches(lm, rows[start:stop], p)

        steps = lm.in_batches(score, len(rows), request.window + begins)
        while True:
            began = time.perf_counter()
            scored = next(steps, None)
            scoring += time.perf_counter() - began
            if scored is None:
                break
            coming = (done + len(rows)) * request.block.documents // max(1, reading.documents)
            yield Progress(done + scored, max(done + scored, coming), "windows")
        done += len(rows)
        ems += np.bincount(em, minlength=c + 1)
        nlls += np.bincount(em, nll, minlength=c + 1)
        kept.append(_kept(request, windows, em))
        if len(kept) == _GATHERED:
            kept = [_cut(request, kept)]
    tokens, em, document, offset, order = _cut(request, kept)
    seen = reading.counts.nonzero()[0]
    return ScannedBlock(
        tokens=tokens,
        em=em,
        document=document,
        offset=offset,
        order=order,
        ems=ems,
        nlls=nlls,
        seen=seen.astype(np.int64),
        counts=reading.counts[seen],
        windows=done,
        repetitive=repetitive,
        short=short,
        empty=reading.empty,
        tokens_read=reading.tokens,
        digest=reading.digest(),
        reading=reading.seconds,
        scoring=scoring,
    )


def run_scores(lm: LanguageModel, request: ScoreWindows) -> Generator[Progress, None, ScoredWindows]:
    """Raises UsageError where the file of windows cannot be read, or holds none of those that are asked for."""
    if request.threads and lm.device.type == "cpu":
        torch.set_num_threads(request.threads)
    try:
        windows = np.load(Path(request.windows), mmap_mode="r")[request.start : request.stop]
    except (OSError, ValueError) as error:
        raise UsageError(f"{request.windows} cannot be read: {error}.") from None
    if not len(windows):
        raise UsageError(f"{request.windows} holds no window from {request.start} up to {request.stop}.")
    rows, p = _begun(windows, request.begin), request.prefix_length + (request.begin >= 0)
    parts = []
    for start in range(0, len(rows), 32):
        some = rows[start : start + 32]
        with torch.inference_mode():
            parts.append([column.cpu() for column in one_by_one(lm, some, p)])
        yield Progress(start + len(some), len(rows), "windows")
    em, margin, nll = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return ScoredWindows(em, margin.astype(np.float32), nll.astype(np.float32))


def _begun(windows: Any, begin: int) -> torch.Tensor:
    """Windows [n, w] as the model reads them, [n, w] or [n, 1 + w]."""
    rows = torch.from_numpy(windows.astype(np.int64))
    return rows if begin < 0 else torch.cat([torch.full((len(rows), 1), begin), rows], 1)


def _together(request: ScanBlock, reading: Reading) -> Iterator[Windows]:
    """The block's windows, so many together that the model's batches are full."""
    waiting: list[Windows] = []
    first = request.block.first
    for documents in read_block(request.block, reading):
        began = time.perf_counter()
        waiting.append(windows_of(documents, first, request.window, request.stride, request.min_unique, request.begin))
        reading.seconds += time.perf_counter() - began
        first += len(documents)
        if sum(len(windows.tokens) for windows in waiting) >= _WINDOWS:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Windows]) -> Windows:
    return Windows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.document for part in parts]),
        np.concatenate([part.offset for part in parts]),
        sum(part.repetitive for part in parts),
        sum(part.short for part in parts),
    )


def _kept(request: ScanBlock, windows: Windows, em: Any) -> tuple[Any, ...]:
    """Of these windows, those that may be wanted: (tokens, em, document, offset, order)."""
    order = order_of(windows.document, windows.offset, request.seed)
    wanted = _wanted(request, em, order)
    return windows.tokens[wanted], em[wanted], windows.document[wanted], windows.offset[wanted], order[wanted]


def _cut(request: ScanBlock, parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """All of them together, and again only those that may be wanted."""
    if not parts:
        none = np.empty(0, np.int64)
        return np.empty((0, request.window), np.int32), none, none, none, none
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    wanted = _wanted(request, columns[1], columns[4])
    return tuple(column[wanted] for column in columns)


def _wanted(request: ScanBlock, em: Any, order: Any) -> Any:
    """bool [n]: every window of a stratum, or its windows of the lowest order."""
    strata = scan_stratum(em, request.window - request.prefix_length)
    wanted = np.zeros(len(em), bool)
    for stratum, (most, below) in enumerate(zip(request.keep, request.below, strict=True)):
        found = (strata == stratum).nonzero()[0]
        if most >= 0:
            if below >= 0:
                found = found[order[found] <= below]
            if len(found) > most:
                found = found[np.argpartition(order[found], most - 1)[:most] if most else slice(0)]
        wanted[found] = True
    return wanted
