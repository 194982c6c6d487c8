"""What the claims are tested on: a paragraph set with its exact matches, and the samples that a seed draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memloc_core import near_duplicates
from memloc_core.findings.verdicts import FEWEST, Group, TooLittle
from memloc_core.requests import NON_MEMORIZED_UP_TO, ParagraphSet, Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memloc_core.requests import Floats, Ints, ModelInfo

Stratum = Literal["memorized", "partly", "non-memorized"]
DRAWN_FROM = 4096  # rows of the file, from its beginning
_CANDIDATES = 8  # per paragraph of a sample: among so many it looks for unrelated ones


@dataclass(frozen=True)
class Setting:
    """A model's exact matches `em` [m] and `nll` [m] of the first m = min(n, DRAWN_FROM) rows of a set."""

    paragraphs: ParagraphSet = field(repr=False)
    em: Ints = field(repr=False)
    nll: Floats = field(repr=False)
    model: ModelInfo = field(repr=False)
    quick: bool = False
    seed: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all of the set that findings depend on: its tokens, how they begin, families and counts."""
        p = self.paragraphs
        begins = (f"begins with {p.begin}",) if p.begin >= 0 else ()
        text = "\n".join((p.fingerprint, p.counts_of, ",".join(map(str, p.family.tolist())), *begins))
        return sha256(text.encode() + p.counts.astype("<i8").tobytes()).hexdigest()

    @property
    def p(self) -> int:
        return self.paragraphs.prefix_length

    @property
    def c(self) -> int:
        """Tokens of a continuation: the largest EM."""
        return int(self.paragraphs.tokens.shape[1]) - self.p

    def size(self, quick: int, full: int) -> int:
        """How many paragraphs of each kind a claim looks at."""
        return quick if self.quick else full

    def tokens(self, rows: Sequence[int] | Ints) -> tuple[Tokens, ...]:
        return tuple(map(tuple, self.paragraphs.tokens[np.asarray(rows, int)].tolist()))

    def stratum(self, of: Stratum) -> Ints:
        """All rows of a stratum, in the order of their ids (of their seeded hash, for another seed than 0); none whose
        NLL is no number, since its exact match ended where the model broke."""
        low = NON_MEMORIZED_UP_TO * self.c
        inside = {"memorized": self.em >= self.c, "non-memorized": (self.em >= 0) & (self.em <= low)}
        inside["partly"] = (self.em > low) & (self.em < self.c)
        return self._ordered(np.flatnonzero(inside[of] & np.isfinite(self.nll)))

    def every(self, most: int) -> Ints:
        """At most so many rows of the whole set, in the same order."""
        return self._ordered(np.arange(len(self.em)))[:most]

    def _ordered(self, rows: Ints) -> Ints:
        ids = self.paragraphs.ids

        def key(row: int) -> tuple[str, int]:
            own = ids[row]
            return (sha256(f"{self.seed} {own}".encode()).hexdigest() if self.seed else own), row

        return np.array(sorted(rows.tolist(), key=key), np.int64)

    def sample(self, of: Stratum, most: int) -> Ints:
        """At most so many rows of a stratum, one of each cluster of related ones before a second of any.

        Raises TooLittle where there are fewer than FEWEST clusters.
        """
        if (of, most) not in self._samples:
            self._samples[of, most] = self._drawn(of, most)
        return self._samples[of, most]

    @cached_property
    def _samples(self) -> dict[tuple[Stratum, int], Ints]:
        return {}

    def _drawn(self, of: Stratum, most: int) -> Ints:
        every = self.stratum(of)
        for rows in (every[: _CANDIDATES * most], every):  # the whole stratum where its beginning is much the same
            clusters = self.related(rows)
            if len(np.unique(clusters)) >= FEWEST:
                return rows[near_duplicates.in_turn(clusters)[:most]]
        raise TooLittle(lacking(of, len(every), len(np.unique(clusters)), len(self.em)))

    def related(self, rows: Sequence[int] | Ints) -> Ints:
        """Cluster number 0.. of each row, [len(rows)]: near-duplicates and members of one family stand together."""
        return self.paragraphs.related(rows)

    def groups(self, *parts: tuple[Ints, NDArray[Any]]) -> list[Group]:
        """(rows, values) of each group, with clusters numbered over all of them."""
        clusters = self.related(np.concatenate([rows for rows, _ in parts]))
        ends = np.cumsum([len(rows) for rows, _ in parts])[:-1]
        own = np.split(clusters, ends)
        return [
            Group(np.asarray(values, np.float64), numbers, rows)
            for (rows, values), numbers in zip(parts, own, strict=True)
        ]


def lacking(of: Stratum, rows: int, clusters: int, total: int) -> str:
    """Why there is no sample of a stratum."""
    if total == 1:
        return "A set of one paragraph shows no difference between paragraphs."
    said = "no" if rows == 0 else f"{rows}"
    if rows and clusters < rows:
        said = f"{rows} {of} paragraphs in {clusters} cluster{'s' * (clusters != 1)} of related ones"
    else:
        said += f" {of} paragraph{'s' * (rows != 1)}"
    return f"This set has {said}; at least {FEWEST} unrelated ones are needed."
