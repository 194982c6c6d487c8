"""What the model itself says: greedy continuations, and what else it expected at a position."""

from __future__ import annotations

from collections.abc import Generator

import torch

from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Alternatives, Continuation, Continue, Progress, TokenAlternatives


def run(lm: LanguageModel, request: Continue) -> Generator[Progress, None, Continuation]:
    """Real greedy decoding with a key/value cache."""
    if not request.prompt or request.length < 1:
        raise UsageError("A continuation needs a prompt of at least one token and a length of at least one.")
    lm.check_tokens(request.prompt, len(request.prompt) + request.length - 1)
    with torch.inference_mode():
        tokens, probabilities = lm.greedy(torch.tensor([request.prompt]), request.length)
    lm.refuse_no_numbers(probabilities)
    yield Progress(request.length, request.length, "tokens")
    return Continuation(tokens[0].numpy(), probabilities[0].numpy())


def run_alternatives(lm: LanguageModel, request: Alternatives) -> Generator[Progress, None, TokenAlternatives]:
    """The likeliest tokens at a position, without the one that stands there."""
    if not 0 <= request.position < len(request.prefix):
        raise UsageError(f"Position {request.position} is outside the prefix, 0..{len(request.prefix) - 1}.")
    lm.check_tokens(request.prefix, len(request.prefix))
    if request.k < 1:
        raise UsageError(f"{request.k} alternatives are none; ask for one at least.")
    k = min(request.k, lm.info.vocabulary - 1)
    context = request.prefix[: request.position] or ((lm.bos,) if lm.bos is not None else ())
    yield Progress(0, 1, "passes")
    if not context:  # the first token, and no begin-of-text token to predict it from
        return TokenAlternatives(torch.empty(0, dtype=torch.int64).numpy(), torch.empty(0).numpy())
    with torch.inference_mode():
        logits = lm.logits(lm.hidden(torch.tensor([context]))[0, -1])
        probabilities = logits.softmax(-1)
        logits[request.prefix[request.position]] = -torch.inf
        tokens = logits.topk(k).indices
    return TokenAlternatives(tokens.cpu().numpy(), probabilities[tokens].cpu().numpy())
