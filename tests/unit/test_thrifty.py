"""The driver for slow links: whatever is written through it, the terminal shows the same."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given, settings as budget, strategies as st
from rich.cells import cell_len

from memloc_tui.thrifty import PLAIN, Glass, _change, _short, _styled

WIDTH, HEIGHT = 12, 3
CODES = ("1", "3", "4", "7", "31", "42", "97", "104", "38;2;1;2;3", "48;2;9;8;7", "38;5;200", "1;38;2;4;5;6")
# Textual never cuts a wide character in two: pieces of two columns, from an even one.
TEXTS = st.lists(st.sampled_from(["ab", "  ", "漢", "é█", "x "]), min_size=1, max_size=6).map("".join)


def screen() -> tuple[pyte.Screen, pyte.Stream]:
    made = pyte.Screen(WIDTH, HEIGHT)
    return made, pyte.Stream(made)


@st.composite
def frames(draw: st.DrawFn) -> list[str]:
    """Frames as Textual writes them: moves, a style, text that fits, a reset; now and then something else."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        parts = []
        for _ in range(draw(st.integers(1, 6))):
            text = draw(TEXTS)
            x = 2 * draw(st.integers(0, (WIDTH - cell_len(text)) // 2))
            style = draw(st.sampled_from(CODES))
            parts.append(f"\x1b[{draw(st.integers(1, HEIGHT))};{x + 1}H\x1b[{style}m{text}\x1b[0m")
        parts.append(draw(st.sampled_from(["", "", "\x1b[1;1H\n", "\x1b[?25l", "\x1b[2J", "\x1b[2;2H\x1b[K"])))
        made.append("".join((*parts, "\x1b[1;1H")))
    return made


def looks(shown: pyte.Screen) -> list[list[tuple[object, ...]]]:
    """Every cell with its colours and attributes."""
    return [[tuple(shown.buffer[y][x]) for x in range(WIDTH)] for y in range(HEIGHT)]


@given(frames())
@budget(max_examples=300)
def test_the_terminal_shows_the_same(written: list[str]) -> None:
    (whole, one), (thrifty, two) = screen(), screen()
    glass = Glass()
    for frame in written:
        one.feed(frame)
        two.feed(glass.less(frame, (WIDTH, HEIGHT)))
        assert looks(whole) == looks(thrifty)
        assert (whole.cursor.x, whole.cursor.y) == (thrifty.cursor.x, thrifty.cursor.y)


MARKED = st.lists(st.sampled_from(["a", "漢", "e\u0301", "漢\u0301", "\u0301", "\u200d"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(st.integers(0, 2 * WIDTH), st.integers(0, HEIGHT + 2), MARKED.map("".join)), min_size=1))
@budget(max_examples=300)
def test_what_was_drawn_for_a_larger_terminal_is_passed_on_as_it_is(pieces: list[tuple[int, int, str]]) -> None:
    """The terminal has become smaller, and the app does not know it yet."""
    glass = Glass()
    for x, y, text in pieces:
        frame = f"\x1b[{y + 1};{x + 1}H{text}"
        sent = glass.less(frame, (WIDTH, HEIGHT))
        if x + cell_len(text) > WIDTH or y >= HEIGHT:
            assert sent == frame
            assert not any(cell for line in glass.cells for cell in line)


@given(frames())
@budget(max_examples=60)
def test_the_same_frame_again_costs_nothing(written: list[str]) -> None:
    glass = Glass()
    for frame in written:
        end = "\x1b[1;1H"
        glass.less(frame + end, (WIDTH, HEIGHT))
        if "\x1b[2J" in frame or "\x1b[K" in frame:
            continue  # unknown to it, so sent as it is
        # One write over another in a frame differs from the end; so the end itself is written twice.
        again = "".join(
            f"\x1b[{y + 1};{x + 1}H\x1b[{';'.join(('0', *(p for p in cell[1] if p)))}m{cell[0]}\x1b[0m"
            for y, line in enumerate(glass.cells)
            for x, cell in enumerate(line)
            if cell is not None and cell[0]
        )
        sent = glass.less(again + end, (WIDTH, HEIGHT))
        assert sent.replace("\x1b[?25l", "") == ""


@pytest.mark.parametrize("unknown", ["\x1b[3;1H\n", "\x1b]0;x\x07", "\x1bc", "\x1b[5A", "\x1b[?1049h", "\x07"])
def test_what_is_unknown_is_passed_on_and_all_is_sent_again(unknown: str) -> None:
    glass, frame = Glass(), "\x1b[1;1H\x1b[1mab\x1b[0m\x1b[1;1H"
    assert "ab" in glass.less(frame, (WIDTH, HEIGHT))
    assert glass.less(frame, (WIDTH, HEIGHT)) == ""
    assert glass.less(unknown, (WIDTH, HEIGHT)) == unknown
    assert "ab" in glass.less(frame, (WIDTH, HEIGHT))
    assert "ab" in glass.less(frame, (WIDTH + 1, HEIGHT))  # another size


def test_modes_are_always_sent() -> None:
    glass = Glass()
    for _ in range(2):
        assert glass.less("\x1b[?2026h\x1b[?25l", (WIDTH, HEIGHT)) == "\x1b[?2026h\x1b[?25l"


@given(st.lists(st.sampled_from(CODES), max_size=3), st.lists(st.sampled_from(CODES), max_size=3))
def test_a_change_of_style_ends_in_that_style(first: list[str], second: list[str]) -> None:
    before, after = PLAIN, PLAIN
    for codes in first:
        before = _styled(before, codes)
    for codes in second:
        after = _styled(after, codes)
    changed = before if before == after else _styled(before, _change(before, after)[2:-1])
    assert (changed[:2], set(changed[2].split(";"))) == (after[:2], set(after[2].split(";")))


def test_a_colour_of_the_shared_table_goes_by_its_number() -> None:
    """pyte's table is the reference."""
    table = pyte.graphics.FG_BG_256
    for red in range(0, 256, 5):
        for green, blue in ((red, red), (0, 95), (215, 255), (18, 18)):
            short = _short(f"48;2;{red};{green};{blue}")
            own = f"{red:02x}{green:02x}{blue:02x}"
            if short.startswith("48;5;"):
                assert table[int(short.removeprefix("48;5;"))] == own
            else:
                assert own not in table[16:]
