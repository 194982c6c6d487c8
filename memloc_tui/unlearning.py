"""From chosen paragraphs to a run that takes them out: the options, and who is kept, watched and left out.

The command line and the explorer ask the same questions, so one answer in the cache serves both. Nothing here draws or
computes a model.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from memloc_core.errors import UsageError
from memloc_core.requests import (
    NON_MEMORIZED_UP_TO,
    Answer,
    Continue,
    Edited,
    EncodeText,
    Goal,
    Mask,
    MeasureRemains,
    ModelInfo,
    Objective,
    Provenance,
    Request,
    Tokens,
    Unlearn,
    Unlearning,
)
from memloc_tui.figures import figure
from memloc_tui.samples import DRAWN_FROM

if TYPE_CHECKING:
    from memloc_core.requests import Ints
    from memloc_tui.catalogue import Catalogue

WATCHED = 32  # paragraphs in each group that a run watches; twice as many of general text
RELEARN_TEXT = 64  # paragraphs of other text to fine-tune on afterwards
LEFT_CONTEXT = 1  # paragraphs that stand before a target
PAPERS_OWN = ("goal", "steps", "learning_rate", "kl_weight")  # options that its protocol has values of its own for
_KINDS = ("memorized", "non-memorized")


@dataclass(frozen=True)
class UnlearnOptions:
    """What a person chooses for a run, beyond the paragraphs. The defaults are those of `Unlearn`."""

    objective: Objective = Unlearn.objective
    mask: Mask = Unlearn.mask
    place: str = Unlearn.place
    sparsity: float = Unlearn.sparsity
    goal: Goal = Unlearn.goal
    steps: int = Unlearn.steps
    learning_rate: float = Unlearn.learning_rate
    kl_weight: float = Unlearn.kl_weight
    keep: int = 96  # paragraphs to train on
    seed: int = Unlearn.seed
    protocol: Literal["memloc", "paper"] = Unlearn.protocol
    relearn: int = MeasureRemains.relearn_steps  # steps on other text, when it is measured what remains


@dataclass(frozen=True)
class Split:
    """Row numbers of a catalogue, each in at most one group, and near-duplicates never in two."""

    kept: list[int] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)  # non-memorized
    others: list[int] = field(default_factory=list)  # memorized
    family: list[int] = field(default_factory=list)  # memorized siblings of what is changed
    general: list[int] = field(default_factory=list)  # non-memorized, twice as many
    left_context: list[int] = field(default_factory=list)  # stands before a target in left-extended prefixes
    relearn: list[int] = field(default_factory=list)  # what is learned afterwards, to see whether a target comes back


def plan(
    catalogue: Catalogue,
    rows: Sequence[int],
    options: UnlearnOptions | None = None,
    alternatives: tuple[Tokens, ...] = (),
) -> Unlearn:
    """The run that changes what the model makes of `rows`.

    `alternatives`, for the objective "edit": one whole paragraph for each row, which begins with the row's own prefix.
    Every exact match that the groups are drawn from must be known (`waits`). Raises UsageError, in a sentence that says
    what lacks, where there is nothing to change or nothing to keep.
    """
    options = options or UnlearnOptions()
    groups = split(catalogue, rows, options)
    _check(catalogue, rows, options, alternatives, groups)
    paragraphs = catalogue.paragraphs

    def tokens(of: Iterable[int]) -> tuple[Tokens, ...]:
        return tuple(paragraphs.row(row) for row in of)

    return Unlearn(
        targets=tokens(rows),
        kept=tokens(groups.kept),
        prefix_length=paragraphs.prefix_length,
        objective=options.objective,
        alternatives=alternatives,
        mask=options.mask,
        place=options.place,
        sparsity=options.sparsity,
        goal=options.goal,
        steps=options.steps,
        learning_rate=options.learning_rate,
        kl_weight=options.kl_weight,
        seed=options.seed,
        protocol=options.protocol,
        held_out=tokens(groups.held_out),
        others=tokens(groups.others),
        family=tokens(groups.family),
        general=tokens(groups.general),
        sibling_nll=sibling_nll(catalogue, rows),
        left_context=_left_context(catalogue, groups),
    )


def remains(catalogue: Catalogue, rows: Sequence[int], options: UnlearnOptions | None = None) -> MeasureRemains:
    """What is left of `rows`: the question to ask with the edit of a run, and without it.

    The text that stands before a paragraph, and the text that is learned afterwards, are non-memorized paragraphs
    that the run of the same options neither trains on nor watches. Raises UsageError as `plan` does.
    """
    options = options or UnlearnOptions()
    return _remains(catalogue, rows, split(catalogue, rows, options), options)


def remains_of(catalogue: Catalogue, rows: Sequence[int], run: Unlearn) -> MeasureRemains:
    """What is left of `rows` after a run that is known by its request alone: what `remains` asked when it was new.

    A request does not say how many paragraphs were to be kept, only how many there were, and where a set could not
    fill the number they are dealt otherwise. So the number is looked for that keeps what the run kept. Where the set is
    another one by now and none does, what the run saw is left out of the other text.
    """
    seen = {*run.kept, *run.held_out, *run.others, *run.family, *run.general}
    paragraphs = catalogue.paragraphs
    for keep in (len(run.kept), UnlearnOptions.keep, len(catalogue.file)):
        options = UnlearnOptions(keep=max(1, keep), seed=run.seed)
        groups = split(catalogue, rows, options)
        if tuple(paragraphs.row(row) for row in groups.kept) == run.kept:
            return _remains(catalogue, rows, groups, options)
    unseen = [row for row in groups.relearn if paragraphs.row(row) not in seen]
    return _remains(catalogue, rows, replace(groups, relearn=unseen), options)


def _remains(catalogue: Catalogue, rows: Sequence[int], groups: Split, options: UnlearnOptions) -> MeasureRemains:
    paragraphs = catalogue.paragraphs
    return MeasureRemains(
        paragraphs=tuple(paragraphs.row(row) for row in rows),
        prefix_length=paragraphs.prefix_length,
        left_context=_left_context(catalogue, groups),
        other_text=tuple(paragraphs.row(row) for row in groups.relearn),
        shifts=tuple(shift for shift in MeasureRemains.shifts if shift < paragraphs.prefix_length),
        relearn_steps=options.relearn,
        seed=options.seed,
    )


def split(catalogue: Catalogue, rows: Sequence[int], options: UnlearnOptions) -> Split:
    """Deal the other paragraphs into groups, by near-duplicate cluster and seed.

    A cluster goes whole to one group. Kept: up to a third siblings of the rows (half of those there are), and of the
    rest half memorized, half not; never more than half of a kind, so that there is something to judge by. Nothing of
    the other groups is trained on. Near-duplicates of the rows are in no group, but where no siblings are known they
    stand for `family`. Who is dealt where hangs on a paragraph's id and the seed, not on the file's order or on which
    rows are chosen.
    """
    _check_rows(catalogue, rows)
    if why := waits(catalogue, rows):
        raise UsageError(why)
    drawn = _drawn(catalogue, rows)
    cluster = _clusters(catalogue, drawn)
    stratum = {row: catalogue.stratum_of(int(catalogue.em[row])) for row in drawn}
    near, siblings = _relatives(catalogue, rows, drawn, cluster)

    def by_cluster(some: Iterable[int]) -> list[list[int]]:
        """The clusters of these rows in an order that the seed shuffles; partly memorized rows are left out."""
        members: defaultdict[int, list[int]] = defaultdict(list)
        for row in sorted(some, key=lambda row: catalogue.paragraphs.ids[row]):
            if stratum[row] in _KINDS:
                members[cluster[row]].append(row)
        return sorted(members.values(), key=lambda own: _key(catalogue, own, options.seed))

    strangers = set(drawn).difference(rows, near, siblings)
    memorized = [row for row in drawn if stratum[row] == _KINDS[0]]
    if sum(row in strangers for row in memorized) < min(options.keep, len(memorized) // 2):
        # So many families are at stake that hardly anyone else is left: half of the siblings are dealt like strangers.
        lent = {row for own in by_cluster(siblings)[::2] for row in own}
        strangers |= lent
        siblings = [row for row in siblings if row not in lent]
    groups = Split()
    if siblings:
        _deal_siblings(groups, by_cluster(siblings), stratum, options.keep // 3)
    else:
        own_ids = {catalogue.paragraphs.ids[row] for row in rows}
        alike = (row for row in near if stratum[row] == _KINDS[0] and catalogue.paragraphs.ids[row] not in own_ids)
        groups.family.extend(islice(alike, WATCHED))
    _deal(groups, by_cluster(strangers), stratum, options.keep - len(groups.kept))
    return groups


def sibling_nll(catalogue: Catalogue, rows: Sequence[int]) -> tuple[float, ...]:
    """For each row the mean NLL of its held-out siblings: same family, never trained on, not recited.

    A row without such siblings gets the mean of those that have some; () where none has. Four digits, so that a
    last bit of rounding asks no new question.
    """
    paragraphs = catalogue.paragraphs
    m = min(DRAWN_FROM, len(catalogue.file))  # how many of the others are known hangs on who asks, and when
    em, nll, family = catalogue.em[:m], catalogue.nll[:m], paragraphs.family[:m]
    free = (paragraphs.repetitions[:m] == 0) & (family >= 0) & (em >= 0)
    free &= em <= NON_MEMORIZED_UP_TO * catalogue.length
    means = []
    for row in rows:
        held_out = free & (family == paragraphs.family[row])
        held_out[row : row + 1] = False
        means.append(float(nll[held_out].mean()) if held_out.any() else float("nan"))
    known = [mean for mean in means if mean == mean]
    if not known:
        return ()
    usual = sum(known) / len(known)
    return tuple(float(f"{mean if mean == mean else usual:.4g}") for mean in means)


# ---------------------------------------------------------------------------------------- what an edit is to teach

Ask = Callable[[Request], Awaitable[Answer[Any]]]


async def perturbed_alternative(
    ask: Ask, catalogue: Catalogue, row: int, replacements: tuple[tuple[int, int], ...]
) -> Tokens:
    """The row's own prefix, and what the model says after that prefix with `replacements` in it.

    Raises UsageError where the replacements lie outside the prefix, or change nothing of what it says.
    """
    paragraph, p = catalogue.paragraphs.row(row), catalogue.paragraphs.prefix_length
    if not replacements or any(not 0 <= position < p for position, _ in replacements):
        raise UsageError(f"What is replaced stands in the prefix, at positions 0..{p - 1}.")
    perturbed = list(paragraph[:p])
    for position, token in replacements:
        perturbed[position] = token
    said = (await ask(Continue(tuple(perturbed), len(paragraph) - p))).result.tokens.tolist()
    alternative = (*paragraph[:p], *said)
    if alternative == paragraph:
        raise UsageError(
            f"After this replacement paragraph {catalogue.paragraphs.ids[row]} goes on as before; "
            "another one is needed (a sweep shows which positions matter)."
        )
    return alternative


async def worst_alternative(ask: Ask, catalogue: Catalogue, row: int, seed: int) -> Tokens:
    """The same with the one random replacement that costs the most exact match (the paper's choice)."""
    swept = (await ask(catalogue.sweep(row, seed=seed, reference="true"))).result
    position = int(swept.drops().argmax())
    return await perturbed_alternative(ask, catalogue, row, ((position, int(swept.replacements[position, 0])),))


async def typed_alternative(
    ask: Ask, catalogue: Catalogue, row: int, text: str, model: str, revision: str = ""
) -> Tokens:
    """The row's own prefix and a person's text; text that is too short goes on as the model would go on.

    Raises UsageError for text of no token, or of more than fit.
    """
    paragraph, p = catalogue.paragraphs.row(row), catalogue.paragraphs.prefix_length
    length = len(paragraph) - p
    # An `Edited` without edits: what a tokenizer does has nothing to do with the edits that are on.
    encoded = await ask(Edited(EncodeText(text, model, revision)))
    typed = tuple(encoded.result.tokens.tolist())
    if not 0 < len(typed) <= length:
        raise UsageError(f"The alternative has {len(typed)} tokens; a continuation has {length}, and at least one.")
    start = (*paragraph[:p], *typed)
    if len(typed) == length:
        return start
    return (*start, *(await ask(Continue(start, length - len(typed)))).result.tokens.tolist())


# ------------------------------------------------------------------------------------------------ what a run has done


def kept_so_far(
    request: Unlearn,
    partial: Unlearning,
    model: ModelInfo,
    edits: Sequence[str] = (),
    reason: str = "",
    seconds: float = math.nan,
) -> Answer[Any]:
    """The answer of a run that was stopped here: its best step so far, as a file can keep it."""
    taken = len(partial.loss)
    reason = (
        reason or f"stopped after {taken} step{'s' * (taken != 1)}; the best one so far, step {partial.best}, was kept"
    )
    provenance = Provenance(
        model.name, model.fingerprint, ",".join(edits), model.dtype, model.device, model.attention, seconds
    )
    return Answer(request, replace(partial, stopped="cancelled", reason=reason), provenance)


def judged(request: Unlearn, result: Unlearning) -> tuple[str, ...]:
    """Both goals at the best step, met or not, in words; what is taught, where something is."""
    n, best = len(request.targets), result.best
    length = len(request.targets[0]) - request.prefix_length

    def met(flags: Ints) -> str:
        count = int(flags[best].sum())
        if n == 1:
            return "met" if count else "not met"
        return f"met for {'all' if count == n else count} of {n} paragraphs"

    words = []
    if request.objective != "memorize":
        words.append(
            f"break: {met(result.broken)} (EM {result.em[best].max()}{' at most' * (n > 1)}, goal {length // 10})"
        )
        repeated = float(result.repetition[best].mean()) if len(result.repetition) else math.nan
        written = (
            "" if math.isnan(repeated) else f", repetition {figure(repeated)} of {figure(result.fresh_repetition)}"
        )
        words.append(
            f"forget: {met(result.forgotten)} (longest run {result.longest_run[best].max()}, NLL "
            f"{figure(float(result.nll[best].min()))}{' at least' * (n > 1)}{written}, and other prefixes)"
        )
    if request.objective != "unlearn":
        words.append(
            f"taught: {met(result.taught)} (EM of it {result.taught_em[best].min()}{' at least' * (n > 1)} of {length})"
        )
    return tuple(words)


def _left_context(catalogue: Catalogue, groups: Split) -> Tokens:
    """The text of these paragraphs, one after the other."""
    return tuple(catalogue.paragraphs.texts[groups.left_context].ravel().tolist())


# ------------------------------------------------------------------------------------------------------------- dealing


def _deal_siblings(groups: Split, clusters: list[list[int]], stratum: Mapping[int, str], most: int) -> None:
    """In turn: watched as family (if memorized), kept. The memorized ones first, so that both sides get of them."""
    clusters = sorted(clusters, key=lambda own: all(stratum[row] != _KINDS[0] for row in own))
    for number, own in enumerate(clusters):
        if number % 2:
            groups.kept.extend(own[: max(0, most - len(groups.kept))])
        else:
            memorized = [row for row in own if stratum[row] == _KINDS[0]]
            groups.family.extend(memorized[: max(0, WATCHED - len(groups.family))])


def _deal(groups: Split, clusters: list[list[int]], stratum: Mapping[int, str], keep: int) -> None:
    """Strangers: kept first, half of them memorized, as far as there are; then the group that lacks most."""
    there = Counter(stratum[row] for own in clusters for row in own)
    most = [-(-there[kind] // 2) for kind in _KINDS]
    memorized = min(keep // 2, most[0])
    quota = dict(zip(_KINDS, (memorized, min(keep - memorized, most[1])), strict=True))
    quota[_KINDS[0]] = min(keep - quota[_KINDS[1]], most[0])
    wanted: dict[str, list[tuple[list[int], int]]] = {
        _KINDS[0]: [(groups.others, WATCHED)],
        _KINDS[1]: [
            (groups.held_out, WATCHED),
            (groups.general, 2 * WATCHED),
            (groups.left_context, LEFT_CONTEXT),
            (groups.relearn, RELEARN_TEXT),
        ],
    }
    for own in clusters:
        if any(quota[stratum[row]] > 0 for row in own):
            for row in own:
                if quota[stratum[row]] > 0:
                    quota[stratum[row]] -= 1
                    groups.kept.append(row)
            continue
        # Where a kind is scarce, every group gets its share of it.
        kind = stratum[own[0]]
        group, size = min(wanted[kind], key=lambda one: len(one[0]) / one[1])
        group.extend([row for row in own if stratum[row] == kind][: max(0, size - len(group))])


def _relatives(
    catalogue: Catalogue, rows: Sequence[int], drawn: list[int], cluster: dict[int, int]
) -> tuple[list[int], list[int]]:
    """Near-duplicates of `rows` (copies of them come last), and the other members of their families; by id."""
    paragraphs = catalogue.paragraphs
    ids, family = paragraphs.ids, paragraphs.family.tolist()
    own = {ids[row] for row in rows}
    clusters_, families = {cluster[row] for row in rows}, {family[row] for row in rows} - {-1}
    others = sorted((row for row in drawn if ids[row] not in own), key=lambda row: ids[row])
    copies = [row for row in drawn if ids[row] in own and row not in rows]
    near = [row for row in others if cluster[row] in clusters_]
    siblings = [row for row in others if family[row] in families and cluster[row] not in clusters_]
    return near + copies, siblings


def waits(catalogue: Catalogue, rows: Sequence[int]) -> str:
    """Why no groups can be drawn yet, in a sentence; "" where every exact match that this takes is known."""
    drawn = _drawn(catalogue, rows)
    known = catalogue.known_of(drawn)
    if known == len(drawn):
        return ""
    return f"A run waits for the exact matches of the list: {known:,} of {len(drawn):,} are known."


def _drawn(catalogue: Catalogue, rows: Sequence[int]) -> list[int]:
    """The rows that groups are drawn from."""
    return sorted({*range(min(DRAWN_FROM, len(catalogue.file))), *rows})


_known_clusters: WeakKeyDictionary[Catalogue, dict[tuple[int, ...], dict[int, int]]] = WeakKeyDictionary()


def _clusters(catalogue: Catalogue, drawn: list[int]) -> dict[int, int]:
    """The near-duplicate cluster of each row; found once per catalogue (a quarter of a second for 4,096 rows)."""
    from memloc_core.near_duplicates import clusters

    known = _known_clusters.setdefault(catalogue, {})
    beyond = tuple(row for row in drawn if row >= min(DRAWN_FROM, len(catalogue.file)))
    if beyond not in known:
        known[beyond] = dict(zip(drawn, clusters(catalogue.paragraphs.texts[drawn]), strict=True))
    return known[beyond]


def _key(catalogue: Catalogue, members: list[int], seed: int) -> int:
    """A number for a cluster that looks random, is the same in every sitting, and hangs on no other cluster."""
    first = min(catalogue.paragraphs.ids[row] for row in members)
    return int.from_bytes(hashlib.sha256(f"{seed} {first}".encode()).digest()[:8], "big")


# -------------------------------------------------------------------------------------------------------------- checks


def _check_rows(catalogue: Catalogue, rows: Sequence[int]) -> None:
    if not rows:
        raise UsageError("Which paragraphs? A run changes at least one.")
    if len({catalogue.paragraphs.ids[row] for row in rows}) < len(rows):
        raise UsageError("The same paragraph was chosen twice; each can be changed once.")


def _check(
    catalogue: Catalogue,
    rows: Sequence[int],
    options: UnlearnOptions,
    alternatives: tuple[Tokens, ...],
    groups: Split,
) -> None:
    """Raise UsageError for a run that could change or keep nothing."""
    paragraphs, length = catalogue.paragraphs, catalogue.length
    if options.keep < 1:
        raise UsageError("At least one paragraph has to be kept (--keep): without any, everything may be lost.")
    if options.objective != "memorize" and options.goal != "steps":
        strange = [row for row in rows if catalogue.em[row] <= length / 10]
        if strange:
            first = paragraphs.ids[strange[0]]
            which = f"{len(strange)} of the {len(rows)} paragraphs, such as {first}, are"
            raise UsageError(
                f"{which if len(rows) > 1 else f'Paragraph {first} is'} not recited (EM {catalogue.em[strange[0]]} of "
                f"{length}), so there is nothing to take out. Choose memorized ones, or teach them with the objective "
                "memorize."
            )
    if options.objective == "edit":
        if len(alternatives) != len(rows):
            raise UsageError(
                f"Editing needs one alternative for each paragraph; there are {len(alternatives)} for {len(rows)}."
            )
        for row, alternative in zip(rows, alternatives, strict=True):
            whole = paragraphs.row(row)
            if len(alternative) != len(whole):
                raise UsageError(
                    f"The alternative of paragraph {paragraphs.ids[row]} has {len(alternative)} tokens with its "
                    f"prefix; it needs {len(whole)}."
                )
            if alternative == whole:
                raise UsageError(f"The alternative of paragraph {paragraphs.ids[row]} is the paragraph itself.")
    elif alternatives:
        raise UsageError(f"Alternatives go with the objective edit, not with {options.objective}.")
    if not groups.kept:
        raise UsageError(
            f"{paragraphs.source} has no paragraph left to keep besides the {len(rows)} to change and their "
            "relatives, and without any a run would break everything. Give a larger set with --paragraphs."
        )
