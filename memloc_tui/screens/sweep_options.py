"""How a sweep replaces tokens: strategy, draws, seed, reference, precision, and the tokens that "given" takes."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical

from memloc_core.requests import STRATEGIES
from memloc_tui.glyphs import fit_end, piece_text, quoted, visible
from memloc_tui.screens.dialog import Dialog
from memloc_tui.state import Resume
from memloc_tui.widgets.row_list import RowList

REFERENCES = ("auto", "true", "own")
SAID = {
    "random": "uniform over the vocabulary, seeded",
    "next-best": "what else the model expected there",
    "most-frequent": "the corpus's most frequent tokens",
    "rarest": "the corpus's rarest tokens",
    "given": "the tokens below",
    "auto": "the true text; the model's own for non-memorized",
    "true": "the true text",
    "own": "the model's own clean continuation",
}
PRECISIONS = {
    "exact": "as the model was opened",
    "verified": "bfloat16, and exactly where that could matter",
}
DRAWS, SEED, GIVEN, SWEEP = 1, 2, 5, 6  # rows that are typed into, and the last one
NAME, VALUE = 14, 19


class OptionRows(RowList):
    """One option per row; the explorer's resume state holds the values. The last row starts the sweep."""

    NAMES = ("strategy", "draws", "seed", "reference", "precision", "given tokens")

    def __init__(self, resume: Resume, pieces: list[bytes]) -> None:
        super().__init__(id="options")
        self.resume, self.pieces = resume, pieces
        self.typed = ""
        self.said = ""
        self._begun = -1  # the row whose number is being typed over

    def row(self, index: int, width: int) -> list[Segment]:
        if index == SWEEP:
            return [Segment(" ▸ sweep ", self.look("match")), Segment("  ⏎", self.look("faint"))]
        value, note = self._value(index), self._note(index)
        if index == GIVEN:
            value = fit_end(value, max(VALUE, width - NAME - cell_len(note) - 2))
        return [
            Segment(f" {self.NAMES[index]:<{NAME - 1}}"),
            Segment(f"{value:<{VALUE}} "),
            Segment(note, self.look("faint")),
        ]

    def _value(self, index: int) -> str:
        resume = self.resume
        if index == GIVEN:
            return self._given()
        precision = "verified" if resume.verified else "exact"
        values = (resume.strategy, str(resume.draws), str(resume.seed), resume.reference, precision)
        return f"‹ {values[index]} ›"

    def _note(self, index: int) -> str:
        resume = self.resume
        return (
            SAID.get(resume.strategy, ""),
            "per position, 1..99",
            "of the random draws",
            SAID.get(resume.reference, ""),
            PRECISIONS["verified" if resume.verified else "exact"],
            self.said or "type a token, ⏎ adds it, backspace takes it back",
        )[index]

    def _given(self) -> str:
        known = len(self.pieces)
        names = [quoted(piece_text(self.pieces[t] if 0 <= t < known else b"", t)) for t in self.resume.given]
        return " ".join([*names, f"{visible(self.typed)}▏"])

    def change(self, step: int) -> None:
        """One value to the left or right."""
        resume = self.resume
        if self.cursor == 0:
            at = STRATEGIES.index(resume.strategy) if resume.strategy in STRATEGIES else 0
            resume.strategy = STRATEGIES[(at + step) % len(STRATEGIES)]
        elif self.cursor == DRAWS:
            resume.draws = max(1, min(99, resume.draws + step))
        elif self.cursor == SEED:
            resume.seed = max(0, resume.seed + step)
        elif self.cursor == 3:
            at = REFERENCES.index(resume.reference) if resume.reference in REFERENCES else 0
            resume.reference = REFERENCES[(at + step) % 3]
        elif self.cursor == 4:
            resume.verified = not resume.verified
        self.repaint_row(self.cursor)

    def type(self, char: str) -> None:
        """A digit into a number, of which the first one begins a new number; anything into the given tokens."""
        resume = self.resume
        if self.cursor in (DRAWS, SEED) and char.isascii() and char.isdecimal():
            old = (resume.draws if self.cursor == DRAWS else resume.seed) if self._begun == self.cursor else 0
            number = 10 * old + int(char)
            self._begun = self.cursor if number else -1
            if self.cursor == DRAWS:
                resume.draws = max(1, min(99, number % 100))
            else:
                resume.seed = number % 10**9
        elif self.cursor == GIVEN:
            self.typed, self.said = self.typed + char, ""
        self.repaint_row(self.cursor)

    def erase(self) -> None:
        """The last digit of a number (of one digit: the next that is typed begins it anew), character or token."""
        resume = self.resume
        if self.cursor == DRAWS:
            self._begun = DRAWS if resume.draws > 9 else -1
            resume.draws = max(1, resume.draws // 10)
        elif self.cursor == SEED:
            self._begun = SEED if resume.seed > 9 else -1
            resume.seed //= 10
        elif self.cursor == GIVEN:
            if self.typed:
                self.typed = self.typed[:-1]
            elif resume.given:
                resume.given = resume.given[:-1]
        self.repaint_row(self.cursor)

    def add_typed(self) -> bool:
        """Take what was typed as a token: by its exact text (a space before it tried too), or #id."""
        if self.cursor != GIVEN or not self.typed:
            return False
        typed = self.typed
        token = -1
        if typed.startswith("#") and typed[1:].isdecimal() and int(typed[1:]) < len(self.pieces):
            token = int(typed[1:])
        for piece in (typed.encode(), b" " + typed.encode()):
            if token < 0 and piece in self.pieces:
                token = self.pieces.index(piece)
        if token < 0:
            self.said = "this is several tokens, not one"
        else:
            self.resume.given, self.typed = [*self.resume.given, token], ""
        self.repaint_row(self.cursor)
        return True

    def on_key(self, event: events.Key) -> None:
        if event.is_printable and event.character:
            event.stop()
            event.prevent_default()
            self.type(event.character)

    def on_paste(self, event: events.Paste) -> None:
        event.stop()
        for char in (event.text.splitlines() or [""])[0][:80]:
            self.type(char)

    def move_to(self, index: int) -> None:
        self._begun = -1
        super().move_to(index)

    def clicked(self, index: int, x: int) -> None:
        """Onto a value's left arrow: the one before; onto the rest of it: the next; onto the last line: sweep."""
        if index == SWEEP:
            self.action_choose()
        elif index < GIVEN and NAME <= x < NAME + cell_len(self._value(index)):
            self.change(-1 if x < NAME + 2 else 1)


class SweepOptions(Dialog[bool]):
    """Dismissed with whether to sweep now."""

    BINDINGS = [
        Binding("left", "change(-1)", "Less", id="sweep_options.less", tooltip="The value before"),
        Binding("right", "change(1)", "More", id="sweep_options.more", tooltip="The next value"),
        Binding("backspace", "erase", "Erase", id="sweep_options.erase", tooltip="Erase a digit or a token"),
        Binding("escape", "close", "Back", id="sweep_options.close", tooltip="Keep the options, do not sweep"),
    ]

    def __init__(self, resume: Resume, pieces: list[bytes]) -> None:
        super().__init__()
        self.rows = OptionRows(resume, pieces)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide") as box:
            box.border_title = "Sweep options"
            box.border_subtitle = "↑↓ option · ←→ or digits value · ⏎ sweep · esc back"
            yield self.rows

    def on_mount(self) -> None:
        self.rows.show_rows(SWEEP + 1, 0)
        self.rows.focus()

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        if not self.rows.add_typed():
            self.dismiss(True)

    def action_change(self, step: int) -> None:
        self.rows.change(step)

    def action_erase(self) -> None:
        self.rows.erase()

    def action_close(self) -> None:
        self.dismiss(False)
