"""Paragraphs full of escape codes and markup reach the screen as visible text, in every pane."""

from __future__ import annotations

from unicodedata import category

import numpy as np
import pytest
from fake import PIECES, SPECIAL, WORDS, C, FakeSession, P, make_paragraphs
from helpers import opened, screen_lines, until
from test_localize import LocalSession
from textual import events

from memloc_core.requests import ParagraphSet
from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings

FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def hostile() -> ParagraphSet:
    made = make_paragraphs(30)
    special = np.arange(len(WORDS), len(WORDS) + len(SPECIAL))
    made.tokens[:, : len(special)] = special
    made.tokens[:, P : P + len(special)] = special
    ids = tuple(f"\x1b]0;{row}[red]\u202e" for row in range(30))
    return ParagraphSet(**{**vars(made), "ids": ids, "genre": ("[b]\x07",) * 30})


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 16)])
async def test_no_control_character_reaches_the_screen(size: tuple[int, int]) -> None:
    session = LocalSession(30, hostile())
    app = MemlocApp(Settings(model="fake", paragraphs="hostile"), session)  # type: ignore[arg-type]
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        for keys in (
            *"5678904",
            ["o"],
            ["w"],
            ["enter"],
            ["down"],
            ["enter"],
            ["s", "s"],
            ["p"],
            ["e"],
            ["escape"],
            ["y"],
            ["slash"],
        ):
            await pilot.press(*keys)
            await pilot.pause(0.05)
            for strip in app.screen._compositor.render_strips():
                assert strip.cell_length == size[0]
                for segment in strip:
                    assert not segment.control
                    assert all(category(c) not in FORBIDDEN for c in segment.text), repr(segment.text)


async def test_what_is_pasted_into_a_line_is_drawn_as_glyphs_and_kept_as_it_is() -> None:
    app = MemlocApp(Settings(model="fake", paragraphs="fake"), FakeSession())  # type: ignore[arg-type]
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await pilot.press("slash")
        app.post_message(events.Paste("\x1b[2Jw1\u202e").set_sender(app))
        await until(pilot, lambda: "␛[2Jw1⟨U+202E⟩" in screen_lines(app)[2])
        assert app.resume.filter == "\x1b[2Jw1\u202e"
        for strip in app.screen._compositor.render_strips():
            assert all(category(c) not in FORBIDDEN for c in strip.text)


async def test_data_is_never_markup() -> None:
    session = FakeSession(30, hostile())
    app = MemlocApp(Settings(model="fake", paragraphs="hostile"), session)  # type: ignore[arg-type]
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await opened(pilot)
        seen = "\n".join(screen_lines(app))
        assert "fake [b]model[/b] · cpu" in seen  # the model's name
        assert "␛[2J" in seen
        assert " [red]" in seen
        assert "⟨U+202E⟩" in seen
        app.say("[bold]not bold[/bold] \x1b[31m")
        await until(pilot, lambda: "[bold]not bold[/bold] ␛[31m" in "\n".join(screen_lines(app)))
        # A token that looks like a tag, named in the lower edge of its pane.
        await pilot.press(*["right"] * 4)
        await pilot.pause()
        assert PIECES[len(WORDS) + 4] == b" [red]"
        assert '4 " [red]" id' in "\n".join(screen_lines(app))
        assert C == 50
