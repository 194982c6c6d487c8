"""A matrix of numbers as coloured cells: printed in full where cells are wide, in tenths of the scale where not."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.color import Color
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from memloc_tui.figures import figure, short
from memloc_tui.glyphs import fit
from memloc_tui.widgets.row_list import SHADES, foreground

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDE, SHORT = 7, 4  # cells of this width hold any number that `figure` writes, or that `short` does
HUES = ("attention", "gradient", "perturb")


@dataclass(frozen=True)
class Matrix:
    """What a heatmap draws. `scale` is the value of full colour; `groups` are spans of columns with a name each."""

    values: NDArray[Any]  # [rows, columns]; nan: not known
    rows: Sequence[str]
    columns: Sequence[str]
    hue: str
    scale: float
    groups: Sequence[tuple[str, int]] = ()
    marks: tuple[tuple[int, int], ...] = ()  # cells that are marked: chosen ones

    def level(self, row: int, column: int) -> float:
        """0..1 of the scale, by size alone; nan where not known."""
        value = float(self.values[row, column])
        return min(1.0, abs(value) / self.scale) if self.scale > 0 else 0.0 * value


def tenths(value: float, level: float) -> str:
    """One cell for a number: · for next to nothing, 1..9 tenths of the scale, − where it is negative."""
    if value != value:
        return " "
    digit = min(9, int(level * 10))
    return "·" if digit == 0 else "−" if value < 0 else str(digit)


class Heatmap(ScrollView, can_focus=True):
    """Arrow keys and clicks move over the cells; Enter or a click chooses one."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"heat--faint", "heat--cursor", "heat--mark", *(f"heat--{h}" for h in HUES)}
    DEFAULT_CSS = """
    Heatmap {
        overflow: hidden auto; scrollbar-size-vertical: 1; padding: 0 1;
        scrollbar-color: $foreground 30%; scrollbar-background: $background;
        & > .heat--faint { color: $text-muted; }
        & > .heat--cursor { text-style: reverse bold; }
        & > .heat--mark { text-style: bold underline; }
        & > .heat--attention { color: #5c9dff; }
        & > .heat--gradient { color: #b083f0; }
        & > .heat--perturb { color: $text-warning; }
    }
    Heatmap:light { & > .heat--attention { color: #1f5fd0; } & > .heat--gradient { color: #7a3fd1; } }
    Heatmap:ansi {
        & > .heat--faint { color: ansi_default; text-style: dim; }
        & > .heat--attention { color: ansi_blue; }
        & > .heat--gradient { color: ansi_magenta; }
        & > .heat--perturb { color: ansi_yellow; }
    }
    """
    BINDINGS = [
        Binding("left", "step(0, -1)", "Left", id="heat.left", tooltip="One cell to the left", show=False),
        Binding("right", "step(0, 1)", "Right", id="heat.right", tooltip="One cell to the right", show=False),
        Binding("up", "step(-1, 0)", "Up", id="heat.up", tooltip="One cell up", show=False),
        Binding("down", "step(1, 0)", "Down", id="heat.down", tooltip="One cell down", show=False),
        Binding("pageup", "step(-8, 0)", "Page up", id="heat.page_up", tooltip="Eight cells up", show=False),
        Binding("pagedown", "step(8, 0)", "Page down", id="heat.page_down", tooltip="Eight cells down", show=False),
        Binding("home", "step(0, -9999)", "First", id="heat.first", tooltip="To the row's first cell", show=False),
        Binding("end", "step(0, 9999)", "Last", id="heat.last", tooltip="To the row's last cell", show=False),
        Binding("enter", "choose", "Choose", id="heat.choose", tooltip="Take this cell", show=False),
    ]

    class Pointed(Message):
        """Base of what the map posts: which cell it is about."""

        def __init__(self, heatmap: Heatmap, row: int, column: int) -> None:
            super().__init__()
            self.heatmap, self.row, self.column = heatmap, row, column

        @property
        def gone(self) -> bool:
            """The map has other cells since, and none here: whoever reads the message does nothing."""
            matrix = self.heatmap.matrix
            return matrix is None or not (self.row < matrix.values.shape[0] and self.column < matrix.values.shape[1])

        @property
        def control(self) -> Heatmap:
            return self.heatmap

    class Moved(Pointed):
        """The cursor stands on another cell."""

    class Chosen(Pointed):
        """A cell was clicked, or Enter pressed on it."""

    def __init__(self, *, id: str | None = None, empty: str = "", widest: int = WIDE + 1) -> None:
        super().__init__(id=id)
        self.matrix: Matrix | None = None
        self.cursor = (0, 0)
        self.empty = empty
        self._widest = widest
        self._styles_cached: dict[tuple[str, float, bool, str], Style] = {}

    # --------------------------------------------------------------------------------------------------- what is shown

    def show(self, matrix: Matrix | None, empty: str = "") -> None:
        """Draw this, or the `empty` text in its place; the cursor stays where it is as far as it can."""
        self.empty = empty
        if matrix is not None:
            rows, columns = matrix.values.shape
            self.cursor = (min(self.cursor[0], rows - 1), min(self.cursor[1], columns - 1))
        elif self.matrix is None and not empty:
            return
        self.matrix = matrix
        self._measure()
        self.refresh()

    @property
    def _gutter(self) -> int:
        return max(map(len, self.matrix.rows), default=0) + 1 if self.matrix else 0

    @property
    def _headers(self) -> int:
        return 1 + bool(self.matrix and self.matrix.groups)

    @property
    def cell_width(self) -> int:
        """The widest cells with which all columns fit, at least one."""
        if self.matrix is None:
            return 1
        room = self.scrollable_content_region.width - self._gutter
        return max(1, min(self._widest, room // max(1, len(self.matrix.columns))))

    @property
    def legend(self) -> str:
        """What a digit in a cell is, where cells are too narrow for numbers."""
        if self.matrix is None or self.cell_width >= WIDE:
            return ""
        if self.cell_width >= SHORT and 0.45 <= self.matrix.scale < 999.5:
            return ""
        return f"digits: tenths of {figure(self.matrix.scale)}"

    def _measure(self) -> None:
        if self.matrix is not None:
            columns = len(self.matrix.columns) * self.cell_width
            self.virtual_size = Size(self._gutter + columns, self._headers + len(self.matrix.rows))
            self.reveal()

    def on_resize(self) -> None:
        self._measure()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles_cached.clear()

    # ------------------------------------------------------------------------------------------------------- painting

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        faint = self.rich_style + foreground(self.get_component_rich_style("heat--faint"))
        matrix = self.matrix
        if matrix is None:
            lines = textwrap.wrap(self.empty, max(1, width))
            return Strip([Segment(fit(lines[y] if y < len(lines) else "", width), faint)], width)
        gutter, cell, left = self._gutter, self.cell_width, self.scroll_offset.x
        if y < self._headers:
            line = self._group_line(matrix, cell) if y < self._headers - 1 else self._column_line(matrix, cell)
            return Strip([Segment(fit(" " * gutter + line[left:], width), faint)], width)
        row = y - self._headers + self.scroll_offset.y
        if row >= len(matrix.rows):
            return Strip.blank(width, self.rich_style)
        segments = [self._cell(matrix, row, column, cell) for column in range(len(matrix.columns))]
        cells = Strip(segments).crop(left, left + max(0, width - gutter))
        name = Segment(matrix.rows[row].rjust(gutter - 1) + " ", faint)
        return Strip([name, *cells]).adjust_cell_length(width, self.rich_style)

    @staticmethod
    def _group_line(matrix: Matrix, cell: int) -> str:
        """Each name where its columns start; where they are too narrow for W_out, its own part: out."""
        named = ((name if len(name) < size * cell else name.rpartition("_")[2], size) for name, size in matrix.groups)
        return "".join(fit(name, size * cell) for name, size in named)

    @staticmethod
    def _column_line(matrix: Matrix, cell: int) -> str:
        return "".join(name[-cell:].rjust(cell) for name in matrix.columns)

    def _cell(self, matrix: Matrix, row: int, column: int, width: int) -> Segment:
        value, level = float(matrix.values[row, column]), matrix.level(row, column)
        text = figure(value) if width >= WIDE else tenths(value, level) if self.legend else short(value)
        cursor = ""
        if (row, column) == self.cursor and self.has_focus:
            cursor = "heat--cursor"
        elif (row, column) == self.cursor or (row, column) in matrix.marks:
            cursor = "heat--mark"
        if (row, column) in matrix.marks and width > len(text) + 1:
            text = f"▸{text}"
        level = 0.0 if level != level else round(SHADES * level) / SHADES
        return Segment(text.rjust(width), self._style(matrix.hue, level, value < 0, cursor))

    def _style(self, hue: str, level: float, negative: bool, cursor: str) -> Style:
        """The hue behind the number, as strong as the value is large; negative ones in italics too."""
        key = (hue, level, negative, cursor)
        if key not in self._styles_cached:
            style = self.rich_style
            ink = foreground(self.get_component_rich_style(f"heat--{hue}"))
            if self.app.native_ansi_color:
                style += ink + Style(reverse=level > 0.66, bold=level > 0.33)
            elif ink.color and style.bgcolor:
                ground = Color.from_rich_color(style.bgcolor).blend(Color.from_rich_color(ink.color), 0.8 * level)
                style += Style(color=ground.get_contrast_text(0.9).rich_color, bgcolor=ground.rich_color)
            if negative:
                style += Style(italic=True)
            if cursor:
                style += self.get_component_rich_style(cursor, partial=True)
            self._styles_cached[key] = style
        return self._styles_cached[key]

    # --------------------------------------------------------------------------------------------------------- moving

    def move_to(self, row: int, column: int) -> None:
        """Put the cursor on a cell, clamped to those that exist."""
        if self.matrix is None:
            return
        rows, columns = self.matrix.values.shape
        target = (max(0, min(row, rows - 1)), max(0, min(column, columns - 1)))
        if target != self.cursor:
            before, self.cursor = self.cursor, target
            scrolled = self.scroll_offset
            self.reveal()
            if self.scroll_offset == scrolled:
                self._repaint(before[0])
                self._repaint(target[0])
            else:
                self.refresh()
            self.post_message(self.Moved(self, *target))

    def reveal(self) -> None:
        """Scroll to the cursor."""
        region = self.scrollable_content_region
        height, width, cell = region.height - self._headers, region.width - self._gutter, self.cell_width
        if self.matrix is None or height <= 0 or width <= 0:
            return
        (row, column), (left, top) = self.cursor, self.scroll_offset
        top = min(max(top, row - height + 1), row)
        left = min(max(left, (column + 1) * cell - width), column * cell)
        if (left, top) != self.scroll_offset:
            self.scroll_to(left, top, animate=False, immediate=True, force=True)

    def _repaint(self, row: int) -> None:
        y = row - self.scroll_offset.y + self._headers
        if self._headers <= y < self.scrollable_content_region.height:
            self.refresh(Region(self.gutter.left, self.gutter.top + y, self.scrollable_content_region.width, 1))

    def action_step(self, rows: int, columns: int) -> None:
        self.move_to(self.cursor[0] + rows, self.cursor[1] + columns)

    def action_choose(self) -> None:
        if self.matrix is not None:
            self.post_message(self.Chosen(self, *self.cursor))

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or self.matrix is None:
            return
        row = offset.y - self._headers + self.scroll_offset.y
        column = (offset.x - self._gutter + self.scroll_offset.x) // self.cell_width
        rows, columns = self.matrix.values.shape
        if offset.y >= self._headers and row < rows and offset.x >= self._gutter and column < columns:
            self.move_to(row, column)
            self.action_choose()

    def on_focus(self) -> None:
        self._repaint(self.cursor[0])

    def on_blur(self) -> None:
        self._repaint(self.cursor[0])
