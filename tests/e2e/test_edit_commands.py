"""Edits through the real engine process and the real commands: what is answered with them, and what is left."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from memloc_core import codec, edit_files, weight_edits
from memloc_core.errors import EngineDied, MemlocError
from memloc_core.requests import Edited, ExactMatch, ExportCheckpoint, Perturb, Sweep
from memloc_tui import edits as kept, labels
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from tests.conftest import give_words, result
from tests.edits import make_edit, run_of

ROWS = np.random.default_rng(0).integers(0, 120, (6, 100)).tolist()
ROW = tuple(ROWS[0])
LONG = Sweep(ROW, "random", 119)  # several thousand replacements
QUICK = Perturb(ROW, ((3, 7), (40, 0)))


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tmp_path_factory):
    """A checkpoint of 120 words, and rows of ids."""
    folder = tmp_path_factory.mktemp("edits")
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    give_words(folder / "tiny")
    np.save(folder / "rows.npy", np.array(ROWS))
    return folder


@pytest.fixture(scope="module")
def two(place, tiny):
    """Two edits of other places that can be on together; and a file with one of another model."""
    free = {name: torch.ones_like(parameter) for name, parameter in tiny.model.named_parameters()}
    edits = [make_edit(tiny, 400, seed, free=free) for seed in range(2)]
    for name, edit in zip("ab", edits, strict=True):
        edit_files.write_edit(place / f"{name}.safetensors", run_of(edit))
    wrong = dataclasses.replace(edits[0], base="0123456789", model="another-model")
    edit_files.write_edit(place / "wrong.safetensors", run_of(wrong))
    return edits


def settings(place, model="tiny", **changes):
    return Settings(str(place / model), str(place / "rows.npy"), "cpu", cache_dir=place / "cache", **changes)


def expected(tiny, request, *edits):
    """The answer of the same analysis on weights that are edited in this process."""
    with weight_edits.edited(tiny, edits):
        return result(tiny, request)


def close(got, want):
    for name, value in vars(want).items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-4, atol=1e-5)


def differ(a, b):
    return codec.encode(a) != codec.encode(b)


async def begun(session, request):
    """A question on its way: its task, and the list that grows with its progress."""
    heard, first = [], asyncio.Event()

    def listen(progress):
        heard.append(progress)
        first.set()

    task = asyncio.create_task(session.ask(request, listen))
    await asyncio.wait_for(first.wait(), 60)
    return task, heard


async def test_a_sitting_with_edits(place, tiny, two):
    """Statements about one engine, one after the other."""
    a, b = (kept.active(str(place / f"{name}.safetensors")) for name in "ab")
    session = Session(settings(place))
    await session.open()
    try:
        plain = (await session.ask(QUICK)).result
        close(plain, expected(tiny, QUICK))
        for on in ((a,), (b,), (a, b)):
            session.set_edits(on)
            assert session.peek(QUICK) is None
            answer = await session.ask(QUICK)
            close(answer.result, expected(tiny, QUICK, *(two["ab".index(edit.name)] for edit in on)))
            assert differ(answer.result, plain)
            assert answer.request == QUICK
            assert answer.provenance.edit == ",".join(edit.fingerprint for edit in on)
            assert session.peek(QUICK) is answer
        session.set_edits((dataclasses.replace(a, on=False), b))  # a flip: known at once
        assert session.peek(QUICK).provenance.edit == b.fingerprint
        assert not differ((await session.ask(Edited(QUICK, ()))).result, plain)  # the original, asked for by name
        by_name = await session.ask(Edited(QUICK, (a.fingerprint,), (a.file,)))
        close(by_name.result, expected(tiny, QUICK, two[0]))
        session.set_edits(())
        assert not differ(session.peek(QUICK).result, plain)
        assert session.peek(QUICK).provenance.edit == ""
        await sweeps_asked_together_are_kept_each_under_its_own_edits(session, tiny, two, a)
        await others_are_answered_by_the_original_while_an_edited_sweep_runs(session, tiny, a)
        await a_paused_question_takes_no_step_until_it_goes_on(session, tiny, a)
        await a_cancelled_edited_sweep_leaves_the_original(session, tiny, a)
        await an_edit_of_another_model_is_refused_with_both_named(session, a)
        await an_export_is_written_each_time_it_is_asked_for(session, place, a)
        await an_engine_killed_in_an_edited_sweep_answers_rightly_after_it(session, tiny, two, a)
    finally:
        await session.close()
    await a_later_visit_needs_no_engine(place, tiny, two)
    await nor_does_the_refusal_of_another_models_edit(place)
    assert b"a.safetensors" not in (place / "cache" / "cache.db").read_bytes()


async def sweeps_asked_together_are_kept_each_under_its_own_edits(session, tiny, two, a):
    rows = (ROW, ROW[::-1], (*ROW[50:], *ROW[:50]))
    sweeps = [Sweep(row, seed=3, reference=("true", "own")[i % 2]) for i, row in enumerate(rows)]
    for on, edits, names in (((a,), two[:1], a.fingerprint), ((), (), "")):
        session.set_edits(on)
        assert session.together(sweeps) == 3
        asked = asyncio.create_task(session.ask_together(sweeps))
        await asyncio.sleep(0)
        session.set_edits(())  # what is put on or off meanwhile is not what was asked with
        answers = await asked
        session.set_edits(on)
        for sweep, answer in zip(sweeps, answers, strict=True):
            assert answer.request == sweep
            assert answer.provenance.edit == names
            close(answer.result, expected(tiny, sweep, *edits))
            assert not differ(session.peek(sweep).result, answer.result)
            assert session.peek(sweep).provenance.edit == names
        assert session.together(sweeps) == 1  # known by now


async def others_are_answered_by_the_original_while_an_edited_sweep_runs(session, tiny, a):
    session.set_edits((a,))
    task, heard = await begun(session, LONG)
    session.set_edits(())
    question = Perturb(ROW, ((5, 9),))
    close((await session.ask(question)).result, expected(tiny, question))
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert heard


async def a_paused_question_takes_no_step_until_it_goes_on(session, tiny, a):
    assert not session.pause(LONG, True)  # nobody asks it
    session.set_edits((a,))
    task, heard = await begun(session, LONG)
    session.set_edits(())  # what is shown may change while a run is paused
    assert session.pause(LONG, True)
    question = Perturb(ROW, ((6, 9),))
    close((await session.ask(question)).result, expected(tiny, question))
    before = len(heard)
    await asyncio.sleep(0.6)
    assert len(heard) == before
    assert session.pause(LONG, False)
    until = time.monotonic() + 30
    while len(heard) == before and time.monotonic() < until:
        await asyncio.sleep(0.02)
    assert len(heard) > before
    assert session.pause(LONG, True)
    pid = session._client.pid
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    question = Perturb(ROW, ((7, 9),))
    close((await session.ask(question)).result, expected(tiny, question))
    await asyncio.sleep(0.1)
    assert session._client.pid == pid  # the paused question was cancelled by word, not by a kill
    assert not session._client._asked


async def a_cancelled_edited_sweep_leaves_the_original(session, tiny, a):
    session.set_edits((a,))
    for _ in range(3):
        task, _ = await begun(session, LONG)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    session.set_edits(())
    question = Perturb(ROW, ((8, 9),))
    close((await session.ask(question)).result, expected(tiny, question))


async def an_edit_of_another_model_is_refused_with_both_named(session, a):
    wrong = dataclasses.replace(a, base="0123456789", model="another-model")
    said = r"another-model \(weights 01234567\), and the open model is tiny \(weights "
    with pytest.raises(MemlocError, match=said):
        session.set_edits((wrong,))
    assert session.edits == ()


async def an_export_is_written_each_time_it_is_asked_for(session, place, a):
    session.set_edits((a,))
    for _ in range(2):
        answer = await session.ask(ExportCheckpoint(str(place / "exported")))
        assert answer.provenance.edit == a.fingerprint
        assert (place / "exported" / "model.safetensors").is_file()
        shutil.rmtree(place / "exported")
    session.set_edits(())


async def an_engine_killed_in_an_edited_sweep_answers_rightly_after_it(session, tiny, two, a):
    session.set_edits((a,))
    task, _ = await begun(session, LONG)
    os.kill(session._client.pid, signal.SIGKILL)
    with pytest.raises(EngineDied):
        await task
    question = Perturb(ROW, ((9, 9),))
    close((await session.ask(question)).result, expected(tiny, question, two[0]))
    session.set_edits(())
    close((await session.ask(question)).result, expected(tiny, question))


async def a_later_visit_needs_no_engine(place, tiny, two):
    for names in ((), ("a",), ("a", "b")):
        session = Session(settings(place, edits=tuple(str(place / f"{name}.safetensors") for name in names)))
        await session.open(lazily=True)
        try:
            answer = await session.ask(QUICK)
            assert session._client.pid is None
            assert answer.request == QUICK
            assert answer.provenance.edit == ",".join(edit.fingerprint for edit in two[: len(names)])
            close(answer.result, expected(tiny, QUICK, *two[: len(names)]))
        finally:
            await session.close()


async def nor_does_the_refusal_of_another_models_edit(place):
    session = Session(settings(place, edits=(str(place / "wrong.safetensors"),)))
    with pytest.raises(MemlocError, match=r"another-model .*, and the open model is tiny"):
        await session.open(lazily=True)
    assert session._client.pid is None
    await session.close()


# -------------------------------------------------------------------------------------------------------- commands


OPTIONS = ("--model", "tiny", "--paragraphs", "rows.npy", "--device", "cpu")


def test_wrong_edits_are_told_in_a_sentence(place, memloc, two):
    known = ("--model", str(place / "tiny"), "--paragraphs", str(place / "rows.npy"), "--device", "cpu")
    (place / "cut.safetensors").write_bytes((place / "a.safetensors").read_bytes()[:-5])
    for arguments, code, said in (
        ((*OPTIONS, "--edit", "nowhere", "list"), 2, "There is no edit file 'nowhere'"),
        ((*OPTIONS, "--edit", "cut.safetensors", "list", "--no-cache"), 1, "damaged or changed"),
        ((*known, "list", "--edit", "wrong.safetensors"), 1, "another-model (weights 01234567)"),
        (("edits", "show", "rows.npy"), 1, "is no edit file"),
        (("edits", "remove", "a.safetensors"), 2, "not one of the stored edits"),
        (("edits", "export", "a.safetensors", "--out", "tiny"), 2, "is there already"),
    ):
        done = memloc(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr
        assert done.stderr.startswith("memloc-tui: ")
        assert "Traceback" not in done.stderr


def test_edits_are_listed_shown_exported_and_removed(place, memloc, tiny, two, monkeypatch):
    monkeypatch.setenv("MEMLOC_STATE_DIR", str(place / "state"))
    path = kept.store(run_of(two[0]))
    name = two[0].fingerprint[:8]
    listed = memloc("edits", "list", "--json")
    (line,) = json.loads(listed.stdout)
    assert (line["fingerprint"], line["file"], line["model"]) == (two[0].fingerprint, str(path), "tiny")
    table = memloc("edits", "list").stdout
    assert name in table
    assert "400" in table
    shown = json.loads(memloc("edits", "show", name, "--json").stdout)
    assert shown["result"]["edit"]["indices"] == two[0].indices.tolist()
    assert shown["request"]["seed"] == 7
    assert "2 paragraphs" in memloc("edits", "show", name).stdout
    done = memloc("edits", "export", name, *OPTIONS, "--out", "checkpoint", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["folder"] == str(place / "checkpoint")
    assert said["provenance"]["edit"] == two[0].fingerprint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place / "checkpoint", attn_implementation="eager").eval()
    ids = torch.tensor(ROWS[:2])
    with torch.no_grad(), weight_edits.edited(tiny, [two[0]]):
        assert torch.equal(model(ids).logits, tiny.model(ids).logits)
    assert (place / "checkpoint" / "tokenizer.json").read_bytes() == (place / "tiny" / "tokenizer.json").read_bytes()
    labels.keep(two[0].base, {path.name: labels.Label(0, "forgets \x1b[31mthe licence")})
    assert json.loads(memloc("edits", "list", "--json").stdout)[0]["name"] == "forgets \x1b[31mthe licence"
    table = memloc("edits", "list").stdout
    assert "licence" in table
    assert "\x1b" not in table
    upper = kept.store(run_of(dataclasses.replace(two[1], on_top_of=(two[0].fingerprint,))))
    refused = memloc("edits", "remove", name)
    assert (refused.returncode, path.exists()) == (2, True)
    assert f"{upper.stem[:8]} was made on top of {path.name}" in refused.stderr
    assert memloc("edits", "remove", str(upper)).returncode == 0
    removed = memloc("edits", "remove", name, "--json")
    assert json.loads(removed.stdout) == {"removed": str(path)}
    assert json.loads(memloc("edits", "list", "--json").stdout) == []
    assert not Path(path).exists()


def test_edit_on_a_command_answers_for_the_edited_model(place, memloc, demo, demo_paragraphs):
    """Two edits in their order; an option of the command stands in place of the group's."""
    free = {name: torch.ones_like(parameter) for name, parameter in demo.model.named_parameters()}
    edits = [make_edit(demo, 800, seed, of=["transformer.h.1.mlp.c_fc.weight"], free=free) for seed in range(2)]
    for number, edit in enumerate(edits):
        edit_files.write_edit(place / f"demo{number}.safetensors", run_of(edit))
    row = int(demo_paragraphs.repetitions.argmax())
    request = ExactMatch((demo_paragraphs.row(row),))
    ours = ("--edit", "demo0.safetensors", "--edit", "demo1.safetensors")
    asked = ("analyze", "exact-match", "--json", "--paragraph", demo_paragraphs.ids[row])
    done = memloc("--edit", "no-such-file", *asked, *ours)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["provenance"]["edit"] == f"{edits[0].fingerprint},{edits[1].fingerprint}"
    again = json.loads(memloc(*ours, *asked).stdout)  # from the cache
    assert again == said
    want = expected(demo, request, *edits)
    assert said["em"] == want.em[0]
    np.testing.assert_allclose(said["nll"], want.nll[0], rtol=1e-3)
    assert abs(want.nll[0] - result(demo, request).nll[0]) > 0.01
