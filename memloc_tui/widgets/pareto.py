"""Runs compared in one picture: how much is forgotten against how much is kept, a letter each, with the values.

The table of the values goes along with the cursor in the list of runs: a run that is looked at is always in it.
"""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from memloc_tui.figures import figure
from memloc_tui.glyphs import fit
from memloc_tui.runs import AXES, AXIS, Point
from memloc_tui.widgets.row_list import foreground

LEFT = 8  # cells for the numbers of the vertical axis


class Pareto(Widget):
    """Left is the picture, right of it (or below, where it is narrow) the runs' figures; dominated runs are dim."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"pareto--faint", "pareto--best", "pareto--here"}
    DEFAULT_CSS = """
    Pareto {
        padding: 0 1;
        & > .pareto--faint { color: $text-muted; }
        & > .pareto--best { color: $text-success; text-style: bold; }
        & > .pareto--here { text-style: reverse; }
    }
    Pareto:ansi {
        & > .pareto--faint { color: ansi_default; text-style: dim; }
        & > .pareto--best { color: ansi_green; text-style: bold; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.points: list[Point] = []
        self.axes = next(iter(AXES))
        self.here = -1  # the number of the run that the list's cursor is on
        self.empty = ""
        self._lines: list[Strip] = []

    def show(self, points: list[Point], axes: str, here: int, empty: str = "") -> None:
        """Show these runs under these axes."""
        self.points, self.axes, self.here, self.empty = points, axes, here, empty
        self._lines = []
        self.refresh()

    def on_resize(self) -> None:
        self._lines = []

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._lines = []

    def render_line(self, y: int) -> Strip:
        width, height = self.content_size
        if not self._lines:
            self._lines = self._draw(width, height)
        return self._lines[y] if y < len(self._lines) else Strip.blank(width, self.rich_style)

    def _look(self, name: str) -> Style:
        return self.rich_style + foreground(self.get_component_rich_style(f"pareto--{name}"))

    def _draw(self, width: int, height: int) -> list[Strip]:
        faint = self._look("faint")
        if not self.points:
            return [Strip([Segment(fit(self.empty, width), faint)], width)]
        names = self._names()
        beside = width >= 62
        table = min(max(map(len, names)) + 1, width // 2) if beside else width
        rows = height if beside else max(4, height - min(len(names), max(1, height // 3)))
        picture = self._picture(width - table - 2 if beside else width, rows)
        styles = [faint if not p.best else self._look("best") for p in self.points]
        listed = [Segment(fit(name, table), style) for name, style in zip(names, styles, strict=True)]
        listed = self._in_sight(listed, rows if beside else height - rows, table)
        if not beside:
            return [*picture, *(Strip([segment]) for segment in listed)]
        lines = []
        for y in range(rows):
            right = [Segment("  ", self.rich_style), listed[y]] if y < len(listed) else []
            lines.append(Strip([*picture[y], *right]).adjust_cell_length(width, self.rich_style))
        return lines

    def _in_sight(self, listed: list[Segment], room: int, width: int) -> list[Segment]:
        """The part of the table that there is room for, the run under the list's cursor in it, and how much is not."""
        if len(listed) <= room or room < 2:
            return listed[:room]
        room -= 1  # the last line says it
        at = next((i for i, p in enumerate(self.points) if p.run.number == self.here), 0)
        top = max(0, at - room + 1)
        said = f"  {top} more above, {len(listed) - top - room} below · ↑↓"
        return [*listed[top : top + room], Segment(fit(said, width), self._look("faint"))]

    def _names(self) -> list[str]:
        what = AXES[self.axes][1]
        here = ["▸" if p.run.number == self.here else " " for p in self.points]
        wide = max(len(p.run.letter) for p in self.points)
        return [
            f"{mark}{p.run.letter:<{wide}} {figure(p.x)} · {self._y(what, p.y)}  {p.run.called}"
            for mark, p in zip(here, self.points, strict=True)
        ]

    @staticmethod
    def _y(what: str, value: float) -> str:
        return f"{value:.4f}" if what == "agreement" else figure(value)

    def _picture(self, width: int, height: int) -> list[Strip]:
        """Axes with their ends printed, and a letter per run; where several stand in one cell, the best one's."""
        faint = self._look("faint")
        what_x, what_y = AXES[self.axes]
        room, rows = max(4, width - LEFT - 1), max(2, height - 3)
        xs, ys = [p.x for p in self.points], [p.y for p in self.points]
        (x0, x1), (y0, y1) = _ends(xs), _ends(ys)
        grid: dict[tuple[int, int], tuple[str, Point]] = {}  # a character of a run's letter or two
        for point in sorted(self.points, key=lambda p: (p.run.number == self.here, p.best)):
            column = round((point.x - x0) / (x1 - x0) * (room - 1))
            row = rows - 1 - round((point.y - y0) / (y1 - y0) * (rows - 1))
            size = len(point.run.letter)
            column = min(column, room - size)
            while any((row, column + i) in grid for i in range(size)) and column < room - size:
                column += 1  # beside a run that came to the same
            for i, character in enumerate(point.run.letter):
                grid[row, column + i] = character, point
        lines = [Strip([Segment(fit(f"{AXIS[what_y]} ▴ kept", width), faint)])]
        for row in range(rows):
            edge = self._y(what_y, y1) if row == 0 else self._y(what_y, y0) if row == rows - 1 else ""
            segments = [Segment(edge.rjust(LEFT - 1) + " │", faint)]
            for column in range(room):
                character, here = grid.get((row, column), (" ", None))
                style = self.rich_style
                if here is not None:
                    style = self._look("best") if here.best else faint
                    style += Style(reverse=here.run.number == self.here)
                segments.append(Segment(character, style))
            lines.append(Strip(segments).simplify())
        lines.append(Strip([Segment(" " * LEFT + "└" + "─" * room, faint)]))
        low, high = figure(x0), figure(x1)
        space = room - len(low) - len(high)
        arrow = f"◂ forgotten · {AXIS[what_x]}" if what_x == "em" else f"{AXIS[what_x]} · forgotten ▸"
        if len(arrow) > space - 2:
            arrow = "◂ forgotten" if what_x == "em" else "forgotten ▸"
        lines.append(Strip([Segment(" " * (LEFT + 1) + low + arrow.center(space)[:space] + high, faint)]))
        return [line.adjust_cell_length(width, self.rich_style) for line in lines]


def _ends(values: list[float]) -> tuple[float, float]:
    """A scale that holds all values with a little room, and is never empty."""
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or max(0.02 * abs(high), 1e-3)
    return (0.0 if low >= 0 > low - pad else low - pad), high + pad
