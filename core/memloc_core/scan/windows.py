"""From a block of a corpus to windows of token ids."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from memloc_core import sources
from memloc_core.corpora.streams import Document, located, open_stream
from memloc_core.errors import UsageError
from memloc_core.requests import Block
from memloc_core.tokenizers import load_tokenizer, read_config, vocabulary_size

if TYPE_CHECKING:
    from memloc_core.requests import Ints

T = TypeVar("T")
Tokens32 = NDArray[np.int32]

_DOCUMENTS = 64  # tokenized at once
_CHARACTERS = 1 << 20  # of them


@dataclass
class Reading:
    """What was read of a block so far."""

    vocabulary: int
    counts: Ints = field(init=False)  # [V]
    tokens: int = 0
    documents: int = 0
    empty: int = 0
    seconds: float = 0.0
    _digest: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.vocabulary, np.int64)

    def digest(self) -> str:
        return str(self._digest.hexdigest())

    def add(self, documents: list[Tokens32]) -> None:
        lengths = np.array([len(ids) for ids in documents], "<i8")
        together = np.concatenate(documents)
        self._digest.update(lengths.tobytes() + together.astype("<i4").tobytes())
        self.counts += np.bincount(together, minlength=self.vocabulary)
        self.tokens += len(together)
        self.documents += len(documents)
        self.empty += int((lengths == 0).sum())


@dataclass(frozen=True)
class Windows:
    """Windows of some documents: [n, w], and where each stands."""

    tokens: Tokens32
    document: Ints
    offset: Ints
    repetitive: int  # windows left out
    short: int  # documents without a window


def read_block(block: Block, reading: Reading) -> Iterator[list[Tokens32]]:
    """The token ids of a block's documents, some documents at a time. Raises UsageError for an id beyond V.

    Text is encoded without special tokens, document by document.
    """
    stream = open_stream(located(block.file), block.column)
    some: list[Document] = []
    size, first = 0, block.first

    def encode() -> list[Tokens32]:
        ids = _encode(some, block, first, reading.vocabulary)
        reading.add(ids)
        return ids

    began = time.perf_counter()
    for document in stream.read(block.start, block.documents):
        some.append(document)
        size += len(document)
        if len(some) == _DOCUMENTS or size > _CHARACTERS:
            ids = encode()
            reading.seconds += time.perf_counter() - began
            yield ids
            began = time.perf_counter()
            first, size, some = first + len(some), 0, []
    if some:
        ids = encode()
        reading.seconds += time.perf_counter() - began
        yield ids


def windows_of(
    documents: list[Tokens32], first: int, window: int, stride: int, min_unique: float, begin: int = -1
) -> Windows:
    """Every `stride`-th window of each document, without those of fewer than min_unique x window distinct tokens.

    `first` is the number of the first document. A window that would begin with the token `begin` begins after it.
    """
    tokens, number, offset = [], [], []
    short = 0
    for i, ids in enumerate(documents):
        if len(ids) < window:
            short += bool(len(ids))
            continue
        found = np.lib.stride_tricks.sliding_window_view(ids, window)
        starts = np.arange(0, len(found), stride)
        if begin >= 0:
            others = np.flatnonzero(ids[: len(found)] != begin)  # where a window may begin
            at = np.searchsorted(others, starts)
            starts = np.unique(others[at[at < len(others)]])
            short += not len(starts)
        tokens.append(found[starts])
        number.append(np.full(len(starts), first + i, np.int64))
        offset.append(starts)
    if not tokens:
        none = np.empty(0, np.int64)
        return Windows(np.empty((0, window), np.int32), none, none, 0, short)
    rows, numbers, offsets = np.concatenate(tokens), np.concatenate(number), np.concatenate(offset)
    ordered = np.sort(rows, axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    varied = distinct >= min_unique * window - 1e-9  # 0.55 x 100 is a little more than 55 in floating point
    return Windows(rows[varied], numbers[varied], offsets[varied], int((~varied).sum()), short)


def order_of(document: Ints, offset: Ints, seed: int) -> Ints:
    """A number in 0 .. 2**63 - 1 for each place in the corpus, as good as random and always the same (splitmix64).

    The n windows of the lowest numbers are a uniform sample of n, whatever the order in which they were met.
    """
    with np.errstate(over="ignore"):
        x = np.full(len(document), seed, np.uint64)
        for part in (document, offset):
            x = (x ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return np.asarray(x >> np.uint64(1), np.int64)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made in a thread while this one is used. Tokenizing lets the interpreter go on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def vocabulary_of(model: str) -> int:
    """How many token ids the model knows. Raises MemlocError where its config.json does not say."""
    folder = sources.model_folder(model)
    size = vocabulary_size(read_config(folder), folder)
    if not size:
        raise UsageError(f"{folder / 'config.json'} does not give the vocabulary's size.")
    return size


def _encode(documents: list[Document], block: Block, first: int, vocabulary: int) -> list[Tokens32]:
    texts = [document for document in documents if isinstance(document, str) and document]
    encoded: Iterator[Any] = iter(())
    if texts:
        tokenizer = _tokenizer(block.model)
        if tokenizer is None:
            raise UsageError(f"{block.file} holds text, but the folder of {block.model} holds no tokenizer.")
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    ids = []
    for number, document in enumerate(documents, first):
        row: Any = next(encoded).ids if isinstance(document, str) and document else document
        row = np.asarray(row if len(row) else (), np.int64)
        if len(row) and (row.max() >= vocabulary or row.min() < 0):
            wrong = int(row.max() if row.max() >= vocabulary else row.min())
            raise UsageError(
                f"{block.file}, document {number:,}, holds the token id {wrong}, but {block.model} knows the ids 0.."
                f"{vocabulary - 1:,}: the {'tokenizer' if isinstance(document, str) else 'ids'} belong"
                f"{'s' if isinstance(document, str) else ''} to another model."
            )
        ids.append(row.astype(np.int32))
    return ids


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    # All cores: it is a thread beside the model, which leaves them idle on a GPU and has them first on a processor.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    return load_tokenizer(sources.model_folder(model))
