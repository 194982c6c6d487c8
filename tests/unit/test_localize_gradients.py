"""Gradients by parameter and by activation, against finite differences and against autograd on the raw module."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from memloc_core.errors import Cancelled, UsageError
from memloc_core.requests import ActivationGradients, ContrastGradients, ParameterGradients
from tests.conftest import result
from tests.unit.families import KNOWN, paragraphs, tiny

P = 12  # prefix tokens of the 20


def raw_nll(lm, row):
    """Mean NLL of the continuation from the raw model's own logits."""
    ids = torch.tensor([row])
    logs = lm.model(input_ids=ids).logits[0, P - 1 : -1].log_softmax(-1)
    return -logs.gather(-1, ids[0, P:, None]).mean()


def raw_gradients(lm, rows):
    """{id of parameter: gradient of the mean NLL of rows} by autograd over the whole model."""
    parameters = list(lm.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    loss = sum(raw_nll(lm, row) for row in rows) / len(rows)
    gradients = torch.autograd.grad(loss, parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return {id(p): g for p, g in zip(parameters, gradients, strict=True)}


def by_component(lm, gradients):
    """{(layer, component): flat gradient} by the adapter's own names, a gated MLP's two matrices joined."""
    found = {}
    for layer in range(lm.info.layers):
        for matrix in lm.adapter.matrices(layer):
            for kind, view in matrix.divide(gradients[id(matrix.parameter)]).items():
                names = [name for name in lm.adapter.components if name.split()[0] == kind]
                for name, part in zip(names, view, strict=True):
                    found.setdefault((layer, name), []).append(part.flatten())
    return {key: torch.cat(parts) for key, parts in found.items()}


@pytest.mark.parametrize("family", KNOWN)
def test_scores_are_those_of_autograd_on_the_raw_module(family):
    lm, rows = tiny(family), paragraphs(2)
    scored = result(lm, ParameterGradients(rows, P))
    assert scored.max.shape == scored.mean.shape == scored.l2.shape == (2, 3, len(scored.components))
    assert scored.peak_bytes > 0
    for i, row in enumerate(rows):
        assert scored.nll[i] == pytest.approx(float(raw_nll(lm, row)), rel=1e-5)
        expected = by_component(lm, raw_gradients(lm, [row]))
        assert len(expected) == 3 * len(scored.components)
        for (layer, name), gradient in expected.items():
            at = (i, layer, scored.components.index(name))
            assert scored.max[at] == pytest.approx(float(gradient.abs().max()), rel=1e-3, abs=1e-7)
            assert scored.mean[at] == pytest.approx(float(gradient.abs().mean()), rel=1e-3, abs=1e-7)
            assert scored.l2[at] == pytest.approx(float(gradient.norm()), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("component", ["W_Q H1", "W_K H2", "W_V H0", "W_O H3", "W_in", "W_out"])
def test_the_score_is_the_steepest_finite_difference_in_float64(component):
    """GPT-2 is float64 throughout (others take softmax or norms in float32)."""
    lm, row = tiny("gpt2", torch.float64), paragraphs(1)[0]
    scored = result(lm, ParameterGradients((row,), P))
    kind, _, head = component.partition(" H")
    views = [matrix.divide(matrix.parameter) for matrix in lm.adapter.matrices(1)]
    (weights,) = (view[kind][int(head or 0)] for view in views if kind in view)
    slopes = []
    step = 1e-5
    # Every weight of a head; of the MLP's 2,304 a stretch that holds the steepest, as autograd says.
    steepest = int(by_component(lm, raw_gradients(lm, [row]))[1, component].abs().argmax())
    for flat in range(weights.numel()) if head else range(max(0, steepest - 10), min(weights.numel(), steepest + 10)):
        at = np.unravel_index(flat, weights.shape)
        with torch.no_grad():
            before = float(weights[at])
            weights[at] = before + step
            above = float(raw_nll(lm, row))
            weights[at] = before - step
            below = float(raw_nll(lm, row))
            weights[at] = before
        slopes.append(abs(above - below) / (2 * step))
    assert scored.max[0, 1, scored.components.index(component)] == pytest.approx(max(slopes), rel=1e-5)
    if head:
        assert scored.mean[0, 1, scored.components.index(component)] == pytest.approx(np.mean(slopes), rel=1e-5)


def test_layer_sums_and_shares():
    scored = result(tiny("gpt_neo"), ParameterGradients(paragraphs(3), P))
    np.testing.assert_allclose(scored.layer_sums("mean"), scored.mean.sum(2), rtol=1e-6)
    np.testing.assert_allclose(scored.layer_shares().sum(1), 1, rtol=1e-6)


def test_some_components_alone_have_the_scores_they_have_among_all():
    lm, rows = tiny("gpt2"), paragraphs(1)
    whole = result(lm, ParameterGradients(rows, P))
    some = result(lm, ParameterGradients(rows, P, components=("W_K", "W_out")))
    assert some.components == tuple(c for c in whole.components if c.split()[0] in ("W_K", "W_out"))
    np.testing.assert_allclose(some.max, whole.max[..., [whole.components.index(c) for c in some.components]])


def test_the_model_is_left_without_gradients_even_when_cancelled():
    lm = tiny("llama")
    steps = iter([False, True])
    hook = lm.adapter.blocks[1].register_forward_pre_hook(lambda *_: lm.cancelled.set() if next(steps) else None)
    try:
        with pytest.raises(Cancelled):
            result(lm, ParameterGradients(paragraphs(2), P))
    finally:
        hook.remove()
        lm.cancelled.clear()
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())
    assert all(not p._post_accumulate_grad_hooks for p in lm.model.parameters())


@pytest.mark.parametrize("family", ["opt", "zamba2"])  # two blocks of the second share an attention
def test_a_model_without_an_adapter_has_gradients_per_layer(family):
    lm, rows = tiny(family), paragraphs(1)
    scored = result(lm, ParameterGradients(rows, P))
    assert scored.components == ("block",)
    gradients = raw_gradients(lm, rows)
    for layer, block in enumerate(lm.blocks):
        flat = torch.cat([gradients[id(p)].flatten() for p in block.parameters() if p.ndim == 2])
        assert scored.max[0, layer, 0] == pytest.approx(float(flat.abs().max()), rel=1e-3)
        assert scored.mean[0, layer, 0] == pytest.approx(float(flat.abs().mean()), rel=1e-3)


def test_fewer_blocks_than_the_configuration_has_layers_are_no_error(monkeypatch):
    lm, rows = tiny("opt"), paragraphs(1)
    scored = result(lm, ParameterGradients(rows, P))
    monkeypatch.setattr(lm, "info", replace(lm.info, layers=7))
    np.testing.assert_array_equal(result(lm, ParameterGradients(rows, P)).max, scored.max)


def test_contrast_compares_the_two_mean_gradients_weight_by_weight():
    lm, rows = tiny("qwen3"), paragraphs(7)
    contrast = result(lm, ContrastGradients(rows[:3], rows[3:], P))
    changed = {k: g.abs() for k, g in by_component(lm, raw_gradients(lm, rows[:3])).items()}
    kept = {k: g.abs() for k, g in by_component(lm, raw_gradients(lm, rows[3:])).items()}
    floor = float(torch.cat(list(kept.values())).mean())
    assert contrast.floor == pytest.approx(floor, rel=1e-4)
    for (layer, name), g in changed.items():
        at = (layer, contrast.components.index(name))
        assert contrast.changed[at] == pytest.approx(float(g.max()), rel=1e-3)
        assert contrast.kept[at] == pytest.approx(float(kept[layer, name].max()), rel=1e-3)
        assert contrast.difference[at] == pytest.approx(float((g - kept[layer, name]).max()), rel=1e-3)
        assert contrast.ratio[at] == pytest.approx(float((g / (kept[layer, name] + floor)).max()), rel=1e-3)


@pytest.mark.parametrize("family", KNOWN)
def test_activation_gradients_are_those_of_autograd_on_the_raw_module(family):
    lm, row = tiny(family), paragraphs(1)[0]
    scored = result(lm, ActivationGradients(row, P))
    assert scored.scores.shape == (4, 3, 4, 19)
    assert scored.kv_heads == lm.adapter.kv_heads
    assert scored.nll == pytest.approx(float(raw_nll(lm, row)), rel=1e-5)
    # A zero added to each activation has its gradient.
    block, family_ = lm.adapter.blocks[1], lm.adapter.family
    zeros, handles = {}, []

    def added(path):
        def hook(module, args, output=None):
            x = args[0] if output is None else output
            zeros[path] = torch.zeros_like(x, requires_grad=True)
            return (x + zeros[path], *args[1:]) if output is None else x + zeros[path]

        return hook

    for path in family_.qkv:
        handles.append(block.get_submodule(path).register_forward_hook(added(path)))
    handles.append(block.get_submodule(family_.out).register_forward_pre_hook(added("z")))
    raw_nll(lm, row).backward()
    for handle in handles:
        handle.remove()
    d = lm.adapter.head_dim

    def largest(gradient, head):
        return gradient[0, :-1, head * d : (head + 1) * d].abs().amax(-1)

    for head in range(4):
        shared = head // (4 // lm.adapter.kv_heads)
        if family == "gpt2":
            expected = [largest(zeros["attn.c_attn"].grad, 4 * i + head) for i in range(3)]
        elif family == "gpt_neox":
            expected = [largest(zeros["attention.query_key_value"].grad, 3 * head + i) for i in range(3)]
        else:
            parts = zip(family_.qkv, (head, shared, shared), strict=True)
            expected = [largest(zeros[path].grad, at) for path, at in parts]
        expected.append(largest(zeros["z"].grad, head))
        for i, values in enumerate(expected):
            np.testing.assert_allclose(scored.scores[i, 1, head], values, rtol=1e-3, atol=1e-6)


def test_no_gradient_reaches_what_cannot_matter():
    """In the last layer only queries and z at the predicting positions matter."""
    scored = result(tiny("gpt_neo"), ActivationGradients(paragraphs(1)[0], P)).scores
    assert (scored[[0, 3], 2, :, : P - 1] == 0).all()
    assert (scored[[0, 3], 2, :, P - 1 :] > 0).all()


@pytest.mark.parametrize(
    ("family", "request_", "says"),
    [
        ("gpt2", ParameterGradients(paragraphs(1), P, components=("W_gate",)), "no component 'W_gate'; it has W_Q"),
        ("opt", ParameterGradients(paragraphs(1), P, components=("W_Q",)), "OPTForCausalLM"),
        ("opt", ActivationGradients(paragraphs(1)[0], P), "gradient per head needs"),
        ("gpt2", ParameterGradients((), P), "paragraphs of one length"),
        ("gpt2", ContrastGradients(paragraphs(1), (), P), "paragraphs of one length"),
        ("gpt2", ActivationGradients(paragraphs(1)[0], 20), "longer than the prefix"),
        ("gpt2", ActivationGradients((1, 2, 99), 1), "99"),
    ],
)
def test_impossible_questions_are_told_what_is_wrong(family, request_, says):
    with pytest.raises(UsageError, match=says):
        result(tiny(family), request_)
