"""The tour on the embedded model in a real terminal: its keys, and numbers that are those on the screen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.terminal import ENTER, Terminal

COMMAND = [sys.executable, "-m", "memloc_tui", "tour"]
SLOW = 120.0


def test_five_steps_with_the_real_keys(tmp_path: Path) -> None:
    environment = {"MEMLOC_STATE_DIR": str(tmp_path / "state"), "MEMLOC_CACHE_DIR": str(tmp_path / "cache")}
    with Terminal(COMMAND, env=environment) as terminal:
        text = terminal.until(lambda text: re.search(r"recites \d+ of these\s+700", text), SLOW)
        recited = re.search(r"recites (\d+) of these", text)[1]
        assert f"{recited} mem" in text
        terminal.type("]")
        terminal.until("times in its training", SLOW)
        terminal.type("[.w")
        text = terminal.until(lambda text: "carry" in text and "Each of 50 tokens" in text, SLOW)
        worst = re.search(r"at (\d+)\s+alone\s+costs\s+(\d+)", " ".join(text.split()))
        assert re.search(rf"{worst[2]} █+\S* +{worst[1]} ", text)  # the sweep's own first row
        terminal.type(".6")
        text = terminal.until("Their mean rarity rank", SLOW)
        assert "L1H2 looks most at" in text
        terminal.type(".a")
        text = terminal.until(lambda text: re.search(r"gives\s+EM\s+\d+", text), SLOW)
        without = re.search(r"gives EM (\d+)", " ".join(text.split()))[1]
        assert f"EM 50 → {without}" in text
        terminal.type("a")
        terminal.until(lambda text: "edits: none" in text and "EM 50 of 50" in text, SLOW)
        terminal.type(".x")
        terminal.until("start", SLOW)
        terminal.type(ENTER)
        text = terminal.until(lambda text: "weights changed in" in text, SLOW)
        after = int(re.search(r"EM 50 → (\d+)", text)[1])
        assert after <= 5
        terminal.type("E")
        terminal.until(lambda text: re.search(rf"Continuation · edited · EM {after} of 50", text), SLOW)
        terminal.type(".")
        terminal.until(lambda text: "Tour 5 of 5" not in text, SLOW)
        terminal.type("q")
        assert terminal.wait_exit() == 0


def test_without_a_terminal_it_says_so() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a terminal" in done.stderr
