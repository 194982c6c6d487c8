"""Curves over the steps of a run, one lane each: name, first and newest value, and the curve in braille dots.

Every lane has a scale of its own, which is printed where there is room. Several runs can be laid over each other: the
first one is drawn in the lane's hue, the others are dim, and each ends in its letter.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from memloc_tui.figures import figure
from memloc_tui.glyphs import fit
from memloc_tui.runs import share_of
from memloc_tui.widgets.row_list import foreground

if TYPE_CHECKING:
    from memloc_tui.readings import Array

LOOKS = ("changed", "taught", "kept", "kl")
NAME, VALUES, SCALE = 14, 15, 7
TALLEST = 6  # rows of a lane
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, by row and column


@dataclass(frozen=True)
class Lane:
    """One picture: the same series of one run or of several, the first being the one that is looked at."""

    name: str
    look: str
    letters: tuple[str, ...]  # of each run, or its name
    series: tuple[Array, ...]  # [s + 1] each, nan where not known
    best: int  # of the first run
    low: float
    high: float
    goal: float = float("nan")
    share: bool = False

    def said(self, value: float) -> str:
        """A value of this lane."""
        return share_of(value) if self.share else figure(value)


def heights(values: Array, columns: int, span: int, low: float, high: float, rows: int) -> list[int]:
    """The height 0..rows-1 of a curve over steps 0..span at each of `columns` dot columns, -1 where it has no value."""
    at = np.arange(columns) * (span / max(1, columns - 1))
    known = ~np.isnan(values)
    if not known.any():
        return [-1] * columns
    steps = np.arange(len(values))
    drawn = np.interp(at, steps[known], values[known], left=np.nan, right=np.nan)
    level = np.clip((drawn - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    return [-1 if v != v else round(float(v) * (rows - 1)) for v in level]


def plot(curves: list[list[int]], width: int, height: int, fill: bool) -> list[list[tuple[str, int]]]:
    """Dot heights of several curves as `height` rows of `width` cells: the character, and whose dots it holds first.

    -1 for an empty cell. `fill` paints what lies below the first curve.
    """
    bits = np.zeros((height, width), np.int64)
    owner = np.full((height, width), -1)

    def dot(x: int, y: int, whose: int) -> None:
        row, line = divmod(4 * height - 1 - y, 4)
        bits[row, x // 2] |= _DOTS[line][x % 2]
        if owner[row, x // 2] < 0 or whose < owner[row, x // 2]:
            owner[row, x // 2] = whose

    for whose, curve in enumerate(curves):
        before = -1
        for x, y in enumerate(curve):
            if y >= 0:
                first = 0 if fill and whose == 0 else y if before < 0 else min(y, before + (y > before))
                last = y if before < 0 or (fill and whose == 0) else max(y, before - (y < before))
                for step in range(first, last + 1):
                    dot(x, step, whose)
            before = y
    return [
        [(chr(0x2800 + int(bits[r, c])) if bits[r, c] else " ", int(owner[r, c])) for c in range(width)]
        for r in range(height)
    ]


class Curves(ScrollView, can_focus=True):
    """Lanes below each other, as tall as there is room for; arrow keys move a line through the steps."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "curves--faint",
        "curves--cursor",
        *(f"curves--{look}" for look in LOOKS),
    }
    DEFAULT_CSS = """
    Curves {
        overflow: hidden auto; scrollbar-size-vertical: 1; padding: 0 1;
        scrollbar-color: $foreground 30%; scrollbar-background: $background;
        & > .curves--faint { color: $text-muted; }
        & > .curves--cursor { text-style: reverse; }
        & > .curves--changed { color: $text-warning; }
        & > .curves--taught { color: #45c4cc; }
        & > .curves--kept { color: $text-success; }
        & > .curves--kl { color: $foreground; }
    }
    Curves:light { & > .curves--taught { color: #0b7480; } }
    Curves:ansi {
        & > .curves--faint { color: ansi_default; text-style: dim; }
        & > .curves--changed { color: ansi_yellow; }
        & > .curves--taught { color: ansi_cyan; }
        & > .curves--kept { color: ansi_green; }
        & > .curves--kl { color: ansi_default; }
    }
    """
    BINDINGS = [
        Binding("left", "step(-1)", "Left", id="curves.left", tooltip="Read the step before", show=False),
        Binding("right", "step(1)", "Right", id="curves.right", tooltip="Read the next step", show=False),
        Binding("home", "go(0)", "First", id="curves.first", tooltip="Read the values before the run", show=False),
        Binding("end", "go(-1)", "Last", id="curves.last", tooltip="Read the newest step again", show=False),
        Binding("up", "scroll(-1)", "Up", id="curves.up", tooltip="Scroll the curves up", show=False),
        Binding("down", "scroll(1)", "Down", id="curves.down", tooltip="Scroll the curves down", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lanes: list[Lane] = []
        self.empty = ""
        self.cursor = -1  # the step that is read; -1: the newest
        self._tops: list[int] = [0]  # the first row of each lane, and of what comes after the last
        self._strips: dict[int, Strip] = {}
        self._styles_cached: dict[tuple[str, bool], Style] = {}

    def show(self, lanes: list[Lane], empty: str = "") -> None:
        """Show these lanes, or why there are none."""
        self.lanes, self.empty = lanes, empty
        if self.cursor > self.span:
            self.cursor = -1
        self._measure()
        self._strips.clear()
        self.refresh()

    @property
    def span(self) -> int:
        """The longest run's steps."""
        return max((len(series) - 1 for lane in self.lanes for series in lane.series), default=0)

    def _measure(self) -> None:
        """Every lane gets its share of the rows, the first ones what is left over; the row of steps takes one."""
        room, lanes = self.scrollable_content_region.height - 1, max(1, len(self.lanes))
        share, rest = divmod(room, lanes)
        tall = [max(1, min(TALLEST, share + (i < rest))) for i in range(len(self.lanes))]
        self._tops = [sum(tall[:i]) for i in range(len(tall) + 1)]
        self.virtual_size = Size(self.scrollable_content_region.width, sum(tall) + 1)

    def on_resize(self) -> None:
        self._measure()
        self._strips.clear()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()
        self._styles_cached.clear()

    # ------------------------------------------------------------------------------------------------------- painting

    def _style(self, look: str, dim: bool = False) -> Style:
        if (look, dim) not in self._styles_cached:
            style = self.rich_style + foreground(self.get_component_rich_style(f"curves--{look}"))
            self._styles_cached[look, dim] = style + Style(dim=True) if dim else style
        return self._styles_cached[look, dim]

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if not self.lanes:
            return Strip([Segment(fit(self.empty if y == 0 else "", width), self._style("faint"))], width)
        y += self.scroll_offset.y
        if y not in self._strips:
            lane = bisect_right(self._tops, y) - 1
            if lane < len(self.lanes):
                self._draw(lane, width)
            else:
                self._strips[y] = self._axis(width) if y == self._tops[-1] else Strip.blank(width, self.rich_style)
        return self._strips[y]

    @property
    def _gutter(self) -> int:
        """Cells before the curve: name and values, and the scale where there is room."""
        return NAME + VALUES + (SCALE + 1 if self.scrollable_content_region.width >= 66 else 0)

    def _draw(self, number: int, width: int) -> None:
        lane, top = self.lanes[number], self._tops[number]
        tall = self._tops[number + 1] - top
        several = len(lane.series) > 1
        gutter = self._gutter
        name = 1 + min(max(map(cell_len, lane.letters)), max(2, (width - gutter) // 3)) if several else 0
        room = max(4, width - gutter - name)
        span = max(1, self.span)
        curves = [heights(s, 2 * room, span, lane.low, lane.high, 4 * tall) for s in lane.series]
        cells = plot(curves, room, tall, fill=not several)
        goal = -1
        if lane.goal == lane.goal and lane.high > lane.low:
            goal = tall - 1 - int((lane.goal - lane.low) / (lane.high - lane.low) * (4 * tall - 1)) // 4
        at = -1 if self.cursor < 0 else min(room - 1, round(self.cursor / span * (2 * room - 1)) // 2)
        ends = [self._end(s, lane, tall) for s in lane.series]
        for row in range(tall):
            left = self._left(lane, row, tall, gutter)
            line: list[Segment] = []
            for x, (char, owner) in enumerate(cells[row]):
                if owner < 0 and row == goal and tall > 1 and x % 2 == 0:
                    char, style = "╌", self._style("faint")
                else:
                    style = self._style("faint" if owner < 0 else lane.look, owner > 0)
                if x == at:
                    style += Style(reverse=True)
                line.append(Segment(char, style))
            if several:
                here = [letter for letter, end in zip(lane.letters, ends, strict=True) if end == row]
                line.append(Segment(fit(f" {here[0]}" if here else "", name), self._style(lane.look)))
            strip = Strip([*left, *line]).simplify().adjust_cell_length(width, self.rich_style)
            self._strips[top + row] = strip

    @staticmethod
    def _end(series: Array, lane: Lane, tall: int) -> int:
        """The row in which a curve ends, -1 where it has no value."""
        known = series[~np.isnan(series)]
        if not len(known) or lane.high <= lane.low:
            return -1
        return tall - 1 - int(np.clip((known[-1] - lane.low) / (lane.high - lane.low), 0, 1) * (4 * tall - 1)) // 4

    def _left(self, lane: Lane, row: int, tall: int, gutter: int) -> list[Segment]:
        """Name and values in a lane's first row, the goal in its second, the ends of the scale at its edges."""
        series = lane.series[0]
        text, look = " " * (NAME + VALUES), "faint"
        if row == 0:
            at = len(series) - 1 if self.cursor < 0 else min(self.cursor, len(series) - 1)
            value = lane.said(float(series[at]))
            if at:
                value = f"{lane.said(float(series[0]))} → {value}"
            text, look = fit(lane.name, NAME) + fit(value, VALUES), lane.look
        elif row == 1 and lane.goal == lane.goal:
            text = fit("", NAME) + fit(f"goal {lane.said(lane.goal)}", VALUES)
        left = [Segment(text, self._style(look))]
        if gutter > NAME + VALUES:
            edge = lane.said(lane.high) if row == 0 else lane.said(lane.low) if row == tall - 1 else ""
            left.append(Segment(edge.rjust(SCALE) + " ", self._style("faint")))
        return left

    def _axis(self, width: int) -> Strip:
        """Steps below the lanes: the first, the best, the last, and the one that is read."""
        gutter, span = self._gutter, self.span
        room = max(4, width - gutter)
        line = [" "] * room

        def put(step: int, text: str) -> None:
            x = round(step / max(1, span) * (room - 1))
            start = max(0, min(x - len(text) // 2, room - len(text)))
            if all(char == " " for char in line[max(0, start - 1) : start + len(text) + 1]):
                line[start : start + len(text)] = text

        if self.cursor >= 0:
            put(self.cursor, f"▴ step {self.cursor}")
        best = self.lanes[0].best
        if best > 0:
            put(best, f"▴ best {best}")
        put(span, str(span))
        put(0, "0")
        return Strip([Segment(fit("step", gutter) + "".join(line), self._style("faint"))]).adjust_cell_length(width)

    # --------------------------------------------------------------------------------------------------------- moving

    def read(self, step: int) -> None:
        """Print the values of this step; -1 the newest."""
        step = -1 if step < 0 or step > self.span else step
        if step != self.cursor:
            self.cursor = step
            self._strips.clear()
            self.refresh()

    def action_step(self, by: int) -> None:
        here = self.span if self.cursor < 0 else self.cursor
        self.read(max(0, here + by) if here + by <= self.span else -1)

    def action_go(self, step: int) -> None:
        self.read(step)

    def action_scroll(self, by: int) -> None:
        self.scroll_to(y=self.scroll_offset.y + by, animate=False, immediate=True)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        room = self.scrollable_content_region.width - self._gutter
        if offset is not None and self.lanes and offset.x >= self._gutter and room > 1:
            self.read(round((offset.x - self._gutter) / (room - 1) * self.span))
