"""`memloc-tui cache`: the results on disk, how many and how much."""

from __future__ import annotations

from contextlib import closing

import click

from memloc_cache.store import ResultCache
from memloc_core.errors import MemlocError
from memloc_tui.commands.console import print_json
from memloc_tui.settings import Settings


def stats(settings: Settings, as_json: bool) -> None:
    """The state of the result cache."""
    with closing(ResultCache(settings.cache_dir)) as cache:
        stats = cache.stats()
    if as_json:
        print_json({**vars(stats), "folder": str(stats.folder)})
    else:
        click.echo(f"folder   {stats.folder}")
        click.echo(f"results  {stats.entries:,}")
        click.echo(f"size     {stats.bytes / 2**20:,.1f} of {stats.size_limit / 2**20:,.0f} MB")
    if stats.problem:
        raise MemlocError(stats.problem)


def clear(settings: Settings) -> None:
    """Remove every result."""
    with closing(ResultCache(settings.cache_dir)) as cache:
        removed = cache.clear()
        if problem := cache.stats().problem:
            raise MemlocError(problem)
    click.echo(f"{removed:,} results removed from {cache.folder}")


def limit(settings: Settings, megabytes: int) -> None:
    """Set the size limit and go down to it."""
    with closing(ResultCache(settings.cache_dir)) as cache:
        cache.set_size_limit(megabytes * 2**20)
        stats = cache.stats()
        if stats.problem:
            raise MemlocError(stats.problem)
    click.echo(f"At most {megabytes:,} MB are kept in {cache.folder}; now {stats.bytes / 2**20:,.1f} MB.")
