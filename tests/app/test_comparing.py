"""Masks compared: means and intervals against naive ones, and a picture that any text fits into."""

from __future__ import annotations

import math
import xml.dom.minidom

import numpy as np
import pytest

from memloc_core.errors import UsageError
from memloc_core.requests import GradientContrast
from memloc_tui.commands.compare_masks import Arm, Comparison, Trial, _markdown, _picture, _places, _write, summarize
from memloc_tui.commands.pictures import HUES, Axis, Drawing, Panel, Spot, Value, against

TOP = Arm("memloc", "unlearn", "gradient", "", 0.001)
RANDOM = Arm("memloc", "unlearn", "random", "", 0.001)
ABOUT = {"model": "a | model", "seed": 0, "seeds": 2, "length": 50}


def trial(arm, id_, cluster, seed, em, others):
    rest = {"longest_run": em, "nll": 1.0, "taught_em": -1, "family_em": math.nan, "agreement": 0.99, "kl": 0.1}
    rest |= {"general_nll": 0.0, "weights": 7, "steps": 3, "met": em <= 5, "seconds": 1.0}
    return Trial(arm=arm, id=id_, cluster=cluster, seed=seed, em_before=50, em=em, others_em=others, **rest)


def trials(n):
    rng = np.random.default_rng(0)
    return [
        trial(arm, f"{i:03d}", i // 2, seed, int(rng.integers(0, 10) + 30 * (arm is RANDOM)), float(rng.normal(48, 1)))
        for arm in (TOP, RANDOM)
        for seed in range(2)
        for i in range(n)
    ]


def test_seeds_are_averaged_first_and_whole_clusters_resampled():
    given = trials(24)
    summary = summarize(given, ABOUT)
    assert [arm["label"] for arm in summary["arms"]] == ["top 0.1 %", "random 0.1 %"]
    top = summary["arms"][0]
    assert (top["targets"], top["runs"]) == (24, 48)
    lost = np.array([np.mean([50 - t.em for t in given if t.arm is TOP and t.id == f"{i:03d}"]) for i in range(24)])
    assert top["em_lost"]["mean"] == pytest.approx(lost.mean(), rel=1e-6)
    assert top["met"]["mean"] == pytest.approx(np.mean([t.em <= 5 for t in given if t.arm is TOP]), rel=1e-6)
    # A bootstrap of our own over the twelve pairs.
    pairs, rng = lost.reshape(12, 2).mean(1), np.random.default_rng(5)
    low, high = np.quantile(pairs[rng.integers(0, 12, (20_000, 12))].mean(1), (0.025, 0.975))
    assert top["em_lost"]["low"] == pytest.approx(low, abs=0.15)
    assert top["em_lost"]["high"] == pytest.approx(high, abs=0.15)
    assert top["family_em"] == {"mean": None, "low": None, "high": None}
    assert [t["em"] for t in summary["trials"]] == [t.em for t in given]


def test_below_ten_clusters_there_is_no_interval():
    few, enough = (summarize(trials(n), ABOUT)["arms"][0]["em"] for n in (18, 20))
    assert (few["low"], few["high"]) == (None, None)
    assert enough["low"] < enough["mean"] < enough["high"]


def test_table_and_picture_hold_every_arm():
    summary = summarize(trials(24), ABOUT)
    table, picture = _markdown(summary), _picture(summary)
    assert "a \\| model" in table
    for label in ("top 0.1 %", "random 0.1 %"):
        assert f"| {label} |" in table
        assert picture.count(f">{label}<") == 2, "beside its mark, and in the key"
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_without_others_there_is_a_table_and_no_picture(tmp_path, capsys):
    (tmp_path / "figure").mkdir()
    (tmp_path / "figure" / "picture.svg").write_text("of an earlier comparison")
    _write(tmp_path / "figure", summarize([trial(TOP, "000", 0, 0, 3, math.nan)], ABOUT))
    assert sorted(path.name for path in (tmp_path / "figure").iterdir()) == ["table.json", "table.md"]
    said = capsys.readouterr().err
    assert "table.json, table.md written to" in said
    assert "picture.svg is not written: the set has no other memorized paragraphs" in said


def test_places_are_where_memorized_gradients_stand_out():
    names = ("W_Q H0", "W_Q H1", "W_K H0", "W_K H1", "W_V H0", "W_V H1", "W_O H0", "W_O H1", "W_in", "W_out")
    ratio = np.ones((3, len(names)), np.float32)
    ratio[1, names.index("W_Q H1")] = 3
    ratio[2, names.index("W_in")] = 9
    nothing = np.zeros((3, len(names)), np.float32)
    fields = dict.fromkeys(GradientContrast.__dataclass_fields__, nothing)
    contrast = GradientContrast(**(fields | {"components": names, "ratio": ratio}))
    assert _places(contrast) == {"head": "L1H1", "layer": "L2", "component": "W_in"}


@pytest.mark.parametrize(
    ("masks", "says"), [(("best",), "no mask"), (("random:L1",), "no place"), (("top", "gradient"), "twice")]
)
def test_masks_that_cannot_be_meant_are_said(masks, says):
    with pytest.raises(UsageError, match=says):
        Comparison(masks)


def test_arms_keep_the_order_they_are_named_in():
    assert Comparison(("all", "head:L1H2", "top")).arms() == [("dense", ""), ("head", "L1H2"), ("gradient", "")]
    assert len(Comparison().arms()) == 8


def test_a_picture_escapes_its_text_and_shows_what_a_terminal_must_not_see():
    hostile = 'a<b>&"\x1b[2J\x00\u202e</text><script>'
    picture = against(
        hostile, (hostile, "x"), ("y", "y"), [Panel(hostile, hostile, [Spot(hostile, Value(1), Value(2))])]
    )
    document = xml.dom.minidom.parseString(picture)
    assert not document.getElementsByTagName("script")
    texts = [node.firstChild.data for node in document.getElementsByTagName("text") if node.firstChild]
    assert any("a<b>&" in text and "␛[2J" in text for text in texts)
    assert "\x1b" not in picture
    assert "\u202e" not in picture


def test_marks_stand_where_their_numbers_are():
    spots = [
        Spot("one", Value(10), Value(40)),
        Spot("two", Value(30, 25, 35), Value(50)),
        Spot("three", Value(20), Value(45)),
    ]
    document = xml.dom.minidom.parseString(against("t", ("x", "x"), ("y", "y"), [Panel("p", "", spots)]))
    circle = document.getElementsByTagName("circle")[0]  # the first mark of all is a circle
    polygons = [
        np.array([[float(n) for n in point.split(",")] for point in node.getAttribute("points").split()]).mean(0)
        for node in document.getElementsByTagName("polygon")[:2]
    ]
    places = [(float(circle.getAttribute("cx")), float(circle.getAttribute("cy"))), *map(tuple, polygons)]
    (x1, y1), (x2, y2), (x3, y3) = places
    assert x3 == pytest.approx((x1 + x2) / 2, abs=1.5)
    assert y3 == pytest.approx((y1 + y2) / 2, abs=1.5)
    assert x1 < x2
    assert y1 > y2, "up is more"
    hues = {node.getAttribute("stroke") for node in document.getElementsByTagName("line")}
    assert HUES["ink"] in hues, "the interval of the second"


@pytest.mark.parametrize("values", [(0.0,), (1.0, 1.0001), (-3.2, 48.9), (0.0, 1e-6), (math.nan,), (1e6, 5e6)])
def test_an_axis_holds_its_values_between_round_numbers(values):
    axis = Axis.around(values, least=0.001)
    known = [value for value in values if value == value]
    assert all(axis.low - 1e-12 <= value <= axis.high + 1e-12 for value in known)
    assert 2 <= len(axis.ticks) <= 12
    said = [axis.said(tick) for tick in axis.ticks]
    assert len(set(said)) == len(said), "no two ticks read the same"


def test_hatched_bars_are_told_from_solid_ones_without_colour():
    solid, hatched = Drawing(40, 40), Drawing(40, 40)
    solid.rect(0, 0, 20, 10)
    hatched.rect(0, 0, 20, 10, hatched=True)
    assert 'fill="none"' in hatched.svg()
    assert hatched.svg().count("<line") == 4
    assert "<line" not in solid.svg()
