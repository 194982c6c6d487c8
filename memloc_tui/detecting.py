"""Would a paragraph be recited, told from its prefix alone? For the list's order and for `memloc-tui detect`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memloc_core.requests import PrefixSignals
from memloc_tui.catalogue import Catalogue

CHUNK = 32  # paragraphs per question: each takes a backward pass


def requests(catalogue: Catalogue, rows: Sequence[int]) -> list[PrefixSignals]:
    """The questions about these rows, CHUNK at a time."""
    p = catalogue.paragraphs
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    return [
        PrefixSignals(
            tuple(p.row(row)[: p.prefix_length] for row in chunk), tuple(p.prefix_counts(row) for row in chunk)
        )
        for chunk in chunks
    ]


def told(catalogue: Catalogue, rows: Sequence[int], answers: Sequence[Any], seed: int = 0) -> Any:
    """The probability that each row is memorized, [len(rows)]: of memorized and non-memorized rows by a detector that
    was fitted on none of their cluster, of the others, which teach nothing, by one that was fitted on all.

    Raises UsageError where there is too little to learn from."""
    import numpy as np

    from memloc_core import detection

    truth, labelled, clusters = labels(catalogue, np.asarray(rows))
    names = answers[0].result.names
    values = np.concatenate([answer.result.values for answer in answers]).astype(np.float64)
    detection.check(truth, clusters)
    odds = detection.fit(names, values[labelled], truth).log_odds(values)
    odds[labelled] = detection.out_of_cluster(names, values[labelled], truth, clusters, seed)
    return 0.5 * (1 + np.tanh(odds / 2))


def labels(catalogue: Catalogue, rows: Any) -> tuple[Any, Any, Any]:
    """Whether each labelled row is memorized, which rows are labelled, and the labelled ones' clusters."""
    import numpy as np

    em = catalogue.em[rows]
    memorized = em >= catalogue.length
    labelled = memorized | np.array([catalogue.stratum_of(int(value)) == "non-memorized" for value in em])
    labelled &= np.isfinite(catalogue.nll[rows])  # where the model gives no numbers nothing was read off
    return memorized[labelled], labelled, catalogue.paragraphs.related(rows[labelled])
