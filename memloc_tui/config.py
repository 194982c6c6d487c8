"""What a person wants every time: a TOML file, over which the environment and the command line stand.

    theme = "ansi-dark"              # a Textual theme
    mouse = false                    # leave the mouse to the terminal

    [defaults]                       # of the command line's options; `config show` lists which
    model = "~/models/gpt-neo-125m"
    device = "cuda:0"

    [keys]                           # by the binding's name, as `memloc-tui config show` lists them
    "explorer.sweep" = "f5"

A value that is wrong is named with its line and what is allowed, and its default stands in for it: a bad file never
keeps the explorer from opening. Commands refuse it, but for keys, which they do not look at. Read before the first
frame, so without a file nothing is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memloc_tui.settings import Settings

_LARGEST = 1_000_000  # bytes
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Config:
    """What holds before the command line, where each value comes from, and what is wrong with the file."""

    path: Path
    settings: Settings = field(default_factory=Settings)
    theme: str | None = None
    mouse: bool = True
    keys: dict[str, str] = field(default_factory=dict)  # binding -> keys, not checked yet: see `keys.checked`
    origins: dict[str, str] = field(default_factory=dict)  # name -> "line 3" or the environment's variable
    problems: tuple[str, ...] = ()


def config_file() -> Path:
    """MEMLOC_CONFIG, else config.toml in the user's configuration folder."""
    if given := os.environ.get("MEMLOC_CONFIG"):
        return Path(given)
    from platformdirs import user_config_dir

    return Path(user_config_dir("memloc-tui")) / "config.toml"


def load() -> Config:
    """The file and the environment. Never raises: what is wrong is in `problems`, in sentences."""
    path = config_file()
    found, problems = _read(path)
    names: dict[str, Any] = {}
    origins: dict[str, str] = {}
    keys: dict[str, str] = {}
    for written, (value, line) in found.items():
        where = f"{path}, line {line}" if line else str(path)
        name = written.removeprefix("defaults.")
        if written.startswith("keys."):
            if isinstance(value, str) and value.strip():
                keys[written[5:]] = value
                origins[written] = f"line {line}"
            else:
                problems.append(f'{where}: {written} needs a key in quotes, such as "f5" or "ctrl+s".')
        elif name not in FIELDS:
            problems.append(f"{where}: there is no setting {written}; {_near(name)}")
        else:
            try:
                names[name], origins[name] = FIELDS[name].read(value), f"line {line}"
            except ValueError as error:
                problems.append(f"{where}: {written} {error}, not {value!r}.")
    for name, spec in FIELDS.items():
        variable = f"MEMLOC_{name.upper()}"
        if (given := os.environ.get(variable)) and name != "cache_dir":  # that one the cache reads itself
            try:
                names[name], origins[name] = spec.read(spec.parse(given)), variable
            except ValueError as error:
                problems.append(f"{variable} {error}, not {given!r}.")
    if os.environ.get("MEMLOC_CACHE_DIR"):
        names.pop("cache_dir", None)
        origins["cache_dir"] = "MEMLOC_CACHE_DIR"
    theme, mouse = names.pop("theme", None), names.pop("mouse", True)
    if "cache" in names:
        names["use_cache"] = names.pop("cache")
    return Config(path, replace(Settings(), **names), theme, mouse, keys, origins, tuple(problems))


# ---------------------------------------------------------------------------------------------------------- the fields


def _any(text: str) -> Any:
    return text


def _number(text: str) -> Any:
    return int(text) if text.isascii() and text.isdigit() else text


def _truth(text: str) -> Any:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower(), text)


@dataclass(frozen=True)
class Field:
    """How a setting is checked, what is allowed, and how the environment's text becomes a value."""

    allowed: str
    check: Callable[[Any], Any]  # raises ValueError or returns None where the value is not allowed
    parse: Callable[[str], Any] = _any

    def read(self, value: Any) -> Any:
        """Raises ValueError with what is allowed."""
        if (checked := self.check(value)) is None:
            raise ValueError(f"needs {self.allowed}")
        return checked


def _text(value: Any) -> str | None:
    return os.path.expanduser(value) if isinstance(value, str) and value and "\0" not in value else None


def _folder(value: Any) -> Path | None:
    text = _text(value)
    return Path(text) if text else None


def _device(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    kind, _, number = value.partition(":")
    plain = value in ("auto", "cpu", "cuda", "mps")
    return value if plain or (kind == "cuda" and number.isascii() and number.isdigit()) else None


def _one_of(*options: str) -> Callable[[Any], str | None]:
    return lambda value: value if value in options else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 1 else None


def _flag(value: Any) -> bool | None:
    return value if type(value) is bool else None


def _theme(value: Any) -> str | None:
    from textual.theme import BUILTIN_THEMES

    if value in BUILTIN_THEMES:
        return str(value)
    raise ValueError(f"needs one of {', '.join(sorted(BUILTIN_THEMES))}")


FIELDS: dict[str, Field] = {
    "theme": Field("a Textual theme", _theme),
    "mouse": Field("true or false", _flag, _truth),
    "model": Field("a checkpoint folder or a model's name, in quotes", _text),
    "paragraphs": Field("a file's name, in quotes", _text),
    "device": Field("auto, cpu, cuda:N or mps", _device),
    "dtype": Field(", ".join(DTYPES), _one_of(*DTYPES)),
    "prefix_length": Field("a whole number of at least 1", _count, _number),
    "continuation_length": Field("a whole number of at least 1", _count, _number),
    "begin_of_text": Field("true or false", _flag, _truth),
    "cache_dir": Field("a folder, in quotes", _folder),
    "cache": Field("true or false", _flag, _truth),
}
TOP = ("theme", "mouse")  # the others stand in [defaults]


def _written(name: str) -> str:
    """A setting as it stands in the file."""
    return f"defaults.{name}" if name in FIELDS and name not in TOP else name


def _near(name: str) -> str:
    from difflib import get_close_matches

    if close := get_close_matches(name.rpartition(".")[2], FIELDS, 1):
        return f"did you mean {_written(close[0])}?"
    return f"there are {', '.join(map(_written, FIELDS))} and [keys]."


# ------------------------------------------------------------------------------------------------------------ the file


def _read(path: Path) -> tuple[dict[str, tuple[Any, int]], list[str]]:
    """Every value of the file under its name, with its line, and why there are none."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        given = os.environ.get("MEMLOC_CONFIG")
        return {}, [f"{path} is not there; MEMLOC_CONFIG names it."] if given else []
    except (OSError, ValueError) as error:
        return {}, [f"{path} cannot be read: {getattr(error, 'strerror', None) or error}."]
    import tomllib

    if len(data) > _LARGEST:
        return {}, [f"{path} is larger than {_LARGEST:,} bytes; it is not read."]
    try:
        text = data.decode("utf-8")
        values = _flat(tomllib.loads(text))
    except UnicodeDecodeError as error:
        return {}, [f"{path}, line {data[: error.start].count(10) + 1}: is no UTF-8."]
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError
        return {}, [f"{path} is no TOML: {error}."]
    lines = _lines(text)
    return {name: (value, lines.get(name, 0)) for name, value in values}, []


def _flat(table: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Every value under its dotted name; "a.b" = 1 and a.b = 1 are the same."""
    values: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{before}{key}"
        values += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return values


def _lines(text: str) -> dict[str, int]:
    """The line on which each dotted name gets its value; the parser itself tells lines of broken files only."""
    import re

    part = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[A-Za-z0-9_-]+)"
    dotted = rf"{part}(?:[ \t]*\.[ \t]*{part})*"
    header, key = re.compile(rf"\s*\[\s*({dotted})\s*\]"), re.compile(rf"\s*({dotted})\s*=")
    table = ""
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = header.match(line) or key.match(line)
        if match is None:
            continue
        name = ".".join(piece.strip("\"'") for piece in re.findall(part, match[1]))
        if match.re is header:
            table = f"{name}."
        else:
            found.setdefault(table + name, number)
    return found
