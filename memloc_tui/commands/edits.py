"""What `memloc-tui edits` prints and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.text import Text

from memloc_core import edit_files
from memloc_core.codec import to_json
from memloc_core.requests import ExportCheckpoint, SparseEdit, Unlearn
from memloc_tui import edits, labels
from memloc_tui.commands.console import Asker, Out, print_json, run, table_of
from memloc_tui.glyphs import visible
from memloc_tui.settings import Settings


def list_edits(as_json: bool) -> None:
    """The store, the newest first."""
    kept = edits.stored()
    names = [labels.of(edit.summary.base, edit.path) if edit.summary is not None else "" for edit in kept]
    if as_json:
        print_json([_record(edit) | {"name": name} for edit, name in zip(kept, names, strict=True)])
        return
    if not kept:
        click.echo(f"No edits are kept in {edits.folder()} yet.")
        return
    named = ("name",) if any(names) else ()
    table = table_of("edit", "weights", "steps", "EM", "NLL", "KL", left=("model", "ended", *named))
    table.columns[0].no_wrap = True
    for edit, name in zip(kept, names, strict=True):
        own = [Text(visible(name))] if named else []
        if edit.summary is None:
            what = Text("damaged"), Text(visible(edit.problem))
            table.add_row(edit.path.stem[: edits.SHORT], *["–"] * 5, *what, *own)
            continue
        said = {what: _number(value) for what, value in edit.summary.metrics.items()}
        numbers = [said.get(what, "–") for what in ("weights", "steps")]
        numbers += [f"{said.get(f'{what}_before', '–')} → {said.get(what, '–')}" for what in ("em", "nll")]
        ended = Text(visible(str(edit.summary.metrics.get("stopped", ""))))
        model = Text(visible(edit.summary.model))
        table.add_row(edit.summary.fingerprint[: edits.SHORT], *numbers, said.get("kl", "–"), model, ended, *own)
    Out().print(table)


def show_edit(name: str, as_json: bool) -> None:
    """One edit, its parameters and its run."""
    path = edits.find(name)
    answer = edit_files.read_edit(path)
    edit: SparseEdit = answer.result.edit
    if as_json:
        about = {"fingerprint": edit.fingerprint, "file": str(path), "metrics": edit_files.metrics(answer.result)}
        print_json(to_json(about | {field: getattr(answer, field) for field in ("request", "result", "provenance")}))
        return
    request, run_ = answer.request, answer.result
    assert isinstance(request, Unlearn)
    out = Out()
    on = f", on top of {', '.join(f[: edits.SHORT] for f in edit.on_top_of)}" if edit.on_top_of else ""
    lines = [
        f"{edit.fingerprint}",
        f"of {edit.model} (weights {edit.base[: edits.SHORT]}){on}; {path}",
        f"{len(edit):,} weights in {len(edit.parameters)} matrices; {request.objective} {len(request.targets)} "
        f"paragraph{'s' * (len(request.targets) != 1)}, mask {request.mask} {request.place}".rstrip()
        + f", sparsity {request.sparsity:g}, goal {request.goal}, seed {request.seed}",
        f"best step {run_.best} of {len(run_.loss)}; {run_.reason}",
    ]
    for line in lines:
        out.print(Text(visible(line)))
    table = table_of("step", "EM", "longest run", "NLL (nats)", "KL (nats)")
    for step in dict.fromkeys((0, run_.best)):
        if step < len(run_.em):
            means = (float(np.mean(curve[step])) for curve in (run_.em, run_.longest_run, run_.nll, run_.kl))
            table.add_row(f"{step}", *(_number(value) for value in means))
    out.print(table)
    table = table_of("weights of", "changed", "largest change")
    for number, parameter in enumerate(edit.parameters):
        at = slice(int(edit.starts[number]), int(edit.starts[number + 1]))
        if at.stop > at.start:
            largest = float(np.abs(edit.new[at].astype(float) - edit.old[at]).max())
            differ = int((edit.new[at].view(np.int32) != edit.old[at].view(np.int32)).sum())
            table.add_row(Text(visible(parameter)), f"{differ:,}", _number(largest))
    out.print(table)


def export(settings: Settings, names: tuple[str, ...], folder: Path, as_json: bool) -> None:
    """A whole checkpoint of the edited model; nothing is left of one that was stopped."""
    folder = folder.expanduser().absolute()
    edit_files.check_new_folder(folder)
    for name in names:
        edits.open_edit(name)  # a damaged one is told before a model is loaded

    async def work(asker: Asker) -> Any:
        return (await asker.ask("checkpoint", [ExportCheckpoint(str(folder))]))[0]

    try:
        answer = run(replace(settings, edits=(*settings.edits, *names)), work)
    finally:
        edit_files.remove_unfinished(folder)
    if as_json:
        print_json(to_json({"folder": answer.result.folder, "bytes": answer.result.bytes} | _provenance(answer)))
    else:
        click.echo(f"{answer.result.bytes / 2**20:,.1f} MB written to {answer.result.folder}")


def remove_edit(name: str, as_json: bool) -> None:
    """Delete a stored edit."""
    path = edits.remove(name)
    if as_json:
        print_json({"removed": str(path)})
    else:
        click.echo(f"{path} removed")


def _record(edit: edits.StoredEdit) -> dict[str, Any]:
    if edit.summary is None:
        return {"file": str(edit.path), "problem": edit.problem}
    summary = edit.summary
    about = {"fingerprint": summary.fingerprint, "file": str(edit.path), "model": summary.model, "base": summary.base}
    return dict(to_json(about | {"metrics": summary.metrics}))


def _provenance(answer: Any) -> dict[str, Any]:
    return {"provenance": answer.provenance}


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
