"""The embedded model in the explorer: the list's exact matches, a sweep, a click, and keys while the engine works.

And a list of 100,000 paragraphs beside one of 700, and a session that is opened again with all of it in the cache.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memloc_core.paragraphs import open_paragraphs
from memloc_core.requests import OpenParagraphs, Sweep
from memloc_tui import state
from memloc_tui.catalogue import Catalogue
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from tests.benchmarks.common import ratio, report
from tests.terminal import DOWN, ESCAPE, HOME, LEFT, RIGHT, Terminal

END = "\x1b[F"
CLICKS, KEYS, SWEEPS = 15, 120, 15
MANY, REOPENED = 100_000, 5


async def engine_figures() -> dict[str, float]:
    """Seconds until every EM of the list is known, and median milliseconds of a sweep, nothing cached."""
    session = Session(Settings(use_cache=False))
    await session.open()
    assert session.paragraphs is not None
    assert session.vocabulary is not None
    catalogue = Catalogue(session.paragraphs, session.vocabulary)
    start = time.perf_counter()
    for chunk in range(catalogue.chunks):
        catalogue.learn(chunk, (await session.ask(catalogue.request(chunk))).result)
    listed = time.perf_counter() - start
    sweeps = []
    for row in range(SWEEPS):
        start = time.perf_counter()
        await session.ask(Sweep(session.paragraphs.row(row)))
        sweeps.append(time.perf_counter() - start)
    await session.close()
    return {
        f"EM of all {len(catalogue)} paragraphs, seconds": listed,
        "sweep of 50 positions, median ms": statistics.median(sweeps) * 1000,
    }


def timed(terminal: Terminal, act: Callable[[], None], seen: Callable[[str], object]) -> float:
    """Milliseconds from an input until the screen shows its effect."""
    start = time.perf_counter()
    act()
    while not seen(terminal.text):
        assert time.perf_counter() - start < 30, terminal.text
        terminal.pump(0.5)
    return (time.perf_counter() - start) * 1000


def title(text: str) -> str:
    found = re.search(r"3 Continuation.*", text)
    return found[0] if found else ""


def click_figures(terminal: Terminal) -> dict[str, float]:
    column, line = terminal.find("2 Prefix")
    waits = []
    for number in range(CLICKS):
        terminal.settle(0.2)
        waits.append(
            timed(
                terminal,
                lambda number=number: terminal.click(column - 1 + 5 * number, line + 1),
                lambda text: "Choose a token" in text and "→" in title(text) and "asking" not in title(text),
            )
        )
        terminal.type(ESCAPE)
        terminal.until(lambda text: "Choose a token" not in text and "→" not in title(text))
    return {"click to new EM on screen, median ms": statistics.median(waits)}


def key_waits(terminal: Terminal) -> list[float]:
    """Milliseconds from an arrow key to the painted cursor, there and back again."""
    terminal.type(HOME)
    terminal.settle(0.3)
    waits = []
    position = 0
    for number in range(KEYS):
        step = 1 if number // 40 % 2 == 0 else -1
        position += step
        sought = re.compile(rf"[─╰] {position} \"")
        waits.append(
            timed(terminal, lambda: terminal.type(RIGHT if step > 0 else LEFT), lambda text: sought.search(text))  # noqa: B023
        )
        time.sleep(0.01)
    return sorted(waits)


def marked(text: str) -> int:
    """The line of the screen on which the list's current paragraph stands."""
    return next((number for number, line in enumerate(text.split("\n")) if "▸" in line[:6]), -1)


def list_figures(env: dict[str, str], name: str, source: str) -> dict[str, float]:
    """Opening a list, and walking down it while the engine works."""
    path = state.state_file("demo", source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": state.VERSION, "sort": "file", "draws": 99}))
    command = [sys.executable, "-m", "memloc_tui", "--no-cache", "--paragraphs", source]
    with Terminal(command, env=env) as terminal:
        while not re.search(r"│ *[0-9a-f]{5} ", terminal.text):
            assert time.perf_counter() - terminal.started < 60, terminal.text
            terminal.pump(0.5)
        opened = time.perf_counter() - terminal.started
        terminal.until(lambda text: re.search(r"EM [\d,]+/\d|EM \d+ of", text), 120)
        if name == "700":  # they are soon scored; the engine shall be at work in both lists
            terminal.until(lambda text: "ready" in text and "EM 0/" not in text, 120)
            terminal.settle(1.0)
            terminal.type("w")
            terminal.until("sweep", 30)
        terminal.type("1" + DOWN)
        terminal.settle(0.3, 2.0)
        waits = []
        for number in range(KEYS):
            if number % 20 == 0:
                terminal.type(HOME)
                terminal.settle(0.3, 2.0)
            line = marked(terminal.text)
            waits.append(timed(terminal, lambda: terminal.type(DOWN), lambda text: marked(text) == line + 1))  # noqa: B023
            time.sleep(0.01)
        end = timed(terminal, lambda: terminal.type(END), lambda text: marked(text) > line + 1)
    waits.sort()
    return {
        f"list of {name} on screen, seconds from the start": opened,
        f"down a list of {name}, engine busy, median ms": statistics.median(waits),
        f"down a list of {name}, engine busy, p99 ms": waits[int(0.99 * KEYS)],
        f"to the end of a list of {name}, ms": end,
    }


def many(folder: Path) -> str:
    """A file of 100,000 different paragraphs like the embedded ones."""
    rows = open_paragraphs(OpenParagraphs("demo", "demo")).tokens
    tokens = np.tile(rows, (-(-MANY // len(rows)), 1))[:MANY]
    rng = np.random.default_rng(0)
    for place in (20, 70):
        tokens[:, place] = rng.integers(0, 3000, MANY)
    np.save(folder / "many.npy", tokens)
    return str(folder / "many.npy")


def reopen_figures(folder: Path) -> dict[str, float]:
    """From the start until every exact match of the last session is on screen, beside the first line on it."""
    env = {"MEMLOC_STATE_DIR": str(folder / "again"), "MEMLOC_CACHE_DIR": str(folder / "cache")}
    command = [str(Path(sys.executable).with_name("memloc-tui"))]
    subprocess.run([*command, "list", "--json"], env=os.environ | env, check=True, capture_output=True)
    taken: dict[str, list[float]] = {"first": [], "all": []}
    for turn in range(REOPENED + 1):
        with Terminal(command, env=env) as terminal:
            for what, seen in (("first", "memloc"), ("all", r"\d+ mem · \d+ part · \d+ non")):
                while not re.search(seen, terminal.text):
                    assert time.perf_counter() - terminal.started < 60, terminal.text
                    terminal.pump(0.5)
                if turn:
                    taken[what].append(time.perf_counter() - terminal.started)
            terminal.until(lambda text: "EM 50" in title(text), 60)
            terminal.type("q")
            terminal.wait_exit(30)
    return {
        "reopened: every exact match on screen, seconds": statistics.median(taken["all"]),
        "reopened: every exact match on screen / first line": ratio(taken, "all", "first"),
    }


def main() -> None:
    figures = asyncio.run(engine_figures())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEMLOC_STATE_DIR"] = folder
        path = state.state_file("demo", "demo")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": state.VERSION, "draws": 99, "tab": "perturb"}))
        with Terminal([sys.executable, "-m", "memloc_tui", "--no-cache"], env={"MEMLOC_STATE_DIR": folder}) as terminal:
            terminal.until(lambda text: "EM 50" in title(text) and "asking" not in text and "ready" in text, 120)
            terminal.settle(1.0)
            figures |= click_figures(terminal)
            terminal.type("2")
            terminal.settle(0.5)
            idle = key_waits(terminal)
            terminal.type("w")
            terminal.until("sweep", 30)
            busy = key_waits(terminal)
            assert re.search(r"sweep \d+%", terminal.text), "the sweep ended before the keys did"
        there = Path(folder)
        env = {"MEMLOC_STATE_DIR": folder}
        for name, source in (("700", "demo"), ("100,000", many(there))):
            figures |= list_figures(env, name, source)
        figures |= reopen_figures(there)
    small, large = (figures[f"down a list of {name}, engine busy, median ms"] for name in ("700", "100,000"))
    figures |= {
        "down a list of 100,000 / of 700, medians": large / small,
        "key to paint idle, median ms": statistics.median(idle),
        "key to paint busy, median ms": statistics.median(busy),
        "key to paint idle, p99 ms": idle[int(0.99 * KEYS)],
        "key to paint busy, p99 ms": busy[int(0.99 * KEYS)],
        "key to paint, p99 busy / p99 idle": busy[int(0.99 * KEYS)] / idle[int(0.99 * KEYS)],
    }
    goals = {
        next(iter(figures)): ("<=", 3.0),
        "sweep of 50 positions, median ms": ("<=", 150.0),
        "click to new EM on screen, median ms": ("<=", 60.0),
        "key to paint, p99 busy / p99 idle": ("<=", 3.0),
        "down a list of 100,000 / of 700, medians": ("<=", 1.5),
    }
    report("explorer on the embedded model", figures, goals)


if __name__ == "__main__":
    assert Path("pyproject.toml").is_file(), "run from the repository's root"
    main()
