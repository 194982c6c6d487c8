"""The Patch tab over scores that move by a known share of the gap between the two runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fake import C, P
from scenes import HEADS, LAYERS, Answers, Host, make_scene, patches

from memloc_core.requests import ActivationPatching, AttributionPatching
from memloc_tui.figures import figure
from memloc_tui.view import Score, Trial
from memloc_tui.widgets.heatmap import Heatmap
from memloc_tui.widgets.patch_panel import TOP, Patches, PatchPanel
from memloc_tui.widgets.row_list import RowList

FIRST = 12
PLACES = P + C - 1 - FIRST


def perturbed_scene(**more: Any) -> Any:
    scene = make_scene(**more)
    return replace(scene, view=replace(scene.view, replacements=((FIRST, 5),)))


def answered(scene: Any, **more: Any) -> Answers:
    known = Answers()
    known.results[scene.attribution()] = patches(exact=False, **more)
    return known


async def test_without_a_perturbation_it_asks_nothing_and_says_what_to_do() -> None:
    scene = make_scene()
    assert PatchPanel().wanted(scene, Answers()) == []
    app = Host(PatchPanel, scene, Answers())
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        assert "perturb a token of the prefix first" in app.text("#patch-now")


async def test_the_twin_is_the_newest_of_the_history_where_nothing_is_replaced_now() -> None:
    scene = make_scene()
    score = Score((), (), 50, 7, 0.5, 0.1, 2.0, against="own")
    trials = (Trial(((3, 9),), score), Trial(((4, 9),), score))
    scene = replace(scene, view=replace(scene.view, trials=trials))
    request = PatchPanel().wanted(scene, Answers())[0].request
    assert request == AttributionPatching(scene.view.tokens, ((3, 9),), P, "own")
    app = Host(PatchPanel, scene, answered(scene))
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        assert "(from the history)" in app.text("#patch-now")


async def test_the_map_is_of_layers_and_positions_and_names_its_cell() -> None:
    scene = perturbed_scene()
    app = Host(PatchPanel, scene, answered(scene))
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        assert app.panel.query_one("#patch-map").matrix.values.shape == (LAYERS, PLACES)
        await pilot.press("down", "right", "right")
        # Layer 1, third place: (1 + 1) (2 + 1) / 400 of the gap.
        token = scene.catalogue.pieces[scene.view.tokens[FIRST + 2]].decode()
        assert f'residual L1 @{FIRST + 2} "{token}" {figure(6 / 400)}' in app.text("#patch-cell")
        assert "estimated" in app.text("#patch-cell")
        await pilot.press("d")
        assert f"{figure(3 / 400)}" in app.text("#patch-cell")
        assert "1 = broken" in app.text("#patch-cell")
        await pilot.press("n")
        assert "logit" in app.text("#patch-cell")


async def test_it_says_which_token_changes_and_by_how_much() -> None:
    scene = perturbed_scene()
    app = Host(PatchPanel, scene, answered(scene))
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        token = scene.catalogue.pieces[scene.view.tokens[P + 4]].decode()
        assert f'The first token that changes: "{token}" at {P + 4}, logit 9.00 → 5.00' in app.text("#patch-what")
        assert "NLL 0.10 → 2.10" in app.text("#patch-now")
        app.known.results[scene.attribution()] = patches(exact=False, changes=False)
        app.show()
        await pilot.pause()
        assert "No token changes; the NLL rises most at 54" in app.text("#patch-what")


async def test_the_top_cells_are_verified_by_really_running_them() -> None:
    scene = perturbed_scene()
    known = answered(scene)
    app = Host(PatchPanel, scene, known)
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        estimate = known.results[scene.attribution()]
        top, whole = app.panel.wanted(scene, known)[1:]
        assert top.request == ActivationPatching(scene.view.tokens, ((FIRST, 5),), P, scene.twin[1], estimate.top(TOP))
        assert top.ask
        assert not whole.ask
        known.results[top.request] = patches(exact=True, factor=1.2)
        app.show()
        await pilot.pause()
        first = app.text("#patch-list").split("\n")[0].split()
        # The first of the cells whose effect is the largest to two digits.
        best = estimate.top(1)[0][2] - FIRST + 1
        assert first[:2] == [f"L{LAYERS - 1}", f"@{FIRST + best - 1}"]
        assert first[2:4] == [figure(LAYERS * best / 400), figure(1.2 * LAYERS * best / 400)]


async def test_m_runs_every_patch_and_the_map_then_shows_the_runs() -> None:
    scene = perturbed_scene(switches={"patch_site": "heads"})
    known = answered(scene)
    app = Host(PatchPanel, scene, known)
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        await pilot.press("m")
        whole = app.panel.wanted(scene, known)[2]
        assert whole.ask
        known.results[whole.request] = patches(exact=True, factor=10)
        app.show()
        await pilot.pause()
        await pilot.press("down", "right")
        assert f"L1H1 {figure(10 * 4 / 400)}" in app.text("#patch-cell")
        assert "really run" in app.text("#patch-cell")
        await pilot.press("enter")
        assert app.said[-1] == ("head", (1, 1))
        assert app.panel.query_one("#patch-map").matrix.values.shape == (LAYERS, HEADS)


async def test_it_waits_and_fails_in_words() -> None:
    scene = perturbed_scene()
    known = Answers()
    known.says[scene.attribution()] = "asking the engine …"
    app = Host(PatchPanel, scene, known)
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        assert "asking the engine …" in app.text("#patch-now")
        known.errors[scene.attribution()] = "Activation patching needs an adapter."
        app.show()
        await pilot.pause()
        assert "Activation patching needs an adapter." in app.text("#patch-now")


async def test_nothing_of_another_twin_stays_while_this_ones_patches_are_not_there() -> None:
    scene = perturbed_scene()
    known = answered(scene)
    app = Host(PatchPanel, scene, known)
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        assert "The first token that changes" in app.text("#patch-what")
        other = replace(scene, view=replace(scene.view, replacements=((FIRST, 6),)))
        known.says[other.attribution()] = "asking the engine …"
        app.show(view=other.view)
        await pilot.pause()
        assert "asking the engine …" in app.text("#patch-now")
        lines = ("#patch-what", "#patch-cell", "#patch-map", "#patch-head", "#patch-list")
        assert [app.text(line).strip() for line in lines] == [""] * len(lines)


async def test_enter_on_the_list_does_what_it_does_on_the_map() -> None:
    scene = perturbed_scene()
    app = Host(PatchPanel, scene, answered(scene))
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        for switch, site in ((), "residual"), (("v",), "heads"):
            await pilot.press(*switch)
            rows = app.panel.query_one(Patches)
            rows.focus()
            found = []
            for index, (kind, layer, place) in enumerate(rows.cells):
                assert kind == site
                rows.move_to(index)
                await pilot.press("enter")
                found += [("head", (layer, place))] if site == "heads" else [("jump", place)] if place < P else []
            assert found == app.said
            app.said.clear()
            assert site != "heads" or found


async def test_what_comes_late_from_the_map_or_the_list_does_nothing() -> None:
    scene = perturbed_scene()
    known = answered(scene)
    app = Host(PatchPanel, scene, known)
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        heatmap, rows = app.panel.query_one(Heatmap), app.panel.query_one(RowList)
        for kind in (Heatmap.Moved, Heatmap.Chosen):
            heatmap.post_message(kind(heatmap, LAYERS, PLACES))
        for shown in (RowList.Moved, RowList.Chosen):
            rows.post_message(shown(rows, rows.count))
        await pilot.pause()
        known.results.clear()  # another paragraph came on screen since
        heatmap.post_message(Heatmap.Chosen(heatmap, 0, 0))
        rows.post_message(RowList.Moved(rows, 0))
        await pilot.pause()
    assert app.return_code in (None, 0)
