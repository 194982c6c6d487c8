"""Filter terms, sort orders, strata."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from fake import PIECES, FakeSession, base_em, make_paragraphs, make_vocabulary
from hypothesis import given, strategies as st

from memloc_core.requests import Vocabulary
from memloc_tui.catalogue import SORTS, Catalogue, FilterError, parse_filter
from memloc_tui.commands.analyze import token_of
from memloc_tui.samples import Samples


def nll(row: int) -> float:
    """In another order than the exact matches, the margins and the file."""
    return 7 * row % 30 / 10


def margin(row: int) -> float:
    return 11 * row % 30 / 100


@pytest.fixture
def catalogue() -> Catalogue:
    session = FakeSession()
    made = Catalogue(make_paragraphs(), make_vocabulary())
    for chunk in range(made.chunks):
        made.learn(chunk, session.answer(made.request(chunk)))
    made.nll[:], made.margin[:] = [nll(row) for row in range(30)], [margin(row) for row in range(30)]
    return made


def rows(catalogue: Catalogue, text: str) -> list[int]:
    return [row for part in catalogue.matching(parse_filter(text)) for row in part]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("em>=50", lambda row: base_em(row) >= 50),
        ("em<11", lambda row: base_em(row) < 11),
        ("em>10 em<50", lambda row: 10 < base_em(row) < 50),
        ("nll<0.45", lambda row: nll(row) < 0.45),
        ("margin>=0.175 em>10", lambda row: margin(row) >= 0.175 and base_em(row) > 10),
        ("count>=32", lambda row: 2 ** (row % 8) >= 32),
        ("count=1", lambda row: row % 8 == 0),
        ("family=3", lambda row: row // 3 == 3),
        ("split:fresh", lambda row: row % 2 == 1),
        ("genre:rec split:train", lambda row: row % 3 == 0 and row % 2 == 0),
        ("id:007", lambda row: row == 7),
        ("is:memorized", lambda row: base_em(row) == 50),
        ("is:non-memorized", lambda row: base_em(row) <= 10),
        ("is:partly", lambda row: 10 < base_em(row) < 50),
        ("", lambda row: True),
        ("no such text", lambda row: False),
        ("http://x", lambda row: False),
    ],
)
def test_filters(catalogue: Catalogue, text: str, holds: object) -> None:
    assert callable(holds)
    assert rows(catalogue, text) == [row for row in range(30) if holds(row)]


def test_what_is_not_known_passes_no_number(catalogue: Catalogue) -> None:
    unknown = np.where(np.arange(30) % 2, -1, np.arange(30))
    catalogue.paragraphs = replace(catalogue.paragraphs, repetitions=unknown, family=unknown)
    assert rows(catalogue, "count<12") == rows(catalogue, "family<12") == [0, 2, 4, 6, 8, 10]


def test_text_is_found_across_tokens_and_in_any_case(catalogue: Catalogue) -> None:
    whole = [b"".join(PIECES[t] for t in make_paragraphs().tokens[row]).decode() for row in range(30)]
    assert rows(catalogue, '"W31 w38"') == [row for row in range(30) if "w31 w38" in whole[row]] != []


@pytest.mark.parametrize("text", ["em>=ten", "em>", "em:50", "is:famous", "size>=3"])
def test_a_bad_term_is_said(text: str) -> None:
    with pytest.raises(FilterError) as said:
        parse_filter(text)
    assert str(said.value).endswith(".")


@given(st.text(max_size=40))
def test_any_typed_text_is_a_filter_or_a_sentence(text: str) -> None:
    try:
        terms = parse_filter(text)
    except FilterError:
        return
    assert all(term.field for term in terms)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_sorts(catalogue: Catalogue, sort: str, reverse: bool) -> None:
    natural = {
        "EM": lambda row: -base_em(row),
        "change": lambda row: base_em(row) - base_em(-row % 30),
        "NLL": nll,
        "margin": margin,
        "count": lambda row: -(2 ** (row % 8)),
        "told": lambda row: row % 7,
        "genre": lambda row: ("recipe", "letter", "notice")[row % 3],
        "file": lambda row: row,
    }[sort]
    catalogue.told[:] = [1 - row % 7 / 10 for row in range(30)]
    catalogue.original = Catalogue(catalogue.paragraphs, make_vocabulary())
    catalogue.original.em[:] = [base_em(-row % 30) for row in range(30)]
    order = catalogue.ordered(list(range(30)), sort, reverse)  # type: ignore[arg-type]
    keys = [natural(row) for row in order]
    assert sorted(order) == list(range(30))
    assert keys == sorted(keys, reverse=reverse)


def test_unknown_scores_stay_last_either_way() -> None:
    session, made = FakeSession(200), Catalogue(make_paragraphs(200), make_vocabulary())
    made.learn(1, session.answer(made.request(1)))
    for reverse in (False, True):
        order = made.ordered(list(range(200)), "EM", reverse)
        assert set(order[:64]) == set(range(64, 128))


def test_strata_count_each_paragraph_once(catalogue: Catalogue) -> None:
    session = FakeSession()
    catalogue.learn(0, session.answer(catalogue.request(0)))
    assert catalogue.strata == {"memorized": 10, "partly": 10, "non-memorized": 10}
    assert catalogue.known == 30


def test_a_sample_holds_each_paragraph_once(catalogue: Catalogue) -> None:
    ids = catalogue.paragraphs.ids
    catalogue.paragraphs = replace(catalogue.paragraphs, ids=(*ids[:4], ids[1], ids[1], *ids[6:]))
    assert sorted(Samples(catalogue).stratum("memorized")) == [0, 1, 2, 3, 6, 7, 8, 9]


def test_a_sample_holds_one_of_each_family_before_a_second_of_any(catalogue: Catalogue) -> None:
    unlike = np.arange(30 * 100).reshape(30, 100)
    family = np.full(30, -1)
    catalogue.paragraphs = replace(catalogue.paragraphs, tokens=unlike, family=family)
    plain = Samples(catalogue).stratum("memorized")
    family[list(plain[:4])] = 7
    catalogue.paragraphs = replace(catalogue.paragraphs, family=family)
    assert Samples(catalogue).stratum("memorized") == (plain[0], *plain[4:], *plain[1:4])


def test_intervals_of_a_sample_are_over_families(catalogue: Catalogue) -> None:
    catalogue.paragraphs = replace(catalogue.paragraphs, family=np.arange(30) % 3)
    request = Samples(catalogue).rarity(-1)
    assert request is not None
    family = catalogue.paragraphs.family[list(Samples(catalogue).stratum("memorized"))]
    assert [family[request.clusters.index(c)] for c in request.clusters] == family.tolist()
    assert len(set(request.clusters)) == 3


def test_a_token_of_bytes_that_are_no_utf_8_is_found_as_a_command_line_gives_it() -> None:
    vocabulary = Vocabulary(np.frombuffer(b" a\xc3", np.uint8), np.array([0, 2, 3]), "")
    assert token_of(Catalogue(make_paragraphs(), vocabulary), os.fsdecode(b"\xc3")) == 1


def test_a_hundred_thousand_rows_are_sorted() -> None:
    n = 100_000
    made = Catalogue(make_paragraphs(n), make_vocabulary())
    made.em[:] = np.arange(n) % 51
    order = made.ordered(list(range(n)), "EM", False)
    assert made.em[order[0]] == 50
    assert made.em[order[-1]] == 0
