"""`memloc-tui report`, `compare` and `config`, as commands: their numbers against transformers' own, their refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from memloc_core import edit_files, weight_edits
from memloc_core.requests import Attention, ExactMatch, OpenModel, ParameterGradients, Sweep
from tests.conftest import result
from tests.e2e.conftest import succeeded
from tests.edits import make_edit, run_of

ROWS = np.random.default_rng(0).integers(0, 120, (14, 100)).tolist()
OPTIONS = ("--model", "tiny", "--paragraphs", "rows.npy", "--device", "cpu")


@pytest.fixture(scope="module")
def place(make_checkpoint, tmp_path_factory):
    """Two checkpoints with one tokenizer, a third that reads other words, and rows of ids."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("reports")
    for name, word in (("tiny", "w"), ("other", "w"), ("foreign", "v")):
        shutil.copytree(make_checkpoint(name, hidden_size=16 if name == "other" else 32), folder / name)
        words = Tokenizer(models.WordLevel({f" {word}{i}": i for i in range(120)}, f" {word}0"))
        words.save(str(folder / name / "tokenizer.json"))
    np.save(folder / "rows.npy", np.array(ROWS))
    return folder


@pytest.fixture(scope="module")
def models(place):
    from memloc_core.loading import load

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: load(OpenModel(str(place / name), device="cpu")) for name in ("tiny", "other")}
    torch.set_num_threads(threads)


def rows_of(n):
    return tuple(map(tuple, ROWS[:n]))


def test_a_paragraph_in_every_form(memloc, models, place):
    row = rows_of(1)[0]
    ids = [line["id"] for line in json.loads(succeeded(memloc(*OPTIONS, "list", "--json")))]
    about = (*OPTIONS, "report", "--paragraph", ids[0], "--head", "L1H3")
    record = json.loads(succeeded(memloc(*about, "--format", "json")))["paragraphs"][0]
    scored = result(models["tiny"], ExactMatch((row,)))
    assert record["em"] == scored.em[0]
    assert record["nll"] == pytest.approx(scored.nll[0], rel=1e-4)
    assert record["tokens"] == list(row)
    prompt = torch.tensor([row[:50]])
    settings = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generated = models["tiny"].model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert record["own_continuation"] == generated[0, 50:].tolist()
    shares = result(models["tiny"], ParameterGradients((row,))).layer_shares()[0]
    np.testing.assert_allclose(record["gradients"]["layer_shares"], shares, rtol=1e-3)
    weights = result(models["tiny"], Attention(row)).weights[1, 3]
    np.testing.assert_allclose(record["attention"]["head_weights"], weights, rtol=1e-3)
    for ending, begins in (("html", "<!DOCTYPE html>"), ("md", f"# Paragraph {ids[0]}")):
        done = memloc(*about, "--out", f"report.{ending}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"written to report.{ending}\n")
        text = (place / f"report.{ending}").read_text()
        assert text.startswith(begins)
        assert "L1H3" in text
    assert "<script" not in (place / "report.html").read_text()


def test_a_set_without_memorized_paragraphs_is_said_and_the_rest_stands(memloc, models):
    data = json.loads(succeeded(memloc(*OPTIONS, "report", "--format", "json")))
    assert data["paragraphs"] == len(ROWS)
    assert [s["paragraphs"] for s in data["strata"]] == [0, 0, len(ROWS)]
    assert data["corruption"][0]["paragraphs"] == 0
    first = result(models["tiny"], Sweep(rows_of(1)[0], reference="own")).drops().mean()
    eight = [result(models["tiny"], Sweep(row, reference="own")).drops().mean() for row in rows_of(8)]
    assert eight[0] == first
    assert data["corruption"][1]["mean_drop"] == pytest.approx(np.mean(eight), abs=1e-4)
    assert succeeded(memloc(*OPTIONS)).count("non-memorized, EM <= 10") == 1  # no terminal: the same, as text


def test_two_models_side_by_side(memloc, models):
    done = memloc(*OPTIONS, "compare", "--with", "other", "--set", "all", "--limit", "12", "--head", "L0H1", "--json")
    data = json.loads(succeeded(done))
    rows = rows_of(12)
    for side, name in (("a", "tiny"), ("b", "other")):
        lm = models[name]
        scored = result(lm, ExactMatch(rows))
        assert [p[side]["em"] for p in data["paragraphs"]] == scored.em.tolist()
        np.testing.assert_allclose([p[side]["nll"] for p in data["paragraphs"]], scored.nll, rtol=1e-4)
        drops = [result(lm, Sweep(row, reference="own")).drops().mean() for row in rows]
        assert data["means"]["mean_drop"][side] == pytest.approx(np.mean(drops), abs=1e-4)
        peaks = [result(lm, Attention(row)).weights[0, 1].max() for row in rows]
        assert data["means"]["weight"][side] == pytest.approx(np.mean(peaks), rel=1e-4)
    means = data["means"]["nll"]
    assert means["difference"] == pytest.approx(means["b"] - means["a"])
    assert len(data["means"]["tau"]["a"]) == 3
    text = succeeded(memloc(*OPTIONS, "compare", "--with", "other", "--paragraph", data["paragraphs"][0]["id"]))
    assert "tiny against other" in text
    assert "needs at least 10 paragraphs" in text  # rarity over one: said, and the rest stands


def test_the_original_against_the_edited_model(memloc, models, place):
    edit = make_edit(models["tiny"], 400, 0)
    edit_files.write_edit(place / "edit.safetensors", run_of(edit))
    done = memloc(*OPTIONS, "compare", "--with-edit", "edit.safetensors", "--set", "all", "--limit", "2", "--json")
    data = json.loads(succeeded(done))
    rows = rows_of(2)
    before = result(models["tiny"], ExactMatch(rows)).nll
    with weight_edits.edited(models["tiny"], (edit,)):
        after = result(models["tiny"], ExactMatch(rows)).nll
    assert (np.abs(after - before) > 1e-3).all()
    np.testing.assert_allclose([p["a"]["nll"] for p in data["paragraphs"]], before, rtol=1e-4)
    np.testing.assert_allclose([p["b"]["nll"] for p in data["paragraphs"]], after, rtol=1e-4)
    assert data["b"]["name"].endswith("edit: edit")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "--set", "all"), "--with MODEL or --with-edit EDIT"),
        (("compare", "--with", "other"), "Which paragraphs"),
        (("compare", "--with", "foreign", "--set", "all", "--limit", "1"), "different tokenizers"),
        (("compare", "--with", "nowhere", "--set", "all", "--limit", "1"), "nowhere"),
        (("compare", "--with", "other", "--set", "all", "--json", "--format", "md"), "leave it out, or --format md"),
        (("report", "--paragraph", "zz", "--head", "two"), "write L1H2"),
        (("report", "--set", "memorized", "--head", "L0H1"), "--head goes with --paragraph"),
        (("report", "--findings", "--head", "L0H1"), "--head goes with --paragraph"),
        (("report", "--findings", "--set", "all"), "--findings is about the whole set"),
        (("report", "--quick"), "--quick goes with --findings"),
        (("report", "--paragraph", "zz"), "No paragraph has an id"),
        (("report", "--paragraph", "zz", "--set", "memorized"), "not both"),
        (("report", "--limit", "1", "--out", "no/such/folder/x.html"), "cannot be written"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_sentence(memloc, place, arguments, says):
    done = memloc(*OPTIONS, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_config_as_a_command(memloc, place):
    env = {"MEMLOC_CONFIG": str(place / "own.toml")}
    assert succeeded(memloc("config", "path", env=env)).strip() == env["MEMLOC_CONFIG"]
    (place / "own.toml").write_text('[defaults]\nmodel = "tiny"\nparagraphs = "rows.npy"\n[keys]\n"app.help" = "f1"\n')
    shown = json.loads(succeeded(memloc("config", "show", "--json", env=env)))
    assert shown["settings"]["model"] == {"value": "tiny", "from": "line 2"}
    assert shown["settings"]["device"] == {"value": "auto", "from": "default"}
    assert shown["keys"]["app.help"]["key"] == "f1"
    assert shown["problems"] == []
    assert len(json.loads(succeeded(memloc("list", "--json", env=env)))) == len(ROWS)
    (place / "own.toml").write_text('[defaults]\n\ndtype = "half"\n')
    refused = memloc("list", env=env)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "own.toml, line 3: defaults.dtype needs auto, float32, bfloat16, float16, not 'half'" in refused.stderr
    assert memloc("config", "show", env=env).returncode == 2
