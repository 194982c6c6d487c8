"""A line in which text is typed or pasted."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Input

from memloc_tui.glyphs import visible


class TextLine(Input):
    """Of one row. What a paste brings is drawn as glyphs; the value is as it came."""

    DEFAULT_CSS = """
    TextLine, TextLine.-textual-compact, TextLine.-textual-compact:focus {
        height: 1; border: none; padding: 0 1; background: $foreground 7%;
    }
    """

    takes_all = True  # of what is pasted, also what the terminal must not get

    @property
    def _value(self) -> Text:
        return Text(visible(self.value), no_wrap=True, overflow="ignore", end="")
