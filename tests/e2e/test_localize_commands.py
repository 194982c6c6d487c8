"""`memloc-tui analyze` for where it is stored: each command's JSON against the same analysis run in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

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
)
from tests.conftest import result

COMMAND = (sys.executable, "-m", "memloc_tui", "analyze")
LIMIT = 12


@pytest.fixture(scope="module")
def memloc(scored_cache, tmp_path_factory):
    """Run an analysis; one cache for all of them, so that the list is scored once."""
    folder = tmp_path_factory.mktemp("localize")
    shutil.copytree(scored_cache, folder / "cache")
    own = {"MEMLOC_CACHE_DIR": str(folder / "cache"), "MEMLOC_STATE_DIR": str(folder / "state"), "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        options = {"capture_output": True, "text": True, "timeout": 180, "stdin": subprocess.DEVNULL}
        return subprocess.run((*COMMAND, *arguments), env=os.environ | own, **options)

    return run


@pytest.fixture(scope="module")
def strata(demo, demo_paragraphs):
    """Rows recited whole, and rows of EM at most 10, in the file's order."""
    em = result(demo, ExactMatch(tuple(map(tuple, demo_paragraphs.tokens.tolist())))).em
    rows = np.flatnonzero(em == 50)[:LIMIT], np.flatnonzero(em <= 10)[:LIMIT]
    return [tuple(demo_paragraphs.row(int(row)) for row in part) for part in rows], [part.tolist() for part in rows]


def same(told, wanted):
    """JSON's numbers (null for nan) against an array."""
    np.testing.assert_allclose(np.array(told, np.float64), np.asarray(wanted, np.float64), rtol=2e-3, atol=1e-6)


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
