"""The text to be recited above what the model says, aligned by token, with the first mismatch marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memloc_tui.figures import figure, head_names, signed
from memloc_tui.glyphs import piece_text, quoted
from memloc_tui.widgets.token_grid import Cell, Column, TokenGrid

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.view import View


RISKY_MARGIN = 1e-3  # below it, an exact match may differ between devices and precisions (README)


def change(before: int, after: int) -> str:
    """`EM 50 → 7 (−43)`."""
    difference = signed(after - before) if after != before else "±0"
    return f"EM {before} → {after} ({difference})"


class ContinuationPane(TokenGrid):
    """One column per continuation token: the reference above, the model's greedy token below."""

    view: View | None = None
    catalogue: Catalogue | None = None

    def text(self, token: int) -> str:
        pieces = self.catalogue.pieces if self.catalogue else []
        return piece_text(pieces[token] if 0 <= token < len(pieces) else b"", token)

    def show_view(self, view: View, catalogue: Catalogue) -> None:
        self.view, self.catalogue = view, catalogue
        score = view.score
        if score is None:
            self.show([(Cell(self.text(t), "faint"),) for t in view.continuation], ("true",))
        else:
            label = "true" if score.against == "true" else "own"
            self.show([self._column(view, i) for i in range(len(score.reference))], (label, "model"))
        self.title(self._title(view), self._subtitle(view))

    def _column(self, view: View, i: int) -> Column:
        score = view.score
        assert score is not None
        true = self.text(score.reference[i])
        if i < score.em:
            return Cell(true, "match"), Cell(true, "same")
        own = view.own[i - score.em] if i - score.em < len(view.own) else None
        if i == score.em:
            return Cell(true), Cell(f"✗{self.text(score.predicted[i] if own is None else own)}", "leave")
        if own is None:
            return Cell(true), Cell("…" if i == score.em + 1 else "", "faint")
        return Cell(true), Cell(self.text(own), "astray")

    def _title(self, view: View) -> str:
        score = view.score
        if view.error:
            return "3 Continuation · no answer"
        if score is None:
            return "3 Continuation · asking the engine …" if view.asking else "3 Continuation"
        # What takes the numbers' worth comes first: the end is cut where there is no room.
        parts, margin = ["3 Continuation"], f"margin {score.margin:.2g}"
        if view.asking:
            parts.append("old, asking …")
        if score.margin < RISKY_MARGIN:
            parts.append(f"{margin} !")
        if score.against != "true":
            parts.append("vs own")
        if view.edits:
            parts.append("edited")
        if view.ablated:
            parts.append(f"without {head_names(view.ablated)}")
        if view.replacements or view.ablated:
            parts += [change(score.em_before, score.em), f"NLL {score.nll_before:.2f} → {score.nll:.2f}"]
        else:
            parts += [f"EM {score.em} of {len(score.reference)}", f"NLL {score.nll:.2f}"]
        if score.margin >= RISKY_MARGIN:
            parts.append(margin)
        return " · ".join(parts)

    def show_cursor(self) -> None:
        if self.view is not None:
            self.title(self._title(self.view), self._subtitle(self.view))

    def _subtitle(self, view: View) -> str:
        """What stands under the cursor, and where the model leaves the text."""
        if view.error:
            return f"{view.error} · r asks again"
        score = view.score
        parts = []
        if self.cursor < len(self.columns):
            token = (score.reference if score else view.continuation)[self.cursor]
            parts.append(f"{view.prefix_length + self.cursor} {quoted(self.text(token))} id {token}")
            if score is not None and self.cursor < len(score.token_nll):
                parts.append(f"NLL {figure(score.token_nll[self.cursor])}")
        if score is not None:
            if score.margin < RISKY_MARGIN:
                parts.append("margin < 0.001: EM may differ between devices")
            whole = score.em >= len(score.reference)
            parts.append("recited to the end" if whole else f"leaves at token {score.em}")
        return " · ".join(parts)
