"""Claims about what is recited and what breaks it: exact match, NLL, replaced tokens (paper, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from memloc_core.findings.setting import Setting, Stratum
from memloc_core.findings.verdicts import (
    Group,
    Outcome,
    TooLittle,
    average,
    bootstrap,
    closing,
    difference,
    enough,
    judge,
    number,
    within,
)
from memloc_core.requests import NON_MEMORIZED_UP_TO, RareTokens, Request, Sweep

if TYPE_CHECKING:
    from memloc_core.findings.verdicts import Doubles
    from memloc_core.requests import Ints, RareTokenEffect

Steps = Generator[Sequence[Request], Sequence[Any], Outcome]

WHOLE = 1024  # paragraphs, of all kinds, whose exact match and NLL are compared
SWEPT = (12, 50)  # of each kind, quick and in full
RARE = (24, 50)
COMMON_TOKENS = 16  # that rare ones are replaced by
MIDDLE = 0.1  # the share of paragraphs between the strata up to which they are few
ORDERED = 0.9  # of pairs, from which on two groups hardly overlap


def all_or_nothing(setting: Setting) -> Steps:
    """Whether few paragraphs lie between reciting all and next to nothing."""
    yield ()
    (group,) = setting.groups((rows := setting.every(WHOLE), setting.em[rows]))
    return middle(group, setting.c, setting.seed)


def middle(em: Group, length: int, seed: int) -> Outcome:
    """Verdict on the share of paragraphs with an EM between the strata; `em` over the whole set."""
    enough(em, of="The share between the strata")
    between = (em.values > NON_MEMORIZED_UP_TO * length) & (em.values < length)
    memorized = int((em.values >= length).sum())
    if not memorized:
        raise TooLittle("This set has no memorized paragraph, so nothing separates from it.")
    share, low, high = average(Group(between.astype(float), em.clusters, em.rows), seed)
    verdict = judge(-high, -low, beyond=-MIDDLE)
    says = (
        f"Of {len(em)} paragraphs {memorized} are recited whole, and {int(between.sum())} lie between that and an EM "
        f"of {int(NON_MEMORIZED_UP_TO * length)}: a share of {number(share)} {within(low, high)}, where up to "
        f"{MIDDLE:g} is few{closing(verdict)}."
    )
    return Outcome(verdict, share, low, high, len(em), says, int(em.rows[int(em.values.argmax())]))


def lower_nll(setting: Setting) -> Steps:
    """Whether memorized paragraphs have the lower NLL."""
    yield ()
    rows = [setting.sample(of, WHOLE // 2) for of in ("memorized", "non-memorized")]
    memorized, other = setting.groups(*((part, setting.nll[part]) for part in rows))
    return separation(memorized, other, setting.seed)


def separation(memorized: Group, other: Group, seed: int) -> Outcome:
    """Verdict on the share of pairs in which the memorized paragraph has the lower NLL; ties count half."""
    enough(memorized, other, of="The separation in NLL")
    a, b = memorized.values[:, None], other.values[None]
    wins = (a < b) + 0.5 * (a == b)  # [memorized, other]
    share = float(wins.mean())

    def shares(weights: Sequence[Doubles]) -> Doubles:
        ours, theirs = weights
        won: Doubles = ((ours @ wins) * theirs).sum(-1) / (ours.sum(-1) * theirs.sum(-1))
        return won

    low, high = bootstrap((memorized, other), shares, seed)
    verdict = judge(low, high, beyond=ORDERED)
    says = (
        f"The NLL of {len(memorized)} memorized paragraphs is {number(memorized.mean)} nats per token on average, of "
        f"{len(other)} non-memorized ones {number(other.mean)}; the memorized has the lower one in a share of "
        f"{number(share)} {within(low, high)} of all pairs, where more than {ORDERED:g} separates{closing(verdict)}."
    )
    best = int(memorized.rows[int(memorized.values.argmin())])
    return Outcome(verdict, share, low, high, len(memorized) + len(other), says, best)


# ------------------------------------------------------------------------------------------------- replaced tokens


def harder_to_corrupt(setting: Setting) -> Steps:
    """Whether replacing one prefix token costs memorized paragraphs less."""
    memorized, other = yield from _swept(setting)
    return corruption(memorized, other, setting.c, setting.seed)


def corruption(memorized: Group, other: Group, length: int, seed: int) -> Outcome:
    """Verdict on the mean drop of EM per replaced token; values are drops [n, p], of `other` from its own text."""
    enough(memorized, other, of="The cost of a replaced token")
    ours, theirs = (Group(g.values.mean(-1), g.clusters, g.rows) for g in (memorized, other))
    effect, low, high = difference(theirs, ours, seed)
    verdict = judge(low, high, least=length / 50)
    says = (
        f"Replacing one prefix token lowers the EM of {len(ours)} memorized paragraphs by {number(ours.mean)} of "
        f"{length} on average, that of {len(theirs)} non-memorized ones (from the model's own text) by "
        f"{number(theirs.mean)}: {number(effect)} {within(low, high)} more{closing(verdict, f'{length / 50:g}')}."
    )
    return Outcome(verdict, effect, low, high, len(ours) + len(theirs), says, int(ours.rows[int(ours.values.argmin())]))


def few_tokens(setting: Setting) -> Steps:
    """Whether a few tokens carry what a memorized paragraph loses, more than in other text."""
    memorized, other = yield from _swept(setting)
    return concentration(memorized, other, setting.seed)


def concentration(memorized: Group, other: Group, seed: int) -> Outcome:
    """Verdict on the share of a paragraph's drops [n, p] that the worst tenth of its positions carries."""
    positions = memorized.values.shape[-1]
    if positions < 10:
        raise TooLittle(f"A prefix of {positions} tokens has no tenth; 10 are needed.")
    few = round(positions / 10)
    parts = []
    for group in (memorized, other):
        lost = group.values.sum(-1)
        broken = lost > 0  # what nothing breaks has no worst tenth
        worst = np.sort(group.values[broken], -1)[:, -few:].sum(-1)
        parts.append(Group(worst / lost[broken], group.clusters[broken], group.rows[broken]))
    ours, theirs = parts
    enough(ours, theirs, of="Where the drops concentrate")
    effect, low, high = difference(ours, theirs, seed)
    verdict = judge(low, high, least=0.05)
    says = (
        f"The {few} worst of {positions} positions carry a share of {number(ours.mean)} of what {len(ours)} memorized "
        f"paragraphs lose, and {number(theirs.mean)} in {len(theirs)} non-memorized ones: {number(effect)} "
        f"{within(low, high)} more{closing(verdict, '0.05')}."
    )
    return Outcome(verdict, effect, low, high, len(ours) + len(theirs), says, int(ours.rows[int(ours.values.argmax())]))


def early_token(setting: Setting) -> Steps:
    """Whether one early token is often enough to break a whole recitation."""
    memorized, _ = yield from _swept(setting)
    return early_break(memorized, setting.c, setting.seed)


def early_break(memorized: Group, length: int, seed: int) -> Outcome:
    """Verdict on the share of memorized paragraphs that one replacement in the first half of the prefix breaks.

    Broken: nothing but a non-memorized paragraph's EM is left of it. Values are drops [n, p].
    """
    enough(memorized, of="What an early token breaks")
    half = memorized.values.shape[-1] // 2
    if not half:
        raise TooLittle("A prefix of one token has no early part.")
    left = length - memorized.values[:, :half]
    broken = left <= NON_MEMORIZED_UP_TO * length  # [n, half]
    by = broken.any(-1)
    share, low, high = average(Group(by.astype(float), memorized.clusters, memorized.rows), seed)
    verdict = judge(low, high, beyond=0.5)
    says = (
        f"In {int(by.sum())} of {len(memorized)} memorized paragraphs one replacement among the first {half} tokens "
        f"leaves an EM of {int(NON_MEMORIZED_UP_TO * length)} or less: a share of {number(share)} {within(low, high)}, "
        f"where more than half is often{closing(verdict)}."
    )
    earliest = np.where(by, broken.argmax(-1), half)
    best = int(memorized.rows[int(earliest.argmin())])
    return Outcome(verdict, share, low, high, len(memorized), says, best)


def rare_tokens(setting: Setting) -> Steps:
    """Whether replacing a rare token costs more than replacing a common one nearby."""
    rows = setting.sample("memorized", setting.size(*RARE))
    if setting.p < 2:
        raise TooLittle("A prefix of one token has no pair of a rare and a common one.")
    p = setting.paragraphs
    request = RareTokens(
        setting.tokens(rows),
        tuple(p.prefix_counts(int(row)) for row in rows),
        p.ranked_tokens("most-frequent", COMMON_TOKENS),
        max(1, min(5, setting.p // 2)),
        setting.p,
        seed=setting.seed,
        clusters=tuple(setting.related(rows).tolist()),
    )
    (effect,) = yield (request,)
    outcome = rarity_cost(effect, setting.groups((rows, np.zeros(len(rows))))[0], setting.c, setting.seed)
    if p.counts_of == "corpus":
        return outcome
    said = outcome.says.removesuffix(".") + " (rare by the counts of this set; the corpus' are not known)."
    return Outcome(**(vars(outcome) | {"says": said}))


def rarity_cost(effect: RareTokenEffect, of: Group, length: int, seed: int) -> Outcome:
    """Verdict on the mean difference, within pairs, of what a rare and a common token cost; `of`: its paragraphs."""
    pairs = effect.rare >= 0
    used = pairs.any(1)
    count = pairs[used].sum(1)
    rare, common = (np.where(pairs, drop, 0)[used].sum(1) / count for drop in (effect.rare_drop, effect.common_drop))
    own = Group(rare - common, of.clusters[used], of.rows[used])
    enough(own, of="The cost of rare tokens")
    more, low, high = average(own, seed)
    verdict = judge(low, high, least=length / 50)
    says = (
        f"In {len(own)} memorized paragraphs a replaced rare token costs {number(float(rare.mean()))} EM, a common one "
        f"nearby {number(float(common.mean()))}: {number(more)} {within(low, high)} "
        f"more{closing(verdict, f'{length / 50:g}')}."
    )
    return Outcome(verdict, more, low, high, len(own), says, int(own.rows[int(own.values.argmax())]))


def sweep(setting: Setting, row: int, of: Stratum) -> Sweep:
    """The explorer's own sweep of this paragraph: one random token at each position."""
    reference = "own" if of == "non-memorized" else "true"
    return Sweep(setting.paragraphs.row(row), "random", 1, setting.seed, (), setting.p, reference)  # type: ignore[arg-type]


def _swept(setting: Setting) -> Generator[Sequence[Request], Sequence[Any], tuple[Group, Group]]:
    """Drops of EM at every prefix position, [n, p], of memorized and of non-memorized paragraphs."""
    kinds: tuple[Stratum, Stratum] = ("memorized", "non-memorized")
    rows: list[Ints] = [setting.sample(of, setting.size(*SWEPT)) for of in kinds]
    requests = [sweep(setting, int(row), of) for of, part in zip(kinds, rows, strict=True) for row in part]
    results = yield requests
    drops = np.array([result.drops() for result in results], np.float64)
    memorized, other = setting.groups((rows[0], drops[: len(rows[0])]), (rows[1], drops[len(rows[0]) :]))
    return memorized, other
