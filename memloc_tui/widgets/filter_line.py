"""The line in which the paragraph filter is typed."""

from __future__ import annotations

from textual.binding import Binding
from textual.message import Message
from textual.widgets import Input

from memloc_tui.widgets.text_line import TextLine


class FilterLine(TextLine):
    """Applies as it is typed. Enter keeps the filter, Esc first empties it and then leaves."""

    BINDINGS = [
        Binding("escape", "leave", "Back", id="filter.leave", tooltip="Empty the filter, then leave it", show=False),
        Binding("enter", "keep", "Keep", id="filter.keep", tooltip="Keep the filter", show=False),
        Binding("down", "keep", "Down", id="filter.down", tooltip="Go down into the list", show=False),
    ]

    class Typed(Message):
        """The filter's text changed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Left(Message):
        """The line is not needed any more."""

    def __init__(self, text: str) -> None:
        super().__init__(text, placeholder="words  em>=50  split:fresh …", compact=True, id="filter-line")

    def on_mount(self) -> None:
        self.focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        message.stop()
        self.post_message(self.Typed(message.value))

    def action_keep(self) -> None:
        self.post_message(self.Left())

    def action_leave(self) -> None:
        if self.value:
            self.value = ""
        else:
            self.post_message(self.Left())
