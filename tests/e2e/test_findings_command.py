"""`memloc-tui findings` on the embedded model: the cheap claims against the same numbers worked out another way."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from memloc_core.requests import ExactMatch
from tests.conftest import result
from tests.e2e.conftest import Memloc

CHEAP = ("--only", "all-or-nothing", "--only", "lower-nll", "--only", "rare-head")


@pytest.fixture(scope="module")
def memloc(place, scored_cache):
    """One cache for all runs."""
    shutil.copytree(scored_cache, place / "cache")
    return Memloc(place, "findings", "--quick")


def test_json_says_what_a_naive_loop_says_and_a_second_run_finds_it_kept(memloc, demo, demo_paragraphs):
    done = memloc(*CHEAP, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["quick"], told["seed"], told["edits"]) == (True, 0, [])
    found = {finding["claim"]: finding for finding in told["findings"]}
    assert list(found) == ["all-or-nothing", "lower-nll", "rare-head"]
    scores = result(demo, ExactMatch(tuple(map(tuple, demo_paragraphs.tokens.tolist()))))
    between = [10 < em < 50 for em in scores.em.tolist()]
    assert found["all-or-nothing"]["effect"] == pytest.approx(sum(between) / len(between))
    assert found["all-or-nothing"]["paper"] == 0.044
    assert found["all-or-nothing"]["n"] == len(between)
    memorized, other = scores.nll[scores.em == 50], scores.nll[scores.em <= 10]
    wins = np.mean([[(a < b) + 0.5 * (a == b) for b in other.tolist()] for a in memorized.tolist()])
    assert found["lower-nll"]["effect"] == pytest.approx(wins, abs=0.01)  # it leaves a few of the others out
    for finding in found.values():
        low, high = finding["interval"]
        assert low <= finding["effect"] <= high
        assert finding["verdict"] in ("holds", "does not hold", "inconclusive")
        assert {"claim", "verdict", "effect", "interval", "n", "paper", "seed", "says", "unit"} <= set(finding)
    # The demo was led to one head that looks at rare names (memloc_core.demo).
    assert found["rare-head"]["verdict"] == "holds"
    assert "the attention of L1H2" in found["rare-head"]["says"]
    assert scores.em[demo_paragraphs.ids.index(found["rare-head"]["paragraph"])] == 50
    assert "1 of 3  all-or-nothing" in done.stderr
    assert "\x1b" not in done.stderr

    log = memloc.folder / "state" / "engine.log"
    log.unlink()
    again = memloc(*CHEAP, env={"COLUMNS": "80"})
    assert again.returncode == 0, again.stderr
    assert not log.exists(), "an engine was started"
    for name in found:
        assert name in again.stdout.split()  # whole, on 80 columns
    assert "Paper: 586 of 13,450 paragraphs lie between." in " ".join(again.stdout.split())


def test_a_set_of_one_is_answered_without_a_number(memloc, demo_paragraphs, tmp_path):
    rows = tmp_path / "one.jsonl"
    rows.write_text(json.dumps({"tokens": demo_paragraphs.row(0)}) + "\n")
    done = memloc("--paragraphs", str(rows), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["findings"]
    assert len(found) == 15
    assert {finding["verdict"] for finding in found} == {"inconclusive"}
    assert all(finding["effect"] is None and finding["interval"] is None and finding["n"] == 0 for finding in found)
    assert all(finding["says"].endswith(".") for finding in found)


def test_an_unknown_claim_is_refused_with_the_names(memloc):
    done = memloc("--only", "rarehead")
    assert done.returncode == 2
    assert "'rarehead' is no claim; there are all-or-nothing, lower-nll" in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
