"""Texts of the person's own, kept for the next sitting: one JSON file per vocabulary, written with each that comes or
goes. A file that means nothing is set aside, never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memloc_tui.files import write_whole
from memloc_tui.state import Broken, read, state_dir

if TYPE_CHECKING:
    from memloc_core.requests import Tokens, Vocabulary

VERSION = 1
MOST = 200  # texts
MOST_BYTES = 4_000_000  # that are written to a file, and read of it


class OwnText(NamedTuple):
    """Token ids, and the text that they stand for."""

    tokens: Tokens
    text: str


class Full(Exception):
    """No more texts are kept; says so in a sentence."""


def own_file(vocabulary: Vocabulary) -> Path:
    return state_dir() / f"own-{sha256(vocabulary.fingerprint.encode()).hexdigest()[:16]}.json"


def load(vocabulary: Vocabulary) -> tuple[list[OwnText], str]:
    """The texts in the order in which they were given, and a notice if they could not be read."""
    try:
        return _kept(vocabulary), ""
    except OSError as error:
        return [], f"The texts of your own could not be read ({error.strerror})."
    except Broken as broken:
        return [], f"The file of your own texts is {broken}"


def keep(vocabulary: Vocabulary, text: OwnText) -> None:
    """Write one more, unless it is there. Raises OSError, and Full where there is no room."""
    _change(vocabulary, lambda texts: [*texts, text] if text not in texts else texts)


def drop(vocabulary: Vocabulary, unwanted: Callable[[OwnText], bool]) -> None:
    """Keep these no more. Raises OSError."""
    _change(vocabulary, lambda texts: [text for text in texts if not unwanted(text)])


def _change(vocabulary: Vocabulary, changed: Callable[[list[OwnText]], list[OwnText]]) -> None:
    """As the file is now: another explorer may have written to it since."""
    try:
        before = _kept(vocabulary)
    except Broken:  # it is set aside
        before = []
    if (texts := changed(before)) == before:
        return
    said = {"version": VERSION, "vocabulary": vocabulary.fingerprint, "texts": [text._asdict() for text in texts]}
    document = json.dumps(said)
    if len(texts) > len(before) and (len(texts) > MOST or len(document) > MOST_BYTES):
        raise Full(f"{len(before)} texts of your own are kept, and there is no room for more: - takes one away.")
    path = own_file(vocabulary)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, document)


def _kept(vocabulary: Vocabulary) -> list[OwnText]:
    """Raises OSError and Broken."""
    return read(own_file(vocabulary), partial(_texts, vocabulary), MOST_BYTES) or []


def _texts(vocabulary: Vocabulary, saved: dict[str, Any]) -> list[OwnText]:
    """Raises ValueError, TypeError or KeyError for anything that this version did not write."""
    if saved["version"] != VERSION or saved["vocabulary"] != vocabulary.fingerprint:
        raise ValueError("another version, or other token ids")
    texts = [OwnText(tuple(entry["tokens"]), entry["text"]) for entry in saved["texts"]]
    for tokens, text in texts:
        if type(text) is not str or not all(type(t) is int and 0 <= t < len(vocabulary) for t in tokens):
            raise TypeError("texts")
    return texts[:MOST]
