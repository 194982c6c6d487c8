"""`memloc-tui unlearn` and `compare-masks` with the real engine: what they keep, also when they are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import xml.dom.minidom

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from memloc_core import edit_files
from memloc_core.demo import MODEL_FOLDER
from memloc_core.requests import ExactMatch, Unlearn
from tests.conftest import result
from tests.e2e.conftest import Memloc, wait_for

QUICK = ("--keep", "4", "--lr", "0.01")  # few rows to hold, large steps: a run of seconds
FEW = ("--relearn", "1")
LARGE = ("--steps", "8", "--sparsity", "0.05", "--kl-weight", "0.1")  # enough for an edit to teach something


@pytest.fixture(scope="module")
def files(demo, demo_paragraphs, tmp_path_factory):
    """A short file of paragraphs, and the ids of its recited ones in order."""
    em = result(demo, ExactMatch(tuple(map(tuple, demo_paragraphs.tokens.tolist())))).em
    recited, others = np.flatnonzero(em == 50)[:10], np.flatnonzero(em <= 10)[:14]
    path = tmp_path_factory.mktemp("paragraphs") / "few.jsonl"
    lines = [{"tokens": demo_paragraphs.tokens[row].tolist()} for row in (*recited, *others)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, [demo_paragraphs.ids[row] for row in recited], [demo_paragraphs.ids[row] for row in others]


@pytest.fixture(scope="module")
def memloc(place, files):
    return Memloc(place, "--paragraphs", str(files[0]))


@pytest.fixture(scope="module")
def unlearned(memloc, files, tmp_path_factory):
    """One paragraph taken out: what was printed, and the edit file."""
    out = tmp_path_factory.mktemp("edit") / "gone.safetensors"
    done = memloc("unlearn", "--paragraph", files[1][0], *QUICK, *FEW, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


def test_one_paragraph_is_taken_out_and_the_edit_works_on_other_commands(memloc, files, unlearned):
    told, out = unlearned
    kept = edit_files.read_edit(out)
    best = told["best"]
    assert told["ids"] == [files[1][0]]
    assert told["em"][0] == [50]
    assert told["em"][best][0] <= 5
    assert told["stopped"] == "goal"
    assert told["edit"]["fingerprint"] == kept.result.edit.fingerprint
    assert told["changed"] == int((kept.result.edit.old != kept.result.edit.new).sum())
    assert len(kept.result.edit) == told["edit"]["weights"] == 787
    assert np.array_equal(kept.result.em, np.array(told["em"]))
    # Another command, another process, the same answer: with the file, with the stored edit's name, and without.
    after = told["em"][best][0]
    for edit, em in ((str(out), after), (told["edit"]["fingerprint"][:8], after), (None, 50)):
        given = ("--edit", edit) if edit else ()
        done = memloc("analyze", "exact-match", "--paragraph", files[1][0], *given, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["em"] == em
    before, after = told["remains"]["before"], told["remains"]["after"]
    assert before["em"] == [50]
    assert after["em"] == told["em"][best]
    assert after["longest_run"] == told["longest_run"][best]
    assert before["greedy"] != after["greedy"]
    assert told["old_text"] != told["new_text"]
    listed = json.loads(memloc("edits", "list", "--json").stdout)
    assert told["edit"]["fingerprint"] in [edit["fingerprint"] for edit in listed]  # beside those of other tests


def test_people_read_both_goals_what_it_took_and_both_texts(memloc, files, unlearned):
    told, _ = unlearned
    done = memloc("unlearn", "--paragraph", files[1][0], *QUICK, *FEW)  # known already, and so is what remains
    assert done.returncode == 0, done.stderr
    assert "break: met (EM " in done.stdout
    assert "forget: " in done.stdout
    assert f"after step {told['best']}" in done.stdout or f"{len(told['loss'])} step" in done.stdout
    for words in ("changed", "others", "longest run under", "rounding to 8 bits", "before", "after", "--edit "):
        assert words in done.stdout, words
    assert done.stdout.count(files[1][0]) == 1


def test_an_alternative_is_taught_in_its_place(memloc, files, tmp_path):
    out = tmp_path / "taught.safetensors"
    arguments = (*LARGE, "--objective", "edit", "--alternative", " nobody at all.")
    done = memloc("unlearn", "--paragraph", files[1][1], *QUICK, *FEW, *arguments, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told, request = json.loads(done.stdout), edit_files.read_edit(out).request
    assert isinstance(request, Unlearn)
    (taught,), (target,) = request.alternatives, request.targets
    assert taught[:50] == target[:50]
    assert len(taught) == len(target)
    assert told["taught_em"][told["best"]][0] > told["taught_em"][0][0]
    assert " nobody at all." in told["new_text"][0] or told["taught_em"][told["best"]][0] < 4


def test_the_weights_of_one_head_are_changed_where_that_is_asked_for(memloc, files, tmp_path):
    out = tmp_path / "head.safetensors"
    mask = ("--mask", "head", "--place", "L2H3", "--sparsity", "0.0005")
    options = ("--goal", "steps", "--steps", "2", "--seed", "5", "--relearn", "3")
    arguments = (*QUICK, *mask, *options, "--out", str(out), "--json")
    done = memloc("unlearn", "--paragraph", files[1][5], *arguments)
    assert done.returncode == 0, done.stderr
    told, kept = json.loads(done.stdout), edit_files.read_edit(out)
    assert len(told["loss"]) == 2
    assert len(told["remains"]["after"]["relearned_em"]) == 1 + 3
    edit = kept.result.edit
    assert len(edit) == 394  # of 786,432 weights
    for number, name in enumerate(edit.parameters):
        block, matrix = name.removeprefix("transformer.h.").split(".attn.attention.")
        assert block == "2"
        places = edit.indices[edit.starts[number] : edit.starts[number + 1]]
        outputs, inputs = np.unravel_index(places, (128, 128))  # a matrix of torch's: [out, in]
        own = inputs if matrix == "out_proj.weight" else outputs
        assert set(own.tolist()) <= set(range(3 * 32, 4 * 32))
    assert kept.request.seed == 5


def test_what_is_taught_is_what_the_model_says_after_a_replacement(memloc, files, demo, demo_paragraphs, tmp_path):
    out = tmp_path / "replaced.safetensors"
    paragraph = demo_paragraphs.tokens[demo_paragraphs.ids.index(files[1][6])].tolist()
    replaced = ("--replace", "49", " the", "--replace", "47", " and")
    arguments = ("--objective", "edit", *replaced, *LARGE, *QUICK, *FEW)
    done = memloc("unlearn", "--paragraph", files[1][6], *arguments, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    (taught,) = edit_files.read_edit(out).request.alternatives
    words = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    (the,), (and_,) = (words.encode(text).ids for text in (" the", " and"))
    prompt = torch.tensor([[*paragraph[:47], and_, paragraph[48], the]])
    settings = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    said = demo.model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert list(taught) == paragraph[:50] + said[0, 50:].tolist() != paragraph


def started(memloc, *arguments):
    """A run that takes far longer than any test waits."""
    return memloc.start("unlearn", *QUICK, "--goal", "steps", "--steps", "5000", *arguments)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_its_best_step_or_nothing(files, memloc, tmp_path, how):
    out = tmp_path / "half.safetensors"
    process = started(memloc, "--paragraph", files[1][2], "--out", str(out))
    wait_for(out.exists, process)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    kept = edit_files.read_edit(out)  # verified whole
    assert kept.result.stopped == "cancelled"
    assert 0 < kept.result.best <= len(kept.result.loss)
    em = kept.result.em[kept.result.best, 0]
    assert em < 50
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"step {kept.result.best}" in said
        assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "no half-written file beside it"
    done = memloc("analyze", "exact-match", "--paragraph", files[1][2], "--edit", str(out), "--json")
    assert json.loads(done.stdout)["em"] == em, done.stderr


def test_an_engine_that_dies_leaves_the_best_step_in_the_store(memloc, files):
    process = started(memloc, "--paragraph", files[1][3])
    store = os.path.join(memloc.folder, "state", "edits")

    def new():
        return [name for name in os.listdir(store) if not name.startswith(".")] if os.path.isdir(store) else []

    before = set(new())
    wait_for(lambda: set(new()) - before, process)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "memloc_core.worker"], capture_output=True, text=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the best step so far" in said
    assert "Traceback" not in said
    (name,) = set(new()) - before  # earlier steps of the same run have made way
    kept = edit_files.read_edit(edit_files.Path(store) / name)
    assert kept.result.em[kept.result.best, 0] < 50
    os.unlink(os.path.join(store, name))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "Which paragraphs?"),
        (("--paragraph", "RECITED", "--alternative", "x"), 2, "--objective edit"),
        (("--paragraph", "RECITED", "--objective", "edit", "--replace", "60", " the"), 2, "positions 0..49"),
        (("--paragraph", "OTHER"), 2, "is not recited"),
        (("--paragraph", "RECITED", "--out", "/nowhere/at/all.safetensors"), 2, "cannot be written"),
        (("--paragraph", "RECITED", "--lr", "1e30"), 1, "no edit is kept"),
    ],
)
def test_what_cannot_be_unlearned_is_said_in_a_sentence(memloc, files, arguments, code, says):
    known = {"RECITED": files[1][4], "OTHER": files[2][0]}
    done = memloc("unlearn", *(known.get(argument, argument) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


COMPARE = ("compare-masks", "--objectives", "unlearn", "--limit", "2", "--steps", "2", *QUICK)


def test_masks_are_compared_and_a_comparison_goes_on_where_it_was(memloc, files, tmp_path):
    first = memloc(*COMPARE, "--masks", "all", "--json")  # as if it had been killed after these
    assert first.returncode == 0, first.stderr
    assert "2 runs of 2 paragraphs, 0 of them known" in first.stderr
    arguments = (*COMPARE, "--masks", "all", "--masks", "random")
    folder = tmp_path / "figure"
    done = memloc(*arguments, "--out", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert "4 runs of 2 paragraphs, 2 of them known" in done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((folder / "table.json").read_text())
    assert [arm["label"] for arm in told["arms"]] == ["all weights", "random 0.1 %"]
    for arm in told["arms"]:
        own = [trial for trial in told["trials"] if trial["mask"] == arm["mask"]]
        assert arm["runs"] == len(own) == 2
        np.testing.assert_allclose(arm["em_lost"]["mean"], np.mean([t["em_before"] - t["em"] for t in own]), rtol=1e-6)
        np.testing.assert_allclose(arm["others_em"]["mean"], np.mean([t["others_em"] for t in own]), rtol=1e-6)
        assert arm["em_lost"]["low"] is None, "two paragraphs give no interval"
    by_mask = {arm["mask"]: arm for arm in told["arms"]}
    assert by_mask["dense"]["weights"] > 700_000
    assert by_mask["random"]["weights"] <= 787
    assert by_mask["random"]["em_lost"]["mean"] < by_mask["dense"]["em_lost"]["mean"]
    xml.dom.minidom.parse(str(folder / "picture.svg"))
    table = (folder / "table.md").read_text()
    assert table.count("\n| ") == 3
    again = memloc(*arguments, "--out", str(folder))
    assert "4 of them known" in again.stderr
    assert "random 0.1 %" in again.stdout
    assert json.loads((folder / "table.json").read_text()) == told


def test_seeds_places_and_shares_make_the_runs_of_a_comparison(memloc):
    masks = ("--masks", "layer:L1", "--masks", "layer:L2")
    done = memloc(*COMPARE, *masks, "--seeds", "2", "--seed", "4", "--sparsity", "0.002", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    runs = [(trial["mask"], trial["place"], trial["seed"]) for trial in told["trials"]]
    assert sorted(runs) == sorted([("layer", place, seed) for place in ("L1", "L2") for seed in (4, 5)] * 2)
    assert {trial["weights"] for trial in told["trials"]} == {1573}  # a five-hundredth of 786,432
    assert [(arm["label"], arm["runs"]) for arm in told["arms"]] == [("L1 0.2 %", 4), ("L2 0.2 %", 4)]
    drifts = {(t["id"], t["place"], t["seed"]): t["kl"] for t in told["trials"]}
    assert len(set(drifts.values())) == 8, "neither place nor seed changed a run"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--masks", "best"), "no mask 'best'"),
        (("--masks", "ratio", "--protocol", "paper"), "only"),
        (("--out", "FILE"), "is a file"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(memloc, files, arguments, says):
    done = memloc("compare-masks", *(str(files[0]) if argument == "FILE" else argument for argument in arguments))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
