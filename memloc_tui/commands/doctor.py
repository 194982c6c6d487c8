"""`memloc-tui doctor`: does everything here work that the explorer needs?"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from importlib import metadata
from typing import Any

from rich.text import Text

from memloc_core.errors import MemlocError
from memloc_tui.catalogue import CHUNK
from memloc_tui.commands.console import Asker, Out, run
from memloc_tui.glyphs import visible
from memloc_tui.settings import Settings


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
        from memloc_cache.store import ResultCache

        with closing(ResultCache(settings.cache_dir)) as cache:
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
