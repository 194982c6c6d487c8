"""What a model shows while it reads a prefix: signals of memorization that have not seen the continuation."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from memloc_core.analyses import parameter_gradients
from memloc_core.analyses.attention import attention_rows
from memloc_core.analyses.rarity import corpus_counts
from memloc_core.devices import PeakMemory
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import ParameterGradients, PrefixSignals, Progress, Signals
from memloc_core.steps import retold

_FIFTH = 5


def run(lm: LanguageModel, request: PrefixSignals) -> Generator[Progress, None, Signals]:
    """One pass for tokens and attention, one backward pass per prefix."""
    rows = lm.rows(request.prefixes, 1)
    n, p = rows.shape
    counts, first = corpus_counts(request.counts, n, p, "The detector")
    if p - first < _FIFTH:
        raise UsageError(f"A prefix of {p - first} tokens shows too little; at least {_FIFTH} are needed.")
    few, half = (p - first) // _FIFTH, max(1, lm.info.layers // 2)
    peak = PeakMemory(lm.device)
    rare = torch.from_numpy(first + np.argsort(counts, axis=1, kind="stable")[:, :few])
    signals: dict[str, torch.Tensor] = {}

    def keep(name: str, start: int, values: torch.Tensor) -> None:
        signals.setdefault(name, torch.empty(n))[start : start + len(values)] = values.float().cpu()

    def look(start: int, stop: int) -> None:
        batch = rows[start:stop]
        with torch.inference_mode():
            hidden = lm.hidden(batch)
            scores = lm.token_scores(hidden[:, :-1], batch[:, 1:])
            top = lm.logits(hidden[:, -1]).topk(2).values
        keep("NLL", start, scores.nll.mean(-1))
        keep("min-k", start, scores.nll.topk(few).values.mean(-1))
        keep("late NLL", start, scores.nll[:, -few:].mean(-1))
        keep("late margin", start, scores.margin[:, -few:].mean(-1))
        keep("next margin", start, top[:, 0] - top[:, 1])
        keep("correct", start, (scores.margin > 0).float().mean(-1))
        if lm.adapter is not None:
            weights = attention_rows(lm, batch, p - 1)  # [n, layers, h, p]
            places = rare[start:stop, None, None].expand(-1, *weights.shape[1:3], -1)
            on_rare = weights.gather(-1, places).sum(-1)
            keep("rare attention", start, on_rare[:, :half].mean((1, 2)))
            keep("rarest head", start, on_rare.flatten(1).amax(-1))

    for done in lm.in_batches(look, n, p, peak=peak):
        yield Progress(done, 2 * n, "prefixes")
    gradients = parameter_gradients.run(lm, ParameterGradients(request.prefixes, 1))
    found = yield from retold(gradients, lambda step: Progress(n + step.done, 2 * n, "prefixes"))
    sums = torch.from_numpy(found.layer_sums())
    keep("gradient", 0, sums.sum(-1).clamp_min(1e-30).log())
    keep("low gradient", 0, torch.from_numpy(found.layer_shares())[:, :half].sum(-1).nan_to_num(0.0))
    values = torch.stack(list(signals.values()), -1).numpy()
    return Signals(tuple(signals), values, max(peak.bytes, found.peak_bytes))
