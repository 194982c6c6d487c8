"""Activation gradients: which head would change the recitation at which token (paper section 6; README)."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from memloc_core.architectures import KINDS, Hook, Site
from memloc_core.devices import PeakMemory
from memloc_core.language_model import LanguageModel
from memloc_core.requests import ActivationGradients, HeadGradients, Progress


def run(lm: LanguageModel, request: ActivationGradients) -> Generator[Progress, None, HeadGradients]:
    """One forward and backward pass to the activations; no weight gets a gradient."""
    architecture = lm.architecture("A gradient per head")
    rows = lm.rows((request.paragraph,), request.prefix_length)
    lm.notice_float16()
    layers, modules = range(lm.info.layers), len(architecture.family.qkv)
    seen: list[Tensor] = []  # per layer: what the query, key and value modules put out, then z
    peak = PeakMemory(lm.device)
    hooks: list[tuple[Site, int, Hook]] = [
        ("residual", 0, lambda x: x.requires_grad_())
    ]  # the graph starts where the first block does
    for layer in layers:
        hooks += [("qkv", layer, seen.append), ("z", layer, seen.append)]
    with peak.step(lm.row_bytes(rows.shape[1], backward=True)):
        with torch.enable_grad(), architecture.hooked(*hooks):
            nll = lm.nll(rows, request.prefix_length).mean()
            gradients = torch.autograd.grad(nll, seen)
        lm.refuse_no_numbers(nll.detach())
        scores = torch.empty(4, lm.info.layers, architecture.heads, rows.shape[1] - 1, device=lm.device)
        for layer in layers:
            *qkv, z = (gradient[0] for gradient in gradients[layer * (modules + 1) :][: modules + 1])
            for module, gradient in enumerate(qkv):
                for kind, part in architecture.divide_qkv(gradient.mT, module).items():  # [heads, head_dim, t]
                    largest = part.abs().amax(1)
                    shared_by = architecture.heads // len(largest)
                    scores[KINDS.index(kind), layer] = largest.repeat_interleave(shared_by, 0)
            scores[3, layer] = architecture.by_head(z).abs().amax(-1).mT
    yield Progress(1, 1, "passes")
    return HeadGradients(scores.cpu().numpy(), architecture.kv_heads, float(nll.detach()), peak.bytes)
