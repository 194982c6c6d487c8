"""What `make bench` writes: goals that are missed, and benchmarks that fail, stand in the table as that."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.benchmarks import bench_growth, common, run
from tests.benchmarks.bench_growth import CASES, Curve, Point, peak_bytes, picture


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """The record that one call of `report` leaves for the table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(common.RECORDS, str(tmp_path / "records"))
    figures = {"ratio": 1.4, "seconds": 2.0, "slope": math.nan, "count | n": 7}
    goals = {"ratio": (">=", 1.5), "seconds": ("<=", 2.0), "slope": ("<=", 1.0), "never measured": ("<=", 1.0)}
    common.report("a/b", figures, goals, seeds={"weights": 3})
    return json.loads((tmp_path / "records").read_text())


def whole(*records, code=0, error=""):
    each = {"name": "x", "seconds": 1.0, "exit": code, "error": error, "records": list(records)}
    return {"date": "d", "ended": "e", "machine": {"GPU": ["one", "two"]}, "runs": [each]}


def test_a_goal_that_was_not_reached_or_not_measured_is_missed(reported):
    assert {key: goal[2] for key, goal in reported["goals"].items()} == {
        "ratio": "missed",
        "seconds": "met",
        "slope": "missed",
        "never measured": "missed",
    }
    assert reported["figures"]["slope"] is None  # NaN is no JSON
    assert (common.RESULTS / "a-b.json").is_file()


def test_the_table_shows_every_figure_what_is_missed_and_what_failed(reported):
    table = run.markdown(whole(reported, code=1, error="ValueError: no | good")).splitlines()
    assert "1 of 4 goals met, 1 of 1 benchmarks failed." in table
    assert r"- failed: `x`, exit code 1: ValueError: no \| good" in table
    assert "| ratio | 1.4 | >= 1.5 | **missed** |" in table
    assert "| seconds | 2 | <= 2 | met |" in table
    assert r"| count \| n | 7 |  |  |" in table
    assert "| never measured | none | <= 1 | **missed** |" in table
    assert any(line.startswith("Seeds: weights 3.") for line in table)


def test_a_benchmark_that_is_none_is_named(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "sweeep"])
    assert run.main() == 2
    assert "no benchmark 'sweeep'" in capsys.readouterr().err


def test_a_growth_that_is_none_is_named_and_the_pictures_stay(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench_growth", "sweeep"])
    assert bench_growth.main() == 2
    assert "no analysis 'sweeep'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_exponent_is_that_of_the_uppermost_points():
    sizes = (1, 10, 100, 1000, 10_000)
    curve = Curve(CASES[0], "paragraphs", [Point(n, 0.5 + 1e-3 * n**1.5, 8 * n**2) for n in sizes])
    assert curve.exponent("bytes") == pytest.approx(2)
    assert 1.0 < curve.exponent("seconds") < 1.5  # the constant flattens the lowest of them
    assert math.isnan(Curve(CASES[0], "paragraphs", curve.points[:2]).exponent("bytes"))
    assert "near-duplicates" in picture([curve], "seconds")


def test_peak_memory_is_the_largest_sum_at_any_moment():
    def work():
        torch.ones(1_000_000)  # 4 MB, gone at once
        kept = torch.ones(500_000)
        kept.add(1)  # 2 MB more while it is held

    work()
    assert 4e6 <= peak_bytes(work) < 4.2e6
    assert 8e6 <= peak_bytes(lambda: np.ones(1_000_000)) < 8.2e6
