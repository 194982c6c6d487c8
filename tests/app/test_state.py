"""The resume state: written atomically, and a broken file is set aside."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from memloc_tui import state
from memloc_tui.state import Resume


def test_what_was_saved_comes_back() -> None:
    resume = Resume("abc", overlay="rarity", replacements={"abc": [[3, 9]]}, draws=4, filter="em>=50", given=[1, 2])
    resume.keep_trial("abc", "own", ((3, 9),), ((1, 2),))
    state.save("m", "p", resume)
    assert state.load("m", "p") == (resume, "")
    assert state.load("m", "other") == (Resume(), "")
    assert [f.suffix for f in state.state_file("m", "p").parent.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": 99}', '{"version": 1, "draws": "2"}', '{"version": 1, "surprise": 1}',
     '{"version": 1, "replacements": [[1]]}', '{"version": 1, "replacements": [["a", 1]]}', "[" * 100_000,
     '{"version": 1, "given": ["x"]}', '{"version": 1, "draws": 0}', '{"version": 1, "replacements": {"a": [[1]]}}',
     '{"version": 1, "replacements": {"a": [[1, true]]}}', '{"version": 1, "replacements": {"a": ""}}',
     '{"version": 1, "tried": {"a": ""}}', '{"version": 1, "tried": {"a": [["auto", [[1, 2]], []]]}}',
     '{"version": 1, "tried": {"a": [["true", [[1, 2]], [[1]]]]}}', '{"version": 1, "tried": {"a": [["true", []]]}}'],
)  # fmt: skip
def test_a_broken_file_is_set_aside_with_one_notice(text: str) -> None:
    path = state.state_file("m", "p")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    resume, notice = state.load("m", "p")
    assert resume == Resume()
    assert "unreadable" in notice
    assert not path.exists()
    assert path.with_suffix(".broken").read_text() == text
    assert state.load("m", "p") == (Resume(), "")


def test_a_file_of_before_keeps_its_one_paragraphs_replacements() -> None:
    path = state.state_file("m", "p")
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 1, "paragraph": "abc", "replacements": [[3, 9], [5, 1]]}')
    assert state.load("m", "p") == (Resume("abc", replacements={"abc": [[3, 9], [5, 1]]}), "")
    path.write_text('{"version": 1, "paragraph": "abc", "replacements": []}')
    assert state.load("m", "p") == (Resume("abc"), "")


def test_of_each_paragraph_the_newest_trials_are_kept() -> None:
    resume = Resume()
    for token in range(state.TRIED + 5):
        resume.keep_trial("abc", "true", ((0, token),), ())
    resume.keep_trial("abc", "true", ((0, 10),), ())  # tried again: it stands there once
    newest_first = [["true", [[0, token]], []] for token in reversed(range(5, state.TRIED + 5))]
    assert resume.tried == {"abc": newest_first}
    state.save("m", "p", replace(resume, tried={"abc": newest_first * 3}))
    assert state.load("m", "p") == (resume, "")


def test_a_file_never_grows_beyond_what_is_read_of_it() -> None:
    resume = Resume("abc")
    for number in range(2_000):
        resume.replace(f"paragraph {number}", tuple((position, 50_000) for position in range(50)))
        resume.keep_trial(f"paragraph {number}", "true", ((1, 2),), ())
    resume.replace("paragraph 0", ((1, 2),))  # changed last
    state.save("m", "p", resume)
    assert state.state_file("m", "p").stat().st_size <= state.MOST
    kept, notice = state.load("m", "p")
    assert notice == ""
    assert kept.replacements["paragraph 0"] == [[1, 2]]
    assert "paragraph 1999" in kept.replacements
    assert "paragraph 1" not in kept.replacements


def test_a_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    state.save("m", "p", Resume("old"))
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        state.save("m", "p", Resume("new"))
    assert state.load("m", "p")[0].paragraph == "old"
    assert len(list(state.state_file("m", "p").parent.iterdir())) == 1


@given(st.binary(max_size=60))
def test_any_bytes_are_survived(data: bytes) -> None:
    path = state.state_file("fuzz", "p")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    assert isinstance(replace(state.load("fuzz", "p")[0]), Resume)


def test_a_model_whose_path_is_no_utf_8_has_a_state_too() -> None:
    state.save("caf\udce9", "p", Resume("abc"))
    assert state.load("caf\udce9", "p")[0].paragraph == "abc"
    assert state.load("caf", "p")[0].paragraph == ""
