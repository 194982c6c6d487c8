"""One question of every kind for the embedded model, each long enough to be interrupted, and answers compared."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np

from memloc_core import edit_files, requests as r
from memloc_core.demo import MODEL_FOLDER
from memloc_core.engine import Engine
from memloc_core.requests import REQUESTS, Request
from memloc_core.scan.folder import ScanFolder
from memloc_core.scan.job import Scan, ScanOptions
from tests.edits import make_edit, run_of

P = 50
NOT_THE_ENGINES = {r.ClaimTest}  # worked out by the explorer from answers to the others
# Clocks: what two runs of the same question never agree on.
TIMES = {"step_seconds", "seconds_per_step", "seconds_to_start", "seconds", "reading", "scoring", "peak_bytes", "bytes"}

RELEARNED = {"relearned_em", "relearned_longest", "not_relearned"}  # what lacks where memory was too small for it


class Questions:
    """A dictionary of questions by kind, over files in a folder of their own."""

    def __init__(self, folder: Path, lm: Any, paragraphs: Any) -> None:
        self.folder, self.lm, self.paragraphs = folder, lm, paragraphs
        self.rows = tuple(paragraphs.row(i) for i in range(48))
        self.made = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._scan()
        self.edit = make_edit(lm, 200, of=[n for n, p in lm.model.named_parameters() if "h.1." in n and p.ndim == 2])
        self.edit_file = folder / "edit.safetensors"
        edit_files.write_edit(self.edit_file, run_of(self.edit))

    def ask(self, kind: type[Request]) -> Request:
        """A question of this kind."""
        return self.table[kind]()

    @property
    def table(self) -> dict[type[Request], Callable[[], Request]]:
        rows, prefix = self.rows, self.rows[0][:P]
        counts = tuple(self.paragraphs.prefix_counts(i) for i in range(len(rows)))
        run = r.Unlearn(
            rows[:1], rows[1:5], P, goal="steps", steps=3, kept_per_step=2, held_out=rows[9:11], mask="ratio"
        )
        block = r.Block(str(self.corpus), "text", 0, 40, 0, str(MODEL_FOLDER))
        return {
            r.OpenModel: lambda: r.OpenModel("demo", device="cpu"),
            r.ReadVocabulary: lambda: r.ReadVocabulary("demo"),
            r.EncodeText: lambda: r.EncodeText("A letter to somebody. " * 200, "demo"),
            r.OpenParagraphs: lambda: r.OpenParagraphs("demo", "demo"),
            r.NearDuplicates: lambda: r.NearDuplicates(tuple(map(tuple, self.paragraphs.tokens.tolist()))),
            r.ExactMatch: lambda: r.ExactMatch(rows * 2),
            r.Continue: lambda: r.Continue(prefix, 50),
            r.Perturb: lambda: r.Perturb(rows[0], ((3, 7), (40, 9)), P, "own"),
            r.Sweep: lambda: r.Sweep(rows[0], "random", 2),
            r.Sweeps: lambda: r.Sweeps((r.Sweep(rows[0]), r.Sweep(rows[3], reference="own"))),
            r.Alternatives: lambda: r.Alternatives(prefix, 7),
            r.Ablated: lambda: r.Ablated(r.Sweep(rows[1]), ((1, 2), (2, 0))),
            r.ParameterGradients: lambda: r.ParameterGradients(rows[:12]),
            r.ContrastGradients: lambda: r.ContrastGradients(rows[:6], rows[6:12]),
            r.ActivationGradients: lambda: r.ActivationGradients(rows[0]),
            r.Attention: lambda: r.Attention(rows[0]),
            r.AttentionPattern: lambda: r.AttentionPattern(rows[0], 1, 2),
            r.Rarity: lambda: r.Rarity(rows, counts, resamples=100),
            r.HeadAblation: lambda: r.HeadAblation(rows[:2], rows[4:5], rows[8:9]),
            r.AttributionPatching: lambda: r.AttributionPatching(rows[0], ((48, 7),)),
            r.ActivationPatching: lambda: r.ActivationPatching(
                rows[0], ((48, 7),), cells=tuple(("residual", layer, 48 + i) for layer in (0, 1, 2) for i in range(20))
            ),
            r.RareTokens: lambda: r.RareTokens(rows[:14], counts[:14], (1, 2, 3, 4), 2, resamples=50),
            r.Edited: lambda: r.Edited(r.Sweep(rows[2]), (self.edit.fingerprint,), (str(self.edit_file),)),
            r.Unlearn: lambda: run,
            r.TryRun: lambda: r.TryRun(dataclasses.replace(run, mask="gradient", seed=1)),
            r.EstimateRun: lambda: r.EstimateRun(run),
            r.MeasureRemains: lambda: r.MeasureRemains(
                rows[:2], P, rows[5], rows[20:24], shifts=(1,), extensions=(2,), relearn_steps=2, relearn_batch=2
            ),
            r.ExportCheckpoint: self._export,
            r.PrefixSignals: lambda: r.PrefixSignals(tuple(row[:P] for row in rows[:16]), counts[:16]),
            r.FindCorpus: lambda: r.FindCorpus(str(self.corpus), "demo"),
            r.PlanScan: lambda: r.PlanScan((str(self.corpus),), "demo"),
            r.ScanBlock: lambda: r.ScanBlock(block, keep=(-1, -1, 20)),
            r.ScoreWindows: lambda: r.ScoreWindows(str(self.scan.windows), 0, 8),
            r.CountBlock: lambda: r.CountBlock(block, str(self.scan.windows)),
            r.AssembleScan: lambda: r.AssembleScan(str(self.scan.path), str(self.scan.out), windows=True),
            r.ListDevices: lambda: r.ListDevices(),
        }

    def _export(self) -> Request:
        self.made += 1
        return r.ExportCheckpoint(str(self.folder / f"export-{self.made}"))

    def _scan(self) -> None:
        """A small corpus in which the model recites something, and a scan of it that is through with its blocks."""
        vocabulary = Engine().answer(r.ReadVocabulary("demo")).result
        self.corpus = self.folder / "corpus.jsonl"
        texts = (vocabulary.text(self.paragraphs.tokens[i]) for i in range(40))
        self.corpus.write_text("".join(json.dumps({"text": text * 2}) + "\n" for text in texts))
        self.scan = ScanFolder(self.folder / "set.parquet")
        engine = Engine()
        engine.lm = self.lm

        async def ask(request: Request, heard: Any) -> Any:
            return engine.answer(request)

        class Here:
            async def answers(self, requests: Any, on_progress: Any) -> Any:
                for number, request in requests:
                    yield number, engine.answer(request)

        async def main() -> None:
            scan = Scan(self.scan, str(self.corpus), str(MODEL_FOLDER), ScanOptions(keep=(-1, -1, 20)), ask)
            await scan.find()
            await scan.begin(self.lm.info)
            here: Any = Here()
            await scan.scan_blocks(here)
            await ask(r.AssembleScan(str(self.scan.path), str(self.scan.out), windows=True), None)

        asyncio.run(main())


def differs(one: Any, other: Any, place: str = "result", *, near: float = 1e-4, but: Set[str] = frozenset()) -> str:
    """Where two results differ, "" where nowhere: floats to `near`; clocks, places of files and `but` left out."""
    if type(one) is not type(other):
        return f"{place}: {type(one).__name__} and {type(other).__name__}"
    if dataclasses.is_dataclass(one):
        names = (f.name for f in dataclasses.fields(one) if f.name not in TIMES | {"folder"} | but)
        parts = (
            differs(getattr(one, name), getattr(other, name), f"{place}.{name}", near=near, but=but) for name in names
        )
        return next(filter(None, parts), "")
    if isinstance(one, tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (differs(a, b, f"{place}[{i}]", near=near, but=but) for i, (a, b) in pairs)), "")
    if isinstance(one, np.ndarray):
        if one.dtype.kind == "f":
            same = one.shape == other.shape and np.allclose(one, other, rtol=near, atol=near / 10, equal_nan=True)
        else:
            same = np.array_equal(one, other)
        return "" if same else place
    if isinstance(one, float):
        return "" if np.isclose(one, other, rtol=near, atol=near / 10, equal_nan=True) else place
    return "" if one == other else place


KINDS = tuple(kind for kind in REQUESTS if kind not in NOT_THE_ENGINES)
