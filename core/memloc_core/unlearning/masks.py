"""Which weights an edit may change: exact top-k over all matrices, never with all scores in one place.

Letters in shapes: k masked weights, N all weights of W_Q, W_K, W_V, W_O, W_in, W_out.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Generator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from memloc_core.architectures import KINDS
from memloc_core.devices import widest
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Mask, Unlearn
from memloc_core.unlearning.neurons import layer_size, neuron_size
from memloc_core.unlearning.weights import Masked, MaskedWeights, Named, matrices

PLACED: tuple[Mask, ...] = ("head", "layer", "component")
_EXAMPLE = {"head": "L1H2", "layer": "L3", "component": "W_out"}

Backward = Callable[[], None]  # one forward and backward pass, which leaves its gradient in the weights that want one


def meant(lm: LanguageModel, request: Unlearn) -> Mask:
    """The mask of a request; "auto" is what did best on the embedded model (tests/benchmarks).

    Raises UsageError for a sparsity outside (0, 1].
    """
    _check_sparsity(request.sparsity)
    if request.mask != "auto":
        return request.mask
    if request.protocol == "paper":
        return "gradient"
    if request.objective != "unlearn" or lm.adapter is None:
        return "ratio"
    total = sum(m.parameter.numel() for m in matrices(lm))
    smallest, largest = neuron_size(lm, request.place), layer_size(lm, request.place)
    return "neurons" if smallest <= math.ceil(request.sparsity * total) <= largest else "ratio"


def size(lm: LanguageModel, mask: Mask, sparsity: float, place: str = "") -> int:
    """k. Raises UsageError for a sparsity outside (0, 1], and for a place that means nothing or is too small."""
    _check_sparsity(sparsity)
    if place and mask not in (*PLACED, "neurons"):
        raise UsageError(f"The mask {mask!r} has no place {place!r}; only {', '.join(PLACED)} and neurons have one.")
    found = matrices(lm)
    total = sum(m.parameter.numel() for m in found)
    if not total:
        raise UsageError(f"{lm.info.name} has no weight matrix that could be changed.")
    k = total if mask == "dense" else math.ceil(sparsity * total)
    if mask == "neurons" and k < (one := neuron_size(lm, place)):
        raise UsageError(
            f"A sparsity of {sparsity:g} is {k:,} weights, and one neuron has {one:,}; "
            f"give at least {math.ceil(one / total * 1e6) / 1e6:g}."
        )
    if mask == "neurons" and k > (most := layer_size(lm, place)):
        raise UsageError(
            f"A sparsity of {sparsity:g} is {k:,} weights, and the neurons of one layer have {most:,}; "
            f"give at most {math.floor(most / total * 1e6) / 1e6:g}, or another mask."
        )
    if mask in PLACED:
        room = sum(int(inside.sum()) for inside in allowed(lm, found, mask, place))
        if k > room:
            raise UsageError(
                f"{place} has {room:,} weights, fewer than the {k:,} that a sparsity of {sparsity:g} asks for; "
                f"give at most {math.floor(room / total * 1e6) / 1e6:g}."
            )
    return k


def _check_sparsity(sparsity: float) -> None:
    if not (math.isfinite(sparsity) and 0 < sparsity <= 1):
        raise UsageError(f"A sparsity of {sparsity:g} is no share of the weights; give one above 0 and at most 1.")


def choose(
    lm: LanguageModel,
    mask: Mask,
    k: int,
    *,
    place: str = "",
    seed: int = 0,
    changed: Callable[[int, int], None] = lambda start, stop: None,
    rows: int = 0,
    length: int = 0,
    kept: Sequence[Backward] = (),
) -> Generator[int, None, MaskedWeights]:
    """Exactly k weights, and yields after each of the passes `kept` how many are done.

    The gradients of changed(start, stop), a pass over some of `rows` rows of `length` tokens, add up; of `kept`, one
    for each row, their squares do. Holds at most one number for each weight, and another one where the rows do not fit
    into one batch: a gradient is scored, and freed, as soon as backward has made it.
    """
    found = matrices(lm)
    if mask == "dense":
        return _masked(found, [slice(None)] * len(found))
    if mask == "random":
        total = sum(m.parameter.numel() for m in found)
        drawn = np.random.default_rng(seed).choice(total, k, replace=False)
        return _masked(found, _by_matrix(found, torch.from_numpy(np.sort(drawn)).to(lm.device)))
    inside = allowed(lm, found, mask, place) if mask in PLACED else None
    squares: list[Tensor] | None = None
    if mask != "gradient" and kept:  # with nothing kept a contrast with it is the gradient itself
        squares = [torch.zeros_like(m.parameter, dtype=torch.float32) for m in found]

        def add(i: int, gradient: Tensor) -> None:
            squares[i].addcmul_(gradient, gradient)

        for done, backward in enumerate(kept):
            _backward(found, backward, add)
            yield done + 1
    starts = np.cumsum([0, *(m.parameter.numel() for m in found)])
    if squares is not None:  # from here on their root, which the scores are held against
        # The root of the mean square over all weights: what a weight has to stand above at least.
        floor = math.sqrt(float(sum(s.sum(dtype=widest(lm.device)) for s in squares)) / len(kept) / int(starts[-1]))
        for s in squares:
            s.div_(len(kept)).sqrt_().add_(0.0 if mask == "difference" else floor)
    best = TopK(k, lm.device)

    def score(i: int, gradient: Tensor) -> None:
        scores = gradient.abs().float()
        if squares is not None:
            scores = scores.sub_(squares[i]) if mask == "difference" else scores.div_(squares[i]).nan_to_num_(nan=0.0)
        if inside is not None:
            scores.masked_fill_(~inside[i], -torch.inf)
        best.offer(scores.view(-1), int(starts[i]))

    def attempt(_: int, at_once: int) -> None:
        nonlocal best
        best = TopK(k, lm.device)
        sums: dict[int, Tensor] = {}
        for start in range(0, rows, at_once):

            def take(i: int, gradient: Tensor, last: bool = start + at_once >= rows) -> None:
                whole = sums.pop(i) + gradient if i in sums else gradient
                if last:
                    score(i, whole)
                else:
                    sums[i] = whole

            _backward(found, partial(changed, start, min(start + at_once, rows)), take)

    # A pass that runs out of memory may have added half of its gradients: all rows are taken again, fewer at once.
    next(lm.in_batches(attempt, rows, length, backward=True))
    return _masked(found, _by_matrix(found, best.indices().sort().values))


class TopK:
    """The k largest of the scores offered so far, and their indices.

    Of equal scores `torch.topk` chooses, which devices do not do alike.
    """

    def __init__(self, k: int, device: torch.device) -> None:
        self._k = k
        self._scores = torch.empty(0, device=device)
        self._indices = torch.empty(0, dtype=torch.int64, device=device)

    def offer(self, scores: Tensor, start: int) -> None:
        """Scores [m] of the indices start .. start + m."""
        if len(scores) > self._k:
            scores, indices = scores.topk(self._k)
        else:
            indices = torch.arange(len(scores), device=scores.device)
        both = torch.cat([self._scores, scores])
        where = torch.cat([self._indices, indices + start])
        if len(both) > self._k:
            both, order = both.topk(self._k)
            where = where[order]
        self._scores, self._indices = both, where

    def indices(self) -> Tensor:
        return self._indices


def allowed(lm: LanguageModel, found: Sequence[Named], mask: Mask, place: str) -> list[Tensor]:
    """bool tensors of the matrices' shapes: what lies in the place of a mask "head", "layer" or "component"."""
    known = re.fullmatch({"head": r"L(\d+)H(\d+)", "layer": r"L(\d+)", "component": r"(W_\w+)"}[mask], place)
    if not known:
        said = f"{place!r} is none" if place else "none is given"
        raise UsageError(f"The mask {mask!r} needs a place such as {_EXAMPLE[mask]}; {said}.")
    if mask == "layer":
        layer = int(known[1])
        if layer >= lm.info.layers:
            raise UsageError(f"There is no layer {place}: {lm.info.name} has layers L0..L{lm.info.layers - 1}.")
        return [torch.full_like(m.parameter, m.layer == layer, dtype=torch.bool) for m in found]
    architecture = lm.architecture(f"The mask {mask!r}")
    inside = [torch.zeros_like(m.parameter, dtype=torch.bool) for m in found]
    if mask == "component":
        if place not in KINDS:
            raise UsageError(f"There is no component {place}; there are {', '.join(KINDS)}.")
    else:
        lm.check_head(int(known[1]), int(known[2]))
    for view, m in zip(inside, found, strict=True):
        for kind, part in m.matrix.divide(view).items():
            if mask == "component" and kind == place:
                part.fill_(True)
            elif mask == "head" and m.layer == int(known[1]) and kind not in ("W_in", "W_out"):
                # Grouped attention: several query heads share the keys and values of one.
                part[int(known[2]) * len(part) // architecture.heads] = True
    return inside


def _backward(found: Sequence[Named], backward: Backward, take: Callable[[int, Tensor], None]) -> None:
    """One forward and backward pass; `take` gets each matrix' gradient, which is freed afterwards."""
    with contextlib.ExitStack() as stack:
        for i, m in enumerate(found):

            def hook(parameter: Tensor, i: int = i) -> None:
                gradient, parameter.grad = parameter.grad, None
                assert gradient is not None
                with torch.no_grad():
                    take(i, gradient)

            m.parameter.requires_grad_(True)
            stack.callback(m.parameter.requires_grad_, False)
            handle = m.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        with torch.enable_grad():
            backward()


def _by_matrix(found: Sequence[Named], ascending: Tensor) -> list[Tensor]:
    """Indices over all matrices, one after the other, as indices into each."""
    starts = torch.tensor([0, *(m.parameter.numel() for m in found)], device=ascending.device).cumsum(0)
    cuts = torch.searchsorted(ascending, starts).tolist()
    return [ascending[a:b] - start for a, b, start in zip(cuts[:-1], cuts[1:], starts[:-1], strict=True)]


def _masked(found: Sequence[Named], indices: Sequence[Tensor | slice]) -> MaskedWeights:
    return MaskedWeights([Masked(m.name, m.parameter, m.module, i) for m, i in zip(found, indices, strict=True)])
