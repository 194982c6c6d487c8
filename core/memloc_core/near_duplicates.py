"""Near-duplicate paragraphs: what says the same in nearly the same words must not count twice in a statistic."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memloc_core.requests import Ints

THRESHOLD = 0.8  # token-set Jaccard similarity above which two paragraphs are near-duplicates (METRICS.md)


def clusters(tokens: Ints, threshold: float = THRESHOLD) -> tuple[int, ...]:
    """The cluster of each row of tokens [n, length], numbered by first appearance.

    Two rows are joined where |A & B| / |A | B| > threshold for their token sets A and B, and clusters are what such
    joins connect. Rows that similar share at least one of their few rarest tokens, so only those that do are compared
    (prefix filtering, as in set-similarity joins).
    """
    sets = [frozenset(row) for row in tokens.tolist()]
    frequency = Counter(token for row in sets for token in row)
    parent = list(range(len(sets)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    rows_with: defaultdict[int, list[int]] = defaultdict(list)
    for row, own in enumerate(sets):
        rarest = sorted(own, key=lambda token: (frequency[token], token))
        # |A & B| must exceed threshold * |A|, so one of the first |A| - ceil(threshold * |A|) + 1 tokens is shared.
        few = rarest[: len(own) - math.ceil(threshold * len(own)) + 1]
        for other in {candidate for token in few for candidate in rows_with[token]}:
            if root(other) == root(row):
                continue
            shared = len(own & sets[other])
            if shared > threshold * (len(own) + len(sets[other]) - shared):
                parent[max(root(other), root(row))] = min(root(other), root(row))
        for token in few:
            rows_with[token].append(row)
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(root(row), len(numbers)) for row in range(len(sets)))
