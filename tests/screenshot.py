"""The README's picture, made by the program itself: `python -m tests.screenshot docs/explorer.svg`."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings


async def take(path: Path) -> None:
    """The first recited paragraph after a sweep, with its most damaging token replaced."""
    app = MemlocApp(Settings())
    async with app.run_test(size=(120, 36)) as pilot:

        async def until_ready() -> None:
            for _ in range(1200):
                await pilot.pause(0.1)
                study = app.explorer.study
                answered = study is not None and study.score is not None and not study.asking
                if answered and study.catalogue.known == len(study.catalogue):
                    return
            raise SystemExit("the explorer did not become ready")

        await until_ready()
        await pilot.press("w")
        await pilot.pause(2)
        await pilot.press("4", "tab", "enter")  # the first row of the sweep's list
        await pilot.pause(1)
        await until_ready()
        app.save_screenshot(path.name, str(path.parent))
        await app.session.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MEMLOC_STATE_DIR": folder, "MEMLOC_CACHE_DIR": folder}
        target = Path(sys.argv[1])
        target.parent.mkdir(parents=True, exist_ok=True)
        asyncio.run(take(target))
