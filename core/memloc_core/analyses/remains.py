"""What is left of paragraphs that were unlearned: in other prefixes, in greedy text, after training on, after rounding.

Exact match alone can be gamed by one wrong early token (README), so this looks for the rest of the recitation.
Weights that a measurement changes, by training or by rounding, are tensors of its own, which stand in the parameters'
place within a step and are gone before it yields.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memloc_core.architectures import is_matrix, keeps_inputs_first
from memloc_core.devices import PeakMemory, ran_out
from memloc_core.errors import MemlocError, UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import MeasureRemains, Progress, Remains
from memloc_core.unlearning.watching import greedy_rows, longest_run, repetition, split_beginning
from memloc_core.unlearning.weights import Adam

if TYPE_CHECKING:
    from memloc_core.requests import Floats, Ints

SIMILAR = 0.75  # greedy text at least this similar to the continuation counts as extracted
_FRESH_ROWS = 16  # of other text, whose repetition says what is usual
_Weights = list[tuple[nn.Parameter, Tensor]]


def run(lm: LanguageModel, request: MeasureRemains) -> Generator[Progress, None, Remains]:
    """See `Remains`. Raises UsageError for text that is no text of this model, or holds what it must not."""
    p = request.prefix_length
    rows = lm.rows(request.paragraphs, p)
    other = _other_text(lm, request)
    variants = _variants(lm, request, rows)
    steps = request.relearn_steps if other is not None else 0
    total, done = len(variants) + 2 + steps + 1, 0
    peak = PeakMemory(lm.device)

    matches, losses = [], []
    targets = rows[:, p:]
    for name, read in variants:
        matched, nll = torch.empty(targets.shape, dtype=torch.bool), torch.empty(targets.shape)
        for _ in lm.in_batches(partial(_match, lm, read, targets, matched, nll), len(rows), read.shape[1], peak=peak):
            yield Progress(done, total, "measurements", name)
        matches.append(matched)
        losses.append(nll)
        done += 1
    em, extracted = _leading(matches[0]), np.stack([longest_run(matched).numpy() for matched in matches])

    greedy = yield from _greedy(lm, rows[:, :p], targets.shape[1], peak, Progress(done, total, "measurements"))
    fresh = np.empty((0, targets.shape[1]), np.int64)
    done += 1
    if other is not None and other.shape[1] >= p:
        fresh = yield from _greedy(
            lm, other[:_FRESH_ROWS, :p], targets.shape[1], peak, Progress(done, total, "measurements")
        )
    done += 1

    relearned_em, relearned_longest = [em], [extracted[0]]
    for matched in _relearned(lm, request, rows, other, steps, peak):
        relearned_em.append(_leading(matched))
        relearned_longest.append(longest_run(matched).numpy())
        done += 1
        yield Progress(done, total, "measurements", "relearning")

    with peak.step(2 * _block_bytes(lm)), torch.inference_mode(), _standing_in(_eight_bit(lm)):
        matched = _matched(lm, rows, p)
    distance = edit_distance(greedy, targets.numpy())
    yield Progress(total, total, "measurements")
    return Remains(
        em=em,
        longest_run=extracted[0],
        nll=losses[0].mean(-1).numpy(),
        variants=tuple(name for name, *_ in variants),
        extracted=extracted,
        edit_distance=distance,
        extracted_at_75=(1 - distance >= SIMILAR).astype(np.int64),
        repetition=repetition(greedy),
        fresh_repetition=repetition(fresh),
        greedy=greedy,
        relearned_em=np.stack(relearned_em),
        relearned_longest=np.stack(relearned_longest),
        not_relearned=steps + 1 - len(relearned_em),
        eight_bit_em=_leading(matched),
        eight_bit_longest=longest_run(matched).numpy(),
        peak_bytes=peak.bytes,
    )


# ------------------------------------------------------------------------------------------------------ pure functions


def edit_distance(a: Ints, b: Ints) -> Floats:
    """Levenshtein distance between the rows of a [n, c] and b [n, d] in tokens, as a share of the longer, [n]."""
    n, c = a.shape
    d = b.shape[1]
    above = np.tile(np.arange(d + 1), (n, 1))  # [n, d + 1]: from no token of a to each beginning of b
    for i in range(c):
        row = np.empty_like(above)
        row[:, 0] = i + 1
        for j in range(d):
            replaced = above[:, j] + (a[:, i] != b[:, j])
            row[:, j + 1] = np.minimum(replaced, np.minimum(above[:, j + 1], row[:, j]) + 1)
        above = row
    share: Floats = (above[:, -1] / max(c, d, 1)).astype(np.float32)
    return share


# ---------------------------------------------------------------------------------------------------- other prefixes


def _variants(lm: LanguageModel, request: MeasureRemains, rows: Tensor) -> list[tuple[str, Tensor]]:
    """(name, what is read [n, t']); the last c positions predict the continuation."""
    p = request.prefix_length
    found = [("prefix", rows[:, :-1])]
    if wrong := [shift for shift in request.shifts if not 0 < shift < p]:
        raise UsageError(f"A prefix of {p} tokens that is shifted by {wrong[0]} is none; give 1..{p - 1}.")
    begin, text = split_beginning(lm, rows[:, :-1])
    found += [(f"shifted by {shift}", torch.cat([begin, text[:, shift:]], 1)) for shift in request.shifts]
    lm.check_tokens(request.left_context, 0)
    before = [(f"extended by {e}", request.left_context[-e:]) for e in request.extensions]
    before = [(name, left) for (name, left), e in zip(before, request.extensions, strict=True) if len(left) == e > 0]
    if lm.bos is not None and not begin.shape[1]:
        before.insert(0, ("after begin-of-text", (lm.bos,)))
    for name, left in before:
        if not lm.info.positions or len(left) + rows.shape[1] <= lm.info.positions:
            found.append((name, torch.cat([begin, torch.tensor(left).expand(len(rows), -1), text], 1)))
    return found


def _match(
    lm: LanguageModel, read: Tensor, targets: Tensor, matched: Tensor, nll: Tensor, start: int, stop: int
) -> None:
    """Fill rows start..stop of matched and nll [n, c] for targets [n, c] that the end of read [n, t] predicts."""
    with torch.inference_mode():
        wanted = targets[start:stop]
        scores = lm.token_scores(lm.hidden(read[start:stop])[:, -wanted.shape[1] :], wanted)
    matched[start:stop] = scores.predicted.cpu() == wanted
    nll[start:stop] = scores.nll.cpu()


def _matched(lm: LanguageModel, rows: Tensor, prefix_length: int) -> Tensor:
    """Whether each continuation token of rows [n, t] is the argmax, [n, c]. All within one step."""
    targets = rows[:, prefix_length:]
    matched, nll = torch.empty(targets.shape, dtype=torch.bool), torch.empty(targets.shape)
    for _ in lm.in_batches(partial(_match, lm, rows[:, :-1], targets, matched, nll), len(rows), rows.shape[1]):
        pass
    return matched


def _leading(matched: Tensor) -> Ints:
    """Exact match of matched [n, c], [n]."""
    em: Ints = matched.long().cumprod(-1).sum(-1).numpy()
    return em


def _greedy(
    lm: LanguageModel, prompts: Tensor, length: int, peak: PeakMemory, progress: Progress
) -> Generator[Progress, None, Ints]:
    """Greedy tokens [n, length] after prompts [n, p]."""
    parts = []

    def decode(some: Tensor, start: int, stop: int) -> None:
        with torch.inference_mode():
            parts.append(lm.greedy(some[start:stop], length)[0].numpy())

    for some in torch.split(prompts, greedy_rows(lm.device)):
        for _ in lm.in_batches(partial(decode, some), len(some), prompts.shape[1] + length, peak=peak):
            pass
        yield progress
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------------------------ other weights


@contextlib.contextmanager
def _standing_in(weights: _Weights) -> Iterator[None]:
    """Within, each parameter's data is the tensor beside it. Nothing is copied, so nothing can come back changed."""
    originals = [(parameter, parameter.data) for parameter, _ in weights]
    try:
        for parameter, tensor in weights:
            parameter.data = tensor
        yield
    finally:
        for parameter, tensor in originals:
            parameter.data = tensor


def _relearned(
    lm: LanguageModel, request: MeasureRemains, rows: Tensor, other: Tensor | None, steps: int, peak: PeakMemory
) -> Iterator[Tensor]:
    """After each Adam step on `other` [m, t]: which continuation tokens of rows [n, t] are the argmax, [n, c].

    Ends early where memory is too small, and says so.
    """
    if other is None or not steps:
        return
    generator = torch.Generator().manual_seed(request.seed)
    parameters = list(lm.model.parameters())
    # In fp32 a copy and Adam's two averages; the gradient, and what stands in the model where it is no fp32.
    halves = 2 if lm.info.dtype != "float32" else 1
    needed = sum(12 * parameter.numel() + halves * parameter.nbytes for parameter in parameters)
    peak.held = needed
    batch = min(request.relearn_batch, len(other))
    order = torch.empty(0, dtype=torch.int64)
    try:
        # In fp32 whatever the model's precision is: bf16 would round most of a small step away.
        own = [parameter.detach().float().clone() for parameter in parameters]
        adam = [Adam(tensor, request.relearn_rate) for tensor in own]
        for step in range(steps):
            if len(order) < batch:  # every row once before any comes again
                order = torch.randperm(len(other), generator=generator)
            chosen, order = order[:batch], order[batch:]
            with peak.step(batch * lm.row_bytes(other.shape[1], backward=True)):
                standing = [(q, tensor.to(q.dtype)) for q, tensor in zip(parameters, own, strict=True)]
                with _standing_in(standing):
                    loss, gradients = _gradients(lm, other[chosen], parameters)
                if not math.isfinite(loss):
                    raise MemlocError(
                        f"Training on other text came to a loss of {loss} at step {step + 1}; "
                        f"a rate below {request.relearn_rate:g} is needed."
                    )
                for i, gradient in enumerate(gradients):
                    own[i] = adam[i].step(own[i], gradient.float())
                standing = [(q, tensor.to(q.dtype)) for q, tensor in zip(parameters, own, strict=True)]
                with _standing_in(standing):
                    matched = _matched(lm, rows, request.prefix_length)
            yield matched
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        lm.notices.append(
            f"Training on other text needs {needed / 1e9:,.2f} GB beside the model, and {lm.device} has not that much "
            "left: what it would bring back was not measured."
        )
    finally:
        peak.held = 0


def _gradients(lm: LanguageModel, rows: Tensor, parameters: list[nn.Parameter]) -> tuple[float, list[Tensor]]:
    """Mean NLL per token of rows [b, t], all but the first, and its gradient at every parameter (zero where unused)."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        logits = lm.logits(lm.hidden(rows[:, :-1]))
        loss = F.cross_entropy(logits.mT, rows[:, 1:].to(lm.device))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return float(loss.detach()), [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]


def _matrices(lm: LanguageModel) -> list[tuple[nn.Parameter, int]]:
    """Every weight matrix of the blocks, and the axis of its inputs."""
    return [
        (parameter, -2 if keeps_inputs_first(module) else -1)
        for block in lm.blocks
        for module in block.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_matrix(parameter) and not name.endswith("bias")  # those of stacked experts are one table
    ]


def _block_bytes(lm: LanguageModel) -> int:
    return sum(parameter.nbytes for parameter, _ in _matrices(lm))


def _eight_bit(lm: LanguageModel) -> _Weights:
    """The matrices of the blocks rounded to -127..127 times one scale per output row, and back."""
    rounded = []
    for parameter, inputs in _matrices(lm):
        weights = parameter.detach().float()
        scale = weights.abs().amax(inputs, keepdim=True) / 127
        scale = torch.where(scale > 0, scale, 1)
        rounded.append((parameter, ((weights / scale).round().clamp(-127, 127) * scale).to(parameter.dtype)))
    return rounded


def _other_text(lm: LanguageModel, request: MeasureRemains) -> Tensor | None:
    """The text to train on, [m, t]; None where there is none. Raises UsageError where it holds a paragraph."""
    if not request.other_text:
        return None
    if request.relearn_steps < 0 or request.relearn_batch < 1 or not 0 < request.relearn_rate < math.inf:
        raise UsageError("Relearning needs a positive rate, rows in every step, and no negative number of steps.")
    if set(request.other_text) & set(request.paragraphs):
        raise UsageError("The text to train on afterwards holds one of the paragraphs; it has to be other text.")
    return lm.rows(request.other_text, 1)
