"""Patching between a paragraph and its perturbed twin against naive hooks, rare-token causality, and the codec."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from memloc_core import codec, requests
from memloc_core.analyses.rare_tokens import matched_positions
from memloc_core.engine import ANALYSES, Engine
from memloc_core.errors import UsageError
from memloc_core.requests import (
    Ablated,
    ActivationGradients,
    ActivationPatching,
    Answer,
    Attention,
    AttentionPattern,
    AttributionPatching,
    ContrastGradients,
    HeadAblation,
    ParameterGradients,
    Perturb,
    RareTokens,
    Rarity,
)
from tests.conftest import result
from tests.unit.families import KNOWN, paragraphs, tiny
from tests.unit.waits import Waits

P = 12  # prefix tokens of the 20
ROW = paragraphs(1)[0]
TWIN = ((4, (ROW[4] + 1) % 61), (7, (ROW[7] + 1) % 61))


def perturbed(row, replacements):
    row = list(row)
    for position, token in replacements:
        row[position] = token
    return row


def naive(lm, base, source, site, layer, place, scores):
    """NLL and logit of a run with one activation from another run, by plain hooks over whole rows."""
    block, family = lm.adapter.blocks[layer], lm.adapter.family
    module = {
        "residual": block,
        "heads": block.get_submodule(family.out),
        "mlp": block.get_submodule(family.mlp_out),
    }[site]
    d = lm.adapter.head_dim
    at = (slice(None), slice(None), slice(place * d, (place + 1) * d)) if site == "heads" else (slice(None), place)
    taken = []

    def take(module, args, output=None):
        taken.append((args[0] if site != "mlp" else output)[at].clone())

    def put(module, args, output=None):
        x = (args[0] if site != "mlp" else output).clone()
        x[at] = taken[0]
        return (x, *args[1:]) if site != "mlp" else x

    register = module.register_forward_hook if site == "mlp" else module.register_forward_pre_hook
    with torch.inference_mode():
        handle = register(take)
        lm.model(input_ids=torch.tensor([source]))
        handle.remove()
        handle = register(put)
        logits = lm.model(input_ids=torch.tensor([base])).logits[0, P - 1 : -1]
        handle.remove()
    targets = torch.tensor(base[P:])
    nll = -logits.log_softmax(-1).gather(-1, targets[:, None]).mean()
    return float(nll), float(logits[scores.changed, clean_token(lm, scores)])


def clean_token(lm, scores):
    with torch.inference_mode():
        return int(lm.model(input_ids=torch.tensor([ROW])).logits[0, P - 1 + scores.changed].argmax())


@pytest.mark.parametrize("family", KNOWN)
def test_every_patch_is_that_of_a_naive_hook(family):
    lm = tiny(family)
    scores = result(lm, ActivationPatching(ROW, TWIN, P))
    twin = perturbed(ROW, TWIN)
    assert scores.first == 4
    assert scores.residual.shape == scores.mlp.shape == (2, 2, 3, 15)
    assert scores.heads.shape == (2, 2, 3, 4)
    assert scores.cells == 2 * 3 * (15 + 15 + 4)
    for site in requests.PATCH_SITES:
        values = getattr(scores, site)
        assert np.isfinite(values).all()
        for layer, place in ((0, 0), (0, 3), (1, 2), (2, 1), *(((1, 9), (2, 14)) if site != "heads" else ())):
            at = place if site == "heads" else place + scores.first
            for direction, (base, source) in enumerate(((twin, ROW), (ROW, twin))):
                expected = naive(lm, list(base), list(source), site, layer, at, scores)
                np.testing.assert_allclose(values[direction, :, layer, place], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_patching_everything_restores_the_clean_run_exactly(family):
    """With one token replaced, what enters the first layer differs at that position alone."""
    lm = tiny(family, torch.float64)
    scores = result(lm, ActivationPatching(ROW, TWIN[:1], P))
    np.testing.assert_allclose(scores.residual[0, :, 0, 0], scores.clean, rtol=1e-6)
    np.testing.assert_allclose(scores.residual[1, :, 0, 0], scores.perturbed, rtol=1e-6)
    np.testing.assert_allclose(scores.effects("residual")[:, :, 0, 0], 1, rtol=1e-5)
    assert (scores.effects("residual")[:, :, 0, 1:] == 0).all()
    # And layer by layer: the clean run's z and MLP outputs, all of them, in the perturbed embedding's place.
    rows = torch.tensor([ROW, perturbed(ROW, TWIN)])
    kept = {site: [] for site in ("residual", "z", "mlp")}
    everywhere = range(3)
    with torch.inference_mode():
        with lm.adapter.hooked(*((site, i, seen.append) for site, seen in kept.items() for i in everywhere)):
            clean = lm.hidden(rows[:1])
        hooks = [(site, i, lambda x, s=s, i=i: s[i]) for site, s in kept.items() for i in everywhere]
        with lm.adapter.hooked(*hooks):
            assert torch.equal(lm.hidden(rows[1:]), clean)


def test_both_runs_are_those_of_a_perturbation():
    lm = tiny("gpt_neo")
    scores, plain = result(lm, ActivationPatching(ROW, TWIN, P, cells=())), result(lm, Perturb(ROW, TWIN, P))
    assert scores.clean[0] == pytest.approx(plain.nll_before, rel=1e-5)
    assert scores.perturbed[0] == pytest.approx(plain.nll_after, rel=1e-5)
    np.testing.assert_array_equal(scores.reference, plain.reference)


def test_the_logit_is_of_the_first_token_that_changes_or_of_that_which_loses_most():
    lm, changes = tiny("gpt2"), []
    for row in paragraphs(8):
        own = result(lm, AttributionPatching(row, ((4, 9), (7, 2)), P, "own"))
        plain = result(lm, Perturb(row, ((4, 9), (7, 2)), P, "own"))
        np.testing.assert_array_equal(own.reference, plain.reference)
        assert own.clean[0] == pytest.approx(plain.nll_before, rel=1e-5)
        clean = [*row[:P], *plain.reference.tolist()]
        with torch.inference_mode():
            p, p_then = (
                lm.model(input_ids=torch.tensor([ids])).logits[0, P - 1 : -1].log_softmax(-1)[range(8), clean[P:]]
                for ids in (clean, perturbed(clean, ((4, 9), (7, 2))))
            )
        # Of the model's own continuation the first changed token is the first mismatch.
        assert own.changed == (plain.em_after if own.changes else int((p - p_then).argmax()))
        assert own.changes == (plain.em_after < 20 - P)
        changes.append(own.changes)
    assert set(changes) == {True, False}


@pytest.mark.parametrize("family", KNOWN)
def test_the_estimate_is_the_slope_of_the_exact_patch(family):
    """A perturbation made small: interpolate the embedding, and the estimate becomes exact."""
    lm = tiny(family, torch.float64)
    token = TWIN[0][1]
    embedding = lm.model.get_input_embeddings().weight
    kept = embedding.clone()
    with torch.no_grad():
        embedding[token] = embedding[ROW[4]] + 1e-3 * (embedding[token] - embedding[ROW[4]])
    try:
        estimate = result(lm, AttributionPatching(ROW, TWIN[:1], P))
        exact = result(lm, ActivationPatching(ROW, TWIN[:1], P))
    finally:
        with torch.no_grad():
            embedding.copy_(kept)
    assert (estimate.exact, exact.exact) == (False, True)
    assert estimate.forwards == 1
    bases = np.stack([exact.perturbed, exact.clean])[:, :, None, None]
    for site in requests.PATCH_SITES:
        change, expected = getattr(estimate, site) - bases, getattr(exact, site) - bases
        assert np.abs(change - expected).max() <= 0.05 * np.abs(expected).max() + 2e-6


def test_some_cells_alone_have_the_scores_they_have_among_all():
    lm = tiny("llama")
    whole = result(lm, ActivationPatching(ROW, TWIN, P))
    cells = result(lm, AttributionPatching(ROW, TWIN, P)).top(2)
    assert len(cells) == 6
    some = result(lm, ActivationPatching(ROW, TWIN, P, cells=cells))
    assert some.cells == 12
    assert some.forwards <= 5
    for site in requests.PATCH_SITES:
        chosen = np.zeros(getattr(whole, site).shape, bool)
        for name, layer, place in cells:
            if name == site:
                chosen[:, :, layer, place if site == "heads" else place - whole.first] = True
        assert np.isnan(getattr(some, site)[~chosen]).all()
        np.testing.assert_allclose(getattr(some, site)[chosen], getattr(whole, site)[chosen], rtol=1e-4, atol=1e-5)


def test_the_top_cells_restore_most_and_of_equals_the_lowest_layer_comes_first():
    """The NLL is 1 in the clean run and 3 in the perturbed one: what a patch brings down by 2 restores all."""

    def values(restored):
        told = np.full((2, 2, *np.shape(restored)), 1.5, np.float32)  # breaking, and the logit, count for nothing
        told[0, 0] = restored
        return told

    nan = np.nan
    positions = values([[3.0, 2.0, nan], [1.001, 2.6, 3.2], [0.5, 1.0, 4.4]])
    scores = replace(
        result(tiny("llama"), AttributionPatching(ROW, TWIN, P)),
        clean=np.array([1, 5], np.float32),
        perturbed=np.array([3, 2], np.float32),
        residual=positions,
        heads=values([[2.9, 2.8, 2.7, 2.6], [2.9, 3.0, 2.0, nan], [3, 3, 3, 3]]),
        mlp=positions,
    )
    along = [(1, 4), (2, 4), (2, 5), (2, 6)]  # 0.9995 and 1.25 are 1 like 1.0; then what makes it worse by 0.7
    assert scores.top(4) == (
        *(("residual", *cell) for cell in along),
        *(("heads", *cell) for cell in ((1, 2), (0, 3), (0, 2), (0, 1))),
        *(("mlp", *cell) for cell in along),
    )


def test_patching_takes_far_fewer_forward_passes_than_cells():
    scores = result(tiny("gpt2"), ActivationPatching(paragraphs(1, 60)[0], ((10, 3),), 30))
    assert scores.cells == 2 * 3 * (49 + 49 + 4)
    assert scores.forwards * 5 <= scores.cells


def test_patching_waits_for_the_device_by_pass_and_not_by_cell():
    with Waits() as waits:
        scores = result(tiny("gpt_neo"), ActivationPatching(ROW, TWIN, P))
    assert 0 < waits.times < scores.forwards + 20 < scores.cells / 4


def test_without_a_reusable_prefix_the_scores_are_the_same(monkeypatch):
    lm = tiny("gpt_neo")
    reused = result(lm, ActivationPatching(ROW, TWIN, P))
    monkeypatch.setattr(lm, "reuses_prefix", False)
    whole = result(lm, ActivationPatching(ROW, TWIN, P))
    for site in requests.PATCH_SITES:
        np.testing.assert_allclose(getattr(reused, site), getattr(whole, site), rtol=1e-4, atol=1e-5)


# -- rare tokens ------------------------------------------------------------------------------------------------------


def rare_request(n=11, **more):
    rows = paragraphs(n)
    counts = tuple(tuple(10 * (t + 1) for t in row[:P]) for row in rows)
    return RareTokens(rows, counts, tokens=(58, 59, 60, 57), pairs=2, prefix_length=P, resamples=200, **more)


def test_rare_positions_are_the_rarest_and_their_partners_common_and_near():
    request = rare_request()
    rare, common = matched_positions(np.array(request.counts), request.pairs, request.seed)
    for i, counts in enumerate(request.counts):
        ordered = sorted(counts)
        for a, b in zip(rare[i], common[i], strict=True):
            if a >= 0:
                assert counts[a] <= ordered[1]
                assert counts[b] >= ordered[P // 2]
                assert counts[a] < counts[b]
        assert len(set(common[i][common[i] >= 0].tolist())) == (common[i] >= 0).sum()
    # The first pair of each paragraph takes the nearest of all common tokens.
    for i, counts in enumerate(request.counts):
        half = np.argsort(counts, kind="stable")[P // 2 :]
        assert abs(rare[i, 0] - common[i, 0]) == np.abs(half - rare[i, 0]).min()


@pytest.mark.parametrize("reference", ["true", "own"])
def test_drops_are_those_of_single_perturbations(reference):
    lm, request = tiny("gpt_neo"), rare_request(reference=reference)
    effect = result(lm, request)
    differences = []
    for i, row in enumerate(request.paragraphs):
        pairs = [pair for pair in range(2) if effect.rare[i, pair] >= 0]
        for positions, drops in ((effect.rare, effect.rare_drop), (effect.common, effect.common_drop)):
            for pair in pairs:
                at = int(positions[i, pair])
                there = {row[effect.rare[i, pair]], row[effect.common[i, pair]]}
                possible = {
                    result(lm, Perturb(row, ((at, token),), P, reference)).drop for token in set(request.tokens) - there
                }
                assert drops[i, pair] in possible
        differences.append(np.mean([effect.rare_drop[i, k] - effect.common_drop[i, k] for k in pairs]))
    assert effect.difference == pytest.approx(np.mean(differences))
    assert effect.low <= effect.difference <= effect.high
    assert effect.rare_mean - effect.common_mean == pytest.approx(effect.difference)
    again = result(lm, request)
    assert (again.low, again.high) == (effect.low, effect.high)


# -- the road of every request ----------------------------------------------------------------------------------------

COUNTS = tuple(tuple(10 * (t + 1) for t in row[:P]) for row in paragraphs(12))
EVERY = [
    Ablated(Perturb(ROW, TWIN, P), ((0, 1), (2, 3))),
    ParameterGradients(paragraphs(2), P),
    ContrastGradients(paragraphs(2), paragraphs(2, seed=1), P),
    ActivationGradients(ROW, P),
    Attention(ROW, P),
    AttentionPattern(ROW, 0, 1),
    Rarity(paragraphs(12), COUNTS, P, resamples=20),
    HeadAblation(paragraphs(2), general=paragraphs(1, 9), prefix_length=P),
    AttributionPatching(ROW, TWIN, P),
    ActivationPatching(ROW, TWIN, P, cells=(("residual", 1, 6), ("heads", 0, 2))),
    rare_request(),
]


@pytest.mark.parametrize("request_", EVERY, ids=lambda request_: type(request_).__name__)
def test_every_request_and_answer_survives_the_codec(request_):
    assert type(request_) in ANALYSES
    assert type(request_) in requests.REQUESTS
    asked = codec.decode(codec.encode(request_))
    assert asked == request_
    assert hash(asked) == hash(request_)
    engine = Engine()
    engine.lm = tiny("qwen2")
    steps = list(engine.steps(asked))
    assert all(step.done <= step.total for step in steps)
    for step in steps:
        codec.decode(codec.encode(step))
    given = engine.answer(asked)
    back = codec.decode(codec.encode(given))
    assert isinstance(back, Answer)
    assert back.request == request_
    assert type(back.result) is request_.answer
    for name, value in vars(given.result).items():
        np.testing.assert_array_equal(getattr(back.result, name), value)
        assert not isinstance(value, np.ndarray) or value.dtype in (np.int64, np.float32), name
        assert type(getattr(back.result, name)) is type(value), name
    if not isinstance(request_, Ablated):
        assert given.result.peak_bytes > 0


@pytest.mark.parametrize("request_", EVERY, ids=lambda request_: type(request_).__name__)
def test_in_bfloat16_every_analysis_gives_numbers(request_):
    given = result(tiny("qwen3", torch.bfloat16), request_)
    for name, value in vars(given).items():
        if type(request_) is ActivationPatching and name in requests.PATCH_SITES:
            cells = [(layer, place) for site, layer, place in request_.cells if site == name]
            first = 0 if name == "heads" else given.first
            assert all(np.isfinite(value[:, :, layer, place - first]).all() for layer, place in cells), name
            assert np.isfinite(value).sum() == 4 * len(cells), "both directions and metrics of the cells, and no others"
        elif isinstance(value, np.ndarray):
            assert np.isfinite(value).all(), name


def test_the_stated_peak_is_near_what_was_allocated(demo, demo_paragraphs):
    """On a CPU it is an estimate; the profiler sees every allocation of a tensor."""
    rows = tuple(map(tuple, demo_paragraphs.tokens[:12].tolist()))
    for request_ in (
        ParameterGradients(rows[:2]),
        ContrastGradients(rows[:3], rows[3:6]),
        ActivationGradients(rows[0]),
        HeadAblation(rows[:2]),
        AttributionPatching(rows[0], ((30, 5),)),
        ActivationPatching(rows[0], ((30, 5),)),
    ):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            stated = result(demo, request_).peak_bytes
        events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
        assert 0.6 <= stated / held.max() <= 2, type(request_).__name__


def test_ablated_is_another_key_and_takes_the_inner_requests_urgency_and_version():
    inner = Perturb(ROW, TWIN, P)
    first, second = Ablated(inner, ((0, 1),)), Ablated(inner, ((0, 2),))
    keys = {codec.cache_key(request, "model") for request in (inner, first, second)}
    assert len(keys) == 3
    assert (first.answer, first.urgency, first.version) == (inner.answer, inner.urgency, inner.version)
    assert replace(first, heads=((0, 2),)) == second


@pytest.mark.parametrize(
    ("family", "request_", "says"),
    [
        ("gpt2", ActivationPatching(ROW, (), P), "replace at least one token"),
        ("gpt2", AttributionPatching(ROW, ((4, ROW[4]),), P), "replace at least one token"),
        ("gpt2", ActivationPatching(ROW, ((12, 1),), P), "Position 12 is outside the prefix"),
        ("gpt2", ActivationPatching(ROW, TWIN, P, cells=(("keys", 0, 0),)), "'keys' cannot be patched"),
        ("gpt2", ActivationPatching(ROW, TWIN, P, cells=(("mlp", 3, 5),)), "no layer 3"),
        ("gpt2", ActivationPatching(ROW, TWIN, P, cells=(("heads", 0, 4),)), "no head L0H4"),
        ("gpt2", ActivationPatching(ROW, TWIN, P, cells=(("mlp", 0, 2),)), "differ from 4 to 18"),
        ("opt", ActivationPatching(ROW, TWIN, P), "Activation patching needs"),
        ("gpt2", rare_request(6), "at least 10 paragraphs"),
        ("gpt2", replace(rare_request(), pairs=7), r"1\.\.6 pairs"),
        ("gpt2", replace(rare_request(), tokens=(5,)), "three different common tokens"),
        ("gpt2", replace(rare_request(), counts=((5,) * P,) * 11), "at least 10 paragraphs"),
        ("gpt2", replace(rare_request(), counts=((5,) * 3,) * 11), "one corpus count"),
    ],
)
def test_impossible_questions_are_told_what_is_wrong(family, request_, says):
    with pytest.raises(UsageError, match=says):
        result(tiny(family), request_)
