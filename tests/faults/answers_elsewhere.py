"""Every question of one model, answered by the processor and by another device, which it prints compared.

`python -m tests.faults.answers_elsewhere demo FOLDER DEVICE`, or a family of tests/unit/families.py instead of "demo".
The device is "elsewhere", that of `elsewhere`, or a GPU. A JSON object a line: the kind of question, where the answers
differ ("" is nowhere), the bytes that stay taken there afterwards, and where the device then had no more than 7/10 of
the memory that the answer took, what became of it.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from memloc_core import requests as r
from memloc_core.engine import ANALYSES, Engine
from memloc_core.errors import MemlocError, UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.loading import load
from memloc_core.paragraphs import open_paragraphs
from memloc_core.requests import Request
from tests.faults.questions import RELEARNED, P, Questions, differs
from tests.faults.rounds import FULL
from tests.unit import families
from tests.unit.test_families_analyses import QUESTIONS, put

SHARE = 0.7  # of the memory that an answer takes


def made(name: str) -> LanguageModel:
    return load(r.OpenModel("demo", device="cpu")) if name == "demo" else families.made(name)


def both(name: str, device: torch.device) -> tuple[LanguageModel, LanguageModel]:
    """The model on the processor, and the same one on the device."""
    here, moved = made(name), made(name).model
    moved.to(device)  # type: ignore[arg-type]
    moved.tie_weights()  # a parameter that moves to `elsewhere` becomes another one
    return here, LanguageModel(moved, dataclasses.replace(here.info, device=str(device)))


class OfGpu:
    """A GPU's memory, as `elsewhere.memory` tells of that device's; a limit holds for what torch sets aside, which is
    more than what it uses."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def taken(self) -> int:
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device)

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    @peak.setter
    def peak(self, _: int) -> None:  # to what is taken
        torch.cuda.reset_peak_memory_stats(self.device)

    def _limit(self, to: int | None) -> None:
        torch.cuda.empty_cache()
        whole = torch.cuda.mem_get_info(self.device)[1]
        more = torch.cuda.memory_reserved(self.device) - self.taken
        torch.cuda.set_per_process_memory_fraction(1.0 if to is None else (to + more) / whole, self.device)

    limit = property(None, _limit)


def memory_of(device: str) -> tuple[torch.device, Any]:
    if device == "elsewhere":
        from tests.faults import elsewhere

        return elsewhere.DEVICE, elsewhere.memory
    return torch.device(device), OfGpu(torch.device(device))


def questions(name: str, lm: LanguageModel, folder: Path) -> Iterator[tuple[str, Callable[[], Request]]]:
    """One of every kind that the engine asks a model: by name, and a function that makes it anew."""
    made = iter(range(1000))

    def fresh() -> Path:
        (new := folder / str(next(made))).mkdir(parents=True)
        return new

    if name != "demo":
        for kind, question in QUESTIONS.items():
            yield kind.__name__, lambda question=question: put(question, fresh())
        return
    table = Questions(folder / "questions", lm, open_paragraphs(r.OpenParagraphs("demo", "demo")))
    for kind in ANALYSES:
        yield kind.__name__, lambda kind=kind: table.ask(kind)
    ablation = table.ask(r.HeadAblation)
    assert isinstance(ablation, r.HeadAblation)
    yield "HeadAblation, mean", lambda: dataclasses.replace(ablation, kind="mean")
    yield "Sweep, next-best", lambda: r.Sweep(table.rows[0], "next-best", 2, reference="own")
    for name, run in runs(table).items() if FULL else ():
        yield f"Unlearn, {name}", lambda run=run: run


def runs(table: Questions) -> dict[str, Request]:
    """Runs of every mask, goal, objective and protocol, by name."""
    rows, run = table.rows, table.ask(r.Unlearn)
    assert isinstance(run, r.Unlearn)
    run = dataclasses.replace(run, others=rows[12:14], family=rows[14:16], general=rows[40:44])
    places = {"head": "L1H2", "layer": "L2", "component": "W_out"}
    changes: dict[str, dict[str, Any]] = {mask: {"mask": mask, "place": places.get(mask, "")} for mask in r.MASKS}
    changes |= {goal: {"goal": goal, "mask": "auto", "left_context": rows[30][:20]} for goal in ("break", "forget")}
    changes["edit"] = {"objective": "edit", "alternatives": (rows[0][:P] + rows[5][P:],)}
    changes["memorize"] = {"objective": "memorize", "targets": rows[20:21]}
    changes |= {f"paper, {mask}": {"protocol": "paper", "mask": mask} for mask in ("gradient", "dense")}
    return {name: dataclasses.replace(run, **change) for name, change in changes.items()}


def answered(lm: LanguageModel, request: Request) -> tuple[Any, str]:
    """The answer, or the sentence in its place."""
    engine = Engine()
    engine.lm = lm
    try:
        return engine.answer(request), ""
    except (MemlocError, UsageError) as error:
        return None, str(error)


def main(name: str, folder: Path, device_name: str = "elsewhere") -> None:
    torch.set_num_threads(1)
    device, memory = memory_of(device_name)
    here, there = both(name, device)
    near = 1e-4 if device_name == "elsewhere" else 1e-3

    def taken() -> int:
        gc.collect()
        return memory.taken

    for kind, ask in questions(name, here, folder):
        one, refusal = answered(here, ask())
        if device_name != "elsewhere":
            answered(there, ask())  # libraries take their work space with the first call
        before = memory.peak = taken()
        began = time.perf_counter()
        other, said = answered(there, ask())
        line: dict[str, Any] = {"kind": kind, "refused": refusal, "peak": memory.peak - before}
        line["seconds"] = time.perf_counter() - began
        line["differs"] = differs(one and one.result, other and other.result, but={"forwards"}, near=near) or (
            "" if said == refusal else said
        )
        line["left"] = taken() - before
        if name == "demo":
            memory.limit = before + int(SHARE * line["peak"])
            fewer, line["small_said"] = answered(there, ask())
            memory.limit = None
            if fewer:
                lacks = {"forwards"} if fewer.result.is_whole else {"forwards", *RELEARNED}
                line["small_differs"] = differs(one.result, fewer.result, but=lacks, near=near)
                line["small_said"] = next(iter(fewer.provenance.notices), "")
            del fewer
            line["small_left"] = taken() - before
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
