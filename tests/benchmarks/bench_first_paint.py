"""From `exec` to the first painted frame in a real pseudo-terminal, beside a Textual app that shows one line."""

from __future__ import annotations

import os
import sys
import tempfile

from tests.benchmarks.common import paired, ratio, report
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


def first_paint(command: list[str], env: dict[str, str]) -> None:
    with Terminal(command, env=env) as terminal:
        while b"memloc" not in terminal.raw:
            assert terminal.pump(20), terminal.text


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {"MEMLOC_CACHE_DIR": os.path.join(folder, "cache"), "MEMLOC_STATE_DIR": os.path.join(folder, "state")}
        explorer, minimal = [sys.executable, "-m", "memloc_tui"], [sys.executable, "-c", MINIMAL]
        works = {"explorer": lambda: first_paint(explorer, env), "minimal": lambda: first_paint(minimal, env)}
        paired(1, **works)  # compiled modules and the disk's cache for both
        taken = paired(PAIRS, **works)
    figures = {
        "explorer, seconds": sorted(taken["explorer"])[PAIRS // 2],
        "minimal Textual app, seconds": sorted(taken["minimal"])[PAIRS // 2],
        "explorer / minimal, median of 7 pairs": ratio(taken, "explorer", "minimal"),
    }
    report("first paint", figures, {"explorer / minimal, median of 7 pairs": ("<=", 1.35)})


if __name__ == "__main__":
    main()
