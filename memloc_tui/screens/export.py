"""The current view as a file in the current folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical

from memloc_tui.catalogue import Catalogue
from memloc_tui.files import write_whole
from memloc_tui.screens.dialog import Dialog
from memloc_tui.view import View
from memloc_tui.widgets.row_list import RowList

if TYPE_CHECKING:
    from memloc_tui.app import MemlocApp

KINDS = (
    ("json", "JSON: the answers on screen with what reproduces them"),
    ("csv", "CSV: the sweep, one row per position and draw"),
    ("svg", "SVG: a picture of the screen"),
)


class Kinds(RowList):
    """The kinds of file."""

    def row(self, index: int, width: int) -> list[Segment]:
        return [Segment(f" {KINDS[index][1]}")]


class Export(Dialog[None]):
    """Choose a kind; the file is written at once, and its path said."""

    BINDINGS = [
        Binding("j", "write('json')", "JSON", id="export.json", tooltip="Write the answers as JSON"),
        Binding("c", "write('csv')", "CSV", id="export.csv", tooltip="Write the sweep as CSV"),
        Binding("s", "write('svg')", "SVG", id="export.svg", tooltip="Write a picture of the screen"),
        Binding("escape", "close", "Back", id="export.close", tooltip="Write nothing"),
    ]

    def __init__(self, view: View, catalogue: Catalogue, answers: list[Any]) -> None:
        super().__init__()
        self.view, self.catalogue, self.answers = view, catalogue, answers

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = "Export to the current folder"
            box.border_subtitle = "j c s or ⏎ · esc back"
            yield Kinds(id="kinds")

    def on_mount(self) -> None:
        kinds = self.query_one(Kinds)
        kinds.show_rows(len(KINDS), 0)
        kinds.focus()

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        self.action_write(KINDS[message.index][0])

    def action_close(self) -> None:
        self.dismiss(None)

    def action_write(self, kind: str) -> None:
        memloc = cast("MemlocApp", self.app)
        if kind == "csv" and self.view.sweep is None:
            memloc.say("There is no sweep of this paragraph yet: w runs one.")
            return
        self.dismiss(None)
        # The picture is of the screen below this one.
        self.app.call_after_refresh(self._write, memloc, kind)

    def _write(self, memloc: MemlocApp, kind: str) -> None:
        text = {"json": self._json, "csv": self._csv, "svg": memloc.export_screenshot}[kind]()
        try:
            path = free_name(Path.cwd(), f"memloc-{self.view.id[:12]}", kind)
            write_whole(path, text)
        except OSError as error:
            memloc.say(f"Not written: {error.strerror or error} ({Path.cwd()}).", severity="error")
            return
        memloc.say(f"Written: {path}")

    def _json(self) -> str:
        import json

        from memloc_core.codec import to_json

        view = self.view
        document = {
            "paragraph": view.id,
            "tokens": list(view.tokens),
            "prefix_length": view.prefix_length,
            "text": self.catalogue.text(view.index),
            "replacements": [list(pair) for pair in view.replacements],
            "score": to_json(asdict(view.score)) if view.score else None,
            "own_continuation": list(view.own),
            "answers": [to_json(a) for a in self.answers],
        }
        return json.dumps(document, indent=1) + "\n"

    def _csv(self) -> str:
        import csv
        import io
        import json

        sweep, view = self.view.sweep, self.view
        assert sweep is not None
        out = io.StringIO()
        write = csv.writer(out, lineterminator="\n").writerow
        write(
            [
                "paragraph",
                "position",
                "token_id",
                "token",
                "draw",
                "replacement_id",
                "replacement",
                "em_before",
                "em",
                "drop",
                "margin",
                "nll",
            ]
        )
        scores = sweep.scores

        def text(token: int) -> str:
            # A JSON string: spaces and control characters survive, and no spreadsheet takes it for a formula.
            pieces = self.catalogue.pieces
            return json.dumps(pieces[token].decode("utf-8", "replace") if 0 <= token < len(pieces) else "")

        columns = (scores.replacements, scores.em, scores.margin, scores.nll)
        for position, (replaced, ems, margins, nlls) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            token = view.prefix[position]
            for draw, (new, em, margin, nll) in enumerate(zip(replaced, ems, margins, nlls, strict=True)):
                if em >= 0:
                    drop = scores.em_before - em
                    row = [view.id, position, token, text(token), draw, new, text(new), scores.em_before, em, drop]
                    write([*row, f"{margin:.9g}", f"{nll:.9g}"])
        return out.getvalue()


def free_name(folder: Path, stem: str, kind: str) -> Path:
    """A name that no file has: nothing is ever overwritten."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)
    path, n = folder / f"{safe}.{kind}", 1
    while path.exists():
        n += 1
        path = folder / f"{safe}-{n}.{kind}"
    return path
