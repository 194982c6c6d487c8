"""Prefix perturbation: replace tokens of the prefix and see how far the recitation still goes (paper section 4)."""

from __future__ import annotations

import math
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Perturb, Perturbation, Progress, Sweep, SweepScores, Tokens, random_tokens

if TYPE_CHECKING:
    from memloc_core.requests import Ints

_MEASURED = 16  # one replacement of so many is computed in both precisions
_SAFETY = 4.0  # times the largest error seen there, within which an exact match is not trusted


def run(lm: LanguageModel, request: Perturb) -> Generator[Progress, None, Perturbation]:
    """Both rows, clean and perturbed, in one pass."""
    paragraph, p = request.paragraph, request.prefix_length
    _check(lm, paragraph, p)
    for position, token in request.replacements:
        if not 0 <= position < p:
            raise UsageError(f"Position {position} is outside the prefix, 0..{p - 1}.")
        lm.check_tokens((token,), len(paragraph))
    with torch.inference_mode():
        clean = _reference_row(lm, torch.tensor(paragraph), p, request.reference)
        perturbed = clean.clone()
        for position, token in request.replacements:
            perturbed[position] = token
        rows = torch.stack([clean, perturbed])
        targets = rows[:, p:].to(lm.device)
        scores = lm.score(rows, p)
        em, margin = scores.exact_match(targets), scores.deciding_margin(targets)
    yield Progress(1, 1, "passes")
    return Perturbation(
        reference=clean[p:].numpy(),
        em_before=int(em[0]),
        em_after=int(em[1]),
        margin_before=float(margin[0]),
        margin_after=float(margin[1]),
        nll_before=float(scores.nll[0].mean()),
        nll_after=float(scores.nll[1].mean()),
        predicted=scores.predicted[1].cpu().numpy(),
        token_nll=scores.nll[1].cpu().numpy(),
    )


def run_sweep(lm: LanguageModel, request: Sweep) -> Generator[Progress, None, SweepScores]:
    """Every prefix position in turn, reusing the clean prefix's keys and values.

    A replacement at position i leaves everything before i as it was, so positions go in groups: of the clean pass what
    lies before the group's first position is repeated for the group's rows, which then compute only the rest.

    A verified one computes in bfloat16 first. A position counts as matched by the sign of its margin, so an exact match
    can only be wrong if a margin that it hangs on is off by more than its own size: those, up to `_SAFETY` times the
    largest error that was seen, are computed again.
    """
    paragraph, p, draws = request.paragraph, request.prefix_length, request.draws
    _check(lm, paragraph, p)
    if request.verified and lm.info.dtype != "float32":
        raise UsageError(f"A verified sweep is held against float32, and {lm.info.name} is open in {lm.info.dtype}.")
    c = len(paragraph) - p
    with torch.inference_mode():
        clean = _reference_row(lm, torch.tensor(paragraph), p, request.reference)
        replacements = _replacements(lm, request)
        reference = clean[p:].to(lm.device)
        whole = lm.new_cache() if lm.reuses_prefix else None
        found = lm.token_scores(lm.hidden(clean[None, :-1], whole)[:, -c:], reference[None])
        before = int(found.exact_match(reference[None])[0])
    em = np.full(p * draws, -1, np.int64)
    margin, nll = np.full((2, p * draws), np.nan, np.float32)
    margins = np.zeros((p * draws, c), np.float32) if request.verified else None
    error, bound = 0.0 if request.verified else math.nan, math.nan
    exact = np.full(p * draws, not request.verified)

    def so_far() -> SweepScores:
        return SweepScores(
            reference=clean[p:].numpy(),
            em_before=before,
            replacements=replacements,
            em=em.reshape(p, draws).copy(),
            margin=margin.reshape(p, draws).copy(),
            nll=nll.reshape(p, draws).copy(),
            error=error,
            bound=bound,
            rechecked=float(exact.mean()) if request.verified else 0.0,
        )

    def score(places: Ints, first: int, prefix: Any, start: int, stop: int) -> None:
        """Some of the `places` in the flattened [p, draws], all at `first` or later, after the prefix up to there."""
        places = places[start:stop]
        n, cached = len(places), first if prefix is not None else 0
        rows = clean.repeat(n, 1)
        rows[torch.arange(n), torch.from_numpy(places // draws)] = torch.from_numpy(replacements.reshape(-1)[places])
        with torch.inference_mode():
            cache = lm.repeated(prefix, n) if cached else None
            targets = reference.expand(n, c)
            scores = lm.token_scores(lm.hidden(rows[:, cached:-1], cache)[:, -c:], targets)
        em[places] = scores.exact_match(targets).cpu().numpy()
        margin[places] = scores.deciding_margin(targets).cpu().numpy()
        nll[places] = scores.nll.mean(-1).cpu().numpy()
        if margins is not None:
            margins[places] = scores.margin.cpu().numpy()

    # On a CPU a group of ten positions saves a fifth of the tokens and still fills the cores; a GPU wants more rows.
    group = 10 if lm.device.type == "cpu" else 25

    def through(wanted: Any) -> Generator[int, None, None]:
        """Score `wanted` places, bool [p * draws]; yields how many of them are done."""
        ended = 0
        for first in range(0, p, group):
            places = first * draws + wanted[first * draws : (first + group) * draws].nonzero()[0]
            if not len(places):
                continue
            with torch.inference_mode():
                prefix = lm.shortened(whole, clean, first) if whole is not None and first else None
            for done in lm.in_batches(partial(score, places, first, prefix), len(places), len(paragraph)):
                yield ended + done
            ended += len(places)

    if margins is None:
        for done in through(exact):
            yield Progress(done, p * draws, "replacements", partial=so_far())
        return so_far()
    steps = through(~exact)
    while True:
        with torch.autocast(lm.device.type, torch.bfloat16):
            done = next(steps, -1)
        if done < 0:
            break
        yield Progress(done, p * draws, "replacements", partial=so_far())
    # The error is measured on some of them, and then on all that are near it, until no more come near.
    todo = np.arange(p * draws) % _MEASURED == 0
    while todo.any():
        rough = margins.copy()
        for _ in through(todo):
            yield Progress(p * draws, p * draws, "replacements", partial=so_far())
        exact |= todo
        error = float(np.maximum(error, np.abs(rough - margins)[todo].max()))  # nan where there is one: then all again
        bound = _SAFETY * error
        todo = ~exact & ~(margin > bound)
    return so_far()


def _check(lm: LanguageModel, paragraph: Tokens, prefix_length: int) -> None:
    if not 0 < prefix_length < len(paragraph):
        raise UsageError(f"A paragraph of {len(paragraph)} tokens has no prefix of {prefix_length} to perturb.")
    lm.check_tokens(paragraph, len(paragraph))


def _reference_row(lm: LanguageModel, row: Tensor, prefix_length: int, reference: str) -> Tensor:
    """The row [t] with the continuation that is scored: the true one, or the model's own greedy one."""
    if reference == "true":
        return row
    own, _ = lm.greedy(row[None, :prefix_length], len(row) - prefix_length)
    return torch.cat([row[:prefix_length], own[0]])


def _replacements(lm: LanguageModel, request: Sweep) -> Ints:
    """Replacement tokens [p, draws], never the original token of their position."""
    p, draws, vocabulary = request.prefix_length, request.draws, lm.info.vocabulary
    if not 1 <= draws < vocabulary:
        raise UsageError(f"{draws} draws per position are not possible; give 1..{vocabulary - 1}.")
    original = np.array(request.paragraph[:p])
    if request.strategy == "random":
        drawn = [random_tokens(request.seed, i, draws, vocabulary, own) for i, own in enumerate(original.tolist())]
        return np.array(drawn)
    if request.strategy == "next-best":
        return _next_best(lm, original, draws)
    lm.check_tokens(request.tokens, len(request.paragraph))
    given = list(dict.fromkeys(request.tokens))
    columns = [[t for t in given if t != own][:draws] for own in original]
    if any(len(column) < draws for column in columns):
        raise UsageError(
            f"{draws} draws per position with strategy {request.strategy!r} need {draws + 1} different tokens "
            f"to choose from; {len(given)} were given."
        )
    return np.array(columns)


def _next_best(lm: LanguageModel, original: Ints, draws: int) -> Ints:
    """The model's likeliest other tokens at each position, from one pass over the clean prefix.

    Where nothing predicts the first token (no begin-of-text token), it takes what the model expects at the second.
    """
    prefix = torch.from_numpy(original)
    hidden = lm.hidden(prefix[None])[0]
    first = hidden[:1] if lm.bos is None else lm.hidden(torch.tensor([[lm.bos]]))[0]
    logits = lm.logits(torch.cat([first, hidden[:-1]]))
    logits.scatter_(-1, prefix[:, None].to(logits.device), -torch.inf)
    return np.asarray(logits.topk(draws).indices.cpu().numpy())
