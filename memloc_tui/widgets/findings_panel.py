"""The Findings tab: the paper's claims with their verdicts, and an overview of the set they were tested on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from memloc_core.findings import CLAIMS
from memloc_core.requests import Finding
from memloc_tui.figures import figure, interval, percent
from memloc_tui.findings import SIGNS, clock
from memloc_tui.glyphs import bar, fit, visible
from memloc_tui.scene import Known, Scene, Switch, Want
from memloc_tui.widgets.bars import BarList, hatched
from memloc_tui.widgets.heatmap import Heatmap, Matrix
from memloc_tui.widgets.local_panel import LocalPanel, switch_bindings
from memloc_tui.widgets.one_line import OneLine
from memloc_tui.widgets.row_list import RowList

if TYPE_CHECKING:
    from memloc_core.findings.overview import CountRow, StratumRow
    from memloc_tui.screens.finding import Board

SHOWN = Switch("findings_view", "v", ("claims", "overview"), "Findings: the claims, or an overview of the set", "view")
SIZE = Switch("findings_size", "g", ("quick", "full"), "Findings: few paragraphs per claim, or many", "size")
LOOKS = {"holds": "match", "does not hold": "leave", "inconclusive": "perturb"}
NAME = max(len(claim.name) for claim in CLAIMS)


def scaled(finding: Finding, width: int) -> str:
    """The effect ● in its interval ├──┤, the paper's number ◆ and zero │ on one scale of their own, `width` cells."""
    assert finding.effect is not None
    assert finding.interval is not None
    low, high = finding.interval
    # A ratio's neutral value is one, a difference's is zero.
    neutral = 1.0 if finding.unit.startswith("times") else 0.0
    points = [low, high, finding.effect, neutral, *([finding.paper] if finding.paper is not None else [])]
    start, end = min(points), max(points)
    span = (end - start) or 1.0

    def at(value: float) -> int:
        return round((value - start) / span * (width - 1))

    cells = [" "] * width
    for x in range(at(low), at(high) + 1):
        cells[x] = "─"
    cells[at(low)], cells[at(high)] = "├", "┤"
    if cells[at(neutral)] == " ":
        cells[at(neutral)] = "│"
    if finding.paper is not None:
        cells[at(finding.paper)] = "◆"
    cells[at(finding.effect)] = "●"
    return "".join(cells)


class ClaimList(RowList):
    """One row per claim: verdict, name, effect with its interval as a picture, n, the paper's number."""

    board: Board | None = None

    def show_board(self, board: Board) -> None:
        if self.board != board:
            self.board = board
            self.show_rows(len(CLAIMS), max(0, self.cursor))

    def row(self, index: int, width: int) -> list[Segment]:
        claim, board = CLAIMS[index], self.board
        assert board is not None
        finding = board.found.get(claim.name)
        faint = self.look("faint")
        if finding is None:
            said = "not tested"
            if board.running == claim.name:
                left = f" · {clock(board.left)} left" if board.left is not None else ""
                said = f"testing {bar(board.done, 10)} {percent(board.done)}{left}"
            return [Segment(f"· {'':<13} {claim.name:<{NAME}} ", faint), Segment(said, faint)]
        look = self.look(LOOKS[finding.verdict])
        head = [
            Segment(f"{SIGNS[finding.verdict]} {finding.verdict:<13} ", look),
            Segment(f"{claim.name:<{NAME}} "),
        ]
        if finding.effect is None or finding.interval is None:
            return [*head, Segment("no number: too little data, see below", faint)]
        room = width - 16 - NAME - 1 - 8 - 7 - 8
        numbers = [Segment(f"{interval(*finding.interval):<17}", faint)] if room >= 42 else []
        room -= 17 * len(numbers)
        paper = f"◆ {figure(finding.paper)}" if finding.paper is not None else ""
        return [
            *head,
            Segment(f"{figure(finding.effect):>7} "),
            *numbers,
            *([Segment(f"{scaled(finding, min(48, room))}", look)] if room >= 8 else []),
            Segment(f" n {finding.n:<4}", faint),
            Segment(f" {paper}", faint),
        ]


class CountList(BarList):
    """One row per repetition count: how many, mean EM, mean NLL, and how many are recited whole."""

    rows: tuple[CountRow, ...] = ()
    length = 1

    def show_counts(self, rows: tuple[CountRow, ...], length: int) -> None:
        if (self.rows, self.length) != (rows, length):
            self.rows, self.length = rows, length
            self.show_rows(len(rows), max(0, self.cursor) if rows else -1)

    def row(self, index: int, width: int) -> list[Segment]:
        row = self.rows[index]
        most = max((other.nll for other in self.rows), default=0.0) or 1.0
        room, whole = self.room(width)
        return [
            Segment(f"{row.name:>8} {row.n:>4} ", self.look("faint")),
            Segment(f"{figure(row.em):>5} "),
            Segment(f"{bar(row.em / self.length, room)} ", self.look("match")),
            Segment(f"{figure(row.nll):>5} "),
            Segment(f"{hatched(row.nll / most, room)} ", self.look("leave")),
            Segment(f"{row.memorized:>5}" if whole else "", self.look("faint")),
        ]

    @staticmethod
    def room(width: int) -> tuple[int, bool]:
        """Cells for a bar, and whether there are some for how many are recited whole."""
        whole = width >= 40
        return max(2, (width - 28 - 5 * whole) // 2), whole


class StratumList(RowList):
    """One row per stratum: its size and how varied it is."""

    rows: tuple[StratumRow, ...] = ()

    def show_strata(self, rows: tuple[StratumRow, ...]) -> None:
        if self.rows != rows:
            self.rows = rows
            self.show_rows(len(rows), max(0, self.cursor) if rows else -1)

    def row(self, index: int, width: int) -> list[Segment]:
        row = self.rows[index]
        clusters = f"{row.clusters}/{row.looked_at}" if row.looked_at else "·"
        return [
            Segment(f"{row.name:<9}"),
            Segment(f"{row.n:>5} {figure(row.nll):>6} "),
            Segment(f"{percent(row.unique):>6} {clusters:>8} {percent(row.code):>5}", self.look("faint")),
        ]


class FindingsPanel(LocalPanel):
    """See the module."""

    panel_id, title, key = "findings", "Findings", "0"
    MAIN = ClaimList
    SWITCHES = (SHOWN, SIZE)
    BINDINGS = [
        Binding(
            "t", "test", "test", id="findings.test", tooltip="Findings: test the claims; in the overview, gradients"
        ),
        *switch_bindings("findings", SWITCHES),
    ]
    DEFAULT_CSS = """
    FindingsPanel {
        & #findings-said { height: 5; padding: 0 1; }
        & #overview-left { width: 1fr; }
        & #overview-right { width: 1fr; min-width: 46; }
        & #overview-strata { height: 5; }
        & Heatmap { height: 1fr; min-height: 3; }
    }
    """

    class Test(Message):
        """The person wants the claims tested, or the overview's gradients."""

        def __init__(self, overview: bool) -> None:
            super().__init__()
            self.overview = overview

    class OpenClaim(Message):
        """The person wants to see what a finding is about."""

        def __init__(self, finding: Finding) -> None:
            super().__init__()
            self.finding = finding

    class OpenRow(Message):
        """The person wants to see this paragraph."""

        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

    def compose(self) -> ComposeResult:
        yield OneLine(classes="now", id="findings-now")
        with Vertical(id="findings-claims"):
            yield ClaimList(id="claims", empty="")
            yield Static(id="findings-said", markup=False)
        with Horizontal(id="findings-overview"):
            with Vertical(id="overview-left"):
                yield OneLine(classes="head", id="counts-head")
                yield CountList(id="overview-counts", empty="")
            with Vertical(id="overview-right"):
                yield OneLine(classes="head", id="strata-head")
                yield StratumList(id="overview-strata", empty="")
                yield OneLine(classes="head", id="shift-head")
                yield Heatmap(id="overview-shift", widest=8)

    def wanted(self, scene: Scene, known: Known) -> list[Want]:
        return []  # what it shows is tested when the person says so, by `screens.finding`

    def focus_inside(self) -> None:
        self._wants_focus = True
        if self._ready:
            overview = self.scene is not None and self.scene.setting(SHOWN) == "overview"
            self.screen.set_focus(self.query_one(CountList if overview else ClaimList))

    def action_test(self) -> None:
        if self.scene is not None:
            self.post_message(self.Test(self.scene.setting(SHOWN) == "overview"))

    # -------------------------------------------------------------------------------------------------------- drawing

    def draw(self, scene: Scene, known: Known) -> None:
        board, overview = scene.board, scene.setting(SHOWN) == "overview"
        claims = self.query_one("#findings-claims")
        if claims.display == overview:
            had_focus = self.has_focus_within
            claims.display = not overview
            if had_focus:
                self.call_after_refresh(self.focus_inside)
        self.query_one("#findings-overview").display = overview
        if board is None:
            self.line("#findings-now", Content.styled("The model is still opening …", "$text-muted"))
            return
        if overview:
            self._draw_overview(scene, board)
            return
        self.line("#findings-now", self._headline(scene, board))
        self.query_one(ClaimList).show_board(board)
        self._say()

    @staticmethod
    def _headline(scene: Scene, board: Board) -> Content:
        size, found = scene.setting(SIZE), board.found
        verdicts: list[str] = [finding.verdict for finding in found.values()]
        said = f" · {size} · {len(found)} of {len(CLAIMS)}"
        if found:
            counts = [(verdicts.count(v), word) for v, word in zip(SIGNS, ("hold", "not", "open"), strict=True)]
            said += ": " + ", ".join(f"{count} {word}" for count, word in counts)
        if board.running:
            said += " · esc stops"
        elif board.error:
            said += f" · {board.error}"
        elif board.waits:
            said += f" · {board.waits}"
        elif len(found) < len(CLAIMS):
            said += " · t tests the rest" if found else " · t tests them"
        return Content.assemble(("Claims", "bold"), (said, "$text-error" if board.error else ""))

    def _say(self) -> None:
        """The claim under the cursor in words."""
        rows, board = self.query_one(ClaimList), self.scene.board if self.scene is not None else None
        if board is None or not 0 <= rows.cursor < len(CLAIMS):
            return
        claim = CLAIMS[rows.cursor]
        finding = board.found.get(claim.name)
        lines = [Content.styled(claim.sentence, "bold")]
        if finding is not None:
            lines.append(Content(visible(finding.says)))
            scale = f"Unit: {finding.unit}. " if finding.effect is not None else ""
            opens = f" ⏎ opens {finding.view}" if finding.paragraph else ""
            lines.append(Content.styled(f"{scale}◆ Paper: {finding.paper_says}.{opens}", "$text-muted"))
        else:
            lines.append(Content.styled(f"Paper: {claim.paper_says}. Measured in: {claim.unit}.", "$text-muted"))
        said = Content("\n").join(lines)
        box = self.query_one("#findings-said", Static)
        if box.content != said:
            box.update(said, layout=False)

    def _draw_overview(self, scene: Scene, board: Board) -> None:
        catalogue = scene.catalogue
        length = len(scene.view.continuation)
        head = Content.assemble(("Overview", "bold"), f" of {len(catalogue.file):,} paragraphs")
        said = board.waits or board.error
        if board.running == "gradients":
            left = f", {clock(board.left)} left" if board.left is not None else ""
            said = f"gradients {percent(board.done)}{left} · esc stops"
        elif not said and board.shifts and any(s.known < s.of for s in board.shifts):
            said = "t measures the gradients"
        self.line("#findings-now", Content.assemble(head, (f" · {said}" if said else "", "$text-muted")))
        counts, strata = self.query_one(CountList), self.query_one(StratumList)
        counts.show_counts(board.counts or (), length)
        strata.show_strata(board.strata or ())
        room, whole = counts.room(counts.scrollable_content_region.width)
        if board.counts == ():
            self.line("#counts-head", "This set has no repetition counts.")
        else:  # each heading over its column
            names = f"{'count':>8} {'n':>4} {fit('   EM', room + 6)} {fit('  NLL', room + 6)}"
            self.line("#counts-head", f"{names} {'whole' if whole else ''}")
        self.line("#strata-head", f"{'stratum':<9}{'n':>5} {'NLL':>6} {'unique':>6} {'clusters':>8} {'code':>5}")
        self._draw_shift(scene, board)

    def _draw_shift(self, scene: Scene, board: Board) -> None:
        heatmap, layers = self.query_one(Heatmap), scene.model.layers
        self._shifts = [i for i, shift in enumerate(board.shifts) if len(shift.shares) == layers]
        shown = [board.shifts[i] for i in self._shifts]
        n = f" · n {', '.join(str(shift.known) for shift in shown)}" if shown else ""
        self.line("#shift-head", f"Share of the gradient by layer{n}")
        if not shown or board.strata is None:
            heatmap.show(None, "Not measured: t asks for the gradients of some paragraphs of each stratum.")
            return
        values = np.array([shift.shares for shift in shown])
        names = [f"{board.strata[i].name} Σ{figure(board.shifts[i].total)}" for i in self._shifts]
        columns = [f"L{layer}" for layer in range(layers)]
        heatmap.show(Matrix(values, names, columns, "gradient", float(values.max())))

    _shifts: list[int] = []  # the strata whose gradients are shown

    # ------------------------------------------------------------------------------------------------------- messages

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        self._say()

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        board = self.scene.board if self.scene is not None else None
        if board is None or message.gone:
            return
        if isinstance(message.rows, ClaimList):
            finding = board.found.get(CLAIMS[message.index].name)
            if finding is not None:
                self.post_message(self.OpenClaim(finding))
        elif isinstance(message.rows, CountList | StratumList) and message.rows.rows[message.index].row >= 0:
            self.post_message(self.OpenRow(message.rows.rows[message.index].row))

    def on_heatmap_chosen(self, message: Heatmap.Chosen) -> None:
        message.stop()
        board = self.scene.board if self.scene is not None else None
        if board is not None and message.row < len(self._shifts):
            self.post_message(self.OpenRow(board.shifts[self._shifts[message.row]].row))

    def on_heatmap_moved(self, message: Heatmap.Moved) -> None:
        message.stop()
