"""The Attention tab over rows whose weights are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from fake import C, P
from scenes import Answers, Host, attention, make_scene, rarity

from memloc_core.requests import Ablated, Attention, AttentionPattern, HeadPattern
from memloc_tui.figures import figure
from memloc_tui.widgets.attention_panel import AttentionPanel


def weights_of(layer: int, head: int, query: int) -> list[float]:
    raw = [1 + (7 * t + layer + 2 * head) % 13 for t in range(query + 1)]
    return [x / sum(raw) for x in raw]


def answered(scene: Any, strongest: tuple[int, int] | None = (1, 1)) -> Answers:
    known = Answers()
    for query in (P - 1, P):
        known.results[scene.attention(query)] = attention(query)
        known.results[scene.samples.rarity(query)] = rarity(strongest)
    return known


async def test_the_list_is_sorted_by_weight_with_position_rank_count_and_token() -> None:
    scene = make_scene()
    app = Host(AttentionPanel, scene, answered(scene))
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        weights = weights_of(1, 2, P - 1)
        order = sorted(range(P), key=lambda t: (-weights[t], t))
        lines = app.text("#attention-list").split("\n")
        for line, position in zip(lines, order, strict=False):
            assert line.split()[0] == f"{weights[position]:.3f}"
            token = scene.view.tokens[position]
            piece = scene.catalogue.pieces[token].decode()
            assert line.split()[2:5] == [str(position), str(P - position), f"{10 * (P - position):,}"]
            assert f'"{piece}"' in line
        entropy = -sum(w * math.log(w) for w in weights)
        assert f"entropy {figure(entropy)} of at most {figure(math.log(P))} nats" in app.text("#attention-now")
        assert "L1H2 from position 49" in app.text("#attention-now")


async def test_t_looks_from_the_papers_position() -> None:
    scene = make_scene()
    app = Host(AttentionPanel, scene, answered(scene))
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        assert Attention(scene.view.tokens, P, P - 1) in [w.request for w in app.panel.wanted(app.scene, app.known)]
        await pilot.press("t")
        assert Attention(scene.view.tokens, P, P) in [w.request for w in app.panel.wanted(app.scene, app.known)]
        assert "L1H2 from position 50" in app.text("#attention-now")
        assert "the paper's choice" in app.text("#attention-now")


async def test_another_head_that_stands_out_is_said_and_taken_by_a_key() -> None:
    scene = make_scene()
    app = Host(AttentionPanel, scene, answered(scene))
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        # tau is -(l + 1) (h + 1) / 20
        said = (
            f"h takes L1H1, standing out as drawn to rare tokens: τ {figure(-0.2)}, here {figure(-0.3)} (30 memorized)"
        )
        assert said in app.text("#attention-offer")
        await pilot.press("h")
        assert app.said == [("head", (1, 1))]
        assert "Most drawn to rare tokens: τ" in app.text("#attention-offer")
        weights = weights_of(1, 1, P - 1)
        assert app.text("#attention-list").split()[0] == f"{max(weights):.3f}"


async def test_no_head_stands_out_is_said() -> None:
    scene = make_scene()
    app = Host(AttentionPanel, scene, answered(scene, None))
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        assert "No head is drawn to rare tokens beyond chance" in app.text("#attention-offer")
        await pilot.press("h")
        assert app.said == []


async def test_a_row_of_the_list_leads_to_its_token() -> None:
    scene = make_scene()
    app = Host(AttentionPanel, scene, answered(scene))
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        weights = weights_of(1, 2, P - 1)
        order = sorted(range(P), key=lambda t: (-weights[t], t))
        await pilot.press("down", "down")
        assert app.said == [("jump", order[1]), ("jump", order[2])]


async def test_v_shows_the_whole_pattern_and_names_the_cell() -> None:
    scene = make_scene()
    known = answered(scene)
    app = Host(AttentionPanel, scene, known)
    async with app.run_test(size=(120, 18)) as pilot:
        await pilot.pause()
        assert not any(isinstance(w.request, AttentionPattern) for w in app.panel.wanted(app.scene, known))
        await pilot.press("v")
        (request,) = [w.request for w in app.panel.wanted(app.scene, known) if isinstance(w.request, AttentionPattern)]
        assert (request.layer, request.head) == (1, 2)
        values = np.tril(np.ones((P + C, P + C), np.float32))
        known.results[request] = HeadPattern(values / values.sum(1, keepdims=True), 0)
        app.show()
        await pilot.pause()
        heatmap = app.panel.query_one("#attention-map")
        heatmap.focus()
        heatmap.move_to(49, 3)
        await pilot.pause()
        await pilot.press("up", "left")
        assert '48 " w29" → 2 " w107" 0.020' in app.text("#attention-cell")


async def test_ablated_heads_and_replacements_are_part_of_the_question_and_of_the_title() -> None:
    scene = make_scene(ablated=((0, 3),))
    request = AttentionPanel().wanted(scene, Answers())[0].request
    assert request == Ablated(Attention(scene.view.tokens, P, P - 1), ((0, 3),))
    app = Host(AttentionPanel, scene, answered(scene))
    async with app.run_test(size=(110, 18)) as pilot:
        await pilot.pause()
        assert "without L0H3" in app.text("#attention-now")


async def test_it_waits_and_fails_in_words() -> None:
    scene = make_scene()
    known = Answers()
    known.says[scene.attention(P - 1)] = "asking the engine …"
    app = Host(AttentionPanel, scene, known)
    async with app.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        assert "asking the engine …" in app.text("#attention-now")
        known.errors[scene.attention(P - 1)] = "This model has no attention to read."
        app.show()
        await pilot.pause()
        assert "This model has no attention to read." in app.text("#attention-now")
