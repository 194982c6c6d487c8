"""What each command asks and prints."""

from __future__ import annotations

import sys
import time
from importlib import metadata
from typing import Any

import click
from rich.text import Text

from memloc_core.codec import to_json
from memloc_core.errors import MemlocError
from memloc_tui.catalogue import CHUNK
from memloc_tui.console import Asker, Out, print_json, run, table_of
from memloc_tui.glyphs import visible
from memloc_tui.settings import Settings

_TEXT_WIDTH = 60


def list_paragraphs(settings: Settings, as_json: bool) -> None:
    """Every paragraph with its scores, in the file's order."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue, paragraphs = asker.catalogue, asker.catalogue.paragraphs
        await asker.score(range(len(catalogue)))
        return [
            {
                "id": paragraphs.ids[row],
                "em": int(catalogue.em[row]),
                "nll": float(f"{catalogue.nll[row]:.6g}"),
                "margin": float(f"{catalogue.margin[row]:.6g}"),
                "count": _known(paragraphs.repetitions[row]),
                "genre": paragraphs.genre[row],
                "family": _known(paragraphs.family[row]),
                "split": paragraphs.split[row],
                "text": catalogue.text(row),
            }
            for row in range(len(catalogue))
        ]

    records = run(settings, work)
    if as_json:
        print_json(to_json(records))
        return
    table = table_of("id", "EM", "NLL", "margin", "count", left=("genre", "text"))
    for line in records:
        count = "–" if line["count"] is None else str(line["count"])
        numbers = (str(line["em"]), f"{line['nll']:.3f}", f"{line['margin']:.2g}", count)
        text = Text(visible(line["text"][:_TEXT_WIDTH]), no_wrap=True, overflow="ellipsis")
        table.add_row(line["id"], *map(Text, numbers), Text(visible(line["genre"])), text)
    Out().print(table)


def cache_stats(settings: Settings, as_json: bool) -> None:
    """The state of the result cache."""
    with _cache(settings) as cache:
        stats = cache.stats()
    if as_json:
        print_json({**vars(stats), "folder": str(stats.folder)})
    else:
        click.echo(f"folder   {stats.folder}")
        click.echo(f"results  {stats.entries:,}")
        click.echo(f"size     {stats.bytes / 2**20:,.1f} of {stats.size_limit / 2**20:,.0f} MB")
    if stats.problem:
        raise MemlocError(stats.problem)


def cache_clear(settings: Settings) -> None:
    """Remove every result."""
    with _cache(settings) as cache:
        removed = cache.clear()
        if problem := cache.stats().problem:
            raise MemlocError(problem)
    click.echo(f"{removed:,} results removed from {cache.folder}")


def cache_limit(settings: Settings, megabytes: int) -> None:
    """Set the size limit and go down to it."""
    with _cache(settings) as cache:
        cache.set_size_limit(megabytes * 2**20)
        stats = cache.stats()
        if stats.problem:
            raise MemlocError(stats.problem)
    click.echo(f"At most {megabytes:,} MB are kept in {cache.folder}; now {stats.bytes / 2**20:,.1f} MB.")


def doctor(settings: Settings) -> int:
    """Check what the explorer needs, one line each; 0 if all of it works, else 1."""
    console = Out()
    bad = 0

    def said(what: str, text: str, ok: bool = True) -> None:
        nonlocal bad
        bad += not ok
        console.print(
            Text.assemble(("ok   " if ok else "FAIL ", "green" if ok else "bold red"), f"{what:<13}", visible(text))
        )

    said("python", sys.version.split()[0])
    for name in ("memloc-tui", "torch", "transformers", "datasets", "textual", "rich", "diskcache"):
        try:
            said(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            said(name, "is not installed", ok=False)
    size = f"{console.width} x {console.height}, {console.color_system or 'no'} colours"
    said("terminal", size if console.is_terminal else "none here; the explorer needs one, the other commands do not")
    if settings.use_cache:
        with _cache(settings) as cache:
            stats = cache.stats()
        said("cache", stats.problem or f"{stats.entries:,} results in {stats.folder}", ok=not stats.problem)
    started = time.perf_counter()

    async def work(asker: Asker) -> tuple[Any, float, int, int]:
        opened = time.perf_counter() - started
        await asker.score(range(min(CHUNK, len(asker.catalogue))))
        em = asker.catalogue.em
        return asker.session.model, opened, int((em >= 0).sum()), int((em == asker.catalogue.length).sum())

    try:
        model, seconds, scored, memorized = run(settings, work)
    except MemlocError as error:
        said("engine", str(error), ok=False)
        return 1
    said("engine", f"up and {model.name} open in {seconds:.1f} s")
    said("model", f"{model.architecture}, {model.parameters:,} weights, {model.device}, {model.dtype}")
    said("analysis", f"{memorized} of the first {scored} paragraphs are recited to the end")
    return min(bad, 1)


def _cache(settings: Settings) -> Any:
    from contextlib import closing

    from memloc_cache.store import ResultCache

    return closing(ResultCache(settings.cache_dir))


def _known(value: Any) -> int | None:
    return None if value < 0 else int(value)
