"""Edits made by hand, and naive copies of all weights to hold them against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from memloc_core.requests import GROUPS, Answer, Provenance, SparseEdit, Unlearn, Unlearning

Weights = dict[str, torch.Tensor]


def copy_of(lm: Any) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def equal(a: Weights, b: Weights) -> bool:
    """All weights of two models, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


def changed(a: Weights, b: Weights) -> int:
    """How many weights differ."""
    return sum(int((bits(a[name]) != bits(b[name])).sum()) for name in a)


def make_edit(
    lm: Any,
    k: int = 30,
    seed: int = 0,
    *,
    of: Iterable[str] | None = None,
    on: tuple[str, ...] = (),
    free: Weights | None = None,
    size: float = 0.5,
) -> SparseEdit:
    """k weights of `of` (all parameters), moved; `free` holds ones where they may be taken from, and loses them."""
    rng = np.random.default_rng(seed)
    weights = copy_of(lm)
    names = sorted(of or weights)
    sizes = np.array([weights[name].numel() for name in names])
    starts = np.concatenate([[0], sizes.cumsum()])
    where = np.arange(sizes.sum())
    if free is not None:
        where = where[torch.cat([free[name].view(-1) for name in names]).numpy() > 0]
    flat = np.sort(rng.choice(where, k, replace=False))
    all_weights = torch.cat([weights[name].reshape(-1) for name in names])
    old = all_weights[torch.from_numpy(flat)]
    new = (old.float() + size * (1 + torch.from_numpy(rng.random(k)).float())).to(old.dtype)
    if free is not None:
        for name, start in zip(names, starts, strict=False):
            mine = flat[(flat >= start) & (flat < start + free[name].numel())] - start
            free[name].view(-1)[torch.from_numpy(mine)] = 0
    bounds = np.searchsorted(flat, starts)
    return SparseEdit(
        model=lm.info.name,
        base=lm.info.fingerprint,
        on_top_of=on,
        parameters=tuple(names),
        starts=bounds.astype(np.int64),
        indices=(flat - np.repeat(starts[:-1], np.diff(bounds))).astype(np.int64),
        old=old.float().numpy(),
        new=new.float().numpy(),
    )


def written(weights: Weights, edit: SparseEdit) -> Weights:
    """A copy of all weights with an edit written into them, number by number."""
    out = {name: tensor.clone() for name, tensor in weights.items()}
    for i, name in enumerate(edit.parameters):
        for j in range(edit.starts[i], edit.starts[i + 1]):
            place = np.unravel_index(edit.indices[j], tuple(out[name].shape))
            out[name][place] = float(edit.new[j])
    return out


def run_of(edit: SparseEdit, *, em: int = 3) -> Answer[Any]:
    """The answer of a run of two steps and two paragraphs that ended with this edit."""
    rng = np.random.default_rng(1)
    floats = rng.random((3, 2)).astype(np.float32)
    groups = rng.random((3, len(GROUPS))).astype(np.float32)
    groups[:, -1] = np.nan
    result = Unlearning(
        edit=edit,
        best=2,
        stopped="goal",
        reason="The goal was met.",
        em=np.array([[50, 50], [20, 30], [em, em]]),
        longest_run=np.array([[50, 50], [20, 30], [8, 6]]),
        nll=floats,
        taught_em=np.zeros((3, 0), np.int64),
        taught_nll=np.zeros((3, 0), np.float32),
        loss=floats[:2, 0],
        kl=floats[:, 1],
        group_em=groups,
        group_nll=groups,
        agreement=groups,
        step_seconds=0.1,
        peak_bytes=1000,
    )
    request = Unlearn(targets=((1, 2, 3) * 20, (4, 5, 6) * 20), kept=((7, 8, 9) * 20,), seed=7)
    return Answer(
        request, result, Provenance(edit.model, edit.base, "", "float32", "cpu", "eager", 1.5, {"torch": "2"})
    )
