"""Texts of the person's own: typed or pasted, in the list like any other, kept, taken away, and no part of the set."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import pytest
from fake import PIECES, C, P, V, base_em, effect, make_paragraphs, make_vocabulary
from fake_runs import RunSession
from helpers import app_of, notices, opened, screen_lines, shown, until as until_
from hypothesis import given, strategies as st
from textual import events
from textual.pilot import Pilot

from memloc_core.errors import MemlocError
from memloc_core.paragraphs import paragraph_id
from memloc_core.requests import EncodedText, EncodeText, ExactMatch, ParagraphSet, Request
from memloc_tui import own_texts
from memloc_tui.app import MemlocApp
from memloc_tui.catalogue import CHUNK, Catalogue, parse_filter
from memloc_tui.findings import setting_of
from memloc_tui.glyphs import meant, spelled_out
from memloc_tui.own_texts import OwnText
from memloc_tui.samples import Samples
from memloc_tui.screens.own_text import MOST, OwnField, OwnTextDialog
from memloc_tui.settings import Settings
from memloc_tui.unlearning import UnlearnOptions, plan, split, waits

WIDE = (120, 36)
LENGTH = P + C
until = partial(until_, seconds=15.0)


class Rows(dict[tuple[int, ...], int]):
    """The fake's rows; a paragraph that it has not seen before is the next one."""

    def __missing__(self, paragraph: tuple[int, ...]) -> int:
        self[paragraph] = len(self)
        return self[paragraph]


class OwnSession(RunSession):
    """A tokenizer that takes any text: words of the vocabulary, and of anything else one token a character."""

    def __init__(self, n: int = 60) -> None:
        super().__init__(n)
        self.rows = Rows(self.rows)

    async def compute(self, request: Request, edits: tuple[str, ...], on_progress: Any) -> Any:
        return encoded(request.text) if isinstance(request, EncodeText) else await super().compute(
            request, edits, on_progress
        )  # fmt: skip


def encoded(text: str) -> EncodedText:
    tokens: list[int] = []
    for word in re.findall(r"(?s) ?w\d+|.", text):
        known = word.encode("utf-8", "surrogatepass") in PIECES[:200]
        tokens += [PIECES.index(word.encode())] if known else [ord(c) % 200 for c in word]
    return EncodedText(np.array(tokens, np.int64))


def words(start: int, n: int = LENGTH) -> str:
    """So many words of one token each, others for another `start`."""
    return "".join(f" w{i}" for i in random.Random(start).sample([i for i in range(200) if i % 4], n))


def tokens_of(text: str) -> tuple[int, ...]:
    return tuple(encoded(text).tokens.tolist())


@pytest.fixture
def session() -> OwnSession:
    return OwnSession()


def own_app(session: OwnSession) -> MemlocApp:
    given: Any = session
    return MemlocApp(Settings(model="fake", paragraphs="fake"), given)


@pytest.fixture
def app(session: OwnSession) -> MemlocApp:
    return own_app(session)


async def paste(pilot: Pilot[Any], text: str) -> None:
    """Into the dialog, which says afterwards what it thinks of it."""
    app = app_of(pilot)
    app.post_message(events.Paste(text).set_sender(app))
    await until(pilot, lambda: not app.typing)


def said(app: MemlocApp) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯]", " ", shown(app, "#own-count")).split())


async def give(pilot: Pilot[Any], text: str) -> None:
    """Have a text studied."""
    app = app_of(pilot)
    await pilot.press("+")
    await until(pilot, lambda: isinstance(app.screen, OwnTextDialog))
    await paste(pilot, text)
    await pilot.press("ctrl+s")
    await until(pilot, lambda: app.screen is app.explorer)
    await opened(pilot)


def kept() -> list[OwnText]:
    return own_texts.load(make_vocabulary())[0]


# --------------------------------------------------------------------------------------------- a set with more rows


def unlike(n: int) -> ParagraphSet:
    """Paragraphs of which none is like another, and no families."""
    tokens = np.random.default_rng(0).integers(0, 200, (n, LENGTH))
    return replace(make_paragraphs(n), tokens=tokens, family=np.full(n, -1))


def catalogue_of(own: list[tuple[int, ...]], n: int = 130) -> Catalogue:
    """With every exact match known."""
    paragraphs, session = unlike(n), OwnSession(n)
    session.rows = Rows({paragraphs.row(i): i for i in range(n)})
    made = Catalogue(paragraphs.with_rows(own, "own"), make_vocabulary(), paragraphs)
    for chunk in range(made.chunks):
        made.learn(chunk, session.answer(made.request(chunk)))
    return made


def test_a_set_with_more_rows_has_them_at_its_end_and_stays_what_it_was_otherwise() -> None:
    paragraphs, own = make_paragraphs(9), [tokens_of(words(1)), tokens_of(words(2))]
    whole = paragraphs.with_rows(own, "own")
    assert [whole.row(i) for i in range(11)] == [*(paragraphs.row(i) for i in range(9)), *own]
    assert whole.ids == (*paragraphs.ids, *(paragraph_id(np.array(row)) for row in own))
    for name in ("fingerprint", "prefix_length", "counts_of", "notices", "source"):
        assert getattr(whole, name) == getattr(paragraphs, name)
    assert (whole.counts == paragraphs.counts).all()
    assert whole.repetitions[9:].tolist() == whole.family[9:].tolist() == [-1, -1]
    assert (whole.genre[9:], whole.split[9:]) == (("own", "own"), ("", ""))
    assert whole.related(range(11)).tolist() == [*paragraphs.related(range(9)).tolist(), 2, 3]
    assert len(paragraphs) == 9
    assert paragraphs.with_rows([], "own") is paragraphs


def test_another_row_asks_nothing_anew_and_is_asked_by_itself() -> None:
    alone = Catalogue(make_paragraphs(130), make_vocabulary())
    before = [alone.request(chunk) for chunk in range(alone.chunks)]
    assert [len(request.paragraphs) for request in before] == [CHUNK, CHUNK, 2]
    for count in (1, 2):
        alone.extend(alone.paragraphs.with_rows([tokens_of(words(count))], "own"))
        requests = [alone.request(chunk) for chunk in range(alone.chunks)]
        assert requests[:3] == before
        assert [request.paragraphs for request in requests[3:]] == [(tokens_of(words(i + 1)),) for i in range(count)]
    assert [alone.chunk_of(row) for row in (0, 63, 64, 128, 129, 130, 131)] == [0, 0, 1, 2, 2, 3, 4]
    assert len(alone.em) == len(alone.nll) == len(alone.margin) == len(alone.told) == 132
    assert alone.learn(4, OwnSession(131).answer(alone.request(4))) == range(131, 132)
    assert (alone.em >= 0).nonzero()[0].tolist() == [131]


def test_a_row_that_is_taken_away_is_in_no_count_and_no_filter() -> None:
    made = catalogue_of([tokens_of(words(1)), tokens_of(words(2))])
    ems = [*map(base_em, range(132))]

    def strata() -> list[int]:
        here = [em for row, em in enumerate(ems) if row not in made.gone]
        return [sum(em == C for em in here), sum(10 < em < C for em in here), sum(em <= 10 for em in here)]

    def passing(text: str) -> list[int]:
        return [row for part in made.matching(parse_filter(text)) for row in part]

    assert passing("genre:own") == [130, 131]
    assert (list(made.strata.values()), made.known, made.there) == (strata(), 132, 132)
    made.gone.add(130)
    assert passing("genre:own") == [131]
    assert passing("") == [*range(130), 131]
    assert (list(made.strata.values()), made.known, made.there) == (strata(), 131, 131)


def test_samples_and_claims_and_groups_are_drawn_from_the_file_alone() -> None:
    own = [tokens_of(words(i)) for i in range(1, 40)]
    with_own, without, model = catalogue_of(own), catalogue_of([]), OwnSession().make_model()
    assert with_own.em[130:].max() == C  # some of them are memorized
    for of in ("memorized", "non-memorized"):
        assert Samples(with_own).stratum(of) == Samples(without).stratum(of) != ()
    ours, theirs = setting_of(with_own, model, True), setting_of(without, model, True)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.em.tolist() == theirs.em.tolist()
    assert ours.stratum("memorized").tolist() == theirs.stratum("memorized").tolist()
    assert plan(with_own, [0]) == plan(without, [0])
    with_own.em[131:] = -1  # nobody waits for these
    assert Samples(with_own).ready
    assert waits(with_own, [0]) == ""


def test_an_own_text_is_unlearned_among_the_files_paragraphs_and_its_near_duplicates_are_left_out() -> None:
    paragraphs = unlike(130)
    almost = (*paragraphs.row(30)[:-1], 7)  # the file's row but for its last token
    made = catalogue_of([tokens_of(words(1)), almost])
    made.em[130:] = C
    for row in (130, 131, 0):  # one after the other: what is known of clusters is kept
        run, groups = plan(made, [row]), split(made, [row], UnlearnOptions())
        assert run.targets == (made.paragraphs.row(row),)
        everyone = {*groups.kept, *groups.held_out, *groups.others, *groups.family, *groups.general}
        assert everyone <= set(range(130))
        assert groups.family == ([30] if row == 131 else [])
        assert (30 in {*groups.kept, *groups.others, *groups.held_out}) == (row != 131)


# --------------------------------------------------------------------------------------------- kept between sittings


def test_texts_come_back_in_their_order_and_go_one_by_one() -> None:
    vocabulary = make_vocabulary()
    texts = [OwnText((i, 2, 3), f"text {i}\x1b") for i in range(3)]
    for text in (*texts, texts[1]):
        own_texts.keep(vocabulary, text)
    assert own_texts.load(vocabulary) == (texts, "")
    own_texts.drop(vocabulary, lambda text: text.tokens[0] == 1)
    assert own_texts.load(vocabulary) == ([texts[0], texts[2]], "")
    file = own_texts.own_file(vocabulary)
    assert file.stat().st_mode & 0o777 & ~0o666 == 0
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_other_token_ids_have_other_texts() -> None:
    vocabulary = make_vocabulary()
    own_texts.keep(vocabulary, OwnText((1, 2), "x"))
    other = replace(vocabulary, fingerprint="../other")
    assert own_texts.load(other) == ([], "")
    assert own_texts.own_file(other).parent == own_texts.own_file(vocabulary).parent
    own_texts.own_file(vocabulary).rename(own_texts.own_file(other))
    assert own_texts.load(other)[0] == []
    assert not own_texts.own_file(other).exists()


GOOD = {"tokens": [1, 2], "text": "x"}


@pytest.mark.parametrize(
    "texts",
    [
        *(7, "abc", {"tokens": [1]}, [7], ["tokens"], [{"tokens": [1]}], [GOOD | {"text": 7}], [GOOD | {"tokens": 3}]),
        *([GOOD | {"tokens": ["1"]}], [GOOD | {"tokens": [True]}], [GOOD | {"tokens": [-1]}]),
        *([GOOD | {"tokens": [V]}], [GOOD, GOOD | {"tokens": [1.5]}], [GOOD | {"tokens": {"a": 1}}]),
    ],
)
def test_a_hostile_file_is_set_aside_with_one_notice(texts: Any) -> None:
    vocabulary = make_vocabulary()
    file = own_texts.own_file(vocabulary)
    file.parent.mkdir(parents=True)
    written = json.dumps({"version": 1, "vocabulary": vocabulary.fingerprint, "texts": texts})
    file.write_text(written)
    found, notice = own_texts.load(vocabulary)
    assert found == []
    assert notice == f"The file of your own texts is unreadable; the file is kept as {file.stem}.broken."
    assert file.with_suffix(".broken").read_text() == written
    assert own_texts.load(vocabulary) == ([], "")
    own_texts.keep(vocabulary, OwnText((1,), "x"))
    assert own_texts.load(vocabulary) == ([OwnText((1,), "x")], "")


@given(st.binary(max_size=60))
def test_any_bytes_are_survived(data: bytes) -> None:
    file = own_texts.own_file(make_vocabulary())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    assert own_texts.load(make_vocabulary())[0] == []


def test_a_file_holds_so_many_texts_and_bytes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_texts, "MOST", 3)
    vocabulary = make_vocabulary()
    for i in range(3):
        own_texts.keep(vocabulary, OwnText((i,), "x"))
    with pytest.raises(own_texts.Full, match="3 texts of your own are kept"):
        own_texts.keep(vocabulary, OwnText((9,), "x"))
    own_texts.drop(vocabulary, lambda text: text.tokens == (0,))
    monkeypatch.setattr(own_texts, "MOST_BYTES", 1000)
    with pytest.raises(own_texts.Full):
        own_texts.keep(vocabulary, OwnText((9,), "x" * 1000))
    assert [text.tokens for text in kept()] == [(1,), (2,)]


def test_a_failed_write_leaves_the_old_file_and_one_that_cannot_be_read_is_not_written_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary = make_vocabulary()
    own_texts.keep(vocabulary, OwnText((1,), "old"))
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            own_texts.keep(vocabulary, OwnText((2,), "new"))
    assert kept() == [OwnText((1,), "old")]
    file = own_texts.own_file(vocabulary)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "not yours")))
        assert own_texts.load(vocabulary) == ([], "The texts of your own could not be read (not yours).")
        with pytest.raises(PermissionError):
            own_texts.keep(vocabulary, OwnText((2,), "new"))
    assert file.exists()
    assert kept() == [OwnText((1,), "old")]


# ------------------------------------------------------------------------------------------------------- the field


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_spelled_out_is_meant_again_and_never_steers_a_terminal(text: str) -> None:
    spelled = spelled_out(text)
    assert not [c for c in spelled if c not in "\n\t" and category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    if not re.search("⟨U\\+[0-9A-F]{4,6}⟩", text):
        assert meant(spelled) == text.replace("\r\n", "\n").replace("\r", "\n")


def test_names_of_no_character_are_text() -> None:
    assert meant("⟨U+202E⟩a⟨U+1F600⟩") == "\u202ea😀"
    for text in ("⟨U+D800⟩", "⟨U+110000⟩", "⟨U+FFFFFF⟩", "⟨U+20⟩", "⟨U+202e⟩", "U+202E", "⟨E2⟩"):
        assert meant(text) == text


# --------------------------------------------------------------------------------------------------- in the explorer


async def test_it_says_how_many_tokens_there_are_as_one_types(app: MemlocApp, session: OwnSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("+")
        await until(pilot, lambda: "100 tokens: 50 of prefix and 50 to follow" in said(app))
        await pilot.press(*" w1", "enter", *"q?/")
        await until(
            pilot, lambda: said(app).startswith(f"{len(encoded(' w1' + chr(10) + 'q?/').tokens)} of 100 tokens")
        )
        assert app.screen.query_one(OwnField).text == " w1\nq?/"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: said(app).startswith("Too short."))
        assert isinstance(app.screen, OwnTextDialog)
        await paste(pilot, words(1, 99))
        await until(pilot, lambda: "the first 100 are studied" in said(app))
        await pilot.press("escape")
        await pilot.pause()
        assert len(app.explorer.study.catalogue) == 60
        assert kept() == []
        assert {type(r) for r in session.asked if "w1\n" in getattr(r, "text", "")} == {EncodeText}


async def test_a_text_is_chosen_asked_at_once_and_cut_where_a_paragraph_ends(
    app: MemlocApp, session: OwnSession
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        asked = len(session.asked)
        await give(pilot, words(3, 150))
        explorer, row = app.explorer, tokens_of(words(3, 100))
        study = explorer.study
        assert study.current == 60 == explorer.list.current
        assert study.catalogue.paragraphs.row(60) == row
        assert study.score.em == base_em(60) == C
        assert [r.paragraphs for r in session.asked[asked:] if isinstance(r, ExactMatch)] == [(row,)]
        line = shown(app, "#paragraphs").split("\n")
        assert [f"▸+{study.id[:4]} {C} ██████ {words(3)[1:8]}" in text for text in line].count(True) == 1
        assert "1 Paragraphs 61" in shown(app, "#list-pane")
        assert kept() == [OwnText(row, words(3, 100))]


async def test_everything_works_with_it(app: MemlocApp, session: OwnSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await give(pilot, words(3))
        await pilot.press("2", "enter", "enter")  # the first random token, kept
        await until(pilot, lambda: app.explorer.study.here.trials)
        ((position, token),) = app.explorer.study.here.replacements
        assert app.explorer.study.score.em == C - effect(position, token)
        await pilot.press("w")
        await until(pilot, lambda: (s := app.explorer.study.here.sweep) is not None and s.done)
        await pilot.press("m", "e", "l")
        await until(pilot, lambda: list(Path.cwd().glob("memloc-paragraphs*.csv")))
        exported = next(Path.cwd().glob("memloc-paragraphs*.csv")).read_text()
        assert f'"""{app.explorer.study.id}""",60,50,' in exported
        assert '"""own"""' in exported
        await pilot.press("slash", *"genre:own is:marked is:perturbed", "enter")
        await until(pilot, lambda: app.explorer.list.order == [60])
        for tab in "567804":
            await pilot.press(tab)
            await pilot.pause()
        await pilot.press("x")
        await until(pilot, lambda: "weights ·" in shown(app, "#panel-unlearn"))
        await pilot.press("enter")
        runs = app.explorer.unlearning
        await until(pilot, lambda: not runs.running and runs.seen().runs and not runs.measuring.running)
        assert runs.seen().runs[0].ids == (app.explorer.study.id,)
        assert runs.seen().runs[0].request.targets == (tokens_of(words(3)),)
        await pilot.press("E")
        await until(pilot, lambda: app.explorer.study.score is not None and app.explorer.editing.names)
        await until(pilot, lambda: app.explorer.study.catalogue.em[60] == 3)
        # Under edited weights another text, which is there under the original ones too.
        await pilot.press("slash", "escape", "escape")
        await give(pilot, words(4))
        assert app.explorer.study.catalogue.em[61] == base_em(61)
        await pilot.press("E")
        await opened(pilot)
        assert app.explorer.current == 61
        assert app.explorer.study.catalogue.em[60:].tolist() == [C, base_em(61)]
        assert not [notice for notice in notices(app) if "went wrong" in notice]


async def test_the_same_text_is_one_paragraph_also_where_the_file_has_it(app: MemlocApp, session: OwnSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await give(pilot, words(3))
        await pilot.press("[")
        await give(pilot, words(3) + " w1 w2")
        assert (app.explorer.current, len(app.explorer.study.catalogue)) == (60, 61)
        assert notices(app)[-1] == "This paragraph is in the list already."
        await give(pilot, b"".join(PIECES[t] for t in session.paragraphs.row(17)).decode())
        assert (app.explorer.current, len(app.explorer.study.catalogue)) == (17, 61)
        assert notices(app)[-1] == "This paragraph is in the file already."
        assert len(kept()) == 1


async def test_the_next_sitting_has_the_texts_and_what_was_done_with_them() -> None:
    first = own_app(OwnSession())
    async with first.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await give(pilot, words(3))
        await give(pilot, words(4))
        await pilot.press("m", "2", "enter", "enter")
        await until(pilot, lambda: first.explorer.study.here.replacements)
        replacements = first.explorer.study.here.replacements
    second = own_app(OwnSession())
    async with second.run_test(size=WIDE) as pilot:
        await opened(pilot)
        study = second.explorer.study
        assert [study.catalogue.paragraphs.row(row) for row in (60, 61)] == [tokens_of(words(i)) for i in (3, 4)]
        assert study.current == 61
        assert study.here.replacements == replacements
        assert study.catalogue.marked == {61}
    shorter = OwnSession()
    shorter._paragraphs = replace(make_paragraphs(60), tokens=np.pad(make_paragraphs(60).tokens, ((0, 0), (0, 20))))
    third = own_app(shorter)
    async with third.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: third.explorer.study is not None and third.explorer.current >= 0)
        assert len(third.explorer.study.catalogue) == 60
        assert "2 of your own texts have fewer than 120 tokens and are left out." in notices(third)
    assert len(kept()) == 2


async def test_a_text_is_taken_away_and_comes_back_only_if_it_is_given_again(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await give(pilot, words(3))
        await give(pilot, words(4))
        order = list(app.explorer.list.order)
        await pilot.press("-")
        await until(pilot, lambda: 61 not in app.explorer.list.order)
        assert app.explorer.list.order == [row for row in order if row != 61]
        at = order.index(61)
        assert app.explorer.current == (order[at + 1] if at + 1 < len(order) else order[at - 1])
        assert "Paragraphs 61" in shown(app, "#list-pane")
        assert [text.tokens for text in kept()] == [tokens_of(words(3))]
        assert notices(app)[-1].startswith(f"Taken away: {words(4)[1:20]}")
        await give(pilot, words(4))
        assert (app.explorer.current, len(app.explorer.study.catalogue)) == (61, 62)
        assert "Paragraphs 62" in shown(app, "#list-pane")
        assert len(kept()) == 2


async def test_one_with_replacements_or_runs_is_taken_away_after_a_question(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await give(pilot, words(3))
        await pilot.press("m", "2", "enter", "enter")
        await until(pilot, lambda: app.explorer.study.here.trials)
        await pilot.press("x")
        await until(pilot, lambda: "weights ·" in shown(app, "#panel-unlearn"))
        await pilot.press("enter")
        runs = app.explorer.unlearning
        await until(pilot, lambda: not runs.running and runs.seen().runs and not runs.measuring.running)
        await pilot.press("1", "-")
        await until(pilot, lambda: "has replacements and 1 run. Take it away?" in "\n".join(screen_lines(app)))
        await pilot.press("n")
        await pilot.pause()
        assert app.explorer.current == 60
        await pilot.press("-")
        await pilot.press("y")
        await until(pilot, lambda: 60 not in app.explorer.list.order)
        study, id_ = app.explorer.study, app.explorer.study.catalogue.paragraphs.ids[60]
        assert study.catalogue.marked == study.catalogue.perturbed == set()
        assert id_ not in {*app.resume.replacements, *app.resume.tried, *app.resume.marked}
        assert kept() == []
        await give(pilot, words(3))
        assert app.explorer.current == 60
        assert study.here.replacements == study.here.trials == ()


async def test_a_paragraph_of_the_file_is_not_taken_away(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        before = app.explorer.current
        await pilot.press("-")
        await pilot.pause()
        assert app.explorer.current == before
        assert notices(app)[-1].startswith("This paragraph is one of the file")


async def test_what_goes_wrong_is_said_and_the_text_stays(app: MemlocApp, session: OwnSession, tmp_path: Path) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        session.fail[EncodeText] = MemlocError("fake holds no tokenizer\x1b.")
        await pilot.press("+")
        await paste(pilot, words(3))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "fake holds no tokenizer␛." in said(app))
        assert isinstance(app.screen, OwnTextDialog)
        del session.fail[EncodeText]
        os.environ["MEMLOC_STATE_DIR"] = str(tmp_path / "a file" / "state")
        (tmp_path / "a file").write_text("")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.explorer.current == 60)
        assert any("Your text is here until you quit: it cannot be kept (" in notice for notice in notices(app))


async def test_where_the_model_is_refused_none_is_studied_and_the_kept_ones_can_be_taken_away(
    app: MemlocApp, session: OwnSession
) -> None:
    own_texts.keep(make_vocabulary(), OwnText(tokens_of(words(1)), words(1)))
    session.cached, session.parts = True, ("vocabulary", "paragraphs")
    session.fail_open = MemlocError("There is no memory left on cuda:0.")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.explorer.current >= 0 and notices(app))
        await pilot.press("+")
        await until(pilot, lambda: isinstance(app.screen, OwnTextDialog))
        await paste(pilot, words(2))
        await until(pilot, lambda: said(app) == "There is no memory left on cuda:0. r tries again.")
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert isinstance(app.screen, OwnTextDialog)
        await pilot.press("escape")
        app.explorer.listing.go_to(60)
        await until(pilot, lambda: app.explorer.current == 60)
        await pilot.press("-")
        await until(pilot, lambda: not kept())
        assert notices(app)[-1].startswith("Taken away")
        assert not any("went wrong" in notice for notice in notices(app))


async def test_a_broken_file_is_said_once_and_the_list_is_the_files(app: MemlocApp) -> None:
    file = own_texts.own_file(make_vocabulary())
    file.parent.mkdir(parents=True)
    file.write_text("{")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        assert len(app.explorer.study.catalogue) == 60
        assert [notice for notice in notices(app) if "your own texts" in notice] == [
            f"The file of your own texts is unreadable; the file is kept as {file.stem}.broken."
        ]


async def test_there_is_room_for_so_many_characters_and_no_half_of_a_name(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("+")
        await until(pilot, lambda: isinstance(app.screen, OwnTextDialog))
        await paste(pilot, "x" * (MOST - 12) + "\u202e\u202e")
        field = app.screen.query_one(OwnField)
        assert field.text == "x" * (MOST - 12) + "⟨U+202E⟩"
        await until(pilot, lambda: "The field holds no more than 20,000 characters." in said(app))
        assert "the first 100 are studied" in said(app)


@pytest.fixture
def clipboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    texts: list[str] = []
    monkeypatch.setattr(MemlocApp, "copy_to_clipboard", lambda self, text: texts.append(text))
    return texts  # type: ignore[return-value]


async def test_ctrl_c_copies_what_is_selected_in_the_field(app: MemlocApp, clipboard: list[str]) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("+", *"abc", "shift+home", "ctrl+c")
        await until(pilot, lambda: clipboard == ["abc"])
        assert app.is_running


async def test_the_mouse_does_the_same(app: MemlocApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        await pilot.press("+")
        await paste(pilot, words(3))
        lines = screen_lines(app)
        y = next(i for i, line in enumerate(lines) if "study it" in line)
        await pilot.click(offset=(lines[y].index("study it"), y))
        await until(pilot, lambda: app.explorer.current == 60)


async def test_a_request_of_the_text_is_of_the_characters_that_were_pasted(app: MemlocApp, session: OwnSession) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        text = "a\u202eb\x1b[2J\u200b\ue000e\u0301\ufe0f\x85\u2028" * 20
        await give(pilot, text)
        assert [r.text for r in session.asked if isinstance(r, EncodeText)][-1] == text
        assert app.explorer.study.catalogue.paragraphs.row(60) == tokens_of(text)[:100]


# ------------------------------------------------------------------------------------------- with a begin-of-text token


async def test_in_a_set_that_begins_its_texts_an_own_text_is_begun_once_and_kept_without(tmp_path: Path) -> None:
    begin, session = 7, OwnSession()
    plain = session._paragraphs
    tokens = np.concatenate([np.full((len(plain), 1), begin), plain.tokens], axis=1)
    session._paragraphs = replace(plain, tokens=tokens, prefix_length=P + 1, begin=begin)
    session.rows = Rows({tuple(row): i for i, row in enumerate(tokens.tolist())})
    text = words(1)
    async with own_app(session).run_test(size=WIDE) as pilot:
        app = app_of(pilot)
        await opened(pilot)
        await pilot.press("+")
        await until(pilot, lambda: isinstance(app.screen, OwnTextDialog))
        assert f"needs {LENGTH} tokens: {P} of prefix and {C} to follow" in said(app)
        await pilot.press("escape")
        await give(pilot, text)
        catalogue = app.explorer.study.catalogue
        assert catalogue.paragraphs.row(app.explorer.current) == (begin, *tokens_of(text))
        assert [one.tokens for one in kept()] == [tokens_of(text)]
        await give(pilot, text)  # the same
        assert len(catalogue.paragraphs) == len(plain) + 1
        await pilot.press("-")
        await until(pilot, lambda: not kept())
