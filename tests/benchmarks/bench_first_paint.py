"""From `exec` to the first painted frame in a real pseudo-terminal, beside a Textual app that shows one line.

And to the Findings tab with what was found before, where the last sitting ended there, beside the first frame.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.bench_explorer import timed
from tests.benchmarks.common import ratio, report
from tests.terminal import Terminal

MINIMAL = """
from textual.app import App
from textual.widgets import Static
class Minimal(App):
    def compose(self):
        yield Static("memloc")
Minimal().run()
"""
PAIRS = 7


def painted(command: list[str], env: dict[str, str], *texts: bytes) -> list[float]:
    """Seconds from starting the command to each text's arrival, without what reading the screen or ending it takes."""
    found: list[float] = []
    with Terminal(command, env=env) as terminal:
        raw = b""
        for text in texts:
            while text not in raw:
                assert select.select([terminal.process.fd], [], [], 20)[0], raw
                raw += os.read(terminal.process.fd, 1 << 16)
            found.append(time.perf_counter() - terminal.started)
    return found


def board(explorer: list[str], env: dict[str, str]) -> dict[str, float]:
    """The Findings tab with two claims that were tested before: by its key, and where the last sitting ended in it."""
    asked = [*explorer, "findings", "--quick", "--only", "all-or-nothing", "--only", "lower-nll", "--json"]
    subprocess.run(asked, env=os.environ | env, check=True, capture_output=True)
    taken: dict[str, list[float]] = {"key": [], "resumed": [], "first": []}
    for turn in range(PAIRS + 1):
        with Terminal(explorer, env=env) as terminal:
            terminal.until(lambda text: "EM 50" in text, 60)
            terminal.type("4")
            terminal.settle(1.0, 30)
            key = timed(terminal, lambda terminal=terminal: terminal.type("0"), lambda text: "holds" in text) / 1000
            terminal.type("q")
            terminal.wait_exit(30)
        first, resumed = painted(explorer, env, b"memloc", b"holds")
        if turn:
            taken["first"].append(first)
            taken["resumed"].append(resumed)
            taken["key"].append(key)
    return {
        "cached board by its key, seconds": sorted(taken["key"])[PAIRS // 2],
        "cached board by its key / first paint": ratio(taken, "key", "first"),
        "cached board of the last sitting / first paint": ratio(taken, "resumed", "first"),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {"MEMLOC_CACHE_DIR": os.path.join(folder, "cache"), "MEMLOC_STATE_DIR": os.path.join(folder, "state")}
        # As after an installation: both sides find their modules compiled, here in a folder of their own.
        env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": os.path.join(folder, "compiled")}
        explorer, minimal = [str(Path(sys.executable).with_name("memloc-tui"))], [sys.executable, "-c", MINIMAL]
        taken: dict[str, list[float]] = {"explorer": [], "minimal": []}
        for pair in range(PAIRS + 1):
            found = painted(explorer, env, b"memloc")[0], painted(minimal, env, b"memloc")[0]
            if pair:  # the first one compiles the modules and fills the disk's cache, for both
                taken["explorer"].append(found[0])
                taken["minimal"].append(found[1])
        shown = board(explorer, env)
    figures = {
        "explorer, seconds": sorted(taken["explorer"])[PAIRS // 2],
        "minimal Textual app, seconds": sorted(taken["minimal"])[PAIRS // 2],
        "explorer / minimal, median of 7 pairs": ratio(taken, "explorer", "minimal"),
        **shown,
    }
    goals = {"explorer / minimal, median of 7 pairs": ("<=", 1.35)}
    report("first paint", figures, goals | {"cached board by its key / first paint": ("<=", 1.5)})


if __name__ == "__main__":
    main()
