"""Every key is in the help and in the palette, means one thing in its place, and can be pressed at any time."""

from __future__ import annotations

from collections import Counter

import pytest
from fake import FakeSession
from helpers import notices, opened, screen_lines, until
from textual.binding import Binding

from memloc_tui.app import MemlocApp
from memloc_tui.screens.explorer import Explorer
from memloc_tui.screens.help import sections, shown
from memloc_tui.settings import Settings

SECTIONS = sections([b for b in MemlocApp.BINDINGS if isinstance(b, Binding)])
EVERYWHERE = {"Everywhere", "Explorer"}
ALL = [b for _, bindings in SECTIONS for b in bindings]


def test_every_binding_has_an_id_of_its_own_and_says_what_it_does() -> None:
    ids = Counter(b.id for b in ALL)
    assert None not in ids
    assert [i for i, n in ids.items() if n > 1] == []
    assert all(b.tooltip for b in ALL)
    assert len({b.tooltip for b in ALL if b.id and b.id.startswith(("app.", "explorer."))}) == sum(
        b.id.startswith(("app.", "explorer.")) for b in ALL if b.id
    )


def test_a_key_means_one_thing_in_its_place() -> None:
    always = [key for title, bindings in SECTIONS if title in EVERYWHERE for b in bindings for key in b.key.split(",")]
    assert [key for key, n in Counter(always).items() if n > 1] == []
    for _, bindings in SECTIONS:
        keys = [key for b in bindings for key in b.key.split(",")]
        assert [key for key, n in Counter(keys).items() if n > 1] == []


async def test_the_help_shows_every_key(app: MemlocApp) -> None:
    async with app.run_test(size=(110, 300)) as pilot:
        await opened(pilot)
        await pilot.press("question_mark")
        await pilot.pause()
        seen = "\n".join(screen_lines(app))
        for title, bindings in SECTIONS:
            assert title in seen
            for b in bindings:
                assert shown(b) in seen
                assert b.tooltip in seen
        assert "count>=32" in seen


async def test_the_palette_holds_every_action(app: MemlocApp) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        commands = {c.title for c in app.get_system_commands(app.screen)}
        for b in [*MemlocApp.BINDINGS, *Explorer.BINDINGS]:
            assert isinstance(b, Binding)
            assert b.tooltip in commands or b.id in ("app.palette", "app.quit_too", "app.interrupt")
        await pilot.press("ctrl+p")
        await pilot.pause(0.3)
        await pilot.press(*"rarity", "enter")
        await until(pilot, lambda: app.resume.overlay == "EM drop")


@pytest.mark.parametrize("loaded", [True, False])
async def test_every_key_can_be_pressed_everywhere(session: FakeSession, loaded: bool) -> None:
    if not loaded:
        session.parts = ()
    keys = list(dict.fromkeys(key for b in ALL for key in b.key.split(",")))
    for place in ("1", "2") if loaded else ("2",):
        app = MemlocApp(Settings(model="fake", paragraphs="fake"), session)  # type: ignore[arg-type]
        async with app.run_test(size=(120, 36)) as pilot:
            if loaded:
                await opened(pilot)
            else:
                await pilot.pause(0.1)
            for key in keys:
                if key in ("q", "ctrl+q", "ctrl+c", "ctrl+p"):
                    continue
                while len(app.screen_stack) > 1:
                    await app.pop_screen()
                app.explorer.query("FilterLine").remove()
                await pilot.press(place, key)
                assert app.is_running, key
                assert not [said for said in notices(app) if "went wrong" in said], key
