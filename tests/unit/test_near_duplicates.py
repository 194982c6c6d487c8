"""Near-duplicate clusters, against every pair compared, and against what is known of the paper's paragraphs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from memloc_core.near_duplicates import clusters
from tests.conftest import SHARED, needs_shared


def by_all_pairs(rows, threshold):
    """Connected components by comparing everything with everything, until nothing changes."""
    label = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                similar = len(set(a) & set(b)) / len(set(a) | set(b)) > threshold
                if similar and label[i] != label[j]:
                    label[i] = label[j] = min(label[i], label[j])
                    changed = True
    return label


@pytest.mark.parametrize("threshold", [0.5, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_those_of_every_pair_compared(seed, threshold):
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 60, (8, 20))
    rows = seeds[rng.integers(0, 8, 60)]
    noise = rng.random(rows.shape) < 0.12
    rows = np.where(noise, rng.integers(0, 60, rows.shape), rows)
    expected = by_all_pairs(rows.tolist(), threshold)
    found = clusters(rows, threshold)
    assert 1 < len(set(found)) < 60
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))


@needs_shared
def test_the_papers_442_paragraphs_form_147_clusters_of_at_most_46():
    import torch

    rows = torch.load(SHARED / "paper" / "50_50_preds.pt", weights_only=True).numpy()
    sizes = Counter(clusters(rows))
    assert (len(sizes), max(sizes.values())) == (147, 46)
    assert sum(size for size in sizes.values() if size > 1) == 345
