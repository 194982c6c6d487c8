"""What the explorer remembers between two sittings: written as you go, because an SSH drop asks nobody.

One small JSON file per model and paragraph set. A file that means nothing is set aside, never deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
VERSION = 1
MOST = 1_000_000  # bytes that are read of a file; a larger one is written without what was done longest ago
TRIED = 20  # trials of each paragraph
Pairs = tuple[tuple[int, int], ...]


@dataclass
class Resume:
    """Where the person was."""

    paragraph: str = ""
    tab: str = "perturb"
    overlay: str = "none"
    sort: str = "EM"
    reverse: bool = False
    filter: str = ""
    reference: str = "auto"
    # By the paragraph's id, what was changed last at the end: what stands in its prefix, and what was tried there,
    # newest first, each as what it was matched against, its replacements, and the heads that were ablated.
    replacements: dict[str, list[list[int]]] = field(default_factory=dict)
    tried: dict[str, list[list[Any]]] = field(default_factory=dict)
    strategy: str = "random"
    draws: int = 1
    seed: int = 0
    given: list[int] = field(default_factory=list)
    verified: bool = False  # sweep in bfloat16, and again where that could matter
    head: list[int] = field(default_factory=lambda: [1, 2])
    ablated: list[list[int]] = field(default_factory=list)
    switches: dict[str, str] = field(default_factory=dict)
    unlearn: dict[str, str] = field(default_factory=dict)  # the form of the next run
    edits: list[list[str]] = field(default_factory=list)  # fingerprint, file, name, "on" or "off"
    edited: bool = False  # whether the edited weights were shown
    marked: list[str] = field(default_factory=list)  # ids of paragraphs

    def replace(self, paragraph: str, replacements: Pairs) -> None:
        """These stand in a paragraph's prefix now."""
        self.replacements.pop(paragraph, None)
        if replacements:
            self.replacements[paragraph] = [list(pair) for pair in replacements]

    def keep_trial(self, paragraph: str, against: str, replacements: Pairs, ablated: Pairs) -> None:
        """A paragraph's newest trial; one that is there already stays where it is."""
        trial = [against, [list(pair) for pair in replacements], [list(pair) for pair in ablated]]
        before = self.tried.pop(paragraph, [])
        self.tried[paragraph] = before if trial in before else [trial, *before][:TRIED]


def state_dir() -> Path:
    """MEMLOC_STATE_DIR, else the user's state folder."""
    if given := os.environ.get("MEMLOC_STATE_DIR"):
        return Path(given)
    from platformdirs import user_state_dir

    return Path(user_state_dir("memloc-tui"))


def state_file(model: str, paragraphs: str) -> Path:
    from hashlib import sha256

    name = sha256("\0".join((model, paragraphs)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return state_dir() / f"{name}.json"


class Broken(Exception):
    """A file that this version did not write; says where it is now, as the end of a sentence."""


def read(path: Path, understood: Callable[[Any], T], most: int = MOST) -> T | None:
    """What `understood` makes of a file's JSON, None where there is no file. Raises OSError, and Broken for a file that
    it makes nothing of (ValueError, TypeError, KeyError or AttributeError), which is set aside."""
    import json

    try:
        with path.open("rb") as file:
            return understood(json.loads(file.read(most)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        aside = path.with_suffix(".broken")
        try:
            path.replace(aside)
        except OSError:
            raise Broken("unreadable, and could not be set aside.") from None
        raise Broken(f"unreadable; the file is kept as {aside.name}.") from None


def load(model: str, paragraphs: str) -> tuple[Resume, str]:
    """What was saved for this model and paragraph set, and a notice if that could not be read."""
    try:
        return read(state_file(model, paragraphs), _resume) or Resume(), ""
    except OSError as error:
        return Resume(), f"Where you were last time could not be read ({error.strerror})."
    except Broken as broken:
        return Resume(), f"Where you were last time is {broken}"


def save(model: str, paragraphs: str, resume: Resume) -> None:
    """Write atomically. Raises OSError."""
    import json

    from memloc_tui.files import write_whole

    path = state_file(model, paragraphs)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    said = {"version": VERSION, "model": model, "paragraphs": paragraphs, **vars(resume)}
    while len(text := json.dumps(said)) > MOST and (done := resume.tried or resume.replacements):
        for paragraph in list(done)[: 1 + len(done) // 8]:
            del done[paragraph]
    write_whole(path, text)


def _resume(saved: dict[str, Any]) -> Resume:
    """Raises ValueError, TypeError or KeyError for anything that this version did not write."""
    if saved["version"] != VERSION:
        raise ValueError("another version")
    if type(before := saved.get("replacements")) is list:  # once only those of the paragraph on screen were kept
        saved["replacements"] = {saved["paragraph"]: before} if before else {}
    resume = Resume(**{k: v for k, v in saved.items() if k not in ("version", "model", "paragraphs")})
    for name, value in asdict(Resume()).items():
        if type(getattr(resume, name)) is not type(value):
            raise TypeError(name)
    for pairs in (*resume.replacements.values(), resume.ablated, [resume.head]):
        _check_pairs(pairs)
    for paragraph, trials in resume.tried.items():
        if type(trials) is not list:
            raise TypeError("trials")
        for against, replaced, ablated in trials:
            if against not in ("true", "own"):
                raise TypeError("trials")
            _check_pairs(replaced)
            _check_pairs(ablated)
        resume.tried[paragraph] = trials[:TRIED]
    if not all(type(x) is str for pair in (*resume.switches.items(), *resume.unlearn.items()) for x in pair):
        raise TypeError("switches")
    if not all(len(edit) == 4 for edit in resume.edits):
        raise TypeError("edits")
    if not all(type(x) is str for texts in (*resume.edits, resume.marked) for x in texts):
        raise TypeError("texts")
    if not all(type(x) is int for x in resume.given) or resume.draws < 1 or resume.draws > 99:
        raise TypeError("sweep options")
    return resume


def _check_pairs(found: object) -> None:
    """Raises TypeError for anything but a list of pairs of numbers."""
    if type(found) is not list or not all(type(pair) is list and len(pair) == 2 for pair in found):
        raise TypeError("pairs")
    if not all(type(x) is int for pair in found for x in pair):
        raise TypeError("numbers")
