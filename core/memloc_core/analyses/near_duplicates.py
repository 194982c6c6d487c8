"""Near-duplicates of a whole paragraph set, found once and kept."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from memloc_core.errors import UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.near_duplicates import find_clusters
from memloc_core.requests import Clusters, NearDuplicates, Progress
from memloc_core.steps import retold


def run(lm: LanguageModel, request: NearDuplicates) -> Generator[Progress, None, Clusters]:
    """The clusters of the paragraphs; no pass of the model. Raises UsageError for rows of several lengths."""
    if not request.paragraphs or len({len(row) for row in request.paragraphs}) != 1:
        raise UsageError("Near-duplicates are looked for among paragraphs of one length.")
    if not 0.5 <= request.threshold < 1:
        raise UsageError(
            f"A similarity above which paragraphs are near-duplicates is 0.5 .. 1, not {request.threshold}."
        )
    steps = find_clusters(np.array(request.paragraphs, np.int64), request.threshold)
    n = len(request.paragraphs)
    found = yield from retold(steps, lambda share: Progress(int(share * n), n, "paragraphs"))
    cluster = np.array(found, np.int64)
    return Clusters(cluster, np.bincount(cluster))
