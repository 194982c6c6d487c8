"""Somebody leans on the keyboard for half an hour: random keys, clicks, pastes, resizes, garbage, in a real terminal.

No exception, nothing of the paragraphs' escape codes on the line, and explorer and engine do not grow.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memloc_core.requests import ReadVocabulary
from tests.faults.rounds import FULL, SOAK
from tests.faults.test_explorer_killed import engines_of
from tests.terminal import DOWN, ENTER, ESCAPE, HOME, LEFT, RIGHT, TAB, UP, Terminal

READY = 90.0
ATTACK = "\x1b]52;c;cHduZWQ=\x07\x1b]0;pwned\x07\x1b[2J\x9b31m[bold]x[/bold]\u202e\x00\x7f[@click=app.pwned]y[/]"
# What may never be on the line to the terminal. Textual's own sequences are none of these; what the person
# copies goes out by OSC 52, encoded, so that the attack's own text for it is looked for.
FORBIDDEN = (
    b"\x1b]52;c;cHduZWQ=\x07",
    b"\x1b]0;pwned",
    b"\x9b31m",
    "\u202e".encode(),
    b"\x00",
    b"\x7f",
    b"\x07\x1b[2J",
)
KEYS = "123456789 0abdfghijklmnoprstuvwxyzABCDEFGHIJKLMNOPRSTUVWXYZ[]/.,?-+=*!@#$%&()<>:;'\"\\|~`^_{}"
NAMED = [
    ENTER,
    ESCAPE,
    TAB,
    UP,
    DOWN,
    LEFT,
    RIGHT,
    HOME,
    "\x1b[F",
    "\x1b[5~",
    "\x1b[6~",
    "\x7f",
    "\x1b[Z",
    "\x1b[3~",
    "\x0c",
]
QUITS = ("\x10", "\x1b[27;5;113~", "\x1b[113;1:3u")  # the palette, which can; Ctrl-Q and q by other names
CONTROLS = ["\x10", "\x12", "\x13", "\x01", "\x05", "\x0b", "\x15", "\x17", "\x1b[1;5C", "\x1b[1;2B"]
CONTROLS += ["\x1bOP", "\x1b[24~"]
PASTED = [
    f"\x1b[200~{text}\x1b[201~" for text in (ATTACK, "em>=50 genre:x", "[red]" * 50, "漢字 e\u0301 🏳️‍🌈", "x" * 3000)
]
GARBAGE = [
    "\x1b[<0;9999;9999M",
    "\x1b[<64;-1;0M",
    "\x1b[M   ",
    "\x1b[999999999;99999999R",
    "\x1b[?1;2c",
    "\x1b]11;rgb:ffff/ffff/ffff\x1b\\",
    "\x1bP>|xterm(370)\x1b\\",
    "\x1b[200~never closed",
    "\x1b[201~",
    "\x1b[I\x1b[O",
    "\x1b[",
    "\x1b]0;x",
    "\x1b\\",
    "\x00",
    "é漢\u202e\ud7ff",
    "\x1b[27;5;113~",
    "\x1b[113;1:3u",
    "\x1b[99999999999;5u",
    "\x1b[48;10;20;0;0t",
    "\x1b[48;36;120;720;1200t",
    "\udcff\udcfe",
    "caf\udce9",
]
SIZES = ((120, 36), (80, 24), (200, 60), (60, 16), (100, 30), (40, 10), (20, 5), (1, 1), (300, 100))
MEGA = 1 << 20
WARM = 240.0  # seconds; a shorter sitting has not yet seen every screen and question once


def bytes_of(pid: int) -> int:
    """What a process holds of the machine's memory, 0 where it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def hostile_set(path: Path) -> None:
    """The embedded model's own paragraphs: every third with an attack in its tokens, all with one in their genre."""
    from memloc_core.demo import MODEL_FOLDER, PARAGRAPHS_FILE
    from memloc_core.engine import Engine
    from memloc_core.tokenizers import _byte_level_alphabet

    assert len(Engine().answer(ReadVocabulary("demo")).result)
    vocabulary = json.loads((MODEL_FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    character = {byte[0]: char for char, byte in _byte_level_alphabet().items()}
    ids = [vocabulary[character[byte]] for byte in ATTACK.encode()]
    lines = []
    for number, line in enumerate(PARAGRAPHS_FILE.read_text().splitlines()[:240]):
        row = json.loads(line)
        if number % 3 == 0:
            row["tokens"] = (row["tokens"][:20] + ids * 2)[:100]
        lines.append(json.dumps(row | {"genre": ATTACK, "split": ATTACK[number % 30 :]}))
    path.write_text("\n".join(lines) + "\n")


def something(rng: random.Random, terminal: Terminal, stays: bool) -> str:
    """What the person does next; mostly keys, now and then something that no keyboard sends. One who `stays` does
    nothing that can quit, nor clicks on the bottom line, which has keys for it."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(KEYS)
    if kind < 0.72:
        return rng.choice(NAMED)
    if kind < 0.86:
        column, row = rng.randrange(terminal.screen.columns), rng.randrange(max(1, terminal.screen.lines - stays))
        button = rng.choice((0, 0, 0, 0, 1, 2, 64, 65, 35))
        return f"\x1b[<{button};{column + 1};{row + 1}M" + f"\x1b[<{button};{column + 1};{row + 1}m" * (button < 3)
    if kind < 0.92:
        return rng.choice([control for control in CONTROLS if not stays or control not in QUITS])
    if kind < 0.96:
        return rng.choice(PASTED)
    if kind < 0.98:
        return rng.choice([garbage for garbage in GARBAGE if not stays or garbage not in QUITS])
    terminal.resize(*rng.choice(SIZES))
    return ""


@pytest.mark.skipif(
    not FULL and "MEMLOC_FAULTS_SECONDS" not in os.environ, reason="what it meets depends on the clock: `make faults`"
)
def test_keys_clicks_and_garbage_for_half_an_hour(tmp_path: Path, seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, rows = random.Random(int(os.environ.get("MEMLOC_FAULTS_SEED") or 1)), tmp_path / "rows.jsonl"
    hostile_set(rows)
    (tmp_path / "cwd").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("MEMLOC_CRASHES", str(tmp_path / "crashes"))
    path = os.pathsep.join((str(tmp_path / "site"), str(Path(__file__).parents[2])))
    places = {"MEMLOC_CACHE_DIR": str(tmp_path / "cache"), "MEMLOC_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "memloc_tui", "--paragraphs", str(rows)]
    end = time.monotonic() + SOAK
    counts, engines = {"keys": 0, "sittings": 0}, set[int]()
    grown: list[list[tuple[float, int, int]]] = []
    done: list[str] = []
    while time.monotonic() < end:
        counts["sittings"] += 1
        # Without the terminal's own echo: what is typed when the explorer has just been left is not the explorer's.
        own = {**places, "PYTHONPATH": path}
        with Terminal(command, env=own, cwd=tmp_path / "cwd", echo=False) as terminal:
            terminal.until("1 Paragraphs", READY)
            watched, looked = [], time.monotonic()
            grown.append(watched)
            while time.monotonic() < end and terminal.process.isalive():
                keys = something(rng, terminal, stays=time.monotonic() > end - SOAK / 2)
                done.append(keys)
                counts["keys"] += 1
                try:
                    terminal.send(keys.encode("utf-8", "surrogateescape"))
                except OSError:
                    break
                while terminal.pump(rng.choice((0, 0, 0, 0.02, 0.1))) and len(terminal.raw) < 8 * MEGA:
                    pass
                if len(terminal.raw) > MEGA or rng.random() < 0.01:
                    clean(terminal, done)
                if time.monotonic() - looked > (5 if FULL else 1):
                    looked = time.monotonic()
                    own = engines_of(terminal.process.pid)
                    engines |= set(own)
                    assert len(own) <= 1
                    watched.append((looked, bytes_of(terminal.process.pid), bytes_of(own[0]) if own else 0))
            if not terminal.process.isalive():  # it was quit; nothing else may end it
                code = terminal.wait_exit(1)
                assert code == 0, f"exit code {code} after {done[-20:]!r}:\n{last_words(terminal)}"
                clean(terminal, done)
                continue
            # It still listens: out of whatever is open, and through the palette's absence to a screen of its own size.
            terminal.resize(120, 36)
            for _ in range(8):
                terminal.type(ESCAPE)
                terminal.settle(0.2, 2.0)
            terminal.type("\x1b[201~" + ESCAPE)
            terminal.settle(0.2, 2.0)
            terminal.type("\x0c")
            terminal.until(lambda text: "1 Paragraphs" in text and "2 Prefix" in text, 60)
            clean(terminal, done)
    judged = flat(grown)
    assert judged or SOAK < 4 * WARM, "no sitting was long enough to tell whether memory grows"
    longest = max(grown, key=len)
    began, (ended, *held) = longest[0][0], longest[-1]
    seen(
        f"{SOAK:,.0f} s: {counts['keys']:,} keys, {counts['sittings']} sittings, {len(engines)} engines; memory flat "
        f"in {judged} that were long enough to tell; at the end of the longest, after {ended - began:,.0f} s, explorer "
        f"{held[0] // MEGA} MB, engine {held[1] // MEGA} MB"
    )


# On a terminal of one column a traceback is hard to read: it is kept in a file, too.
CRASHES = """
import os, traceback
import textual.app
def kept(self, error, show=textual.app.App._handle_exception):
    with open(os.environ["MEMLOC_CRASHES"], "a") as file:
        file.write("".join(traceback.format_exception(error)))
    show(self, error)
textual.app.App._handle_exception = kept
"""


def last_words(terminal: Terminal) -> str:
    """The exception that ended the explorer, or else what stands on its screen."""
    while terminal.pump(0.2):
        pass
    crashes = Path(os.environ["MEMLOC_CRASHES"])
    return crashes.read_text()[-6_000:] if crashes.exists() else terminal.text


def clean(terminal: Terminal, done: list[str]) -> None:
    """What has come so far holds no attack, and the screen no sign of an exception; then it is forgotten."""
    assert not Path(os.environ["MEMLOC_CRASHES"]).exists(), f"after {done[-30:]!r}:\n{last_words(terminal)}"
    raw = bytes(terminal.raw)
    for forbidden in FORBIDDEN:
        assert forbidden not in raw, (
            f"{forbidden!r} after {done[-20:]!r}: {raw[max(0, raw.index(forbidden) - 80) :][:200]!r}"
        )
    for sign in ("Traceback", "Something went wrong", "The engine failed on", "Error:"):
        assert sign not in terminal.text, f"after {done[-30:]!r}:\n{last_words(terminal)}"
    del terminal.raw[: max(0, len(terminal.raw) - 60_000)]


def flat(grown: list[list[tuple[float, int, int]]]) -> int:
    """Memory in the last quarter of a sitting against its second: what is kept in memory has its limits by then.

    Returns in how many sittings that could be told."""
    judged = 0
    for sitting in grown:
        if len(sitting) < 24 or sitting[-1][0] - sitting[0][0] < WARM:
            continue
        judged += 1
        quarter = len(sitting) // 4
        for who, name in ((1, "explorer"), (2, "engine")):
            early, late = (
                sorted(part[who] for part in some if part[who])
                for some in (sitting[quarter : 2 * quarter], sitting[-quarter:])
            )
            if early and late:
                before, after = early[len(early) // 2], late[len(late) // 2]
                assert after < 1.15 * before + 40 * MEGA, f"the {name} grew from {before:,} to {after:,} bytes"
    return judged
