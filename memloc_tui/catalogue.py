"""The paragraph list's data: scores as they arrive, the filter's terms, and the order in which rows are shown.

Nothing here draws. Numpy is imported inside: the first frame comes before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from memloc_core.requests import (
    NON_MEMORIZED_UP_TO,
    ExactMatch,
    ExactMatches,
    ParagraphSet,
    Reference,
    Strategy,
    Sweep,
    Tokens,
    Vocabulary,
)
from memloc_tui.glyphs import visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 64
OWN = "own"  # the genre of texts that the person typed
Sort = Literal["EM", "change", "NLL", "margin", "count", "told", "genre", "file"]
SORTS: tuple[Sort, ...] = get_args(Sort)
Stratum = Literal["memorized", "partly", "non-memorized", "unknown"]
STRATA: tuple[Stratum, ...] = ("memorized", "partly", "non-memorized")

FILTER_HELP = (
    ("words", "paragraphs whose text holds the words, in any case"),
    ('"two words"', "the same, as one string"),
    ("em>=50  nll<1  margin<0.001  count>=32", "numbers: < <= > >= = on em, nll, margin, count, family"),
    ("change<0", "under edited weights: paragraphs that lost exact match by the edit"),
    ("genre:recipe  split:fresh  id:3fa", "genre, split and id by their beginning"),
    (f"genre:{OWN}", "texts of your own"),
    ("is:memorized  is:partly  is:non-memorized", "strata by exact match"),
    ("is:perturbed", "paragraphs with replacements of yours"),
    ("is:marked", "paragraphs that the next run changes together"),
)
_NUMBERS = ("em", "change", "nll", "margin", "count", "family")
_WORDS = ("genre", "split", "id", "is")
_NUMBER_TERM = re.compile(r"([A-Za-z_]+)(<=|>=|<|>|=)(\S*)")
_WORD_TERM = re.compile(r"([A-Za-z_]+):(\S*)")


class FilterError(ValueError):
    """A filter term that means nothing, in a sentence for the person who typed it."""


class Term(NamedTuple):
    """One condition of a filter: a field, how to compare (`has` for text), and with what."""

    field: str
    compare: str
    value: Any


def parse_filter(text: str) -> tuple[Term, ...]:
    """The filter's terms, all of which must hold. Raises FilterError with what to write instead."""
    terms = []
    for quoted, word in re.findall(r'"([^"]*)"?|(\S+)', text):
        if quoted:
            terms.append(Term("text", "has", quoted.lower()))
        elif word:
            terms.append(_term(word))
    return tuple(terms)


def _term(word: str) -> Term:
    if match := _NUMBER_TERM.fullmatch(word):
        name, compare, value = match.groups()
        if name.lower() in _NUMBERS:
            try:
                return Term(name.lower(), compare, float(value))
            except ValueError:
                raise FilterError(f"{name}{compare} needs a number, such as {name.lower()}{compare}10.") from None
        if re.fullmatch(r"-?[0-9.]+", value):
            raise FilterError(f"There is no number called {visible(name)}; there are {', '.join(_NUMBERS)}.")
    if match := _WORD_TERM.fullmatch(word):
        name, value = match.groups()
        if name.lower() == "is" and value not in (*STRATA, "perturbed", "marked"):
            raise FilterError(f"is: takes {', '.join(STRATA)}, perturbed or marked.")
        if name.lower() in _WORDS:
            return Term(name.lower(), "has", value.lower())
        if name.lower() in _NUMBERS:
            raise FilterError(f"{name} is a number: write {name.lower()}>=10, or <, <=, >, =.")
    return Term("text", "has", word.lower())


class Catalogue:
    """Paragraphs with their scores, -1 and nan where not known yet.

    `file`: the set as it was read, where `paragraphs` goes on behind it with texts of the person's own. Samples, claims
    and groups are drawn from the file's rows alone. A row keeps its number: one that is taken away is `gone`.
    """

    def __init__(self, paragraphs: ParagraphSet, vocabulary: Vocabulary, file: ParagraphSet | None = None) -> None:
        import numpy as np

        self.paragraphs, self.vocabulary = paragraphs, vocabulary
        self.file = file if file is not None else paragraphs
        self.gone: set[int] = set()
        self.length = int(paragraphs.tokens.shape[1]) - paragraphs.prefix_length
        offsets = vocabulary.offsets.tolist()
        buffer = vocabulary.pieces.tobytes()
        self.pieces = [buffer[a:b] for a, b in pairwise(offsets)]
        self._lower: dict[int, str] = {}
        self._snippets: dict[int, str] = {}
        n = len(paragraphs)
        self.em: NDArray[Any] = np.full(n, -1, np.int64)
        self.nll: NDArray[Any] = np.full(n, np.nan, np.float32)
        self.margin: NDArray[Any] = np.full(n, np.nan, np.float32)
        self.told: NDArray[Any] = np.full(n, -1.0)  # probability of being memorized, by the prefix alone
        self._answers: dict[int, tuple[ExactMatches, int]] = {}
        self.perturbed: set[int] = set()
        self.marked: set[int] = set()  # to be changed together by the next run
        self.original: Catalogue | None = None  # of edited weights: the same paragraphs under the original ones

    def __len__(self) -> int:
        return len(self.paragraphs)

    def extend(self, paragraphs: ParagraphSet) -> None:
        """The same paragraphs and more behind them, of which nothing is known yet."""
        import numpy as np

        more = len(paragraphs) - len(self)
        self.em = np.append(self.em, np.full(more, -1, np.int64))
        self.nll = np.append(self.nll, np.full(more, np.nan, np.float32))
        self.margin = np.append(self.margin, np.full(more, np.nan, np.float32))
        self.told = np.append(self.told, np.full(more, -1.0))
        self.paragraphs = paragraphs

    def is_own(self, row: int) -> bool:
        """Whether this is a text of the person's own."""
        return row >= len(self.file)

    @property
    def there(self) -> int:
        """How many rows there are without those that were taken away."""
        return len(self) - len(self.gone)

    # ------------------------------------------------------------------------------------------------------ scores

    @property
    def change(self) -> NDArray[Any]:
        """Exact match under these weights - under the original ones, [n]; nan where one of them is not known."""
        import numpy as np

        before = np.full(len(self), -1) if self.original is None else self.original.em
        return np.where((self.em < 0) | (before < 0), np.nan, self.em - before)

    @property
    def known(self) -> int:
        """How many rows have their exact match."""
        return sum(self.strata.values())

    @property
    def strata(self) -> dict[str, int]:
        """How many rows are in each stratum."""
        import numpy as np

        em = np.delete(self.em, list(self.gone)) if self.gone else self.em
        strata: dict[str, int] = dict.fromkeys(STRATA, 0)
        for value, n in enumerate(np.bincount(np.minimum(em[em >= 0], self.length)).tolist()):
            strata[self.stratum_of(value)] += n
        return strata

    @property
    def chunks(self) -> int:
        return self._file_chunks + len(self) - len(self.file)

    @property
    def _file_chunks(self) -> int:
        return -(-len(self.file) // CHUNK)

    def chunk_of(self, row: int) -> int:
        """The chunk that holds a row: a text of the person's own is one by itself, so that it makes none ask anew."""
        return self._file_chunks + row - len(self.file) if self.is_own(row) else row // CHUNK

    def rows_in(self, chunk: int) -> range:
        """A chunk's rows."""
        if chunk >= self._file_chunks:
            row = len(self.file) + chunk - self._file_chunks
            return range(row, row + 1)
        return range(CHUNK * chunk, min(CHUNK * (chunk + 1), len(self.file)))

    def request(self, chunk: int) -> ExactMatch:
        """The question about a chunk's rows. Always the same rows, so that the cache knows it again."""
        rows = self.rows_in(chunk)
        tokens = self.paragraphs.tokens[rows.start : rows.stop].tolist()
        return ExactMatch(tuple(map(tuple, tokens)), self.paragraphs.prefix_length)

    def learn(self, chunk: int, result: ExactMatches) -> range:
        """Keep a chunk's scores; the rows that they belong to."""
        rows = self.rows_in(chunk)
        self.em[rows.start : rows.stop] = result.em
        self.nll[rows.start : rows.stop] = result.nll
        self.margin[rows.start : rows.stop] = result.margin
        for offset, row in enumerate(rows):
            self._answers[row] = (result, offset)
        return rows

    def scored(self, row: int) -> tuple[ExactMatches, int] | None:
        """The result that holds this row's scores, and where in it."""
        return self._answers.get(row)

    def known_of(self, rows: Sequence[int] | slice) -> int:
        """How many of these rows have their exact match."""
        return int((self.em[rows] >= 0).sum())

    def stratum_of(self, em: int) -> Stratum:
        """memorized: all of the continuation; non-memorized: up to a fifth (EM 10 of 50); between them: partly."""
        if em < 0:
            return "unknown"
        if em >= self.length:
            return "memorized"
        return "non-memorized" if em <= NON_MEMORIZED_UP_TO * self.length else "partly"

    def reference(self, row: int, mode: str = "auto") -> Reference:
        """ "auto": the true text, but the model's own where the exact match is near 0 anyway (the paper's choice)."""
        if mode not in ("true", "own"):
            mode = "own" if self.stratum_of(int(self.em[row])) == "non-memorized" else "true"
        return "own" if mode == "own" else "true"

    def sweep(
        self,
        row: int,
        strategy: Strategy = "random",
        draws: int = 1,
        seed: int = 0,
        tokens: Tokens = (),
        reference: str = "auto",
        verified: bool = False,
    ) -> Sweep:
        """The question about one row's prefix; reference "auto" needs the row to be scored."""
        p = self.paragraphs
        if strategy == "most-frequent" or strategy == "rarest":
            tokens = p.ranked_tokens(strategy, draws + 1)
        # The seed says nothing about the other strategies, and must not make a new question of an answered one.
        seed = seed if strategy == "random" else 0
        own = self.reference(row, reference)
        return Sweep(p.row(row), strategy, draws, seed, tokens, p.prefix_length, own, verified)

    # -------------------------------------------------------------------------------------------------------- text

    def count(self, token: int) -> int:
        """How often a token stands in the corpus; 0 for an id beyond those that were counted."""
        counts = self.paragraphs.counts
        return int(counts[token]) if 0 <= token < len(counts) else 0

    def rows_called(self, ids: set[str]) -> dict[str, int]:
        """The row of each of these ids that is in the set; the first one, of copies."""
        rows: dict[str, int] = {}
        for row, id_ in enumerate(self.paragraphs.ids):
            if id_ in ids:
                rows.setdefault(id_, row)
        return rows

    def rows_of(self, paragraphs: Sequence[Tokens]) -> tuple[int, ...]:
        """The rows of these paragraphs, as far as they are in the set."""
        import numpy as np

        tokens = self.paragraphs.tokens
        rows: list[int] = []
        for paragraph in paragraphs:
            if len(paragraph) == tokens.shape[1]:
                rows += np.flatnonzero((tokens == np.array(paragraph)).all(1))[:1].tolist()
        return tuple(rows)

    def text(self, row: int) -> str:
        """The paragraph's raw text: only for searching and copying, never for the screen."""
        pieces = self.pieces
        tokens = self.paragraphs.texts[row].tolist()
        return b"".join(pieces[t] if 0 <= t < len(pieces) else b"" for t in tokens).decode("utf-8", "replace")

    def snippet(self, row: int) -> str:
        """The beginning of the paragraph, fit for the screen, on one line."""
        if row not in self._snippets:
            if len(self._snippets) > 4096:
                self._snippets.clear()
            tokens = self.paragraphs.texts[row, :40].tolist()
            known = len(self.pieces)
            start = b"".join(self.pieces[t] if 0 <= t < known else b"" for t in tokens).decode(
                "utf-8", "surrogateescape"
            )
            self._snippets[row] = visible(start.lstrip(" ")[:120])
        return self._snippets[row]

    def lower(self, row: int) -> str:
        if row not in self._lower:
            self._lower[row] = self.text(row).lower()
        return self._lower[row]

    # ---------------------------------------------------------------------------------------------- filter and sort

    def matching(self, terms: tuple[Term, ...], step: int = 500) -> Iterator[list[int]]:
        """The rows for which all terms hold, in the file's order, `step` looked at per list: the caller may pause."""
        tests = [self._test(t) for t in terms]
        for start in range(0, len(self), step):
            rows: Sequence[int] = range(start, min(start + step, len(self)))
            if self.gone:
                rows = [row for row in rows if row not in self.gone]
            yield [row for row in rows if all(test(row) for test in tests)] if tests else list(rows)

    def _test(self, term: Term) -> Callable[[int], bool]:
        name, compare, value = term
        p = self.paragraphs
        if name == "text":
            return lambda row: value in self.lower(row)
        if name == "is":
            if value == "perturbed":
                return lambda row: row in self.perturbed
            if value == "marked":
                return lambda row: row in self.marked
            return lambda row: self.stratum_of(int(self.em[row])) == value
        if name in ("genre", "split", "id"):
            names = {"genre": p.genre, "split": p.split, "id": p.ids}[name]
            return lambda row: names[row].lower().startswith(value)
        numbers = {"em": self.em, "nll": self.nll, "margin": self.margin, "count": p.repetitions, "family": p.family}
        column: list[float] = (self.change if name == "change" else numbers[name]).tolist()
        unknown, than = name in ("em", "count", "family"), float(value)

        def holds(row: int) -> bool:
            x = column[row]
            if unknown and x < 0:
                return False
            return {"<": x < than, "<=": x <= than, ">": x > than, ">=": x >= than, "=": x == than}[compare]

        return holds

    def ordered(self, rows: list[int], sort: Sort, reverse: bool) -> list[int]:
        """`rows` by the sort's natural direction (highest EM, most lost, lowest NLL, ... first); unknown ones stay
        last."""
        import numpy as np

        p = self.paragraphs
        if sort == "file":
            return rows[::-1] if reverse else rows
        if sort == "genre":
            return sorted(rows, key=lambda row: p.genre[row], reverse=reverse)
        index = np.array(rows, np.int64)
        key, second = {
            "EM": (-self.em[index].astype(np.float64), -p.repetitions[index]),
            "change": (np.nan_to_num(self.change[index], nan=np.inf), -self.em[index]),
            "NLL": (self.nll[index].astype(np.float64), -p.repetitions[index]),
            "margin": (self.margin[index].astype(np.float64), -p.repetitions[index]),
            "count": (-p.repetitions[index].astype(np.float64), -self.em[index]),
            "told": (-self.told[index], -self.em[index]),
        }[sort]
        absent = {"count": p.repetitions < 0, "told": self.told < 0, "change": np.isnan(self.change)}
        unknown = absent.get(sort, self.em < 0)[index]
        order = np.lexsort((index, second, -key if reverse else key, unknown))
        ordered: list[int] = index[order].tolist()
        return ordered
