"""Exact match of many windows at the price of their prefixes.

Most windows leave the true text within a few tokens. So the prefixes are run once, with their keys and values kept,
and then the TRUE continuation is fed in pieces that grow; after each piece only the windows that are still on the truth
stay, in the cache too. A window whose first token is wrong costs its prefix and one row of logits.

The windows of one document overlap, but share nothing: a window's continuation is computed after its prefix, and the
same tokens as the next window's prefix are computed after nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memloc_core.language_model import LanguageModel

PIECES = (3, 12)  # tokens fed after the prefix, then all that is left: each pass reads every weight again

# Logits that come in pieces differ from those of one pass by rounding. A window whose exact match hangs on a smaller
# margin than this is scored once more, in one pass: exact match is then what `LanguageModel.score` says it is.
_NEAR = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}


def exact_matches(lm: LanguageModel, rows: Tensor, prefix_length: int) -> Tensor:
    """Exact match [n] of rows [n, t]: what `lm.score(rows, prefix_length).exact_match(...)` gives.

    Raises MemlocError where the model gives no numbers.
    """
    if not lm.reuses(rows.shape[1]):
        whole = lm.score(rows, prefix_length)
        lm.refuse_no_numbers(whole.nll)
        return whole.exact_match(rows[:, prefix_length:].to(lm.device)).cpu()
    n, length = rows.shape
    rows = rows.to(lm.device)
    em = torch.zeros(n, dtype=torch.int64, device=lm.device)
    margin = torch.full((n,), torch.inf, device=lm.device)
    near = _NEAR.get(next(lm.model.parameters()).dtype, 1e-3)
    there = torch.arange(n, device=lm.device)  # the rows that are still on the truth
    cache = lm.new_cache()
    hidden = lm.hidden(rows[:, :prefix_length], cache)[:, -1:]
    at = prefix_length  # the position that hidden[:, 0] predicts
    pieces = iter(PIECES)
    while True:
        k = hidden.shape[1]
        targets = rows[there, at : at + k]
        scores = lm.token_scores(hidden, targets)
        matched = scores.exact_match(targets)
        em[there] += matched
        margin[there] = torch.minimum(margin[there], scores.deciding_margin(targets).to(margin.dtype))
        at += k
        stay = (matched == k).nonzero()[:, 0]
        if at == length or not len(stay):
            break
        if len(stay) < len(there):
            there = there[stay]
            cache.batch_select_indices(stay)
        k = min(next(pieces, length), length - at)
        hidden = lm.hidden(rows[there, at - 1 : at - 1 + k], cache)
    lm.refuse_no_numbers(margin)
    close = (margin < near).nonzero()[:, 0]
    if len(close):
        em[close] = one_by_one(lm, rows[close], prefix_length)[0]
    return em.cpu()


def one_by_one(lm: LanguageModel, rows: Tensor, prefix_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact match, margin and mean NLL, each [n], of rows [n, t], each in a pass of the same shape.

    On a processor that is a row at a time, which costs little and gives the same bits whatever the other rows are,
    and however many threads there are; on a GPU it is 32, the last filled up.
    """
    size = 1 if lm.device.type == "cpu" else 32
    parts = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size].to(lm.device)
        filled = torch.cat([some, some[-1:].repeat(size - len(some), 1)])
        scores = lm.score(filled, prefix_length)
        targets = filled[:, prefix_length:]
        columns = (scores.exact_match(targets), scores.deciding_margin(targets), scores.nll.cpu().double().mean(-1))
        parts.append(tuple(column[: len(some)] for column in columns))
    em, margin, nll = (torch.cat(column) for column in zip(*parts, strict=True))
    return em, margin, nll
