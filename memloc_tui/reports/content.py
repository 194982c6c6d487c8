"""What a report says: of paragraphs, of a set, of the findings. Asks, and turns answers into a document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from memloc_core.codec import to_json
from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_core.requests import Attention, Continue, ParameterGradients, Sweep
from memloc_tui.catalogue import STRATA, Catalogue
from memloc_tui.commands.console import Asker, Selection
from memloc_tui.figures import figure, head_name, percent
from memloc_tui.glyphs import piece_text, quoted
from memloc_tui.reports.document import Block, Chart, Document, Grid, Section, Token, Tokens, Words
from memloc_tui.reports.pictures import Bar

Head = tuple[int, int]
Part = tuple[list[Block], dict[str, Any]]
_SAMPLE = 8  # paragraphs per stratum whose sweeps the report of a set averages
_LISTED = 12  # positions listed of a head's attention


async def of_selection(asker: Asker, selection: Selection, head: Head) -> Document:
    """The report of the selected paragraphs, or of the set that they make."""
    rows = await selection.rows(asker)
    return await (of_set(asker, rows) if selection.stratum else of_paragraphs(asker, rows, head))


# ---------------------------------------------------------------------------------------------------------- paragraphs


async def of_paragraphs(asker: Asker, rows: Sequence[int], head: Head) -> Document:
    """Each paragraph: what is recited, which tokens hold it, where a head looks, which layers would change it."""
    catalogue = asker.catalogue
    ids = [catalogue.paragraphs.ids[row] for row in rows]
    await asker.score(rows)
    sections, records = [], []
    for row in rows:
        own, record = await _paragraph(asker, row, head)
        sections += own
        records.append(record)
    title = f"Paragraph {ids[0]}" if len(ids) == 1 else f"{len(ids)} paragraphs"
    data = {"report": "paragraphs", "model": to_json(asker.session.model), "paragraphs": records}
    return Document(title, about_model(asker), tuple(sections), data)


async def _paragraph(asker: Asker, row: int, head: Head) -> tuple[list[Section], dict[str, Any]]:
    p = asker.catalogue.paragraphs
    record: dict[str, Any] = {"id": p.ids[row], "prefix_length": p.prefix_length, "tokens": list(p.row(row))}
    record["text"] = asker.catalogue.text(row)
    sections = []
    parts: tuple[tuple[str, Callable[[], Awaitable[Part]]], ...] = (
        ("What the model recites", lambda: _recitation(asker, row)),
        ("Which prefix tokens it needs", lambda: _sweep(asker, row)),
        (f"Where {head_name(head)} looks", lambda: _attention(asker, row, head)),
        ("Which layers would change it", lambda: _gradients(asker, row)),
    )
    for heading, make in parts:
        try:
            blocks, data = await make()
        except (Cancelled, EngineDied):
            raise
        except MemlocError as error:  # what this model or paragraph lacks; the rest still stands
            blocks, data = [Words(str(error))], {}
            record.setdefault("lacks", []).append({"section": heading, "why": str(error)})
        sections.append(Section(heading, tuple(blocks), 3))
        record |= data
    return [Section(f"Paragraph {p.ids[row]}", (_facts(asker.catalogue, row),)), *sections], record


def _facts(catalogue: Catalogue, row: int) -> Grid:
    p, em = catalogue.paragraphs, int(catalogue.em[row])
    facts = [
        ("exact match", f"{em} of {catalogue.length} ({catalogue.stratum_of(em)})"),
        ("NLL", f"{catalogue.nll[row]:.3f} nats per token"),
        ("margin", f"{catalogue.margin[row]:.2g}"),
    ]
    if p.repetitions[row] >= 0:
        facts.append(("repetitions", f"{int(p.repetitions[row]):,}"))
    facts += [(name, value) for name, value in (("genre", p.genre[row]), ("split", p.split[row])) if value]
    return Grid("", ("what", "value"), tuple(facts), ("value",))


def _shown(catalogue: Catalogue, token: int) -> str:
    return piece_text(catalogue.pieces[token] if 0 <= token < len(catalogue.pieces) else b"", token)


async def _recitation(asker: Asker, row: int) -> Part:
    catalogue, p = asker.catalogue, asker.catalogue.paragraphs
    scored = catalogue.scored(row)
    assert scored is not None
    result, at = scored
    em, tokens, n = int(result.em[at]), p.row(row), p.prefix_length
    own: tuple[int, ...] = ()
    if em < catalogue.length:
        (answer,) = await asker.ask("own continuation", [Continue(tokens[: n + em], catalogue.length - em)])
        own = tuple(answer.result.tokens.tolist())

    def line(values: Sequence[int], hue: str) -> tuple[Token, ...]:
        return tuple(
            Token(_shown(catalogue, t), "match" if i < em else hue, 0.35, sign="✗" if i == em else "")
            for i, t in enumerate(values)
        )

    def said() -> str:
        if not own:
            return "recites all of it"
        place = n + em
        return (
            f"leaves the text at position {place}: {quoted(_shown(catalogue, own[0]))} "
            f"instead of {quoted(_shown(catalogue, tokens[place]))}"
        )

    blocks: list[Block] = [
        Words(f"From the prefix of {n} tokens the model {said()}. ✗ marks the place; recited tokens are green."),
        Tokens("Prefix", tuple(Token(_shown(catalogue, t)) for t in tokens[:n])),
        Tokens("Continuation, the true text", line(tokens[n:], "")),
        Tokens("Continuation, the model's own", line((*tokens[n : n + em], *own), "leave")),
    ]
    data = {name: to_json(column[at]) for name, column in vars(result).items()}
    return blocks, {**data, "own_continuation": [*tokens[n : n + em], *own]}


async def _sweep(asker: Asker, row: int) -> Part:
    catalogue, tokens = asker.catalogue, asker.catalogue.paragraphs.row(row)
    request: Sweep = catalogue.sweep(row)
    (answer,) = await asker.ask("sweep", [request])
    drops = answer.result.drops().tolist()
    before, largest = answer.result.em_before, max(drops)
    against = "the true text" if request.reference == "true" else "the model's own continuation of the clean prefix"
    worst = max(range(len(drops)), key=lambda i: drops[i])
    lost = sorted((drop for drop in drops if drop > 0), reverse=True)  # a replacement may also help
    few = min(5, len(lost))
    carry = f"{few} positions carry" if few > 1 else "one position carries"
    share = f", {carry} {percent(sum(lost[:few]) / sum(lost))} of all drops" if lost else ""
    says = (
        f"EM drop when each prefix token in turn is replaced by a random one (seed {request.seed}), against {against}, "
        f"EM {before} before. Mean {sum(drops) / len(drops):.1f}, largest {largest:.0f} at position {worst}{share}."
    )
    strip = tuple(
        Token(_shown(catalogue, t), "perturb" if d > 0 else "", d / (largest or 1), f"{d:.0f}" if d > 0 else "")
        for t, d in zip(tokens, drops, strict=False)
    )
    chart = Chart(
        "EM drop by position",
        f"{len(drops)} prefix positions, one replacement each; a bar is the drop of exact match, at most {before}",
        "upright",
        tuple(Bar(str(i), d, f"{d:.0f}", more=quoted(_shown(catalogue, tokens[i]))) for i, d in enumerate(drops)),
        "perturb",
    )
    data = {
        "sweep": {
            **{name: to_json(value) for name, value in vars(answer.result).items()},
            "drops": drops,
            "mean_drop": sum(drops) / len(drops),
            "strategy": request.strategy,
            "seed": request.seed,
            "scored_against": request.reference,
        }
    }
    return [Words(says), Tokens("The prefix; a number is the drop at the token before it", strip), chart], data


async def _attention(asker: Asker, row: int, head: Head) -> Part:
    catalogue, p = asker.catalogue, asker.catalogue.paragraphs
    model = asker.session.model
    assert model is not None
    if not (head[0] < model.layers and head[1] < model.heads):
        raise MemlocError(f"{model.name} has no head {head_name(head)}.")
    tokens, n = p.row(row), p.prefix_length
    (answer,) = await asker.ask("attention", [Attention(tokens, n)])
    r = answer.result
    own = r.weights[head].tolist()
    counts = p.prefix_counts(row)
    order = sorted(range(len(own)), key=lambda i: (-own[i], i))[:_LISTED]
    entropy = float(r.entropy[head])
    chart = Chart(
        f"Attention of {head_name(head)}",
        f"the {len(order)} prefix tokens with most of its attention from position {r.query}, which predicts the "
        f"continuation; {percent(sum(own[i] for i in order))} of it in all; entropy {figure(entropy)} nats",
        "level",
        tuple(
            Bar(
                f"{i} {quoted(_shown(catalogue, tokens[i]))}{f' ×{counts[i]:,}' if counts[i] >= 0 else ''}",
                own[i],
                f"{own[i]:.3f}",
            )
            for i in order
        ),
        "attention",
    )
    of = "corpus" if p.counts_of == "corpus" else "set"
    data = {"attention": {"head": head_name(head), "query": r.query, "head_weights": to_json(own)}}
    data["attention"]["entropy"] = to_json(entropy)
    return [chart, Words(f"Behind × stands how often the token occurs in the {of}.")], data


async def _gradients(asker: Asker, row: int) -> Part:
    p = asker.catalogue.paragraphs
    (answer,) = await asker.ask("gradients", [ParameterGradients((p.row(row),), p.prefix_length)])
    r = answer.result
    sums, shares = r.layer_sums()[0].tolist(), r.layer_shares()[0].tolist()
    half = sum(shares[: len(shares) // 2])
    layers = tuple(zip(sums, shares, strict=True))
    chart = Chart(
        "Gradient by layer",
        f"max |dNLL/dw| summed over the {len(r.components)} components of a layer; {figure(sum(sums))} in all, "
        f"{percent(half)} of it in the lower half of the layers",
        "level",
        tuple(Bar(f"L{i}", s, f"{figure(s)} ({percent(x)})") for i, (s, x) in enumerate(layers)),
        "gradient",
    )
    data = {
        "layer_sums": to_json(sums),
        "layer_shares": to_json(r.layer_shares()[0]),
        "lower_half_share": to_json(half),
    }
    return [chart], {"gradients": {"score": "max", **data}}


# ----------------------------------------------------------------------------------------------------------------- set


async def of_set(asker: Asker, rows: Sequence[int]) -> Document:
    """Strata, repetition counts, and how hard recitation is to corrupt."""
    catalogue, p = asker.catalogue, asker.catalogue.paragraphs
    await asker.score(rows)
    whole = len(rows) == len(catalogue)
    strata, strata_data = _strata(catalogue, rows)
    sections = [Section("How much is recited", (strata,))]
    data = {"report": "set", "model": to_json(asker.session.model), "source": p.source, "paragraphs": len(rows)}
    data["strata"] = strata_data
    if any(p.repetitions[row] >= 0 for row in rows):
        blocks, data["by_repetitions"] = _by_count(catalogue, rows)
        sections.append(Section("By repetitions in the training text", blocks))
    table, data["corruption"] = await _corruption(asker, rows)
    said = "Random replacements, seed 0; non-memorized paragraphs against the model's own continuation."
    sections.append(Section("Replacing one prefix token", (Words(said), table)))
    title = f"{len(rows):,}{'' if whole else f' of {len(p):,}'} paragraphs of {p.source}"
    return Document(title, about_model(asker), tuple(sections), data)


def about_model(asker: Asker) -> tuple[str, ...]:
    """Whose numbers these are."""
    model, paragraphs = asker.session.model, asker.catalogue.paragraphs
    assert model is not None
    c = asker.catalogue.length
    from memloc_tui import edits

    edited = edits.said(asker.session.edits)
    return (
        f"{model.name}: {model.architecture}, {model.layers} layers x {model.heads} heads, "
        f"{model.parameters:,} weights, {model.dtype} on {model.device}{f', {edited}' if edited else ''}",
        f"{len(paragraphs):,} paragraphs of {paragraphs.prefix_length} + {c} tokens from {paragraphs.source}"
        f"{', the first of each the begin-of-text token' if paragraphs.begin >= 0 else ''}",
        f"EM: greedily decoded tokens equal to the text until the first that is not, 0..{c}",
    )


def _strata(catalogue: Catalogue, rows: Sequence[int]) -> tuple[Grid, list[dict[str, Any]]]:
    c = catalogue.length
    lines, data = [], []
    for name, said in zip(STRATA, (f"memorized, EM {c}", "partly", f"non-memorized, EM <= {c // 5}"), strict=True):
        own = [row for row in rows if catalogue.stratum_of(int(catalogue.em[row])) == name]
        em, nll = (catalogue.em[own].mean(), catalogue.nll[own].mean()) if own else (float("nan"), float("nan"))
        lines.append((said, f"{len(own):,}", *((f"{em:.1f}", f"{nll:.3f}") if own else ("–", "–"))))
        data.append({"stratum": name, "paragraphs": len(own), "mean_em": to_json(em), "mean_nll": to_json(nll)})
    return Grid("", ("stratum", "paragraphs", "mean EM", "mean NLL (nats)"), tuple(lines)), data


def _by_count(catalogue: Catalogue, rows: Sequence[int]) -> tuple[tuple[Block, ...], list[dict[str, Any]]]:
    counts = catalogue.paragraphs.repetitions[list(rows)]
    ems = catalogue.em[list(rows)]
    data = [
        {
            "repetitions": count,
            "paragraphs": int((counts == count).sum()),
            "mean_em": float(ems[counts == count].mean()),
            "recited_whole": int((ems[counts == count] == catalogue.length).sum()),
        }
        for count in sorted({int(count) for count in counts if count >= 0})
    ]
    table = Grid(
        "",
        ("repetitions", "paragraphs", "mean EM", "recited whole"),
        tuple(
            (f"{d['repetitions']:,}", f"{d['paragraphs']:,}", f"{d['mean_em']:.1f}", f"{d['recited_whole']:,}")
            for d in data
        ),
    )
    chart = Chart(
        "Mean exact match by repetitions",
        f"{sum(d['paragraphs'] for d in data):,} paragraphs; a bar is the mean EM of those that occur so often, at "
        f"most {catalogue.length}",
        "level",
        tuple(Bar(f"{d['repetitions']:,}", d["mean_em"], f"{d['mean_em']:.1f}") for d in data),
        "match",
    )
    return (table, chart), data


async def _corruption(asker: Asker, rows: Sequence[int]) -> tuple[Grid, list[dict[str, Any]]]:
    """Mean drop of EM over all single-token replacements, for the first paragraphs of either end."""
    catalogue = asker.catalogue
    lines: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for stratum in ("memorized", "non-memorized"):
        inside = [row for row in rows if catalogue.stratum_of(int(catalogue.em[row])) == stratum]
        first = {catalogue.paragraphs.ids[row]: row for row in reversed(inside)}  # of copies one
        own = sorted(first.values())[:_SAMPLE]
        if not own:
            lines.append((stratum, "0", "–", "–", "–"))
            data.append({"stratum": stratum, "paragraphs": 0})
            continue
        answers = await asker.ask(f"sweep, {stratum}", [catalogue.sweep(row) for row in own])
        drops = [answer.result.drops() for answer in answers]
        hardest = max(range(len(own)), key=lambda i: drops[i].max())
        position, row = int(drops[hardest].argmax()), own[hardest]
        drop, mean = float(drops[hardest][position]), sum(float(d.mean()) for d in drops) / len(drops)
        token = _shown(catalogue, int(catalogue.paragraphs.tokens[row, position]))
        id_ = catalogue.paragraphs.ids[row]
        lines.append(
            (stratum, str(len(own)), f"{mean:.1f}", id_, f"{quoted(token)} at {position}: EM drops by {drop:.0f}")
        )
        data.append(
            {
                "stratum": stratum,
                "paragraphs": len(own),
                "mean_drop": mean,
                "hardest_hit": id_,
                "position": position,
                "drop": drop,
            }
        )
    columns = ("stratum", "paragraphs", "mean EM drop", "hardest hit", "worst token")
    return Grid("", columns, tuple(lines), ("hardest hit", "worst token")), data


# ------------------------------------------------------------------------------------------------------------ findings


def of_findings(asker: Asker, findings: Sequence[Any]) -> Document:
    """Every claim with its verdict, effect, interval, and the paper's number beside it."""
    verdicts = [finding.verdict for finding in findings]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    columns = ("claim", "effect", "95 % interval", "n", "the paper", "verdict", "unit")
    rows = tuple(
        (
            finding.claim,
            _number(finding.effect),
            "–" if finding.interval is None else f"[{', '.join(map(figure, finding.interval))}]",
            f"{finding.n:,}",
            _number(finding.paper),
            finding.verdict,
            finding.unit,
        )
        for finding in findings
    )
    overview = Grid("Every claim, with its effect on this model", columns, rows, ("verdict", "unit"))
    sections = [Section("Claims", (Words(f"{len(findings)} claims: {counts}."), overview))]
    for finding in findings:
        blocks: list[Block] = [Words(f"{finding.sentence} Verdict: {finding.verdict}. {finding.says}")]
        if finding.paper_says:
            blocks.append(Words(f"The paper: {finding.paper_says}"))
        if finding.paragraph:
            blocks.append(Words(f"Shown best by paragraph {finding.paragraph}, in the {finding.view} tab."))
        sections.append(Section(finding.claim, tuple(blocks), 3))
    data = {"report": "findings", "model": to_json(asker.session.model), "findings": [to_json(f) for f in findings]}
    return Document("Findings", about_model(asker), tuple(sections), data)


def _number(value: float | None) -> str:
    return "–" if value is None else figure(value)
