"""The localization analyses against what one writes without memloc, side by side in one run.

- Gradients of every component against a plain forward and backward pass of the same paragraph.
- Attention rows, head ablation and patching against plain `transformers`: whole passes that keep all hidden states and
  attentions (`output_hidden_states`, `output_attentions`) and all logits, one row, one head, one patch at a time with a
  hook. Both sides must give the same numbers.
- Ablation's rate against the sweep's: floating-point operations of its matrix products over its seconds.

At GPT-Neo 125M's shape and on the embedded model, fp32, on the processor and, where there is one, on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from memloc_core import loading
from memloc_core.analyses import ablation, attention, parameter_gradients, patching, perturbation
from memloc_core.language_model import LanguageModel
from memloc_core.requests import (
    ActivationPatching,
    AttributionPatching,
    HeadAblation,
    OpenModel,
    ParameterGradients,
    Sweep,
)
from tests.benchmarks.common import devices, finish, paired, random_model, ratio, report

LAYERS, HEADS, WIDTH, VOCABULARY = 12, 12, 768, 50257
PREFIX = 50
ROWS = 2  # paragraphs in the ablation
LOOKED_AT = 8  # paragraphs whose attention is read
HEADS_TRIED = 12  # of all heads, in the plain ablation, spread over the layers
Rows = tuple[tuple[int, ...], ...]


def flops(layer_tokens: int, scored_tokens: int) -> float:
    """Multiplications and additions of the weight matrices: 12 w^2 weights a layer, and the unembedding."""
    return 2.0 * (layer_tokens * 12 * WIDTH**2 + scored_tokens * WIDTH * VOCABULARY)


def paragraphs_for(lm: LanguageModel, n: int) -> Rows:
    drawn = torch.randint(0, lm.info.vocabulary, (n, 2 * PREFIX), generator=torch.Generator().manual_seed(0))
    return tuple(map(tuple, drawn.tolist()))


@contextlib.contextmanager
def hooked(module: torch.nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def counted(lm: LanguageModel, work: Callable[[], None]) -> tuple[int, int]:
    """How many rows, and how many tokens, go through an MLP of a GPT-Neo while the work is done, over all layers."""
    rows, tokens = 0, 0

    def count(_: Any, inputs: Any) -> None:
        nonlocal rows, tokens
        rows, tokens = rows + len(inputs[0]), tokens + inputs[0][..., 0].numel()

    with contextlib.ExitStack() as stack:
        for block in lm.model.transformer.h:
            stack.enter_context(hooked(block.mlp, count))
        work()
    return rows, tokens


def plain_nll(lm: LanguageModel, row: torch.Tensor) -> torch.Tensor:
    """Mean NLL of a row's continuation [1, t], from all logits of a whole pass."""
    logits = lm.model(input_ids=row).logits[:, PREFIX - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.mT, row[:, PREFIX:], reduction="none").mean()


def side_by_side(lm: LanguageModel, repeats: int) -> dict[str, Any]:
    """Attention, ablation and patching beside the plain way of a GPT-Neo."""
    device = "cpu" if lm.device.type == "cpu" else str(lm.device)
    rows = paragraphs_for(lm, LOOKED_AT)
    ids = torch.tensor(rows, device=lm.device)
    blocks, heads = lm.model.transformer.h, lm.info.heads
    size = lm.info.width // heads
    found: dict[str, Any] = {}

    def attend() -> None:
        found["attend"] = attention.attention_rows(lm, torch.tensor(rows), PREFIX - 1)

    def plain_attend() -> None:
        kept = []
        for row in ids:
            out = lm.model(input_ids=row[None], output_attentions=True, output_hidden_states=True)
            kept.append(torch.stack([layer[0, :, PREFIX - 1, :PREFIX] for layer in out.attentions]))
            held = sum(x.nbytes for x in (*out.attentions, *out.hidden_states))
        found["plain attend"], found["held"] = torch.stack(kept).cpu(), held

    tried = range(0, lm.info.layers * heads, max(1, lm.info.layers * heads // HEADS_TRIED))

    def ablate() -> None:
        found["ablate"] = finish(ablation.run(lm, HeadAblation(rows[:ROWS])))

    def plain_ablate() -> None:
        nll = []
        for head in tried:
            layer, at = divmod(head, heads)

            def without(_: Any, inputs: Any, at: int = at) -> Any:
                z = inputs[0].clone()
                z[..., at * size : (at + 1) * size] = 0
                return (z,)

            with hooked(blocks[layer].attn.attention.out_proj, without):
                nll.append([float(plain_nll(lm, ids[row : row + 1])) for row in range(ROWS)])
        found["plain ablate"] = torch.tensor(nll)

    # Residual cells of every third layer at the perturbed position and at two later ones, both ways.
    place = PREFIX // 2
    twin: dict[str, Any] = {"paragraph": rows[0], "replacements": ((place, (rows[0][place] + 1) % lm.info.vocabulary),)}
    cells = tuple(("residual", layer, at) for layer in range(0, lm.info.layers, 3) for at in (place, place + 5, 60))

    def patch() -> None:
        found["patch"] = finish(patching.run(lm, ActivationPatching(**twin, cells=cells)))  # type: ignore[arg-type]

    def plain_patch() -> None:
        both = ids[:1].repeat(2, 1)
        both[1, place] = twin["replacements"][0][1]
        states = lm.model(input_ids=both, output_hidden_states=True).hidden_states
        nll = []
        for _, layer, at in cells:
            for direction in (0, 1):

                def taken(_: Any, inputs: Any, layer: int = layer, at: int = at, source: int = direction) -> Any:
                    x = inputs[0].clone()
                    x[:, at] = states[layer][source, at]
                    return (x, *inputs[1:])

                with hooked(blocks[layer], taken):
                    nll.append(float(plain_nll(lm, both[1 - direction : 2 - direction])))
        found["plain patch"] = torch.tensor(nll).view(-1, 2)

    with torch.inference_mode():
        looked = paired(repeats, device, ours=attend, plain=plain_attend)
        whole = paired(1, device, ours=ablate, plain=plain_ablate)
        patched = paired(repeats, device, ours=patch, plain=plain_patch)
    torch.testing.assert_close(found["attend"], found["plain attend"], atol=1e-4, rtol=1e-3)
    nll = torch.from_numpy(found["ablate"].memorized_nll).flatten(0, 1)[torch.tensor(tried)]
    torch.testing.assert_close(nll, found["plain ablate"], atol=1e-3, rtol=1e-3)
    scores = torch.from_numpy(found["patch"].residual)[:, 0]
    ours = torch.stack([scores[:, layer, at - place] for _, layer, at in cells])
    torch.testing.assert_close(ours, found["plain patch"], atol=1e-3, rtol=1e-3)
    of_all = lm.info.layers * heads / len(tried)
    return {
        f"attention of {LOOKED_AT} rows, ms": min(looked["ours"]) * 1000,
        "output_attentions / attention": ratio(looked, "plain", "ours"),
        "bytes kept, output_attentions and hidden_states / attention": found["held"]
        / (found["attend"].nbytes / LOOKED_AT),
        f"ablation of every head, {ROWS} rows, seconds": whole["ours"][0],
        f"plain ablation (of {len(tried)} heads, scaled) / ablation": ratio(whole, "plain", "ours") * of_all,
        f"patching {2 * len(cells)} cells, ms": min(patched["ours"]) * 1000,
        "plain patching by output_hidden_states / patching": ratio(patched, "plain", "ours"),
        "same numbers both ways": "yes",
    }


def within_125m(lm: LanguageModel) -> tuple[dict[str, Any], dict[str, tuple[str, float]]]:
    """Gradients beside a plain backward pass, ablation's rate beside the sweep's, and how patches share passes."""
    paragraphs = paragraphs_for(lm, 3)
    row = torch.tensor(paragraphs[:1])
    found: dict[str, Any] = {}

    def plain() -> None:
        """As one would without memloc: labels in, every parameter's gradient out."""
        labels = row.clone()
        labels[:, :PREFIX] = -100
        lm.model.requires_grad_(True)
        lm.model(input_ids=row, labels=labels).loss.backward()
        lm.model.requires_grad_(False)
        lm.model.zero_grad(set_to_none=True)

    def gradients() -> None:
        found["gradients"] = finish(parameter_gradients.run(lm, ParameterGradients(paragraphs[:1])))

    def sweep() -> None:
        finish(perturbation.run_sweep(lm, Sweep(paragraphs[0])))

    def ablate() -> None:
        finish(ablation.run(lm, HeadAblation(paragraphs[:ROWS])))

    plain()
    taken = paired(5, gradients=gradients, plain=plain)
    (_, sweep_tokens), (ablation_rows, ablation_tokens) = counted(lm, sweep), counted(lm, ablate)
    rates = paired(1, sweep=sweep, ablation=ablate)
    twin: dict[str, Any] = {"paragraph": paragraphs[0], "replacements": ((25, 7),)}
    estimate = finish(patching.run_attribution(lm, AttributionPatching(**twin)))
    patched = finish(patching.run(lm, ActivationPatching(**twin, cells=estimate.top(3))))
    # Every cell at 125M takes minutes; the embedded model counts its passes the same way.
    demo = loading.load(OpenModel("demo", device="cpu"))
    twin["paragraph"] = tuple(t % demo.info.vocabulary for t in paragraphs[0])
    every = paired(1, attribution=lambda: finish(patching.run_attribution(demo, AttributionPatching(**twin))))
    every |= paired(1, exact=lambda: found.update(exact=finish(patching.run(demo, ActivationPatching(**twin)))))
    whole = found["exact"]

    sweep_flops = flops(sweep_tokens, 50 * 50)
    ablation_flops = flops(ablation_tokens, (LAYERS * HEADS + 1) * ROWS * 50)
    sweep_rate = sweep_flops / rates["sweep"][0] / 1e9
    ablation_rate = ablation_flops / rates["ablation"][0] / 1e9
    figures = {
        "gradients of one paragraph, seconds": min(taken["gradients"]),
        "plain forward + backward, seconds": min(taken["plain"]),
        "gradients / plain forward + backward": ratio(taken, "gradients", "plain"),
        "gradients, peak MB by the batch rule": found["gradients"].peak_bytes / 1e6,
        "ablation, GFLOP/s": ablation_rate,
        "sweep, GFLOP/s": sweep_rate,
        "ablation's rate / sweep's": ablation_rate / sweep_rate,
        "ablation's layers run / of whole passes": ablation_rows / ((LAYERS * HEADS + 1) * LAYERS * ROWS),
        "patching the demo model, cells": whole.cells,
        "patching the demo model, forward passes": whole.forwards,
        "patching, cells / forward pass": whole.cells / whole.forwards,
        "patching the top 9 cells at 125M, cells / pass": patched.cells / patched.forwards,
        "exact patching, seconds": every["exact"][0],
        "attribution patching, seconds": every["attribution"][0],
    }
    goals = {
        "gradients / plain forward + backward": ("<=", 1.25),
        "ablation's rate / sweep's": (">=", 0.7),
        "patching, cells / forward pass": (">=", 5.0),
    }
    return figures, goals


def main() -> None:
    for device in devices():
        demo = loading.load(OpenModel("demo", device=device))
        report(f"localization, embedded, fp32, {device}", side_by_side(demo, 7), {})
        lm = random_model("float32", device)
        figures, goals = within_125m(lm) if device == "cpu" else ({}, {})
        report(f"localization, 125M, fp32, {device}", figures | side_by_side(lm, 3), goals)
        del lm


if __name__ == "__main__":
    main()
