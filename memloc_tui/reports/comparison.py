"""Two models, or one with and without an edit, on the same paragraphs: what each recites, and where it is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memloc_core.codec import to_json
from memloc_core.errors import Cancelled, EngineDied, MemlocError, UsageError
from memloc_core.requests import Attention, ParameterGradients, Rarity, Reference, Tokens
from memloc_tui import edits
from memloc_tui.commands.console import Asker, Selection, run
from memloc_tui.figures import figure, head_name
from memloc_tui.reports.content import about_model
from memloc_tui.reports.document import Block, Document, Grid, Section, Words
from memloc_tui.settings import Settings

Head = tuple[int, int]
# What is compared of a paragraph, as JSON names it -> as tables do.
MEASURES = {
    "em": "EM",
    "nll": "NLL",
    "mean_drop": "mean EM drop",
    "lower_half_share": "gradient in lower half",
    "weight": "attention at its peak",
}


@dataclass
class Paragraphs:
    """The paragraphs to compare on, as the first model has them."""

    rows: list[int]
    ids: list[str]
    tokens: list[Tokens]
    texts: list[str]
    references: list[Reference]  # what sweeps are scored against, for both


@dataclass
class Side:
    """What one model says of each paragraph, and of all of them together."""

    name: str
    about: str
    model: Any
    records: list[dict[str, Any]]
    tau: list[float] | None  # of the head: rarity and its interval
    lacks: dict[str, str]  # measure -> why there is none


def compare(settings: Settings, other: Settings, selection: Selection, head: Head, draws: int = 1) -> Document:
    """Both sides, one after the other: only one model is in memory at a time. Raises UsageError, MemlocError."""
    found: list[Paragraphs] = []

    async def first(asker: Asker) -> Side:
        rows = await selection.distinct_rows(asker)
        await asker.score(rows)
        c, p = asker.catalogue, asker.catalogue.paragraphs
        tokens, texts = [p.row(r) for r in rows], [c.text(r) for r in rows]
        found[:] = [Paragraphs(rows, [p.ids[r] for r in rows], tokens, texts, [c.reference(r, "auto") for r in rows])]
        return await _measured(asker, found[0], head, draws)

    async def second(asker: Asker) -> Side:
        _check_same(asker, found[0], settings.model)
        await asker.score(found[0].rows)
        return await _measured(asker, found[0], head, draws)

    a = run(settings, first)
    b = run(other, second)
    if a.name == b.name:
        a.name, b.name = f"{a.name} (A)", f"{b.name} (B)"
    return _document(a, b, found[0].ids, head, draws)


def _check_same(asker: Asker, wanted: Paragraphs, first: str) -> None:
    """Raise UsageError unless the second model reads the same tokens, and the same text in them."""
    p = asker.catalogue.paragraphs
    second = asker.session.settings.model
    if len(p) <= max(wanted.rows) or [p.row(r) for r in wanted.rows] != wanted.tokens:
        raise UsageError(
            f"{first} and {second} cut these paragraphs into other tokens, so no number of one fits the other: "
            "compare models with one tokenizer, or give paragraphs as token ids."
        )
    if [asker.catalogue.text(r) for r in wanted.rows] != wanted.texts:
        raise UsageError(
            f"{second} reads other words in the same token ids than {first} does: they have different tokenizers, "
            "and these paragraphs belong to one of them."
        )


async def _measured(asker: Asker, wanted: Paragraphs, head: Head, draws: int) -> Side:
    catalogue, p, model = asker.catalogue, asker.catalogue.paragraphs, asker.session.model
    assert model is not None
    rows, n = wanted.rows, p.prefix_length
    records: list[dict[str, Any]] = [
        {"em": int(catalogue.em[r]), "nll": to_json(catalogue.nll[r]), "margin": to_json(catalogue.margin[r])}
        for r in rows
    ]
    lacks: dict[str, str] = {}
    sweeps = [catalogue.sweep(r, "random", draws, 0, (), ref) for r, ref in zip(rows, wanted.references, strict=True)]
    for record, answer in zip(records, await asker.ask("sweep", sweeps), strict=True):
        drops = answer.result.drops()
        record |= {"mean_drop": float(drops.mean()), "drops": to_json(drops)}
    try:
        requests = [ParameterGradients((t,), n) for t in wanted.tokens]
        for record, answer in zip(records, await asker.ask("gradients", requests), strict=True):
            shares = answer.result.layer_shares()[0]
            record["layer_shares"] = to_json(shares)
            record["lower_half_share"] = to_json(shares[: len(shares) // 2].sum())
    except (Cancelled, EngineDied):
        raise
    except MemlocError as error:
        lacks["lower_half_share"] = str(error)
    tau = None
    try:
        if head[0] >= model.layers or head[1] >= model.heads:
            raise UsageError(f"{model.name} has no head {head_name(head)}.")
        looks = await asker.ask("attention", [Attention(t, n) for t in wanted.tokens])
        for record, answer in zip(records, looks, strict=True):
            own = answer.result.weights[head][:n]
            record |= {"most_attended": int(own.argmax()), "weight": to_json(own.max())}
        tau = await _rarity(asker, wanted, head)
    except (Cancelled, EngineDied):
        raise
    except MemlocError as error:
        lacks["weight" if "weight" not in records[0] else "tau"] = str(error)
    said = edits.said(asker.session.edits)
    name = f"{model.name}, {said}" if said else model.name
    return Side(name, about_model(asker)[0], to_json(model), records, tau, lacks)


async def _rarity(asker: Asker, wanted: Paragraphs, head: Head) -> list[float]:
    """Kendall's tau-b of the head over the paragraphs, with its 95 % interval. Raises UsageError where they are few."""
    p = asker.catalogue.paragraphs
    counts = tuple(p.prefix_counts(r) for r in wanted.rows)
    clusters = tuple(p.related(wanted.rows).tolist())
    request = Rarity(tuple(wanted.tokens), counts, p.prefix_length, clusters=clusters)
    (answer,) = await asker.ask("rarity", [request])
    r = answer.result
    return [float(r.tau[head]), float(r.low[head]), float(r.high[head])]


# ------------------------------------------------------------------------------------------------------------ document


def _document(a: Side, b: Side, ids: list[str], head: Head, draws: int) -> Document:
    means: dict[str, Any] = {}
    lines = []
    for name, said in MEASURES.items():
        x, y = _mean(a, name), _mean(b, name)
        means[name] = {"a": x, "b": y, "difference": _minus(y, x)}
        lines.append((f"{said}, {head_name(head)}" if name == "weight" else said, *_three(x, y)))
    x, y = (side.tau[0] if side.tau else None for side in (a, b))
    means["tau"] = {"head": head_name(head), "a": a.tau, "b": b.tau, "difference": _minus(y, x)}
    lines.append((f"rarity τ, {head_name(head)}", *_three(x, y)))
    blocks: list[Block] = [
        Grid(f"Means over {len(ids):,} paragraphs", ("mean", "A", "B", "B minus A"), tuple(lines)),
        *(Words(f"{side.name}: {why}") for side in (a, b) for why in side.lacks.values()),
        Words(
            f"EM drop: each prefix token in turn replaced by a random one (seed 0), mean of {draws} "
            f"draw{'s' * (draws != 1)}. Where A's EM is at most a fifth, each is scored against its own continuation "
            "of the clean prefix, else against the true text."
        ),
    ]
    each = tuple(
        (
            *(id_, str(x["em"]), str(y["em"]), _signed(y["em"] - x["em"])),
            *(figure(side[name]) for name in ("nll", "mean_drop") for side in (x, y)),
        )
        for id_, x, y in zip(ids, a.records, b.records, strict=True)
    )
    columns = ("id", "EM A", "EM B", "change", "NLL A", "NLL B", "mean drop A", "mean drop B")
    sections = [
        Section("All together", tuple(blocks)),
        *_layers(a, b),
        Section("Paragraph by paragraph", (Grid("", columns, each),)),
    ]
    data: dict[str, Any] = {
        name: {"name": side.name, "model": side.model, "lacks": side.lacks} for name, side in (("a", a), ("b", b))
    }
    data |= {"means": means, "draws": draws}
    data["paragraphs"] = [{"id": i, "a": x, "b": y} for i, x, y in zip(ids, a.records, b.records, strict=True)]
    return Document(f"{a.name} against {b.name}", (f"A  {a.about}", f"B  {b.about}"), tuple(sections), data)


def _layers(a: Side, b: Side) -> list[Section]:
    """Mean share of the gradient in each layer, where both have gradients and as many layers."""
    shares = [[r["layer_shares"] for r in side.records if None not in r.get("layer_shares", [None])] for side in (a, b)]
    if not all(shares) or len(shares[0][0]) != len(shares[1][0]):
        return []
    means = [[sum(column) / len(column) for column in zip(*side, strict=True)] for side in shares]
    rows = tuple((f"L{i}", *_three(x, y)) for i, (x, y) in enumerate(zip(*means, strict=True)))
    grid = Grid("Mean share of max |dNLL/dw| per layer", ("layer", "A", "B", "B minus A"), rows)
    return [Section("Where the gradient is", (grid,))]


def _mean(side: Side, name: str) -> float | None:
    values = [record.get(name) for record in side.records]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _minus(y: float | None, x: float | None) -> float | None:
    return None if x is None or y is None else y - x


def _three(x: float | None, y: float | None) -> tuple[str, str, str]:
    change = _minus(y, x)
    return (
        *("–" if value is None else figure(value) for value in (x, y)),
        "–" if change is None else f"{'+' * (change > 0)}{figure(change)}",
    )  # type: ignore[return-value]


def _signed(change: int) -> str:
    return f"{change:+d}".replace("-", "−") if change else "0"
