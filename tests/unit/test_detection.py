"""Detection: signals against naive sums, the classifier against a plain descent, the area against counted pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from memloc_core import detection
from memloc_core.errors import UsageError
from memloc_core.requests import PrefixSignals
from memloc_tui.commands.detect import read_detector
from tests.conftest import result


@pytest.fixture(scope="module")
def signals(demo: Any, demo_paragraphs: Any) -> tuple[Any, list[int]]:
    rows = [0, 3, 200, 450]
    request = PrefixSignals(
        tuple(demo_paragraphs.row(row)[:50] for row in rows), tuple(demo_paragraphs.prefix_counts(row) for row in rows)
    )
    return result(demo, request), rows


@pytest.mark.parametrize(
    ("prefixes", "counts", "says"),
    [
        (((1, 2, 3, 4),) * 2, ((9, 9, 9, 9),) * 2, "A prefix of 4 tokens shows too little; at least 5"),
        (((1, 2, 3, 4, 5),) * 2, ((9, 9, 9, 9, 9),), "one corpus count"),
        (((1, 2, 3, 4, 5),) * 2, ((9, 9, 9, 9),) * 2, "one corpus count"),
    ],
)
def test_prefixes_that_show_nothing_are_refused(demo: Any, prefixes: Any, counts: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        result(demo, PrefixSignals(prefixes, counts))
    assert result(demo, PrefixSignals(((1, 2, 3, 4, 5),), ((9, 9, 9, 9, 9),))).values.shape[0] == 1


def test_every_signal_is_what_a_plain_loop_gives(demo: Any, demo_paragraphs: Any, signals: Any) -> None:
    found, rows = signals
    for line, row in zip(found.values, rows, strict=True):
        ids = torch.from_numpy(demo_paragraphs.tokens[row][:50].copy())[None]
        for parameter in demo.model.parameters():
            parameter.requires_grad_(True)
        out = demo.model(input_ids=ids, output_attentions=True)
        nll = torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="none")
        nll.mean().backward()
        layers = []
        for block in demo.model.transformer.h:
            attention, size = block.attn.attention, demo.model.config.hidden_size // demo.model.config.num_heads
            whole = [block.mlp.c_fc.weight.grad.abs().max(), block.mlp.c_proj.weight.grad.abs().max()]
            for name in ("q_proj", "k_proj", "v_proj"):
                whole += [part.abs().max() for part in getattr(attention, name).weight.grad.split(size, 0)]
            whole += [part.abs().max() for part in attention.out_proj.weight.grad.split(size, 1)]
            layers.append(float(sum(whole)))
        for parameter in demo.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        losses = sorted(nll.tolist())
        logits = out.logits.detach()
        top = logits[0, -1].sort(descending=True).values
        late = []
        for t in range(39, 49):
            target = ids[0, t + 1]
            others = torch.cat([logits[0, t, :target], logits[0, t, target + 1 :]])
            late.append(float(logits[0, t, target] - others.max()))
        counts = demo_paragraphs.prefix_counts(row)
        rare = sorted(range(50), key=lambda position: (counts[position], position))[:10]
        rows_at_49 = [layer[0, :, 49].detach() for layer in out.attentions]
        heads = [[float(head[rare].sum()) for head in layer] for layer in rows_at_49]
        expected = {
            "NLL": sum(losses) / 49,
            "min-k": sum(losses[-10:]) / 10,
            "late NLL": float(nll.detach()[-10:].mean()),
            "late margin": sum(late) / 10,
            "next margin": float(top[0] - top[1]),
            "correct": float((logits[0, :-1].argmax(-1) == ids[0, 1:]).float().mean()),
            "rare attention": float(np.mean(heads[:2])),
            "rarest head": max(map(max, heads)),
            "gradient": float(np.log(sum(layers))),
            "low gradient": sum(layers[:2]) / sum(layers),
        }
        assert dict(zip(found.names, line.tolist(), strict=True)) == pytest.approx(expected, rel=2e-3, abs=1e-4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
def test_the_area_is_the_share_of_pairs_in_order(items: list[tuple[int, bool]]) -> None:
    scores, memorized = map(np.array, zip(*items, strict=True))
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a, yes in items if yes for b, other in items if not other]
    area = float(detection.auc(scores, memorized))
    assert np.isnan(area) if not pairs else area == pytest.approx(np.mean(pairs))


def test_weights_of_the_area_mean_repeated_paragraphs() -> None:
    generator = np.random.default_rng(0)
    scores, memorized = generator.normal(size=12).round(1), np.arange(12) % 2 == 0
    weights = generator.integers(1, 4, 12)
    again = np.repeat(np.arange(12), weights)
    assert float(detection.auc(scores, memorized, weights)) == pytest.approx(
        float(detection.auc(scores[again], memorized[again]))
    )


def test_the_fit_is_the_minimum_of_the_penalised_loss() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(80, 3)) * (1, 10, 0.1) + (0, 5, -3)
    memorized = generator.random(80) < 1 / (1 + np.exp(-values[:, 0]))
    found = detection.fit(("a", "b", "c"), values, memorized)
    x = torch.tensor((values - values.mean(0)) / values.std(0))
    y, w, b = torch.tensor(memorized.astype(float)), torch.zeros(3, dtype=x.dtype), torch.zeros((), dtype=x.dtype)
    optimizer = torch.optim.LBFGS([w.requires_grad_(), b.requires_grad_()], max_iter=500, tolerance_grad=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = (
            torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, y, reduction="sum") + w.square().sum() / 2
        )
        total.backward()
        return total

    optimizer.step(loss)
    assert found.weights == pytest.approx(w.detach().numpy(), abs=1e-4)
    assert found.bias == pytest.approx(float(b.detach()), abs=1e-4)
    assert detection.auc(found.log_odds(values), memorized) > 0.6


def test_a_signal_that_tells_only_within_its_cluster_tells_nothing_elsewhere() -> None:
    """Each cluster has its own signal: a detector that had seen the cluster would be right, ours must not be."""
    clusters = np.repeat(np.arange(40), 5)
    memorized = clusters % 2 == 0
    values = np.eye(40)[clusters]
    unseen = detection.out_of_cluster(tuple(map(str, range(40))), values, memorized, clusters)
    assert float(detection.auc(detection.fit(("x",) * 40, values, memorized).log_odds(values), memorized)) == 1
    assert float(detection.auc(unseen, memorized)) < 0.7


def test_own_scale_undoes_a_change_of_units() -> None:
    generator = np.random.default_rng(2)
    memorized = np.arange(60) % 2 == 0
    values = generator.normal(size=(60, 2)) + memorized[:, None]
    found = detection.fit(("a", "b"), values, memorized)
    assert found.log_odds(values * 7 + 3, own_scale=True) == pytest.approx(found.log_odds(values), abs=1e-9)


def test_too_few_of_a_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 10 memorized"):
        detection.check(np.array([True] * 9 + [False] * 30), np.arange(39))
    with pytest.raises(UsageError, match="near-duplicates"):
        detection.check(np.array([True] * 20 + [False] * 20), np.arange(40) % 5)


def test_what_is_no_detector_is_said_whatever_it_holds(tmp_path: Path) -> None:
    about = {"format": "memloc-detector 1", "names": "a", "weights": [1], "mean": [1], "spread": [1]}
    for text in ("[" * 200_000, json.dumps(about | {"bias": 10**400})):
        (tmp_path / "detector.json").write_text(text)
        with pytest.raises(UsageError, match="is no detector; memloc-tui detect"):
            read_detector(tmp_path / "detector.json")


def test_the_command_fits_keeps_and_judges_a_detector(tmp_path: Path) -> None:
    kept = tmp_path / "detector.json"

    def memloc(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "memloc_tui", "detect", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    first = memloc("--limit", "100", "--out", str(kept), "--json")
    assert first.returncode == 0, first.stderr
    fitted = json.loads(first.stdout)
    low, high = fitted["interval"]
    assert 0.5 < low <= fitted["auc"] <= high <= 1
    assert [line["signal"] for line in fitted["baselines"]] == ["NLL", "min-k"]
    assert len(fitted["scores"]) == 100
    second = memloc("--limit", "100", "--detector", str(kept), "--json")
    assert second.returncode == 0, second.stderr
    assert "flatters" in second.stderr
    assert json.loads(second.stdout)["weights"] == pytest.approx(fitted["weights"], rel=1e-5)
    kept.write_text(kept.read_text().replace("spread", "sprout"))
    broken = memloc("--detector", str(kept))
    assert broken.returncode == 2
    assert "is no detector" in broken.stderr
    few = memloc("--limit", "5")
    assert (few.returncode, few.stdout) == (2, "")
    assert "at least 10 memorized" in few.stderr
