"""What `memloc-tui unlearn` asks, keeps and prints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import monotonic
from typing import Any

import click
import numpy as np
from rich.text import Text

from memloc_core import edit_files
from memloc_core.codec import to_json
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import GROUPS, Answer, Edited, Remains, SparseEdit, Tokens, Unlearn, Unlearning
from memloc_tui import edits
from memloc_tui.catalogue import Catalogue
from memloc_tui.commands.analyze import token_of
from memloc_tui.commands.console import Asker, Out, Selection, print_json, run, table_of
from memloc_tui.figures import figure
from memloc_tui.glyphs import visible
from memloc_tui.samples import DRAWN_FROM
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from memloc_tui.unlearning import (
    PAPERS_OWN,
    UnlearnOptions,
    judged,
    kept_so_far,
    perturbed_alternative,
    plan,
    remains,
    typed_alternative,
    worst_alternative,
)

SAVE_EVERY = 1.0  # seconds between two savings of a run's best step
_ROWS_SHOWN = 4  # paragraphs whose old and new text a table is followed by


@dataclass(frozen=True)
class Instead:
    """What the objective "edit" teaches: typed text, the text after replacements in the prefix, or else after the
    single replacement that costs the most exact match."""

    texts: tuple[str, ...] = ()
    replacements: tuple[tuple[int, str], ...] = ()

    def check(self, options: UnlearnOptions, paragraphs: int | None) -> None:
        """Raise UsageError for what can be told before anything is computed."""
        if options.objective != "edit" and (self.texts or self.replacements):
            raise UsageError("--alternative and --replace say what --objective edit teaches; give that, or neither.")
        if self.texts and self.replacements:
            raise UsageError("Give --alternative, or --replace, not both.")
        if len({position for position, _ in self.replacements}) < len(self.replacements):
            raise UsageError("A position can hold only one replacement.")
        if paragraphs is not None and len(self.texts) not in (0, 1, paragraphs):
            raise UsageError(
                f"{len(self.texts)} alternatives are given for {paragraphs} paragraphs; give one for each, in their "
                "order, or one for all."
            )

    async def paragraphs(self, asker: Asker, rows: Sequence[int], seed: int) -> tuple[Tokens, ...]:
        """The alternatives of these rows."""
        catalogue, ask, settings = asker.catalogue, asker.session.ask, asker.session.settings
        self.check(UnlearnOptions(objective="edit"), len(rows))
        if self.texts:
            texts = self.texts * (1 if len(self.texts) == len(rows) else len(rows))
            asked = zip(rows, texts, strict=True)
            where = (settings.model, settings.revision)
            return tuple([await typed_alternative(ask, catalogue, row, text, *where) for row, text in asked])
        if self.replacements:
            new = tuple((position, token_of(catalogue, text)) for position, text in self.replacements)
            return tuple([await perturbed_alternative(ask, catalogue, row, new) for row in rows])
        return tuple([await worst_alternative(ask, catalogue, row, seed) for row in rows])


def unlearn(settings: Settings, selection: Selection, options: UnlearnOptions, instead: Instead) -> None:
    """Change the selected paragraphs in one run, keep its edit, and say what it did and what is left."""
    instead.check(options, len(selection.ids) or None)
    if selection.out is not None:
        _check_out(selection.out, settings.edits)

    async def work(asker: Asker) -> Done:
        catalogue, session = asker.catalogue, asker.session
        rows = await selection.distinct_rows(asker)
        await asker.score([*range(min(DRAWN_FROM, len(catalogue))), *rows])
        alternatives = await instead.paragraphs(asker, rows, options.seed) if options.objective == "edit" else ()
        request = plan(catalogue, rows, options, alternatives)
        keeper = Keeper(request, session, selection.out)
        try:
            (answer,) = await asker.ask(options.objective, [request], keeper.heard)
        except (asyncio.CancelledError, MemlocError):
            keeper.stopped()
            raise
        stored = keeper.finished(answer)
        question = remains(catalogue, rows, options)
        (before,) = await asker.ask("what there was", [question])
        edit: SparseEdit = answer.result.edit
        on = [active for active in session.edits if active.on]
        names = (*(active.fingerprint for active in on), edit.fingerprint)
        files = (*(active.file for active in on), str(stored))
        (after,) = await asker.ask("what remains", [Edited(question, names, files)])
        return Done(request, answer, before.result, after.result, selection.out or stored, catalogue, rows)

    done = run(settings, work)
    if selection.as_json:
        print_json(done.record())
    else:
        done.print()


def _check_out(out: Path, stands_on: Sequence[str]) -> None:
    """Raise UsageError where a run's best step, again and again, must not take the place of what is in `out`."""
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is no file; --out of unlearn is replaced with each better step, so it has to be one.")
    if out.resolve() in map(edits.find, stands_on):
        raise UsageError(f"{out} is an edit that this run stands on, and would be lost; give another --out.")


@dataclass
class Keeper:
    """Keeps the best step of a run as it goes, in `out` or else in the store of edits; a file is whole or not there."""

    request: Unlearn
    session: Session
    out: Path | None
    latest: Unlearning | None = None
    kept: str = ""  # fingerprint of the edit that is in the file
    file: Path | None = None
    stored: edits.RunFile = field(default_factory=edits.RunFile)
    saved_at: float = field(default=-SAVE_EVERY)

    def heard(self, progress: Any) -> str | None:
        """One step more; what the bar shows of it."""
        result = progress.partial
        if not isinstance(result, Unlearning):
            return None
        self.latest = result
        if monotonic() - self.saved_at >= SAVE_EVERY:
            self.saved_at = monotonic()
            with contextlib.suppress(MemlocError):  # a full disk is told at the end, when it may be full no more
                self.save()
        taught = self.request.objective != "unlearn"
        em = result.taught_em[-1].mean() if taught else result.em[-1].mean()
        numbers = f"{'taught ' * taught}EM {figure(float(em))} · KL {figure(float(result.kl[-1]))}"
        return f"{self.request.objective} · {numbers}"

    def save(self) -> None:
        """Put the best step so far where it belongs; nothing before the first step that changed something."""
        result, model = self.latest, self.session.model
        if result is None or model is None or result.best == 0 or not _finite(result):
            return
        if result.edit.fingerprint == self.kept:
            return
        on = [edit.fingerprint for edit in self.session.edits if edit.on]
        answer = kept_so_far(self.request, result, model, on)
        if self.out is not None:
            edit_files.write_edit(self.out, answer)
            self.file = self.out
        else:
            self.file = self.stored.keep(answer)
        self.kept = result.edit.fingerprint

    def finished(self, answer: Answer[Any]) -> Path:
        """Keep the run's edit; where the store has it. Raises MemlocError for a run that came to nothing."""
        if answer.result.best == 0:
            raise MemlocError(f"Nothing was changed, and no edit is kept: {answer.result.reason}")
        if not _finite(answer.result):
            kept = f"An earlier step is in {self.file}" if self.file is not None else "No edit is kept"
            raise MemlocError(f"The run broke the model: its NLL is no number any more. {kept}; try a smaller --lr.")
        if self.out is not None:
            edit_files.write_edit(self.out, answer)
        return self.stored.finish(answer)

    def stopped(self) -> None:
        """Keep the best step of a run that ends here, and say where it is."""
        self.save()
        if self.file is not None and self.latest is not None:
            best = self.latest.best
            em = f"EM {figure(float(self.latest.em[0].mean()))} → {figure(float(self.latest.em[best].mean()))}"
            click.echo(f"memloc-tui: the best step so far, step {best} ({em}), is kept in {self.file}", err=True)


@dataclass(frozen=True)
class Done:
    """A run that has ended, and what is left of its paragraphs."""

    request: Unlearn
    answer: Answer[Any]
    before: Remains
    after: Remains
    file: Path
    catalogue: Catalogue
    rows: list[int]

    @property
    def result(self) -> Unlearning:
        result: Unlearning = self.answer.result
        return result

    def record(self) -> dict[str, Any]:
        """All of it under the fields' own names; of the edit, what names it: its weights are in the file."""
        edit = self.result.edit
        about: dict[str, Any] = {"ids": [self.catalogue.paragraphs.ids[row] for row in self.rows]}
        about |= {"file": str(self.file), "judged": judged(self.request, self.result)}
        about |= vars(self.result)
        about["edit"] = {"fingerprint": edit.fingerprint, "model": edit.model, "base": edit.base}
        about["edit"] |= {"on_top_of": edit.on_top_of, "parameters": edit.parameters, "weights": len(edit)}
        about |= {"groups": dict(zip(GROUPS, map(len, self._groups()), strict=True))}
        about |= {"remains": {"before": self.before, "after": self.after}}
        about |= {"old_text": self._texts(self.before), "new_text": self._texts(self.after)}
        unused = PAPERS_OWN if self.request.protocol == "paper" else ()
        names = [f.name for f in fields(UnlearnOptions) if hasattr(self.request, f.name) and f.name not in unused]
        options = {name: getattr(self.request, name) for name in names}
        return dict(to_json(about | {"options": options, "provenance": self.answer.provenance}))

    def print(self) -> None:
        """Tables and sentences for people."""
        out, result = Out(), self.result
        n, steps = len(self.rows), len(result.loss)
        for line in judged(self.request, result):
            out.print(Text(line))
        share = f"{result.changed:,} weights changed"
        way = "" if result.drawn_back == 1 else f", drawn back to {result.drawn_back:.0%} of the way"
        took = f"{steps} step{'s' * (steps != 1)}, {figure(self.answer.provenance.seconds)} s"
        out.print(Text(visible(f"{took}, {share}{way}. {result.reason}")))
        out.print(self._table(n))
        out.print(self._left(n))
        for place in range(min(n, _ROWS_SHOWN)):
            out.print(Text(self.catalogue.paragraphs.ids[self.rows[place]], "bold"))
            for name, of in (("before", self.before), ("after", self.after)):
                out.print(Text(f"  {name:7}") + Text(visible(self._texts(of)[place].strip())))
        if n > _ROWS_SHOWN:
            out.print(Text(f"and {n - _ROWS_SHOWN} more; --json has all of them"))
        name = self.result.edit.fingerprint[: edits.SHORT]
        out.print(Text(visible(f"Kept in {self.file}. --edit {name} asks the edited model, on any command but scan.")))

    def _table(self, n: int) -> Any:
        """Means before and after: of the paragraphs, then of each group that there is."""
        result, best = self.result, self.result.best
        table = table_of("before → after", "n", "EM", "longest run", "NLL (nats)", "same tokens", left=("",))
        curves = (result.em, result.longest_run, result.nll)
        table.add_row("changed", str(n), *(_arrow(curve[0].mean(), curve[best].mean()) for curve in curves), "", "")
        if self.request.objective == "edit":
            em, nll = (_arrow(curve[0].mean(), curve[best].mean()) for curve in (result.taught_em, result.taught_nll))
            table.add_row("taught", str(n), em, "", nll, "", "instead")
        for number, (group, rows) in enumerate(zip(GROUPS, self._groups(), strict=True)):
            if rows:
                em, nll = (_arrow(*of[:, number]) for of in (result.whole_em, result.whole_nll))
                same = f"{result.whole_agreement[1, number]:.1%}"
                table.add_row(group, str(len(rows)), em, "", nll, same, _GROUP_NAMES[group])
        return table

    def _left(self, n: int) -> Any:
        """What remains, before and after the edit."""
        table = table_of("what remains", "before", "after")

        def add(name: str, value: Any) -> None:
            table.add_row(Text(name), *(_number(float(value(r))) for r in (self.before, self.after)))

        worst = "" if n == 1 else ", largest"
        add(f"longest run under {len(self.after.variants)} prefixes{worst}", lambda r: r.extracted_most().max())
        add("similarity of greedy text" + worst, lambda r: (1 - r.edit_distance).max())
        add(f"paragraphs extracted at 0.75 similarity, of {n}", lambda r: r.extracted_at_75.sum())
        add("repetition in greedy text", lambda r: r.repetition.mean())
        if self.after.fresh_repetition.size:
            add("  the same after other prefixes", lambda r: r.fresh_repetition.mean())
        if len(self.after.relearned_em) > 1 and not self.before.not_relearned + self.after.not_relearned:
            steps = len(self.after.relearned_em) - 1
            add(f"EM while training {steps} steps on other text{worst}", lambda r: r.relearned_em[1:].max())
        add(f"EM after rounding to 8 bits{worst}", lambda r: r.eight_bit_em.max())
        return table

    def _groups(self) -> tuple[tuple[Tokens, ...], ...]:
        request = self.request
        return request.kept, request.held_out, request.others, request.family, request.general

    def _texts(self, of: Remains) -> list[str]:
        pieces = self.catalogue.pieces
        return [
            b"".join(pieces[token] for token in row if token < len(pieces)).decode("utf-8", "replace")
            for row in of.greedy.tolist()
        ]


_GROUP_NAMES = {
    "kept": "trained to stay",
    "held-out": "not recited",
    "others": "recited",
    "family": "recited siblings",
    "general": "not recited",
}


def _finite(result: Unlearning) -> bool:
    """Whether the step that would be kept still gives numbers: an EM of 0 by NaN is no success."""
    return bool(np.isfinite(result.nll[result.best]).all())


def _arrow(before: Any, after: Any) -> str:
    return f"{_number(float(before))} → {_number(float(after))}"


def _number(value: float) -> str:
    """A count as a whole number, anything else in two or three digits."""
    return str(int(value)) if value.is_integer() else figure(value)
