"""The first frame comes before everything that it does not need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numpy", "torch", "transformers", "datasets", "safetensors", "diskcache", "memloc_core.codec")


def test_importing_the_app_loads_nothing_heavy() -> None:
    code = f"import sys, memloc_tui.app; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_first_frame_needs_no_request_classes() -> None:
    late = ("memloc_core.requests", "memloc_tui.catalogue", "memloc_tui.widgets.chooser", "memloc_tui.screens.help")
    code = f"import sys, memloc_tui.app; print([m for m in {late!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
