"""A report as Markdown that any renderer shows: tables, block-character bars, no HTML, no pictures beside it."""

from __future__ import annotations

import re

from memloc_tui.glyphs import bar, visible
from memloc_tui.reports.document import Block, Chart, Document, Grid, Token, Tokens, Words

# What CommonMark and GitHub's dialect take for more than itself: wherever it stands, ...
_ANYWHERE = re.compile(r"[\\`*_\[\]|~#$!@<>&]|(?<=www)\.|:(?=/)", re.IGNORECASE)
_FIRST = re.compile(r"^(\s*)(=|[-+](?=[-\s]|$))|^(\s*\d+)([.)])(?=\s|$)")  # ... and as the first of a line
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}  # for renderers that look for HTML before backslashes


def escape(text: str) -> str:
    """Any text as one line of Markdown that means only itself: line ends are visible glyphs by then."""
    escaped = _ANYWHERE.sub(lambda found: _ENTITIES.get(found.group(), f"\\{found.group()}"), visible(text))
    return _FIRST.sub(lambda found: f"{found[1] or found[3] or ''}\\{found[2] or found[4]}", escaped)


def write(document: Document) -> str:
    lines = [f"# {escape(document.title)}", "", *(line for said in document.about for line in (escape(said), ""))]
    for section in document.sections:
        lines += [f"{'#' * section.level} {escape(section.heading)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Words):
        return [_paragraph(block.text)]
    if isinstance(block, Tokens):
        # Markdown joins spaces: several in a row are shown as what they are.
        text = re.sub(" {2,}", lambda run: "␣" * len(run.group()), "".join(map(_raw, block.tokens)))
        return [f"{_paragraph(block.caption)}:", "", f"> {escape(text)}"]
    if isinstance(block, Chart):
        says, bars = block.listed()
        rows = tuple((one.name, one.shown, bar(share, 20).rstrip()) for one, share in bars)
        return _grid(Grid(says, ("what", "value", "bar"), rows, ("bar",))) if rows else [_paragraph(says)]
    return _grid(block)


def _paragraph(text: str) -> str:
    """A line that begins with text, which escaping alone does not keep from being indented code."""
    return escape(text.strip(" ") or " ")


def _raw(token: Token) -> str:
    return f"{token.sign}{token.text}" + (f"({token.value})" if token.value else "")


def _grid(grid: Grid) -> list[str]:
    marks = [":--" if i == 0 or name in grid.left else "--:" for i, name in enumerate(grid.columns)]
    caption = [_paragraph(grid.caption), ""] if grid.caption else []
    return [*caption, _row(grid.columns), _row(tuple(marks), raw=True), *map(_row, grid.rows)]


def _row(cells: tuple[str, ...], raw: bool = False) -> str:
    return "| " + " | ".join(cell if raw else escape(cell) for cell in cells) + " |"
