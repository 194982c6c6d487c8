"""What a person does in the explorer, and what they see."""

from __future__ import annotations

import asyncio
import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import DOG, PIECES, C, FakeSession, P, base_em, effect, em_after, make_paragraphs
from helpers import notices, opened, screen_lines, shown, until
from textual import events
from textual.dom import NoScreen
from textual.widgets import Static

from memloc_core.errors import EngineDied, MemlocError
from memloc_core.requests import Alternatives, Continue, ExactMatch, Perturb, Sweep, SweepScores, random_tokens
from memloc_core.sources import DEMO
from memloc_tui.app import MemlocApp
from memloc_tui.figures import figure
from memloc_tui.glyphs import piece_text
from memloc_tui.screens.sweep_options import OptionRows
from memloc_tui.settings import Settings
from memloc_tui.widgets.panels import PANELS

WIDE, NARROW = (120, 36), (80, 24)


def text(token: int) -> str:
    return piece_text(PIECES[token], token)


async def test_it_opens_on_the_paragraph_most_often_repeated_with_the_highest_em(
    app: MemlocApp, session: FakeSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        # Rows 0..9 are memorized; of these row 7 has the highest repetition count, 128.
        assert app.explorer.current == 7
        assert "30" in shown(app, "#list-pane").split("\n")[0]
        assert "10 mem · 10 part · 10 non" in shown(app, "#list-pane")
        first = shown(app, "#paragraphs").split("\n")[0]
        assert "007ab" in first
        assert " 50 ██████" in first
        assert all(isinstance(r, ExactMatch | Continue | Perturb) for r in session.asked)


async def test_every_row_shows_its_own_em(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        drawn = [line for line in shown(app, "#paragraphs").split("\n") if line.strip()]
        assert {int(line[2:5]): int(line[8:10]) for line in drawn} == {
            row: base_em(row) for row in range(30) if f"{row:03d}ab" in "".join(drawn)
        }
        assert any("▒" in line for line in drawn)  # non-memorized: hatched
        assert any("░" in line for line in drawn)


async def test_the_continuation_stands_above_the_models_own_with_the_first_mismatch_marked(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.select(13)
        await until(pilot, lambda: app.explorer.study.own)
        em = base_em(13)
        row = make_paragraphs().row(13)
        prompt = row[: P + em]
        own = [(sum(prompt) + k) % 200 for k in range(C - em)]
        drawn = shown(app, "#continuation")
        assert f"EM {em} of 50" in drawn
        assert f"leaves at token {em}" in drawn
        assert f"✗{text(own[0])}" in drawn
        assert text(own[1]) in drawn
        columns = app.explorer.continuation.columns
        assert [c[1].text for c in columns[em + 1 :]] == [text(t) for t in own[1:]]
        assert [c[0].text for c in columns] == [text(t) for t in row[P:]]


async def test_enter_tries_a_token_and_enter_keeps_it(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.press("right", "right", "right", "enter")
        token = random_tokens(0, 3, 1, len(PIECES), make_paragraphs().row(row)[3])[0]
        expected = em_after(row, ((3, token),))
        await until(pilot, lambda: f"EM 50 → {expected}" in shown(app, "#continuation"))
        assert f"⇒{text(token)}]" in shown(app, "#prefix")
        assert app.explorer.study.work[row].replacements == ()
        await pilot.press("enter")
        await until(pilot, lambda: app.explorer.study.work[row].trials)
        assert app.explorer.study.work[row].replacements == ((3, token),)
        assert f"EM 50 → {expected} (−{50 - expected})" in shown(app, "#bottom")
        assert "*" in shown(app, "#paragraphs").split("\n")[app.explorer.list.cursor]


async def test_a_click_perturbs_and_esc_puts_back(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.click("#prefix", offset=(2 + 2, 1))  # the first token: " w17" or so, past border and padding
        await until(pilot, lambda: app.explorer.study.trying)
        assert app.explorer.choosing.chooser.position == 0
        await until(pilot, lambda: "EM 50 → " in shown(app, "#continuation"))
        await pilot.press("escape")
        await until(pilot, lambda: "EM 50 of 50" in shown(app, "#continuation"))
        assert app.explorer.study.work[row].replacements == ()
        assert app.explorer.study.work[row].trials == ()
        assert "⇒" not in shown(app, "#prefix")


async def test_arrows_in_the_chooser_try_alternatives_live(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.press("enter", "right", "right")  # random, next best, most frequent
        # Most frequent: counts fall with the id, so token 0 comes first (unless it stands there).
        tokens = [t for t in range(4) if t != make_paragraphs().row(row)[0]]
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, tokens[0])}" in shown(app, "#continuation"))
        await pilot.press("down")
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, tokens[1])}" in shown(app, "#continuation"))
        assert f"→{50 - effect(0, tokens[0])}" in shown(app, "#chooser")
        await pilot.press("left")  # the model's next best: position + 5, + 10, ...
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, 10)}" in shown(app, "#continuation"))


async def test_typed_text_finds_tokens_with_and_without_a_space(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("enter", *"dog")
        await pilot.pause()
        chooser = app.explorer.choosing.chooser
        assert [t for t, _ in chooser.columns[chooser.TYPED].rows] == [DOG, DOG + 1, DOG + 2]
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, DOG)}" in shown(app, "#continuation"))
        await pilot.press(*"matic")
        await pilot.pause()
        assert "several tokens" in shown(app, "#chooser")


async def test_the_next_random_draw_is_another_token_and_the_sweeps(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        original = make_paragraphs().row(app.explorer.current)[0]
        await pilot.press("enter", "ctrl+r", "ctrl+r")
        await pilot.pause()
        assert app.explorer.choosing.chooser.token == random_tokens(0, 0, 3, len(PIECES), original)[2]


async def test_several_replacements_undo_clear_and_history(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        for keys in (["enter", *"dog", "enter"], ["right", "enter", *"dog", "enter"]):
            await pilot.press(*keys)
            await until(pilot, lambda: app.explorer.study.trying is None)
        both = ((0, DOG), (1, DOG))
        assert app.explorer.study.work[row].replacements == both
        await until(pilot, lambda: f"EM 50 → {em_after(row, both)}" in shown(app, "#continuation"))
        assert "History of 2" in shown(app, "#bottom")
        await pilot.press("u")
        await until(pilot, lambda: f"EM 50 → {em_after(row, both[:1])}" in shown(app, "#continuation"))
        await pilot.press("U")
        await until(pilot, lambda: "EM 50 of 50" in shown(app, "#continuation"))
        await pilot.press("u")
        await until(pilot, lambda: app.explorer.study.replacements == both[:1])
        await pilot.press("4", "home", "enter")  # the newest trial: both replacements
        await until(pilot, lambda: app.explorer.study.replacements == both)


@pytest.mark.parametrize("key", ["w", "u", "U"])
async def test_a_key_for_what_is_kept_closes_a_chooser_that_lost_the_keyboard(app: MemlocApp, key: str) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.press("enter", *"dog", "enter")
        await until(pilot, lambda: app.explorer.study.work[row].trials)
        kept = ((0, DOG),) if key == "w" else ()
        await pilot.press("right", "enter", *"dog")
        await until(pilot, lambda: f"EM 50 → {em_after(row, ((0, DOG), (1, DOG)))}" in shown(app, "#continuation"))
        await pilot.click("#continuation")
        await pilot.press(key)
        said = f"EM 50 → {em_after(row, kept)}" if kept else "EM 50 of 50"
        await until(pilot, lambda: said in shown(app, "#continuation"))
        assert app.explorer.study.trying is None
        assert app.explorer.study.replacements == kept
        assert shown(app, "#prefix").count("⇒") == len(kept)
        assert not app.explorer.choosing.chooser.display


async def test_choosing_the_original_token_takes_the_replacement_away(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        original = make_paragraphs().row(app.explorer.current)[5]
        assert app.explorer.study.with_replacement(((5, 1), (7, 2)), 5, original) == ((7, 2),)
        assert app.explorer.study.with_replacement(((7, 2),), 5, 1) == ((5, 1), (7, 2))


async def test_non_memorized_paragraphs_are_matched_against_the_models_own_text(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.select(25)
        await until(pilot, lambda: app.explorer.study.score)
        assert f"EM {base_em(25)} of 50" in shown(app, "#continuation")
        await pilot.press("enter", *"dog", "enter")
        expected = em_after(25, ((0, DOG),), "own")
        await until(pilot, lambda: f"EM 50 → {expected}" in shown(app, "#continuation"))
        assert "vs own" in shown(app, "#continuation")
        await pilot.press("f")  # now the true text
        await until(pilot, lambda: "vs own" not in shown(app, "#continuation"))
        await until(pilot, lambda: f"EM {base_em(25)} → {em_after(25, ((0, DOG),))}" in shown(app, "#continuation"))


async def test_a_reference_that_is_chosen_in_the_sweep_options_is_asked_for(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.select(13)
        app.explorer.commit(((0, DOG),))
        await until(pilot, lambda: f"EM {base_em(13)} → " in shown(app, "#continuation"))
        await pilot.press("W", "down", "down", "down", "left", "escape")  # auto: own
        await until(pilot, lambda: f"EM 50 → {em_after(13, ((0, DOG),), 'own')}" in shown(app, "#continuation"))
        assert "vs own" in shown(app, "#continuation")


# ------------------------------------------------------------------------------------------------------------- sweeps


async def test_a_sweep_puts_its_drops_under_the_tokens(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.press("w")
        await until(pilot, lambda: (view := app.explorer.study.work[row].sweep) and view.done)
        drops = [50 - em_after(row, ((i, 11 * i % len(PIECES)),)) for i in range(P)]
        cells = [column[1].text.strip() for column in app.explorer.prefix.columns]
        assert cells == [str(d) for d in drops]
        assert f"mean drop {sum(drops) / P:.1f}, n 50" in shown(app, "#bottom")
        worst = max(range(P), key=lambda i: (drops[i], -i))
        assert app.explorer.query_one("#worst").positions[0] == worst  # type: ignore[attr-defined]
        app.explorer.query_one("#worst").focus()
        await pilot.press("enter")
        await until(pilot, lambda: app.explorer.study.replacements == ((worst, 11 * worst % len(PIECES)),))
        assert app.explorer.prefix.cursor == worst


async def test_a_running_sweep_shows_what_is_known_and_esc_stops_it(app: MemlocApp, session: FakeSession) -> None:
    session.hold[SweepScores] = asyncio.Event()  # type: ignore[index]
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        import memloc_tui.screens.sweeping as module

        row = app.explorer.current
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "REPAINT_EVERY", 0.0)
            await pilot.press("w")
            await until(pilot, lambda: app.explorer.study.work[row].sweep)
        assert "sweep 40%" in shown(app, "#top")
        assert "20 of 50 known" in shown(app, "#prefix")
        assert app.explorer.prefix.columns[30][1].text.strip() == "·"
        # The explorer still answers while it runs.
        await pilot.press("enter", *"dog", "enter")
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, DOG)}" in shown(app, "#continuation"))
        assert app.explorer.running
        await pilot.press("q")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        assert "A sweep is running" in "\n".join(screen_lines(app))
        await pilot.press("n")
        await pilot.press("escape")
        await until(pilot, lambda: not app.explorer.running)
        assert any(isinstance(r, Sweep) for r in session.cancelled)
        assert "sweep" not in shown(app, "#top")
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "press w to sweep" in shown(app, "#prefix"))
        await pilot.press("left_square_bracket")
        assert "20 of 50 known" in shown(app, "#prefix")
        session.hold[SweepScores].set()  # type: ignore[index]
        await pilot.press("w")  # and the rest is asked for
        await until(pilot, lambda: (view := app.explorer.study.here.sweep) and view.done)


async def test_a_sweep_never_stands_under_other_options_than_its_own(
    app: MemlocApp, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = session.hold[SweepScores] = asyncio.Event()  # type: ignore[index]
    monkeypatch.setattr("memloc_tui.screens.sweeping.REPAINT_EVERY", 0.0)
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("w")
        await until(pilot, lambda: "20 of 50 known" in shown(app, "#prefix"))
        await pilot.press("a")  # without a head, while it runs
        held.set()
        await until(pilot, lambda: not app.explorer.sweeping.running)
        await pilot.pause()
        assert "press w to sweep" in shown(app, "#prefix")
        await pilot.press("a")
        assert app.explorer.study.here.sweep.done


async def test_sweep_options_change_the_question(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("W", "right", "right", "down", "right", "right", "enter")  # most-frequent, 3 draws
        await until(pilot, lambda: any(isinstance(r, Sweep) for r in session.asked))
        (asked,) = [r for r in session.asked if isinstance(r, Sweep)]
        assert (asked.strategy, asked.draws, asked.tokens, asked.reference) == (
            "most-frequent",
            3,
            (0, 1, 2, 3),
            "true",
        )


async def test_sweep_options_by_mouse(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("W")
        await pilot.click("#options", offset=(16, 0))  # onto the strategy, right of its arrow: the next
        await pilot.click("#options", offset=(20, 1))  # behind the draws: only goes there
        assert app.screen.query_one(OptionRows).cursor == 1
        await pilot.click("#options", offset=(18, 1))  # its right arrow, twice
        await pilot.click("#options", offset=(18, 1))
        await pilot.click("#options", offset=(14, 1))  # its left arrow
        await pilot.click("#options", offset=(2, 5))
        assert app.screen is not app.explorer
        assert not any(isinstance(r, Sweep) for r in session.asked)
        await pilot.click("#options", offset=(3, 6))
        await until(pilot, lambda: any(isinstance(r, Sweep) for r in session.asked))
        assert app.screen is app.explorer
        (asked,) = [r for r in session.asked if isinstance(r, Sweep)]
        assert (asked.strategy, asked.draws) == ("next-best", 2)


async def test_a_number_of_the_sweep_options_is_typed_over_and_erased(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("W", "down")
        for keys, draws in (("5", 5), ("3", 53), (["backspace"], 5), ("1", 51), (["up", "down", "7"], 7), ("05", 5)):
            await pilot.press(*keys)
            assert app.resume.draws == draws
        await pilot.press("backspace", "8")
        assert app.resume.draws == 8
        await pilot.press("down", "4", "2", "backspace", "backspace", "6")
        assert app.resume.seed == 6


async def test_what_is_pasted_into_the_sweep_options_is_typed_there(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("W", "down")
        app.post_message(events.Paste("x 12\n34").set_sender(app))
        await until(pilot, lambda: app.resume.draws == 12)
        await pilot.press("down", "down", "down", "down")
        app.post_message(events.Paste("abc" * 40).set_sender(app))
        await until(pilot, lambda: app.screen.query_one(OptionRows).typed == ("abc" * 40)[:80])
        await pilot.press("E", "N", "D")
        assert "abcabEND▏" in "\n".join(screen_lines(app))


@pytest.mark.parametrize("key", ["W", "e", "question_mark", "q"])
async def test_every_dialog_closes_by_mouse_and_hears_the_keys_that_hold_everywhere(
    key: str, app: MemlocApp, session: FakeSession
) -> None:
    session.hold[SweepScores] = asyncio.Event()  # type: ignore[index]
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("w")  # without a running job `q` asks nothing
        await until(pilot, lambda: app.explorer.running)
        for where in ("edge", "beside"):
            await pilot.press(key)
            await until(pilot, lambda: app.screen is not app.explorer)
            box = app.screen.query_one(".dialog").region
            await pilot.click(offset=(box.x + 3, box.y))
            assert app.screen is not app.explorer
            await pilot.click(offset=(box.right - 6, box.bottom - 1) if where == "edge" else (box.x - 1, box.y + 1))
            await until(pilot, lambda: app.screen is app.explorer)
        assert app.explorer.running
        await pilot.press("escape")
        await until(pilot, lambda: not app.explorer.running)
        await pilot.press("e" if key == "q" else key, "ctrl+c")
        await pilot.pause()
    assert app.return_code == 0


async def test_ctrl_c_quits_from_an_input_unless_text_is_selected_there(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("slash", *"em>=5", "shift+home", "ctrl+c")
        assert app.is_running
        assert app.clipboard == "em>=5"
        await pilot.press("end", "ctrl+c")
    assert app.return_code == 0


async def test_a_verified_sweep_says_what_its_exact_matches_rest_on(
    app: MemlocApp, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = session.hold[SweepScores] = asyncio.Event()  # type: ignore[index]
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("W", *["down"] * 4, "right")
        assert "‹ verified ›" in "\n".join(screen_lines(app))
        monkeypatch.setattr("memloc_tui.screens.sweeping.REPAINT_EVERY", 0.0)
        await pilot.press("enter")
        await until(pilot, lambda: "In bf16: mean drop" in shown(app, "#bottom"))
        held.set()
        await until(pilot, lambda: "Verified: mean drop" in shown(app, "#bottom"))
        assert any("25% of the replacements were computed again" in text for text in notices(app))
        (asked,) = [r for r in session.asked if isinstance(r, Sweep)]
        assert asked.verified


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_every_key_and_command_waits_for_the_session_without_harm(
    size: tuple[int, int], app: MemlocApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemlocApp, "reopen", lambda self: None)  # it never opens
    async with app.run_test(size=size) as pilot:
        for binding in (b for b in app.explorer.BINDINGS if b.id != "explorer.again"):
            await pilot.press(binding.key.split(",")[0])
            assert app.screen is app.explorer
        for command in app.get_system_commands(app.screen):
            if "quit" not in command.title.lower():
                command.callback()
                await pilot.pause()
                await pilot.press("escape")
        assert app.screen is app.explorer
        assert not hasattr(app.explorer, "listing")


async def test_a_click_where_something_has_just_gone_does_nothing(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)

        def gone(x: int, y: int) -> None:
            raise NoScreen("as a widget without a screen says when it is to draw its text")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app.screen._compositor, "get_widget_and_offset_at", gone)
            await pilot.click("#prefix", offset=(4, 1))
            await until(pilot, lambda: app.explorer.study.trying)
            await pilot.press("escape", "question_mark")
            patch.setattr(app.screen._compositor, "get_widget_and_offset_at", gone)
            await pilot.click(offset=(60, 10))
            await pilot.press("escape")
            assert app.screen is app.explorer


async def test_a_click_that_comes_after_the_terminal_has_shrunk_does_nothing_in_the_palette(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("ctrl+p")
        app.screen.post_message(events.Click(app.screen, 0, 0, 0, 0, 1, False, False, False, 500, 500))
        await pilot.pause()
        await pilot.press("escape")
        assert app.screen is app.explorer


async def test_given_tokens_are_typed(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("W", "left", *["down"] * 5, *"nope", "enter")
        assert "several tokens" in "\n".join(screen_lines(app))
        await pilot.press(*["backspace"] * 4, *"dog", "enter", "enter")
        await until(pilot, lambda: any(isinstance(r, Sweep) for r in session.asked))
        (asked,) = [r for r in session.asked if isinstance(r, Sweep)]
        assert (asked.strategy, asked.tokens) == ("given", (DOG + 1,))


async def test_an_earlier_sweep_shows_at_once_and_is_called_cached(session: FakeSession) -> None:
    async def sweep() -> str:
        app = MemlocApp(Settings(model="fake", paragraphs="fake"), session)  # type: ignore[arg-type]
        async with app.run_test(size=WIDE) as pilot:
            await opened(pilot)
            await pilot.press("w")
            await until(pilot, lambda: app.explorer.study.here.sweep)
            await pilot.pause()
            return shown(app, "#bottom")

    assert "cached" not in await sweep()
    assert "cached" in await sweep()
    assert sum(isinstance(r, Sweep) for r in session.asked) == 1


# -------------------------------------------------------------------------------------------------- late, stale, broken


async def test_a_late_answer_never_stands_under_a_newer_question(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        slow = session.hold[Perturb] = asyncio.Event()
        session.deaf.add(Perturb)
        app.explorer.commit(((0, DOG),))
        await until(pilot, lambda: any(isinstance(r, Perturb) for r in session.asked))
        session.hold.pop(Perturb)
        app.explorer.commit(((1, DOG),))
        newest = 50 - effect(1, DOG)
        await until(pilot, lambda: app.explorer.study.score and app.explorer.study.score.em == newest)
        slow.set()  # the first question's answer arrives now
        await pilot.pause(0.1)
        assert newest != 50 - effect(0, DOG)
        assert app.explorer.study.score is not None
        assert app.explorer.study.score.em == newest
        assert f"EM 50 → {newest}" in shown(app, "#continuation")
        assert [t.replacements for t in app.explorer.study.work[row].trials] == [((1, DOG),)]


async def test_waiting_is_said_and_the_old_number_called_old(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        session.hold[Perturb] = asyncio.Event()
        app.explorer.commit(((0, DOG),))
        await until(pilot, lambda: "asking" in shown(app, "#continuation"))
        assert "asking" in shown(app, "#bottom")
        session.hold[Perturb].set()
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, DOG)}" in shown(app, "#continuation"))
        assert "asking" not in shown(app, "#continuation")


async def test_a_token_of_the_continuation_shows_what_the_model_expects_there(
    app: MemlocApp, session: FakeSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.commit(((4, DOG),))
        await until(pilot, lambda: f"EM 50 → {50 - effect(4, DOG)}" in shown(app, "#continuation"))
        await pilot.press("3", "right", "right")
        score = app.explorer.study.view().score
        assert score is not None
        assert f"NLL {figure(score.token_nll[2])}" in shown(app, "#continuation")
        await pilot.press("enter")
        await until(pilot, lambda: "asking" not in str(app.screen.query_one("#likely", Static).content))
        asked = [request for request in session.asked if isinstance(request, Alternatives)][-1]
        row = make_paragraphs().row(app.explorer.current)
        assert asked.prefix == (*row[:4], DOG, *row[5:53])
        assert asked.position == 52
        lines = str(app.screen.query_one("#likely", Static).content).splitlines()
        assert "the true text" in lines[0]
        others = session.answer(asked)
        by_hand = [(math.exp(-score.token_nll[2]), row[52]), *zip(others.probabilities, others.tokens, strict=True)]
        for line, (p, token) in zip(lines[1:], sorted(by_hand, reverse=True), strict=True):
            assert text(token) in line
            assert f"{p:.3f}" in line
            assert line.startswith("▸") == (token == row[52])
        await pilot.press("escape")
        assert app.screen is app.explorer
        await pilot.click("#continuation", offset=(9, 1))
        await until(pilot, lambda: app.screen is not app.explorer)


async def test_a_wrong_question_is_explained_in_its_pane(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        session.fail[Perturb] = MemlocError("The prefix is [red]too long[/red].")
        app.explorer.commit(((0, DOG),))
        await until(pilot, lambda: "The prefix is [red]too long[/red]." in shown(app, "#continuation"))
        session.fail.clear()
        await pilot.press("r")
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, DOG)}" in shown(app, "#continuation"))


async def test_a_dead_engine_is_said_and_nothing_is_lost(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        session.fail[Perturb] = EngineDied("The engine was killed (signal 9).")
        app.explorer.commit(((0, DOG),))
        await until(pilot, lambda: notices(app))
        assert "signal 9" in notices(app)[0]
        assert "r asks again" in notices(app)[0]
        assert app.explorer.study.replacements == ((0, DOG),)
        assert "engine ended" in shown(app, "#top")
        session.fail.clear()
        await pilot.press("r")
        await until(pilot, lambda: f"EM 50 → {50 - effect(0, DOG)}" in shown(app, "#continuation"))


async def test_an_engine_that_takes_many_questions_down_is_said_once(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        death = EngineDied("The engine was killed (signal 9).")
        for _ in range(3):
            app.engine_died(death)
        await pilot.pause()
        assert len(notices(app)) == 1


async def test_what_cannot_be_opened_is_said_and_r_tries_again(app: MemlocApp, session: FakeSession) -> None:
    session.fail_open = MemlocError("There is no folder [b]here[/b].")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: notices(app))
        assert "There is no folder [b]here[/b]." in shown(app, "#prefix")
        session.fail_open = None
        await pilot.press("w", "enter", "o", "slash")
        await pilot.press("escape", "r")
        await opened(pilot)
        assert "50" in shown(app, "#paragraphs")


async def test_a_model_that_is_refused_after_the_cache_has_opened_leaves_what_is_known_and_says_why_there_is_no_more(
    session: FakeSession,
) -> None:
    def make() -> MemlocApp:
        return MemlocApp(Settings(model="fake", paragraphs="fake"), session)  # type: ignore[arg-type]

    async with make().run_test(size=WIDE) as pilot:
        await opened(pilot)
    session.cached, session.fail_open = True, MemlocError("There is no memory left on cuda:0.")
    async with (app := make()).run_test(size=WIDE) as pilot:
        await until(pilot, lambda: any("no memory left" in said for said in notices(app)))
        await opened(pilot)  # from the cache
        assert "not opened · r tries again" in shown(app, "#top")
        assert "EM 50 of 50" in shown(app, "#continuation")
        while base_em(app.explorer.current) == 50:
            await pilot.press("right_square_bracket")  # to one whose own text nobody has asked for
        await until(pilot, lambda: "There is no memory left on cuda:0. · r asks again" in shown(app, "#continuation"))
        await pilot.press("w", "7")
        await until(pilot, lambda: "There is no memory left on cuda:0." in shown(app, "#bottom"))
        await pilot.press("x", "enter")
        await until(pilot, lambda: "There is no memory left on cuda:0." in shown(app, "#bottom"))
        count = len(notices(app))
        await pilot.press("4", "r")
        await until(pilot, lambda: len(notices(app)) > count)
        assert not any("went wrong" in said for said in notices(app))
        session.fail_open = None
        await pilot.press("r")
        await until(pilot, lambda: "ready" in shown(app, "#top"))
        await until(pilot, lambda: f"EM {base_em(app.explorer.current)} of 50" in shown(app, "#continuation"))
        assert app.explorer.study.own


async def test_a_model_that_nobody_knows_and_that_is_refused_is_not_called_opening(
    app: MemlocApp, session: FakeSession
) -> None:
    session.cached, session.parts = True, ("vocabulary", "paragraphs")
    session.fail_open = MemlocError("There is no memory left on cuda:0.")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.explorer.current >= 0 and notices(app))
        await until(pilot, lambda: "There is no memory left on cuda:0. · r asks again" in shown(app, "#continuation"))
        await pilot.press("right_square_bracket")
        for tab in "567890":
            await pilot.press(tab)
            await until(pilot, lambda: "There is no memory left on cuda:0." in shown(app, "#bottom"))
        await pilot.press("w")
        assert notices(app)[-1] == "There is no memory left on cuda:0. r tries again."
        await pilot.press("x", "enter", "E", "m", "a", "a", "o", "s", "4", "enter", "down", "enter", "u")
        assert not any("went wrong" in said for said in notices(app))
        session.fail_open, session.parts = None, ("vocabulary", "paragraphs", "model")
        await pilot.press("r")
        await opened(pilot)


async def test_a_corrected_model_drops_every_number_of_the_other(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("w")
        await until(pilot, lambda: app.explorer.study.work[app.explorer.current].sweep)
        session.hold[ExactMatch] = session.hold[Perturb] = asyncio.Event()
        session.kept.clear()
        session.model = session.make_model("two")
        app.explorer.part("model")
        await pilot.pause(0.2)
        assert app.explorer.study.catalogue is not None
        assert app.explorer.study.catalogue.known == 0
        assert app.explorer.study.work[app.explorer.current].sweep is None
        assert "EM 50" not in shown(app, "#continuation")
        session.hold[ExactMatch].set()
        await opened(pilot)


async def test_a_small_margin_warns(app: MemlocApp, session: FakeSession) -> None:
    session.margin = 4e-4
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        assert "margin 0.0004 !" in shown(app, "#continuation")
        assert "EM may differ between devices" in shown(app, "#continuation")


async def test_what_the_numbers_are_not_worth_is_said_before_them_where_there_is_little_room(
    app: MemlocApp, session: FakeSession
) -> None:
    session.margin = 4e-4
    async with app.run_test(size=(60, 16)) as pilot:
        await opened(pilot)
        app.explorer.select(25)
        app.explorer.commit(((0, DOG),))
        await until(pilot, lambda: "margin 0.0004 ! · vs own · EM 50 → " in shown(app, "#continuation"))
        session.hold[Perturb] = asyncio.Event()
        app.explorer.commit(((1, DOG),))
        await until(pilot, lambda: "3 Continuation · old, asking … · margin 0.0004 !" in shown(app, "#continuation"))


# ------------------------------------------------------------------------------------------------------------- the list


async def test_filter_applies_as_it_is_typed(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("slash", *"is:partly")
        await until(pilot, lambda: app.explorer.listing.matching == list(range(10, 20)))
        await until(pilot, lambda: "10 of 30" in shown(app, "#list-pane"))
        await pilot.press("enter")
        await until(pilot, lambda: not app.explorer.query("FilterLine"))
        await pilot.press("down")
        assert app.explorer.current in range(10, 20)
        await pilot.press("slash", "escape", "escape")
        await until(pilot, lambda: len(app.explorer.listing.matching) == 30)


async def test_a_bad_filter_term_is_said_and_the_list_stays(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("slash")
        await until(pilot, lambda: app.focused and app.focused.id == "filter-line")
        app.explorer.query_one("FilterLine").value = "em>=x"  # type: ignore[attr-defined]
        await until(pilot, lambda: "needs a number" in shown(app, "#list-head"))
        assert len(app.explorer.list.order) == 30


async def test_sort_cycles_and_reverses(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        current = app.explorer.current
        await pilot.press("s", "s", "s")  # NLL, margin, count
        assert app.explorer.list.order == sorted(range(30), key=lambda r: (-(2 ** (r % 8)), -base_em(r), r))
        await pilot.press("s", "s", "s", "S")  # told, genre, file; reversed
        assert app.explorer.list.order == list(range(29, -1, -1))
        assert "file ▴" in shown(app, "#list-head")
        assert app.explorer.current == current
        assert app.explorer.list.current == current


async def test_a_hundred_thousand_rows_draw_only_those_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 100_000
    session = FakeSession(0, make_paragraphs(n))
    session.hold[ExactMatch] = session.hold[Perturb] = asyncio.Event()
    monkeypatch.setattr(FakeSession, "peek", lambda self, request: None)
    app = MemlocApp(Settings(model="fake", paragraphs="many"), session)  # type: ignore[arg-type]
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.explorer.current >= 0, 20)
        paragraphs = app.explorer.list
        paragraphs.focus()
        await pilot.pause()
        drawn: list[int] = []
        draw = type(paragraphs).row
        monkeypatch.setattr(type(paragraphs), "row", lambda self, i, w: (drawn.append(i), draw(self, i, w))[1])
        await pilot.press("end")
        await pilot.pause()
        await pilot.press("up")
        await pilot.pause()
        assert paragraphs.cursor == n - 2
        assert set(drawn) <= {0, *range(n - 60, n)}
        assert len(drawn) < 4 * 36


async def test_the_chunk_in_sight_is_asked_first(session: FakeSession) -> None:
    many = FakeSession(640, make_paragraphs(640))
    many.hold[ExactMatch] = asyncio.Event()
    app = MemlocApp(Settings(model="fake", paragraphs="many"), many)  # type: ignore[arg-type]
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: many.asked)
        app.explorer.list.focus()
        await pilot.press("s", "s", "s", "s", "s", "end")  # file order, the last row
        await pilot.pause()
        many.hold[ExactMatch].set()
        await opened(pilot)
        chunks = [many.rows[r.paragraphs[0]] // 64 for r in many.asked if isinstance(r, ExactMatch)]
        assert sorted(chunks) == list(range(10))
        assert chunks[1] == 9


@pytest.mark.parametrize("what", ["marked", "perturbed"])
async def test_a_filter_by_what_the_person_did_follows_what_they_do(app: MemlocApp, what: str) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)

        async def do() -> None:
            if what == "marked":
                await pilot.press("m")
            else:
                app.explorer.commit(((0, DOG),))

        await do()
        await pilot.press("right_square_bracket")
        await do()
        await pilot.press("slash", *f"is:{what}", "enter")
        await until(pilot, lambda: "2 of 30" in shown(app, "#list-pane"))
        await pilot.press("m" if what == "marked" else "U")
        await until(pilot, lambda: "1 of 30" in shown(app, "#list-pane"))
        if what == "marked":
            await pilot.press("M")
            await until(pilot, lambda: "0 of 30" in shown(app, "#list-pane"))


async def test_another_paragraph_begins_at_its_first_token(app: MemlocApp, session: FakeSession) -> None:
    paragraphs = make_paragraphs()
    alike = paragraphs.tokens.copy()
    alike[:, :-1] = alike[0, :-1]  # near-duplicates: no line of the prefix differs
    session._paragraphs = replace(paragraphs, tokens=alike)
    session.rows = {session._paragraphs.row(row): row for row in range(30)}

    def highlighted() -> list[str]:
        strips = [app.explorer.prefix.render_line(y) for y in range(app.explorer.prefix.size.height)]
        return [s.text for strip in strips for s in strip if s.style and s.style.reverse]

    async with app.run_test(size=(60, 16)) as pilot:
        await opened(pilot)
        await pilot.press("end")
        assert app.explorer.prefix.scroll_offset.y > 0
        await pilot.press("right_square_bracket")
        await pilot.pause(0.1)
        assert app.explorer.prefix.cursor == 0
        assert app.explorer.prefix.scroll_offset.y == 0
        assert highlighted() == [text(alike[0, 0])]


async def test_the_drawer_opens_where_the_cursor_stands() -> None:
    many = FakeSession(100, make_paragraphs(100))
    app = MemlocApp(Settings(model="fake", paragraphs="many"), many)  # type: ignore[arg-type]
    async with app.run_test(size=NARROW) as pilot:
        await opened(pilot)
        await pilot.press(*["right_square_bracket"] * 60, "p")
        await until(pilot, lambda: app.explorer.list.cursor in app.explorer.list.visible_rows)
        assert app.explorer.list.cursor >= 60


async def test_the_next_sitting_goes_on_in_the_list_too(session: FakeSession) -> None:
    for _ in range(2):  # in the order of the file, which no exact match changes
        app = MemlocApp(Settings(model="fake", paragraphs="fake"), session)  # type: ignore[arg-type]
        async with app.run_test(size=NARROW) as pilot:
            await opened(pilot)
            if app.resume.sort == "file":
                assert "21/30" in shown(app, "#strip")
                assert app.explorer.list.current == app.explorer.current == 20
            while app.resume.sort != "file":
                await pilot.press("s")
            await pilot.press("1", "home", *["down"] * 20)
            await pilot.pause(1.0)  # written as it goes


async def test_the_tour_takes_the_list_along(session: FakeSession) -> None:
    app = MemlocApp(Settings(model=DEMO, paragraphs=DEMO), session)  # type: ignore[arg-type]
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        while app.resume.sort != "file":
            await pilot.press("s")
        app.explorer.list.action_go(-1)
        await app.explorer.action_begin_tour()
        await until(pilot, lambda: app.explorer.current == 7)  # memorized, and 128 times in the training text
        assert app.explorer.list.current == 7
        await pilot.press("right_square_bracket")
        assert app.explorer.current == 8


# ----------------------------------------------------------------------------------------------------- overlays, export


async def test_overlays_cycle_and_rarity_ranks_by_count(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("o")
        assert "overlay: EM drop (press w to sweep)" in shown(app, "#prefix")
        await pilot.press("o")
        row = make_paragraphs().row(app.explorer.current)[:P]
        # The fake corpus counts fall with the id: the highest id is the rarest.
        ids = sorted(set(row), reverse=True)
        assert [c[1].text.strip() for c in app.explorer.prefix.columns] == [str(ids.index(t) + 1) for t in row]
        await pilot.press("o", "o", "o")  # attention and gradient: test_localize
        assert "overlay: none" in shown(app, "#prefix")


async def test_export_writes_all_three_kinds_and_overwrites_nothing(app: MemlocApp, tmp_path: Path) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("e", "w")
        assert "no sweep" in notices(app)[-1]
        await pilot.press("escape", "w")
        await until(pilot, lambda: (view := app.explorer.study.work[app.explorer.current].sweep) and view.done)
        for kind in "jwsj":
            await pilot.press("e", kind)
            await pilot.pause(0.1)
        name = f"memloc-{make_paragraphs().ids[app.explorer.current]}"
        written = {f"{name}.json", f"{name}-2.json", f"{name}-sweep.csv", f"{name}.svg"}
        assert {p.name for p in tmp_path.glob("memloc*")} == written
        document = json.loads((tmp_path / f"{name}.json").read_text())
        assert document["score"]["em"] == 50
        assert {a["request"]["strategy"] for a in document["answers"] if "strategy" in a["request"]} == {"random"}
        with (tmp_path / f"{name}-sweep.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [int(r["drop"]) for r in table] == [effect(i, 11 * i % len(PIECES)) for i in range(P)]
        assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")


async def test_copying(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = make_paragraphs().row(app.explorer.current)
        await pilot.press("y")
        assert app.clipboard == b"".join(PIECES[t] for t in row).decode()
        await pilot.press("right", "Y")
        assert app.clipboard == PIECES[row[1]].decode()


async def test_the_token_that_is_copied_is_the_one_that_the_pane_shows(app: MemlocApp, session: FakeSession) -> None:
    own = list(range(100, 100 + C))
    answer = session.answer
    session.answer = lambda request: (  # type: ignore[method-assign]
        replace(answer(request), reference=np.array(own)) if isinstance(request, Perturb) else answer(request)
    )
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.select(25)
        app.explorer.commit(((0, DOG),))
        await until(pilot, lambda: "vs own" in shown(app, "#continuation"))
        await pilot.press("3", "right", "Y")
        assert app.clipboard == PIECES[own[1]].decode()


async def test_rarity_ranks_what_stands_in_the_prefix(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        prefix = [DOG, *make_paragraphs().row(app.explorer.current)[1:P]]
        app.explorer.commit(((0, DOG),))
        await pilot.press("o", "o")
        ids = sorted(set(prefix), reverse=True)
        assert [c[1].text.strip() for c in app.explorer.prefix.columns] == [str(ids.index(t) + 1) for t in prefix]


# ------------------------------------------------------------------------------------------------------ sizes and state


@pytest.mark.parametrize("size", [NARROW, WIDE, (60, 16)])
async def test_a_long_model_name_leaves_room_for_the_job_and_for_what_is_edited(
    size: tuple[int, int], app: MemlocApp, session: FakeSession
) -> None:
    make, name = session.make_model, "somebody/" + "model-with-a-long-name-" * 6
    session.make_model = lambda *more: replace(make(*more), name=name)  # type: ignore[method-assign]
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        app.explorer.top.show_edits("edits: one, another and a third one on (E original)", "edited (E)", edited=True)
        app.explorer.top.show_job("sweep", "sweep", 20, 50)
        await until(pilot, lambda: "sweep" in shown(app, "#top"))
        line = shown(app, "#top")
        assert line.rstrip().endswith("sweep 40% [esc]")
        assert " edit" in line
        assert " memloc  somebo" in line
        assert "… · cpu · fp32 " in line or size[0] == 60


async def test_narrow_terminals_have_a_strip_and_a_drawer(app: MemlocApp) -> None:
    async with app.run_test(size=NARROW) as pilot:
        await opened(pilot)
        assert not app.explorer.query_one("#list-pane").display or app.explorer.query_one("#list-pane").size.width == 0
        assert "EM 50" in shown(app, "#strip")
        await pilot.press("right_square_bracket")
        assert "2/30" in shown(app, "#strip")
        await pilot.click("#strip")
        await until(pilot, lambda: "1 Paragraphs" in "\n".join(screen_lines(app)))
        await pilot.press("down", "enter")
        await until(pilot, lambda: "1 Paragraphs" not in "\n".join(screen_lines(app)))
        assert "3/30" in shown(app, "#strip")
        await pilot.press("p", "escape")
        assert app.focused is app.explorer.prefix
        for elsewhere in ("2", "5"):
            await pilot.press("1")
            await until(pilot, lambda: "1 Paragraphs" in "\n".join(screen_lines(app)))
            await pilot.press(elsewhere)
            await until(pilot, lambda: "1 Paragraphs" not in "\n".join(screen_lines(app)))


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_tab_opens_by_a_click_onto_its_name(size: tuple[int, int], app: MemlocApp) -> None:
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        for tab in reversed(PANELS):
            bottom = app.explorer.query_one("#bottom").region
            edge = screen_lines(app)[bottom.y]
            await pilot.click(offset=(edge.index(f"{tab.key} {tab.title}", bottom.x) + 3, bottom.y))
            await until(pilot, lambda tab=tab: app.explorer.query(f"#panel-{tab.name}"))
            assert app.explorer.panel.display
            assert app.resume.tab == tab.name
            await until(pilot, lambda: app.focused in app.explorer.query("#bottom *"))


@pytest.mark.parametrize("size", [NARROW, (60, 16)])
async def test_where_there_is_little_room_the_tokens_stay_in_sight(size: tuple[int, int], app: MemlocApp) -> None:
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        await pilot.press("9", "o", "o", "3", "right")
        whole, p = make_paragraphs().row(app.explorer.current), app.explorer.prefix
        await until(pilot, lambda: "3 Continuation" in shown(app, "#continuation"))
        rows = [line[1:].split()[0] for line in shown(app, "#continuation").split("\n")[1:-1]]
        assert rows == ["true", "model"]
        await pilot.press("2")
        for _ in range(P):
            assert text(whole[p.cursor]) in shown(app, "#prefix").split("\n")[1]
            await pilot.press("right")
        for _ in range(P):
            assert text(whole[p.cursor]) in shown(app, "#prefix").split("\n")[1]
            await pilot.press("left")


async def test_a_tiny_terminal_says_so_and_recovers(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        for size in ((20, 5), (59, 30), (100, 15), (1, 1)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            if size[0] > 40:
                assert "Enlarge the terminal (needs 60x16)" in "\n".join(screen_lines(app))
        await pilot.resize_terminal(60, 16)
        await pilot.pause()
        assert "Enlarge" not in "\n".join(screen_lines(app))
        assert "EM 50" in shown(app, "#continuation")
        await pilot.resize_terminal(200, 60)
        await pilot.pause()
        assert "007ab" in shown(app, "#paragraphs")


def saved() -> dict[str, Any]:
    """The resume state as it is on disk; {} before it was written."""
    return next((json.loads(file.read_text()) for file in (Path.cwd() / "state").glob("*.json")), {})


async def test_the_next_sitting_goes_on_where_this_one_stopped(session: FakeSession) -> None:
    def make() -> MemlocApp:
        return MemlocApp(Settings(model="fake", paragraphs="fake"), session)  # type: ignore[arg-type]

    app = make()
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.select(4)
        app.explorer.commit(((2, DOG),))
        await pilot.press("o", "o", "s", "S")
        await until(pilot, lambda: saved().get("overlay") == "rarity")  # written as it goes, before any quitting
        assert (saved()["sort"], saved()["reverse"]) == ("NLL", True)
    app = make()
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        assert app.explorer.current == 4
        assert app.explorer.study.replacements == ((2, DOG),)
        assert "rarity" in shown(app, "#prefix")
        assert "NLL ▴" in shown(app, "#list-head")
        await until(pilot, lambda: f"EM 50 → {50 - effect(2, DOG)}" in shown(app, "#continuation"))


async def test_replacements_and_trials_of_every_paragraph_are_there_in_the_next_sitting(session: FakeSession) -> None:
    def make() -> MemlocApp:
        return MemlocApp(Settings(model="fake", paragraphs="fake"), session)  # type: ignore[arg-type]

    def tried(app: MemlocApp) -> list[object]:
        return [trial.replacements for trial in app.explorer.study.here.trials]

    async with (app := make()).run_test(size=WIDE) as pilot:
        await opened(pilot)
        for row in (4, 8, 21):
            app.explorer.select(row)
            for replacements in (((1, DOG),), ((2, DOG), (7, 3))):
                app.explorer.commit(replacements)
                await until(pilot, lambda expected=replacements: tried(app)[:1] == [expected])
        app.explorer.select(8)
        app.explorer.action_clear()
        app.explorer.select(5)
    asked = len(session.asked)
    async with (app := make()).run_test(size=WIDE) as pilot:
        await opened(pilot)
        starred = [line for line in shown(app, "#paragraphs").split("\n") if "*" in line]
        assert sorted(line.strip("▸ ")[:3] for line in starred) == ["004", "021"]
        app.explorer.listing.typed("is:perturbed")
        await until(pilot, lambda: sorted(app.explorer.list.order) == [4, 21])
        for row, stands in ((4, ((2, DOG), (7, 3))), (21, ((2, DOG), (7, 3))), (8, ())):
            app.explorer.select(row)
            assert app.explorer.study.replacements == stands
            assert tried(app) == [((2, DOG), (7, 3)), ((1, DOG),)]
            score = app.explorer.study.here.trials[0].score
            reference = "own" if row == 21 else "true"
            assert (score.em, score.against) == (em_after(row, ((2, DOG), (7, 3)), reference), reference)
    assert len(session.asked) == asked  # every answer was known


async def test_what_a_replacement_tells_of_its_row_does_not_stand_for_the_chunk_that_begins_there() -> None:
    def make(session: FakeSession) -> MemlocApp:
        return MemlocApp(Settings(model="fake", paragraphs="fake"), session)  # type: ignore[arg-type]

    async with (app := make(FakeSession())).run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.select(0)
        app.explorer.commit(((2, DOG),))
        await until(pilot, saved)
    session = FakeSession()  # another cache: nothing is known, and the replacement is answered first
    session.hold[ExactMatch] = asyncio.Event()
    async with (app := make(session)).run_test(size=WIDE) as pilot:
        await until(pilot, lambda: f"EM 50 → {50 - effect(2, DOG)}" in shown(app, "#continuation"))
        assert app.explorer.current == 0
        assert "EM 0/30" in shown(app, "#list-head")
        app.explorer.action_again()  # what is missing is still missing
        session.hold[ExactMatch].set()
        await until(pilot, lambda: "EM 0/30" not in shown(app, "#list-head"))
        assert app.explorer.study.catalogue.known == 30
        assert app.explorer.study.catalogue.em.tolist() == [base_em(row) for row in range(30)]


async def test_quitting_ends_the_session(app: MemlocApp, session: FakeSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("q")
    assert session.closed >= 1


async def test_esc_never_quits(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("question_mark", "escape", "enter", "escape", "slash", "escape", "escape", "escape", "escape")
        assert app.is_running
        assert len(app.screen_stack) == 1
