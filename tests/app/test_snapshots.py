"""How it looks. `pytest tests/app/test_snapshots.py --snapshot-update` after a change that is meant."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake import FakeSession
from helpers import app_of, opened, shown, until
from textual import events
from textual.pilot import Pilot

from memloc_core.requests import EncodedText, EncodeText
from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings


def app() -> MemlocApp:
    given: Any = FakeSession()
    return MemlocApp(Settings(model="fake", paragraphs="fake"), given)


def after(*keys: str) -> Any:
    async def do(pilot: Pilot[Any]) -> None:
        await opened(pilot)
        for key in keys:
            await pilot.press(key)
            await pilot.pause(0.1)
        await until(pilot, lambda: not pilot.app.explorer.study.asking)  # type: ignore[attr-defined]
        await pilot.pause(0.3)

    return do


def test_wide(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(120, 36), run_before=after("right", "enter", "down", "enter", "w"))


def test_wide_choosing(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(120, 36), run_before=after("enter", "d", "o", "g"))


def test_wide_a_text_of_ones_own(snap_compare: Any) -> None:
    async def do(pilot: Pilot[Any]) -> None:
        app = app_of(pilot)
        await opened(pilot)
        await pilot.press("+")
        app.post_message(events.Paste("w0 w1 w2\r  the end\u202e\x1b[2J\t.").set_sender(app))
        await until(pilot, lambda: "12 of 100 tokens" in shown(app, "#own-count"))

    class Spelling(FakeSession):
        def answer(self, request: Any) -> Any:
            return EncodedText(np.arange(12)) if isinstance(request, EncodeText) else super().answer(request)

    given: Any = Spelling()
    made = MemlocApp(Settings(model="fake", paragraphs="fake"), given)
    assert snap_compare(made, terminal_size=(120, 36), run_before=do)


def test_narrow(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(80, 24), run_before=after("w"))


def test_narrow_drawer(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(80, 24), run_before=after("p", "down"))
