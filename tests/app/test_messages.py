"""The last messages: what notices say stays to be read, newest first, after they have left the screen."""

from __future__ import annotations

import re

import pytest
from fake import FakeSession
from helpers import notices, opened, screen_lines, shown, until

from memloc_core.errors import EngineDied
from memloc_core.requests import Perturb
from memloc_tui.app import MemlocApp
from memloc_tui.screens.messages import Messages


async def test_everything_that_was_said_is_listed_with_its_time_newest_first(app: MemlocApp) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await pilot.press("f", "m")
        await until(pilot, lambda: len(notices(app)) == 2)
        await pilot.press("l")
        await until(pilot, lambda: "1 marked" in shown(app, "MessageRows"))
        lines = [line.strip() for line in shown(app, "MessageRows").split("\n") if line.strip()]
        times, texts = zip(*(re.fullmatch(r"(\d\d:\d\d:\d\d) +(.*)", line).groups() for line in lines), strict=True)  # type: ignore[union-attr]
        assert list(texts) == notices(app)[::-1]
        assert list(times) == sorted(times, reverse=True)
        await pilot.press("l")
        assert app.screen is app.explorer


async def test_what_the_engine_says_and_what_failed_is_listed_too(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        app.session.on_notice("A batch was too large;\x1b[2J it was halved.")  # type: ignore[union-attr]
        session.fail[Perturb] = EngineDied("The engine process was killed by signal 9.")
        app.explorer.commit(((0, 5),))
        await until(pilot, lambda: any("signal 9" in said for said in notices(app)))
        await pilot.press("l")
        await until(pilot, lambda: "A batch was" in shown(app, "MessageRows"))
        newest, before = shown(app, "MessageRows").split("\n")[:2]
        assert re.search(r"\d error +The engine process was killed", newest)
        assert re.search(r"\d +A batch was too large;␛\[2J it was halved\.", before)
        assert "Nothing of yours is lost" not in newest  # too long for its line; below it is whole
        assert " ".join(shown(app, "#whole").split()).endswith("Nothing of yours is lost: r asks again.")


async def test_a_message_is_copied_and_the_last_two_hundred_are_kept(app: MemlocApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        for number in range(230):
            app.say(f"message {number}")
        await pilot.press("l", "down", "down", "y")
        assert app.clipboard == "message 227"
        await pilot.press("end", "y")
        assert app.clipboard == "message 30"
        assert "message 30" in shown(app, "#whole")


@pytest.mark.parametrize("key", ["escape", "q", "y"])
async def test_a_sitting_without_messages_says_so(app: MemlocApp, key: str) -> None:
    async with app.run_test(size=(60, 16)) as pilot:
        await pilot.press("l")
        await until(pilot, lambda: "No message yet." in "\n".join(screen_lines(app)))
        await pilot.press(key)
        assert isinstance(app.screen, Messages) == (key == "y")
