"""Who is kept, watched and left out of a run: on a made-up list whose families and near-duplicates are known."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from memloc_core.errors import UsageError
from memloc_core.requests import (
    GOALS,
    MASKS,
    OBJECTIVES,
    Continue,
    EncodeText,
    MeasureRemains,
    ParagraphSet,
    Sweep,
    Unlearn,
    Vocabulary,
)
from memloc_tui import cli
from memloc_tui.catalogue import Catalogue
from memloc_tui.commands.console import Selection
from memloc_tui.unlearning import (
    UnlearnOptions,
    perturbed_alternative,
    plan,
    remains,
    remains_of,
    split,
    typed_alternative,
    waits,
    worst_alternative,
)

LENGTH, PREFIX = 20, 10
FAMILIES, SIBLINGS = 12, 10  # of each family: five recited, five held out and not recited


def catalogue_of(tokens, em, family=None, repetitions=None, order=None):
    n = len(tokens)
    family = np.full(n, -1) if family is None else np.asarray(family)
    repetitions = np.full(n, -1) if repetitions is None else np.asarray(repetitions)
    order = np.arange(n) if order is None else order
    paragraphs = ParagraphSet(
        source="made up",
        fingerprint="",
        prefix_length=PREFIX,
        ids=tuple(f"{i:010x}" for i in order),
        tokens=np.asarray(tokens)[order],
        counts=np.ones(5000, np.int64),
        counts_of="set",
        repetitions=repetitions[order],
        family=family[order],
        genre=("",) * n,
        split=("",) * n,
    )
    catalogue = Catalogue(paragraphs, Vocabulary(np.zeros(0, np.uint8), np.zeros(1, np.int64), ""))
    catalogue.em[:] = np.asarray(em)[order]
    catalogue.nll[:] = np.arange(n)[order] / 100
    return catalogue


def families(order=None, near=True):
    """Every row has tokens of its own, but for row 1 (nearly row 0's) and the last (nearly the one before's)."""
    n = FAMILIES * SIBLINGS + 40
    tokens = np.arange(n * LENGTH).reshape(n, LENGTH) % 4999
    if near:
        tokens[1] = tokens[0]
        tokens[1, -1] = 4999
        tokens[-1] = tokens[-2]
        tokens[-1, -1] = 4999
    place = np.arange(n)
    family = np.where(place < FAMILIES * SIBLINGS, place // SIBLINGS, -1)
    recited = (family >= 0) & (place % SIBLINGS < 5)
    return catalogue_of(tokens, np.where(recited, 10, 1), family, np.where(recited, 64, 0), order)


def groups_of(found):
    return {name: set(rows) for name, rows in vars(found).items()}


def test_nobody_is_in_two_groups_and_near_duplicates_never_are():
    catalogue = families()
    last = len(catalogue) - 1
    sides = set()
    for seed in range(30):
        found = split(catalogue, [0, 23], UnlearnOptions(keep=24, seed=seed))
        every = [row for rows in vars(found).values() for row in rows]
        assert len(every) == len(set(every))
        assert not {0, 1, 23} & set(every), "the targets, and what is nearly one of them"
        groups = groups_of(found)
        where = {row: {name for name, rows in groups.items() if row in rows} for row in (last - 1, last)}
        assert len(where[last - 1] | where[last]) <= 1
        sides |= where[last - 1] | where[last]
        assert len(found.kept) == 24
    assert len(sides) > 2, "it is the seed that deals"


def test_the_family_is_halved_and_strangers_fill_the_rest():
    catalogue = families()
    found = split(catalogue, [2], UnlearnOptions(keep=24))
    family = set(range(10)) - {2}
    recited = {row for row in range(len(catalogue)) if catalogue.em[row] == 10}
    kept, watched = set(found.kept) & family, set(found.family)
    assert watched <= family & recited
    # Rows 0 and 1 are one cluster; so there are three clusters of recited siblings, and five of others.
    assert len(kept & recited) in (1, 2)
    assert len(kept) >= 3
    assert not (kept & watched)
    strangers = set(found.kept) - family
    assert len(strangers & recited) == len(strangers - recited)
    assert set(found.others) <= recited - family
    for name in ("held_out", "general", "left_context", "relearn"):
        rows = set(getattr(found, name))
        assert rows, name
        assert not rows & (recited | family), name


def test_without_families_near_duplicates_stand_for_them():
    catalogue = families()
    catalogue.paragraphs.family[:] = -1
    assert split(catalogue, [0], UnlearnOptions()).family == [1]
    assert split(catalogue, [5], UnlearnOptions()).family == []


def test_a_begin_of_text_token_changes_neither_the_groups_nor_the_text_before_a_paragraph():
    """Rows 0 and 1 share 16 of 20 different tokens: no near-duplicates, which they would be with one more."""
    plain = families()
    plain.paragraphs.family[:] = -1
    tokens = plain.paragraphs.tokens
    tokens[0, -2:] = tokens[0, :2]
    tokens[1] = tokens[0]
    tokens[1, 2:4] = 4997, 4998
    begun = np.concatenate([np.full((len(plain), 1), 4999), tokens], 1)
    more = replace(plain.paragraphs, tokens=begun, prefix_length=PREFIX + 1, begin=4999)
    after = Catalogue(more, Vocabulary(np.zeros(0, np.uint8), np.zeros(1, np.int64), ""))
    after.em[:], after.nll[:] = plain.em, plain.nll
    options = UnlearnOptions(keep=24)
    assert split(plain, [0], options).family == []
    assert split(after, [0], options) == split(plain, [0], options)
    assert plan(after, [0], options).left_context == plan(plain, [0], options).left_context
    assert remains(after, [0], options).left_context == remains(plain, [0], options).left_context
    assert plan(after, [0], options).targets == ((4999, *tokens[0].tolist()),)


def test_a_copy_of_a_target_is_nowhere():
    catalogue = families()
    p = catalogue.paragraphs
    p.tokens[40] = p.tokens[3]
    ids = list(p.ids)
    ids[40] = ids[3]
    catalogue.paragraphs = replace(p, ids=tuple(ids))
    for rows in ([3], [40]):
        every = {row for group in vars(split(catalogue, rows, UnlearnOptions())).values() for row in group}
        assert not every & {3, 40}


def test_the_deal_hangs_on_ids_and_not_on_the_order_of_the_file():
    straight = families(near=False)
    shuffled = families(np.random.default_rng(1).permutation(len(straight)), near=False)
    ids = straight.paragraphs.ids

    def named(catalogue):
        row = catalogue.paragraphs.ids.index(ids[7 * SIBLINGS])
        found = split(catalogue, [row], UnlearnOptions(keep=20, seed=3))
        return {name: {catalogue.paragraphs.ids[r] for r in rows} for name, rows in vars(found).items()}

    assert named(straight) == named(shuffled)
    assert plan(straight, [70]) == plan(straight, [70])
    assert plan(straight, [70]).kept != plan(straight, [70], UnlearnOptions(seed=1)).kept


def test_many_families_at_stake_leave_strangers_to_keep():
    catalogue = families()
    rows = [family * SIBLINGS + 4 for family in range(FAMILIES)]
    found = split(catalogue, rows, UnlearnOptions(keep=24))
    recited = catalogue.em == 10
    assert sum(recited[found.kept]) >= 6
    assert found.others
    assert found.family
    assert found.relearn


def test_the_run_says_what_was_chosen_and_takes_its_defaults_from_the_request():
    catalogue = families()
    request = plan(catalogue, [2, 13])
    row = catalogue.paragraphs.row
    defaults = Unlearn(targets=(row(2), row(13)), kept=request.kept, prefix_length=PREFIX)
    for name in ("objective", "mask", "place", "sparsity", "goal", "steps", "learning_rate", "kl_weight", "seed"):
        assert getattr(request, name) == getattr(defaults, name), name
    assert request.targets == defaults.targets
    found = split(catalogue, [2, 13], UnlearnOptions())
    for name in ("kept", "held_out", "others", "family", "general"):
        assert getattr(request, name) == tuple(row(r) for r in getattr(found, name)), name
    assert request.left_context == row(found.left_context[0])
    # Held-out siblings are rows 5..9 of each family; their NLL is their number over a hundred.
    assert request.sibling_nll == (0.07, 0.17)
    catalogue.paragraphs.repetitions[:] = -1
    assert plan(catalogue, [2]).sibling_nll == ()


def test_what_remains_is_measured_on_text_that_the_run_never_saw():
    catalogue = families()
    options = UnlearnOptions(seed=2)
    run, question = plan(catalogue, [2], options), remains(catalogue, [2], options)
    assert question.paragraphs == run.targets
    assert question.other_text
    seen = {*run.targets, *run.kept, *run.held_out, *run.others, *run.family, *run.general}
    assert not seen & set(question.other_text)
    assert question.left_context == run.left_context


def scarce():
    """Rows 0..59 of a family of 90 to be changed, 48 recited strangers, and few rows that are not recited."""
    n = 90 + 48 + 6
    place = np.arange(n)
    tokens = np.arange(n * LENGTH).reshape(n, LENGTH) % 4999
    recited = (place < 70) | ((place >= 90) & (place < 138))
    return catalogue_of(tokens, np.where(recited, 10, 1), np.where(place < 90, 0, -1))


def test_what_a_stored_run_left_is_asked_as_when_it_was_new():
    """A set that cannot fill `keep` is dealt otherwise where fewer are wanted: here half of the siblings go along."""
    catalogue, rows = scarce(), list(range(60))
    differs = 0
    for seed in range(8):
        for keep in (24, 96, 300):
            options = UnlearnOptions(seed=seed, keep=keep)
            run, question = plan(catalogue, rows, options), remains(catalogue, rows, options)
            assert remains_of(catalogue, rows, run) == question
            differs += remains(catalogue, rows, replace(options, keep=len(run.kept))) != question
    assert differs, "the number that was kept does not tell it"


def test_what_a_stored_run_saw_is_not_learned_afterwards_in_another_set():
    catalogue = families()
    options = UnlearnOptions(seed=2)
    run = plan(catalogue, [2], options)
    learned = remains(catalogue, [2], options).other_text
    run = replace(run, kept=(*run.kept, *learned[:3]), general=(*run.general, *learned[3:5]))
    assert remains_of(catalogue, [2], run).other_text == learned[5:]


def test_what_remains_after_short_prefixes_is_asked_only_of_windows_that_still_have_one():
    catalogue = families()
    assert remains(catalogue, [2]).shifts == (1, 5)
    catalogue.paragraphs = replace(catalogue.paragraphs, prefix_length=21)
    assert remains(catalogue, [2]).shifts == MeasureRemains.shifts


@pytest.mark.parametrize(
    ("rows", "options", "alternatives", "says"),
    [
        ([], {}, (), "at least one"),
        ([2, 2], {}, (), "twice"),
        ([2], {"keep": 0}, (), "--keep"),
        ([7], {}, (), r"Paragraph \w+ is not recited"),
        ([2, 7, 3], {}, (), r"1 of the 3 paragraphs, such as \w+, are not recited"),
        ([2], {"objective": "edit"}, (), "one alternative for each"),
        ([2], {"objective": "edit"}, ((1, 2, 3),), "has 3 tokens with its prefix; it needs 20"),
        ([2], {}, ((1, 2, 3),), "go with the objective edit"),
    ],
)
def test_a_run_that_cannot_be_meant_is_said(rows, options, alternatives, says):
    with pytest.raises(UsageError, match=says):
        plan(families(), rows, UnlearnOptions(**options), alternatives)


def test_a_set_with_nothing_to_keep_is_said():
    one = catalogue_of(np.arange(20)[None], [10])
    with pytest.raises(UsageError, match="no paragraph left to keep"):
        plan(one, [0])
    unknown = families()
    unknown.em[5] = -1
    with pytest.raises(UsageError, match="159 of 160 are known"):
        plan(unknown, [0])
    same = families()
    with pytest.raises(UsageError, match="is the paragraph itself"):
        plan(same, [2], UnlearnOptions(objective="edit"), (same.paragraphs.row(2),))
    # What is not recited can be taught, and a paragraph can be pushed on for its own sake.
    assert plan(same, [7], UnlearnOptions(objective="memorize")).targets == (same.paragraphs.row(7),)
    assert plan(same, [7], UnlearnOptions(goal="steps")).targets == (same.paragraphs.row(7),)


def test_what_is_known_beyond_the_rows_that_are_drawn_from_changes_nothing(monkeypatch):
    monkeypatch.setattr("memloc_tui.unlearning.DRAWN_FROM", 96)
    catalogue = families()
    catalogue.em[96:] = -1
    before = plan(catalogue, [0, 94])
    assert before.sibling_nll == plan(families(), [0, 94]).sibling_nll
    assert before == plan(families(), [0, 94])
    catalogue.em[95] = -1
    assert waits(catalogue, [0]) == "A run waits for the exact matches of the list: 95 of 96 are known."
    assert waits(catalogue, [0, 97]) == "A run waits for the exact matches of the list: 95 of 97 are known."


def test_of_copies_in_a_set_only_the_first_is_changed():
    catalogue = families()
    ids = catalogue.paragraphs.ids
    catalogue.paragraphs = replace(catalogue.paragraphs, ids=(*ids[:3], ids[1], ids[1], *ids[5:]))

    async def score(rows):
        assert len(rows) == len(catalogue)

    asker = SimpleNamespace(catalogue=catalogue, score=score)
    chosen = Selection((), "memorized", 4, False, None)
    assert asyncio.run(chosen.distinct_rows(asker)) == [0, 1, 2, 10]
    assert asyncio.run(replace(chosen, stratum="all").distinct_rows(asker)) == [0, 1, 2, 5]
    twice = Selection((ids[2], ids[2]), None, None, False, None)
    assert asyncio.run(twice.distinct_rows(asker)) == [2, 2]


def ask_with(answers):
    asked = []

    async def ask(request):
        request = getattr(request, "request", request)
        asked.append(request)
        return SimpleNamespace(result=answers[type(request)](request))

    return ask, asked


def test_alternatives_begin_with_the_rows_own_prefix():
    catalogue = families()
    row = catalogue.paragraphs.row(2)

    def said(request):
        return SimpleNamespace(tokens=np.arange(request.length) + 100)

    def swept(request):
        drops = np.zeros(PREFIX)
        drops[4] = 7
        return SimpleNamespace(drops=lambda: drops, replacements=np.arange(PREFIX)[:, None] + 50)

    ask, asked = ask_with(
        {Continue: said, Sweep: swept, EncodeText: lambda r: SimpleNamespace(tokens=np.array([9, 8]))}
    )
    found = asyncio.run(perturbed_alternative(ask, catalogue, 2, ((3, 77),)))
    assert found == (*row[:PREFIX], *range(100, 110))
    assert asked == [Continue((*row[:3], 77, *row[4:PREFIX]), 10)]
    asyncio.run(worst_alternative(ask, catalogue, 2, 5))
    assert asked[-2].seed == 5
    assert asked[-2].reference == "true"
    assert asked[-1].prompt == (*row[:4], 54, *row[5:PREFIX])
    typed = asyncio.run(typed_alternative(ask, catalogue, 2, "some text", "demo"))
    assert typed == (*row[:PREFIX], 9, 8, *range(100, 108))
    assert asked[-1] == Continue((*row[:PREFIX], 9, 8), 8)
    with pytest.raises(UsageError, match="at positions 0"):
        asyncio.run(perturbed_alternative(ask, catalogue, 2, ((10, 1),)))
    same, _ = ask_with({Continue: lambda r: SimpleNamespace(tokens=np.array(row[PREFIX:]))})
    with pytest.raises(UsageError, match="goes on as before"):
        asyncio.run(perturbed_alternative(same, catalogue, 2, ((3, 77),)))
    for tokens in (np.arange(11), np.arange(0)):
        ask, _ = ask_with({EncodeText: lambda r, tokens=tokens: SimpleNamespace(tokens=tokens)})
        with pytest.raises(UsageError, match=f"has {len(tokens)} tokens"):
            asyncio.run(typed_alternative(ask, catalogue, 2, "some text", "demo"))


def test_the_commands_know_the_names_of_the_requests():
    assert (cli.OBJECTIVES, cli.MASKS, cli.GOALS) == (OBJECTIVES, MASKS, GOALS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("unlearn", "--paragraph", "a", "--protocol", "paper", "--lr", "1", "--goal", "steps"), "out --goal, --lr"),
        (("compare-masks", "--protocol", "paper", "--steps", "3"), "leave out --steps"),
        (("unlearn", "--paragraph", "a", "--edit", "EDIT", "--out", "EDIT"), "is an edit that this run stands on"),
        (("unlearn", "--paragraph", "a", "--out", "/dev/null"), "/dev/null is no file"),
    ],
)
def test_what_a_run_would_not_look_at_or_would_overwrite_is_refused(arguments, says, tmp_path):
    edit = tmp_path / "base.safetensors"
    edit.touch()
    done = CliRunner().invoke(cli.cli, [str(edit) if argument == "EDIT" else argument for argument in arguments])
    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)
