"""From the finished blocks of a scan to a set of paragraphs: `SET.parquet`, and `SET.counts.npy` beside it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from memloc_core import __version__
from memloc_core.codec import to_json
from memloc_core.errors import MemlocError
from memloc_core.requests import SCAN_STRATA, AssembleScan, Progress, ScanReport, scan_stratum
from memloc_core.scan.folder import ScanFolder, write
from memloc_core.scan.windows import vocabulary_of


def run(request: AssembleScan) -> Generator[Progress, None, ScanReport]:
    """The set holds what the first finished blocks gave, without a gap: rows only ever come to its end.

    Raises MemlocError where it cannot be written; then it is as it was before.
    """
    folder = ScanFolder(Path(request.out))
    manifest, plan = folder.manifest(), folder.plan()
    options = manifest["options"]
    done = folder.done("blocks")
    n = next((i for i, number in enumerate(done) if i != number), len(done))
    c = options["window"] - options["prefix_length"]
    cuts, sums = yield from _survey(folder, n, options["keep"], c)
    counts = np.zeros(vocabulary_of(manifest["model"]["name"]), np.int64)
    for name in ("ems", "nlls"):
        sums.setdefault(name, np.zeros(c + 1))
    with np.errstate(invalid="ignore"):
        nlls = sums["nlls"] / sums["ems"] if options["nll"] else np.full(c + 1, np.nan)
    files = manifest["files"]
    rows = _Rows(folder, request, options)
    try:
        try:
            for number in range(n):
                block = folder.read("blocks", number)
                counts[block.seen] += block.counts
                rows.add(block, _taken(block, cuts, c), files[int(plan.file[number])])
                yield Progress(number, n, "blocks")
            report = ScanReport(
                complete=request.complete,
                blocks=len(plan),
                blocks_done=n,
                documents=int(plan.documents[:n].sum()),
                windows=int(sums.get("windows", 0)),
                repetitive=int(sums.get("repetitive", 0)),
                short=int(sums.get("short", 0)),
                empty=int(sums.get("empty", 0)),
                tokens=int(sums.get("tokens_read", 0)),
                ems=np.asarray(sums["ems"], np.int64),
                nlls=np.asarray(nlls, np.float32),
                kept=rows.kept,
                changed=rows.changed,
                reading=float(sums.get("reading", 0)),
                scoring=float(sums.get("scoring", 0)),
            )
            rows.finish(report, manifest)
            out = io.BytesIO()
            np.save(out, counts)
            write(folder.counts, out.getvalue(), folder.path)
        finally:
            rows.close()
    except OSError as error:
        raise MemlocError(
            f"{folder.out} cannot be written: {error.strerror or error}. What is finished is kept; "
            "make room and run the same command again."
        ) from None
    return report


def _survey(
    folder: ScanFolder, n: int, keep: list[int], c: int
) -> Generator[Progress, None, tuple[list[int], dict[str, Any]]]:
    """Per stratum the highest order that is still taken; and the blocks' sums."""
    low: list[Any] = [np.empty(0, np.int64) for _ in keep]
    sums: dict[str, Any] = {}
    for number in range(n):
        block = folder.read("blocks", number)
        for name in ("ems", "nlls", "windows", "repetitive", "short", "empty", "tokens_read", "reading", "scoring"):
            sums[name] = sums.get(name, 0) + getattr(block, name)
        strata = scan_stratum(block.em, c)
        for stratum, most in enumerate(keep):
            if most >= 0:
                low[stratum] = np.sort(np.concatenate([low[stratum], block.order[strata == stratum]]))[:most]
        yield Progress(number, n, "blocks")
    highest = np.iinfo(np.int64).max
    cuts = []
    for most, orders in zip(keep, low, strict=True):
        cuts.append(int(orders[-1]) if len(orders) == most > 0 else -1 if most == 0 else highest)
    return cuts, sums


def _taken(block: Any, cuts: list[int], c: int) -> Any:
    return np.flatnonzero(block.order <= np.array(cuts)[scan_stratum(block.em, c)])


class _Rows:
    """The two files of rows, written as the blocks come, so that memory stays flat."""

    def __init__(self, folder: ScanFolder, request: AssembleScan, options: dict[str, Any]) -> None:
        import pyarrow as pa

        self.kept = np.zeros(len(SCAN_STRATA), np.int64)
        self.changed = 0
        self._folder, self._request, self._options = folder, request, options
        self._c = options["window"] - options["prefix_length"]
        self._row = 0
        self._scores = _Finished(folder, "scores")
        self._repetitions: Any = None
        for pattern in (".set.*", ".windows.*"):  # of an engine that was killed here; no other one assembles now
            for left in folder.path.glob(pattern):
                left.unlink(missing_ok=True)
        self._beside = folder.path / f".set.{os.getpid()}"
        self._tokens_beside = folder.path / f".windows.{os.getpid()}"
        self._tokens = self._tokens_beside.open("wb") if request.windows else None
        columns = {
            "tokens": pa.list_(pa.int32()),
            "em": pa.int16(),
            "stratum": pa.string(),
            "margin": pa.float32(),
            "nll": pa.float32(),
            "count": pa.int64(),
            "document": pa.int64(),
            "offset": pa.int64(),
            "source": pa.string(),
        }
        self._schema = pa.schema(list(columns.items()))
        self._writer: Any = None
        if request.complete and options["count_duplicates"]:
            self._repetitions = _repetitions(folder)

    def add(self, block: Any, taken: Any, file: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not len(taken):
            return
        tokens, em, k = block.tokens[taken], block.em[taken].copy(), len(taken)
        rows = slice(self._row, self._row + k)
        self._row += k
        if self._tokens is not None:
            self._tokens.write(np.ascontiguousarray(tokens, "<i4").tobytes())
        scores = self._scores.rows(rows) if self._request.complete else None
        if scores is not None:
            self.changed += int((scores[0] != em).sum())
            em = scores[0]
        strata = scan_stratum(em, self._c)
        self.kept += np.bincount(strata, minlength=len(SCAN_STRATA))
        unknown = [None] * k
        source = file.encode(errors="surrogateescape").decode(errors="backslashreplace")  # a name may be no UTF-8
        offsets = pa.array(np.arange(0, tokens.size + 1, tokens.shape[1], dtype=np.int32))
        columns = {
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens.ravel(), pa.int32())),
            "em": em,
            "stratum": [SCAN_STRATA[i] for i in strata],
            "margin": unknown if scores is None else scores[1],
            "nll": unknown if scores is None else scores[2],
            "count": unknown if self._repetitions is None else self._repetitions[rows],
            "document": block.document[taken],
            "offset": block.offset[taken],
            "source": [source] * k,
        }
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, self._schema.field(name).type)
            for name, column in columns.items()
        ]
        table = pa.table(arrays, schema=self._schema)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._beside, self._schema)
        self._writer.write_table(table)

    def finish(self, report: ScanReport, manifest: dict[str, Any]) -> None:
        import pyarrow.parquet as pq

        if self._writer is None and self._request.complete:
            self._writer = pq.ParquetWriter(self._beside, self._schema)
        if self._writer is not None:
            about = {**manifest, "report": to_json(report), "memloc-tui": __version__}
            about["report"].pop("reading"), about["report"].pop("scoring")  # the same scan gives the same bytes
            self._writer.add_key_value_metadata({"memloc.scan": json.dumps(about)})
            self._writer.close()
            self._writer = None
            with self._beside.open("rb") as file:
                os.fsync(file.fileno())
            self._beside.replace(self._folder.out)
        if self._tokens is not None:
            self._tokens.close()
            self._write_windows()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._tokens is not None:
            self._tokens.close()
        self._beside.unlink(missing_ok=True)
        self._tokens_beside.unlink(missing_ok=True)

    def _write_windows(self) -> None:
        """A .npy file is a header and the rows."""
        final = self._folder.path / f".windows.npy.{os.getpid()}"
        window = self._options["window"]
        with final.open("wb") as out, self._tokens_beside.open("rb") as rows:
            header = {"descr": "<i4", "fortran_order": False, "shape": (self._row, window)}
            np.lib.format.write_array_header_1_0(out, header)
            while data := rows.read(1 << 22):
                out.write(data)
            out.flush()
            os.fsync(out.fileno())
        final.replace(self._folder.windows)


class _Finished:
    """The scores of rows, read file by file as the rows come."""

    def __init__(self, folder: ScanFolder, part: str) -> None:
        self._folder, self._part = folder, part
        self._numbers = iter(folder.done(part))
        self._have: list[Any] = [np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32)]

    def rows(self, rows: slice) -> list[Any]:
        k = rows.stop - rows.start
        while len(self._have[0]) < k:
            found = self._folder.read(self._part, next(self._numbers))
            self._have = [np.concatenate(x) for x in zip(self._have, (found.em, found.margin, found.nll), strict=True)]
        taken = [x[:k] for x in self._have]
        self._have = [x[k:] for x in self._have]
        return taken


def _repetitions(folder: ScanFolder) -> Any:
    """[k] over all blocks. Raises MemlocError where a block no longer read as it did when it was scanned."""
    total = np.zeros(len(np.load(folder.windows, mmap_mode="r")), np.int64)
    for number in folder.done("counts"):
        counted = folder.read("counts", number)
        if counted.digest != folder.read("blocks", number).digest:
            raise MemlocError(
                f"The corpus changed while it was scanned (block {number} of {folder.path}): what was found in it and "
                "how often it was counted do not belong together. Run the command again with --restart."
            )
        total[counted.seen] += counted.counts
    return total
