"""The explorer through the driver for slow links, beside the same explorer through Textual's own."""

from __future__ import annotations

import re
import sys

from tests.terminal import DOWN, ESCAPE, RIGHT, Terminal

KEYS = ("1", DOWN, "s", "2", RIGHT, "]", "o", "o", "?", DOWN, ESCAPE, "e", ESCAPE, "3", "2")
OPENS = {"?": "Everywhere", "e": "Export to"}  # a dialog is imported when it is first opened


def ready(text: str) -> bool:
    return "ready" in text and "EM 50" in text and not re.search(r"EM [\d,]+/[\d,]+", text)


def cells(terminal: Terminal) -> tuple[str, list[list[tuple[object, ...]]]]:
    """The text, and every cell with its colours; without the first line, which says what the engine does now."""
    colours = [[tuple(terminal.screen.buffer[y][x]) for x in range(120)] for y in range(1, 36)]
    return terminal.text.partition("\n")[2], colours


def test_a_person_sees_the_same_and_the_line_carries_far_less(scored, tmp_path):
    seen, sent = [], []
    for driver in ("", "textual.drivers.linux_driver:LinuxDriver"):
        env = {"MEMLOC_STATE_DIR": str(tmp_path / f"state{driver[:3]}"), "MEMLOC_CACHE_DIR": str(tmp_path / "cache")}
        env |= {"TEXTUAL_DRIVER": driver} if driver else {}
        with Terminal([sys.executable, "-m", "memloc_tui"], env=env) as terminal:
            terminal.until(ready, 120)
            terminal.settle(1.0)
            frames, before = [cells(terminal)], terminal.received
            for key in KEYS:
                terminal.type(key)
                if key in OPENS:
                    terminal.until(OPENS[key])
                elif key == ESCAPE:
                    terminal.until(lambda text: not any(dialog in text for dialog in OPENS.values()))
                terminal.settle(0.6)
                frames.append(cells(terminal))
            seen.append(frames)
            sent.append(terminal.received - before)
    for (thrifty, own), (plain, other), key in zip(*seen, ("at first", *KEYS), strict=True):
        assert thrifty == plain, repr(key)
        assert own == other, f"colours after {key!r}"
    assert sent[0] < sent[1] / 4


def test_the_screen_can_be_drawn_anew(scored, tmp_path):
    env = {"MEMLOC_STATE_DIR": str(tmp_path), "MEMLOC_CACHE_DIR": str(tmp_path / "cache")}
    with Terminal([sys.executable, "-m", "memloc_tui"], env=env) as terminal:
        terminal.until(ready, 180)
        terminal.settle(1.0)
        whole = terminal.text
        terminal.screen.reset()  # as after a message that somebody else wrote on the terminal
        assert terminal.text.strip() == ""
        terminal.type("\x0c")
        terminal.until(lambda text: "1 Paragraphs" in text and "q quit" in text)
        assert terminal.settle(0.5) == whole
