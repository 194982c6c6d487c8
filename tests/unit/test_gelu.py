"""The fused GELU: the numbers and gradients of transformers' own, and gone again when it shall be."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from memloc_core import gelu
from memloc_core.loading import load
from memloc_core.requests import OpenModel


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_a_fused_gelu_has_the_values_and_gradients_of_transformers_own(name):
    theirs, ours = ACT2FN[name], torch.nn.ModuleList([ACT2FN[name]])
    gelu.fuse(found := gelu.slow_ones(ours))
    assert len(found) == 1
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64, requires_grad=True)
    expected, fused = theirs(x), ours[0](x)
    assert torch.allclose(fused, expected, rtol=1e-9, atol=1e-12)
    pair = [torch.autograd.grad(y.sum(), x)[0] for y in (expected, fused)]
    assert torch.allclose(*pair, rtol=1e-7, atol=1e-9)


def test_a_model_is_what_it_was_afterwards(tiny_checkpoint):
    lm, ids = load(OpenModel(str(tiny_checkpoint), device="cpu")), torch.arange(40)[None]
    with torch.inference_mode():
        before = lm.model(ids).logits
        gelu.fuse(slow := gelu.slow_ones(lm.model))
        assert len(slow) == lm.info.layers
        assert gelu.slow_ones(lm.model) == []
        assert torch.allclose(lm.model(ids).logits, before, atol=1e-5)
        gelu.unfuse(slow)
        assert torch.equal(lm.model(ids).logits, before)
    assert len(gelu.slow_ones(lm.model)) == lm.info.layers


def test_other_activations_are_left_alone():
    assert gelu.slow_ones(torch.nn.ModuleList([ACT2FN["gelu"], ACT2FN["silu"], ACT2FN["relu"]])) == []
