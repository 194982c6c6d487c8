"""A text of the person's own, typed or pasted, and how many of the tokens that a paragraph needs it has."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.style import Style
from textual.widgets import Static, TextArea

from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_core.requests import EncodeText
from memloc_tui.glyphs import meant, spelled_out, visible
from memloc_tui.keys import rebound
from memloc_tui.screens.dialog import Dialog

if TYPE_CHECKING:
    from textual.document._document import EditResult, Location
    from textual.worker import WorkType

    from memloc_core.requests import Tokens
    from memloc_tui.screens.explorer import Explorer

COUNT_AFTER = 0.15  # seconds without another change
MOST = 20_000  # characters, unless a paragraph may need more
PER_TOKEN = 16  # characters of the longest usual tokens


class OwnField(TextArea):
    """Several lines that hold only what may stand on a terminal: other characters are spelled out in them."""

    DEFAULT_CSS = "OwnField, OwnField.-textual-compact { height: 10; padding: 0 1; background: $foreground 7%; }"
    takes_all = True  # of what is pasted, also what the terminal must not get

    def __init__(self, most: int) -> None:
        super().__init__(id="own-field", compact=True, highlight_cursor_line=False)
        self.cursor_blink = False
        self.most = most
        self.cut = False  # whether there was no room for all of what came last

    def replace(
        self, insert: str, start: Location, end: Location, *, maintain_selection_offset: bool = True
    ) -> EditResult:
        room = max(0, self.most - len(self.text) + len(self.get_text_range(start, end)))
        insert = spelled_out(insert)
        self.cut = len(insert) > room
        if self.cut:
            insert = re.sub("⟨[^⟩]*$", "", insert[:room])  # no half of a character's name
        return super().replace(insert, start, end, maintain_selection_offset=maintain_selection_offset)


class OwnTextDialog(Dialog[tuple[int, ...]]):
    """Dismissed with all token ids of a text that has enough of them; Esc leaves with nothing."""

    BINDINGS = [
        Binding("ctrl+s", "take", "study it", id="own_text.take", tooltip="Study the text that was typed or pasted"),
        Binding("escape", "close", "back", id="own_text.close", tooltip="Leave the text, nothing added"),
    ]

    def __init__(self, explorer: Explorer, prefix: int, continuation: int, tokens: int) -> None:
        """What a text needs; token ids stop before `tokens`."""
        super().__init__()
        self.explorer, self.prefix, self.needed, self.tokens = explorer, prefix, prefix + continuation, tokens

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide") as box:
            box.border_title = "A text of your own"
            yield OwnField(max(MOST, PER_TOKEN * self.needed))
            yield Static(id="own-count", markup=False)
            yield Static(self._keys())

    def on_mount(self) -> None:
        self.query_one(OwnField).focus()
        self._say(self._needs)

    @property
    def _needs(self) -> str:
        rest = self.needed - self.prefix
        return (
            f"Type or paste it. A paragraph needs {self.needed} tokens: {self.prefix} of prefix and {rest} to follow."
        )

    def _keys(self) -> Content:
        """What takes the text and what leaves it, for the mouse too."""
        from memloc_tui.screens.help import own, shown

        line = Content("")
        for binding in own(type(self)):
            key = shown(rebound(binding, self.explorer.memloc.keys))
            button = Content.assemble((key, "bold"), f" {binding.description}")
            line += button.stylize(Style.from_meta({"@click": f"screen.{binding.action}"})) + Content("   ")
        return line

    def _say(self, text: str, wrong: bool = False) -> None:
        field = self.query_one(OwnField)
        cut = f" The field holds no more than {field.most:,} characters." if field.cut else ""
        self.query_one("#own-count", Static).update(Content.styled(text + cut, "$text-error" if wrong else ""))

    def on_text_area_changed(self, message: TextArea.Changed) -> None:
        message.stop()
        self.set_timer(COUNT_AFTER, partial(self._count_unless_changed, message.text_area.text))

    def _count_unless_changed(self, text: str) -> None:
        if text == self.query_one(OwnField).text:
            self._count(take=False)

    def action_take(self) -> None:
        self._count(take=True)

    def _count(self, take: bool) -> None:
        work: WorkType[None] = partial(self._encode, take)
        self.run_worker(work, group="encode", exclusive=True, exit_on_error=False)

    async def _encode(self, take: bool) -> None:
        """Say how many tokens there are, and take them if they are enough."""
        written = self.query_one(OwnField).text
        if not written:
            self._say(self._needs, wrong=take)
            return
        memloc = self.explorer.memloc
        if memloc.session is None:
            self._say(memloc.no_model, wrong=True)
            return
        try:
            question = EncodeText(meant(written), memloc.settings.model, memloc.settings.revision)
            answer: Any = await memloc.session.ask(question)
        except Cancelled:
            return
        except MemlocError as error:
            self._say(visible(str(error)), wrong=True)
            if isinstance(error, EngineDied):
                memloc.engine_died(error)
            return
        tokens: Tokens = tuple(answer.result.tokens.tolist())
        n, needed = len(tokens), self.needed
        if n < needed:
            short = f"{n} of {needed} tokens: {needed - n} more are needed."
            self._say(f"Too short. {short}" if take else short, wrong=take)
        elif max(tokens[:needed]) >= self.tokens:
            self._say(f"The tokenizer gives token {max(tokens[:needed])}, which the model does not know.", wrong=True)
        elif take:
            self.dismiss(tokens)
        else:
            self._say(f"{n:,} tokens: the first {needed} are studied." if n > needed else f"{n} tokens: just enough.")
