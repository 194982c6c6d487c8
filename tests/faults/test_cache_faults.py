"""The result cache when something is wrong with it: never a wrong result, an exception, a hang or a touched file.

Whatever is broken, `get` gives the right result or None, `put` gives a bool, and the person reads one sentence.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diskcache
import numpy as np
import pytest

from memloc_cache import place
from memloc_cache.store import ResultCache
from memloc_core.requests import Continuation
from tests.faults.rounds import rounds

KEYS = [f"{i:064x}" for i in range(12)]


def result(i: int) -> Continuation:
    """Result i says its number in every token; each has another size, the last two exceed several pages."""
    return Continuation(np.full(20 + 200 * i, i, np.int64), np.full(20 + 200 * i, i / 16, np.float32))


def right(i: int, got: Any) -> bool:
    want = result(i)
    return (
        type(got) is Continuation
        and got.tokens.tobytes() == want.tokens.tobytes()
        and got.probabilities.tobytes() == want.probabilities.tobytes()
    )


class Broken:
    """A cache folder with twelve results, a way to break it, and a cache opened on what is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "cache.db"
        self.warnings: list[str] = []
        self.cache = self.reopen()
        for i, key in enumerate(KEYS):
            assert self.cache.put(key, result(i))
        self.cache.close()

    def reopen(self) -> ResultCache:
        self.cache = ResultCache(self.folder, on_warning=self.warnings.append)
        return self.cache

    def sql(self, statement: str, *values: Any) -> None:
        connection = sqlite3.connect(self.database)
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            connection.execute(statement, values)
        connection.close()

    def asides(self) -> list[Path]:
        return sorted(self.folder.glob("cache.db.damaged-*"))


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Broken]:
    made = Broken(tmp_path / "cache")
    yield made
    made.cache.close()


def is_one_warning_about(warnings: list[str], *words: str) -> bool:
    return len(warnings) == 1 and warnings[0].endswith(".") and all(word in warnings[0] for word in words)


# ------------------------------------------------------------------------------------------------------ changed rows

ROW_CHANGES = {
    "one bit": "UPDATE Cache SET value = CAST(substr(value, 1, 200) || x'01' || substr(value, 202) AS BLOB)",
    "cut short": "UPDATE Cache SET value = CAST(substr(value, 1, length(value) - 1) AS BLOB)",
    "cut to the seal": "UPDATE Cache SET value = CAST(substr(value, 1, 40) AS BLOB)",
    "longer": "UPDATE Cache SET value = CAST(value || x'00' AS BLOB)",
    "empty": "UPDATE Cache SET value = x''",
    "null": "UPDATE Cache SET value = NULL",
    "number": "UPDATE Cache SET value = 7",
    "text": "UPDATE Cache SET value = 'memloc'",
    "bad text": "UPDATE Cache SET value = CAST(x'ff' AS TEXT)",
    "mode binary": "UPDATE Cache SET mode = 2",
    "mode pickle": "UPDATE Cache SET mode = 4",
    "mode text": "UPDATE Cache SET mode = 'x'",
    "mode null": "UPDATE Cache SET mode = NULL",
    "filename": "UPDATE Cache SET filename = 'other'",
    "bad filename": "UPDATE Cache SET filename = CAST(x'ff00' AS TEXT)",
    "huge": "UPDATE Cache SET value = zeroblob(3000000)",
}


@pytest.mark.parametrize("change", ROW_CHANGES)
def test_a_changed_row_is_a_miss_one_warning_and_can_be_put_again(
    broken: Broken, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memloc_cache.rows.LARGEST_ROW", 2_000_000)
    broken.sql(f"{ROW_CHANGES[change]} WHERE key = '{KEYS[3]}'")
    cache = broken.reopen()
    for _ in range(3):
        assert cache.get(KEYS[3]) is None
    assert len(broken.warnings) == 1
    assert str(broken.database) in broken.warnings[0]
    assert right(4, cache.get(KEYS[4]))
    assert cache.put(KEYS[3], result(3))
    assert right(3, cache.get(KEYS[3]))
    assert not broken.asides()


def test_a_row_larger_than_any_result_is_not_read(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memloc_cache.rows.LARGEST_ROW", 20_000)
    cache = broken.reopen()
    assert cache.get(KEYS[11]) is None
    assert right(3, cache.get(KEYS[3]))
    assert len(broken.warnings) == 1


def test_rows_swapped_between_two_keys_are_misses(broken: Broken) -> None:
    broken.sql("UPDATE Cache SET key = 'x' WHERE key = ?", KEYS[3])
    broken.sql("UPDATE Cache SET key = ? WHERE key = ?", KEYS[3], KEYS[4])
    broken.sql("UPDATE Cache SET key = ? WHERE key = 'x'", KEYS[4])
    cache = broken.reopen()
    assert [cache.get(k) for k in KEYS[3:5]] == [None, None]
    assert right(5, cache.get(KEYS[5]))
    assert len(broken.warnings) == 1
    assert "changed" in broken.warnings[0]


def test_metadata_columns_may_say_anything(broken: Broken) -> None:
    broken.sql("UPDATE Cache SET size = 1e300, tag = x'80', store_time = 'soon', access_count = -1, access_time = NULL")
    cache = broken.reopen()
    assert all(right(i, cache.get(key)) for i, key in enumerate(KEYS))
    assert cache.put(KEYS[0], result(0))
    assert cache.stats().bytes == broken.database.stat().st_size
    assert cache.clear() == 12
    assert broken.warnings == []


# ------------------------------------------------------------------------------------------------ CVE-2025-69872 etc.


class Payload:
    """Unpickling this makes the file that it names."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def use_everything(cache: ResultCache) -> None:
    for i, key in enumerate(KEYS):
        got = cache.get(key)
        assert got is None or right(i, got)
    cache.stats()
    cache.put(KEYS[1], result(1))
    cache.put("e" * 64, result(2))
    cache.set_size_limit(100_000)
    cache.clear()
    cache.close()


def test_a_pickled_row_or_key_never_runs(broken: Broken, tmp_path: Path) -> None:
    marker, dump = tmp_path / "marker", tmp_path / "dump.val"
    payload = pickle.dumps(Payload(marker))
    dump.write_bytes(payload)
    broken.sql("UPDATE Cache SET mode = 4, value = ? WHERE key = ?", payload, KEYS[0])
    broken.sql("UPDATE Cache SET mode = 4, value = NULL, filename = ? WHERE key = ?", str(dump), KEYS[1])
    broken.sql("UPDATE Cache SET key = ?, raw = 0 WHERE key = ?", payload, KEYS[2])
    copy = tmp_path / "copy"
    shutil.copytree(broken.folder, copy)
    use_everything(broken.reopen())
    assert not marker.exists()
    assert dump.read_bytes() == payload
    with diskcache.Cache(str(copy)) as plain:  # the attack is a real one: diskcache alone falls for it
        plain.get(KEYS[0])
    assert marker.exists()


def test_a_filename_outside_is_neither_read_nor_deleted(broken: Broken, tmp_path: Path) -> None:
    outside = tmp_path / "thesis.txt"
    outside.write_text("my thesis")
    for i, (mode, name) in enumerate(
        [(2, "../thesis.txt"), (3, str(outside)), (1, str(outside)), (4, "../thesis.txt")]
    ):
        broken.sql("UPDATE Cache SET mode = ?, filename = ? WHERE key = ?", mode, name, KEYS[i])
        broken.sql("UPDATE Cache SET value = NULL WHERE key = ? AND mode != 1", KEYS[i])
    broken.sql("UPDATE Cache SET expire_time = 1 WHERE key = ?", KEYS[3])
    cache = broken.reopen()
    assert [cache.get(key) for key in KEYS[:4]] == [None] * 4
    assert all(cache.put(key, result(i)) for i, key in enumerate(KEYS[:2]))
    use_everything(cache)
    assert outside.read_text() == "my thesis"


SETTINGS_ROWS = [
    ("get", "x"),
    ("_sql", "x"),
    ("disk_put", "x"),
    ("disk_min_file_size", 0),
    ("eviction_policy", "none"),
    ("size_limit", 1),
    ("cull_limit", 10**6),
    ("size", "many"),
    ("count", 10**15),
    ("statistics", 1),
    ("tag_index", 1),
    ("sqlite_journal_mode", "wal"),
    ("sqlite_mmap_size", 2**40),
    ("sqlite_writable_schema", 1),
    ("sqlite_max_page_count", 1),
    (b"\xff", b"\xff"),
]


def test_the_settings_table_changes_nothing(broken: Broken) -> None:
    for name, value in SETTINGS_ROWS:
        broken.sql("INSERT OR REPLACE INTO Settings VALUES (?, ?)", name, value)
    cache = broken.reopen()
    assert all(right(i, cache.get(key)) for i, key in enumerate(KEYS))
    for i in range(100):
        assert cache.put(f"{1000 + i:064x}", result(5))
    stats = cache.stats()
    assert (stats.entries, stats.bytes, stats.usable) == (112, broken.database.stat().st_size, True)
    assert stats.size_limit > 10**9
    assert [p.name for p in broken.folder.iterdir()] == ["cache.db"]
    assert broken.warnings == []


@pytest.mark.parametrize(
    "crafted",
    [
        "CREATE TRIGGER extra AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE VIEW forever AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "DROP TABLE Cache",
        "DROP TABLE Settings",
        "ALTER TABLE Cache ADD COLUMN more",
        "DROP INDEX Cache_key_raw",
    ],
)
def test_a_database_of_another_shape_is_renamed_aside(broken: Broken, crafted: str) -> None:
    broken.sql(crafted)
    before = broken.database.read_bytes()
    cache = broken.reopen()
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], result(0))
    assert right(0, cache.get(KEYS[0]))
    assert [path.read_bytes() for path in broken.asides()] == [before]
    assert is_one_warning_about(broken.warnings, str(broken.database), "fresh", broken.asides()[0].name)


def test_a_view_in_the_tables_place_does_not_hang(broken: Broken) -> None:
    broken.sql("DROP TABLE Cache")
    broken.sql(
        "CREATE VIEW Cache AS WITH RECURSIVE n(key) AS (SELECT 1 UNION ALL SELECT key + 1 FROM n) SELECT * FROM n"
    )
    start = time.monotonic()
    cache = broken.reopen()
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], result(0))
    assert time.monotonic() - start < 1


def test_a_statement_that_does_not_end_is_ended(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table becomes an endless view under the open cache, after its shape was looked at."""
    monkeypatch.setattr("memloc_cache.store._ENDLESS", 0.3)
    cache = broken.reopen()
    assert right(0, cache.get(KEYS[0]))
    broken.sql("DROP TABLE Cache")
    row = "i rowid, hex(i) key, 1 raw, NULL expire_time, NULL tag, 1 mode, NULL filename, x'' value"
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    broken.sql(f"CREATE VIEW Cache AS {numbers} SELECT {row} FROM n")
    start = time.monotonic()
    for key in KEYS:
        assert cache.get(key) is None
    assert time.monotonic() - start < 1
    assert is_one_warning_about(broken.warnings, "does not come to an end", str(broken.database))


# ---------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    "content",
    [b"not a database at all, but someone's notes\n" * 500, b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 8176, b"x"],
    ids=["text", "zeros", "header", "one byte"],
)
def test_a_garbage_database_is_renamed_aside_and_a_fresh_one_started(broken: Broken, content: bytes) -> None:
    broken.database.write_bytes(content)
    cache = broken.reopen()
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], result(0))
    assert right(0, cache.get(KEYS[0]))
    assert [path.read_bytes() for path in broken.asides()] == [content]
    assert is_one_warning_about(broken.warnings, str(broken.database), "fresh", broken.asides()[0].name)
    assert cache.stats().usable


def test_an_empty_database_file_is_simply_new(broken: Broken) -> None:
    broken.database.write_bytes(b"")
    cache = broken.reopen()
    assert cache.put(KEYS[0], result(0))
    assert right(0, cache.get(KEYS[0]))
    assert broken.warnings == []


def test_a_database_that_breaks_while_it_is_open_is_replaced(broken: Broken) -> None:
    cache = broken.reopen()
    assert right(3, cache.get(KEYS[3]))
    broken.database.write_bytes(b"\xee" * 40_000)
    assert cache.get(KEYS[3]) is None
    assert cache.put(KEYS[3], result(3))
    assert right(3, cache.get(KEYS[3]))
    assert len(broken.asides()) == 1
    assert len(broken.warnings) == 1


def test_a_second_process_goes_on_after_the_first_has_renamed_the_database(broken: Broken) -> None:
    other = ResultCache(broken.folder, on_warning=broken.warnings.append)
    assert right(3, other.get(KEYS[3]))
    broken.database.rename(broken.folder / "cache.db.damaged-by-another")
    cache = broken.reopen()
    assert cache.put(KEYS[4], result(4))
    assert other.put(KEYS[5], result(5))
    assert right(5, cache.get(KEYS[5]))
    assert right(4, other.get(KEYS[4]))
    shutil.rmtree(broken.folder)
    assert other.get(KEYS[4]) is None
    assert other.put(KEYS[5], result(5))
    assert right(5, cache.get(KEYS[5]))
    assert broken.warnings == []
    other.close()


def loop_in_the_tree(database: Path) -> None:
    """Make every child of the Cache table's root the root itself, and say that the file has changed."""
    connection = sqlite3.connect(database)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'Cache'").fetchone()[0]
    connection.close()
    data = bytearray(database.read_bytes())
    page = (root - 1) * 4096
    assert data[page] == 5  # an inner page
    cells = struct.unpack_from(">H", data, page + 3)[0]
    for offset in struct.unpack_from(f">{cells}H", data, page + 12):
        struct.pack_into(">I", data, page + offset, root)
    struct.pack_into(">I", data, page + 8, root)
    data[27] ^= 1
    database.write_bytes(data)


def test_a_loop_inside_the_file_ends(tmp_path: Path) -> None:
    broken = Broken(tmp_path / "cache")
    cache = broken.reopen()
    for i in range(12, 400):
        cache.put(f"{i:064x}", result(0))
    cache.close()
    loop_in_the_tree(broken.database)
    start = time.monotonic()
    cache = broken.reopen()
    assert cache.get(KEYS[5]) is None
    cache.put(KEYS[5], result(5))
    cache.stats()
    cache.clear()
    assert time.monotonic() - start < 5


def test_random_damage_gives_the_right_result_or_a_miss(tmp_path: Path, seen: Any, no_code: Any) -> None:
    """Mutations: bytes overwritten, bits flipped, stretches zeroed or moved, the file cut or grown."""
    trials = rounds(300, 10_000)
    broken = Broken(tmp_path / "cache")
    whole = broken.database.read_bytes()
    rng = random.Random(20)
    hits = 0
    for trial in range(trials):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            at = rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 4096))))
            kind = rng.randrange(5)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                data[at : at + 64] = rng.randbytes(min(64, len(data) - at))
            elif kind == 3:
                data[at : at + 512] = bytes(min(512, len(data) - at))
            else:
                source = rng.randrange(len(data))
                piece = data[source : source + 256]
                data[at : at + len(piece)] = piece
        if trial % 10 == 0:
            del data[rng.randrange(len(data)) :]
        for path in broken.folder.iterdir():
            path.unlink()
        broken.database.write_bytes(data)
        cache = broken.reopen()
        for i, key in enumerate(KEYS):
            got = cache.get(key)
            assert got is None or right(i, got), f"wrong result in trial {trial}"
            hits += got is not None
        assert cache.put("d" * 64, result(2)) in (True, False)
        got = cache.get("d" * 64)
        assert got is None or right(2, got)
        if trial % 5 == 0:
            cache.stats()
            cache.clear()
        cache.close()
    assert 2 * trials < hits < 12 * trials  # the damage was neither nothing nor everything
    seen(f"{trials:,} damaged files, {hits:,} results still right, {12 * trials - hits:,} misses, 0 wrong")


_UNDER_OUR_FEET = """
import os, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_faults import KEYS, Broken, right, result
from memloc_cache.store import ResultCache
rng = random.Random(1)
for trial in range(60):
    broken = Broken(Path(sys.argv[1]) / str(trial))
    cache = broken.reopen()
    cache.get(KEYS[0])
    os.truncate(broken.database, rng.randrange(broken.database.stat().st_size))
    for side in ("-shm", "-wal"):
        if trial % 3 == 0:
            (broken.folder / f"cache.db{side}").write_bytes(rng.randbytes(rng.choice((0, 1, 40000))))
    for again in (cache, broken.reopen()):
        for i, key in enumerate(KEYS):
            got = again.get(key)
            assert got is None or right(i, got)
        again.put(KEYS[1], result(1))
        again.close()
print("alive")
"""


def test_a_file_cut_while_it_is_open_kills_nobody(tmp_path: Path) -> None:
    """In a process of its own, because the failure would be SIGBUS."""
    arguments = [sys.executable, "-c", _UNDER_OUR_FEET, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_database_with_a_write_ahead_log_is_not_opened(broken: Broken) -> None:
    """Its -shm file would be mapped, and a map of a truncated file is a SIGBUS."""
    connection = sqlite3.connect(broken.database)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("DELETE FROM Cache")
    connection.commit()
    cache = broken.reopen()
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], result(0))
    assert sorted(p.name for p in broken.folder.iterdir() if "damaged" not in p.name) == ["cache.db"]
    assert len(broken.asides()) == 3
    assert len(broken.warnings) == 1
    connection.close()


@pytest.mark.parametrize("side", ["-wal", "-shm"])
def test_a_stray_log_beside_the_database_is_not_opened(broken: Broken, side: str) -> None:
    (broken.folder / f"cache.db{side}").write_bytes(b"\0" * 100)
    cache = broken.reopen()
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], result(0))
    assert len(broken.asides()) == 2
    assert len(broken.warnings) == 1


def test_a_database_that_another_process_has_replaced_already_stays(broken: Broken) -> None:
    judged = place.inode(broken.folder)
    shutil.copy(broken.database, broken.folder / "new")
    (broken.folder / "new").rename(broken.database)
    assert place.set_aside(broken.folder, judged) is None
    assert right(0, broken.reopen().get(KEYS[0]))
    assert broken.asides() == []


def super_journal(database: Path, target: Path) -> bytes:
    """A rollback journal that asks whoever opens the database to delete `target` (SQLite's file format, section 3)."""
    magic = bytes.fromhex("d9d505f920a163d7")
    header = magic + struct.pack(">5I", 0, 1, database.stat().st_size // 4096, 512, 4096)
    name = str(target).encode()
    return header.ljust(512, b"\0") + struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(
        ">2I", len(name), sum(name)
    ) + magic  # fmt: skip


def test_a_journal_cannot_delete_a_file_outside(broken: Broken, tmp_path: Path) -> None:
    outside = tmp_path / "thesis.txt"
    outside.write_text("my thesis")
    journal = broken.folder / "cache.db-journal"
    journal.write_bytes(super_journal(broken.database, outside))
    copy = tmp_path / "copy"
    shutil.copytree(broken.folder, copy)
    use_everything(broken.reopen())
    assert outside.read_text() == "my thesis"
    plain = sqlite3.connect(copy / "cache.db")  # the attack is a real one: SQLite alone falls for it
    plain.execute("SELECT count(*) FROM Cache").fetchall()
    plain.close()
    assert not outside.exists()


@pytest.mark.parametrize("name", ["cache.db", "cache.db-journal", "size-limit"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_things_in_place_of_our_files_are_not_followed(broken: Broken, tmp_path: Path, name: str, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"something of mine")
    path = broken.folder / name
    path.unlink(missing_ok=True)
    {"link": lambda: path.symlink_to(outside), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    cache = broken.reopen()
    cache.get(KEYS[0])
    assert cache.put(KEYS[0], result(0))
    assert right(0, cache.get(KEYS[0]))
    cache.stats()
    cache.close()
    assert outside.read_bytes() == b"something of mine"
    assert len(broken.warnings) == (0 if name == "size-limit" else 1)


# ---------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("kind", ["file", "below a file", "link", "shared", "another's", "nul", "below proc"])
def test_a_folder_that_is_not_ours_alone_is_not_used(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    words = "--cache-dir"
    if kind == "file":
        folder.write_text("mine")
    elif kind == "below a file":
        folder.write_text("mine")
        folder = folder / "sub"
    elif kind == "link":
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
        words = str(tmp_path / "real")
    elif kind == "shared":
        folder.mkdir()
        folder.chmod(0o770)
        words = f"chmod 700 {folder}"
    elif kind == "another's":
        folder.mkdir(mode=0o700)
        monkeypatch.setattr(os, "getuid", lambda: 4242)
    elif kind == "nul":
        folder = Path(f"{folder}\0x")
    else:
        folder = Path("/proc/memloc")
    warnings: list[str] = []
    cache = ResultCache(folder, on_warning=warnings.append)
    for _ in range(3):
        assert cache.get(KEYS[0]) is None
        assert not cache.put(KEYS[0], result(0))
    stats = cache.stats()
    assert (stats.usable, stats.entries) == (False, 0)
    assert [stats.problem] == warnings
    assert str(folder) in warnings[0]
    assert words in warnings[0]
    assert cache.clear() == 0
    cache.set_size_limit(10)
    assert len(warnings) == 1
    assert not list(tmp_path.rglob("cache.db*"))
    cache.close()


def test_a_link_further_up_is_fine(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "scratch")
    cache = ResultCache(tmp_path / "home" / "memloc", on_warning=pytest.fail)
    assert cache.put(KEYS[0], result(0))
    cache.close()


_USE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_faults import KEYS, right, result
from memloc_cache.store import ResultCache
warnings = []
cache = ResultCache(Path(sys.argv[1]), on_warning=warnings.append)
{before}
print(*[int(right(i, cache.get(key))) for i, key in enumerate(KEYS)], sep="")
print(*[int(cache.put(f"{{500 + i:064x}}", result(11))) for i in range(30)], sep="")
print(*[int(right(i, cache.get(key))) for i, key in enumerate(KEYS)], sep="")
stats = cache.stats()
print(stats.usable, stats.entries, cache.clear())
print(*warnings, sep="\\n")
"""


def use_in_a_process(folder: Path, before: str) -> list[str]:
    script = [sys.executable, "-c", _USE.format(before=before), str(folder), str(Path(__file__).parent)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_read_only_folder_is_read_but_not_written() -> None:
    """As another user where the tests run as root, for whom nothing is read-only."""
    base = Path(tempfile.mkdtemp())
    try:
        broken = Broken(base / "cache")
        become = ""
        if os.getuid() == 0:
            base.chmod(0o755)
            for path in (broken.folder, *broken.folder.iterdir()):
                os.chown(path, 65534, 65534)
            become = (
                "import os, memloc_cache.rows, memloc_core.codec; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
            )
        broken.database.chmod(0o400)
        broken.folder.chmod(0o500)
        before, puts, after, stats, *warnings = use_in_a_process(broken.folder, become)
        assert (before, puts, after, stats) == ("1" * 12, "0" * 30, "1" * 12, "False 0 0")
        assert len(warnings) == 1
        assert f"{broken.database} cannot be written" in warnings[0]
        # A database that could be written, in a folder that takes no journal: the same, but it can still be emptied.
        broken.database.chmod(0o600)
        before, puts, after, stats, *warnings = use_in_a_process(broken.folder, become)
        assert (before, puts, after, stats) == ("1" * 12, "0" * 30, "1" * 12, "False 0 12")
        assert len(warnings) == 1
    finally:
        broken.folder.chmod(0o700)
        shutil.rmtree(base)


def test_a_disk_that_takes_no_more_loses_nothing(broken: Broken) -> None:
    """The process may write no file beyond 400 KB: what was stored stays readable, and room can be made."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))"
    before, puts, after, stats, *warnings = use_in_a_process(broken.folder, limit)
    assert before == after == "1" * 12
    stored = puts.count("1")
    assert puts == "1" * stored + "0" * (30 - stored)
    assert 0 < stored < 30
    assert stats == f"True {12 + stored} {12 + stored}"
    assert len(warnings) == 1
    assert str(broken.database) in warnings[0]


def test_a_full_database_loses_nothing(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = broken.database.stat().st_size // 4096 + 20
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    cache = broken.reopen()
    stored = [cache.put(f"{500 + i:064x}", result(11)) for i in range(10)]
    assert stored[0]
    assert not stored[-1]
    assert all(right(i, cache.get(key)) for i, key in enumerate(KEYS))
    assert is_one_warning_about(broken.warnings, "no room left", str(broken.database))
    assert cache.clear() == 12 + sum(stored)
    assert cache.put(KEYS[0], result(0))


# ------------------------------------------------------------------------------------------------------------ locks

_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"BEGIN {sys.argv[2]}")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def hold(broken: Broken) -> Iterator[Callable[[str], Callable[[], None]]]:
    holders: list[subprocess.Popen[str]] = []

    def start(kind: str) -> Callable[[], None]:
        arguments = [sys.executable, "-c", _HOLDER, str(broken.database), kind]
        holder = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"

        def release() -> None:
            assert holder.stdin
            assert holder.stdout
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "released\n"

        return release

    yield start
    for holder in holders:
        holder.communicate("\n\n", timeout=10)


@pytest.mark.parametrize("already_open", [False, True])
def test_a_locked_database_costs_one_second_once(
    broken: Broken, hold: Callable[[str], Callable[[], None]], already_open: bool
) -> None:
    cache = broken.reopen()
    if already_open:
        assert right(0, cache.get(KEYS[0]))
    release = hold("EXCLUSIVE")
    start = time.monotonic()
    assert cache.get(KEYS[0]) is None
    assert 0.5 < time.monotonic() - start < 1.3
    start = time.monotonic()
    for key in KEYS:
        assert cache.get(key) is None
        assert not cache.put(key, result(0))
    stats = cache.stats()
    assert time.monotonic() - start < 0.4
    assert not stats.usable
    assert [stats.problem] == broken.warnings
    assert "holds" in broken.warnings[0]
    release()
    assert right(0, cache.get(KEYS[0]))
    assert cache.put(KEYS[1], result(1))
    assert cache.stats().usable
    assert not broken.asides()
    assert len(broken.warnings) == 1


def test_while_another_writes_for_long_results_are_still_read(
    broken: Broken, hold: Callable[[str], Callable[[], None]]
) -> None:
    release = hold("IMMEDIATE")
    cache = broken.reopen()
    start = time.monotonic()
    assert not cache.put(KEYS[0], result(0))
    for _ in range(5):
        assert all(right(i, cache.get(key)) for i, key in enumerate(KEYS))
        assert not cache.put(KEYS[0], result(0))
    assert time.monotonic() - start < 1.5
    assert len(broken.warnings) == 1
    release()
    assert cache.put(KEYS[0], result(0))


def test_a_damaged_database_is_not_renamed_while_another_writes_to_it(
    broken: Broken, hold: Callable[[str], Callable[[], None]]
) -> None:
    cache = broken.reopen()
    assert right(0, cache.get(KEYS[0]))
    loop_in_the_tree(broken.database)
    release = hold("IMMEDIATE")
    assert cache.get(KEYS[5]) is None
    assert broken.asides() == []
    release()
    assert cache.get(KEYS[5]) is None
    assert len(broken.asides()) == 1
    assert cache.put(KEYS[5], result(5))


def test_a_killed_writer_leaves_a_usable_cache(broken: Broken) -> None:
    """SIGKILL in the middle of a write leaves a journal, which the next one to open rolls back."""
    script = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE Cache SET value = zeroblob(100000)")
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script, str(broken.database)]).returncode == -9
    assert (broken.folder / "cache.db-journal").stat().st_size > 0
    cache = broken.reopen()
    assert all(right(i, cache.get(key)) for i, key in enumerate(KEYS))
    assert broken.warnings == []


# ------------------------------------------------------------------------------------------------------ the caller's


@pytest.mark.parametrize("key", ["", "abc", "G" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", None, 7, b"a" * 64])
def test_a_key_that_is_no_key_is_a_miss(broken: Broken, key: Any) -> None:
    cache = broken.reopen()
    assert cache.get(key) is None
    assert not cache.put(key, result(0))
    assert right(0, cache.get(KEYS[0]))


@pytest.mark.parametrize("value", [object(), None, {1}, 7, "x", [1], Continuation])
def test_a_value_that_has_no_form_is_not_stored(broken: Broken, value: Any) -> None:
    cache = broken.reopen()
    assert not cache.put("b" * 64, value)
    assert cache.get("b" * 64) is None
    assert right(0, cache.get(KEYS[0]))


def test_a_warning_that_cannot_be_shown_stops_nothing(broken: Broken) -> None:
    broken.database.write_bytes(b"garbage" * 1000)

    def fail(text: str) -> None:
        raise RuntimeError("the window is gone")

    cache = ResultCache(broken.folder, on_warning=fail)
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], result(0))
    cache.close()
