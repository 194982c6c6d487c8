"""How the panels look. `pytest tests/app/test_localize_snapshots.py --snapshot-update` after a change that is meant."""

from __future__ import annotations

from typing import Any

from test_localize import LocalSession
from test_snapshots import after

from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings


def app() -> MemlocApp:
    given: Any = LocalSession()
    return MemlocApp(Settings(model="fake", paragraphs="fake"), given)


def test_gradients_wide(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(120, 36), run_before=after("o", "o", "o", "o", "5", "down"))


def test_heads_narrow(snap_compare: Any) -> None:
    assert snap_compare(app(), terminal_size=(80, 24), run_before=after("o", "o", "o", "7", "m", "a"))
