"""The Heads tab: all heads as a grid under one score, the one under the cursor in words, and what each is good for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from memloc_core.requests import (
    ComponentGradients,
    HeadAblation,
    HeadAblations,
    HeadGradients,
    RareTokenEffect,
    RareTokens,
    RarityScores,
)
from memloc_tui.figures import figure, head_name, interval, probability
from memloc_tui.readings import HEAD_SCORES, Ablation, ablations, activation_of, output_gradients
from memloc_tui.samples import ABLATION, OF, RARE, RARITY
from memloc_tui.scene import Head, Known, Scene, Switch, Want
from memloc_tui.widgets.attention_panel import query_of
from memloc_tui.widgets.heatmap import Heatmap, Matrix
from memloc_tui.widgets.local_panel import LocalPanel, switch_bindings
from memloc_tui.widgets.one_line import OneLine

if TYPE_CHECKING:
    from memloc_tui.readings import Array

SCORE = Switch("head_score", "g", tuple(HEAD_SCORES), "Heads: colour by rarity, entropy, gradient or ablation", "score")
HUES = {"rarity": "attention", "entropy": "attention", "gradient z": "gradient", "gradient W_O": "gradient"}


class HeadsPanel(LocalPanel):
    """See the module."""

    panel_id, title, key = "heads", "Heads", "7"
    MAIN = Heatmap
    SWITCHES = (SCORE,)
    BINDINGS = [
        *switch_bindings("heads", SWITCHES),
        Binding("m", "measure", "measure", id="heads.measure", tooltip="Heads: ablate each in turn; rare-token test"),
    ]
    DEFAULT_CSS = """
    HeadsPanel {
        & #heads-map { width: 1fr; min-width: 20; }
        & #heads-said { width: 46; height: 1fr; padding: 0 1; }
    }
    """

    def compose(self) -> ComposeResult:
        yield OneLine(classes="now", id="heads-now")
        yield OneLine(classes="head", id="heads-rare")
        with Horizontal():
            with Vertical():
                yield Heatmap(id="heads-map", widest=9)
            yield Static(id="heads-said")

    _measured: Any = None  # the samples whose expensive questions were started

    def wanted(self, scene: Scene, known: Known) -> list[Want]:
        wants = [Want(scene.activation_gradients()), Want(scene.gradients())]
        samples, measured = scene.samples, self._measured is scene.samples
        if rarity := samples.rarity(query_of(scene)):
            wants.append(Want(rarity))
        wants += [Want(request, measured) for request in (samples.ablation(), samples.rare_tokens()) if request]
        return wants

    def action_measure(self) -> None:
        if self.scene is not None:
            self._measured = self.scene.samples
            self.post_message(self.Changed())

    def draw(self, scene: Scene, known: Known) -> None:
        score = scene.setting(SCORE)
        values, n, why = self._values(scene, known, score)
        layers, heads = scene.model.layers, scene.model.heads
        self.line(
            "#heads-now",
            Content.assemble((score, "bold"), f" · {HEAD_SCORES[score]}", (f" · {n}" if n else "", "$text-muted")),
        )
        heatmap = self.query_one(Heatmap)
        fresh = heatmap.matrix is None
        if values is None:
            heatmap.show(None, why or "…")
        else:
            known_values = abs(values[values == values])
            scale = float(known_values.max()) if known_values.size else 0.0
            if score == "rarity":
                scale = 1.0
            marks = (scene.head, *scene.ablated)
            rows, columns = [f"L{i}" for i in range(layers)], [f"H{i}" for i in range(heads)]
            heatmap.show(Matrix(values, rows, columns, HUES.get(score, "perturb"), scale, marks=marks))
            if fresh:
                heatmap.move_to(*scene.head)
        self.line("#heads-rare", self._rare(scene, known))
        self._say(scene, known)

    def _values(self, scene: Scene, known: Known, score: str) -> tuple[Array | None, str, str]:
        """The grid's numbers, over what they are, and why there are none."""
        samples = scene.samples
        layers, heads = scene.model.layers, scene.model.heads
        if score in ("rarity", "entropy"):
            request = samples.rarity(query_of(scene))
            rarity: RarityScores | None = known.result(request)
            n = f"from {query_of(scene)}, {samples.said(OF[0], RARITY)}" if request else ""
            why = samples.lacks((OF[0], 10)) or known.lacks(request)
            return (None if rarity is None else rarity.tau if score == "rarity" else rarity.entropy), n, why
        if score == "gradient z":
            z: HeadGradients | None = known.result(scene.activation_gradients())
            p = scene.view.prefix_length
            why = known.lacks(scene.activation_gradients())
            return (None if z is None else activation_of(z, "z")[:, :, :p].max(-1)), scene.where, why
        if score == "gradient W_O":
            w: ComponentGradients | None = known.result(scene.gradients())
            return (
                (None if w is None else output_gradients(w, layers, heads)),
                scene.where,
                known.lacks(scene.gradients()),
            )
        ablation = samples.ablation()
        result: HeadAblations | None = known.result(ablation, partial=True)
        n = samples.said(OF[0] if score == "ablation EM" else OF[1], ABLATION)
        if result is not None:
            return ablations(result)[score].change, n, ""
        return None, n, samples.lacks((OF[0], 1)) or known.lacks(ablation) or self._offer(scene)

    @staticmethod
    def _offer(scene: Scene) -> str:
        """What measuring costs, in runs of the model."""
        ablation = scene.samples.ablation()
        if ablation is None:
            return ""
        rows = len(ablation.memorized) + len(ablation.non_memorized) + len(ablation.general)
        heads = scene.model.layers * scene.model.heads
        return f"Not measured: m runs {heads} heads × {rows} rows, one head at a time without its output."

    def _rare(self, scene: Scene, known: Known) -> str:
        """Rare-token causality in one line."""
        request: RareTokens | None = scene.samples.rare_tokens()
        effect: RareTokenEffect | None = known.result(request)
        if request is None:
            return f"Rare tokens: {scene.samples.lacks((OF[0], 10))}"
        n = scene.samples.said(OF[0], RARE)
        if effect is None:
            rows = len(request.paragraphs) * (1 + 2 * request.pairs)
            return f"Rare tokens: {known.lacks(request) or f'm replaces them in {n}, {rows} rows'}"
        said = (
            f"Rare token replaced: EM {-effect.rare_mean:+.1f}; common: {-effect.common_mean:+.1f}; "
            f"{effect.difference:.1f} more [{effect.low:.1f}, {effect.high:.1f}], n {len(request.paragraphs)}"
        )
        return said.replace("-", "−")

    # --------------------------------------------------------------------------------------------- the head in words

    def _say(self, scene: Scene, known: Known) -> None:
        """Everything known about the head under the cursor."""
        heatmap = self.query_one(Heatmap)
        head: Head = heatmap.cursor if heatmap.matrix is not None else scene.head
        marks = [name for name, is_so in (("chosen", head == scene.head), ("ablated", head in scene.ablated)) if is_so]
        title = Content.assemble((head_name(head), "bold"), f"  {', '.join(marks)}" if marks else "  ⏎ chooses it")
        lines = [title, *map(Content, self._words(scene, known, head))]
        lines.append(Content.assemble(("a", "bold"), " ablates the chosen head, and puts it back"))
        said = Content("\n").join(lines)
        box = self.query_one("#heads-said", Static)
        if box.content != said:
            box.update(said, layout=False)

    def _words(self, scene: Scene, known: Known, head: Head) -> list[str]:
        """What is known of a head, beginning with what the chosen score is about."""
        samples = scene.samples
        said: dict[str, list[str]] = {"rarity": [], "gradient": [], "ablation": []}
        request = samples.rarity(query_of(scene))
        rarity: RarityScores | None = known.result(request)
        if rarity is not None and request is not None:
            null = interval(rarity.null_low[head], rarity.null_high[head])
            said["rarity"] = [
                f"rarity τ {figure(float(rarity.tau[head]))} {interval(rarity.low[head], rarity.high[head])}",
                "  −1 the rarer the more, +1 the reverse",
                f"  null {figure(float(rarity.null_mean[head]))} {null}",
                f"  {probability(float(rarity.p[head]), request.resamples)}, "
                f"{probability(float(rarity.p_all[head]), request.resamples)} over all heads",
                f"entropy {figure(float(rarity.entropy[head]))} nats",
            ]
        z: HeadGradients | None = known.result(scene.activation_gradients())
        w: ComponentGradients | None = known.result(scene.gradients())
        if z is not None:
            most = activation_of(z, "z")[head][: scene.view.prefix_length].max()
            said["gradient"].append(f"gradient z {figure(float(most))}")
        if w is not None:
            out = output_gradients(w, scene.model.layers, scene.model.heads)[head]
            said["gradient"].append(f"gradient W_O {figure(float(out))}")
        ablation: HeadAblation | None = samples.ablation()
        result: HeadAblations | None = known.result(ablation, partial=True)
        if result is not None and ablation is not None:
            names = {"ablation EM": "memorized EM", "ablation own EM": "own EM", "ablation NLL": "general NLL"}
            effects = ablations(result)
            said["ablation"] = [f"without it (n {len(ablation.memorized)} and {len(ablation.non_memorized)}):"]
            said["ablation"] += [f"  {self._effect(names[score], effect, head)}" for score, effect in effects.items()]
        first = scene.setting(SCORE).partition(" ")[0].replace("entropy", "rarity")
        return said.pop(first) + [line for lines in said.values() for line in lines]

    @staticmethod
    def _effect(name: str, effect: Ablation, head: Head) -> str:
        return f"{name} {figure(effect.before)} → {figure(float(effect.without[head]))}"

    # ------------------------------------------------------------------------------------------------------ messages

    def on_heatmap_moved(self, message: Heatmap.Moved) -> None:
        message.stop()
        if self.scene is not None and self.known is not None:
            self._say(self.scene, self.known)

    def on_heatmap_chosen(self, message: Heatmap.Chosen) -> None:
        message.stop()
        if not message.gone:
            self.post_message(self.ChoseHead((message.row, message.column)))
