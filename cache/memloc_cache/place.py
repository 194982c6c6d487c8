"""The cache's folder and the files in it, judged before SQLite opens any of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path

from memloc_cache.problem import Problem

DATABASE = "cache.db"
_LIMIT_FILE = "size-limit"
_SIDE_FILES = ("-journal", "-wal", "-shm")
_SUPER_JOURNAL_END = bytes.fromhex("d9d505f920a163d7")


def prepare(folder: Path) -> None:
    """Make the folder, for us alone, or raise a lasting Problem: somebody else could put rows into it."""

    def refuse(cause: str, what: str, remedy: str) -> Problem:
        return Problem(cause, f"{what}, so results are not kept on disk. {remedy}", lasting=True)

    other = "give another folder with --cache-dir."
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (FileExistsError, NotADirectoryError):
        raise refuse("no folder", f"{folder} is not a folder", f"Move it away or {other}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise refuse("no folder", f"The cache folder {folder} cannot be made ({reason})", f"Please {other}") from None
    if stat.S_ISLNK(found.st_mode):
        remedy = f"Name the folder itself with --cache-dir: {folder.resolve()}"
        raise refuse("link", f"The cache folder {folder} is a symbolic link", remedy)
    if found.st_uid != os.getuid():
        raise refuse("owner", f"The cache folder {folder} belongs to another user", f"Please {other}")
    if found.st_mode & 0o022:
        remedy = f"Run `chmod 700 {folder}` or {other}"
        raise refuse("open", f"Other users can write to the cache folder {folder}", remedy)


def inspect(folder: Path) -> None:
    """Make the database file if there is none; raise a damaged Problem for files that SQLite must not open.

    No link, pipe or folder in a file's place; no write-ahead log (SQLite would map its `-shm` file, and a truncated
    map kills the process); no journal that names a super-journal (SQLite would delete the file that it names).

    Closing a file drops every lock that this process holds on it, so this runs only between two operations of
    `store`, which are one at a time in the whole process.
    """
    database, journal, log, shared = (folder / (DATABASE + side) for side in ("", *_SIDE_FILES))
    for path in (database, journal):
        if (mode := _mode(path)) and not stat.S_ISREG(mode):
            raise Problem("damaged", f"{path} is not a plain file.")
    if _mode(log) or _mode(shared):
        raise Problem("damaged", f"{database} has a write-ahead log, which memloc-tui never makes.")
    with contextlib.suppress(FileNotFoundError):  # another process may end its transaction at any moment
        if _tail(journal, 8) == _SUPER_JOURNAL_END:
            raise Problem("damaged", f"{journal} names a file outside.")
    try:
        os.close(os.open(database, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        header = _read(database, 20)
        if header and header[18:] != b"\1\1":  # the file format's version: 2 is write-ahead log
            raise Problem("damaged", f"{database} is not a database of memloc-tui.") from None


def inode(folder: Path) -> int:
    """Which file the database is now; 0 where there is none."""
    try:
        return (folder / DATABASE).lstat().st_ino
    except FileNotFoundError:
        return 0


def set_aside(folder: Path, judged: int) -> Path | None:
    """Rename the database and its side files; nothing is deleted. None if it is not the `judged` inode any more.

    The lock on the folder keeps two processes that found the same damage from renaming each other's fresh database.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if inode(folder) != judged:
            return None
        aside = folder / f"{DATABASE}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
        for side in (*_SIDE_FILES, ""):
            if _mode(folder / (DATABASE + side)):
                os.rename(folder / (DATABASE + side), f"{aside}{side}")
        return aside
    finally:
        os.close(lock)


def read_limit(folder: Path) -> int | None:
    """The size limit that the user has set for this folder, in bytes; None if there is none that can be read."""
    try:
        return int(_read(folder / _LIMIT_FILE, 20).decode("ascii"))
    except (OSError, ValueError):
        return None


def write_limit(folder: Path, limit: int) -> None:
    """Keep the limit beside the database: what a database's own Settings table says is never believed."""
    part = folder / f"{_LIMIT_FILE}.{os.getpid()}"
    part.write_text(str(limit), encoding="ascii")
    part.replace(folder / _LIMIT_FILE)


def _mode(path: Path) -> int:
    """What kind of thing lies there, links not followed; 0 for nothing. It may go between two looks."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0


def _read(path: Path, count: int) -> bytes:
    """The first `count` bytes. Never waits on a pipe, never follows a link."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.pread(file, count, 0)
    finally:
        os.close(file)


def _tail(path: Path, count: int) -> bytes:
    """The last `count` bytes; none of a file that is not longer than twice that. A journal begins with the same bytes
    that end one which names a super-journal, and another process may write its beginning between the two looks."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        size = os.fstat(file).st_size
        return os.pread(file, count, size - count) if size >= 2 * count else b""
    finally:
        os.close(file)
