"""Every view can be written to a file that says what the screen says, and that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake import PIECES, C, FakeSession, P, base_em, make_paragraphs
from helpers import notices, opened, until
from hypothesis import given, settings as budget, strategies as st
from scenes import (
    COMPONENTS,
    HEADS,
    LAYERS,
    Answers,
    ablations,
    attention,
    gradients,
    head_gradients,
    make_scene,
    patches,
    rarity,
)
from test_hostile import hostile

from memloc_core.errors import MemlocError
from memloc_core.requests import Perturb
from memloc_tui import tables
from memloc_tui.app import MemlocApp
from memloc_tui.screens.export import CHOICES
from memloc_tui.settings import Settings
from memloc_tui.view import Score
from memloc_tui.widgets.attention_panel import attention_request
from memloc_tui.widgets.panels import PANELS


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def written(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@given(st.lists(st.tuples(st.text(), st.text(), st.floats(), st.integers(-9, 9)), min_size=1, max_size=5))
@budget(max_examples=60, deadline=None)
def test_csv_keeps_all_text_and_no_cell_is_a_formula(rows: list[tuple[str, str, float, int]]) -> None:
    cells = tuple((tables.Data(a), b, x, n) for a, b, x, n in rows)
    text = tables.as_csv(tables.Table("t", "", ("data", "own", "x", "n"), cells))
    for (a, b, x, n), line in zip(rows, list(csv.reader(io.StringIO(text, newline="")))[1:], strict=True):
        assert json.loads(line[0]) == a
        assert line[1] == b or json.loads(line[1]) == b
        assert not line[0].startswith(tuple("=+-@\t\r\n"))
        assert not line[1].startswith(tuple("=+-@\t\r\n"))
        assert line[2] == "" if not np.isfinite(x) else float(line[2]) == pytest.approx(x, rel=1e-8)
        assert int(line[3]) == n


async def test_every_choice_writes_a_file_also_of_hostile_paragraphs(tmp_path: Path) -> None:
    session = FakeSession(30, hostile())
    app = MemlocApp(Settings(model="fake", paragraphs="hostile"), session)  # type: ignore[arg-type]
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        app.explorer.commit(((3, 7),))
        await pilot.press("w")
        await until(pilot, lambda: (view := app.explorer.study.here.sweep) and view.done)
        await until(pilot, lambda: app.explorer.study.own)
        order = list(app.explorer.list.order)
        view = app.explorer.study.view()
        for number, choice in enumerate(CHOICES):
            await pilot.press("e", *(["down"] * number), "enter")
            await pilot.pause(0.1)
            assert "Written" in notices(app)[-1], choice
    assert len(list(tmp_path.glob("memloc*"))) == len(CHOICES)
    for path in tmp_path.glob("memloc*"):
        assert path.name.isascii()
        assert "/" not in path.name
        assert "\x1b" not in path.read_text()
        assert "\u202e" not in path.read_text()
    (tokens,) = tmp_path.glob("*-tokens.csv")
    lines = written(tmp_path, tokens.name)
    assert [int(line["token_id"]) for line in lines] == list(view.tokens)
    assert [json.loads(line["token"]) for line in lines] == [PIECES[t].decode("utf-8", "replace") for t in view.tokens]
    assert view.score is not None
    assert sum(int(line["recited"]) for line in lines[P:]) == view.score.em
    own = [int(line["own_id"]) for line in lines[P:]]
    assert own == [*view.score.reference[: view.score.em], *view.own]
    assert [line["replaced_by_id"] for line in lines if line["replaced_by_id"]] == ["7"]
    rows = written(tmp_path, "memloc-paragraphs.csv")
    assert [int(row["row"]) for row in rows] == order
    assert [int(row["em"]) for row in rows] == [base_em(row) for row in order]
    assert json.loads(rows[0]["genre"]) == "[b]\x07"
    listed = json.loads((tmp_path / "memloc-paragraphs.json").read_text())
    assert [row["row"] for row in listed["rows"]] == order


async def test_a_question_without_an_answer_is_written_without_numbers(
    app: MemlocApp, session: FakeSession, tmp_path: Path
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        session.fail[Perturb] = MemlocError("The engine cannot.")
        app.explorer.commit(((3, 7),))
        await until(pilot, lambda: app.explorer.study.error)
        for key in "jt":
            await pilot.press("e", key)
            await pilot.pause(0.1)
    (path,) = tmp_path.glob("memloc*.json")
    document = json.loads(path.read_text())
    assert (document["replacements"], document["score"], document["own_continuation"]) == ([[3, 7]], None, [])
    (path,) = tmp_path.glob("*-tokens.csv")
    assert {line["recited"] for line in written(tmp_path, path.name)} == {""}


def test_tokens_say_what_they_are_matched_against() -> None:
    scene = make_scene()
    own = tuple(range(100, 100 + C))
    score = Score(own, own, C, C, 0.5, 1.0, 1.0, against="own")
    lines = read(tables.as_csv(tables.tokens(replace(scene.view, score=score), scene.catalogue)))
    assert {line["against"] for line in lines[:P]} == {""}
    for i, line in enumerate(lines[P:]):
        assert (line["against"], line["reference_id"], line["predicted_id"]) == ("own", str(own[i]), str(own[i]))
        assert json.loads(line["reference"]) == PIECES[own[i]].decode()
        assert line["token_id"] == str(scene.view.tokens[P + i])  # the true text


async def test_what_is_not_there_is_said_and_nothing_is_written(app: MemlocApp, tmp_path: Path) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await pilot.press("e", "c")
        assert "Perturb tab shows no numbers" in notices(app)[-1]
        await pilot.press("w")
        assert "no sweep" in notices(app)[-1]
        await pilot.press("t")
        await pilot.pause(0.1)
        name = f"memloc-{make_paragraphs().ids[app.explorer.current]}-tokens.csv"
    assert [p.name for p in tmp_path.glob("memloc*")] == [name]


async def test_a_folder_that_cannot_be_written_is_said(app: MemlocApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("memloc_tui.screens.export.write_whole", full)
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await pilot.press("e", "s")
        await pilot.pause(0.1)
        assert "No space left" in notices(app)[-1]


async def test_a_start_folder_that_is_gone_is_said(
    app: MemlocApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        gone.rmdir()
        await pilot.press("e", "s")
        await pilot.pause(0.1)
        assert notices(app)[-1] == "Not written: the folder that memloc-tui was started in is gone."
        assert app.is_running


def test_the_tables_of_the_tabs_hold_the_results_numbers() -> None:
    scene, known = make_scene(switches={}), Answers()
    known.results[scene.gradients()] = gradients(1)
    known.results[scene.samples.gradients("memorized")] = gradients(3)
    known.results[attention_request(scene)] = attention(P - 1)
    known.results[scene.samples.rarity(P - 1)] = rarity()
    known.results[scene.activation_gradients()] = head_gradients()
    known.results[scene.samples.ablation()] = ablations()

    def table(name: str) -> list[dict[str, str]]:
        found = tables.of_tab(name, None, scene, known)
        assert found is not None
        return read(tables.as_csv(found))

    lines = table("gradients")
    assert len(lines) == LAYERS * len(COMPONENTS)
    line = next(x for x in lines if (x["layer"], x["component"]) == ("2", "W_in"))
    k = COMPONENTS.index("W_in") + 1
    assert float(line["own_max"]) == 3 * k
    assert float(line["memorized_l2"]) == pytest.approx(2 * 3 * k * (1 + 2 + 3) / 3)  # paragraphs count 1, 2, 3
    assert line["non_memorized_max"] == line["contrast_ratio"] == ""
    lines = table("attention")
    assert len(lines) == P
    assert sum(float(x["L1H2"]) for x in lines) == pytest.approx(1)
    assert float(lines[5]["L1H2"]) / float(lines[0]["L1H2"]) == pytest.approx((1 + (35 + 1 + 4) % 13) / (1 + 5))
    lines = table("heads")
    assert [x["name"] for x in lines] == [f"L{i}H{j}" for i in range(LAYERS) for j in range(HEADS)]
    head = lines[1 * HEADS + 2]
    assert float(head["rarity_tau"]) == pytest.approx(-2 * 3 / 20)
    assert float(head["gradient_z"]) == pytest.approx(4 * 2 * 3 * P / 1000)
    assert (float(head["ablation_EM_before"]), float(head["ablation_EM_without"])) == (50, 50 - 10 - 2)
    assert tables.of_tab("patch", None, scene, known) is None  # no twin


def test_the_patch_table_holds_estimates_and_exact_effects() -> None:
    scene, known = make_scene(), Answers()
    scene = replace(scene, view=replace(scene.view, replacements=((12, 3),)))
    estimate, exact = patches(exact=False), patches(exact=True, factor=0.5)
    known.results[scene.attribution()] = estimate
    known.results[scene.patching(())] = exact
    found = tables.of_tab("patch", None, scene, known)
    assert found is not None
    lines = read(tables.as_csv(found))
    line = next(x for x in lines if (x["site"], x["layer"], x["place"]) == ("residual", "1", "20"))
    assert float(line["estimate_restore_nll"]) == pytest.approx(2 * 9 / 400, abs=1e-5)
    assert float(line["exact_restore_nll"]) == pytest.approx(9 / 400, abs=1e-5)
    assert float(line["exact_break_nll"]) == pytest.approx(9 / 800, abs=1e-5)


def test_every_tab_has_a_table() -> None:
    from memloc_tui.widgets.panels import panel_type

    for tab in PANELS:
        assert tab.name in tables.TABS or hasattr(panel_type(tab), "table"), tab.title
