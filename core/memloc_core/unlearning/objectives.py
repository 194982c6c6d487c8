"""What a run trains on: how it pushes a paragraph out or in, and how it holds on to the others.

Letters in shapes: b rows of a batch, c continuation positions, w width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memloc_core.devices import numbers_at_once
from memloc_core.language_model import LanguageModel

# How much a token that shall be wrong (or right) has to lose (or win) by, in logits.
MARGIN = 0.5
_START = 0.2  # weight of the wrong token among the first few that "forget" wants, against that in each window
_LOGITS_AT_ONCE = 1_000_000  # on a processor; the loss holds about five such tensors at a time

Push = Literal["weakest", "windows", "forget", "all", "nll", "teach"]


@dataclass(frozen=True)
class Rows:
    """Rows of a batch: `ids` [b, t] as the model reads them, and the c `targets` [b, c] predicted from `first` [b] on.

    A row may be padded at its end: what stands behind the last prediction is read by nothing.
    """

    ids: Tensor
    first: Tensor
    targets: Tensor

    @staticmethod
    def of(paragraphs: Tensor, prefix_length: int) -> Rows:
        """Paragraphs [b, t] with their own continuations."""
        first = torch.full((len(paragraphs),), prefix_length - 1)
        return Rows(paragraphs[:, :-1], first, paragraphs[:, prefix_length:])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, where: slice | Tensor | list[int]) -> Rows:
        return Rows(self.ids[where], self.first[where], self.targets[where])

    def hidden(self, lm: LanguageModel) -> Tensor:
        """The hidden states that predict the targets, [b, c, w]."""
        hidden = lm.hidden(self.ids)
        where = self.first.to(lm.device)[:, None] + torch.arange(self.targets.shape[1], device=lm.device)
        return hidden[torch.arange(len(hidden), device=lm.device)[:, None], where]


def joined(parts: Sequence[Rows]) -> Rows:
    """One batch of several, the shorter rows padded at their end."""
    longest = max(part.ids.shape[1] for part in parts)
    return Rows(
        torch.cat([F.pad(part.ids, (0, longest - part.ids.shape[1])) for part in parts]),
        torch.cat([part.first for part in parts]),
        torch.cat([part.targets for part in parts]),
    )


def advantage(logits: Tensor, targets: Tensor) -> Tensor:
    """Logit of the target minus the best other one, [b, c]."""
    true = logits.gather(-1, targets[..., None])[..., 0]
    return true - logits.scatter(-1, targets[..., None], -torch.inf).amax(-1)


def push_loss(logits: Tensor, targets: Tensor, push: Push, *, run: int, nll: Tensor | None = None) -> Tensor:
    """What to bring down for each row, [b].

    "nll" is -NLL, the paper's. The others are bounded and stop pushing what has gone already: "weakest" wants one
    wrong token among the first `run` + 1; "windows" one in each run + 1 tokens in a row; "forget" that, one among
    the first tenth and one more, and a mean NLL of at least `nll` [b], but not far beyond it either: unknown text, not
    absurd text;
    "all" wants every token wrong; "teach" every token right.
    """
    if push == "nll":
        return -F.cross_entropy(logits.mT, targets, reduction="none").mean(-1)
    lead = advantage(logits, targets)
    if push == "teach":
        under = (MARGIN - lead).clamp_min(0)
        # Over those that are still wrong: the last one is to count as much as the first.
        return under.sum(-1) / (under > 0).sum(-1).clamp_min(1)
    over = (lead + MARGIN).clamp_min(0)
    if push == "all":
        return over.mean(-1)
    if push == "weakest":
        return over[:, : run + 1].amin(-1)
    windows = over.unfold(-1, min(run + 1, over.shape[1]), 1).amin(-1)
    # Over those that are still recited: the last one is to count as much as the first.
    windows = windows.sum(-1) / (windows > 0).sum(-1).clamp_min(1)
    if push == "windows":
        return windows
    assert nll is not None
    start = over[:, : over.shape[1] // 10 + 1].amin(-1)  # no run, but it counts as the recitation's beginning
    # Each token counts up to a bound, so that a few absurd ones do not stand for all the others.
    surprise = F.cross_entropy(logits.mT, targets, reduction="none")
    lacks = (1.1 * nll - surprise.clamp_max(6.0).mean(-1)).clamp_min(0)
    beyond = (surprise.mean(-1) - 1.5 * nll).clamp_min(0)
    return _START * start + windows + lacks + beyond


def kl(logits: Tensor, before: Tensor) -> Tensor:
    """KL(p_0 || p) over the vocabulary, mean over the continuation, in nats, [b]; both are logits [b, c, V]."""
    log_p0 = before.log_softmax(-1)
    return F.kl_div(logits.log_softmax(-1), log_p0, reduction="none", log_target=True).sum(-1).mean(-1)


def head_gradient(
    lm: LanguageModel, hidden: Tensor, loss: Callable[[int, int, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(sum of the losses [], its gradient by `hidden` [b, c, w]), with logits of a few rows at a time.

    `loss(start, stop, logits)` gives the losses of rows start .. stop, each with its weight in it.
    """
    step = max(1, numbers_at_once(lm.device, _LOGITS_AT_ONCE) // (hidden.shape[1] * lm.info.vocabulary))
    total = torch.zeros((), device=hidden.device)
    gradients: list[Tensor] = []
    for start in range(0, len(hidden), step):
        piece = hidden[start : start + step].detach().requires_grad_(True)
        value = loss(start, start + len(piece), lm.logits(piece)).sum()
        gradients += torch.autograd.grad(value, piece)
        total += value.detach()
    return total, torch.cat(gradients)
