"""How often each fault is tried: a few times with all tests, as often as docs/faults.md says with `make faults`.

MEMLOC_FAULTS=full asks for the whole numbers, MEMLOC_FAULTS_SECONDS for a soak of another length than 30 minutes.
"""

from __future__ import annotations

import os

FULL = os.environ.get("MEMLOC_FAULTS") == "full"
SOAK = float(os.environ.get("MEMLOC_FAULTS_SECONDS") or (1800 if FULL else 8))


def rounds(few: int, full: int) -> int:
    """`full` under `make faults`, else `few`."""
    return full if FULL else few
