"""What `memloc-tui compare-masks` asks, draws and prints: the paper's Figure 5 over all masks, seeds and paragraphs.

Each (protocol, objective, mask, paragraph, seed) is a run of its own from fresh weights and a question of its own to
the cache, so a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click
import numpy as np
from rich.text import Text

from memloc_core import statistics
from memloc_core.codec import to_json
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import GROUPS, MASKS, Mask, Objective, TryRun, Unlearn, Unlearning
from memloc_tui.commands.console import Asker, Out, print_json, run, table_of
from memloc_tui.commands.pictures import Hue, Panel, Spot, Value, against
from memloc_tui.files import write_whole
from memloc_tui.glyphs import visible
from memloc_tui.samples import DRAWN_FROM, Samples
from memloc_tui.settings import Settings
from memloc_tui.unlearning import UnlearnOptions, plan, worst_alternative

if TYPE_CHECKING:
    from memloc_core.requests import GradientContrast

NAMES: dict[str, Mask] = {"all": "dense", "top": "gradient"}  # the paper's words
PAPER = ("dense", "gradient", "random")  # what its protocol knows
PLACED = ("head", "layer", "component")
ORDER: tuple[Mask, ...] = ("dense", "gradient", "random", "difference", "ratio", *cast("tuple[Mask, ...]", PLACED))
RESAMPLES = 2000
FILES = ("table.json", "table.md", "picture.svg")
_OTHERS, _FAMILY, _GENERAL = (GROUPS.index(group) for group in ("others", "family", "general"))
_HUES: dict[Mask, Hue] = {"dense": "ink", "random": "grey"}  # the others rank by gradient


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    masks: tuple[str, ...] = ()  # () means all of them; "head:L1H2" says where
    objectives: tuple[Objective, ...] = ("unlearn", "edit")
    protocols: tuple[str, ...] = ("memloc",)
    limit: int = 10
    seeds: int = 1
    options: UnlearnOptions = field(default_factory=UnlearnOptions)

    def __post_init__(self) -> None:
        """Raises UsageError for what can be told before anything is computed."""
        chosen = self.arms()
        if len(set(chosen)) < len(chosen):
            raise UsageError("A mask is named twice.")
        if all(mask not in PAPER for mask, _ in chosen) and self.protocols == ("paper",):
            raise UsageError(f"The paper's protocol has the masks {', '.join(PAPER)} only.")

    def arms(self) -> list[tuple[Mask, str]]:
        """(mask, place) in the order of the picture; the place is "" where it is still to be found."""
        arms = []
        for name in self.masks or ORDER:
            mask, _, place = name.partition(":")
            mask = NAMES.get(mask, mask)
            if mask not in MASKS:
                raise UsageError(f"There is no mask {mask!r}; there are {', '.join((*NAMES, *MASKS))}.")
            if place and mask not in PLACED:
                raise UsageError(f"The mask {mask} has no place; only {', '.join(PLACED)} do, as in head:L1H2.")
            arms.append((mask, place))
        return arms


@dataclass(frozen=True)
class Arm:
    """One bar of the comparison: a way of choosing weights, under a protocol, for an objective."""

    protocol: str
    objective: Objective
    mask: Mask
    place: str
    sparsity: float

    @property
    def label(self) -> str:
        share = f"{100 * self.sparsity:g} %"
        name = {"dense": "all weights", "gradient": f"top {share}"}.get(self.mask)
        return name or f"{self.place or self.mask} {share}"


@dataclass(frozen=True)
class Trial:
    """One run of an arm, at the step that it kept."""

    arm: Arm
    id: str
    cluster: int  # of related targets (`ParagraphSet.related`)
    seed: int
    em_before: int
    em: int
    longest_run: int
    nll: float
    taught_em: int  # -1 where nothing is taught
    others_em: float  # of the other memorized paragraphs; nan where there are none
    family_em: float
    agreement: float  # on general text
    general_nll: float  # its change, nats
    kl: float
    weights: int  # that differ from the original
    steps: int
    met: bool  # the goal
    seconds: float

    @classmethod
    def of(cls, arm: Arm, id_: str, cluster: int, seed: int, answer: Any) -> Trial:
        """The trial that an answer to `TryRun` is."""
        r: Unlearning = answer.result
        best, taught = r.best, arm.objective == "edit"
        met = r.taught[best] if taught else {"forget": r.forgotten}.get(answer.request.run.goal, r.broken)[best]
        return cls(
            arm=arm,
            id=id_,
            cluster=cluster,
            seed=seed,
            em_before=int(r.em[0, 0]),
            em=int(r.em[best, 0]),
            longest_run=int(r.longest_run[best, 0]),
            nll=float(r.nll[best, 0]),
            taught_em=int(r.taught_em[best, 0]) if taught else -1,
            others_em=float(r.whole_em[1, _OTHERS]),
            family_em=float(r.whole_em[1, _FAMILY]),
            agreement=float(r.whole_agreement[1, _GENERAL]),
            general_nll=float(r.whole_nll[1, _GENERAL] - r.whole_nll[0, _GENERAL]),
            kl=float(r.kl[best]),
            weights=r.changed,
            steps=len(r.loss),
            met=bool(met.all()),
            seconds=answer.provenance.seconds,
        )


# What the table says of an arm, in its order: name, heading, and how a trial gives it.
_COLUMNS: tuple[tuple[str, str, Any], ...] = (
    ("em_lost", "EM lost", lambda t: t.em_before - t.em),
    ("em", "EM", lambda t: t.em),
    ("longest_run", "longest run", lambda t: t.longest_run),
    ("nll", "NLL", lambda t: t.nll),
    ("taught_em", "taught EM", lambda t: t.taught_em if t.taught_em >= 0 else math.nan),
    ("others_em", "others' EM", lambda t: t.others_em),
    ("family_em", "family EM", lambda t: t.family_em),
    ("agreement", "same tokens", lambda t: t.agreement),
    ("general_nll", "NLL change", lambda t: t.general_nll),
    ("met", "goal met", lambda t: t.met),
    ("steps", "steps", lambda t: t.steps),
)


_SHARES = {"agreement": 2, "met": 0}  # and their digits
_SHORT = ("em_lost", "longest_run", "taught_em", "others_em", "agreement", "met", "steps")  # on the terminal


def compare(settings: Settings, comparison: Comparison, out: Path | None, as_json: bool) -> None:
    """Run what is not known yet, then table and picture."""
    if out is not None:
        _check_folder(out)

    async def work(asker: Asker) -> dict[str, Any]:
        catalogue, session = asker.catalogue, asker.session
        await asker.score(range(min(DRAWN_FROM, len(catalogue))))
        samples = Samples(catalogue)
        rows = samples.stratum("memorized")[: comparison.limit]
        if not rows:
            raise UsageError(
                f"No paragraph of {catalogue.paragraphs.source} is memorized, so there is nothing to unlearn."
            )
        arms = await _arms(asker, samples, comparison)
        asked = [
            (arm, row, seed, TryRun(request))
            for seed in range(comparison.options.seed, comparison.options.seed + comparison.seeds)
            for row in rows
            for arm, request in (await _runs(asker, comparison, arms, row, seed)).items()
        ]
        known = sum(session.peek(request) is not None for *_, request in asked)
        runs = f"{len(asked):,} run{'s' * (len(asked) != 1)}"
        click.echo(f"{runs} of {len(rows)} paragraphs, {known:,} of them known already", err=True)
        answers = await asker.ask("runs", [request for *_, request in asked])
        clusters = dict(zip(rows, catalogue.paragraphs.related(rows).tolist(), strict=True))
        trials = [
            Trial.of(arm, catalogue.paragraphs.ids[row], clusters[row], seed, answer)
            for (arm, row, seed, _), answer in zip(asked, answers, strict=True)
        ]
        assert session.model is not None
        about: dict[str, Any] = {"model": session.model.name, "fingerprint": session.model.fingerprint}
        about |= {"paragraphs": catalogue.paragraphs.source, "length": catalogue.length}
        return summarize(trials, about | {"seed": comparison.options.seed, "seeds": comparison.seeds})

    summary = run(settings, work)
    if out is not None:
        _write(out, summary)
    if as_json:
        print_json(summary)
    else:
        for panel in _by_panel(summary):
            Out().print(_table(panel))


async def _arms(asker: Asker, samples: Samples, comparison: Comparison) -> list[Arm]:
    """The arms of a comparison. Where a mask has a place and none is given, the contrast gradient says which."""
    chosen = comparison.arms()
    found: dict[str, str] = {}
    if any(mask in PLACED and not place for mask, place in chosen):
        request = samples.contrast()
        if request is None:
            raise UsageError("Where a head, layer or component is to be tried has to be said here, as in head:L1H2.")
        (answer,) = await asker.ask("contrast gradients", [request])
        found = _places(answer.result)
    share = comparison.options.sparsity
    return [
        Arm(protocol, objective, mask, place or found.get(mask, ""), 1.0 if mask == "dense" else share)
        for protocol in comparison.protocols
        for objective in comparison.objectives
        for mask, place in chosen
        if protocol != "paper" or mask in PAPER
    ]


def _places(contrast: GradientContrast) -> dict[str, str]:
    """The head, layer and component in which memorized gradients stand out most from the others', by mean ratio."""
    ratio, names = contrast.ratio, contrast.components
    kinds = [name.split()[0] for name in names]
    components = {kind: ratio[:, [k == kind for k in kinds]].mean() for kind in dict.fromkeys(kinds)}
    heads = {}
    for layer in range(len(ratio)):
        for at, name in enumerate(names):
            if name.startswith("W_O H"):  # every head has one of its own, also where keys and values are shared
                number = name.removeprefix("W_O H")
                heads[f"L{layer}H{number}"] = (ratio[layer, at] + ratio[layer, names.index(f"W_Q H{number}")]) / 2
    layers = {f"L{layer}": row.mean() for layer, row in enumerate(ratio)}
    places = {"head": heads, "layer": layers, "component": components}
    return {mask: max(scores, key=scores.__getitem__) for mask, scores in places.items() if scores}


async def _runs(asker: Asker, comparison: Comparison, arms: list[Arm], row: int, seed: int) -> dict[Arm, Unlearn]:
    """The runs of one paragraph and seed; they differ in nothing but their arms."""
    bases = {}
    for objective in dict.fromkeys(arm.objective for arm in arms):
        options = replace(comparison.options, objective=objective, seed=seed)
        ask = asker.session.ask
        alternatives = (await worst_alternative(ask, asker.catalogue, row, seed),) if objective == "edit" else ()
        bases[objective] = plan(asker.catalogue, [row], options, alternatives)
    return {
        arm: replace(
            bases[arm.objective],
            mask=arm.mask,
            place=arm.place,
            sparsity=arm.sparsity,
            protocol=cast("Literal['memloc', 'paper']", arm.protocol),
        )
        for arm in arms
    }


# ---------------------------------------------------------------------------------------------------------- summary


def summarize(trials: Sequence[Trial], about: dict[str, Any]) -> dict[str, Any]:
    """`about`, and for each arm the mean and 95 % interval of every column, as plain JSON values; then the trials.

    A paragraph's seeds are averaged first, then whole clusters of related ones are resampled. Below ten clusters
    there are no intervals.
    """
    arms: dict[Arm, list[Trial]] = {}
    for trial in trials:
        arms.setdefault(trial.arm, []).append(trial)
    lines = []
    for arm, own in arms.items():
        clusters = {trial.id: trial.cluster for trial in own}
        line: dict[str, Any] = {**vars(arm), "label": arm.label, "targets": len(clusters), "runs": len(own)}
        line["weights"] = max(trial.weights for trial in own)
        for name, _, of in _COLUMNS:
            means = np.array([np.mean([float(of(t)) for t in own if t.id == id_]) for id_ in clusters])
            line[name] = _interval(means, np.array(list(clusters.values())), int(about.get("seed", 0)))
        lines.append(line)
    records = [{**vars(trial.arm), **vars(trial)} for trial in trials]
    for record in records:
        del record["arm"]
    return dict(to_json({**about, "arms": lines, "trials": records}))


def _interval(values: Any, clusters: Any, seed: int) -> dict[str, float]:
    """Mean and interval of values [n] over their clusters [n]; nan where there are none, or too few."""
    known = ~np.isnan(values)
    mean = float(values[known].mean()) if known.any() else math.nan
    numbers = np.unique(clusters[known], return_inverse=True)[1]
    if len(np.unique(numbers)) < statistics.FEWEST_CLUSTERS:
        return {"mean": mean, "low": math.nan, "high": math.nan}
    low, high = statistics.bootstrap_interval(values[known], numbers, RESAMPLES, seed)
    return {"mean": mean, "low": low, "high": high}


def _by_panel(summary: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, arms) for each protocol and objective."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for line in summary["arms"]:
        panels.setdefault(f"{line['objective']}, protocol {line['protocol']}", []).append(line)
    return list(panels.items())


def _value(interval: dict[str, Any]) -> Value:
    return Value(*(math.nan if interval[name] is None else interval[name] for name in ("mean", "low", "high")))


def _counted(lines: list[dict[str, Any]]) -> str:
    targets, runs = lines[0]["targets"], lines[0]["runs"]
    return f"{targets} paragraph{'s' * (targets != 1)}, {runs} run{'s' * (runs != 1)} for each mask"


def _said(name: str, value: Value) -> str:
    """A cell: shares in per cent, the rest in two or three digits; a dash for what was not measured."""
    if math.isnan(value.value):
        return "–"
    if name not in _SHARES:
        return str(value)
    known = [f"{100 * number:.{_SHARES[name]}f}" for number in vars(value).values() if not math.isnan(number)]
    return f"{known[0]} %" + (f" [{', '.join(known[1:])}]" if known[1:] else "")


def _cells(line: dict[str, Any]) -> list[str]:
    return [f"{line['weights']:,}", *(_said(name, _value(line[name])) for name, _, _ in _COLUMNS)]


def _headings(lines: list[dict[str, Any]]) -> list[str]:
    return ["changed weights", *(heading for _, heading, _ in _COLUMNS)]


def _table(panel: tuple[str, list[dict[str, Any]]]) -> Any:
    """One panel for the terminal: the columns that fit, without intervals where there are none."""
    title, lines = panel
    shown = [c for c in _COLUMNS if c[0] in _SHORT and (c[0] != "taught_em" or lines[0]["objective"] == "edit")]
    table = table_of("mask", *(heading for _, heading, _ in shown), title=f"{title}: {_counted(lines)}")
    table.columns[0].no_wrap = True
    for line in lines:
        table.add_row(Text(line["label"]), *(_said(name, _value(line[name])) for name, _, _ in shown))
    return table


def _markdown(summary: dict[str, Any]) -> str:
    """Every column of every arm."""
    parts = [
        f"# Masks compared on {_plain(summary['model'])}",
        "",
        "Means over the changed paragraphs, each alone from fresh weights, with 95 % intervals (bootstrap by cluster "
        f"of near-duplicates and siblings, from ten clusters on); first seed {summary['seed']}. "
        f"EM is of {summary['length']} tokens, NLL in nats per token; same tokens and NLL change are of general text.",
    ]
    for title, lines in _by_panel(summary):
        parts += ["", f"## {title}: {_counted(lines)}", "", f"| mask | {' | '.join(_headings(lines))} |"]
        parts.append("|---|" + "---:|" * len(_headings(lines)))
        parts += [f"| {_plain(line['label'])} | {' | '.join(_cells(line))} |" for line in lines]
    return "\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that no Markdown reads as anything else."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|~" else char for char in visible(text))


def _picture(summary: dict[str, Any]) -> str:
    """Forgetting against retention; "" where there are no others whose retention could be drawn."""
    panels = []
    for title, lines in _by_panel(summary):
        spots = [
            Spot(
                line["label"],
                _value(line["em_lost"]),
                _value(line["others_em"]),
                _HUES.get(line["mask"], "gradient"),
                line["mask"] != "random",
            )
            for line in lines
        ]
        runs = f"{summary['model']}, n = {_counted(lines)}"
        panels.append(Panel(title, runs, spots))
    with_others = any(not math.isnan(spot.y.value) for panel in panels for spot in panel.spots)
    if not with_others:
        return ""
    return against(
        "What unlearning costs the others, by mask",
        (f"EM lost by the changed paragraph, of {summary['length']} tokens", "EM lost"),
        ("EM of other memorized paragraphs", "others' EM"),
        panels,
        least=summary["length"] / 25,
    )


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out takes a folder for {', '.join(FILES)}.")
    above = out if out.exists() else out.absolute().parent
    if not os.access(above, os.W_OK):
        raise UsageError(f"{out} cannot be written: {above} is not there, or not yours to write to.")


def _write(out: Path, summary: dict[str, Any]) -> None:
    """The three files, each whole or not at all; two where there is nothing to draw."""
    texts = (json.dumps(summary, indent=1) + "\n", _markdown(summary), _picture(summary))
    written = {name: text for name, text in zip(FILES, texts, strict=True) if text}
    try:
        out.mkdir(exist_ok=True)
        for name in FILES[len(written) :]:
            (out / name).unlink(missing_ok=True)  # an earlier comparison's
        for name, text in written.items():
            write_whole(out / name, text)
    except OSError as error:
        raise MemlocError(f"{out} cannot be written: {error.strerror or error}.") from None
    click.echo(f"{', '.join(written)} written to {out}", err=True)
    if len(written) < len(FILES):
        click.echo(
            f"memloc-tui: {FILES[-1]} is not written: the set has no other memorized paragraphs, so there is no "
            "retention to draw.",
            err=True,
        )
