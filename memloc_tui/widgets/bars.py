"""Lists of bars in the hues of attention and gradients."""

from __future__ import annotations

from typing import ClassVar

from memloc_tui.widgets.row_list import RowList


class BarList(RowList):
    """A RowList with the looks of the panels."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"rows--attention", "rows--gradient"}
    DEFAULT_CSS = """
    BarList {
        & > .rows--attention { color: #5c9dff; }
        & > .rows--gradient { color: #b083f0; }
    }
    BarList:light { & > .rows--attention { color: #1f5fd0; } & > .rows--gradient { color: #7a3fd1; } }
    BarList:ansi { & > .rows--attention { color: ansi_blue; } & > .rows--gradient { color: ansi_magenta; } }
    """


def hatched(share: float, width: int) -> str:
    """A bar of the non-memorized: hatched in whole cells, at least one for anything above nothing."""
    share = max(0.0, min(1.0, share if share == share else 0.0))
    cells = max(round(share * width), int(share > 0))
    return ("▒" * cells).ljust(width)
