"""The command palette: Textual's, without five ways in which a key or a click too early ends the program."""

from __future__ import annotations

from contextlib import suppress

from textual import command, events, work
from textual.css.query import NoMatches
from textual.errors import NoWidget

from memloc_tui.screens.dialog import LeavesOnce


class Commands(command.CommandList):
    """The list of hits, which a click on a line that has just gone does not hurt."""

    async def _on_click(self, event: events.Click) -> None:
        if event.style.meta.get("option", -1) >= self.option_count:
            event.prevent_default()


command.CommandList = Commands  # type: ignore[misc]  # the palette makes its list itself


class Palette(LeavesOnce, command.CommandPalette):
    """See the module."""

    @work(exclusive=True, group=command.CommandPalette._GATHER_COMMANDS_GROUP)
    async def _gather_commands(self, search_value: str) -> None:
        with suppress(NoMatches):  # it has been left before all hits were there
            await command.CommandPalette._gather_commands.__wrapped__(self, search_value)  # type: ignore[attr-defined]

    def _on_click(self, event: events.Click) -> None:  # type: ignore[override]  # as is Textual's own
        try:
            self.get_widget_at(event.screen_x, event.screen_y)
        except NoWidget:  # the terminal is smaller since
            event.prevent_default()

    def _action_command_list(self, action: str) -> None:
        if self.query_one(Commands).size.area:  # a page key fails in a list that has not been laid out
            super()._action_command_list(action)
