"""Near-duplicate clusters, against every pair compared, and against what is known of the paper's paragraphs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from memloc_core import near_duplicates
from memloc_core.errors import UsageError
from memloc_core.near_duplicates import clusters
from memloc_core.requests import NearDuplicates
from tests.conftest import SHARED, needs_shared, result


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


@pytest.mark.parametrize("vocabulary", [3, 12, 400])
@pytest.mark.parametrize("length", [1, 2, 3, 9, 40])
def test_clusters_of_any_shape_are_those_of_every_pair_compared(vocabulary, length):
    """Sets of one token, rows that are all alike, and large groups of near-duplicates among them."""
    rng = np.random.default_rng(vocabulary + length)
    seeds = rng.integers(0, vocabulary, (5, length))
    rows = seeds[rng.integers(0, 5, 90)]
    rows = np.where(rng.random(rows.shape) < 0.08, rng.integers(0, vocabulary, rows.shape), rows)
    for threshold in (0.5, 0.8, 0.9):
        expected = by_all_pairs(rows.tolist(), threshold)
        found = clusters(rows, threshold)
        assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))
        assert list(dict.fromkeys(found)) == list(range(len(set(found))))  # numbered by first appearance


def test_no_and_one_row_and_impossible_thresholds():
    assert clusters(np.zeros((0, 4), np.int64)) == ()
    assert clusters(np.array([[5, 5, 5]])) == (0,)
    for threshold in (0.49, 1.0, -1, 2):
        with pytest.raises(ValueError, match="threshold"):
            clusters(np.zeros((2, 4), np.int64), threshold)


def natural(n):
    """n rows of 100 tokens as a corpus has them: word frequencies after Zipf, a third of them near-duplicates."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 50_001) ** 1.05
    rows = rng.choice(50_000, (n * 2 // 3, 100), p=weights / weights.sum())
    rows = rows[rng.integers(0, len(rows), n)]
    noise = rng.random(rows.shape) < rng.choice([0, 0.03, 0.12], (n, 1))
    return np.where(noise, rng.integers(0, 50_000, rows.shape), rows)


def test_of_fifty_million_pairs_of_ten_thousand_rows_few_are_compared(monkeypatch):
    sizes = []

    def counted(pairs, n):
        found = distinct(pairs, n)
        sizes.append(len(found))
        return found

    distinct = near_duplicates._distinct
    monkeypatch.setattr(near_duplicates, "_distinct", counted)
    clusters(natural(10_000))
    assert 0 < sum(sizes) < 20_000


def test_the_engine_answers_with_the_clusters_and_their_sizes(demo, demo_paragraphs):
    rows = tuple(demo_paragraphs.row(i) for i in range(120))
    found = result(demo, NearDuplicates(rows))
    assert tuple(found.cluster.tolist()) == clusters(np.array(rows))
    assert found.sizes.tolist() == [Counter(found.cluster.tolist())[c] for c in range(len(found.sizes))]
    for wrong in (
        NearDuplicates(()),
        NearDuplicates(((1, 2), (1,))),
        NearDuplicates(rows, 0.2),
        NearDuplicates(rows, 1),
    ):
        with pytest.raises(UsageError):
            result(demo, wrong)


@needs_shared
def test_the_papers_442_paragraphs_form_147_clusters_of_at_most_46():
    import torch

    rows = torch.load(SHARED / "paper" / "50_50_preds.pt", weights_only=True).numpy()
    sizes = Counter(clusters(rows))
    assert (len(sizes), max(sizes.values())) == (147, 46)
    assert sum(size for size in sizes.values() if size > 1) == 345
