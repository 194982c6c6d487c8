"""The adapters: every family's weights divide into heads, and the heads add up to the whole again."""

from __future__ import annotations

import pytest
import torch

from memloc_core.architectures import FAMILIES, KINDS, find
from memloc_core.errors import UsageError
from tests.unit.families import ALL, KNOWN, paragraphs, tiny


def seen(lm, site, layer, rows, **more):
    """What a hook at a site sees during one pass over rows."""
    kept = []
    with torch.inference_mode(), lm.adapter.hooked((site, layer, lambda x: kept.append(x.clone()))):
        lm.hidden(rows)
    return kept


def weights(lm, layer):
    """{kind: [tensors]} of one layer."""
    found = {}
    for matrix in lm.adapter.matrices(layer):
        for kind, view in matrix.divide(matrix.parameter).items():
            found.setdefault(kind, []).append(view)
    return found


def block_input(lm, layer, rows):
    """What the query, key and value projections of a layer are given: their module's own input."""
    kept = []
    module = lm.adapter.blocks[layer].get_submodule(lm.adapter.family.qkv[0])
    handle = module.register_forward_pre_hook(lambda module, args: kept.append(args[0].clone()))
    with torch.inference_mode():
        lm.hidden(rows)
    handle.remove()
    return kept[0]


def test_every_row_of_the_table_is_tested():
    assert set(FAMILIES) == set(ALL) - {"gemma3"}  # whose text model is a gemma3_text
    assert set(KNOWN) < set(ALL)


@pytest.mark.parametrize("family", ALL)
def test_hidden_states_are_the_model_s_own_and_the_head_makes_its_logits_of_them(family):
    """Where a family caps or scales its logits too: whole logits would take a vocabulary's room for every token."""
    lm, ids = tiny(family), torch.tensor(paragraphs(2))
    assert lm.blocks == list(lm.adapter.blocks)
    with torch.inference_mode():
        hidden = lm.hidden(ids)
        theirs = lm.model(input_ids=ids).logits
    assert hidden.shape[-1] == lm.info.width
    torch.testing.assert_close(lm.logits(hidden), theirs)
    scores = lm.token_scores(hidden[:, :-1], ids[:, 1:])
    plain = torch.nn.functional.cross_entropy(theirs[:, :-1].mT, ids[:, 1:], reduction="none")
    torch.testing.assert_close(scores.nll, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_the_divided_weights_are_views_of_every_matrix_of_the_block(family):
    lm = tiny(family)
    for layer in range(3):
        matrices = {id(p) for p in lm.adapter.blocks[layer].parameters() if p.ndim == 2}
        assert {id(m.parameter) for m in lm.adapter.matrices(layer)} == matrices
        divided = weights(lm, layer)
        assert tuple(divided) == KINDS
        for matrix in lm.adapter.matrices(layer):
            views = matrix.divide(matrix.parameter)
            assert sum(view.numel() for view in views.values()) == matrix.parameter.numel()
            storage = matrix.parameter.untyped_storage().data_ptr()
            assert all(view.untyped_storage().data_ptr() == storage for view in views.values())


@pytest.mark.parametrize("family", ALL)
def test_each_heads_projection_is_its_part_of_what_the_module_puts_out(family):
    lm, rows = tiny(family), torch.tensor(paragraphs(2))
    for layer in range(3):
        x = block_input(lm, layer, rows)
        outputs = {}
        for module, output in enumerate(seen(lm, "qkv", layer, rows)):
            bias = getattr(lm.adapter.blocks[layer].get_submodule(lm.adapter.family.qkv[module]), "bias", None)
            outputs |= lm.adapter.divide_qkv((output if bias is None else output - bias).movedim(-1, 0), module)
        for kind in KINDS[:3]:
            (weight,) = weights(lm, layer)[kind]
            assert weight.shape == (lm.adapter.heads if kind == "W_Q" else lm.adapter.kv_heads, *weight.shape[1:])
            for head, part in enumerate(weight):
                torch.testing.assert_close(outputs[kind][head].movedim(0, -1), x @ part.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_the_heads_outputs_sum_to_what_attention_writes(family):
    lm, rows = tiny(family), torch.tensor(paragraphs(2))
    module = lm.adapter.blocks[1].get_submodule(lm.adapter.family.out)
    written = []
    handle = module.register_forward_hook(lambda module, args, output: written.append(output.clone()))
    (z,) = seen(lm, "z", 1, rows)
    handle.remove()
    (w_o,) = weights(lm, 1)["W_O"]  # [h, w, head_dim]
    total = sum(z_head @ w_head.T for z_head, w_head in zip(lm.adapter.by_head(z).unbind(-2), w_o, strict=True))
    if getattr(module, "bias", None) is not None:
        total = total + module.bias
    torch.testing.assert_close(total, written[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_z_is_the_pattern_times_the_values_of_each_head(family):
    lm, rows = tiny(family), torch.tensor(paragraphs(2))
    (pattern,), (z,) = seen(lm, "pattern", 2, rows), seen(lm, "z", 2, rows)
    values = {}
    for module, output in enumerate(seen(lm, "qkv", 2, rows)):
        values |= lm.adapter.divide_qkv(output.movedim(-1, 0), module)
    v = values["W_V"].repeat_interleave(lm.adapter.heads // lm.adapter.kv_heads, 0)  # [h, head_dim, n, t]
    expected = torch.einsum("nhqk,hdnk->nqhd", pattern, v)
    torch.testing.assert_close(lm.adapter.by_head(z), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_a_run_resumed_at_any_layer_ends_as_the_whole_run(family):
    lm, rows = tiny(family), torch.tensor(paragraphs(3))
    with torch.inference_mode():
        whole = lm.hidden(rows)
    for layer in range(3):
        (residual,) = seen(lm, "residual", layer, rows)
        with torch.inference_mode(), lm.adapter.resumed(layer, residual):
            assert torch.equal(lm.hidden(rows * 0), whole)
    with torch.inference_mode():
        assert torch.equal(lm.hidden(rows), whole)


def test_component_names_say_which_heads_share_keys_and_values():
    assert tiny("gpt2").adapter.components[3:6] == ("W_Q H3", "W_K H0", "W_K H1")
    assert tiny("llama").adapter.components == (
        *(f"W_Q H{i}" for i in range(4)),
        *("W_K KV0", "W_K KV1", "W_V KV0", "W_V KV1"),
        *(f"W_O H{i}" for i in range(4)),
        *("W_in", "W_out"),
    )


def test_gpt_neo_125m_has_fifty_components_a_layer():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(hidden_size=48, num_heads=12, num_layers=1, attention_types=[[["global"], 1]], vocab_size=9)
    assert len(find(GPTNeoForCausalLM(config)).components) == 50


def test_a_model_that_strays_from_its_family_has_no_adapter():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    model.transformer.h[0].attn.c_proj = torch.nn.Linear(4, 8)
    assert find(model) is None


def test_an_unknown_family_is_told_what_it_lacks_and_what_still_works():
    lm = tiny("opt")
    assert lm.adapter is None
    with pytest.raises(UsageError, match=r"Head ablation .* OPTForCausalLM; exact match, perturbation"):
        lm.architecture("Head ablation")
