"""What a run looks at after each step: the paragraphs it changes, and groups of others beside them.

Letters in shapes: n changed paragraphs, m rows of a group, c continuation positions.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from memloc_core.devices import PeakMemory, numbers_at_once
from memloc_core.language_model import LanguageModel, TokenScores
from memloc_core.requests import GROUPS, NON_MEMORIZED_UP_TO, Group, MeasureRemains, Tokens
from memloc_core.unlearning.objectives import Rows, kl
from memloc_core.unlearning.weights import MaskedWeights

if TYPE_CHECKING:
    from memloc_core.requests import Floats, Ints

RUN = 8  # the longest run of recited tokens that counts as forgotten
GRAM = 4  # tokens; repetition is counted over runs of this length
SAMPLE = 4  # rows of each group that are looked at after each step
DECODED = 16  # rows of a group whose own continuation is written, which takes a pass for every token; also the sample's


def greedy_rows(device: torch.device) -> int:
    """Rows decoded between two yields: a click must not wait for fifty passes over a full batch.

    A pass over a few rows takes a GPU as long as one over many.
    """
    return 64 if device.type == "cuda" else 8


def longest_run(right: Tensor) -> Tensor:
    """The longest run of true values in each row of bool [..., c]."""
    length = torch.zeros(right.shape[:-1], dtype=torch.int64, device=right.device)
    best = length.clone()
    for position in right.unbind(-1):
        length = (length + 1) * position
        best = torch.maximum(best, length)
    return best


def repetition(tokens: Ints) -> Floats:
    """The share of 4-grams that stood in the same row before, of tokens [n, c], [n]; 0 where no two fit in a row."""
    shares = []
    for row in tokens.tolist():
        grams = [tuple(row[i : i + GRAM]) for i in range(len(row) - GRAM + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return np.array(shares, np.float32)


def split_beginning(lm: LanguageModel, paragraphs: Tensor) -> tuple[Tensor, Tensor]:
    """Paragraphs [n, t] as what stays before any prefix, [n, 0 or 1], and the rest: where all of them begin with the
    begin-of-text token it belongs before every text, so it is neither shifted away nor put there twice."""
    begins = int(lm.bos is not None and bool((paragraphs[:, 0] == lm.bos).all()))
    return paragraphs[:, :begins], paragraphs[:, begins:]


def variants(lm: LanguageModel, paragraphs: Tensor, prefix_length: int, left_context: Tokens) -> list[Rows]:
    """The paragraphs [n, t] as `MeasureRemains` reads them too: with shifted prefixes, and other text before them.

    A shifted one is scored from its first continuation token on, which is stricter than there.
    """
    first, targets = torch.full((len(paragraphs),), prefix_length - 1), paragraphs[:, prefix_length:]
    begin, text = split_beginning(lm, paragraphs[:, :-1])
    shifts = [s for s in MeasureRemains.shifts if s < prefix_length]
    found = [Rows(torch.cat([begin, text[:, s:]], 1), first - s, targets) for s in shifts]
    before = [left_context[-extra:] for extra in MeasureRemains.extensions if extra <= len(left_context)]
    if lm.bos is not None and not begin.shape[1]:
        before.append((lm.bos,))
    for tokens in before:
        if not lm.info.positions or paragraphs.shape[1] + len(tokens) <= lm.info.positions:
            left = torch.tensor(tokens).expand(len(paragraphs), -1)
            found.append(Rows(torch.cat([begin, left, text], 1), first + len(tokens), targets))
    return found


def score(lm: LanguageModel, rows: Rows) -> TokenScores:
    with torch.inference_mode():
        return lm.token_scores(rows.hidden(lm), rows.targets)


@dataclass(frozen=True)
class Watched:
    """Rows that shall stay as they are.

    `own` are the first few of those that the model did not recite, with its own continuation. Of the others that it did
    not recite no EM is taken.
    """

    rows: Rows
    predicted: Tensor  # [m, c] argmax before
    em: Tensor  # [m] before, against the reference; in `own` c, but where half precision rounds a pass otherwise
    nll: Tensor  # [m] before, of the true continuation
    own: Rows
    is_own: Tensor  # bool [m]
    has_em: Tensor  # bool [m]


class Watch:
    """The groups of a run, and how they did before it."""

    def __init__(self, lm: LanguageModel, groups: dict[Group, Tensor], prefix_length: int, peak: PeakMemory) -> None:
        self.lm, self.peak, self.p = lm, peak, prefix_length
        self._tokens = groups
        self.groups: dict[str, Watched] = {}

    def look_before(self) -> Generator[int, None, None]:
        """Score every row of every group as the model stands."""
        lm, p, done = self.lm, self.p, 0
        for name, tokens in self._tokens.items():
            if not len(tokens):
                continue
            rows = Rows.of(tokens, p)
            found: list[TokenScores] = []

            def run(start: int, stop: int, rows: Rows = rows, found: list[TokenScores] = found) -> None:
                found.append(score(lm, rows[start:stop]))

            for part in lm.in_batches(run, len(rows), tokens.shape[1], peak=self.peak):
                yield done + part
            predicted, nll = torch.cat([s.predicted for s in found]), torch.cat([s.nll for s in found]).mean(-1)
            em = (predicted == rows.targets.to(lm.device)).long().cumprod(-1).sum(-1)
            c = rows.targets.shape[1]
            not_recited = em <= NON_MEMORIZED_UP_TO * c
            is_own = not_recited & (not_recited.cumsum(0) <= DECODED)
            own = tokens[is_own.cpu()].clone()

            def decode(start: int, stop: int, own: Tensor = own, c: int = c) -> None:
                with torch.inference_mode():
                    own[start:stop, p:] = lm.greedy(own[start:stop, :p], c)[0]

            own_em: list[Tensor] = []

            def score_own(start: int, stop: int, own: Tensor = own, own_em: list[Tensor] = own_em) -> None:
                written = Rows.of(own[start:stop], p)
                own_em.append(score(lm, written).exact_match(written.targets.to(lm.device)))

            for work in (decode, score_own):
                for _ in lm.in_batches(work, len(own), tokens.shape[1], peak=self.peak):
                    yield done + len(tokens)
            em[is_own] = torch.cat([em[:0], *own_em])
            self.groups[name] = Watched(rows, predicted, em, nll, Rows.of(own, p), is_own, is_own | ~not_recited)
            done += len(tokens)

    def before(self, most: int | None = None) -> tuple[Floats, Floats, Floats]:
        """Mean EM, NLL and agreement of the groups before the run, each [GROUPS], of `most` rows of each."""
        found = np.full((3, len(GROUPS)), np.nan, np.float32)
        for i, name in enumerate(GROUPS):
            if group := self.groups.get(name):
                em = group.em[:most][group.has_em[:most]].cpu().double()
                found[:, i] = float(em.mean()), float(group.nll[:most].mean()), 1.0
        return found[0], found[1], found[2]

    def look(
        self, weights: MaskedWeights, values: Tensor, most: int | None = None
    ) -> Generator[int, None, tuple[Floats, Floats, Floats]]:
        """The same with `values` in the weights, batch by batch; between two batches the weights are the original."""
        found = np.full((3, len(GROUPS)), np.nan, np.float32)
        for i, name in enumerate(GROUPS):
            if group := self.groups.get(name):
                found[:, i] = yield from self._look_at(group, weights, values, most)
        return found[0], found[1], found[2]

    def _look_at(
        self, group: Watched, weights: MaskedWeights, values: Tensor, most: int | None
    ) -> Generator[int, None, tuple[float, float, float]]:
        lm = self.lm
        rows, is_own = group.rows[:most], group.is_own[:most]
        own = group.own[: int(is_own.sum())]
        em, own_em = ([torch.empty(0, dtype=torch.int64)] for _ in range(2))
        nll, same = ([torch.empty(0)] for _ in range(2))

        def run(start: int, stop: int) -> None:
            with weights.written(values):
                scores = score(lm, rows[start:stop])
            em.append(scores.exact_match(rows.targets[start:stop].to(lm.device)).cpu())
            nll.append(scores.nll.mean(-1).cpu())
            same.append((scores.predicted == group.predicted[start:stop]).float().mean(-1).cpu())

        def run_own(start: int, stop: int) -> None:
            with weights.written(values):
                scores = score(lm, own[start:stop])
            own_em.append(scores.exact_match(own.targets[start:stop].to(lm.device)).cpu())

        for work, n in ((run, len(rows)), (run_own, len(own))):
            yield from lm.in_batches(work, n, rows.ids.shape[1] + 1, peak=self.peak)
        matched = torch.cat(em)
        matched[is_own.cpu()] = torch.cat(own_em)
        matched = matched[group.has_em[:most].cpu()]
        means = (torch.cat(values).double().mean() for values in ([matched], nll, same))
        return tuple(map(float, means))  # type: ignore[return-value]


def mean_kl(lm: LanguageModel, rows: Rows, before: Tensor) -> float:
    """KL(p_0 || p) per token over rows, with p_0 from the hidden states `before` [b, c, w]."""
    total = 0.0
    with torch.inference_mode():
        hidden = rows.hidden(lm)
        step = max(1, numbers_at_once(lm.device, 4_000_000) // (hidden.shape[1] * lm.info.vocabulary))
        for i in range(0, len(rows), step):
            total += float(kl(lm.logits(hidden[i : i + step]), lm.logits(before[i : i + step])).sum())
    return total / max(1, len(rows))
