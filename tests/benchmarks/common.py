"""What the benchmarks share: the clock, models of any shape, the machine's description, and the record of a run.

Speed is said as ratios within one run, because machines differ and are shared; every absolute figure stands beside
what it is compared with.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path("bench-results")
RECORDS = "MEMLOC_BENCH_RECORDS"  # names the file to which `report` adds one line of JSON, for the table of a whole run
DEVICES = "MEMLOC_BENCH_DEVICES"  # the only ones to measure: "cuda:0", or "cpu,cuda:0"


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """How long the work takes; on a GPU between two of its own events, from an idle device until all is done there."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def paired(repeats: int, device: str = "cpu", **works: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each work, taken in turn A B A B ..., so that a drift of the machine's speed meets all of them.

    On a GPU each work runs once before, untimed: kernels are chosen and memory is taken on the first call.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    if device != "cpu":
        for work in works.values():
            work()
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work, device))
    return taken


def ratio(taken: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the pairs of a / b."""
    return statistics.median(x / y for x, y in zip(taken[a], taken[b], strict=True))


def peak_bytes(work: Callable[[], Any], device: str = "cpu") -> int:
    """An upper bound of what torch's tensors and Python's and numpy's objects, made while it runs, hold together: the
    most of the one plus the most of the other, which may be held at different moments. On a GPU what its tensors hold
    there."""
    import numpy as np
    import torch

    if device != "cpu":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        tracemalloc.start()
        work()
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    held = np.cumsum([0, *(event.nbytes() for event in changes)])
    return python + int(held.max())


def finish(steps: Any) -> Any:
    """All steps of an analysis, and its result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def devices() -> list[str]:
    """The processor, and the first GPU where there is one, or those that MEMLOC_BENCH_DEVICES names; fp32 there means
    fp32, not TF32."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if wanted := os.environ.get(DEVICES):
        return wanted.split(",")
    return ["cpu", "cuda:0"] if torch.cuda.is_available() else ["cpu"]


def random_model(dtype: str = "float32", device: str = "cpu", **shape: Any) -> Any:
    """A GPT-Neo with random weights, seed 0, as the engine loads it from a folder; by default of 125M's shape."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, logging

    from memloc_core import loading
    from memloc_core.requests import OpenModel

    whole = {"hidden_size": 768, "num_layers": 12, "num_heads": 12} | shape
    whole["attention_types"] = [[["global", "local"], whole["num_layers"] // 2]]
    torch.manual_seed(0)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        GPTNeoForCausalLM(GPTNeoConfig(**whole)).save_pretrained(folder)
        return loading.load(OpenModel(folder, dtype, device))


def machine() -> dict[str, Any]:
    """What the figures were taken on: processor, cores, memory, GPUs, versions."""
    from importlib.metadata import version

    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory, GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "GPU": [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus] or "none",
        "CUDA": torch.version.cuda or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "textual", "numpy", "memloc-tui")},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def verdict(value: Any, goal: tuple[str, float]) -> str:
    """Whether a figure meets its goal; one that is no number has not been shown to."""
    compare, limit = goal
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "missed"
    return "met" if (value <= limit if compare == "<=" else value >= limit) else "missed"


def said(value: Any) -> str:
    """A figure in print."""
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "none"
    return str(value)


def report(
    name: str, figures: dict[str, Any], goals: dict[str, tuple[str, float]], *, seeds: dict[str, int] | None = None
) -> None:
    """Print the figures, hold `goals` {figure: ("<=" or ">=", limit)} against them, and keep them as JSON.

    `seeds`: what was drawn from which, by default everything from 0. A goal whose figure is missing counts as missed.
    """
    print(f"\n{name}")
    for key in [*figures, *(key for key in goals if key not in figures)]:
        value = figures.get(key, math.nan)
        goal = f"   goal {goals[key][0]} {goals[key][1]:g}: {verdict(value, goals[key])}" if key in goals else ""
        print(f"  {key:<66} {said(value):>10}{goal}", flush=True)
    record = {
        "benchmark": name,
        "figures": {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in figures.items()},
        "goals": {key: [*goal, verdict(figures.get(key), goal)] for key, goal in goals.items()},
        "seeds": seeds if seeds is not None else {"all": 0},
        "load": [round(x, 2) for x in os.getloadavg()],
    }
    RESULTS.mkdir(exist_ok=True)
    file_name = "".join(c if c.isalnum() or c in " .,-_=" else "-" for c in name)
    (RESULTS / f"{file_name}.json").write_text(json.dumps(record | {"machine": machine()}, indent=1) + "\n")
    if whole_run := os.environ.get(RECORDS):
        with open(whole_run, "a") as file:
            file.write(json.dumps(record) + "\n")
