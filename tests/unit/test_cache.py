"""The result cache when nothing is wrong: what was put comes back, within the limit, for every process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import diskcache
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from memloc_cache import place
from memloc_cache.rows import SETTINGS
from memloc_cache.store import DEFAULT_SIZE_LIMIT, ResultCache, default_folder
from memloc_core import codec
from memloc_core.errors import UsageError
from memloc_core.requests import Answer, Continuation, ExactMatches, ModelInfo, Perturb, Perturbation, Provenance


def key(number: int) -> str:
    return f"{number:064x}"


def continuation(fill: int, length: int = 50) -> Continuation:
    """A result that says its own number; incompressible size: 12 bytes a token."""
    return Continuation(np.full(length, fill, np.int64), np.full(length, 0.5, np.float32))


def same(a: Any, b: Any) -> bool:
    """Equal types, fields, array types, shapes and bytes; nan equals itself."""
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, warnings: list[str]) -> Any:
    opened = ResultCache(tmp_path / "cache", on_warning=warnings.append)
    yield opened
    opened.close()
    assert warnings == []


ints = hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=20))
floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=20))
tokens = st.lists(st.integers(0, 10**6), max_size=20).map(tuple)
number = st.floats(width=32)
perturbations = st.builds(
    Perturbation,
    reference=ints,
    em_before=st.integers(0, 50),
    em_after=st.integers(0, 50),
    margin_before=number,
    margin_after=number,
    nll_before=number,
    nll_after=number,
    predicted=ints,
    token_nll=floats,
)
results = st.one_of(
    perturbations,
    st.builds(ExactMatches, em=ints, margin=floats, nll=floats, token_nll=floats, predicted=ints),
    st.builds(ModelInfo, **{f.name: st.text() for f in dataclasses.fields(ModelInfo) if f.type == "str"}
              | {f.name: st.integers(0, 2**40) for f in dataclasses.fields(ModelInfo) if f.type == "int"}
              | {"notices": st.lists(st.text(), max_size=3).map(tuple)}),
    st.builds(
        Answer,
        request=st.builds(
            Perturb,
            paragraph=tokens,
            replacements=st.lists(st.tuples(st.integers(0, 49), st.integers(0, 50256)), max_size=4).map(tuple),
        ),
        result=perturbations,
        provenance=st.builds(
            Provenance,
            **{name: st.text() for name in ("model", "fingerprint", "edit", "dtype", "device", "attention")},
            seconds=number,
            versions=st.dictionaries(st.text(), st.text(), max_size=3),
            notices=st.lists(st.text(), max_size=2).map(tuple),
        ),
    ),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=results, name=st.binary(min_size=32, max_size=32))
def test_every_result_comes_back_as_it_was_put(cache: ResultCache, value: Any, name: bytes) -> None:
    assert cache.put(name.hex(), value)
    assert same(cache.get(name.hex()), value)


def test_what_was_never_put_is_none(cache: ResultCache) -> None:
    assert cache.get(key(1)) is None
    cache.put(key(2), continuation(2))
    assert cache.get(key(1)) is None


def test_the_last_put_under_a_key_counts_and_others_stay(cache: ResultCache) -> None:
    for fill in (1, 2, 3):
        assert cache.put(key(7), continuation(fill))
    cache.put(key(8), continuation(8))
    assert cache.get(key(7)).tokens[0] == 3
    assert cache.get(key(8)).tokens[0] == 8
    assert cache.stats().entries == 2


def test_a_later_instance_and_another_process_find_it(cache: ResultCache) -> None:
    cache.put(key(1), continuation(41))
    cache.close()
    again = ResultCache(cache.folder)
    assert again.get(key(1)).tokens[0] == 41
    script = (
        "import sys; from memloc_cache.store import ResultCache; from pathlib import Path;"
        "print(ResultCache(Path(sys.argv[1])).get(sys.argv[2]).tokens[0])"
    )
    arguments = [sys.executable, "-c", script, str(cache.folder), key(1)]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "41\n"
    again.close()


def test_the_folder_and_the_file_are_ours_alone(cache: ResultCache) -> None:
    cache.put(key(1), continuation(1))
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert [(p.name, p.stat().st_mode & 0o777) for p in cache.folder.iterdir()] == [("cache.db", 0o600)]


def test_stats_count_what_is_stored(cache: ResultCache) -> None:
    empty = cache.stats()
    assert (empty.entries, empty.usable, empty.problem, empty.size_limit) == (0, True, "", DEFAULT_SIZE_LIMIT)
    assert empty.folder == cache.folder
    for i in range(20):
        cache.put(key(i), continuation(i, 2000))
    stats = cache.stats()
    assert stats.entries == 20
    assert stats.bytes == (cache.folder / "cache.db").stat().st_size
    assert stats.bytes > 20 * 24000


def test_clear_removes_everything_and_gives_the_room_back(cache: ResultCache) -> None:
    for i in range(250):
        cache.put(key(i), continuation(i, 500))
    assert cache.clear() == 250
    assert cache.clear() == 0
    assert cache.stats().entries == 0
    assert (cache.folder / "cache.db").stat().st_size < 100_000
    assert cache.get(key(3)) is None
    assert cache.put(key(3), continuation(3))


def test_the_oldest_results_go_first_and_the_file_stays_within_the_limit(tmp_path: Path) -> None:
    limit = 400_000
    cache = ResultCache(tmp_path / "cache", size_limit=limit)
    sizes = (100, 3000, 10, 8000, 1000)  # tokens of 12 bytes
    for i in range(60):
        assert cache.put(key(i), continuation(i, sizes[i % 5]))
        assert (cache.folder / "cache.db").stat().st_size <= limit
    kept = [i for i in range(60) if cache.get(key(i)) is not None]
    assert kept == list(range(kept[0], 60))
    assert sum(12 * sizes[i % 5] for i in kept) > limit / 2
    cache.close()


def test_a_result_beyond_the_limit_is_refused_and_costs_no_other(tmp_path: Path) -> None:
    warnings: list[str] = []
    cache = ResultCache(tmp_path / "cache", size_limit=200_000, on_warning=warnings.append)
    assert cache.put(key(1), continuation(1))
    assert not cache.put(key(2), continuation(2, 20_000))
    assert not cache.put(key(3), continuation(3, 20_000))
    assert cache.get(key(1)).tokens[0] == 1
    assert len(warnings) == 1
    assert "larger than the cache" in warnings[0]
    cache.close()


def test_a_size_limit_is_kept_for_the_folder_and_evicts_at_once(cache: ResultCache) -> None:
    for i in range(100):
        cache.put(key(i), continuation(i, 1000))
    cache.set_size_limit(300_000)
    assert (cache.folder / "cache.db").stat().st_size <= 300_000
    assert cache.get(key(99)) is not None
    assert cache.get(key(0)) is None
    later = ResultCache(cache.folder)
    assert later.stats().size_limit == 300_000
    assert ResultCache(cache.folder, size_limit=5).stats().size_limit == 5
    later.close()
    with pytest.raises(UsageError):
        cache.set_size_limit(-1)


def test_the_limit_survives_clearing(cache: ResultCache) -> None:
    cache.set_size_limit(1_000_000)
    cache.clear()
    assert ResultCache(cache.folder).stats().size_limit == 1_000_000


def test_a_closed_cache_misses_in_silence(cache: ResultCache) -> None:
    cache.put(key(1), continuation(1))
    cache.close()
    cache.close()
    assert cache.get(key(1)) is None
    assert not cache.put(key(1), continuation(1))
    assert not cache.stats().usable


def test_threads_share_one_cache(cache: ResultCache) -> None:
    wrong: list[int] = []

    def work(base: int) -> None:
        for i in range(base, base + 40):
            if not cache.put(key(i), continuation(i)) or not same(cache.get(key(i)), continuation(i)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.stats().entries == 160


_WRITER = """
import sys
import time
from pathlib import Path
import numpy as np
from memloc_cache.store import ResultCache
from memloc_core.requests import Continuation
folder, base, warnings = Path(sys.argv[1]), int(sys.argv[2]), []
cache = ResultCache(folder, on_warning=warnings.append)
sys.stdin.readline()
for i in range(base, base + 150):
    for key in (f"{i:064x}", "f" * 64):
        while not cache.put(key, Continuation(np.full(2000, i), np.ones(2000, np.float32))):
            time.sleep(0.01)
print([text for text in warnings if "holds" not in text])  # on a busy machine the other one may hold it for long
"""


def test_two_processes_write_at_once_from_the_first_call_on(cache: ResultCache) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(cache.folder), str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for base in (0, 1000)
    ]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=30)[0] for writer in writers] == ["[]\n"] * 2
    for i in (*range(150), *range(1000, 1150)):
        assert set(cache.get(key(i)).tokens.tolist()) == {i}
    assert cache.get("f" * 64).tokens[0] in (149, 1149)
    assert cache.stats().entries == 301


def test_the_beginning_of_another_process_journal_is_no_damage(cache: ResultCache, warnings: list[str]) -> None:
    """It is the very bytes that end a journal which names another file, and it may be all there is of it yet."""
    cache.put(key(1), continuation(1))
    (cache.folder / "cache.db-journal").write_bytes(place._SUPER_JOURNAL_END)
    other = ResultCache(cache.folder, on_warning=warnings.append)
    assert same(other.get(key(1)), continuation(1))
    assert other.put(key(2), continuation(2))
    assert warnings == []


def test_making_a_cache_loads_nothing_heavy_and_a_miss_no_numpy(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from memloc_cache.store import ResultCache
cache = ResultCache(Path({str(tmp_path / "cache")!r}))
heavy = {{"numpy", "diskcache", "sqlite3", "torch", "textual", "platformdirs"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not cache.folder.exists()
assert cache.get("a" * 64) is None
assert not (heavy - {{"diskcache", "sqlite3"}}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_folder_is_the_users_cache_folder_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMLOC_CACHE_DIR", raising=False)
    assert default_folder().name == "memloc-tui"
    monkeypatch.setenv("MEMLOC_CACHE_DIR", "~/elsewhere")
    assert default_folder() == Path(os.path.expanduser("~/elsewhere"))
    assert ResultCache().folder == default_folder()


def test_no_setting_is_left_to_diskcache() -> None:
    assert SETTINGS.keys() == diskcache.DEFAULT_SETTINGS.keys()


def test_the_rows_are_plain_bytes_under_the_codecs_keys(cache: ResultCache) -> None:
    """What lies on disk, read by sqlite3 alone: a text key, no file, and the codec's own bytes at the end."""
    import sqlite3

    name = codec.cache_key(Perturb(paragraph=(1, 2), replacements=((0, 3),)), "model")
    cache.put(name, continuation(5))
    with sqlite3.connect(cache.folder / "cache.db") as connection:
        rows = connection.execute("SELECT key, raw, mode, filename, value FROM Cache").fetchall()
        assert connection.execute("SELECT * FROM Settings").fetchall() == []
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    ((stored, raw, mode, filename, value),) = rows
    assert (stored, raw, mode, filename) == (name, 1, 1, None)
    assert value.endswith(codec.encode(continuation(5)))


def test_a_clock_that_was_set_back_makes_new_results_no_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ResultCache(tmp_path / "cache", size_limit=400_000)
    ahead = time.time() + 86_400
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: ahead)
        for i in range(30):
            assert cache.put(key(i), continuation(i, 2000))
    for i in range(30, 40):
        assert cache.put(key(i), continuation(i, 2000))
    assert all(cache.get(key(i)) is not None for i in range(30, 40))
    cache.close()
