"""Nothing that training text holds reaches the terminal raw."""

from __future__ import annotations

import json
from unicodedata import category

from hypothesis import given, strategies as st
from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip
from wcwidth import wcwidth

from memloc_tui.glyphs import bar, escaped, fit, fit_end, glyph, piece_text, visible

FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
SELECTORS = [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]


def test_every_character_is_drawable_and_has_the_width_that_terminals_give_it() -> None:
    # All of the basic plane, the emoji and pictures beyond it, and a sample of the rest.
    for code in (*range(0x10000), *range(0x1F000, 0x1FB00), *range(0xE0000, 0xE0200), *range(0x10000, 0x110000, 211)):
        drawn = glyph(chr(code))
        if code in SELECTORS:
            assert drawn == ""
        for char in drawn:
            assert category(char) not in FORBIDDEN, hex(code)
            assert cell_len(char) == max(0, wcwidth(char)), hex(code)


def test_named_signs() -> None:
    assert visible("a\nb\tc") == "a↵b→c"
    assert visible("\x1b[31m\x07\x7f") == "␛[31m␇␡"
    assert visible("\u202e\x9b") == "⟨U+202E⟩⟨U+009B⟩"
    assert visible("\u00a0") == "␣"
    assert visible("\u0301x") == "◌\u0301x"
    assert visible(" two  spaces ") == " two  spaces "


def test_bytes_of_an_unfinished_character() -> None:
    assert piece_text(b"\xe2") == "⟨E2⟩"
    assert piece_text(b" \xf0\x9f") == " ⟨F0⟩⟨9F⟩"
    assert piece_text("漢".encode()) == "漢"
    assert piece_text(b"", 12) == "⟨#12⟩"


@given(st.binary(max_size=40))
def test_any_bytes_give_one_clean_line(piece: bytes) -> None:
    drawn = piece_text(piece, 3)
    assert drawn
    assert all(category(c) not in FORBIDDEN for c in drawn)


@given(st.text(max_size=60), st.integers(1, 40))
def test_the_end_of_a_text_is_its_longest_that_there_is_room_for(text: str, width: int) -> None:
    shown = fit_end(visible(text), width)
    if cell_len(visible(text)) <= width:
        assert shown == visible(text)
    else:
        assert shown[0] == "…"
        assert visible(text).endswith(shown[1:])
        longer = visible(text)[-len(shown) :]
        assert cell_len(shown) <= width < cell_len(longer) + 1


@given(st.text(max_size=60), st.integers(1, 40))
def test_fit_is_exact_and_clean_in_a_strip(text: str, width: int) -> None:
    strip = Strip([Segment(fit(visible(text), width))])
    assert strip.cell_length == width
    assert all(category(c) not in FORBIDDEN for c in strip.text)


@given(st.floats(-1, 2), st.integers(1, 20))
def test_bars_fill_their_room(share: float, width: int) -> None:
    drawn = bar(share, width)
    assert len(drawn) == width
    assert (drawn == "█" * width) == (share >= 1 - 1 / (16 * width))


@given(st.text(st.characters(exclude_categories=())), st.booleans())
def test_json_says_the_same_without_a_character_that_a_terminal_would_obey(text: str, ascii: bool) -> None:
    document = {text: [text, 1, None], "attack": "\x1b]0;pwned\x07\x9b31m\u202e\x7f\U000e0041é漢"}
    plain = escaped(json.dumps(document, ensure_ascii=ascii, indent=1))
    assert json.loads(plain) == document
    assert not [c for c in plain if c != "\n" and category(c) in FORBIDDEN]
    assert ascii or "é漢" in plain
