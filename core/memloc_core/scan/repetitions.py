"""How often windows occur in a corpus, at any offset of any document: exact, by a rolling hash and a second look.

Each token id has a random 64-bit number r. With C[i] the sum of r[j] B^j over the first i tokens (mod 2^64, B odd), the
window at i has the hash (C[i + w] - C[i]) B^-i, so all hashes of a stream cost a few passes over it. Where a hash is
that of a wanted window, the tokens themselves are compared.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memloc_core.errors import UsageError
from memloc_core.requests import CountBlock, CountedBlock, Progress
from memloc_core.scan.windows import Reading, ahead, read_block, vocabulary_of

if TYPE_CHECKING:
    from memloc_core.requests import Ints

_TOKENS = 1 << 20  # hashed at once
Hashes = NDArray[np.uint64]


def run(request: CountBlock) -> Generator[Progress, None, CountedBlock]:
    """Raises UsageError where the corpus or the file of windows cannot be read."""
    path = Path(request.windows)
    try:
        wanted = _wanted(path, path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    reading = Reading(vocabulary_of(request.block.model))
    counts = np.zeros(len(wanted.tokens), np.int64)
    for documents in ahead(_together(read_block(request.block, reading))):
        wanted.count(documents, counts)
        yield Progress(reading.documents, request.block.documents, "documents")
    counts = counts[wanted.same]
    seen = counts.nonzero()[0]
    return CountedBlock(seen.astype(np.int64), counts[seen], reading.digest())


@dataclass(frozen=True)
class Wanted:
    """The distinct windows among rows [k, w], ordered by hash; `same` [k]: which of them each row is."""

    tokens: Any  # [d, w]
    hashes: Hashes  # [d]
    same: Ints
    seed: int

    def count(self, documents: list[NDArray[np.int32]], counts: Ints) -> None:
        """Add to `counts` [d] how often each window stands in these documents."""
        length = self.tokens.shape[1]
        long = [ids for ids in documents if len(ids) >= length]
        if not long or not len(self.hashes):
            return
        stream = np.concatenate(long)
        found = rolling_hashes(stream, length, self.seed)
        at = np.searchsorted(self.hashes, found)
        at[at == len(self.hashes)] = 0
        places = (self.hashes[at] == found).nonzero()[0]
        # Not those that begin in one document and end in another.
        ends = np.cumsum([len(ids) for ids in long])
        places = places[places + length <= ends[np.searchsorted(ends, places, side="right")]]
        for start in range(0, len(places), 4096):
            some = places[start : start + 4096]
            really = (stream[some[:, None] + np.arange(length)] == self.tokens[at[some]]).all(1)
            counts += np.bincount(at[some[really]], minlength=len(counts))


def distinct(rows: Any) -> Wanted:
    """The distinct rows [k, w], under a seed with which no two of them share a hash."""
    length = rows.shape[1]
    for seed in range(100):
        parts = (rolling_hashes(rows[i : i + 1024].ravel(), length, seed)[::length] for i in range(0, len(rows), 1024))
        hashes = np.concatenate([np.empty(0, np.uint64), *parts])
        unique, first, same = np.unique(hashes, return_index=True, return_inverse=True)
        tokens = np.asarray(rows[first])
        if all((tokens[same[i : i + 1024]] == rows[i : i + 1024]).all() for i in range(0, len(rows), 1024)):
            return Wanted(tokens, unique, same.astype(np.int64), seed)
    raise UsageError("The kept windows cannot be told apart by their hashes; this should not be possible.")


def rolling_hashes(stream: Any, length: int, seed: int = 0) -> Hashes:
    """The hash of every window of `length` tokens of a stream [n], [n - length + 1]."""
    generator = np.random.default_rng((seed, 0x5CA9))
    base = int(generator.integers(1, 1 << 62)) * 2 + 1
    vocabulary = 1 << max(16, int(stream.max(initial=0)).bit_length())
    number = generator.integers(0, 1 << 64, vocabulary, np.uint64)
    # Ids beyond the 65,536 that every stream has must get the same numbers in every stream: the generator gives them
    # in order, so a larger table only adds to a smaller one.
    n = len(stream)
    with np.errstate(over="ignore"):
        powers = _powers(base, n)
        sums = np.zeros(n + 1, np.uint64)
        np.cumsum(number[stream] * powers, out=sums[1:])
        return (sums[length:] - sums[: n - length + 1]) * _powers(pow(base, -1, 1 << 64), n - length + 1)


@lru_cache(maxsize=4)
def _all_powers(base: int) -> Hashes:
    powers = np.full(2 * _TOKENS, base & ((1 << 64) - 1), np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _powers(base: int, n: int) -> Hashes:
    """base^0 .. base^(n-1) mod 2^64."""
    known = _all_powers(base)
    if n <= len(known):
        return known[:n]
    powers = np.full(n, base & ((1 << 64) - 1), np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


@lru_cache(maxsize=1)
def _wanted(path: Path, changed: int) -> Wanted:
    return distinct(np.load(path, mmap_mode="r"))


def _together(parts: Iterator[list[NDArray[np.int32]]]) -> Iterator[list[NDArray[np.int32]]]:
    waiting: list[NDArray[np.int32]] = []
    size = 0
    for documents in parts:
        waiting += documents
        size += sum(map(len, documents))
        if size >= _TOKENS:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting
