"""The folder of a scan: what it was begun with, and one file for each part of it that is finished.

    SET.parquet.scan/manifest.json    corpus, model and options
                     plan             the blocks
                     blocks/000012    what a block gave
                     windows.npy      the tokens of the kept windows, once all blocks are there
                     scores/000003    .. scored one by one, 512 at a time
                     counts/000012    .. counted in a block

Every file is written beside its place and moved there, so it is whole or not there at all. The manifest comes last and
goes first: a folder without one is what an ended scan left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memloc_core import codec
from memloc_core.errors import MemlocError, UsageError

VERSION = 1
SCORED_TOGETHER = 512


class ScanFolder:
    """See the module. `out` is the set of paragraphs that the scan is for."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".scan")
        self._lock: Any = None

    @property
    def counts(self) -> Path:
        return self.out.with_suffix(".counts.npy")

    @property
    def windows(self) -> Path:
        return self.path / "windows.npy"

    @property
    def begun(self) -> bool:
        return (self.path / "manifest.json").is_file()

    def manifest(self) -> dict[str, Any]:
        """What the scan was begun with. Raises MemlocError where the file is damaged."""
        try:
            found = json.loads((self.path / "manifest.json").read_text("utf-8"))
            if found["version"] != VERSION:
                raise MemlocError(f"{self.path} was begun by another version of memloc-tui; use --restart.")
            return dict(found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MemlocError(f"{self.path / 'manifest.json'} cannot be read ({error}); use --restart.") from None

    def begin(self, manifest: dict[str, Any], plan: Any) -> None:
        """Make the folder. Raises OSError."""
        for part in ("blocks", "scores", "counts"):
            (self.path / part).mkdir(parents=True, exist_ok=True)
        write(self.path / "plan", codec.encode(plan))
        text = json.dumps({"version": VERSION, **manifest}, indent=1)
        write(self.path / "manifest.json", text.encode())

    def plan(self) -> Any:
        return self._decoded(self.path / "plan")

    def done(self, part: str) -> list[int]:
        """The numbers of the finished files of "blocks", "scores" or "counts", in order."""
        folder = self.path / part
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal()) if folder.is_dir() else []

    def keep(self, part: str, number: int, result: Any) -> None:
        """Write a finished part. Raises MemlocError where there is no room for it."""
        try:
            write(self.path / part / f"{number:06d}", codec.encode(result))
        except OSError as error:
            raise MemlocError(
                f"{self.path} cannot be written: {error.strerror or error}. What is finished is kept; "
                "make room and run the same command again."
            ) from None

    def read(self, part: str, number: int) -> Any:
        return self._decoded(self.path / part / f"{number:06d}")

    def clear(self) -> None:
        """Forget what is finished; the lock stays."""
        (self.path / "manifest.json").unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != "lock":
                entry.unlink(missing_ok=True)

    def remove(self) -> None:
        """The manifest first: what is left of a folder without one is nobody's work."""
        (self.path / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other process scans into this folder. Raises UsageError where one does already."""
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"Another scan is writing {self.out} at this moment.") from None
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror or error}.") from None
        try:
            yield
        finally:
            self._lock.close()
            if not self.begun and self.path.is_dir() and os.listdir(self.path) == ["lock"]:
                shutil.rmtree(self.path, ignore_errors=True)

    def _decoded(self, path: Path) -> Any:
        try:
            return codec.decode(path.read_bytes())
        except (OSError, MemlocError) as error:
            raise MemlocError(f"{path} is damaged ({error}); remove it and run the same command again.") from None


def write(path: Path, data: bytes, beside: Path | None = None) -> None:
    """The file is there whole, also after a power cut, or as it was before. Raises OSError.

    `beside`: another folder on the same disk for the time until then; a kill leaves the unfinished file there.
    """
    beside = (beside or path.parent) / f".{path.name}.{os.getpid()}"
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
