"""Bytes that each key sends down the line: the explorer on the embedded model in a real terminal, over a slow link."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.common import report
from tests.terminal import DOWN, ENTER, ESCAPE, LEFT, RIGHT, UP, Terminal

TYPICAL, MOST = 1500, 16_000  # bytes, of the key in the middle and of any

# Where the keyboard is before (typed first, not counted), then what is pressed there; a name for the table.
KEYS: tuple[tuple[str, str, str], ...] = (
    ("cursor right in the prefix", "2", RIGHT),
    ("cursor down in the prefix", "2", DOWN),
    ("cursor left in the prefix", "2", LEFT),
    ("next paragraph ]", "2", "]"),
    ("paragraph before [", "2", "["),
    ("down the list", "1", DOWN),
    ("up the list", "1", UP),
    ("focus the list 1", "2", "1"),
    ("focus the prefix 2", "1", "2"),
    ("focus the continuation 3", "2", "3"),
    ("sort s", "2", "s"),
    ("reverse S", "2", "S"),
    ("overlay o", "2", "o"),
    ("overlay o again", "2", "o"),
    ("reference f", "2", "f"),
    ("open the chooser ⏎", "2", ENTER),
    ("next in the chooser ↓", "", DOWN),
    ("other column →", "", RIGHT),
    ("keep in the chooser ⏎", "", ENTER),
    ("undo u", "2", "u"),
    ("sweep w", "2", "w"),
    ("ablate a", "2", "a"),
    ("put back a", "2", "a"),
    ("tab Gradients 5", "2", "5"),
    ("right in a map", "", RIGHT),
    ("down in a map", "", DOWN),
    ("switch v", "", "v"),
    ("tab Attention 6", "2", "6"),
    ("down in the tab", "", DOWN),
    ("tab Heads 7", "2", "7"),
    ("right in a map", "", RIGHT),
    ("tab Patch 8", "2", "8"),
    ("tab Perturb 4", "2", "4"),
    ("filter /", "2", "/"),
    ("a letter in the filter", "", "e"),
    ("leave the filter", "", ESCAPE),
    ("export e", "2", "e"),
    ("back out of it", "", ESCAPE),
    ("help ?", "2", "?"),
    ("down in the help", "", DOWN),
    ("back out of it", "", ESCAPE),
    ("palette ^p", "2", "\x10"),
    ("a letter in the palette", "", "s"),
    ("back out of it", "", ESCAPE),
)


def bytes_of(terminal: Terminal, keys: str) -> int:
    """What is received from a key until nothing more comes."""
    before = terminal.received
    terminal.type(keys)
    terminal.settle(0.6, 15)
    return terminal.received - before


def drawn(terminal: Terminal) -> dict[int, dict[int, Any]]:
    """Every cell of the screen, with its look."""
    return {number: dict(line) for number, line in terminal.screen.buffer.items()}


def main() -> None:
    figures: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {"MEMLOC_STATE_DIR": folder, "MEMLOC_CACHE_DIR": folder, "MEMLOC_CONFIG": os.devnull}
        with Terminal([sys.executable, "-m", "memloc_tui"], env=env) as terminal:
            terminal.until(lambda text: "EM 50" in text and "asking" not in text and "ready" in text, 180)
            terminal.settle(2.0, 60)
            figures["first screen"] = terminal.received
            for name, place, keys in KEYS:
                if place:
                    bytes_of(terminal, place)
                before = drawn(terminal)
                taken = bytes_of(terminal, keys)
                assert drawn(terminal) != before, f"{name}: nothing changed on the screen"
                while name in figures:
                    name += " "
                figures[name] = taken
            terminal.type(ESCAPE)
    pressed = [taken for name, taken in figures.items() if name != "first screen"]
    figures = dict(sorted(figures.items(), key=lambda item: -item[1]))
    figures |= {"median over all keys": int(statistics.median(pressed)), "most of any key": max(pressed)}
    goals = {"median over all keys": ("<=", float(TYPICAL)), "most of any key": ("<=", float(MOST))}
    report("bytes per key, 120x36", figures, goals)


if __name__ == "__main__":
    assert Path("pyproject.toml").is_file(), "run from the repository's root"
    main()
