"""Every analysis on every family: it runs, it agrees with transformers, also beyond a local window of 256 tokens."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers

from memloc_core import requests
from memloc_core.engine import ANALYSES, Engine
from memloc_core.errors import UsageError
from memloc_core.requests import (
    Ablated,
    ActivationGradients,
    ActivationPatching,
    Alternatives,
    Attention,
    AttentionPattern,
    AttributionPatching,
    Continue,
    ContrastGradients,
    ExactMatch,
    HeadAblation,
    NearDuplicates,
    ParameterGradients,
    Perturb,
    RareTokens,
    Rarity,
    Sweep,
    Sweeps,
    Unlearn,
)
from memloc_core.unlearning.weights import matrices
from tests.benchmarks.common import finish
from tests.conftest import result
from tests.unit.families import ALL, KNOWN, UNKNOWN, VOCABULARY, held, paragraphs, tiny
from tests.unit.test_exact_match import leading_matches

P, ROWS, MANY = 12, paragraphs(6), paragraphs(10)
COUNTS = tuple(tuple(1 + (7 * t + i) % 50 for i, t in enumerate(row[:P])) for row in MANY)
REPLACED = ((3, 7), (5, 9))


# One question of each kind: the menu and this table have the same entries.
QUESTIONS = {
    NearDuplicates: lambda: NearDuplicates(ROWS),
    ExactMatch: lambda: ExactMatch(ROWS, P),
    Continue: lambda: Continue(ROWS[0][:P], 5),
    Alternatives: lambda: Alternatives(ROWS[0][:P], 3, 4),
    Perturb: lambda: Perturb(ROWS[0], REPLACED, P, "own"),
    Sweep: lambda: Sweep(ROWS[0], "next-best", 2, 0, (), P, "own"),
    Sweeps: lambda: Sweeps(tuple(Sweep(row, prefix_length=P) for row in ROWS[:3])),
    Ablated: lambda: Ablated(ExactMatch(ROWS[:2], P), ((1, 2), (0, 0))),
    ParameterGradients: lambda: ParameterGradients(ROWS[:2], P),
    ContrastGradients: lambda: ContrastGradients(ROWS[:2], ROWS[2:4], P),
    ActivationGradients: lambda: ActivationGradients(ROWS[0], P),
    Attention: lambda: Attention(ROWS[0], P),
    AttentionPattern: lambda: AttentionPattern(ROWS[0], 1, 2),
    Rarity: lambda: Rarity(MANY, COUNTS, P, resamples=100),
    HeadAblation: lambda: HeadAblation(ROWS[:2], ROWS[2:4], ROWS[4:], P),
    AttributionPatching: lambda: AttributionPatching(ROWS[0], REPLACED, P),
    ActivationPatching: lambda: ActivationPatching(ROWS[0], REPLACED, P, cells=(("heads", 1, 2), ("mlp", 2, 8))),
    RareTokens: lambda: RareTokens(MANY, COUNTS, (1, 2, 3, 4), 2, P, resamples=100),
    requests.PrefixSignals: lambda: requests.PrefixSignals(tuple(row[:P] for row in ROWS), COUNTS[:6]),
    requests.Edited: lambda: requests.Edited(ExactMatch(ROWS, P)),
    requests.Unlearn: lambda: run_of("ratio"),
    requests.EstimateRun: lambda: requests.EstimateRun(run_of("gradient")),
    requests.MeasureRemains: lambda: requests.MeasureRemains(
        ROWS[:2], P, ROWS[5], ROWS[3:], shifts=(1,), extensions=(2,), relearn_steps=2, relearn_batch=2
    ),
    requests.TryRun: lambda: requests.TryRun(run_of("difference")),
    requests.ScanBlock: lambda folder: requests.ScanBlock(block_in(folder), 20, 10, P),
    requests.ScoreWindows: lambda folder: requests.ScoreWindows(windows_in(folder), 1, 4, P),
    requests.ExportCheckpoint: lambda folder: requests.ExportCheckpoint(str(folder / "out")),
}


def windows_in(folder):
    np.save(folder / "windows.npy", np.array(ROWS, np.int32))
    return str(folder / "windows.npy")


def block_in(folder):
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps({"tokens": row + row}) + "\n" for row in ROWS))
    return requests.Block(str(file), "tokens", 0, len(ROWS), 0, str(folder))


def run_of(mask):
    return requests.Unlearn(
        ROWS[:1], ROWS[1:4], P, mask=mask, sparsity=0.01, steps=2, goal="steps", kept_per_step=2, held_out=ROWS[4:]
    )


# What needs to know where heads and MLPs are, and says so of a model where nobody does.
NEED_AN_ADAPTER = {
    Ablated,
    ActivationGradients,
    Attention,
    AttentionPattern,
    Rarity,
    HeadAblation,
    AttributionPatching,
    ActivationPatching,
}


def asked():
    for kind, question in QUESTIONS.items():
        yield pytest.param(kind, question, id=kind.__name__)


# What an answer does not know: patches that were not asked for, groups that are empty, text that was not written.
UNKNOWN_IN = {
    ActivationPatching: {"residual", "heads", "mlp"},
    Unlearn: {"repetition"},
    requests.TryRun: {"repetition"},
}
BY_GROUP = {f"{of}_{what}" for of in ("group", "whole") for what in ("em", "nll")} | {"agreement", "whole_agreement"}


def put(question, folder):
    return question(folder) if question.__code__.co_argcount else question()


def arrays(value):
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, np.ndarray):
            yield field.name, part


def test_every_analysis_is_asked_of_every_family():
    assert set(QUESTIONS) == set(ANALYSES)


@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize(("kind", "question"), asked())
def test_every_analysis_answers_and_leaves_the_model_as_it_was(family, kind, question, tmp_path):
    lm, asked = tiny(family), put(question, tmp_path)
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    scored = result(lm, asked)
    assert isinstance(scored, asked.answer)
    found = dict(arrays(scored))
    for name, array in found.items():
        if name in BY_GROUP:
            assert np.isfinite(array[:, :2]).all(), "kept and held-out rows are there"
        elif name not in UNKNOWN_IN.get(kind, ()):
            assert np.isfinite(array).all(), name
    assert all(torch.equal(p, before[name]) for name, p in lm.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())


@pytest.mark.parametrize("family", KNOWN)
def test_an_exported_checkpoint_of_every_family_loads_again(family, tmp_path):
    lm = tiny(family)
    result(lm, requests.ExportCheckpoint(str(tmp_path / "out")))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    rows = torch.tensor(ROWS)
    with torch.inference_mode():
        assert torch.equal(again(input_ids=rows).logits, lm.model(input_ids=rows).logits)


@pytest.mark.parametrize("family", UNKNOWN)
@pytest.mark.parametrize(("kind", "question"), asked())
def test_a_family_without_an_adapter_does_what_it_can_and_says_what_it_lacks(family, kind, question, tmp_path):
    lm, asked = tiny(family), put(question, tmp_path)
    assert lm.adapter is None
    if kind not in NEED_AN_ADAPTER:
        assert isinstance(result(lm, asked), asked.answer)
        return
    with pytest.raises(UsageError) as caught:
        result(lm, asked)
    said = str(caught.value)
    assert type(lm.model).__name__ in said
    assert "exact match, perturbation, sweeps" in said
    assert said.count(". ") == 0


# -------------------------------------------------------------------------------------------- parity with transformers


@pytest.mark.parametrize("seed", range(4))
def test_text_that_grows_beyond_where_the_rope_changes_is_what_generate_writes(seed):
    lm, prefix = tiny("longrope"), paragraphs(1, P, seed)[0]
    told = result(lm, Continue(prefix, 10)).tokens.tolist()
    ids = torch.tensor([prefix])
    written = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, eos_token_id=None
    )
    assert told == written[0, P:].tolist()


def test_sweeps_of_rows_on_both_sides_of_where_the_rope_changes_are_passes_over_whole_rows():
    lm = tiny("longrope")
    for length in (15, 16, 17, 24):
        row = paragraphs(1, length, 3)[0]
        swept = result(lm, Sweep(row, prefix_length=P))
        for position in range(P):
            changed = [*row[:position], int(swept.replacements[position, 0]), *row[position + 1 :]]
            scored = result(lm, ExactMatch((tuple(changed),), P))
            assert swept.em[position, 0] == scored.em[0]
            assert swept.nll[position, 0] == pytest.approx(scored.nll[0], rel=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_logits_attentions_and_gradients_are_those_of_transformers(family):
    lm, rows = tiny(family), torch.tensor(ROWS)
    with torch.inference_mode():
        raw = lm.model(input_ids=rows, output_attentions=True)
        assert torch.equal(lm.logits(lm.hidden(rows)), raw.logits)
    for query in (P - 1, P):
        row = result(lm, Attention(ROWS[0], P, query)).weights
        for layer, weights in enumerate(raw.attentions):
            np.testing.assert_allclose(row[layer], weights[0, :, query, : query + 1], atol=1e-5)
    pattern = result(lm, AttentionPattern(ROWS[0], 1, 2)).weights
    np.testing.assert_allclose(pattern, raw.attentions[1][0, 2], atol=1e-5)

    scored = result(lm, ParameterGradients(ROWS[:1], P))
    targets = rows[:1].clone()
    targets[:, :P] = -100
    try:
        lm.model.requires_grad_(True)
        lm.model(input_ids=rows[:1], labels=targets).loss.backward()
        for layer, block in enumerate(lm.adapter.blocks):
            for kind, path in (("W_out", lm.adapter.family.mlp_out), ("W_O", lm.adapter.family.out)):
                largest = block.get_submodule(path).weight.grad.abs().max()
                own = [i for i, name in enumerate(scored.components) if name.split()[0] == kind]
                assert scored.max[0, layer, own].max() == pytest.approx(float(largest), rel=1e-3)
    finally:
        lm.model.requires_grad_(False)
        lm.model.zero_grad(set_to_none=True)


# -------------------------------------------------------------------------------------------------------- long rows

LONG, PREFIX = 312, 300  # tokens; GPT-Neo's local layers see 256
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LONG_CONFIGS = {
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=256,
        max_position_embeddings=512,
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "mistral": lambda: transformers.MistralConfig(**LLAMA, sliding_window=40),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=40, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=12),
    "olmo2": lambda: transformers.Olmo2Config(**LLAMA),
    "olmo3": lambda: transformers.Olmo3Config(**LLAMA, sliding_window=256),
    "gemma2": lambda: transformers.Gemma2Config(**LLAMA, head_dim=8, sliding_window=256, query_pre_attn_scalar=8),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **LLAMA, head_dim=8, sliding_window=64, query_pre_attn_scalar=8
    ),
}


SWEPT = ("gpt_neo", "mistral", "gemma3_text")  # the kinds of windows


@pytest.fixture(scope="module", params=LONG_CONFIGS)
def long(request):
    """A model that reads 512 tokens, its own greedy text, and the same with one token near the end changed."""
    lm = held(request.param, LONG_CONFIGS[request.param]())
    prompt = torch.randint(0, VOCABULARY, (1, PREFIX), generator=torch.Generator().manual_seed(1))
    said = greedy(lm, prompt)
    row = prompt[0].tolist() + said
    left = [*row[: PREFIX + 8], (row[PREFIX + 8] + 1) % VOCABULARY, *row[PREFIX + 9 :]]
    return lm, tuple(row), tuple(left)


def greedy(lm, prompt):
    """What transformers' own decoding gives, end of text treated as any token."""
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=LONG - PREFIX, eos_token_id=None, pad_token_id=0
    )
    with torch.inference_mode():
        said = lm.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    return said[0, prompt.shape[1] :].tolist()


def test_exact_match_beyond_the_window_is_that_of_generate(long):
    lm, row, left = long
    assert result(lm, ExactMatch((row, left), PREFIX)).em.tolist() == [LONG - PREFIX, 8]
    assert result(lm, Continue(row[:PREFIX], LONG - PREFIX)).tokens.tolist() == list(row[PREFIX:])


def test_attention_rows_beyond_the_window_are_those_of_transformers(long):
    lm, row, _ = long
    with torch.inference_mode():
        raw = lm.model(input_ids=torch.tensor([row]), output_attentions=True).attentions
    found = result(lm, Attention(row, PREFIX)).weights
    for layer, weights in enumerate(raw):
        np.testing.assert_allclose(found[layer], weights[0, :, PREFIX - 1, :PREFIX], atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-4)


@pytest.mark.parametrize("long", SWEPT, indirect=True)
def test_a_sweep_beyond_the_window_is_one_pass_per_replacement(long):
    lm, row, _ = long
    assert lm.reuses_prefix
    swept = result(lm, Sweep(row, "random", 1, 3, (), PREFIX))
    for position in (0, 5, 40, 43, 44, 45, 60, 120, 199, 255, 256, 270, 291, 299):
        perturbed = list(row)
        perturbed[position] = int(swept.replacements[position, 0])
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([perturbed])).logits[0]
        predicted = logits[PREFIX - 1 : -1].argmax(-1).tolist()
        nll = torch.nn.functional.cross_entropy(logits[PREFIX - 1 : -1], torch.tensor(row[PREFIX:]))
        assert swept.em[position, 0] == leading_matches(predicted, list(row[PREFIX:]))
        assert swept.nll[position, 0] == pytest.approx(float(nll), rel=1e-3, abs=1e-4)


EXPERTS = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def experts():
    """A mixture of experts, which transformers keeps as stacks of matrices."""
    sizes = {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 1}
    return held("mixtral", transformers.MixtralConfig(**EXPERTS, **sizes, bos_token_id=0, eos_token_id=0))


def test_the_experts_of_a_mixture_count_among_the_weights(experts):
    every = sum(p.numel() for block in experts.blocks for p in block.parameters() if p.ndim > 1)
    assert sum(m.parameter.numel() for m in matrices(experts)) == every
    scored = result(experts, ParameterGradients(ROWS[:2], P))
    rows = torch.tensor(ROWS[:1])
    for parameter in experts.model.parameters():
        parameter.requires_grad_(True)
    experts.nll(rows, P).mean().backward()
    for layer, block in enumerate(experts.blocks):
        largest = max(float(p.grad.abs().max()) for p in block.parameters() if p.ndim > 1)
        np.testing.assert_allclose(scored.max[0, layer, 0], largest, rtol=1e-4)
    experts.model.requires_grad_(False)
    experts.model.zero_grad(set_to_none=True)
    run = result(experts, Unlearn(ROWS[:1], ROWS[1:], P, mask="dense", goal="steps", steps=1, kept_per_step=2))
    assert any("experts" in name for name in run.edit.parameters)


def test_the_blocks_are_those_of_the_text_also_where_what_sees_is_deeper():
    text = {**EXPERTS, "vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 8}
    seeing = {**EXPERTS, "num_hidden_layers": 5, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=seeing, mm_tokens_per_image=4)
    assert [type(block).__name__ for block in held("gemma3", config).blocks] == ["Gemma3DecoderLayer"] * 2


def test_a_notice_is_told_with_the_answer_that_it_belongs_to():
    """Requests take turns between two steps: what is noticed in one is no news of another."""
    engine = Engine()
    engine.lm = tiny("opt")
    sweep = engine.steps(Sweep(ROWS[0], prefix_length=P))
    next(sweep)
    assert any("heads and MLP" in said for said in engine.answer(ParameterGradients(ROWS[:1], P)).provenance.notices)
    assert finish(sweep).provenance.notices == ()
    assert any("heads and MLP" in said for said in engine.answer(ParameterGradients(ROWS[:1], P)).provenance.notices)


@pytest.mark.parametrize("question", [ParameterGradients(ROWS[:1], P), ActivationGradients(ROWS[0], P)], ids=type)
def test_float16_says_what_it_does_to_gradients(question):
    for dtype, count in ((torch.float16, 1), (torch.bfloat16, 0)):
        engine = Engine()
        engine.lm = tiny("gpt_neo", dtype)
        assert sum("float16" in said for said in engine.answer(question).provenance.notices) == count
