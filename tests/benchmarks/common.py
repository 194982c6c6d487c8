"""What the benchmarks share: the clock, the machine's description, and one JSON file per benchmark.

Speed is said as ratios within one run, because machines differ and are shared; every absolute figure stands beside
what it is compared with.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path("bench-results")


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(repeats: int, **works: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each work, taken in turn A B A B ..., so that a drift of the machine's speed meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return taken


def ratio(taken: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the pairs of a / b."""
    return statistics.median(x / y for x, y in zip(taken[a], taken[b], strict=True))


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("torch", "transformers", "textual")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def report(name: str, figures: dict[str, Any], goals: dict[str, tuple[str, float]]) -> None:
    """Print the figures and hold `goals` {figure: ("<=" or ">=", limit)} against them; keep them as JSON."""
    print(f"\n{name}")
    for key, value in figures.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        said = ""
        if key in goals:
            compare, limit = goals[key]
            met = value <= limit if compare == "<=" else value >= limit
            said = f"   goal {compare} {limit:g}: {'met' if met else 'NOT met'}"
        print(f"  {key:<46} {shown:>10}{said}")
    RESULTS.mkdir(exist_ok=True)
    record = {"benchmark": name, "figures": figures, "goals": goals, "machine": machine()}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
