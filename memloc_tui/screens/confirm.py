"""One question with yes and no."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from memloc_tui.screens.dialog import Dialog


class Confirm(Dialog[bool]):
    """Dismissed with whether the person said yes; Esc is no."""

    BINDINGS = [
        Binding("y,enter", "answer(True)", "Yes", id="confirm.yes", tooltip="Yes"),
        Binding("n,escape", "answer(False)", "No", id="confirm.no", tooltip="No, back"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Content(self.question))
            yield Static(
                Content.from_markup("[@click=screen.answer(True)][b]y[/] yes[/]   ")
                + Content.from_markup("[@click=screen.answer(False)][b]n[/] no[/]")
            )

    def action_close(self) -> None:
        self.dismiss(False)

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
