"""A device with memory of its own: every question is answered there as on the processor, with too little memory too.

Nothing on a machine without a GPU would otherwise notice a tensor on the wrong device, or one that is never let go.
Where there is a GPU it is asked as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.rounds import FULL

# Of the families those that are built most differently; each of all others was tried once.
FAMILIES = ("gpt_neo", "gpt2", "gpt_neox", "llama", "gemma2", "phi", "opt", "mamba")
# Of the demo's questions those that cannot go on with fewer rows: they ask for one, or for rows that belong together,
# or what they take is for all weights.
ONE_BY_ONE = {
    "Continue",
    "Alternatives",
    "Perturb",
    "ParameterGradients",
    "ActivationGradients",
    "Attention",
    "AttentionPattern",
    "AttributionPatching",
    "ScoreWindows",
    "Unlearn, paper, gradient",
    "Unlearn, paper, dense",
}
NO_MODEL = {"NearDuplicates", "ExportCheckpoint"}


def answers(name: str, folder: Path, device: str = "elsewhere") -> list[dict[str, Any]]:
    """What `answers_elsewhere` says of a model, in a process of its own."""
    command = [sys.executable, "-m", "tests.faults.answers_elsewhere", name, str(folder), device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.skipif(os.name != "posix", reason="torch's device in Python has been tried on Linux alone")
@pytest.mark.parametrize("name", ("demo", *FAMILIES) if FULL else ("demo",))
def test_a_device_with_memory_of_its_own_gives_the_processor_s_answers_and_takes_nothing_for_good(
    name: str, tmp_path: Path, seen: Any
) -> None:
    lines = answers(name, tmp_path)
    assert len(lines) >= 27
    wrong = {line["kind"]: line["differs"] for line in lines if line["differs"]}
    assert not wrong
    assert {line["kind"]: line["left"] for line in lines if line["left"]} == {}
    assert any(line["peak"] for line in lines)
    seen(f"{len(lines)} questions, {sum(bool(line['refused']) for line in lines)} of them refused by both")
    if name != "demo":
        return
    for line in lines:
        assert line["small_left"] == 0
        if line["kind"] in NO_MODEL:
            assert line["small_said"] == ""
        elif line["kind"] in ONE_BY_ONE:
            assert "small_differs" not in line
            assert line["small_said"].startswith("Not enough memory on elsewhere:0")
        else:
            assert line["small_differs"] == ""
            assert line["small_said"].startswith(("Out of memory with", "Training on other text needs"))
    seen(f"{sum('small_differs' in line for line in lines)} of them with 7/10 of the memory that they took")


# Sweeps of three paragraphs in four groups: when they are asked for, come in and are told, and what would wait.
SWEEPS = """
from memloc_core import devices
from memloc_core.analyses import perturbation
from memloc_core.language_model import LanguageModel
from tests.faults import answers_elsewhere, elsewhere
from tests.unit.test_families_analyses import QUESTIONS, Sweeps

def hidden(*arguments, plain=LanguageModel.hidden):
    elsewhere.waits.append("asked")
    return plain(*arguments)

def fetched(tensors, plain=devices.fetched):
    arrived = plain(tensors)
    elsewhere.waits.append("asked whole")
    return lambda: elsewhere.waits.append("arrived") or arrived()

here, there = answers_elsewhere.both("llama", elsewhere.DEVICE)
LanguageModel.hidden, devices.fetched, perturbation.rows_of_a_pass = hidden, fetched, lambda lm: 10
for done in perturbation.run_sweeps(there, QUESTIONS[Sweeps]()):
    elsewhere.waits.append("done")
print(*elsewhere.waits, "done", sep="\\n")
"""


@pytest.mark.skipif(os.name != "posix", reason="torch's device in Python has been tried on Linux alone")
def test_sweeps_ask_a_gpu_for_more_before_they_wait_for_what_it_computes() -> None:
    command = [sys.executable, "-c", SWEEPS]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert told.returncode == 0, told.stderr[-4000:]
    lines = told.stdout.splitlines()
    assert lines[-14:] == [*["asked", "asked whole", "arrived", "done"] * 3, "arrived", "done"], lines


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_the_processor_s_answers_and_keeps_nothing(tmp_path: Path, seen: Any) -> None:
    lines = answers("demo", tmp_path, "cuda:0")
    assert {line["kind"]: line["differs"] for line in lines if line["differs"]} == {}
    assert {line["kind"] for line in lines if line["left"] or line["small_left"]} == set()
    assert not any(line.get("small_differs") for line in lines)
    known = ("Out of memory with", "Not enough memory on cuda:0", "Training on other text needs")
    assert all(line["small_said"].startswith(known) or line["small_said"] == "" for line in lines)
    fewer = sum(line["small_said"].startswith("Out of memory with") for line in lines)
    assert fewer >= 10
    seen(f"{len(lines)} questions of a GPU; with 7/10 of the memory that they took {fewer} went on with fewer rows")
