"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def check_can_be_written(path: Path) -> None:
    """Raise UsageError where `write_whole` is sure to fail."""
    from memloc_core.errors import UsageError

    try:
        target = _target(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    if target.is_dir():
        raise UsageError(f"{path} is a folder; --out takes a file.")
    if not os.access(target if target.exists() and not target.is_file() else target.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: its folder is not there, or not yours to write to.")


def _target(path: Path) -> Path:
    """What is written to: a link stays a link, but /dev/stdout leads to a pipe without a path. Raises OSError."""
    if path.exists() and not path.is_file():
        return path
    try:
        return path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


def write_whole(path: Path, text: str) -> None:
    """Write beside the file's place, then move there. Raises OSError, and then the file is as it was."""
    target = _target(path)
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe: nothing to put in its place
        with target.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        return
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        # mkstemp gives 0600; the file is the person's own, under their umask.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
