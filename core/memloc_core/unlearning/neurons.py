"""The mask "neurons": whole neurons of one layer's MLP, made into detectors of the paragraphs that shall go.

Single weights chosen by their gradient change a little of everything that passes through them. A neuron has a gate: its
W_in row can be fitted to fire where the paragraph's continuation is predicted and nowhere in the kept text, and then
its W_out column, which starts at zero, is free to take the recitation away from exactly those positions. The
neurons that the kept text uses least are taken, so that what they did before is missed least.

Letters in shapes: m neurons, w width, d neurons of the layer, r rows, c continuation positions, x positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from memloc_core.architectures import Matrix
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.model_library import compiler_held_back
from memloc_core.unlearning.objectives import Rows
from memloc_core.unlearning.weights import Masked, MaskedWeights, Named, matrices

_NEGATIVES = 128  # kept rows that a detector is fitted against
_FIRES, _RESTS = 2.0, -2.0  # what goes into the activation where a detector shall fire, and elsewhere
_KEPT_WEIGHT = 30.0  # of the kept positions in the fit, against one for the positions to be found
_RIDGE = 1e-2
_ITERATIONS = 60


@dataclass(frozen=True)
class _Mlp:
    """The matrices of one layer's MLP. A gated one has two that go in."""

    into: list[Named]
    out: Named

    @property
    def size(self) -> int:
        """Weights of one neuron."""
        return sum(_shape(m, "W_in")[1] for m in self.into) + _shape(self.out, "W_out")[0]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By the matrices' names, the flat indices of each neuron's weights, [d, w]: its row in, its column out."""
        into = {m.name: _where(m, "W_in") for m in self.into}
        return into | {self.out.name: _where(self.out, "W_out").mT}


def layer_of(lm: LanguageModel, place: str) -> int:
    """The layer that `place` names, such as "L2"; the middle one for "". Raises UsageError if it is not there."""
    if not place:
        return lm.info.layers // 2
    number = place.removeprefix("L")
    if not (place.startswith("L") and number.isdecimal() and int(number) < lm.info.layers):
        raise UsageError(
            f"There is no layer {place!r} for the mask 'neurons': {lm.info.name} has L0..L{lm.info.layers - 1}."
        )
    return int(number)


def neuron_size(lm: LanguageModel, place: str) -> int:
    """The weights of one neuron. Raises UsageError where the model's family is not known, or the layer not there."""
    lm.architecture("The mask 'neurons'")
    return _mlp(lm, layer_of(lm, place)).size


def layer_size(lm: LanguageModel, place: str) -> int:
    """The weights of all neurons of the layer. Raises UsageError as `neuron_size` does."""
    lm.architecture("The mask 'neurons'")
    mlp = _mlp(lm, layer_of(lm, place))
    return sum(_shape(m, "W_in").numel() for m in mlp.into) + _shape(mlp.out, "W_out").numel()


def detectors(
    lm: LanguageModel,
    k: int,
    place: str,
    targets: Sequence[Rows],
    kept: Rows,
    most: int | None = None,
    near: Rows | None = None,
) -> MaskedWeights:
    """k weights of whole neurons, and values for them to start from.

    `targets` are the paragraphs under several prefixes, row by row the same; `most`: detect only so many of the first
    continuation positions; `near`: of what is kept, what is so like the targets that it is to count as much as all the
    rest. The detectors share the positions out among them: each has every m-th. What k has left
    beyond whole neurons, or beyond one neuron a position, is of the next neurons and starts as it is.
    """
    mlp = _mlp(lm, layer_of(lm, place))
    kept = kept[:_NEGATIVES]
    with torch.inference_mode():
        found = [_inputs(lm, mlp, rows) for rows in targets]
        negative, use = _inputs_everywhere(lm, mlp, kept) if len(kept) else (found[0][:0].flatten(0, 1), None)
        close = negative[:0] if near is None else _inputs_everywhere(lm, mlp, near[:: -(-len(near) // _NEGATIVES)])[0]
    positive = torch.stack(found, 1)[:, :, :most].float().clone()  # [r, v, c, w]
    order = _least_used(mlp, use)
    m = min(k // mlp.size, positive.shape[2])
    bias = getattr(mlp.into[0].module, "bias", None)
    offset = torch.zeros(m, device=lm.device) if bias is None else bias.data[order[:m]].float()
    resting = [x.float().clone() for x in (negative, close) if len(x)]
    keys = _fitted(positive, resting, offset) if m else torch.empty(0, positive.shape[-1])
    values: dict[str, list[Tensor]] = {m_.name: [] for m_ in (*mlp.into, mlp.out)}
    indices: dict[str, list[Tensor]] = {name: [] for name in values}
    left = k
    for rank, neuron in enumerate(order.tolist()):
        for matrix in (*mlp.into, mlp.out):
            if left <= 0:
                break
            going_in = matrix is not mlp.out
            where = mlp.weights[matrix.name][neuron].to(lm.device)[:left]
            new = matrix.parameter.data.view(-1)[where].float()
            if rank < m:
                new = keys[rank][: len(where)] if going_in else torch.zeros_like(new)
            indices[matrix.name].append(where)
            values[matrix.name].append(new)
            left -= len(where)
    parts, start = [], []
    for named in matrices(lm):
        if indices.get(named.name):
            where, by = torch.cat(indices[named.name]).sort()
            parts.append(Masked(named.name, named.parameter, named.module, where))
            start.append(torch.cat(values[named.name])[by])
    weights = MaskedWeights(parts)
    weights.start = torch.cat(start).to(weights.old)
    return weights


def _fitted(positive: Tensor, resting: Sequence[Tensor], offset: Tensor) -> Tensor:
    """Keys [m, w]: logistic regressions from the layer's inputs, [r, v, c, w] to be found, each [x, w] to rest on.

    Against many more kept positions than there are dimensions such a key separates all but a few in a thousand.
    """
    m, c, w = len(offset), positive.shape[2], positive.shape[3]
    position = torch.arange(c, device=positive.device) % m
    mine = F.one_hot(position, m).to(positive)  # [c, m]
    mine = mine / (mine.sum(0) * positive.shape[0] * positive.shape[1])
    keys = torch.zeros(m, w, device=positive.device, requires_grad=True)
    with compiler_held_back():  # for which torch's optimizers ask
        search = torch.optim.LBFGS([keys], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        with torch.enable_grad():
            missed = F.softplus(_FIRES - positive @ keys.T - offset)  # [r, v, c, m]
            total = (missed * mine).sum() + _RIDGE * keys.square().sum()
            for x in resting:
                fires = F.softplus(x @ keys.T + offset - _RESTS).mean(0).sum()
                total = total + _KEPT_WEIGHT / len(resting) * fires
            total.backward()  # type: ignore[no-untyped-call]
        return total

    with compiler_held_back():
        search.step(loss)  # type: ignore[no-untyped-call]
    return keys.detach()


def _least_used(mlp: _Mlp, use: Tensor | None) -> Tensor:
    """The layer's neurons, those first whose output varies least in the kept text: [d]."""
    columns = mlp.out.matrix.divide(mlp.out.parameter.data)["W_out"][0].float()  # [w, d]
    size = columns.square().sum(0)
    return (size if use is None else size * use).argsort(stable=True)


def _inputs(lm: LanguageModel, mlp: _Mlp, rows: Rows) -> Tensor:
    """What enters the MLP at the positions that predict the targets, [r, c, w]."""
    with _reading(mlp) as (entered, _):
        lm.hidden(rows.ids)
        where = rows.first.to(lm.device)[:, None] + torch.arange(rows.targets.shape[1], device=lm.device)
        inputs: Tensor = entered[0][torch.arange(len(rows), device=lm.device)[:, None], where]
    return inputs


def _inputs_everywhere(lm: LanguageModel, mlp: _Mlp, rows: Rows) -> tuple[Tensor, Tensor]:
    """What enters the MLP at every position of rows, [x, w], and the variance of each neuron's activation, [d]."""
    inputs, sums, squares = [], torch.zeros((), device=lm.device), torch.zeros((), device=lm.device)

    def run(start: int, stop: int) -> None:
        nonlocal sums, squares
        with _reading(mlp) as (entered, activated):
            lm.hidden(rows.ids[start:stop])
            act = activated[0].flatten(0, 1).float()
            sums, squares = sums + act.sum(0), squares + act.square().sum(0)
            inputs.append(entered[0].flatten(0, 1))  # last: a batch that runs out of memory is taken again

    for _ in lm.in_batches(run, len(rows), rows.ids.shape[1] + 1):
        pass
    x = torch.cat(inputs)
    return x, squares / len(x) - (sums / len(x)).square()


@contextlib.contextmanager
def _reading(mlp: _Mlp):  # type: ignore[no-untyped-def]
    """Within, a forward pass leaves what enters the MLP, and its activations, in the two lists."""
    entered: list[Tensor] = []
    activated: list[Tensor] = []
    handles = [
        mlp.into[0].module.register_forward_pre_hook(lambda _, args: entered.append(args[0])),
        mlp.out.module.register_forward_pre_hook(lambda _, args: activated.append(args[0])),
    ]
    try:
        yield entered, activated
    finally:
        for handle in handles:
            handle.remove()


def _mlp(lm: LanguageModel, layer: int) -> _Mlp:
    def holds(matrix: Matrix, kind: str) -> bool:
        return kind in matrix.divide(torch.empty_like(matrix.parameter, device="meta"))

    here = [m for m in matrices(lm) if m.layer == layer]
    return _Mlp([m for m in here if holds(m.matrix, "W_in")], next(m for m in here if holds(m.matrix, "W_out")))


def _where(m: Named, kind: str) -> Tensor:
    """Flat indices of a matrix as its kind sees it: W_in [d, w], W_out [w, d]."""
    numbered = torch.arange(m.parameter.numel()).view(m.parameter.shape)
    return m.matrix.divide(numbered)[kind][0]


def _shape(m: Named, kind: str) -> torch.Size:
    """Of what `_where` gives; nothing is numbered for it."""
    return m.matrix.divide(torch.empty_like(m.parameter, device="meta"))[kind][0].shape
