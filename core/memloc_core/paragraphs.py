"""What a paragraph is: `prefix_length` token ids to prompt with, and the ids that should follow."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memloc_core import sources
from memloc_core.corpora.files import Rows, load_array, read_rows
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import OpenParagraphs, ParagraphSet
from memloc_core.requests.studied import paragraph_id
from memloc_core.tokenizers import begin_of_text, begin_of_text_token, load_tokenizer, read_config, vocabulary_size

if TYPE_CHECKING:
    from memloc_core.requests import Ints

_UNKNOWN = ("", "na", "n/a", "none", "null")  # what tables put where they have no name


def open_paragraphs(request: OpenParagraphs) -> ParagraphSet:
    """Read, check and describe the paragraphs of a file.

    Rows longer than prefix + continuation are cut, shorter ones are left out and counted in a notice. With
    `begin_of_text` each then begins with that token, which is not counted among them, whether it did so in the file or
    not. Raises UsageError for a file of another kind, no row left, an id beyond the model's vocabulary, or a model that
    has no such token.
    """
    if request.prefix_length < 1 or request.continuation_length < 1:
        raise UsageError("Prefix and continuation need at least one token each.")
    files = sources.paragraph_files(request.source)
    path = files[0]
    folder = sources.model_folder(request.model, request.revision)
    length = request.prefix_length + request.continuation_length
    begin = begin_of_text_token(folder, request.model) if request.begin_of_text else -1
    rows = read_rows(files, lambda: load_tokenizer(folder), request.prefix_length)
    texts = [row[1:] if begin >= 0 and len(row) and row[0] == begin else row for row in rows.tokens]
    kept = [i for i, text in enumerate(texts) if len(text) >= length]
    notices = []
    if left_out := len(texts) - len(kept):
        short = next(i for i, text in enumerate(texts) if len(text) < length)
        said = (
            f"{left_out:,} of {len(texts):,} rows of {path.name} are shorter than {length} tokens"
            f"{' after the begin-of-text token' if begin >= 0 else ''} "
            f"(the first is row {short + 1} with {len(texts[short])})"
        )
        if not kept:
            raise UsageError(f"{said}; none is left. Ask for a shorter prefix or continuation.")
        notices.append(f"{said}; they are left out.")
    if not kept:
        raise UsageError(f"{path} holds no paragraph.")
    tokens = np.stack([np.asarray(texts[i][:length], np.int64) for i in kept])
    vocabulary = vocabulary_size(read_config(folder), folder)
    _check_vocabulary(tokens, vocabulary, path, request.model)
    if not request.begin_of_text and (first := begin_of_text(folder)) >= 0 and (tokens[:, 0] != first).any():
        notices.append(
            f"{request.model}'s tokenizer puts token {first} before every text, and these paragraphs do not begin with "
            "it: the model may recite less than it could. --begin-of-text puts it before them; without it rows of ids "
            f"that begin with {first} are read as they are."
        )
    counts, own = _corpus_counts(path, vocabulary), np.bincount(tokens.ravel(), minlength=vocabulary)
    if begin >= 0:
        tokens = np.concatenate([np.full((len(tokens), 1), begin), tokens], 1)
    return ParagraphSet(
        source=request.source,
        fingerprint=hashlib.sha256(tokens.tobytes()).hexdigest(),
        prefix_length=request.prefix_length + (begin >= 0),
        ids=tuple(paragraph_id(row) for row in tokens),
        tokens=tokens,
        counts=own if counts is None else counts,
        counts_of="set" if counts is None else "corpus",
        repetitions=_ints(rows, "count", kept),
        family=_families(rows, kept),
        genre=_strings(rows, "genre", kept),
        split=_strings(rows, "split", kept),
        notices=tuple(notices),
        begin=begin,
    )


def _check_vocabulary(tokens: Ints, vocabulary: int, path: Path, model: str) -> None:
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0:
        raise UsageError(f"{path} holds the token id {lowest}; ids start at 0.")
    if highest >= (vocabulary or 2**31):
        raise UsageError(
            f"{path} holds the token id {highest}, but {model} has only {vocabulary or 2**31:,} tokens: "
            "the paragraphs belong to another model's tokenizer."
        )


def _corpus_counts(path: Path, vocabulary: int) -> Ints | None:
    """The corpus' unigram counts, which lie beside the paragraphs as NAME.counts.npy, int [V]; None if not there."""
    file = path.with_suffix(".counts.npy")
    if not file.is_file():
        return None
    try:
        counts = load_array(file)
    except (OSError, ValueError) as error:
        raise MemlocError(f"{file} cannot be read: {error}") from None
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (vocabulary and len(counts) != vocabulary):
        raise MemlocError(f"{file} holds {counts.dtype} {list(counts.shape)}, not one count per token [{vocabulary}].")
    return np.asarray(counts, np.int64)


def _ints(rows: Rows, column: str, kept: list[int]) -> Ints:
    values = rows.columns.get(column)
    if values is None:
        return np.full(len(kept), -1, np.int64)
    return np.array([_int(values[i]) for i in kept], np.int64)


def _int(value: object) -> int:
    """A whole number, also as text or where a table's gaps made it a float; -1 for anything else."""
    value = _number(value)
    if isinstance(value, int | float) and -(2**62) < value < 2**62 and value == int(value):
        return int(value)
    return -1


def _number(value: object) -> object:
    """The number that a text is, else what it was."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value) if value.isdecimal() else float(value)
    return value


def _families(rows: Rows, kept: list[int]) -> Ints:
    """The families' numbers; those that have names get the numbers after them, in the order of the rows."""
    found, values = _ints(rows, "family", kept), rows.columns.get("family")
    names = [name if values and isinstance(name := _number(values[i]), str) else "" for i in kept]
    named = dict.fromkeys(name for name in names if name.casefold() not in _UNKNOWN)
    numbers = {name: number for number, name in enumerate(named, int(found.max(initial=-1)) + 1)}
    return np.array([numbers.get(name, known) for name, known in zip(names, found.tolist(), strict=True)], np.int64)


def _strings(rows: Rows, column: str, kept: list[int]) -> tuple[str, ...]:
    values = rows.columns.get(column)
    return tuple("" if values is None or values[i] is None else str(values[i]) for i in kept)
