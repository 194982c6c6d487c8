"""From `exec` to the first painted frame in a real pseudo-terminal, beside a Textual app that shows one line."""

from __future__ import annotations

import os
import select
import sys
import tempfile
import time
from pathlib import Path

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


def first_paint(command: list[str], env: dict[str, str]) -> float:
    """Seconds from starting the command to the frame's arrival, without what reading the screen or ending it takes."""
    with Terminal(command, env=env) as terminal:
        raw = b""
        while b"memloc" not in raw:
            assert select.select([terminal.process.fd], [], [], 20)[0], raw
            raw += os.read(terminal.process.fd, 1 << 16)
        return time.perf_counter() - terminal.started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {"MEMLOC_CACHE_DIR": os.path.join(folder, "cache"), "MEMLOC_STATE_DIR": os.path.join(folder, "state")}
        # As after an installation: both sides find their modules compiled, here in a folder of their own.
        env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": os.path.join(folder, "compiled")}
        explorer, minimal = [str(Path(sys.executable).with_name("memloc-tui"))], [sys.executable, "-c", MINIMAL]
        taken: dict[str, list[float]] = {"explorer": [], "minimal": []}
        for pair in range(PAIRS + 1):
            found = first_paint(explorer, env), first_paint(minimal, env)
            if pair:  # the first one compiles the modules and fills the disk's cache, for both
                taken["explorer"].append(found[0])
                taken["minimal"].append(found[1])
    figures = {
        "explorer, seconds": sorted(taken["explorer"])[PAIRS // 2],
        "minimal Textual app, seconds": sorted(taken["minimal"])[PAIRS // 2],
        "explorer / minimal, median of 7 pairs": ratio(taken, "explorer", "minimal"),
    }
    report("first paint", figures, {"explorer / minimal, median of 7 pairs": ("<=", 1.35)})


if __name__ == "__main__":
    main()
