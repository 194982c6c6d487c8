"""How a sweep replaces tokens: strategy, draws, seed, reference, precision, and the tokens that "given" takes."""

from __future__ import annotations

from rich.segment import Segment
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical

from memloc_core.requests import STRATEGIES
from memloc_tui.glyphs import piece_text, quoted, visible
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
DRAWS, SEED, GIVEN = 1, 2, 5  # rows that are typed into


class OptionRows(RowList):
    """One option per row; the explorer's resume state holds the values."""

    NAMES = ("strategy", "draws", "seed", "reference", "precision", "given tokens")

    def __init__(self, resume: Resume, pieces: list[bytes]) -> None:
        super().__init__(id="options")
        self.resume, self.pieces = resume, pieces
        self.typed = ""
        self.said = ""

    def row(self, index: int, width: int) -> list[Segment]:
        resume = self.resume
        precision = "verified" if resume.verified else "exact"
        value, note = [
            (resume.strategy, SAID.get(resume.strategy, "")),
            (str(resume.draws), "per position, 1..99"),
            (str(resume.seed), "of the random draws"),
            (resume.reference, SAID.get(resume.reference, "")),
            (precision, PRECISIONS[precision]),
            (self._given(), self.said or "type a token, ⏎ adds it, backspace takes it back"),
        ][index]
        arrows = f"‹ {value} ›" if index < GIVEN else value
        return [Segment(f" {self.NAMES[index]:<13}"), Segment(f"{arrows:<19} "), Segment(note, self.look("faint"))]

    def _given(self) -> str:
        known = len(self.pieces)
        names = [quoted(piece_text(self.pieces[t] if 0 <= t < known else b"", t)) for t in self.resume.given]
        return " ".join([*names, f"{visible(self.typed)}▏"])

    def change(self, step: int) -> None:
        """One value to the left or right."""
        resume = self.resume
        if self.cursor == 0:
            at = STRATEGIES.index(resume.strategy) if resume.strategy in STRATEGIES else 0  # type: ignore[arg-type]
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
        """A digit into a number, anything into the given tokens."""
        resume = self.resume
        if self.cursor == DRAWS and char.isdecimal():
            resume.draws = max(1, min(99, int(f"{resume.draws}{char}"[-2:])))
        elif self.cursor == SEED and char.isdecimal():
            resume.seed = int(f"{resume.seed}{char}"[-9:])
        elif self.cursor == GIVEN:
            self.typed, self.said = self.typed + char, ""
        self.repaint_row(self.cursor)

    def erase(self) -> None:
        resume = self.resume
        if self.cursor == DRAWS:
            resume.draws = max(1, resume.draws // 10)
        elif self.cursor == SEED:
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
        self.rows.show_rows(len(OptionRows.NAMES), 0)
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
