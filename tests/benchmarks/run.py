"""Run every benchmark, or those whose names are given, each in a process of its own: `make bench`.

Writes two tables into bench-results/, anew after each benchmark, so that one which is stopped leaves what it has:
bench.json and bench.md. A benchmark that fails, and a goal that is missed, stand there as that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from memloc_tui.files import write_whole
from tests.benchmarks.common import RECORDS, RESULTS, machine, said

HERE = Path(__file__).parent


def main() -> int:
    names = [file.stem.removeprefix("bench_") for file in sorted(HERE.glob("bench_*.py"))]
    wanted = sys.argv[1:] or names
    if unknown := [name for name in wanted if name not in names]:
        print(f"There is no benchmark {unknown[0]!r}; there are {', '.join(names)}.", file=sys.stderr)
        return 2
    whole: dict[str, Any] = {"date": now(), "machine": machine(), "runs": []}
    for name in wanted:
        whole["runs"].append(run(name))
        whole["ended"] = now()
        RESULTS.mkdir(exist_ok=True)
        write_whole(RESULTS / "bench.json", json.dumps(whole, indent=1) + "\n")
        write_whole(RESULTS / "bench.md", markdown(whole))
    missed, failed = shortfall(whole)
    print(f"\n{len(missed)} goals missed, {len(failed)} benchmarks failed; see {RESULTS / 'bench.md'}")
    return 1 if failed else 0


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def run(name: str) -> dict[str, Any]:
    """One benchmark: what it reported, in the order in which it did, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        records, errors = Path(folder, "records"), Path(folder, "errors")
        command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}"]
        began = time.perf_counter()
        with errors.open("wb") as file:
            code = subprocess.run(command, env=os.environ | {RECORDS: str(records)}, stderr=file).returncode
        took = time.perf_counter() - began
        complaint = errors.read_text(errors="replace").strip()
        if complaint and code:
            print(complaint, file=sys.stderr)
        lines = records.read_text().splitlines() if records.exists() else []
    return {
        "name": name,
        "seconds": round(took, 1),
        "exit": code,
        "error": complaint.splitlines()[-1] if code and complaint else "",
        "records": [json.loads(line) for line in lines],
    }


def shortfall(whole: dict[str, Any]) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Every missed goal, by benchmark and figure, and every run that failed."""
    records = [record for each in whole["runs"] for record in each["records"]]
    missed = [(r["benchmark"], key) for r in records for key, goal in r["goals"].items() if goal[2] == "missed"]
    return missed, [each for each in whole["runs"] if each["exit"]]


def markdown(whole: dict[str, Any]) -> str:
    """The table for people."""
    missed, failed = shortfall(whole)
    goals = sum(len(record["goals"]) for each in whole["runs"] for record in each["records"])
    lines = ["# Benchmarks", "", f"{whole['date']} to {whole['ended']}. Ratios are within one run.", ""]
    lines += ["| machine | |", "|---|---|"]
    lines += [f"| {key} | {', '.join(x) if isinstance(x, list) else x} |" for key, x in whole["machine"].items()]
    met = f"{goals - len(missed)} of {goals} goals met"
    lines += ["", f"{met}, {len(failed)} of {len(whole['runs'])} benchmarks failed.", ""]
    lines += [f"- failed: `{each['name']}`, exit code {each['exit']}: {_cell(each['error'])}" for each in failed]
    lines += [f"- missed: {_cell(benchmark)}: {_cell(key)}" for benchmark, key in missed]
    for each in whole["runs"]:
        ended = f"**failed** with exit code {each['exit']} after" if each["exit"] else "took"
        lines += ["", f"## {each['name']}", ""]
        lines += [f"`python -m tests.benchmarks.bench_{each['name']}` {ended} {each['seconds']:.0f} s."]
        for record in each["records"]:
            lines += ["", *_table(record)]
    return "\n".join(lines) + "\n"


def _table(record: dict[str, Any]) -> list[str]:
    seeds = ", ".join(f"{what} {seed}" for what, seed in record["seeds"].items()) or "none"
    lines = [f"| {_cell(record['benchmark'])} | figure | goal | |", "|---|---:|---|---|"]
    for key in [*record["figures"], *(key for key in record["goals"] if key not in record["figures"])]:
        value = record["figures"].get(key)
        compare, limit, outcome = record["goals"].get(key, ("", "", ""))
        goal = f"{compare} {limit:g}" if compare else ""
        outcome = f"**{outcome}**" if outcome == "missed" else outcome
        lines.append(f"| {_cell(key)} | {'none' if value is None else _cell(said(value))} | {goal} | {outcome} |")
    return [*lines, "", f"Seeds: {seeds}. Load (1, 5, 15 minutes) at the end: {record['load']}."]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
