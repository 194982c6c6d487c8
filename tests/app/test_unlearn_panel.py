"""The Unlearn tab: form, estimate, a run as it goes, cancel and crash, what it left, runs compared, both weights."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import PIECES, C, P, base_em
from fake_runs import K, RunSession, make_result
from helpers import app_of, notices, opened, screen_lines, shown, until as until_
from textual import events
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from memloc_core.errors import EngineDied, MemlocError
from memloc_core.requests import (
    MASKS,
    Answer,
    Continue,
    Edited,
    EstimateRun,
    ExactMatch,
    MeasureRemains,
    Provenance,
    Unlearn,
)
from memloc_core.sources import DEMO
from memloc_tui import edits, labels, runs, state
from memloc_tui.app import MemlocApp
from memloc_tui.edits import ActiveEdit
from memloc_tui.figures import figure
from memloc_tui.glyphs import piece_text, visible
from memloc_tui.runs import Run, checks, filled, options, points, verdict
from memloc_tui.settings import Settings
from memloc_tui.unlearning import typed_alternative
from memloc_tui.widgets.curves import Curves, heights, plot
from memloc_tui.widgets.pareto import Pareto
from memloc_tui.widgets.run_form import RunForm
from memloc_tui.widgets.run_list import RunList

WIDE = (120, 36)
until = partial(until_, seconds=15.0)


@pytest.fixture
def session() -> RunSession:
    return RunSession()


def unlearn_app(session: RunSession, **more: Any) -> MemlocApp:
    given: Any = session
    return MemlocApp(Settings(model="fake", paragraphs="fake", **more), given)


@pytest.fixture
def app(session: RunSession) -> MemlocApp:
    return unlearn_app(session)


async def form(pilot: Pilot[Any]) -> None:
    """The tab with the form, and its estimate."""
    await opened(pilot)
    await pilot.press("x")
    await until(pilot, lambda: "weights ·" in tab(app_of(pilot)))


async def three_steps(pilot: Pilot[Any], session: RunSession) -> None:
    """A run that goes on, three steps into it."""
    session.ticks = asyncio.Queue()
    await form(pilot)
    await pilot.press("enter")
    for _ in range(4):  # steps 0..3
        session.ticks.put_nowait(None)
    await until(pilot, lambda: "50.0 → 35.0" in shown(app_of(pilot), "#run-curves"))


async def done(pilot: Pilot[Any]) -> None:
    """No run goes on, and the newest one has what it left."""
    runs = app_of(pilot).explorer.unlearning
    await until(pilot, lambda: not runs.running and runs.seen().runs and not runs.measuring.running)
    await pilot.pause()


def asked(session: RunSession, kind: type) -> list[Any]:
    """The inner requests of a kind, with the edits of each."""
    bare = [(r.request, r.edits) if isinstance(r, Edited) else (r, ()) for r in session.asked]
    return [(request, with_) for request, with_ in bare if isinstance(request, kind)]


def ems(app: MemlocApp) -> dict[int, int]:
    """What the list shows, by paragraph."""
    rows = re.findall(r"(\d{3})ab[ ◆]\s*(\d+) ", shown(app, "#paragraphs"))
    return {int(row): int(em) for row, em in rows}


def tab(app: MemlocApp) -> str:
    """The Unlearn tab as it stands on the screen; it is mounted a moment after its key."""
    return shown(app, "#panel-unlearn") if app.explorer.query("#panel-unlearn RunForm") else ""


# ------------------------------------------------------------------------------------------------------------ the form


async def test_x_opens_the_form_with_the_defaults_and_an_estimate_is_asked_once(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        session: Any = app.session or app._given
        await form(pilot)
        text = shown(app, "#panel-unlearn")
        defaults = [Unlearn.objective, Unlearn.goal, Unlearn.mask, Unlearn.sparsity, Unlearn.steps]
        for value in ("on screen", *defaults, Unlearn.learning_rate, f"{Unlearn.kl_weight:g}"):
            assert f"‹ {value} ›" in text
        assert f"{K} weights · ≤ 0:03, 24 ms a step · 3.4 MB" in text  # 0.5 s + 100 steps of 24 ms
        ((estimate, with_),) = asked(session, EstimateRun)
        assert with_ == ()
        assert estimate.run.targets == (app.explorer.study.catalogue.paragraphs.row(app.explorer.current),)
        assert not asked(session, Unlearn)


async def test_why_a_run_cannot_start_stands_there_whole(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("escape", "1", "asterisk", "x")
        await until(pilot, lambda: "are not recited" in tab(app))
        said = " ".join(shown(app, "#run-cost").split())
        assert re.match(r"\d+ of the \d+ paragraphs, such as \w+, are not recited", said)
        assert said.endswith("teach them with the objective memorize.")


async def test_every_field_changes_by_key_and_by_mouse_and_the_run_is_the_one_that_was_described(
    app: MemlocApp, session: RunSession
) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await form(pilot)
        await pilot.press("down", "down", "right", "right")  # goal: forget, steps
        rights = MASKS.index("head") - MASKS.index(Unlearn.mask)
        await pilot.press("down", *["right" if rights > 0 else "left"] * abs(rights))
        await pilot.press("down", *"L1H2")
        await pilot.press("down", *"0.25", "down", *"7", "down", *"1e-2", "down", "left", "down", "left")
        await pilot.press("down", "right")
        text = shown(app, "#panel-unlearn")
        assert "25 % may change" in text
        panel = app.explorer.query_one(RunForm)
        row = [f.name for f in panel.fields].index("goal")
        await pilot.click(RunForm, offset=(13, row))  # its left arrow: back to forget
        await pilot.press("enter")
        await done(pilot)
    ((run, _),) = asked(session, Unlearn)
    assert (run.goal, run.mask, run.place, run.sparsity) == ("forget", "head", "L1H2", 0.25)
    assert (run.steps, run.learning_rate, run.kl_weight, run.seed) == (7, 0.01, 10.0, 1)
    assert run.objective == "unlearn"
    assert len(run.kept) <= 32


async def test_marked_paragraphs_are_changed_together(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        first = app.explorer.current
        await pilot.press("1", "m", "down", "down", "m")
        second = app.explorer.current
        assert sum("◆" in line for line in shown(app, "#paragraphs").split("\n")) == 2
        await pilot.press("x")
        await until(pilot, lambda: "2 marked" in tab(app))
        await pilot.press("enter")
        await done(pilot)
        await pilot.press("M")
        assert "◆" not in shown(app, "#paragraphs")
    ((run, _),) = asked(session, Unlearn)
    rows = sorted((first, second))
    assert run.targets == tuple(session._paragraphs.row(row) for row in rows)
    assert state.load("fake", "fake")[0].marked == []


async def test_all_that_the_filter_shows_are_marked_beside_those_that_were(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        first = next(row for row in range(60) if base_em(row) < 50)
        app.explorer.listing.go_to(first)
        recited = {row for row in range(60) if base_em(row) == 50}
        await pilot.press("m", "slash", *"em>=50", "enter")
        await until(pilot, lambda: f"{len(recited)} of 60" in shown(app, "#list-pane"))
        await pilot.press("asterisk")
        assert app.explorer.study.catalogue.marked == {first} | recited
        rows = shown(app, "#paragraphs").split("\n")
        assert all("◆" in line for line in rows if re.search(r"\d{3}ab", line))
        said = f"{len(recited) + 1} marked to be changed together, {len(recited)} of them now: x opens the form"
        await until(pilot, lambda: said in notices(app)[-1])
        await pilot.press("asterisk")
        await until(pilot, lambda: notices(app)[-1] == "All that the list shows are marked.")
        await pilot.press("x")
        await until(pilot, lambda: f"{len(recited) + 1} marked" in tab(app))
        await pilot.press("1", "right_square_bracket", "m")
        assert len(app.explorer.study.catalogue.marked) == len(recited)
        await pilot.press("M", "slash", *" nothing like this", "enter")
        await until(pilot, lambda: "0 of 60" in shown(app, "#list-pane"))
        await pilot.press("asterisk")
        await until(pilot, lambda: notices(app)[-1] == "The list shows none to mark.")
        assert not app.explorer.study.catalogue.marked
    kept = state.load("fake", "fake")[0]
    assert (kept.marked, kept.unlearn["paragraphs"]) == ([], "on screen")


async def test_of_copies_one_is_marked_which_a_run_can_change_also_in_the_next_sitting(session: RunSession) -> None:
    whole = session._paragraphs
    tokens, ids = whole.tokens.copy(), list(whole.ids)
    for row in (20, 40):
        tokens[row], ids[row] = tokens[0], ids[0]
    copies = replace(whole, tokens=tokens, ids=tuple(ids))
    for _ in range(2):
        session._paragraphs = copies
        app = unlearn_app(session)
        async with app.run_test(size=WIDE) as pilot:
            await opened(pilot)
            if not app.explorer.study.catalogue.marked:
                await pilot.press("asterisk")
            assert app.explorer.study.catalogue.marked == set(range(60)) - {20, 40}


async def test_no_more_are_marked_than_a_run_can_change_and_none_while_the_list_is_filtered(
    app: MemlocApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memloc_tui.screens.planning.MOST_MARKED", 40)
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("asterisk")
        await until(pilot, lambda: notices(app) == ["These are 60, and 40 can be marked: / filters the list."])
        app.explorer.listing.typed("id:00")
        app.explorer.action_mark_shown()  # before the filter has been applied
        assert not app.explorer.study.catalogue.marked
        await until(pilot, lambda: len(app.explorer.listing.matching) == 10)
        await pilot.press("asterisk")
        assert app.explorer.study.catalogue.marked == set(range(10))


async def test_a_number_that_is_none_is_said_in_its_line_and_cannot_be_started(
    app: MemlocApp, session: RunSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("down", "down", "down", "down", "2")
        await until(pilot, lambda: "this is a share above 0 and at most 1" in tab(app))
        await pilot.press("enter")
        await until(pilot, lambda: any("sparsity '2' means nothing" in said for said in notices(app)))
    assert not asked(session, Unlearn)


async def test_what_the_engine_refuses_stands_in_the_form(app: MemlocApp, session: RunSession) -> None:
    session.fail[EstimateRun] = MemlocError("This run cannot \x1b[2J be.")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("9")
        await until(pilot, lambda: "This run cannot ␛[2J be." in tab(app))


async def test_an_edit_teaches_what_the_model_says_to_the_perturbed_prefix(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.press("x", "down", "right")  # objective: edit
        await until(pilot, lambda: "has no perturbation yet" in tab(app))
        app.explorer.commit(((4, 17),))
        await until(pilot, lambda: "weights ·" in tab(app))
        await pilot.press("enter")
        await done(pilot)
    ((run, _),) = asked(session, Unlearn)
    whole = session._paragraphs.row(row)
    assert run.objective == "edit"
    assert run.alternatives == ((*whole[:P], *range(C)),)  # the fake's greedy text counts from 0


async def test_another_paragraph_has_not_the_former_ones_new_text(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.commit(((0, 180),))
        app.resume.unlearn["objective"] = "edit"
        await pilot.press("x")
        planning = app.explorer.unlearning.planning
        await until(pilot, lambda: planning.alternative and planning.alternative[:20] in tab(app))
        await pilot.press("escape", "right_square_bracket")
        await until(pilot, lambda: "has no perturbation yet" in tab(app))
        assert planning.alternative == ""


async def test_an_edit_can_teach_typed_text_which_the_model_goes_on_with(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.press("x", "down", "right", "down", "right", "down", *" w7 w9")
        await until(pilot, lambda: "weights ·" in tab(app))
        await pilot.press("enter")
        await done(pilot)
    ((run, _),) = asked(session, Unlearn)
    assert run.alternatives == ((*session._paragraphs.row(row)[:P], 7, 9, *range(C - 2)),)


async def test_what_is_pasted_into_the_form_is_typed_there_and_the_end_of_it_is_shown(app: MemlocApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        app.resume.unlearn |= {"objective": "edit", "instead": "typed"}
        await pilot.press("x")
        await until(pilot, lambda: app.explorer.query("#panel-unlearn RunForm"))
        rows = app.explorer.query_one(RunForm)
        for name, pasted in (("rate", " 1e-2\n5"), ("text", " ".join(f"w{i}" for i in range(60)))):
            await until(pilot, lambda name=name: name in [f.name for f in rows.fields])
            rows.move_to([f.name for f in rows.fields].index(name))
            app.post_message(events.Paste(pasted).set_sender(app))
            await pilot.pause()
        await pilot.press(*" w7")
        await until(pilot, lambda: "w57 w58 w59 w7▏" in tab(app))
        form_ = filled(app.resume.unlearn)
        assert form_["text"] == " ".join(f"w{i}" for i in range(60)) + " w7"
        assert form_["rate"] == "1e-2"


async def test_typed_text_is_read_by_the_models_own_tokenizer_as_on_the_command_line(
    app: MemlocApp, session: RunSession
) -> None:
    session.spelled = {" w13": (1, 2)}  # though there is one token of this text
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        app.resume.unlearn |= {"objective": "edit", "instead": "typed", "text": " w13"}
        await pilot.press("x")
        await until(pilot, lambda: "weights ·" in tab(app))
        ((estimate, _),) = asked(session, EstimateRun)
        session.asked.clear()
        ask: Any = session.ask
        catalogue = app.explorer.study.catalogue
        typed = await typed_alternative(ask, catalogue, row, " w13", app.settings.model, app.settings.revision)
        assert estimate.run.alternatives == (typed,)
        assert typed[P : P + 2] == (1, 2)
        assert not asked(session, Continue)  # the same question, which was answered already


async def test_typed_text_that_does_not_fit_is_refused(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.resume.unlearn |= {"objective": "edit", "instead": "typed", "text": " w7" * (C + 1)}
        await pilot.press("x")
        await until(pilot, lambda: f"The alternative has {C + 1} tokens; a continuation has {C}" in tab(app))
        await pilot.press("enter")
        await until(pilot, lambda: any("The alternative has" in said for said in notices(app)))
    assert not asked(session, Unlearn)


class FirstRows(RunSession):
    """The exact matches of the first chunk come when `first` is set; those of the others never do."""

    def __init__(self) -> None:
        super().__init__(n=200)
        self.first = asyncio.Event()

    async def compute(self, request: Any, edits: tuple[str, ...], on_progress: Any) -> Any:
        if isinstance(request, ExactMatch):
            if self.rows[request.paragraphs[0]]:
                await asyncio.Event().wait()
            await self.first.wait()
        return await super().compute(request, edits, on_progress)


async def test_a_run_waits_for_no_more_exact_matches_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memloc_tui.unlearning.DRAWN_FROM", 64)
    session = FirstRows()
    async with unlearn_app(session).run_test(size=WIDE) as pilot:
        app = app_of(pilot)
        await until(pilot, lambda: app.explorer.current >= 0)
        await pilot.press("x")
        await until(pilot, lambda: "A run waits for the exact matches of the list: 0 of 64 are known." in tab(app))
        session.first.set()
        await until(pilot, lambda: "weights ·" in tab(app))
        assert app.explorer.study.catalogue.known == 64
        await pilot.press("enter")
        await done(pilot)
    assert len(asked(session, Unlearn)) == 1
    second = FirstRows()
    second.first.set()
    async with unlearn_app(second).run_test(size=WIDE) as pilot:  # what it left is asked no later
        app = app_of(pilot)
        await until(pilot, lambda: app.explorer.study and app.explorer.study.catalogue.known == 64)
        await pilot.press("9")
        await until(pilot, lambda: app.explorer.unlearning.seen().runs)
        app.explorer.set_focus(app.explorer.query_one(RunList))
        await pilot.press("down", "i")
        await until(pilot, lambda: app.explorer.unlearning.seen().runs[0].after is not None)
    assert {request for request, _ in asked(second, MeasureRemains)} == {
        request for request, _ in asked(session, MeasureRemains)
    }


async def test_an_estimate_that_died_with_the_engine_is_asked_again_by_r(app: MemlocApp, session: RunSession) -> None:
    session.fail[EstimateRun] = EngineDied("The engine ended.")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("x")
        await until(pilot, lambda: "The engine ended while it estimated; r asks again." in tab(app))
        session.fail.clear()
        await pilot.press("r")
        await until(pilot, lambda: "weights ·" in tab(app))


# --------------------------------------------------------------------------------------------------- a run as it goes


async def test_a_run_is_watched_paused_and_ends_with_its_edit_kept_and_measured(
    app: MemlocApp, session: RunSession
) -> None:
    session.ticks = asyncio.Queue()
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("enter")
        for _ in range(5):  # steps 0..4
            session.ticks.put_nowait(None)
        await until(pilot, lambda: "50.0 → 30.0" in shown(app, "#run-curves"))
        assert "unlearn 4/100" in screen_lines(app)[0]
        assert "4/100" in shown(app, "#run-now")
        kept = [line for line in shown(app, "#run-curves").split("\n") if "others' EM" in line]
        assert "50.0 → 49.6" in kept[0]
        await pilot.press("space")
        await until(pilot, lambda: "paused" in shown(app, "#run-now"))
        await pilot.press("space")
        assert session.paused == [True, False]
        await pilot.press("]", "4")  # the run goes on while other things are looked at
        for _ in range(20):
            session.ticks.put_nowait(None)
        await done(pilot)
        run = app.explorer.unlearning.seen().runs[0]
        assert (run.best, run.state, run.on) == (9, "done", True)  # EM 50 - 9 * 5 = 5 meets the goal
        assert any(f"Kept as edit {run.name}" in said for said in notices(app))
        kept_answer = edits.open_edit(run.file)
        assert np.array_equal(kept_answer.result.edit.new, run.result.edit.new)
        assert [with_ for _, with_ in asked(session, MeasureRemains)] == [(run.fingerprint,), ()]


async def test_esc_in_the_tab_stops_a_run_and_keeps_its_best_step(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await three_steps(pilot, session)
        await pilot.press("escape")
        await until(pilot, lambda: not app.explorer.unlearning.running)
        run = app.explorer.unlearning.seen().runs[0]
        assert (run.result.stopped, run.best) == ("cancelled", 3)
        assert any("Cancelled after step 3 of 100. Its best step, 3, is kept" in said for said in notices(app))
        assert np.array_equal(edits.open_edit(run.file).result.edit.new, make_result(run.request, 3).edit.new)
        assert "unlearn" not in screen_lines(app)[0]


async def test_a_run_of_which_nothing_could_be_kept_is_stopped_only_after_a_question(
    app: MemlocApp, session: RunSession
) -> None:
    session.large = True
    async with app.run_test(size=WIDE) as pilot:
        await three_steps(pilot, session)
        for leaves in (["escape"], ["q"]):
            await pilot.press(*leaves)
            await until(pilot, lambda: app.screen is not app.explorer)
            text = " ".join(shown(app, ".dialog").replace("│", "").split())
            assert "Its edit is too large to be kept before the run's end. None of its steps is kept." in text
            await pilot.press("n")
            assert app.explorer.unlearning.running
        await pilot.press("escape", "y")
        await until(pilot, lambda: not app.explorer.unlearning.running)
        assert any("too large to be kept before the run's end" in said for said in notices(app))
        assert not edits.stored()


async def test_quitting_says_what_is_kept_of_a_run(app: MemlocApp, session: RunSession) -> None:
    session.ticks = asyncio.Queue()
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("enter")
        session.ticks.put_nowait(None)
        await until(pilot, lambda: app.explorer.unlearning.seen().runs)
        await pilot.press("q")
        await until(pilot, lambda: "nothing is saved" in shown(app, ".dialog"))
        await pilot.press("n")
        session.ticks.put_nowait(None)
        await until(pilot, lambda: app.explorer.unlearning.seen().runs[0].best == 1)
        await pilot.press("q")
        await until(pilot, lambda: "kept as an edit" in " ".join(shown(app, ".dialog").replace("│", "").split()))


async def test_what_a_run_writes_as_it_goes_takes_no_edit_of_an_earlier_one_away(
    app: MemlocApp, session: RunSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run once more passes through the step at which the first was stopped, and is there the same edit."""
    async with app.run_test(size=WIDE) as pilot:
        await three_steps(pilot, session)
        await pilot.press("escape")
        await done(pilot)
        (kept,) = edits.stored()
        monkeypatch.setattr("memloc_tui.screens.unlearning.SAVE_EVERY", 0.0)
        await pilot.press("x", "enter")
        assert session.ticks is not None
        for steps in range(1, 7):
            session.ticks.put_nowait(None)
            await until(pilot, lambda steps=steps: app.explorer.unlearning.seen().runs[0].steps == steps - 1)
        assert len(edits.stored()) == 2  # the first run's edit, and what the second has come to
        await pilot.press("escape")
        await done(pilot)
        assert kept.path in {one.path for one in edits.stored()}
        assert len(edits.stored()) == 2


async def test_esc_elsewhere_does_not_stop_a_run(app: MemlocApp, session: RunSession) -> None:
    session.ticks = asyncio.Queue()
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: app.explorer.unlearning.running)
        await pilot.press("4", "escape")
        assert app.explorer.unlearning.running
        await pilot.press("q")
        await until(pilot, lambda: any("A run is going on" in line for line in screen_lines(app)))
        await pilot.press("n")
        assert app.explorer.unlearning.running


async def test_a_run_that_is_cancelled_before_its_first_step_keeps_nothing(app: MemlocApp, session: RunSession) -> None:
    session.ticks = asyncio.Queue()
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("enter")
        session.ticks.put_nowait(None)
        await until(pilot, lambda: app.explorer.unlearning.seen().runs)
        await pilot.press("escape")
        await until(pilot, lambda: any("nothing is saved" in said for said in notices(app)))
        assert not edits.stored()


async def test_an_engine_that_dies_in_mid_run_leaves_the_best_step_and_the_original_weights(
    app: MemlocApp, session: RunSession
) -> None:
    session.die = EngineDied("The engine process was killed by signal 9.")
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: any("kept as edit" in said for said in notices(app)))
        run = app.explorer.unlearning.seen().runs[0]
        assert (run.state, run.best) == ("failed", 3)
        assert "killed by signal 9" in shown(app, "#run-now")
        assert not app.explorer.editing.edited
        assert ems(app)[app.explorer.current] == 50


async def test_quitting_keeps_the_best_step_and_the_next_sitting_shows_the_run(session: RunSession) -> None:
    app = unlearn_app(session)
    async with app.run_test(size=WIDE) as pilot:
        await three_steps(pilot, session)
        await pilot.press("q", "y")
    (stored,) = edits.stored()
    again = unlearn_app(RunSession())
    async with again.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("9")
        await until(pilot, lambda: again.explorer.unlearning.seen().runs)
        (run,) = again.explorer.unlearning.seen().runs
        assert (run.file, run.best, run.on) == (str(stored.path), 3, True)
        again.explorer.set_focus(again.explorer.query_one(RunList))
        await pilot.press("down")
        await until(pilot, lambda: "50.0 → 35.0" in shown(again, "#run-curves"))


# ----------------------------------------------------------------------------------------------- original and edited


async def unlearned(pilot: Pilot[Any]) -> Run:
    """The paragraph on screen taken out."""
    await form(pilot)
    await pilot.press("enter")
    await done(pilot)
    return app_of(pilot).explorer.unlearning.seen().runs[0]


async def test_one_key_shows_the_edited_weights_everywhere_and_back_at_once(
    app: MemlocApp, session: RunSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        run = await unlearned(pilot)
        row = app.explorer.current
        assert ems(app)[row] == 50
        assert f"original weights (E {run.name})" in screen_lines(app)[0]
        await pilot.press("E")
        await until(pilot, lambda: "EM 3 of 50" in shown(app, "#continuation"))
        await until(pilot, lambda: app.explorer.study.catalogue.known == 60 and ems(app).get(row) == 3)
        assert f"edits: {run.name} on (E original)" in screen_lines(app)[0]
        assert app.explorer.current == row
        others = {r: em for r, em in ems(app).items() if r != row}
        assert others == {r: base_em(r) for r in others}
        count = len(session.asked)
        for em in (50, 3, 50):
            await pilot.press("E")
            await until(pilot, lambda em=em: ems(app).get(row) == em)
            assert f"EM {em} of 50" in shown(app, "#continuation")
        assert len(session.asked) == count  # everything was known


async def test_replacements_and_the_paragraph_go_along_with_the_flip(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await unlearned(pilot)
        await pilot.press("E", "]")
        row = app.explorer.current
        app.explorer.commit(((3, 5),))
        await pilot.press("E")
        assert app.explorer.current == row
        assert app.explorer.study.here.replacements == ((3, 5),)
        await pilot.press("u", "E")
        assert app.explorer.study.here.replacements == ()


async def test_a_list_that_was_put_aside_orders_nothing_any_more(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await unlearned(pilot)
        aside = app.explorer.listing
        await pilot.press("E")
        await until(pilot, lambda: app.explorer.study.catalogue.known == 60)
        order = app.explorer.list.order
        aside.matching = [0]
        aside.resort()  # as a timer of it would
        await pilot.pause()
        assert app.explorer.list.order == order
        assert app.explorer.list.catalogue is app.explorer.study.catalogue


async def test_under_an_edit_the_list_says_what_it_cost_whom(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await unlearned(pilot)
        row = app.explorer.current
        await pilot.press("s")
        assert app.resume.sort == "NLL"  # without an edit there is no change to sort by
        await pilot.press("E")
        await until(pilot, lambda: app.explorer.study.catalogue.known == 60)
        app.resume.sort = "EM"
        await pilot.press("s")
        assert app.resume.sort == "change"
        await until(pilot, lambda: app.explorer.list.order[0] == row)
        first, *others = shown(app, "#paragraphs").splitlines()
        assert "−47" in first
        assert "−" not in "".join(others)
        app.explorer.listing.typed("change<0")
        await until(pilot, lambda: app.explorer.list.order == [row])
        await pilot.press("E")
        await until(pilot, lambda: "−47" not in shown(app, "#paragraphs"))
        assert app.explorer.list.order == []  # nothing has changed here


async def test_an_answer_about_the_other_weights_never_shows(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        run = await unlearned(pilot)
        row = app.explorer.current
        gate = session.hold[ExactMatch] = asyncio.Event()
        session.deaf.add(ExactMatch)  # the engine is so far with it that its answer comes all the same
        await pilot.press("E")
        await until(pilot, lambda: any(edits_ for _, edits_ in asked(session, ExactMatch)))  # its list waits
        await pilot.press("E")
        gate.set()
        late = session.cancelled[-1]
        await until(pilot, lambda: session.peek(Edited(late, (run.fingerprint,))))
        await pilot.pause()
        assert ems(app)[row] == 50
        assert "EM 50 of 50" in shown(app, "#continuation")
        assert app.explorer.study.catalogue.em[row] == 50


async def test_edits_are_on_again_in_the_next_sitting_and_a_missing_file_is_said(
    session: RunSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = unlearn_app(session)
    async with app.run_test(size=WIDE) as pilot:
        run = await unlearned(pilot)
        row = app.explorer.current
        await pilot.press("E")
        await pilot.pause()
    second = RunSession()
    second.gone = session.gone
    again = unlearn_app(second)
    async with again.run_test(size=WIDE) as pilot:
        await opened(pilot)
        assert f"edits: {run.name} on" in screen_lines(again)[0]
        assert again.explorer.current == row
        assert base_em(row) == 50
        await until(pilot, lambda: ems(again).get(row) == again.explorer.study.catalogue.em[row] == 3)
    Path(run.file).unlink()
    heard: list[str] = []
    monkeypatch.setattr(MemlocApp, "say", lambda self, message, severity="": heard.append(message))
    third = unlearn_app(RunSession())
    async with third.run_test(size=WIDE) as pilot:
        await opened(pilot)
        assert any(f"The edit {run.name} of the last visit is off" in said for said in heard)
        assert "edits: none" in screen_lines(third)[0]


async def test_what_an_old_run_left_is_not_asked_by_the_scores_of_edited_weights(session: RunSession) -> None:
    app = unlearn_app(session)
    async with app.run_test(size=WIDE) as pilot:
        await unlearned(pilot)
        await pilot.press("E")
        await pilot.pause()
    again = unlearn_app(second := RunSession())
    second.gone = session.gone
    async with again.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("9")
        await until(pilot, lambda: again.explorer.unlearning.seen().runs)
        again.explorer.set_focus(again.explorer.query_one(RunList))
        await pilot.press("down", "i")
        await until(pilot, lambda: "E shows them" in again.explorer.unlearning.seen().runs[0].measuring)
        assert not asked(second, MeasureRemains)
        await pilot.press("E")
        await until(pilot, lambda: again.explorer.study.catalogue.known == len(again.explorer.study.catalogue))
        await pilot.press("i")
        await until(pilot, lambda: again.explorer.unlearning.seen().runs[0].after is not None)


async def test_a_second_run_on_edited_weights_stands_on_the_first(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        first = await unlearned(pilot)
        await pilot.press("E", "1", "home", "x")
        await until(pilot, lambda: "weights ·" in tab(app))
        await pilot.press("enter")
        await until(pilot, lambda: len(app.explorer.unlearning.seen().runs) == 2)
        await done(pilot)
        second = app.explorer.unlearning.seen().runs[0]
        assert second.below == (first.fingerprint,)
        assert [e.on for e in session.edits] == [True, True]
        assert app.explorer.editing.edited
        rows = app.explorer.query_one(RunList)
        app.explorer.set_focus(rows)
        rows.move_to(2)
        await pilot.press("t")  # the first off: the second cannot stand without it
        assert [e.on for e in app.explorer.editing.stack] == [False, False]
        assert f"{second.name} cannot stand on what is on now: it is off too." in notices(app)
        assert not app.explorer.editing.edited
        rows.move_to(1)
        await pilot.press("t", "E")
        assert f"{second.name} was made on top of {first.name}: it is on too." in notices(app)
        assert [e.fingerprint for e in session.edits if e.on] == [first.fingerprint, second.fingerprint]


async def test_what_an_edit_was_made_on_is_on_before_it_wherever_it_stood_and_nothing_is_on_without_it(
    app: MemlocApp,
) -> None:
    """Switching edits on and off in any order, against a plain search for what the engine would refuse."""
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        request = Unlearn((app.explorer.study.catalogue.paragraphs.row(0),), (), P)
        made: list[Run] = []
        for seed, below in enumerate([(), (), (0,), (0, 1), (1, 0), (0, 2)]):
            ground = tuple(made[b].fingerprint for b in below)
            run = replace(request, seed=seed)
            result = make_result(run, 3, on_top_of=ground)
            answer = Answer(run, result, Provenance("fake", "f", "", "fp32", "cpu", "eager", 0.1))
            file, fingerprint = str(edits.store(answer)), result.edit.fingerprint
            made.append(
                Run(seed, run, result=result, file=file, fingerprint=fingerprint, name=f"e{seed}", below=ground)
            )
        editing, rng = app.explorer.editing, np.random.default_rng(0)
        for _ in range(60):
            run_ = made[rng.integers(len(made))]
            was = any(e.on for e in editing.stack if e.fingerprint == run_.fingerprint)
            editing.toggle(run_)
            on = [e.fingerprint for e in editing.stack if e.on]
            assert (run_.fingerprint in on) is not was
            assert len({e.fingerprint for e in editing.stack}) == len(editing.stack)
            for other in made:
                if other.fingerprint in on:
                    before = on[: on.index(other.fingerprint)]
                    assert [f for f in before if f in other.below] == list(other.below)


async def test_an_edit_is_taught_what_the_weights_say_that_it_is_made_on(app: MemlocApp, session: RunSession) -> None:
    """A flip while the alternatives are asked for changes none of them."""
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.commit(((3, 5),))
        planning, editing = app.explorer.unlearning.planning, app.explorer.editing
        below = editing.on
        editing.stack, editing.edited = [ActiveEdit("e" * 64, "file", "eeee")], True
        session.set_edits(editing._on_paper())
        await planning.planned(filled({"objective": "edit"}), below)
        assert asked(session, Continue)[0][1] == below == ()


async def test_the_tour_does_not_take_an_earlier_run_for_the_one_it_asks_for(session: RunSession) -> None:
    def make(session: RunSession) -> MemlocApp:
        given: Any = session
        return MemlocApp(Settings(model=DEMO, paragraphs=DEMO), given)

    async with (app := make(session)).run_test(size=WIDE) as pilot:
        await form(pilot)
        await pilot.press("enter")
        await done(pilot)
        await pilot.press("4")
    async with (app := make(RunSession())).run_test(size=WIDE) as pilot:
        await opened(pilot)
        await app.explorer.action_begin_tour()
        for _ in range(4):
            await pilot.press("full_stop")
        await pilot.press("x")  # only now are the stored runs read
        await until(pilot, lambda: app.explorer.unlearning.all)
        app.explorer.touring.look()
        await pilot.pause()
        assert "weights changed" not in shown(app, "#tour")


async def test_the_tour_says_that_a_run_failed_before_its_first_step() -> None:
    given: Any = RunSession()
    given.fail[Unlearn] = MemlocError("There is too little memory.")
    app = MemlocApp(Settings(model=DEMO, paragraphs=DEMO), given)
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await app.explorer.action_begin_tour()
        for _ in range(4):
            await pilot.press("full_stop")
        await form(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "The run did not work: There is too little memory." in shown(app, "#tour"))


async def test_flipping_without_an_edit_says_why_nothing_happens(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("E")
        assert any("there is no edit yet" in said for said in notices(app))


# ------------------------------------------------------------------------------------------------- result and compare


async def test_the_result_says_both_goals_and_what_remains(app: MemlocApp) -> None:
    async with app.run_test(size=(170, 60)) as pilot:
        await unlearned(pilot)
        await pilot.press("v")
        await until(pilot, lambda: "what remains" in shown(app, "#run-result"))
        text = " ".join(shown(app, "#run-result").split())
        assert "best step 9 of 9" in text
        assert "goal break reached, but other text suffers" in text  # others' EM 50 - 0.9
        assert "✗ others' EM ≥ 49.8 49.1" in text
        assert "✓ family EM ≥ 46.0 47.1" in text
        assert "✗ held-out same ≥ .9970 .9910" in text
        assert "edit distance 0 0.80" in text
        assert "EM, 20 steps relearned 51.0 4.00" in text
        runs = app.explorer.unlearning
        (number,) = runs.all
        after = runs.all[number].after
        assert after is not None
        held = {check.name: check.holds for check in checks(runs.all[number], "forget")}
        less = replace(after, relearned_em=after.relearned_em[:3], relearned_longest=after.relearned_longest[:3])
        runs.change(number, after=replace(less, not_relearned=18))  # memory was too small for the rest
        runs.draw()
        await until(pilot, lambda: "relearned 51.0 ·" in " ".join(shown(app, "#run-result").split()))
        text = " ".join(shown(app, "#run-result").split())
        assert "EM, 20 steps relearned 51.0 ·" in text
        assert "longest, relearned 52.0 ·" in text
        assert held["relearned EM"] is True
        assert {check.name: check.holds for check in checks(runs.all[number], "forget")} == {
            **held,
            "relearned EM": None,
        }


async def test_the_new_text_stands_under_the_true_one_with_its_first_mismatch_marked(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await unlearned(pilot)
        await pilot.press("v", "v")
        await until(pilot, lambda: "✗" in shown(app, "#run-text"))
        lines = shown(app, "#run-text").split("\n")
        true = next(line for line in lines if line.strip().startswith("true"))
        after = next(line for line in lines if line.strip().startswith("after"))
        same = app.explorer.study.catalogue.paragraphs.row(app.explorer.current)[P : P + 3]  # the fake's EM after a run
        words = "".join(piece_text(PIECES[token], token) for token in same)
        assert true.startswith(f" true  {words}")
        assert after.startswith(f" after {words}✗")
        assert "EM 50 → 3" in shown(app, "#run-what")


async def test_the_new_text_of_each_paragraph_of_a_run_is_walked_to_in_its_view(
    app: MemlocApp, session: RunSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        rows = [2, 5, 7]
        for row in rows:
            app.explorer.listing.go_to(row)
            await pilot.press("m")
        app.explorer.listing.go_to(5)
        await form(pilot)
        await pilot.press("enter")
        await done(pilot)
        app.explorer.set_focus(app.explorer.query_one(RunList))
        await pilot.press("v", "v")
        await until(pilot, lambda: "005abc, 2 of 3: [ ] walk" in shown(app, "#run-what"))
        for key, at in (("]", 2), ("]", 2), ("[", 1), ("[", 0)):
            await pilot.press({"[": "left_square_bracket", "]": "right_square_bracket"}[key])
            assert f"{rows[at]:03d}abc, {at + 1} of 3: [ ] walk" in shown(app, "#run-what")
            first = visible(app.explorer.study.catalogue.pieces[session._paragraphs.row(rows[at])[P]].decode())
            assert first.strip() in shown(app, "#run-text").split("\n")[0]
            assert app.explorer.current == 5
        app.explorer.set_focus(app.explorer.prefix)  # there the keys walk the list
        await until(pilot, lambda: "002abc, 1 of 3 · EM" in shown(app, "#run-what"))
        await pilot.press("right_square_bracket")
        assert app.explorer.current != 5


async def test_runs_are_laid_over_each_other_and_compared(app: MemlocApp) -> None:
    async with app.run_test(size=(140, 44)) as pilot:
        await unlearned(pilot)
        await pilot.press("n")
        await pilot.pause()
        form_ = app.explorer.query_one(RunForm)
        form_.move_to([f.name for f in form_.fields].index("goal"))
        await pilot.press("left")  # steps
        form_.move_to([f.name for f in form_.fields].index("steps"))
        await pilot.press("4", "enter")
        await until(pilot, lambda: len(app.explorer.unlearning.seen().runs) == 2)
        await done(pilot)
        rows = app.explorer.query_one(RunList)
        app.explorer.set_focus(rows)
        rows.move_to(1)
        await pilot.press("b")
        rows.move_to(2)
        await pilot.pause()
        lane = app.explorer.query_one("#run-curves").lanes[0]
        assert lane.letters == ("A", "B")
        assert [float(s[-1]) for s in lane.series] == [5.0, 30.0]
        await pilot.press("v", "v", "v")
        text = shown(app, "#run-pareto")
        assert "A 5.00 · 49.1" in text
        assert "B 30.0 · 49.6" in text


async def test_every_key_on_the_forms_row_says_or_shows_something(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await form(pilot)
        for times, key in enumerate("tbiNcv", 1):
            await pilot.press(key)
            said = ["This key is about a run: ⏎ starts the one that the form describes."] * times
            await until(pilot, lambda said=said: notices(app) == said)
        await pilot.press("n", "enter")
        await done(pilot)
        app.explorer.set_focus(app.explorer.query_one(RunList))
        for times, key in enumerate(("t", "delete"), 1):
            await pilot.press("home", key)
            said = ["This key is about a run: choose one in the list."] * times
            await until(pilot, lambda said=said: notices(app)[-len(said) :] == said)
        await pilot.press("v")
        await until(pilot, lambda: "A 5.00 · " in shown(app, "#run-pareto"))
        await pilot.press("v")
        await until(pilot, lambda: app.explorer.query_one(RunForm).display)


async def test_what_cannot_be_measured_again_is_said(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await unlearned(pilot)
        before = len(notices(app))
        await pilot.press("i")
        await until(pilot, lambda: notices(app)[before:] == ["What it left is measured: v shows the result."])
        session.hold[MeasureRemains] = asyncio.Event()
        app.explorer.unlearning.change(0, after=None, before=None)
        session.kept = {
            k: v for k, v in session.kept.items() if not isinstance(getattr(k, "request", k), MeasureRemains)
        }
        app.explorer.draw()
        await pilot.press("i", "i")
        await until(pilot, lambda: notices(app)[before + 1 :] == ["What it left is being measured: esc stops."])
        await pilot.press("escape")
        await until(pilot, lambda: not app.explorer.unlearning.measuring.running)
        app.explorer.unlearning.change(0, fingerprint="")
        app.explorer.draw()
        await pilot.press("i")
        await until(pilot, lambda: notices(app)[-1:] == ["This run has no edit, so it left nothing to measure."])


async def test_the_first_x_of_a_sitting_opens_the_form_also_where_runs_were_compared(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.resume.switches["run_view"] = "compare"
        await pilot.press("x")
        await until(pilot, lambda: "weights ·" in tab(app) and app.explorer.query_one(RunForm).has_focus)


async def test_a_stored_file_that_is_damaged_is_a_row_that_says_so(app: MemlocApp) -> None:
    edits.folder().mkdir(parents=True)
    (edits.folder() / "0123456789abcdef.safetensors").write_bytes(b"\x1b]0;pwned\x07 no edit at all")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("9")
        await until(pilot, lambda: "0123456789abcdef" in shown(app, "#runs-list"))
        app.explorer.set_focus(app.explorer.query_one(RunList))
        await pilot.press("down")
        await until(pilot, lambda: "damaged" in shown(app, "#run-now"))
        await pilot.press("t", "i", "b", "v", "v", "v", "v", "enter")
        assert app.is_running


async def test_r_shows_the_edits_that_were_made_in_another_terminal(app: MemlocApp, session: RunSession) -> None:
    def stored_of(seed: int) -> None:
        row = session._paragraphs.row
        request = Unlearn((row(0),), (row(7),), P, seed=seed)
        provenance = Provenance("fake", "f", "", "fp32", "cpu", "eager", 1.5)
        edits.store(Answer(request, make_result(request, 3), provenance))

    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        stored_of(1)
        await pilot.press("9")
        await until(pilot, lambda: len(app.explorer.unlearning.seen().runs) == 1)
        stored_of(2)
        (edits.folder() / "0123456789abcdef.safetensors").write_bytes(b"no edit at all")
        for _ in range(2):
            await pilot.press("r")
            await until(pilot, lambda: "0123456789abcdef" in shown(app, "#runs-list"))
            await pilot.pause(0.3)
            assert [run.request.seed for run in app.explorer.unlearning.seen().runs if run.result] == [2, 1]
            assert len(app.explorer.unlearning.seen().runs) == 3


async def test_a_run_on_a_narrow_terminal(session: RunSession) -> None:
    session.ticks = asyncio.Queue()
    app = unlearn_app(session)
    async with app.run_test(size=(80, 24)) as pilot:
        await form(pilot)
        await pilot.press("enter")
        for _ in range(7):
            session.ticks.put_nowait(None)
        await until(pilot, lambda: "50.0 → 20.0" in shown(app, "#run-curves"))
        lines = shown(app, "#run-curves").split("\n")
        assert [name in "\n".join(lines) for name in ("changed EM", "others' EM", "KL")] == [True] * 3
        assert "esc" in shown(app, "#run-now")
        assert "unlearn 6/100" in screen_lines(app)[0]


# ------------------------------------------------------------------------------------ names, copies, what is deleted


async def in_list(pilot: Pilot[Any], letter: str) -> None:
    """The keyboard in the list of runs, on this one."""
    app = app_of(pilot)
    await until(pilot, lambda: app.explorer.query("#panel-unlearn RunList"))
    rows = app.explorer.query_one(RunList)
    await until(pilot, lambda: letter in [run.letter for run in rows.runs.runs])
    app.explorer.set_focus(rows)
    rows.move_to(1 + [run.letter for run in rows.runs.runs].index(letter))
    await pilot.pause()


async def runs_on_others(pilot: Pilot[Any], n: int) -> list[Run]:
    """Runs A, B, ..., each on the original weights and of another paragraph; the edits of all but the last are off."""
    app = app_of(pilot)
    await opened(pilot)
    for number in range(n):
        app.explorer.listing.go_to(number)
        await pilot.press("x")
        await until(pilot, lambda: "weights ·" in tab(app))
        await pilot.press("enter")
        await until(pilot, lambda number=number: len(app.explorer.unlearning.seen().runs) == number + 1)
        await done(pilot)
    return sorted(app.explorer.unlearning.seen().runs, key=lambda run: run.number)


async def says(pilot: Pilot[Any], said: str) -> None:
    await until(pilot, lambda: said in notices(app_of(pilot))[-1])


async def next_sitting() -> tuple[list[str], list[str], list[str]]:
    """The letters and names of the runs that a new sitting shows, and what it says."""
    app = unlearn_app(RunSession())
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("9")
        await until(pilot, lambda: app.explorer.unlearning.seen().known)
        found = app.explorer.unlearning.seen().runs
        return [run.letter for run in found], [run.label for run in found], notices(app)


async def test_a_run_is_deleted_with_its_edit_after_one_question(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        a, b, c = await runs_on_others(pilot, 3)
        await in_list(pilot, "B")
        await pilot.press("b", "delete")
        await until(pilot, lambda: "Delete run B, unlearn auto 0.1 %?" in shown(app, ".dialog"))
        await pilot.press("n")
        assert Path(b.file).exists()
        await pilot.press("delete", "y")
        await says(pilot, "Run B is deleted.")
        assert not Path(b.file).exists()
        assert {one.path for one in edits.stored()} == {Path(a.file), Path(c.file)}
        assert [run.letter for run in app.explorer.unlearning.seen().runs] == ["C", "A"]
        assert app.explorer.query_one(RunList).run.number == a.number  # the cursor stands on the next one
        assert [edit.fingerprint for edit in app.explorer.editing.stack] == [a.fingerprint, c.fingerprint]
        await pilot.press("delete", "y")
        await until(pilot, lambda: [run.letter for run in app.explorer.unlearning.seen().runs] == ["C"])
        await in_list(pilot, "C")
        await pilot.press("t", "delete", "y")
        await until(pilot, lambda: app.explorer.query_one(RunForm).has_focus)
        assert not edits.stored()
        await pilot.press("x")
        await until(pilot, lambda: "weights ·" in tab(app))
        await pilot.press("enter")
        await done(pilot)
        assert [run.letter for run in app.explorer.unlearning.seen().runs] == ["D"]  # no letter means two runs
    assert await next_sitting() == (["D"], [""], [])


async def test_a_run_whose_edit_is_needed_is_not_deleted(app: MemlocApp, session: RunSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await three_steps(pilot, session)
        await in_list(pilot, "A")
        await pilot.press("delete")
        await says(pilot, "A run that goes on cannot be deleted: esc ends it.")
        session.hold[MeasureRemains] = asyncio.Event()
        await pilot.press("escape")
        await until(pilot, lambda: not app.explorer.unlearning.running)
        await pilot.press("i", "delete")
        await says(pilot, "What it left is being measured: esc stops that.")
        await pilot.press("escape")
        await until(pilot, lambda: not app.explorer.unlearning.measuring.running)
        await pilot.press("delete")
        await says(pilot, "Its edit is on: t switches it off, and then it can be deleted.")
        session.ticks = None
        await pilot.press("E", "1", "home", "x")  # a second run, on top of the first
        await until(pilot, lambda: "weights ·" in tab(app))
        await pilot.press("enter")
        await until(pilot, lambda: len(app.explorer.unlearning.seen().runs) == 2)
        session.hold.clear()
        await pilot.press("escape")
        await done(pilot)
        await in_list(pilot, "A")
        await pilot.press("t", "delete")
        await says(pilot, "It cannot be deleted: run B stands on its edit.")
        assert len(edits.stored()) == 2
        await in_list(pilot, "B")
        await pilot.press("delete", "y")
        await says(pilot, "Run B is deleted.")
        # An edit on top of it that another terminal has made since.
        run = app.explorer.unlearning.seen().runs[0]
        request = replace(run.request, seed=7)
        above = make_result(request, 3, on_top_of=(run.fingerprint,))
        path = edits.store(Answer(request, above, Provenance("fake", "f", "", "fp32", "cpu", "eager", 1.5)))
        await in_list(pilot, "A")
        await pilot.press("delete", "y")
        await says(pilot, f"It cannot be deleted: edit {path.stem[:8]} stands on its edit.")
        assert Path(run.file).exists()


async def test_deleting_a_run_leaves_the_edit_that_another_run_has_come_to(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        first = await unlearned(pilot)
        await in_list(pilot, "A")
        await pilot.press("t", "x", "enter")
        await until(pilot, lambda: len(app.explorer.unlearning.seen().runs) == 2)
        await done(pilot)
        assert [run.file for run in app.explorer.unlearning.seen().runs] == [first.file] * 2
        await in_list(pilot, "A")
        await pilot.press("delete")
        question = " ".join(shown(app, ".dialog").replace("│", "").split())
        assert "Its edit stays: another run has come to the same." in question
        await pilot.press("y")
        await says(pilot, "Run A is deleted.")
        assert Path(first.file).exists()
        assert [edit.on for edit in app.explorer.editing.stack] == [True]
    assert (await next_sitting())[:2] == (["B"], [""])


async def test_a_file_that_is_not_the_stores_own_is_never_deleted_and_one_that_is_damaged_can_be(
    app: MemlocApp, session: RunSession, tmp_path: Path
) -> None:
    request = Unlearn((session._paragraphs.row(0),), (session._paragraphs.row(7),), P)
    stored = edits.store(Answer(request, make_result(request, 3), Provenance("fake", "f", "", "", "", "", 1.5)))
    elsewhere = tmp_path / "of-somebody.safetensors"
    stored.rename(elsewhere)
    stored.symlink_to(elsewhere)
    damaged = edits.folder() / "0123456789abcdef.safetensors"
    damaged.write_bytes(b"no edit at all")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("9")
        await until(pilot, lambda: len(app.explorer.unlearning.seen().runs) == 2)
        letters = {Path(run.file).name: run.letter for run in app.explorer.unlearning.seen().runs}
        await in_list(pilot, letters[stored.name])
        await pilot.press("delete", "y")
        await says(pilot, "is not one of the stored edits")
        assert elsewhere.exists()
        assert stored.is_symlink()
        await in_list(pilot, letters[damaged.name])
        await pilot.press("i")
        await says(pilot, "This run has no edit, so it left nothing to measure.")
        await pilot.press("t")
        await says(pilot, "damaged")
        await pilot.press("delete", "y")
        await says(pilot, f"Run {letters[damaged.name]} is deleted.")
        assert not damaged.exists()
        await pilot.press("r")
        await pilot.pause(0.3)
        assert len(app.explorer.unlearning.seen().runs) == 1


async def test_a_name_stands_where_the_run_is_shown_and_is_there_in_the_next_sitting(app: MemlocApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        await runs_on_others(pilot, 2)
        await in_list(pilot, "A")
        await pilot.press("N")
        await until(pilot, lambda: "A name for run A" in shown(app, ".dialog"))
        await pilot.press(*"my run", "enter")
        assert "my run" in shown(app, "#runs-list")
        assert shown(app, "#run-now").strip().startswith("A my run · unlearn")
        await in_list(pilot, "B")
        await pilot.press("b")
        await in_list(pilot, "A")
        await until(pilot, lambda: app.explorer.query_one(Curves).lanes[0].letters == ("my run", "B"))
        assert any(line.rstrip().endswith(" my run") for line in shown(app, "#run-curves").split("\n"))
        await pilot.press("v", "v", "v")
        await until(pilot, lambda: re.search(r"▸A 5.00 · 49.1 +my run", shown(app, "#run-pareto")))
        table = runs.runs_table(app.explorer.unlearning.seen())
        assert [dict(zip(table.columns, row, strict=True))["name"] for row in table.rows] == ["", "my run"]
        await in_list(pilot, "B")
        await pilot.press("N", *"x", "escape", "N")  # of Esc nothing stays
        app.post_message(events.Paste("\x1b[2J\u202e").set_sender(app))
        await pilot.press("enter")
        await until(pilot, lambda: "␛[2J⟨U+202E⟩" in shown(app, "#runs-list"))
        assert "\x1b" not in "".join(screen_lines(app))
    assert (await next_sitting())[:2] == (["B", "A"], ["\x1b[2J\u202e", "my run"])
    again = unlearn_app(RunSession())
    async with again.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("9")
        await in_list(pilot, "A")
        await pilot.press("N", *["backspace"] * 6, "enter")
        await until(pilot, lambda: "my run" not in tab(again))
    assert (await next_sitting())[1] == ["\x1b[2J\u202e", ""]


async def test_a_run_keeps_its_letter_when_earlier_ones_are_gone_or_others_have_been_added(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        a, _, c = await runs_on_others(pilot, 3)
    Path(a.file).unlink()  # as `memloc-tui edits remove` does
    request = replace(c.request, seed=7)
    edits.store(Answer(request, make_result(request, 3), Provenance("fake", "f", "", "", "", "", 1.5)))
    Path(c.file).touch()  # the newest file is not the newest run
    for _ in range(2):
        assert (await next_sitting())[0] == ["D", "C", "B"]


async def test_letters_and_names_that_cannot_be_read_are_set_aside_and_said(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await unlearned(pilot)
    labels.place().write_text('{"version": 1, "weights": {"f": {"../x": [0, ""]}}}')
    letters, _, said = await next_sitting()
    assert letters == ["A"]
    kept = "The file of the runs' letters and names is unreadable; the file is kept as labels.broken"
    assert any(kept in one for one in said)
    assert "../x" in labels.place().with_suffix(".broken").read_text()


def test_labels_of_other_weights_and_of_another_terminal_stay_and_those_of_files_that_are_gone_go() -> None:
    edits.folder().mkdir(parents=True)
    for file in ("a", "b", "c"):
        (edits.folder() / file).touch()
    labels.keep("f", {"a": labels.Label(0, "one"), "b": labels.Label(1)})
    labels.keep("g", {"c": labels.Label(0, "of others")})
    labels.keep("f", {"a": labels.Label(0, "another")})
    assert labels.load("f") == ({"a": (0, "another"), "b": (1, "")}, "")
    (edits.folder() / "a").unlink()
    labels.keep("f", {})
    (edits.folder() / "a").touch()
    assert labels.load("f")[0] == {"b": (1, "")}
    assert labels.load("g")[0] == {"c": (0, "of others")}


async def test_the_file_of_an_edit_is_copied_and_nothing_is_overwritten(app: MemlocApp, tmp_path: Path) -> None:
    async with app.run_test(size=WIDE) as pilot:
        run = await unlearned(pilot)
        await in_list(pilot, "A")
        await pilot.press("c")
        inside = " ".join(shown(app, ".dialog").replace("│", "").split())
        assert Path(run.file).name in inside
        await pilot.press("enter")
        copied = tmp_path / f"memloc-edit-{Path(run.file).name}"
        await says(pilot, f"Written: {copied}")
        assert copied.read_bytes() == Path(run.file).read_bytes()
        copied.write_text("of somebody")
        await pilot.press("c", "enter")
        await says(pilot, f"{copied} is there already; nothing was written.")
        assert copied.read_text() == "of somebody"
        (tmp_path / "there").mkdir()
        await pilot.press("c", "ctrl+u", *"there", "enter")
        await says(pilot, f"Written: {tmp_path / 'there' / Path(run.file).name}")
        assert edits.active(tmp_path / "there" / Path(run.file).name).fingerprint == run.fingerprint
        await pilot.press("c", "ctrl+u", *"no/where", "enter")
        await says(pilot, "cannot be copied to 'no/where': No such file or directory.")
        app.explorer.unlearning.change(0, file="")
        app.explorer.draw()
        await pilot.press("c")
        await says(pilot, "This run has no edit.")


# ------------------------------------------------------------------------------------------------------ pure functions


def a_run(steps: int, number: int = 0, **more: Any) -> Run:
    request = Unlearn((tuple(range(P + C)),), (tuple(range(P + C)),), P, **more)
    return Run(number, request, result=make_result(request, steps))


def test_goals_are_judged_at_the_best_step_by_every_condition() -> None:
    run = a_run(2)
    changed = replace(
        run.result, em=np.array([[50], [9], [5]]), longest_run=np.array([[50], [20], [8]]),
        whole_em=np.array([[50, 8, 50, 50, 9], [50, 8, 49.8, 46, 9]]),
        whole_agreement=np.array([[1, 1, 1, 1, 1], [1, 0.997, 1, 1, 1]]),
        whole_nll=np.array([[1, 2, 1, 1, 1], [1, 2.02, 1, 1, 1]]),
    )  # fmt: skip
    run = replace(run, result=changed)
    assert verdict(checks(run, "break")) == ("met", True)
    assert verdict(checks(run, "forget"))[0] == "reached, but other text suffers"  # NLL 1 % higher
    worse = replace(run, result=replace(changed, best=1))
    assert verdict(checks(worse, "break"))[0] == "not met"


def test_a_dominated_run_is_told_from_the_others() -> None:
    results = [a_run(9, 0), a_run(4, 1), a_run(9, 2, seed=1)]
    spoiled = replace(results[2], result=replace(results[2].result, whole_em=results[2].result.whole_em - 1))
    found = points((results[0], results[1], spoiled), "EM · others' EM")
    assert [(p.run.number, p.best) for p in found] == [(0, True), (1, True), (2, False)]


def many_runs(session: RunSession, n: int) -> tuple[Run, ...]:
    """Newest first, each with figures of its own."""
    row = session._paragraphs.row
    made = []
    for number in range(n):
        request = Unlearn((row(0),), (row(7),), P, seed=number)
        result = make_result(request, 3, taken=16 * (number + 1) / n)
        made.append(Run(number, request, result=result, name=f"edit{number}"))
    return tuple(reversed(made))


def test_every_run_has_a_name_of_its_own(session: RunSession) -> None:
    names = [Run(number, Unlearn((), ())).letter for number in range(300)]
    assert names[:53] == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "AA"]
    assert len(set(names)) == 300
    assert max(map(len, names)) == 2


@pytest.mark.parametrize("size", [(100, 14), (50, 20)])
async def test_every_run_of_many_can_be_seen_in_the_comparison(session: RunSession, size: tuple[int, int]) -> None:
    made = many_runs(session, 60)
    axes = next(iter(runs.AXES))

    class Alone(App[None]):
        def compose(self) -> ComposeResult:
            yield Pareto()

    async with Alone().run_test(size=size) as pilot:
        pareto = pilot.app.query_one(Pareto)
        text = ""
        for run in made:  # as the cursor goes down the list of runs
            pareto.show(points(made, axes), axes, run.number)
            await pilot.pause()
            text = "\n".join(strip.text for strip in pilot.app.screen._compositor.render_strips())
            assert f"▸{run.letter:<2} {figure(run.result.em[3].mean())}" in text
        assert "0 below" in text
        picture = "\n".join(line[9 : size[0] // 2] for line in text.split("\n")[:9])
        assert "AA" in picture  # two letters stand beside each other


async def test_names_of_two_letters_have_room_in_the_list_and_at_the_curves(session: RunSession) -> None:
    app = unlearn_app(session)
    async with app.run_test(size=(140, 70)) as pilot:
        await opened(pilot)
        app.explorer.unlearning._reading = app.explorer.unlearning._read = True
        app.explorer.unlearning.all = {run.number: run for run in many_runs(session, 55)}
        app.explorer.unlearning._marked = {0, 54}
        await pilot.press("9")
        await until(pilot, lambda: "new run" in tab(app))
        rows = app.explorer.query_one(RunList)
        rows.move_to(1)
        await until(pilot, lambda: "◆AC" in shown(app, "#runs-list"))
        lane = app.explorer.query_one(Curves).lanes[0]
        assert lane.letters == ("AC", "A")

        def ends() -> set[str]:
            return {line.split()[-1] for line in shown(app, "#run-curves").split("\n") if line.strip()}

        await until(pilot, lambda: ends() >= {"AC", "A"})


def test_a_curve_is_drawn_from_its_first_to_its_last_value() -> None:
    drawn = heights(np.array([0.0, 10.0]), columns=5, span=1, low=0, high=10, rows=9)
    assert drawn == [0, 2, 4, 6, 8]
    half = heights(np.array([10.0, 0.0]), columns=5, span=2, low=0, high=10, rows=9)
    assert half[:3] == [8, 4, 0]
    assert half[3:] == [-1, -1]
    cells = plot([[0, 1, 2, 3]], width=2, height=1, fill=False)
    assert [char for char, _ in cells[0]] == ["⡠", "⠊"]


def test_the_form_reads_back_what_it_wrote_and_forgets_what_means_nothing() -> None:
    form = filled({"mask": "head", "place": "L1H2", "steps": "12", "goal": "nonsense", "surprise": "1"})
    chosen = options(form)
    assert (chosen.mask, chosen.place, chosen.steps, chosen.goal) == ("head", "L1H2", 12, runs.DEFAULTS["goal"])
    assert options(filled({})) == runs.UnlearnOptions()


def test_curves_and_runs_go_into_a_file() -> None:
    run = a_run(3)
    table = runs.curve_table(run)
    assert [row[:2] for row in table.rows] == [(0, 50.0), (1, 45.0), (2, 40.0), (3, 35.0)]
    assert table.columns[:2] == ("step", "changed EM")
    listed = runs.runs_table(runs.Runs((run, replace(run, result=None))))
    (row,) = [dict(zip(listed.columns, row, strict=True)) for row in listed.rows]
    assert (row["em_before"], row["em"], row["best"], row["mask"]) == (50.0, 35.0, 3, Unlearn.mask)
    assert row["others_em"] == pytest.approx(49.7)


@pytest.mark.parametrize(
    "text",
    ['"edits": [["a"]]', '"edits": [["a", "b", "c", 1]]', '"marked": [1]', '"unlearn": {"mask": 1}', '"edited": 1'],
)
def test_a_state_that_this_version_did_not_write_is_set_aside(text: str) -> None:
    path = state.state_file("m", "p")
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 1, ' + text + "}")
    assert state.load("m", "p")[0] == state.Resume()
    assert path.with_suffix(".broken").exists()


def test_what_a_file_says_of_a_run_reaches_the_screen_as_glyphs_only() -> None:
    assert a_run(1, mask="head", place="\x1b[2J").said == "unlearn head ␛[2J 0.1 %"


def test_an_answer_to_a_run_is_kept_whole(tmp_path: Path) -> None:
    run = a_run(3)
    answer = Answer(run.request, run.result, Provenance("fake", "f", "", "fp32", "cpu", "eager", 0.1))
    assert edits.active(edits.store(answer)).base == "f"
