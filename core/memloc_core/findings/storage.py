"""Claims about where it is stored: gradients, and the head that looks at rare tokens (paper, sections 5 and 6)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memloc_core.findings.recitation import Steps
from memloc_core.findings.setting import Setting
from memloc_core.findings.verdicts import (
    FEWEST,
    Group,
    Outcome,
    TooLittle,
    bootstrap,
    closing,
    difference,
    enough,
    judge,
    mean,
    number,
    within,
)
from memloc_core.requests import Ablated, ExactMatch, ParameterGradients, Rarity, Request

if TYPE_CHECKING:
    from memloc_core.findings.verdicts import Doubles
    from memloc_core.requests import ExactMatches, Ints, RarityScores

GRADIENTS = (24, 50)  # paragraphs of each kind, quick and in full
ATTENDED = (32, 100)
ABLATED = (24, 64)
RESAMPLES = (200, 500)  # of the ranks, for a head's null
NATS = 0.1  # a smaller change of NLL hardly matters
LEAST_SHARE = 0.02  # of the gradient: a smaller difference hardly matters
NEARLY = 0.95  # times as large is hardly smaller


def lower_layers(setting: Setting) -> Steps:
    """Whether a larger share of a memorized paragraph's gradient lies in the lower half of the layers."""
    memorized, other, _ = yield from _gradients(setting)
    return layer_share(memorized, other, setting.seed)


def layer_share(memorized: Group, other: Group, seed: int) -> Outcome:
    """Verdict on the share of max |dNLL/dw| in the lower half of the layers; values are [n, layers, k]."""
    layers = memorized.values.shape[1]
    if layers < 2:
        raise TooLittle("A model of one layer has no lower layers.")
    half = layers // 2
    ours, theirs = (_of(g, g.values[:, :half].sum((1, 2)) / g.values.sum((1, 2))) for g in (memorized, other))
    enough(ours, theirs, of="The share of the lower layers")
    effect, low, high = difference(ours, theirs, seed)
    verdict = judge(low, high, least=LEAST_SHARE)
    says = (
        f"Layers 0..{half - 1} hold a share of {number(ours.mean)} of the gradient of {len(ours)} memorized paragraphs "
        f"and {number(theirs.mean)} of {len(theirs)} non-memorized ones: {number(effect)} {within(low, high)} "
        f"more{closing(verdict, f'{LEAST_SHARE:g}')}."
    )
    return Outcome(verdict, effect, low, high, len(ours) + len(theirs), says, int(ours.rows[int(ours.values.argmax())]))


def smaller_gradients(setting: Setting) -> Steps:
    """Whether the gradients of memorized paragraphs are smaller."""
    memorized, other, _ = yield from _gradients(setting)
    return gradient_size(memorized, other, setting.seed)


def gradient_size(memorized: Group, other: Group, seed: int) -> Outcome:
    """Verdict on the ratio of the mean sum of max |dNLL/dw| over all layers; values are [n, layers, k]."""
    ours, theirs = (_of(g, g.values.sum((1, 2))) for g in (memorized, other))
    enough(ours, theirs, of="The size of gradients")
    if theirs.mean <= 0:
        raise TooLittle("The gradients of non-memorized paragraphs are zero: nothing can be smaller.")
    low, high = bootstrap((ours, theirs), lambda w: mean(w[0], ours.values) / mean(w[1], theirs.values), seed)
    verdict = judge(-high, -low, beyond=-1.0, least=-NEARLY)
    says = (
        f"Summed over all layers the gradient of {len(ours)} memorized paragraphs is {number(ours.mean)}, that of "
        f"{len(theirs)} non-memorized ones {number(theirs.mean)}: {number(ours.mean / theirs.mean)} "
        f"{within(low, high)} times as large{closing(verdict, f'at most {NEARLY:g}')}."
    )
    best = int(ours.rows[int(ours.values.argmin())])
    return Outcome(verdict, ours.mean / theirs.mean, low, high, len(ours) + len(theirs), says, best)


def points_at_a_component(setting: Setting) -> Steps:
    """Whether one component stands out in the contrast of memorized against non-memorized, and again in other text."""
    memorized, other, components = yield from _gradients(setting)
    return component(memorized, other, components, setting.seed)


def component(memorized: Group, other: Group, names: tuple[str, ...], seed: int) -> Outcome:
    """Verdict on the component with the largest contrast: chosen on one half of the clusters, measured on the other.

    Values are max |dNLL/dw| [n, layers, k], compared as shares of each paragraph's sum. The contrast of a component is
    its mean share in memorized paragraphs over that in non-memorized ones, plus the mean of the latter over all
    components. The effect: how many times the contrast of the next one it is.
    """
    enough(memorized, other, of="The contrast")
    shares = [_of(g, (g.values / g.values.sum((1, 2), keepdims=True)).reshape(len(g), -1)) for g in (memorized, other)]
    if shares[0].values.shape[1] < 2:
        raise TooLittle("A model of one component has none that stands out.")
    chosen, measured = zip(*_halves(shares, seed), strict=True)
    try:
        enough(*chosen, *measured, of="The contrast, chosen on one half and measured on the other,")
    except TooLittle:
        n = min(len(np.unique(group.clusters)) for group in shares)
        raise TooLittle(
            f"The contrast is chosen on one half of the paragraphs and measured on the other, so it needs at least "
            f"{2 * FEWEST} unrelated ones of each kind; there are {n}."
        ) from None

    def contrasts(ours: Doubles, theirs: Doubles) -> Doubles:
        found: Doubles = ours / (theirs + theirs.mean(-1, keepdims=True))
        return found

    winner = int(contrasts(*(group.values.mean(0)[None] for group in chosen)).argmax())

    def times_the_next(weights: Sequence[Doubles]) -> Doubles:
        found = contrasts(*(mean(w, group.values) for w, group in zip(weights, measured, strict=True)))
        times: Doubles = found[:, winner] / np.delete(found, winner, 1).max(-1)
        return times

    effect = float(times_the_next([np.ones((1, len(group))) for group in measured])[0])
    low, high = bootstrap(measured, times_the_next, seed)
    verdict = judge(low, high, beyond=1.0)
    layer, place = divmod(winner, len(names))
    says = (
        f"The component with the largest contrast in one half of the paragraphs, L{layer} {names[place]}, has "
        f"{number(effect)} {within(low, high)} times the contrast of the next one in the other half{closing(verdict)}."
    )
    ours = shares[0]
    best = int(ours.rows[int(ours.values[:, winner].argmax())])
    return Outcome(verdict, effect, low, high, sum(map(len, shares)), says, best)


def _halves(groups: Sequence[Group], seed: int) -> list[tuple[Group, Group]]:
    """Each group as two, by clusters and the same for all groups; the first group's clusters are dealt evenly."""
    generator = np.random.default_rng((seed, 2))
    first: dict[int, bool] = {}
    for group in groups:
        fresh = [int(c) for c in np.unique(group.clusters) if int(c) not in first]
        for place, cluster in enumerate(generator.permutation(fresh).tolist()):
            first[cluster] = place % 2 == 0
    halves = []
    for group in groups:
        inside = np.array([first[int(c)] for c in group.clusters])
        halves.append(tuple(Group(group.values[x], group.clusters[x], group.rows[x]) for x in (inside, ~inside)))
    return [(a, b) for a, b in halves]


def _of(group: Group, values: Doubles) -> Group:
    return Group(values, group.clusters, group.rows)


def _gradients(
    setting: Setting,
) -> Generator[Sequence[Request], Sequence[Any], tuple[Group, Group, tuple[str, ...]]]:
    """max |dNLL/dw| [n, layers, k] of memorized and of non-memorized paragraphs, and the components' names."""
    most = setting.size(*GRADIENTS)
    rows: list[Ints] = [setting.sample("memorized", most), setting.sample("non-memorized", most)]
    results = yield [ParameterGradients(setting.tokens((row,)), setting.p) for part in rows for row in part.tolist()]
    values = np.concatenate([result.max for result in results]).astype(np.float64)
    values[~(values.sum((1, 2)) > 0)] = np.nan  # a paragraph without a gradient has no shares
    memorized, other = setting.groups((rows[0], values[: len(rows[0])]), (rows[1], values[len(rows[0]) :]))
    return memorized, other, results[0].components


# ----------------------------------------------------------------------------------------------------------- the head


def attends_to_rare(setting: Setting) -> Steps:
    """Whether a head looks at rare tokens more than shuffled ranks do."""
    results, rows = yield from _rarity(setting)
    return rare_head(results, len(rows), int(rows[0]))


def rare_head(results: Sequence[RarityScores], n: int, best: int) -> Outcome:
    """Verdict on the head with the lowest tau, under each null that was asked for."""
    first = results[0]
    head = found if (found := strongest(results)) else divmod(int(first.tau.argmin()), first.tau.shape[1])
    tau, low, high = (float(values[head]) for values in (first.tau, first.low, first.high))
    null = min(float(result.null_low[head]) for result in results)
    p = max(float(result.p_all[head]) for result in results)
    if not np.isfinite((tau, low, high, null, p)).all():
        raise TooLittle("No head's attention could be ranked by frequency: too few ranks of the tokens' counts.")
    verdict = judge(null - high, null - low)
    ending = closing(verdict)
    if verdict == "holds" and found is None:
        verdict, ending = "inconclusive", "; p over all heads leaves it open"
    said = "" if len(results) == 1 else " under both nulls"
    says = (
        f"Over {n} memorized paragraphs the attention of L{head[0]}H{head[1]} goes with token frequency by a tau-b of "
        f"{number(tau)} {within(low, high)}; shuffled ranks give {number(null)} or less in 2.5 % of the cases, and p "
        f"over all heads is {number(p)} or less{said}{ending}."
    )
    return Outcome(verdict, tau, low, high, n, says, best)


def strongest(results: Sequence[RarityScores]) -> tuple[int, int] | None:
    """The head most drawn to rare tokens of those of which every null says so: below it, and p over all heads below
    0.05 (which by itself holds as well for a head that is less drawn to them than where it looks explains)."""
    says_so = np.all([(result.p_all < 0.05) & (result.tau < result.null_mean) for result in results], axis=0)
    if not says_so.any():
        return None
    tau = np.where(says_so, results[0].tau, np.inf)
    layer, head = divmod(int(tau.argmin()), tau.shape[1])
    return layer, head


def head_is_needed(setting: Setting) -> Steps:
    """Whether memorized text needs that head more than other text does."""
    results, _ = yield from _rarity(setting)
    head = strongest(results)
    if head is None:
        raise TooLittle("No head looks at rare tokens beyond its null, so there is none to ablate.")
    most = setting.size(*ABLATED)
    rows = [setting.sample("memorized", most), setting.sample("non-memorized", most)]
    without = yield [Ablated(ExactMatch(setting.tokens(part), setting.p), (head,)) for part in rows]
    rise = [result.nll - setting.nll[part] for result, part in zip(without, rows, strict=True)]
    memorized, other = setting.groups(*zip(rows, rise, strict=True))
    return needed(memorized, other, without[0], head, setting.seed)


def needed(memorized: Group, other: Group, without: ExactMatches, head: tuple[int, int], seed: int) -> Outcome:
    """Verdict on how much more the NLL [n] of memorized text rises without the head; `without`: the memorized then."""
    enough(memorized, other, of="What the head is needed for")
    effect, low, high = difference(memorized, other, seed)
    verdict = judge(low, high, least=NATS)
    says = (
        f"Without L{head[0]}H{head[1]} the NLL of {len(memorized)} memorized paragraphs rises by "
        f"{number(memorized.mean)} nats per token (their EM falls to {number(float(without.em.mean()))}), that of "
        f"{len(other)} non-memorized ones by {number(other.mean)}: {number(effect)} {within(low, high)} "
        f"more{closing(verdict, f'{NATS:g}')}."
    )
    best = int(memorized.rows[int(memorized.values.argmax())])
    return Outcome(verdict, effect, low, high, len(memorized) + len(other), says, best)


def _rarity(setting: Setting) -> Generator[Sequence[Request], Sequence[Any], tuple[Sequence[RarityScores], Ints]]:
    rows = setting.sample("memorized", setting.size(*ATTENDED))
    tokens, clusters = setting.tokens(rows), tuple(setting.related(rows).tolist())
    counts = tuple(setting.paragraphs.prefix_counts(int(row)) for row in rows)
    resamples = setting.size(*RESAMPLES)
    nulls: tuple[Literal["positions", "paragraphs"], ...] = ("positions", "paragraphs")
    results = yield [
        Rarity(tokens, counts, setting.p, -1, shuffle, resamples, setting.seed, clusters)
        for shuffle in (nulls[:1] if setting.quick else nulls)
    ]
    return results, rows
