"""One run at work: the batch of a step, its gradient, the choice of the mask, and how the targets do.

Letters in shapes: n changed paragraphs, k masked weights, c continuation positions, w width.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from memloc_core.devices import PeakMemory
from memloc_core.language_model import LanguageModel
from memloc_core.requests import GROUPS, Unlearn
from memloc_core.unlearning import masks
from memloc_core.unlearning.neurons import detectors
from memloc_core.unlearning.objectives import Push, Rows, head_gradient, joined, kl, push_loss
from memloc_core.unlearning.watching import (
    RUN,
    SAMPLE,
    Watch,
    greedy_rows,
    longest_run,
    mean_kl,
    repetition,
    score,
    variants,
)
from memloc_core.unlearning.weights import MaskedWeights

ASKED = 8  # prefixes that the model is asked with for stand-ins of one target
REPLACED = (0.1, 0.2, 0.3, 0.5)  # shares of such a prefix' tokens that are replaced, in turn
NEAR = 0.5  # a kept row whose prefix shares so much of a target's, token by token, is near it
PATIENCE = 200  # steps after which the goal "forget" weighs twice as much against what is kept
FISHER_ROWS = 64  # kept rows whose gradients the contrast masks are measured against

# The paper's protocol, from its public code: Adam with L2 weight decay on every weight, also where the gradient is
# masked; -c NLL; KL by "batchmean", a sum over the c tokens of a row.
PAPER_RATE, PAPER_STEPS, PAPER_DECAY, PAPER_C = 1e-5, 10, 1.0, 0.1
PAPER_MASKS = ("gradient", "random", "dense")


@dataclass
class Batch:
    """Rows of a training step: the first `changed` of them are pushed, the others held to what `before` has."""

    rows: Rows
    changed: int
    nll: Tensor  # [changed] that the goal "forget" wants
    before: Tensor  # [kept, c, w] hidden states of the original

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Targets:
    """The changed paragraphs at one step, each [n]."""

    em: Tensor
    longest: Tensor
    nll: Tensor
    taught_em: Tensor  # [0] where nothing is taught
    taught_nll: Tensor
    broken: Tensor
    forgotten: Tensor
    taught: Tensor
    repetition: Tensor  # nan where the new text was not written


class Training:
    """What one request needs at each step. Nothing here yields: every method leaves the weights as it found them."""

    def __init__(self, lm: LanguageModel, request: Unlearn, watched: bool = True) -> None:
        self.lm, self.request, self.watched, self.p = lm, request, watched, request.prefix_length
        self.paper = request.protocol == "paper"
        p = self.p
        self.targets = lm.rows(request.targets, p)
        taught = {"unlearn": None, "edit": request.alternatives, "memorize": request.targets}[request.objective]
        self.taught = None if taught is None else Rows.of(lm.rows(taught, p), p)
        self.kept = Rows.of(self._rows(request.kept), p)
        self.peak = PeakMemory(lm.device)
        groups = (request.kept, request.held_out, request.others, request.family, request.general)
        tokens = {name: self._rows(rows) for name, rows in zip(GROUPS, groups, strict=True) if watched}
        self.watch = Watch(lm, tokens, p, self.peak)
        self.variants = variants(lm, self.targets, p, request.left_context)
        self.still_recited: Rows | None = None  # the variant that the goal "forget" failed on last
        # What takes the targets' place, rows [r, t]: after their own prefix, and after that which it was written after.
        self.stand_ins = self.neighbours = self.targets[:0]
        self.written = torch.empty(0)  # [r, c, w] hidden states of the original that wrote it
        same = self.kept.ids[:, None, : self.p] == self.targets[None, :, : self.p]
        self.near = (same.float().mean(-1) >= NEAR).any(-1)  # [kept]
        self.c = self.targets.shape[1] - p
        self.run = max(1, round(RUN * self.c / 50))  # 8 of 50 tokens
        self.draw = torch.Generator().manual_seed(request.seed)
        self.taken = 0  # batches so far
        self.before = torch.empty(0)
        self.wanted_nll = torch.zeros(len(self.targets))
        self.fresh_repetition = math.nan  # nan: there is no fresh text to compare with

    def _rows(self, paragraphs: tuple[tuple[int, ...], ...]) -> Tensor:
        length = self.targets.shape[1]
        return self.lm.rows(paragraphs, self.p) if paragraphs else torch.empty(0, length, dtype=torch.int64)

    def keep_what_was(self) -> None:
        """What later steps are held against: hidden states of the kept rows (p_0 is one head away), the NLL wanted.

        The states are a V-th of what p_0 itself would take, over w.
        """
        parts: list[Tensor] = []

        def run(start: int, stop: int) -> None:
            with torch.inference_mode():
                parts.append(self.kept[start:stop].hidden(self.lm).clone())

        for _ in self.lm.in_batches(run, len(self.kept), self.targets.shape[1], peak=self.peak):
            pass
        self.before = torch.cat(parts) if parts else torch.empty(0)
        if self.request.sibling_nll:
            self.wanted_nll = torch.tensor(self.request.sibling_nll)
        else:
            usual = [group.nll for name in ("general", "held-out") if (group := self.watch.groups.get(name))]
            self.wanted_nll = torch.full_like(self.wanted_nll, float(usual[0].mean()) if usual else math.inf)
        fresh = [group.own.targets for name in ("general", "held-out") if (group := self.watch.groups.get(name))]
        if fresh and len(fresh[0]):
            self.fresh_repetition = float(repetition(fresh[0].numpy()).mean())

    def write_stand_ins(self) -> Generator[int, None, None]:
        """Text to write in place of the targets (goal "forget"); yields after each target.

        Pushing a paragraph down alone leaves gibberish in its place, which goes round in circles. So the model is asked
        what it writes after a similar prefix: tokens drawn by their surprise, which takes names first, are replaced by
        others that it holds likely there. Answers that still recite are left out. After the target's prefix it is to
        write the same, and after the similar one still.
        """
        if self.push != "forget" or self.p < 2:
            return
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for done, target in enumerate(self.targets):
            asked, written = self._asked_otherwise(target)
            same = written == target[self.p :]
            own = (same.long().cumprod(-1).sum(-1) <= self.c // 10) & (longest_run(same) <= self.run)
            neighbours = torch.cat([asked, written], 1)[own]
            if len(neighbours):
                stand_ins = torch.cat([target[: self.p].expand(len(neighbours), -1), written[own]], 1)
                with torch.inference_mode():
                    found.append((stand_ins, neighbours, Rows.of(neighbours, self.p).hidden(self.lm).clone()))
            yield done + 1
        if found:
            self.stand_ins, self.neighbours, self.written = map(torch.cat, zip(*found, strict=True))

    def _asked_otherwise(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Prefixes [ASKED, p] near that of target [t], and the greedy continuations [ASKED, c] after them."""
        true = target[1 : self.p]
        with torch.inference_mode():
            logits = self.lm.logits(self.lm.hidden(target[None, : self.p - 1]))[0].float().cpu()
            surprise = F.cross_entropy(logits, true, reduction="none")
            others = logits.scatter(-1, true[:, None], -torch.inf).softmax(-1)
            asked = target[: self.p].repeat(ASKED, 1)
            for i, row in enumerate(asked):
                many = max(1, round(REPLACED[i % len(REPLACED)] * len(true)))
                where = torch.multinomial(surprise + 1e-6, many, generator=self.draw)
                row[where + 1] = torch.multinomial(others[where], 1, generator=self.draw)[:, 0]
        return asked, self._written(asked)

    def _written(self, prefixes: Tensor) -> Tensor:
        """The greedy continuations [r, c] after prefixes [r, p], by the weights as they stand."""
        written: list[Tensor] = []

        def run(start: int, stop: int) -> None:
            with torch.inference_mode():
                written.append(self.lm.greedy(prefixes[start:stop], self.c)[0])

        for _ in self.lm.in_batches(run, len(prefixes), self.targets.shape[1], peak=self.peak):
            pass
        return torch.cat(written)

    @property
    def push(self) -> Push:
        if self.paper:
            return "nll"
        if self.request.objective != "unlearn":
            return "teach"
        if self.request.goal == "break":
            return "weakest"
        return "forget" if bool(torch.isfinite(self.wanted_nll).all()) else "all"

    # ------------------------------------------------------------------------------------------------ the training step

    def batch(self) -> Batch:
        """The rows of the next step."""
        self.taken += 1
        request = self.request
        changed = Rows.of(self.targets, self.p) if self.taught is None else self.taught
        wanted = self.wanted_nll
        if self.push == "forget" and self.still_recited is not None:
            changed, wanted = joined([changed, self.still_recited]), wanted.repeat(2)
        weight = 1.0 if self.paper else request.kl_weight
        if not len(self.kept) or weight == 0:
            return Batch(changed, len(changed), wanted, self.before[:0])
        chosen = torch.randperm(len(self.kept), generator=self.draw)
        if self.push == "forget":  # what is near the targets is what suffers: half of the rows, as far as there are
            near = chosen[self.near[chosen]][: request.kept_per_step // 2]
            chosen = torch.cat([near, chosen[~torch.isin(chosen, near)]])
        chosen = chosen[: request.kept_per_step]
        parts, before = [changed, self.kept[chosen]], [self.before[chosen]]
        if len(self.stand_ins):
            some = torch.randperm(len(self.stand_ins), generator=self.draw)[: len(self.targets)]
            parts += [Rows.of(self.stand_ins[some], self.p), Rows.of(self.neighbours[some], self.p)]
            before += [self.written[some]] * 2
        return Batch(joined(parts), len(changed), wanted, torch.cat(before))

    def losses(self, batch: Batch, start: int, stop: int, logits: Tensor) -> Tensor:
        """The loss of rows start .. stop of a batch, each with its weight in the mean, [stop - start]."""
        n, kept = batch.changed, len(batch) - batch.changed
        cut = min(max(n - start, 0), stop - start)
        targets = batch.rows.targets[start:stop].to(logits.device)
        parts = []
        if cut:
            nll = batch.nll[start : start + cut].to(logits.device)
            scale = (PAPER_C if self.paper else self.urgency) / n
            if self.paper and self.taught is not None:
                scale = -scale
            parts.append(scale * push_loss(logits[:cut], targets[:cut], self.push, run=self.limit, nll=nll))
        if cut < stop - start:
            before = self.lm.logits(batch.before[start + cut - n : stop - n])
            weight = self.c if self.paper else self.request.kl_weight
            parts.append(weight / kept * kl(logits[cut:], before))
        return torch.cat(parts)

    @property
    def limit(self) -> int:
        """Recited tokens that may stay: at the beginning for "break", anywhere for "forget"."""
        return self.c // 10 if self.push == "weakest" else self.run

    @property
    def urgency(self) -> float:
        """What the push weighs: where near text holds a target back ("forget"), the more the longer it takes."""
        return 1 + self.taken / PATIENCE if self.push == "forget" else 1.0

    def gradient(self, weights: MaskedWeights, values: Tensor, batch: Batch) -> tuple[float, Tensor]:
        """Loss and its gradient [k] at `values`."""
        total, gradient = 0.0, torch.zeros_like(weights.old)

        def run(start: int, stop: int) -> None:
            nonlocal total
            part = batch.rows[start:stop]
            with weights.written(values), weights.leaves() as leaves, torch.enable_grad():
                hidden = part.hidden(self.lm)
                loss, upstream = head_gradient(
                    self.lm, hidden, lambda a, b, logits: self.losses(batch, start + a, start + b, logits)
                )
                found = torch.autograd.grad(hidden, leaves, upstream, materialize_grads=True)
            weights.gather(found, gradient)
            total += float(loss)

        for _ in self.lm.in_batches(run, len(batch), batch.rows.ids.shape[1] + 1, backward=True, peak=self.peak):
            pass
        return total, gradient

    def choose(self, k: int) -> Generator[int, None, MaskedWeights]:
        """The mask: by the gradient of what the run brings down, over that of single kept rows, or by neurons."""
        request, lm = self.request, self.lm
        mask = masks.meant(lm, request)
        if mask == "neurons":
            rows = [Rows.of(self.targets, self.p)] if self.taught is None else [self.taught]
            if self.push == "forget":
                near = joined([Rows.of(self.neighbours, self.p), self.kept[self.near]])
                return detectors(
                    lm, k, request.place, rows + self.variants, self.kept, near=near if len(near) else None
                )
            return detectors(lm, k, request.place, rows, self.kept, self.limit + 1 if self.push == "weakest" else None)
        everything = self.batch()
        changed = replace(everything, rows=everything.rows[: everything.changed], before=everything.before[:0])

        def backward(start: int, stop: int) -> None:
            hidden = changed.rows[start:stop].hidden(lm)
            _, upstream = head_gradient(lm, hidden, lambda a, b, x: self.losses(changed, start + a, start + b, x))
            hidden.backward(upstream)  # type: ignore[no-untyped-call]

        def backward_kept(row: int) -> None:
            rows = self.kept[[row]]
            hidden = rows.hidden(lm)

            def nll(start: int, stop: int, logits: Tensor) -> Tensor:
                return -push_loss(logits, rows.targets.to(logits.device), "nll", run=0)

            hidden.backward(head_gradient(lm, hidden, nll)[1])  # type: ignore[no-untyped-call]

        some = torch.randperm(len(self.kept), generator=self.draw)[:FISHER_ROWS].tolist()
        chosen = yield from masks.choose(
            lm,
            mask,
            k,
            place=request.place,
            seed=request.seed,
            changed=backward,
            rows=len(changed.rows),
            length=changed.rows.ids.shape[1],
            kept=[partial(backward_kept, row) for row in some],
        )
        return chosen

    def held(self, weights: MaskedWeights) -> int:
        """Bytes that a run holds beside what its passes take."""
        return weights.nbytes + self.before.nbytes + self.written.nbytes

    # ---------------------------------------------------------------------------------------------------- measuring

    def targets_at(self, weights: MaskedWeights, values: Tensor) -> Targets:
        """The changed paragraphs with `values` in the weights. Other prefixes are tried only where they can decide."""
        c, n = self.c, len(self.targets)
        rows = Rows.of(self.targets, self.p)
        true = rows.targets.to(self.lm.device)
        with weights.written(values):
            scores = self._scores(rows)
            right = scores[0] == true
            em, longest, nll = right.long().cumprod(-1).sum(-1), longest_run(right), scores[1].mean(-1)
            broken = em <= c // 10
            forgotten = broken & (longest <= self.run) & (nll >= self.wanted_nll.to(nll.device))
            for variant in self.variants:
                if not forgotten.any():
                    break
                where = forgotten.nonzero()[:, 0]
                predicted = self._scores(variant[where.cpu()])[0]
                gone = longest_run(predicted == true[where]) <= self.run
                forgotten[where] = gone
                if not gone.all():
                    self.still_recited = variant
            taught_em, taught_nll, taught = em[:0], nll[:0], torch.zeros(n, dtype=torch.bool)
            if self.taught is not None:
                predicted, losses = self._scores(self.taught)
                matched = (predicted == self.taught.targets.to(self.lm.device)).long().cumprod(-1).sum(-1)
                taught_em, taught_nll, taught = matched, losses.mean(-1), matched == c
        unwritten = torch.full_like(nll, math.nan)
        found = Targets(em, longest, nll, taught_em, taught_nll, broken, forgotten, taught, unwritten)
        return Targets(**{name: value.cpu() for name, value in vars(found).items()})

    def repetition_at(self, weights: MaskedWeights, values: Tensor, found: Targets) -> Generator[int, None, Targets]:
        """`found` with the repetition of the new text, which takes a pass for every token; yields after each batch.

        It is written only where nothing else is in the way of "forget": then it must not repeat itself more, on
        average, than fresh text does, or those that do are not forgotten yet.
        """
        if not bool(found.forgotten.all()):
            return found
        written = []
        for targets in torch.split(self.targets, greedy_rows(self.lm.device)):
            with weights.written(values):
                written.append(self._written(targets[:, : self.p]))
            yield len(written)
        repeated = torch.from_numpy(repetition(torch.cat(written).numpy()))
        if float(repeated.mean()) > self.fresh_repetition:
            return replace(found, repetition=repeated, forgotten=repeated <= self.fresh_repetition)
        return replace(found, repetition=repeated)

    def _scores(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Predicted tokens and NLL, [n, c] each."""
        parts = []

        def run(start: int, stop: int) -> None:
            parts.append(score(self.lm, rows[start:stop]))

        for _ in self.lm.in_batches(run, len(rows), rows.ids.shape[1] + 1, peak=self.peak):
            pass
        return torch.cat([part.predicted for part in parts]), torch.cat([part.nll for part in parts])

    def kl_at(self, weights: MaskedWeights, values: Tensor) -> float:
        with weights.written(values):
            some = slice(0, 2 * SAMPLE)
            return mean_kl(self.lm, self.kept[some], self.before[some])

    def met(self, found: Targets) -> bool:
        """Whether the goal is met by all."""
        if self.request.goal == "steps" or self.paper:
            return False
        if self.request.objective != "unlearn":
            return bool(found.taught.all())
        return bool((found.broken if self.request.goal == "break" else found.forgotten).all())
