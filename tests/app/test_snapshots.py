"""How it looks. `pytest tests/app/test_snapshots.py --snapshot-update` after a change that is meant."""

from __future__ import annotations

from typing import Any

from fake import FakeSession
from helpers import opened, until
from textual.pilot import Pilot

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


def test_narrow(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(80, 24), run_before=after("w"))


def test_narrow_drawer(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(80, 24), run_before=after("p", "down"))
