"""Sparse edits: exactly k weights, bit for bit, there and back; what is asked with them, and under which key."""

from __future__ import annotations

import dataclasses
import json
import random
import struct

import numpy as np
import pytest
import torch

from memloc_core import codec, edit_files, weight_edits
from memloc_core.analyses import editing
from memloc_core.engine import Engine
from memloc_core.errors import Cancelled, MemlocError, UsageError
from memloc_core.requests import (
    Ablated,
    Continuation,
    Continue,
    Edited,
    ExactMatch,
    ExportCheckpoint,
    OpenModel,
    ParameterGradients,
    Perturb,
    Sweep,
    Unlearn,
)
from memloc_tui import edits as kept
from tests.conftest import result
from tests.edits import changed, copy_of, equal, make_edit, run_of, written
from tests.unit.families import KNOWN, paragraphs, tiny
from tests.unit.waits import Waits

P = 10
ROW = paragraphs(1)[0]


@pytest.fixture
def lm():
    model = tiny("gpt_neo")
    before = copy_of(model)
    yield model
    assert equal(copy_of(model), before)
    assert model.edits == ()
    editing._known.clear()


def file_of(edit, folder):
    path = folder / f"{edit.fingerprint[:12]}.safetensors"
    edit_files.write_edit(path, run_of(edit))
    return str(path)


def edited(request, folder, *edits):
    fingerprints = tuple(edit.fingerprint for edit in edits)
    return Edited(request, fingerprints, tuple(file_of(edit, folder) for edit in edits))


def replaced(edit, **fields):
    return dataclasses.replace(edit, **fields)


# --------------------------------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.float32) for family in KNOWN), ("gpt_neo", torch.bfloat16), ("qwen3", torch.float16)],
    ids=str,
)
def test_exactly_k_weights_change_and_all_come_back_bit_for_bit(family, dtype):
    lm = tiny(family, dtype)
    before, edit = copy_of(lm), make_edit(lm, 50)
    with weight_edits.edited(lm, [edit]):
        within = copy_of(lm)
        assert lm.edits == (edit.fingerprint,)
    assert changed(within, before) == len(edit) == 50
    assert equal(within, written(before, edit))
    assert equal(copy_of(lm), before)
    assert lm.edits == ()


def test_zeros_of_either_sign_and_the_smallest_numbers_come_back_as_they_were(lm):
    name = "transformer.h.0.mlp.c_fc.weight"
    weights = dict(lm.model.named_parameters())[name].data
    kept_values = weights.view(-1)[:4].clone()
    try:
        weights.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-45, -3.4e38])
        before = copy_of(lm)
        old = weights.view(-1)[:4].numpy().copy()
        edit = make_edit(lm, 4, of=[name])
        edit = replaced(edit, indices=np.arange(4), old=old, new=np.array([-0.0, 0.0, -1e-45, 0], np.float32))
        with weight_edits.edited(lm, [edit]):
            assert changed(copy_of(lm), before) == 4
        assert equal(copy_of(lm), before)
        wrong = replaced(edit, old=-old)
        with pytest.raises(MemlocError, match="does not find the value"), weight_edits.edited(lm, [wrong]):
            pass
    finally:
        weights.view(-1)[:4] = kept_values


def test_an_exception_within_puts_every_weight_back(lm):
    for error in (ValueError, Cancelled, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), weight_edits.edited(lm, [make_edit(lm)]):
            raise error
        assert lm.edits == ()


def test_an_edit_is_applied_without_a_question_to_the_device_for_each_of_its_matrices(lm):
    edit = make_edit(lm, 200)
    placed = weight_edits.PlacedEdits(lm, [edit])
    with Waits() as waits, placed.applied():
        pass
    assert waits.times <= 1 < len(edit.parameters)


def test_a_stack_that_fails_in_the_middle_leaves_nothing_behind(lm):
    first = make_edit(lm, 40, 1)
    second = replaced(first, new=first.new + 1)  # wants the same places as they were before the first
    before = copy_of(lm)
    placed = weight_edits.PlacedEdits(lm, [first, second])
    with pytest.raises(MemlocError, match=f"edit {first.fingerprint[:8]} changes it too"):
        placed.apply()
    assert equal(copy_of(lm), before)
    assert lm.edits == ()


def test_two_hundred_steps_of_apply_revert_and_toggle_equal_a_naive_copy_of_all_weights(lm):
    """Six edits, two of them on top of others in the same places; any subset, in any order, also nested."""
    rng, base = random.Random(5), copy_of(lm)
    free = {name: torch.ones_like(tensor) for name, tensor in base.items()}
    pool = [make_edit(lm, 40, seed, free=free) for seed in range(4)]
    for ground in pool[:2]:
        new = ground.new * np.float32(-2)
        pool.append(replaced(ground, on_top_of=(ground.fingerprint,), old=ground.new, new=new))

    def naive(order):
        """The weights with these edits, or None where one does not find the values that it was made to change."""
        weights, active = base, []
        for edit in order:
            expects = written(weights, replaced(edit, new=edit.old))
            if not set(edit.on_top_of) <= set(active) or not equal(expects, weights):
                return None
            weights, active = written(weights, edit), [*active, edit.fingerprint]
        return weights

    active, refused, done = [], 0, 0
    for _ in range(200):
        kind = rng.randrange(4)
        if kind == 0 and len(active) > 1:
            rng.shuffle(active)
        else:
            edit = rng.choice(pool)
            without = [other for other in active if other is not edit]
            active = without if len(without) < len(active) else [*active, edit]
        expected = naive(active)
        split = rng.randint(0, len(active))
        if expected is None:
            refused += 1
            with pytest.raises(MemlocError), weight_edits.edited(lm, active):
                pass
            if rng.random() < 0.5:
                active = active[:-1]
        elif kind == 3:  # one with-block in the other
            with weight_edits.edited(lm, active[:split]), weight_edits.edited(lm, active[split:]):
                assert equal(copy_of(lm), expected)
                assert lm.edits == tuple(edit.fingerprint for edit in active)
            done += 1
        else:
            with weight_edits.edited(lm, active):
                assert equal(copy_of(lm), expected)
            done += 1
        assert equal(copy_of(lm), base)
    assert refused > 20
    assert done > 60


def test_the_head_tied_to_the_embedding_is_one_parameter_under_two_names():
    lm = tiny("gpt_neo")
    assert lm.model.lm_head.weight is lm.model.transformer.wte.weight
    edit = make_edit(lm, 5, of=["transformer.wte.weight"])
    by_its_other_name = replaced(edit, parameters=("lm_head.weight",))
    before = copy_of(lm)
    with weight_edits.edited(lm, [by_its_other_name]):
        assert equal(copy_of(lm), written(before, edit))
    both = replaced(
        edit,
        parameters=("lm_head.weight", "transformer.wte.weight"),
        starts=np.array([0, 5, 10]),
        **{name: np.tile(getattr(edit, name), 2) for name in ("indices", "old", "new")},
    )
    with pytest.raises(MemlocError, match="twice"):
        weight_edits.PlacedEdits(lm, [both])


def test_what_does_not_fit_is_refused_in_a_sentence(lm):
    good = make_edit(lm, 6, of=["transformer.h.0.mlp.c_fc.weight"])
    other = make_edit(lm, 5, 9)
    size = dict(lm.model.named_parameters())[good.parameters[0]].numel()
    for fields, said in (
        ({"base": "0" * 64, "model": "other"}, "made on other .weights 00000000.*gpt_neo .weights gpt_neo.*that model"),
        ({"base": "0" * 64, "model": lm.info.name}, "open it as it was then, in the same --dtype"),
        ({"parameters": ("transformer.h.9.mlp.c_fc.weight",)}, "has no such weights"),
        ({"parameters": good.parameters * 2, "starts": np.array([0, 3, 6])}, "names a parameter twice"),
        ({"indices": good.indices[::-1].copy()}, "do not ascend"),
        ({"indices": np.repeat(good.indices[:3], 2)}, "do not ascend"),
        ({"indices": good.indices - 1 - good.indices[0]}, "do not ascend from 0"),
        ({"indices": good.indices + size}, f"weight [0-9,]+ of .*, which has {size:,}"),
        ({"indices": good.indices.astype(np.float32)}, "indices are not 6 numbers"),
        ({"new": good.new[:5]}, "new are not 6 numbers"),
        ({"new": good.new.astype(np.float64)}, "new are not 6 numbers of the type float32"),
        ({"new": np.where(np.arange(6) == 2, np.nan, good.new).astype(np.float32)}, "not finite"),
        ({"new": np.where(np.arange(6) == 2, np.inf, good.new).astype(np.float32)}, "not finite"),
        ({"starts": np.array([0, 5])}, "do not divide"),
        ({"starts": np.array([1, 6])}, "do not divide"),
        ({"old": np.nextafter(good.old, np.float32(9))}, "does not find the value.*another precision"),
        ({"on_top_of": (other.fingerprint,)}, f"on top of edit {other.fingerprint[:8]}.*none is"),
    ):
        with pytest.raises(MemlocError, match=said), weight_edits.edited(lm, [replaced(good, **fields)]):
            pass
    on_top = replaced(good, on_top_of=(other.fingerprint,))
    with pytest.raises(MemlocError, match="active before it"), weight_edits.edited(lm, [on_top, other]):
        pass
    with weight_edits.edited(lm, [other, on_top]):
        pass


def test_an_edit_of_higher_precision_is_refused_by_a_model_of_lower():
    full, half = tiny("gpt_neo"), tiny("gpt_neo", torch.bfloat16)
    edit = make_edit(full, 20)
    with pytest.raises(MemlocError, match="bfloat16 cannot hold"):
        weight_edits.PlacedEdits(half, [edit])
    coarse = replaced(edit, new=np.round(edit.new).astype(np.float32))
    with pytest.raises(MemlocError, match="another precision than bfloat16"), weight_edits.edited(half, [coarse]):
        pass


def test_the_gradient_of_an_edited_model_is_that_of_a_model_with_other_weights(lm, tmp_path):
    edit, before = make_edit(lm, 100), copy_of(lm)
    request = ParameterGradients(paragraphs(3), P)
    got = result(lm, edited(request, tmp_path, edit))
    lm.model.load_state_dict(written(before, edit), strict=False)
    try:
        expected = result(lm, request)
    finally:
        lm.model.load_state_dict(before, strict=False)
    for field in dataclasses.fields(got):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# --------------------------------------------------------------------------------------------------- analyses with them


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "qwen3"])
def test_an_edited_analysis_answers_for_a_model_that_was_written_over(family, tmp_path):
    lm = tiny(family)
    before, edits = copy_of(lm), [make_edit(lm, 60, 1), make_edit(lm, 60, 2, size=0.9)]
    for request in (
        ExactMatch(paragraphs(5), P),
        Sweep(ROW, prefix_length=P),
        Continue(ROW[:P], 6),
        Ablated(Perturb(ROW, ((2, 3),), P), ((0, 1),)),
    ):
        got = answer_of(lm, edited(request, tmp_path, *edits))
        lm.model.load_state_dict(written(written(before, edits[0]), edits[1]), strict=False)
        expected = result(lm, request)
        lm.model.load_state_dict(before, strict=False)
        assert codec.encode(got.result) == codec.encode(expected)
        assert got.provenance.edit == ",".join(edit.fingerprint for edit in edits)
        assert codec.encode(result(lm, request)) != codec.encode(expected)  # or nothing would be tested
    assert equal(copy_of(lm), before)


def answer_of(lm, request):
    engine = Engine()
    engine.lm = lm
    return engine.answer(request)


def step(steps):
    """One step; the answer when it was the last."""
    try:
        next(steps)
    except StopIteration as stop:
        return stop.value
    return None


def test_between_two_steps_the_weights_are_the_originals_and_others_are_answered_with_them(lm, tmp_path):
    before, edit, engine = copy_of(lm), make_edit(lm, 100), Engine()
    engine.lm = lm
    quick = Perturb(ROW, ((1, 5),), P)
    sweep = edited(Sweep(ROW, "random", 40, prefix_length=P), tmp_path, edit)
    whole = codec.encode(result(lm, sweep))
    original = codec.encode(result(lm, quick))
    steps, seen = engine.steps(sweep), 0
    while (end := step(steps)) is None:
        seen += 1
        assert equal(copy_of(lm), before)
        assert codec.encode(result(lm, quick)) == original
    assert seen > 2
    assert codec.encode(end.result) == whole


def test_a_sweep_that_is_closed_fails_or_is_cancelled_in_a_forward_pass_leaves_the_original(lm, tmp_path):
    before, engine = copy_of(lm), Engine()
    engine.lm = lm
    request = edited(Sweep(ROW, prefix_length=P), tmp_path, make_edit(lm, 100))
    steps = engine.steps(request)
    next(steps)
    steps.close()
    assert equal(copy_of(lm), before)

    def boom(*_):
        assert not equal(copy_of(lm), before)  # it fails where the edit is in the weights
        raise RuntimeError("boom")

    hook = lm.blocks[1].register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        engine.answer(request)
    hook.remove()
    assert equal(copy_of(lm), before)
    hook = lm.blocks[1].register_forward_pre_hook(lambda *_: lm.cancelled.set())
    with pytest.raises(Cancelled):
        engine.answer(request)
    hook.remove()
    lm.cancelled.clear()
    assert equal(copy_of(lm), before)
    assert lm.edits == ()


def test_with_no_edits_the_original_answers(lm):
    request = Perturb(ROW, ((1, 5),), P)
    got = answer_of(lm, Edited(request, ()))
    assert codec.encode(got.result) == codec.encode(result(lm, request))
    assert got.provenance.edit == ""


def test_wrong_wrappings_and_files_are_told(lm, tmp_path):
    request, edit, other = Perturb(ROW, ((1, 5),), P), make_edit(lm, 10, 1), make_edit(lm, 10, 2)
    path = file_of(edit, tmp_path)
    for wrong, said in (
        (Edited(OpenModel("demo"), (edit.fingerprint,), (path,)), "OpenModel runs no model"),
        (Edited(Edited(request, ()), (edit.fingerprint,), (path,)), "Edited runs no model"),
        (Ablated(Edited(request, (edit.fingerprint,), (path,)), ((0, 0),)), "Edited runs no model"),
        (Edited(request, (edit.fingerprint,), ()), "without a file"),
        (Edited(request, (edit.fingerprint,), (path, path)), "as many files"),
        (Edited(request, (other.fingerprint,), (path,)), f"holds edit {edit.fingerprint[:8]} now"),
        (Edited(request, (other.fingerprint,), (str(tmp_path / "no"),)), "There is no edit file"),
        (Edited(request, (other.fingerprint,), (str(tmp_path),)), "is a folder"),
    ):
        with pytest.raises(MemlocError, match=said):
            answer_of(lm, wrong)


def test_a_loaded_edit_stays_in_memory_when_its_file_goes(lm, tmp_path):
    request = edited(Perturb(ROW, ((1, 5),), P), tmp_path, make_edit(lm, 100))
    first = answer_of(lm, request)
    (tmp_path / request.files[0]).unlink()
    assert codec.encode(answer_of(lm, request).result) == codec.encode(first.result)


# ----------------------------------------------------------------------------------------------------------------- keys


def test_the_key_of_an_edited_request_is_that_of_the_request_and_the_edits():
    inner, a, b = Continue((1, 2), 3), "a" * 64, "b" * 64
    key = codec.cache_key
    assert key(Edited(inner, ()), "m") == key(inner, "m")
    assert key(Edited(inner, (a,)), "m") == key(inner, "m", a)
    assert key(Edited(inner, (a,), ("x",)), "m") == key(Edited(inner, (a,), ("y",)), "m")
    assert Edited(inner, (a,), ("x",)) == Edited(inner, (a,), ("y",))
    different = [Edited(inner, e) for e in ((), (a,), (b,), (a, b), (b, a))] + [Edited(Continue((1, 2), 4), (a,))]
    assert len({key(request, "m") for request in different}) == len(different)


def test_a_wrapped_request_is_as_urgent_as_the_one_within():
    for inner in (Continue((1,), 1), ExactMatch(((1, 2),)), Unlearn(((1, 2),), ()), ExportCheckpoint("x")):
        around = Edited(inner, ("a",))
        for name in ("answer", "version", "urgency", "keeps"):
            assert getattr(around, name) == getattr(inner, name)
        assert codec.decode(codec.encode(around)) == around


# ---------------------------------------------------------------------------------------------------------------- files


def test_an_edit_file_comes_back_and_reads_without_memloc(lm, tmp_path):
    from safetensors import safe_open

    edit = make_edit(lm, 70)
    run = run_of(edit)
    path = tmp_path / "my edit.safetensors"
    edit_files.write_edit(path, run)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    back = edit_files.read_edit(path)
    assert codec.encode(back) == codec.encode(run)
    assert back.result.edit.fingerprint == edit.fingerprint
    assert edit_files.encode(back) == path.read_bytes()  # the same run, the same bytes
    with safe_open(path, "numpy") as file:
        said = file.metadata()
        parameters = json.loads(said["parameters"])
        starts, indices = file.get_tensor("result.edit.starts"), file.get_tensor("result.edit.indices")
        new = file.get_tensor("result.edit.new")
        assert file.get_tensor("result.em").shape == (3, 2)
    assert (said["model"], said["base"]) == ("gpt_neo", "gpt_neo")
    assert json.loads(said["metrics"])["em_before"] == 50
    weights = copy_of(lm)
    for name, start, stop in zip(parameters, starts[:-1], starts[1:], strict=True):
        weights[name].view(-1)[torch.from_numpy(indices[start:stop])] = torch.from_numpy(new[start:stop])
    with weight_edits.edited(lm, [edit]):
        assert equal(copy_of(lm), weights)


def test_the_summary_of_a_file_needs_only_its_header(lm, tmp_path):
    edit = make_edit(lm, 70)
    path = tmp_path / "e.safetensors"
    edit_files.write_edit(path, run_of(edit))
    data = path.read_bytes()
    path.write_bytes(data[: 8 + struct.unpack("<Q", data[:8])[0]])
    summary = edit_files.read_summary(path)
    assert (summary.fingerprint, summary.model, summary.metrics["weights"]) == (edit.fingerprint, "gpt_neo", 70)
    with pytest.raises(MemlocError, match="damaged or changed"):
        edit_files.read_edit(path)


def test_where_edits_lay_is_not_in_the_file_of_a_run_on_top_of_them(lm, tmp_path):
    run = run_of(make_edit(lm, 5))
    wrapped = dataclasses.replace(run, request=Edited(run.request, ("a" * 64,), ("/secret/place",)))
    data = edit_files.encode(wrapped)
    assert b"secret" not in data
    assert edit_files.decode(data).request == run.request


def test_the_codec_names_arrays_by_their_place_and_still_reads_numbered_ones():
    value = Continuation(np.arange(3), np.linspace(0, 1, 3, dtype=np.float32))
    import safetensors.numpy as tensors

    assert set(tensors.load(codec.encode(value))) == {"tokens", "probabilities"}
    earlier = {"$type": "Continuation", "tokens": {"$array": "0"}, "probabilities": {"$array": "1"}}
    data = tensors.save({"0": value.tokens, "1": value.probabilities}, {"memloc": json.dumps(earlier)})
    assert codec.encode(codec.decode(data)) == codec.encode(value)


# ---------------------------------------------------------------------------------------------------------------- store


def test_the_store_keeps_finds_and_removes(lm, tmp_path):
    assert kept.stored() == []
    runs = [run_of(make_edit(lm, 10, seed)) for seed in range(40)]
    paths = [kept.store(run) for run in runs]
    assert len(set(paths)) == 40
    assert {edit.summary.fingerprint for edit in kept.stored()} == {r.result.edit.fingerprint for r in runs}
    fingerprint = runs[0].result.edit.fingerprint
    for name in (fingerprint, fingerprint[:9], fingerprint[:16].upper(), str(paths[0])):
        assert codec.encode(kept.open_edit(name)) == codec.encode(runs[0])
        assert kept.active(name) == kept.ActiveEdit(
            fingerprint, str(paths[0]), fingerprint[:8], True, "gpt_neo", "gpt_neo"
        )
    firsts = [r.result.edit.fingerprint[0] for r in runs]
    shared = next(letter for letter in firsts if firsts.count(letter) > 1)
    for name, said in (
        (shared, "stored edits begin with"),
        ("", "There is no edit file"),
        ("zz", "edits list"),
        (fingerprint[:16] + "0" * 9, "There is no edit file"),
        (str(tmp_path), "is no file"),
        ("~nobody_at_all/x", "cannot be read"),
        ("a\0b", r"cannot be read|There is no edit"),
    ):
        with pytest.raises(UsageError, match=said):
            kept.find(name)
    elsewhere = tmp_path / "mine.safetensors"
    elsewhere.write_bytes(paths[0].read_bytes())
    assert kept.active(str(elsewhere)).name == "mine"
    with pytest.raises(UsageError, match="not one of the stored"):
        kept.remove(str(elsewhere))
    assert kept.remove(fingerprint[:12]) == paths[0]
    assert not paths[0].exists()
    assert elsewhere.exists()


def test_a_damaged_file_in_the_store_is_listed_as_such(lm):
    kept.store(run_of(make_edit(lm, 10)))
    (kept.folder() / "0123456789abcdef.safetensors").write_bytes(b"nothing")
    problems = sorted(edit.problem for edit in kept.stored())
    assert problems[0] == ""
    assert "damaged or changed" in problems[1]


def test_the_top_line_says_which_edits_are_on():
    a, b = kept.ActiveEdit("a" * 64, "", "aaaa"), kept.ActiveEdit("b" * 64, "", "bbbb")
    off = dataclasses.replace(b, on=False)
    assert [kept.said(e) for e in ((), (a,), (a, b), (a, off), (off,))] == [
        "",
        "edit: aaaa",
        "edits: aaaa, bbbb",
        "edit: aaaa",
        "edits off: bbbb",
    ]


# --------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "qwen3"])
def test_an_exported_checkpoint_gives_the_edited_models_logits_in_transformers_and_here(family, tmp_path):
    from transformers import AutoModelForCausalLM

    from memloc_core.loading import load

    lm = tiny(family)
    source = tmp_path / "source"
    lm.model.save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    lm = load(OpenModel(str(source), device="cpu"))
    before, edit = copy_of(lm), make_edit(lm, 80)
    got = result(lm, edited(ExportCheckpoint(str(tmp_path / "out")), tmp_path, edit))
    assert got.folder == str(tmp_path / "out")
    assert got.bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert equal(copy_of(lm), before)
    ids = torch.tensor(paragraphs(3))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    again = load(OpenModel(str(tmp_path / "out"), device="cpu"))
    assert equal(copy_of(again), written(before, edit))
    with torch.no_grad(), weight_edits.edited(lm, [edit]):
        expected = lm.model(ids).logits
        assert torch.equal(plain(ids).logits, expected)
        assert torch.equal(again.model(ids).logits, expected)
    assert not list(tmp_path.glob(".*"))


def test_an_export_touches_nothing_that_is_there_and_leaves_nothing_when_it_is_stopped(lm, tmp_path):
    engine = Engine()
    engine.lm = lm
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    for folder in (full, full / "file", tmp_path / "no" / "where"):
        with pytest.raises(UsageError, match=r"is there already|cannot be"):
            engine.answer(ExportCheckpoint(str(folder)))
    assert [file.read_text() for file in full.iterdir()] == ["mine"]
    steps = engine.steps(edited(ExportCheckpoint(str(tmp_path / "new")), tmp_path, make_edit(lm)))
    next(steps)
    next(steps)
    assert list(tmp_path.glob(".new.*"))  # it is being written beside its place
    steps.close()
    assert not list(tmp_path.glob("*new*"))
    (tmp_path / "new").mkdir()
    left = tmp_path / ".new.unfinished-999999999"  # of an engine that was killed
    left.mkdir()
    engine.answer(ExportCheckpoint(str(tmp_path / "new")))
    assert (tmp_path / "new" / "config.json").is_file()
    assert not left.exists()


def test_a_run_deletes_no_file_that_another_one_keeps(lm):
    """The same run twice, at once or one after the other, comes to the same edits, which have the same file."""
    steps = [run_of(make_edit(lm, seed=seed)) for seed in range(3)]
    one, other = kept.RunFile(), kept.RunFile()
    one.keep(steps[0])
    first = one.keep(steps[1])
    assert [found.path for found in kept.stored()] == [first]
    assert other.finish(steps[1]) == first  # the other one is done, and has said that it is kept
    assert one.keep(steps[2]) != first
    assert {found.path for found in kept.stored()} == {first, one.path}
    again = kept.RunFile()
    assert again.keep(steps[1]) == first
    again.drop()
    one.drop()
    assert [found.path for found in kept.stored()] == [first]


def test_a_link_to_nowhere_hides_no_stored_edit(lm):
    path = kept.store(run_of(make_edit(lm)))
    (path.parent / "b0.safetensors").symlink_to("nowhere")
    assert path in [found.path for found in kept.stored() if found.summary is not None]
    assert kept.find(path.name[:8]) == path
