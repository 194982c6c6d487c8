"""The Attention tab: where the chosen head looks from the position that predicts the continuation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content

from memloc_core.requests import AttentionRows, HeadPattern, RarityScores, Request
from memloc_tui.figures import figure, head_name, probability
from memloc_tui.glyphs import bar
from memloc_tui.samples import OF
from memloc_tui.scene import Known, Scene, Switch, Want
from memloc_tui.widgets.bars import BarList
from memloc_tui.widgets.heatmap import Heatmap, Matrix
from memloc_tui.widgets.local_panel import LocalPanel, switch_bindings, token_name
from memloc_tui.widgets.one_line import OneLine

if TYPE_CHECKING:
    from memloc_tui.widgets.row_list import RowList

QUERY = Switch(
    "attention_query", "t", ("last", "after"), "Attention: from the last prefix token, or from the next", "query"
)
PATTERN = Switch("attention_pattern", "v", ("off", "on"), "Attention: the head's whole pattern", "pattern")


def query_of(scene: Scene) -> int:
    """The position that is looked from: the last of the prefix, or the one after it, as the paper does."""
    return scene.view.prefix_length - (scene.setting(QUERY) == "last")


def attention_request(scene: Scene) -> Request:
    return scene.attention(query_of(scene))


def layout(width: int) -> tuple[int, bool]:
    """Cells for the bar of a row, and whether there is room for the token's count."""
    return max(4, min(24, width - (44 if width >= 50 else 30))), width >= 50


class LookedAt(BarList):
    """The positions that a head looks at, most attention first."""

    scene: Scene | None = None
    weights: tuple[float, ...] = ()
    order: list[int] = []

    def show_weights(self, scene: Scene, weights: tuple[float, ...]) -> None:
        same = self.scene is not None and self.scene.view.tokens == scene.view.tokens
        fresh = weights != self.weights or not same
        self.scene = scene
        if fresh:
            self.weights = weights
            self.order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
            self.show_rows(len(weights), 0 if weights else -1)
            self.scroll_to(y=0, animate=False, immediate=True)

    def row(self, index: int, width: int) -> list[Segment]:
        scene, position = self.scene, self.order[index]
        assert scene is not None
        view, weight = scene.view, self.weights[position]
        room, counted = layout(width)
        in_prefix = position < view.prefix_length
        token = (*view.perturbed, *view.continuation)[position]
        ranked = in_prefix and view.ranks and view.ranks[position] > 0
        rank = f"{view.ranks[position]:>4}" if ranked else " " * 4
        if counted:
            rank += f" {view.counts[position]:>8,}" if ranked else " " * 9
        return [
            Segment(f"{weight:.3f} "),
            Segment(bar(weight / (self.weights[self.order[0]] or 1.0), room), self.look("attention")),
            Segment(f" {position:>4}", self.look("faint")),
            Segment(f" {rank}  ", self.look("faint")),
            Segment(token_name(scene, token)),
        ]


class AttentionPanel(LocalPanel):
    """See the module."""

    panel_id, title, key = "attention", "Attention", "6"
    MAIN = LookedAt
    SWITCHES = (QUERY, PATTERN)
    BINDINGS = [
        *switch_bindings("attention", SWITCHES),
        Binding(
            "h", "offered", "offered head", id="attention.offered", tooltip="Attention: take the head that stands out"
        ),
        Binding("left", "head(-1)", "Before", id="attention.before", tooltip="Attention: the head before", show=False),
        Binding("right", "head(1)", "Next", id="attention.next", tooltip="Attention: the next head", show=False),
    ]
    DEFAULT_CSS = """
    AttentionPanel {
        & #attention-left { width: 5fr; }
        & #attention-right { width: 6fr; }
    }
    """

    def compose(self) -> ComposeResult:
        yield OneLine(classes="now", id="attention-now")
        yield OneLine(classes="head", id="attention-offer")
        with Horizontal():
            with Vertical(id="attention-left"):
                yield OneLine(classes="head", id="attention-head")
                yield LookedAt(id="attention-list", empty="")
            with Vertical(id="attention-right", classes="-none"):
                yield OneLine(classes="now", id="attention-cell")
                yield Heatmap(id="attention-map", widest=1)

    def wanted(self, scene: Scene, known: Known) -> list[Want]:
        wants = [Want(attention_request(scene))]
        if scene.setting(PATTERN) == "on":
            wants.append(Want(scene.pattern()))
        if rarity := scene.samples.rarity(query_of(scene)):
            wants.append(Want(rarity))
        return wants

    def draw(self, scene: Scene, known: Known) -> None:
        request = attention_request(scene)
        result: AttentionRows | None = known.result(request)
        lacks = self.stale(request, known)
        query = query_of(scene)
        where = f" · {scene.where}" if scene.where else ""
        says = Content.assemble((head_name(scene.head), "bold"), f" from position {query}{where}")
        if result is None:
            if lacks:
                self.headline("#attention-now", says, lacks, failed=known.failed(request))
        else:
            layer, head = scene.head
            entropy, most = float(result.entropy[layer, head]), math.log(query + 1)
            which = f"predicts token {query + 1}" if query < scene.view.prefix_length else "the paper's choice"
            entropies = f"entropy {figure(entropy)} of at most {figure(most)} nats"
            self.headline("#attention-now", Content.assemble(says, f" ({which}) · {entropies}"))
            looked = self.query_one(LookedAt)
            looked.show_weights(scene, tuple(result.weights[layer, head].tolist()))
            room, counted = layout(looked.scrollable_content_region.width)
            count = f" {'count':>8}" if counted else ""
            self.line("#attention-head", f"{'weight':<6}{'':<{room}} {'at':>4} {'rank':>4}{count}  token")
        self.line("#attention-offer", self._offer(scene, known))
        self._pattern(scene, known)

    def _offer(self, scene: Scene, known: Known) -> Content | str:
        """Whether another head is drawn to rare tokens more than the chosen one."""
        request = scene.samples.rarity(query_of(scene))
        rarity: RarityScores | None = known.result(request)
        if rarity is None:
            why = scene.samples.lacks((OF[0], 10)) or known.lacks(request)
            return f"Rarity: {why}" if why else ""
        assert request is not None
        n, out = f"({len(request.paragraphs)} {OF[0]})", rarity.strongest
        own = figure(float(rarity.tau[scene.head]))
        if out is None:
            return f"No head is drawn to rare tokens beyond chance; here τ {own} {n}"
        if out == scene.head:
            p = probability(float(rarity.p_all[out]), request.resamples)
            close = "" if rarity.stands_out else ", others come close"
            return f"Most drawn to rare tokens{close}: τ {own}, {p} {n}"
        how = "standing out as drawn" if rarity.stands_out else "more drawn"
        return Content.assemble(
            ("h", "bold $foreground"),
            f" takes {head_name(out)}, {how} to rare tokens: τ {figure(float(rarity.tau[out]))}, here {own} {n}",
        )

    def _pattern(self, scene: Scene, known: Known) -> None:
        shown = scene.setting(PATTERN) == "on"
        self.query_one("#attention-right").set_class(not shown, "-none")
        if not shown:
            return
        heatmap, request = self.query_one(Heatmap), scene.pattern()
        pattern: HeadPattern | None = known.result(request)
        if pattern is None:
            if lacks := known.lacks(request):
                heatmap.show(None, lacks)
            self.line("#attention-cell", f"pattern of {head_name(scene.head)}")
            return
        n = len(pattern.weights)
        groups = [(str(i), min(10, n - i)) for i in range(0, n, 10)]
        names = [str(i) for i in range(n)]
        fresh = heatmap.matrix is None
        heatmap.show(Matrix(pattern.weights, names, names, "attention", 1.0, groups))
        if fresh:
            heatmap.move_to(query_of(scene), self.query_one(LookedAt).order[0] if self.query_one(LookedAt).order else 0)
        self._name_cell()

    def _name_cell(self) -> None:
        heatmap, scene = self.query_one(Heatmap), self.scene
        if heatmap.matrix is None or scene is None:
            return
        row, column = heatmap.cursor
        value = float(heatmap.matrix.values[row, column])
        tokens = scene.tokens
        self.line(
            "#attention-cell",
            Content.assemble(
                (f"{row} {token_name(scene, tokens[row])} → {column} {token_name(scene, tokens[column])}", "bold"),
                f" {value:.3f}",
                (" · rows look at columns", "$text-muted"),
            ),
        )

    def action_offered(self) -> None:
        if self.scene is None or self.known is None:
            return
        rarity: RarityScores | None = self.known.result(self.scene.samples.rarity(query_of(self.scene)))
        if rarity is not None and rarity.strongest is not None:
            layer, head = rarity.strongest
            self.post_message(self.ChoseHead((layer, head)))

    def action_head(self, by: int) -> None:
        """Another head, layer by layer; after the last one comes the first."""
        if self.scene is not None:
            layers, heads = self.scene.model.layers, self.scene.model.heads
            layer, head = self.scene.head
            self.post_message(self.ChoseHead(divmod((layer * heads + head + by) % (layers * heads), heads)))

    def on_heatmap_moved(self, message: Heatmap.Moved) -> None:
        message.stop()
        self._name_cell()

    def on_heatmap_chosen(self, message: Heatmap.Chosen) -> None:
        message.stop()

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        self._jump(message)

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        self._jump(message)

    def _jump(self, message: RowList.Pointed) -> None:
        rows = message.rows
        if isinstance(rows, LookedAt) and self.scene is not None and not message.gone:
            position = rows.order[message.index]
            if position < self.scene.view.prefix_length:
                self.post_message(self.Jump(position))
