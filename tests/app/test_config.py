"""The configuration file: what holds, what is refused by name and line, and that nothing of it stops the explorer."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake import FakeSession
from helpers import notices, opened, screen_lines, until
from hypothesis import given, settings as budget, strategies as st

from memloc_tui import config, keys
from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings

GOOD = """
theme = "ansi-dark"   # a comment
mouse = false

[defaults]
model = "~/models/x"
"device" = "cuda:1"
dtype = "bfloat16"
prefix_length = 32
cache = false

[keys]
"explorer.sweep" = "f5, ctrl+t"
explorer.export = "?"
"app.help" = "f1"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("MEMLOC_CONFIG", str(path))

    def put(text: str | bytes) -> config.Config:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return config.load()

    return put


def app_with(found: config.Config) -> MemlocApp:
    session: Any = FakeSession()
    return MemlocApp(Settings(model="fake", paragraphs="fake"), session, config=found)


def test_every_value_arrives(write: Any) -> None:
    found = write(GOOD)
    assert found.problems == ()
    assert (found.theme, found.mouse) == ("ansi-dark", False)
    assert found.settings == Settings(
        model=os.path.expanduser("~/models/x"), device="cuda:1", dtype="bfloat16", prefix_length=32, use_cache=False
    )
    assert found.keys == {"explorer.sweep": "f5, ctrl+t", "explorer.export": "?", "app.help": "f1"}
    assert found.origins["device"] == "line 7"
    assert found.origins["keys.explorer.export"] == "line 14"
    good, wrong = keys.checked(found.keys, found.origins, found.path)
    assert good == {"explorer.sweep": "f5,ctrl+t", "explorer.export": "question_mark", "app.help": "f1"}
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('theme = "dark"', ("line 1", "theme", "textual-dark", "ansi-light", "'dark'")),
        ("\n\nmouse = 1", ("line 3", "true or false")),
        ('[defaults]\n\ndevice = "gpu"', ("line 3", "defaults.device", "cuda:N", "'gpu'")),
        ('defaults.dtype = "fp32"', ("line 1", "float32, bfloat16, float16")),
        ("[defaults]\nprefix_length = 0", ("line 2", "at least 1")),
        ("[defaults]\nprefix_length = true", ("line 2", "at least 1")),
        ("[defaults]\nbegin_of_text = 1", ("line 2", "true or false")),
        ("[defaults]\nmodell = 'x'", ("line 2", "no setting defaults.modell", "did you mean defaults.model?")),
        ("\n[colours]\nred = 1", ("line 3", "no setting colours.red")),
        ("[keys]\n'explorer.sweep' = 5", ("line 2", "in quotes")),
        ("theme = \n", ("no TOML", "line 1")),
        ("a = [" * 3000, ("no TOML",)),
        ("defaults.prefix_length = " + "1" * 5000, ("no TOML",)),
        (".".join("a" * 1500) + " = 1", ("no TOML",)),
        (b"theme = 'x'\n# \xff", ("line 2", "UTF-8")),
        (b"#" * 1_000_001, ("larger",)),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_what_is_allowed(write: Any, text: Any, says: tuple[str, ...]) -> None:
    found = write(text)
    assert len(found.problems) == 1
    for said in (*says, "config.toml"):
        assert said in found.problems[0]
    assert found.settings == Settings()


@pytest.mark.parametrize(
    ("given_keys", "says"),
    [
        ({"explorer.sweeep": "f5"}, "did you mean explorer.sweep?"),
        ({"explorer.sweep": "nonsense"}, "'nonsense' is no key"),
        ({"explorer.sweep": "ctrl+"}, "is no key"),
        ({"explorer.sweep": "e"}, "e is explorer.export's key already"),
        ({"explorer.sweep": "f5", "explorer.export": "f5"}, "f5 is explorer."),
        ({"explorer.sweep": "question_mark"}, "question_mark is app.help's key already"),
    ],
)
def test_a_key_that_cannot_be_is_said_and_left_out(given_keys: dict[str, str], says: str) -> None:
    good, wrong = keys.checked(given_keys, {}, "file")
    assert says in wrong[0]
    assert len(good) == len(given_keys) - 1


def test_two_keys_may_change_places() -> None:
    good, wrong = keys.checked({"explorer.sweep": "e", "explorer.export": "w"}, {}, "file")
    assert (good, wrong) == ({"explorer.sweep": "e", "explorer.export": "w"}, [])


def test_every_key_of_the_program_can_be_sent() -> None:
    for _, bindings in keys.places():
        for binding in bindings:
            for key in binding.key.split(","):
                assert keys.can_be_sent(keys._named(key)), key


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.booleans(), st.floats()), max_size=4))
@budget(max_examples=50, deadline=None)
def test_any_value_is_taken_or_named(values: dict[str, Any]) -> None:
    for value in values.values():
        for name, field in config.FIELDS.items():
            with suppress(ValueError):
                assert field.read(value) is not None, name


@given(st.text(max_size=60))
@budget(max_examples=50, deadline=None)
def test_no_text_breaks_the_line_finder(text: str) -> None:
    config._lines(text)


def test_environment_over_file_and_command_line_over_both(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from memloc_tui.cli import _settings, cli

    seen: list[Settings] = []

    @cli.command("seen", hidden=True)
    @__import__("click").pass_context
    def show(context: Any) -> None:
        seen.append(_settings(context, {}))

    try:
        write(GOOD)
        monkeypatch.setenv("MEMLOC_DEVICE", "cpu")
        monkeypatch.setenv("MEMLOC_PREFIX_LENGTH", "40")
        done = CliRunner().invoke(cli, ["--dtype", "float32", "--prefix-length", "20", "seen"], catch_exceptions=False)
        write("[defaults]\nbegin_of_text = true\n")
        for given in ([], ["--no-begin-of-text"]):
            CliRunner().invoke(cli, [*given, "seen"], catch_exceptions=False)
        monkeypatch.setenv("MEMLOC_BEGIN_OF_TEXT", "no")
        for given in ([], ["--begin-of-text"]):
            CliRunner().invoke(cli, [*given, "seen"], catch_exceptions=False)
    finally:
        cli.commands.pop("seen")
    assert done.exit_code == 0
    assert (seen[0].device, seen[0].dtype, seen[0].prefix_length, seen[0].use_cache) == ("cpu", "float32", 20, False)
    assert [settings.begin_of_text for settings in seen] == [False, True, False, False, True]
    monkeypatch.setenv("MEMLOC_DTYPE", "half")
    assert "MEMLOC_DTYPE" in config.load().problems[0]


async def test_the_explorer_opens_with_own_keys_and_says_what_is_wrong(write: Any) -> None:
    found = write(GOOD + '"explorer.undo" = "nonsense"\n')
    app = app_with(found)
    async with app.run_test(size=(160, 36), notifications=True) as pilot:
        await opened(pilot)
        assert app.theme == "ansi-dark"
        assert "nonsense" in notices(app)[0]
        assert "line 16" in notices(app)[0]
        line = screen_lines(app)[-1]
        assert "f5 ^t sweep" in line
        assert "? export" in line
        await pilot.press("f5")
        await until(pilot, lambda: (view := app.explorer.study.here.sweep) and view.done)
        await pilot.press("w")  # no longer the sweep's
        await pilot.press("?")
        await until(pilot, lambda: type(app.screen).__name__ == "Export")
        await pilot.press("escape", "f1")
        await until(pilot, lambda: type(app.screen).__name__ == "Help")
        assert "f5 ^t" in "\n".join(screen_lines(app))
        commands = {c.title: c.help for c in app.get_system_commands(app.screen)}
        assert commands["Sweep: replace each prefix token in turn"] == "key f5,ctrl+t"


@pytest.mark.parametrize("text", ["theme = ", "theme = 'no such'", b"\xff\xfe", "[defaults]\ndevice = 3"])
async def test_a_bad_file_never_keeps_the_explorer_from_opening(write: Any, text: Any) -> None:
    app = app_with(write(text))
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await opened(pilot)
        assert "config.toml" in notices(app)[0]


def test_without_a_file_nothing_more_is_imported(tmp_path: Path) -> None:
    code = "import sys; from memloc_tui import config; config.load(); print(*sorted(sys.modules))"
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    env.pop("MEMLOC_CONFIG", None)
    loaded = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert not {"tomllib", "numpy", "textual", "torch", "difflib"} & set(loaded.split())
