"""Activation patching between a paragraph and its perturbed twin, exact, and as a linear estimate.

A run is "clean" (row 0) or "perturbed" (row 1). Direction d patches row d's activations into the other row's run: 0
restores the perturbed run, 1 breaks the clean one. Both are the same paragraph before the first perturbed position, and
so are their activations: nothing there is patched, and nothing there is computed again.

Letters in shapes: t tokens that are input (the last one never is), c continuation positions, w width, h heads.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memloc_core.analyses.perturbation import _check, _reference_rows
from memloc_core.architectures import Architecture, Hook, Site
from memloc_core.devices import PeakMemory
from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import (
    PATCH_SITES,
    ActivationPatching,
    AttributionPatching,
    PatchScores,
    PatchSite,
    Progress,
)

_HOOK_SITES: dict[PatchSite, Site] = {"residual": "residual", "heads": "z", "mlp": "mlp"}


@dataclass(frozen=True)
class _Twins:
    """The two rows, and what both runs gave."""

    rows: Tensor  # [2, length], on the model's device as all that follows
    first: int
    prefix_length: int
    activations: dict[PatchSite, list[Tensor]]  # per layer [2, t, w], for heads [2, t, h * head_dim]
    token_nll: Tensor  # [2, c]
    metrics: Tensor  # [2 rows, 2 metrics]
    changed: int  # where the runs' argmax first differs, among the c
    changes: bool
    token: int  # what the clean run says there


@dataclass(frozen=True)
class _Cell:
    """One patch. `group` is the position from which the runs are computed: the cell's own or a little before."""

    group: int
    layer: int
    site: PatchSite
    place: int  # position or head
    direction: int


def run_attribution(lm: LanguageModel, request: AttributionPatching) -> Generator[Progress, None, PatchScores]:
    """Every cell by (twin's activation - own) . gradient, both directions at once."""
    rows, first = _rows(lm, request)
    p, peak = request.prefix_length, PeakMemory(lm.device)
    architecture = lm.architecture("Activation patching")
    activations: dict[PatchSite, list[Tensor]] = {site: [] for site in PATCH_SITES}
    with peak.step(2 * lm.row_bytes(rows.shape[1], backward=True)), torch.enable_grad():
        with architecture.hooked(("residual", 0, lambda x: x.requires_grad_()), *_keeping(lm, activations)):
            hidden = lm.hidden(rows[:, :-1])[:, p - 1 :]
        logits = lm.logits(hidden)
        token_nll = F.cross_entropy(logits.mT, rows[:, p:].to(lm.device), reduction="none")
        lm.refuse_no_numbers(token_nll.detach())
        twins = _twins(rows, first, p, activations, token_nll.detach(), logits.argmax(-1))
        logit = logits[:, twins.changed, twins.token]
        twins.metrics[:, 1] = logit.detach()
        flat = [x for site in PATCH_SITES for x in activations[site]]
        gradients = [torch.autograd.grad(m, flat, retain_graph=True) for m in (token_nll.mean(-1).sum(), logit.sum())]
        values = _empty(lm, twins, lm.device)
        for metric in (0, 1):
            for i, (x, gradient) in enumerate(zip(flat, gradients[metric], strict=True)):
                site, layer = PATCH_SITES[i // lm.info.layers], i % lm.info.layers
                wide = x.detach()[:, first:].to(twins.metrics.dtype)  # [2, t - first, w]
                gain = (wide.flip(0) - wide) * gradient[:, first:]
                by_place = architecture.by_head(gain).sum((1, 3)) if site == "heads" else gain.sum(-1)
                # Direction d runs in the other row.
                values[site][:, metric, layer] = (twins.metrics[:, metric, None] + by_place).flip(0)
    yield Progress(1, 1, "passes")
    cells = sum(2 * x[0, 0].numel() for x in values.values())
    values = {site: x.cpu() for site, x in values.items()}
    return _result(twins, values, exact=False, cells=cells, forwards=1, peak_bytes=peak.bytes)


def run(lm: LanguageModel, request: ActivationPatching) -> Generator[Progress, None, PatchScores]:
    """Cells of the same layer and of near positions are rows of one batch, which enters the model at that layer with
    the keys and values of all positions before."""
    rows, first = _rows(lm, request)
    p, length, peak = request.prefix_length, rows.shape[1], PeakMemory(lm.device)
    architecture = lm.architecture("Activation patching")
    activations: dict[PatchSite, list[Tensor]] = {site: [] for site in PATCH_SITES}

    with peak.step(2 * lm.row_bytes(length)), torch.inference_mode():
        with architecture.hooked(*_keeping(lm, activations)):
            hidden = lm.hidden(rows[:, :-1])[:, p - 1 :]
        scores = lm.token_scores(hidden, rows[:, p:])
        lm.refuse_no_numbers(scores.nll)
        twins = _twins(rows, first, p, activations, scores.nll, scores.predicted)
        twins.metrics[:, 1] = lm.logits(hidden[:, twins.changed])[:, twins.token]
    peak.held = sum(x.nbytes for kept in activations.values() for x in kept)
    values = _empty(lm, twins)
    cells = list(_cells(lm, request, first, length - 1))
    forwards, done = 1, 0
    cache, cached = (lm.new_cache() if lm.reuses(length) else None), 0

    def so_far() -> PatchScores:
        copies = {site: x.clone() for site, x in values.items()}
        return _result(twins, copies, exact=True, cells=done, forwards=forwards, peak_bytes=peak.bytes)

    def score(batch: list[_Cell], start: int, stop: int) -> None:
        nonlocal forwards
        part = batch[start:stop]
        with torch.inference_mode():
            scored = _patched(lm, architecture, twins, part, cache, cached)
        for cell, of_cell in zip(part, scored.cpu(), strict=True):
            place = cell.place if cell.site == "heads" else cell.place - first
            values[cell.site][cell.direction, :, cell.layer, place] = of_cell
        forwards += 1

    needed, same, metrics = [], _same(twins, architecture), twins.metrics.cpu()
    for cell in cells:
        if same[cell.site][cell.layer, cell.place]:  # as below the first layer that the perturbation reaches
            place = cell.place if cell.site == "heads" else cell.place - first
            values[cell.site][cell.direction, :, cell.layer, place] = metrics[1 - cell.direction]
            done += 1
        else:
            needed.append(cell)
    for batch in _batches(needed, 16 if lm.device.type == "cpu" else 64):
        start = batch[0].group
        if cache is not None and start > cached:
            with torch.inference_mode():
                lm.hidden(rows[:, cached:start], cache)
            forwards, cached = forwards + 1, start
        before = done
        for scored in lm.in_batches(partial(score, batch), len(batch), length, peak=peak):
            done = before + scored
            yield Progress(done, len(cells), "patches", partial=so_far())
    return so_far()


def _rows(lm: LanguageModel, request: ActivationPatching | AttributionPatching) -> tuple[Tensor, int]:
    """The clean and the perturbed row [2, length], and the first position where they differ."""
    _check(lm, request.paragraph, request.prefix_length)
    for position, token in request.replacements:
        if not 0 <= position < request.prefix_length:
            raise UsageError(f"Position {position} is outside the prefix, 0..{request.prefix_length - 1}.")
        lm.check_tokens((token,), len(request.paragraph))
    with torch.inference_mode():
        row, own = torch.tensor([request.paragraph]), [request.reference == "own"]
        (clean,) = _reference_rows(lm, row, request.prefix_length, own)
    clean = clean.clone()  # greedy decoding gives inference tensors
    perturbed = clean.clone()
    for position, token in request.replacements:
        perturbed[position] = token
    if torch.equal(clean, perturbed):
        raise UsageError("Patching needs a perturbed twin: replace at least one token of the prefix by another.")
    return torch.stack([clean, perturbed]).to(lm.device), int((clean != perturbed).nonzero()[0])


def _keeping(lm: LanguageModel, activations: dict[PatchSite, list[Tensor]]) -> list[tuple[Site, int, Hook]]:
    """Hooks that keep what enters each layer, its heads' z and what its MLP writes."""
    return [
        (_HOOK_SITES[site], layer, kept.append) for layer in range(lm.info.layers) for site, kept in activations.items()
    ]


def _twins(
    rows: Tensor,
    first: int,
    prefix_length: int,
    activations: dict[PatchSite, list[Tensor]],
    token_nll: Tensor,
    predicted: Tensor,
) -> _Twins:
    """What both runs gave; the logit metric is still to be filled in."""
    differs = (predicted[0] != predicted[1]).nonzero()
    changed = int(differs[0]) if len(differs) else int((token_nll[1] - token_nll[0]).argmax())
    metrics = torch.stack([token_nll.mean(-1), torch.zeros_like(token_nll[:, 0])], -1)
    token = int(predicted[0, changed])
    return _Twins(rows, first, prefix_length, activations, token_nll, metrics, changed, bool(len(differs)), token)


def _cells(lm: LanguageModel, request: ActivationPatching, first: int, end: int) -> Iterator[_Cell]:
    """Every cell that is asked for, in both directions, ordered by position group and layer."""
    # The groups of the sweep: on a CPU ten positions fill the cores, a GPU wants more rows.
    size = 10 if lm.device.type == "cpu" else 25
    wanted: list[tuple[PatchSite, int, int]] = list(request.cells)
    for site, layer, place in wanted:
        if site not in PATCH_SITES:
            raise UsageError(f"{site!r} cannot be patched; give one of {', '.join(PATCH_SITES)}.")
        if not 0 <= layer < lm.info.layers:
            raise UsageError(f"There is no layer {layer}: {lm.info.name} has layers 0..{lm.info.layers - 1}.")
        if site == "heads":
            lm.check_head(layer, place)
        if site != "heads" and not first <= place < end:
            raise UsageError(
                f"Position {place} cannot be patched: the runs differ from {first} to {end - 1}, where the input ends."
            )
    if not wanted:
        places = {"residual": range(first, end), "heads": range(lm.info.heads), "mlp": range(first, end)}
        wanted = [(s, layer, place) for s in PATCH_SITES for layer in range(lm.info.layers) for place in places[s]]
    cells = []
    for site, layer, place in wanted:
        group = 0 if site == "heads" else (place - first) // size
        cells += [_Cell(first + group * size, layer, site, place, direction) for direction in (0, 1)]
    return iter(sorted(cells, key=lambda cell: (cell.group, cell.layer)))


def _same(twins: _Twins, architecture: Architecture) -> dict[PatchSite, Any]:
    """Where an activation is the same in both runs, so that a patch changes nothing: bool [layers, t or h]."""

    def by_place(site: PatchSite, x: Tensor) -> Tensor:
        same = x[0] == x[1]
        return architecture.by_head(same).all(-1).all(0) if site == "heads" else same.all(-1)

    kept = twins.activations.items()
    return {site: torch.stack([by_place(site, x) for x in by_layer]).cpu().numpy() for site, by_layer in kept}


def _batches(cells: list[_Cell], fill: int) -> Iterator[list[_Cell]]:
    """Cells in batches that end with a layer or a position group, but not before there are `fill` of them."""
    batch: list[_Cell] = []
    for cell in cells:
        if len(batch) >= fill and (cell.group, cell.layer) != (batch[-1].group, batch[-1].layer):
            yield batch
            batch = []
        batch.append(cell)
    if batch:
        yield batch


def _patched(
    lm: LanguageModel, architecture: Architecture, twins: _Twins, cells: list[_Cell], cache: Any, cached: int
) -> Tensor:
    """NLL and logit [n, 2] of n runs with one patch each, computed from position `cached` and the lowest layer on."""
    layer = min(cell.layer for cell in cells)
    by_hook: dict[tuple[PatchSite, int], list[int]] = {}
    for row, cell in enumerate(cells):
        by_hook.setdefault((cell.site, cell.layer), []).append(row)

    # In one copy: a GPU waits for each.
    order = [row for rows in by_hook.values() for row in rows]
    numbers = [[cell.place for cell in cells], [cell.direction for cell in cells], order]
    place, direction, rows_by_hook = torch.tensor(numbers).to(lm.device)
    base = 1 - direction

    def patch(site: PatchSite, layer: int, row: Tensor) -> Hook:
        source, at, of = twins.activations[site][layer], place[row], direction[row]

        def hook(x: Tensor) -> Tensor:
            x = x.clone()
            if site == "heads":
                z, start = architecture.by_head(x), max(twins.first, cached)
                z[row, start - cached :, at] = architecture.by_head(source)[of, start:, at]
            else:
                x[row, at - cached] = source[of, at]
            return x

        return hook

    twin = None
    if cached:
        twin = lm.selected(cache, base)
    pieces = rows_by_hook.split([len(rows) for rows in by_hook.values()])
    hooks: list[tuple[Site, int, Hook]] = [
        (_HOOK_SITES[site], at, patch(site, at, row)) for (site, at), row in zip(by_hook, pieces, strict=True)
    ]
    with architecture.resumed(layer, twins.activations["residual"][layer][base, cached:]), architecture.hooked(*hooks):
        hidden = lm.hidden(twins.rows[base, cached:-1], twin)
    # What was predicted before `cached` is as it was in the run that is patched.
    nll, logit = twins.token_nll[base], twins.metrics[base, 1]
    c = nll.shape[1]
    computed = min(c, hidden.shape[1])
    nll[:, c - computed :] = lm.token_scores(hidden[:, -computed:], twins.rows[base, -computed:]).nll
    if twins.changed >= c - computed:
        logit = lm.logits(hidden[:, twins.changed - c])[:, twins.token]
    return torch.stack([nll.mean(-1), logit], -1)


def _empty(lm: LanguageModel, twins: _Twins, device: torch.device | None = None) -> dict[PatchSite, Tensor]:
    places = twins.rows.shape[1] - 1 - twins.first
    sizes: dict[PatchSite, int] = {"residual": places, "heads": lm.info.heads, "mlp": places}
    return {site: torch.full((2, 2, lm.info.layers, size), torch.nan, device=device) for site, size in sizes.items()}


def _result(
    twins: _Twins, values: dict[PatchSite, Tensor], *, exact: bool, cells: int, forwards: int, peak_bytes: int
) -> PatchScores:
    clean, perturbed = twins.metrics.float().cpu().numpy()
    return PatchScores(
        reference=twins.rows[0, twins.prefix_length :].cpu().numpy(),
        first=twins.first,
        changed=twins.changed,
        changes=twins.changes,
        clean=clean,
        perturbed=perturbed,
        residual=values["residual"].numpy(),
        heads=values["heads"].numpy(),
        mlp=values["mlp"].numpy(),
        exact=exact,
        cells=cells,
        forwards=forwards,
        peak_bytes=peak_bytes,
    )
