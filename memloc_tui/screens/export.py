"""A view as a file in the current folder: its numbers as JSON or CSV, or a picture of the screen."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical

from memloc_tui.files import write_whole
from memloc_tui.screens.dialog import Dialog
from memloc_tui.widgets.panels import tab_named
from memloc_tui.widgets.row_list import RowList

if TYPE_CHECKING:
    from memloc_tui.app import MemlocApp
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.tables import Table
    from memloc_tui.view import View


class Choice(NamedTuple):
    """A key of the dialog: which view it writes, and as what."""

    key: str
    view: str  # "answers", "screen", or a table: "tab", "tokens", "sweep", "list"
    kind: str
    says: str


CHOICES = (
    Choice("j", "answers", "json", "the answers on screen, with what reproduces them"),
    Choice("c", "tab", "csv", "the open tab"),
    Choice("t", "tokens", "csv", "prefix and continuation, one row a token"),
    Choice("w", "sweep", "csv", "the sweep, one row a position and draw"),
    Choice("l", "list", "csv", "the paragraph list as filtered and sorted"),
    Choice("C", "tab", "json", "the open tab's table"),
    Choice("L", "list", "json", "the paragraph list as filtered and sorted"),
    Choice("s", "screen", "svg", "a picture of the screen"),
)
_LACKS = {
    "tab": "The {tab} tab shows no numbers yet.",
    "sweep": "There is no sweep of this paragraph yet: w runs one.",
}


class Kinds(RowList):
    """What can be written."""

    tab = ""

    def row(self, index: int, width: int) -> list[Segment]:
        choice = CHOICES[index]
        says = f"the {self.tab} tab" if choice.view == "tab" else choice.says
        return [Segment(f" {choice.key}  {choice.kind.upper():<4} ", self.look("faint")), Segment(says)]


class Export(Dialog[None]):
    """Choose what; the file is written at once, and its path said."""

    BINDINGS = [
        *(
            Binding(c.key, f"write({i})", c.kind.upper(), id=f"export.{c.view}_{c.kind}", tooltip=f"Write {c.says}")
            for i, c in enumerate(CHOICES)
        ),
        Binding("escape", "close", "Back", id="export.close", tooltip="Write nothing"),
    ]
    DEFAULT_CSS = f"Export #kinds {{ height: {len(CHOICES)}; }}"

    def __init__(self, explorer: Explorer) -> None:
        super().__init__()
        self.explorer = explorer
        assert explorer.study is not None
        self.study, self.tab = explorer.study, explorer.memloc.resume.tab

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = "Export to the current folder"
            box.border_subtitle = "a letter or ⏎ · esc back"
            yield Kinds(id="kinds")

    def on_mount(self) -> None:
        kinds = self.query_one(Kinds)
        kinds.tab = tab_named(self.tab).title
        kinds.show_rows(len(CHOICES), 0)
        kinds.focus()

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        self.action_write(message.index)

    def action_close(self) -> None:
        self.dismiss(None)

    def action_write(self, index: int) -> None:
        """Write a choice, unless there is nothing to write."""
        from memloc_tui import tables

        memloc, choice = cast("MemlocApp", self.app), CHOICES[index]
        text = ""
        if choice.view == "answers":
            text = self._answers()
        elif choice.view != "screen":
            table = self._table(choice.view)
            if table is None:
                memloc.say(_LACKS.get(choice.view, "There is nothing to write.").format(tab=tab_named(self.tab).title))
                return
            text = tables.as_csv(table) if choice.kind == "csv" else tables.as_json(table)
        self.dismiss(None)
        # The picture is of the screen below this one.
        self.app.call_after_refresh(self._write, memloc, choice, text)

    def _write(self, memloc: MemlocApp, choice: Choice, text: str) -> None:
        ids = self.study.catalogue.paragraphs.ids
        what = f"memloc-{ids[self.study.current][:12]}" if choice.view != "list" else "memloc-paragraphs"
        part = {"tab": f"-{self.tab}", "tokens": "-tokens", "sweep": "-sweep"}.get(choice.view, "")
        try:
            folder = Path.cwd()
        except OSError:
            memloc.say("Not written: the folder that memloc-tui was started in is gone.", severity="error")
            return
        try:
            path = free_name(folder, what + part, choice.kind)
            write_whole(path, text or memloc.export_screenshot())
        except OSError as error:
            memloc.say(f"Not written: {error.strerror or error} ({folder}).", severity="error")
            return
        memloc.say(f"Written: {path}")

    def _view(self) -> View:
        """What is on screen; no number of an earlier question while this one has no answer."""
        view = self.study.view()
        return view if self.study.answered == self.study.question else replace(view, score=None, own=())

    def _table(self, view: str) -> Table | None:
        from memloc_tui import tables

        explorer, study = self.explorer, self.study
        shown, scene = explorer.locating.look(self._view(), explorer.panel)
        if view == "list":
            return tables.paragraph_list(study.catalogue, explorer.list.order)
        if view == "tokens":
            return tables.tokens(shown, study.catalogue)
        if view == "sweep":
            return tables.sweep(shown, study.catalogue)
        return tables.of_tab(self.tab, explorer.panel, scene, explorer.locating.inquiry)

    def _answers(self) -> str:
        import json

        from memloc_core.codec import to_json

        view, catalogue = self._view(), self.study.catalogue
        document = {
            "paragraph": view.id,
            "tokens": list(view.tokens),
            "prefix_length": view.prefix_length,
            "text": catalogue.text(view.index),
            "replacements": [list(pair) for pair in view.replacements],
            "score": to_json(asdict(view.score)) if view.score else None,
            "own_continuation": list(view.own),
            "answers": [
                to_json(a) for a in (*self.explorer.asking.answers(), *self.explorer.locating.inquiry.answers())
            ],
        }
        return json.dumps(document, indent=1) + "\n"


def free_name(folder: Path, stem: str, kind: str) -> Path:
    """A name that no file has: nothing is ever overwritten."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)
    path, n = folder / f"{safe}.{kind}", 1
    while path.exists():
        n += 1
        path = folder / f"{safe}-{n}.{kind}"
    return path
