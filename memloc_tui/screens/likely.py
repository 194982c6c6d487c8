"""What the model holds likely at a place of the continuation: the token that stands there, and what else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from memloc_core.errors import Cancelled, MemlocError
from memloc_core.requests import Alternatives
from memloc_tui.glyphs import bar, fit, piece_text, quoted, visible
from memloc_tui.screens.dialog import Dialog

if TYPE_CHECKING:
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.view import Score, View

SHOWN = 12
_WIDE, _BAR = 24, 20


class Likely(Dialog[None]):
    """Asks as it opens; the probabilities are those after all text above the place, as it stands there."""

    BINDINGS = [Binding("escape,enter,q", "close", "Close", id="likely.close", tooltip="Close what is likely here")]

    def __init__(self, explorer: Explorer, view: View, score: Score, index: int) -> None:
        super().__init__()
        self.explorer, self.view, self.score, self.index = explorer, view, score, index

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = f"What the model expects at {self.view.prefix_length + self.index}"
            box.border_subtitle = "esc closes"
            yield Static(self._lines([], "asking …"), id="likely")

    def on_mount(self) -> None:
        self.run_worker(self._ask(), exit_on_error=False)

    async def _ask(self) -> None:
        session, study = self.explorer.memloc.session, self.explorer.study
        if session is None or study is None:
            return
        text = (*self.view.perturbed, *self.score.reference)
        place = self.view.prefix_length + self.index
        try:
            answer: Any = await session.ask(study.posed(Alternatives(text[: place + 1], place, SHOWN)))
        except Cancelled:
            return
        except MemlocError as error:
            self.query_one("#likely", Static).update(self._lines([], visible(str(error))))
            return
        found = answer.result
        pairs = list(zip(found.tokens.tolist(), found.probabilities.tolist(), strict=True))
        self.query_one("#likely", Static).update(self._lines(pairs, ""))

    def _lines(self, others: list[tuple[int, float]], note: str) -> Content:
        """The token that stands there in its place among the others, by probability."""
        token = self.score.reference[self.index]
        known = self.index < len(self.score.token_nll)
        own = math.exp(-self.score.token_nll[self.index]) if known else math.nan
        rows = sorted([(token, own), *others], key=lambda row: -row[1] if row[1] == row[1] else -1.0)
        words = "the true text" if self.score.against == "true" else "the model's own text"
        lines = [Content.styled(f"after {words} up to there", "$text-muted")]
        for of, p in rows:
            here = of == token
            said = fit(f"{'▸' if here else ' '} {quoted(self._text(of))}", _WIDE)
            value = "     –" if p != p else f"{p:6.3f}" if p >= 0.0005 else f"{p:6.0e}"
            lines.append(Content.styled(f"{said} {value}  {bar(p if p == p else 0.0, _BAR)}", "bold" if here else ""))
        if note:
            lines.append(Content.styled(note, "$text-muted"))
        return Content("\n").join(lines)

    def _text(self, token: int) -> str:
        pieces = self.explorer.study.catalogue.pieces if self.explorer.study is not None else []
        return piece_text(pieces[token] if 0 <= token < len(pieces) else b"", token)
