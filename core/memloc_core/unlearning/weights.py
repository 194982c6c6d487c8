"""k weights of a model as one vector: written into it for a moment, read from it, and trained on their own.

Letters in shapes: k masked weights, T tokens, N all weights that a mask may choose from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from memloc_core.architectures import Matrix, is_matrix, keeps_inputs_first
from memloc_core.devices import numbers_at_once
from memloc_core.language_model import LanguageModel
from memloc_core.requests import SparseEdit

# Above this share of a matrix its whole gradient costs less than gathering the masked entries one by one
# (tests/benchmarks/bench_unlearn.py).
DENSE_FROM = 0.04
_GATHERED_AT_ONCE = 1_000_000  # of a gathered product on a processor, 4 MB in fp32


@dataclass(frozen=True)
class Masked:
    """The masked entries of one matrix."""

    name: str  # of the parameter, as in the checkpoint
    parameter: nn.Parameter
    module: nn.Module
    indices: Tensor | slice  # int64 [k of this matrix], flat, row-major, ascending; slice(None) is every entry

    def __len__(self) -> int:
        return self.parameter.numel() if isinstance(self.indices, slice) else len(self.indices)

    @property
    def numbered(self) -> Tensor:
        """The indices as numbers, which take twice the room of the weights themselves."""
        if isinstance(self.indices, slice):
            return torch.arange(len(self), device=self.parameter.device)
        return self.indices

    @property
    def gathers(self) -> bool:
        """Whether the gradient is taken at the masked entries only, and no gradient of the whole matrix is made."""
        return _is_linear(self.module) and len(self) < DENSE_FROM * self.parameter.numel()


class MaskedWeights:
    """The masked entries of all matrices, in the order of the model's parameters.

    `old` are the values that stood in the model when this was made, exact in float32 for every float up to 32 bits;
    `start` is where training starts, the same unless the mask sets it.
    """

    def __init__(self, parts: Sequence[Masked]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.sizes = [len(part) for part in self.parts]
        originals = [part.parameter.data.view(-1)[part.indices] for part in self.parts]
        wide = torch.promote_types(self.parts[0].parameter.dtype, torch.float32)
        self.old = torch.cat([original.to(wide) for original in originals])
        kept = all(original.dtype == wide for original in originals)
        self._originals = torch.split(self.old, self.sizes) if kept else [original.clone() for original in originals]
        self.start = self.old

    def __len__(self) -> int:
        return len(self.old)

    @property
    def nbytes(self) -> int:
        """Bytes that training these holds at most.

        Old values, those now and the best, Adam's two averages, the gradient and one more on the way to it or from it;
        the indices, what stood there in half precision, and the gradients of whole matrices that the gradient is taken
        from.
        """
        vectors = 7 * self.old.nbytes + sum(x.nbytes for x in self._originals if x.dtype != self.old.dtype)
        indices = sum(part.indices.nbytes for part in self.parts if isinstance(part.indices, Tensor))
        return vectors + indices + sum(part.parameter.nbytes for part in self.parts if not part.gathers)

    @contextlib.contextmanager
    def written(self, values: Tensor) -> Iterator[None]:
        """Within, the model holds `values` [k], rounded to its dtype; afterwards the original bits again."""
        try:
            for part, new in zip(self.parts, torch.split(values, self.sizes), strict=True):
                part.parameter.data.view(-1)[part.indices] = new.to(part.parameter.dtype)
            yield
        finally:
            for part, original in zip(self.parts, self._originals, strict=True):
                part.parameter.data.view(-1)[part.indices] = original

    def rounded(self, values: Tensor) -> Tensor:
        """What the model really holds when `values` are written."""
        rounded = values.clone()
        for part, new in zip(self.parts, torch.split(rounded, self.sizes), strict=True):
            new.copy_(new.to(part.parameter.dtype))
        return rounded

    @contextlib.contextmanager
    def leaves(self) -> Iterator[list[Tensor]]:
        """Within, forward passes keep what the gradient needs. Yields what to differentiate by, for `gather`.

        Nothing below the lowest masked matrix is kept, and no other weight gets a gradient.
        """
        leaves: list[Tensor] = []
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                if not part.gathers:
                    part.parameter.requires_grad_(True)
                    stack.callback(part.parameter.requires_grad_, False)
                    leaves.append(part.parameter)
                    continue
                leaf = torch.zeros(len(part), device=part.parameter.device, requires_grad=True)
                handle = part.module.register_forward_hook(_tap(part, leaf))
                stack.callback(handle.remove)
                leaves.append(leaf)
            yield leaves

    def gather(self, gradients: Sequence[Tensor], into: Tensor) -> None:
        """Add the gradients by the `leaves` to the vector `into` [k]."""
        pairs = zip(self.parts, gradients, strict=True)
        # All before the first is added: a batch that runs out of memory here is taken again, and must have added none.
        found = [(g if part.gathers else g.reshape(-1)[part.indices]).to(into.dtype) for part, g in pairs]
        for part, gradient in zip(torch.split(into, self.sizes), found, strict=True):
            part.add_(gradient)

    def edit(self, lm: LanguageModel, values: Tensor) -> SparseEdit:
        """The edit that makes the model hold `values`, on top of the edits that are in it now."""
        starts = torch.tensor([0, *self.sizes]).cumsum(0)
        indices = torch.empty(len(self), dtype=torch.int64)
        for part, into in zip(self.parts, torch.split(indices, self.sizes), strict=True):
            into.copy_(part.numbered)
        return SparseEdit(
            model=lm.info.name,
            base=lm.info.fingerprint,
            on_top_of=lm.edits,
            parameters=tuple(part.name for part in self.parts),
            starts=starts.numpy(),
            indices=indices.numpy(),
            old=self.old.float().cpu().numpy(),
            new=self.rounded(values).float().cpu().numpy(),
        )


class Adam:
    """torch.optim.Adam for one vector, with L2 weight decay: two vectors of state and nothing else."""

    def __init__(self, like: Tensor, rate: float, decay: float = 0.0) -> None:
        self.rate, self.decay, self.steps = rate, decay, 0
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one step, [k]."""
        if self.decay:
            gradient = gradient + self.decay * values
        self.steps += 1
        self.mean.lerp_(gradient, 1 - 0.9)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        scale = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        return values.addcdiv(self.mean, scale, value=-self.rate / (1 - 0.9**self.steps))


@dataclass(frozen=True)
class Named:
    """A matrix that a mask may choose from."""

    name: str
    layer: int
    matrix: Matrix
    module: nn.Module

    @property
    def parameter(self) -> nn.Parameter:
        return self.matrix.parameter


def matrices(lm: LanguageModel) -> list[Named]:
    """W_Q, W_K, W_V, W_O, W_in and W_out of all layers in the order of the checkpoint's names, each parameter once.

    All matrices of the blocks for a model whose family has no adapter.
    """
    if lm.adapter is not None:
        layers = [lm.adapter.matrices(layer) for layer in range(lm.info.layers)]
    else:
        layers = [
            [Matrix(w, lambda x: {"block": x[None]}) for w in block.parameters() if is_matrix(w)] for block in lm.blocks
        ]
    by_parameter = {id(m.parameter): (i, m) for i, layer in enumerate(layers) for m in layer}
    found = []
    for name, parameter in lm.model.named_parameters():
        if id(parameter) in by_parameter:
            layer, matrix = by_parameter[id(parameter)]
            # Without an adapter it is not known that the module itself is called: Mamba uses some weights directly.
            module = lm.model if lm.adapter is None else lm.model.get_submodule(name.rpartition(".")[0])
            found.append(Named(name, layer, matrix, module))
    return found


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def _tap(part: Masked, leaf: Tensor) -> Any:
    """A forward hook through which `leaf` gets the gradient of the masked entries."""
    columns = part.parameter.shape[1]
    first, second = part.numbered // columns, part.numbered % columns
    into, out = (first, second) if keeps_inputs_first(part.module) else (second, first)

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        return cast(Tensor, _Tap.apply(output, leaf, args[0].detach(), into, out))  # type: ignore[no-untyped-call]

    return hook


class _Tap(torch.autograd.Function):
    """Passes a matrix' output on, and gives the gradient of entry (out, in) = sum over T of d_out * x_in."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, leaf: Tensor, x: Tensor, into: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(x, into, out)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, into, out = ctx.saved_tensors
        # Tokens last, so that an entry reads two runs of T numbers.
        x = x.flatten(0, -2).mT.contiguous()
        d = upstream[0].flatten(0, -2).mT.contiguous()
        step = max(1, numbers_at_once(d.device, _GATHERED_AT_ONCE) // d.shape[1])
        pieces = [
            (d[out[i : i + step]].float() * x[into[i : i + step]].float()).sum(-1) for i in range(0, len(out), step)
        ]
        return upstream[0], torch.cat(pieces), None, None, None
