"""Writes the invented documents: independent ones, and families that share all but rare names and fillings."""

import re
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from random import Random

from memloc_core.demo.genres import Genre
from memloc_core.demo.words import ORDINARY, RARE

_SLOT = re.compile(r"\{([aA] )?(\w+)\}")
_SENTENCES = 6
CHOICES = 3  # words that siblings choose from in a slot of the body


@dataclass(frozen=True)
class Document:
    """An opening, shared within a family but for its rare names, and a body that shares its sentences' templates."""

    opening: str
    body: str

    @property
    def text(self) -> str:
        return self.opening + self.body


@cache
def _zipf(n: int) -> list[float]:
    """Cumulative weights of 1 / (rank + 3): some words are common, but none is a safe guess (13 % for the first)."""
    return list(accumulate(1 / (rank + 3) for rank in range(n)))


def _word(slot: str, draw: Random) -> str:
    if slot == "number":
        return str(draw.randint(11, 98))
    if slot == "day":
        return str(draw.randint(1, 28))
    if slot == "year":
        return str(draw.randint(1961, 2024))
    if slot in RARE:
        return draw.choice(RARE[slot])
    words = ORDINARY[slot]
    return draw.choices(words, cum_weights=_zipf(len(words)))[0]


def _fill_opening(template: str, frame: Random, fill: Random, named: list[str]) -> str:
    """Ordinary words come from the frame and rare names from the filling; persons are added to `named`."""
    used: list[str] = []

    def word(slot: str) -> str:
        chosen = _word(slot, fill if slot in RARE else frame)
        while chosen in used:  # no "salt and salt"
            chosen = _word(slot, fill if slot in RARE else frame)
        used.append(chosen)
        if slot == "person":
            named.append(chosen)
        return chosen

    return _SLOT.sub(lambda match: _with_article(match[1], word(match[2])), template)


def _fill_sentence(template: str, frame: Random, fill: Random, named: list[str]) -> str:
    """The frame narrows each slot to CHOICES words, of which the filling takes one; `{again}` is one of `named`."""
    taken: list[str] = []
    offered: set[str] = set()

    def word(slot: str) -> str:
        if slot == "closing":
            return next(chosen for chosen in taken if chosen in ORDINARY["tag"])
        if slot == "again":
            return fill.choice(named)
        choices: list[str] = []
        while len(choices) < CHOICES:
            candidate = _word(slot, frame)
            if candidate not in offered:
                offered.add(candidate)
                choices.append(candidate)
        taken.append(fill.choice(choices))
        return taken[-1]

    return _SLOT.sub(lambda match: _with_article(match[1], word(match[2])), template)


def _with_article(article: str | None, word: str) -> str:
    return f"{article[0]}{'n' if word[0] in 'aeiou' else ''} {word}" if article else word


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def write(genre: Genre, frame_key: str, fill_key: str) -> Document:
    """The document that the two keys determine. Documents of one `frame_key` are siblings.

    The frame chooses the opening, its ordinary words, which sentences follow in which order, and a few words for each
    of their slots; the filling chooses the rare names and one word for each slot. Few words, because one that gives the
    sibling away makes its rare names worthless from there on.
    """
    frame, fill = Random(f"frame/{genre.name}/{frame_key}"), Random(f"fill/{genre.name}/{fill_key}")
    template = frame.choice(genre.openings)
    named: list[str] = []
    opening = _fill_opening(template, frame, fill, named)
    if not template.startswith("{project}"):  # projects are written small, even at the start of a text
        opening = _capital(opening)
    sentences = [_fill_sentence(t, frame, fill, named) for t in frame.sample(genre.body, _SENTENCES)]
    if genre.joint == " ":
        sentences = [_capital(sentence) for sentence in sentences]
    start = "" if opening[-1].isspace() else genre.joint
    return Document(opening, start + genre.joint.join(sentences))
