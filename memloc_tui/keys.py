"""Keys of the person's own: which bindings there are, which keys a terminal can send, and what clashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.keys import KEY_ALIASES, Keys, _character_to_key

if TYPE_CHECKING:
    from memloc_tui.widgets.one_line import Key

_NAMED = {key.value for key in Keys} | set(KEY_ALIASES)
_MODIFIERS = {"ctrl", "shift", "alt", "meta", "super", "hyper"}


def places() -> list[tuple[str, list[Binding]]]:
    """Every place where keys mean something, with its bindings."""
    from memloc_tui.app import MemlocApp
    from memloc_tui.screens.help import sections

    return sections([binding for binding in MemlocApp.BINDINGS if isinstance(binding, Binding)])


def checked(keys: Mapping[str, str], origins: Mapping[str, str], file: object) -> tuple[dict[str, str], list[str]]:
    """The keys that can be set, in Textual's names, and a sentence for each that cannot."""
    from difflib import get_close_matches

    everything = places()
    known = {binding.id or "": binding for _, bindings in everything for binding in bindings}
    good: dict[str, str] = {}
    problems = []
    for name, value in keys.items():
        where = f"{file}, {origins.get(f'keys.{name}', 'line 0')}"
        wanted = [_named(key.strip()) for key in value.split(",")] if value != "," else ["comma"]
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "memloc-tui config show lists them."
            problems.append(f"{where}: no key is called {name}; {hint}")
        elif wrong := [raw for raw, key in zip(value.split(","), wanted, strict=False) if not can_be_sent(key)]:
            problems.append(
                f"{where}: keys.{name}: {wrong[0].strip()!r} is no key; a character, f5, ctrl+s, alt+x, up, "
                "enter, escape and the like are, several with commas between them."
            )
        else:
            good[name] = ",".join(wanted)
    for name, key, other in _clashes(everything, good):
        if name in good:
            del good[name]
            where = f"{file}, {origins.get(f'keys.{name}', 'line 0')}"
            problems.append(f"{where}: keys.{name}: {key} is {other}'s key already; give that one another key too.")
    return good, problems


def _clashes(everything: list[tuple[str, list[Binding]]], keys: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(a binding of the person's, the key, whose it is already) in each place; the explorer's hold everywhere."""
    always = [b for title, bindings in everything if title in ("Everywhere", "Explorer") for b in bindings]
    for bindings in (always, *(own for title, own in everything if title not in ("Everywhere", "Explorer"))):
        taken: dict[str, str] = {}
        # Keys that are not the person's come first: they were there before.
        for binding in sorted(bindings, key=lambda b: b.id in keys):
            name = binding.id or ""
            for key in keys.get(name, binding.key).split(","):
                other = taken.setdefault(_named(key), name)
                if other != name:
                    yield name, key, other


def _named(key: str) -> str:
    """A key in Textual's names: "?" is question_mark."""
    modifiers, plus, last = key.rpartition("+") if len(key) > 1 else ("", "", key)
    last = _character_to_key(last) if len(last) == 1 else last
    return f"{modifiers}{plus}{last}"


def can_be_sent(key: str) -> bool:
    """Whether Textual knows a key of this name."""
    *modifiers, last = key.split("+")
    return (
        set(modifiers) <= _MODIFIERS
        and bool(last)
        and (key in _NAMED or last in _NAMED or len(last) == 1 or last in _CHARACTERS)
    )


_CHARACTERS = {_character_to_key(chr(code)) for code in range(0x21, 0x7F)} | {"space"}


def rebound(binding: Binding, keys: Mapping[str, str]) -> Binding:
    """A binding as it is with the person's keys."""
    own = keys.get(binding.id or "")
    return replace(binding, key=own, key_display=None) if own else binding


def relabelled(line: list[Key], keys: Mapping[str, str]) -> list[Key]:
    """A line of keys with the person's own in it: `screen.sweep` is what the binding of the action `sweep` does."""
    from memloc_tui.screens.help import shown

    own: dict[str, str] = {}
    for title, bindings in places():
        for binding in bindings:
            if binding.id and binding.id in keys:
                key = shown(rebound(binding, keys))
                own[f"{'app' if title == 'Everywhere' else 'screen'}.{binding.action}"] = key
                own[f"screen.panel_key('{binding.id.partition('.')[0]}','{binding.id}')"] = key
    return [(own.get(action, key), says, action) for key, says, action in line]
