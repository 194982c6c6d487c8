"""A panel alone in an app, over answers that a test has set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from fake import C, P, base_em, make_paragraphs, make_vocabulary
from textual.app import App, ComposeResult
from textual.widget import Widget

from memloc_core.requests import (
    AttentionRows,
    ComponentGradients,
    ExactMatches,
    HeadAblations,
    HeadGradients,
    ModelInfo,
    PatchScores,
    RareTokenEffect,
    RarityScores,
)
from memloc_tui.catalogue import CHUNK, Catalogue
from memloc_tui.samples import Samples
from memloc_tui.scene import Scene
from memloc_tui.view import View
from memloc_tui.widgets.local_panel import LocalPanel

LAYERS, HEADS, ROWS = 3, 4, 90
COMPONENTS = (*(f"W_{x} H{h}" for x in "QKVO" for h in range(HEADS)), "W_in", "W_out")
K = len(COMPONENTS)


class Answers:
    """A `scene.Known` made by hand."""

    def __init__(self) -> None:
        self.results: dict[Any, Any] = {}
        self.says: dict[Any, str] = {}
        self.errors: dict[Any, str] = {}
        self.partial: dict[Any, Any] = {}

    def result(self, request: Any, partial: bool = False) -> Any:
        return self.results.get(request) or (self.partial.get(request) if partial else None)

    def lacks(self, request: Any) -> str:
        return "" if request in self.results else self.errors.get(request) or self.says.get(request, "")

    def failed(self, request: Any) -> bool:
        return request in self.errors


def make_scene(row: int = 3, scored: bool = True, **more: Any) -> Scene:
    """A scene of the fake paragraphs: rows 0..9 of each thirty are memorized, 20..29 are not."""
    paragraphs = make_paragraphs(ROWS)
    catalogue = Catalogue(paragraphs, make_vocabulary())
    if scored:
        for chunk in range(catalogue.chunks):
            n = len(catalogue.request(chunk).paragraphs)
            em = np.array([base_em(chunk * CHUNK + i) for i in range(n)], np.int64)
            ones = np.ones(n, np.float32)
            catalogue.learn(chunk, ExactMatches(em, ones, ones, np.ones((n, C), np.float32), np.zeros((n, C), int)))
    model = ModelInfo(
        name="fake", folder="", architecture="Fake", fingerprint="f", identity="one", dtype="fp32", device="cpu",
        attention="eager", layers=LAYERS, heads=HEADS, width=8, parameters=1, vocabulary=len(catalogue.pieces),
        positions=128,
    )  # fmt: skip
    ranks = tuple(P - i for i in range(P))
    counts = tuple(10 * (P - i) for i in range(P))
    view = View(row, paragraphs.ids[row], paragraphs.row(row), P, ranks=ranks, counts=counts)
    return Scene(view, catalogue, model, Samples(catalogue), **more)


def gradients(n: int, factor: float = 1.0) -> ComponentGradients:
    """Paragraph i, layer l, component c: factor * (i + 1) * (l + 1) * (c + 1); mean is a tenth of it, L2 the double."""
    i, layer, c = np.meshgrid(*(np.arange(1, size + 1) for size in (n, LAYERS, K)), indexing="ij")
    values = (factor * i * layer * c).astype(np.float32)
    return ComponentGradients(COMPONENTS, values, values / 10, values * 2, np.ones(n, np.float32), 0)


def head_gradients() -> HeadGradients:
    """Site s, layer l, head h, token t: (s + 1) * (l + 1) * (h + 1) * (t + 1) / 1000."""
    grids = np.meshgrid(*(np.arange(1, size + 1) for size in (4, LAYERS, HEADS, P + C - 1)), indexing="ij")
    return HeadGradients((np.prod(grids, axis=0) / 1000).astype(np.float32), HEADS, 1.0, 0)


def attention(query: int) -> AttentionRows:
    """Head L_l H_h looks at position t in proportion to 1 + (7 t + l + 2 h) % 13."""
    layer, head, t = np.meshgrid(np.arange(LAYERS), np.arange(HEADS), np.arange(query + 1), indexing="ij")
    weights = 1.0 + (7 * t + layer + 2 * head) % 13
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    entropy = -(weights * np.log(weights)).sum(-1)
    return AttentionRows(query, weights, entropy.astype(np.float32), 0)


def rarity(strongest: tuple[int, int] | None = (1, 1), stands_out: bool = True) -> RarityScores:
    """tau of L_l H_h is -(l + 1) (h + 1) / 20."""
    layer, head = np.meshgrid(np.arange(1, LAYERS + 1), np.arange(1, HEADS + 1), indexing="ij")
    tau = (-layer * head / 20).astype(np.float32)
    ranks = np.arange(10)
    flat = np.zeros_like(tau)
    return RarityScores(
        query=P - 1, ranks=ranks, tokens_per_rank=ranks + 5,
        attention=np.ones((LAYERS, HEADS, 10), np.float32) / P, tau=tau, low=tau - 0.1, high=tau + 0.1,
        null_mean=flat, null_low=flat - 0.2, null_high=flat + 0.2, p=flat + 0.004, p_all=flat + 0.03,
        entropy=1 - tau, strongest=strongest, stands_out=stands_out, peak_bytes=0,
    )  # fmt: skip


def ablations(n: int = 16) -> HeadAblations:
    """Without L_l H_h: memorized EM 50 - 10 l - h, own EM 40 - 10 l - h, general NLL 2 + l / 10 + h / 100."""
    layer, head = np.meshgrid(np.arange(LAYERS), np.arange(HEADS), indexing="ij")
    ones = np.ones((1, 1, n), np.int64)
    lost = (10 * layer + head)[..., None]
    nll = (2 + layer / 10 + head / 100)[..., None] * ones
    return HeadAblations(
        memorized_em=(50 - lost) * ones, memorized_nll=nll.astype(np.float32), own_em=(40 - lost) * ones,
        general_nll=nll.astype(np.float32), memorized_em_before=np.full(n, 50), own_em_before=np.full(n, 50),
        memorized_nll_before=np.full(n, 0.1, np.float32), general_nll_before=np.full(n, 2.0, np.float32), peak_bytes=0,
    )  # fmt: skip


def rare_tokens() -> RareTokenEffect:
    empty = np.zeros((3, 5), np.int64)
    return RareTokenEffect(empty, empty, empty, empty, np.full(3, 50), 12.4, 2.2, 10.2, 7.1, 13.8, 0)


def patches(exact: bool, first: int = 12, changes: bool = True, factor: float = 1.0) -> PatchScores:
    """Restoring moves NLL and logit by (l + 1) (place + 1) / 400 * factor of the gap; breaking by half of it."""
    clean, perturbed = np.array([0.1, 9.0], np.float32), np.array([2.1, 5.0], np.float32)

    def site(places: int) -> np.ndarray:
        layer, place = np.meshgrid(np.arange(1, LAYERS + 1), np.arange(1, places + 1), indexing="ij")
        share = factor * layer * place / 400
        values = np.empty((2, 2, LAYERS, places), np.float32)
        for metric in (0, 1):
            gap = clean[metric] - perturbed[metric]
            values[0, metric] = perturbed[metric] + share * gap
            values[1, metric] = clean[metric] - share / 2 * gap
        return values

    positions = P + C - 1 - first
    reference = np.array(make_paragraphs(ROWS).row(3)[P:], np.int64)
    return PatchScores(
        reference, first, 4, changes, clean, perturbed, site(positions), site(HEADS), site(positions), exact,
        cells=2 * LAYERS * (2 * positions + HEADS), forwards=1, peak_bytes=0,
    )  # fmt: skip


class Host(App[None]):
    """One panel; what it reports is kept, and a switch does what the explorer makes it do."""

    AUTO_FOCUS = None
    CSS = "Screen { & > LocalPanel { height: 1fr; } }"

    def __init__(self, make: Callable[[], LocalPanel], scene: Scene, known: Answers) -> None:
        super().__init__()
        self.make, self.scene, self.known = make, scene, known
        self.said: list[Any] = []

    def compose(self) -> ComposeResult:
        yield self.make()

    @property
    def panel(self) -> Any:
        return self.screen.query_one(LocalPanel)

    def on_mount(self) -> None:
        self.animation_level = "none"
        self.call_after_refresh(self.show)

    def show(self, **changes: Any) -> None:
        self.scene = replace(self.scene, **changes)
        self.panel.show(self.scene.view, self.scene.catalogue, self.scene, self.known)
        if not self.focused:
            self.panel.focus_inside()

    def on_local_panel_chose(self, message: LocalPanel.Chose) -> None:
        self.show(switches={**self.scene.switches, message.name: message.option})

    def on_local_panel_chose_head(self, message: LocalPanel.ChoseHead) -> None:
        self.said.append(("head", message.head))
        self.show(head=message.head)

    def on_local_panel_jump(self, message: LocalPanel.Jump) -> None:
        self.said.append(("jump", message.position))

    def on_local_panel_changed(self, message: LocalPanel.Changed) -> None:
        self.said.append(("changed",))
        self.show()

    def text(self, selector: str = "LocalPanel") -> str:
        """A widget's text as it stands on the screen."""
        widget: Widget = self.screen.query_one(selector)
        region, strips = widget.region, self.screen._compositor.render_strips()
        lines = (strips[y].crop(region.x, region.right).text.rstrip() for y in range(region.y, region.bottom))
        return "\n".join(lines)
