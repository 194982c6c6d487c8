"""Attention: where every head looks from one position, and the whole pattern of one head (paper section 6)."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from memloc_core.architectures import Hook, Site
from memloc_core.devices import PeakMemory
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Attention, AttentionPattern, AttentionRows, HeadPattern, Progress


def run(lm: LanguageModel, request: Attention) -> Generator[Progress, None, AttentionRows]:
    """Every head's row at `query`, in one pass over the tokens up to it."""
    lm.check_tokens(request.paragraph, len(request.paragraph))
    query = query_position(request.query, request.prefix_length, len(request.paragraph))
    peak = PeakMemory(lm.device)
    with peak.step(lm.row_bytes(query + 1)):
        weights = attention_rows(lm, torch.tensor([request.paragraph]), query)[0]
    lm.refuse_no_numbers(weights)
    yield Progress(1, 1, "passes")
    return AttentionRows(query, weights.numpy(), entropy(weights).numpy(), peak.bytes)


def run_pattern(lm: LanguageModel, request: AttentionPattern) -> Generator[Progress, None, HeadPattern]:
    """One head's whole pattern, from one pass."""
    architecture = lm.architecture("Attention")
    lm.check_head(request.layer, request.head)
    if not request.paragraph:
        raise UsageError("An attention pattern needs a paragraph of at least one token.")
    lm.check_tokens(request.paragraph, len(request.paragraph))
    seen: list[Tensor] = []
    peak = PeakMemory(lm.device)
    with peak.step(lm.row_bytes(len(request.paragraph))), torch.inference_mode():
        keep = ("pattern", request.layer, lambda pattern: seen.append(pattern[0, request.head].float().cpu()))
        with architecture.hooked(keep):  # type: ignore[arg-type]
            lm.hidden(torch.tensor([request.paragraph]))
    lm.refuse_no_numbers(seen[0])
    yield Progress(1, 1, "passes")
    return HeadPattern(seen[0].numpy(), peak.bytes)


def query_position(query: int, prefix_length: int, length: int) -> int:
    """The position whose attention is read; -1 is the one that predicts the first continuation token."""
    if not 0 < prefix_length < length:
        raise UsageError(f"A paragraph of {length} tokens has no prefix of {prefix_length}.")
    position = prefix_length - 1 if query == -1 else query
    if not 0 <= position < length:
        raise UsageError(f"Position {position} is outside the paragraph, 0..{length - 1}.")
    return position


def attention_rows(lm: LanguageModel, rows: Tensor, query: int) -> Tensor:
    """Attention of every head from `query` to itself and all before, [n, layers, h, query + 1], for rows [n, t].

    Only that row of each layer's pattern is kept, and nothing after `query` is computed.
    """
    architecture = lm.architecture("Attention")
    seen: list[Tensor] = []
    hooks: list[tuple[Site, int, Hook]] = [
        ("pattern", layer, lambda pattern: seen.append(pattern[:, :, -1].to(torch.float32, copy=True)))
        for layer in range(lm.info.layers)
    ]
    with torch.inference_mode(), architecture.hooked(*hooks):
        lm.hidden(rows[:, : query + 1])
    return torch.stack(seen, 1).cpu()


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats over the last dimension."""
    nats: Tensor = torch.special.entr(weights).sum(-1)
    return nats
