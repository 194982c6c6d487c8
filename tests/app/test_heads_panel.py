"""The Heads tab: a grid under a chosen score, and the head under the cursor in words."""

from __future__ import annotations

from typing import Any

from fake import P
from scenes import HEADS, LAYERS, Answers, Host, ablations, gradients, head_gradients, make_scene, rare_tokens, rarity

from memloc_core.requests import HeadAblation, RareTokens
from memloc_tui.figures import figure
from memloc_tui.widgets.heads_panel import HeadsPanel


def answered(scene: Any) -> Answers:
    known = Answers()
    known.results[scene.samples.rarity(P - 1)] = rarity()
    known.results[scene.gradients()] = gradients(1)
    known.results[scene.activation_gradients()] = head_gradients()
    return known


def grid(app: Host) -> list[list[str]]:
    """The numbers of the map, by layer."""
    lines = app.text("#heads-map").split("\n")
    return [line.replace("▸", " ").split()[1:] for line in lines if line.strip().startswith("L")]


async def test_the_grid_shows_the_tau_of_every_head_and_marks_the_chosen_one() -> None:
    scene = make_scene()
    app = Host(HeadsPanel, scene, answered(scene))
    async with app.run_test(size=(100, 18)) as pilot:
        await pilot.pause()
        taus = [[figure(-(la + 1) * (h + 1) / 20) for h in range(HEADS)] for la in range(LAYERS)]
        assert grid(app) == taus
        assert "▸" in app.text("#heads-map").split("\n")[1 + 1]  # the row of layer 1, under the columns' names
        assert "30 memorized" in app.text("#heads-now")
        assert "rarity" in app.text("#heads-now")
        said = app.text("#heads-said")
        assert "L1H2  chosen" in said
        assert f"rarity τ {figure(-0.3)} [{figure(-0.4)}, {figure(-0.2)}]" in said
        assert "null 0 [−0.20, 0.20]" in said
        assert "p 0.0040, p 0.030 over all heads" in said


async def test_enter_chooses_the_head_under_the_cursor() -> None:
    scene = make_scene()
    app = Host(HeadsPanel, scene, answered(scene))
    async with app.run_test(size=(100, 18)) as pilot:
        await pilot.pause()
        await pilot.press("down", "right", "enter")
        assert app.said == [("head", (2, 3))]
        assert "L2H3  chosen" in app.text("#heads-said")


async def test_scores_of_gradients_and_entropy_follow_the_key() -> None:
    scene = make_scene()
    app = Host(HeadsPanel, scene, answered(scene))
    async with app.run_test(size=(100, 18)) as pilot:
        await pilot.pause()
        await pilot.press("g")
        assert grid(app)[1][2] == figure(1 + 0.3)
        await pilot.press("g")  # z: 4 (l + 1) (h + 1) (t + 1) / 1000, the largest over the prefix
        assert grid(app)[2][1] == figure(4 * 3 * 2 * P / 1000)
        await pilot.press("g")  # W_O H_h is component 3 * heads + h of layer l
        assert grid(app)[2][1] == figure(3 * (3 * HEADS + 1 + 1))


async def test_ablation_is_offered_with_its_cost_and_runs_only_on_its_key() -> None:
    scene = make_scene()
    known = answered(scene)
    app = Host(HeadsPanel, scene, known)
    async with app.run_test(size=(100, 18)) as pilot:
        await pilot.pause()
        long = [w for w in app.panel.wanted(app.scene, known) if isinstance(w.request, HeadAblation | RareTokens)]
        assert [w.ask for w in long] == [False, False]
        await pilot.press("g", "g", "g", "g")
        assert f"m runs {LAYERS * HEADS} heads × 48 rows" in " ".join(app.text("#heads-map").split())
        await pilot.press("m")
        assert ("changed",) in app.said
        long = [w for w in app.panel.wanted(app.scene, known) if isinstance(w.request, HeadAblation | RareTokens)]
        assert [w.ask for w in long] == [True, True]
        ablation = scene.samples.ablation()
        known.results[ablation] = ablations()
        known.results[scene.samples.rare_tokens()] = rare_tokens()
        app.show()
        await pilot.pause()
        lost = [[figure(-float(10 * la + h)) for h in range(HEADS)] for la in range(LAYERS)]
        assert grid(app) == lost
        said = app.text("#heads-said")
        assert "memorized EM 50.0 → 38.0" in said  # without L1H2
        assert "own EM 50.0 → 28.0" in said
        assert "general NLL 2.00 → 2.12" in said
        assert "EM −12.4; common: −2.2; 10.2 more [7.1, 13.8], n 30" in app.text("#heads-rare")
        await pilot.press("g", "g")
        assert grid(app)[1][2] == figure(0.12)


async def test_an_unfinished_ablation_shows_what_it_has() -> None:
    scene = make_scene(switches={"head_score": "ablation EM"})
    known = answered(scene)
    partial = ablations()
    partial.memorized_em[1:] = -1
    known.partial[scene.samples.ablation()] = partial
    app = Host(HeadsPanel, scene, known)
    async with app.run_test(size=(100, 18)) as pilot:
        await pilot.pause()
        assert grid(app)[0] == ["0", *(figure(-float(h)) for h in range(1, HEADS))]
        assert grid(app)[1] == ["·"] * HEADS


async def test_a_model_without_an_adapter_is_told_so() -> None:
    scene = make_scene(switches={"head_score": "gradient z"})
    known = Answers()
    known.errors[scene.activation_gradients()] = "Activation gradients need an adapter for Foo."
    app = Host(HeadsPanel, scene, known)
    async with app.run_test(size=(100, 18)) as pilot:
        await pilot.pause()
        assert "Activation gradients need an adapter for Foo." in app.text("#heads-map")
