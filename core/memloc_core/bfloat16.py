"""A faster forward pass over the same model in bfloat16, for answers that are then verified where rounding matters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from memloc_core import gelu
from memloc_core.language_model import LanguageModel


class Bfloat16Pass:
    """Within `applied()` the model's matrix products are in bfloat16 and its residual stream as before.

    The weights are rounded once, as they are when this is made (autocast would round all of them at every call): two
    bytes each, for as long as this lives.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.device = lm.device.type
        self._modules: list[tuple[nn.Module, nn.Parameter, nn.Parameter]] = []
        self._gelus = gelu.slow_ones(lm.model)
        for module in lm.model.modules():
            if type(module).__name__ in ("Linear", "Conv1D"):  # an embedding that the head is tied to stays whole
                weight = module.weight
                assert isinstance(weight, nn.Parameter)
                rounded = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
                self._modules.append((module, weight, rounded))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model rounds; afterwards it is what it was, bit for bit."""
        try:
            for module, _, rounded in self._modules:
                module.weight = rounded
            gelu.fuse(self._gelus)
            with torch.autocast(self.device, torch.bfloat16):
                yield
        finally:
            for module, weight, _ in self._modules:
                module.weight = weight
            gelu.unfuse(self._gelus)
