"""A training step of an unlearning run over a plain forward and backward pass of the same batch.

At GPT-Neo 125M's shape and on the embedded model, on the processor and, where there is one, on a GPU. The plain pass is
what one would write without memloc: labels in, the gradient of every parameter out, of the raw model. Memory is the
largest sum of torch's and Python's allocations at any moment; the plain pass holds what it keeps for going backward,
and one gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from memloc_core import loading
from memloc_core.language_model import LanguageModel
from memloc_core.requests import OpenModel, Unlearn
from memloc_core.unlearning import masks
from memloc_core.unlearning.training import Training
from memloc_core.unlearning.weights import Adam
from tests.benchmarks.common import devices, finish, paired, peak_bytes, random_model, ratio, report

KEPT = {"125M": 3, "embedded": 16}  # rows in a step beside the one that is changed


def measure(lm: LanguageModel, name: str, repeats: int) -> dict[str, float]:
    """Ratios of a step with single weights, with whole neurons, and with all weights."""
    device, draw = lm.info.device, torch.Generator().manual_seed(0)
    rows = tuple(map(tuple, torch.randint(0, lm.info.vocabulary, (KEPT[name] + 1, 100), generator=draw).tolist()))
    request = Unlearn(rows[:1], rows[1:], goal="steps", kept_per_step=KEPT[name])
    run = Training(lm, request)
    run.keep_what_was()
    batch = run.batch()
    ids = torch.tensor(rows, device=device)
    labels = ids.clone()
    labels[:, :50] = -100

    def plain() -> None:
        lm.model.requires_grad_(True)
        lm.model(input_ids=ids, labels=labels).loss.backward()
        lm.model.requires_grad_(False)
        lm.model.zero_grad(set_to_none=True)

    gradient = sum(parameter.nbytes for parameter in lm.model.parameters())
    usual = peak_bytes(plain, device)
    held = {f"{name}, memory of plain forward + backward / one gradient": usual / gradient}
    works = {"plain": plain}
    total = masks.size(lm, "dense", 1.0)
    kinds = {"0.1 % at random": "random", "neurons": "neurons"} | ({"all": "dense"} if name == "embedded" else {})
    for kind, mask in kinds.items():
        asked = Unlearn(rows[:1], rows[1:], goal="steps", mask=mask)  # type: ignore[arg-type]
        chosen = Training(lm, asked)
        chosen.keep_what_was()
        found: list[Any] = []
        k = masks.size(lm, asked.mask, asked.sparsity)  # type: ignore[arg-type]

        def choose(chosen: Training = chosen, found: list[Any] = found, k: int = k) -> None:
            found.append(finish(chosen.choose(k)))

        choosing = peak_bytes(choose, device)
        weights = found[0]
        adam = Adam(weights.old, 1e-3)

        def step(weights: Any = weights, adam: Adam = adam) -> None:
            _, gradient = run.gradient(weights, weights.start, batch)
            adam.step(weights.start, gradient)

        works[kind] = step
        held[f"{name}, memory of choosing {kind} / plain"] = choosing / usual
        held[f"{name}, memory of a step with {kind} / plain"] = peak_bytes(step, device) / usual
    for work in works.values():
        work()
    taken = paired(repeats, device, **works)
    figures = {f"{name}, plain forward + backward, seconds": min(taken["plain"])}
    figures |= {f"{name}, step with {kind} / plain": ratio(taken, kind, "plain") for kind in kinds}
    figures[f"{name}, state of Adam in % of the weights"] = 2 * masks.size(lm, "random", 0.001) / total * 100
    return figures | held


def main() -> None:
    for device in devices():
        figures = measure(loading.load(OpenModel("demo", device=device)), "embedded", 7)
        figures |= measure(random_model(device=device), "125M", 3)
        goals = {key: ("<=", 1.0 if "memory" in key else 1.15) for key in figures if key.endswith("/ plain")}
        report(f"unlearning step, fp32, {device}", figures, goals)


if __name__ == "__main__":
    main()
