"""What is left of a paragraph, against generate, naive loops, and a full copy of the model that is really changed."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from memloc_core.analyses.remains import edit_distance, repetition
from memloc_core.engine import Engine, analysis
from memloc_core.errors import Cancelled, MemlocError, UsageError
from memloc_core.loading import load, weight_fingerprint
from memloc_core.requests import ExactMatch, MeasureRemains, OpenModel
from memloc_core.unlearning.watching import longest_run
from tests.conftest import result
from tests.edits import copy_of, equal
from tests.faults.questions import RELEARNED, differs
from tests.unit.families import held


@pytest.fixture(scope="module")
def sets(demo, demo_paragraphs):
    """Two recited paragraphs, one that is not, and text that none of them is in."""
    rows = tuple(map(tuple, demo_paragraphs.tokens[:64].tolist()))
    em = result(demo, ExactMatch(rows)).em
    recited = [row for row, n in zip(rows, em, strict=True) if n == 50][:2]
    fresh = [demo_paragraphs.row(row) for row, split in enumerate(demo_paragraphs.split) if split == "fresh"]
    return (*recited, fresh[0]), fresh[1], tuple(fresh[2:8])


@pytest.fixture(scope="module")
def told(demo, sets):
    paragraphs, left, other = sets
    return result(
        demo, MeasureRemains(paragraphs, 50, left, other, relearn_steps=3, relearn_rate=4e-3, relearn_batch=4)
    )


def twin_of(lm):
    """The same weights, loaded once more without memloc."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(lm.info.folder, dtype=torch.float32, attn_implementation="eager").eval()


def predicted(model, ids):
    """The argmax after each token, by the model's own forward pass."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].argmax(-1).tolist()


def naive_run(right):
    best = 0
    for start in range(len(right)):
        for stop in range(start, len(right) + 1):
            if all(right[start:stop]):
                best = max(best, stop - start)
    return best


def naive_distance(a, b):
    @functools.cache
    def between(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return between(len(a), len(b))


def recited(model, paragraphs):
    """EM and the longest run of each paragraph, token by token."""
    matches, runs = [], []
    for row in paragraphs:
        right = [said == token for said, token in zip(predicted(model, row)[49:-1], row[50:], strict=True)]
        matches.append(right.index(False) if False in right else 50)
        runs.append(naive_run(right))
    return matches, runs


def test_longest_run_distance_and_repetition_are_those_of_naive_loops():
    rng = np.random.default_rng(0)
    right = rng.random((40, 12)) < 0.7
    assert longest_run(torch.from_numpy(right)).tolist() == [naive_run(row.tolist()) for row in right]
    a, b = rng.integers(0, 4, (30, 9)), rng.integers(0, 4, (30, 7))
    distances = [naive_distance(tuple(x), tuple(y)) / 9 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(edit_distance(a, b), distances, rtol=1e-6)
    tokens = np.array([[1, 2, 3, 4] * 3, [*range(12)], [7] * 12])
    # Of nine 4-grams each: a cycle of four shows four, a constant shows one.
    np.testing.assert_allclose(repetition(tokens), [5 / 9, 0, 8 / 9], rtol=1e-6)


def test_each_prefix_is_scored_as_the_model_itself_scores_it(demo, sets, told):
    paragraphs, left, _ = sets
    assert told.variants[0] == "prefix"
    before = {"prefix": (), "after begin-of-text": (demo.bos,)}
    before |= {f"extended by {n}": left[-n:] for n in (1, 5, 10, 20, 50)}
    seen = set()
    for name, runs in zip(told.variants, told.extracted.tolist(), strict=True):
        cut = int(name.split()[-1]) if name.startswith("shifted") else 0
        for row, run in zip(paragraphs, runs, strict=True):
            ids = [*before.get(name, ()), *row[cut:]]
            said = predicted(demo.model, ids)[-51:-1]
            assert run == naive_run([a == b for a, b in zip(said, row[50:], strict=True)]), name
        seen.add(name)
    assert seen == {*before, *(f"shifted by {n}" for n in (1, 5, 10, 20))}
    assert told.longest_run.tolist() == told.extracted[0].tolist()
    assert told.em.tolist() == recited(demo.model, paragraphs)[0]
    with torch.inference_mode():
        logits = demo.model(torch.tensor(paragraphs)).logits[:, 49:-1]
    nll = F.cross_entropy(logits.mT, torch.tensor(paragraphs)[:, 50:], reduction="none").mean(-1)
    np.testing.assert_allclose(told.nll, nll, rtol=1e-4, atol=2e-5)
    assert told.em[:2].tolist() == [50] * 2
    assert told.em[2] < 50


def test_the_begin_of_text_token_of_a_paragraph_stays_before_every_prefix_and_stands_there_once(demo, sets):
    paragraphs, left, _ = sets
    begun = tuple((demo.bos, *row[:99]) for row in paragraphs)
    told = result(demo, MeasureRemains(begun, 51, left, relearn_steps=0))
    read = {"prefix": [row[1:] for row in begun]}
    read |= {f"shifted by {n}": [row[1 + n :] for row in begun] for n in (1, 5, 10, 20)}
    read |= {f"extended by {n}": [(*left[-n:], *row[1:]) for row in begun] for n in (1, 5, 10, 20, 50)}
    assert told.variants == tuple(read)
    for (name, texts), runs in zip(read.items(), told.extracted.tolist(), strict=True):
        for row, text, run in zip(begun, texts, runs, strict=True):
            said = predicted(demo.model, (demo.bos, *text))[-50:-1]
            assert run == naive_run([a == b for a, b in zip(said, row[51:], strict=True)]), name
    mixed = result(demo, MeasureRemains((begun[0], paragraphs[1]), 51, left, relearn_steps=0))
    assert "after begin-of-text" in mixed.variants


def test_greedy_text_is_what_generate_says(demo, sets, told):
    paragraphs, _, other = sets
    prefixes = torch.tensor([row[:50] for row in (*paragraphs, *other)])
    settings = {"max_new_tokens": 50, "min_new_tokens": 50, "do_sample": False, "pad_token_id": 0}
    whole = demo.model.generate(prefixes, attention_mask=torch.ones_like(prefixes), **settings)
    texts, fresh = whole[: len(paragraphs), 50:].tolist(), whole[len(paragraphs) :, 50:]
    assert told.greedy.tolist() == texts
    far = [naive_distance(tuple(text), row[50:]) / 50 for text, row in zip(texts, paragraphs, strict=True)]
    np.testing.assert_allclose(told.edit_distance, far, rtol=1e-6)
    assert told.extracted_at_75.tolist() == [int(1 - share >= 0.75) for share in far]
    assert told.fresh_repetition.tolist() == repetition(fresh.numpy()).tolist()


def test_relearning_is_adam_on_a_full_copy(demo, sets, told):
    paragraphs, _, other = sets
    twin = twin_of(demo)
    adam = torch.optim.Adam(twin.parameters(), lr=4e-3)
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(other), generator=draw)
    rows, expected = torch.tensor(other), [recited(twin, paragraphs)]
    for step in range(3):
        if step:  # two of the six rows are left, which are fewer than a batch
            order = torch.randperm(len(other), generator=draw)
        chosen = rows[order[:4]]
        adam.zero_grad()
        logits = twin(chosen).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), chosen[:, 1:].flatten()).backward()
        adam.step()
        expected.append(recited(twin, paragraphs))
    assert told.relearned_em.tolist() == [em for em, _ in expected]
    assert told.relearned_longest.tolist() == [longest for _, longest in expected]
    assert all(expected[-1][i] != expected[0][i] for i in (0, 1)), "the steps are too small to see anything"


def test_eight_bits_are_those_of_a_rounded_copy(demo, demo_paragraphs):
    rows = tuple(map(tuple, demo_paragraphs.tokens.tolist()))
    em = result(demo, ExactMatch(rows)).em
    partly = tuple(row for row, n in zip(rows, em, strict=True) if 10 < n < 50)
    outliers = [block.mlp.c_proj.weight for block in demo.blocks]  # one in each row, or rounding moves nothing here
    before = [weight.data[:, 0].clone() for weight in outliers]
    try:
        for weight in outliers:
            weight.data[:, 0] = 2.0
        told = result(demo, MeasureRemains(partly, 50, shifts=(), extensions=()))
        twin = twin_of(demo)
        twin.load_state_dict(demo.model.state_dict())
    finally:
        for weight, values in zip(outliers, before, strict=True):
            weight.data[:, 0] = values
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if ".h." in name and weight.dim() == 2:
                for row in weight:
                    step = row.abs().max() / 127
                    row.copy_((row / step).round() * step)
    assert (told.eight_bit_em.tolist(), told.eight_bit_longest.tolist()) == recited(twin, partly)
    assert (told.eight_bit_em != told.em).any()
    assert (told.eight_bit_longest != told.longest_run).any()


def test_weights_are_the_originals_between_two_steps_and_after_a_cancellation(demo, sets):
    paragraphs, left, other = sets
    lengths = {"shifts": (5,), "extensions": (5,), "relearn_steps": 2, "relearn_batch": 2}
    request = MeasureRemains(paragraphs[:1], 50, left, other[:2], relearn_rate=1e-2, **lengths)
    original = weight_fingerprint(demo.model)
    places = [parameter.data_ptr() for parameter in demo.model.parameters()]
    steps = analysis(demo, request)
    for progress in steps:
        assert weight_fingerprint(demo.model) == original, progress
    demo_steps = analysis(demo, request)
    while next(demo_steps).notice != "relearning":
        pass
    demo.cancelled.set()
    try:
        with pytest.raises(Cancelled):
            next(demo_steps)
    finally:
        demo.cancelled.clear()
    assert weight_fingerprint(demo.model) == original
    assert [parameter.data_ptr() for parameter in demo.model.parameters()] == places
    assert not any(parameter.requires_grad for parameter in demo.model.parameters())


def test_a_conv1d_is_rounded_by_output_and_half_precision_comes_back_whole(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from memloc_core.analyses.remains import _eight_bit

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(tmp_path)
    lm = load(OpenModel(str(tmp_path), "bfloat16", "cpu"))
    weights = {id(parameter): rounded for parameter, rounded in _eight_bit(lm)}
    fused = lm.model.transformer.h[0].attn.c_attn.weight  # [in, out]
    whole = fused.float()
    step = whole.abs().amax(0) / 127
    assert torch.equal(weights[id(fused)], ((whole / step).round() * step).to(torch.bfloat16))
    rows = tuple(tuple(range(i, i + 20)) for i in range(3))
    request = MeasureRemains(rows[:1], 10, (), rows[1:], shifts=(2,), relearn_steps=20, relearn_rate=1e-4)
    before = weight_fingerprint(lm.model)
    told = result(lm, request)
    assert told.relearned_em.shape == (21, 1)
    assert told.variants == ("prefix", "shifted by 2")
    assert weight_fingerprint(lm.model) == before


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("mixtral", {"num_local_experts": 3}),
        ("qwen3_moe", {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 40}),
        ("gpt_oss", {"num_local_experts": 3, "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default"}}),
        ("llama4_text", {"num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size_mlp": 40}),
    ],
)
def test_stacked_experts_are_rounded_by_output_whichever_way_round_they_are_kept(family, more):
    """Which axis is which is told by its size: as wide as the model, or on the way down as the MLP."""
    from transformers import CONFIG_MAPPING

    from memloc_core.analyses.remains import _eight_bit

    shape = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 0}
    lm = held(family, CONFIG_MAPPING[family](**shape, **heads, max_position_embeddings=64, **more))
    rounded, seen = {id(parameter): new for parameter, new in _eight_bit(lm)}, 0
    for name, parameter in lm.blocks[0].named_parameters():
        assert not (name.endswith("bias") and id(parameter) in rounded)
        if "experts." not in name or name.endswith("bias"):
            continue
        inputs = parameter[0].shape.index(40 if "down" in name else 24)
        for expert, new in zip(parameter, rounded[id(parameter)], strict=True):
            for output, ours in zip(expert.unbind(1 - inputs), new.unbind(1 - inputs), strict=True):
                step = output.abs().max() / 127
                torch.testing.assert_close(ours, (output / step).round() * step)
                seen += 1
    assert seen == 3 * (2 * 40 + 24)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shifts": (50,)}, "shifted by 50"),
        ({"relearn_rate": 0.0}, "positive rate"),
        ({"other_text": "paragraphs"}, "other text"),
        ({"left_context": (99_999,)}, "Token id 99999"),
    ],
)
def test_what_cannot_be_measured_is_said(demo, sets, change, says):
    paragraphs, left, other = sets
    given = {"left_context": left, "other_text": other} | change
    if given["other_text"] == "paragraphs":
        given["other_text"] = (other[0], paragraphs[0])
    with pytest.raises(UsageError, match=says):
        result(demo, MeasureRemains(paragraphs, 50, **given))


@pytest.mark.parametrize("fits", [0, 2])
def test_where_memory_is_too_small_for_relearning_the_rest_is_measured(demo, sets, told, fits):
    paragraphs, left, other = sets
    passes = []

    def full(module, args, kwargs):
        if torch.is_grad_enabled():
            passes.append(1)
            if len(passes) > fits:
                raise torch.OutOfMemoryError("simulated")

    request = MeasureRemains(paragraphs, 50, left, other, relearn_steps=3, relearn_rate=4e-3, relearn_batch=4)
    engine, before = Engine(), copy_of(demo)
    engine.lm = demo
    hook = demo.model.base_model.register_forward_pre_hook(full, with_kwargs=True)
    try:
        answer = engine.answer(request)
    finally:
        hook.remove()
    less = answer.result
    assert not differs(less, told, but=RELEARNED)
    assert less.relearned_em.tolist() == told.relearned_em[: 1 + fits].tolist()
    assert less.relearned_longest.tolist() == told.relearned_longest[: 1 + fits].tolist()
    assert (less.not_relearned, less.is_whole) == (3 - fits, False)
    assert (told.not_relearned, told.is_whole) == (0, True)
    (notice,) = answer.provenance.notices
    assert notice.startswith("Training on other text needs 0.02 GB beside the model, and cpu has not that much left")
    assert equal(copy_of(demo), before)


def test_training_that_blows_up_is_said(demo, sets):
    paragraphs, _, other = sets
    with pytest.raises(MemlocError, match="a rate below 1e\\+30"):
        result(demo, MeasureRemains(paragraphs[:1], 50, (), other[:2], (), (), relearn_rate=1e30, relearn_steps=3))
    assert result(demo, ExactMatch(paragraphs[:1])).em.tolist() == [50]
