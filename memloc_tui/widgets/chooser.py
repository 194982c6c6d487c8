"""Which token shall stand here? Columns of candidates; walking over them tries each one live.

It takes the lower part's place instead of covering the screen: the continuation stays in sight, and only what changed
is painted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from memloc_core.requests import random_tokens
from memloc_tui.glyphs import fit, piece_text, visible
from memloc_tui.widgets.row_list import foreground


@dataclass
class Candidates:
    """One column: its name, its tokens with a number each as shown, and what stands there without any."""

    name: str
    rows: list[tuple[int, str]] = field(default_factory=list)
    note: str = ""


def typed_matches(pieces: list[bytes], typed: str, original: int, k: int = 64) -> tuple[list[int], bool]:
    """Tokens that equal or start with what was typed, with and without a leading space; whether any equals it."""
    want = typed.encode()
    spaced = b" " + want
    exact = [t for t, piece in enumerate(pieces) if piece in (want, spaced)]
    longer = [t for t, piece in enumerate(pieces) if piece.startswith((want, spaced)) and piece not in (want, spaced)]
    longer.sort(key=lambda t: (len(pieces[t]), t))
    return [t for t in exact + longer[:k] if t != original], bool(exact)


class Chooser(Widget, can_focus=True):
    """See the module. The explorer gives it candidates and the EMs of those already tried; it posts what to try."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "chooser--head",
        "chooser--faint",
        "chooser--cursor",
        "chooser--typed",
        "chooser--effect",
    }
    DEFAULT_CSS = """
    Chooser {
        height: 1fr; padding: 0 1;
        & > .chooser--head { text-style: bold; }
        & > .chooser--faint { color: $text-muted; }
        & > .chooser--cursor { text-style: reverse; }
        & > .chooser--typed { text-style: bold; }
        & > .chooser--effect { color: $text-warning; }
    }
    """
    RANDOM, NEXT_BEST, FREQUENT, RAREST, TYPED = range(5)
    BINDINGS = [
        Binding("up", "row(-1)", "Up", id="chooser.up", tooltip="Try the token above", show=False),
        Binding("down", "row(1)", "Down", id="chooser.down", tooltip="Try the token below", show=False),
        Binding("left", "column(-1)", "Left", id="chooser.left", tooltip="Go to the column before", show=False),
        Binding("right,tab", "column(1)", "Right", id="chooser.right", tooltip="Go to the next column", show=False),
        Binding("ctrl+r", "draw", "Draw", id="chooser.draw", tooltip="Draw the next random token", show=False),
        Binding("enter", "keep", "Keep", id="chooser.keep", tooltip="Keep the token that is tried", show=False),
        Binding("escape", "leave", "Back", id="chooser.leave", tooltip="Put back what stood here", show=False),
        Binding("backspace", "erase", "Erase", id="chooser.erase", tooltip="Erase a typed character", show=False),
    ]

    class Tried(Message):
        """Show the effect of this token (None: of what stood here before)."""

        def __init__(self, position: int, token: int | None) -> None:
            super().__init__()
            self.position, self.token = position, token

    class Done(Message):
        """The chooser closes; keep what is tried, or put back what stood here before."""

        def __init__(self, position: int, keep: bool) -> None:
            super().__init__()
            self.position, self.keep = position, keep

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.position = -1
        self.original = -1
        self.seed = 0
        self.vocabulary = 0
        self._tried: int | None = None
        self.pieces: list[bytes] = []
        self.columns: list[Candidates] = []
        self.at = (self.RANDOM, -1)  # column, row; row -1: nothing tried yet
        self.typed = ""
        self.effects: dict[int, int] = {}
        self._counts: Callable[[int], str] = lambda token: ""

    def open(
        self,
        position: int,
        original: int,
        pieces: list[bytes],
        columns: tuple[Candidates, Candidates, Candidates],
        counts: Callable[[int], str],
        seed: int,
        vocabulary: int,
    ) -> None:
        """Offer tokens for `position`; `columns` are the model's next best, the most frequent and the rarest."""
        self.position, self.original, self.pieces, self.seed, self._counts = position, original, pieces, seed, counts
        self.typed, self.effects, self.at, self.vocabulary = "", {}, (self.RANDOM, -1), vocabulary
        self._tried = None
        self.columns = [Candidates(f"random, seed {seed}"), *columns, Candidates("typed", note="type to look")]
        self._fill_random(max(1, self.size.height or 12))
        self.refresh()

    def try_first(self) -> int | None:
        """Put the cursor on the first random token; what it is."""
        self.at = (self.RANDOM, 0)
        self._tried = self.token
        return self.token

    def _fill_random(self, n: int) -> None:
        """Have at least n random rows: a column without an end."""
        if self.vocabulary > 1 and len(self.columns[self.RANDOM].rows) < n:
            tokens = random_tokens(self.seed, self.position, n + 16, self.vocabulary, self.original)
            self.columns[self.RANDOM].rows = [(token, f"#{draw}") for draw, token in enumerate(tokens)]

    def show_next_best(self, candidates: Candidates) -> None:
        """The model's answer is there."""
        self.columns[self.NEXT_BEST] = candidates
        self.refresh()

    def record(self, token: int, em: int) -> None:
        """The EM that a tried token led to; shown beside it from now on."""
        if self.effects.get(token) != em:
            self.effects[token] = em
            self.refresh()

    @property
    def token(self) -> int | None:
        """The token that is tried."""
        column, row = self.at
        rows = self.columns[column].rows if self.columns else []
        return rows[row][0] if 0 <= row < len(rows) else None

    # -------------------------------------------------------------------------------------------------------- painting

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if not self.columns:
            return Strip.blank(width, self.rich_style)
        base = self.rich_style

        def look(name: str) -> Style:
            return base + foreground(self.get_component_rich_style(f"chooser--{name}"))

        if y == 0:
            return Strip(self._first_line(look)).adjust_cell_length(width, base)
        wide = width // len(self.columns)
        segments = []
        for number, column in enumerate(self.columns):
            if y == 1:
                style = look("head" if number == self.at[0] else "faint")
                segments.append(Segment(fit(column.name, wide - 1) + " ", style))
                continue
            row = y - 2 + self._top(number)
            if row >= len(column.rows):
                note = column.note if y == 2 and not column.rows else ""
                segments.append(Segment(fit(note, wide - 1) + " ", look("faint")))
                continue
            token, extra = column.rows[row]
            piece = self.pieces[token] if 0 <= token < len(self.pieces) else b""
            tail = f"→{self.effects[token]}" if token in self.effects else extra
            text_style = look("cursor") if (number, row) == self.at else base
            text = fit(piece_text(piece, token), max(1, wide - cell_len(tail) - 2))
            segments += [
                Segment(text, text_style),
                Segment(f" {tail} ", look("effect" if token in self.effects else "faint")),
            ]
        return Strip(segments).adjust_cell_length(width, base)

    def _first_line(self, look: Callable[[str], Style]) -> list[Segment]:
        typed = [Segment("look for a token: ", look("faint")), Segment(f"{visible(self.typed)}▏", look("typed"))]
        note = self.columns[self.TYPED].note if self.typed else ""
        return [*typed, Segment(f"  {note}", look("faint"))]

    @property
    def _room(self) -> int:
        return max(1, self.content_size.height - 2)

    def _top(self, number: int) -> int:
        """The first row shown of a column: the cursor stays in sight."""
        column, row = self.at
        return max(0, row - self._room + 1) if column == number else 0

    # ----------------------------------------------------------------------------------------------------------- moving

    def _go(self, column: int, row: int) -> None:
        self.at = (column, row)
        self.refresh()
        if self.token != self._tried:
            self._tried = self.token
            self.post_message(self.Tried(self.position, self.token))

    def action_row(self, step: int) -> None:
        column, row = self.at
        if column == self.RANDOM:
            self._fill_random(row + step + 2)
        self._go(column, max(-1, min(row + step, len(self.columns[column].rows) - 1)))

    def action_column(self, step: int) -> None:
        column = (self.at[0] + step) % len(self.columns)
        rows = self.columns[column].rows
        self._go(column, min(max(0, self.at[1]), len(rows) - 1))

    def action_draw(self) -> None:
        """The next random token: below the one that is tried."""
        row = self.at[1] + 1 if self.at[0] == self.RANDOM else 0
        self._fill_random(row + 1)
        self._go(self.RANDOM, min(row, len(self.columns[self.RANDOM].rows) - 1))

    def action_keep(self) -> None:
        self.post_message(self.Done(self.position, keep=True))

    def action_leave(self) -> None:
        if self.typed:
            self._look_for("")
        else:
            self.post_message(self.Done(self.position, keep=False))

    def action_erase(self) -> None:
        self._look_for(self.typed[:-1])

    def on_key(self, event: events.Key) -> None:
        if event.is_printable and event.character:
            event.stop()
            event.prevent_default()
            self._look_for(self.typed + event.character)

    def on_paste(self, event: events.Paste) -> None:
        event.stop()
        self._look_for(self.typed + event.text.splitlines()[0][:80] if event.text else self.typed)

    def _look_for(self, typed: str) -> None:
        self.typed = typed
        column = self.columns[self.TYPED]
        if not typed:
            column.rows, column.note = [], "type to look"
            self._go(self.TYPED, -1)
            return
        tokens, exact = typed_matches(self.pieces, typed, self.original)
        column.rows = [(t, self._counts(t)) for t in tokens]
        column.note = "" if exact else "no single token equals this: it is several tokens"
        self._go(self.TYPED, 0 if tokens else -1)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or offset.y < 2 or not self.columns:
            return
        number = min(offset.x // max(1, self.content_size.width // len(self.columns)), len(self.columns) - 1)
        row = offset.y - 2 + self._top(number)
        if row < len(self.columns[number].rows):
            if self.at == (number, row):
                self.action_keep()
            else:
                self._go(number, row)
