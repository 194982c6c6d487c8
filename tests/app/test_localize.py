"""The panels of 'where it is stored' in the explorer: what is asked when, ablation, overlays, late answers, resume."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import DOG, C, FakeSession, P, base_em, make_paragraphs
from helpers import notices, opened, screen_lines, shown, until
from scenes import HEADS, LAYERS, ablations, attention, gradients, head_gradients, patches, rare_tokens, rarity
from textual.binding import Binding

from memloc_core.errors import MemlocError
from memloc_core.requests import (
    Ablated,
    ActivationGradients,
    ActivationPatching,
    Attention,
    AttentionPattern,
    AttributionPatching,
    ExactMatch,
    HeadAblation,
    HeadPattern,
    ParameterGradients,
    Perturb,
    Progress,
    RareTokens,
    Rarity,
    Request,
)
from memloc_tui.app import MemlocApp
from memloc_tui.edits import ActiveEdit
from memloc_tui.figures import figure, short
from memloc_tui.settings import Settings
from memloc_tui.widgets.local_panel import LocalPanel
from memloc_tui.widgets.panels import PANELS, panel_type

WIDE, NARROW = (120, 36), (80, 24)


class LocalSession(FakeSession):
    """A fake session that also answers what the panels ask. Ablation lowers every exact match by 3 per head."""

    def make_model(self, identity: str = "one") -> Any:
        from dataclasses import replace

        return replace(super().make_model(identity), layers=LAYERS, heads=HEADS)

    async def ask(self, request: Request, on_progress: Any = None) -> Any:
        if on_progress is not None and isinstance(request, HeadAblation):
            on_progress(Progress(3, 12, "heads x rows"))
        return await super().ask(request, on_progress)

    def answer(self, request: Request) -> Any:
        if isinstance(request, Ablated):
            result = self.answer(request.request)
            if isinstance(request.request, Perturb):
                from dataclasses import replace

                lost = 3 * len(request.heads)
                return replace(result, em_before=result.em_before - lost, em_after=result.em_after - lost)
            return result
        if isinstance(request, ParameterGradients):
            return gradients(len(request.paragraphs))
        if isinstance(request, ActivationGradients):
            return head_gradients()
        if isinstance(request, Attention):
            return attention(request.query)
        if isinstance(request, AttentionPattern):
            values = np.tril(np.ones((P + C, P + C), np.float32))
            return HeadPattern(values / values.sum(1, keepdims=True), 0)
        if isinstance(request, Rarity):
            return rarity()
        if isinstance(request, HeadAblation):
            return ablations(len(request.memorized))
        if isinstance(request, RareTokens):
            return rare_tokens()
        if isinstance(request, AttributionPatching | ActivationPatching):
            return patches(isinstance(request, ActivationPatching), first=request.replacements[0][0])
        return super().answer(request)

    def asked_of(self, *kinds: type[Request]) -> list[Request]:
        return [request for request in self.asked if isinstance(request, kinds)]


@pytest.fixture
def session() -> LocalSession:
    return LocalSession()


def weights_of(layer: int, head: int) -> list[float]:
    raw = [1 + (7 * t + layer + 2 * head) % 13 for t in range(P)]
    return [x / sum(raw) for x in raw]


async def test_a_tab_asks_only_once_it_is_opened_and_for_the_paragraph_first(
    app: MemlocApp, session: LocalSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        assert session.asked_of(ParameterGradients, Rarity, Attention) == []
        await pilot.press("5")
        await until(pilot, lambda: len(session.asked_of(ParameterGradients)) == 3)
        row = make_paragraphs().row(app.explorer.current)
        assert session.asked_of(ParameterGradients)[0] == ParameterGradients((row,), P)
        await until(pilot, lambda: "10 memorized" in shown(app, "#bottom"))
        await pilot.press("6")
        await until(pilot, lambda: session.asked_of(Attention))
        assert session.asked_of(HeadAblation, RareTokens, ActivationGradients) == []


async def test_averages_come_as_soon_as_the_list_knows_every_exact_match(app: MemlocApp, session: LocalSession) -> None:
    session.hold[ExactMatch] = asyncio.Event()
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.explorer.study and app.explorer.study.current >= 0)
        await pilot.press("5")
        await until(pilot, lambda: "waits for the exact matches of the list: 0 of 30" in shown(app, "#bottom"))
        session.hold[ExactMatch].set()
        await until(pilot, lambda: "10 memorized" in shown(app, "#bottom"))


async def test_every_tab_opens_by_its_key_and_answers_are_asked_once(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        for key, words in (
            ("5", "summed over a layer"), ("6", "L1H2 from position"), ("7", "τ-b of attention"), ("8", "No twin yet"),
        ):  # fmt: skip
            await pilot.press(key)
            await until(pilot, lambda words=words: words in shown(app, "#bottom"))
        count = len(session.asked)
        await pilot.press("5", "6", "7", "8")
        await pilot.pause(0.2)
        assert len(session.asked) == count


async def test_an_answer_to_an_earlier_paragraph_is_never_shown(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        first = app.explorer.current
        session.hold[Attention] = asyncio.Event()
        session.deaf.add(Attention)  # it answers even after it was cancelled
        await pilot.press("6")
        await until(pilot, lambda: session.asked_of(Attention))
        await pilot.press("right_square_bracket")
        second = app.explorer.current
        assert first != second
        session.hold[Attention].set()
        await until(pilot, lambda: "entropy" in shown(app, "#bottom"))
        paragraphs = make_paragraphs()
        best = max(range(P), key=lambda t: (weights_of(1, 2)[t], -t))
        token = paragraphs.row(second)[best]
        assert f'w{token}"' in shown(app, "#attention-list").split("\n")[0]


async def test_esc_stops_what_is_asked_and_r_asks_again(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        session.hold[ParameterGradients] = asyncio.Event()
        await pilot.press("5")
        await until(pilot, lambda: "asking the engine" in shown(app, "#bottom"))
        await pilot.press("escape")
        await until(pilot, lambda: "stopped · r asks again" in shown(app, "#bottom"))
        await until(pilot, lambda: len(session.cancelled) == 3)
        session.hold.clear()
        await pilot.press("r")
        await until(pilot, lambda: "summed over a layer" in shown(app, "#bottom"))


async def test_progress_stands_in_the_panel_and_in_the_top_line(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        session.hold[HeadAblation] = asyncio.Event()
        await pilot.press("7", "g", "g", "g", "g", "m")
        await until(pilot, lambda: "3 of 12 heads x rows · esc stops" in " ".join(shown(app, "#heads-map").split()))
        assert "head ablation 25%" in shown(app, "#top")
        await pilot.press("q")  # a job of the person's: quitting asks
        await until(pilot, lambda: "Quit and stop it?" in "\n".join(screen_lines(app)))
        await pilot.press("escape")
        session.hold[HeadAblation].set()
        await until(pilot, lambda: "memorized EM 50.0 → " in shown(app, "#bottom"))
        assert "head ablation" not in shown(app, "#top")


async def test_an_error_is_said_in_the_panel_and_does_not_hide_the_rest(app: MemlocApp, session: LocalSession) -> None:
    session.fail[ActivationGradients] = MemlocError("This architecture has no adapter.")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("7", "g", "g")
        await until(pilot, lambda: "has no adapter" in " ".join(shown(app, "#heads-map").split()))
        await pilot.press("g", "g", "g", "g", "g")  # back to rarity
        await until(pilot, lambda: short(-0.3) in shown(app, "#heads-map") or figure(-0.3) in shown(app, "#heads-map"))


async def test_ablating_the_chosen_head_changes_every_question_about_the_paragraph_and_back(
    app: MemlocApp, session: LocalSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = app.explorer.current
        await pilot.press("6")
        await until(pilot, lambda: "entropy" in shown(app, "#bottom"))
        before = len(session.asked)
        await pilot.press("a")
        await until(pilot, lambda: f"EM {base_em(row)} → {base_em(row) - 3}" in shown(app, "#continuation"))
        assert "ablated: L1H2" in shown(app, "#top")
        assert "without L1H2" in shown(app, "#continuation")
        await until(pilot, lambda: "without L1H2" in shown(app, "#attention-now"))
        new = [r for r in session.asked[before:] if not isinstance(r, ExactMatch | Rarity)]
        assert new
        assert all(isinstance(r, Ablated) and r.heads == ((1, 2),) for r in new)
        before = len(session.asked)
        await pilot.press("a")
        await until(pilot, lambda: "edits: none" in shown(app, "#top"))
        await until(pilot, lambda: f"EM {base_em(row)} of 50" in shown(app, "#continuation"))
        assert session.asked[before:] == []  # all of it is known


async def test_several_heads_are_taken_out_and_put_back(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("6")
        await until(pilot, lambda: "L1H2" in shown(app, "#attention-now"))
        await pilot.press("a", "right", "a")
        await until(pilot, lambda: "ablated: L1H2, L1H3" in shown(app, "#top"))
        await until(
            pilot, lambda: any(isinstance(r, Ablated) and r.heads == ((1, 2), (1, 3)) for r in session.asked), 5
        )
        await pilot.press("right", "right")
        assert app.resume.head == [2, 1]
        await pilot.press(*["left"] * 3, "a")
        assert app.resume.head == [1, 2]
        await until(pilot, lambda: "ablated: L1H3" in shown(app, "#top"))
        await pilot.press("A")
        await until(pilot, lambda: "edits: none" in shown(app, "#top"))
        await pilot.press(*["left"] * 7)
        assert app.resume.head == [LAYERS - 1, HEADS - 1]


async def test_overlays_of_attention_and_gradient_show_the_heads_numbers_under_the_tokens(
    app: MemlocApp, session: LocalSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("o", "o", "o")
        await until(pilot, lambda: "overlay: attention L1H2 from position 49" in shown(app, "#prefix"))
        weights = weights_of(1, 2)
        await until(pilot, lambda: app.explorer.prefix.columns[0][1].text.strip() == short(weights[0]))
        assert [c[1].text.strip() for c in app.explorer.prefix.columns] == [short(w) for w in weights]
        await pilot.press("2", "right")
        assert f"attention {figure(weights[1])}" in shown(app, "#prefix")
        await pilot.press("o")
        await until(pilot, lambda: "overlay: gradient L1H2" in shown(app, "#prefix"))
        values = [4 * 2 * 3 * (t + 1) / 1000 for t in range(P)]  # z of L1H2; the largest is 1.2
        await until(pilot, lambda: app.explorer.prefix.columns[0][1].text.strip() == short(values[0]))
        assert [c[1].text.strip() for c in app.explorer.prefix.columns] == [short(v) for v in values]


async def test_an_overlay_that_is_known_asks_nothing(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        for _ in range(5):
            await pilot.press("o")
            await pilot.pause(0.1)
        before = len(session.asked)
        assert before
        for _ in range(5):
            await pilot.press("o")
            await pilot.pause(0.1)
        assert len(session.asked) == before


async def test_a_head_that_is_chosen_in_the_grid_is_the_attention_tabs_and_the_overlays(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("7")
        await until(pilot, lambda: "L1H2  chosen" in shown(app, "#bottom"))
        await pilot.press("up", "left", "enter", "6", "o", "o", "o")
        await until(pilot, lambda: "L0H1 from position 49" in shown(app, "#bottom"))
        assert "attention L0H1" in shown(app, "#prefix")


async def test_a_click_on_the_grid_chooses_too(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("7")
        await until(pilot, lambda: "L1H2  chosen" in shown(app, "#bottom"))
        heatmap = app.explorer.query_one("#heads-map")
        x = 1 + heatmap._gutter + heatmap.cell_width * 3 + 1  # type: ignore[attr-defined]
        await pilot.click("#heads-map", offset=(x, 1 + 2))
        await until(pilot, lambda: "L2H3  chosen" in shown(app, "#bottom"))


async def test_a_perturbed_paragraph_is_patched_at_once(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("right", "enter", *"dog", "enter")
        await until(pilot, lambda: app.explorer.study.here.trials)
        await pilot.press("8")
        await until(pilot, lambda: session.asked_of(ActivationPatching))
        (estimate,) = session.asked_of(AttributionPatching)
        assert estimate.replacements == app.explorer.study.here.replacements  # type: ignore[attr-defined]
        (exact,) = session.asked_of(ActivationPatching)
        assert len(exact.cells) == 3 * 8  # type: ignore[attr-defined]  # the largest eight of each site
        await until(pilot, lambda: "The first token that changes" in shown(app, "#bottom"))
        await pilot.press("u")  # nothing is replaced now: the newest of the history is the twin
        await until(pilot, lambda: "(from the history)" in shown(app, "#bottom"))
        assert len(session.asked_of(AttributionPatching)) == 1


async def test_tab_overlay_head_and_switches_are_found_again(
    app: MemlocApp, session: LocalSession, tmp_path: Path
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("7", "g")
        await until(pilot, lambda: "L1H2  chosen" in shown(app, "#bottom"))
        await pilot.press("up", "enter", "a", "5", "v", "o", "o", "o")
        await pilot.pause(0.2)
    saved = json.loads(next((tmp_path / "state").glob("*.json")).read_text())
    assert (saved["tab"], saved["overlay"], saved["head"], saved["ablated"]) == (
        "gradients",
        "attention",
        [0, 2],
        [[0, 2]],
    )
    assert saved["switches"] == {"head_score": "entropy", "gradient_unit": "share"}
    given: Any = LocalSession()
    again = MemlocApp(Settings(model="fake", paragraphs="fake"), given)
    async with again.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "share of the sum" in shown(again, "#bottom"))
        assert "ablated: L0H2" in shown(again, "#top")
        assert "attention L0H2" in shown(again, "#prefix")


async def test_a_saved_head_that_the_model_lacks_gives_way_to_one_it_has(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.resume.head, app.resume.ablated = [9, 9], [[9, 9], [0, 1]]
        app.explorer.locating.begin()
        assert app.resume.head == [1, 2]
        assert app.resume.ablated == [[0, 1]]


async def test_every_key_of_a_panel_has_an_id_and_a_tooltip_and_is_in_palette_and_help(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        commands = {command.title for command in app.get_system_commands(app.screen)}
        bindings = [b for tab in PANELS for b in panel_type(tab).__dict__.get("BINDINGS", ())]
        assert len(bindings) >= 12
        for binding in bindings:
            assert isinstance(binding, Binding)
            assert binding.id
            assert binding.tooltip in commands
        await pilot.press("question_mark")
        await pilot.pause()
        text = str(app.screen.query_one("Static").render())  # the help's own text
        assert all(b.tooltip in text for b in bindings)


async def test_a_key_of_a_closed_tab_opens_it_from_the_palette(app: MemlocApp, session: LocalSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.action_panel_key("attention", "attention.attention_pattern")
        await until(pilot, lambda: session.asked_of(AttentionPattern))
        assert app.resume.tab == "attention"


@pytest.mark.parametrize("size", [WIDE, NARROW, (60, 16)])
async def test_every_tab_shows_at_every_size(app: MemlocApp, size: tuple[int, int]) -> None:
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        for key in "5678":
            await pilot.press(key)
            await pilot.pause(0.1)
            panel = app.explorer.panel
            assert isinstance(panel, LocalPanel)
            assert panel.region.height > 0
        assert notices(app) == []


async def test_a_replaced_token_has_its_own_count_and_rank_in_the_attention_tab_and_its_file(
    app: MemlocApp, session: LocalSession, tmp_path: Path
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        app.explorer.commit(((1, DOG),))  # the head looks there most of all
        await pilot.press("6")
        await until(pilot, lambda: '" dog"' in shown(app, "#bottom"))
        line = next(line for line in shown(app, "#attention-list").split("\n") if '" dog"' in line)
        counts = session._paragraphs.counts
        assert line.split()[2:5] == ["1", "1", str(counts[DOG])]  # rarer than every other word
        await pilot.press("e", "c")
        await until(pilot, lambda: list(tmp_path.glob("*-attention.csv")))
        (path,) = tmp_path.glob("*-attention.csv")
        with path.open(newline="") as file:
            line = list(csv.DictReader(file))[1]
        assert [line[name] for name in ("token_id", "corpus_count", "rarity_rank")] == [str(DOG), str(counts[DOG]), "1"]


async def test_a_flip_with_a_head_ablated_has_the_edited_weights_whole_score_beside_it(
    app: MemlocApp, session: LocalSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("a")
        await until(pilot, lambda: "EM 50 → 47" in shown(app, "#continuation"))
        session.hold[ExactMatch] = asyncio.Event()  # the list's scores come after the answer
        app.explorer.editing.stack = [ActiveEdit("ff" * 32, "edit.safetensors", "an edit")]
        await pilot.press("E")
        await until(pilot, lambda: "edited" in shown(app, "#continuation") and app.explorer.study.score)
        session.hold[ExactMatch].set()
        await until(pilot, lambda: "EM 50 → 47" in shown(app, "#continuation"))
