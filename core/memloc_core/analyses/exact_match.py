"""Exact match, margin and NLL of paragraphs by one teacher-forced pass (paper section 3; README)."""

from __future__ import annotations

from collections.abc import Generator

import torch

from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import ExactMatch, ExactMatches, Progress


def run(lm: LanguageModel, request: ExactMatch) -> Generator[Progress, None, ExactMatches]:
    """Rows may have any one length; raises UsageError where they differ or an id is unknown to the model."""
    lengths = {len(row) for row in request.paragraphs}
    if len(lengths) != 1 or not 0 < request.prefix_length < min(lengths):
        raise UsageError("Exact match needs paragraphs of one length, longer than the prefix.")
    length = lengths.pop()
    for row in request.paragraphs:
        lm.check_tokens(row, length)
    rows = torch.tensor(request.paragraphs)
    n, c = len(rows), length - request.prefix_length
    em, predicted = torch.empty(n, dtype=torch.int64), torch.empty(n, c, dtype=torch.int64)
    margin, nll = torch.empty(n), torch.empty(n, c)

    def score(start: int, stop: int) -> None:
        with torch.inference_mode():
            scores = lm.score(rows[start:stop], request.prefix_length)
        targets = rows[start:stop, request.prefix_length :].to(lm.device)
        em[start:stop] = scores.exact_match(targets).cpu()
        margin[start:stop] = scores.deciding_margin(targets).cpu()
        nll[start:stop] = scores.nll.cpu()
        predicted[start:stop] = scores.predicted.cpu()

    for done in lm.in_batches(score, n, length):
        yield Progress(done, n, "paragraphs")
    broken = int(nll.isnan().any(-1).sum())
    if broken == n:
        lm.refuse_no_numbers(nll)
    if broken:
        lm.notices.append(
            f"{broken} of {n} paragraphs give no numbers (NaN) in {lm.info.dtype}: they have no NLL, and their exact "
            "match ends there."
        )
    return ExactMatches(em.numpy(), margin.numpy(), nll.mean(-1).numpy(), nll.numpy(), predicted.numpy())
