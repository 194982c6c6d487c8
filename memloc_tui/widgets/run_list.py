"""The runs of this model, newest first, below the line that opens the form of the next one."""

from __future__ import annotations

from rich.segment import Segment

from memloc_tui.glyphs import visible
from memloc_tui.runs import Run, Runs, outcome
from memloc_tui.widgets.row_list import RowList

STATES = {"running": "▸", "paused": "‖", "done": " ", "failed": "!"}


def brief(value: float) -> str:
    """A mean EM in at most four cells."""
    return "·" if value != value else f"{value:.1f}".removesuffix(".0")


class RunList(RowList):
    """Row 0 is the form. A run: mark, letter, whether its edit is on, its state, EM before and after, what it was."""

    runs: Runs = Runs()

    @property
    def run(self) -> Run | None:
        """The run under the cursor; None on the form's row."""
        return self.runs.runs[self.cursor - 1] if 0 < self.cursor <= len(self.runs.runs) else None

    def show_runs(self, runs: Runs, cursor: int = -1) -> None:
        """Show these runs; the cursor stays on its run, unless another row is asked for."""
        if runs.runs == self.runs.runs and runs.marked == self.runs.marked and self.count and cursor < 0:
            self.runs = runs
            return
        here = self.run
        self.runs = runs
        if cursor < 0:
            numbers = [run.number for run in runs.runs]
            if here is None:
                cursor = 0
            elif here.number in numbers:
                cursor = numbers.index(here.number) + 1
            else:  # its run is gone: the next one is looked at
                cursor = min(self.cursor, len(numbers))
                self.post_message(self.Moved(self, cursor))
        if self.count == len(runs.runs) + 1 and cursor == self.cursor:
            self.refresh()
        else:
            self.show_rows(len(runs.runs) + 1, cursor)

    def row(self, index: int, width: int) -> list[Segment]:
        if index == 0:
            return [Segment(" + ", self.look("perturb")), Segment("new run")]
        run = self.runs.runs[index - 1]
        mark = "◆" if run.number in self.runs.marked else " "
        on = "·" if run.on is None else "●" if run.on else "○"
        head = [
            Segment(mark, self.look("perturb")),
            Segment(f"{run.letter:<{self._letters}}", self.look("match" if run.on else "faint")),
            Segment(f"{on}", self.look("match" if run.on else "faint")),
            Segment(STATES[run.state], self.look("leave" if run.state == "failed" else "perturb")),
        ]
        if run.result is None or not len(run.result.em):
            return [*head, Segment(f" {visible(run.error) or run.called}", self.look("faint"))]
        before, after = float(run.result.em[0].mean()), outcome(run, "em")
        return [
            *head,
            Segment(f" {brief(before):>4}→{brief(after):<4} ", self.look("perturb")),
            Segment(f"{brief(outcome(run, 'others')):<4} ", self.look("match")),
            Segment(visible(run.label) or run.said.removeprefix("unlearn ")),
        ]

    @property
    def _letters(self) -> int:
        """Cells for a run's name."""
        return max((len(run.letter) for run in self.runs.runs), default=1)

    def head(self) -> str:
        """Over the columns."""
        return " " * self._letters + "    changed   others"
