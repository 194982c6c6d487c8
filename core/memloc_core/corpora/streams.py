"""A corpus as a stream of documents: files that are read from any of their documents on, in memory that stays flat.

A document is text, or token ids. Of `.jsonl`, `.csv`, `.parquet` and `.arrow` it is a row, of a `.txt` file a run of
whole lines of about `PIECE` bytes, of a `.npy` array a row [n, t], or a run of `PIECE` ids of one long row [t]. Files
of lines may be `.gz`. A folder is all such files in it, by name; a name, ORG/NAME[@CONFIG][:SPLIT], is a data set that
`datasets` has prepared in its local cache. hub://ORG/NAME[@CONFIG][:SPLIT] is one on the hub: parts of it are read as
they are needed, and nothing is kept. No code of a data set is ever run.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from memloc_core import hub, sources
from memloc_core.errors import UsageError

Document = str | NDArray[np.int64]
File = Path | hub.HubFile  # both have a name, and are said as a person would name them

TEXT_COLUMNS = ("text", "content", "document", "paragraph")
TOKEN_COLUMNS = ("tokens", "token_ids", "input_ids")
PIECE = 1 << 16
_ROWS = 256  # of a table at once
_AROUND_IDS = " \t\r\n[]"  # where they were written out
_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".txt", ".txt.gz", ".parquet", ".arrow", ".npy")


@dataclass(frozen=True)
class Run:
    """Documents that lie one after the other: where the first begins, how many, and about how many bytes."""

    start: int
    documents: int
    size: int


class Stream(Protocol):
    """One file."""

    def survey(self, grain: int) -> Iterator[Run]:
        """Every document in runs of about `grain` bytes. Raises UsageError for the first document that is none."""
        ...

    def read(self, start: int, documents: int) -> Iterator[Document]:
        """The documents of a run. Raises UsageError where the file no longer holds them."""
        ...


# ------------------------------------------------------------------------------------------------ which files, and how


def corpus_files(corpus: str) -> list[Path]:
    """The files of a corpus on this machine, in the order in which they are read. Raises UsageError."""
    try:
        path = Path(corpus).expanduser()
        if path.is_file():
            _kind(path)
            return [path.resolve()]
        if path.is_dir():
            found = sorted(p for p in path.resolve().rglob("*") if p.is_file() and _is_data(p, path.resolve()))
            if not found:
                raise UsageError(f"{path} holds no file of a kind that can be scanned: {', '.join(_SUFFIXES)}.")
            return found
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{corpus!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if corpus == sources.DEMO:
        raise UsageError("The embedded model comes with paragraphs, but with no corpus; give a file or a folder.")
    try:
        return list(sources.downloaded(corpus) or sources.paragraph_files(corpus))
    except UsageError as error:
        raise UsageError(str(error).replace("paragraph file", "corpus")) from None


def file_state(path: Path) -> str:
    """Size and modification time."""
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    return f"{status.st_size} bytes, {status.st_mtime_ns} ns"


def located(name: str) -> File:
    """The file that a plan names: here, or on the hub."""
    return hub.HubFile(name) if hub.is_on_hub(name) else Path(name)


def file_size(path: File) -> int:
    """Bytes."""
    return path.size if isinstance(path, hub.HubFile) else path.stat().st_size


def open_stream(path: File, column: str = "") -> Stream:
    """The reader of a file. `column`: where the text or the ids stand, "" for the usual names. Raises UsageError."""
    kind = _kind(path)
    if kind == ".jsonl":
        return _JsonLines(path, column)
    if kind == ".csv":
        return _Csv(path, column)
    if kind == ".txt":
        return _Text(path)
    if kind == ".npy":
        if isinstance(path, hub.HubFile):
            raise UsageError(f"{path}: a .npy file is not read from the hub; fetch it and give its path.")
        return _Array(path)
    return _Table(path, column, kind)


def _kind(path: File) -> str:
    name = path.name.lower()
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return suffix.removesuffix(".gz")
    raise UsageError(f"{path} is of no kind that can be scanned; corpus files end in {', '.join(_SUFFIXES)}.")


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.name.lower().endswith(_SUFFIXES) and not path.name.endswith(".counts.npy")


def _pick_column(path: File, found: list[str], wanted: str) -> str:
    for name in (wanted,) if wanted else (*TEXT_COLUMNS, *TOKEN_COLUMNS):
        if name in found:
            return name
    columns = ", ".join(map(repr, found)) or "no columns"
    if wanted:
        raise UsageError(f"{path} has no column {wanted!r}; it has {columns}.")
    raise UsageError(f"{path} has {columns}, and none of the usual names; say which one with --text-column.")


def _document(value: Any, where: str, column: str) -> Document:
    """Text or token ids; None, as a table's gap gives it, is an empty document. Raises UsageError for all else.

    Text in a column of token ids, as in a .csv cell, is a list of them that was written out.
    """
    if value is None:
        return ""
    if isinstance(value, str) and column in TOKEN_COLUMNS:
        try:
            value = ids_in_text(value) if value.strip(_AROUND_IDS) else []
        except ValueError:
            raise UsageError(f"{where} is no list of token ids: {value[:40]!r}.") from None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{where} holds half a surrogate pair, which is no text.") from None
        return value
    if isinstance(value, list) or hasattr(value, "__array__"):
        try:
            ids = np.asarray(value)
        except (ValueError, OverflowError):
            ids = np.empty(1, object)
        if not len(ids):
            return np.empty(0, np.int64)
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            return ids.astype(np.int64)
        raise UsageError(f"{where} is a list, but not of token ids.")
    raise UsageError(f"{where} is neither text nor token ids, but {type(value).__name__}.")


def ids_in_text(cell: str) -> list[int]:
    """Token ids written as [1, 2], 1,2 or 1 2. Raises ValueError for anything else."""
    return [int(word) for word in re.split(r"[\s,]+", cell.strip(_AROUND_IDS))]


# ---------------------------------------------------------------------------------------------------- files of lines

_rewinding: dict[str, IO[bytes]] = {}  # a compressed file can only be read forwards, so the last one stays open


def _open(path: File) -> IO[bytes]:
    try:
        if not _is_compressed(path):
            return _bytes(path)
        if str(path) not in _rewinding:
            for file in _rewinding.values():
                file.close()
            _rewinding.clear()
            _rewinding[str(path)] = cast(IO[bytes], gzip.GzipFile(fileobj=_bytes(path), mode="rb"))
        return _rewinding[str(path)]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None


def _bytes(path: File) -> IO[bytes]:
    return path.open() if isinstance(path, hub.HubFile) else path.open("rb")


def _is_compressed(path: File) -> bool:
    return path.name.lower().endswith(".gz")


def _lines(path: File, start: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) from a byte offset on."""
    file = _open(path)
    try:
        file.seek(start)
        offset = start
        while line := file.readline():
            yield offset, line
            offset += len(line)
    except (OSError, EOFError) as error:  # gzip's, of a damaged or half-written file
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    finally:
        if not _is_compressed(path):
            file.close()


def _gone(path: File) -> UsageError:
    return UsageError(f"{path} no longer holds the documents that it held when the scan began.")


class _JsonLines:
    def __init__(self, path: File, column: str) -> None:
        self._path, self._column = path, column

    def survey(self, grain: int) -> Iterator[Run]:
        column = self._named()
        for number, (offset, line) in enumerate(_lines(self._path, 0), 1):
            if line.strip():
                _in_json(line, f"{self._path}, line {number},", column)
                yield Run(offset, 1, len(line))

    def read(self, start: int, documents: int) -> Iterator[Document]:
        column = self._named()
        for offset, line in _lines(self._path, start):
            if documents == 0:
                return
            if line.strip():
                documents -= 1
                yield _in_json(line, f"{self._path}, the line at byte {offset:,},", column)
        if documents:
            raise _gone(self._path)

    def _named(self) -> str:
        state = "" if isinstance(self._path, hub.HubFile) else file_state(self._path)
        return self._column or _first_column(str(self._path), state)


@lru_cache(maxsize=1)
def _first_column(name: str, state: str) -> str:
    """The usual name that a file's first record has: every block of the file is read by it, wherever it begins."""
    path = located(name)
    for number, (_, line) in enumerate(_lines(path, 0), 1):
        if line.strip():
            return _pick_column(path, list(_record(line, f"{path}, line {number},")), "")
    return ""  # nobody asks: there is no record


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is no UTF-8: {error.reason} at its byte {error.start}.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}.") from None
    if not isinstance(record, dict):
        raise UsageError(f"{where} is not a JSON object.")
    return record


def _in_json(line: bytes, where: str, column: str) -> Document:
    record = _record(line, where)
    if column not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise UsageError(f"{where} has no key {column!r}; its keys: {keys}.")
    return _document(record[column], f"{where} key {column!r}", column)


class _Csv:
    def __init__(self, path: File, column: str) -> None:
        self._path, self._column = path, column
        csv.field_size_limit(1 << 30)

    def survey(self, grain: int) -> Iterator[Run]:
        for offset, end, _ in self._records(self._header()[2], 0):
            yield Run(offset, 1, end - offset)

    def read(self, start: int, documents: int) -> Iterator[Document]:
        for _, _, value in self._records(start, documents):
            yield value
            documents -= 1
            if documents == 0:
                return
        if documents:
            raise _gone(self._path)

    def _header(self) -> tuple[str, int, int]:
        """The column and its place, and where the rows begin."""
        for _, end, row in self._rows(0):
            name = _pick_column(self._path, row, self._column)
            return name, row.index(name), end
        raise UsageError(f"{self._path} is empty.")

    def _records(self, start: int, documents: int) -> Iterator[tuple[int, int, Document]]:
        column, place, _ = self._header()
        for offset, end, row in self._rows(start):
            if not row:
                continue
            where = f"{self._path}, the row at byte {offset:,},"
            if len(row) <= place:
                raise UsageError(f"{where} has {len(row)} cells; its text should be in cell {place + 1}.")
            yield offset, end, _document(row[place], where, column)

    def _rows(self, start: int) -> Iterator[tuple[int, int, list[str]]]:
        """(first byte, byte after the end, cells). A cell may span lines, so the reader is fed and watched."""
        end = start

        def lines() -> Iterator[str]:
            nonlocal end
            for offset, line in _lines(self._path, start):
                end = offset + len(line)
                if offset == 0:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if b"\0" in line:
                    raise UsageError(f"{self._path} holds a zero byte near byte {offset:,}; it is no .csv file.")
                try:
                    yield line.decode()
                except UnicodeDecodeError as error:
                    raise UsageError(f"{self._path} is no UTF-8 near byte {offset + error.start:,}.") from None

        try:
            offset = start
            for row in csv.reader(lines()):
                yield offset, end, row
                offset = end
        except csv.Error as error:
            raise UsageError(f"{self._path} cannot be read as .csv near byte {end:,}: {error}.") from None


class _Text:
    """One long text; what a run of lines leaves over at its end, less than a window, is not scanned."""

    def __init__(self, path: File) -> None:
        self._path = path

    def survey(self, grain: int) -> Iterator[Run]:
        for offset, piece in self._pieces(0):
            yield Run(offset, 1, len(piece))

    def read(self, start: int, documents: int) -> Iterator[Document]:
        for _, piece in self._pieces(start):
            yield piece.decode()
            documents -= 1
            if documents == 0:
                return
        if documents:
            raise _gone(self._path)

    def _pieces(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Whole lines up to PIECE bytes; a line longer than that comes in parts, cut between characters.

        Where a piece ends hangs only on where it begins, so reading can begin at any of them.
        """
        file = _open(self._path)
        try:
            file.seek(start)
            piece, rest = b"", b""  # rest: the beginning of a character whose end is still to be read
            while line := file.readline(PIECE - len(rest)):
                line, rest = rest + line, b""
                decoder = codecs.getincrementaldecoder("utf-8")()
                try:
                    decoder.decode(line, final=line.endswith(b"\n"))
                except UnicodeDecodeError as error:
                    offset = start + len(piece) + error.start
                    raise UsageError(f"{self._path} is no UTF-8 at byte {offset:,}.") from None
                if rest := decoder.getstate()[0]:
                    line = line[: -len(rest)]
                piece += line
                if len(piece) >= PIECE - 3:
                    yield start, piece
                    start, piece = start + len(piece), b""
            if rest:
                raise UsageError(f"{self._path} ends in the middle of a character; it is no whole UTF-8 text.")
            if piece:
                yield start, piece
        except (OSError, EOFError) as error:
            raise UsageError(f"{self._path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        finally:
            if not _is_compressed(self._path):
                file.close()


# --------------------------------------------------------------------------------------------------- tables and arrays


@dataclass
class _Going:
    """A table that is being read."""

    batches: Iterator[tuple[int, Any]]
    last: tuple[int, Any] = (0, ())


_going: dict[tuple[str, str, str], _Going] = {}  # the last one, by its file, column and state


class _Table:
    """A .parquet or .arrow file. `start` is a row."""

    def __init__(self, path: File, column: str, kind: str) -> None:
        import pyarrow as pa

        self._path, self._kind = path, kind
        with self._errors():
            schema = self._parquet().schema_arrow if kind == ".parquet" else self._arrow().schema
        self._column = _pick_column(path, schema.names, column)
        kind_of = schema.field(self._column).type
        if isinstance(kind_of, pa.DictionaryType):
            kind_of = kind_of.value_type
        text = pa.types.is_string(kind_of) or pa.types.is_large_string(kind_of) or pa.types.is_null(kind_of)
        self._lists = lists = (
            pa.types.is_list(kind_of) or pa.types.is_large_list(kind_of) or pa.types.is_fixed_size_list(kind_of)
        )
        if not text and not (lists and pa.types.is_integer(kind_of.value_type)):
            raise UsageError(f"{path}: the column {self._column!r} holds {kind_of}, neither text nor token ids.")

    def survey(self, grain: int) -> Iterator[Run]:
        row = 0
        for rows, size in self._groups():
            each = max(1, size // max(1, rows))
            step = max(1, grain // each)
            for start in range(0, rows, step):
                taken = min(step, rows - start)
                yield Run(row + start, taken, taken * each)
            row += rows

    def read(self, start: int, documents: int) -> Iterator[Document]:
        row, end = 0, start + documents
        with self._errors():
            for batch in self._batches(start):
                first, row = batch[0], batch[0] + len(batch[1])
                column = batch[1]
                for i in range(max(0, start - first), min(len(column), end - first)):
                    where = f"{self._path}, row {first + i + 1:,}, column {self._column!r}"
                    try:
                        value = column[i].values if self._lists and column[i].is_valid else column[i].as_py()
                    except UnicodeDecodeError:
                        raise UsageError(f"{where} is no UTF-8.") from None
                    yield _document(value, where, self._column)
                if row >= end:
                    return
        raise _gone(self._path)

    def _groups(self) -> Iterator[tuple[int, int]]:
        """(rows, bytes of the column) of each row group or record batch."""
        with self._errors():
            if self._kind == ".parquet":
                meta = self._parquet().metadata
                names = [meta.schema.column(i).path.split(".")[0] for i in range(meta.num_columns)]
                place = names.index(self._column)
                for group in range(meta.num_row_groups):
                    about = meta.row_group(group)
                    yield about.num_rows, about.column(place).total_uncompressed_size
            else:
                for batch in self._record_batches():
                    yield batch.num_rows, batch.column(self._column).nbytes

    def _batches(self, start: int) -> Iterator[tuple[int, Any]]:
        """(number of the first row, column) of batches, from about the row `start` on.

        Goes on where the last call for this column stopped, if that lies before `start`: a row group can only be
        decoded, and fetched, from its beginning.
        """
        place = (str(self._path), self._column, "" if isinstance(self._path, hub.HubFile) else file_state(self._path))
        going = _going.pop(place, None)
        _going.clear()
        if going is None or going.last[0] > start:
            going = _Going(self._batches_from(start))
        try:
            if going.last[0] + len(going.last[1]) > start:
                yield going.last
            for batch in going.batches:
                going.last = batch
                if batch[0] + len(batch[1]) > start:
                    yield batch
        except GeneratorExit:
            _going[place] = going
            raise

    def _batches_from(self, start: int) -> Iterator[tuple[int, Any]]:
        row = 0
        if self._kind == ".parquet":
            file = self._parquet()
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row + rows > start:
                    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[self._column]):
                        yield row, batch.column(0)
                        row += batch.num_rows
                else:
                    row += rows
        else:
            for batch in self._record_batches():
                if row + batch.num_rows > start:
                    yield row, batch.column(self._column)
                row += batch.num_rows

    def _record_batches(self) -> Iterator[Any]:
        file = self._arrow()
        if hasattr(file, "num_record_batches"):
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            yield from file

    def _parquet(self) -> Any:
        import pyarrow.parquet as pq

        if isinstance(self._path, hub.HubFile):
            return pq.ParquetFile(self._path.open())
        return pq.ParquetFile(self._path, memory_map=True)

    def _arrow(self) -> Any:
        """A file of either Arrow format: `datasets` writes the streaming one."""
        import pyarrow as pa

        away = isinstance(self._path, hub.HubFile)
        source = pa.PythonFile(_bytes(self._path), "r") if away else pa.memory_map(str(self._path))
        try:
            return pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source)

    def _errors(self) -> _ArrowErrors:
        return _ArrowErrors(self._path, self._kind)


class _ArrowErrors:
    """Within, what pyarrow raises for a damaged file becomes a UsageError."""

    def __init__(self, path: File, kind: str) -> None:
        self._path, self._kind = path, kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException | OSError):
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UsageError(f"{self._path} cannot be read as {self._kind}; is it damaged or half-written? {reason}.")


class _Array:
    """Token ids [n, t], a document a row, or one long row [t]. `start` is a row, or an id of the long row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # the header is parsed as Python, and the file may be shorter than it says
            raise UsageError(f"{path} is no plain .npy array, or half of one: {error}.") from None
        if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or array.dtype.kind not in "iu":
            what = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
            raise UsageError(f"{path} holds {what}; a corpus of token ids is integers [n, t] or [t].")
        self._array = array

    def survey(self, grain: int) -> Iterator[Run]:
        if self._array.ndim == 1:
            for start in range(0, len(self._array), PIECE):
                yield Run(start, 1, 4 * min(PIECE, len(self._array) - start))
            return
        each = max(1, 4 * self._array.shape[1])
        step = max(1, grain // each)
        for start in range(0, len(self._array), step):
            rows = min(step, len(self._array) - start)
            yield Run(start, rows, rows * each)

    def read(self, start: int, documents: int) -> Iterator[Document]:
        for i in range(documents):
            at = start + i * PIECE if self._array.ndim == 1 else start + i
            if at >= len(self._array):
                raise _gone(self._path)
            yield np.array(self._array[at : at + PIECE] if self._array.ndim == 1 else self._array[at], np.int64)


def tokenizer_digest(folder: Path) -> str:
    """sha256 of the files that make a model folder's tokenizer; "" where it has none."""
    names = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model")
    files = [folder / name for name in names if (folder / name).is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest() if files else ""
