"""Prefix perturbation: replace tokens of the prefix and see how far the recitation still goes (paper section 4)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memloc_core import devices
from memloc_core.bfloat16 import Bfloat16Pass
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import (
    AllSweepScores,
    Perturb,
    Perturbation,
    Progress,
    Sweep,
    Sweeps,
    SweepScores,
    Tokens,
    random_tokens,
)

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
        (clean,) = _reference_rows(lm, torch.tensor([paragraph]), p, [request.reference == "own"])
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
    swept = _Swept(lm, [request])
    for done in swept.steps():
        yield Progress(done, len(swept.em), "replacements", partial=swept.of(0))
    return swept.of(0)


def run_sweeps(lm: LanguageModel, request: Sweeps) -> Generator[Progress, None, AllSweepScores]:
    """Many paragraphs: rows of several are computed together."""
    if len({replace(sweep, paragraph=(), reference="true") for sweep in request.sweeps}) != 1:
        raise UsageError("Sweeps that go together differ in nothing but the paragraph and what it is scored against.")
    like, made = request.sweeps[0], list[_Swept]()
    at_once = max(1, rows_of_a_pass(lm) // max(1, like.draws))
    scores: list[SweepScores] = []
    for first in range(0, len(request.sweeps), at_once):
        some = request.sweeps[first : first + at_once]

        def begin(start: int, stop: int, some: tuple[Sweep, ...] = some) -> None:
            made.append(_Swept(lm, some[start:stop]))

        for _ in lm.in_batches(begin, len(some), len(like.paragraph)):
            swept = made.pop()
            for done in swept.steps():
                yield Progress(len(scores) + done * swept.n // len(swept.em), len(request.sweeps), "sweeps")
            scores += map(swept.of, range(swept.n))
    return AllSweepScores(tuple(scores))


class _Swept:
    """What sweeps of n paragraphs know of their replacements, flattened to [p * n * draws] places, and how they
    learn it.

    The places go by position first: those that are computed together then have much of the prefix in common.
    """

    def __init__(self, lm: LanguageModel, requests: Sequence[Sweep]) -> None:
        self.lm, like = lm, requests[0]
        self.n, self.p, self.draws, self.verified = len(requests), like.prefix_length, like.draws, like.verified
        if self.verified and lm.info.dtype != "float32":
            raise UsageError(
                f"A verified sweep is held against float32, and {lm.info.name} is open in {lm.info.dtype}."
            )
        for request in requests:
            _check(lm, request.paragraph, self.p)
        rows = lm.rows(tuple(request.paragraph for request in requests), self.p)
        self.c = rows.shape[1] - self.p
        with torch.inference_mode():
            self.clean = _reference_rows(lm, rows, self.p, [request.reference == "own" for request in requests])
            tokens = np.stack([_replacements(lm, request) for request in requests], 1)  # [p, n, draws]
            self.targets = self.clean[:, self.p :].to(lm.device)
            self.cache = lm.new_cache() if lm.reuses(rows.shape[1]) else None  # of the whole clean rows
            found = lm.token_scores(lm.hidden(self.clean[:, :-1], self.cache)[:, -self.c :], self.targets)
        self.clean_margins = found.margin.cpu().numpy()
        self.clean_margin = found.deciding_margin(self.targets).cpu().numpy()  # what each exact match hangs on
        self.em_before = found.exact_match(self.targets).cpu().numpy()
        self.tokens = tokens.reshape(-1)
        self.position, self.paragraph, draw = (index.ravel() for index in np.indices(tokens.shape))
        self.sampled = (self.position * self.draws + draw) % _MEASURED == _MEASURED - 1
        places = tokens.size
        self.em = np.full(places, -1, np.int64)
        self.margin, self.nll = np.full((2, places), np.nan, np.float32)
        self.margins = np.zeros((places, self.c), np.float32)  # of every token
        self.exact = np.zeros(places, bool)  # of verified sweeps: computed in full precision
        self.error, self.bound = np.full((2, self.n), np.nan, np.float32)
        self._unread: tuple[Ints, Callable[[], list[NDArray[Any]]]] | None = None  # what a GPU still computes

    def of(self, paragraph: int) -> SweepScores:
        """What is known by now of one of them."""
        here = np.arange(len(self.em)).reshape(self.p, self.n, self.draws)[:, paragraph]
        return SweepScores(
            reference=self.clean[paragraph, self.p :].numpy(),
            em_before=int(self.em_before[paragraph]),
            replacements=self.tokens[here],
            em=self.em[here],
            margin=self.margin[here],
            nll=self.nll[here],
            error=float(self.error[paragraph]),
            bound=float(self.bound[paragraph]),
            rechecked=float(self.exact[here].mean()),
        )

    def steps(self) -> Iterator[int]:
        """All of it; yields how many places are done."""
        yield from self._verified() if self.verified else self._through(~self.exact)
        self.lm.refuse_no_numbers(self.nll, self.clean_margins)

    def _verified(self) -> Iterator[int]:
        """All places in bfloat16, and again in full precision where that could change an exact match.

        A token counts as matched by the sign of its margin, so an exact match can only be wrong if a margin that it
        hangs on is off by more than its own size: those, up to `_SAFETY` times the largest error seen in the paragraph,
        are computed again. The error is measured on the clean row, on a few places, and on all that are computed again,
        until no more come near.
        """
        lm = self.lm
        half, self.error = Bfloat16Pass(lm), np.zeros_like(self.error)
        with half.applied(), torch.inference_mode():
            rough = lm.token_scores(lm.hidden(self.clean[:, :-1])[:, -self.c :], self.targets).margin
        self._measured(rough.cpu().numpy() - self.clean_margins, np.arange(self.n))
        # Nor would the exact matches of most places be certain, where that of the clean row is not: text not recited.
        self.exact |= ~(self.clean_margin > self.bound)[self.paragraph]
        done = 0
        for done in self._through(self.exact):
            yield done
        rest = self._through(~self.exact)
        while True:
            with half.applied():
                more = next(rest, None)
            if more is None:
                break
            yield done + more
        todo = self.sampled
        while (todo := ~self.exact & (todo | ~(self.margin > self.bound[self.paragraph]))).any():
            before = self.margins[todo]
            for _ in self._through(todo):
                yield len(self.em)
            self.exact |= todo
            self._measured(before - self.margins[todo], self.paragraph[todo])

    def _measured(self, errors: NDArray[np.float32], of: Ints) -> None:
        """Margins [k, c] in bfloat16, of paragraphs `of` [k], were off by so much. One that is no number leaves nothing
        to be trusted."""
        with np.errstate(invalid="ignore"):
            np.maximum.at(self.error, of, np.abs(errors).max(-1))
        self.bound = np.float32(_SAFETY) * self.error

    def _through(self, wanted: NDArray[np.bool_]) -> Iterator[int]:
        """Score the `wanted` places; yields how many of them are done.

        A replacement at position i leaves everything before i as it was, so positions go in groups: of the clean pass
        what lies before the group's first position is repeated for the group's rows, which compute only the rest.
        """
        most, ended = rows_of_a_pass(self.lm), 0
        left = wanted.nonzero()[0]
        while len(left):
            places, left = left[:most], left[most:]
            first = int(self.position[places[0]])
            with torch.inference_mode():
                prefix = self.lm.shortened(self.cache, self.clean, first) if self.cache is not None and first else None
            score = partial(self._score, places, first, prefix)
            for done in self.lm.in_batches(score, len(places), self.clean.shape[1]):
                yield ended + done
            ended += len(places)
        self._read()

    def _score(self, places: Ints, first: int, prefix: Any, start: int, stop: int) -> None:
        """Some of the places, all at position `first` or later, after the prefixes up to there."""
        places = places[start:stop]
        cached = first if prefix is not None else 0
        of = torch.from_numpy(self.paragraph[places])
        rows = self.clean[of]
        rows[torch.arange(len(of)), torch.from_numpy(self.position[places])] = torch.from_numpy(self.tokens[places])
        with torch.inference_mode():
            of = devices.sent(of, self.lm.device)
            cache = self.lm.selected(prefix, of) if cached else None
            targets = self.targets[of]
            scores = self.lm.token_scores(self.lm.hidden(rows[:, cached:-1], cache)[:, -self.c :], targets)
            em, margin = scores.exact_match(targets), scores.deciding_margin(targets)
            arrived = devices.fetched((em, margin, scores.nll.mean(-1), scores.margin))
        self._read()
        self._unread = places, arrived
        if self.lm.device.type == "cpu":
            self._read()

    def _read(self) -> None:
        """Take in what was asked for last. Of a GPU that waits, so it is done once the next places are asked for."""
        if self._unread is not None:
            (places, arrived), self._unread = self._unread, None
            self.em[places], self.margin[places], self.nll[places], self.margins[places] = arrived()


def rows_of_a_pass(lm: LanguageModel) -> int:
    """How many rows a sweep computes together: what keeps the device busy, for a shorter group saves tokens."""
    return 10 if lm.device.type == "cpu" else 320


def _check(lm: LanguageModel, paragraph: Tokens, prefix_length: int) -> None:
    if not 0 < prefix_length < len(paragraph):
        raise UsageError(f"A paragraph of {len(paragraph)} tokens has no prefix of {prefix_length} to perturb.")
    lm.check_tokens(paragraph, len(paragraph))


def _reference_rows(lm: LanguageModel, rows: Tensor, prefix_length: int, own: Sequence[bool]) -> Tensor:
    """Rows [n, t] with the continuations that are scored: the true ones, or where `own` the model's greedy ones."""
    rows, chosen = rows.clone(), torch.tensor(own)
    if chosen.any():
        rows[chosen, prefix_length:], _ = lm.greedy(rows[chosen, :prefix_length], rows.shape[1] - prefix_length)
    return rows


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
