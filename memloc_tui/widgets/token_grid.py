"""Tokens in aligned columns, wrapped to the pane: one Line API widget however many tokens there are."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.color import Color
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from memloc_tui.glyphs import fit
from memloc_tui.widgets.row_list import SHADES, foreground


class Cell(NamedTuple):
    """One row of one column: what it says, its look (a component class), and 0..1 of the look's hue behind it."""

    text: str
    look: str = ""
    level: float = 0.0


Column = tuple[Cell, ...]


class TokenGrid(ScrollView, can_focus=True):
    """Columns of `rows` cells each; the cursor walks over columns, and up and down over wrapped lines."""

    LOOKS: ClassVar[tuple[str, ...]] = ("match", "same", "leave", "astray", "perturb", "attention", "gradient", "faint")
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "grid--odd",
        *(f"grid--{look}" for look in LOOKS),
    }
    DEFAULT_CSS = """
    TokenGrid {
        overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; padding: 0 1;
        & > .grid--odd { background: $foreground 7%; }
        & > .grid--faint { color: $text-muted; }
        & > .grid--match { color: $text-success; }
        & > .grid--same { color: $text-success; text-style: dim; }
        & > .grid--leave { color: $text-error; text-style: bold; }
        & > .grid--astray { color: $text-error; }
        & > .grid--perturb { color: $text-warning; text-style: bold; }
        & > .grid--attention { color: #5c9dff; }
        & > .grid--gradient { color: #b083f0; }
    }
    TokenGrid:light { & > .grid--attention { color: #1f5fd0; } & > .grid--gradient { color: #7a3fd1; } }
    TokenGrid:ansi {
        & > .grid--odd { background: ansi_default; text-style: underline; }
        & > .grid--faint { color: ansi_default; text-style: dim; }
        & > .grid--match, & > .grid--same { color: ansi_green; }
        & > .grid--leave, & > .grid--astray { color: ansi_red; }
        & > .grid--perturb { color: ansi_yellow; }
        & > .grid--attention { color: ansi_blue; }
        & > .grid--gradient { color: ansi_magenta; }
    }
    """
    BINDINGS = [
        Binding("left", "token(-1)", "Left", id="tokens.left", tooltip="Move to the token before", show=False),
        Binding("right", "token(1)", "Right", id="tokens.right", tooltip="Move to the next token", show=False),
        Binding("up", "line(-1)", "Up", id="tokens.up", tooltip="Move up one line of tokens", show=False),
        Binding("down", "line(1)", "Down", id="tokens.down", tooltip="Move down one line of tokens", show=False),
        Binding("home", "go(0)", "First", id="tokens.first", tooltip="Go to the first token", show=False),
        Binding("end", "go(-1)", "Last", id="tokens.last", tooltip="Go to the last token", show=False),
        Binding(
            "enter",
            "choose",
            "Choose",
            id="tokens.choose",
            tooltip="In the prefix another token; in the continuation what the model expects there",
            show=False,
        ),
    ]

    class Pointed(Message):
        """Base of what the list posts: which column it is about."""

        def __init__(self, grid: TokenGrid, index: int) -> None:
            super().__init__()
            self.grid, self.index = grid, index

        @property
        def control(self) -> TokenGrid:
            return self.grid

    class Moved(Pointed):
        """The cursor stands on another column."""

    class Chosen(Pointed):
        """A column was clicked, or Enter pressed on it."""

    def __init__(self, *, empty: str = "", id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.columns: list[Column] = []
        self.labels: tuple[str, ...] = ("",)
        self.cursor = 0
        self.empty = empty
        self._lines: list[tuple[int, int]] = []  # [start, end) of columns per wrapped line
        self._widths: list[int] = []
        self._stride = 1
        self._said = ("", "")
        self._strips: dict[tuple[int, int], Strip] = {}
        self._styles_cached: dict[tuple[str, bool, float, str], Style] = {}

    # --------------------------------------------------------------------------------------------------- what is shown

    def title(self, title: str, subtitle: str | None = None) -> None:
        """The upper and lower edge's texts; data only through `glyphs`. Unchanged ones paint nothing."""
        if subtitle is None:
            subtitle = self._said[1]
        if (title, subtitle) != self._said:
            self._said = (title, subtitle)
            self.border_title, self.border_subtitle = Content(title), Content(subtitle)

    def show(self, columns: list[Column], labels: tuple[str, ...] = ("",), empty: str = "") -> None:
        """Show these columns; only the lines that differ from before are painted again."""
        old, old_lines, old_stride, old_widths = self.columns, self._lines, self._stride, self._widths
        same_frame = labels == self.labels and len(columns) == len(old) and bool(columns)
        self.columns, self.labels, self.empty = columns, labels, empty or self.empty
        self.cursor = min(self.cursor, max(0, len(columns) - 1))
        self._wrap()
        if not same_frame or (old_lines, old_stride) != (self._lines, self._stride):
            self._strips.clear()
            self.refresh()
            return
        for number, (start, end) in enumerate(self._lines):
            if old[start:end] != columns[start:end] or old_widths[start:end] != self._widths[start:end]:
                self._repaint(number)

    @property
    def _label_width(self) -> int:
        width = max(map(cell_len, self.labels), default=0)
        return width + 1 if width else 0

    def _wrap(self) -> None:
        room = max(1, self.scrollable_content_region.width - self._label_width)
        self._widths = [min(room, max(1, *(cell_len(c.text) for c in column))) for column in self.columns]
        self._lines = []
        start, used = 0, 0
        for index, width in enumerate(self._widths):
            if used + width > room and index > start:
                self._lines.append((start, index))
                start, used = index, 0
            used += width
        if self._widths:
            self._lines.append((start, len(self._widths)))
        rows = len(self.labels)
        # An empty row between lines helps the eye over several rows, where the pane has room for it.
        loose = rows > 1 and len(self._lines) * (rows + 1) - 1 <= self.scrollable_content_region.height
        self._stride = rows + (1 if loose else 0)
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._lines) * self._stride - (loose or 0))

    def on_resize(self) -> None:
        self._wrap()
        self._strips.clear()
        self._reveal()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()
        self._styles_cached.clear()

    # ------------------------------------------------------------------------------------------------------- painting

    def _style(self, look: str, odd: bool, level: float, cursor: str) -> Style:
        """One token's style: shade of its turn, then its meaning's hue, then how strong, then the cursor."""
        level = round(SHADES * level) / SHADES
        key = (look, odd, level, cursor)
        if key not in self._styles_cached:
            style = self.get_component_rich_style("grid--odd") if odd else self.rich_style
            if look:
                hue = foreground(self.get_component_rich_style(f"grid--{look}"))
                style += hue
                if level > 0 and not self.app.native_ansi_color and hue.color and style.bgcolor:
                    ground = Color.from_rich_color(style.bgcolor).blend(Color.from_rich_color(hue.color), 0.75 * level)
                    style += Style(color=ground.get_contrast_text(0.95).rich_color, bgcolor=ground.rich_color)
                elif level > 0.66:
                    style += Style(reverse=True)
                elif level > 0.33:
                    style += Style(bold=True, underline=True)
            if cursor == "focus":
                style += Style(reverse=True)
            elif cursor:
                style += Style(underline=True, bold=True)
            self._styles_cached[key] = style
        return self._styles_cached[key]

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        width = self.scrollable_content_region.width
        number, row = divmod(y, self._stride)
        if not self.columns:
            text = self.empty if y == 0 else ""
            return Strip([Segment(fit(text, width), self.get_component_rich_style("grid--faint"))], width)
        if number >= len(self._lines) or row >= len(self.labels):
            return Strip.blank(width, self.rich_style)
        if (number, row) not in self._strips:
            self._strips[number, row] = self._draw(number, row, width)
        return self._strips[number, row]

    def _draw(self, number: int, row: int, width: int) -> Strip:
        segments = []
        if gutter := self._label_width:
            segments.append(Segment(fit(self.labels[row], gutter), self.get_component_rich_style("grid--faint")))
        start, end = self._lines[number]
        for index in range(start, end):
            cell = self.columns[index][row]
            cursor = ""
            if index == self.cursor and row == 0:
                cursor = "focus" if self.has_focus else "blur"
            style = self._style(cell.look, index % 2 == 1, cell.level, cursor)
            segments.append(Segment(fit(cell.text, self._widths[index]), style))
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _repaint(self, number: int) -> None:
        for row in range(len(self.labels)):
            self._strips.pop((number, row), None)
        top = number * self._stride - self.scroll_offset.y
        gutter = self.gutter
        self.refresh(Region(gutter.left, gutter.top + top, self.scrollable_content_region.width, self._stride))

    # --------------------------------------------------------------------------------------------------------- moving

    def line_of(self, index: int) -> int:
        return next((n for n, (start, end) in enumerate(self._lines) if start <= index < end), 0)

    def move_to(self, index: int) -> None:
        """Put the cursor on a column, clamped to those that exist."""
        index = max(0, min(index, len(self.columns) - 1))
        if index != self.cursor and self.columns:
            before, self.cursor = self.cursor, index
            self._repaint(self.line_of(before))
            self._repaint(self.line_of(index))
            self._reveal()
            self.post_message(self.Moved(self, index))

    def _reveal(self) -> None:
        if self._lines:
            top = self.line_of(self.cursor) * self._stride
            height = self.scrollable_content_region.height
            bottom = top + min(len(self.labels), height)  # where there is not room for all rows, the first ones
            if top < self.scroll_offset.y:
                self.scroll_to(y=top, animate=False, immediate=True)
            elif bottom > self.scroll_offset.y + height:
                self.scroll_to(y=bottom - height, animate=False, immediate=True)

    def action_token(self, step: int) -> None:
        self.move_to(self.cursor + step)

    def action_line(self, step: int) -> None:
        """To the token above or below the middle of the current one."""
        if not self._lines:
            return
        number = self.line_of(self.cursor)
        start, _ = self._lines[number]
        middle = sum(self._widths[start : self.cursor]) + self._widths[self.cursor] // 2
        target = max(0, min(number + step, len(self._lines) - 1))
        if target != number:
            self.move_to(self._column_at(target, middle))

    def action_go(self, index: int) -> None:
        self.move_to(index if index >= 0 else len(self.columns) - 1)

    def action_choose(self) -> None:
        if self.columns:
            self.post_message(self.Chosen(self, self.cursor))

    def _column_at(self, number: int, x: int) -> int:
        start, end = self._lines[number]
        for index in range(start, end):
            x -= self._widths[index]
            if x < 0:
                return index
        return end - 1

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or not self.columns:
            return
        number, row = divmod(offset.y + self.scroll_offset.y, self._stride)
        x = offset.x - self._label_width
        if number < len(self._lines) and row < len(self.labels) and x >= 0:
            start, end = self._lines[number]
            if x < sum(self._widths[start:end]):
                self.move_to(self._column_at(number, x))
                self.action_choose()

    def show_cursor(self) -> None:
        """Say what stands under the cursor; the grid itself has nothing to say."""

    def on_focus(self) -> None:
        self._repaint(self.line_of(self.cursor))

    def on_blur(self) -> None:
        self._repaint(self.line_of(self.cursor))
