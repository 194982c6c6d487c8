"""Every key, by section, read from the bindings themselves, and the filter's terms."""

from __future__ import annotations

from collections.abc import Iterator

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from memloc_tui.catalogue import FILTER_HELP
from memloc_tui.keys import rebound
from memloc_tui.screens.ask_line import AskLine
from memloc_tui.screens.confirm import Confirm
from memloc_tui.screens.dialog import Dialog
from memloc_tui.screens.explorer import Explorer
from memloc_tui.screens.export import Export
from memloc_tui.screens.likely import Likely
from memloc_tui.screens.messages import Messages
from memloc_tui.screens.own_text import OwnTextDialog
from memloc_tui.screens.sweep_options import SweepOptions
from memloc_tui.widgets.chooser import Chooser
from memloc_tui.widgets.curves import Curves
from memloc_tui.widgets.filter_line import FilterLine
from memloc_tui.widgets.heatmap import Heatmap
from memloc_tui.widgets.panels import PANELS, panel_type
from memloc_tui.widgets.row_list import RowList
from memloc_tui.widgets.run_form import RunForm
from memloc_tui.widgets.token_grid import TokenGrid


def sections(app_bindings: list[Binding]) -> list[tuple[str, list[Binding]]]:
    """Title and bindings of each place where keys mean something."""
    places: list[tuple[str, type]] = [
        ("Explorer", Explorer),
        *((tab.title, panel_type(tab)) for tab in PANELS if "BINDINGS" in panel_type(tab).__dict__),
        ("Lists", RowList),
        ("The form of a run", RunForm),
        ("Curves", Curves),
        ("Maps", Heatmap),
        ("Tokens", TokenGrid),
        ("Choosing a token", Chooser),
        ("What is likely", Likely),
        ("Filter", FilterLine),
        ("Sweep options", SweepOptions),
        ("Export", Export),
        ("Messages", Messages),
        ("A text of your own", OwnTextDialog),
        ("Questions", Confirm),
        ("A line of text", AskLine),
        ("Help", Help),
    ]
    return [("Everywhere", app_bindings), *((title, list(own(place))) for title, place in places)]


def own(place: type) -> Iterator[Binding]:
    """The bindings that a class itself declares."""
    for binding in place.__dict__["BINDINGS"]:
        assert isinstance(binding, Binding)
        yield binding


NAMES = {
    "up": "↑", "down": "↓", "left": "←", "right": "→", "enter": "⏎", "escape": "esc", "slash": "/", "asterisk": "*",
    "question_mark": "?", "left_square_bracket": "[", "right_square_bracket": "]", "pageup": "pgup",
    "pagedown": "pgdn", "plus": "+", "minus": "-",
}  # fmt: skip


def shown(binding: Binding) -> str:
    """A binding's keys as they stand on the keyboard."""
    return " ".join(NAMES.get(key, key.replace("ctrl+", "^")) for key in binding.key.split(","))


class Help(Dialog[None]):
    """See the module."""

    BINDINGS = [Binding("escape,question_mark,q", "close", "Close", id="help.close", tooltip="Close the help")]

    def __init__(self, app_bindings: list[Binding]) -> None:
        super().__init__()
        self.app_bindings = app_bindings

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog -tall", can_focus=True) as scroll:
            scroll.border_title = "Keys"
            scroll.border_subtitle = "esc closes"
            yield Static(self._text())

    def _text(self) -> Content:
        own = getattr(self.app, "keys", {})
        lines: list[Content] = []
        for title, bindings in sections(self.app_bindings):
            lines += [Content(""), Content.styled(title, "bold")]
            lines += [Content.assemble((f"  {shown(rebound(b, own)):<10} ", "bold"), b.tooltip) for b in bindings]
        lines += [Content(""), Content.styled("Filter terms (all must hold)", "bold")]
        lines += [Content.assemble((f"  {term}", "bold"), f"  {says}") for term, says in FILTER_HELP]
        lines += [
            Content(""),
            Content.styled("Signs", "bold"),
            Content("  █ solid: memorized or partly   ▒░ hatched: non-memorized (EM up to a fifth)   ·· not known yet"),
            Content("  * replacements of yours   [old⇒new] a replaced token   ✗ the model leaves the text"),
            Content("  + your own text   ◆ marked   ● a run's edit is on   ○ off   ▸ goes on   ‖ paused   ! failed"),
            Content(
                "  ↵ newline   → tab   ⟨E2⟩ a byte of an unfinished character   ⟨U+202E⟩ a character never sent raw"
            ),
            Content(
                "  vs true, vs own: matched against the true text, or against what the model says to the clean prefix"
            ),
            Content("  margin < 0.001: the exact match may differ between devices and precisions"),
        ]
        return Content("\n").join(lines[1:])
