"""The last messages of this sitting: what was said in a corner for some seconds, with the time it was said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from memloc_tui.screens.dialog import Dialog
from memloc_tui.widgets.row_list import RowList

if TYPE_CHECKING:
    from memloc_tui.app import MemlocApp

LOOKS = {"warning": "perturb", "error": "leave"}


class Said(NamedTuple):
    """A message: `text` is already visible."""

    at: str  # the time of day
    severity: str
    text: str


class MessageRows(RowList):
    """The newest first, a line each."""

    messages: Sequence[Said] = ()

    def row(self, index: int, width: int) -> list[Segment]:
        message = self.messages[index]
        look = LOOKS.get(message.severity)
        kind = [Segment(f"{message.severity} ", self.look(look))] if look else []
        return [Segment(f" {message.at} ", self.look("faint")), *kind, Segment(message.text)]


class Messages(Dialog[None]):
    """The messages as they were when it was opened; the one under the cursor is shown whole below."""

    BINDINGS = [
        Binding("y", "copy", "Copy", id="messages.copy", tooltip="Copy the message"),
        Binding("escape,l,q", "close", "Close", id="messages.close", tooltip="Close the messages"),
    ]
    DEFAULT_CSS = """
    Messages {
        & MessageRows { height: 1fr; scrollbar-color: $foreground 30%; scrollbar-background: $surface; }
        & #whole { height: auto; max-height: 40%; border-top: solid $foreground 15%; }
    }
    Messages:ansi #whole { border-top: solid ansi_bright_black; }
    """

    def __init__(self, messages: Sequence[Said]) -> None:
        super().__init__()
        self.messages = messages

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -tall") as box:
            box.border_title = "Messages"
            box.border_subtitle = "y copies · esc closes"
            yield MessageRows(empty="No message yet.")
            with VerticalScroll(id="whole", can_focus=False):
                yield Static(markup=False)

    def on_mount(self) -> None:
        rows = self.query_one(MessageRows)
        rows.messages = self.messages
        rows.show_rows(len(self.messages), 0)
        rows.focus()
        self._show()

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        self._show()

    def _show(self) -> None:
        if self.messages:
            self.query_one("#whole Static", Static).update(self.messages[self.query_one(MessageRows).cursor].text)

    def action_copy(self) -> None:
        if self.messages:
            self.app.copy_to_clipboard(self.messages[self.query_one(MessageRows).cursor].text)
            cast("MemlocApp", self.app).say("The message is copied.")
