"""The Perturb tab: the current replacements and their effect, what was tried before, and a sweep's worst positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message

from memloc_tui.figures import head_names
from memloc_tui.glyphs import bar, piece_text, quoted
from memloc_tui.widgets.continuation_pane import change
from memloc_tui.widgets.one_line import OneLine
from memloc_tui.widgets.prefix_pane import number
from memloc_tui.widgets.row_list import RowList

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.scene import Known, Scene
    from memloc_tui.view import Replacements, SweepView, Trial, View


def named(catalogue: Catalogue, token: int) -> str:
    pieces = catalogue.pieces
    return quoted(piece_text(pieces[token] if 0 <= token < len(pieces) else b"", token))


def described(view: View, replacements: Replacements, catalogue: Catalogue) -> str:
    """`12 " Washington" → " dog"`, for every replacement."""
    return ", ".join(
        f"{position} {named(catalogue, view.prefix[position])} → {named(catalogue, token)}"
        for position, token in replacements
    )


class TrialList(RowList):
    """The paragraph's history, newest first. Enter puts a row's replacements back."""

    view: View | None = None
    catalogue: Catalogue | None = None

    def show_trials(self, view: View, catalogue: Catalogue) -> None:
        fresh = self.view is None or self.view.index != view.index or self.view.trials != view.trials
        now_changed = self.view is not None and self.view.replacements != view.replacements
        self.view, self.catalogue = view, catalogue
        if fresh:
            self.show_rows(len(view.trials), min(self.cursor, len(view.trials) - 1) if view.trials else -1)
        elif now_changed:
            self.refresh()

    def row(self, index: int, width: int) -> list[Segment]:
        view, catalogue = self.view, self.catalogue
        assert view is not None
        assert catalogue is not None
        trial: Trial = view.trials[index]
        score = trial.score
        sign = "▸" if trial.replacements == view.replacements else " "
        effect = f"{-score.drop:+d}".replace("-", "−") if score.drop else "0"
        without = f"without {head_names(score.ablated)}  " if score.ablated else ""
        return [
            Segment(f"{sign}{score.em:>3} {effect:>4}", self.look("perturb" if score.drop else "faint")),
            Segment(f" {score.margin:>7.2g} {score.took:>7}  {without}", self.look("faint")),
            Segment(described(view, trial.replacements, catalogue)),
        ]


class WorstList(RowList):
    """A sweep's positions, largest drop first. Enter puts that replacement in."""

    sweep: SweepView | None = None
    view: View | None = None
    catalogue: Catalogue | None = None
    positions: list[int] = []

    def show_sweep(self, view: View, catalogue: Catalogue) -> None:
        if self.view is not None and self.view.index == view.index and self.sweep is view.sweep:
            self.view = view
            return
        self.view, self.catalogue, self.sweep = view, catalogue, view.sweep
        drops = view.sweep.drops if view.sweep else ()
        self.positions = sorted((p for p, d in enumerate(drops) if d == d), key=lambda p: (-drops[p], p))
        self.show_rows(len(self.positions), 0 if self.positions else -1)

    def replacement(self, index: int) -> tuple[int, int]:
        """Position and the token whose drop there was largest."""
        assert self.sweep is not None
        position = self.positions[index]
        ems = self.sweep.scores.em[position].tolist()
        return position, int(self.sweep.scores.replacements[position, ems.index(min(ems))])

    def row(self, index: int, width: int) -> list[Segment]:
        assert self.view is not None
        assert self.catalogue is not None
        assert self.sweep is not None
        position, token = self.replacement(index)
        drop = self.sweep.drops[position]
        share = drop / max(1, len(self.view.continuation))
        return [
            Segment(f"{number(drop):>4} {bar(share, 6)} ", self.look("perturb" if drop > 0 else "faint")),
            Segment(f"{position:>2} ", self.look("faint")),
            Segment(f"{named(self.catalogue, self.view.prefix[position])} → {named(self.catalogue, token)}"),
        ]


class PerturbPanel(Vertical):
    """See the module."""

    DEFAULT_CSS = """
    PerturbPanel {
        & > .now { height: 1; padding: 0 1; }
        & .head { height: 1; color: $text-muted; padding: 0 1; }
        & #trials-side { width: 5fr; }
        & #worst-side { width: 4fr; }
        & RowList { height: 1fr; padding: 0 1; }
    }
    """

    class Apply(Message):
        """The person wants these replacements in place of the current ones."""

        def __init__(self, replacements: Replacements) -> None:
            super().__init__()
            self.replacements = replacements

    class Jump(Message):
        """The person looks at this prefix position."""

        def __init__(self, position: int) -> None:
            super().__init__()
            self.position = position

    def compose(self) -> ComposeResult:
        yield OneLine(classes="now")
        with Horizontal():
            with Vertical(id="trials-side"):
                yield OneLine(classes="head", id="trials-head")
                yield TrialList(id="trials", empty="Nothing tried yet.")
            with Vertical(id="worst-side"):
                yield OneLine(classes="head", id="worst-head")
                yield WorstList(id="worst", empty="No sweep yet: w runs one.")

    def focus_inside(self) -> None:
        self.screen.set_focus(self.query_one(TrialList))

    def show(self, view: View, catalogue: Catalogue, scene: Scene | None, known: Known) -> None:
        self._line(".now", self._now(view, catalogue))
        self._line("#trials-head", Content(self._history_said(view)))
        self._line("#worst-head", Content(self._sweep_said(view)))
        self.query_one(TrialList).show_trials(view, catalogue)
        self.query_one(WorstList).show_sweep(view, catalogue)

    def _line(self, selector: str, content: Content) -> None:
        line = self.query_one(selector, OneLine)
        if line.content != content:
            line.say(content)

    def _now(self, view: View, catalogue: Catalogue) -> Content:
        if not view.replacements:
            return Content.styled("No replacement. Click a token, or ⏎ on it, to perturb the prefix.", "$text-muted")
        what = ("position " if len(view.replacements) == 1 else "positions ") + described(
            view, view.replacements, catalogue
        )
        score = view.score
        if view.error:
            return Content.assemble((what, "$text-warning"), f"   {view.error}")
        if score is None or view.asking:
            return Content.assemble((what, "$text-warning"), ("   asking …", "$text-muted"))
        said = f"   {change(score.em_before, score.em)}   margin {score.margin:.2g}   {score.took}"
        return Content.assemble((what, "bold $text-warning"), said)

    def _sweep_said(self, view: View) -> str:
        sweep = view.sweep
        if sweep is None:
            return "Sweep"
        n = len(sweep.known)
        name = "Sweep" if not sweep.verified else "Verified" if sweep.done else "In bf16"
        kept = ", cached" if sweep.cached else ""
        return (f"{name}: mean drop {sweep.mean:.1f}, n {n}" if n else f"{name}: waiting") + kept

    def _history_said(self, view: View) -> str:
        if not view.trials:
            return "History"
        return f"{'EM':>4} {'':>4} {'margin':>7} {'':>7}  History of {len(view.trials)}"

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        if message.gone:
            return
        if isinstance(message.rows, TrialList) and message.rows.view is not None:
            self.post_message(self.Apply(message.rows.view.trials[message.index].replacements))
        elif isinstance(message.rows, WorstList):
            replacement = message.rows.replacement(message.index)
            self.post_message(self.Jump(replacement[0]))
            self.post_message(self.Apply((replacement,)))

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        if isinstance(message.rows, WorstList) and not message.gone:
            self.post_message(self.Jump(message.rows.positions[message.index]))
