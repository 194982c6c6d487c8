"""Exact match, NLL and margins, against greedy generation and transformers' own loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from memloc_core import language_model
from memloc_core.engine import Engine, analysis
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import (
    ActivationGradients,
    ActivationPatching,
    Alternatives,
    Attention,
    AttentionPattern,
    AttributionPatching,
    Block,
    Continue,
    ContrastGradients,
    ExactMatch,
    HeadAblation,
    MeasureRemains,
    ParameterGradients,
    Perturb,
    RareTokens,
    Rarity,
    ScanBlock,
    Sweep,
)
from memloc_core.scan.kernel import exact_matches
from tests.conftest import result
from tests.unit.families import paragraphs, tiny


def generated(lm, prompts, length):
    """Greedy continuations by transformers' own loop, end-of-text treated as any other token."""
    out = lm.model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[:, prompts.shape[1] :]


def leading_matches(a, b):
    """Exact match by a loop."""
    count = 0
    for x, y in zip(a, b, strict=True):
        if x != y:
            break
        count += 1
    return count


def test_exact_match_is_that_of_generate_on_every_embedded_paragraph(demo, demo_paragraphs):
    rows = torch.from_numpy(demo_paragraphs.tokens)
    scored = result(demo, ExactMatch(tuple(map(tuple, rows.tolist()))))
    for start in range(0, len(rows), 128):
        said = generated(demo, rows[start : start + 128, :50], 50).tolist()
        for row, own in enumerate(said, start):
            assert scored.em[row] == leading_matches(own, rows[row, 50:].tolist()), demo_paragraphs.ids[row]


def test_the_embedded_set_has_both_ends_and_a_middle(demo, demo_paragraphs):
    em = result(demo, ExactMatch(tuple(map(tuple, demo_paragraphs.tokens.tolist())))).em
    assert (em == 50).sum() >= 140
    assert (em <= 10).sum() >= 300
    assert ((em > 10) & (em < 50)).sum() >= 25


def test_nll_is_transformers_own_loss(demo, demo_paragraphs):
    rows = torch.from_numpy(demo_paragraphs.tokens[:6])
    scored = result(demo, ExactMatch(tuple(map(tuple, rows.tolist()))))
    for row, ids in enumerate(rows):
        labels = ids.clone()
        labels[:50] = -100
        with torch.no_grad():
            loss = demo.model(input_ids=ids[None], labels=labels[None]).loss
        assert scored.nll[row] == pytest.approx(float(loss), rel=1e-5, abs=2e-6)
        assert scored.token_nll[row].mean() == pytest.approx(float(loss), rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("at_once", [40, 1_000, 70_000])
def test_scores_from_pieces_of_the_vocabulary_are_those_of_all_logits_at_once(demo, at_once, monkeypatch):
    hidden = torch.randn(3, 7, demo.info.width, generator=torch.Generator().manual_seed(0))
    hidden[0] *= 40  # nearly certain
    with torch.inference_mode():
        logits = demo.logits(hidden).double()
        targets = logits.argsort(-1, descending=True)[..., [0, 1, 5, 900, -1, 0, 0]].diagonal(dim1=1, dim2=2)
        monkeypatch.setattr(language_model, "_LOGITS_IN_CACHE", at_once)
        monkeypatch.setattr(language_model, "_ROWS_AT_ONCE", 4)
        scores = demo.token_scores(hidden, targets)
    assert torch.equal(scores.predicted, logits.argmax(-1))
    nll = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(scores.nll.double(), nll, rtol=1e-5, atol=1e-6)
    other = logits.scatter(-1, targets[..., None], -torch.inf).amax(-1)
    margin = logits.gather(-1, targets[..., None])[..., 0] - other
    torch.testing.assert_close(scores.margin.double(), margin, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_a_piece_of_the_vocabulary_that_is_ruled_out_or_no_number(demo, piece, monkeypatch):
    whole = torch.randn(2, 30, generator=torch.Generator().manual_seed(1))
    whole[0, 10 * piece : 10 * (piece + 1)] = -torch.inf
    whole[1, 10 * piece + 3] = torch.nan
    monkeypatch.setattr(demo, "_logit_pieces", lambda hidden: ((i, whole[:, i : i + 10].clone()) for i in (0, 10, 20)))
    targets = torch.tensor([[(10 * piece + 15) % 30]] * 2)
    scores = demo.token_scores(torch.zeros(2, 1, demo.info.width), targets)
    expected = torch.nn.functional.cross_entropy(whole[:1], targets[0])
    assert float(scores.nll[0, 0]) == pytest.approx(float(expected), rel=1e-5)
    assert scores.predicted[0, 0] == whole[0].argmax()
    assert scores.margin[1].isnan()
    assert scores.nll[1].isnan()


def test_predictions_and_margins_by_a_loop_over_the_whole_logits(demo, demo_paragraphs):
    rows = demo_paragraphs.tokens[[0, 3, 5, 8]]
    scored = result(demo, ExactMatch(tuple(map(tuple, rows.tolist()))))
    with torch.no_grad():
        logits = demo.model(input_ids=torch.from_numpy(rows)).logits
    for row, ids in enumerate(rows):
        closest = np.inf
        for c in range(50):
            values, tokens = logits[row, 49 + c].topk(2)
            assert scored.predicted[row, c] == tokens[0]
            matched = int(tokens[0]) == ids[50 + c]
            other = values[1] if matched else values[0]
            closest = min(closest, abs(float(logits[row, 49 + c, ids[50 + c]] - other)))
            if not matched:
                break
        assert scored.margin[row] == pytest.approx(closest, abs=1e-4)


@pytest.mark.parametrize("prefix_length", [1, 20, 99])
def test_any_split_into_prefix_and_continuation(demo, demo_paragraphs, prefix_length):
    rows = torch.from_numpy(demo_paragraphs.tokens[:4])
    scored = result(demo, ExactMatch(tuple(map(tuple, rows.tolist())), prefix_length))
    said = generated(demo, rows[:, :prefix_length], 100 - prefix_length).tolist()
    assert scored.em.tolist() == [
        leading_matches(own, true) for own, true in zip(said, rows[:, prefix_length:].tolist(), strict=True)
    ]


def test_continue_is_generate_with_each_tokens_probability(demo, demo_paragraphs):
    prompt = demo_paragraphs.tokens[4, :50]
    said = result(demo, Continue(tuple(prompt.tolist()), 50))
    ids = torch.from_numpy(prompt)[None]
    assert said.tokens.tolist() == generated(demo, ids, 50)[0].tolist()
    whole = torch.cat([ids, torch.from_numpy(said.tokens)[None]], -1)
    with torch.no_grad():
        probabilities = demo.model(input_ids=whole).logits[0, 49:-1].softmax(-1)
    expected = probabilities.gather(-1, whole[0, 50:, None])[:, 0]
    np.testing.assert_allclose(said.probabilities, expected, rtol=1e-3)


def test_end_of_text_inside_a_continuation_is_a_token_like_any(make_checkpoint):
    from memloc_core.loading import load
    from memloc_core.requests import OpenModel

    lm = load(OpenModel(str(make_checkpoint("eos")), device="cpu"))
    said = result(lm, Continue((1, 2, 3), 40))
    eos = int(said.tokens[5])
    lm.model.generation_config.eos_token_id = eos
    assert result(lm, Continue((1, 2, 3), 40)).tokens.tolist() == said.tokens.tolist()
    assert result(lm, ExactMatch(((1, 2, 3, *said.tokens.tolist()),), 3)).em.tolist() == [40]


def test_alternatives_are_the_likeliest_other_tokens(demo, demo_paragraphs):
    prefix = demo_paragraphs.tokens[2, :50]
    told = result(demo, Alternatives(tuple(prefix.tolist()), 30, 5))
    with torch.no_grad():
        probabilities = demo.model(input_ids=torch.from_numpy(prefix[:30])[None]).logits[0, -1].softmax(-1)
    expected = [t for t in probabilities.argsort(descending=True).tolist() if t != prefix[30]][:5]
    assert told.tokens.tolist() == expected
    np.testing.assert_allclose(told.probabilities, probabilities[expected], rtol=1e-4)


def test_alternatives_to_the_first_token_are_what_comes_after_begin_of_text_if_there_is_one(demo, monkeypatch):
    with torch.no_grad():
        probabilities = demo.model(input_ids=torch.tensor([[demo.bos]])).logits[0, -1].softmax(-1)
    first = int(probabilities.argmax())
    told = result(demo, Alternatives((first, 5, 7), 0, 4))
    expected = probabilities.argsort(descending=True)[1:5]
    assert told.tokens.tolist() == expected.tolist()
    np.testing.assert_allclose(told.probabilities, probabilities[expected], rtol=1e-4)
    monkeypatch.setattr(demo, "bos", None)
    nothing = result(demo, Alternatives((first, 5, 7), 0, 4))
    assert (nothing.tokens.shape, nothing.probabilities.shape) == ((0,), (0,))
    assert len(result(demo, Alternatives((first, 5, 7), 1, 4)).tokens) == 4


def test_out_of_memory_halves_the_batch_and_changes_nothing(demo, demo_paragraphs):
    request = ExactMatch(tuple(map(tuple, demo_paragraphs.tokens[:40].tolist())))
    whole = result(demo, request)

    def allocator_limit(module, args, kwargs):
        if kwargs["input_ids"].shape[0] > 7:
            raise torch.OutOfMemoryError("simulated")

    engine = Engine()
    engine.lm = demo
    hook = demo.model.base_model.register_forward_pre_hook(allocator_limit, with_kwargs=True)
    try:
        answer = engine.answer(request)
    finally:
        hook.remove()
    halved = answer.result
    np.testing.assert_array_equal(halved.em, whole.em)
    np.testing.assert_allclose(halved.nll, whole.nll, rtol=1e-5)
    assert "40 rows at once; went on with 20" in answer.provenance.notices[0]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ExactMatch(((1, 2, 99_999),), 1), "99999"),
        (ExactMatch(((1, 2, -4),), 1), "-4"),
        (ExactMatch(((1, 2), (1, 2, 3)), 1), "one length"),
        (ExactMatch(((1, 2),), 2), "longer than the prefix"),
        (ExactMatch((tuple(range(300)),), 50), "300 tokens"),
        (Continue((), 5), "prompt"),
        (Continue((1,), 600), "600 tokens"),
        (Alternatives((1, 2), 7), "Position 7"),
    ],
)
def test_impossible_questions_are_told_what_is_wrong(demo, request_, says):
    with pytest.raises(UsageError, match=says):
        result(demo, request_)


@pytest.fixture
def broken():
    """A model whose logits are NaN from token 1 on, as half precision's are where it overflows."""
    lm = tiny("llama")  # its head has weights of its own
    weight = lm.model.get_input_embeddings().weight
    before = weight[1].clone()
    with torch.no_grad():
        weight[1] = torch.nan
    yield lm
    with torch.no_grad():
        weight[1] = before


@pytest.mark.parametrize(
    "question",
    [
        ExactMatch(((5, 1, *[0] * 8),), 4),
        Perturb((5, 6, *[0] * 8), ((1, 1),), 4),
        Sweep((5, 6, *[0] * 8), prefix_length=4, strategy="given", tokens=(1,)),
        Continue((5, 1), 3),
    ],
    ids=lambda question: type(question).__name__,
)
def test_logits_that_are_no_numbers_recite_nothing(broken, question):
    """Token 0 is what an argmax over NaN gives: a text of nothing else would be recited whole."""
    with pytest.raises(MemlocError, match="no numbers"):
        result(broken, question)
    remains = result(broken, MeasureRemains(((5, 1, *[0] * 8),), 4, shifts=(), extensions=(), relearn_steps=0))
    assert remains.longest_run.tolist() == [0]


_SPOILED = ((5, 1, *range(2, 10)), *(tuple(range(i, i + 10)) for i in range(6, 30)))
_COUNTS = tuple(tuple(range(9, 5, -1)) for _ in _SPOILED)


@pytest.mark.parametrize(
    "question",
    [
        Attention(_SPOILED[0], 4),
        AttentionPattern(_SPOILED[0], 0, 0),
        Rarity(_SPOILED, _COUNTS, 4, clusters=tuple(range(25))),
        HeadAblation(_SPOILED, prefix_length=4),
        RareTokens(_SPOILED, _COUNTS, (7, 8, 9), 1, 4, clusters=tuple(range(25))),
        AttributionPatching(_SPOILED[0], ((0, 6),), 4),
        ActivationPatching(_SPOILED[0], ((0, 6),), 4),
        ParameterGradients(_SPOILED[:1], 4),
        ContrastGradients(_SPOILED[:2], _SPOILED[2:4], 4),
        ActivationGradients(_SPOILED[0], 4),
    ],
    ids=lambda question: type(question).__name__,
)
def test_no_statistic_is_made_of_what_is_no_number(broken, question):
    """A head whose attention is NaN would have a tau of 0, and a window that recites nothing."""
    with pytest.raises(MemlocError, match="no numbers"):
        result(broken, question)


@pytest.mark.parametrize("reuses", [True, False])
def test_a_scan_takes_no_window_without_numbers_for_one_that_is_not_recited(broken, monkeypatch, reuses):
    monkeypatch.setattr(broken, "reuses_prefix", reuses)
    with pytest.raises(MemlocError, match="no numbers"):
        exact_matches(broken, torch.tensor(_SPOILED), 4)


@pytest.mark.parametrize(
    ("dtype", "edits", "hint"),
    [
        ("float32", (), "its weights may be broken"),
        ("bfloat16", (), "--dtype float32 may help"),
        ("bfloat16", ("f" * 64,), "switch the edits off"),
        ("float32", ("f" * 64,), "switch the edits off"),
    ],
)
def test_text_without_numbers_is_refused_with_what_may_help(dtype, edits, hint, monkeypatch):
    lm = tiny("gpt_neo")
    monkeypatch.setattr(lm, "info", replace(lm.info, dtype=dtype))
    monkeypatch.setattr(lm, "edits", edits)
    lm.refuse_no_numbers(torch.tensor([1.0, torch.inf]), 2.0)
    with pytest.raises(MemlocError, match=rf"no numbers \(NaN\) in {dtype} for this text; {hint}\."):
        lm.refuse_no_numbers(1.0, torch.tensor([1.0, torch.nan]))


@pytest.mark.parametrize("value", [torch.nan, 3.4e38])
def test_a_model_whose_logits_are_not_finite_is_not_opened(value):
    lm = tiny("llama")  # its head has weights of its own
    weight = lm.model.get_output_embeddings().weight.data
    before = weight.clone()
    try:
        weight[7], weight[7, 0] = 0, value  # one token's logits: NaN, or too large
        with pytest.raises(MemlocError, match="gives logits that are not finite; its weights are damaged"):
            language_model.LanguageModel(lm.model, lm.info)
    finally:
        weight.copy_(before)


def test_a_scan_of_every_nll_neither(broken, tmp_path):
    np.save(tmp_path / "rows.npy", np.array(_SPOILED))
    block = Block(str(tmp_path / "rows.npy"), "", 0, len(_SPOILED), 0, "demo")
    assert result(tiny("gpt_neo"), ScanBlock(block, 10, 10, 4, nll=True, min_unique=0.0)).windows == len(_SPOILED)
    with pytest.raises(MemlocError, match="no numbers"):
        result(broken, ScanBlock(block, 10, 10, 4, nll=True, min_unique=0.0))


def test_one_paragraph_without_numbers_is_told_and_the_others_are_scored(broken):
    engine = Engine()
    engine.lm = broken
    rows = ((5, 6, *[7] * 8), (5, 6, 7, 8, 9, 1, *[0] * 4))
    answer = engine.answer(ExactMatch(rows, 4))
    alone = result(broken, ExactMatch(rows[:1], 4))
    assert answer.result.em[0] == alone.em[0]
    np.testing.assert_allclose(answer.result.token_nll[0], alone.token_nll[0], rtol=1e-5)
    assert answer.result.em[1] <= 2
    assert np.isnan(answer.result.nll[1])
    assert "1 of 2 paragraphs give no numbers" in answer.provenance.notices[0]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Perturb(paragraphs(1)[0], ((0, 1),), 12, reference="neither"), "no reference 'neither'; there are true, own"),
        (Sweep(paragraphs(1)[0], prefix_length=12, strategy="any"), "no strategy 'any'"),
        (Sweep(paragraphs(1)[0], prefix_length=12, seed=-1), "seed of -1"),
        (Alternatives((1, 2, 3), 1, k=0), "0 alternatives"),
        (AttentionPattern((), 0, 0), "at least one token"),
    ],
    ids=str,
)
def test_a_word_that_is_no_choice_is_refused_and_not_taken_for_another(question, says):
    with pytest.raises(UsageError, match=says):
        next(analysis(tiny("gpt_neo"), question))
