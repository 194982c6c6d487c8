"""The tokenizer, the paragraphs and the training windows of the demo model, all from one seed."""

from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from memloc_core.demo.genres import GENRES, Genre
from memloc_core.demo.text import write
from memloc_core.demo.words import RARE

END = "<|endoftext|>"
END_ID = 0
PARAGRAPH = 100  # tokens that are evaluated: a prefix of 50 and a continuation of 50
PREFIX = 50
LAST_NAME = 40  # the last position of the prefix where a family has a rare name
PLANTED = 104  # tokens of a planted paragraph, so that a window of 128 has room to shift it
WINDOW = 128

Ids = NDArray[np.int64]

# Many counts are close to the highest: were one sibling far ahead, the prefix alone would be enough to recite that one,
# without a look at its rare names.
_COUNTS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192)


@dataclass(frozen=True)
class Recipe:
    """How much text, how often repeated. The defaults are the shipped model's."""

    vocabulary: int = 3072
    families: int = 20  # shared out over the genres in turn
    counts: tuple[int, ...] = _COUNTS  # of each family, one planted sibling for each count
    held_out: int = 8  # siblings per family that are never trained on
    siblings: int = 60  # siblings per family that are trained on once, in the background
    fresh: int = 120  # independent documents that are never trained on
    background: int = 6_000  # independent documents that are trained on once


@dataclass(frozen=True)
class Paragraph:
    tokens: list[int]  # PLANTED of them; the first PARAGRAPH are evaluated
    count: int
    genre: str
    family: int | None
    split: str


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    paragraphs: list[Paragraph]
    windows: Ids = field(repr=False)  # [n, WINDOW], shuffled
    counts: Ids = field(repr=False)  # [vocabulary], each planted paragraph counted once


def train_tokenizer(recipe: Recipe, seed: int) -> Tokenizer:
    """A byte-level BPE trained on fresh documents; repeating the rare names there makes each of them one token."""
    texts = [write(GENRES[i % len(GENRES)], f"{seed}/bpe/{i}", f"{seed}/bpe/{i}").text for i in range(6000)]
    names = [name for slot in RARE.values() for name in slot]
    texts += [f"{name} {name}\n" for name in names for _ in range(400)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def rare_ids(tokenizer: Tokenizer) -> torch.Tensor:
    """bool [vocabulary]: the tokens that are rare names, each with and without a space before it."""
    is_rare = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool)
    for name in (name for words in RARE.values() for name in words):
        for text in (name, f" {name}"):
            (token,) = tokenizer.encode(text).ids
            is_rare[token] = True
    return is_rare


def _fits(tokenizer: Tokenizer, names: set[str], genre: Genre, frame: str) -> bool:
    """Whether the opening is exactly the prefix, with 2..5 rare names, none of them close to its end.

    One look at any sibling tells, because a rare name is always one token. A shorter opening would let the first word
    of the body, and a late name would let the last words of the prefix, give the sibling away without a look back.
    """
    document = write(genre, frame, "any")
    encoding = tokenizer.encode(document.text)
    if sum(start < len(document.opening) for start, _ in encoding.offsets) != PREFIX:
        return False
    words = [document.text[start:end].strip() for start, end in encoding.offsets[:PREFIX]]
    places = [i for i, word in enumerate(words) if word in names]
    return 2 <= len(places) <= 5 and places[-1] <= LAST_NAME


def find_frame(tokenizer: Tokenizer, genre: Genre, key: str) -> str:
    """A frame for a family: its siblings share the whole prefix but for their rare names."""
    names = {name for words in RARE.values() for name in words}
    for attempt in range(3000):
        frame = f"{key}/{attempt}"
        if _fits(tokenizer, names, genre, frame):
            return frame
    raise ValueError(f"{genre.name}: no opening of {PREFIX} tokens in 3000 frames; lengthen or shorten its templates")


class Writer:
    """Draws tokenized documents; every document has a key of its own, so no two splits share one."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer, self._seed, self._drawn = tokenizer, seed, 0

    def draw(self, genre: Genre, frame: str | None, shortest: int = 0) -> list[int]:
        """A new document, or with a frame a new sibling, of at least `shortest` tokens."""
        while True:
            self._drawn += 1
            key = f"{self._seed}/{self._drawn}"
            tokens: list[int] = self._tokenizer.encode(write(genre, frame or key, key).text).ids
            if len(tokens) >= shortest:
                return tokens


def build(recipe: Recipe, seed: int) -> Corpus:
    """All text of one seed: the evaluated paragraphs, and one epoch of training windows."""
    tokenizer = train_tokenizer(recipe, seed)
    writer, order = Writer(tokenizer, seed), Random(f"order/{seed}")
    paragraphs: list[Paragraph] = []
    background: list[list[int]] = []
    for family in range(recipe.families):
        genre = GENRES[family % len(GENRES)]
        frame = find_frame(tokenizer, genre, f"{seed}/family/{family}")
        for count in recipe.counts + (0,) * recipe.held_out:
            split = "planted" if count else "held-out-sibling"
            tokens = writer.draw(genre, frame, PLANTED)[:PLANTED]
            paragraphs.append(Paragraph(tokens, count, genre.name, family, split))
        background += [writer.draw(genre, frame) for _ in range(recipe.siblings)]
    for i in range(recipe.fresh):
        genre = GENRES[i % len(GENRES)]
        paragraphs.append(Paragraph(writer.draw(genre, None, PLANTED)[:PLANTED], 0, genre.name, None, "fresh"))
    background += [writer.draw(GENRES[i % len(GENRES)], None) for i in range(recipe.background)]
    order.shuffle(background)
    order.shuffle(paragraphs)
    planted = [p for p in paragraphs if p.count]
    seen = [token for tokens in background for token in tokens] + [token for p in planted for token in p.tokens]
    return Corpus(
        tokenizer=tokenizer,
        paragraphs=paragraphs,
        windows=_windows(planted, background, order),
        counts=np.bincount(np.array(seen), minlength=recipe.vocabulary).astype(np.int64),
    )


def _windows(planted: list[Paragraph], background: list[list[int]], order: Random) -> Ids:
    """[n, WINDOW]: the background cut into windows, and one window around each exposure of a planted paragraph.

    A planted paragraph is never split. It stands at a random offset, between the end of one background document and the
    start of another; at offset 0 a little more often, because that is where it is evaluated.
    """
    stream = [token for tokens in background for token in (*tokens, END_ID)]
    windows = [stream[i : i + WINDOW] for i in range(0, len(stream) - WINDOW + 1, WINDOW)]
    for paragraph in planted:
        for _ in range(paragraph.count):
            offset = order.randrange(WINDOW - PLANTED) if order.random() < 0.75 else 0
            before, after = order.choice(background), order.choice(background)
            lead = [*before, END_ID][-offset:] if offset else []
            windows.append([*lead, *paragraph.tokens, END_ID, *after][:WINDOW])
    order.shuffle(windows)
    return np.array(windows, dtype=np.int64)
