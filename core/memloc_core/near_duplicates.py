"""Near-duplicate paragraphs: what says the same in nearly the same words must not count twice in a statistic."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from memloc_core.steps import drained

if TYPE_CHECKING:
    from memloc_core.requests import Ints

THRESHOLD = 0.8  # token-set Jaccard similarity above which two paragraphs are near-duplicates (README)
_PAIRS_AT_ONCE = 1_000_000


def clusters(tokens: Ints, threshold: float = THRESHOLD) -> tuple[int, ...]:
    """The cluster of each row of tokens [n, length], numbered by first appearance.

    Two rows are joined where |A & B| / |A | B| > threshold for their token sets A and B, and clusters are what such
    joins connect. Raises ValueError for a threshold outside 0.5 .. 1.
    """
    return drained(find_clusters(tokens, threshold))


def find_clusters(tokens: Ints, threshold: float = THRESHOLD) -> Generator[float, None, tuple[int, ...]]:
    """`clusters`, yielding now and then what share of the work is done.

    Sets so similar share at least two of their few rarest tokens, so only rows that share such a pair are compared
    (prefix filtering, as in set-similarity joins, with pairs for keys): hardly more than there are near-duplicates.
    Rows that are joined already are not compared again.
    """
    if not 0.5 <= threshold < 1:
        raise ValueError(f"a threshold of {threshold} is not within 0.5 .. 1")
    ranked, same = np.unique(_rarest_first(tokens), axis=0, return_inverse=True)
    sets = [frozenset(row) - {_NONE} for row in ranked.tolist()]
    parent = list(range(len(sets)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    def compare(pairs: Ints) -> None:
        for a, b in pairs.tolist():
            if (first := root(a)) != (second := root(b)):
                shared = len(sets[a] & sets[b])
                if shared > threshold * (len(sets[a]) + len(sets[b]) - shared):
                    parent[max(first, second)] = min(first, second)

    rows, starts = _rows_by_pair(ranked, threshold)
    # First every row with the next one of its group: in a large group of near-duplicates that joins nearly all.
    within = np.ones(len(rows), bool)
    within[starts[:-1]] = False
    neighbours = _distinct(np.stack([rows[:-1], rows[1:]], 1)[within[1:]], len(sets))
    for start in range(0, len(neighbours), _PAIRS_AT_ONCE):
        yield 0.5 * start / len(neighbours)
        compare(neighbours[start : start + _PAIRS_AT_ONCE])
    # Then those that are not joined yet.
    held: list[Ints] = []
    size, roots = 0, np.array([root(row) for row in range(len(sets))])
    split = _groups_apart(rows, starts, roots)
    for done, group in enumerate(split):
        for pairs in _apart(rows[starts[group] : starts[group + 1]], roots):
            held.append(pairs)
            size += len(pairs)
            if size >= _PAIRS_AT_ONCE:
                compare(_distinct(np.concatenate(held), len(sets)))
                held, size = [], 0
                roots = np.array([root(row) for row in range(len(sets))])
                yield 0.5 + 0.5 * done / len(split)
    if held:
        compare(_distinct(np.concatenate(held), len(sets)))
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(root(row), len(numbers)) for row in same.ravel().tolist())


def related(tokens: Ints, family: Ints) -> Ints:
    """The cluster 0.. of each row, [n], where near-duplicates and members of one family (-1: of none) stand together.

    What a statistic resamples or splits by: siblings that were made from one template are no independent evidence.
    """
    if not len(tokens):
        return np.zeros(0, np.int64)
    near = clusters(tokens)
    joined = list(range(max(near) + 1))

    def root(cluster: int) -> int:
        while joined[cluster] != cluster:
            joined[cluster] = cluster = joined[joined[cluster]]
        return cluster

    first: dict[int, int] = {}
    for of, cluster in zip(family.tolist(), near, strict=True):
        if of >= 0:
            a, b = root(first.setdefault(of, cluster)), root(cluster)
            joined[max(a, b)] = min(a, b)
    return np.asarray(np.unique([root(cluster) for cluster in near], return_inverse=True)[1], np.int64)


def in_turn(cluster: Ints) -> Ints:
    """The order [n] in which one row of each cluster [n] comes before a second of any, and rows as they stood."""
    seen: dict[int, int] = {}
    turn = []
    for of in cluster.tolist():
        turn.append(seen.get(of, 0))
        seen[of] = turn[-1] + 1
    return np.argsort(np.array(turn, np.int64), kind="stable")


_NONE = np.iinfo(np.int64).max


def _rarest_first(tokens: Ints) -> Ints:
    """Each row's distinct tokens as ranks by rarity, [n, length], ascending; what is left of the row is `_NONE`."""
    rows = np.sort(np.asarray(tokens, np.int64), 1)
    repeated = np.zeros(rows.shape, bool)
    repeated[:, 1:] = rows[:, 1:] == rows[:, :-1]
    names, places = np.unique(rows, return_inverse=True)
    places = places.reshape(rows.shape)
    counts = np.bincount(places[~repeated], minlength=len(names))
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(names))
    return np.sort(np.where(repeated, _NONE, rank[places]), 1)


def _rows_by_pair(ranked: Ints, threshold: float) -> tuple[Ints, Ints]:
    """Rows [k] in groups that share two of their rarest tokens, and where each group of two or more starts, [g + 1].

    |A & B| must exceed threshold * |A|, so it is at least a = floor(threshold * |A|) + 1, and the two rarest tokens
    of A & B stand among the |A| - a + 2 rarest of A. (a >= 2, but for sets of one token, which are equal or apart.)
    """
    sizes = (ranked != _NONE).sum(1)
    few = np.minimum(sizes, sizes - np.floor(threshold * sizes).astype(np.int64) + 1)
    width = int(ranked[ranked != _NONE].max(initial=0)) + 1
    keys, rows = [], []
    for second in range(1, int(few.max(initial=0))):
        reach = np.flatnonzero(few > second)
        for first in range(second):
            keys.append(ranked[reach, first] * width + ranked[reach, second])
            rows.append(reach)
    key, row = np.concatenate([*keys, np.empty(0, np.int64)]), np.concatenate([*rows, np.empty(0, np.int64)])
    order = np.lexsort((row, key))
    key, row = key[order], row[order]
    changes = np.flatnonzero(np.diff(key, prepend=-1, append=-1))  # where each key starts, and the end
    shared = np.repeat(np.diff(changes) > 1, np.diff(changes))
    key, row = key[shared], row[shared]
    return row, np.append(np.flatnonzero(np.diff(key, prepend=-1)), len(key))


def _distinct(pairs: Ints, n: int) -> Ints:
    """Pairs [k, 2] of n rows, each once."""
    return np.stack(np.divmod(np.unique(pairs[:, 0] * n + pairs[:, 1]), n), 1)


def _groups_apart(rows: Ints, starts: Ints, roots: Ints) -> Ints:
    """The groups of more than two rows that are not all joined; those that give the same pairs lie together."""
    if len(starts) < 2:
        return np.empty(0, np.int64)
    of = roots[rows]
    differ = np.minimum.reduceat(of, starts[:-1]) != np.maximum.reduceat(of, starts[:-1])
    found = np.flatnonzero(differ & (np.diff(starts) > 2))
    return found[np.argsort(rows[starts[found]], kind="stable")]


def _apart(members: Ints, roots: Ints) -> Iterator[Ints]:
    """Every pair of a group's rows that are not joined, [k, 2] at a time."""
    of = roots[members]
    if (of == of[0]).all():
        return
    step = max(1, _PAIRS_AT_ONCE // len(members))
    for start in range(0, len(members), step):
        a, b = np.nonzero(of[start : start + step, None] != of[None])
        a += start
        later = a < b
        yield np.stack([members[a[later]], members[b[later]]], 1)
