"""Unlearning, editing and memorizing by a few weights (paper section 5; README).

Between two steps the weights are the original ones, bit for bit: a step writes its values in, and takes them out.

Letters in shapes: n changed paragraphs, k masked weights, s steps, c continuation positions, w width.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import GOALS, GROUPS, MASKS, OBJECTIVES, EstimateRun, Progress, RunCost, Unlearn, Unlearning
from memloc_core.steps import retold
from memloc_core.unlearning import masks
from memloc_core.unlearning.training import (
    FISHER_ROWS,
    PAPER_DECAY,
    PAPER_MASKS,
    PAPER_RATE,
    PAPER_STEPS,
    Targets,
    Training,
)
from memloc_core.unlearning.watching import SAMPLE
from memloc_core.unlearning.weights import Adam, MaskedWeights, matrices

if TYPE_CHECKING:
    from memloc_core.requests import Floats

_HALVINGS = 5  # of the way back from the last step, towards the original
_WHOLE_EDITS = 2_000_000  # weights; a larger edit is not sent along with every step's progress

Steps = Generator[Progress, None, Unlearning]
Stop = Literal["running", "goal", "steps", "loss", "cancelled"]


def run(lm: LanguageModel, request: Unlearn, watched: bool = True) -> Steps:
    """See `Unlearn`, and `TryRun` for `watched`.

    Raises UsageError, in a sentence and before any work, for a request that cannot be meant.
    """
    k = _check(lm, request)
    if not watched and any((request.held_out, request.others, request.family, request.general)):
        raise UsageError("A run that is not watched looks at no groups of other text; give it none.")
    lm.notice_float16()
    work = _Run(lm, request, watched)
    for _ in work.watch.look_before():
        yield Progress(0, request.steps)
    work.keep_what_was()
    for _ in work.write_stand_ins():
        yield Progress(0, request.steps)
    weights = yield from retold(work.choose(k), lambda _: Progress(0, request.steps))
    return (yield from work.train(weights))


def run_estimate(lm: LanguageModel, request: EstimateRun) -> Generator[Progress, None, RunCost]:
    """Time one training step and one measurement, on weights at random: which ones hardly changes what a step takes."""
    asked = request.run
    k, mask = _check(lm, asked), masks.meant(lm, asked)
    few = {name: getattr(asked, name)[:SAMPLE] for name in ("held_out", "others", "family", "general")}
    work = Training(lm, replace(asked, **few, kept=asked.kept[: max(SAMPLE, asked.kept_per_step)]))
    started = time.perf_counter()
    for _ in work.watch.look_before():
        yield Progress(0, 2, "timing")
    work.keep_what_was()
    before = time.perf_counter() - started
    before *= max(1.0, _beside(asked) / max(1, _beside(work.request)))
    started = time.perf_counter()
    for _ in work.write_stand_ins():
        yield Progress(0, 2, "timing")
    before += time.perf_counter() - started
    dense = mask == "dense" or work.paper  # the paper's weight decay moves every weight
    weights = yield from retold(masks.choose(lm, "dense" if dense else "random", k), lambda _: Progress(0, 2, "timing"))
    values = weights.old.clone()
    seconds = []
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        batch = work.batch()
        _, gradient = work.gradient(weights, values, batch)
        Adam(values, asked.learning_rate).step(values, gradient)
        step = time.perf_counter() - started
        yield Progress(1, 2, "timing")
        started = time.perf_counter()
        work.targets_at(weights, values)
        work.kl_at(weights, values)
        for _ in work.watch.look(weights, values, SAMPLE):
            pass
        seconds.append((step, time.perf_counter() - started))
    step, measuring = seconds[-1]
    row = step / len(batch)
    contrasts = mask not in ("gradient", "random", "dense")
    held = 0 if work.peak.is_measured else work.held(weights)
    squares = 4 * sum(m.parameter.numel() for m in matrices(lm)) if contrasts and mask != "neurons" else 0
    scored = len(asked.targets) + (min(len(asked.kept), FISHER_ROWS) if contrasts else 0)
    return RunCost(
        weights=k,
        seconds_per_step=step + measuring,
        bytes=work.peak.bytes + max(held, squares),  # squares are gone when the values come
        seconds_to_start=before + (0.0 if mask in ("random", "dense") else scored * row),
    )


def _beside(request: Unlearn) -> int:
    """How many paragraphs a run keeps and watches."""
    return sum(map(len, (request.kept, request.held_out, request.others, request.family, request.general)))


# -------------------------------------------------------------------------------------------------------------- checks


def _check(lm: LanguageModel, request: Unlearn) -> int:
    """k. Raises UsageError for everything that can be told before work begins."""
    for name, value, known in (
        ("objective", request.objective, OBJECTIVES),
        ("mask", request.mask, MASKS),
        ("goal", request.goal, GOALS),
        ("protocol", request.protocol, ("memloc", "paper")),
    ):
        if value not in known:
            raise UsageError(f"There is no {name} {value!r}; there are {', '.join(known)}.")
    if not request.targets:
        raise UsageError("There is no paragraph to change.")
    if request.steps < 1:
        raise UsageError(f"{request.steps} steps change nothing; give at least 1.")
    if not (math.isfinite(request.learning_rate) and request.learning_rate > 0):
        raise UsageError(f"A learning rate of {request.learning_rate:g} cannot be used; give a number above 0.")
    if not (math.isfinite(request.kl_weight) and request.kl_weight >= 0):
        raise UsageError(f"A KL weight of {request.kl_weight:g} cannot be used; give 0 or more.")
    if request.kl_weight > 0 and not request.kept:
        raise UsageError("No paragraph is kept; keep some, or set the KL weight to 0 to let everything else go.")
    if request.kl_weight > 0 and request.kept_per_step < 1:
        raise UsageError("At least one kept paragraph is needed in each step.")
    if request.protocol == "paper" and request.mask not in (*PAPER_MASKS, "auto"):
        raise UsageError(f"The paper's protocol has the masks {', '.join(PAPER_MASKS)}, not {request.mask!r}.")
    everything = (request.targets, request.kept, request.held_out, request.others, request.family, request.general)
    length = len(request.targets[0])
    for rows in everything:
        for row in rows:
            if len(row) != length:
                raise UsageError(f"All paragraphs of a run need one length; there are {length} and {len(row)} tokens.")
    lm.rows(tuple(row for rows in everything for row in rows), request.prefix_length)
    lm.check_tokens(request.left_context, 0)
    if request.objective == "edit":
        if len(request.alternatives) != len(request.targets):
            raise UsageError(
                f"Editing needs one alternative for each paragraph; there are {len(request.alternatives)} for "
                f"{len(request.targets)}."
            )
        for row in request.alternatives:
            if len(row) != length:
                raise UsageError(f"An alternative has {len(row)} tokens with its prefix; it needs {length}.")
        lm.rows(request.alternatives, request.prefix_length)
    elif request.alternatives:
        raise UsageError(f"Alternatives go with the objective edit, not with {request.objective}.")
    if len(request.sibling_nll) not in (0, len(request.targets)):
        raise UsageError(f"{len(request.sibling_nll)} sibling NLLs are given for {len(request.targets)} paragraphs.")
    if request.goal == "forget" and not (request.sibling_nll or request.general or request.held_out):
        raise UsageError("The goal 'forget' needs text to hold the NLL against: general or held-out text.")
    return masks.size(lm, masks.meant(lm, request), request.sparsity, request.place)


# ------------------------------------------------------------------------------------------------------------ the run


@dataclass
class _Curves:
    """What is measured at each step, entry 0 before the first."""

    em: list[Tensor] = field(default_factory=list)
    longest: list[Tensor] = field(default_factory=list)
    nll: list[Tensor] = field(default_factory=list)
    taught_em: list[Tensor] = field(default_factory=list)
    taught_nll: list[Tensor] = field(default_factory=list)
    broken: list[Tensor] = field(default_factory=list)
    forgotten: list[Tensor] = field(default_factory=list)
    taught: list[Tensor] = field(default_factory=list)
    repetition: list[Tensor] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    groups: list[tuple[Floats, Floats, Floats]] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class _Run(Training):
    """A request from its first step to its last."""

    def train(self, chosen: MaskedWeights) -> Steps:
        request = self.request
        weights, inside = chosen, None
        if self.paper and request.mask != "dense":  # weight decay moves every weight; the gradient stays masked
            weights = yield from retold(masks.choose(self.lm, "dense", 0), lambda _: Progress(0, request.steps))
            inside = _positions(weights, chosen)
        steps = PAPER_STEPS if self.paper else request.steps
        rate = PAPER_RATE if self.paper else request.learning_rate
        adam = Adam(weights.old, rate, PAPER_DECAY if self.paper else 0.0)
        self.peak.held = self.held(weights)
        values = weights.old
        self.curves, self.weights = _Curves(), weights
        self.whole = [self.watch.before()]
        self.drawn_back = 1.0
        found = yield from self._at(values, 0)
        self._note(found, 0.0, self.watch.before(SAMPLE))
        self.best, self.best_values = 0, values
        stopped: Stop = "steps"
        reason = f"All {steps} steps were taken."
        if self.met(found):
            return (yield from self._finish("goal", "The goal was met before the first step; nothing was changed."))
        values = weights.start
        for step in range(1, steps + 1):
            started = time.perf_counter()
            loss, gradient = self.gradient(weights, values, self.batch())
            if inside is not None:
                gradient = torch.zeros_like(gradient).index_copy_(0, inside, gradient[inside])
            if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
                stopped = "loss"
                reason = (
                    f"The loss of step {step} was {loss:g}"
                    + ("" if not math.isfinite(loss) else " and its gradient was not finite")
                    + f"; the run stopped and step {self.best} is kept. A smaller learning rate may help."
                )
                break
            values = adam.step(values, gradient)
            taken = time.perf_counter() - started
            found = yield from self._at(values, step - 1)
            if not bool(torch.isfinite(found.nll).all()):  # such a model recites nothing: it must not count as a goal
                stopped = "loss"
                reason = (
                    f"After step {step} the model gives no finite probabilities; the run stopped and step {self.best} "
                    "is kept. A smaller learning rate may help."
                )
                break
            self.curves.seconds.append(taken)
            self.curves.loss.append(loss)
            # Detectors that only break do so little harm that their margin, which rounding the weights would eat up, is
            # worth more.
            if self.met(found) and (weights.start is weights.old or self.request.goal != "break"):
                values, found = yield from self._drawn_back(values, found, step)
            divergence = self.kl_at(weights, values) if self.watched or step == steps else math.nan
            groups = yield from self._looked(values, SAMPLE, step - 1)
            self._note(found, divergence, groups)
            if self._better(step):
                self.best, self.best_values = step, values
            if self.met(found):
                stopped, reason = "goal", f"The goal {request.goal!r} was met at step {step}."
                break
            yield Progress(step, steps, partial=self._result("running", "") if self._sends else None)
        if stopped == "steps" and request.goal != "steps" and not self.paper:
            reason = f"The goal {request.goal!r} was not met in {steps} steps; step {self.best} came closest."
        return (yield from self._finish(stopped, reason))

    @property
    def _sends(self) -> bool:
        return self.watched and len(self.weights) <= _WHOLE_EDITS

    def _at(self, values: Tensor, done: int) -> Generator[Progress, None, Targets]:
        """The changed paragraphs with `values` in the weights."""
        writing = self.repetition_at(self.weights, values, self.targets_at(self.weights, values))
        return retold(writing, lambda _: Progress(done, self.request.steps))

    def _drawn_back(
        self, values: Tensor, found: Targets, step: int
    ) -> Generator[Progress, None, tuple[Tensor, Targets]]:
        """The least of the way from the start to `values` that still meets the goal, by bisection."""
        low, high, start = 0.0, 1.0, self.weights.start
        best = (values, found)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried = start + middle * (values - start)
            there = yield from self._at(tried, step - 1)
            if self.met(there):
                high, best = middle, (tried, there)
            else:
                low = middle
            yield Progress(step - 1, self.request.steps)
        self.drawn_back = high
        return best

    def _looked(
        self, values: Tensor, most: int | None, done: int
    ) -> Generator[Progress, None, tuple[Floats, Floats, Floats]]:
        looking = self.watch.look(self.weights, values, most)
        return retold(looking, lambda _: Progress(done, self.request.steps))

    def _note(self, found: Targets, divergence: float, groups: tuple[Floats, Floats, Floats]) -> None:
        for name, value in vars(found).items():
            getattr(self.curves, name).append(value)
        self.curves.kl.append(divergence)
        self.curves.groups.append(groups)

    def _better(self, step: int) -> bool:
        """Whether this step is to be kept rather than the best so far (`Unlearning` states the rule)."""
        curves = self.curves
        if self.paper:
            return True

        def rank(at: int) -> tuple[float, float]:
            if self.taught is not None:
                return (-float(curves.taught_em[at].double().mean()), curves.kl[at])
            return (float(curves.em[at].double().mean()), curves.kl[at])

        goal = {"break": curves.broken, "forget": curves.forgotten}.get(self.request.goal)
        if self.taught is not None:
            goal = curves.taught if self.request.goal != "steps" else None
        met = goal is not None and bool(goal[step].all())
        return met or rank(step) < rank(self.best)

    def _finish(self, stopped: Stop, reason: str) -> Steps:
        whole = yield from self._looked(self.best_values, None, len(self.curves.loss))
        self.whole.append(whole)
        result = self._result(stopped, reason)
        if self.paper:
            self.lm.notices.append(
                f"The paper's protocol changed {result.changed:,} weights: its weight decay acts outside the mask too."
            )
        return result

    def _result(self, stopped: Stop, reason: str) -> Unlearning:
        curves = self.curves
        edit = self.weights.edit(self.lm, self.best_values)
        group_em, group_nll, agreement = (np.stack([groups[i] for groups in curves.groups]) for i in range(3))
        whole = [*self.whole, *[tuple(np.full((3, len(GROUPS)), np.nan, np.float32))] * (2 - len(self.whole))]
        whole_em, whole_nll, whole_agreement = (np.stack([part[i] for part in whole]) for i in range(3))

        def stacked(values: Sequence[Tensor]) -> Any:
            joined = torch.stack(list(values))
            return joined.float().numpy() if joined.is_floating_point() else joined.long().numpy()

        return Unlearning(
            edit=edit,
            best=self.best,
            stopped=stopped,
            reason=reason,
            em=stacked(curves.em),
            longest_run=stacked(curves.longest),
            nll=stacked(curves.nll),
            taught_em=stacked(curves.taught_em),
            taught_nll=stacked(curves.taught_nll),
            loss=np.array(curves.loss, np.float32),
            kl=np.array(curves.kl, np.float32),
            group_em=group_em,
            group_nll=group_nll,
            agreement=agreement,
            step_seconds=statistics.median(curves.seconds) if curves.seconds else 0.0,
            peak_bytes=self.peak.bytes,
            broken=stacked(curves.broken),
            forgotten=stacked(curves.forgotten),
            taught=stacked(curves.taught),
            repetition=stacked(curves.repetition),
            fresh_repetition=self.fresh_repetition,
            whole_em=whole_em,
            whole_nll=whole_nll,
            whole_agreement=whole_agreement,
            drawn_back=self.drawn_back,
            changed=int((edit.old != edit.new).sum()),
        )


def _positions(everything: MaskedWeights, chosen: MaskedWeights) -> Tensor:
    """Where the entries of `chosen` stand among those of `everything`, which is dense."""
    starts, found, at = {}, [], 0
    for part in everything.parts:
        starts[part.name] = at
        at += len(part)
    for part in chosen.parts:
        found.append(part.numbered + starts[part.name])
    return torch.cat(found)
