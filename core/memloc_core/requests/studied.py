"""What is being studied: the model, its vocabulary, the paragraphs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from memloc_core.requests.base import BACKGROUND, URGENT, Request, Result, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memloc_core.requests.base import Ints


@dataclass(frozen=True)
class ModelInfo(Result):
    """The loaded model. `identity` stands in every cache key: a hash of weights, dtype, attention, kind of device and
    of what else config.json says, such as a rotary base."""

    name: str
    folder: str
    architecture: str
    fingerprint: str
    identity: str
    dtype: str
    device: str
    attention: str
    layers: int
    heads: int  # per layer; 0 for a model that has none
    width: int
    parameters: int  # numbers, of which tied ones count once
    vocabulary: int
    positions: int  # tokens that it can read; 0: the config names no limit
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenModel(Request):
    """Load a model: `demo`, a Hugging Face checkpoint folder, or the name of one already in the local hub cache.

    `revision`: a branch, tag or commit of that name; "" is `main`.
    """

    answer = ModelInfo
    urgency = BACKGROUND
    keeps = False
    model: str
    dtype: str = "auto"
    device: str = "auto"
    revision: str = ""


@dataclass(frozen=True)
class Vocabulary(Result):
    """The bytes of every token: token `t` is `pieces[offsets[t]:offsets[t + 1]]`. `bos` is -1 where there is none."""

    pieces: NDArray[np.uint8]
    offsets: Ints
    fingerprint: str
    bos: int = -1

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def piece(self, token: int) -> bytes:
        """The bytes of one token, b"" for an id that the tokenizer does not know."""
        if not 0 <= token < len(self):
            return b""
        return self.pieces[self.offsets[token] : self.offsets[token + 1]].tobytes()

    def text(self, tokens: Any) -> str:
        """The tokens' bytes joined and decoded; bytes that are no UTF-8 show as U+FFFD."""
        return b"".join(self.piece(int(t)) for t in tokens).decode("utf-8", "replace")


@dataclass(frozen=True)
class ReadVocabulary(Request):
    """Every token's bytes, from the model folder's tokenizer alone (the weights need not be loaded)."""

    answer = Vocabulary
    urgency = URGENT
    keeps = False
    model: str
    revision: str = ""


@dataclass(frozen=True)
class EncodedText(Result):
    """The token ids of a text, without anything that a tokenizer puts around it."""

    tokens: Ints


@dataclass(frozen=True)
class EncodeText(Request):
    """What the model's own tokenizer makes of a text (the weights need not be loaded)."""

    answer = EncodedText
    urgency = URGENT
    keeps = False
    text: str
    model: str
    revision: str = ""


def paragraph_id(tokens: Ints) -> str:
    """Ten hex digits of the sha256 of the ids: stable across files, orders and machines."""
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()[:10]


@dataclass(frozen=True)
class ParagraphSet(Result):
    """Paragraphs and what is known of them. Unknown: `repetitions` and `family` -1, `genre` and `split` "".

    Where `begin` is a token, every row begins with it, and it is the first of its prefix; the text follows it.
    """

    source: str
    fingerprint: str
    prefix_length: int
    ids: tuple[str, ...]
    tokens: Ints  # [n, length]
    counts: Ints  # [V] unigram counts of the corpus, or of this set where the corpus' are not known
    counts_of: Literal["corpus", "set"]
    repetitions: Ints  # [n]
    family: Ints  # [n]
    genre: tuple[str, ...]
    split: tuple[str, ...]
    notices: tuple[str, ...] = ()
    begin: int = -1  # the begin-of-text token that was asked for, -1: none was

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> Tokens:
        return tuple(self.tokens[index].tolist())

    @property
    def texts(self) -> Ints:
        """The rows without the begin-of-text token, [n, t]."""
        return self.tokens[:, int(self.begin >= 0) :]

    def with_rows(self, rows: Sequence[Tokens], genre: str) -> ParagraphSet:
        """The set with more rows of its length at the end, of which nothing but this genre is known.

        Fingerprint, counts and notices stay those of the set as it was read.
        """
        import numpy as np

        if not rows:
            return self
        more, unknown = np.array(rows, self.tokens.dtype), np.full(len(rows), -1, np.int64)
        return replace(
            self,
            ids=(*self.ids, *map(paragraph_id, more)),
            tokens=np.concatenate([self.tokens, more]),
            repetitions=np.append(self.repetitions, unknown),
            family=np.append(self.family, unknown),
            genre=(*self.genre, *[genre] * len(rows)),
            split=(*self.split, *[""] * len(rows)),
        )

    def prefix_counts(self, index: int) -> Tokens:
        """The corpus count of each prefix token of one paragraph, [p]; -1 for a begin-of-text token: it is no text."""
        before = (-1,) if self.begin >= 0 else ()
        text = self.tokens[index, len(before) : self.prefix_length]
        return (*before, *self.counts[text].tolist())

    def related(self, rows: Sequence[int] | Ints) -> Ints:
        """Cluster number 0.. of each of these rows, [len(rows)]: near-duplicates and a family's members stand together.

        What a statistic over paragraphs resamples or splits by.
        """
        from memloc_core import near_duplicates

        return near_duplicates.related(self.texts[list(rows)], self.family[list(rows)])

    def ranked_tokens(self, strategy: Literal["most-frequent", "rarest"], k: int) -> Tokens:
        """The k tokens with the highest (or lowest, but not zero) corpus count; ties by id."""
        seen = self.counts.nonzero()[0]
        counts = self.counts[seen]
        order = (-counts if strategy == "most-frequent" else counts).argsort(kind="stable")
        return tuple(seen[order[:k]].tolist())


@dataclass(frozen=True)
class OpenParagraphs(Request):
    """Read paragraphs: `demo`, a file, a folder or a data set (`sources.paragraph_files`).

    `model`'s tokenizer reads rows of text. `begin_of_text`: each row begins with the model's own begin-of-text token,
    once, beside the tokens of the prefix.
    """

    answer = ParagraphSet
    urgency = URGENT
    keeps = False
    source: str
    model: str
    prefix_length: int = 50
    continuation_length: int = 50
    revision: str = ""  # of the model
    begin_of_text: bool = False


@dataclass(frozen=True)
class Clusters(Result):
    """Which paragraphs are near-duplicates of which."""

    cluster: Ints  # [n] numbered by first appearance
    sizes: Ints  # [clusters]


@dataclass(frozen=True)
class NearDuplicates(Request):
    """Clusters of paragraphs whose token sets have a Jaccard similarity above `threshold` (0.5 or more; README)."""

    answer = Clusters
    urgency = BACKGROUND
    paragraphs: tuple[Tokens, ...]
    threshold: float = 0.8
