"""The console command. Alone it opens the explorer at once; the rest is `cli`'s, which takes longer to load."""

from __future__ import annotations

import gc
import os
import sys

from memloc_tui.config import Config, load

COMPLETE = "_MEMLOC_TUI_COMPLETE"  # set by the shell while it completes a command


def main() -> None:
    """`memloc-tui`."""
    if len(sys.argv) == 1 and has_terminal() and COMPLETE not in os.environ:
        explore(load())
    else:
        from memloc_tui.cli import main as command_line

        command_line()


def has_terminal() -> bool:
    """Whether there is a person to explore for: at a terminal, or in a browser, which Textual's driver serves."""
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))  # None: a shell's >&-
    return terminal or "WebDriver" in os.environ.get("TEXTUAL_DRIVER", "")


def explore(config: Config, tour: bool = False) -> None:
    """Open the explorer, with its tour if that is wanted, and end the process with its exit code when it is left."""
    gc.disable()  # until the first frame: a tenth of the way there would go into looking for garbage in new modules
    from memloc_tui.app import MemlocApp

    app = MemlocApp(config.settings, config=config, tour=tour)
    app.run(mouse=config.mouse)
    sys.exit(app.return_code or 0)
