"""A prefix sweep at GPT-Neo 125M's shape against what people do today, and against the machine's matmul rate.

All sides replace the same tokens at the same 50 positions of the same paragraph in fp32 and must find the same exact
matches. Random weights have no memory, so every EM would be 0; the paragraph's continuation is therefore the model's
own, which makes the clean EM 50 and the others anything.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from memloc_core import language_model
from memloc_core.analyses import perturbation
from memloc_core.requests import OpenModel, Sweep
from tests.benchmarks.common import paired, ratio, report


def finish(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def leading_matches(said: torch.Tensor, true: torch.Tensor) -> list[int]:
    return (said == true).long().cumprod(-1).sum(-1).tolist()


def main() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"attention_types": [[["global", "local"], 6]], "num_layers": 12, "num_heads": 12}
    with tempfile.TemporaryDirectory() as folder:
        GPTNeoForCausalLM(GPTNeoConfig(hidden_size=768, **shape)).save_pretrained(folder)
        lm = language_model.load(OpenModel(folder, device="cpu"))
    prefix = torch.randint(0, lm.info.vocabulary, (1, 50))
    with torch.inference_mode():
        own, _ = lm.greedy(prefix, 50)
    row = torch.cat([prefix, own], -1)[0]
    request = Sweep(tuple(row.tolist()), seed=1)
    replaced = finish(perturbation.run_sweep(lm, request)).replacements[:, 0]
    prompts = prefix.repeat(50, 1)
    prompts[torch.arange(50), torch.arange(50)] = torch.from_numpy(replaced)
    found: dict[str, list[int]] = {}

    def ours() -> None:
        found["ours"] = finish(perturbation.run_sweep(lm, request)).em[:, 0].tolist()

    def generate(ids: torch.Tensor) -> torch.Tensor:
        out = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=50,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[:, 50:]

    def fifty_generates() -> None:
        found["fifty"] = leading_matches(torch.cat([generate(prompts[i : i + 1]) for i in range(50)]), own)

    def one_batched_generate() -> None:
        found["batched"] = leading_matches(generate(prompts), own)

    def matmuls() -> None:
        """The sweep's own multiplications of the same shapes, and nothing else."""
        for first in range(0, 50, 10):
            tokens = 10 * (99 - first)
            for a, b, times in ((768, 768, 4), (768, 3072, 1), (3072, 768, 1)):
                x, w = inputs[tokens, a], weights[a, b]
                for _ in range(12 * times):
                    torch.nn.functional.linear(x, w)
            head = inputs[500, 768]
            for start in range(0, 500, 318):  # the chunks of `token_scores`
                torch.nn.functional.linear(head[start : start + 318], weights[768, 50257])

    weights = {(a, b): torch.randn(b, a) for a, b in ((768, 768), (768, 3072), (3072, 768), (768, 50257))}
    inputs = {(10 * (99 - f), a): torch.randn(10 * (99 - f), a) for f in range(0, 50, 10) for a in (768, 3072)}
    inputs[500, 768] = torch.randn(500, 768)
    with torch.inference_mode():
        matmuls()
        taken = paired(3, ours=ours, batched=one_batched_generate, matmul=matmuls)
        slow = paired(1, fifty=fifty_generates, ours=ours)
    assert found["ours"] == found["batched"] == found["fifty"], "the exact matches differ"
    tokens = sum(10 * (99 - first) for first in range(0, 50, 10))
    flops = 2 * tokens * 12 * 12 * 768**2 + 2 * 50 * 50 * 768 * 50257
    figures = {
        "sweep, seconds": min(taken["ours"]),
        "one batched generate, seconds": min(taken["batched"]),
        "50 generate calls, seconds": slow["fifty"][0],
        "sweep, GFLOP/s": flops / min(taken["ours"]) / 1e9,
        "matmuls of the same shapes, GFLOP/s": flops / min(taken["matmul"]) / 1e9,
        "50 generate calls / sweep": ratio(slow, "fifty", "ours"),
        "one batched generate / sweep": ratio(taken, "batched", "ours"),
        "sweep's rate / matmul's": ratio(taken, "matmul", "ours"),
    }
    goals = {
        "50 generate calls / sweep": (">=", 10.0),
        "one batched generate / sweep": (">=", 1.4),
        "sweep's rate / matmul's": (">=", 0.75),
    }
    report("sweep at 125M, fp32", figures, goals)
    print(f"  same exact matches on all three ways: yes ({sum(em == 50 for em in found['ours'])} of 50 still whole)")


if __name__ == "__main__":
    main()
