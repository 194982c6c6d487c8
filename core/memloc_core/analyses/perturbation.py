"""Prefix perturbation: replace tokens of the prefix and see how far the recitation still goes (paper section 4)."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memloc_core.bfloat16 import Bfloat16Pass
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Perturb, Perturbation, Progress, Sweep, SweepScores, Tokens, random_tokens

if TYPE_CHECKING:
    from memloc_core.requests import Ints

_MEASURED = 32  # one replacement of so many is computed in both precisions, whatever its margin
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
    lm.refuse_no_numbers(scores.nll)
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
    """Every prefix position in turn, reusing the clean prefix's keys and values."""
    if request.verified and lm.info.dtype != "float32":
        raise UsageError(f"A verified sweep is held against float32, and {lm.info.name} is open in {lm.info.dtype}.")
    sweep = _Swept(lm, request)
    yield from _verified(sweep) if request.verified else sweep.told(sweep.through(~sweep.exact))
    lm.refuse_no_numbers(sweep.nll, sweep.clean_margins)
    return sweep.so_far()


class _Swept:
    """What a sweep knows of its replacements, flattened to [p * draws] places, and how it learns it."""

    def __init__(self, lm: LanguageModel, request: Sweep) -> None:
        self.lm, self.p, self.draws = lm, request.prefix_length, request.draws
        _check(lm, request.paragraph, self.p)
        self.c = len(request.paragraph) - self.p
        with torch.inference_mode():
            self.clean = _reference_row(lm, torch.tensor(request.paragraph), self.p, request.reference)
            self.tokens = _replacements(lm, request)
            self.targets = self.clean[None, self.p :].to(lm.device)
            self.cache = lm.new_cache() if lm.reuses_prefix else None  # of the whole clean row
            found = lm.token_scores(lm.hidden(self.clean[None, :-1], self.cache)[:, -self.c :], self.targets)
        self.clean_margins = found.margin[0].cpu().numpy()
        self.clean_margin = float(found.deciding_margin(self.targets))  # what its exact match hangs on
        self.em_before = int(found.exact_match(self.targets))
        n = self.p * self.draws
        self.em = np.full(n, -1, np.int64)
        self.margin, self.nll = np.full((2, n), np.nan, np.float32)
        self.margins = np.zeros((n, self.c), np.float32)  # of every token
        self.exact = np.zeros(n, bool)  # of a verified sweep: computed in full precision
        self.error = self.bound = math.nan

    def measured(self, errors: NDArray[np.float32]) -> None:
        """Margins in bfloat16 were off by so much. One that is no number leaves nothing to be trusted."""
        self.error = float(np.maximum(self.error, np.abs(errors).max()))
        self.bound = _SAFETY * self.error

    def so_far(self) -> SweepScores:
        """What is known by now."""
        shape = self.p, self.draws
        return SweepScores(
            reference=self.clean[self.p :].numpy(),
            em_before=self.em_before,
            replacements=self.tokens,
            em=self.em.reshape(shape).copy(),
            margin=self.margin.reshape(shape).copy(),
            nll=self.nll.reshape(shape).copy(),
            error=self.error,
            bound=self.bound,
            rechecked=float(self.exact.mean()),
        )

    def told(self, steps: Iterator[int]) -> Generator[Progress, None, None]:
        """Steps, each the number of places done, as progress."""
        for done in steps:
            yield Progress(done, len(self.em), "replacements", partial=self.so_far())

    def through(self, wanted: NDArray[np.bool_]) -> Iterator[int]:
        """Score the `wanted` places [p * draws]; yields how many of them are done.

        A replacement at position i leaves everything before i as it was, so positions go in groups: of the clean pass
        what lies before the group's first position is repeated for the group's rows, which compute only the rest.
        """
        # On a CPU ten rows fill the cores, and a shorter group saves tokens; a GPU wants more rows.
        most, ended = (10 if self.lm.device.type == "cpu" else 25) * self.draws, 0
        left = wanted.nonzero()[0]
        while len(left):
            places, left = left[:most], left[most:]
            first = int(places[0]) // self.draws
            with torch.inference_mode():
                prefix = self.lm.shortened(self.cache, self.clean, first) if self.cache is not None and first else None
            score = partial(self._score, places, first, prefix)
            for done in self.lm.in_batches(score, len(places), len(self.clean)):
                yield ended + done
            ended += len(places)

    def _score(self, places: Ints, first: int, prefix: Any, start: int, stop: int) -> None:
        """Some of the places, all at position `first` or later, after the prefix up to there."""
        places = places[start:stop]
        n, cached = len(places), first if prefix is not None else 0
        rows = self.clean.repeat(n, 1)
        tokens = self.tokens.reshape(-1)[places]
        rows[torch.arange(n), torch.from_numpy(places // self.draws)] = torch.from_numpy(tokens)
        with torch.inference_mode():
            cache = self.lm.repeated(prefix, n) if cached else None
            targets = self.targets.expand(n, self.c)
            scores = self.lm.token_scores(self.lm.hidden(rows[:, cached:-1], cache)[:, -self.c :], targets)
        self.em[places] = scores.exact_match(targets).cpu().numpy()
        self.margin[places] = scores.deciding_margin(targets).cpu().numpy()
        self.nll[places] = scores.nll.mean(-1).cpu().numpy()
        self.margins[places] = scores.margin.cpu().numpy()


def _verified(sweep: _Swept) -> Generator[Progress, None, None]:
    """All places in bfloat16, and again in full precision where that could change an exact match.

    A token counts as matched by the sign of its margin, so an exact match can only be wrong if a margin that it hangs
    on is off by more than its own size: those, up to `_SAFETY` times the largest error seen, are computed again. The
    error is measured on the clean row, on a few places, and on all that are computed again, until no more come near.
    """
    lm, everything = sweep.lm, np.ones(len(sweep.em), bool)
    half, sweep.error = Bfloat16Pass(lm), 0.0
    with half.applied(), torch.inference_mode():
        rough = lm.token_scores(lm.hidden(sweep.clean[None, :-1])[:, -sweep.c :], sweep.targets).margin[0]
    sweep.measured(rough.cpu().numpy() - sweep.clean_margins)
    if not sweep.clean_margin > sweep.bound:  # nor would those of most places be: text that is not recited
        sweep.exact |= everything
        yield from sweep.told(sweep.through(everything))
        return
    steps = sweep.told(sweep.through(everything))
    while True:
        with half.applied():
            progress = next(steps, None)
        if progress is None:
            break
        yield progress
    todo = np.arange(len(everything)) % _MEASURED == _MEASURED - 1
    while (todo := ~sweep.exact & (todo | ~(sweep.margin > sweep.bound))).any():
        before = sweep.margins.copy()
        for _ in sweep.through(todo):
            yield Progress(len(todo), len(todo), "replacements", partial=sweep.so_far())
        sweep.exact |= todo
        sweep.measured((before - sweep.margins)[todo])


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
