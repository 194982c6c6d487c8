"""How time and peak memory of each analysis grow with paragraphs, positions, layers and vocabulary.

    python -m tests.benchmarks.bench_growth [ANALYSIS ...]

Small GPT-Neos with random weights on one thread of the processor. Along each axis everything else stays as it is, and
sizes go up until a point would take too long. The exponent is the slope of a straight line through the uppermost points
in log-log coordinates: below them what every call costs hides the growth. Time is the processor's, the shortest of a
few runs. Memory is the most that torch holds at any moment of a run of its own plus the most that numpy and Python
hold, without the model and the request; the longest runs have none. Expected is what the work itself asks for at these
sizes, which is less than in the limit where other work stands beside what grows fastest; the exponent may stand a
quarter above it, so that work of another power is a missed goal.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memloc_core.engine import Engine
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import (
    ActivationGradients,
    ActivationPatching,
    Alternatives,
    Attention,
    AttentionPattern,
    AttributionPatching,
    Block,
    Continue,
    ContrastGradients,
    CountBlock,
    EstimateRun,
    ExactMatch,
    HeadAblation,
    MeasureRemains,
    NearDuplicates,
    ParameterGradients,
    Perturb,
    PrefixSignals,
    RareTokens,
    Rarity,
    Request,
    ScanBlock,
    ScoreWindows,
    Sweep,
    Unlearn,
)
from memloc_tui.commands.pictures import Drawing, Hue
from memloc_tui.files import write_whole
from tests.benchmarks.common import RESULTS, finish, peak_bytes, random_model, report
from tests.unit.test_near_duplicates import natural

LONGEST = {"paragraphs": 150.0}  # seconds of a point: what is asked of whole sets is to reach 10,000
ELSEWHERE = 0.8  # along the other axes
AGAIN = 1.5  # seconds: a point that took less is taken again
TRACED = 2.0  # seconds: longer runs are not traced, which takes several times as long and GBs, and have no peak
ALLOWED = 0.25  # of the exponent, above what is expected: for the caches, the clock and the other programs of a machine
FITTED = 4  # points at the upper end
FEWEST = 3  # points, however long they take
REPEATS = 3  # of a point, at most
AXES = {
    "paragraphs": (1, 10, 32, 100, 320, 1000, 3200, 10_000),
    "positions": (16, 32, 64, 128, 256, 512),
    "layers": (2, 4, 8, 16, 32),
    "vocabulary": (1000, 4000, 16_000, 64_000),
}
Axis = str


@dataclass(frozen=True)
class Size:
    """Where a point stands."""

    paragraphs: int = 12
    positions: int = 64
    layers: int = 4
    vocabulary: int = 1000


def along(axis: Axis, at: int, base: Size) -> Size:
    """A point of an axis. Many paragraphs are short ones of a small model, so that thousands of them take no minute."""
    return Size(at, 16, 2, 250) if axis == "paragraphs" else replace(base, **{axis: at})


@dataclass(frozen=True)
class Case:
    """An analysis, how it is asked at a size, and the exponents of time that its work has along each axis."""

    name: str
    ask: Callable[[Size], Request]
    expected: dict[Axis, float]
    memory: dict[Axis, float]  # where it differs from time's
    base: Size = Size()  # where the other axes stand


def rows(size: Size, n: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Random paragraphs, each as long as there are positions."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(map(tuple, torch.randint(0, size.vocabulary, (n, size.positions), generator=generator).tolist()))


def counts(size: Size, n: int, p: int) -> tuple[tuple[int, ...], ...]:
    """Corpus counts of each prefix token; few different ones, so that ranks are shared."""
    return tuple(map(tuple, np.random.default_rng(0).integers(1, 40, (n, p)).tolist()))


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """For the files of what is scanned; gone when the process ends."""
    return tempfile.TemporaryDirectory()


def windows(size: Size) -> str:
    """A .npy file of the rows."""
    path = Path(folder().name, f"{size.paragraphs} {size.positions}.npy")
    if not path.exists():
        np.save(path, np.array(rows(size, size.paragraphs)))
    return str(path)


def block(size: Size) -> Block:
    return Block(windows(size), "", 0, size.paragraphs, 0, "demo")


def alike(size: Size) -> tuple[tuple[int, ...], ...]:
    """Paragraphs as a corpus has them: words after Zipf, and near-duplicates. Uniform ones would share rare pairs."""
    return tuple(map(tuple, natural(max(2, size.paragraphs))[: size.paragraphs].tolist()))


def one(size: Size) -> tuple[int, ...]:
    return rows(size, 1)[0]


def half(size: Size) -> int:
    return size.positions // 2


def replaced(size: Size) -> dict[str, Any]:
    paragraph = one(size)
    return {
        "paragraph": paragraph,
        "replacements": ((0, (paragraph[0] + 1) % size.vocabulary),),
        "prefix_length": half(size),
    }


def unlearn(size: Size) -> Unlearn:
    """Two steps by single weights; what it watches and keeps is as many rows as it changes."""
    n = size.paragraphs
    kept = rows(size, n, 1)
    return Unlearn(rows(size, n), kept, half(size), mask="gradient", goal="steps", steps=2, held_out=rows(size, n, 2))


# Attention compares every position with every other and the unembedding grows with the vocabulary; of 512 positions and
# 64,000 tokens the rest of a pass is still as much as these.
NO_PARAGRAPHS = {"positions": 1.5, "layers": 1.0, "vocabulary": 0.5}
LINEAR = NO_PARAGRAPHS | {"paragraphs": 1.0}
# What a pass holds: a layer at a time, its attention, and the logits of as many rows as there is room for.
HELD = {"positions": 1.75, "layers": 0.0, "vocabulary": 0.75}
IN_BATCHES = {"paragraphs": 0.25}  # beside them what is found of each paragraph
KEPT = {"positions": 1.5, "layers": 1.0, "vocabulary": 0.75}  # for a pass back, all layers at once
FEW = Size(paragraphs=2, positions=32)  # for what trains: many passes in a call
CASES = (
    Case("near-duplicates", lambda s: NearDuplicates(alike(s)), {"paragraphs": 1}, {}),
    Case(
        "exact match",
        lambda s: ExactMatch(rows(s, s.paragraphs), half(s)),
        LINEAR | {"positions": 2.0},
        HELD | IN_BATCHES,
    ),
    # A cache of every layer is held.
    Case("greedy continuation", lambda s: Continue(one(s), s.positions // 4), NO_PARAGRAPHS, HELD | {"layers": 0.5}),
    Case("alternatives", lambda s: Alternatives(one(s), s.positions - 1), NO_PARAGRAPHS, HELD),
    Case("perturbation", lambda s: Perturb(**replaced(s)), NO_PARAGRAPHS, HELD),
    # As many rows as there are prefix positions; they share a cache of every layer.
    Case(
        "sweep",
        lambda s: Sweep(one(s), prefix_length=half(s)),
        NO_PARAGRAPHS | {"positions": 2.0},
        HELD | {"layers": 0.5},
    ),
    Case("parameter gradients", lambda s: ParameterGradients(rows(s, s.paragraphs), half(s)), LINEAR, KEPT),
    Case(
        "contrast of gradients",
        lambda s: ContrastGradients(rows(s, s.paragraphs), rows(s, s.paragraphs, 1), half(s)),
        LINEAR,
        KEPT | IN_BATCHES,
    ),
    Case("activation gradients", lambda s: ActivationGradients(one(s), half(s)), NO_PARAGRAPHS, KEPT),
    Case("attention", lambda s: Attention(one(s), half(s)), {"layers": 1.0, "positions": 1.5}, {"positions": 1.75}),
    Case("attention pattern", lambda s: AttentionPattern(one(s), 0, 0), {"layers": 1.0, "positions": 1.5}, HELD),
    Case(
        "rarity",
        # Each alone: random rows have far more pairs to compare than text, and near-duplicates are a case of their own.
        lambda s: Rarity(
            rows(s, s.paragraphs),
            counts(s, s.paragraphs, half(s)),
            half(s),
            resamples=20,
            clusters=tuple(range(s.paragraphs)),
        ),
        {"paragraphs": 1.0, "layers": 1.0, "positions": 1.5},
        {},
    ),
    # Every head of every layer, each from its layer to the last.
    Case(
        "head ablation",
        lambda s: HeadAblation(rows(s, s.paragraphs), prefix_length=half(s)),
        LINEAR | {"layers": 2.0},
        HELD | IN_BATCHES,
        FEW,
    ),
    Case("attribution patching", lambda s: AttributionPatching(**replaced(s)), NO_PARAGRAPHS, KEPT),
    # Every position of every layer, each from its layer to the last and from its position to the end.
    Case(
        "activation patching",
        lambda s: ActivationPatching(**replaced(s)),
        NO_PARAGRAPHS | {"positions": 2.0, "layers": 2.0},
        HELD | {"positions": 1.5, "layers": 0.25},
        Size(positions=20),
    ),
    Case(
        "rare tokens",
        lambda s: RareTokens(
            rows(s, s.paragraphs), counts(s, s.paragraphs, half(s)), tuple(range(20)), 2, half(s), resamples=20
        ),
        LINEAR,
        HELD | {"paragraphs": 0.5},
    ),
    # The attention of every layer is held.
    Case(
        "prefix signals",
        lambda s: PrefixSignals(rows(s, s.paragraphs), counts(s, s.paragraphs, s.positions)),
        LINEAR,
        HELD | IN_BATCHES | {"layers": 1.0},
    ),
    Case("unlearning, 2 steps", unlearn, LINEAR | {"positions": 1.0}, KEPT, FEW),
    Case("estimate of a run", lambda s: EstimateRun(unlearn(s)), {"paragraphs": 1.0}, {}),
    Case(
        "what remains",
        lambda s: MeasureRemains(
            rows(s, s.paragraphs), half(s), (), rows(s, 16, 1), shifts=(1,), extensions=(), relearn_steps=1
        ),
        LINEAR,
        KEPT | IN_BATCHES,
        FEW,
    ),
    Case(
        "scan",
        lambda s: ScanBlock(block(s), s.positions, s.positions, half(s), min_unique=0.0, threads=1),
        {"paragraphs": 1.0},
        IN_BATCHES,
    ),
    Case(
        "windows one by one",
        lambda s: ScoreWindows(windows(s), 0, s.paragraphs, half(s), threads=1),
        {"paragraphs": 1.0},
        IN_BATCHES,
    ),
    Case("repetitions of windows", lambda s: CountBlock(block(s), windows(s)), {"paragraphs": 1.0}, {}),
)


@dataclass(frozen=True)
class Point:
    at: int  # along the axis
    seconds: float
    bytes: int | None  # None where it took too long to be traced


@dataclass(frozen=True)
class Curve:
    """One analysis along one axis."""

    case: Case
    axis: Axis
    points: list[Point]

    def exponent(self, what: str) -> float:
        """The slope of the upper points, log against log; nan where there are too few."""
        upper = self.known(what)[-FITTED:]
        values = [max(getattr(point, what), 1e-9) for point in upper]
        if len(upper) < FEWEST:
            return float("nan")
        return float(np.polyfit(np.log([point.at for point in upper]), np.log(values), 1)[0])

    def known(self, what: str) -> list[Point]:
        return [point for point in self.points if getattr(point, what) is not None]

    def expected(self, what: str) -> float:
        time = self.case.expected[self.axis]
        return time if what == "seconds" else self.case.memory.get(self.axis, time)


class Models:
    """Random models by layers and vocabulary, made once each."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, int], LanguageModel] = {}

    def __call__(self, size: Size) -> LanguageModel:
        key = size.layers, size.vocabulary
        if key not in self.made:
            shape = {"num_layers": size.layers, "vocab_size": size.vocabulary, "hidden_size": 32, "num_heads": 4}
            longest = 2 * max(AXES["positions"])
            self.made[key] = random_model(**shape, max_position_embeddings=longest, bos_token_id=0, eos_token_id=0)
        return self.made[key]


def measure(case: Case, axis: Axis, models: Models) -> Curve:
    """Points along an axis, ascending, as long as the next one will not take too long."""
    points: list[Point] = []
    engine = Engine()
    for at in AXES[axis]:
        if len(points) >= FEWEST:
            last, before = points[-1], points[-2]
            slope = np.log(last.seconds / before.seconds) / np.log(last.at / before.at)
            power = np.clip(slope, 0.5, max(1.0, case.expected[axis]))
            if last.seconds * (at / last.at) ** power > LONGEST.get(axis, ELSEWHERE):
                break
        size = along(axis, at, case.base)
        engine.lm, request = models(size), case.ask(size)
        try:
            taken = clocked(engine, request)
        except UsageError:  # a statistic that says nothing of so few paragraphs
            assert not points
            continue
        if not points:  # the first call of all imports what it needs
            taken = clocked(engine, request)
        spent, repeats = taken, 1
        while spent < AGAIN and repeats < REPEATS:
            again = clocked(engine, request)
            spent, repeats, taken = spent + again, repeats + 1, min(taken, again)
        traced = taken <= TRACED
        peak = peak_bytes(lambda request=request: finish(engine.steps(request))) if traced else None  # type: ignore[misc]
        points.append(Point(at, taken, peak))
    return Curve(case, axis, points)


def clocked(engine: Engine, request: Request) -> float:
    """Seconds of the processor, on all threads: other programs of a shared machine do not count."""
    began = time.process_time()
    finish(engine.steps(request))
    return time.process_time() - began


# ---------------------------------------------------------------------------------------------------------- a picture

_HUES: tuple[Hue, ...] = ("effect", "attention", "gradient", "match")
_SQUARE, _LEFT, _TOP, _DOWN, _ACROSS = 150, 60, 96, 262, 4
_SAYS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time", lambda x: f"{x * 1000:.0f} ms" if x < 1 else f"{x:.0f} s"),
    "bytes": ("peak memory", lambda x: f"{x / 1e3:.0f} kB" if x < 1e6 else f"{x / 1e6:.0f} MB"),
}


def picture(curves: list[Curve], what: str) -> str:
    """Small log-log panels, an analysis each, a line an axis: how often more against how often as large."""
    names = list(dict.fromkeys(curve.case.name for curve in curves))
    lines = -(-len(names) // _ACROSS)
    said, _ = _SAYS[what]
    drawing = Drawing(_LEFT + 260 * _ACROSS, _TOP + _DOWN * lines, f"Growth of {said}")
    drawing.text(
        20, 28, f"How {said} grows: times the smallest, against the axis' size over its smallest", size=15, bold=True
    )
    drawing.text(
        20,
        48,
        "Both logarithmic, a line every factor of ten. Dashed: in proportion. In brackets: the exponent.",
        hue="grey",
    )
    for number, axis in enumerate(AXES):
        drawing.mark(26 + 170 * number, 66, number, hue=_HUES[number])
        drawing.text(38 + 170 * number, 70, axis)
    for number, name in enumerate(names):
        left, top = _LEFT + 260 * (number % _ACROSS), _TOP + _DOWN * (number // _ACROSS)
        _panel(drawing, left, top + 20, name, [curve for curve in curves if curve.case.name == name], what)
    return drawing.svg()


def _panel(drawing: Drawing, left: float, top: float, name: str, curves: list[Curve], what: str) -> None:
    drawing.text(left, top - 8, name, size=12, bold=True)
    decades = 4

    def across(factor: float) -> float:
        return left + float(np.log10(factor)) / decades * _SQUARE

    def down(factor: float) -> float:
        return top + _SQUARE - float(np.clip(np.log10(factor), 0, decades)) / decades * _SQUARE

    for decade in range(decades + 1):
        drawing.line(across(10**decade), top, across(10**decade), top + _SQUARE, hue=None)
        drawing.line(left, down(10**decade), left + _SQUARE, down(10**decade), hue=None)
    for decade in (0, 2, 4):
        drawing.text(across(10**decade), top + _SQUARE + 14, f"x {10**decade:,}", size=9, anchor="middle")
        drawing.text(left - 4, down(10**decade) + 3, f"x {10**decade:,}", size=9, anchor="end")
    drawing.line(left, top + _SQUARE, left + _SQUARE, top, hue="grey", dashed=True)
    for curve in curves:
        number = list(AXES).index(curve.axis)
        base = curve.points[0]
        places = [
            (across(point.at / base.at), down(max(1.0, getattr(point, what) / max(1e-9, getattr(base, what)))))
            for point in curve.known(what)
        ]
        for a, b in itertools.pairwise(places):
            drawing.line(*a, *b, hue=_HUES[number], wide=1.4)
        for place in places:
            drawing.mark(*place, number, hue=_HUES[number], size=3)
    for line, curve in enumerate(curves):
        number = list(AXES).index(curve.axis)
        drawing.mark(left + 4, top + _SQUARE + 27 + 13 * line, number, hue=_HUES[number], size=3.5)
        last = curve.known(what)[-1]
        shown = _SAYS[what][1](getattr(last, what))
        drawing.text(
            left + 12, top + _SQUARE + 31 + 13 * line, f"({curve.exponent(what):.2f}) {shown} at {last.at:,}", size=10
        )


def main() -> int:
    names = [case.name for case in CASES]
    wanted = sys.argv[1:] or names
    if unknown := [name for name in wanted if name not in names]:
        print(f"There is no analysis {unknown[0]!r}; there are: {'; '.join(names)}.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler says whenever it starts and ends
    models, curves = Models(), []
    figures: dict[str, Any] = {}
    goals: dict[str, tuple[str, float]] = {}
    for case in (case for case in CASES if case.name in wanted):
        for axis in case.expected:
            curve = measure(case, axis, models)
            curves.append(curve)
            figures[f"{case.name}: largest {axis}"] = curve.points[-1].at
            for what, (said, _) in _SAYS.items():
                key = f"{case.name}: exponent of {said} in {axis}"
                figures[key] = curve.exponent(what)
                goals[key] = ("<=", curve.expected(what) + ALLOWED)
                values = ", ".join(f"{getattr(point, what):.3g}" for point in curve.known(what))
                print(f"  {key:<66} {figures[key]:6.2f}   {values}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    for what, (said, _) in _SAYS.items():
        write_whole(RESULTS / f"growth, {said}.svg", picture(curves, what))
    report("growth", figures, goals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
