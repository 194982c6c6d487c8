"""A box over the explorer. Its styles are here, not in the stylesheet: the first frame need not parse them."""

from __future__ import annotations

from typing import Any, TypeVar

from textual import events
from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen

T = TypeVar("T")


class NotSelecting:
    """Beside a screen: no text is looked for under a click, to select it. Where it has just gone Textual would fail."""

    def get_widget_and_offset_at(self, x: int, y: int) -> tuple[None, None]:
        return None, None


class LeavesOnce(NotSelecting):
    """Beside a screen: a second Esc, typed before the first has closed it, would take the one below away as well."""

    _left = False

    def dismiss(self, result: Any = None) -> AwaitComplete:
        screen: Any = self
        if self._left or not screen.is_current:
            return AwaitComplete()
        self._left = True
        return super().dismiss(result)  # type: ignore[misc,no-any-return]


class Dialog(LeavesOnce, ModalScreen[T]):
    """The contents stand in one container of class `dialog`; Esc leaves, and so does a click onto its lower edge, which
    says so, or beside it."""

    DEFAULT_CSS = """
    Dialog { align: center middle; background: $background 40%; }
    Dialog .dialog {
        width: 64; max-width: 96%; height: auto; max-height: 90%;
        border: round $foreground 80%; background: $surface; padding: 0 1;
        scrollbar-size-vertical: 1; scrollbar-color: $foreground 30%; scrollbar-background: $surface;
        &.-wide { width: 92; }
        &.-tall { width: 100; height: 90%; }
    }
    Dialog #options { height: 7; }
    """

    def on_click(self, event: events.Click) -> None:
        box = self.query_one(".dialog").region
        if event.screen_y == box.bottom - 1 or not box.contains(event.screen_x, event.screen_y):
            self.action_close()

    def action_close(self) -> None:
        """Leave, nothing chosen."""
        self.dismiss(None)
