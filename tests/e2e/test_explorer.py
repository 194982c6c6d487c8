"""The explorer as a person meets it: a real terminal, the real engine, keys, clicks, kills and resizes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from memloc_core.requests import Sweep
from tests.conftest import result
from tests.e2e.conftest import gone_within
from tests.terminal import ENTER, ESCAPE, Terminal

COMMAND = [sys.executable, "-m", "memloc_tui"]
READY = 60.0  # seconds that importing torch may take on a busy machine


def engine_of(terminal: Terminal) -> int:
    """The engine process of this explorer."""
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline:
        children = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()
        for child in children:
            if b"memloc_core.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        terminal.pump(0.05)
    raise AssertionError("no engine process was started")


def current(terminal: Terminal, paragraphs) -> int:
    """The row of the paragraph that the list marks."""
    short = re.search(r"▸\s?([0-9a-f]{4,})", terminal.text)[1]
    (row,) = [row for row, id_ in enumerate(paragraphs.ids) if id_.startswith(short)]
    return row


def exact_match_after(demo, paragraphs, row, position, token):
    """EM of one replacement by a plain pass of transformers' forward."""
    ids = torch.from_numpy(paragraphs.tokens[row]).clone()
    ids[position] = token
    with torch.no_grad():
        said = demo.model(input_ids=ids[None]).logits[0, 49:-1].argmax(-1)
    matches = (said == ids[50:]).tolist()
    return matches.index(False) if False in matches else 50


def known_and_settled(text: str) -> bool:
    """Every paragraph is scored, one is marked, and its own answer is there."""
    return "▸" in text and " mem · " in text and "EM 50" in text and "asking" not in text


def replace_token(terminal: Terminal, typed: str) -> None:
    """With a token under the cursor: open the chooser, look a token up, keep it."""
    terminal.type(ENTER)
    terminal.until("Choose a token")
    terminal.type(typed)
    terminal.settle()
    terminal.type(ENTER)
    terminal.until(lambda text: "Choose a token" not in text)


@pytest.fixture
def explorer(scored):
    with Terminal(COMMAND) as terminal:
        terminal.until(known_and_settled, READY)
        yield terminal


def test_a_person_clicks_a_token_replaces_it_and_reads_the_new_exact_match(explorer, demo, demo_paragraphs):
    row = current(explorer, demo_paragraphs)
    column, line = explorer.find("2 Prefix")
    explorer.click(column - 1, line + 1)  # the first token of the prefix
    explorer.until("Choose a token for position 0")
    explorer.type("qu")
    text = explorer.settle()
    explorer.type(ENTER)
    text = explorer.until(lambda t: "Choose a token" not in t and re.search(r"EM 50 → \d+", t) and "asking" not in t)
    token = int(re.search(r"replaced by .* id (\d+)", text)[1])
    expected = exact_match_after(demo, demo_paragraphs, row, 0, token)
    assert int(re.search(r"EM 50 → (\d+)", text)[1]) == expected
    explorer.type("u")
    explorer.until(lambda t: "→" not in re.search(r"3 Continuation.*", t)[0])


def test_a_sweep_marks_every_token_with_its_drop(explorer, demo, demo_paragraphs):
    drops = result(demo, Sweep(demo_paragraphs.row(current(explorer, demo_paragraphs)))).drops()
    explorer.type("w")
    text = explorer.until(lambda t: re.search(r"mean drop [\d.]+, n 50", t) and "overlay: EM drop" in t, READY)
    assert "seed 0" in text
    assert f"mean drop {drops.mean():.1f}, n 50" in text
    column, line = explorer.find("2 Prefix")
    _, below = explorer.find("3 Continuation")
    under = explorer.screen.display[line + 2 : below - 1 : 3]  # the tokens, a line of numbers, an empty one
    marked = [int(number) for words in under for number in words[column:].split() if number.isdecimal()]
    assert marked == drops.tolist()


def test_the_engine_is_killed_and_the_next_question_is_answered(explorer, demo, demo_paragraphs):
    row = current(explorer, demo_paragraphs)
    engine = engine_of(explorer)
    explorer.type("2")
    os.kill(engine, signal.SIGKILL)
    explorer.until("killed by signal 9")
    assert gone_within(engine, 1)
    replace_token(explorer, "ze")
    text = explorer.until(lambda t: re.search(r"EM 50 → \d+", t) and "asking" not in t, READY)
    token = int(re.search(r"replaced by .* id (\d+)", text)[1])
    assert int(re.search(r"EM 50 → (\d+)", text)[1]) == exact_match_after(demo, demo_paragraphs, row, 0, token)
    assert engine_of(explorer) != engine


def test_quitting_is_quick_and_leaves_no_engine(scored):
    with Terminal(COMMAND) as terminal:
        terminal.until(known_and_settled, READY)
        engine = engine_of(terminal)
        terminal.settle()
        terminal.type("q")
        assert terminal.wait_exit(3) == 0
        assert gone_within(engine, 1)


def test_a_terminal_of_20_by_5_is_asked_to_grow_and_then_shows_everything():
    with Terminal(COMMAND, columns=20, rows=5) as terminal:
        terminal.until("60", READY)
        terminal.resize(120, 36)
        terminal.until(known_and_settled, READY)
        terminal.resize(80, 24)
        terminal.until("Continuation")


def test_theme_and_no_mouse_reach_the_terminal(explorer):
    """Clicks are asked for and colours drawn as a rule; with the options, not."""
    mouse = (b"\x1b[?1000h", b"\x1b[?1003h")
    assert all(code in explorer.raw for code in mouse)
    assert "default" not in backgrounds(explorer)
    with Terminal([*COMMAND, "--theme", "ansi-light", "--no-mouse"]) as terminal:
        terminal.until(known_and_settled, READY)
        assert not any(code in terminal.raw for code in mouse)
        assert "default" in backgrounds(terminal)  # the terminal's own, as the themes with "ansi" leave it


def backgrounds(terminal: Terminal) -> set[str]:
    """The background of the first column's cells."""
    return {line[0].bg for line in terminal.screen.buffer.values()}


def test_a_pasted_text_is_a_paragraph_in_this_sitting_and_the_next(explorer, demo, demo_paragraphs):
    """A recited paragraph that goes on otherwise after 90 tokens, with its newlines and characters never shown raw."""
    from memloc_core.demo import MODEL_FOLDER
    from memloc_core.paragraphs import paragraph_id
    from memloc_core.tokenizers import encode_text, read_vocabulary

    beginning = read_vocabulary(MODEL_FOLDER).text(demo_paragraphs.row(current(explorer, demo_paragraphs))[:90])
    assert "\n" in beginning
    written = f"{beginning}\x9b31m\u202e\u200b zebra{' zebra' * 20}"
    tokens = encode_text(MODEL_FOLDER, written).tokens
    explorer.type("+")
    explorer.until("A paragraph needs 100 tokens")
    explorer.type(f"\x1b[200~{written.replace(chr(10), chr(13))}\x1b[201~")  # as terminals send it
    text = explorer.until(f"{len(tokens)} tokens: the first 100 are studied.")
    assert "⟨U+009B⟩31m⟨U+202E⟩⟨U+200B⟩" in text.replace("\n", "")
    assert not re.search("\x9b|\u202e|\u200b".encode(), explorer.raw)
    explorer.type("\x13")
    with torch.no_grad():
        said = demo.model(input_ids=torch.from_numpy(tokens[None, :100])).logits[0, 49:-1].argmax(-1)
    em = [*(said == torch.from_numpy(tokens[50:100])).tolist(), False].index(False)
    assert em >= 30
    row = f"▸+{paragraph_id(tokens[:100])[:4]} {em} "

    def there(text):
        return "1 Paragraphs 701" in text and row in text and f"EM {em} of 50" in text

    explorer.until(there)
    explorer.type("q")
    assert explorer.wait_exit() == 0
    with Terminal(COMMAND) as again:
        again.until(there, READY)
        again.type("-")
        again.until(lambda t: "1 Paragraphs 700" in t and "Taken away" in t)
        again.type("q")
        assert again.wait_exit() == 0


def test_a_paragraph_of_escape_codes_reaches_the_terminal_as_visible_glyphs_only(tmp_path, demo_paragraphs):
    attack = "\x1b]52;c;cHduZWQ=\x07\x1b]0;pwned\x07\x1b[2J\x9b31m[bold]x[/bold]\u202e\x00\x7f"
    alphabet = json.loads((Path(__file__).parents[2] / "core/memloc_core/demo/model/tokenizer.json").read_text())
    from memloc_core.tokenizers import _byte_level_alphabet

    character = {byte[0]: char for char, byte in _byte_level_alphabet().items()}
    ids = [alphabet["model"]["vocab"][character[byte]] for byte in attack.encode()]
    file = tmp_path / "hostile.jsonl"
    file.write_text(json.dumps({"tokens": (ids * 4)[:100], "genre": attack, "split": attack}) + "\n")
    with Terminal([*COMMAND, "--paragraphs", str(file)]) as terminal:
        terminal.until("Continuation · EM", READY)
        terminal.type("o")
        terminal.settle()
        terminal.type("2" + ENTER)
        terminal.settle()
        terminal.type(ESCAPE)
        terminal.settle()
        for forbidden in (b"\x1b]52", b"\x1b]0;pwned", b"\x9b31m", "\u202e".encode(), b"\x00", b"\x7f"):
            assert forbidden not in terminal.raw
        assert b"\x1b[2J" not in terminal.raw.split(b"Continuation", 1)[1]
        assert "␛" in terminal.text
        assert "bold" in re.sub(r"[^a-z]", "", terminal.text)  # markup is shown, not obeyed
