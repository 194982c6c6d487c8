"""The prefix's tokens, what replaces them, and an overlay of one number per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memloc_tui.figures import figure, short
from memloc_tui.glyphs import piece_text, quoted
from memloc_tui.widgets.token_grid import Cell, Column, TokenGrid

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.view import View


def number(value: float) -> str:
    """An overlay's number in at most four cells."""
    if value != value:
        return "·"
    return f"{value:.0f}" if value == round(value) or abs(value) >= 10 else f"{value:.1f}"


class PrefixPane(TokenGrid):
    """One column per prefix token: the token, and its number under the overlay."""

    view: View | None = None
    catalogue: Catalogue | None = None

    def text(self, token: int) -> str:
        pieces = self.catalogue.pieces if self.catalogue else []
        return piece_text(pieces[token] if 0 <= token < len(pieces) else b"", token)

    def show_view(self, view: View, catalogue: Catalogue) -> None:
        self.view, self.catalogue = view, catalogue
        replaced = dict(view.replacements)
        columns: list[Column] = []
        for position, token in enumerate(view.prefix):
            text = self.text(token)
            new = replaced.get(position)
            cell = Cell(text) if new is None else Cell(f"[{text}⇒{self.text(new)}]", "perturb")
            columns.append((cell, *self._value(view, position)))
        self.show(columns, ("", "") if view.overlay != "none" else ("",))
        self.title(self._title(view), self._subtitle())

    def _value(self, view: View, position: int) -> tuple[Cell, ...]:
        if view.overlay == "EM drop":
            drop = view.sweep.drops[position] if view.sweep else float("nan")
            share = drop / len(view.continuation)
            return (Cell(f" {number(drop)}", "perturb" if drop > 0 else "faint", share if drop > 0 else 0.0),)
        if view.overlay == "rarity":
            rank = view.ranks[position]
            level = 1 - (rank - 1) / max(1, max(view.ranks)) if rank else 0.0
            return (Cell(f" {rank or '·'}", "faint", level),)
        if view.overlay_values:
            value = view.overlay_values[position]
            most = max((v for v in view.overlay_values if v == v), default=0.0)
            level = value / most if value == value and most > 0 else 0.0
            return (Cell(f" {short(value)}", view.overlay if level >= 0.05 else "faint", level),)
        return (Cell(""),) if view.overlay != "none" else ()

    def _title(self, view: View) -> str:
        title = f"2 Prefix · {view.prefix_length} tokens"
        if view.overlay == "rarity":
            return f"{title} · overlay: rarity rank (1 = rarest here)"
        if view.overlay == "EM drop":
            if view.sweep is None:
                return f"{title} · overlay: EM drop (press w to sweep)"
            known = "" if view.sweep.done else f" {len(view.sweep.known)} of {view.prefix_length} known"
            return f"{title} · overlay: EM drop{known} · {view.sweep.said()}"
        if view.overlay != "none":
            return f"{title} · overlay: {view.overlay_says or view.overlay}"
        return f"{title} · overlay: none"

    def show_cursor(self) -> None:
        if self.view is not None:
            self.title(self._title(self.view), self._subtitle())

    def _subtitle(self) -> str:
        """The token under the cursor and everything known about it."""
        view, position = self.view, self.cursor
        if view is None or position >= len(view.prefix):
            return ""
        token = view.prefix[position]
        parts = [f"{position} {quoted(self.text(token))} id {token}"]
        if self.catalogue is not None:
            begins = position == 0 and token == self.catalogue.paragraphs.begin
            # Its own, whatever replaces it.
            parts.append("begin-of-text token" if begins else f"count {self.catalogue.count(token):,}")
        if view.sweep and (drop := view.sweep.drops[position]) == drop:
            parts.append(f"drop {number(drop)}")
        if view.overlay_values and (value := view.overlay_values[position]) == value:
            parts.append(f"{view.overlay} {figure(value)}")
        if (new := dict(view.replacements).get(position)) is not None:
            parts.append(f"replaced by {quoted(self.text(new))} id {new}")
        return " · ".join(parts)
