"""How the Unlearn tab looks. `pytest tests/app/test_unlearn_snapshots.py --snapshot-update` after a change."""

from __future__ import annotations

import asyncio
from typing import Any

from fake_runs import RunSession
from helpers import app_of, opened, shown, until
from textual.pilot import Pilot

from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings


def app(session: RunSession) -> MemlocApp:
    given: Any = session
    return MemlocApp(Settings(model="fake", paragraphs="fake"), given)


async def estimated(pilot: Pilot[Any]) -> None:
    """The form with its estimate."""
    await opened(pilot)
    await pilot.press("x")
    explorer = app_of(pilot).explorer
    await until(
        pilot, lambda: explorer.query("#run-form") and "weights ·" in shown(app_of(pilot), "#panel-unlearn"), 20
    )


def test_curves_of_a_paused_run_wide(snap_compare: Any) -> None:
    session = RunSession()
    session.ticks = asyncio.Queue()

    async def do(pilot: Pilot[Any]) -> None:
        await estimated(pilot)
        await pilot.press("enter")
        for _ in range(8):
            session.ticks.put_nowait(None)
        await until(pilot, lambda: "50.0 → 15.0" in shown(app_of(pilot), "#run-curves"), 20)
        await pilot.press("space")
        await pilot.pause(0.5)

    assert snap_compare(app(session), terminal_size=(120, 36), run_before=do)


def test_the_form_narrow(snap_compare: Any) -> None:
    assert snap_compare(app(RunSession()), terminal_size=(80, 24), run_before=estimated)


def test_two_runs_compared_tall(snap_compare: Any) -> None:
    async def do(pilot: Pilot[Any]) -> None:
        await estimated(pilot)
        runs = app_of(pilot).explorer.unlearning
        for n in (1, 2):
            await pilot.press("n", "enter")
            await until(
                pilot, lambda n=n: len(runs.seen().runs) == n and not (runs.running or runs.measuring.running), 20
            )
            await pilot.press("n", "]")
        app_of(pilot).clear_notifications()
        await pilot.press("E", "v", "v", "v")
        await until(pilot, lambda: app_of(pilot).explorer.study.catalogue.known == 60, 20)
        app_of(pilot).clear_notifications()
        await pilot.pause(0.5)

    assert snap_compare(app(RunSession()), terminal_size=(160, 50), run_before=do)
