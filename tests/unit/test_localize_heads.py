"""Heads: attention, rarity and its null, ablation, and any analysis with a head ablated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPTNeoConfig

from memloc_core import statistics
from memloc_core.analyses import rarity
from memloc_core.analyses.attention import attention_rows
from memloc_core.engine import Engine
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import (
    Ablated,
    Attention,
    AttentionPattern,
    ExactMatch,
    HeadAblation,
    OpenModel,
    Perturb,
    Rarity,
    Sweep,
)
from tests.benchmarks.common import peak_bytes
from tests.conftest import result
from tests.unit.families import KNOWN, VOCABULARY, held, paragraphs, tiny

P = 12  # prefix tokens of the 20


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KNOWN)
def test_attention_is_what_transformers_gives_and_sums_to_one(family):
    lm, row = tiny(family), paragraphs(1)[0]
    with torch.no_grad():
        theirs = torch.cat(lm.model(input_ids=torch.tensor([row]), output_attentions=True).attentions).numpy()
    for query, at in ((-1, P - 1), (P, P), (0, 0), (19, 19)):
        ours = result(lm, Attention(row, P, query))
        assert ours.query == at
        np.testing.assert_allclose(ours.weights, theirs[:, :, at, : at + 1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours.weights.sum(-1), 1, rtol=1e-5)
        logs = np.log(ours.weights, where=ours.weights > 0, out=np.zeros_like(ours.weights))
        np.testing.assert_allclose(ours.entropy, -(ours.weights * logs).sum(-1), atol=1e-5)
    pattern = result(lm, AttentionPattern(row, 1, 2)).weights
    np.testing.assert_allclose(pattern, theirs[1, 2], rtol=1e-4, atol=1e-6)


def test_of_each_layers_attention_only_the_row_that_is_asked_for_is_kept():
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_layers": 12,
        "num_heads": 4,
        "max_position_embeddings": 64,
    }
    lm = held("deep", GPTNeoConfig(**shape, attention_types=[[["global"], 12]], bos_token_id=0, eos_token_id=0))
    rows = torch.tensor(paragraphs(16, 60))
    one_layer = 4 * len(rows) * lm.info.heads * 60 * 60
    assert peak_bytes(lambda: attention_rows(lm, rows, 59)) < 6 * one_layer


# -- rarity -----------------------------------------------------------------------------------------------------------


def naive_tau_b(x, y):
    """Kendall's tau-b by its definition, pair by pair."""
    agree = ties_x = ties_y = pairs = 0
    for i in range(len(x)):
        for j in range(i):
            a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
            agree, ties_x, ties_y, pairs = agree + a * b, ties_x + (a == 0), ties_y + (b == 0), pairs + 1
    below = np.sqrt(float((pairs - ties_x) * (pairs - ties_y)))
    return agree / below if below else 0.0


def test_tau_b_by_its_definition():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random((3, 12)), rng.integers(0, 4, (3, 12)), np.full((1, 12), 0.02)])
    y = rng.integers(0, 6, 12).astype(float)
    np.testing.assert_allclose(statistics.kendall_tau_b(x, y), [naive_tau_b(row, y) for row in x], atol=1e-12)
    assert statistics.kendall_tau_b(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1
    known = statistics.kendall_tau_b(np.array([5.0, np.nan, 3, 4, np.nan]), np.array([1.0, 9, 2, 3, 0]))
    assert known == pytest.approx(naive_tau_b([5, 3, 4], [1, 2, 3]))


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    alone = np.arange(40)
    covered = 0
    for i in range(200):
        low, high = statistics.bootstrap_interval(rng.normal(3, 2, 40), alone, 400, i)
        covered += low <= 3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_near_duplicates_count_once():
    """Ten copies of each value are no more evidence than the value itself."""
    values = np.random.default_rng(0).normal(size=15)
    once = statistics.bootstrap_interval(values, np.arange(15), 4000, 0)
    copies = statistics.bootstrap_interval(np.repeat(values, 10), np.repeat(np.arange(15), 10), 4000, 0)
    np.testing.assert_allclose(once, copies, atol=0.02)


def rarity_request(n=40, seed=0, **more):
    """Random paragraphs whose token t has corpus count 10 * (t + 1): prefixes hold 12 tokens of 61."""
    rows = paragraphs(n, seed=seed)
    return Rarity(rows, tuple(tuple(10 * (t + 1) for t in row[:P]) for row in rows), P, resamples=100, **more)


def with_attention(monkeypatch, make):
    """Let every head attend as `make(rows [n, t])` says, [n, layers, h, t]."""

    def rows(lm, rows, query):
        return make(rows[:, : query + 1])

    monkeypatch.setattr(rarity, "attention_rows", rows)


def test_uniform_attention_has_no_correlation_and_a_centred_null(monkeypatch):
    with_attention(monkeypatch, lambda rows: torch.full((len(rows), 3, 4, rows.shape[1]), 1 / rows.shape[1]))
    scores = result(tiny("gpt_neo"), rarity_request())
    assert (scores.tau == 0).all()
    assert (scores.null_mean == 0).all()
    assert (scores.p == 1).all()
    assert scores.strongest is None
    np.testing.assert_allclose(scores.attention, 1 / P, rtol=1e-6)
    np.testing.assert_allclose(scores.entropy, np.log(P), rtol=1e-5)


def test_random_attention_has_a_centred_null_and_p_values_that_do_not_find_what_is_not_there(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    with_attention(
        monkeypatch, lambda rows: torch.rand(len(rows), 3, 4, rows.shape[1], generator=generator).softmax(-1)
    )
    scores = result(tiny("gpt_neo"), rarity_request(120))
    assert np.abs(scores.null_mean).max() < 0.1
    assert (scores.null_low < 0).all()
    assert (scores.null_high > 0).all()
    assert scores.strongest is None
    assert (scores.p < 0.05).sum() <= 3  # of 12
    assert ((scores.low <= scores.tau) & (scores.tau <= scores.high)).mean() > 0.8


def test_a_head_planted_to_attend_to_rare_tokens_stands_out(monkeypatch):
    generator = torch.Generator().manual_seed(1)

    def planted(rows):
        weights = torch.rand(len(rows), 3, 4, rows.shape[1], generator=generator)
        weights[:, 1, 2] += 3 * (1 - rows / VOCABULARY)
        weights[:, 2, 0] += 2 * rows / VOCABULARY
        return weights / weights.sum(-1, keepdim=True)

    with_attention(monkeypatch, planted)
    scores = result(tiny("gpt_neo"), rarity_request(80))
    assert scores.strongest == (1, 2)
    assert scores.stands_out
    assert scores.tau[1, 2] < -0.7
    assert scores.high[1, 2] < 0
    assert scores.p_all[1, 2] < 0.05
    assert scores.tau[2, 0] > 0.7
    assert scores.p_all[2, 0] < 0.05


def test_shuffling_paragraphs_does_not_credit_a_head_that_only_looks_at_positions(monkeypatch):
    """Tokens get more frequent from left to right, and the head looks to the left whatever stands there."""
    rows = tuple(tuple((5 * at + i % 5) % VOCABULARY for at in range(20)) for i in range(30))
    counts = tuple(tuple(10 * (t + 1) for t in row[:P]) for row in rows)

    def left(rows):
        weights = torch.arange(rows.shape[1], 0, -1.0).expand(len(rows), 3, 4, -1)
        return weights / weights.sum(-1, keepdim=True)

    with_attention(monkeypatch, left)
    alone = (-1,) * 30  # they repeat each other on purpose
    by_position = result(tiny("gpt_neo"), Rarity(rows, counts, P, resamples=100, clusters=alone))
    by_paragraph = result(tiny("gpt_neo"), Rarity(rows, counts, P, resamples=100, shuffle="paragraphs", clusters=alone))
    assert (by_position.tau == -1).all()
    assert (by_position.p < 0.05).all()
    assert (by_paragraph.tau == -1).all()
    assert (by_paragraph.p == 1).all()
    assert by_paragraph.strongest is None
    assert not by_position.stands_out  # all heads are alike


def test_near_duplicates_count_once_where_no_clusters_are_given():
    rows = tuple(tuple((5 * at + i % 5) % VOCABULARY for at in range(20)) for i in range(30))
    counts = tuple(tuple(10 * (t + 1) for t in row[:P]) for row in rows)
    with pytest.raises(UsageError, match=r"at least 10 paragraphs that are unrelated .*; 5 were"):
        result(tiny("gpt_neo"), Rarity(rows, counts, P, resamples=100))


def test_mean_attention_and_tau_of_real_heads_by_a_loop():
    lm, request = tiny("gpt_neo"), rarity_request(30)
    scores = result(lm, request)
    by_rank = {}
    for row, counts in zip(request.paragraphs, request.counts, strict=True):
        weights = result(lm, Attention(row, P)).weights
        ordered = sorted(set(counts))
        for position, count in enumerate(counts):
            by_rank.setdefault(ordered.index(count), []).append(weights[:, :, position])
    compared = [rank for rank in sorted(by_rank) if len(by_rank[rank]) >= 5]
    assert scores.ranks.tolist() == compared
    assert scores.tokens_per_rank.tolist() == [len(by_rank[rank]) for rank in compared]
    means = np.stack([np.mean(by_rank[rank], 0) for rank in compared], -1)
    np.testing.assert_allclose(scores.attention, means, rtol=1e-4)
    for layer in range(3):
        for head in range(4):
            assert scores.tau[layer, head] == pytest.approx(naive_tau_b(means[layer, head], compared), abs=1e-6)


def test_the_same_seed_gives_the_same_null_and_another_seed_another():
    lm = tiny("gpt_neo")
    once, again = result(lm, rarity_request(20)), result(lm, rarity_request(20))
    other = result(lm, replace(rarity_request(20), seed=5))
    np.testing.assert_array_equal(once.null_low, again.null_low)
    np.testing.assert_array_equal(once.low, again.low)
    np.testing.assert_array_equal(once.tau, other.tau)
    assert (once.null_low != other.null_low).any()


# -- ablation ---------------------------------------------------------------------------------------------------------


class ZeroedColumns:
    """Within, the out-projection does not read one head: its columns are zero in the raw weights."""

    def __init__(self, lm, layer, head):
        module = lm.adapter.blocks[layer].get_submodule(lm.adapter.family.out)
        d = lm.adapter.head_dim
        weight = module.weight.mT if type(module).__name__ == "Conv1D" else module.weight
        self.columns = weight[:, head * d : (head + 1) * d]

    def __enter__(self):
        self.kept = self.columns.clone()
        self.columns.zero_()

    def __exit__(self, *_):
        self.columns.copy_(self.kept)


@pytest.mark.parametrize("family", KNOWN)
def test_ablating_a_head_equals_a_model_whose_out_projection_columns_are_zero(family):
    lm = tiny(family)
    rows = {"memorized": paragraphs(3), "non_memorized": paragraphs(2, seed=1), "general": paragraphs(2, 15, seed=2)}
    scored = result(lm, HeadAblation(**rows, prefix_length=P))
    with torch.inference_mode():
        prefixes = torch.tensor(rows["non_memorized"])[:, :P]
        own = torch.cat([prefixes, lm.greedy(prefixes, 8)[0]], -1)
    own = tuple(map(tuple, own.tolist()))
    clean = result(lm, ExactMatch(rows["memorized"], P))
    np.testing.assert_array_equal(scored.memorized_em_before, clean.em)
    np.testing.assert_allclose(scored.memorized_nll_before, clean.nll, rtol=1e-4)
    for layer, head in ((0, 0), (1, 2), (2, 3)):
        with ZeroedColumns(lm, layer, head):
            memorized = result(lm, ExactMatch(rows["memorized"], P))
            non_memorized = result(lm, ExactMatch(own, P))
            general = result(lm, ExactMatch(rows["general"], 1))
        np.testing.assert_array_equal(scored.memorized_em[layer, head], memorized.em)
        np.testing.assert_allclose(scored.memorized_nll[layer, head], memorized.nll, rtol=1e-4)
        np.testing.assert_array_equal(scored.own_em[layer, head], non_memorized.em)
        np.testing.assert_allclose(scored.general_nll[layer, head], general.nll, rtol=1e-4)
    assert scored.peak_bytes > 0


def test_own_text_is_scored_without_any_ablation_too(monkeypatch):
    """In half precision decoding token by token may choose otherwise than one whole pass; here it does."""
    lm, rows, greedy = tiny("gpt_neo"), paragraphs(4), LanguageModel.greedy

    def rounds(self, prompts, length):
        tokens, probabilities = greedy(self, prompts, length)
        tokens[:, 3] = (tokens[:, 3] + 1) % 100
        return tokens, probabilities

    monkeypatch.setattr(LanguageModel, "greedy", rounds)
    scored = result(lm, HeadAblation(non_memorized=rows, prefix_length=P))
    assert scored.own_em_before.tolist() == [3, 3, 3, 3]


def test_mean_ablation_by_a_naive_hook():
    lm, rows = tiny("llama"), paragraphs(4)
    scored = result(lm, HeadAblation(rows, general=paragraphs(2, 15, seed=2), prefix_length=P, kind="mean"))
    module = lm.adapter.blocks[1].get_submodule(lm.adapter.family.out)
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in (rows, paragraphs(2, 15, seed=2)):
            lm.model(input_ids=torch.tensor(batch)[:, :-1])
    handle.remove()
    mean = torch.cat([z.flatten(0, 1) for z in seen]).mean(0)[3 * 6 : 4 * 6]

    def put_mean(module, args):
        z = args[0].clone()
        z[..., 3 * 6 : 4 * 6] = mean
        return (z,)

    handle = module.register_forward_pre_hook(put_mean)
    expected = result(lm, ExactMatch(rows, P))
    handle.remove()
    np.testing.assert_allclose(scored.memorized_nll[1, 3], expected.nll, rtol=1e-4)


def test_ablation_by_heads_does_not_depend_on_the_batch(monkeypatch):
    lm = tiny("gpt2")
    request = HeadAblation(paragraphs(5), paragraphs(3, seed=1), prefix_length=P)
    whole = result(lm, request)
    monkeypatch.setattr(lm, "rows_at_once", lambda length, backward=False: 2)
    halved = result(lm, request)
    np.testing.assert_array_equal(whole.memorized_em, halved.memorized_em)
    np.testing.assert_array_equal(whole.own_em, halved.own_em)
    np.testing.assert_allclose(whole.memorized_nll, halved.memorized_nll, rtol=1e-4)


@pytest.mark.parametrize(
    "inner",
    [
        ExactMatch(paragraphs(3), P),
        Perturb(paragraphs(1)[0], ((2, 5),), P, "own"),
        Sweep(paragraphs(1)[0], seed=3, prefix_length=P),
        Attention(paragraphs(1)[0], P),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_any_analysis_runs_with_heads_ablated(inner):
    lm = tiny("gpt_neo")
    ablated = result(lm, Ablated(inner, ((0, 1), (1, 2), (0, 3))))
    assert type(ablated) is inner.answer
    with ZeroedColumns(lm, 0, 1), ZeroedColumns(lm, 1, 2), ZeroedColumns(lm, 0, 3):
        expected = result(lm, inner)
    for name, value in vars(expected).items():
        np.testing.assert_allclose(getattr(ablated, name), value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_between_two_steps_of_an_ablated_analysis_the_model_is_whole():
    lm = tiny("gpt_neo")
    engine = Engine()
    engine.lm = lm
    request = ExactMatch(paragraphs(3), P)
    before = result(lm, request)
    steps = engine.steps(Ablated(Sweep(paragraphs(1)[0], prefix_length=P), ((0, 0),)))
    next(steps)
    between = result(lm, request)
    steps.close()
    np.testing.assert_array_equal(before.nll, between.nll)


@pytest.mark.parametrize(
    ("family", "request_", "says"),
    [
        (
            "gpt2",
            Ablated(ExactMatch(paragraphs(1), P), ((3, 0),)),
            "no head L3H0: gpt2 has layers 0..2 with heads 0..3",
        ),
        ("gpt2", Ablated(OpenModel("demo"), ((0, 0),)), "OpenModel runs no model"),
        ("opt", Ablated(ExactMatch(paragraphs(1), P), ((0, 0),)), "OPTForCausalLM"),
        ("gpt2", AttentionPattern(paragraphs(1)[0], 0, 4), "no head L0H4"),
        ("gpt2", Attention(paragraphs(1)[0], P, 20), "Position 20"),
        ("gpt2", Attention(paragraphs(1)[0], 20), "no prefix of 20"),
        ("opt", Attention(paragraphs(1)[0], P), "Attention needs"),
        ("gpt2", rarity_request(9), r"at least 10 paragraphs .* 9 were given"),
        ("gpt2", Rarity(paragraphs(12), rarity_request(12).counts, P, clusters=(1,) * 12), "1 was given"),
        ("gpt2", Rarity(paragraphs(12), rarity_request(12).counts, P, clusters=(1,) * 11), "11 clusters .* 12 par"),
        ("gpt2", Rarity(paragraphs(12), rarity_request(12).counts[:3], P), "one corpus count"),
        ("gpt2", Rarity(paragraphs(12), ((7,) * P,) * 12, P), "at least 5 ranks"),
        ("gpt2", replace(rarity_request(12), resamples=0), "at least 20 resamples"),
        ("gpt2", rarity_request(12, query=3), "does not see the whole prefix"),
        ("gpt2", HeadAblation(prefix_length=P), "paragraphs to score"),
        ("opt", HeadAblation(paragraphs(1), prefix_length=P), "Head ablation needs"),
    ],
)
def test_impossible_questions_are_told_what_is_wrong(family, request_, says):
    with pytest.raises(UsageError, match=says):
        result(tiny(family), request_)
