"""What a report is made of, before it is written down as text, Markdown or HTML. Text here is raw: writers escape it.

Every number is there as text too, so that no writer needs colour or pictures to say it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from memloc_tui.reports.pictures import Bar


@dataclass(frozen=True)
class Words:
    """A paragraph of prose."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table; its first column names the rows. Columns in `left` hold text, the others numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Token:
    """A token as it is shown. `sign` and `value` are what its `hue` and `level` (0..1) say without colour."""

    text: str
    hue: str = ""
    level: float = 0.0
    value: str = ""
    sign: str = ""


@dataclass(frozen=True)
class Tokens:
    """Running text, token by token."""

    caption: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Chart:
    """Bars, "upright" (one per place) or "level" (one per name)."""

    title: str
    says: str
    kind: Literal["upright", "level"]
    bars: tuple[Bar, ...]
    hue: str

    @property
    def caption(self) -> str:
        return f"{self.title}: {self.says}"

    def listed(self, most: int = 10) -> tuple[str, tuple[tuple[Bar, float], ...]]:
        """For writers without pictures: bars with their share of the longest one; of many places only the largest."""
        values = [bar for bar in self.bars if bar.value == bar.value]
        scale = max((bar.value for bar in values), default=0.0) or 1.0
        chosen, says = list(self.bars), self.caption
        if self.kind == "upright":
            chosen = sorted((bar for bar in values if bar.value > 0), key=lambda bar: -bar.value)[:most]
            says += f"; the largest {len(chosen)}" if chosen else "; there is none"
        named = (bar._replace(name=f"{bar.name} {bar.more}".rstrip()) for bar in chosen)
        return says, tuple((bar, bar.value / scale if bar.value == bar.value else 0.0) for bar in named)


Block = Words | Grid | Tokens | Chart


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `level` 2 or 3."""

    heading: str
    blocks: tuple[Block, ...]
    level: int = 2


@dataclass(frozen=True)
class Document:
    """A whole report. `data` is what its JSON form holds: results under their own field names."""

    title: str
    about: tuple[str, ...]
    sections: tuple[Section, ...]
    data: dict[str, Any] = field(default_factory=dict)
