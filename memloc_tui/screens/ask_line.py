"""One question with a line of text for an answer."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from memloc_tui.screens.dialog import Dialog
from memloc_tui.widgets.text_line import TextLine


class AskLine(Dialog[str]):
    """Dismissed with what is written; with None where the person goes back."""

    BINDINGS = [
        Binding("enter", "take", "Take", id="line.take", tooltip="Take what is written", priority=True),
        Binding("escape", "close", "Back", id="line.close", tooltip="Back, nothing taken"),
    ]

    def __init__(self, title: str, says: str, text: str = "", longest: int = 0) -> None:
        super().__init__()
        self.asked, self.says, self.text, self.longest = title, says, text, longest

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = Content(self.asked)
            box.border_subtitle = "⏎ takes it · esc back"
            yield Static(Content(self.says))
            yield TextLine(self.text, compact=True, select_on_focus=False, max_length=self.longest)

    def action_take(self) -> None:
        self.dismiss(self.query_one(TextLine).value)
