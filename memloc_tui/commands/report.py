"""`memloc-tui report`: of paragraphs, of a set, or of the findings, as text, Markdown, HTML or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from memloc_core.errors import MemlocError
from memloc_tui.commands.console import Asker, Out, Selection, print_json, run
from memloc_tui.files import write_whole
from memloc_tui.glyphs import escaped
from memloc_tui.reports import as_html, as_markdown, as_terminal, content
from memloc_tui.reports.document import Document
from memloc_tui.settings import Settings

FORMATS = ("terminal", "md", "html", "json")


_ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md", ".json": "json"}


def report(
    settings: Settings, selection: Selection, form: str | None, head: str, findings: bool = False, quick: bool = False
) -> None:
    """Ask, then print the report, or write it to the selection's file, whose ending says the format if `form` does not.

    Raises UsageError, MemlocError."""
    from memloc_tui.commands.analyze import parse_head

    wanted = parse_head(head)
    form = _form(form, selection.out)

    async def work(asker: Asker) -> Document:
        if findings:
            from memloc_tui.commands.findings import findings_of

            return content.of_findings(asker, await findings_of(asker, quick, ()))
        return await content.of_selection(asker, selection, wanted)

    _put(run(settings, work), form, selection.out)


def compare(settings: Settings, other: Settings, selection: Selection, form: str | None, head: str, draws: int) -> None:
    """Two models, or one and its edited self, on the selected paragraphs. Raises UsageError, MemlocError."""
    from memloc_tui.commands.analyze import parse_head
    from memloc_tui.reports.comparison import compare as compared

    _put(compared(settings, other, selection, parse_head(head), draws), _form(form, selection.out), selection.out)


def _form(form: str | None, out: Path | None) -> str:
    """The format that was asked for, else what the file's ending says."""
    return form or (_ENDINGS.get(out.suffix.lower()) if out else None) or "terminal"


def _put(document: Document, form: str, out: Path | None) -> None:
    """Print a report, or write it to a file."""
    if out is None:
        if form == "terminal":
            Out().print(*as_terminal.write(document), sep="\n")
        elif form == "json":
            print_json(document.data)
        else:
            click.echo(written(document, form), nl=False)
        return
    try:
        write_whole(out, written(document, form))
    except OSError as error:
        raise MemlocError(f"{out} cannot be written: {error.strerror or error}.") from None
    click.echo(f"written to {out}", err=True)


def whole_set(settings: Settings) -> None:
    """The report of all paragraphs, which `memloc-tui` prints where there is no terminal."""
    report(settings, Selection((), "all", None, False, None), "terminal", "L1H2")


def written(document: Document, form: str) -> str:
    """A report as one string."""
    forms: dict[str, Callable[[Document], str]] = {
        "terminal": _plain,
        "md": as_markdown.write,
        "html": as_html.write,
        "json": lambda d: escaped(json.dumps(d.data, allow_nan=False)) + "\n",
    }
    return forms[form](document)


def _plain(document: Document) -> str:
    out = StringIO()
    console = Console(file=out, width=100, color_system=None)
    parts: list[Any] = list(as_terminal.write(document))
    console.print(*parts, sep="\n")
    return out.getvalue()
