"""The order "told": the probability that a prefix alone gives, judged out of its cluster, beside every paragraph."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake import FakeSession, P, base_em
from helpers import app_of, notices, opened, shown, until

from memloc_core.errors import Cancelled, MemlocError
from memloc_core.requests import ExactMatch, PrefixSignals, Request, Signals
from memloc_tui.app import MemlocApp
from memloc_tui.catalogue import SORTS
from memloc_tui.screens.explorer import Explorer
from memloc_tui.screens.listing import TELL_AFTER
from memloc_tui.settings import Settings


class Telling(FakeSession):
    """Its signal is the exact match itself, so that the right order is known."""

    def answer(self, request: Request) -> Any:
        if isinstance(request, PrefixSignals):
            known = {tokens[:P]: row for tokens, row in self.rows.items()}
            em = [base_em(known[prefix]) for prefix in request.prefixes]
            return Signals(("NLL", "min-k"), np.array([[50 - e, 1] for e in em], np.float32), 0)
        return super().answer(request)


def spread(n: int) -> Any:
    """The fake's paragraphs, with tokens that make no two of them near-duplicates."""
    from dataclasses import replace

    from fake import make_paragraphs

    paragraphs = make_paragraphs(n)
    tokens = np.random.default_rng(0).integers(0, 200, paragraphs.tokens.shape)
    return replace(paragraphs, tokens=tokens)


def app_for(session: FakeSession) -> MemlocApp:
    given: Any = session
    return MemlocApp(Settings(model="fake", paragraphs="fake"), given)


async def sort_by(pilot: Any, name: str) -> None:
    while app_of(pilot).resume.sort != name:
        await pilot.press("s")


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What would begin a moment after the order was chosen, and waits for the test instead."""
    callbacks: list[Callable[[], None]] = []
    set_timer = Explorer.set_timer

    def held(self: Explorer, delay: float, callback: Any = None, **more: Any) -> Any:
        return callbacks.append(callback) if delay == TELL_AFTER else set_timer(self, delay, callback, **more)

    monkeypatch.setattr(Explorer, "set_timer", held)
    return callbacks


async def test_the_order_asks_for_signals_and_shows_probabilities(due: list[Callable[[], None]]) -> None:
    session = Telling(120, spread(120))
    async with app_for(session).run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        explorer = app_of(pilot).explorer
        await sort_by(pilot, "told")
        await pilot.pause()
        assert not any(isinstance(request, PrefixSignals) for request in session.asked)  # somebody may only pass by
        due.pop()()
        await until(pilot, lambda: (explorer.study.catalogue.told >= 0).all())
        told = explorer.study.catalogue.told
        assert [base_em(row) for row in explorer.list.order[:40]] == [50] * 40
        assert told[explorer.list.order].tolist() == sorted(told, reverse=True)
        await pilot.pause()
        first = explorer.list.order[0]
        assert f"{told[first]:.2f} " in shown(app_of(pilot), "#paragraphs").splitlines()[0]
        await sort_by(pilot, "genre")
        await pilot.pause()
        assert f"{told[first]:.2f} " not in shown(app_of(pilot), "#paragraphs")


async def test_it_waits_for_the_exact_matches_that_it_learns_from_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("memloc_tui.screens.telling.MOST", 64)

    class FirstRows(Telling):
        async def compute(self, request: Request, edits: tuple[str, ...], on_progress: Any) -> Any:
            if isinstance(request, ExactMatch) and self.rows[request.paragraphs[0]]:
                await asyncio.Event().wait()
            return await super().compute(request, edits, on_progress)

    async with app_for(FirstRows(120, spread(120))).run_test(size=(120, 36)) as pilot:
        explorer = app_of(pilot).explorer
        await until(pilot, lambda: explorer.study and explorer.study.catalogue.known == 64)
        await sort_by(pilot, "told")
        await until(pilot, lambda: (explorer.study.catalogue.told[:64] >= 0).all())
        assert explorer.study.catalogue.known == 64


async def test_passing_by_asks_nothing(due: list[Callable[[], None]]) -> None:
    session = Telling(120, spread(120))
    async with app_for(session).run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await sort_by(pilot, "told")
        await pilot.press("s")
        for begin in due:
            begin()
        await pilot.pause()
        assert due
        assert not any(isinstance(request, PrefixSignals) for request in session.asked)
        assert not app_of(pilot).explorer.listing.telling.running


async def test_escape_stops_and_r_goes_on() -> None:
    session = Telling(120, spread(120))
    session.hold[PrefixSignals] = asyncio.Event()
    async with app_for(session).run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        explorer = app_of(pilot).explorer
        await sort_by(pilot, "told")
        await until(pilot, lambda: explorer.listing.telling.running)
        await pilot.press("escape")
        await until(pilot, lambda: not explorer.listing.telling.running)
        assert "stopped, r goes on" in shown(app_of(pilot), "#list-pane")
        session.hold.clear()
        await pilot.press("r")
        await until(pilot, lambda: (explorer.study.catalogue.told >= 0).all())


async def test_too_little_to_learn_from_is_said() -> None:
    session = Telling(12, spread(12))
    async with app_for(session).run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await sort_by(pilot, "told")
        await until(pilot, lambda: any("needs at least 10 memorized" in text for text in notices(app_of(pilot))))


@pytest.mark.parametrize("error", [MemlocError("no memory"), Cancelled("stopped by the engine")])
async def test_an_error_is_asked_again_only_when_the_person_says_so(
    error: MemlocError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memloc_tui.screens.listing.TELL_AFTER", 0.05)
    session = Telling(120, spread(120))
    session.fail[PrefixSignals] = error

    def asked() -> int:
        return sum(isinstance(request, PrefixSignals) for request in session.asked)

    async with app_for(session).run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        explorer = app_of(pilot).explorer
        await sort_by(pilot, "told")
        for times, keys in enumerate(([], ["r"], ["s"] * (len(SORTS) - 1)), 1):
            await pilot.press(*keys)
            await until(pilot, lambda times=times: asked() >= times and not explorer.listing.telling.running)
            await pilot.pause(0.3)
            assert asked() == times
        session.fail.clear()
        await pilot.press("r")
        await until(pilot, lambda: (explorer.study.catalogue.told >= 0).all())
