"""What can be wrong with the cache, in sentences for the person at the keyboard."""

from __future__ import annotations

import errno
from pathlib import Path

# SQLite's primary result codes (stable since version 3.0; `sqlite3` itself is imported later than this).
_BUSY, _LOCKED, _READONLY, _INTERRUPT, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 9, 10, 11, 13, 14, 26
_CAUSES = {
    _BUSY: "locked",
    _LOCKED: "locked",
    _READONLY: "read-only",
    _CANTOPEN: "read-only",
    _FULL: "full",
    _IOERR: "disk",
    _INTERRUPT: "endless",
    _CORRUPT: "damaged",
    _NOTADB: "damaged",
}
_ERRNO_CAUSES = {
    errno.EACCES: "read-only",
    errno.EPERM: "read-only",
    errno.EROFS: "read-only",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EAGAIN: "locked",
}
_SENTENCES = {
    "locked": "Another program holds {path} locked, so results are not kept on disk for now. Close that program, or go "
    "on: this session tries again by itself.",
    "read-only": "{path} cannot be written, so new results are not kept on disk. Make its folder writable for you, or "
    "give another folder with --cache-dir.",
    "full": "There is no room left on the disk for {path}, so new results are not kept. Free some space, or run "
    "`memloc-tui cache clear`.",
    "disk": "The disk failed to read or write {path} ({detail}), so results are not kept for now. See that the disk is "
    "sound and your quota is not used up, or give another folder with --cache-dir.",
    "endless": "Reading {path} does not come to an end, so the cache is not used in this session. Move the file away.",
    "row": "A result in {path} was changed, cut short or written by another version, so it is computed again. Nothing "
    "needs to be done.",
    "too large": "A result is larger than the cache {path} may hold, so it is not kept on disk. Set a higher limit "
    "with `memloc-tui cache`, or export the result.",
    "other": "The cache {path} failed ({detail}), so results are not kept on disk. Run `memloc-tui cache clear`, or go "
    "on without it by --no-cache.",
}


class Problem(Exception):
    """Why the cache cannot do something now: whole sentences in `text`, and its kind in `cause`.

    `lasting`: trying again in this session is pointless. `damaged`: the database is to be renamed aside.
    """

    def __init__(self, cause: str, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.cause, self.text, self.lasting = cause, text, lasting
        self.damaged = cause == "damaged"


def of(cause: str, path: Path, detail: str = "") -> Problem:
    """The problem with this cause; "damaged" gets its sentence from where the file went."""
    text = _SENTENCES.get(cause, "{detail}").format(path=path, detail=detail)
    return Problem(cause, text, lasting=cause == "endless")


def explain(error: Exception, path: Path) -> Problem:
    """What an exception on the way to or from `path` means."""
    if isinstance(error, Problem):
        return error
    # diskcache hides what SQLite said behind its own Timeout, or behind a ROLLBACK that fails too.
    hides = type(error).__name__ == "Timeout" or "cannot rollback" in str(error)
    said = error.__context__ if hides and error.__context__ else error
    code = getattr(said, "sqlite_errorcode", None)
    if code is not None:
        return of(_CAUSES.get(code & 0xFF, "other"), path, str(said))
    if isinstance(error, OSError) and error.errno in _ERRNO_CAUSES:
        return of(_ERRNO_CAUSES[error.errno], path)
    return of("other", path, f"{type(error).__name__}: {error}")
