"""What the explorer shows, as tables that a file can hold: one builder per view, and CSV and JSON of any table.

CSV. Numbers stand as numbers, unknown ones as empty cells. Text that came from a model, a tokenizer or a file stands
as a JSON string, quotes included: spaces, line ends and control characters survive, and a spreadsheet sees text that
begins with a quote, never a formula. Other text that begins with = + - @ or holds control characters is quoted alike.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memloc_tui.figures import head_name, head_names

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.scene import Known, Scene
    from memloc_tui.view import View

Cell = str | int | float | None
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Table:
    """Rows under named columns. `says` is what it shows, for people; `name` stands in the file's name."""

    name: str
    says: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def as_csv(table: Table) -> str:
    """See the module."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_csv_cell(cell) for cell in row] for row in table.rows)
    return out.getvalue()


def as_json(table: Table) -> str:
    """{"columns": [...], "rows": [{column: value}, ...]}; text as it is, unknown numbers null."""
    rows = [{name: _plain(cell) for name, cell in zip(table.columns, row, strict=True)} for row in table.rows]
    document = {"table": table.name, "says": table.says, "columns": table.columns, "rows": rows}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


class Data(str):
    """Text that somebody else wrote."""

    __slots__ = ()


def _csv_cell(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.9g}"
    if isinstance(cell, int):
        return str(cell)
    own = isinstance(cell, Data) or cell.startswith(_FORMULA) or not cell.isprintable()
    return json.dumps(cell) if own else cell


def _plain(cell: Cell) -> Cell:
    if isinstance(cell, float):
        return float(f"{cell:.9g}") if math.isfinite(cell) else None
    return cell


# ----------------------------------------------------------------------------------------------------------- the views


def token_text(catalogue: Catalogue, token: int) -> Data:
    """A token's own text, as far as it is UTF-8; "" for an id that the tokenizer does not know."""
    pieces = catalogue.pieces
    return Data(pieces[token].decode("utf-8", "replace") if 0 <= token < len(pieces) else "")


def paragraph_list(catalogue: Catalogue, rows: Iterable[int]) -> Table:
    """These rows in this order, with what is known of each."""
    p = catalogue.paragraphs
    columns = ("paragraph", "row", "em", "nll", "margin", "stratum", "count", "genre", "family", "split", "text")

    def line(row: int) -> tuple[Cell, ...]:
        em, count, family = int(catalogue.em[row]), int(p.repetitions[row]), int(p.family[row])
        return (
            Data(p.ids[row]),
            row,
            em if em >= 0 else None,
            float(catalogue.nll[row]),
            float(catalogue.margin[row]),
            catalogue.stratum_of(em) if em >= 0 else "unknown",
            count if count >= 0 else None,
            Data(p.genre[row]),
            family if family >= 0 else None,
            Data(p.split[row]),
            Data(catalogue.text(row)),
        )

    return Table("list", "the paragraph list as filtered and sorted", columns, tuple(map(line, rows)))


def tokens(view: View, catalogue: Catalogue) -> Table:
    """Prefix and continuation, one row per token; what is known only of the one is empty in the other. Count and rank
    are of what stands there, replaced or not; predicted and recited are to be read against the reference."""
    columns = (
        *("paragraph", "position", "part", "token_id", "token", "replaced_by_id", "replaced_by"),
        *("corpus_count", "rarity_rank", "sweep_drop", "overlay", "overlay_value"),
        *("against", "reference_id", "reference", "predicted_id", "predicted", "recited", "own_id", "own"),
    )
    rows: list[tuple[Cell, ...]] = []
    replaced, sweep, score = dict(view.replacements), view.sweep, view.score
    for i, token in enumerate(view.prefix):
        new = replaced.get(i)
        drop = sweep.drops[i] if sweep is not None and i < len(sweep.drops) else None
        value = view.overlay_values[i] if i < len(view.overlay_values) else None
        rows.append(
            (
                *(Data(view.id), i, "prefix", token, token_text(catalogue, token), new),
                None if new is None else token_text(catalogue, new),
                *_rarity(view, i),
                drop,
                view.overlay_says if value is not None else None,
                value,
                *(None,) * 8,
            )
        )
    for i, token in enumerate(view.continuation):
        about: tuple[Cell, ...] = (None,) * 8
        if score is not None:
            reference, predicted = score.reference[i], score.predicted[i]
            # Recited up to the first token that differs; from there on the model's own text goes another way.
            said = reference if i < score.em else view.own[i - score.em] if view.own else None
            own = None if said is None else token_text(catalogue, said)
            about = (
                *(score.against, reference, token_text(catalogue, reference)),
                *(predicted, token_text(catalogue, predicted), int(i < score.em), said, own),
            )
        place = view.prefix_length + i
        rows.append((Data(view.id), place, "continuation", token, token_text(catalogue, token), *(None,) * 7, *about))
    return Table("tokens", "prefix and continuation, one row a token", columns, tuple(rows))


def _rarity(view: View, position: int) -> tuple[Cell, Cell]:
    """Corpus count and rank of a prefix token; a begin-of-text token has none."""
    known = view.ranks and view.ranks[position] > 0
    return (view.counts[position], view.ranks[position]) if known else (None, None)


def sweep(view: View, catalogue: Catalogue) -> Table | None:
    """One row per position and draw that is known; None where there is no sweep."""
    if view.sweep is None:
        return None
    columns = (
        *("paragraph", "position", "token_id", "token", "draw", "replacement_id", "replacement"),
        *("em_before", "em", "drop", "margin", "nll"),
    )
    scores = view.sweep.scores
    arrays = [a.tolist() for a in (scores.replacements, scores.em, scores.margin, scores.nll)]
    rows: list[tuple[Cell, ...]] = []
    for position, (replaced, ems, margins, nlls) in enumerate(zip(*arrays, strict=True)):
        token = view.prefix[position]
        for draw, (new, em, margin, nll) in enumerate(zip(replaced, ems, margins, nlls, strict=True)):
            if em >= 0:
                about = (Data(view.id), position, token, token_text(catalogue, token), draw)
                drop = scores.em_before - em
                rows.append((*about, new, token_text(catalogue, new), scores.em_before, em, drop, margin, nll))
    return Table("sweep", "the sweep, one row a position and draw", columns, tuple(rows))


def _perturb(scene: Scene, known: Known) -> Table:
    """What was tried, newest first."""
    view, catalogue = scene.view, scene.catalogue
    columns = (
        *("paragraph", "trial", "position", "token_id", "token", "replacement_id", "replacement", "ablated"),
        *("against", "em_before", "em", "drop", "margin", "nll_before", "nll"),
    )
    rows: list[tuple[Cell, ...]] = []
    for number, trial in enumerate(view.trials):
        score = trial.score
        for position, new in trial.replacements:
            token = view.prefix[position]
            rows.append(
                (
                    *(Data(view.id), number, position, token, token_text(catalogue, token)),
                    *(new, token_text(catalogue, new), head_names(score.ablated), score.against),
                    *(score.em_before, score.em, score.drop, score.margin, score.nll_before, score.nll),
                )
            )
    return Table("perturb", "the replacements that were tried, one row each", columns, tuple(rows))


def _gradients(scene: Scene, known: Known) -> Table:
    """|dNLL/dw| per layer and component: this paragraph, the samples' means, and their contrast where it is known."""
    from memloc_tui.samples import OF

    found = [known.result(scene.gradients()), *(known.result(scene.samples.gradients(of)) for of in OF)]
    contrast = known.result(scene.samples.contrast())
    names = next((r.components for r in (*found, contrast) if r is not None), ())
    scores = ("max", "mean", "l2")
    columns = [f"{whose}_{score}" for whose in ("own", "memorized", "non_memorized") for score in scores]
    arrays = [None if r is None else getattr(r, score).mean(0) for r in found for score in scores]
    columns += ["contrast_difference", "contrast_ratio"]
    arrays += [None if contrast is None else getattr(contrast, name) for name in ("difference", "ratio")]
    layers = next((len(a) for a in arrays if a is not None), 0)
    rows: list[tuple[Cell, ...]] = [
        (layer, name, *(None if a is None else float(a[layer, k]) for a in arrays))
        for layer in range(layers)
        for k, name in enumerate(names)
    ]
    says = f"|dNLL/dw| per layer and component{f', {scene.where}' if scene.where else ''}"
    return Table("gradients", says, ("layer", "component", *columns), tuple(rows))


def _attention(scene: Scene, known: Known) -> Table:
    """Every head's attention row, one column a head."""
    from memloc_tui.widgets.attention_panel import attention_request

    result = known.result(attention_request(scene))
    view = scene.view
    rows: list[tuple[Cell, ...]] = []
    heads: list[tuple[int, int]] = []
    if result is not None:
        layers, h, length = result.weights.shape
        heads = [(layer, head) for layer in range(layers) for head in range(h)]
        for i in range(length):
            token = scene.tokens[i]
            count, rank = _rarity(view, i) if i < view.prefix_length else (None, None)
            about = (i, token, token_text(scene.catalogue, token), count, rank)
            rows.append((*about, *(float(result.weights[layer, head, i]) for layer, head in heads)))
    columns = ("position", "token_id", "token", "corpus_count", "rarity_rank", *map(head_name, heads))
    query = "" if result is None else f" from position {result.query}"
    return Table("attention", f"every head's attention{query}, one column a head", columns, tuple(rows))


def _heads(scene: Scene, known: Known) -> Table:
    """One row a head with every score that is known of it."""
    from memloc_tui.readings import ablations, activation_of, output_gradients
    from memloc_tui.widgets.attention_panel import query_of

    layers, heads = scene.model.layers, scene.model.heads
    arrays: dict[str, Any] = {}
    rarity = known.result(scene.samples.rarity(query_of(scene)))
    for name in ("tau", "low", "high", "null_low", "null_high", "p", "p_all", "entropy"):
        arrays[f"rarity_{name}" if name != "entropy" else name] = None if rarity is None else getattr(rarity, name)
    z, w = known.result(scene.activation_gradients()), known.result(scene.gradients())
    p = scene.view.prefix_length
    arrays["gradient_z"] = None if z is None else activation_of(z, "z")[:, :, :p].max(-1)
    arrays["gradient_W_O"] = None if w is None else output_gradients(w, layers, heads)
    ablated = known.result(scene.samples.ablation(), partial=True)
    effects = {} if ablated is None else ablations(ablated)
    for name in ("ablation EM", "ablation own EM", "ablation NLL"):
        effect = effects.get(name)
        column = name.replace(" ", "_")
        arrays[f"{column}_before"] = None if effect is None else [[effect.before] * heads] * layers
        arrays[f"{column}_without"] = None if effect is None else effect.without
    rows: list[tuple[Cell, ...]] = [
        (
            *(layer, head, head_name((layer, head))),
            *(None if a is None else float(a[layer][head]) for a in arrays.values()),
        )
        for layer in range(layers)
        for head in range(heads)
    ]
    return Table("heads", "every head with what is known of it", ("layer", "head", "name", *arrays), tuple(rows))


def _patch(scene: Scene, known: Known) -> Table:
    """One row a patch: its estimated and, where it was run, its exact effect."""
    from memloc_core.requests import PATCH_SITES

    measures = [(d, m) for d in ("restore", "break") for m in ("nll", "logit")]
    columns = ("site", "layer", "place", *(f"{kind}_{d}_{m}" for kind in ("estimate", "exact") for d, m in measures))
    request = scene.attribution()
    estimate = known.result(request)
    rows: list[tuple[Cell, ...]] = []
    if estimate is not None:
        exact = known.result(scene.patching(()), partial=True) or known.result(scene.patching(estimate.top(8)))
        for site in PATCH_SITES:
            effects = [estimate.effects(site), None if exact is None else exact.effects(site)]
            first = 0 if site == "heads" else estimate.first
            for layer in range(effects[0].shape[2]):
                for place in range(effects[0].shape[3]):
                    values = [
                        None if e is None else float(e[d, m, layer, place])
                        for e in effects
                        for d in (0, 1)
                        for m in (0, 1)
                    ]
                    rows.append((site, layer, first + place, *values))
    return Table("patch", "what each patch restores or breaks; 1 is all of it", columns, tuple(rows))


def _overview(scene: Scene) -> Table:
    """The paragraphs by repetition count, then by stratum, with the share of the gradient in each layer."""
    board, layers = scene.board, [f"gradient_L{layer}" for layer in range(scene.model.layers)]
    columns = (
        *("by", "low", "high", "n", "em", "nll", "memorized", "looked_at", "unique", "clusters", "code"),
        *("gradients_of", "gradient_sum", *layers),
    )
    rows: list[tuple[Cell, ...]] = []
    counts = (board.counts or ()) if board is not None else ()
    strata = (board.strata or ()) if board is not None else ()
    for c in counts:
        rows.append(("count", c.low, c.high, c.n, c.em, c.nll, c.memorized, *(None,) * (6 + len(layers))))
    for i, s in enumerate(strata):
        about = ("EM", s.low, s.high, s.n, None, s.nll, None, s.looked_at, s.unique, s.clusters, s.code)
        shift = board.shifts[i] if board is not None and i < len(board.shifts) else None
        shares = shift.shares if shift is not None and len(shift.shares) == len(layers) else (None,) * len(layers)
        total = (shift.known, shift.total) if shift is not None and shift.shares else (None, None)
        rows.append((*about, *total, *shares))
    return Table("overview", "the set by repetition count and by stratum", columns, tuple(rows))


def _findings(scene: Scene, known: Known) -> Table:
    """Every claim that was tested, with its numbers and the paper's; the overview where that is on show."""
    from memloc_tui.widgets.findings_panel import SHOWN

    if scene.setting(SHOWN) == "overview":
        return _overview(scene)
    columns = (
        *("claim", "verdict", "effect", "low", "high", "unit", "n", "seed", "paper", "paragraph"),
        *("sentence", "says", "paper_says"),
    )
    found = scene.board.found.values() if scene.board is not None else ()
    rows: list[tuple[Cell, ...]] = [
        (
            *(f.claim, f.verdict, f.effect, *(f.interval or (None, None)), f.unit, f.n, f.seed, f.paper),
            *(Data(f.paragraph), f.sentence, Data(f.says), f.paper_says),
        )
        for f in found
    ]
    return Table("findings", "the paper's claims on this model and set", columns, tuple(rows))


TABS: dict[str, Callable[[Scene, Known], Table]] = {
    "perturb": _perturb,
    "gradients": _gradients,
    "attention": _attention,
    "heads": _heads,
    "patch": _patch,
    "findings": _findings,
}


def of_tab(name: str, panel: Any, scene: Scene | None, known: Known) -> Table | None:
    """The open tab's table: its panel's own `table()` where it has one; None while it shows nothing."""
    if hasattr(panel, "table"):
        table: Table | None = panel.table()
    else:
        table = TABS[name](scene, known) if scene is not None and name in TABS else None
    return table if table is not None and table.rows else None
