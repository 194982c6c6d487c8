"""Bars as SVG for a page: no script, colours from the page's own light or dark rules, nothing that only colour says.

A picture stands inline in a page that holds `STYLE`, or alone in a file (`standalone`). All text goes through `label`:
made visible, then escaped. Each has a title and says in words what it shows, for whoever does not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from rich.cells import cell_len

from memloc_tui.glyphs import fit, visible

# One hue per meaning, as in the explorer: what matches, what leaves, a perturbation, attention, gradient, rarity.
LIGHT = {
    "match": "#1a7f37", "leave": "#cf222e", "perturb": "#9a6700", "attention": "#0969da", "gradient": "#8250df",
    "rarity": "#59636e", "ink": "#1f2328", "faint": "#59636e", "line": "#d1d9e0",
}  # fmt: skip
DARK = {
    "match": "#3fb950", "leave": "#f85149", "perturb": "#d29922", "attention": "#58a6ff", "gradient": "#bc8cff",
    "rarity": "#9198a1", "ink": "#e6edf3", "faint": "#9198a1", "line": "#3d444d",
}  # fmt: skip
_CELL = 7.3  # width of a character of the pictures' 12 px text
_ROW, _WIDE = 20, 460


def _rules(hues: dict[str, str]) -> str:
    return "".join(f".pic .{name}{{fill:{hue};stroke:{hue}}}" for name, hue in hues.items())


STYLE = (
    ".pic{font:12px ui-monospace,Menlo,Consolas,monospace}.pic text{stroke:none!important;white-space:pre}"
    ".pic .end{text-anchor:end}.pic .mid{text-anchor:middle}.pic .open{fill-opacity:.15;stroke-dasharray:3 2}"
    f"{_rules(LIGHT)}@media(prefers-color-scheme:dark){{{_rules(DARK)}}}"
)


class Bar(NamedTuple):
    """A value under its name. `shown` is the value as printed; `open` draws an outline, for what is only compared;
    `more` says more of the name than there is room for in a picture."""

    name: str
    value: float
    shown: str
    open: bool = False
    more: str = ""


def label(text: str) -> str:
    """Any text as HTML or SVG text, or as an attribute's value."""
    return escape(visible(text), quote=True)


def bars(title: str, says: str, rows: Sequence[Bar], hue: str) -> str:
    """Horizontal bars from zero on one scale, each with its name and its value. A value that is no number has none."""
    scale = _scale(rows)
    names = min(28, max((cell_len(visible(row.name)) for row in rows), default=1))
    values = max((cell_len(row.shown) for row in rows), default=1)
    left, right = _CELL * names + 8, _CELL * values + 8
    room = max(60.0, _WIDE - left - right)
    parts = []
    for number, row in enumerate(rows):
        y = number * _ROW
        size = max(0.0, row.value) / scale * room if row.value == row.value else 0.0
        parts += [
            _text(left - 8, y + 14, fit(visible(row.name), names).rstrip() or " ", "ink end"),
            _rect(left, y + 4, size, _ROW - 8, f"{hue} open" if row.open else hue),
            _text(left + size + 6, y + 14, row.shown, "ink"),
        ]
    return _svg(left + room + right, max(1, len(rows)) * _ROW + 4, title, says, parts)


def columns(title: str, says: str, values: Sequence[Bar], hue: str, every: int = 5) -> str:
    """One upright bar per place, from zero, with the value above it and every few names below."""
    width, height, base = max(13.0, 640 / max(1, len(values))), 150, 124
    scale = _scale(values)
    parts = [_line(0, base + 0.5, width * len(values), base + 0.5)]
    for number, bar in enumerate(values):
        size = max(0.0, bar.value) / scale * 100 if bar.value == bar.value else 0.0
        x = number * width
        parts.append(_rect(x + 1, base - size, width - 2, size, f"{hue} open" if bar.open else hue))
        if bar.value:
            parts.append(_text(x + width / 2, base - size - 3, bar.shown, "ink mid", 9))
        if number % every == 0:
            parts.append(_text(x + width / 2, base + 16, bar.name, "faint mid"))
    return _svg(width * max(1, len(values)), height, title, says, parts)


def standalone(picture: str) -> str:
    """A picture as a file of its own."""
    head, rest = picture.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">\n<style>{STYLE}</style>{rest}\n'


def _scale(values: Sequence[Bar]) -> float:
    return max((bar.value for bar in values if bar.value == bar.value), default=0.0) or 1.0


def _svg(width: float, height: float, title: str, says: str, parts: list[str]) -> str:
    head = f'<svg class="pic" role="img" viewBox="0 0 {width:.0f} {height:.0f}" aria-label="{label(title)}">'
    return f"{head}\n<title>{label(title)}</title><desc>{label(says)}</desc>\n" + "\n".join(parts) + "\n</svg>"


def _text(x: float, y: float, text: str, classes: str, size: int = 12) -> str:
    small = f' style="font-size:{size}px"' if size != 12 else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}"{small}>{label(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, classes: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{classes}"/>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="line"/>'
