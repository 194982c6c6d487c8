"""What a person sees and does, as functions over a running app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from textual.pilot import Pilot

from memloc_tui.app import MemlocApp


async def until(pilot: Pilot[Any], holds: Callable[[], Any], seconds: float = 4.0) -> None:
    """Wait for something to be so; fail if it never is."""
    for _ in range(int(seconds / 0.02)):
        await pilot.pause()
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to be so")


def app_of(pilot: Pilot[Any]) -> MemlocApp:
    assert isinstance(pilot.app, MemlocApp)
    return pilot.app


async def opened(pilot: Pilot[Any]) -> None:
    """The list has every score and the current paragraph its answer."""
    explorer = app_of(pilot).explorer
    await until(pilot, lambda: explorer.study and explorer.study.catalogue.known == len(explorer.study.catalogue))
    await until(pilot, lambda: explorer.study.score is not None and not explorer.listing.resort_waits)
    await pilot.pause()


def screen_lines(app: MemlocApp) -> list[str]:
    """Every line of the screen as text."""
    return [strip.text for strip in app.screen._compositor.render_strips()]


def shown(app: MemlocApp, selector: str) -> str:
    """A widget's text as it stands on the screen, borders and titles included."""
    region = app.screen.query_one(selector).region
    strips = app.screen._compositor.render_strips()
    return "\n".join(strips[y].crop(region.x, region.right).text for y in range(region.y, region.bottom))


def notices(app: MemlocApp) -> list[str]:
    """Every notice since the start, also those that have left the screen by now (`conftest.heard` keeps them)."""
    return list(vars(app).get("heard", ()))
