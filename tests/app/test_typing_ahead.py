"""Keys that arrive in one burst, as over a slow line, do what they do when they are typed one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake import PIECES, FakeSession, make_paragraphs
from helpers import opened, until
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input

from memloc_core.requests import Sweep, random_tokens
from memloc_tui.app import MemlocApp
from memloc_tui.typing_ahead import pasted

WIDE = (120, 36)


async def burst(pilot: Pilot[Any], *keys: str) -> None:
    """All keys lie in the app's queue before it looks at the first."""
    for key in keys:
        pilot.app.post_message(events.Key(key, key if len(key) == 1 else None).set_sender(pilot.app))
    await pilot.pause()


async def test_a_key_after_enter_in_the_chooser_is_no_text(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await burst(pilot, "right", "enter", "down", "enter", "w")
        await until(pilot, lambda: app.explorer.study.work[row].trials)
        token = random_tokens(0, 1, 2, len(PIECES), make_paragraphs().row(row)[1])[1]
        assert app.explorer.study.work[row].replacements == ((1, token),)
        await until(pilot, lambda: any(isinstance(request, Sweep) for request in session.asked))
        assert app.explorer.focused is app.explorer.prefix


async def test_text_typed_with_the_key_that_opens_a_field_is_its_text(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await burst(pilot, "slash", *"em", "backspace", "q")
        await until(pilot, lambda: app.explorer.query(Input))
        assert app.explorer.query_one(Input).value == "eq"
        assert app.is_running


async def test_a_key_whose_widget_goes_away_does_not_hold_up_the_next(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await burst(pilot, "question_mark", "escape", "W", "escape", "e", "escape", "x", "2", "right", "right")
        await until(pilot, lambda: app.explorer.prefix.cursor == 2)
        assert app.screen is app.explorer


async def test_what_is_pasted_waits_its_turn(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.post_message(events.Key("enter", None).set_sender(app))
        app.post_message(events.Paste("dog").set_sender(app))
        await until(pilot, lambda: app.explorer.choosing.chooser.typed == "dog")


def test_a_paste_brings_its_lines_and_most_fields_get_nothing_that_steers_a_terminal() -> None:
    text = "a\rb\r\nc\n\x1b[2J\x9b\u202e\x7f\te"
    assert pasted(text, whole=False) == "a\nb\nc\n[2J\te"
    assert pasted(text, whole=True) == "a\nb\nc\n\x1b[2J\x9b\u202e\x7f\te"


async def test_the_filter_gets_the_first_line_of_a_paste_as_it_came(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("slash")
        app.post_message(events.Paste("w1\x1b[2J\u202e \x9bw2\rw3").set_sender(app))
        await until(pilot, lambda: app.explorer.query_one(Input).value == "w1\x1b[2J\u202e \x9bw2")


async def test_keys_after_the_one_that_quits_are_dropped(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await burst(pilot, "q", *"wwww", "enter")
    assert app.return_code == 0


@pytest.mark.parametrize("turns", range(4, 10))
@pytest.mark.parametrize("key", ["e", "l", "plus", "6"])
async def test_what_opens_while_the_app_ends_is_no_failure(app: MemlocApp, key: str, turns: int) -> None:
    """Some turns of the event loop after the key its dialog or tab is there, and what stands in it is not yet."""
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.post_message(events.Key(key, key if len(key) == 1 else None).set_sender(app))
        for _ in range(turns):
            await asyncio.sleep(0)
        app.exit(return_code=0)
    assert app.return_code == 0
