"""The Patch tab: which activations carry the recitation, between the paragraph and its perturbed twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content

from memloc_core.requests import PATCH_SITES, PatchScores, PatchSite, Request
from memloc_tui.figures import figure, head_name
from memloc_tui.glyphs import bar
from memloc_tui.scene import Known, Scene, Switch, Want
from memloc_tui.widgets.bars import BarList
from memloc_tui.widgets.heatmap import Heatmap, Matrix
from memloc_tui.widgets.local_panel import LocalPanel, switch_bindings, token_name
from memloc_tui.widgets.one_line import OneLine
from memloc_tui.widgets.perturb_panel import described

if TYPE_CHECKING:
    from memloc_tui.widgets.row_list import RowList

SITE = Switch("patch_site", "v", PATCH_SITES, "Patch: residual stream, heads' z, or MLP output", "site")
DIRECTION = Switch(
    "patch_direction", "d", ("restore", "break"), "Patch: restore the twin, or break the clean run", "direction"
)
METRIC = Switch(
    "patch_metric", "n", ("NLL", "logit"), "Patch: effect on the NLL or the changed token's logit", "metric"
)
TOP = 8  # cells of each site that are verified
NOTHING = "No twin yet: perturb a token of the prefix first (⏎ on it)."

Cell = tuple[PatchSite, int, int]


def cell_name(cell: Cell) -> str:
    site, layer, place = cell
    return head_name((layer, place)) if site == "heads" else f"L{layer} @{place}"


class Patches(BarList):
    """The cells of a site with the largest estimated effect: the estimate, and the exact effect once verified."""

    cells: list[Cell] = []
    estimates: list[float] = []
    exact: list[float] = []

    names: list[str] = []

    def show_patches(self, cells: list[Cell], names: list[str], estimates: list[float], exact: list[float]) -> None:
        self.names = names
        if repr((cells, estimates, exact)) != repr((self.cells, self.estimates, self.exact)):
            self.cells, self.estimates, self.exact = cells, estimates, exact
            self.show_rows(len(cells), min(self.cursor, len(cells) - 1))

    def row(self, index: int, width: int) -> list[Segment]:
        estimate, exact = self.estimates[index], self.exact[index]
        best = exact if exact == exact else estimate
        room = max(2, min(24, width - 40))
        return [
            Segment(f"{cell_name(self.cells[index]):<7}"),
            Segment(f"{figure(estimate):>8} ", self.look("faint")),
            Segment(f"{figure(exact):>7} "),
            Segment(bar(best, room) if best > 0 else " " * room, self.look("perturb")),
            Segment(f" {self.names[index]}"),
        ]


class PatchPanel(LocalPanel):
    """See the module."""

    panel_id, title, key = "patch", "Patch", "8"
    MAIN = Heatmap
    SWITCHES = (SITE, DIRECTION, METRIC)
    BINDINGS = [
        *switch_bindings("patch", SWITCHES),
        Binding("m", "whole", "measure", id="patch.whole", tooltip="Patch: really run every patch of the map"),
    ]
    DEFAULT_CSS = """
    PatchPanel {
        & Heatmap { height: 3fr; min-height: 4; max-height: 16; }
        & Patches { height: 2fr; min-height: 2; }
    }
    """
    _whole: frozenset[Request] = frozenset()  # the maps of which every patch was to be run

    def compose(self) -> ComposeResult:
        yield OneLine(classes="now", id="patch-now")
        yield OneLine(classes="head", id="patch-what")
        yield OneLine(classes="now", id="patch-cell")
        yield Heatmap(id="patch-map", widest=8)
        yield OneLine(classes="head", id="patch-head")
        yield Patches(id="patch-list", empty="")

    def wanted(self, scene: Scene, known: Known) -> list[Want]:
        """The estimate, the exact effects of its top cells, and of all cells where the person asked for them."""
        estimate = scene.attribution()
        if estimate is None:
            return []
        whole = scene.patching(())
        wants = [Want(estimate)]
        if (top := self._top(scene, known)) is not None:
            wants.append(Want(top))
        return [*wants, Want(whole, whole in self._whole)] if whole is not None else wants

    @staticmethod
    def _top(scene: Scene, known: Known) -> Request | None:
        """The request that verifies the estimate's top cells, once there is an estimate."""
        estimate: PatchScores | None = known.result(scene.attribution())
        return scene.patching(estimate.top(TOP)) if estimate is not None else None

    def action_whole(self) -> None:
        if self.scene is not None and (whole := self.scene.patching(())) is not None:
            self._whole |= {whole}
            self.post_message(self.Changed())

    # ------------------------------------------------------------------------------------------------------- drawing

    def draw(self, scene: Scene, known: Known) -> None:
        request = scene.attribution()
        if scene.twin is None or request is None:
            self.set_class(False, "-stale")
            self.headline("#patch-now", Content.styled(NOTHING, "$text-muted"))
            self._show_none()
            return
        estimate: PatchScores | None = known.result(request)
        lacks = self.stale(request, known)
        twin = described(scene.view, scene.twin[0], scene.catalogue)
        if not scene.view.replacements:
            twin += " (from the history)"
        if estimate is None:
            if lacks:  # before, what stands here stays: most answers come at once
                self.headline("#patch-now", Content.styled(twin, "$text-warning"), lacks, failed=known.failed(request))
                self._show_none()
            return
        clean, perturbed = estimate.clean, estimate.perturbed
        self.headline(
            "#patch-now",
            Content.assemble(
                (twin, "bold $text-warning"),
                f" · NLL {figure(float(clean[0]))} → {figure(float(perturbed[0]))}",
                f" · vs {scene.twin[1]}" + (f" · {scene.where}" if scene.ablated else ""),
            ),
        )
        self.line("#patch-what", self._changed(scene, estimate))
        site, direction, metric = self._chosen(scene)
        whole: PatchScores | None = known.result(scene.patching(()), partial=True)
        top: PatchScores | None = known.result(self._top(scene, known), partial=True)
        values = estimate.effects(site)[direction, metric]
        exact = whole or top
        real = exact.effects(site)[direction, metric] if exact is not None else None
        self._map(scene, estimate, site, values if whole is None or real is None else real, whole is not None)
        first = 0 if site == "heads" else estimate.first
        cells = [cell for cell in estimate.top(TOP) if cell[0] == site]
        at = [(layer, place - first) for _, layer, place in cells]
        self.query_one(Patches).show_patches(
            cells,
            ["" if site == "heads" else self._token(scene, estimate, place) for _, _, place in cells],
            [float(values[cell]) for cell in at],
            [float(real[cell]) if real is not None else float("nan") for cell in at],
        )
        self.line("#patch-head", f"{'top':<7}{'estimate':>8} {'exact':>7} {self._exactly(scene, known, exact)}")

    def _show_none(self) -> None:
        """There are no patches of this twin: another's must not be taken for them."""
        for line in ("#patch-what", "#patch-cell", "#patch-head"):
            self.line(line, "")
        self.query_one(Heatmap).show(None, " ")
        self.query_one(Patches).show_patches([], [], [], [])

    def _exactly(self, scene: Scene, known: Known, exact: PatchScores | None) -> str:
        """How far the exact runs are, or what running all of them takes."""
        whole = scene.patching(())
        if whole in self._whole and known.result(whole) is None:
            return known.lacks(whole)
        if known.result(whole) is None and exact is not None:
            estimate: PatchScores = known.result(scene.attribution())
            return f"largest of each map, really run · m runs all {estimate.cells:,}"
        return known.lacks(self._top(scene, known))

    @staticmethod
    def _chosen(scene: Scene) -> tuple[PatchSite, int, int]:
        site = cast(PatchSite, scene.setting(SITE))
        direction, metric = scene.setting(DIRECTION), scene.setting(METRIC)
        return site, DIRECTION.options.index(direction), METRIC.options.index(metric)

    @staticmethod
    def _changed(scene: Scene, estimate: PatchScores) -> str:
        """Which token of the continuation the logit is of."""
        position = scene.view.prefix_length + estimate.changed
        token = token_name(scene, int(estimate.reference[estimate.changed]))
        logits = f"logit {figure(float(estimate.clean[1]))} → {figure(float(estimate.perturbed[1]))}"
        if estimate.changes:
            return f"The first token that changes: {token} at {position}, {logits}"
        return f"No token changes; the NLL rises most at {position}, {token}, {logits}"

    def _map(self, scene: Scene, estimate: PatchScores, site: PatchSite, values: Any, exact: bool) -> None:
        heatmap = self.query_one(Heatmap)
        rows = [f"L{layer}" for layer in range(len(values))]
        groups: list[tuple[str, int]] = []
        if site == "heads":
            columns = [f"H{head}" for head in range(values.shape[1])]
        else:
            places = range(estimate.first, estimate.first + values.shape[1])
            columns = [str(place) for place in places]
            for place in places:
                if place % 10 == 0 or not groups:
                    groups.append((str(place), 0))
                groups[-1] = (groups[-1][0], groups[-1][1] + 1)
        sizes = abs(values[values == values])
        scale = float(sizes.max()) if sizes.size else 0.0
        heatmap.show(Matrix(values, rows, columns, "perturb", scale, groups))
        self._how = "really run" if exact else "estimated"
        self._name_cell()

    _how = ""

    @staticmethod
    def _token(scene: Scene, estimate: PatchScores, place: int) -> str:
        return token_name(scene, (*scene.view.prefix, *estimate.reference.tolist())[place])

    def _estimate(self) -> PatchScores | None:
        """What the map shows, None where it is not known (any more)."""
        scene, known = self.scene, self.known
        return known.result(scene.attribution()) if scene is not None and known is not None else None

    def _name_cell(self) -> None:
        heatmap, scene = self.query_one(Heatmap), self.scene
        estimate = self._estimate()
        if heatmap.matrix is None or scene is None or estimate is None:
            return
        row, column = heatmap.cursor
        site, direction, metric = self._chosen(scene)
        place = column if site == "heads" else estimate.first + column
        name = cell_name((site, row, place))
        if site != "heads":
            name = f"{site} {name} {self._token(scene, estimate, place)}"
        value = figure(float(heatmap.matrix.values[row, column]))
        meaning = "1 = restored" if direction == 0 else "1 = broken"
        legend = f" · {heatmap.legend}" if heatmap.legend else ""
        self.line(
            "#patch-cell",
            Content.assemble(
                (f"{name} {value}", "bold"),
                (f" of the {METRIC.options[metric]}, {meaning} · {self._how}{legend}", "$text-muted"),
            ),
        )

    # ------------------------------------------------------------------------------------------------------ messages

    def on_heatmap_moved(self, message: Heatmap.Moved) -> None:
        message.stop()
        self._name_cell()

    def on_heatmap_chosen(self, message: Heatmap.Chosen) -> None:
        message.stop()
        if not message.gone and (estimate := self._estimate()) is not None:
            assert self.scene is not None
            site = self._chosen(self.scene)[0]
            self._choose(site, message.row, message.column if site == "heads" else estimate.first + message.column)

    def _choose(self, site: PatchSite, layer: int, place: int) -> None:
        """A head's cell chooses that head for the Attention tab, a position's goes to its token."""
        assert self.scene is not None
        if site == "heads":
            self.post_message(self.ChoseHead((layer, place)))
        elif place < self.scene.view.prefix_length:
            self.post_message(self.Jump(place))

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        if isinstance(message.rows, Patches) and not message.gone and (estimate := self._estimate()) is not None:
            assert self.scene is not None
            _, layer, place = message.rows.cells[message.index]
            site = self._chosen(self.scene)[0]
            self.query_one(Heatmap).move_to(layer, place if site == "heads" else place - estimate.first)

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        if isinstance(message.rows, Patches) and not message.gone and self._estimate() is not None:
            self._choose(*message.rows.cells[message.index])
