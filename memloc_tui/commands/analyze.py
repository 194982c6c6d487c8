"""What `memloc-tui analyze` asks: one function per analysis, from the selected paragraphs to records and a table."""

from __future__ import annotations

import re
from typing import Any

from memloc_core import codec
from memloc_core.errors import UsageError
from memloc_core.requests import (
    ActivationGradients,
    ActivationPatching,
    Attention,
    AttentionPattern,
    AttributionPatching,
    ContrastGradients,
    HeadAblation,
    ParameterGradients,
    Perturb,
    RareTokens,
    Rarity,
    Reference,
    Strategy,
    Tokens,
)
from memloc_tui.catalogue import CHUNK, Catalogue
from memloc_tui.commands.console import WHOLE_SET, Asker, Selection, emit, record, run
from memloc_tui.glyphs import piece_text
from memloc_tui.settings import Settings


def exact_match(settings: Settings, selection: Selection) -> None:
    """Exact match, margin and per-token NLL of the selected paragraphs."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue = asker.catalogue
        rows = await selection.rows(asker)
        await asker.score(rows)
        records = []
        for row in rows:
            answer = await asker.session.ask(catalogue.request(row // CHUNK))
            fields = {name: column[row % CHUNK] for name, column in vars(answer.result).items()}
            records.append(record(catalogue, row, fields, answer))
        return records

    emit(run(settings, work), selection, {"EM": "em", "NLL": "nll", "margin": "margin"})


def perturb(
    settings: Settings,
    selection: Selection,
    positions: tuple[int, ...],
    texts: tuple[str, ...],
    token_ids: Tokens,
    reference: Reference,
) -> None:
    """The same replacements in each selected paragraph."""
    check_replacements(positions, texts, token_ids)

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue, paragraphs = asker.catalogue, asker.catalogue.paragraphs
        replacements = replacements_of(catalogue, positions, texts, token_ids)
        rows = await selection.rows(asker)
        requests = [Perturb(paragraphs.row(row), replacements, paragraphs.prefix_length, reference) for row in rows]
        answers = await asker.ask("perturb", requests)
        return [
            record(catalogue, row, {**vars(a.result), "drop": a.result.drop, "replacements": replacements}, a)
            for row, a in zip(rows, answers, strict=True)
        ]

    columns = {"EM before": "em_before", "EM after": "em_after", "drop": "drop"}
    emit(run(settings, work), selection, columns | {"NLL before": "nll_before", "NLL after": "nll_after"})


def sweep(
    settings: Settings,
    selection: Selection,
    strategy: Strategy,
    draws: int,
    seed: int | None,
    token_ids: Tokens,
    reference: str,
    verified: bool,
) -> None:
    """A sweep over the prefix of each selected paragraph."""
    if seed is not None and strategy != "random":
        raise UsageError(f"--seed goes with --strategy random; {strategy} draws nothing.")
    if bool(token_ids) != (strategy == "given"):
        raise UsageError("--strategy given and --token-id go together: the tokens to put in, one more than --draws.")

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue = asker.catalogue
        rows = await selection.rows(asker)
        if reference == "auto":
            await asker.score(rows)
        requests = [catalogue.sweep(row, strategy, draws, seed or 0, token_ids, reference, verified) for row in rows]
        answers = await asker.ask(f"sweep, {strategy}", requests)
        records = []
        for row, request, answer in zip(rows, requests, answers, strict=True):
            drops = answer.result.drops()
            fields = {**vars(answer.result), "drops": drops, "mean_drop": drops.mean()}
            fields |= {"worst_position": drops.argmax(), "worst_drop": drops.max(), "scored_against": request.reference}
            fields |= {"strategy": strategy, "seed": seed or 0}
            records.append(record(catalogue, row, fields, answer))
        return records

    columns = {
        "EM": "em_before",
        "mean drop": "mean_drop",
        "worst position": "worst_position",
        "its drop": "worst_drop",
    }
    if verified:
        columns |= {"largest error seen": "error", "trusted from margin": "bound", "share done again": "rechecked"}
    emit(run(settings, work), selection, columns | {"against": "scored_against"})


def parameter_gradients(settings: Settings, selection: Selection, score: Any) -> None:
    """Where each paragraph's NLL would change most, per layer and component."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue, p = asker.catalogue, asker.catalogue.paragraphs.prefix_length
        rows = await selection.rows(asker)
        requests = [ParameterGradients((catalogue.paragraphs.row(row),), p) for row in rows]
        records = []
        for row, answer in zip(rows, await asker.ask("parameter gradients", requests), strict=True):
            r = answer.result
            names = {"max": r.max[0], "mean": r.mean[0], "l2": r.l2[0], "nll": r.nll[0], "components": r.components}
            sums, shares = r.layer_sums(score)[0], r.layer_shares(score)[0]
            half = shares[: len(shares) // 2].sum()
            top = [r.components[k] for k in (getattr(r, score)[0]).argmax(-1)]
            names |= {"score": score, "layer_sums": sums, "layer_shares": shares, "sum": sums.sum()}
            names |= {"lower_half_share": half, "top_component": [f"L{i} {name}" for i, name in enumerate(top)]}
            names |= {"top": f"L{int(sums.argmax())} {top[int(sums.argmax())]}", "peak_bytes": r.peak_bytes}
            records.append(record(catalogue, row, names, answer))
        return records

    columns = {"NLL": "nll", f"sum of {score}": "sum", "share of the lower half": "lower_half_share", "largest": "top"}
    emit(run(settings, work), selection, columns)


def contrast_gradients(settings: Settings, selection: Selection) -> None:
    """Which components the memorized paragraphs need and the non-memorized ones do not."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        memorized, non_memorized = await selection.two_sets(asker)
        request = ContrastGradients(memorized, non_memorized, asker.catalogue.paragraphs.prefix_length)
        (answer,) = await asker.ask("contrast gradients", [request])
        r = answer.result
        layer, component = divmod(int(r.ratio.argmax()), len(r.components))
        about = {"id": WHOLE_SET, "memorized": len(memorized), "non_memorized": len(non_memorized)}
        about |= {"largest_ratio": f"L{layer} {r.components[component]}", "ratio_there": r.ratio[layer, component]}
        layer, component = divmod(int(r.difference.argmax()), len(r.components))
        about |= {"largest_difference": f"L{layer} {r.components[component]}"}
        about |= {"difference_there": r.difference[layer, component]}
        return [whole_set(answer, about)]

    columns = {"memorized": "memorized", "non-memorized": "non_memorized", "largest ratio": "largest_ratio"}
    columns |= {"ratio": "ratio_there", "largest difference": "largest_difference", "difference": "difference_there"}
    emit(run(settings, work), selection, columns)


def activation_gradients(settings: Settings, selection: Selection) -> None:
    """At which heads and tokens an activation would change the recitation most."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue, p = asker.catalogue, asker.catalogue.paragraphs.prefix_length
        rows = await selection.rows(asker)
        requests = [ActivationGradients(catalogue.paragraphs.row(row), p) for row in rows]
        records = []
        for row, answer in zip(rows, await asker.ask("activation gradients", requests), strict=True):
            scores = answer.result.scores
            layers, heads, tokens = scores.shape[1:]
            kind, layer, head, position = _unravel(int(scores.argmax()), (4, layers, heads, tokens))
            top = {"largest": f"{'qkvz'[kind]} of L{layer}H{head}", "position": position}
            top |= {"token": shown(catalogue, row, position), "largest_score": scores.max(), "order": "q k v z"}
            records.append(record(catalogue, row, vars(answer.result) | top, answer))
        return records

    columns = {"NLL": "nll", "largest": "largest", "at": "position", "token": "token", "score": "largest_score"}
    emit(run(settings, work), selection, columns)


def attention(settings: Settings, selection: Selection, head: str, query: int, pattern: bool) -> None:
    """Where heads look from the position that predicts the continuation."""
    layer, number = parse_head(head)

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue, paragraphs = asker.catalogue, asker.catalogue.paragraphs
        check_head(asker, layer, number)
        rows = await selection.rows(asker)
        requests = [Attention(paragraphs.row(row), paragraphs.prefix_length, query) for row in rows]
        answers = await asker.ask("attention", requests)
        patterns = []
        if pattern:
            requests_ = [AttentionPattern(paragraphs.row(row), layer, number) for row in rows]
            patterns = await asker.ask("attention pattern", requests_)
        records = []
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            own = answer.result.weights[layer, number]
            most = int(own.argmax())
            fields = {**vars(answer.result), "head": head, "head_weights": own, "most_attended": most}
            fields |= {"token": shown(catalogue, row, most), "weight": own[most]}
            fields |= {"head_entropy": answer.result.entropy[layer, number]}
            if pattern:
                fields["pattern"] = patterns[place].result.weights
            records.append(record(catalogue, row, fields, answer))
        return records

    columns = {"head": "head", "looks most at": "most_attended", "token": "token", "weight": "weight"}
    emit(run(settings, work), selection, columns | {"entropy": "head_entropy"})


def rarity(settings: Settings, selection: Selection, query: int, seed: int, shuffle: Any) -> None:
    """Which heads look at rare tokens, beyond what shuffled ranks give."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        paragraphs = asker.catalogue.paragraphs
        rows = await selection.rows(asker)
        request = Rarity(
            tuple(paragraphs.row(row) for row in rows),
            tuple(paragraphs.prefix_counts(row) for row in rows),
            paragraphs.prefix_length,
            query,
            shuffle,
            seed=seed,
            clusters=tuple(paragraphs.related(rows).tolist()),
        )
        (answer,) = await asker.ask("rarity", [request])
        r = answer.result
        whole = whole_set(answer, {"id": WHOLE_SET, "paragraphs": len(rows)})
        if selection.as_json or selection.out:
            return [whole]
        return [
            {"id": f"L{layer}H{head}", "tau": r.tau[layer, head].item(), "p_all": r.p_all[layer, head].item()}
            | {"interval": f"{r.low[layer, head]:+.2f} .. {r.high[layer, head]:+.2f}"}
            | {"null": f"{r.null_low[layer, head]:+.2f} .. {r.null_high[layer, head]:+.2f}"}
            | {"entropy": r.entropy[layer, head].item()}
            | {"sign": _sign(r) if r.strongest == (layer, head) else ""}
            for layer, head in _by(r.tau)
        ]

    columns = {"tau-b": "tau", "95 % interval": "interval", "null, 95 %": "null", "p, all heads": "p_all"}
    emit(run(settings, work), selection, columns | {"entropy": "entropy", "": "sign"}, first="head")


def ablation(settings: Settings, selection: Selection, kind: Any) -> None:
    """What memorized and non-memorized paragraphs become without each head."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue = asker.catalogue
        memorized, others = await selection.two_sets(asker, both=False)
        request = HeadAblation(memorized, others, others, catalogue.paragraphs.prefix_length, kind)
        (answer,) = await asker.ask(f"{kind} ablation", [request])
        r = answer.result
        about = {"id": WHOLE_SET, "kind": kind, "memorized": len(memorized), "non_memorized": len(others)}
        if selection.as_json or selection.out:
            return [whole_set(answer, about)]
        lines = []
        em = r.memorized_em.mean(-1) if memorized else r.own_em.mean(-1)
        for layer, head in _by(em):
            line: dict[str, Any] = {"id": f"L{layer}H{head}"}
            line["em"] = float(r.memorized_em[layer, head].mean()) if memorized else "–"
            nll = r.memorized_nll[layer, head] - r.memorized_nll_before
            line["nll"] = float(nll.mean()) if memorized else "–"
            line["own"] = float(r.own_em[layer, head].mean()) if others else "–"
            general = r.general_nll[layer, head] - r.general_nll_before
            line["general"] = float(general.mean()) if others else "–"
            lines.append(line)
        return lines

    columns = {"memorized EM": "em", "NLL change": "nll", "non-memorized EM of own text": "own"}
    emit(run(settings, work), selection, columns | {"their NLL change": "general"}, first="without")


def patching(
    settings: Settings,
    selection: Selection,
    positions: tuple[int, ...],
    texts: tuple[str, ...],
    token_ids: Tokens,
    exact: str,
) -> None:
    """Which activations carry the recitation, between each paragraph and its perturbed twin."""
    check_replacements(positions, texts, token_ids)

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue, paragraphs = asker.catalogue, asker.catalogue.paragraphs
        replacements = replacements_of(catalogue, positions, texts, token_ids)
        rows = await selection.rows(asker)
        p = paragraphs.prefix_length
        answers = []
        for row in rows:
            paragraph = paragraphs.row(row)
            (answer,) = await asker.ask("attribution", [AttributionPatching(paragraph, replacements, p)])
            if exact != "none":
                cells = answer.result.top(10) if exact == "top" else ()
                exact_request = ActivationPatching(paragraph, replacements, p, cells=cells)
                (answer,) = await asker.ask("activation patching", [exact_request])
            answers.append(answer)
        records = []
        for row, answer in zip(rows, answers, strict=True):
            r = answer.result
            (site, layer, place), *_ = sorted(r.top(1), key=lambda cell: -_effect(r, cell))
            where = f"L{layer}H{place}" if site == "heads" else f"{site} L{layer} at {place}"
            fields = {
                **vars(r),
                "replacements": replacements,
                "largest": where,
                "restores": _effect(r, (site, layer, place)),
            }
            fields |= {"nll_clean": r.clean[0], "nll_perturbed": r.perturbed[0]}
            records.append(record(catalogue, row, fields, answer))
        return records

    columns = {"NLL clean": "nll_clean", "perturbed": "nll_perturbed", "largest": "largest", "restores": "restores"}
    emit(run(settings, work), selection, columns | {"exact": "exact", "forwards": "forwards", "cells": "cells"})


def rare_tokens(settings: Settings, selection: Selection, pairs: int, seed: int, reference: Any) -> None:
    """Does replacing rare prefix tokens cost more than replacing common ones nearby?"""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        paragraphs = asker.catalogue.paragraphs
        rows = await selection.rows(asker)
        request = RareTokens(
            tuple(paragraphs.row(row) for row in rows),
            tuple(paragraphs.prefix_counts(row) for row in rows),
            paragraphs.ranked_tokens("most-frequent", 50),
            pairs,
            paragraphs.prefix_length,
            reference,
            seed=seed,
            clusters=tuple(paragraphs.related(rows).tolist()),
        )
        (answer,) = await asker.ask("rare tokens", [request])
        r = answer.result
        about = {"id": WHOLE_SET, "paragraphs": len(rows), "interval": f"{r.low:+.2f} .. {r.high:+.2f}"}
        return [whole_set(answer, about)]

    columns = {"paragraphs": "paragraphs", "drop, rare": "rare_mean", "drop, common": "common_mean"}
    emit(run(settings, work), selection, columns | {"difference": "difference", "95 % interval": "interval"})


def whole_set(answer: Any, about: dict[str, Any]) -> dict[str, Any]:
    """A set's answer as plain JSON values, under the result's own field names."""
    return dict(codec.to_json({**about, **vars(answer.result), "provenance": answer.provenance}))


def parse_head(text: str) -> tuple[int, int]:
    """(layer, head) of "L1H2"; raises UsageError."""
    if match := re.fullmatch(r"[Ll](\d+)[Hh](\d+)", text):
        return int(match[1]), int(match[2])
    raise UsageError(f"{text!r} is no head; write L1H2 for head 2 of layer 1, both from 0.")


def check_head(asker: Asker, layer: int, head: int) -> None:
    """Raise UsageError where the model has no such head."""
    model = asker.session.model
    assert model is not None
    if layer >= model.layers or head >= model.heads:
        raise UsageError(
            f"{model.name} has no head L{layer}H{head}: its layers are 0..{model.layers - 1}, "
            f"its heads 0..{model.heads - 1}."
        )


def check_replacements(positions: tuple[int, ...], texts: tuple[str, ...], token_ids: Tokens) -> None:
    """Raise UsageError unless every position has one token."""
    if texts and token_ids:
        raise UsageError("Give --token or --token-id, not both.")
    given = len(texts or token_ids)
    if given != len(positions):
        raise UsageError(f"Each --position needs one --token or --token-id; there are {len(positions)} and {given}.")
    if len(set(positions)) != len(positions):
        raise UsageError("A position can hold only one replacement.")


def replacements_of(
    catalogue: Catalogue, positions: tuple[int, ...], texts: tuple[str, ...], token_ids: Tokens
) -> tuple[tuple[int, int], ...]:
    """((position, token), ...) in order of position."""
    tokens = token_ids or tuple(token_of(catalogue, text) for text in texts)
    return tuple(sorted(zip(positions, tokens, strict=True)))


def token_of(catalogue: Catalogue, text: str) -> int:
    """The token whose text is exactly this; raises UsageError with the nearest ones where there is none."""
    wanted = text.encode(errors="surrogateescape")  # a token may be bytes that are no UTF-8, and so may an argument
    for token, piece in enumerate(catalogue.pieces):
        if piece == wanted:
            return token
    near = [piece_text(p, i) for i, p in enumerate(catalogue.pieces) if wanted.strip() and p.strip() == wanted.strip()]
    near += [piece_text(p, i) for i, p in enumerate(catalogue.pieces) if wanted.strip() and wanted.strip() in p][:5]
    hint = f" There are {', '.join(map(repr, dict.fromkeys(near)))}." if near else ""
    raise UsageError(f"{text!r} is no single token of this model.{hint}")


def shown(catalogue: Catalogue, row: int, position: int) -> str:
    """A token of a paragraph, fit for the screen."""
    token = int(catalogue.paragraphs.tokens[row, position])
    return piece_text(catalogue.pieces[token] if token < len(catalogue.pieces) else b"", token)


def _by(scores: Any) -> list[tuple[int, int]]:
    """(layer, head) of scores [layers, h], the lowest first."""
    heads = scores.shape[1]
    return [divmod(int(flat), heads) for flat in scores.argsort(axis=None, kind="stable")]


def _unravel(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    places = []
    for size in reversed(shape):
        flat, place = divmod(flat, size)
        places.append(place)
    return tuple(reversed(places))


def _effect(result: Any, cell: tuple[str, int, int]) -> float:
    """How far restoring a cell brings the NLL back, 0..1."""
    site, layer, place = cell
    return float(result.effects(site)[0, 0, layer, place if site == "heads" else place - result.first])


def _sign(rarity: Any) -> str:
    """What is said beside the head most drawn to rare tokens."""
    return "stands out" if rarity.stands_out else "strongest, but others overlap"
