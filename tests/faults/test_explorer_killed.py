"""The explorer goes in whatever it is doing: by KILL, HUP, TERM, or with its terminal.

Its engine is gone within a second, what was kept is whole, and the next one is where this one was.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from memloc_cache.store import ResultCache
from memloc_core import edit_files
from memloc_tui import edits, state
from tests.e2e.test_explorer import COMMAND, READY, current, gone_within, known_and_settled
from tests.edits import make_edit, run_of
from tests.faults.rounds import FULL
from tests.terminal import ENTER, Terminal

SLOW = 180.0
RUN = {"goal": "steps", "steps": "500", "keep": "8"}  # a run of minutes
ROW = 21  # where the person was


def began(terminal: Terminal) -> None:
    terminal.until("1 Paragraphs", READY)
    time.sleep(random.Random(os.getpid()).uniform(0, 1.0))


def scoring(terminal: Terminal) -> None:
    terminal.until(lambda text: re.search(r"EM [\d,]+/\d", text), READY)


def idle(terminal: Terminal) -> None:
    terminal.until(known_and_settled, READY)


def choosing(terminal: Terminal) -> None:
    idle(terminal)
    terminal.type("2" + ENTER)
    terminal.until("Choose a token")


def sweeping(terminal: Terminal) -> None:
    idle(terminal)
    terminal.type("w")
    terminal.until(lambda text: re.search(r"sweep \d", text.split("\n")[0]), SLOW)


def unlearning(terminal: Terminal) -> None:
    idle(terminal)
    terminal.type("x")
    terminal.until(lambda text: re.search(r"weights · ≤ \d+:\d\d", text), SLOW)
    terminal.type("\x1b[F")  # End: the line that starts it
    terminal.settle(0.3, 2.0)
    terminal.type(ENTER)
    terminal.until(lambda text: re.search(r"unlearn [1-9]\d*/500", text.split("\n")[0]), SLOW)


STATES: dict[str, Callable[[Terminal], None]] = {
    "opening": began,
    "scoring": scoring,
    "idle": idle,
    "choosing": choosing,
    "sweeping": sweeping,
    "unlearning": unlearning,
}
DEAF = "terminal closed, SIGHUP ignored"
WAYS = ("KILL", "TERM", "HUP", "terminal closed", DEAF)
FEW = (("scoring", "KILL"), ("sweeping", "TERM"), ("idle", "HUP"), ("unlearning", "terminal closed"), ("idle", DEAF))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which every paragraph is scored."""
    folder = tmp_path_factory.mktemp("warm")
    places = {"MEMLOC_CACHE_DIR": str(folder / "cache"), "MEMLOC_STATE_DIR": str(folder / "state")}
    with Terminal(COMMAND, env=places) as terminal:
        terminal.until(lambda text: known_and_settled(text) and not re.search(r"EM [\d,]+/\d", text), READY)
        terminal.type("q")
        assert terminal.wait_exit(10) == 0
    return folder / "cache"


def engines_of(pid: int) -> list[int]:
    """The engine processes of an explorer; one that is only just starting is not there yet."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"memloc_core.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def whole_cache(folder: Path) -> int:
    """How many results the cache holds, every one of them readable."""
    if not (folder / "cache.db").exists():
        return 0
    connection = sqlite3.connect(folder / "cache.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    keys = [key for (key,) in connection.execute("SELECT key FROM Cache")]
    connection.close()
    warnings: list[str] = []
    cache = ResultCache(folder, on_warning=warnings.append)
    assert all(cache.get(key) is not None for key in keys)
    cache.close()
    assert warnings == []
    assert not list(folder.glob("*damaged*"))
    return len(keys)


@pytest.mark.parametrize(("doing", "how"), list(product(STATES, WAYS)) if FULL else FEW)
def test_the_explorer_goes_and_nothing_is_lost(
    doing: str, how: str, warm: Path, demo: Any, demo_paragraphs: Any, tmp_path: Path, seen: Any
) -> None:
    if doing != "scoring":
        shutil.copytree(warm, tmp_path / "cache")
    kept = edits.store(run_of(make_edit(demo, 50)))
    before = kept.read_bytes()
    active = edits.active(kept)
    resume = state.Resume(
        paragraph=demo_paragraphs.ids[ROW],
        draws=99,
        unlearn=RUN,
        edits=[[active.fingerprint, active.file, active.name, "on"]],
        replacements={demo_paragraphs.ids[ROW]: [[3, 17]]} if doing in ("idle", "choosing") else {},
    )
    state.save("demo", "demo", resume)
    with Terminal(COMMAND, deaf=how == DEAF) as terminal:
        STATES[doing](terminal)
        engines, pid = engines_of(terminal.process.pid), terminal.process.pid
        assert engines or doing == "opening"
        terminal.pump()
        if how in ("terminal closed", DEAF):
            os.close(terminal.process.fd)
        else:
            os.kill(pid, getattr(signal, f"SIG{how}"))
        struck = time.monotonic()
        for engine in engines:
            assert gone_within(engine, 1.0)
        took = time.monotonic() - struck
        if how == "TERM" and doing != "opening":
            assert terminal.wait_exit(3) == 143
            assert b"\x1b[?1049l" in terminal.raw  # the person's own screen is back
        elif how in ("terminal closed", DEAF):
            assert gone_within(pid, 3.0)
        else:
            terminal.wait_exit(3)
    stray = [str(path) for path in (tmp_path / "state").rglob(".*")]
    assert not stray or (how == "KILL" and len(stray) == 1), stray
    results = whole_cache(tmp_path / "cache")
    assert kept.read_bytes() == before
    for path in (tmp_path / "state" / "edits").glob("*.safetensors"):
        assert edit_files.read_edit(path).result.edit.fingerprint.startswith(path.stem)
    saved, notice = state.load("demo", "demo")
    assert not notice
    assert resume.tried.items() <= saved.tried.items()  # what a replacement costs is a trial as soon as it is known
    # A sweep and a run show themselves.
    assert replace(saved, tab="perturb", overlay="none", tried=resume.tried) == resume

    with Terminal(COMMAND) as again:
        again.until(known_and_settled, READY)
        text = again.until(lambda text: f"original weights (E {active.name}" in text, READY)
        assert current(again, demo_paragraphs) == ROW, text
        assert not re.search("damaged|unreadable|could not be", text)
        again.type("q")
        assert again.wait_exit(5) == 0
    assert whole_cache(tmp_path / "cache") >= results
    seen(f"engine gone after {took:.2f} s, {results:,} results and the edit whole, resumed")
