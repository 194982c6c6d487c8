"""`memloc-tui analyze` for where it is stored: each command's JSON against the same analysis run in this process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from memloc_core.requests import (
    ActivationGradients,
    ActivationPatching,
    Attention,
    AttributionPatching,
    ContrastGradients,
    ExactMatch,
    HeadAblation,
    ParameterGradients,
    RareTokens,
    Rarity,
    Sweep,
)
from tests.conftest import result
from tests.e2e.conftest import Memloc

LIMIT = 16


@pytest.fixture(scope="module")
def memloc(place, scored_cache):
    """One cache for all analyses, so that the list is scored once."""
    shutil.copytree(scored_cache, place / "cache")
    return Memloc(place, "analyze")


@pytest.fixture(scope="module")
def strata(demo, demo_paragraphs):
    """Rows recited whole, and rows of EM at most 10, in the file's order."""
    em = result(demo, ExactMatch(tuple(map(tuple, demo_paragraphs.tokens.tolist())))).em
    rows = np.flatnonzero(em == 50)[:LIMIT], np.flatnonzero(em <= 10)[:LIMIT]
    return [tuple(demo_paragraphs.row(int(row)) for row in part) for part in rows], [part.tolist() for part in rows]


def same(told, wanted):
    """JSON's numbers (null for nan) against an array."""
    np.testing.assert_allclose(np.array(told, np.float64), np.asarray(wanted, np.float64), rtol=2e-3, atol=1e-6)


def flags(options):
    """--name value ..."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def differ(a, b):
    """What an option changes is far more than `same` lets pass."""
    assert not np.allclose(a, b, rtol=2e-2, atol=1e-5, equal_nan=True)


def test_gradients_attention_and_patching_of_one_paragraph(memloc, demo, demo_paragraphs, strata):
    row, id_ = strata[0][0][0], demo_paragraphs.ids[strata[1][0][0]]

    def told(*arguments):
        done = memloc(*arguments, "--paragraph", id_, "--json")
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["id"] == id_
        return record

    gradients = result(demo, ParameterGradients((row,)))
    record = told("parameter-gradients")
    same(record["max"], gradients.max[0])
    same(record["layer_shares"], gradients.max[0].sum(-1) / gradients.max[0].sum())
    same(told("activation-gradients")["scores"], result(demo, ActivationGradients(row)).scores)
    attention = result(demo, Attention(row))
    record = told("attention", "--head", "L1H2", "--pattern")
    same(record["head_weights"], attention.weights[1, 2])
    same(record["pattern"][49][:50], attention.weights[1, 2])
    estimate = result(demo, AttributionPatching(row, ((48, 7),)))
    exact = result(demo, ActivationPatching(row, ((48, 7),), cells=estimate.top(10)))
    record = told("patching", "--position", "48", "--token-id", "7")
    same(record["heads"], exact.heads)
    assert record["exact"] is True


def test_contrast_rarity_ablation_and_rare_tokens_of_a_set(memloc, demo, demo_paragraphs, strata):
    (memorized, others), (rows, _) = strata
    counts = tuple(demo_paragraphs.prefix_counts(row) for row in rows)

    def told(*arguments):
        done = memloc(*arguments, "--limit", str(LIMIT), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    same(told("contrast-gradients", "--all")["ratio"], result(demo, ContrastGradients(memorized, others)).ratio)
    same(told("rarity", "--set", "memorized")["tau"], result(demo, Rarity(memorized, counts)).tau)
    ablated = result(demo, HeadAblation(memorized, others, others))
    record = told("ablation", "--all")
    same(record["memorized_em"], ablated.memorized_em)
    same(record["own_em"], ablated.own_em)
    frequent = demo_paragraphs.ranked_tokens("most-frequent", 50)
    effect = result(demo, RareTokens(memorized, counts, frequent))
    same(told("rare-tokens", "--set", "memorized")["difference"], effect.difference)


def test_each_option_of_an_analysis_of_one_paragraph_counts(memloc, demo, demo_paragraphs, strata):
    """The numbers are those of the question that the option makes, and not those without it."""
    row, id_ = strata[0][0][0], demo_paragraphs.ids[strata[1][0][0]]
    twin = ((48, 7),)

    def told(*arguments):
        done = memloc(*arguments, "--paragraph", id_, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    gradients = result(demo, ParameterGradients((row,)))
    record = told("parameter-gradients", "--score", "l2")
    same(record["layer_shares"], gradients.l2[0].sum(-1) / gradients.l2[0].sum())
    differ(gradients.l2[0].sum(-1) / gradients.l2[0].sum(), gradients.max[0].sum(-1) / gradients.max[0].sum())
    looks = [result(demo, Attention(row, query=query)) for query in (20, -1)]
    record = told("attention", "--query", "20")
    same(record["head_weights"], looks[0].weights[1, 2])
    differ(looks[0].entropy, looks[1].entropy)
    estimate, exact = result(demo, AttributionPatching(row, twin)), result(demo, ActivationPatching(row, twin))
    for which, wanted in (("none", estimate), ("all", exact)):
        record = told("patching", "--position", "48", "--token-id", "7", "--exact", which)
        same(record["residual"], wanted.residual)
        assert (record["exact"], record["cells"]) == (wanted.exact, wanted.cells)
    differ(estimate.residual, exact.residual)
    assert np.isfinite(exact.residual).all()  # where only the top cells are run, the others are nan
    drawn = result(demo, Sweep(row, draws=2, seed=3))
    record = told("sweep", "--verified", "--draws", "2", "--seed", "3")
    assert record["replacements"] == drawn.replacements.tolist()
    assert record["em"] == drawn.em.tolist()
    assert record["bound"] == pytest.approx(4 * record["error"]) != 0
    assert told("sweep", "--draws", "2", "--seed", "3")["bound"] is None  # nothing was computed in bfloat16


def test_each_option_of_an_analysis_of_a_set_counts(memloc, demo, demo_paragraphs, strata):
    (memorized, others), rows = strata
    counts = tuple(map(demo_paragraphs.prefix_counts, rows[0]))
    clusters = tuple(demo_paragraphs.related(rows[0]).tolist())

    def told(*arguments):
        done = memloc(*arguments, "--limit", str(LIMIT), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    mean, zero = (result(demo, HeadAblation(memorized, others, others, kind=kind)) for kind in ("mean", "zero"))
    same(told("ablation", "--all", "--kind", "mean")["memorized_nll"], mean.memorized_nll)
    differ(mean.memorized_nll, zero.memorized_nll)
    chosen = {"query": 50, "shuffle": "paragraphs", "seed": 3}
    rarity = Rarity(memorized, counts, clusters=clusters)
    record, wanted = told("rarity", "--set", "memorized", *flags(chosen)), result(demo, replace(rarity, **chosen))
    same(record["tau"], wanted.tau)
    same(record["null_low"], wanted.null_low)
    for option, field in (("query", "tau"), ("shuffle", "null_low"), ("seed", "null_low")):
        without = replace(rarity, **{name: value for name, value in chosen.items() if name != option})
        differ(getattr(wanted, field), getattr(result(demo, without), field))
    chosen = {"pairs": 2, "seed": 3, "reference": "own"}
    counts, frequent = (
        tuple(map(demo_paragraphs.prefix_counts, rows[1])),
        demo_paragraphs.ranked_tokens("most-frequent", 50),
    )
    rare = RareTokens(others, counts, frequent)
    record, wanted = (
        told("rare-tokens", "--set", "non-memorized", *flags(chosen)),
        result(demo, replace(rare, **chosen)),
    )
    assert record["em_before"] == [50] * LIMIT  # of their own text; of the true one they have at most 10
    assert record["rare_drop"] == wanted.rare_drop.tolist()
    for option in chosen:
        without = replace(rare, **{name: value for name, value in chosen.items() if name != option})
        assert record["rare_drop"] != result(demo, without).rare_drop.tolist()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("attention", "--all", "--head", "L9H9"), "no head L9H9: its layers are 0..3, its heads 0..3"),
        (("attention", "--all", "--head", "two"), "write L1H2"),
        (("rarity", "--set", "memorized", "--limit", "3"), "at least 10 paragraphs"),
        (("patching", "--all", "--position", "1"), "--token"),
        (("ablation",), "Which paragraphs"),
    ],
)
def test_what_cannot_be_analysed_is_said_in_a_sentence(memloc, arguments, says):
    done = memloc(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
