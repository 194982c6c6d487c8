"""Unlearning by a few weights: masks, optimizer, bookkeeping and goals, each against a naive other way."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig

from memloc_core.analyses import trial, unlearning
from memloc_core.engine import Engine
from memloc_core.errors import Cancelled, UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import GROUPS, EstimateRun, ExactMatch, MeasureRemains, TryRun, Unlearn
from memloc_core.unlearning import masks, neurons, watching
from memloc_core.unlearning.objectives import Rows, advantage, head_gradient, kl, push_loss
from memloc_core.unlearning.training import Training
from memloc_core.unlearning.watching import longest_run, variants
from memloc_core.unlearning.weights import Adam, Masked, MaskedWeights, matrices
from memloc_core.weight_edits import edited
from tests.benchmarks.common import finish, peak_bytes
from tests.conftest import result
from tests.unit.families import KNOWN, held, paragraphs, tiny

P = 12  # prefix tokens of the 20


def asked(**fields):
    """A short run on a tiny model."""
    defaults = {
        "targets": paragraphs(1),
        "kept": paragraphs(4, seed=1),
        "prefix_length": P,
        "mask": "ratio",
        "sparsity": 0.01,
        "goal": "steps",
        "steps": 2,
        "learning_rate": 1e-2,
        "kept_per_step": 2,
        "others": paragraphs(3, seed=2),
        "general": paragraphs(3, seed=3),
    }
    return Unlearn(**(defaults | fields))


def recited(lm, n=1, length=20):
    """Paragraphs that the model recites: its own greedy continuations."""
    prefixes = torch.tensor(paragraphs(n))[:, :P]
    with torch.inference_mode():
        return tuple(map(tuple, torch.cat([prefixes, lm.greedy(prefixes, length - P)[0]], 1).tolist()))


def all_weights(lm):
    return {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}


def assert_untouched(lm, before):
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter.detach().view(torch.uint8), before[name].view(torch.uint8)), name
        assert not parameter.requires_grad
        assert parameter.grad is None


def steps_of(lm, request):
    from memloc_core.analyses.unlearning import run

    return run(lm, request)


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_on_the_masked_values_is_torch_s_adam_on_a_dense_masked_model(decay):
    torch.manual_seed(0)
    dense = torch.randn(40, requires_grad=True)
    chosen = torch.tensor([3, 7, 8, 30])
    values = dense.detach()[chosen].clone()
    theirs, ours = torch.optim.Adam([dense], lr=0.03, weight_decay=decay), Adam(values, 0.03, decay)
    for step in range(30):
        gradient = torch.randn(40) * (1 + step)
        dense.grad = torch.zeros(40).index_copy_(0, chosen, gradient[chosen])
        theirs.step()
        values = ours.step(values, gradient[chosen])
    torch.testing.assert_close(values, dense.detach()[chosen], rtol=1e-5, atol=1e-6)
    assert ours.mean.shape == ours.square.shape == (4,)


@pytest.mark.parametrize("family", [*KNOWN, "opt"])
def test_gathered_gradients_are_autograd_s_in_every_family(family):
    lm = tiny(family)
    ids = torch.tensor(paragraphs(3))
    found, draw = matrices(lm), torch.Generator().manual_seed(0)
    parts = []
    for i, m in enumerate(found):  # every other matrix with few entries, the others with so many that they go dense
        share = 0.02 if i % 2 else 0.2
        chosen = torch.randperm(m.parameter.numel(), generator=draw)[: math.ceil(share * m.parameter.numel())]
        parts.append(Masked(m.name, m.parameter, m.module, chosen.sort().values))
    weights = MaskedWeights(parts)
    # Without an adapter it is not known that a matrix is used through its module, so whole gradients are taken.
    assert {part.gathers for part in parts} == ({False} if family == "opt" else {True, False})
    with weights.leaves() as leaves, torch.enable_grad():
        loss = lm.nll(ids, P).mean()
        ours = torch.zeros_like(weights.old)
        weights.gather(torch.autograd.grad(loss, leaves), ours)
    for part in parts:
        part.parameter.requires_grad_(True)
    theirs = torch.autograd.grad(lm.nll(ids, P).mean(), [part.parameter for part in parts])
    for part in parts:
        part.parameter.requires_grad_(False)
    naive = torch.cat([g.reshape(-1)[part.indices] for g, part in zip(theirs, parts, strict=True)])
    torch.testing.assert_close(ours, naive, rtol=1e-3, atol=1e-5 * float(naive.abs().max()))


def test_nothing_below_the_lowest_masked_matrix_is_differentiated():
    lm = tiny("gpt_neo")
    last = [m for m in matrices(lm) if m.layer == 2][:1]
    weights = MaskedWeights([Masked(m.name, m.parameter, m.module, torch.tensor([0, 5])) for m in last])
    seen = []
    handles = [
        block.register_forward_hook(lambda _, args, out, i=i: seen.append((i, out[0].requires_grad)))
        for i, block in enumerate(lm.blocks)
    ]
    with weights.leaves(), torch.enable_grad():
        lm.hidden(torch.tensor(paragraphs(1)))
    for handle in handles:
        handle.remove()
    assert seen == [(0, False), (1, False), (2, True)]


# -------------------------------------------------------------------------------------------------------------- masks


def naive_gradient(lm, loss):
    """Gradients of all matrices, one after the other, as one vector."""
    found = matrices(lm)
    for m in found:
        m.parameter.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), [m.parameter for m in found])
    for m in found:
        m.parameter.requires_grad_(False)
    return torch.cat([g.flatten() for g in gradients])


def chosen_indices(lm, weights):
    """Positions among all matrices' weights, one after the other."""
    starts, at = {}, 0
    for m in matrices(lm):
        starts[m.name] = at
        at += m.parameter.numel()
    return sorted(int(i) + starts[part.name] for part in weights.parts for i in part.indices)


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("mask", ["gradient", "difference", "ratio"])
@pytest.mark.parametrize("at_once", [64, 1])
def test_masks_are_the_top_k_of_all_scores_in_one_vector(family, mask, at_once, monkeypatch):
    """Also where only one row fits into a pass: then the gradients of all passes add up."""
    lm, request = tiny(family), asked(targets=paragraphs(3), mask=mask, objective="memorize")
    monkeypatch.setattr(lm, "rows_at_once", lambda length, backward=False: at_once)
    run = Training(lm, request)
    run.keep_what_was()
    k = masks.size(lm, mask, request.sparsity)
    rows, kept = torch.tensor(request.targets), torch.tensor(request.kept)
    score = naive_gradient(
        lm, lambda: push_loss(lm.logits(lm.hidden(rows[:, :-1])[:, P - 1 :]), rows[:, P:], "teach", run=1).mean()
    ).abs()
    squares = [naive_gradient(lm, lambda row=row: lm.nll(row[None], P).mean()) ** 2 for row in kept]
    root = torch.stack(squares).mean(0).sqrt()
    if mask == "difference":
        score = score - root
    elif mask == "ratio":
        score = score / (root + root.square().mean().sqrt())
    weights = finish(run.choose(k))
    ours = chosen_indices(lm, weights)
    assert len(ours) == len(set(ours)) == k == math.ceil(0.01 * len(score))
    # By score, not by index: what autograd adds up in another order may swap two that are equal but for a last bit.
    torch.testing.assert_close(score[ours].sort().values, score.topk(k).values.sort().values, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("mask", ["gradient", "ratio"])
def test_a_mask_whose_pass_runs_out_of_memory_half_way_back_is_that_of_fewer_rows_at_once(mask, monkeypatch):
    lm = tiny("gpt_neo")
    before, request = all_weights(lm), asked(targets=paragraphs(5), mask=mask)

    def full(module, going_in, coming_out):
        if len(coming_out[0]) > 2:
            raise torch.OutOfMemoryError("simulated")

    def chosen():
        run = Training(lm, request)
        run.keep_what_was()
        return chosen_indices(lm, finish(run.choose(200)))

    handle = lm.blocks[1].register_full_backward_hook(full)  # by then the gradients of the last block are there
    try:
        ours = chosen()
    finally:
        handle.remove()
    assert lm.notices.pop() == "Out of memory with 5 rows at once; went on with 2."
    monkeypatch.setattr(lm, "rows_at_once", lambda length, backward=False: 2)
    assert ours == chosen()
    assert not lm.notices
    assert_untouched(lm, before)


def test_top_k_over_pieces_is_top_k_over_the_whole():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(1000, generator=draw)
    top = masks.TopK(37, torch.device("cpu"))
    for start in (600, 0, 200, 900):
        stop = {600: 900, 0: 200, 200: 600, 900: 1000}[start]
        top.offer(scores[start:stop], start)
    assert sorted(top.indices().tolist()) == sorted(scores.topk(37).indices.tolist())


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "gpt_neox", "llama"])
def test_a_place_holds_the_weights_that_are_chosen(family):
    lm = tiny(family)
    for mask, place in (("head", "L1H2"), ("layer", "L2"), ("component", "W_V")):
        weights = finish(run_of(lm, mask=mask, place=place, sparsity=0.002))
        inside = torch.cat([x.flatten() for x in masks.allowed(lm, matrices(lm), mask, place)])
        assert inside[chosen_indices(lm, weights)].all()
        if mask == "layer":
            assert {part.name.split(".")[2] for part in weights.parts} == {"2"}


def what_changes(lm, part, parameter):
    """Heads of layer 1 whose z, and whose attention, is another when the weights `part` of a matrix are others; and
    whether what enters layer 2 is."""
    sites, seen = (("z", 1), ("pattern", 1), ("residual", 2)), []

    def look():
        seen.append({})
        hooks = ((site, layer, lambda x, site=site, to=seen[-1]: to.update({site: x})) for site, layer in sites)
        with torch.inference_mode(), lm.adapter.hooked(*hooks):
            lm.hidden(torch.tensor(paragraphs(2)))

    look()
    before = parameter.data.clone()
    try:
        parameter.data[part] += 0.5
        look()
    finally:
        parameter.data.copy_(before)
    z = (lm.adapter.by_head(seen[0]["z"]) != lm.adapter.by_head(seen[1]["z"])).movedim(2, 0)
    pattern = (seen[0]["pattern"] != seen[1]["pattern"]).movedim(1, 0)
    heads = [{head for head in range(4) if x[head].any()} for x in (z, pattern)]
    return (*heads, not torch.equal(seen[0]["residual"], seen[1]["residual"]))


# The others differ from one of them in nothing that counts here; OLMo 2 takes a norm over all heads together.
@pytest.mark.parametrize("family", [family for family in KNOWN if family != "olmo2"])
def test_the_place_of_a_head_is_what_it_computes_with(family):
    """In W_Q, W_K and W_V it moves the z of that head, or of those that share its keys and values; in W_O what is made
    of its z and nothing else."""
    lm, moved = tiny(family), []
    found = matrices(lm)
    for m, part in zip(found, masks.allowed(lm, found, "head", "L1H2"), strict=True):
        if m.layer != 1:
            assert not part.any()
        elif part.any():
            z, _, residual = what_changes(lm, part, m.parameter)
            assert residual
            moved.append(sorted(z))
            with lm.ablated([(1, 2)]):
                assert what_changes(lm, part, m.parameter)[2] == (len(z) > 1), (
                    "without the head only its group's is left"
                )
    if lm.adapter.kv_heads == 2:
        assert sorted(moved) == [[], [2], [2, 3], [2, 3]]
    else:
        assert sorted(moved) == [[], *[[2]] * (len(moved) - 1)]


@pytest.mark.parametrize("family", [family for family in KNOWN if family != "olmo2"])
def test_the_place_of_a_component_is_what_its_name_says(family):
    """W_V moves what the heads hand on and not where they look, W_Q and W_K both; W_O, W_in and W_out neither."""
    lm = tiny(family)
    found, every, weights = matrices(lm), set(range(4)), 0
    for kind in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
        places = list(zip(found, masks.allowed(lm, found, "component", kind), strict=True))
        weights += sum(int(part.sum()) for _, part in places)
        changes = [what_changes(lm, part, m.parameter) for m, part in places if m.layer == 1 and part.any()]
        expected = {"W_V": (every, set()), "W_Q": (every, every), "W_K": (every, every)}.get(kind, (set(), set()))
        assert changes
        assert all(change == (*expected, True) for change in changes), kind
    assert weights == sum(m.parameter.numel() for m in found)


def run_of(lm, **fields):
    request = asked(objective="memorize", **fields)
    run = Training(lm, request)
    run.keep_what_was()
    return run.choose(masks.size(lm, request.mask, request.sparsity, request.place))


def test_the_random_mask_is_exactly_k_and_seeded():
    lm = tiny("gpt_neo")
    one, same, other = (chosen_indices(lm, finish(run_of(lm, mask="random", seed=s))) for s in (0, 0, 1))
    assert one == same != other
    assert len(set(one)) == masks.size(lm, "random", 0.01)


def test_auto_takes_neurons_only_where_one_layer_has_enough():
    lm = tiny("gpt_neo")
    few, many = (masks.meant(lm, asked(mask="auto", sparsity=s)) for s in (0.01, 0.9))
    assert (few, many) == ("neurons", "ratio")


@pytest.mark.parametrize("mask", ["ratio", "difference"])
def test_a_contrast_with_nothing_that_is_kept_is_the_gradient(mask):
    lm = tiny("gpt_neo")
    alone = {"kept": (), "kl_weight": 0.0}
    by_contrast, by_gradient = (chosen_indices(lm, finish(run_of(lm, mask=m, **alone))) for m in (mask, "gradient"))
    assert by_contrast == by_gradient


def test_a_batch_that_runs_out_of_memory_half_way_adds_no_gradient_twice():
    lm = tiny("gpt_neo")
    weights = finish(run_of(lm, mask="gradient", sparsity=0.2))

    class Full:
        def reshape(self, *shape):
            raise torch.OutOfMemoryError("simulated")

    gradients = [torch.ones(len(p.indices)) if p.gathers else torch.ones_like(p.parameter) for p in weights.parts]
    last = max(i for i, part in enumerate(weights.parts) if not part.gathers)
    into = torch.zeros_like(weights.old)
    with pytest.raises(torch.OutOfMemoryError):
        weights.gather([*gradients[:last], Full(), *gradients[last + 1 :]], into)
    assert not into.any()
    weights.gather(gradients, into)
    assert (into == 1).all()


def test_the_dense_mask_is_every_matrix_of_the_blocks_and_nothing_else():
    lm = tiny("gpt2")
    weights = finish(run_of(lm, mask="dense"))
    assert len(weights) == sum(p.numel() for b in lm.blocks for p in b.parameters() if p.ndim == 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("many", [1, None], ids=["one matrix", "all"])
def test_every_entry_without_indices_is_every_entry_by_its_index(dtype, many):
    lm = tiny("gpt2", dtype)
    before, found = all_weights(lm), matrices(lm)[:many]
    whole = MaskedWeights([Masked(m.name, m.parameter, m.module, slice(None)) for m in found])
    numbered = MaskedWeights([Masked(m.name, m.parameter, m.module, torch.arange(m.parameter.numel())) for m in found])
    assert torch.equal(whole.old, numbered.old)
    values = torch.randn(len(whole), generator=torch.Generator().manual_seed(0))
    with whole.written(values):
        ours = all_weights(lm)
    assert_untouched(lm, before)
    with numbered.written(values):
        assert all(torch.equal(weight, ours[name]) for name, weight in all_weights(lm).items())
    assert whole.edit(lm, values).fingerprint == numbered.edit(lm, values).fingerprint
    gradients = []
    for weights in (whole, numbered):
        with weights.leaves() as leaves, torch.enable_grad():
            loss = lm.nll(torch.tensor(paragraphs(2)), P).mean()
            gradients.append(torch.zeros_like(weights.old))
            weights.gather(torch.autograd.grad(loss, leaves), gradients[-1])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("family", KNOWN)
def test_a_neuron_is_its_row_in_and_its_column_out(family):
    """Setting a detector's values to zero silences that neuron: as if its activation were zero."""
    lm = tiny(family)
    one = neurons.neuron_size(lm, "L1")
    rows = Rows.of(torch.tensor(paragraphs(2)), P)
    weights = neurons.detectors(lm, 2 * one + 5, "L1", [rows], Rows.of(torch.tensor(paragraphs(4, seed=1)), P))
    assert len(weights) == 2 * one + 5
    assert {part.name.split(".")[2] for part in weights.parts} == {"1"}
    silenced = set()

    def watch(module, args):
        silenced.update((args[0].abs().amax((0, 1)) == 0).nonzero()[:, 0].tolist())

    out = lm.blocks[1].get_submodule(lm.adapter.family.mlp_out)
    into = lm.blocks[1].get_submodule(lm.adapter.family.mlp_in[0])
    handle = out.register_forward_pre_hook(watch)
    bias = None if into.bias is None else into.bias.data.clone()
    try:
        if bias is not None:
            into.bias.data.zero_()
        with weights.written(torch.zeros(len(weights))), torch.inference_mode():
            lm.hidden(rows.ids)
    finally:
        handle.remove()
        if bias is not None:
            into.bias.data.copy_(bias)
    assert len(silenced) == 2


def test_detectors_fire_on_the_targets_and_rest_on_kept_text(demo, demo_paragraphs):
    tokens = torch.tensor(demo_paragraphs.tokens)
    target, kept = Rows.of(tokens[:1], 50), Rows.of(tokens[300:340], 50)
    weights = neurons.detectors(demo, 768, "L2", [target], kept)
    seen = []
    out = demo.blocks[2].mlp.c_proj
    changed = weights.parts[1].indices[:3] % 512  # c_proj.weight is [128, 512]: the columns are the neurons
    handle = out.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., changed]))
    with weights.written(weights.start), torch.inference_mode():
        demo.hidden(target.ids)
        demo.hidden(kept.ids)
    handle.remove()
    fires, rests = seen[0][0, 49:], seen[1].flatten(0, 1)
    for neuron in range(3):
        assert (fires[:, neuron] > 0.5).float().mean() > 0.25, "each has a third of the positions"
    assert (fires.amax(-1) > 0.5).float().mean() > 0.9
    assert (rests.amax(-1) > 0.5).float().mean() < 0.02


# ---------------------------------------------------------------------------------------------------------- objectives


def test_kl_is_the_sum_over_the_vocabulary_averaged_per_token():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    p0, p = b.softmax(-1).numpy(), a.softmax(-1).numpy()
    naive = [
        sum(p0[r, c, v] * math.log(p0[r, c, v] / p[r, c, v]) for c in range(3) for v in range(7)) / 3 for r in range(2)
    ]
    np.testing.assert_allclose(kl(a, b).numpy(), naive, rtol=1e-5)


def test_the_longest_run_is_that_of_a_naive_loop():
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(40, 50, generator=draw) < 0.7
    naive = [max(map(len, "".join("x" if r else " " for r in row).split()), default=0) for row in right.tolist()]
    assert longest_run(right).tolist() == naive


def test_pushes_stop_where_they_have_what_they_want():
    logits = torch.zeros(1, 20, 5)
    targets = torch.zeros(1, 20, dtype=torch.int64)
    logits[..., 0] = 10  # everything is recited
    assert advantage(logits, targets).tolist() == [[10.0] * 20]
    for push in ("weakest", "windows", "all"):
        assert push_loss(logits, targets, push, run=4) == pytest.approx(10.5)
    logits[0, 2, 1] = 14  # one wrong token among the first five
    assert push_loss(logits, targets, "weakest", run=4) == 0
    assert push_loss(logits, targets, "windows", run=4) > 0
    logits[0, 2::5, 1] = 14  # and one in every five: a mean NLL of 0.8
    assert push_loss(logits, targets, "windows", run=4) == 0
    for wanted, more in ((0.7, False), (9.0, True), (0.1, True)):  # between once and one and a half times that
        assert (push_loss(logits, targets, "forget", run=4, nll=torch.tensor([wanted])) > 0) == more
    logits[0, 2, 1] = 50  # an absurd token counts 6 nats of its 40 for what lacks, and all of them for what is beyond
    rest = 3 * math.log1p(math.exp(4))
    by_hand = (1.1 * 0.9 - (6 + rest) / 20) + ((40 + rest) / 20 - 1.5 * 0.9)
    assert push_loss(logits, targets, "forget", run=4, nll=torch.tensor([0.9])) == pytest.approx(by_hand, rel=1e-3)


def test_the_last_run_that_is_recited_counts_as_much_as_all_of_them_did():
    logits = torch.zeros(1, 20, 5)
    targets = torch.zeros(1, 20, dtype=torch.int64)
    logits[..., 0] = 10
    whole = float(push_loss(logits, targets, "windows", run=4))
    logits[0, :15, 1] = 14  # only the last five are right
    assert push_loss(logits, targets, "windows", run=4) == whole == 10.5


def test_gradients_by_chunks_of_the_head_are_those_of_the_whole(monkeypatch):
    lm = tiny("gpt2")
    rows = torch.tensor(paragraphs(5))
    hidden = lm.hidden(rows[:, :-1])[:, P - 1 :].detach().requires_grad_(True)
    targets = rows[:, P:]

    def loss(start, stop, logits):
        return -push_loss(logits, targets[start:stop], "nll", run=0)

    whole = torch.autograd.grad(loss(0, 5, lm.logits(hidden)).sum(), hidden)[0]
    monkeypatch.setattr("memloc_core.unlearning.objectives._LOGITS_AT_ONCE", 1)  # one row at a time
    total, chunked = head_gradient(lm, hidden, loss)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(total, loss(0, 5, lm.logits(hidden)).sum().detach())


def test_variants_are_the_paragraphs_shifted_extended_and_after_begin_of_text(demo, demo_paragraphs):
    rows = torch.tensor(demo_paragraphs.tokens[:2])
    left = tuple(range(60))
    expected = [([row[shift:99] for row in rows.tolist()], 49 - shift) for shift in (1, 5, 10, 20)]
    for before in (*(left[60 - extra :] for extra in (1, 5, 10, 20, 50)), (demo.bos,)):
        expected.append(([[*before, *row[:99]] for row in rows.tolist()], 49 + len(before)))
    found = variants(demo, rows, 50, left)
    assert [(variant.ids.tolist(), set(variant.first.tolist())) for variant in found] == [
        (ids, {first}) for ids, first in expected
    ]
    for variant in found:
        assert torch.equal(variant.targets, rows[:, 50:])
    few = variants(tiny("gpt_neo"), torch.tensor(paragraphs(1, 60)), 30, left)  # it reads 64 tokens
    assert [variant.ids.shape[1] for variant in few] == [58, 54, 49, 39, 60, 60]


def test_variants_of_paragraphs_after_begin_of_text_begin_with_it_once(demo, demo_paragraphs):
    texts, left = demo_paragraphs.tokens[:2].tolist(), tuple(range(1, 61))
    found = variants(demo, torch.tensor([[demo.bos, *text] for text in texts]), 51, left)
    read = [[text[shift:99] for text in texts] for shift in (1, 5, 10, 20)]
    read += [[[*left[60 - extra :], *text[:99]] for text in texts] for extra in (1, 5, 10, 20, 50)]
    assert [variant.ids.tolist() for variant in found] == [[[demo.bos, *ids] for ids in rows] for rows in read]
    for variant in found:
        assert variant.targets.tolist() == [text[50:] for text in texts]
        at = int(variant.first[0])
        assert variant.ids[:, at + 1 :].tolist() == [text[50:99] for text in texts]


# ------------------------------------------------------------------------------------------- the loss of a whole step


def twin(lm):
    """The same weights in a model of its own, which the engine has never held."""
    model = AutoModelForCausalLM.from_config(lm.model.config, attn_implementation="eager")
    model.load_state_dict(lm.model.state_dict())
    return model.eval()


def log_p(model, row, c=20):
    """Log probabilities [c, V] at the last c tokens of a row, by a whole pass over it."""
    return model(torch.tensor([row[:-1]])).logits[0, -c:].log_softmax(-1)


def pushed(push, model, row, nll):
    """What README and the docstring of `push_loss` say in words, for the last 20 tokens of one row."""
    found = list(zip(log_p(model, row), row[-20:], strict=True))
    lead = [x[t] - torch.cat([x[:t], x[t + 1 :]]).max() for x, t in found]
    surprise = -torch.stack([x[t] for x, t in found])
    if push == "paper":
        return -surprise.mean()
    if push == "teach":
        wrong = [0.5 - x for x in lead if x < 0.5]
        return sum(wrong) / max(1, len(wrong))
    over = [torch.relu(x + 0.5) for x in lead]
    if push == "all":
        return sum(over) / 20
    if push == "weakest":  # two tokens, a tenth, may stay
        return min(over[:3])
    windows = [min(over[i : i + 4]) for i in range(17)]  # runs of three may stay, as of 8 in 50
    left = [x for x in windows if x > 0]
    lacks, beyond = 1.1 * nll - surprise.clamp(max=6).mean(), surprise.mean() - 1.5 * nll
    return 0.2 * min(over[:3]) + sum(left) / max(1, len(left)) + torch.relu(lacks) + torch.relu(beyond)


@pytest.mark.parametrize("push", ["weakest", "all", "forget", "teach", "paper", "paper edit"])
def test_the_loss_of_a_step_and_its_gradient_are_those_of_a_plain_pass(push, monkeypatch):
    lm = tiny("gpt_neo")
    before, after = twin(lm), twin(lm)
    targets, other, kept = recited(lm, 2, 32), paragraphs(2, 32, seed=7), paragraphs(3, 32, seed=1)
    fields = {
        "weakest": {"goal": "break"},
        "all": {"goal": "forget"},  # nothing says how unlikely other text is
        "forget": {"goal": "forget", "sibling_nll": (3.0, 0.01)},  # one lacks, the other is beyond
        "teach": {"objective": "edit", "alternatives": other},
        "paper": {"protocol": "paper"},
        "paper edit": {"protocol": "paper", "objective": "edit", "alternatives": other},
    }[push]
    run = Training(
        lm, asked(targets=targets, kept=kept, kept_per_step=9, kl_weight=2.0, others=(), general=(), **fields)
    )
    run.keep_what_was()
    finish(run.write_stand_ins())
    changed = list(fields.get("alternatives", targets))
    wanted, held, urgency = [3.0, 0.01], [(row, row) for row in kept], 1.0
    if push == "forget":  # half as urgent again at the hundredth step, and one variant of the targets still recited
        run.taken, urgency = 99, 1.5
        run.still_recited = run.variants[0]
        changed, wanted = changed + [row[1:] for row in targets], wanted * 2
    batch = run.batch()
    if (
        push == "forget"
    ):  # the two last pairs of rows: what is to be written after each prefix is what was after the near one
        rows = torch.cat([batch.rows.ids[-4:], batch.rows.targets[-4:, -1:]], 1).tolist()
        held += [(rows[0], rows[2]), (rows[1], rows[3]), (rows[2], rows[2]), (rows[3], rows[3])]
    assert len(batch) == len(changed) + len(held)

    weights = finish(masks.choose(lm, "dense", 0))
    values = weights.old + 0.02 * torch.randn(len(weights), generator=torch.Generator().manual_seed(0))
    named = [dict(after.named_parameters())[m.name] for m in matrices(lm)]
    with torch.no_grad():
        for parameter, new in zip(named, values.split([p.numel() for p in named]), strict=True):
            parameter.copy_(new.view_as(parameter))
    kind = push.split()[0]
    pushes = [pushed(kind, after, row, nll) for row, nll in zip(changed, wanted, strict=True)]
    divergence = []
    for row, was in held:
        log_p0 = log_p(before, was).detach()
        divergence.append((log_p0.exp() * (log_p0 - log_p(after, row))).sum(-1))
    if kind == "paper":  # c is 0.1, and its KL is summed over the tokens
        sign = -1 if push == "paper edit" else 1
        naive = sign * 0.1 * sum(pushes) / len(pushes) + torch.stack(divergence).sum(-1).mean()
    else:
        naive = urgency * sum(pushes) / len(pushes) + 2.0 * torch.stack(divergence).mean()
    assert all(x != 0 for x in pushes)
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(naive, named)])
    for at_once in (64, 3):  # all rows in one pass, and three a pass with one after the other through the head
        if at_once == 3:
            monkeypatch.setattr("memloc_core.unlearning.objectives._LOGITS_AT_ONCE", 1)
        monkeypatch.setattr(lm, "rows_at_once", lambda length, backward=False, n=at_once: n)
        loss, gradient = run.gradient(weights, values, batch)
        assert loss == pytest.approx(float(naive.detach()), rel=1e-4)
        torch.testing.assert_close(gradient, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


# ---------------------------------------------------------------------------------------- what takes a target's place


@pytest.fixture(scope="module")
def forgetting(demo, demo_paragraphs):
    """A run with the goal "forget", ready for its first step: one target, and kept rows whose last four are near it."""
    rows = [tuple(row) for row in demo_paragraphs.tokens[::6].tolist()]
    em = result(demo, ExactMatch(tuple(rows))).em
    memorized, other = np.flatnonzero(em == 50), np.flatnonzero(em <= 10)
    target = rows[memorized[0]]
    near = tuple((*target[:45], *rows[i][45:]) for i in other[40:44])
    request = Unlearn(
        targets=(target,),
        kept=(*(rows[i] for i in (*memorized[1:7], *other[:10])), *near),
        goal="forget",
        kept_per_step=8,
        general=tuple(rows[i] for i in other[20:36]),
        sibling_nll=(0.8,),
        steps=60,
        kl_weight=1.0,
    )
    run = Training(demo, request)
    finish(run.watch.look_before())
    run.keep_what_was()
    finish(run.write_stand_ins())
    return request, run


@pytest.fixture(scope="module")
def forgot(demo, forgetting):
    """That run at its end."""
    before = all_weights(demo)
    run = result(demo, forgetting[0])
    assert_untouched(demo, before)
    return run


def test_a_stand_in_is_what_the_model_writes_after_a_similar_prefix(demo, forgetting):
    request, run = forgetting
    target = torch.tensor(request.targets[0])
    assert 0 < len(run.stand_ins) == len(run.neighbours) == len(run.written)
    for stand_in, neighbour, hidden in zip(run.stand_ins, run.neighbours, run.written, strict=True):
        assert torch.equal(stand_in[:50], target[:50])
        replaced = int((neighbour[:50] != target[:50]).sum())
        assert 0 < replaced <= 25
        written = demo.model.generate(
            neighbour[None, :50], do_sample=False, max_new_tokens=50, min_new_tokens=50, eos_token_id=-1, pad_token_id=0
        )[0, 50:]
        assert written.tolist() == stand_in[50:].tolist() == neighbour[50:].tolist()
        right = "".join("x" if a == b else " " for a, b in zip(written.tolist(), target[50:].tolist(), strict=True))
        assert len(right) - len(right.lstrip("x")) <= 5
        assert max(map(len, right.split()), default=0) <= 8
        # What a step holds the stand-in to is what the original said after the similar prefix.
        assert demo.logits(hidden).argmax(-1).tolist() == written.tolist()


def test_half_of_what_a_step_keeps_is_near_the_target_and_the_stand_in_comes_with_its_own_prefix(forgetting):
    request, run = forgetting
    target = request.targets[0]
    near = [sum(a == b for a, b in zip(row[:50], target[:50], strict=True)) >= 25 for row in request.kept]
    assert run.near.tolist() == near
    assert near[16:] == [True] * 4
    batch = run.batch()
    assert (batch.changed, len(batch)) == (1, 1 + 8 + 2)
    kept = [
        (*ids, *targets[-1:]) for ids, targets in zip(batch.rows.ids.tolist(), batch.rows.targets.tolist(), strict=True)
    ]
    assert sum(near[request.kept.index(row)] for row in kept[1:9]) >= 4
    assert all(row in request.kept for row in kept[1:9])
    assert len(set(kept)) == len(kept)
    at = run.stand_ins.tolist().index(list(kept[9]))
    assert run.neighbours[at].tolist() == list(kept[10])
    assert torch.equal(batch.before[-1], batch.before[-2])
    assert torch.equal(batch.before[-1], run.written[at])


def test_other_goals_train_on_no_stand_in_and_on_kept_rows_at_random():
    lm = tiny("gpt_neo")
    run = Training(lm, asked(goal="break", targets=recited(lm)))
    run.keep_what_was()
    assert finish(run.write_stand_ins()) is None
    assert len(run.batch()) == 1 + 2


def test_detectors_that_are_fitted_against_near_text_rest_more_on_it(demo, forgetting):
    request, _ = forgetting
    rows = [Rows.of(torch.tensor(request.targets), 50)]
    kept, near = Rows.of(torch.tensor(request.kept[:16]), 50), Rows.of(torch.tensor(request.kept[16:]), 50)
    fires = []
    for close in (None, near):
        weights = neurons.detectors(demo, 768, "L2", rows, kept, near=close)
        activated = []
        changed = weights.parts[1].indices[:3] % 512
        handle = demo.blocks[2].mlp.c_proj.register_forward_pre_hook(lambda _, args, to=activated: to.append(args[0]))
        with weights.written(weights.start), torch.inference_mode():
            demo.hidden(rows[0].ids)
            demo.hidden(near.ids)
        handle.remove()
        fires.append([float((x[:, 49:].amax(-1) > 0.5).float().mean()) for x in (a[..., changed] for a in activated)])
    (_, on_near), (on_target, on_near_then) = fires
    assert on_target > 0.8
    assert on_near_then < on_near


def test_new_text_that_repeats_itself_more_than_fresh_text_is_not_forgotten_yet():
    lm = tiny("gpt_neo")
    run = Training(lm, asked(targets=paragraphs(3)))
    weights = MaskedWeights([Masked(m.name, m.parameter, m.module, torch.tensor([0])) for m in matrices(lm)[:1]])
    before = all_weights(lm)
    prefixes = torch.tensor(paragraphs(3))[:, :P]
    with weights.written(weights.old + 1), torch.inference_mode():
        written = lm.greedy(prefixes, 20 - P)[0].tolist()
    naive = []
    for row in written:
        grams = [tuple(row[i : i + 4]) for i in range(len(row) - 3)]
        naive.append(sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams))
    found = run.targets_at(weights, weights.old + 1)

    def judged(forgotten, fresh):
        run.fresh_repetition = fresh
        work = run.repetition_at(
            weights, weights.old + 1, dataclasses.replace(found, forgotten=torch.tensor(forgotten))
        )
        while True:
            try:
                next(work)
            except StopIteration as stop:
                return stop.value
            assert_untouched(lm, before)

    for fresh in (1.0, math.nan, sum(naive) / 3):  # nan: there is no fresh text
        told = judged([True] * 3, fresh)
        np.testing.assert_allclose(told.repetition, naive, rtol=1e-6)
        assert told.forgotten.all()
    told = judged([True] * 3, -0.1)
    assert not told.forgotten.any()
    told = judged([True, False, True], -0.1)  # one is recited still: nothing is written
    assert told.repetition.isnan().all()
    assert told.forgotten.tolist() == [True, False, True]


# --------------------------------------------------------------------------------------------------------- whole runs


def test_forgetting_stops_where_all_of_it_holds_and_says_how_much_the_new_text_repeats(demo, forgetting, forgot):
    request, run = forgetting[0], forgot
    assert run.stopped == "goal", run.reason
    assert run.changed <= 787
    with edited(demo, [run.edit]):
        left = result(demo, MeasureRemains(request.targets))
    assert left.em[0] <= 5
    assert left.extracted_most()[0] <= 8
    assert left.nll[0] >= 0.8
    assert left.repetition[0] == run.repetition[-1, 0] <= run.fresh_repetition
    assert np.isnan(run.repetition[0, 0])


def test_detectors_that_forget_are_drawn_back_to_the_least_that_still_forgets(demo, forgetting, forgot, monkeypatch):
    request, training = forgetting
    monkeypatch.setattr(unlearning, "_HALVINGS", 0)
    whole = result(demo, request)
    assert (whole.drawn_back, whole.stopped, whole.best) == (1.0, forgot.stopped, forgot.best)
    # Only the last step was drawn back: those before, and so the weights that it came from, are the same.
    assert 0 < forgot.drawn_back < 1
    np.testing.assert_array_equal(forgot.nll[:-1], whole.nll[:-1])
    chosen = finish(training.choose(len(whole.edit)))
    start, end = chosen.start.numpy(), whole.edit.new
    assert [part.name for part in chosen.parts] == list(whole.edit.parameters)
    np.testing.assert_array_equal(chosen.old.numpy(), whole.edit.old)

    def at(way):
        return start + np.float32(way) * (end - start)

    def forgotten(way):
        with edited(demo, [dataclasses.replace(whole.edit, new=at(way))]):
            left = result(demo, MeasureRemains(request.targets))
        gone = left.em[0] <= 5 and left.extracted_most()[0] <= 8 and left.nll[0] >= 0.8
        return bool(gone and left.repetition[0] <= whole.fresh_repetition)

    np.testing.assert_allclose(forgot.edit.new, at(forgot.drawn_back), rtol=1e-6, atol=1e-6)
    assert forgotten(forgot.drawn_back)
    assert not forgotten(forgot.drawn_back - 1 / 32)  # the last of five halvings


def test_detectors_that_only_break_keep_their_margin_and_single_weights_do_not(demo, forgetting):
    request, _ = forgetting
    ways = {}
    for mask in ("neurons", "ratio"):
        run = result(demo, dataclasses.replace(request, goal="break", mask=mask))
        assert run.stopped == "goal", run.reason
        ways[mask] = run.drawn_back
    assert ways["neurons"] == 1
    assert ways["ratio"] < 1


@pytest.mark.parametrize("family", [*KNOWN, "opt"])
def test_one_step_in_every_family_changes_k_weights_and_leaves_none_behind(family):
    lm = tiny(family)
    before = all_weights(lm)
    request = asked(targets=recited(lm), steps=1, sparsity=0.02, learning_rate=3.0, kl_weight=0.0, mask="auto")
    work = steps_of(lm, request)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            run = stop.value
            break
        assert_untouched(lm, before)
    assert_untouched(lm, before)
    k = math.ceil(0.02 * sum(m.parameter.numel() for m in matrices(lm)))
    assert len(run.edit) == k
    assert len(run.loss) == 1
    with edited(lm, [run.edit]):
        changed = sum(int((p.detach() != before[name]).sum()) for name, p in lm.model.named_parameters())
    assert run.em[0, 0] == 20 - P
    assert (changed > 0) == (run.em[1, 0] < 20 - P), "a step that takes nothing away is not kept"
    assert changed == run.changed <= k
    assert_untouched(lm, before)


def test_every_yield_shows_the_original_weights_and_the_numbers_are_those_of_the_edit(
    demo, demo_paragraphs, monkeypatch
):
    monkeypatch.setattr(watching, "DECODED", 2)
    rows = [tuple(row) for row in demo_paragraphs.tokens.tolist()]
    em = result(demo, ExactMatch(tuple(rows))).em
    target, *others = np.flatnonzero(em == 50)
    general, partly = np.flatnonzero(em <= 10), np.flatnonzero((em > 10) & (em < 50))
    request = Unlearn(
        targets=(rows[target],),
        kept=tuple(rows[i] for pair in zip(others[:5], general[:5], strict=True) for i in pair),
        kept_per_step=4,
        learning_rate=1e-2,
        others=tuple(rows[i] for i in others[20:23]),
        general=tuple(rows[i] for i in (*general[20:22], partly[0], others[30], general[22])),
        seed=3,
    )
    groups = {"kept": request.kept, "others": request.others, "general": request.general}

    def plainly(paragraphs):
        """log p [n, 50, V] of continuations by one plain pass."""
        with torch.inference_mode():
            return demo.model(torch.tensor(paragraphs)[:, :-1]).logits[:, 49:].log_softmax(-1)

    # What EM is counted against: of the first two non-memorized rows the model's own text, of the others nothing.
    originally, matchable = {}, {}
    for name, group in groups.items():
        originally[name] = plainly(group)
        written = demo.model.generate(
            torch.tensor(group)[:, :50], do_sample=False, max_new_tokens=50, min_new_tokens=50, eos_token_id=-1
        )
        recites = [em[rows.index(row)] > 10 for row in group]
        owned = [i for i, does in enumerate(recites) if not does][:2]
        texts = zip(group, written.tolist(), strict=True)
        matchable[name] = [own if i in owned else row for i, (row, own) in enumerate(texts) if recites[i] or i in owned]
    before, last = all_weights(demo), None
    work = steps_of(demo, request)
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            run = stop.value
            break
        assert_untouched(demo, before)
        last = progress.partial or last
    assert run.stopped == "goal"
    assert run.best == len(run.loss)
    assert run.em[0, 0] == 50
    assert run.em[-1, 0] <= 5
    assert run.broken[:, 0].tolist() == [0] * run.best + [1]
    assert last is not None
    assert last.stopped == "running"
    assert last.em[last.best].mean() == last.em.mean(1).min()
    assert len(run.edit) == 787  # ceil(0.001 * 786,432)
    with edited(demo, [run.edit]):
        own = result(demo, ExactMatch(request.targets))
        many = result(demo, ExactMatch(request.others))
        differ = sum(int((p.detach() != before[n]).sum()) for n, p in demo.model.named_parameters())
        afterwards = {name: plainly(group) for name, group in groups.items()}
        matching = {name: plainly(matchable[name]).argmax(-1) for name in groups}
    for name in groups:
        at = GROUPS.index(name)
        right = (matching[name] == torch.tensor(matchable[name])[:, 50:]).tolist()
        matched = [row.index(False) if False in row else 50 for row in right]
        assert run.group_em[-1, at] == pytest.approx(np.mean(matched[:4]))
        assert run.whole_em[1, at] == pytest.approx(np.mean(matched))
        true = torch.tensor(groups[name])[:4, 50:]
        nll = -afterwards[name][:4].gather(-1, true[..., None]).mean()
        assert run.group_nll[-1, at] == pytest.approx(float(nll), rel=1e-3)
        same = (afterwards[name].argmax(-1) == originally[name].argmax(-1))[:4].float().mean()
        assert run.agreement[-1, at] == pytest.approx(float(same))
    assert np.isnan(run.group_em[-1, GROUPS.index("family")])
    p0, p = originally["kept"][:8], afterwards["kept"][:8]
    assert run.kl[-1] == pytest.approx(float((p0.exp() * (p0 - p)).sum(-1).mean()), rel=1e-3)
    assert own.em[0] == run.em[-1, 0]
    assert differ == run.changed
    np.testing.assert_allclose(own.nll, run.nll[-1], rtol=1e-4)
    at = GROUPS.index("others")
    assert run.whole_em[1, at] == pytest.approx(many.em.mean())
    assert run.whole_em[0, at] == 50
    np.testing.assert_allclose(run.whole_nll[1, at], many.nll.mean(), rtol=1e-3)


def test_what_is_watched_is_undamaged_where_a_pass_rounds_otherwise_than_decoding(monkeypatch):
    lm, greedy = tiny("gpt_neo"), LanguageModel.greedy

    def rounds(self, prompts, length):
        tokens, probabilities = greedy(self, prompts, length)
        tokens[:, 3] = (tokens[:, 3] + 1) % 60
        return tokens, probabilities

    monkeypatch.setattr(LanguageModel, "greedy", rounds)
    work = Training(lm, asked())
    finish(work.watch.look_before())
    assert set(work.watch.groups["general"].em.tolist()) == {3}
    weights = finish(masks.choose(lm, "random", 5))
    before, unchanged = work.watch.before(), finish(work.watch.look(weights, weights.old))
    for was, now in zip(before, unchanged, strict=True):
        np.testing.assert_allclose(was, now, rtol=1e-3)


@pytest.mark.parametrize("mask", ["ratio", "random", "neurons"])
def test_a_seed_gives_the_same_edit_again_and_another_seed_another(mask):
    lm = tiny("gpt_neo")
    request = asked(targets=recited(lm), mask=mask, learning_rate=3.0, kl_weight=1.0, sparsity=0.02)
    one, same, other = (result(lm, dataclasses.replace(request, seed=seed)) for seed in (0, 0, 5))
    assert one.changed > 0
    assert one.edit.fingerprint == same.edit.fingerprint != other.edit.fingerprint
    assert np.array_equal(one.loss, same.loss)
    assert not np.array_equal(one.loss, other.loss)


@pytest.mark.parametrize("goal", ["edit", "memorize"])
def test_what_is_taught_is_really_recited(demo, demo_paragraphs, goal):
    rows = [tuple(row) for row in demo_paragraphs.tokens.tolist()]
    em = result(demo, ExactMatch(tuple(rows))).em
    memorized, other = np.flatnonzero(em == 50), np.flatnonzero(em <= 10)
    target = rows[memorized[0] if goal == "edit" else other[0]]
    # The same text with two of its tokens replaced by what the model holds for the next likely ones.
    changed = list(target)
    for position in (53, 70):
        logits = demo.logits(demo.hidden(torch.tensor([changed[:position]])))[0, -1].clone()
        logits[target[position]] = -torch.inf
        changed[position] = int(logits.argmax())
    run = result(
        demo,
        Unlearn(
            targets=(target,),
            kept=tuple(rows[i] for i in (memorized[5], other[5])),
            objective=goal,
            alternatives=(tuple(changed),) if goal == "edit" else (),
            sparsity=0.01,
            learning_rate=1e-2,
            kl_weight=1.0,
            kept_per_step=2,
            steps=60,
        ),
    )
    assert run.stopped == "goal", run.reason
    wanted = tuple(changed) if goal == "edit" else target
    with edited(demo, [run.edit]):
        written = demo.greedy(torch.tensor([wanted[:50]]), 50)[0][0].tolist()
    assert tuple(written) == wanted[50:]
    assert run.taught_em[-1, 0] == 50
    with edited(demo, [run.edit]), torch.inference_mode():
        logits = demo.model(torch.tensor([wanted[:-1]])).logits[0, 49:]
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(wanted[50:]))
    assert run.taught_nll[-1, 0] == pytest.approx(float(nll), rel=1e-3)


def test_a_closed_failed_or_cancelled_run_leaves_the_original(monkeypatch):
    lm = tiny("gpt_neo")
    before = all_weights(lm)
    work = steps_of(lm, asked(steps=5))
    for _ in range(9):
        next(work)
    work.close()
    assert_untouched(lm, before)
    work = steps_of(lm, asked(steps=5))
    partial = None
    while partial is None:
        partial = next(work).partial
    lm.cancelled.set()
    try:
        with pytest.raises(Cancelled):
            finish(work)
    finally:
        lm.cancelled.clear()
    assert_untouched(lm, before)
    assert len(partial.loss) == 1, "what a cancelled run keeps"

    def fails(*_, **__):
        raise RuntimeError("in the middle of a step")

    monkeypatch.setattr("memloc_core.unlearning.training.head_gradient", fails)
    with pytest.raises(RuntimeError, match="middle"):
        finish(steps_of(lm, asked(mask="random")))
    assert_untouched(lm, before)


def test_a_loss_that_is_no_number_stops_the_run_at_the_last_good_step(monkeypatch):
    lm = tiny("gpt_neo")
    real, calls = Training.gradient, []

    def gradient(self, *args):
        loss, found = real(self, *args)
        calls.append(loss)
        return (math.nan if len(calls) == 3 else loss), found

    monkeypatch.setattr(Training, "gradient", gradient)
    run = result(lm, asked(steps=6))
    assert run.stopped == "loss"
    assert "step 3" in run.reason
    assert len(run.loss) == 2
    assert np.isfinite(run.edit.new).all()
    assert run.best <= 2


def test_a_model_that_gives_no_probabilities_has_met_no_goal():
    lm = tiny("gpt_neo")
    run = result(lm, asked(targets=recited(lm), learning_rate=1e30, goal="break", steps=3))
    assert run.stopped == "loss"
    assert "learning rate" in run.reason
    assert run.best == 0
    assert (run.edit.new == run.edit.old).all()


@pytest.mark.parametrize(
    ("objective", "em", "kl", "best"),
    [
        ("unlearn", [8, 3, 1, 1, 2, 1], [0.5, 0.4, 0.2, 0.1, 0.3], 3),
        ("unlearn", [8, 8, 8], [0.5, 0.4], 0),
        ("memorize", [1, 4, 6, 6, 5], [0.1, 0.4, 0.3, 0.2], 3),
        ("edit", [0, 2, 1, 2], [0.1, 0.2, 0.3], 1),
    ],
)
def test_the_best_step_is_the_one_with_the_best_em_and_of_those_the_smallest_kl(objective, em, kl, best, monkeypatch):
    """EM and KL of each step are given here; EM falls for what is unlearned and rises for what is taught."""
    real, seen = Training.targets_at, []

    def targets_at(self, weights, values):
        found, step = real(self, weights, values), len(seen)
        seen.append(values.clone())
        field = "em" if objective == "unlearn" else "taught_em"
        return dataclasses.replace(found, **{field: torch.tensor([em[step]])})

    monkeypatch.setattr(Training, "targets_at", targets_at)
    monkeypatch.setattr(Training, "kl_at", lambda self, weights, values: kl[len(seen) - 2])
    alternatives = paragraphs(1, seed=9) if objective == "edit" else ()
    run = result(tiny("gpt_neo"), asked(objective=objective, alternatives=alternatives, steps=len(kl)))
    assert run.best == best
    assert np.array_equal(run.edit.new, seen[best].numpy())


def test_a_step_that_takes_the_recitation_away_is_better_than_none():
    lm = tiny("gpt_neo")
    run = result(lm, asked(targets=recited(lm), steps=4, learning_rate=3.0, kl_weight=0.5))
    assert run.em[0, 0] == 20 - P
    assert run.best > 0
    assert run.em[run.best, 0] == run.em.min() < 20 - P


def test_bf16_weights_are_trained_in_fp32_and_rounded_when_written():
    lm = tiny("gpt_neo", torch.bfloat16)
    before = all_weights(lm)
    run = result(lm, asked(targets=recited(lm), steps=3, learning_rate=0.3, kl_weight=0.0))
    assert run.changed > 0
    assert_untouched(lm, before)
    new = torch.tensor(run.edit.new)
    assert torch.equal(new, new.bfloat16().float())
    name, (a, b) = run.edit.parameters[0], run.edit.starts[:2]
    was = before[name].view(-1)[torch.tensor(run.edit.indices[a:b])].float()
    assert torch.equal(was, torch.tensor(run.edit.old[a:b]))


def test_the_paper_s_protocol_moves_every_weight_by_its_decay():
    lm = tiny("gpt_neo")
    engine = Engine()
    engine.lm = lm
    answer = engine.answer(asked(protocol="paper", mask="gradient"))
    run = answer.result
    total = sum(m.parameter.numel() for m in matrices(lm))
    assert len(run.loss) == 10
    assert run.stopped == "steps"
    assert len(run.edit) == total
    assert run.changed > 0.99 * total
    # Without a gradient Adam's first step is the rate against the weight's sign, whatever its size; so are the next.
    outside = np.abs(np.abs(run.edit.new - run.edit.old) - run.best * 1e-5) < 2e-6
    assert outside.mean() > 0.95
    assert any(f"{run.changed:,}" in notice for notice in answer.provenance.notices)


@pytest.mark.parametrize("objective", ["unlearn", "edit"])
@pytest.mark.parametrize("rate", [1e-5, 1e-3])
def test_the_paper_s_protocol_is_torch_s_adam_on_all_matrices_with_gradients_zeroed_outside_the_mask(
    objective, rate, monkeypatch
):
    if rate != 1e-5:  # at the paper's own rate nothing moves far enough for the KL to say anything
        monkeypatch.setattr(unlearning, "PAPER_RATE", rate)
    lm, targets, kept = tiny("gpt_neo"), paragraphs(2), paragraphs(3, seed=1)
    taught = paragraphs(2, seed=7) if objective == "edit" else targets
    fields = {"objective": "edit", "alternatives": taught} if objective == "edit" else {}
    run = result(
        lm,
        asked(protocol="paper", mask="gradient", sparsity=0.1, targets=targets, kept=kept, kept_per_step=3, **fields),
    )
    before, model = twin(lm), twin(lm)
    named = [dict(model.named_parameters())[m.name] for m in matrices(lm)]
    adam, inside = torch.optim.Adam(named, lr=rate, weight_decay=1.0), None
    for _ in range(10):
        adam.zero_grad()
        nll = torch.stack([-log_p(model, row, 8)[range(8), row[P:]].mean() for row in taught]).mean()
        divergence = []
        for row in kept:
            log_p0 = log_p(before, row, 8).detach()
            divergence.append((log_p0.exp() * (log_p0 - log_p(model, row, 8))).sum())
        ((0.1 if objective == "edit" else -0.1) * nll + torch.stack(divergence).mean()).backward()
        gradient = torch.cat([p.grad.flatten() for p in named])
        if inside is None:
            top = gradient.abs().topk(math.ceil(0.1 * len(gradient))).indices
            inside = torch.zeros_like(gradient).index_fill_(0, top, 1)
        for p, part in zip(named, (gradient * inside).split([p.numel() for p in named]), strict=True):
            p.grad.copy_(part.view_as(p))
        adam.step()
    theirs = torch.cat([p.detach().flatten() for p in named])
    # Of a step, a hundredth: Adam divides by what may be nearly nothing.
    torch.testing.assert_close(torch.tensor(run.edit.new), theirs, rtol=1e-6, atol=0.01 * rate)


@pytest.mark.parametrize("mask", ["gradient", "difference", "ratio", "random", "neurons"])
def test_choosing_and_a_step_hold_no_more_than_a_plain_pass_that_leaves_one_gradient(mask):
    """A plain pass keeps what it needs for going backward, and one number for every weight.

    While the weights of one matrix are ranked, a few copies of that matrix stand beside it.
    """
    shape = {"vocab_size": 61, "hidden_size": 256, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 64}
    lm = held("wide", GPTNeoConfig(**shape, attention_types=[[["global"], 4]], bos_token_id=0, eos_token_id=0))
    run = Training(lm, asked(mask=mask, sparsity=0.005))
    run.keep_what_was()
    batch = run.batch()
    labels = batch.rows.ids.clone()
    labels[:, :P] = -100

    def plain():
        lm.model.requires_grad_(True)
        lm.model(input_ids=batch.rows.ids, labels=labels).loss.backward()
        lm.model.requires_grad_(False)
        lm.model.zero_grad(set_to_none=True)

    chosen = []
    usual = peak_bytes(plain)
    assert usual > sum(parameter.nbytes for parameter in lm.model.parameters())
    ranking = 5 * max(m.parameter.nbytes for m in matrices(lm))
    assert peak_bytes(lambda: chosen.append(finish(run.choose(masks.size(lm, mask, 0.005))))) < usual + ranking
    adam = Adam(chosen[0].old, 1e-3)
    assert peak_bytes(lambda: adam.step(chosen[0].old, run.gradient(chosen[0], chosen[0].old, batch)[1])) < usual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mask", "protocol"), [("dense", "memloc"), ("dense", "paper"), ("gradient", "paper")])
def test_a_run_on_every_weight_holds_what_its_estimate_says(mask, protocol, dtype):
    shape = {"vocab_size": 61, "hidden_size": 256, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 64}
    config = GPTNeoConfig(**shape, attention_types=[[["global"], 3]], bos_token_id=0, eos_token_id=0)
    lm = held("wide", config, dtype)
    request = asked(mask=mask, protocol=protocol, sparsity=0.001)
    says = result(lm, EstimateRun(request)).bytes
    assert 0.9 * says < peak_bytes(lambda: result(lm, request)) < 1.15 * says


def test_an_estimate_says_k_and_about_how_long_a_step_takes():
    lm = tiny("gpt_neo")
    cost = result(lm, EstimateRun(asked(mask="ratio")))
    run = result(lm, asked(mask="ratio"))
    assert cost.weights == len(run.edit)
    assert 0.2 * run.step_seconds < cost.seconds_per_step < 50 * run.step_seconds + 1
    assert cost.bytes >= 28 * cost.weights
    assert cost.seconds_to_start > 0


def test_an_estimate_of_the_paper_s_protocol_counts_every_weight():
    lm, alone = tiny("gpt_neo"), {"mask": "gradient", "others": (), "general": ()}
    cost, usual = (result(lm, EstimateRun(asked(protocol=protocol, **alone))) for protocol in ("paper", "memloc"))
    total = sum(m.parameter.numel() for m in matrices(lm))
    assert cost.weights == usual.weights == math.ceil(0.01 * total)
    # Seven numbers of each weight, and either the gradient of its whole matrix or its index.
    assert cost.bytes - usual.bytes == 32 * total - 36 * cost.weights


def test_a_run_that_is_not_watched_takes_the_same_steps():
    lm = tiny("gpt_neo")
    request = asked(targets=recited(lm), mask="gradient", learning_rate=3.0, others=(), general=())
    ours, run = result(lm, request), result(lm, TryRun(request, watched=False))
    assert all(progress.partial is None for progress in trial.run(lm, TryRun(request, watched=False)))
    for name in ("em", "nll", "loss", "longest_run"):
        assert np.array_equal(getattr(run, name), getattr(ours, name)), name
    assert run.em[run.best] == ours.em[ours.best]
    assert len(run.edit) == 0
    assert np.isnan(run.group_em).all()
    with pytest.raises(UsageError, match="no groups of other text"):
        result(lm, TryRun(asked(), watched=False))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sparsity": 0.0}, "sparsity of 0"),
        ({"sparsity": 1.5}, "at most 1"),
        ({"sparsity": math.nan}, "sparsity"),
        ({"sparsity": math.nan, "mask": "auto"}, "sparsity"),
        ({"sparsity": math.inf, "mask": "auto"}, "sparsity"),
        ({"kept": ()}, "No paragraph is kept"),
        ({"targets": ()}, "no paragraph to change"),
        ({"steps": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"kl_weight": -1.0}, "KL weight"),
        ({"mask": "head"}, "L1H2"),
        ({"mask": "head", "place": "L9H0"}, "no head L9H0"),
        ({"mask": "layer", "place": "L7"}, "no layer L7"),
        ({"mask": "neurons", "place": "L7"}, "no layer 'L7'"),
        ({"mask": "neurons", "sparsity": 1e-4}, "one neuron"),
        ({"mask": "neurons", "sparsity": 0.9}, "neurons of one layer have"),
        ({"mask": "component", "place": "W_X"}, "W_X"),
        ({"mask": "gradient", "place": "L1H2"}, "'gradient' has no place 'L1H2'"),
        ({"mask": "head", "place": "L1H2", "sparsity": 0.9}, "give at most"),
        ({"mask": "best"}, "no mask"),
        ({"goal": "win"}, "no goal"),
        ({"objective": "edit"}, "one alternative"),
        ({"objective": "edit", "alternatives": (tuple(range(19)),)}, "19 tokens"),
        ({"alternatives": paragraphs(1)}, "objective edit"),
        ({"others": paragraphs(1, length=18)}, "one length"),
        ({"general": ((99,) * 20,)}, "vocabulary"),
        ({"sibling_nll": (1.0, 2.0)}, "sibling"),
        ({"protocol": "paper", "mask": "ratio"}, "paper"),
        ({"goal": "forget", "general": ()}, "needs text"),
    ],
)
def test_what_cannot_be_meant_is_said_before_any_work(fields, says):
    lm = tiny("gpt_neo")
    with pytest.raises(UsageError, match=says):
        next(steps_of(lm, asked(**fields)))


def test_without_a_kl_weight_nothing_needs_to_be_kept():
    run = result(tiny("gpt_neo"), asked(kept=(), kl_weight=0.0, others=(), general=()))
    assert len(run.loss) == 2
    assert np.isnan(run.group_em[:, GROUPS.index("kept")]).all()
