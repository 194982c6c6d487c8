"""How well unlearning works on the embedded model: each target alone, from fresh weights, to either goal.

    python -m tests.benchmarks.bench_unlearning_quality [TARGETS] [--goal break|forget] [--mask M] [--place P]
        [--sparsity S ...] [--keep N] [--skip N] [--learning-rate R] [--kl-weight W]

The paragraphs that are kept, and those that a run is judged by and never trained on, are dealt as for the explorer and
the command line. Several sparsities give the curve over them. Every run is judged by `MeasureRemains` as well, which
knows nothing of the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np
import torch

from memloc_core.language_model import LanguageModel
from memloc_core.loading import load
from memloc_core.paragraphs import open_paragraphs
from memloc_core.requests import GROUPS, ExactMatch, OpenModel, OpenParagraphs, Unlearn
from memloc_core.sources import model_folder
from memloc_core.tokenizers import read_vocabulary
from memloc_core.weight_edits import edited
from memloc_tui.catalogue import Catalogue
from memloc_tui.unlearning import UnlearnOptions, plan, remains, split
from tests.benchmarks.common import report
from tests.conftest import result

# What the two goals ask for: (figure, compare, limit).
GOALS = {
    "break": {
        "EM <= 5, share": (">=", 1.0),
        "other memorized, EM": (">=", 49.8),
        "same family, EM": (">=", 46.0),
        "agreement, non-memorized": (">=", 0.997),
    },
    "forget": {
        "forgotten, share": (">=", 0.95),
        "other memorized, EM": (">=", 49.0),
        "same family, EM": (">=", 42.0),
        "agreement, non-memorized": (">=", 0.985),
        "held-out NLL, |change| in %": ("<=", 0.5),
        "repetition above fresh text's": ("<=", 0.0),
        "relearned EM, share": ("<=", 0.1),
    },
}


def open_demo() -> tuple[LanguageModel, Catalogue]:
    """The embedded model, and its paragraphs with their exact matches."""
    lm = load(OpenModel("demo", device="cpu"))
    catalogue = Catalogue(open_paragraphs(OpenParagraphs("demo", "demo")), read_vocabulary(model_folder("demo")))
    scored = result(lm, ExactMatch(tuple(map(tuple, catalogue.paragraphs.tokens.tolist()))))
    catalogue.em[:], catalogue.nll[:] = scored.em, scored.nll
    return lm, catalogue


def one(lm: LanguageModel, catalogue: Catalogue, row: int, options: UnlearnOptions, changes: dict[str, Any]) -> Any:
    """Figures of one target: a dict of numbers."""
    asked = dataclasses.replace(plan(catalogue, [row], options), **changes)
    groups = split(catalogue, [row], options)
    non_memorized = [i for i in (*groups.general, *groups.held_out) if catalogue.em[i] <= 0.2 * catalogue.length]
    rows = torch.tensor(catalogue.paragraphs.tokens[non_memorized])
    with torch.inference_mode():
        before = lm.score(rows, 50)
    started = time.perf_counter()
    run = result(lm, asked)
    seconds = time.perf_counter() - started
    with edited(lm, [run.edit]):
        left = result(lm, remains(catalogue, [row], options))
        with torch.inference_mode():
            after = lm.score(rows, 50)
    met = bool((run.broken if asked.goal == "break" else run.forgotten)[run.best].all())
    wanted = asked.sibling_nll[0] if asked.sibling_nll else float("nan")
    most = int(left.extracted_most()[0])
    forgotten = int(left.em[0]) <= 5 and most <= 8 and float(left.nll[0]) >= wanted
    fresh = float(left.fresh_repetition.mean()) if len(left.fresh_repetition) else np.nan
    memorized = {name: run.whole_em[1, GROUPS.index(name)] for name in ("others", "family")}
    return {
        "goal met, share": float(met),
        "EM <= 5, share": float(left.em[0] <= 5),
        "forgotten, share": float(forgotten),
        "EM": float(left.em[0]),
        "longest run under any prefix": float(most),
        "NLL": float(left.nll[0]),
        "NLL of held-out siblings": wanted,
        "other memorized, EM": float(memorized["others"]),
        "same family, EM": float(memorized["family"]),
        "agreement, non-memorized": float((after.predicted == before.predicted).double().mean()),
        "held-out NLL, |change| in %": abs(float(after.nll.mean() / before.nll.mean()) - 1) * 100,
        "edit distance of the new text": float(left.edit_distance[0]),
        "repetition of the new text": float(left.repetition[0]),
        "repetition of fresh text": fresh,
        "repetition above fresh text's": float(left.repetition[0]) - fresh,
        "relearned EM, share": float(left.relearned_em[-1, 0]) / 50,
        "relearned longest run": float(left.relearned_longest[-1, 0]),
        "8-bit EM": float(left.eight_bit_em[0]),
        "drawn back to": run.drawn_back,
        "weights changed": float(run.changed),
        "steps": float(len(run.loss)),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="?", type=int, default=2)
    parser.add_argument("--skip", type=int, default=0, help="leave so many out: what is tuned on must not be the test")
    parser.add_argument("--goal", choices=tuple(GOALS), action="append")
    parser.add_argument("--mask", default=Unlearn.mask)
    parser.add_argument("--place", default="")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[Unlearn.sparsity])
    parser.add_argument("--keep", type=int, default=UnlearnOptions.keep)
    parser.add_argument("--steps", type=int, default=Unlearn.steps)
    parser.add_argument("--learning-rate", type=float, default=Unlearn.learning_rate)
    parser.add_argument("--kl-weight", type=float, default=Unlearn.kl_weight)
    parser.add_argument("--verbose", action="store_true", help="one line for each target")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lm, catalogue = open_demo()
    memorized = np.flatnonzero(catalogue.em == catalogue.length)
    targets = np.random.default_rng(1).permutation(memorized)[chosen.skip :][: chosen.targets].tolist()
    for goal in chosen.goal or tuple(GOALS):
        for sparsity in chosen.sparsity:
            options = UnlearnOptions(
                goal=goal,
                mask=chosen.mask,
                place=chosen.place,
                sparsity=sparsity,
                steps=chosen.steps,
                learning_rate=chosen.learning_rate,
                kl_weight=chosen.kl_weight,
                keep=chosen.keep,
            )
            found: list[dict[str, float]] = []
            for row in targets:
                found.append(one(lm, catalogue, row, options, {}))
                if chosen.verbose:
                    print(row, {key: round(value, 3) for key, value in found[-1].items()}, flush=True)
            figures: dict[str, Any] = {"targets": len(found)}
            figures |= {key: float(np.nanmean([each[key] for each in found])) for key in found[0]}
            report(
                f"unlearning quality, goal {goal}, sparsity {sparsity:g}, mask {chosen.mask}",
                figures,
                GOALS[goal],
                seeds={"targets": 1, "runs": 0},
            )


if __name__ == "__main__":
    main()
