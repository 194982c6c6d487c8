"""A terminal driver for slow links: it sends only the cells that differ from those that the terminal shows already.

Textual repaints whole lines and regions, each piece of text with its whole style before and a reset behind it. This
keeps what the terminal holds, cell by cell, and sends moves, the styles that change, and the text that is new. Whatever
it does not know is passed on as it is, and then the terminal counts as unknown: everything is sent once more.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any, NamedTuple

from rich.cells import cell_len
from textual.drivers.linux_driver import LinuxDriver

_TOKEN = re.compile(
    r"\x1b\[(?P<style>[0-9;]*)m"
    r"|\x1b\[(?P<row>\d+);(?P<column>\d+)H"
    r"|(?P<mode>\x1b\[[?<>=][0-9;$]*[a-zA-Z])"  # cursor, mouse, keyboard: nothing that is drawn
    r"|(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
    r"|(?P<other>[\s\S])"
)
_SCREEN_MODES = re.compile(r"\x1b\[\?(?:47|1047|1049)[hl]")  # another screen, or a cleared one
_CUBE = (0, 95, 135, 175, 215, 255)  # levels of each colour in the table of 256
_GAP = 4  # equal cells between two changes that are cheaper sent again than moved over

Style = tuple[str, str, str]  # foreground, background, the other attributes: parts of an SGR sequence
PLAIN: Style = ("", "", "")
Cell = tuple[str, Style] | None  # what stands there ("" behind a wide character); None: nobody knows


class Piece(NamedTuple):
    """Text of one style in columns x to `stop` of line y."""

    style: Style
    y: int
    x: int
    stop: int
    text: str


class Glass:
    """What a terminal of a size shows, as far as it was written through `less`."""

    def __init__(self) -> None:
        self.size = (0, 0)
        self.forget()

    def forget(self) -> None:
        """Nobody knows what the terminal shows."""
        width, height = self.size
        self.cells: list[list[Cell]] = [[None] * width for _ in range(height)]
        self.at = (-1, -1)  # where the terminal's cursor is

    def less(self, data: str, size: tuple[int, int]) -> str:
        """Fewer bytes that leave a terminal of this size (columns, rows) showing what `data` would."""
        if size != self.size:
            self.size = size
            self.forget()
        width, height = size
        changed: dict[int, list[Cell]] = {}
        passed: list[str] = []
        style, x, y = PLAIN, self.at[0], self.at[1]
        for token in _TOKEN.finditer(data):
            kind = token.lastgroup
            if kind == "style":
                style = _styled(style, token["style"])
            elif kind == "column":
                x, y = int(token["column"]) - 1, int(token["row"]) - 1
            elif kind == "mode" and not _SCREEN_MODES.match(token["mode"]):
                passed.append(token["mode"])
            elif kind == "text" and 0 <= y < height and x >= 0:
                line = changed.setdefault(y, self.cells[y].copy())
                text = token["text"]
                if _narrow(text) and x + len(text) <= width:
                    _whole(line, x, x + len(text))
                    line[x : x + len(text)] = [(char, style) for char in text]
                    x += len(text)
                else:
                    for char in text:
                        x = _put(line, x, char, style)
                if x > width:
                    break  # it would wrap
            elif token.group() == "\n" and 0 <= y < height - 1:
                x, y = -1, y + 1  # Textual's lines end so, and the next begins with a move
            else:
                break
        else:
            return "".join(passed) + self._sent(changed, (x, y))
        self.forget()
        return data

    def _sent(self, changed: dict[int, list[Cell]], end: tuple[int, int]) -> str:
        """The changes as a sequence, after which the cursor is at `end` and the style is plain."""
        pieces: list[Piece] = []
        for y, line in changed.items():
            for start, stop in _runs(self.cells[y], line):
                pieces += _pieces(line, y, start, stop)
            self.cells[y] = line
        # Line by line, or each style once with more moves between: whichever is less.
        first = {piece.style: at for at, piece in reversed(list(enumerate(pieces)))}
        by_style = sorted(pieces, key=lambda piece: first[piece.style])
        text, at = min((self._painted(order, end) for order in (pieces, by_style)), key=lambda sent: len(sent[0]))
        self.at = at if at[0] < self.size[0] else (-1, -1)
        return text

    def _painted(self, pieces: list[Piece], end: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        """The pieces in this order, and where the cursor is then."""
        out: list[str] = []
        style, at = PLAIN, self.at
        for piece in pieces:
            if at != (piece.x, piece.y):
                out.append(self._moved(at, (piece.x, piece.y)))
            if piece.style != style:
                out.append(_change(style, piece.style))
                style = piece.style
            out.append(piece.text)
            at = (piece.stop, piece.y)
        if style != PLAIN:
            out.append("\x1b[m")
        if end != at and end[0] >= 0:
            out.append(self._moved(at, end))
            at = end
        return "".join(out), at

    def _moved(self, at: tuple[int, int], to: tuple[int, int]) -> str:
        """The cursor's shortest way. A terminal that has just filled its last column stands on it, not behind it."""
        there = f"\x1b[{to[1] + 1};{to[0] + 1}H" if to[0] else f"\x1b[{to[1] + 1}H"
        if at[1] < 0 or not 0 <= at[0] < self.size[0]:
            return there
        across, down = to[0] - at[0], to[1] - at[1]
        relative = "\b" * -across if -4 < across < 0 else _by(across, "C", "D")
        if across < 0 and not to[0]:
            relative = "\r"
        return min(there, _by(down, "B", "A") + min(relative, f"\x1b[{to[0] + 1}G", key=len), key=len)


def _by(n: int, forth: str, back: str) -> str:
    """A move of n cells forth, or back where n is below 0."""
    return f"\x1b[{abs(n) if abs(n) > 1 else ''}{forth if n > 0 else back}" if n else ""


@lru_cache(maxsize=4096)
def _narrow(text: str) -> bool:
    """Whether each character takes one column."""
    return text.isascii() or all(cell_len(char) == 1 for char in text)


def _whole(line: list[Cell], start: int, stop: int) -> None:
    """Columns start to stop are overwritten. Terminals do not agree what the other half of a wide character is then."""
    if start and (first := line[start]) is not None and not first[0]:
        line[start - 1] = None
    if stop < len(line) and (behind := line[stop]) is not None and not behind[0]:
        line[stop] = None


def _put(line: list[Cell], x: int, char: str, style: Style) -> int:
    """Write a character at column x of a line; the column behind it."""
    cells = cell_len(char)
    if x > len(line):
        return x
    if not cells:  # a mark on the character before
        place = x - 1
        while place > 0 and line[place] is not None and not line[place][0]:  # type: ignore[index]
            place -= 1
        if 0 <= place < len(line) and (cell := line[place]) is not None:
            line[place] = (cell[0] + char, cell[1])
        return x
    if x + cells > len(line):
        return len(line) + 1
    _whole(line, x, x + cells)
    line[x] = (char, style)
    for more in range(1, cells):
        line[x + more] = ("", style)
    return x + cells


def _runs(before: list[Cell], after: list[Cell]) -> list[tuple[int, int]]:
    """Where a line has to be sent: [start, stop) of each run of changed cells, near ones as one, wide ones whole."""
    runs: list[tuple[int, int]] = []
    for x, (old, new) in enumerate(zip(before, after, strict=True)):
        if old == new or new is None:
            continue
        start = x
        while start and after[start] is not None and not after[start][0]:  # type: ignore[index]
            start -= 1
        stop = x + 1
        while stop < len(after) and after[stop] is not None and not after[stop][0]:  # type: ignore[index]
            stop += 1
        if runs and start - runs[-1][1] <= _GAP and None not in after[runs[-1][1] : start]:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return runs


def _pieces(line: list[Cell], y: int, start: int, stop: int) -> list[Piece]:
    """Columns start to stop of a line, cut where the style changes."""
    pieces: list[Piece] = []
    for x in range(start, stop):
        text, style = line[x]  # type: ignore[misc]
        if pieces and style == pieces[-1].style:
            pieces[-1] = pieces[-1]._replace(stop=x + 1, text=pieces[-1].text + text)
        else:
            pieces.append(Piece(style, y, x, x + 1, text))
    return pieces


@lru_cache(maxsize=4096)
def _styled(style: Style, codes: str) -> Style:
    """A style after an SGR sequence."""
    ink, ground, more = style
    parts = codes.split(";")
    while parts:
        code = parts.pop(0)
        if code in ("", "0"):
            ink = ground = more = ""
        elif code in ("38", "48"):
            rest = parts[:4] if parts[:1] == ["2"] else parts[:2]
            del parts[: len(rest)]
            colour = ";".join((code, *rest))
            ink, ground = (colour, ground) if code == "38" else (ink, colour)
        elif len(code) == 2 and code[0] in "39":
            ink = "" if code == "39" else code
        elif (len(code) == 2 and code[0] == "4") or (len(code) == 3 and code[:2] == "10"):
            ground = "" if code == "49" else code
        else:
            more = f"{more};{code}" if more else code
    return ink, ground, more


@lru_cache(maxsize=4096)
def _short(colour: str) -> str:
    """A colour by its number where the table of 256 that terminals share has exactly this one."""
    kind, _, rest = colour.partition(";2;")
    if not rest:
        return colour
    levels = [int(part) for part in rest.split(";")]
    if len(set(levels)) == 1 and levels[0] % 10 == 8 and levels[0] < 248:
        return f"{kind};5;{232 + levels[0] // 10}"
    if all(level in _CUBE for level in levels):
        red, green, blue = map(_CUBE.index, levels)
        return f"{kind};5;{16 + 36 * red + 6 * green + blue}"
    return colour


@lru_cache(maxsize=4096)
def _change(before: Style, after: Style) -> str:
    """The shortest sequence from one style to another."""
    after = (_short(after[0]), _short(after[1]), after[2])
    before = (_short(before[0]), _short(before[1]), before[2])
    whole = ";".join(("0", *(part for part in (after[2], after[0], after[1]) if part))) if any(after) else ""
    if before[2] != after[2] and before[2]:
        return f"\x1b[{whole}m"
    parts = [after[2]] if before[2] != after[2] else []
    parts += [after[0] or "39"] if before[0] != after[0] else []
    parts += [after[1] or "49"] if before[1] != after[1] else []
    small = ";".join(parts)
    return f"\x1b[{min(small, whole, key=len)}m"


class ThriftyDriver(LinuxDriver):
    """Textual's driver with a `Glass` before the line, which goes on after input that is none."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.glass = Glass()
        super().__init__(*args, **options)

    def run_input_thread(self) -> None:
        """Textual's parser fails on bytes that are no UTF-8 and on some numbers in sequences: those are dropped."""
        while not self.exit_event.is_set():
            try:
                super().run_input_thread()
            except (ValueError, ArithmeticError):
                continue
            return

    def write(self, data: str) -> None:
        try:
            columns, rows = os.get_terminal_size(self.fileno)
        except OSError:
            super().write(data)
            return
        if less := self.glass.less(data, (columns, rows)):
            super().write(less)
