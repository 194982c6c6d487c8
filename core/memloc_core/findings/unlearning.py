"""Claims about taking it out again: how few weights it takes, editing, and who resists (paper, section 5).

As in the paper every paragraph is changed alone, from fresh weights, by the same number of steps at the same learning
rate, whatever the mask; what is compared is the exact match afterwards.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from memloc_core.findings.recitation import Steps, sweep
from memloc_core.findings.setting import Setting
from memloc_core.findings.verdicts import (
    Group,
    Outcome,
    TooLittle,
    average,
    closing,
    difference,
    enough,
    judge,
    number,
    within,
)
from memloc_core.requests import Continue, Mask, Request, Tokens, TryRun, Unlearn

if TYPE_CHECKING:
    from memloc_core.requests import Ints, Unlearning

TARGETS = (10, 30)  # paragraphs of each kind, quick and in full
KEPT = (2, 8)  # non-memorized paragraphs that are held in place, all of them in each step
STEPS = 10  # as in the paper
SPARSITY = 0.001
MARGIN = 0.1  # of a continuation: an EM closer than this is as good


def few_weights(setting: Setting) -> Steps:
    """Whether the 0.1 % of the weights with the largest gradient unlearn as well as all of them."""
    rows = _targets(setting)
    requests = [_run(setting, row, mask) for mask in ("gradient", "dense") for row in rows.tolist()]
    results = yield requests
    few, every = _after(results[: len(rows)]), _after(results[len(rows) :])
    (pairs,) = setting.groups((rows, np.stack([few, every], -1)))
    return as_well(pairs, _drift(results[: len(rows)]), _drift(results[len(rows) :]), setting.c, setting.seed)


def as_well(pairs: Group, kl_few: float, kl_every: float, length: int, seed: int) -> Outcome:
    """Verdict on EM after unlearning [n, 2] by few weights and by all of them: is the first hardly higher?"""
    enough(pairs, of="Unlearning")
    few, every = pairs.values.mean(0)
    more, low, high = average(_gap(pairs), seed)
    verdict = judge(-high, -low, beyond=-MARGIN * length)
    says = (
        f"{STEPS} steps leave an EM of {number(few)} in {len(pairs)} memorized paragraphs where {SPARSITY:.1%} of the "
        f"weights may change, and {number(every)} where all may: {number(more)} {within(low, high)} more, where up to "
        f"{MARGIN * length:g} is as well (KL on other text {number(kl_few)} and {number(kl_every)} nats per "
        f"token){closing(verdict)}."
    )
    return Outcome(verdict, more, low, high, len(pairs), says, _closest(pairs))


def random_weights(setting: Setting) -> Steps:
    """Whether as many random weights do not."""
    rows = _targets(setting)
    results = yield [_run(setting, row, mask) for mask in ("random", "gradient") for row in rows.tolist()]
    (pairs,) = setting.groups((rows, np.stack([_after(results[: len(rows)]), _after(results[len(rows) :])], -1)))
    return random_fails(pairs, setting.c, setting.seed)


def random_fails(pairs: Group, length: int, seed: int) -> Outcome:
    """Verdict on EM after unlearning [n, 2] by random weights and by those of the largest gradient."""
    enough(pairs, of="Unlearning")
    drawn, chosen = pairs.values.mean(0)
    more, low, high = average(_gap(pairs), seed)
    verdict = judge(low, high, least=MARGIN * length)
    says = (
        f"{STEPS} steps leave an EM of {number(drawn)} in {len(pairs)} memorized paragraphs where a random "
        f"{SPARSITY:.1%} of the weights may change, and {number(chosen)} where those with the largest gradient may: "
        f"{number(more)} {within(low, high)} more{closing(verdict, f'{MARGIN * length:g}')}."
    )
    return Outcome(verdict, more, low, high, len(pairs), says, _largest(pairs))


def editing(setting: Setting) -> Steps:
    """Whether another text is harder to put in than the memorized one is to take out."""
    rows, alternatives = yield from _taught(setting)
    requests = [
        _run(setting, row, "gradient", objective="edit", alternatives=(text,))
        for row, text in zip(rows.tolist(), alternatives, strict=True)
    ]
    results = yield [*requests, *(_run(setting, row, "gradient") for row in rows.tolist())]
    edited, unlearned = results[: len(rows)], results[len(rows) :]
    (pairs,) = setting.groups((rows, np.stack([_after(edited), _after(unlearned)], -1)))
    taught = float(np.mean([result.taught_em[-1, 0] for result in edited]))
    return editing_is_harder(pairs, taught, setting.c, setting.seed)


def editing_is_harder(pairs: Group, taught: float, length: int, seed: int) -> Outcome:
    """Verdict on EM of the original text [n, 2] after editing and unlearning; `taught`: mean EM of the new one."""
    enough(pairs, of="Editing")
    edited, unlearned = pairs.values.mean(0)
    more, low, high = average(_gap(pairs), seed)
    verdict = judge(low, high, least=MARGIN * length / 2)
    says = (
        f"{STEPS} steps of editing leave an EM of {number(edited)} with the original text in {len(pairs)} memorized "
        f"paragraphs (and bring the other text to {number(taught)}), of unlearning {number(unlearned)}: {number(more)} "
        f"{within(low, high)} more{closing(verdict, f'{MARGIN * length / 2:g}')}."
    )
    return Outcome(verdict, more, low, high, len(pairs), says, _largest(pairs))


def memorized_resist(setting: Setting) -> Steps:
    """Whether memorized text is harder to unlearn than what the model says by itself."""
    rows = _targets(setting)
    _, others = _others(setting)
    continued = yield [Continue(prefix[: setting.p], setting.c) for prefix in setting.tokens(others)]
    prefixes = [prefix[: setting.p] for prefix in setting.tokens(others)]
    own = [(*prefix, *result.tokens.tolist()) for prefix, result in zip(prefixes, continued, strict=True)]
    requests = [_run(setting, row, "gradient") for row in rows.tolist()]
    results = yield [*requests, *(replace(requests[0], run=replace(requests[0].run, targets=(text,))) for text in own)]
    after, own_after = _after(results[: len(rows)]), _after(results[len(rows) :])
    whole = np.array([result.em[0, 0] == setting.c for result in results[len(rows) :]])  # half precision may not agree
    memorized, other = setting.groups((rows, after), (others[whole], own_after[whole]))
    return resistance(memorized, other, setting.c, setting.seed)


def resistance(memorized: Group, other: Group, length: int, seed: int) -> Outcome:
    """Verdict on EM after unlearning [n] of memorized paragraphs and of non-memorized ones' own continuation."""
    enough(memorized, other, of="Who resists unlearning")
    more, low, high = difference(memorized, other, seed)
    verdict = judge(low, high, least=MARGIN * length / 2)
    says = (
        f"{STEPS} steps of unlearning leave an EM of {number(memorized.mean)} in {len(memorized)} memorized "
        f"paragraphs, and {number(other.mean)} of what the model itself says after {len(other)} non-memorized "
        f"prefixes: {number(more)} {within(low, high)} more{closing(verdict, f'{MARGIN * length / 2:g}')}."
    )
    best = int(memorized.rows[int(memorized.values.argmax())])
    return Outcome(verdict, more, low, high, len(memorized) + len(other), says, best)


def _targets(setting: Setting) -> Ints:
    return setting.sample("memorized", setting.size(*TARGETS))


def _run(
    setting: Setting, row: int, mask: Mask, objective: Any = "unlearn", alternatives: tuple[Tokens, ...] = ()
) -> TryRun:
    """One paragraph from fresh weights. The paragraphs that are kept are nobody's targets."""
    kept, _ = _others(setting)
    run = Unlearn(
        setting.tokens((row,)),
        setting.tokens(kept),
        setting.p,
        objective,
        alternatives,
        mask,
        sparsity=1.0 if mask == "dense" else SPARSITY,
        goal="steps",
        steps=STEPS,
        kept_per_step=len(kept),
        seed=setting.seed,
    )
    return TryRun(run, watched=False)


def _taught(setting: Setting) -> Generator[Sequence[Request], Sequence[Any], tuple[Ints, list[Tokens]]]:
    """The targets and what each is taught. Where no replacement changes what the model says, the other text would be
    the paragraph itself; another paragraph stands in for it."""
    targets = _targets(setting)
    left = setting.sample("memorized", 2 * len(targets))
    left = np.concatenate([targets, left[~np.isin(left, targets)]])
    found: list[tuple[int, Tokens]] = []
    while len(found) < len(targets) and len(left):
        rows, left = np.split(left, [len(targets) - len(found)])
        other = yield from _alternatives(setting, rows)
        pairs = zip(rows.tolist(), other, setting.tokens(rows), strict=True)
        found += [(row, text) for row, text, own in pairs if text != own]
    if not found:
        raise TooLittle("No replacement changes what the model says, so there is no other text to teach.")
    return np.array([row for row, _ in found]), [text for _, text in found]


def _alternatives(setting: Setting, rows: Ints) -> Generator[Sequence[Request], Sequence[Any], list[Tokens]]:
    """For each row its prefix with another continuation: the model's own, once the worst token is replaced."""
    swept = yield [sweep(setting, row, "memorized") for row in rows.tolist()]
    prefixes = []
    for paragraph, result in zip(setting.tokens(rows), swept, strict=True):
        prefix = list(paragraph[: setting.p])
        worst = int(result.drops().argmax())
        prefix[worst] = int(result.replacements[worst, 0])
        prefixes.append(tuple(prefix))
    continued = yield [Continue(prefix, setting.c) for prefix in prefixes]
    return [
        (*paragraph[: setting.p], *result.tokens.tolist())
        for paragraph, result in zip(setting.tokens(rows), continued, strict=True)
    ]


def _after(results: Sequence[Unlearning]) -> Any:
    """EM of each run's paragraph after its last step, [runs]. Raises TooLittle where a run broke off before it."""
    broken = [result.reason for result in results if result.stopped != "steps"]
    if broken:
        raise TooLittle(f"{len(broken)} of {len(results)} runs broke off, so they cannot be compared: {broken[0]}")
    return np.array([result.em[-1, 0] for result in results], np.float64)


def _drift(results: Sequence[Unlearning]) -> float:
    return float(np.mean([result.kl[-1] for result in results]))


def _gap(pairs: Group) -> Group:
    return Group(pairs.values[:, 0] - pairs.values[:, 1], pairs.clusters, pairs.rows)


def _largest(pairs: Group) -> int:
    return int(pairs.rows[int(_gap(pairs).values.argmax())])


def _closest(pairs: Group) -> int:
    """Where both leave little and differ least."""
    return int(pairs.rows[int((np.abs(_gap(pairs).values) + pairs.values.sum(-1)).argmin())])


def _others(setting: Setting) -> tuple[Ints, Ints]:
    """Non-memorized paragraphs: those that are kept in every run, and those that are nobody's company."""
    kept = setting.size(*KEPT)
    rows = setting.sample("non-memorized", kept + setting.size(*TARGETS))
    return rows[:kept], rows[kept:]
