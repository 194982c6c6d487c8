"""The console command. Alone it opens the explorer at once; the rest is `cli`'s, which takes longer to load."""

from __future__ import annotations

import os
import sys

from memloc_tui.settings import Settings

COMPLETE = "_MEMLOC_TUI_COMPLETE"  # set by the shell while it completes a command


def main() -> None:
    """`memloc-tui`."""
    if len(sys.argv) == 1 and has_terminal() and COMPLETE not in os.environ:
        explore(Settings())
    else:
        from memloc_tui.cli import main as command_line

        command_line()


def has_terminal() -> bool:
    """Whether there is a person to explore for."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def explore(settings: Settings, theme: str | None = None, mouse: bool = True) -> None:
    """Open the explorer, and end the process with its exit code when it is left."""
    from memloc_tui.app import MemlocApp

    app = MemlocApp(settings, theme=theme)
    app.run(mouse=mouse)
    sys.exit(app.return_code or 0)
