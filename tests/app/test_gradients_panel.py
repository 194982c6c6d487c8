"""The Gradients tab over answers whose numbers are known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from scenes import COMPONENTS, LAYERS, Answers, Host, K, gradients, head_gradients, make_scene

from memloc_core.requests import ActivationGradients, ContrastGradients, GradientContrast, ParameterGradients
from memloc_tui.figures import figure
from memloc_tui.samples import GRADIENTS, OF
from memloc_tui.widgets.gradients_panel import GradientsPanel, TopCells
from memloc_tui.widgets.heatmap import Heatmap

SUM = K * (K + 1) // 2  # of 1..K


def answered(scene: Any, factor: float = 2.5) -> Answers:
    known = Answers()
    known.results[scene.gradients()] = gradients(1, factor)
    known.results[scene.samples.gradients("memorized")] = gradients(30)
    known.results[scene.samples.gradients("non-memorized")] = gradients(30, 2.0)
    return known


async def test_it_asks_for_the_paragraph_first_and_then_for_both_samples_by_id() -> None:
    scene = make_scene()
    wants = GradientsPanel().wanted(scene, Answers())
    assert [w.request for w in wants] == [scene.gradients(), *(scene.samples.gradients(of) for of in OF)]
    assert all(w.ask for w in wants)
    memorized = scene.samples.gradients("memorized")
    assert isinstance(memorized, ParameterGradients)
    paragraphs = scene.catalogue.paragraphs
    rows = sorted((r for r in range(90) if r % 30 < 10), key=lambda r: paragraphs.ids[r])[:GRADIENTS]
    assert memorized.paragraphs == tuple(paragraphs.row(r) for r in rows)


async def test_bars_of_each_layer_stand_beside_both_averages_on_one_scale() -> None:
    scene = make_scene()
    app = Host(GradientsPanel, scene, answered(scene))
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        lines = app.text("#gradient-bars").split("\n")
        for layer in range(LAYERS):
            own = 2.5 * (layer + 1) * SUM
            mean = np.mean(np.arange(1, 31)) * (layer + 1) * SUM
            for value in (own, mean, 2 * mean):
                assert figure(float(np.float32(value))) in lines[layer]
        assert lines[LAYERS - 1].count("▒") > 0  # the non-memorized are hatched
        assert "▒" not in lines[LAYERS - 1].split("▒")[0]
        assert "summed over a layer's 18 components" in app.text()
        assert "max |dNLL/dw|" in app.text()


async def test_the_paragraphs_place_in_both_samples_is_said_with_n() -> None:
    scene = make_scene()
    app = Host(GradientsPanel, scene, answered(scene))
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        # Sums go with 2.5 here, 1..30 among the memorized, 2..60 in twos among the others.
        assert "above 7 % of 30 memorized" in app.text("#gradient-place")  # 2 of 30
        assert ", 3 % of 30 non-memorized" in app.text("#gradient-place")  # 1 of 30
        assert f"Σ {figure(2.5 * SUM * 6)}" in app.text("#gradient-place")


async def test_one_key_shows_shares_and_another_the_score() -> None:
    scene = make_scene()
    app = Host(GradientsPanel, scene, answered(scene))
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        await pilot.press("g")
        assert "mean |dNLL/dw|" in app.text("#gradient-now")
        assert figure(0.25 * SUM) in app.text("#gradient-bars").split("\n")[0]
        await pilot.press("v")
        lines = app.text("#gradient-bars").split("\n")
        for layer, share in enumerate((1 / 6, 2 / 6, 3 / 6)):
            assert lines[layer].count(f"{100 * share:.0f} %") == 3
        assert "share of the sum" in app.text("#gradient-now")


async def test_the_map_names_the_cell_under_the_cursor_and_lists_the_largest() -> None:
    scene = make_scene()
    app = Host(GradientsPanel, scene, answered(scene))
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        assert f"L0 W_Q H0 {figure(2.5)}" in app.text("#gradient-map-head")
        await pilot.press("down", "end")
        assert f"L1 W_out {figure(2.5 * 2 * K)}" in app.text("#gradient-map-head")
        top = app.text("#gradient-top").split("\n")
        assert top[0].startswith(f" L2 {COMPONENTS[-1]}")
        assert figure(2.5 * 3 * K) in top[0]
        assert f"of {LAYERS * K} cells" in app.text("#gradient-top-head")
        assert app.panel.query_one("#gradient-map").region.height >= LAYERS + 2


async def test_enter_on_a_heads_cell_chooses_that_head() -> None:
    scene = make_scene()
    app = Host(GradientsPanel, scene, answered(scene))
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        await pilot.press("down", "down", "right", "enter")
        assert app.said == [("head", (2, 1))]
        await pilot.press("end", "enter")  # W_out belongs to no head
        assert app.said == [("head", (2, 1))]
        top = app.panel.query_one(TopCells)
        top.focus()
        at = top.cells.index((1, COMPONENTS.index("W_O H3")))
        await pilot.press("down", *["down"] * at, "enter")
        assert app.said[1:] == [("head", (1, 3))]
        await pilot.press("home", "enter")
        assert app.said[1:] == [("head", (1, 3))]


async def test_contrast_is_asked_for_by_its_key_and_says_both_samples() -> None:
    scene = make_scene()
    known = answered(scene)
    app = Host(GradientsPanel, scene, known)
    async with app.run_test(size=(100, 18)) as pilot:
        await pilot.pause()
        await pilot.press("c", "c", "c")
        wanted = [w.request for w in app.panel.wanted(app.scene, known)]
        (contrast,) = [r for r in wanted if isinstance(r, ContrastGradients)]
        values = np.arange(LAYERS * K, dtype=np.float32).reshape(LAYERS, K)
        known.results[contrast] = GradientContrast(COMPONENTS, values, values, values - 7, values / 2, 0.1, 0)
        app.show()
        await pilot.pause()
        assert "30 memorized against 30 non-memorized" in app.text("#gradient-map-head")
        assert f"L0 W_Q H0 {figure(-7.0)}" in app.text("#gradient-map-head")
        await pilot.press("c")
        assert "|g non| + floor" in app.text("#gradient-map-head")
        await pilot.press("end")
        assert f"L0 W_out {figure((K - 1) / 2)}" in app.text("#gradient-map-head")


async def test_activation_gradients_are_a_map_of_heads_and_tokens_by_site() -> None:
    scene = make_scene()
    known = answered(scene)
    known.results[scene.activation_gradients()] = head_gradients()
    app = Host(GradientsPanel, scene, known)
    async with app.run_test(size=(100, 24)) as pilot:
        await pilot.pause()
        await pilot.press("c", "c", "c", "c", "c")
        assert isinstance(app.panel.wanted(app.scene, known)[1].request, ActivationGradients)
        await pilot.press("right", "right", "down")
        assert f'L0H1 @2 " w107" {figure(4 * 1 * 2 * 3 / 1000)}' in app.text("#gradient-map-head")  # z, the largest
        assert ("jump", 2) in app.said
        await pilot.press("z")
        assert f"{figure(1 * 1 * 2 * 3 / 1000)}" in app.text("#gradient-map-head")  # q
        await pilot.press("enter")
        assert app.said[-1] == ("head", (0, 1))


async def test_it_waits_fails_and_is_stale_in_words() -> None:
    scene = make_scene()
    known = Answers()
    app = Host(GradientsPanel, scene, known)
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        known.says[scene.gradients()] = "asking the engine …"
        known.says[scene.samples.gradients("memorized")] = "12 of 30 paragraphs · esc stops"
        app.show()
        await pilot.pause()
        assert "asking the engine …" in app.text("#gradient-now")
        assert "memorized: 12 of 30 paragraphs · esc stops" in app.text("#gradient-place")
        known.results |= answered(scene).results
        app.show()
        await pilot.pause()
        assert not app.panel.has_class("-stale")
        other = make_scene(row=4)
        known.says[other.gradients()] = "asking the engine …"
        app.show(view=other.view)
        assert app.panel.has_class("-stale")
        await pilot.pause()
        await pilot.press("down", "right")  # no cell of the former paragraph is named as one of this
        assert app.panel.query_one(Heatmap).matrix is None
        assert app.text("#gradient-map-head").strip() == "max |dNLL/dw| · this paragraph"
        assert app.text("#gradient-top").strip() == app.text("#gradient-top-head").strip() == ""
        assert "asking the engine …" in app.text("#gradient-map")
        known.errors[other.gradients()] = "The engine ended."
        app.show()
        await pilot.pause()
        assert "The engine ended." in app.text("#gradient-now")


async def test_without_every_exact_match_there_is_no_sample_and_it_says_so() -> None:
    scene = make_scene(scored=False)
    known = Answers()
    known.results[scene.gradients()] = gradients(1)
    assert [w.request for w in GradientsPanel().wanted(scene, known)] == [scene.gradients()]
    app = Host(GradientsPanel, scene, known)
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        assert "the averages: waits for the exact matches of the list: 0 of 90 known" in app.text("#gradient-place")
