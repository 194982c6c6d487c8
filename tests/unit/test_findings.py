"""Verdicts on data whose truth is known: the effect is there, is not, or there is too little to tell."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from memloc_core.errors import UsageError
from memloc_core.findings import CLAIMS, NAMES, Setting, recitation, storage, unlearning
from memloc_core.findings.overview import by_count, by_stratum, looks_like_code, shift, strata_of
from memloc_core.findings.verdicts import FEWEST, Group, TooLittle, bootstrap, difference, judge, mean
from memloc_core.requests import (
    Ablated,
    ClaimTest,
    ComponentGradients,
    Continue,
    ExactMatch,
    Finding,
    ParagraphSet,
    ParameterGradients,
    RareTokenEffect,
    RareTokens,
    Rarity,
    RarityScores,
    Sweep,
)
from memloc_tui import findings as testing

P, C, N = 50, 50, 24
NAMES_OF_COMPONENTS = ("W_Q H0", "W_Q H1", "W_in", "W_out")
LAYERS, K = 4, len(NAMES_OF_COMPONENTS)
GENERATOR = np.random.default_rng(7)
FRESH = GENERATOR.bit_generator.state


@pytest.fixture(autouse=True)
def _same_draws():
    """Whichever tests ran before."""
    GENERATOR.bit_generator.state = FRESH


def group(values, clusters=None, start=0):
    """Paragraphs of one cluster each, unless clusters are given."""
    values = np.asarray(values, np.float64)
    n = len(values)
    own = np.arange(start, start + n) if clusters is None else np.asarray(clusters)
    return Group(values, own, np.arange(start, start + n))


def noisy(center, shape, spread=1.0):
    return center + spread * GENERATOR.standard_normal(shape)


def gradients(low_share, size, winner=None, n=N):
    """max |dNLL/dw| [n, layers, k] with this share in the lower half, this sum, and one component drawn out."""
    values = GENERATOR.uniform(0.9, 1.1, (n, LAYERS, K))
    if winner is not None:
        values[:, winner[0], winner[1]] *= 6
    for half, share in ((slice(0, 2), low_share), (slice(2, 4), 1 - low_share)):
        values[:, half] *= (share / values[:, half].sum((1, 2)))[:, None, None]
    return values * size * GENERATOR.uniform(0.8, 1.2, n)[:, None, None]


def drops(center, n=N, worst=None):
    """Drops [n, P] with this mean; `worst` of the positions carry most of it."""
    values = GENERATOR.uniform(0.5, 1.5, (n, P)) * center
    if worst:
        values *= 0.2
        values[:, :worst] = 45
    return np.minimum(values, C)


def rarity(tau, interval=0.05, null=-0.15, p_all=0.01, strongest=(1, 2)):
    shape = (LAYERS, 4)
    taus = np.full(shape, 0.0)
    taus[1, 2] = tau
    ones = np.ones(shape)
    return RarityScores(
        49, np.arange(9), np.arange(9), np.ones((*shape, 9)), taus, taus - interval, taus + interval, 0 * ones,
        null * ones, -null * ones, p_all * ones, p_all * ones, ones, strongest, True, 0,
    )  # fmt: skip


def rare(more, n=N):
    rare_drop = np.round(noisy(10 + more, (n, 5)))
    common_drop = np.round(noisy(10, (n, 5)))
    positions = np.tile(np.arange(5), (n, 1))
    return RareTokenEffect(positions, positions + 9, rare_drop, common_drop, np.full(n, 50), 0, 0, 0, 0, 0, 0)


def others(values):
    return group(values, start=1000)


def em(middle):
    """EMs of 200 paragraphs: 60 whole, this many between, the others near nothing."""
    return np.array([50] * 60 + [25] * middle + [3] * (140 - middle))


PAIRS = "holds", "does not hold"
# (what it is, present, absent): each gives an Outcome.
SYNTHETIC = [
    ("middle", lambda: recitation.middle(group(em(4)), C, 0), lambda: recitation.middle(group(em(90)), C, 0)),
    (
        "separation",
        lambda: recitation.separation(group(noisy(0.1, N, 0.05)), others(noisy(2, N, 0.1)), 0),
        lambda: recitation.separation(group(noisy(2, 60, 0.5)), others(noisy(2, 60, 0.5)), 0),
    ),
    (
        "corruption",
        lambda: recitation.corruption(group(drops(8)), others(drops(25)), C, 0),
        lambda: recitation.corruption(group(drops(20)), others(drops(20)), C, 0),
    ),
    (
        "concentration",
        lambda: recitation.concentration(group(drops(8, worst=4)), others(drops(25)), 0),
        lambda: recitation.concentration(group(drops(8)), others(drops(25)), 0),
    ),
    (
        "early_break",
        lambda: recitation.early_break(group(drops(8, worst=2)), C, 0),
        lambda: recitation.early_break(group(drops(8)), C, 0),
    ),
    (
        "rarity_cost",
        lambda: recitation.rarity_cost(rare(8), group(np.zeros(N)), C, 0),
        lambda: recitation.rarity_cost(rare(0), group(np.zeros(N)), C, 0),
    ),
    (
        "layer_share",
        lambda: storage.layer_share(group(gradients(0.6, 1)), others(gradients(0.3, 5)), 0),
        lambda: storage.layer_share(group(gradients(0.3, 1)), others(gradients(0.3, 5)), 0),
    ),
    (
        "gradient_size",
        lambda: storage.gradient_size(group(gradients(0.6, 1)), others(gradients(0.3, 5)), 0),
        lambda: storage.gradient_size(group(gradients(0.6, 7)), others(gradients(0.3, 5)), 0),
    ),
    (
        "component",
        lambda: storage.component(
            group(gradients(0.5, 1, winner=(1, 2))), others(gradients(0.5, 5)), NAMES_OF_COMPONENTS, 0
        ),
        None,
    ),
    ("rare_head", lambda: storage.rare_head([rarity(-0.6)], N, 3), lambda: storage.rare_head([rarity(0.1)], N, 3)),
    (
        "needed",
        lambda: storage.needed(group(noisy(0.9, N, 0.1)), others(noisy(0, N, 0.02)), after(N), (1, 2), 0),
        lambda: storage.needed(group(noisy(0, N, 0.02)), others(noisy(0, N, 0.02)), after(N), (1, 2), 0),
    ),
    (
        "as_well",
        lambda: unlearning.as_well(group(noisy([20, 20], (N, 2))), 0.1, 0.1, C, 0),
        lambda: unlearning.as_well(group(noisy([45, 20], (N, 2))), 0.1, 0.1, C, 0),
    ),
    (
        "random_fails",
        lambda: unlearning.random_fails(group(noisy([49, 20], (N, 2))), C, 0),
        lambda: unlearning.random_fails(group(noisy([20, 20], (N, 2))), C, 0),
    ),
    (
        "editing_is_harder",
        lambda: unlearning.editing_is_harder(group(noisy([35, 20], (N, 2))), 9, C, 0),
        lambda: unlearning.editing_is_harder(group(noisy([20, 20], (N, 2))), 9, C, 0),
    ),
    (
        "resistance",
        lambda: unlearning.resistance(group(noisy(30, N)), others(noisy(10, N)), C, 0),
        lambda: unlearning.resistance(group(noisy(10, N)), others(noisy(10, N)), C, 0),
    ),
]


def after(n):
    return SimpleNamespace(em=np.full(n, 9))


@pytest.mark.parametrize(("present", "absent"), [pair[1:] for pair in SYNTHETIC], ids=[s[0] for s in SYNTHETIC])
def test_an_effect_that_is_there_holds_and_one_that_is_not_does_not(present, absent):
    found = present()
    assert found.verdict == "holds"
    assert found.low <= found.effect <= found.high
    assert "leaves it open" not in found.says
    assert found.best >= 0
    if absent is not None:
        lost = absent()
        assert lost.verdict == "does not hold"
        assert lost.low <= lost.effect <= lost.high
        if told := re.search(r"it would take (at most )?(\S+) to matter", lost.says):
            most, least = told.groups()
            assert lost.low > float(least) if most else lost.high < float(least)
        else:
            assert lost.high < 0 or re.search(r"is (few|as well|often)|separates|times the|shuffled ranks", lost.says)


def test_a_component_is_chosen_on_one_half_and_measured_on_the_other():
    found = storage.component(group(gradients(0.5, 1, (3, 1))), others(gradients(0.5, 5)), NAMES_OF_COMPONENTS, 0)
    assert "L3 W_Q H1" in found.says
    assert found.verdict == "holds"
    # Where nothing stands out, what stands out in one half by chance does not in the other.
    luck = [
        storage.component(group(gradients(0.5, 1)), others(gradients(0.5, 5)), NAMES_OF_COMPONENTS, seed)
        for seed in range(8)
    ]
    assert all(found.verdict != "holds" for found in luck)


def test_a_gap_of_one_layout_against_a_naive_loop():
    ours, theirs = drops(8), drops(25)
    found = recitation.corruption(group(ours), others(theirs), C, 0)
    by_hand = sum(sum(row) / P for row in theirs) / N - sum(sum(row) / P for row in ours) / N
    assert found.effect == pytest.approx(by_hand)
    shares = [sorted(row)[-5:] for row in ours]
    share = sum(sum(top) / sum(row) for top, row in zip(shares, ours, strict=True)) / N
    assert f"a share of {share:.3g} of what" in recitation.concentration(group(ours), others(theirs), 0).says
    wins = [(a < b) + 0.5 * (a == b) for a in (1.0, 2.0, 3.0) for b in (2.0, 4.0)]
    few = group([1.0, 2.0, 3.0] * 4), others([2.0, 4.0] * 6)
    assert recitation.separation(*few, 0).effect == pytest.approx(sum(wins) / len(wins))


def test_few_weights_that_do_better_than_all_are_as_good():
    assert unlearning.as_well(group(noisy([5, 20], (N, 2))), 0.1, 0.1, C, 0).verdict == "holds"


def test_what_lies_in_between_is_left_open():
    wide = group(np.tile([[50.0, 0.0], [0.0, 50.0]], (10, 1)))
    found = unlearning.random_fails(wide, C, 0)
    assert found.verdict == "inconclusive"
    assert "leaves it open" in found.says


def test_a_head_must_beat_every_null_that_was_asked():
    assert storage.rare_head([rarity(-0.6), rarity(-0.6)], N, 3).verdict == "holds"
    assert storage.rare_head([rarity(-0.6), rarity(-0.6, p_all=0.4)], N, 3).verdict == "inconclusive"
    assert storage.rare_head([rarity(-0.6), rarity(-0.6, null=-0.9)], N, 3).verdict == "does not hold"
    with pytest.raises(TooLittle, match="could be ranked"):
        storage.rare_head([rarity(math.nan, strongest=None)], N, 3)
    assert "p over all heads leaves it open" in storage.rare_head([rarity(-0.6), rarity(-0.6, p_all=0.4)], N, 3).says


def test_a_head_that_is_less_drawn_to_rare_tokens_than_its_places_explain_is_not_drawn_to_them():
    """Its p is small under that null too, which is two-sided; another head that every null tells is taken instead."""
    shape = (LAYERS, 4)
    free, by_place = rarity(-0.4), replace(rarity(-0.4), null_mean=np.full(shape, -0.8))
    assert storage.strongest([free]) == (1, 2)
    assert storage.strongest([free, by_place]) is None
    tau, null = free.tau.copy(), np.full(shape, -0.1)
    tau[3, 1], null[1, 2] = -0.3, -0.8
    assert storage.strongest([replace(free, tau=tau), replace(free, tau=tau, null_mean=null)]) == (3, 1)


def test_clusters_count_once():
    """Ten copies of each of twelve paragraphs say no more than the twelve: the interval is as wide."""
    values = noisy(0.3, 12)
    low, high = bootstrap((group(values),), lambda w: mean(w[0], values), 0)
    copies = np.repeat(values, 10)
    own = group(copies, np.repeat(np.arange(12), 10))
    low_copies, high_copies = bootstrap((own,), lambda w: mean(w[0], copies), 0)
    assert (low_copies, high_copies) == pytest.approx((low, high), abs=1e-9)
    alone = bootstrap((group(copies),), lambda w: mean(w[0], copies), 0)
    assert alone[1] - alone[0] < 0.5 * (high - low)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        a, b = generator.normal(3, 1, 30), generator.normal(1, 1, 30)
        _, low, high = difference(group(a), others(b), seed)
        inside += low <= 2 <= high
    assert 86 <= inside <= 100


def test_the_rule_of_verdicts():
    assert judge(0.1, 2, least=1) == "holds"
    assert judge(-0.5, 0.9, least=1) == "does not hold"  # even its upper end would not matter
    assert judge(0.1, 0.9, least=1) == "does not hold"
    assert judge(-0.5, 2, least=1) == "inconclusive"
    assert judge(0.8, 0.95, beyond=0.9) == "inconclusive"


# --------------------------------------------------------------------------------------------------- never a number


@pytest.mark.parametrize("n", [0, 1, FEWEST - 1])
@pytest.mark.parametrize(
    "verdict",
    [
        lambda a, b: recitation.middle(group(a[:, 0, 0]), C, 0),
        lambda a, b: recitation.separation(group(a[:, 0, 0]), others(b[:, 0, 0]), 0),
        lambda a, b: recitation.corruption(group(a[:, 0]), others(b[:, 0]), C, 0),
        lambda a, b: recitation.concentration(group(a[:, 0]), others(b[:, 0]), 0),
        lambda a, b: recitation.early_break(group(a[:, 0]), C, 0),
        lambda a, b: recitation.rarity_cost(rare(9, len(a)), group(a[:, 0, 0]), C, 0),
        lambda a, b: storage.layer_share(group(a), others(b), 0),
        lambda a, b: storage.gradient_size(group(a), others(b), 0),
        lambda a, b: storage.component(group(a), others(b), ("one",) * P, 0),
        lambda a, b: storage.needed(group(a[:, 0, 0]), others(b[:, 0, 0]), after(1), (0, 0), 0),
        lambda a, b: unlearning.as_well(group(a[:, 0, :2]), 0, 0, C, 0),
        lambda a, b: unlearning.random_fails(group(a[:, 0, :2]), C, 0),
        lambda a, b: unlearning.editing_is_harder(group(a[:, 0, :2]), 0, C, 0),
        lambda a, b: unlearning.resistance(group(a[:, 0, 0]), others(b[:, 0, 0]), C, 0),
    ],
)
def test_too_few_unrelated_paragraphs_give_a_reason_and_no_number(verdict, n):
    few, many = np.abs(noisy(9, (n, 3, P))), np.abs(noisy(9, (N, 3, P)))
    with pytest.raises(TooLittle, match="at least 10"):
        verdict(few, many)
    # Many paragraphs in one cluster are one.
    with pytest.raises(TooLittle, match="at least 10"):
        recitation.separation(group(np.ones(N), np.zeros(N, int)), others(np.ones(N)), 0)


def test_a_finding_has_all_its_numbers_or_none():
    words = {"claim": "a", "sentence": "", "seed": 0, "paper": None, "paper_says": "", "unit": "", "says": ""}
    words |= {"paragraph": "", "view": "perturb"}
    Finding(verdict="inconclusive", effect=None, interval=None, n=0, **words).checked()
    Finding(verdict="holds", effect=1.0, interval=(0.5, 2.0), n=9, **words).checked()
    for wrong in (
        {"verdict": "holds", "effect": None, "interval": None, "n": 0},
        {"verdict": "inconclusive", "effect": 1.0, "interval": None, "n": 9},
        {"verdict": "inconclusive", "effect": None, "interval": None, "n": 9},
        {"verdict": "holds", "effect": math.nan, "interval": (0.0, 1.0), "n": 9},
        {"verdict": "holds", "effect": 1.0, "interval": (0.0, math.inf), "n": 9},
    ):
        with pytest.raises(ValueError, match="numbers"):
            Finding(**wrong, **words).checked()


# -------------------------------------------------------------------------------------------------- the whole claims

MODEL = SimpleNamespace(name="m", fingerprint="f", dtype="fp32", device="cpu", attention="eager", layers=4, heads=4)


def make_setting(memorized, other, partly=0, families=False, quick=True, seed=0):
    n = memorized + other + partly
    generator = np.random.default_rng(3)
    paragraphs = ParagraphSet(
        "made", "made", P, tuple(f"{generator.integers(2**32):08x}" for _ in range(n)),
        generator.integers(0, 5000, (n, P + C)), np.arange(5000, 0, -1), "corpus", np.arange(n) % 40,
        np.zeros(n, np.int64) if families else np.full(n, -1), ("",) * n, ("",) * n,
    )  # fmt: skip
    em = np.array([C] * memorized + [25] * partly + [2] * other, np.int64)
    nll = np.array([0.1] * memorized + [0.5] * partly + [2.0] * other, np.float32)
    return Setting(paragraphs, em, nll, MODEL, quick, seed)


def finding(claim, setting, answer=lambda request: None):
    steps = claim.steps(setting)
    try:
        wanted = next(steps)
    except StopIteration as stop:
        return stop.value
    try:
        while True:
            try:
                results = [answer(request) for request in wanted]
            except UsageError as error:
                wanted = steps.throw(error)
            else:
                wanted = steps.send(results)
    except StopIteration as stop:
        return stop.value


@settings(max_examples=25)
@given(memorized=st.integers(0, 12), other=st.integers(0, 12), families=st.booleans(), quick=st.booleans())
def test_never_a_number_without_enough_data(memorized, other, families, quick):
    if memorized + other == 0:
        return
    setting = make_setting(memorized, other, families=families, quick=quick)

    def answer(request):
        raise UsageError("It was asked.")

    for claim in CLAIMS:
        found = finding(claim, setting, answer)
        clusters = (1, 1) if families else (memorized, other)
        if min(clusters) < FEWEST and claim.name != "all-or-nothing":
            assert found.verdict == "inconclusive"
            assert (found.effect, found.interval, found.n, found.paragraph) == (None, None, 0, "")
            assert found.says.endswith(".")
            assert not re.search(r"\bnan\b", found.says)
            first_of_memorized = claim.name in ("rare-head", "head-needed", "rare-tokens", "editing")
            if clusters[0] < FEWEST or not first_of_memorized:
                assert found.says != "It was asked.", "the model was set to work for nothing"


def test_without_memorized_paragraphs_and_with_one_paragraph_the_reason_is_said():
    for setting, reason in (
        (make_setting(0, 40), "no memorized paragraph"),
        (make_setting(1, 0), "set of one paragraph|there is 1"),
    ):
        for claim in CLAIMS:
            assert re.search(reason, finding(claim, setting, refuse).says), claim.name


def refuse(request):
    raise UsageError("It was asked.")


def test_a_model_that_cannot_answer_leaves_the_claim_open_and_says_what_it_lacks():
    def lacks(request):
        raise UsageError("Ablation needs an adapter for Foo.")

    for name in ("rare-head", "head-needed", "few-weights", "lower-layers"):
        found = finding(CLAIMS[NAMES.index(name)], make_setting(20, 20), lacks)
        assert found.verdict == "inconclusive"
        assert found.effect is None
        assert found.says == "Ablation needs an adapter for Foo."


def test_a_run_that_broke_off_is_no_measurement():
    stopped = SimpleNamespace(em=np.array([[50]]), stopped="loss", reason="The loss was inf.", kl=np.array([0.0]))
    found = finding(CLAIMS[NAMES.index("few-weights")], make_setting(20, 40), lambda request: stopped)
    assert found.verdict == "inconclusive"
    assert "10 of 10 runs broke off" in found.says
    assert found.effect is None


def test_claims_ask_what_the_explorer_asks_and_repeat_exactly():
    """The sweeps are those of the Perturb tab, so what one has computed the other finds; a seed draws others."""
    setting = make_setting(40, 40)
    claim = CLAIMS[NAMES.index("harder-to-corrupt")]
    requests = next(claim.steps(setting))
    assert all(isinstance(request, Sweep) for request in requests)
    half = len(requests) // 2
    assert {r.reference for r in requests[:half]} == {"true"}
    assert {r.reference for r in requests[half:]} == {"own"}
    assert next(claim.steps(make_setting(40, 40))) == requests
    assert next(claim.steps(make_setting(40, 40, seed=1))) != requests
    assert len(next(claim.steps(make_setting(60, 60, quick=False)))) > len(requests)
    question = claim.question(setting)
    assert question == claim.question(make_setting(40, 40))
    changed = replace(setting, paragraphs=replace(setting.paragraphs, family=np.zeros(80, np.int64)))
    assert claim.question(changed) != question


def test_related_paragraphs_are_one_cluster_by_words_or_by_family():
    setting = make_setting(6, 0)
    tokens = setting.paragraphs.tokens.copy()
    tokens[1] = tokens[0]
    tokens[1, -1] = 4999
    family = np.array([-1, 7, 7, -1, 8, 8])
    setting = replace(setting, paragraphs=replace(setting.paragraphs, tokens=tokens, family=family))
    assert setting.related(range(6)).tolist() == [0, 0, 0, 1, 2, 2]


def test_a_sample_takes_one_of_each_cluster_first():
    setting = make_setting(60, 0)
    family = np.arange(60) // 4  # 15 families of 4
    setting = replace(setting, paragraphs=replace(setting.paragraphs, family=family))
    assert len(set(family[setting.sample("memorized", 15)])) == 15


def test_a_sample_looks_through_the_whole_stratum_where_its_beginning_is_all_alike():
    setting = make_setting(400, 0)
    first = setting.stratum("memorized")[:320]
    family = np.arange(400)
    family[first] = 1000
    setting = replace(setting, paragraphs=replace(setting.paragraphs, family=family))
    assert len(set(family[setting.sample("memorized", 40)])) == 40
    family[:] = np.where(np.arange(400) < 8, np.arange(400), 1000)
    with pytest.raises(TooLittle, match="has 400 memorized paragraphs in 9 clusters"):
        replace(setting, paragraphs=replace(setting.paragraphs, family=family)).sample("memorized", 40)


def test_a_row_without_numbers_is_in_no_stratum():
    setting = make_setting(20, 20)
    setting.nll[[3, 25]] = np.nan
    assert 3 not in setting.stratum("memorized")
    assert 25 not in setting.stratum("non-memorized")
    assert len(setting.stratum("memorized")) == 19


def test_a_text_that_is_no_other_text_is_not_taught():
    """Where no replacement changes what the model says, an edit would teach the paragraph itself, and "fail" to."""
    setting, taught = make_setting(24, 40), []
    own = {setting.paragraphs.row(row)[:P]: setting.paragraphs.row(row) for row in range(24)}
    robust = setting.paragraphs.row(int(setting.stratum("memorized")[0]))

    def answer(request):
        if isinstance(request, Sweep):
            after = np.full((P, 1), 5 if request.paragraph != robust else C)
            return SimpleNamespace(drops=lambda: C - after[:, 0], replacements=np.full((P, 1), 4999))
        if isinstance(request, Continue):
            row = own.get((*robust[:1], *request.prompt[1:])) if request.prompt[1:] == robust[1:P] else None
            return SimpleNamespace(tokens=np.array(robust[P:] if row else [7] * C))
        taught.extend(request.run.alternatives)
        edit = request.run.objective == "edit"
        return SimpleNamespace(
            em=np.array([[50], [30 if edit else 0]]), taught_em=np.array([[0], [40]]), stopped="steps", reason=""
        )

    found = finding(CLAIMS[NAMES.index("editing")], setting, answer)
    assert robust not in taught
    assert found.n == len(taught) == 10
    assert found.verdict == "holds"


def test_whoever_has_the_results_gets_the_same_verdict_as_by_hand():
    setting = make_setting(20, 20)
    memorized = {setting.paragraphs.row(row) for row in range(20)}

    def answer(request):
        assert isinstance(request, ParameterGradients)
        size = 1 if request.paragraphs[0] in memorized else 4
        values = np.full((1, 4, 3), size / 12, np.float32)
        return ComponentGradients(("a", "b", "c"), values, values, values, np.ones(1), 0)

    found = finding(CLAIMS[NAMES.index("smaller-gradients")], setting, answer)
    assert found.verdict == "holds"
    assert found.effect == pytest.approx(0.25)
    assert found.paper == pytest.approx(9.71 / 53.01)
    assert found.n == 40
    assert found.paragraph in setting.paragraphs.ids


@pytest.fixture(scope="module")
def known():
    """A set of 30 memorized paragraphs, 3 between and 30 others, and answers to every question that claims ask."""
    setting = make_setting(30, 30, partly=3)
    memorized = {setting.paragraphs.row(row) for row in range(30)}

    def gradients_of(paragraph):
        ours = paragraph in memorized
        low, high = (0.6, 0.4) if ours else (0.3, 0.7)
        values = np.repeat([low, low, high, high], 3).reshape(1, LAYERS, 3) / 6
        if ours:  # L1 b has .35 of the gradient, the others of the lower layers .05 each
            values[0, :2], values[0, 1, 1] = 0.05, 0.35
        values = (values * (1 if ours else 4)).astype(np.float32)
        return ComponentGradients(("a", "b", "c"), values, values, values, np.ones(1), 0)

    def answer(request):
        if isinstance(request, Sweep):
            drops = np.full(P, 25.0)
            if request.paragraph in memorized:
                drops[:5], drops[5:] = 40, 300 / 45
            return SimpleNamespace(drops=lambda: drops, replacements=np.full((P, 1), 4999))
        if isinstance(request, Continue):
            return SimpleNamespace(tokens=np.full(C, 7))
        if isinstance(request, ParameterGradients):
            (paragraph,) = request.paragraphs
            return gradients_of(paragraph)
        if isinstance(request, Rarity):
            return rarity(-0.6)
        if isinstance(request, Ablated):
            assert request.heads == ((1, 2),)
            of = [row in memorized for row in request.request.paragraphs]
            return SimpleNamespace(nll=np.where(of, 0.9, 2.05), em=np.full(len(of), 9))
        if isinstance(request, RareTokens):
            n = len(request.paragraphs)
            positions = np.tile(np.arange(5), (n, 1))
            return RareTokenEffect(
                positions, positions + 9, np.full((n, 5), 12), np.full((n, 5), 9), np.full(n, 50), *[0] * 6
            )
        run = request.run
        (target,) = run.targets
        if target in memorized:
            left = 30 if run.objective == "edit" else {"dense": 10, "gradient": 20, "random": 45}[run.mask]
        else:
            assert (run.mask, target[P:]) == ("gradient", (7,) * C)
            left = 12
        kl = {"dense": 0.25, "gradient": 0.5, "random": 0.125}[run.mask]
        return SimpleNamespace(
            em=np.array([[50], [left]]),
            taught_em=np.array([[0], [40]]),
            kl=np.array([0, kl]),
            stopped="steps",
            reason="",
        )

    return setting, answer


@pytest.mark.parametrize(
    ("name", "effect", "says"),
    [
        ("all-or-nothing", 3 / 63, "30 are recited whole, and 3 lie between"),
        ("lower-nll", 1.0, "30 memorized paragraphs is 0.1 .* 30 non-memorized ones 2"),
        ("harder-to-corrupt", 15.0, "12 memorized paragraphs by 10 .* by 25"),
        ("few-tokens", 0.3, "share of 0.4 .* and 0.1 in 12"),
        ("early-token", 1.0, "In 12 of 12"),
        ("lower-layers", 0.3, "share of 0.6 .* and 0.3 of"),
        ("smaller-gradients", 0.25, "is 1, that of 24 non-memorized ones 4"),
        ("component", 7.0, "L1 b, has 7"),
        ("rare-head", -0.6, "L1H2 goes"),
        ("head-needed", 0.75, "Without L1H2 .* rises by 0.8 .* fall.* to 9.* by 0.05"),
        ("rare-tokens", 3.0, "rare token costs 12 EM, a common one nearby 9"),
        ("few-weights", 10.0, "an EM of 20 .* and 10 where all .* 0.5 and 0.25 nats"),
        ("random-weights", 25.0, "an EM of 45 .* and 20 where"),
        ("editing", 10.0, r"an EM of 30 .* to 40\), of unlearning 20"),
        ("memorized-resist", 8.0, "an EM of 20 in 10 memorized .* and 12 of what"),
    ],
)
def test_every_claim_takes_the_answers_for_what_they_are(name, effect, says, known):
    """Which are of memorized paragraphs, of which mask, and which way round they are compared."""
    setting, answer = known
    found = finding(CLAIMS[NAMES.index(name)], setting, answer)
    assert found.effect == pytest.approx(effect, rel=1e-5)
    assert re.search(says, found.says), found.says


def test_names_and_views():
    assert len(set(NAMES)) == len(CLAIMS) == 15
    assert {claim.view for claim in CLAIMS} <= {"perturb", "gradients", "attention", "heads", "patch", "unlearn"}
    assert [claim.name for claim in testing.claims_named(("rare-head", "all-or-nothing"))] == [
        "all-or-nothing",
        "rare-head",
    ]
    with pytest.raises(UsageError, match="'rarehead' is no claim; there are all-or-nothing"):
        testing.claims_named(("rarehead",))
    assert isinstance(CLAIMS[0].question(make_setting(1, 1)), ClaimTest)
    assert testing.cost(ExactMatch(((1, 2), (3, 4)))) == 2


def test_claims_need_no_torch():
    program = (
        "import sys, memloc_core.findings.overview, memloc_tui.findings;"
        "print({'torch', 'transformers', 'datasets', 'textual'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "set()"


# ------------------------------------------------------------------------------------------------------- the overview


def test_counts_and_strata_against_a_naive_loop():
    setting = make_setting(10, 20, partly=5)
    rows = by_count(setting)
    counts = setting.paragraphs.repetitions.tolist()
    assert sum(row.n for row in rows) == 35
    for row in rows:
        inside = [i for i, count in enumerate(counts) if row.low <= count <= row.high]
        assert row.n == len(inside)
        assert row.em == pytest.approx(sum(int(setting.em[i]) for i in inside) / len(inside))
        assert row.memorized == sum(setting.em[i] == C for i in inside)
        assert row.row in inside
    strata = by_stratum(setting, lambda row: "{ a; }\n b();\n /* c */" if row == 0 else "Some words of a letter.")
    assert [(s.low, s.high, s.n) for s in strata] == [(50, 50, 10), (30, 49, 0), (11, 29, 5), (0, 10, 20)]
    assert strata[0].code == pytest.approx(0.1)
    assert strata[0].clusters == 10
    unique = [len(set(row)) / 100 for row in setting.paragraphs.tokens[:10].tolist()]
    assert strata[0].unique == pytest.approx(sum(unique) / 10)
    assert math.isnan(strata[1].nll)
    assert strata[1].row == -1
    assert sum(len(members) for _, _, members in strata_of(setting)) == 35
    unknown = replace(setting, paragraphs=replace(setting.paragraphs, repetitions=np.full(35, -1)))
    assert by_count(unknown) == []


def test_code_is_told_from_prose():
    assert looks_like_code("#include <stdio.h>\nint main() {\n  return 0;\n}\n")
    assert looks_like_code("<div><p>Hello</p></div>")
    assert not looks_like_code("Dear Sir, I write to you (again) about the letter of May 3; please answer.")


def test_the_gradient_shift_of_a_stratum():
    def one(values):
        array = np.array([values], np.float32)[..., None]
        return ComponentGradients(("block",), array, array, array, np.ones(1), 0)

    shares, total = shift([one([3.0, 1.0]), one([1.0, 1.0]), one([0.0, 0.0])])
    assert shares == pytest.approx([(0.75 + 0.5) / 2, (0.25 + 0.5) / 2])
    assert total == pytest.approx(2.0)
    assert shift([]) is None
