"""diskcache, made to believe nothing that the database says.

diskcache 5.6.3 unpickles rows (CVE-2025-69872), reads and deletes whatever the `filename` column names, takes settings
and even attributes from the Settings table, and waits up to 60 s for a lock. What is used of it here is its schema, its
`get`, `set` and transactions. What is replaced: how a value becomes a row and back, where settings come from, how long
it waits, and how it measures itself.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_RAW

from memloc_cache.place import DATABASE
from memloc_cache.problem import Problem

LARGEST_ROW = 256 * 2**20  # bytes; SQLite refuses to read or write more, so a crafted row cannot fill the memory

# Every setting of diskcache. No fsync: a put takes 0.2 ms instead of 16 (ext4), a crash of the process costs nothing, a
# power cut may damage the database, which is then noticed and renamed aside. The write-ahead log and memory maps stay
# off because a truncated file under a map kills the process. `store` evicts by itself, so cull_limit is 0.
SETTINGS: dict[str, int | str] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "least-recently-stored",
    "size_limit": 0,
    "cull_limit": 0,
    "sqlite_synchronous": 0,  # first: setting auto_vacuum writes to a new file
    "sqlite_cache_size": 2**11,
    "sqlite_journal_mode": "delete",
    "sqlite_mmap_size": 0,
    "sqlite_auto_vacuum": 1,
    "disk_min_file_size": 0,
    "disk_pickle_protocol": 0,
}
_PRAGMAS = {key.removeprefix("sqlite_"): value for key, value in SETTINGS.items() if key.startswith("sqlite_")}
_HEX_KEY = re.compile("[0-9a-f]{64}")
_CALLBACK_STEPS = 10_000  # of SQLite's virtual machine between two looks at the clock
_EMPTY_PAGES = 12


class InlineDisk(diskcache.Disk):  # type: ignore[misc]
    """Values are bytes inside their row, keys are 64 hex digits. No pickle, no file, in either direction."""

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str) or not _HEX_KEY.fullmatch(key):
            raise ValueError("A cache key is 64 hex digits.")
        return key, True

    def get(self, key: Any, raw: Any) -> Any:
        raise TypeError("Keys are not read back.")

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, bytes]:
        if not isinstance(value, bytes) or read:
            raise TypeError("A cached value is bytes.")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: Any, filename: Any, value: Any, read: bool) -> bytes:
        """The row's bytes; b"", which no seal fits, for a row of any other kind."""
        return value if mode == MODE_RAW and filename is None and isinstance(value, bytes) else b""

    def remove(self, file_path: Any) -> None:
        """There are no files; whatever a row names is not ours to delete."""


class Rows(diskcache.Cache):  # type: ignore[misc]
    """diskcache on an open connection, which stays its owner's to close."""

    largest_value = LARGEST_ROW - 4096  # the row's other columns count too

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        super().__init__(os.sep, timeout=0, disk=InlineDisk, **SETTINGS)  # the folder is never used

    @property
    def _con(self) -> sqlite3.Connection:
        return self.connection

    @property
    def _sql_retry(self) -> Callable[..., sqlite3.Cursor]:
        return self._once

    def _once(self, statement: str, *args: Any) -> sqlite3.Cursor:
        """Run it without a retry; the Settings table is made, for the triggers, but never read or filled."""
        if "Settings" in statement and not statement.startswith("CREATE"):
            return self.connection.execute("SELECT 1 WHERE 0")
        return self.connection.execute(statement, *args)

    def reset(self, key: str, value: Any = 0, update: bool = True) -> Any:
        """Take a setting as given. Pragmas were set by `connect`."""
        setattr(self, key, value)
        return value

    def close(self) -> None:
        """diskcache reopens its connection after start-up; this one stays."""

    def volume(self) -> int:
        """Bytes of the pages in use: what the rows really occupy, indexes included."""
        pages, free = (self._sql(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return int((pages - free) * self._page_size)

    def occupies(self, size: int) -> int:
        """About how many bytes of the file a value of `size` bytes takes."""
        return int((size // (self._page_size - 4) + 2) * self._page_size)

    def smallest(self) -> int:
        """About how many bytes the file takes with no rows in it: two tables, five indexes, the file's own pages."""
        return int(_EMPTY_PAGES * self._page_size)

    def entries(self) -> int:
        # Not count(*): that is one step inside SQLite, which `overdue` could not end in a file whose pages form a loop.
        return int(self._sql("SELECT total(1) FROM Cache").fetchone()[0])

    def shrink(self, limit: int) -> int:
        """Remove the rows that were added first until no more than `limit` bytes are in use. Returns how many.

        By rowid and not by time: a clock that was set back would make every new row the oldest."""
        removed = 0
        while (excess := self.volume() - limit) > 0:
            with self.transact():
                oldest = "SELECT rowid, length(value) FROM Cache ORDER BY rowid LIMIT 100"
                doomed = []
                for rowid, size in self._sql(oldest).fetchall():
                    if excess > 0:
                        doomed.append(rowid)
                        excess -= size or 0
                marks = ",".join("?" * len(doomed))
                gone = self._sql(f"DELETE FROM Cache WHERE rowid IN ({marks})", doomed).rowcount
            if gone <= 0:
                break
            removed += gone
        return removed


def connect(folder: Path, patience: float, overdue: Callable[[], bool]) -> Rows:
    """Open the folder's database, which `place.inspect` has passed, and fill it if it is new.

    `patience`: seconds to wait for another process's lock. `overdue` ends a statement that does not end by itself.
    Raises sqlite3.Error, or a damaged Problem for a database with any other schema than diskcache makes: a view or a
    trigger in a crafted file would run in our name.
    """
    connection = sqlite3.connect(folder / DATABASE, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_ROW)
        connection.set_progress_handler(overdue, _CALLBACK_STEPS)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        found = _schema(connection)
        for name, value in _PRAGMAS.items():  # setting one that is set already may take the lock for writing
            if connection.execute(f"PRAGMA {name}").fetchone() != (value,):
                connection.execute(f"PRAGMA {name} = {value}").fetchall()
        if found and found != _expected_schema():
            raise Problem("damaged", f"{folder / DATABASE} is not a database of memloc-tui.")
        if found:
            return Rows(connection)
        connection.execute("BEGIN IMMEDIATE")  # all or nothing: two processes may start on the same new folder
        rows = Rows(connection)
        connection.execute("COMMIT")
        return rows
    except BaseException:
        connection.close()
        raise


def _schema(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()


@cache
def _expected_schema() -> list[tuple[Any, ...]]:
    """What this version of diskcache makes of an empty database."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        return _schema(Rows(connection).connection)
    finally:
        connection.close()
