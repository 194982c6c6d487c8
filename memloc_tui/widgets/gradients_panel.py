"""The Gradients tab: which weights would change the recitation most, beside what is usual for such paragraphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content

from memloc_core.requests import ComponentGradients, GradientContrast, HeadGradients, Score
from memloc_tui.figures import figure, percent
from memloc_tui.glyphs import bar, fit
from memloc_tui.readings import (
    Unit,
    activation_of,
    cells_of,
    groups_of,
    layers_of,
    percentile,
    top_cells,
    total_of,
)
from memloc_tui.samples import GRADIENTS, OF, Of
from memloc_tui.scene import Known, Scene, Switch, Want
from memloc_tui.widgets.bars import BarList, hatched
from memloc_tui.widgets.heatmap import Heatmap, Matrix
from memloc_tui.widgets.local_panel import LocalPanel, switch_bindings, token_name
from memloc_tui.widgets.one_line import OneLine

if TYPE_CHECKING:
    from memloc_tui.widgets.row_list import RowList

UNIT = Switch("gradient_unit", "v", ("magnitude", "share"), "Gradients: magnitude, or each layer's share", "share")
SCORE = Switch("gradient_score", "g", ("max", "mean", "l2"), "Gradients: score by max, mean or L2", "score")
MAP = Switch(
    "gradient_map",
    "c",
    ("this paragraph", "memorized", "non-memorized", "difference", "ratio", "activations"),
    "Gradients map: this paragraph, averages, contrast (difference, ratio), activations",
    "map",
)
SITE = Switch("gradient_site", "z", ("max", "q", "k", "v", "z"), "Activation gradients of q, k, v, z or all", "site")
SAID = {"max": "max |dNLL/dw|", "mean": "mean |dNLL/dw|", "l2": "L2 norm of dNLL/dw"}
TOP = 40  # cells listed


class LayerBars(BarList):
    """One row per layer: this paragraph, the memorized and the non-memorized mean, on one scale."""

    columns: tuple[tuple[float, ...] | None, ...] = (None, None, None)
    share = False

    def show_layers(self, columns: tuple[tuple[float, ...] | None, ...], share: bool) -> None:
        if (columns, share) == (self.columns, self.share) and self.count:
            return
        self.columns, self.share = columns, share
        rows = max((len(c) for c in columns if c is not None), default=0)
        self.show_rows(rows, self.cursor if 0 <= self.cursor < rows else -1)

    def row(self, index: int, width: int) -> list[Segment]:
        scale = max((v for c in self.columns if c for v in c if v == v), default=0.0) or 1.0
        room = max(9, (width - 4) // 3)
        segments = [Segment(f"L{index:<2} ", self.look("faint"))]
        for number, column in enumerate(self.columns):
            value = column[index] if column else float("nan")
            text = percent(value) if self.share else figure(value)
            drawn = (hatched if number == 2 else bar)(value / scale if value == value else 0.0, room - 8)
            segments += [Segment(f"{text:>6} "), Segment(f"{drawn} ", self.look("gradient"))]
        return segments


class TopCells(BarList):
    """The largest cells of the map, largest first."""

    cells: list[tuple[int, int]] = []
    names: list[str] = []
    values: list[float] = []

    def show_cells(self, cells: list[tuple[int, int]], names: list[str], values: list[float]) -> None:
        if (cells, names, values) != (self.cells, self.names, self.values):
            self.cells, self.names, self.values = cells, names, values
            self.show_rows(len(cells), -1)

    def row(self, index: int, width: int) -> list[Segment]:
        largest = max(map(abs, self.values), default=0.0) or 1.0
        value = self.values[index]
        room = max(2, width - 20)
        return [
            Segment(f"{self.names[index]:<11}"),
            Segment(f"{figure(value):>7} "),
            Segment(bar(abs(value) / largest, room), self.look("gradient")),
        ]


class GradientsPanel(LocalPanel):
    """See the module."""

    panel_id, title, key = "gradients", "Gradients", "5"
    MAIN = Heatmap
    SWITCHES = (UNIT, SCORE, MAP, SITE)
    BINDINGS = [*switch_bindings("gradients", SWITCHES)]
    DEFAULT_CSS = """
    GradientsPanel {
        & #gradient-left { width: 1fr; }
        & #gradient-right { width: 30; }
        & #gradient-lists { height: 1fr; min-height: 3; max-height: 13; }
        & Heatmap { height: 1fr; min-height: 4; }
    }
    """

    def compose(self) -> ComposeResult:
        yield OneLine(classes="now", id="gradient-now")
        yield OneLine(classes="head", id="gradient-place")
        with Horizontal(id="gradient-lists"):
            with Vertical(id="gradient-left"):
                yield OneLine(classes="head", id="gradient-bars-head")
                yield LayerBars(id="gradient-bars", empty="")
            with Vertical(id="gradient-right"):
                yield OneLine(classes="head", id="gradient-top-head")
                yield TopCells(id="gradient-top", empty="")
        yield OneLine(classes="now", id="gradient-map-head")
        yield Heatmap(id="gradient-map", widest=8)

    def wanted(self, scene: Scene, known: Known) -> list[Want]:
        wants = [Want(scene.gradients())]
        if scene.setting(MAP) == "activations":
            wants.append(Want(scene.activation_gradients()))
        wants += [Want(request) for of in OF if (request := scene.samples.gradients(of))]
        if scene.setting(MAP) in ("difference", "ratio") and (contrast := scene.samples.contrast()):
            wants.append(Want(contrast))
        return wants

    def draw(self, scene: Scene, known: Known) -> None:
        score, unit = cast(Score, scene.setting(SCORE)), cast(Unit, scene.setting(UNIT))
        own_request = scene.gradients()
        own: ComponentGradients | None = known.result(own_request)
        means = [known.result(scene.samples.gradients(of)) for of in OF]
        lacks = self.stale(own_request, known)
        if own is None and known.failed(own_request):
            self.headline("#gradient-now", Content(""), lacks, failed=True)
        elif own is None and not lacks:
            return  # it is being asked: what stands here stays until it takes too long
        self._bars(scene, known, own, means, score, unit, lacks)
        self._map(scene, known, own, means, score, unit)

    # ------------------------------------------------------------------------------------------------------- layers

    def _bars(
        self,
        scene: Scene,
        known: Known,
        own: ComponentGradients | None,
        means: list[ComponentGradients | None],
        score: Score,
        unit: Unit,
        lacks: str,
    ) -> None:
        if own is not None:
            k = len(own.components)
            what = "each layer's share of the sum" if unit == "share" else f"summed over a layer's {k} components"
            where = f" · {scene.where}" if scene.where else ""
            self.headline("#gradient-now", Content.assemble((SAID[score], "bold"), f" {what}{where}"))
        elif not known.failed(scene.gradients()):
            self.headline("#gradient-now", Content("This paragraph's gradients"), lacks)
        self.line("#gradient-place", self._place(scene, known, own, means, score))
        columns = tuple(None if g is None else tuple(layers_of(g, score, unit).mean(0).tolist()) for g in (own, *means))
        bars = self.query_one(LayerBars)
        bars.show_layers(columns, unit == "share")
        room = max(9, (bars.scrollable_content_region.width - 4) // 3)
        names = ("this paragraph" if room >= 16 else "this one", *(f"{of} mean" if room >= 19 else of for of in OF))
        self.line("#gradient-bars-head", "    " + "".join(fit(name, room - 1) + " " for name in names))

    def _place(
        self,
        scene: Scene,
        known: Known,
        own: ComponentGradients | None,
        means: list[ComponentGradients | None],
        score: Score,
    ) -> str:
        """Where this paragraph's sum lies among the samples', or why that is not known."""
        said = []
        total = float(total_of(own, score)[0]) if own is not None else float("nan")
        for of, mean in zip(OF, means, strict=True):
            request = scene.samples.gradients(of)
            if mean is None:
                why = scene.samples.lacks((of, 1)) or known.lacks(request) or "…"
                said.append(f"{of}: {why}")
            elif own is not None:
                place = percentile(total, total_of(mean, score))
                said.append(
                    f"above {percent(place)} of {scene.samples.said(of, GRADIENTS)}".removeprefix("above " * bool(said))
                )
        if said and said[0] == f"{OF[0]}: {scene.samples.lacks((OF[0], 1))}" and not scene.samples.ready:
            said = [f"the averages: {scene.samples.lacks()}"]
        start = f"Σ {figure(total)} " if own is not None else ""
        return start + ", ".join(said)

    # ---------------------------------------------------------------------------------------------------------- map

    def _map(
        self,
        scene: Scene,
        known: Known,
        own: ComponentGradients | None,
        means: list[ComponentGradients | None],
        score: Score,
        unit: Unit,
    ) -> None:
        chosen, heatmap = scene.setting(MAP), self.query_one(Heatmap)
        values: Any = None
        groups, columns, rows = [("", 0)], [""], [""]
        head, why = "", ""
        if chosen == "activations":
            request = scene.activation_gradients()
            result: HeadGradients | None = known.result(request)
            site = scene.setting(SITE)
            what = "the largest of q, k, v, z" if site == "max" else site
            head = f"max |dNLL/dh| of {what}"
            why = known.lacks(request)
            if result is not None:
                by_head = activation_of(result, site)[:, :, : scene.view.prefix_length]
                values = by_head.reshape(-1, by_head.shape[-1])
                rows = [f"L{i // by_head.shape[1]}H{i % by_head.shape[1]}" for i in range(len(values))]
                p = by_head.shape[-1]
                columns = [str(i % 10) for i in range(p)]
                groups = [(str(i), min(10, p - i)) for i in range(0, p, 10)]
        elif chosen in ("difference", "ratio"):
            asked = scene.samples.contrast()
            contrast: GradientContrast | None = known.result(asked)
            samples = " against ".join(scene.samples.said(of, GRADIENTS) for of in OF)
            formula = "max(|g mem| − |g non|)" if chosen == "difference" else "max |g mem| / (|g non| + floor)"
            head = f"{formula} · {samples}"
            why = scene.samples.lacks((OF[0], 1), (OF[1], 1)) or known.lacks(asked)
            if contrast is not None:
                values = getattr(contrast, chosen)
                groups, columns = groups_of(contrast.components)
        else:
            gradients = own if chosen == "this paragraph" else means[OF.index(cast(Of, chosen))]
            n = f"mean of {scene.samples.said(chosen, GRADIENTS)}" if chosen in OF else chosen
            kind = "share of the sum" if unit == "share" else SAID[score]
            head = f"{kind} · {n}"
            if chosen == "this paragraph":
                why = known.lacks(scene.gradients())
            else:
                of = cast(Of, chosen)
                why = scene.samples.lacks((of, 1)) or known.lacks(scene.samples.gradients(of))
            if gradients is not None:
                values = cells_of(gradients, score, unit)
                groups, columns = groups_of(gradients.components)
        if values is None:
            heatmap.show(None, why or "…")
            self.query_one(TopCells).show_cells([], [], [])
            self.line("#gradient-top-head", "")
            self.line("#gradient-map-head", Content.styled(head, "$text-muted"))
            return
        if chosen != "activations":
            rows = [f"L{layer}" for layer in range(len(values))]
        cells = top_cells(values, TOP)
        scale = float(abs(values[cells[0]])) if cells else 0.0
        heatmap.show(Matrix(values, rows, columns, "gradient", scale, groups))
        self._head = head
        self._name_cell()
        names = [self._cell_name(row, column) for row, column in cells]
        self.query_one(TopCells).show_cells(cells, names, [float(values[cell]) for cell in cells])
        self.line("#gradient-top-head", f"largest of {values.size:,} cells")

    _head = ""

    def _cell_name(self, row: int, column: int) -> str:
        """`L3 W_O H2`, `L3 W_in`, or `L1H2 @12`."""
        matrix = self.query_one(Heatmap).matrix
        assert matrix is not None
        if self.scene is not None and self.scene.setting(MAP) == "activations":
            return f"{matrix.rows[row]} @{column}"
        start = 0
        for name, size in matrix.groups:
            if column < start + size:
                return f"{matrix.rows[row]} {name} {matrix.columns[column]}".rstrip()
            start += size
        return matrix.rows[row]

    def _name_cell(self) -> None:
        """The cell under the cursor, its value, and what the map is of."""
        heatmap = self.query_one(Heatmap)
        if heatmap.matrix is None or self.scene is None:
            return
        row, column = heatmap.cursor
        name = self._cell_name(row, column)
        if self.scene.setting(MAP) == "activations":
            name += f" {token_name(self.scene, self.scene.view.perturbed[column])}"
        value = figure(float(heatmap.matrix.values[row, column]))
        head = self._head + (f" · {heatmap.legend}" if heatmap.legend else "")
        said = Content.assemble((f"{name} {value}", "bold"), (f" · {head}", "$text-muted"))
        self.line("#gradient-map-head", said)

    # ------------------------------------------------------------------------------------------------------ messages

    def on_heatmap_moved(self, message: Heatmap.Moved) -> None:
        message.stop()
        self._name_cell()
        if self.scene is not None and self.scene.setting(MAP) == "activations" and not message.gone:
            self.post_message(self.Jump(message.column))

    def on_heatmap_chosen(self, message: Heatmap.Chosen) -> None:
        message.stop()
        if not message.gone:
            self._choose(message.row, message.column)

    def _choose(self, row: int, column: int) -> None:
        """A cell that belongs to a head chooses that head for the Attention tab."""
        matrix = self.query_one(Heatmap).matrix
        if self.scene is None or matrix is None:
            return
        if self.scene.setting(MAP) == "activations":
            self.post_message(self.ChoseHead(divmod(row, self.scene.model.heads)))
        elif matrix.columns[column].startswith("H"):
            self.post_message(self.ChoseHead((row, int(matrix.columns[column][1:]))))

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        if isinstance(message.rows, TopCells) and not message.gone:
            self.query_one(Heatmap).move_to(*message.rows.cells[message.index])

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        if isinstance(message.rows, TopCells) and not message.gone:
            self._choose(*message.rows.cells[message.index])
