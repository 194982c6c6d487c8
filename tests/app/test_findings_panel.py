"""The Findings tab: claims with verdicts, tested when the person says so, and the overview of the set."""

from __future__ import annotations

import asyncio
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeSession, base_em, make_paragraphs
from helpers import app_of, notices, opened, shown, until

from memloc_core.findings import CLAIMS, NAMES
from memloc_core.requests import Answer, ClaimTest, ComponentGradients, Finding, ParameterGradients, Provenance, Sweep
from memloc_tui.app import MemlocApp
from memloc_tui.catalogue import Catalogue
from memloc_tui.edits import ActiveEdit
from memloc_tui.findings import Pace, Step, clock, setting_of, test as claim_test
from memloc_tui.settings import Settings
from memloc_tui.widgets.findings_panel import scaled

ROWS = 90


class Session(FakeSession):
    """Rows of unlike words, so that each stands alone; gradients of 4 layers that a test can work out."""

    def __init__(self) -> None:
        tokens = np.random.default_rng(5).integers(0, 200, (ROWS, 100))
        super().__init__(ROWS, replace(make_paragraphs(ROWS), tokens=tokens, family=np.full(ROWS, -1)))

    def answer(self, request: Any) -> Any:
        if isinstance(request, ParameterGradients):
            size = 1 + self.rows[request.paragraphs[0]] % 2
            values = np.full((1, 2, 3), size, np.float32)
            values[:, 0] *= 3
            return ComponentGradients(("a", "b", "c"), values, values, values, np.ones(1, np.float32), 0)
        return super().answer(request)


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def app(session: Session) -> MemlocApp:
    given: Any = session
    return MemlocApp(Settings(model="fake", paragraphs="fake"), given)


def made(name: str, paragraph: str, **changes: Any) -> Finding:
    claim = CLAIMS[NAMES.index(name)]
    numbers: dict[str, Any] = {"verdict": "holds", "effect": 18.5, "interval": (13.1, 23.6), "n": 24} | changes
    words = (claim.paper, claim.paper_says, claim.unit, "It was measured, [b]you[/b] see.", paragraph, claim.view)
    order = (numbers["verdict"], numbers["effect"], numbers["interval"], numbers["n"], 0)
    return Finding(name, claim.sentence, *order, *words)


def keep(session: Session, finding: Finding) -> None:
    """As if it had been found in an earlier sitting."""
    from memloc_tui.catalogue import Catalogue

    catalogue = Catalogue(session._paragraphs, session._vocabulary)
    setting = setting_of(catalogue, session.make_model(), quick=True)
    question = CLAIMS[NAMES.index(finding.claim)].question(setting)
    session.kept[question] = Answer(question, finding, Provenance("fake", "f", "", "fp32", "cpu", "eager", 1.0))


async def test_a_board_that_was_made_before_opens_at_once_and_asks_nobody(app: MemlocApp, session: Session) -> None:
    keep(session, made("harder-to-corrupt", session._paragraphs.ids[61]))
    gone = {"verdict": "inconclusive", "effect": None, "interval": None, "n": 0}
    keep(session, made("rare-head", "", **gone))
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        asked = len(session.asked)
        await pilot.press("0")
        await until(pilot, lambda: "2 of 15" in shown(app, "#findings-now") and app.focused.id == "claims")
        lines = shown(app, "#claims").split("\n")
        row = next(line for line in lines if "harder-to-corrupt" in line)
        assert row.split()[:4] == ["✓", "holds", "harder-to-corrupt", "18.5"]
        assert "n 24" in row
        assert "◆ 20.9" in row
        await pilot.press("down", "down")
        said = shown(app, "#findings-said")
        assert "harder to corrupt by replacing" in said
        assert "It was measured, [b]you[/b] see." in said  # never parsed as markup
        assert "12.19 against 33.12" in said
        await pilot.press(*["down"] * 6)
        assert "too little data" in shown(app, "#claims")
        assert len(session.asked) == asked


async def test_enter_opens_the_view_on_the_paragraph_that_shows_it(app: MemlocApp, session: Session) -> None:
    keep(session, made("harder-to-corrupt", session._paragraphs.ids[61]))
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await pilot.press("0")
        await until(pilot, lambda: "1 of 15" in shown(app, "#findings-now") and app.focused.id == "claims")
        await pilot.press("down", "down", "enter")
        explorer = app.explorer
        await until(pilot, lambda: explorer.current == 61 and app.resume.tab == "perturb")
        assert app.resume.overlay == "EM drop"
        assert explorer.list.current == 61


async def test_a_paragraph_that_the_filter_keeps_out_takes_the_cursor_off_the_list(
    app: MemlocApp, session: Session
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await pilot.press("slash", *"em>=50", "enter")
        await until(pilot, lambda: len(app.explorer.list.order) == 30)
        await pilot.press("right_square_bracket")
        app.explorer.finds.open_row(25)
        await pilot.pause()
        assert app.explorer.current == 25
        assert app.explorer.list.current is None


async def test_t_tests_claim_by_claim_and_keeps_each(app: MemlocApp, session: Session) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot)
        await pilot.press("0")
        await until(pilot, lambda: "t tests them" in shown(app, "#findings-now") and app.focused.id == "claims")
        await pilot.press("t")
        finds = app.explorer.finds
        await until(pilot, lambda: not finds.running and len(finds.seen().found) == len(CLAIMS), 20)
        found = finds.seen().found
        drops = [r for r in session.asked if isinstance(r, Sweep)]
        assert {r.reference for r in drops} == {"true", "own"}
        # The fake's drops, by hand: memorized rows start from 50 against the true text, others from 50 of their own.
        by_hand = {
            side: np.mean([session.sweep(r).drops().mean() for r in drops if r.reference == side])
            for side in ("true", "own")
        }
        assert found["harder-to-corrupt"].effect == pytest.approx(by_hand["own"] - by_hand["true"], abs=1e-5)
        assert found["smaller-gradients"].effect is not None
        assert found["few-weights"].verdict == "inconclusive"
        assert "The fake knows no TryRun." in found["few-weights"].says
        board = shown(app, "#claims")
        assert "inconclusive" in board
        kept = [question.claim for question in session.kept if hasattr(question, "claim")]
        assert "harder-to-corrupt" in kept
        assert "few-weights" not in kept  # what could not be answered may be possible the next time


async def test_t_says_why_it_begins_nothing(app: MemlocApp, session: Session) -> None:
    for claim in CLAIMS:
        keep(session, made(claim.name, session._paragraphs.ids[61]))
    async with app.run_test(size=(140, 44)) as pilot:
        await opened(pilot)
        await pilot.press("0")
        await until(pilot, lambda: f"{len(CLAIMS)} of {len(CLAIMS)}" in shown(app, "#findings-now"))
        await pilot.press("t")
        await until(pilot, lambda: notices(app) == ["Every claim is tested: g takes more paragraphs."])
        session.hold[ParameterGradients] = asyncio.Event()
        await pilot.press("v", "t", "t")
        await until(pilot, lambda: notices(app)[1:] == ["One thing at a time: esc stops what is being measured."])
        session.hold.pop(ParameterGradients).set()
        await until(pilot, lambda: not app.explorer.finds.running)
        await pilot.press("t")
        told = "The gradients of every stratum are measured: g takes more paragraphs."
        await until(pilot, lambda: notices(app)[2:] == [told])


async def test_esc_stops_and_t_goes_on_where_it_stopped(app: MemlocApp, session: Session) -> None:
    session.hold[Sweep] = asyncio.Event()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot)
        await pilot.press("0")
        await until(pilot, lambda: "0 of 15" in shown(app, "#findings-now") and app.focused.id == "claims")
        await pilot.press("t")
        await until(pilot, lambda: "testing" in shown(app, "#claims"))
        assert "esc stops" in shown(app, "#findings-now")
        assert app.explorer.running  # quitting would ask
        app.explorer.draw()  # other panes' questions come and go
        assert "claims, " in shown(app, "#top")
        await pilot.press("escape")
        await until(pilot, lambda: not app.explorer.finds.running and session.cancelled)
        assert "claims" not in shown(app, "#top")
        assert "✓" in shown(app, "#claims") or "✗" in shown(app, "#claims")  # what was found stays
        session.hold[Sweep].set()
        await pilot.press("0", "t")
        await until(pilot, lambda: len(app.explorer.finds.seen().found) == len(CLAIMS), 20)


async def test_the_overview_against_a_naive_loop_and_enter_opens_a_paragraph(app: MemlocApp, session: Session) -> None:
    async with app.run_test(size=(140, 44)) as pilot:
        await opened(pilot)
        await pilot.press("0", "v")
        await until(pilot, lambda: "EM 50" in shown(app, "#overview-strata"))
        paragraphs = session._paragraphs
        for line in shown(app, "#overview-counts").split("\n"):
            cells = line.split()
            if cells and cells[0].isdigit():
                ems = [base_em(row) for row in range(ROWS) if paragraphs.repetitions[row] == int(cells[0])]
                assert int(cells[1]) == len(ems)
                assert float(cells[2]) == pytest.approx(sum(ems) / len(ems), rel=0.01)
                assert int(cells[-1]) == sum(em == 50 for em in ems)
        strata = shown(app, "#overview-strata").split("\n")
        assert strata[0].split()[:3] == ["EM", "50", "30"]
        assert [base_em(row) <= 10 for row in range(ROWS)].count(True) == int(strata[3].split()[2])
        assert "Not measured: t asks" in " ".join(shown(app, "#overview-shift").split())
        await pilot.press("t")
        await until(pilot, lambda: "0.75" in shown(app, "#overview-shift") and not app.explorer.finds.running, 10)
        before = app.explorer.current
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: app.explorer.current != before)
        low = app.explorer.finds.seen().counts[2].low
        assert paragraphs.repetitions[app.explorer.current] == low
        await pilot.press("v")
        await until(pilot, lambda: "all-or-nothing" in shown(app, "#findings-claims"))


async def test_the_overview_is_exported_where_it_is_on_show(app: MemlocApp, session: Session, tmp_path: Path) -> None:
    keep(session, made("harder-to-corrupt", session._paragraphs.ids[61]))

    async def exported(pilot: Any) -> list[dict[str, str]]:
        await pilot.press("e", "c")
        await until(pilot, lambda: list(tmp_path.glob("memloc*.csv")))
        (path,) = tmp_path.glob("memloc*.csv")
        await pilot.pause(0.1)
        lines = list(csv.DictReader(path.read_text().splitlines()))
        path.unlink()
        return lines

    async with app.run_test(size=(140, 44)) as pilot:
        await opened(pilot)
        await pilot.press("0", "v")
        await until(pilot, lambda: "EM 50" in shown(app, "#overview-strata"))
        assert {line["gradient_L0"] for line in await exported(pilot)} == {""}
        await pilot.press("t")
        await until(pilot, lambda: "0.75" in shown(app, "#overview-shift") and not app.explorer.finds.running, 10)
        lines = await exported(pilot)
        await pilot.press("v")
        await until(pilot, lambda: app.explorer.query_one("#findings-claims").display)
        assert [line["claim"] for line in await exported(pilot)] == ["harder-to-corrupt"]
    counts, strata = ([line for line in lines if line["by"] == by] for by in ("count", "EM"))
    for line in counts:
        low, high = int(line["low"]), int(line["high"])
        ems = [base_em(row) for row in range(ROWS) if low <= session._paragraphs.repetitions[row] <= high]
        assert (int(line["n"]), int(line["memorized"])) == (len(ems), ems.count(50))
        assert float(line["em"]) == pytest.approx(sum(ems) / len(ems))
    assert sum(int(line["n"]) for line in counts) == ROWS
    for line in strata:
        ems = [base_em(row) for row in range(ROWS) if int(line["low"]) <= base_em(row) <= int(line["high"])]
        assert int(line["n"]) == len(ems)
        assert float(line["nll"]) == pytest.approx(np.mean([2 - em / 25 for em in ems]), rel=1e-5)
        assert (float(line["gradient_L0"]), float(line["gradient_L1"])) == pytest.approx((0.75, 0.25))
        assert float(line["gradient_sum"]) > 0
        assert int(line["gradients_of"]) > 0


async def test_it_fits_a_narrow_terminal(app: MemlocApp, session: Session) -> None:
    keep(session, made("harder-to-corrupt", session._paragraphs.ids[61]))
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("0")
        await until(pilot, lambda: "1 of 15" in shown(app, "#findings-now") and app.focused.id == "claims")
        await pilot.press("down", "down")
        await until(pilot, lambda: "12.19 against" in shown(app, "#findings-said"))
        assert "0 Findings" in shown(app, "#bottom")
        assert "◆ 20.9" in shown(app, "#claims")
        await pilot.press("v")
        await until(pilot, lambda: "EM 50" in shown(app, "#overview-strata"))
        assert all(len(line) <= 80 for line in shown(app, "#bottom").split("\n"))


async def test_without_every_exact_match_it_waits_and_says_so(app: MemlocApp, session: Session) -> None:
    from memloc_core.requests import ExactMatch

    session.hold[ExactMatch] = asyncio.Event()
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: app_of(pilot).explorer.current >= 0)
        await pilot.press("0")
        await until(pilot, lambda: "0 of 90 known" in shown(app, "#findings-now"))
        await pilot.press("t")
        assert any("waits for exact matches" in notice for notice in notices(app))
        session.hold[ExactMatch].set()
        await until(pilot, lambda: "t tests them" in shown(app, "#findings-now"))


def test_the_picture_of_an_effect() -> None:
    finding = made("harder-to-corrupt", "")
    drawn = scaled(finding, 25)
    assert len(drawn) == 25
    assert drawn[0] == "│"  # zero, on a scale of 0 .. 23.6
    assert drawn.index("●") == round(18.5 / 23.6 * 24)
    assert drawn.index("◆") == round(20.93 / 23.6 * 24)
    assert drawn.index("├") == round(13.1 / 23.6 * 24)
    assert drawn[-1] == "┤"
    assert clock(67.4) == "1:07"


async def test_a_flip_to_edited_weights_and_back_stops_a_claim_wherever_the_person_looks(
    app: MemlocApp, session: Session
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        editing = app.explorer.editing
        editing.stack = [ActiveEdit("e" * 64, "file", "eeee")]
        session.set_edits(editing._on_paper())
        gate = session.hold[Sweep] = asyncio.Event()
        await pilot.press("0", "t")
        await until(pilot, lambda: any(isinstance(question, Sweep) for question in session.asked))
        await pilot.press("4", "E", "E")
        gate.set()
        await pilot.pause(0.3)
        assert not app.explorer.finds.running
        done = {question.claim for question in session.kept if isinstance(question, ClaimTest)}
        assert "harder-to-corrupt" not in done


async def test_every_question_of_a_claim_is_about_the_weights_at_its_start(session: Session) -> None:
    """Also where nobody stops it: the edits change while its first question is answered."""
    await session.open()
    rows = np.arange(ROWS)
    catalogue = Catalogue(session.paragraphs, session.vocabulary)
    catalogue.em = np.array([base_em(row) for row in rows])
    catalogue.nll = np.ones(ROWS, np.float32)
    claim = CLAIMS[NAMES.index("harder-to-corrupt")]
    setting = setting_of(catalogue, session.model, quick=True)

    def flip(step: Step) -> None:
        session.edits = () if session.edits else (ActiveEdit("e" * 64, "file", "eeee"),)

    finding = await claim_test(session, claim, setting, Pace(), flip)
    sweeps = [question for question in session.asked if isinstance(getattr(question, "request", question), Sweep)]
    assert len(sweeps) > 2
    assert all(isinstance(question, Sweep) for question in sweeps)
    assert session.kept[claim.question(setting)].result == finding
