"""Paragraph files: .jsonl, .txt, .csv, .npy, .pt, .arrow, and .parquet through `datasets`.

A row is token ids (`tokens`, `token_ids` or `input_ids`) or text (`text` or `paragraph`, encoded by the model's
tokenizer), and may carry `count`, `family`, `genre` and `split`. Files of arrays hold ids, one row each; a .txt file
holds one text a line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memloc_core.corpora.streams import ids_in_text
from memloc_core.errors import UsageError

if TYPE_CHECKING:
    from memloc_core.requests import Ints

TOKEN_COLUMNS = ("tokens", "token_ids", "input_ids")
TEXT_COLUMNS = ("text", "paragraph")
OTHER_COLUMNS = ("count", "family", "genre", "split")


@dataclass
class Rows:
    """Token ids row by row, and the other columns that the file has."""

    tokens: Sequence[Sequence[int]] | Ints
    columns: dict[str, list[Any]] = field(default_factory=dict)


def read_rows(paths: Sequence[Path], tokenizer: Callable[[], Any], prefix_length: int) -> Rows:
    """All rows of the files of a paragraph set (`sources.paragraph_files`). Raises UsageError.

    `tokenizer` is called only if there is text to encode; `prefix_length` is asked only of prefixes and suffixes that
    lie in two files: the prefix is then what stands directly before the suffix.
    """
    for path in paths:
        try:
            if path.stat().st_size == 0:
                raise UsageError(f"{path} is empty.")
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    path = paths[0]
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path} is of no known kind; paragraph files end in {', '.join(_READERS)}.")
    try:
        if len(paths) == 1:
            return reader(path, tokenizer)
        if path.suffix.lower() == ".npy":
            return _read_halves(path, paths[1], prefix_length)
        return _read_arrow(paths, tokenizer)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None


def _read_jsonl(path: Path, tokenizer: Callable[[], Any]) -> Rows:
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
                raise UsageError(f"{path}, line {number}, is not JSON: {error}.") from None
            if not isinstance(record, dict):
                raise UsageError(f"{path}, line {number}, is not a JSON object.")
            records.append(record)
    if not records:
        raise UsageError(f"{path} holds no paragraph.")
    names = [name for name in (*TOKEN_COLUMNS, *TEXT_COLUMNS, *OTHER_COLUMNS) if any(name in r for r in records)]
    return _from_columns(path, {name: [r.get(name) for r in records] for name in names}, tokenizer)


def _read_txt(path: Path, tokenizer: Callable[[], Any]) -> Rows:
    texts = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise UsageError(f"{path}, line {number}, is not UTF-8.") from None
            if text.strip():
                texts.append(text)
    if not texts:
        raise UsageError(f"{path} holds no paragraph; a .txt file has one on each line.")
    return Rows(_encode(path, texts, tokenizer()))


def _read_npy(path: Path, tokenizer: Callable[[], Any]) -> Rows:
    return Rows(_ids_in_npy(path))


def _read_halves(prefixes: Path, suffixes: Path, prefix_length: int) -> Rows:
    before, after = _ids_in_npy(prefixes), _ids_in_npy(suffixes)
    if len(before) != len(after):
        raise UsageError(
            f"{prefixes} holds {len(before):,} prefixes and {suffixes} {len(after):,} suffixes; they do not belong "
            "together."
        )
    if before.shape[1] < prefix_length:
        raise UsageError(
            f"{prefixes} holds prefixes of {before.shape[1]} tokens, fewer than the {prefix_length} of --prefix-length."
        )
    return Rows(np.concatenate([before[:, -prefix_length:], after], 1))


def _ids_in_npy(path: Path) -> Ints:
    try:
        array = load_array(path)
    except ValueError as error:
        raise UsageError(f"{path} is no plain .npy array: {error}.") from None
    return _ids_of(path, array)


def load_array(path: Path) -> Any:
    """The array of a .npy file, no pickle. Raises ValueError for anything else, and OSError."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # the header is parsed as Python, and its shape may ask for more memory than there is
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of several")
    return array


def _read_pt(path: Path, tokenizer: Callable[[], Any]) -> Rows:
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
        array = None
        if isinstance(tensor, torch.Tensor):
            tensor = tensor.detach().to_dense()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds; the pickle module's own among them
        raise UsageError(
            f"{path} is no plain tensor file: it is damaged, or holds objects that only running its code could load."
        ) from error
    if array is None:
        raise UsageError(f"{path} holds a {type(tensor).__name__}, not one tensor of token ids [n, length].")
    return Rows(_ids_of(path, array))


def _read_csv(path: Path, tokenizer: Callable[[], Any]) -> Rows:
    """Every cell as it stands: only an empty one is a gap, and only `count` and `family` are numbers."""
    csv.field_size_limit(1 << 30)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as .csv: {error}.") from None
    if not rows:
        raise UsageError(f"{path} holds no paragraph.")
    for number, row in enumerate(rows, 1):
        if len(row) > len(head):
            raise UsageError(f"{path}, row {number}, has {len(row)} cells, and the file only {len(head)} columns.")
    columns: dict[str, list[Any]] = {}
    for place, name in enumerate(head):
        if name in (*TOKEN_COLUMNS, *TEXT_COLUMNS, *OTHER_COLUMNS):
            columns[name] = [row[place] if place < len(row) and row[place] else None for row in rows]
    return _from_table(path, columns, head, tokenizer)


def _read_table(path: Path, tokenizer: Callable[[], Any]) -> Rows:
    import tempfile

    import datasets

    datasets.disable_progress_bars()
    try:
        # The folder must not outlive this call: `datasets` would keep a second copy of the file, keyed by its path.
        with tempfile.TemporaryDirectory() as folder:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=folder, keep_in_memory=True)
            names = [n for n in (*TOKEN_COLUMNS, *TEXT_COLUMNS, *OTHER_COLUMNS) if n in table.column_names]
            columns = {name: list(table[name]) for name in names}
            found = table.column_names
    except Exception as error:  # pyarrow and datasets each have their own
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UsageError(f"{path} cannot be read as .parquet: {reason}") from error
    return _from_table(path, columns, found, tokenizer)


def _read_arrow(paths: Sequence[Path], tokenizer: Callable[[], Any]) -> Rows:
    """Arrow files as `datasets` writes them (streams), or as others do (files)."""
    import pyarrow as pa

    tables = []
    for path in paths:
        try:
            with pa.memory_map(str(path)) as source:
                whole = source.read_buffer(6).to_pybytes() == b"ARROW1"
                source.seek(0)
                tables.append((pa.ipc.open_file if whole else pa.ipc.open_stream)(source).read_all())
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path} cannot be read as .arrow: {str(error).splitlines()[0]}") from None
    try:
        table = pa.concat_tables(tables)
        names = [n for n in (*TOKEN_COLUMNS, *TEXT_COLUMNS, *OTHER_COLUMNS) if n in table.column_names]
        columns = {name: table[name].to_pylist() for name in names}
    except pa.ArrowException as error:
        raise UsageError(f"{paths[0]} cannot be read as .arrow: {str(error).splitlines()[0]}") from None
    return _from_table(paths[0], columns, table.column_names, tokenizer)


def _from_table(path: Path, columns: dict[str, list[Any]], found: list[str], tokenizer: Callable[[], Any]) -> Rows:
    if not columns:
        raise UsageError(f"{path} has the columns {', '.join(found)}; none is one of {_wanted()}.")
    for name in TOKEN_COLUMNS:  # a .csv cell holds a list as text
        if name in columns and any(isinstance(cell, str) for cell in columns[name]):
            columns[name] = [_ids_in_text(path, row, cell) for row, cell in enumerate(columns[name], 1)]
    return _from_columns(path, columns, tokenizer)


_READERS: dict[str, Callable[[Path, Callable[[], Any]], Rows]] = {
    ".jsonl": _read_jsonl,
    ".npy": _read_npy,
    ".pt": _read_pt,
    ".csv": _read_csv,
    ".parquet": _read_table,
    ".arrow": lambda path, tokenizer: _read_arrow([path], tokenizer),
    ".txt": _read_txt,
}


def _wanted() -> str:
    return ", ".join((*TOKEN_COLUMNS, *TEXT_COLUMNS))


def _ids_in_text(path: Path, row: int, cell: Any) -> list[int]:
    try:
        return ids_in_text(cell if isinstance(cell, str) else "none")
    except ValueError:
        raise UsageError(f"{path}, row {row}: {str(cell)[:40]!r} is no list of token ids.") from None


def _ids_of(path: Path, array: Any) -> Ints:
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UsageError(
            f"{path} holds {array.dtype} {list(array.shape)}; a paragraph file holds integer token ids [n, length]."
        )
    if not len(array):
        raise UsageError(f"{path} holds no paragraph: its shape is {list(array.shape)}.")
    ids: Ints = array.astype(np.int64)
    return ids


def _from_columns(path: Path, columns: dict[str, list[Any]], tokenizer: Callable[[], Any]) -> Rows:
    others = {name: columns[name] for name in OTHER_COLUMNS if name in columns}
    for name in TOKEN_COLUMNS:
        if name in columns:
            return Rows([_ids(path, row, ids) for row, ids in enumerate(columns[name], 1)], others)
    for name in TEXT_COLUMNS:
        if name in columns:
            return Rows(_encode(path, columns[name], tokenizer()), others)
    raise UsageError(f"{path} has no column or key of paragraphs; it needs one of {_wanted()}.")


def _ids(path: Path, row: int, ids: Any) -> list[int]:
    if not isinstance(ids, list) or not all(type(i) is int and abs(i) < 2**62 for i in ids):
        raise UsageError(f"{path}, row {row}: its tokens are no list of whole numbers.")
    return ids


def _encode(path: Path, texts: list[Any], tokenizer: Any) -> list[list[int]]:
    if tokenizer is None:
        raise UsageError(f"{path} holds text, but the model's folder holds no tokenizer to encode it with.")
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise UsageError(f"{path}, row {row}: its text is {'missing' if text is None else 'no text'}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{path}, row {row}: its text holds half a surrogate pair, which is no text.") from None
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
