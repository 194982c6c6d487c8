"""What stored runs are called: the number behind a run's letter, and a name of the person's own.

One small JSON file beside the edits, by the fingerprint of the weights and the name of the edit's file. A file that
cannot be read is set aside, never deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from os.path import exists
from pathlib import Path
from typing import Any, NamedTuple

from memloc_tui.edits import folder
from memloc_tui.state import Broken, read

VERSION = 1
LONGEST = 40  # characters of a name
_NUMBERS = 1_000_000


class Label(NamedTuple):
    """Of one run."""

    number: int
    name: str = ""


def place() -> Path:
    """Where they are kept; it need not be there yet."""
    return folder() / "labels.json"


def load(base: str) -> tuple[dict[str, Label], str]:
    """The labels of the runs of these weights whose files are there, by the file's name, and a notice if they cannot be
    read."""
    everything, notice = _read()
    return {file: label for file, label in everything.get(base, {}).items() if exists(folder() / file)}, notice


def of(base: str, file: Path) -> str:
    """The name of the run that made a stored edit of these weights; empty for none."""
    label = load(base)[0].get(file.name)
    return label.name if label is not None else ""


def keep(base: str, changed: Mapping[str, Label]) -> None:
    """Keep these; what another terminal has kept of other files stays. Raises OSError."""
    import json

    from memloc_tui.files import write_whole

    everything, _ = _read()
    everything[base] = load(base)[0] | dict(changed)
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(place(), json.dumps({"version": VERSION, "weights": everything}))


def _read() -> tuple[dict[str, dict[str, Label]], str]:
    try:
        return read(place(), _checked) or {}, ""
    except OSError as error:
        return {}, f"The runs' letters and names could not be read ({error.strerror})."
    except Broken as broken:
        return {}, f"The file of the runs' letters and names is {broken}"


def _checked(saved: Any) -> dict[str, dict[str, Label]]:
    """Raises ValueError, TypeError, KeyError or AttributeError for anything that this version did not write."""
    if saved["version"] != VERSION:
        raise ValueError("another version")
    found: dict[str, dict[str, Label]] = {}
    for base, labels in saved["weights"].items():
        found[base] = {}
        for file, (number, name) in labels.items():
            right = type(number) is int and 0 <= number < _NUMBERS and type(name) is str
            if not right or Path(file).name != file:
                raise TypeError("label")
            found[base][file] = Label(number, name[:LONGEST])
    return found
