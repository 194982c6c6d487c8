"""Rows changed at random, swapped, or put there by somebody else; several explorers on one cache, some killed."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memloc_cache.store import ResultCache
from memloc_core import codec, requests as r
from memloc_core.engine import Engine
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from tests.faults.inside import InsideClient
from tests.faults.questions import Questions, differs
from tests.faults.rounds import rounds
from tests.faults.test_cache_faults import KEYS, Broken, Payload, result, right

ODD = (None, 0, 4, 2**62, -1, 1e300, "", "x", "\x00", b"", b"\xff", b"\x80\x04K\x01.", "../../x", "/etc/hostname")
COLUMNS = (
    "key",
    "raw",
    "store_time",
    "expire_time",
    "access_time",
    "access_count",
    "tag",
    "size",
    "mode",
    "filename",
    "value",
)


def test_random_changes_of_rows_give_the_right_result_or_a_miss(
    tmp_path: Path, seen: Any, no_code: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valid SQL, whatever it says: bytes of a value, any column of a row, two rows swapped, one copied over another."""
    import pickle

    rng, n = random.Random(8), rounds(300, 10_000)
    broken, marker = Broken(tmp_path / "cache"), tmp_path / "marker"
    payload = pickle.dumps(Payload(marker))
    connection = sqlite3.connect(broken.database, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    names = ", ".join(COLUMNS)
    whole = connection.execute(f"SELECT rowid, {names} FROM Cache").fetchall()
    values = {row[0]: row[-1] for row in whole}
    cache, hits = broken.reopen(), 0
    for trial in range(n):
        ids, kind = rng.sample(sorted(values), 2), rng.randrange(6)
        one, other = ids
        where = "WHERE rowid = ?"
        if kind == 0:
            value = bytearray(values[one])
            for _ in range(rng.choice((1, 1, 3, 50))):
                value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
            connection.execute(f"UPDATE Cache SET value = ? {where}", (bytes(value), one))
        elif kind == 1:
            cut = bytearray(values[one])
            at = rng.randrange(len(cut))
            cut[at : at + rng.randint(1, 99)] = rng.randbytes(rng.randint(0, 99))
            connection.execute(f"UPDATE Cache SET value = ? {where}", (bytes(cut), one))
        elif kind == 2:
            connection.execute(f"UPDATE OR IGNORE Cache SET {rng.choice(COLUMNS)} = ? {where}", (rng.choice(ODD), one))
        elif kind == 3:
            for row, value in ((one, values[other]), (other, values[one])):
                connection.execute(f"UPDATE Cache SET value = ? {where}", (value, row))
        elif kind == 4:
            connection.execute(f"UPDATE Cache SET mode = 4, value = ? {where}", (payload, one))
        else:
            connection.execute(f"DELETE FROM Cache {where}", (one,))
        if trial % 7 == 0:
            cache.close()
            cache = broken.reopen()
        for i, key in enumerate(KEYS):
            got = cache.get(key)
            assert got is None or right(i, got), f"wrong result in trial {trial}"
            hits += got is not None
        if trial % 11 == 0:
            assert cache.put(KEYS[trial % 12], result(trial % 12)) in (True, False)
        connection.execute("BEGIN")
        connection.execute("DELETE FROM Cache")
        marks = ", ".join("?" * (1 + len(COLUMNS)))
        connection.executemany(f"INSERT INTO Cache (rowid, {names}) VALUES ({marks})", whole)
        connection.execute("COMMIT")
    cache.close()
    connection.close()
    assert not marker.exists()
    assert 9 * n < hits < 12 * n
    seen(f"{n:,} changed rows, {hits:,} results right, {12 * n - hits:,} misses, 0 wrong, 0 code run")


async def test_rows_that_somebody_else_sealed_are_no_answers(
    demo: Any, questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    """The seal is no secret: a row with a right one, but of another question, model or kind, is not believed."""
    monkeypatch.setattr("memloc_tui.engine_client.EngineClient", InsideClient)
    monkeypatch.setattr(InsideClient, "lm", demo)
    monkeypatch.setattr(InsideClient, "answers", {})
    settings = Settings(device="cpu", cache_dir=tmp_path / "cache")
    engine, rows = Engine(), questions.rows
    engine.lm = demo
    asked: list[r.Request] = [
        *(r.Perturb(row, ((3, 7),)) for row in rows[: rounds(6, 24)]),
        *(r.Attention(row) for row in rows[: rounds(6, 24)]),
    ]
    whole = [engine.answer(request) for request in asked]
    forger, rng, tried = ResultCache(tmp_path / "cache"), random.Random(2), 0
    session = Session(settings)
    await session.open()
    try:
        for _ in range(rounds(4, 40)):
            order = rng.sample(range(len(asked)), len(asked))
            for number, other in enumerate(order):
                forged = [whole[other], whole[other].result, whole[other].request, r.Progress(1, 2)][rng.randrange(4)]
                assert forger.put(codec.cache_key(asked[number], demo.info.identity), forged)
            session._memory.clear()
            for number, other in enumerate(order):
                answer = session.peek(asked[number])
                assert answer is None or (number == other and not differs(answer.result, whole[number].result))
                tried += 1
        for number, request in enumerate(asked):  # asked, they are answered, and the right ones take their places
            assert not differs((await session.ask(request)).result, whole[number].result)
            session._memory.clear()
            known = session.peek(request)
            assert known is not None
            assert not differs(known.result, whole[number].result)
    finally:
        await session.close()
        forger.close()
    seen(f"{tried:,} forged rows, none believed")


_USER = """
import random, sys
from pathlib import Path
from memloc_cache.store import ResultCache
from tests.faults.test_cache_faults import KEYS, result, right
folder, seed, n = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng, warnings = random.Random(seed), []
cache, hits = ResultCache(folder, on_warning=warnings.append), 0
print("begins", flush=True)
for trial in range(n):
    i, kind = rng.randrange(12), rng.random()
    if kind < 0.5:
        got = cache.get(KEYS[i])
        assert got is None or right(i, got), trial
        hits += got is not None
    elif kind < 0.9:
        cache.put(KEYS[i], result(i))
    elif kind < 0.95:
        cache.close()
        cache = ResultCache(folder, on_warning=warnings.append)
    elif kind < 0.98:
        cache.stats()
    elif kind < 0.99:
        cache.clear()
    else:
        cache.set_size_limit(rng.choice((200_000, 10_000_000)))
bad = [text for text in warnings if "holds" not in text]  # that another one writes may be said on a busy machine
print(hits, *bad, flush=True)
"""


def test_several_explorers_on_one_cache_some_of_them_killed(tmp_path: Path, seen: Any) -> None:
    rng, n, kills = random.Random(9), rounds(400, 10_000), rounds(3, 60)
    folder, root = tmp_path / "cache", Path(__file__).parents[2]

    def user(seed: int, steps: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _USER, str(folder), str(seed), str(steps)]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
        assert started.stdout
        assert started.stdout.readline() == "begins\n"
        return started

    users = [user(seed, n) for seed in (1, 2)]
    for number in range(kills):
        victim = user(100 + number, 10**9)
        time.sleep(rng.uniform(0, 0.3))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    hits = 0
    for one in users:
        out, err = one.communicate(timeout=600)
        assert one.returncode == 0, err
        hits += int(out.split()[0])
        assert out.split()[1:] == []
    assert hits
    connection = sqlite3.connect(folder / "cache.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert not list(folder.glob("*damaged*"))
    cache = ResultCache(folder)
    for i, key in enumerate(KEYS):
        got = cache.get(key)
        assert got is None or right(i, got)
        assert cache.put(key, result(i))
    cache.close()
    # One that is killed while it writes the limit leaves some bytes beside it; nobody reads them.
    assert {path.name.partition(".")[0] for path in folder.iterdir()} <= {"cache", "size-limit"}
    seen(f"2 explorers with {n:,} steps each and {kills} killed ones on one cache: 0 wrong results, database intact")
