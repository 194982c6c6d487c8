"""The localization analyses at GPT-Neo 125M's shape: gradients, head ablation and patching, each as a ratio.

Gradients are held against a plain forward and backward pass of the same paragraph through the raw model. Ablation is
held against the sweep: floating-point operations of its matrix products over its seconds, both in one run.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from memloc_core import language_model
from memloc_core.analyses import ablation, parameter_gradients, patching, perturbation
from memloc_core.requests import (
    ActivationPatching,
    AttributionPatching,
    HeadAblation,
    OpenModel,
    ParameterGradients,
    Sweep,
)
from tests.benchmarks.common import paired, ratio, report

LAYERS, HEADS, WIDTH, VOCABULARY = 12, 12, 768, 50257
ROWS = 2  # paragraphs in the ablation


def finish(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def flops(layer_tokens: int, scored_tokens: int) -> float:
    """Multiplications and additions of the weight matrices: 12 w^2 weights a layer, and the unembedding."""
    return 2.0 * (layer_tokens * 12 * WIDTH**2 + scored_tokens * WIDTH * VOCABULARY)


def main() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"attention_types": [[["global", "local"], LAYERS // 2]], "num_heads": HEADS}
    with tempfile.TemporaryDirectory() as folder:
        GPTNeoForCausalLM(GPTNeoConfig(hidden_size=WIDTH, num_layers=LAYERS, **shape)).save_pretrained(folder)
        lm = language_model.load(OpenModel(folder, device="cpu"))
    paragraphs = tuple(map(tuple, torch.randint(0, VOCABULARY, (3, 100)).tolist()))
    row = torch.tensor(paragraphs[:1])
    found: dict[str, Any] = {}

    def plain() -> None:
        """As one would without memloc: labels in, every parameter's gradient out."""
        labels = row.clone()
        labels[:, :50] = -100
        lm.model.requires_grad_(True)
        lm.model(input_ids=row, labels=labels).loss.backward()
        lm.model.requires_grad_(False)
        lm.model.zero_grad(set_to_none=True)

    def gradients() -> None:
        found["gradients"] = finish(parameter_gradients.run(lm, ParameterGradients(paragraphs[:1])))

    def sweep() -> None:
        finish(perturbation.run_sweep(lm, Sweep(paragraphs[0])))

    def ablate() -> None:
        found["ablation"] = finish(ablation.run(lm, HeadAblation(paragraphs[:ROWS])))

    plain()
    taken = paired(5, gradients=gradients, plain=plain)
    rates = paired(1, sweep=sweep, ablation=ablate)
    twin: dict[str, Any] = {"paragraph": paragraphs[0], "replacements": ((25, 7),)}
    estimate = finish(patching.run_attribution(lm, AttributionPatching(**twin)))
    patched = finish(patching.run(lm, ActivationPatching(**twin, cells=estimate.top(3))))
    # Every cell at 125M takes minutes; the embedded model counts its passes the same way.
    demo = language_model.load(OpenModel("demo", device="cpu"))
    twin["paragraph"] = tuple(t % demo.info.vocabulary for t in paragraphs[0])
    every = paired(1, attribution=lambda: finish(patching.run_attribution(demo, AttributionPatching(**twin))))
    every |= paired(1, exact=lambda: found.update(exact=finish(patching.run(demo, ActivationPatching(**twin)))))
    whole = found["exact"]

    sweep_flops = flops(LAYERS * sum(10 * (99 - first) for first in range(0, 50, 10)), 50 * 50)
    layers_run = sum(LAYERS - layer for layer in range(LAYERS)) * HEADS * ROWS
    ablation_flops = flops((layers_run + LAYERS * ROWS) * 99, (LAYERS * HEADS + 1) * ROWS * 50)
    sweep_rate = sweep_flops / rates["sweep"][0] / 1e9
    ablation_rate = ablation_flops / rates["ablation"][0] / 1e9
    report(
        "localization at 125M, fp32",
        {
            "gradients of one paragraph, seconds": min(taken["gradients"]),
            "plain forward + backward, seconds": min(taken["plain"]),
            "gradients / plain forward + backward": ratio(taken, "gradients", "plain"),
            "gradients, peak MB by the batch rule": found["gradients"].peak_bytes / 1e6,
            f"ablation of {LAYERS * HEADS} heads, {ROWS} rows, seconds": rates["ablation"][0],
            "ablation, GFLOP/s": ablation_rate,
            "sweep, GFLOP/s": sweep_rate,
            "ablation's rate / sweep's": ablation_rate / sweep_rate,
            "ablation's layers run / of whole passes": layers_run / (LAYERS * LAYERS * HEADS * ROWS),
            "patching the demo model, cells": whole.cells,
            "patching the demo model, forward passes": whole.forwards,
            "patching, cells / forward pass": whole.cells / whole.forwards,
            "patching the top 9 cells at 125M, cells / pass": patched.cells / patched.forwards,
            "exact patching, seconds": every["exact"][0],
            "attribution patching, seconds": every["attribution"][0],
        },
        {
            "gradients / plain forward + backward": ("<=", 1.25),
            "ablation's rate / sweep's": (">=", 0.7),
            "patching, cells / forward pass": (">=", 5.0),
        },
    )


if __name__ == "__main__":
    main()
