"""`memloc-tui detect`: would a paragraph be recited, told from its prefix alone, and how well that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from memloc_core.codec import to_json
from memloc_core.errors import MemlocError, UsageError
from memloc_tui.commands.console import Asker, Out, print_json, run, table_of
from memloc_tui.detecting import labels, requests
from memloc_tui.files import check_can_be_written, write_whole
from memloc_tui.settings import Settings

if TYPE_CHECKING:
    from memloc_core.detection import Detector

_FORMAT = "memloc-detector 1"
_BASELINES = ("NLL", "min-k")  # low where a paragraph is memorized


def detect(settings: Settings, limit: int, seed: int, detector: Path | None, out: Path | None, as_json: bool) -> None:
    """Fit a detector and judge it on clusters that it has not seen; or judge one that was fitted elsewhere."""
    if out is not None:
        check_can_be_written(out)
    if out is not None and detector is not None:
        raise UsageError("--out keeps a detector that is fitted here; with --detector there is none.")
    given, fitted_on = read_detector(detector) if detector is not None else (None, "")

    async def work(asker: Asker) -> tuple[dict[str, Any], Detector, str]:
        here = f"{asker.session.model.fingerprint} {asker.catalogue.paragraphs.fingerprint}"  # type: ignore[union-attr]
        return *await judged(asker, limit, seed, given), here

    record, used, here = run(settings, work)
    if here == fitted_on:
        click.echo("memloc-tui: this detector was fitted on these very paragraphs; its AUC flatters it.", err=True)
    if out is not None:
        try:
            write_whole(out, json.dumps(to_json({"format": _FORMAT, "fitted_on": here, **vars(used)})) + "\n")
        except OSError as error:
            raise MemlocError(f"{out} cannot be written: {error.strerror or error}.") from None
        click.echo(f"detector written to {out}", err=True)
    if as_json:
        print_json(record)
        return
    Out().print(Text(_heading(record, fitted_here=given is None)))
    table = table_of("told by", "AUC", "95 % interval")
    for line in ({"signal": "detector", **record}, *record["baselines"]):
        low, high = line["interval"]
        table.add_row(line["signal"], f"{line['auc']:.3f}", Text(f"{low:.3f} .. {high:.3f}"))
    Out().print(table)
    weights = sorted(zip(record["signals"], record["weights"], strict=True), key=lambda pair: -abs(pair[1]))
    Out().print(Text("weights of the signals: " + ", ".join(f"{name} {weight:+.2f}" for name, weight in weights)))


async def judged(asker: Asker, limit: int, seed: int, given: Detector | None) -> tuple[dict[str, Any], Detector]:
    """The detector's area under the ROC curve and the baselines', and each paragraph's probability."""
    import numpy as np

    from memloc_core import detection

    catalogue, paragraphs = asker.catalogue, asker.catalogue.paragraphs
    rows = np.arange(min(limit, len(catalogue)))
    await asker.score(range(len(rows)))
    truth, labelled, clusters = labels(catalogue, rows)
    detection.check(truth, clusters)
    answers = await asker.ask("prefix signals", requests(catalogue, rows.tolist()))
    names = answers[0].result.names
    values = np.concatenate([answer.result.values for answer in answers]).astype(np.float64)
    if given is None:
        used = detection.fit(names, values[labelled], truth)
        odds = used.log_odds(values)
        odds[labelled] = detection.out_of_cluster(names, values[labelled], truth, clusters, seed)
    else:
        if missing := [name for name in given.names if name not in names]:
            raise UsageError(f"The detector needs the signal {missing[0]!r}, which this model does not give.")
        used, values = given, values[:, [names.index(name) for name in given.names]]
        names = given.names
        odds = used.log_odds(values, own_scale=True)

    def area(scores: Any) -> dict[str, Any]:
        return {
            "auc": float(detection.auc(scores, truth)),
            "interval": detection.auc_interval(scores, truth, clusters, seed=seed),
        }

    probability = 0.5 * (1 + np.tanh(odds / 2))
    record = {
        **area(odds[labelled]),
        "baselines": [
            {"signal": name, **area(-values[labelled, names.index(name)])} for name in _BASELINES if name in names
        ],
        "memorized": int(truth.sum()),
        "non_memorized": int(len(truth) - truth.sum()),
        "clusters": int(clusters.max()) + 1,
        "signals": names,
        "weights": used.weights,
        "seed": seed,
        "scores": [
            {"id": paragraphs.ids[row], "em": int(catalogue.em[row]), "probability": float(probability[row])}
            for row in rows
        ],
        "provenance": answers[0].provenance,
    }
    return dict(to_json(record)), used


def read_detector(path: Path) -> tuple[Detector, str]:
    """A detector that `--out` wrote, and which model and paragraphs it was fitted on. Raises UsageError otherwise."""
    import numpy as np

    from memloc_core.detection import Detector

    try:
        with path.open("rb") as file:
            saved = json.loads(file.read(1_000_000))
        if saved["format"] != _FORMAT:
            raise ValueError
        names = tuple(str(name) for name in saved["names"])
        weights, mean, spread = (np.array(saved[name], np.float64) for name in ("weights", "mean", "spread"))
        numbers = np.concatenate([weights, mean, spread, [float(saved["bias"])]])
        if not names or any(x.shape != (len(names),) for x in (weights, mean, spread)) or not (spread > 0).all():
            raise ValueError
        if not np.isfinite(numbers).all():
            raise ValueError
        return Detector(names, weights, float(saved["bias"]), mean, spread), str(saved["fitted_on"])
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise UsageError(f"{path} is no detector; memloc-tui detect --out FILE writes one.") from None


def _heading(record: dict[str, Any], *, fitted_here: bool) -> str:
    how = (
        "each judged by a detector that was fitted on no paragraph of its cluster"
        if fitted_here
        else "by a detector that was fitted elsewhere; signals on the scale of these paragraphs"
    )
    return (
        f"{record['memorized']:,} memorized against {record['non_memorized']:,} non-memorized paragraphs "
        f"in {record['clusters']:,} clusters, {how}"
    )
