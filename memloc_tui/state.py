"""What the explorer remembers between two sittings: written as you go, because an SSH drop asks nobody.

One small JSON file per model and paragraph set. A file that cannot be read is set aside, never deleted.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1


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
    replacements: list[list[int]] = field(default_factory=list)
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


def load(model: str, paragraphs: str) -> tuple[Resume, str]:
    """What was saved for this model and paragraph set, and a notice if that could not be read."""
    import json

    path = state_file(model, paragraphs)
    try:
        with path.open("rb") as file:
            return _resume(json.loads(file.read(1_000_000))), ""
    except FileNotFoundError:
        return Resume(), ""
    except OSError as error:
        return Resume(), f"Where you were last time could not be read ({error.strerror})."
    except (ValueError, TypeError, KeyError, RecursionError):
        aside = path.with_suffix(".broken")
        try:
            path.replace(aside)
        except OSError:
            return Resume(), "Where you were last time is unreadable, and could not be set aside."
        return Resume(), f"Where you were last time is unreadable; the file is kept as {aside.name}."


def save(model: str, paragraphs: str, resume: Resume) -> None:
    """Write atomically. Raises OSError."""
    import json

    from memloc_tui.files import write_whole

    path = state_file(model, paragraphs)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = json.dumps({"version": VERSION, "model": model, "paragraphs": paragraphs, **asdict(resume)})
    write_whole(path, text)


def _resume(saved: dict[str, Any]) -> Resume:
    """Raises ValueError, TypeError or KeyError for anything that this version did not write."""
    if saved["version"] != VERSION:
        raise ValueError("another version")
    resume = Resume(**{k: v for k, v in saved.items() if k not in ("version", "model", "paragraphs")})
    for name, value in asdict(Resume()).items():
        if type(getattr(resume, name)) is not type(value):
            raise TypeError(name)
    for pair in (*resume.replacements, *resume.ablated, resume.head):
        if len(pair) != 2 or not all(type(x) is int for x in pair):
            raise TypeError("pairs")
    if not all(type(x) is str for pair in (*resume.switches.items(), *resume.unlearn.items()) for x in pair):
        raise TypeError("switches")
    if not all(len(edit) == 4 for edit in resume.edits):
        raise TypeError("edits")
    if not all(type(x) is str for texts in (*resume.edits, resume.marked) for x in texts):
        raise TypeError("texts")
    if not all(type(x) is int for x in resume.given) or resume.draws < 1 or resume.draws > 99:
        raise TypeError("sweep options")
    return resume
