"""The result cache: `get` gives a result or None, `put` says whether it is stored, and neither ever raises.

The cache is a convenience, so nothing about it may stop the work: whatever is wrong with it is a miss and one sentence.
What it gives back must be what was put: every row is sealed with a digest over its key and its bytes, so that a changed
row, or one that was moved under another key, is a miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memloc_cache import place, problem
from memloc_core.errors import UsageError

if TYPE_CHECKING:
    from memloc_cache.rows import Rows

T = TypeVar("T")

DEFAULT_SIZE_LIMIT = 2 * 2**30
PATIENCE = 0.9  # seconds to wait for another process's lock; after one wait in vain none, until a write succeeds
_ENDLESS = 5.0  # seconds after which a statement will not end by itself
_MAGIC = b"memloc1\n"
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size

# One operation at a time in the whole process: `place` may close a database file only while no other holds its lock.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class CacheStats:
    """`bytes` on disk of `entries` results. `problem` is "" or a sentence: why the cache cannot be used now."""

    folder: Path
    entries: int
    bytes: int
    size_limit: int
    usable: bool
    problem: str


def default_folder() -> Path:
    """MEMLOC_CACHE_DIR, or `memloc-tui` in the user's cache folder."""
    if chosen := os.environ.get("MEMLOC_CACHE_DIR"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("memloc-tui", appauthor=False))


class ResultCache:
    """Results under their `codec.cache_key`, in one SQLite file. Opens at its first use, not when it is made."""

    folder: Path

    def __init__(
        self,
        folder: Path | None = None,
        *,
        size_limit: int | None = None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`size_limit` in bytes, for this instance; None: what was set for the folder, else 2 GiB.

        `on_warning` gets one whole sentence per kind of problem, not one per call.
        """
        self.folder = (default_folder() if folder is None else Path(folder)).absolute()
        self._own_limit = size_limit
        self._on_warning = on_warning
        self._rows: Rows | None = None
        self._path = self.folder / place.DATABASE
        self._inode = 0
        self._asides = 0
        self._patience = PATIENCE
        self._deadline = math.inf
        self._warned: set[str] = set()
        self._last_problem = ""  # of the operation that was tried last
        self._refused = ""  # not to be tried again: why

    def get(self, key: str) -> Any | None:
        """The result that was put under `key`, or None. Never raises."""

        def read(rows: Rows) -> Any | None:
            blob = rows.get(key)
            if blob is None:
                return None
            body = blob[_HEAD:]
            if blob[:_HEAD] != _seal(key, body):
                raise problem.of("row", self._path)
            from memloc_core import codec  # numpy: only for a hit

            try:
                return codec.decode(body)
            except codec.CodecError:
                raise problem.of("row", self._path) from None

        return self._try(read, None, _ENDLESS)

    def put(self, key: str, value: Any) -> bool:
        """Store the result, removing the oldest ones for it where the limit asks for it. Never raises."""

        def write(rows: Rows) -> bool:
            from memloc_core import codec

            body = codec.encode(value)
            needed = rows.occupies(_HEAD + len(body))
            if rows.smallest() + needed > self._limit() or len(body) > rows.largest_value:
                raise problem.of("too large", self._path)
            rows.shrink(self._limit() - needed)
            stored = bool(rows.set(key, _seal(key, body) + body))
            if self._patience != PATIENCE:  # the lock is gone
                self._patience = PATIENCE
                rows.connection.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")
            return stored

        return self._try(write, False, _ENDLESS)

    def stats(self) -> CacheStats:
        """What the cache holds, and whether results can be read and written now."""

        def count(rows: Rows) -> tuple[int, int]:
            with rows.transact():  # takes the lock for writing, so a file that is locked or read-only shows
                found = rows.entries(), rows.volume()
            if not os.access(self.folder, os.W_OK):  # no journal can be made
                raise problem.of("read-only", self._path)
            return found

        with _ONE_AT_A_TIME:
            entries, size = self._try(count, (0, 0), _ENDLESS)
            why_not = self._last_problem
        return CacheStats(self.folder, entries, size, self._limit(), not why_not, why_not)

    def clear(self) -> int:
        """Remove every entry; returns how many there were."""

        def empty(rows: Rows) -> int:
            rows.connection.execute("PRAGMA journal_mode = memory")  # a full disk has no room for a journal
            removed = rows.shrink(0)
            rows.connection.execute("PRAGMA journal_mode = delete")
            return removed

        return self._try(empty, 0, math.inf)

    def set_size_limit(self, limit: int) -> None:
        """Keep this limit (bytes) for the folder, and remove the results that were added first down to it.

        Raises UsageError for a negative limit.
        """
        if limit < 0:
            raise UsageError("A cache's size limit is a number of bytes, 0 or more.")

        def keep(rows: Rows) -> int:
            place.write_limit(self.folder, limit)
            self._own_limit = limit
            return rows.shrink(limit)

        self._try(keep, 0, math.inf)

    def close(self) -> None:
        """Let go of the file. Later calls are misses; closing twice is nothing."""
        with _ONE_AT_A_TIME:
            self._let_go()
            self._refused = "The cache is closed."

    # ------------------------------------------------------------------------------------------- one road for all

    def _try(self, work: Callable[[Rows], T], otherwise: T, seconds: float) -> T:
        """`work` on the open cache; where that fails, `otherwise` and a warning. Everything goes through here."""
        with _ONE_AT_A_TIME:
            self._last_problem = self._refused
            for again in (True, False):
                if self._refused:
                    break
                try:
                    self._deadline = time.monotonic() + seconds
                    result = work(self._open())
                    self._last_problem = ""
                    return result
                except Exception as error:  # a cache that fails in a way nobody thought of must not stop the work
                    if not (self._failed(error) and again):
                        break
            return otherwise

    def _failed(self, error: Exception) -> bool:
        """Say what is wrong, once per cause. True: the damaged database is out of the way, a fresh one can be made."""
        found = problem.explain(error, self._path)
        renewed = False
        if found.damaged:
            try:
                found, renewed = self._set_aside(), True
            except Exception as second:
                found = problem.explain(second, self._path)
        if found.cause != "row":
            self._let_go()  # this also ends a half-done transaction; the next call looks anew at what is there
        if found.cause == "locked":
            self._patience = 0.0
        if found.lasting:
            self._refused = found.text
        self._last_problem = found.text
        if found.cause not in self._warned:
            self._warned.add(found.cause)
            with contextlib.suppress(Exception):  # a window that is closing cannot show it; that is not the cache's
                self._on_warning(found.text)
        return renewed

    def _set_aside(self) -> problem.Problem:
        if self._asides == 2:
            text = f"{self._path} is damaged again and again, so the cache is not used in this session. Check the disk."
            return problem.Problem("again", text, lasting=True)
        if self._rows is not None:
            try:
                self._rows.connection.execute("BEGIN EXCLUSIVE")
            except Exception as error:  # a damaged file may refuse, but nobody must be in the middle of a write
                if problem.explain(error, self._path).cause == "locked":
                    raise
        aside = place.set_aside(self.folder, self._inode)
        self._asides += 1
        kept = f"It is kept as {aside.name}; delete" if aside else "Another memloc-tui has renamed it; delete"
        return problem.Problem("damaged", f"{self._path} is damaged, so a fresh cache was started. {kept} it at will.")

    def _open(self) -> Rows:
        if self._rows is not None and place.inode(self.folder) != self._inode:
            self._let_go()  # another process has renamed the file aside, or somebody deleted it
        if self._rows is None:
            place.prepare(self.folder)
            self._inode = place.inode(self.folder)
            place.inspect(self.folder)
            self._inode = place.inode(self.folder)
            from memloc_cache import rows  # diskcache and sqlite3: not before the first frame

            self._rows = rows.connect(self.folder, self._patience, lambda: time.monotonic() > self._deadline)
        return self._rows

    def _let_go(self) -> None:
        if self._rows is not None:
            self._rows.connection.close()
            self._rows = None

    def _limit(self) -> int:
        for limit in (self._own_limit, place.read_limit(self.folder)):
            if limit is not None and limit >= 0:
                return limit
        return DEFAULT_SIZE_LIMIT


def _seal(key: str, body: bytes) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(body)
    return _MAGIC + digest.digest()
