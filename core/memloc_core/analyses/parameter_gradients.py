"""Parameter gradients: which weights would change the recitation most (paper section 5; README).

Letters in shapes: k components of a layer, and what `architectures` says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memloc_core.architectures import KINDS, Matrix, is_matrix
from memloc_core.devices import PeakMemory, widest
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import (
    ComponentGradients,
    ContrastGradients,
    GradientContrast,
    ParameterGradients,
    Progress,
)


def run(lm: LanguageModel, request: ParameterGradients) -> Generator[Progress, None, ComponentGradients]:
    """One backward pass per paragraph. Each matrix' gradient is scored and freed as soon as backward has made it."""
    rows = lm.rows(request.paragraphs, request.prefix_length)
    weights = _weights(lm, request.components)
    lm.notice_float16()
    n, peak = len(rows), PeakMemory(lm.device)
    scores = torch.empty(3, n, len(weights.layers), len(weights.components), dtype=torch.float64)
    nll = torch.empty(n)
    found: dict[tuple[int, str], Tensor] = {}  # by layer and kind, for the paragraph at work

    owners: dict[nn.Parameter, list[tuple[int, Matrix]]] = {}  # blocks may share a parameter
    for layer, matrices in enumerate(weights.layers):
        for matrix in matrices:
            owners.setdefault(matrix.parameter, []).append((layer, matrix))

    def score(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        for layer, matrix in owners[parameter]:
            for kind, gradient in weights.parts(matrix, parameter.grad):
                reduced = _reduced(gradient)
                if (layer, kind) in found:  # the second matrix of a gated MLP
                    largest = torch.maximum(found[layer, kind][0], reduced[0])
                    reduced = torch.cat([largest[None], found[layer, kind][1:] + reduced[1:]])
                found[layer, kind] = reduced
        parameter.grad = None

    # One row at a time: a batch's gradients come out summed.
    largest_matrix = max(m.parameter.numel() * m.parameter.element_size() for layer in weights.layers for m in layer)
    for i in range(n):
        with contextlib.ExitStack() as stack:
            stack.enter_context(peak.step(lm.row_bytes(rows.shape[1], backward=True) + 2 * largest_matrix))
            stack.enter_context(_differentiable(weights))
            for parameter in owners:
                handle = parameter.register_post_accumulate_grad_hook(score)  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
            loss = lm.nll(rows[i : i + 1], request.prefix_length).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            nll[i] = loss.detach()
        lm.refuse_no_numbers(nll[i])
        layers = range(len(weights.layers))
        by_layer = [torch.cat([found[layer, kind] for kind in weights.slices], -1) for layer in layers]
        scores[:, i] = torch.stack(by_layer, 1).cpu()
        found.clear()
        yield Progress(i + 1, n, "paragraphs")
    largest, total, squares = scores
    return ComponentGradients(
        components=weights.components,
        max=largest.float().numpy(),
        mean=(total / torch.tensor(weights.sizes)).float().numpy(),
        l2=squares.sqrt().float().numpy(),
        nll=nll.numpy(),
        peak_bytes=peak.bytes,
    )


def run_contrast(lm: LanguageModel, request: ContrastGradients) -> Generator[Progress, None, GradientContrast]:
    """Two mean gradients, compared weight by weight. Holds both: twice the size of the weights that are looked at."""
    p = request.prefix_length
    sets = [lm.rows(paragraphs, p) for paragraphs in (request.changed, request.kept)]
    weights = _weights(lm, request.components)
    lm.notice_float16()
    matrices = [matrix for layer in weights.layers for matrix in layer]
    wide = torch.promote_types(matrices[0].parameter.dtype, torch.float32)  # what many small numbers add up in
    means = [[torch.zeros_like(matrix.parameter, dtype=wide) for matrix in matrices] for _ in sets]
    peak = PeakMemory(lm.device, held=3 * sum(mean.nbytes for mean in means[0]))
    before = 0
    for rows, mean in zip(sets, means, strict=True):

        def add(start: int, stop: int, rows: Tensor = rows, mean: list[Tensor] = mean) -> None:
            with _differentiable(weights):
                loss = lm.nll(rows[start:stop], p).mean(-1).sum() / len(rows)
                parameters = [matrix.parameter for matrix in matrices]  # an expert may have nothing to do
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            lm.refuse_no_numbers(loss.detach())
            torch._foreach_add_(mean, list(gradients))

        for done in lm.in_batches(add, len(rows), rows.shape[1], backward=True, peak=peak):
            yield Progress(before + done, sum(map(len, sets)), "paragraphs")
        before += len(rows)
    for mean in means:
        torch._foreach_abs_(mean)
    total = float(sum(kept.sum(dtype=widest(lm.device)) for kept in means[1]))
    floor = total / sum(kept.numel() for kept in means[1])
    scores = torch.full((4, len(weights.layers), len(weights.components)), -torch.inf, device=lm.device)
    pairs = iter(zip(*means, strict=True))
    for layer, layer_matrices in enumerate(weights.layers):
        for matrix in layer_matrices:
            changed, kept = next(pairs)
            # A set that is exactly zero everywhere has a floor of zero: then nothing stands above it.
            ratio = (changed / (kept + floor)).nan_to_num(nan=0.0)
            for row, values in enumerate((changed, kept, changed - kept, ratio)):
                for kind, part in weights.parts(matrix, values):
                    place = scores[row, layer, weights.slices[kind]]
                    place.copy_(torch.maximum(place, part.flatten(1).amax(-1).float()))
    changed_max, kept_max, difference, ratio_max = scores.cpu().numpy()
    return GradientContrast(
        weights.components, changed_max, kept_max, difference, ratio_max, floor, peak_bytes=peak.bytes
    )


@dataclass(frozen=True)
class _Weights:
    """The weights that are looked at, and how their components are counted."""

    components: tuple[str, ...]
    layers: list[list[Matrix]]
    slices: dict[str, slice]  # of the components, by kind
    sizes: list[list[int]]  # weights in each component, [layers][k]

    def parts(self, matrix: Matrix, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Values of the matrix' shape, by wanted kind: views [components of the kind, ...]."""
        return (part for part in matrix.divide(values).items() if part[0] in self.slices)


def _weights(lm: LanguageModel, wanted: tuple[str, ...]) -> _Weights:
    """Every matrix that holds a wanted component; whole blocks for a model without an adapter."""
    if lm.adapter is None and not wanted:
        names: tuple[str, ...] = ("block",)
        layers = [[_whole(w) for w in block.parameters() if is_matrix(w)] for block in lm.blocks]
        lm.notices.append(
            f"memloc does not know how {lm.info.architecture} divides into heads and MLP: gradients are per layer."
        )
    else:
        architecture = lm.architecture("A gradient per component")
        if unknown := [kind for kind in wanted if kind not in KINDS]:
            raise UsageError(f"{lm.info.name} has no component {unknown[0]!r}; it has {', '.join(KINDS)}.")
        names = tuple(c for c in architecture.components if not wanted or c.split()[0] in wanted)
        layers = [architecture.matrices(layer) for layer in range(lm.info.layers)]
        if wanted:
            layers = [[m for m in layer if set(m.divide(m.parameter)) & set(wanted)] for layer in layers]
    kinds = [name.split()[0] for name in names]
    slices = {kind: slice(kinds.index(kind), kinds.index(kind) + kinds.count(kind)) for kind in kinds}
    weights = _Weights(names, layers, slices, [[0] * len(names) for _ in layers])
    for counts, matrices in zip(weights.sizes, layers, strict=True):
        for matrix in matrices:
            for kind, view in weights.parts(matrix, matrix.parameter):
                where = weights.slices[kind]
                counts[where] = [count + view[0].numel() for count in counts[where]]
    return weights


def _whole(parameter: torch.nn.Parameter) -> Matrix:
    return Matrix(parameter, lambda x: {"block": x[None]})


@contextlib.contextmanager
def _differentiable(weights: _Weights) -> Iterator[None]:
    """Within, the weights ask for gradients; afterwards none of them does, and none holds one."""
    parameters = [matrix.parameter for layer in weights.layers for matrix in layer]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _reduced(gradient: Tensor) -> Tensor:
    """Max |g|, sum |g| and sum g^2 over all but the first dimension, [3, components]: what two matrices can add up."""
    dims = tuple(range(1, gradient.ndim))
    wide = torch.promote_types(gradient.dtype, torch.float32)
    largest, total, root = (torch.linalg.vector_norm(gradient, k, dims, dtype=wide) for k in (torch.inf, 1, 2))
    return torch.stack([largest, total, root.square()])
