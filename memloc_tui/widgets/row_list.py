"""A list that draws only the rows on screen: 100,000 rows scroll as 100 do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from memloc_tui.glyphs import fit

SHADES = 10  # of a hue: more cannot be told apart, and each is a style that goes down the line


def foreground(style: Style) -> Style:
    """A component's style without its background (a muted colour only resolves together with one)."""
    return Style(color=style.color, bold=style.bold, dim=style.dim, underline=style.underline, reverse=style.reverse)


class RowList(ScrollView, can_focus=True):
    """Rows of one line each. A subclass draws a row (`row`) and says how many there are (`show_rows`)."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "rows--cursor",
        "rows--cursor-blur",
        "rows--faint",
        "rows--match",
        "rows--leave",
        "rows--perturb",
    }
    DEFAULT_CSS = """
    RowList {
        overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1;
        & > .rows--cursor { background: $foreground 22%; text-style: bold; }
        & > .rows--cursor-blur { background: $foreground 9%; }
        & > .rows--faint { color: $text-muted; }
        & > .rows--match { color: $text-success; }
        & > .rows--leave { color: $text-error; }
        & > .rows--perturb { color: $text-warning; }
    }
    RowList:ansi {
        & > .rows--cursor { background: ansi_default; text-style: reverse; }
        & > .rows--cursor-blur { background: ansi_default; text-style: bold; }
        & > .rows--faint { color: ansi_default; text-style: dim; }
        & > .rows--match { color: ansi_green; }
        & > .rows--leave { color: ansi_red; }
        & > .rows--perturb { color: ansi_yellow; }
    }
    """
    BINDINGS = [
        Binding("up", "step(-1)", "Up", id="list.up", tooltip="Go up one row", show=False),
        Binding("down", "step(1)", "Down", id="list.down", tooltip="Go down one row", show=False),
        Binding("pageup", "page(-1)", "Page up", id="list.page_up", tooltip="Go up one page", show=False),
        Binding("pagedown", "page(1)", "Page down", id="list.page_down", tooltip="Go down one page", show=False),
        Binding("home", "go(0)", "First", id="list.first", tooltip="Go to the first row", show=False),
        Binding("end", "go(-1)", "Last", id="list.last", tooltip="Go to the last row", show=False),
        Binding("enter", "choose", "Choose", id="list.choose", tooltip="Take this row", show=False),
    ]

    class Pointed(Message):
        """Base of what the list posts: which row it is about."""

        def __init__(self, rows: RowList, index: int) -> None:
            super().__init__()
            self.rows, self.index = rows, index

        @property
        def control(self) -> RowList:
            return self.rows

        @property
        def gone(self) -> bool:
            """The list has other rows since, and none here: whoever reads the message does nothing."""
            return not 0 <= self.index < self.rows.count

    class Moved(Pointed):
        """The cursor stands on another row."""

    class Chosen(Pointed):
        """A row was clicked, or Enter pressed on it."""

    def __init__(self, *, id: str | None = None, empty: str = "") -> None:
        super().__init__(id=id)
        self.count = 0
        self.cursor = -1
        self.empty = empty
        # Called at once, before the message is read: the next key may be in the queue already, and means the new row.
        self.moved: Callable[[], None] | None = None

    def row(self, index: int, width: int) -> list[Segment]:
        """The row's segments, any width: cut and padded by the caller."""
        raise NotImplementedError

    def look(self, name: str) -> Style:
        """A look's foreground; the background is the row's own."""
        return foreground(self.get_component_rich_style(f"rows--{name}"))

    def show_rows(self, count: int, cursor: int = -1) -> None:
        """There are `count` rows now, all of them changed; the cursor stands on `cursor` (-1: on none)."""
        self.count = count
        self.cursor = min(cursor, count - 1)
        self.virtual_size = Size(self.scrollable_content_region.width, count)
        self.reveal()
        self.refresh()

    def repaint_row(self, index: int) -> None:
        top = index - self.scroll_offset.y
        if 0 <= top < self.scrollable_content_region.height:
            self.refresh(Region(self.gutter.left, self.gutter.top + top, self.scrollable_content_region.width, 1))

    @property
    def visible_rows(self) -> range:
        top = self.scroll_offset.y
        return range(top, min(self.count, top + max(1, self.scrollable_content_region.height)))

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        if index >= self.count:
            text = self.empty if y == 0 and not self.count else ""
            return Strip([Segment(fit(text, width), self.rich_style + self.look("faint"))], width)
        strip = Strip(self.row(index, width)).adjust_cell_length(width).apply_style(self.rich_style)
        if index == self.cursor:
            full = self.get_component_rich_style("rows--cursor" if self.has_focus else "rows--cursor-blur")
            over = Style(bgcolor=full.bgcolor, bold=full.bold, reverse=full.reverse)
            strip = Strip([Segment(s.text, (s.style or over) + over) for s in strip], width)
        return strip

    def on_resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, self.count)
        self.reveal()

    def move_to(self, index: int) -> None:
        """Put the cursor on a row, clamped to those that exist."""
        index = max(0, min(index, self.count - 1))
        if self.count and index != self.cursor:
            before, self.cursor = self.cursor, index
            self.repaint_row(before)
            self.repaint_row(index)
            self.reveal()
            if self.moved is not None:
                self.moved()
            self.post_message(self.Moved(self, index))

    def reveal(self) -> None:
        height = self.scrollable_content_region.height
        if self.cursor < 0 or height <= 0:
            return
        if self.cursor < self.scroll_offset.y:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= self.scroll_offset.y + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    def action_step(self, step: int) -> None:
        self.move_to(self.cursor + step)

    def action_page(self, step: int) -> None:
        self.move_to(self.cursor + step * max(1, self.scrollable_content_region.height - 1))

    def action_go(self, index: int) -> None:
        self.move_to(index if index >= 0 else self.count - 1)

    def action_choose(self) -> None:
        if 0 <= self.cursor < self.count:
            self.post_message(self.Chosen(self, self.cursor))

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is not None and 0 <= offset.y + self.scroll_offset.y < self.count:
            self.move_to(offset.y + self.scroll_offset.y)
            self.clicked(self.cursor, offset.x)

    def clicked(self, index: int, x: int) -> None:
        """A row was clicked, `x` cells from its left, and the cursor stands on it now."""
        self.action_choose()

    def on_focus(self) -> None:
        self.repaint_row(self.cursor)

    def on_blur(self) -> None:
        self.repaint_row(self.cursor)
