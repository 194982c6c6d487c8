"""The edits a person keeps: a folder of edit files in the state folder, and which of them are active in a sitting.

A file is named by the first letters of its edit's fingerprint. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memloc_core.errors import MemlocError, UsageError
from memloc_tui.state import state_dir

if TYPE_CHECKING:
    from memloc_core.edit_files import Summary
    from memloc_core.requests import Answer, ModelInfo

SUFFIX = ".safetensors"
_NAMED_BY = 16  # hex digits of the fingerprint in a stored file's name
SHORT = 8  # hex digits that people see
_RUNS_READ = 200  # at most, the newest


@dataclass(frozen=True)
class ActiveEdit:
    """An edit of a sitting; `on` says whether the questions are asked with it."""

    fingerprint: str
    file: str
    name: str
    on: bool = True
    base: str = ""  # the fingerprint of the weights it belongs to; "": the engine will tell
    model: str = ""  # the name of the model with those weights
    below: tuple[str, ...] = ()  # fingerprints of the edits that it was made on top of, which have to be on before it


@dataclass(frozen=True)
class StoredEdit:
    """A file of the store: what its header says, or why it cannot be read."""

    path: Path
    summary: Summary | None
    problem: str = ""


def folder() -> Path:
    """Where edits are kept; it need not be there yet."""
    return state_dir() / "edits"


def store(answer: Answer[Any]) -> Path:
    """Keep the edit of a run (an answer to `Unlearn`), whole or not at all. Raises MemlocError."""
    from memloc_core import edit_files

    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MemlocError(f"{place} cannot be made: {error.strerror or error}.") from None
    path = place_of(answer)
    edit_files.write_edit(path, answer)
    return path


class RunFile:
    """The file of a run that goes on: one at a time, each whole, and never one that another run keeps.

    The same run twice, or two at once, come to the same edits, which have the same file."""

    def __init__(self) -> None:
        self.path: Path | None = None  # what the run has come to
        self._written: tuple[int, int] | None = None  # how it was left, where this run wrote it

    def keep(self, answer: Answer[Any]) -> Path:
        """What the run has come to, in place of what it had come to before. Raises MemlocError."""
        place = place_of(answer)
        if place.exists() and not self._own(place):
            self.drop()
            self.path = place  # another run keeps it already
            return place
        path = store(answer)
        if path != self.path:
            self.drop()
        self.path, self._written = path, _left(path)
        return path

    def finish(self, answer: Answer[Any]) -> Path:
        """The run's edit, which stays. Raises MemlocError, and then what it had come to before stays."""
        path = store(answer)
        if path != self.path:
            self.drop()
        self.path = self._written = None
        return path

    def drop(self) -> None:
        """Delete it, unless somebody else keeps it."""
        if self.path is not None and self._own(self.path):
            self.path.unlink(missing_ok=True)
        self.path = self._written = None

    def _own(self, path: Path) -> bool:
        return path == self.path and self._written is not None and _left(path) == self._written


def _left(path: Path) -> tuple[int, int] | None:
    """A file is replaced and never written in place: another inode or time is another's writing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def place_of(answer: Answer[Any]) -> Path:
    """Where `store` puts the edit of a run."""
    return folder() / f"{answer.result.edit.fingerprint[:_NAMED_BY]}{SUFFIX}"


def stored() -> list[StoredEdit]:
    """Every edit of the store, the newest first."""
    from memloc_core import edit_files

    found = []
    for path in _files():
        try:
            found.append(StoredEdit(path, edit_files.read_summary(path)))
        except MemlocError as error:
            found.append(StoredEdit(path, None, str(error)))
    return found


def find(name: str) -> Path:
    """The file that `name` means: a path, or the beginning of a stored edit's fingerprint. Raises UsageError."""
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        if name and path.exists():
            raise UsageError(f"{name} is no file; an edit is one .safetensors file.")
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody` is a RuntimeError
        raise UsageError(f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    letters = name.lower()
    matching = [path for path in _files() if letters and _means(letters, path)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{len(matching)} stored edits begin with {name!r}: write more of its letters.")
    raise UsageError(
        f"There is no edit file {name!r}, and no stored edit whose fingerprint begins so; "
        "memloc-tui edits list shows those that are kept."
    )


def open_edit(name: str | Path) -> Answer[Any]:
    """The run whose edit `name` means (see `find`), read and verified whole. Raises MemlocError."""
    from memloc_core import edit_files

    return edit_files.read_edit(find(str(name)))


def runs_of(base: str) -> list[tuple[Path, Answer[Any] | None, str]]:
    """The stored runs of the weights `base`, oldest first: each read whole, or why it cannot be."""
    found: list[tuple[Path, Answer[Any] | None, str]] = []
    for kept in stored()[:_RUNS_READ]:
        if kept.summary is not None and kept.summary.base != base:
            continue
        try:
            if kept.summary is None:
                raise MemlocError(kept.problem)
            found.append((kept.path, open_edit(kept.path), ""))
        except MemlocError as error:
            found.append((kept.path, None, str(error)))
    return found[::-1]


def active(name: str | Path) -> ActiveEdit:
    """The edit that `name` means (see `find`), for a session. Raises MemlocError."""
    from memloc_core import edit_files

    path = find(str(name))
    summary = edit_files.read_summary(path)
    short = summary.fingerprint[:SHORT]
    own = path.parent == folder().resolve() or path.parent == folder()
    name = short if own else path.stem
    return ActiveEdit(summary.fingerprint, str(path), name, True, summary.base, summary.model, summary.on_top_of)


def remove(name: str) -> Path:
    """Delete a stored edit; returns where it was. Raises UsageError for what is not in the store or carries others."""
    path = find(name)
    if path.parent != folder().resolve() and path.parent != folder():
        raise UsageError(f"{path} is not one of the stored edits in {folder()}; delete the file itself.")
    own = next((edit.summary for edit in stored() if edit.path.name == path.name), None)
    if own is not None and (others := above(own.fingerprint)):
        raise UsageError(f"Edit {others[0][:SHORT]} was made on top of {path.name}; remove that one first.")
    try:
        path.unlink()
    except OSError as error:
        raise MemlocError(f"{path} cannot be removed: {error.strerror or error}.") from None
    return path


def above(fingerprint: str) -> list[str]:
    """The fingerprints of the stored edits that were made on top of this one."""
    found = (edit.summary for edit in stored() if edit.summary is not None)
    return [summary.fingerprint for summary in found if fingerprint in summary.on_top_of]


def copy(file: str, to: str) -> Path:
    """Copy an edit's file; into a folder under its own name. Nothing is ever overwritten. Raises MemlocError."""
    from shutil import copyfileobj

    try:
        path = Path(to).expanduser().absolute()
        if path.is_dir():
            path /= Path(file).name
        with Path(file).open("rb") as source, path.open("xb") as target:
            try:
                copyfileobj(source, target)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        raise UsageError(f"{path} is there already; nothing was written.") from None
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody` is a RuntimeError
        why = getattr(error, "strerror", None) or error
        raise MemlocError(f"{file} cannot be copied to {to!r}: {why}.") from None
    return path


def stands(edit: ActiveEdit, on: Iterable[str]) -> bool:
    """Whether every edit that this one was made on top of is among those that are on before it, in their order."""
    rest = iter(on)
    return all(ground in rest for ground in edit.below)


def check(edits: Iterable[ActiveEdit], model: ModelInfo) -> None:
    """Raise MemlocError for an edit of another model, with both named."""
    from memloc_core.edit_files import another_model

    for edit in edits:
        if edit.base and edit.base != model.fingerprint:
            raise another_model(edit.fingerprint, edit.model, edit.base, model.name, model.fingerprint)


def said(edits: Iterable[ActiveEdit]) -> str:
    """What the top line shows: the names of the edits that are on; "" where there are none at all."""
    every = list(edits)
    on = [edit.name for edit in every if edit.on]
    if not every:
        return ""
    if not on:
        return f"edits off: {', '.join(edit.name for edit in every)}"
    return f"edit{'s' * (len(on) > 1)}: {', '.join(on)}"


def _files() -> list[Path]:
    """The stored files, the newest first; one that goes at this moment, or is a link to nowhere, is none."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder().glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                if path.name[0] != ".":
                    found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def _means(letters: str, path: Path) -> bool:
    """Whether a fingerprint that begins so, or is longer than the file's name, can be that of this file."""
    if len(letters) <= _NAMED_BY:
        return path.stem.startswith(letters)
    from memloc_core import edit_files

    try:
        return letters.startswith(path.stem) and edit_files.read_summary(path).fingerprint.startswith(letters)
    except MemlocError:
        return False
