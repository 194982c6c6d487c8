"""Sets of paragraphs that the panels compare with: which ones, and the questions about them.

A sample is the first paragraphs of a stratum in the order of their ids, one of each cluster of related ones before a
second of any. So it says the same in every sitting, and the cache knows its answers again. It exists once every exact
match that it is drawn from is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from memloc_core.requests import (
    ContrastGradients,
    HeadAblation,
    ParameterGradients,
    RareTokens,
    Rarity,
    Request,
    Tokens,
)

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue

Q = TypeVar("Q", bound=Request)
Of = Literal["memorized", "non-memorized"]
OF: tuple[Of, Of] = ("memorized", "non-memorized")

DRAWN_FROM = 4096  # rows of the file
GRADIENTS, RARITY, ABLATION, RARE = 32, 64, 16, 32  # paragraphs per sample
CANDIDATES = 512  # of a stratum, among which related ones are told apart
COMMON_TOKENS = 16  # that rare ones are replaced by
FEWEST = 10  # what the statistics need at least


class Samples:
    """The samples of one catalogue. Requests are made once: they are large."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._strata: dict[Of, tuple[int, ...]] = {}
        self._requests: dict[tuple[Any, ...], Request] = {}

    @property
    def size(self) -> int:
        return min(DRAWN_FROM, len(self.catalogue.file))

    @property
    def known(self) -> int:
        """How many of the `size` rows that samples are drawn from have their exact match."""
        return self.catalogue.known_of(slice(self.size))

    @property
    def ready(self) -> bool:
        return self.known == self.size

    def stratum(self, of: Of) -> tuple[int, ...]:
        """All rows of a stratum, samples' first, of copies the first; () until every exact match is known."""
        if of not in self._strata and self.ready:
            from memloc_core.near_duplicates import in_turn

            paragraphs, ems = self.catalogue.paragraphs, self.catalogue.em[: self.size].tolist()
            ids = paragraphs.ids
            rows = {ids[row]: row for row in reversed(range(self.size)) if self.catalogue.stratum_of(ems[row]) == of}
            ordered = [rows[id_] for id_ in sorted(rows)]
            order = in_turn(paragraphs.related(ordered[:CANDIDATES])).tolist()
            self._strata[of] = (*(ordered[i] for i in order), *ordered[CANDIDATES:])
        return self._strata.get(of, ())

    def said(self, of: Of, most: int) -> str:
        """`32 memorized (of 182)`."""
        total = len(self.stratum(of))
        return f"{min(most, total)} {of} (of {total:,})" if total > most else f"{total} {of}"

    def lacks(self, *wanted: tuple[Of, int]) -> str:
        """Why there is no such sample, in a sentence; "" where there is one."""
        if not self.ready:
            return f"waits for the exact matches of the list: {self.known:,} of {self.size:,} known"
        for of, fewest in wanted:
            if (n := len(self.stratum(of))) < fewest:
                return f"needs at least {fewest} {of} paragraphs; this set has {n}"
        return ""

    def gradients(self, of: Of) -> ParameterGradients | None:
        """Of each paragraph of a stratum's sample."""
        if self.lacks((of, 1)):
            return None
        return self._once(ParameterGradients, of, lambda: ParameterGradients(self._tokens(of, GRADIENTS), self._p))

    def contrast(self) -> ContrastGradients | None:
        """Memorized against non-memorized."""
        if self.lacks((OF[0], 1), (OF[1], 1)):
            return None
        return self._once(
            ContrastGradients,
            "",
            lambda: ContrastGradients(self._tokens(OF[0], GRADIENTS), self._tokens(OF[1], GRADIENTS), self._p),
        )

    def rarity(self, query: int) -> Rarity | None:
        if self.lacks((OF[0], FEWEST)):
            return None

        def make() -> Rarity:
            rows = self.stratum(OF[0])[:RARITY]
            return Rarity(
                self._tokens(OF[0], RARITY), self._counts(rows), self._p, query, clusters=self._clusters(rows)
            )

        return self._once(Rarity, query, make)

    def ablation(self) -> HeadAblation | None:
        """Every head in turn; the general text is the non-memorized sample's own."""
        if self.lacks((OF[0], 1)):
            return None
        memorized, other = self._tokens(OF[0], ABLATION), self._tokens(OF[1], ABLATION)
        return self._once(HeadAblation, "", lambda: HeadAblation(memorized, other, other, self._p))

    def rare_tokens(self) -> RareTokens | None:
        if self.lacks((OF[0], FEWEST)):
            return None

        def make() -> RareTokens:
            rows = self.stratum(OF[0])[:RARE]
            common = self.catalogue.paragraphs.ranked_tokens("most-frequent", COMMON_TOKENS)
            pairs = max(1, min(5, self._p // 2))
            return RareTokens(
                self._tokens(OF[0], RARE),
                self._counts(rows),
                common,
                pairs,
                self._p,
                clusters=self._clusters(rows),
            )

        return self._once(RareTokens, "", make)

    @property
    def _p(self) -> int:
        return self.catalogue.paragraphs.prefix_length

    def _once(self, kind: type[Q], key: object, make: Callable[[], Q]) -> Q:
        known = self._requests.get((kind, key))
        if not isinstance(known, kind):
            known = self._requests[kind, key] = make()
        return known

    def _tokens(self, of: Of, most: int) -> tuple[Tokens, ...]:
        return tuple(self.catalogue.paragraphs.row(row) for row in self.stratum(of)[:most])

    def _counts(self, rows: tuple[int, ...]) -> tuple[Tokens, ...]:
        return tuple(self.catalogue.paragraphs.prefix_counts(row) for row in rows)

    def _clusters(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.catalogue.paragraphs.related(rows).tolist())
