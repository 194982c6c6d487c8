"""The display boundary: the one place where data becomes characters of the screen.

Training text holds escape codes, bidirectional overrides and broken UTF-8, and Textual passes most of them on to the
terminal. Everything that came from a model, a tokenizer or a file goes through `visible` or `piece_text` first.
"""

from __future__ import annotations

import re
from functools import lru_cache
from unicodedata import category

from rich.cells import cell_len, set_cell_size

_NEVER_DRAWN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_NOT_PLAIN = re.compile("[^\t\n\r -~]")
_SPELLED = re.compile("⟨U\\+([0-9A-F]{4,6})⟩")
_SELECTORS = frozenset(map(chr, (0x180B, 0x180C, 0x180D, 0x180F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))


@lru_cache(maxsize=8192)
def glyph(char: str) -> str:
    """What the screen shows for one character: itself, a visible stand-in, or nothing for a variation selector."""
    code = ord(char)
    if char == "\n":
        return "↵"
    if char == "\t":
        return "→"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as `surrogateescape` carries it
        return f"⟨{code - 0xDC00:02X}⟩"
    if char in _SELECTORS:
        return ""
    kind = category(char)
    # Terminals disagree about the width of keycaps, skin tones and flag letters, so these are spelled out too.
    if kind in _NEVER_DRAWN or kind == "Me" or 0x1F3FB <= code <= 0x1F3FF or 0x1F1E6 <= code <= 0x1F1FF:
        return f"⟨U+{code:04X}⟩"
    if kind == "Zs" and char != " ":
        return "␣" if cell_len(char) == 1 else "␣␣"
    return char


def visible(text: str) -> str:
    """`text` with every character that must not reach a terminal shown as a visible glyph."""
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(map(glyph, text))
    if shown and category(shown[0])[0] == "M":
        return "◌" + shown  # a combining mark would otherwise land on the cell before it
    return shown


def spelled_out(text: str) -> str:
    """`text` for a field that it can be changed in: newlines and tabs as they are, any other character that must not
    reach a terminal as ⟨U+202E⟩, which `meant` turns back."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in "\n\t" or glyph(c) == c else f"⟨U+{ord(c):04X}⟩" for c in lines)


def meant(text: str) -> str:
    """What was typed into such a field: each ⟨U+202E⟩ is the character of that number, if there is one."""
    return _SPELLED.sub(lambda found: _character(int(found[1], 16)) or found[0], text)


def _character(code: int) -> str:
    """ "" for half of a surrogate pair, which no tokenizer takes, and beyond the last character."""
    return "" if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF else chr(code)


def escaped(document: str) -> str:
    """A JSON document with every character that must not reach a terminal as JSON's own escape: it says the same."""
    if document.isascii() and "\x7f" not in document:
        return document
    return _NOT_PLAIN.sub(lambda found: _escape(found[0]), document)


def _escape(char: str) -> str:
    if category(char) not in _NEVER_DRAWN:
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def piece_text(piece: bytes, token: int = -1) -> str:
    """One token as shown: its text made visible, bytes of an unfinished character as ⟨E2⟩, an unknown id as ⟨#7⟩."""
    return visible(piece.decode("utf-8", "surrogateescape")) if piece else f"⟨#{token}⟩"


def quoted(text: str) -> str:
    """A token's shown text between quotes, so that its leading space is seen in a sentence."""
    return f'"{text}"'


def fit(text: str, width: int) -> str:
    """`text`, already visible, cut or padded to exactly `width` cells; a cut shows as …"""
    if width <= 0:
        return ""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def fit_end(text: str, width: int) -> str:
    """`text`, already visible, where it is no wider than `width` cells; else its end, behind a … for the rest."""
    if cell_len(text) <= width:
        return text
    end, room = "", width - 1
    for char in reversed(text):
        room -= cell_len(char)
        if room < 0:
            break
        end = char + end
    return "…" + end


def bar(share: float, width: int) -> str:
    """A horizontal bar of `width` cells in eighth blocks, filled by `share` in 0..1."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)
