"""A report on a terminal, or as plain text in a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from memloc_tui.commands.console import table_of
from memloc_tui.glyphs import bar, visible
from memloc_tui.reports.document import Block, Chart, Document, Grid, Token, Tokens, Words

_STYLES = {"match": "green", "leave": "red", "perturb": "yellow", "attention": "blue", "gradient": "magenta"}


def write(document: Document) -> Iterator[Any]:
    """What rich prints, piece by piece."""
    yield Text(visible(document.title), "bold")
    for line in document.about:
        yield Text(visible(line), "dim")
    for section in document.sections:
        yield Text(f"\n{visible(section.heading)}", "bold underline" if section.level == 2 else "bold")
        for block in section.blocks:
            yield from _block(block)


def _block(block: Block) -> Iterator[Any]:
    if isinstance(block, Words):
        yield Text(visible(block.text))
    elif isinstance(block, Tokens):
        yield Text(visible(block.caption), "dim")
        yield Text("").join(map(_token, block.tokens))
    elif isinstance(block, Chart):
        says, bars = block.listed()
        yield Text(visible(says), "dim")
        if not bars:
            return
        table = table_of("", "value", left=("bar",))
        table.box, table.show_header = None, False
        for one, share in bars:
            look = "dim" if one.open else _STYLES.get(block.hue, "")
            table.add_row(Text(visible(one.name)), Text(visible(one.shown)), Text(bar(share, 30), look))
        yield table
    else:
        yield _grid(block)


def _grid(grid: Grid) -> Any:
    right = [name for name in grid.columns if name not in grid.left]
    shown = {name: visible(name) for name in grid.columns}
    left = tuple(shown[name] for name in grid.left)
    table = table_of(*(shown[name] for name in right), left=left, title=visible(grid.caption) or None)
    order = [grid.columns.index(name) for name in (*right, *grid.left)]
    for row in grid.rows:
        table.add_row(*(Text(visible(row[i])) for i in order))
    return table


def _token(token: Token) -> Text:
    value = (f"({visible(token.value)})", "dim") if token.value else ""
    strong = " bold" if token.level > 0.5 else ""
    style = f"{_STYLES[token.hue]}{strong}" if token.hue in _STYLES else ""
    return Text.assemble((visible(token.sign), "bold red"), (visible(token.text), style), value)
