"""How a command asks and answers: progress on stderr, tables or JSON on stdout, files whole or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from memloc_core import codec
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import Answer, Request, Tokens
from memloc_tui.catalogue import CHUNK, Catalogue
from memloc_tui.files import check_can_be_written, write_whole
from memloc_tui.glyphs import escaped, visible
from memloc_tui.session import Session
from memloc_tui.settings import Settings

T = TypeVar("T")
WHOLE_SET = "set"  # the id of a record that is about all selected paragraphs together


@dataclass(frozen=True)
class Selection:
    """Which paragraphs a command is about, and in which form it answers."""

    ids: tuple[str, ...]
    stratum: str | None  # "memorized", "non-memorized", "all", or None where ids are given
    limit: int | None
    as_json: bool
    out: Path | None

    def __post_init__(self) -> None:
        """Raises UsageError for what can be told before anything is computed."""
        if self.stratum and self.ids:
            raise UsageError("Give --paragraph, or --set or --all, not both.")
        if not self.stratum and not self.ids:
            raise UsageError(
                "Which paragraphs? Give --paragraph ID (memloc-tui list shows the ids), --set memorized, "
                "--set non-memorized, or --all."
            )
        if self.limit is not None and not self.stratum:
            raise UsageError("--limit goes with --set or --all.")
        if self.out is not None:
            check_can_be_written(self.out)

    async def rows(self, asker: Asker) -> list[int]:
        """Row numbers in the file's order; raises UsageError for an id that no paragraph has, or several."""
        catalogue = asker.catalogue
        known = catalogue.paragraphs.ids
        if self.stratum == "all":
            return list(range(len(known)))[: self.limit]
        if self.stratum is not None:
            await asker.score(range(len(known)))
            if found := [r for r in range(len(known)) if catalogue.stratum_of(int(catalogue.em[r])) == self.stratum]:
                return found[: self.limit]
            raise UsageError(f"No paragraph of {catalogue.paragraphs.source} is {self.stratum}.")
        rows: list[int] = []
        for wanted in self.ids:
            # The same paragraph may stand in a file twice; its first row answers for it.
            begun = {known[row]: row for row in range(len(known) - 1, -1, -1) if known[row].startswith(wanted)}
            if len(begun) != 1:
                what = (
                    "No paragraph has an id that begins"
                    if not begun
                    else f"{len(begun)} paragraphs have ids that begin"
                )
                raise UsageError(f"{what} with {wanted!r}; memloc-tui list shows the ids.")
            rows.extend(begun.values())
        return rows

    async def distinct_rows(self, asker: Asker) -> list[int]:
        """`rows`, of a set only the first of each paragraph: what a scan found may stand in it many times."""
        if not self.stratum:
            return await self.rows(asker)
        rows = await replace(self, limit=None).rows(asker)
        first = {asker.catalogue.paragraphs.ids[row]: row for row in reversed(rows)}
        return sorted(first.values())[: self.limit]

    async def two_sets(self, asker: Asker, both: bool = True) -> tuple[tuple[Tokens, ...], tuple[Tokens, ...]]:
        """The selected memorized and non-memorized paragraphs, at most `limit` of each; `both` must be there."""
        catalogue = asker.catalogue
        rows = await replace(self, limit=None).rows(asker)
        await asker.score(rows)
        sets = []
        for stratum in ("memorized", "non-memorized"):
            found = [row for row in rows if catalogue.stratum_of(int(catalogue.em[row])) == stratum][: self.limit]
            if both and not found:
                raise UsageError(f"None of the {len(rows):,} selected paragraphs is {stratum}; both kinds are needed.")
            sets.append(tuple(catalogue.paragraphs.row(row) for row in found))
        return sets[0], sets[1]


class Asker:
    """A session for commands: the catalogue, and questions asked in turn under a progress bar."""

    def __init__(self, session: Session, progress: Progress) -> None:
        self.session = session
        self._progress = progress
        assert session.paragraphs is not None
        assert session.vocabulary is not None
        self.catalogue = Catalogue(session.paragraphs, session.vocabulary)

    async def ask(
        self, what: str, requests: Iterable[Request], heard: Callable[[Any], str | None] = lambda progress: None
    ) -> list[Answer[Any]]:
        """The answers in order; what is known already costs no question.

        `heard` gets the engine's progress on each, and may say in a few words what the bar shows.
        """
        wanted = list(requests)
        task = self._progress.add_task(what, total=len(wanted))
        answers: list[Answer[Any]] = []
        while (number := len(answers)) < len(wanted):
            some = wanted[number : number + self.session.together(wanted[number:])]

            def step(progress: Any, number: int = number, n: int = len(some)) -> None:
                said = heard(progress) or what
                done = number + n * progress.done / max(1, progress.total)
                self._progress.update(task, completed=done, description=said)

            answers += await self.session.ask_together(some, step)
            self._progress.update(task, completed=len(answers))
        self._progress.remove_task(task)
        return answers

    @contextmanager
    def bar(self, what: str) -> Iterator[Callable[[float], None]]:
        """A progress bar of one's own, moved by shares of 1."""
        task = self._progress.add_task(what, total=100)
        try:
            yield lambda share: self._progress.update(task, completed=100 * share)
        finally:
            self._progress.remove_task(task)

    def say(self, text: str) -> None:
        """A line on stderr, above the progress bar where there is one."""
        self._progress.console.print(Text(text), soft_wrap=True)

    async def score(self, rows: Iterable[int]) -> None:
        """Have the exact match of these rows in the catalogue, chunk by chunk as the explorer asks for it."""
        chunks = sorted({row // CHUNK for row in rows})
        answers = await self.ask("exact match", [self.catalogue.request(chunk) for chunk in chunks])
        for chunk, answer in zip(chunks, answers, strict=True):
            self.catalogue.learn(chunk, answer.result)


class Ending:
    """Ctrl-C and SIGTERM cancel a command's work; `code` is the exit code then, 128 and the signal's number."""

    def __init__(self) -> None:
        self.code = 128 + signal.SIGINT

    def watch(self) -> None:
        """From now on SIGTERM cancels the current task."""
        task = asyncio.current_task()
        assert task is not None

        def told() -> None:
            self.code = 128 + signal.SIGTERM
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told)


# How long the engine's threads spin at a barrier before they sleep. No key waits for its turn here, so longer than
# under the explorer (worker.py): findings took 72 s instead of 120 on two idle cores, and a sweep beside a busy
# program 8 s instead of 2.
_SPINCOUNT = "30000"


def run(settings: Settings, work: Callable[[Asker], Coroutine[Any, Any, T]]) -> T:
    """Open a session, do the work, close it. SIGTERM and Ctrl-C end the engine too. Raises MemlocError."""
    ending = Ending()
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINCOUNT)

    async def main() -> T:
        err = Console(stderr=True)
        ending.watch()
        session = Session(settings, on_notice=lambda text: err.print(Text(f"memloc-tui: {visible(text)}")))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        try:
            # Not a terminal: no bar, and no control codes in somebody's log.
            with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
                opening = progress.add_task("opening the model", total=None)
                await session.open(lazily=True)
                progress.remove_task(opening)
                while True:
                    model = session.model
                    result = await work(Asker(session, progress))
                    # Only a model known from an earlier visit can turn out to be another, and only once.
                    if model is not None and session.model is not None and model.identity == session.model.identity:
                        return result
        finally:
            await session.close()

    try:
        return asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("memloc-tui: stopped; what was finished is kept in the cache.", err=True)
        sys.exit(ending.code)


def record(catalogue: Catalogue, row: int, fields: dict[str, Any], answer: Answer[Any]) -> dict[str, Any]:
    """One paragraph's answer as plain JSON values: the result's own field names, and what reproduces it."""
    about = {"id": catalogue.paragraphs.ids[row], **fields}
    return dict(codec.to_json(about | {"provenance": answer.provenance}))


def emit(records: list[dict[str, Any]], selection: Selection, columns: dict[str, str], first: str = "id") -> None:
    """The records as JSON, as a file of JSON lines, or as a table of `columns` (heading -> field)."""
    if selection.out is not None:
        try:
            write_whole(selection.out, "".join(_json(line, "utf-8") + "\n" for line in records))
        except OSError as error:
            raise MemlocError(f"{selection.out} cannot be written: {error.strerror or error}.") from None
        click.echo(f"{len(records):,} line{'s' * (len(records) != 1)} written to {selection.out}", err=True)
    if selection.as_json:
        one = len(selection.ids) == 1 or [line["id"] for line in records] == [WHOLE_SET]
        print_json(records[0] if one else records)
    elif selection.out is None:
        table = table_of(first, *columns)
        for line in records:
            cells = (
                f"{value:.4g}" if isinstance(value := line[name], float) else str(value) for name in columns.values()
            )
            table.add_row(line["id"], *map(Text, cells))
        Out().print(table)


def table_of(*right: str, left: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A table with right-aligned columns, but for the first and those named in `left`, which stand last."""
    table = Table(title=Text(title, "bold") if title else None, title_justify="left")
    for number, heading in enumerate((*right, *left)):
        table.add_column(Text(heading), justify="left" if number == 0 or heading in left else "right")
    return table


class Out(Console):
    """stdout; a reader who has seen enough, such as `head`, is told to `cli` as click's echo does."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_json(value: Any) -> None:
    """One JSON document on stdout, where there is one: a shell's >&- leaves none."""
    click.echo(_json(value, getattr(sys.stdout, "encoding", None) or "ascii"))


def _json(value: Any, encoding: str) -> str:
    """One line of JSON that this encoding can write: text as it is, or escaped where it has no bytes for it."""
    text = escaped(json.dumps(value, ensure_ascii=False, allow_nan=False))
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return escaped(json.dumps(value, allow_nan=False))
    return text
