"""Pictures as SVG text, drawn without a library: shapes by number, text escaped, readable in grey.

The hues are the explorer's: green matches the training text, red leaves it, amber is the effect of a change, blue
attention, violet gradient, grey rarity and chance. A hue never stands alone: marks differ in shape and carry a label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from memloc_tui.figures import figure
from memloc_tui.glyphs import visible

Hue = Literal["match", "leave", "effect", "attention", "gradient", "grey", "ink"]
HUES: dict[Hue, str] = {
    "match": "#1f7a3a",
    "leave": "#b3261e",
    "effect": "#9a5b00",
    "attention": "#1f5fd0",
    "gradient": "#7a3fd1",
    "grey": "#6b7280",
    "ink": "#1f2328",
}
_PALE, _PAPER = "#d0d7de", "#ffffff"
_CHAR = 0.6  # width of a monospace character, in font sizes
Anchor = Literal["start", "middle", "end"]


@dataclass
class Drawing:
    """An SVG picture that is being drawn, in pixels from the upper left corner."""

    width: int
    height: int
    title: str = ""  # read aloud, and shown by pointing at the picture
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        hue: Hue = "ink",
        anchor: Anchor = "start",
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """Text on the line y; `turned` reads upwards. Whatever it holds, it is shown and never parsed."""
        how = f' font-size="{size:g}" fill="{HUES[hue]}" text-anchor="{anchor}"' + ' font-weight="600"' * bold
        how += f' transform="rotate(-90 {x:.1f} {y:.1f})"' * turned
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{how}>{escape(visible(text))}</text>')

    def line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        *,
        hue: Hue | None = "ink",
        wide: float = 1,
        dashed: bool = False,
    ) -> None:
        """A straight line; hue None is the pale one of grids."""
        colour = HUES[hue] if hue else _PALE
        how = f'stroke="{colour}" stroke-width="{wide:g}"' + ' stroke-dasharray="4 3"' * dashed
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {how}/>')

    def rect(self, x: float, y: float, width: float, height: float, *, hue: Hue = "ink", hatched: bool = False) -> None:
        """A filled bar; hatched where it stands for what is not memorized."""
        if hatched:
            step = 4
            self.parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="none" '
                f'stroke="{HUES[hue]}"/>'
            )
            at = x + step
            while at < x + width:
                self.line(at, y, at, y + height, hue=hue, wide=0.7)
                at += step
            return
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{HUES[hue]}"/>'
        )

    def mark(self, x: float, y: float, shape: int, *, hue: Hue = "ink", filled: bool = True, size: float = 5) -> None:
        """One of eight shapes around a point."""
        corners, turn, inner = _SHAPES[shape % len(_SHAPES)]
        how = f'fill="{HUES[hue] if filled else _PAPER}" stroke="{HUES[hue]}" stroke-width="1.6"'
        if not corners:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {how}/>')
            return
        points = []
        for corner in range(corners):
            angle = math.radians(turn - 90) + 2 * math.pi * corner / corners
            reach = size * 1.25 * (inner if corner % 2 else 1)
            points.append(f"{x + reach * math.cos(angle):.1f},{y + reach * math.sin(angle):.1f}")
        self.parts.append(f'<polygon points="{" ".join(points)}" {how}/>')

    def svg(self) -> str:
        """The whole file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" '
            'font-family="ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace">\n'
            f"<title>{escape(visible(self.title))}</title>\n"
            f'<rect width="{self.width}" height="{self.height}" fill="{_PAPER}"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


# Corners of a mark (0: a circle), its turn in degrees, and how far in every second corner lies.
_SHAPES = ((0, 0, 1.0), (4, 45, 1.0), (3, 0, 1.0), (4, 0, 1.0), (3, 180, 1.0), (8, 0, 0.4), (6, 0, 1.0), (10, 0, 0.5))


# -------------------------------------------------------------------------------------------------------------- axes


@dataclass(frozen=True)
class Axis:
    """A range of values, and the round numbers in it."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float], least: float = 0.0, ticks: int = 5) -> Axis:
        """From a round number below the values to one above; at least `least` wide, so that noise stays small."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        missing = max(0.0, max(least, 1e-9) - (high - low))
        low, high = low - missing / 2, high + missing / 2
        raw = (high - low) / ticks
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    @property
    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + i * self.step for i in range(count + 1)]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def said(self, value: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9) + (f"{self.step:e}"[2] == "5" and self.step < 10))
        return f"{value:.{min(digits, 6)}f}".replace("-", "−")


# ------------------------------------------------------------------------------------------------------- two against


@dataclass(frozen=True)
class Value:
    """A number and its interval; nan where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.low):
            return figure(self.value)
        return f"{figure(self.value)} [{figure(self.low)}, {figure(self.high)}]"


@dataclass(frozen=True)
class Spot:
    """A labelled place in a panel."""

    label: str
    x: Value
    y: Value
    hue: Hue = "ink"
    filled: bool = True


@dataclass(frozen=True)
class Panel:
    """Spots that share axes; `says` what they are, over what n."""

    title: str
    says: str
    spots: Sequence[Spot]


_PANEL, _LEFT, _TOP, _SQUARE = 470, 62, 86, 330
_LINE = 17


def against(
    title: str, x_label: tuple[str, str], y_label: tuple[str, str], panels: Sequence[Panel], least: float = 0.0
) -> str:
    """Two quantities against each other, a panel beside the other, with 95 % intervals as cross-hairs.

    Labels are given in full, for the axes, and short, for the key under each panel, which holds mark, label and both
    numbers. Panels have one scale, at least `least` wide.
    """
    rows = max(len(panel.spots) for panel in panels)
    drawing = Drawing(_PANEL * len(panels) + 20, _TOP + _SQUARE + 84 + _LINE * (rows + 1), title)
    drawing.text(20, 28, title, size=15, bold=True)
    spots = [spot for panel in panels for spot in panel.spots]
    x = Axis.around([n for s in spots for n in (s.x.value, s.x.low, s.x.high)], least)
    y = Axis.around([n for s in spots for n in (s.y.value, s.y.low, s.y.high)], least)
    for number, panel in enumerate(panels):
        _draw(drawing, panel, _LEFT + _PANEL * number, x, y, x_label, y_label)
    return drawing.svg()


def _draw(
    drawing: Drawing, panel: Panel, left: float, x: Axis, y: Axis, x_label: tuple[str, str], y_label: tuple[str, str]
) -> None:
    (x_long, x_short), (y_long, y_short) = x_label, y_label

    def across(value: float) -> float:
        return left + x.share(value) * _SQUARE

    def down(value: float) -> float:
        return _TOP + (1 - y.share(value)) * _SQUARE

    bottom = _TOP + _SQUARE
    drawing.text(left, _TOP - 28, panel.title, size=13, bold=True)
    drawing.text(left, _TOP - 12, panel.says, size=11, hue="grey")
    for tick in x.ticks:
        drawing.line(across(tick), _TOP, across(tick), bottom, hue=None)
        drawing.text(across(tick), bottom + 16, x.said(tick), size=11, anchor="middle")
    for tick in y.ticks:
        drawing.line(left, down(tick), left + _SQUARE, down(tick), hue=None)
        drawing.text(left - 6, down(tick) + 4, y.said(tick), size=11, anchor="end")
    drawing.text(left + _SQUARE / 2, bottom + 36, x_long, anchor="middle")
    drawing.text(left - 44, _TOP + _SQUARE / 2, y_long, anchor="middle", turned=True)
    taken: list[tuple[float, float, float, float]] = []  # boxes that no label may cover
    for spot in panel.spots:
        at = across(spot.x.value), down(spot.y.value)
        taken.append((at[0] - 7, at[1] - 7, at[0] + 7, at[1] + 7))
        ends = []
        if not math.isnan(spot.x.low):
            ends.append((across(spot.x.low), at[1], across(spot.x.high), at[1]))
        if not math.isnan(spot.y.low):
            ends.append((at[0], down(spot.y.high), at[0], down(spot.y.low)))
        for x1, y1, x2, y2 in ends:
            drawing.line(x1, y1, x2, y2, hue=spot.hue, wide=1.2)
            taken.append((x1 - 2, y1 - 2, x2 + 2, y2 + 2))
    for shape, spot in enumerate(panel.spots):
        at = across(spot.x.value), down(spot.y.value)
        drawing.mark(*at, shape, hue=spot.hue, filled=spot.filled)
        place, anchor, box = _beside(at, spot.label, taken, (left, _TOP, left + _SQUARE, bottom))
        taken.append(box)
        if math.dist(place, at) > 24:
            drawing.line(*at, place[0], place[1] - 4, hue=None)
        drawing.text(*place, spot.label, size=11, hue=spot.hue, anchor=anchor)
    columns = left + 290, left + 410
    for column, name in zip(columns, (x_short, y_short), strict=True):
        drawing.text(column, bottom + 62, name, size=11, hue="grey", anchor="end")
    for shape, spot in enumerate(panel.spots):
        line = bottom + 62 + _LINE * (shape + 1)
        drawing.mark(left + 6, line - 4, shape, hue=spot.hue, filled=spot.filled, size=4.5)
        drawing.text(left + 18, line, spot.label, size=11)
        for column, value in zip(columns, (spot.x, spot.y), strict=True):
            drawing.text(column, line, str(value), size=11, anchor="end")


def _beside(
    at: tuple[float, float],
    label: str,
    taken: list[tuple[float, float, float, float]],
    frame: tuple[float, float, float, float],
) -> tuple[tuple[float, float], Anchor, tuple[float, float, float, float]]:
    """The nearest place around a mark where its label covers no mark, no other label, and stays in the frame."""
    width, height = len(visible(label)) * 11 * _CHAR, 11
    best = None
    for reach in (11, 20, 32, 46, 62, 80):
        for angle in (0, 180, 45, -45, 135, -135, 90, -90):
            x = at[0] + reach * math.cos(math.radians(angle))
            y = at[1] - reach * math.sin(math.radians(angle)) + 4
            leftmost = x if abs(angle) < 90 else x - width if abs(angle) > 90 else x - width / 2
            anchor: Anchor = "start" if abs(angle) < 90 else "end" if abs(angle) > 90 else "middle"
            box = (leftmost, y - height, leftmost + width, y + 2)
            found = ((x, y), anchor, box)
            best = best or found
            inside = frame[0] <= box[0] and box[2] <= frame[2] + 60 and frame[1] <= box[1] and box[3] <= frame[3]
            if inside and not any(_meet(box, other) for other in taken):
                return found
    assert best is not None
    return best


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
