"""What the Unlearn tab shows: runs, the form of the next one, and what is read out of their curves. Asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from memloc_core.errors import UsageError
from memloc_core.requests import (
    GOALS,
    GROUPS,
    MASKS,
    OBJECTIVES,
    Goal,
    Mask,
    MeasureRemains,
    Objective,
    Remains,
    RunCost,
    Unlearn,
    Unlearning,
)
from memloc_tui.figures import figure
from memloc_tui.glyphs import visible
from memloc_tui.tables import Cell, Data, Table
from memloc_tui.unlearning import UnlearnOptions

if TYPE_CHECKING:
    from memloc_tui.readings import Array

State = Literal["running", "paused", "done", "failed"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEPT, HELD_OUT, OTHERS, FAMILY, GENERAL = range(len(GROUPS))

# What has to stay for a goal (shares of the continuation, and of positions with the same argmax), and the reader's word
# for it; the targets' own side of both goals is judged by the engine, at every step.
STAYS: dict[Goal, tuple[tuple[str, int, str, float], ...]] = {
    "break": (
        ("others' EM", OTHERS, "em", 0.996),
        ("family EM", FAMILY, "em", 0.92),
        ("held-out same", HELD_OUT, "agreement", 0.997),
    ),
    "forget": (
        ("others' EM", OTHERS, "em", 0.98),
        ("family EM", FAMILY, "em", 0.84),
        ("held-out same", HELD_OUT, "agreement", 0.985),
        ("held-out NLL", HELD_OUT, "nll", 1.005),
    ),
}


@dataclass(frozen=True, eq=False)
class Run:
    """One run: of this sitting, or read back from its edit's file. Another state of it is another object."""

    number: int  # in the order in which they became known; kept with its edit's file
    request: Unlearn
    ids: tuple[str, ...] = ()  # of its paragraphs, as far as they are in the set
    result: Unlearning | None = field(default=None, repr=False)  # what is known so far
    state: State = "done"
    label: str = ""  # a name of the person's own
    name: str = ""  # of its saved edit
    file: str = ""
    fingerprint: str = ""
    below: tuple[str, ...] = ()  # fingerprints of the edits that it was made on top of
    on: bool | None = None  # whether its edit is switched on; None: it is not in the stack
    stored: bool = False  # from an earlier sitting
    error: str = ""  # why it failed, or why its file cannot be read
    left: float = float("nan")  # seconds, at most
    seconds: float = float("nan")  # that it took
    question: MeasureRemains | None = field(default=None, repr=False)
    before: Remains | None = field(default=None, repr=False)
    after: Remains | None = field(default=None, repr=False)
    measuring: str = ""  # why one of these is not there yet

    @property
    def letter(self) -> str:
        """One letter, and from the 53rd run on two."""
        more, last = divmod(self.number, len(LETTERS))
        return (LETTERS[(more - 1) % len(LETTERS)] if more else "") + LETTERS[last]

    @property
    def running(self) -> bool:
        return self.state in ("running", "paused")

    @property
    def length(self) -> int:
        """Tokens of a continuation."""
        return len(self.request.targets[0]) - self.request.prefix_length if self.request.targets else 0

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return len(self.result.kl) - 1 if self.result is not None else 0

    @property
    def best(self) -> int:
        return min(self.result.best, self.steps) if self.result is not None else 0

    @property
    def called(self) -> str:
        """The person's own name for it, else what it did."""
        return visible(self.label) or self.said

    @property
    def said(self) -> str:
        """What it did in a few words."""
        request = self.request
        place = f" {request.place}" if request.place else ""
        share = "" if request.mask == "dense" else f" {percentage(request.sparsity)}"
        paper = " paper" if request.protocol == "paper" else ""
        return visible(f"{request.objective} {request.mask}{place}{share}{paper}")  # a file may say anything


@dataclass(frozen=True)
class Runs:
    """Everything that the tab shows beside the paragraph on screen."""

    runs: tuple[Run, ...] = ()  # newest first
    marked: frozenset[int] = frozenset()  # numbers of the runs that are laid over each other
    form: Mapping[str, str] = field(default_factory=dict)
    chosen: tuple[int, ...] = ()  # rows of the marked paragraphs; () means the one on screen
    alternative: str = ""  # what an edit would teach the paragraph, or why there is nothing yet
    estimate: RunCost | None = None
    lacks: str = ""  # why there is no estimate yet, or why there can be none
    wrong: bool = False  # whether `lacks` is a reason not to start
    edited: bool = False  # whether the explorer shows the edited weights
    known: bool = False  # whether the stored runs have been read


# -------------------------------------------------------------------------------------------------------- the form


class Field(NamedTuple):
    """One line of the form. `options`: what the arrows go through; numbers may be typed as well."""

    name: str
    options: tuple[str, ...]
    says: Mapping[str, str] | str = ""
    typed: bool = False


SAYS_OBJECTIVE = {
    "unlearn": "make it unlikely",
    "edit": "another continuation instead",
    "memorize": "teach it in full",
}
SAYS_GOAL = {
    "break": "until it no longer starts",
    "forget": "until nothing of it is left",
    "steps": "to the last step",
}
SAYS_MASK = {
    "auto": "neurons to unlearn, else ratio",
    "neurons": "little-used, as detectors",
    "gradient": "largest |gradient|",
    "difference": "gradient minus kept text's",
    "ratio": "gradient over kept text's",
    "random": "seeded",
    "head": "best by ratio in one head",
    "layer": "best by ratio in one layer",
    "component": "best by ratio in one kind",
    "dense": "every weight",
}
FIELDS = (
    Field("paragraphs", ("on screen", "marked"), "m marks a paragraph"),
    Field("objective", OBJECTIVES, SAYS_OBJECTIVE),
    Field("instead", ("perturbed", "typed"), {"perturbed": "of its perturbed twin", "typed": "your own text"}),
    Field("text", (), "", typed=True),
    Field("goal", GOALS, SAYS_GOAL),
    Field("mask", MASKS, SAYS_MASK),
    Field("place", (), "L1H2, L3 or W_out", typed=True),
    Field("sparsity", ("0.00003", "0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "1"), "", True),
    Field("steps", ("10", "20", "50", "100", "200", "500"), "at most", True),
    Field("rate", ("0.00001", "0.0001", "0.0003", "0.001", "0.003", "0.01"), "Adam's learning rate", True),
    Field("KL weight", ("0", "1", "3", "10", "30", "100"), "holds kept text", True),
    Field("keep", ("8", "16", "32", "48", "96"), "paragraphs to stay", True),
    Field("seed", ("0", "1", "2", "3", "4"), "of split, batches, mask", True),
    Field("preset", ("memloc", "paper"), {"memloc": "only the mask changes", "paper": "its own protocol"}),
)
NAMED = {field_.name: field_ for field_ in FIELDS}
_PLAIN = UnlearnOptions()
DEFAULTS = {
    "paragraphs": "on screen",
    "objective": _PLAIN.objective,
    "instead": "perturbed",
    "text": "",
    "goal": _PLAIN.goal,
    "mask": _PLAIN.mask,
    "place": _PLAIN.place,
    "sparsity": f"{_PLAIN.sparsity:g}",
    "steps": str(_PLAIN.steps),
    "rate": f"{_PLAIN.learning_rate:g}",
    "KL weight": f"{_PLAIN.kl_weight:g}",
    "keep": str(_PLAIN.keep),
    "seed": str(_PLAIN.seed),
    "preset": _PLAIN.protocol,
}
PLACED = ("neurons", "head", "layer", "component")
FIXED_BY_PAPER = ("goal", "steps", "rate", "KL weight")  # its protocol has its own
NUMBERS: dict[str, tuple[Callable[[str], float], float, float, str]] = {
    "sparsity": (float, 0.0, 1.0, "a share above 0 and at most 1"),
    "steps": (int, 1, 100_000, "a whole number of at least 1"),
    "rate": (float, 0.0, 10.0, "a number above 0"),
    "KL weight": (float, 0.0, 1e6, "a number of at least 0"),
    "keep": (int, 1, 4096, "a whole number of at least 1"),
    "seed": (int, 0, 2**31 - 1, "a whole number of at least 0"),
}
ZERO_TOO = ("KL weight", "seed")


def filled(saved: Mapping[str, str]) -> dict[str, str]:
    """The form with its defaults where nothing (or nothing that makes sense) was saved."""
    form = dict(DEFAULTS)
    for name, value in saved.items():
        field_ = NAMED.get(name)
        if field_ is not None and (field_.typed or value in field_.options):
            form[name] = value
    return form


def fields(form: Mapping[str, str]) -> tuple[Field, ...]:
    """The lines that mean something under what is chosen in the others."""
    paper = form["preset"] == "paper"
    hidden = set(FIXED_BY_PAPER) if paper else set()
    if form["objective"] != "edit":
        hidden |= {"instead", "text"}
    elif form["instead"] != "typed":
        hidden.add("text")
    if form["mask"] not in PLACED:
        hidden.add("place")
    if form["mask"] == "dense":
        hidden.add("sparsity")
    return tuple(f for f in FIELDS if f.name not in hidden)


def mistake(name: str, text: str) -> str:
    """Why a number in the form is none, in a few words; "" where it is one."""
    if name not in NUMBERS:
        return ""
    read, least, most, wants = NUMBERS[name]
    try:
        value = read(text)
    except ValueError:
        return f"this is {wants}"
    inside = least <= value <= most if name in ZERO_TOO or read is int else least < value <= most
    return "" if inside else f"this is {wants}"


def options(form: Mapping[str, str]) -> UnlearnOptions:
    """The form as options. Raises UsageError for a number that is none."""
    for name in NUMBERS:
        if name in {f.name for f in fields(form)} and (why := mistake(name, form[name])):
            raise UsageError(f"The {name} {form[name]!r} means nothing: {why}.")

    def number(name: str) -> float:
        return NUMBERS[name][0](form[name] if not mistake(name, form[name]) else DEFAULTS[name])

    return UnlearnOptions(
        objective=cast(Objective, form["objective"]),
        mask=cast(Mask, form["mask"]),
        place=form["place"].strip() if form["mask"] in PLACED else "",
        sparsity=1.0 if form["mask"] == "dense" else number("sparsity"),
        goal=cast(Goal, form["goal"]),
        steps=int(number("steps")),
        learning_rate=number("rate"),
        kl_weight=number("KL weight"),
        keep=int(number("keep")),
        seed=int(number("seed")),
        protocol=cast(Any, form["preset"]),
    )


def percentage(share: float) -> str:
    """`0.1 %`, without needless zeros."""
    return f"{100 * share:.4g} %"


# -------------------------------------------------------------------------------------------------------- the curves


class Curve(NamedTuple):
    """A named series of a run: what it is of, its hue, its scale (0: its own), and the mark of its goal."""

    name: str
    look: str
    values: Array  # [s + 1], nan where not known
    low: float
    high: float
    goal: float = float("nan")
    share: bool = False  # a share close to one, of which two digits say nothing


def _mean(values: Array, steps: int) -> Array:
    """Mean over paragraphs per step; nan where there are none."""
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or not array.shape[1]:
        return np.full(steps, np.nan)
    means: Array = array.mean(1)
    return means


def curves(run: Run) -> list[Curve]:
    """What a run is watched by, what it changes first; a curve that the run does not have is left out."""
    result, request = run.result, run.request
    if result is None or not len(result.kl):
        return []
    s, c, nan = len(result.kl), float(run.length), float("nan")
    em, agreement, nll = (np.asarray(a) for a in (result.group_em, result.agreement, result.group_nll))
    teaches = request.objective != "unlearn"
    stays = {name: share for name, _, _, share in STAYS["forget" if request.goal == "forget" else "break"]}
    sibling = float(np.mean(request.sibling_nll)) if request.sibling_nll and request.goal == "forget" else nan
    leaves = request.objective != "memorize"
    drawn = [
        Curve("changed EM", "changed", _mean(result.em, s), 0, c, c / 10 if leaves else nan),
        Curve("longest run", "changed", _mean(result.longest_run, s), 0, c, 8 if request.goal == "forget" else nan),
        Curve("changed NLL", "changed", _mean(result.nll, s), 0, nan, sibling),
        Curve("taught EM", "taught", _mean(result.taught_em, s), 0, c, c if teaches else nan),
        Curve("taught NLL", "taught", _mean(result.taught_nll, s), 0, nan),
        Curve("others' EM", "kept", em[:, OTHERS], nan, c, c * stays["others' EM"]),
        Curve("family EM", "kept", em[:, FAMILY], nan, c, c * stays["family EM"]),
        Curve("kept EM", "kept", em[:, KEPT], nan, c),
        Curve("held-out same", "kept", agreement[:, HELD_OUT], nan, 1, stays["held-out same"], True),
        Curve("general same", "kept", agreement[:, GENERAL], nan, 1, share=True),
        Curve("general NLL", "kept", nll[:, GENERAL], nan, nan),
        Curve("KL", "kl", np.asarray(result.kl, np.float64), 0, nan),
    ]
    return [curve for curve in drawn if not np.isnan(curve.values).all()]


def spread(curves_: list[Curve]) -> tuple[float, float]:
    """The scale of one curve of several runs: fixed where it says so, else what it takes to hold all of them."""
    low = min((float(np.nanmin(c.values)) for c in curves_ if not np.isnan(c.values).all()), default=0.0)
    high = max((float(np.nanmax(c.values)) for c in curves_ if not np.isnan(c.values).all()), default=1.0)
    first = curves_[0]
    fixed_low, fixed_high = first.low == first.low, first.high == first.high
    if first.goal == first.goal:  # the goal is always in the picture
        low, high = min(low, first.goal), max(high, first.goal)
    low, high = (first.low if fixed_low else low), (first.high if fixed_high else high)
    if high - low < 1e-6:
        low, high = (low - 0.01 * max(1.0, abs(low)), high) if fixed_high else (low, low + max(1e-6, abs(low) * 0.01))
    return low, high


# --------------------------------------------------------------------------------------------------------- the goals


class Check(NamedTuple):
    """One condition: what, what it has to be, what it is, and whether that holds (None: not known)."""

    name: str
    wants: str
    value: str
    holds: bool | None
    stays: bool = False  # it is about what should stay as it was


def share_of(value: float) -> str:
    """A share close to one, to four digits: .9981."""
    return "·" if value != value else f"{value:.4f}".replace("0.", ".", 1)


def checks(run: Run, goal: Goal) -> list[Check]:
    """Every condition of "break" or "forget" at the best step, the paragraphs' own first."""
    result = run.result
    if result is None or not len(result.em):
        return []
    best, c, n = run.best, run.length, len(run.request.targets)
    said: list[Check] = []

    def own(name: str, wants: str, values: Array, holds: Array, worst: Callable[[Array], Any]) -> None:
        met = int(np.count_nonzero(holds))
        of = f" ({met} of {n})" if n > 1 else ""
        said.append(
            Check(name, wants, f"{figure(float(worst(values)))}{of}", met >= (n if goal == "break" else 0.95 * n))
        )

    em, longest, nll = result.em[best], result.longest_run[best], result.nll[best]
    own("EM", f"≤ {c // 10}", em, em <= c / 10, np.max)
    if goal == "forget":
        own("longest recited", "≤ 8", longest, longest <= 8, np.max)
        if run.after is not None:
            most = run.after.extracted_most()
            own("… other prefixes", "≤ 8", most, most <= 8, np.max)
        if len(sibling := np.array(run.request.sibling_nll)) == n:
            own("NLL", f"≥ {figure(float(sibling.mean()))}", nll, nll >= sibling, np.min)
    for name, group, kind, share in STAYS[goal]:
        said.append(_stays(run, result, name, group, kind, share))
    if goal == "forget" and run.after is not None:
        after = run.after
        usual = float(after.fresh_repetition.mean()) if len(after.fresh_repetition) else float("nan")
        repeated = float(after.repetition.mean())
        said.append(
            Check("repetition", f"≤ {figure(usual)}", figure(repeated), None if usual != usual else repeated <= usual)
        )
        back = float("nan") if after.not_relearned else float(after.relearned_em[-1].mean())
        said.append(Check("relearned EM", f"< {c // 10}", figure(back), None if after.not_relearned else back < c / 10))
    return said


def _stays(run: Run, result: Unlearning, name: str, group: int, kind: str, share: float) -> Check:
    """What has to stay, over all rows of its group where the run has counted them."""
    whole: Array = np.asarray(
        {"em": result.whole_em, "nll": result.whole_nll, "agreement": result.whole_agreement}[kind]
    )
    curve: Array = np.asarray({"em": result.group_em, "nll": result.group_nll, "agreement": result.agreement}[kind])
    if whole.ndim == 2 and whole.shape[0] == 2 and not np.isnan(whole[1, group]):
        before, value = float(whole[0, group]), float(whole[1, group])
    else:
        before, value = float(curve[0, group]), float(curve[run.best, group])
    if kind == "agreement":
        return Check(name, f"≥ {share_of(share)}", share_of(value), None if value != value else value >= share, True)
    if kind == "nll":
        wants = before * share
        return Check(name, f"≤ {figure(wants)}", figure(value), None if value != value else value <= wants, True)
    wants = run.length * share
    return Check(name, f"≥ {figure(wants)}", figure(value), None if value != value else value >= wants, True)


def verdict(checked: list[Check]) -> tuple[str, bool | None]:
    """What became of a goal, in words, and whether it is met (None: not all of it is known)."""
    if any(check.holds is False and not check.stays for check in checked):
        return "not met", False
    if any(check.holds is False for check in checked):
        return "reached, but other text suffers", False
    if not checked or any(check.holds is None for check in checked):
        return "met as far as is known", None
    return "met", True


# --------------------------------------------------------------------------------------------------- runs compared

# What the picture of all runs is drawn over: name -> (curve on x, curve on y); low x is better, high y is.
AXES: dict[str, tuple[str, str]] = {
    "EM · others' EM": ("em", "others"),
    "EM · agreement": ("em", "agreement"),
    "NLL · others' EM": ("nll", "others"),
    "NLL · agreement": ("nll", "agreement"),
}
AXIS = {
    "em": "changed EM after",
    "nll": "changed NLL after",
    "others": "others' EM",
    "agreement": "held-out agreement",
}


class Point(NamedTuple):
    """A run in the picture: `x` and `y` as they are, and whether no other run is better in both."""

    run: Run
    x: float
    y: float
    best: bool


def outcome(run: Run, what: str) -> float:
    """One figure of a run at its best step."""
    result = run.result
    if result is None or not len(result.em):
        return float("nan")
    best = run.best
    if what == "em":
        return float(np.mean(result.em[best]))
    if what == "nll":
        return float(np.mean(result.nll[best]))
    group, whole, curve = (
        (OTHERS, result.whole_em, result.group_em)
        if what == "others"
        else (HELD_OUT, result.whole_agreement, result.agreement)
    )
    if np.ndim(whole) == 2 and len(whole) == 2 and not np.isnan(whole[1, group]):
        return float(whole[1, group])
    return float(curve[best, group])


def points(runs: tuple[Run, ...], axes: str) -> list[Point]:
    """The runs that have both figures; less EM (or more NLL) is more forgotten, more of the other is more kept."""
    x, y = AXES[axes]
    found = [(run, outcome(run, x), outcome(run, y)) for run in runs]
    known = [(run, a, b) for run, a, b in found if a == a and b == b]
    sign = -1.0 if x == "em" else 1.0

    def better(one: tuple[Run, float, float], other: tuple[Run, float, float]) -> bool:
        gain, stay = sign * (one[1] - other[1]), one[2] - other[2]
        return gain >= 0 and stay >= 0 and (gain > 0 or stay > 0)

    return [Point(*one, not any(better(other, one) for other in known)) for one in known]


# ----------------------------------------------------------------------------------------------------- as files


def curve_table(run: Run) -> Table:
    """Every curve of a run, a row per step."""
    drawn = curves(run)
    columns = tuple(zip(*(curve.values.tolist() for curve in drawn), strict=True))
    rows = tuple((step, *values) for step, values in enumerate(columns))
    return Table(f"run-{run.name or run.letter}", f"{run.said}, per step", ("step", *(c.name for c in drawn)), rows)


def runs_table(runs: Runs) -> Table:
    """Every run at its best step, a row each."""
    names = (
        "edit",
        "name",
        "paragraphs",
        "objective",
        "mask",
        "place",
        "sparsity",
        "goal",
        "seed",
        "steps",
        "best",
        "stopped",
    )
    figures = ("em_before", "em", "nll", "others_em", "agreement")
    rows: list[tuple[Cell, ...]] = []
    for run in runs.runs:
        if run.result is not None and len(run.result.em):
            r = run.request
            texts = (run.name, run.label, " ".join(map(str, run.ids)), r.objective, r.mask, r.place)
            plain = (r.sparsity, Data(r.goal), r.seed, run.steps, run.best, Data(run.result.stopped))
            ends = (outcome(run, what) for what in ("em", "nll", "others", "agreement"))
            rows.append((*map(Data, texts), *plain, float(run.result.em[0].mean()), *ends))
    return Table("runs", "runs at their best step", (*names, *figures), tuple(rows))
