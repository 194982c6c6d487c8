"""The list of paragraphs: marker, id, exact match as a number and a bar, and how the text starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.segment import Segment

from memloc_tui.figures import signed
from memloc_tui.glyphs import bar, visible
from memloc_tui.widgets.row_list import RowList

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue

ID_WIDTH, BAR_WIDTH = 5, 6


class ParagraphList(RowList):
    """Rows of a Catalogue in the order given; the row under the cursor is the paragraph on screen."""

    catalogue: Catalogue | None = None
    order: list[int] = []
    tells = False  # whether each row says how likely its prefix alone makes it

    def show_order(self, catalogue: Catalogue, order: list[int], current: int) -> None:
        """Show these paragraphs; the cursor goes to `current`, or nowhere if it is not among them."""
        at_top = self.scroll_offset.y == 0 and self.cursor <= 0
        self.catalogue, self.order = catalogue, order
        cursor = order.index(current) if current in order else -1
        self.show_rows(len(order), cursor)
        if at_top and cursor < self.scrollable_content_region.height:
            self.scroll_to(y=0, animate=False, immediate=True)

    @property
    def current(self) -> int | None:
        """The paragraph under the cursor."""
        return self.order[self.cursor] if 0 <= self.cursor < len(self.order) else None

    @property
    def visible_paragraphs(self) -> list[int]:
        return [self.order[i] for i in self.visible_rows if i < len(self.order)]

    def repaint_paragraphs(self, rows: range) -> None:
        """New scores for these paragraphs: paint those on screen again."""
        for index in self.visible_rows:
            if index < len(self.order) and self.order[index] in rows:
                self.repaint_row(index)

    def row(self, index: int, width: int) -> list[Segment]:
        catalogue = self.catalogue
        assert catalogue is not None
        row = self.order[index]
        em = int(catalogue.em[row])
        stratum = catalogue.stratum_of(em)
        look = {"memorized": "match", "partly": "match", "non-memorized": "faint", "unknown": "faint"}[stratum]
        if em < 0:
            drawn = "·" * BAR_WIDTH
        elif stratum == "non-memorized":
            drawn = ("▒" * -(-em * BAR_WIDTH // catalogue.length)).ljust(BAR_WIDTH, "░")
        else:
            drawn = bar(em / catalogue.length, BAR_WIDTH)
        marker = "▸" if index == self.cursor else " "
        id_ = f"{'+' if catalogue.is_own(row) else ''}{visible(catalogue.paragraphs.ids[row])}"
        changed = row in catalogue.perturbed
        return [
            Segment(f"{marker}{id_[:ID_WIDTH]:<{ID_WIDTH}}", self.look("faint")),
            Segment("◆" if row in catalogue.marked else " ", self.look("perturb")),
            Segment(f"{em if em >= 0 else '··':>2} ", self.look(look)),
            Segment(drawn, self.look(look)),
            Segment("*" if changed else " ", self.look("perturb")),
            Segment(self._lost(row), self.look("perturb")),
            Segment(f"{told:.2f} " if (told := catalogue.told[row]) >= 0 else "···· ") if self.tells else Segment(""),
            Segment(catalogue.snippet(row)),
        ]

    def _lost(self, row: int) -> str:
        """What an edit has done to the exact match, where edited weights are shown beside known original ones."""
        catalogue = self.catalogue
        assert catalogue is not None
        if catalogue.original is None:
            return ""
        before, now = int(catalogue.original.em[row]), int(catalogue.em[row])
        return f"{signed(now - before) if before >= 0 and now >= 0 and now != before else '':>3} "
