"""`memloc-tui config show`: what holds, where it comes from, and what is wrong."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from memloc_tui import config, keys
from memloc_tui.commands.console import Out, print_json, table_of
from memloc_tui.glyphs import visible
from memloc_tui.screens.help import shown


def show(as_json: bool) -> int:
    """Print the configuration; 0, or 2 if something in it is wrong."""
    found = config.load()
    good, wrong = keys.checked(found.keys, found.origins, found.path)
    problems = [*found.problems, *wrong]
    values = {name: _value(found, name) for name in config.FIELDS}
    bindings = [keys.rebound(binding, good) for _, own in keys.places() for binding in own]
    if as_json:
        print_json(
            {
                "file": str(found.path),
                "exists": found.path.is_file(),
                "settings": {n: {"value": v, "from": found.origins.get(n, "default")} for n, v in values.items()},
                "keys": {b.id: {"key": b.key, "own": b.id in good, "does": b.tooltip} for b in bindings},
                "problems": problems,
            }
        )
    else:
        out = Out()
        there = "" if found.path.is_file() else " (not there: everything is as it comes)"
        out.print(Text(f"{visible(str(found.path))}{there}"), soft_wrap=True)
        table = table_of("setting", left=("value", "from", "allowed"))
        for name, value in values.items():
            said = "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            origin = found.origins.get(name, "default")
            table.add_row(name, Text(visible(said)), Text(origin), Text(config.FIELDS[name].allowed))
        out.print(table)
        table = table_of("key", left=("name", "does"))
        for binding in bindings:
            own = Text(shown(binding), "bold" if binding.id in good else "")
            table.add_row(own, Text(binding.id or ""), Text(binding.tooltip))
        out.print(table)
    for problem in problems:
        click.echo(f"memloc-tui: {visible(problem)}", err=True)
    return 2 if problems else 0


def _value(found: config.Config, name: str) -> Any:
    """A setting as it holds, in plain values."""
    if name in config.TOP:
        return getattr(found, name)
    value = getattr(found.settings, "use_cache" if name == "cache" else name)
    return None if value is None else value if isinstance(value, bool | int) else str(value)
