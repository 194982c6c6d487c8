"""Perturbation and sweep, against one plain forward pass per replacement."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from memloc_core.analyses import perturbation
from memloc_core.bfloat16 import Bfloat16Pass
from memloc_core.errors import UsageError
from memloc_core.requests import Alternatives, Continue, Perturb, Sweep, Sweeps, random_tokens
from tests.conftest import result
from tests.unit.families import paragraphs, tiny


def plain_tokens(lm, row, continuation):
    """Argmax, lead over the best other logit, and NLL of each token after a 50-token prefix, by one whole pass of
    transformers' own forward."""
    ids = torch.tensor([[*row[:50], *continuation]])
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0, 49:-1]
    targets = ids[0, 50:]
    leads = [float(x[t] - torch.cat([x[:t], x[t + 1 :]]).max()) for x, t in zip(logits, targets.tolist(), strict=True)]
    return logits.argmax(-1).tolist(), leads, torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def plain_score(lm, row, continuation):
    """EM, NLL, and the margin that the EM hangs on."""
    predicted, leads, nll = plain_tokens(lm, row, continuation)
    matches = [a == b for a, b in zip(predicted, continuation, strict=True)]
    em = matches.index(False) if False in matches else 50
    return em, float(nll.mean()), min(map(abs, leads[: em + 1]))


@pytest.fixture(scope="module")
def rows(demo, demo_paragraphs):
    """One paragraph that is recited whole, one that is not."""
    from memloc_core.requests import ExactMatch

    em = result(demo, ExactMatch(tuple(map(tuple, demo_paragraphs.tokens.tolist())))).em
    return demo_paragraphs.row(int(em.argmax())), demo_paragraphs.row(int(em.argmin()))


def test_perturb_scores_both_rows_as_plain_passes_do(demo, rows):
    row = rows[0]
    told = result(demo, Perturb(row, ((7, 100), (49, 5))))
    changed = list(row)
    changed[7], changed[49] = 100, 5
    for em, nll, margin, read in (
        (told.em_before, told.nll_before, told.margin_before, row),
        (told.em_after, told.nll_after, told.margin_after, changed),
    ):
        expected = plain_score(demo, read, row[50:])
        assert (em, pytest.approx(nll, rel=1e-4), pytest.approx(margin, rel=1e-3, abs=1e-4)) == expected
    predicted, _, token_nll = plain_tokens(demo, changed, row[50:])
    assert told.predicted.tolist() == predicted != list(row[50:])
    np.testing.assert_allclose(told.token_nll, token_nll, rtol=1e-3, atol=1e-5)
    assert told.drop == told.em_before - told.em_after
    assert told.reference.tolist() == list(row[50:])


def test_without_replacements_nothing_changes(demo, rows):
    told = result(demo, Perturb(rows[0], ()))
    assert told.drop == 0
    assert told.nll_after == pytest.approx(told.nll_before)


def test_against_its_own_continuation_the_clean_prefix_has_full_exact_match(demo, rows):
    row = rows[1]
    own = result(demo, Continue(row[:50], 50)).tokens.tolist()
    told = result(demo, Perturb(row, ((30, 9),), reference="own"))
    assert told.em_before == 50
    assert told.reference.tolist() == own
    changed = [*row[:30], 9, *row[31:]]
    assert told.em_after == plain_score(demo, changed, own)[0]


@pytest.mark.parametrize("strategy", ["random", "next-best", "most-frequent", "rarest", "given"])
@pytest.mark.parametrize("reference", ["true", "own"])
def test_sweep_is_one_plain_pass_per_replacement(demo, demo_paragraphs, rows, strategy, reference):
    row = rows[reference == "own"]
    tokens = ()
    if strategy in ("most-frequent", "rarest"):
        tokens = demo_paragraphs.ranked_tokens(strategy, 3)
    elif strategy == "given":
        tokens = (11, 12, 13)
    told = result(demo, Sweep(row, strategy, draws=2, seed=3, tokens=tokens, reference=reference))
    assert told.em.shape == told.nll.shape == told.replacements.shape == (50, 2)
    continuation = told.reference.tolist()
    assert told.em_before == plain_score(demo, row, continuation)[0]
    for position in range(50):
        for draw in range(2):
            changed = list(row)
            changed[position] = int(told.replacements[position, draw])
            assert changed[position] != row[position]
            em, nll, margin = plain_score(demo, changed, continuation)
            assert (told.em[position, draw], told.nll[position, draw]) == (em, pytest.approx(nll, rel=1e-3))
            assert told.margin[position, draw] == pytest.approx(margin, rel=1e-3, abs=1e-3)
    np.testing.assert_allclose(told.drops(), told.em_before - told.em.mean(1), rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_a_verified_sweep_has_the_exact_ems_also_where_bfloat16_alone_has_others(family, monkeypatch):
    lm = tiny(family)
    alone, shares = 0, []
    for seed, reference in enumerate(["true", *6 * ["own"]]):
        request = Sweep(paragraphs(1, seed=seed)[0], draws=32, seed=seed, prefix_length=12, reference=reference)
        exact = result(lm, request)
        verified = result(lm, replace(request, verified=True))
        np.testing.assert_array_equal(verified.em, exact.em)
        assert verified.bound == pytest.approx(perturbation._SAFETY * verified.error)
        assert 1 / 32 <= verified.rechecked <= 1
        shares.append(verified.rechecked)
        with monkeypatch.context() as patched:
            patched.setattr(perturbation, "_SAFETY", 0.0)  # only what is measured is done again
            alone += int((result(lm, replace(request, verified=True)).em != exact.em).sum())
    assert alone > 0
    assert any(share < 1 for share in shares)


def test_between_the_steps_of_a_verified_sweep_the_model_is_itself(demo, rows):
    paragraph = torch.tensor(rows[:2])
    before = demo.score(paragraph, 50).nll
    kinds = [(name, weight.dtype) for name, weight in demo.model.named_parameters(remove_duplicate=False)]
    for _ in perturbation.run_sweep(demo, Sweep(rows[0], verified=True)):
        assert torch.equal(demo.score(paragraph, 50).nll, before)
        assert [(n, w.dtype) for n, w in demo.model.named_parameters(remove_duplicate=False)] == kinds


def test_a_pass_in_bfloat16_is_near_and_ends_with_the_exact_model_also_after_a_failure(demo, rows):
    paragraph = torch.tensor(rows[:2])
    before = demo.score(paragraph, 50)
    half = Bfloat16Pass(demo)
    with contextlib.suppress(ValueError), half.applied():
        rough = demo.score(paragraph, 50)
        raise ValueError("on purpose")
    off = (rough.margin - before.margin).abs()
    assert 0 < off.max() < 0.05 * before.margin.abs().max()
    after = demo.score(paragraph, 50)
    assert all(torch.equal(getattr(after, name), getattr(before, name)) for name in ("predicted", "margin", "nll"))


def test_what_is_hardly_recited_is_computed_exactly_at_once(demo, demo_paragraphs, monkeypatch):
    request = Sweep(demo_paragraphs.row(int(demo_paragraphs.repetitions.argmin())), reference="own")
    monkeypatch.setattr(perturbation, "_SAFETY", 1e4)  # whatever the margins, they are within the bound
    passes = []
    hook = demo.model.base_model.register_forward_pre_hook(lambda *_: passes.append(torch.is_autocast_enabled("cpu")))
    try:
        verified = result(demo, replace(request, verified=True))
    finally:
        hook.remove()
    assert sum(passes) == 1  # the clean row
    assert verified.rechecked == 1
    for field in ("em", "margin", "nll"):
        np.testing.assert_array_equal(getattr(verified, field), getattr(result(demo, request), field))


def test_a_verified_sweep_of_what_is_recited_does_little_again(demo, rows):
    exact, verified = (result(demo, Sweep(rows[0], verified=way)) for way in (False, True))
    np.testing.assert_array_equal(verified.em, exact.em)
    assert exact.em.mean() > 25
    assert verified.rechecked < 0.5
    near = np.abs(verified.margin - exact.margin)
    assert 0 < near.max() <= verified.bound
    np.testing.assert_allclose(verified.nll, exact.nll, atol=0.3)
    assert (np.isnan(exact.error), exact.rechecked) == (True, 0)


def test_margins_that_are_no_numbers_are_all_done_again(monkeypatch):
    lm = tiny("gpt2")
    request = Sweep(paragraphs(1)[0], draws=2, prefix_length=12, verified=True)
    exact = result(lm, replace(request, verified=False))
    plain = lm.hidden

    def broken(ids, cache=None):
        return plain(ids, cache) * (math.nan if torch.is_autocast_enabled("cpu") else 1)

    monkeypatch.setattr(lm, "hidden", broken)
    told = result(lm, request)
    np.testing.assert_array_equal(told.em, exact.em)
    np.testing.assert_array_equal(told.margin, exact.margin)
    assert told.rechecked == 1


def test_a_verified_sweep_needs_float32():
    with pytest.raises(UsageError, match="is open in bfloat16"):
        result(tiny("gpt2", torch.bfloat16), Sweep(paragraphs(1)[0], prefix_length=12, verified=True))


@pytest.mark.parametrize("at_once", [3, 10, 64])
def test_sweeps_together_are_those_of_each_paragraph_alone(demo, demo_paragraphs, rows, monkeypatch, at_once):
    monkeypatch.setattr(perturbation, "rows_of_a_pass", lambda lm: at_once)
    some = (*rows, *(demo_paragraphs.row(i) for i in (3, 90, 200, 400, 650)))
    for draws, verified in ((1, False), (3, False), (1, True)):
        alike = Sweep((), draws=draws, seed=5, verified=verified)
        sides = ("true", "own", "true")
        asked = tuple(replace(alike, paragraph=row, reference=sides[i % 3]) for i, row in enumerate(some))
        together = result(demo, Sweeps(asked)).scores
        for request, told in zip(asked, together, strict=True):
            alone = result(demo, replace(request, verified=False))
            for name in ("reference", "em_before", "replacements", "em"):
                np.testing.assert_array_equal(getattr(told, name), getattr(alone, name))
            if not verified:
                np.testing.assert_allclose(told.margin, alone.margin, rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(told.nll, alone.nll, rtol=1e-3, atol=1e-4)
            else:
                assert np.abs(told.margin - alone.margin).max() <= told.bound
                assert told.bound == pytest.approx(perturbation._SAFETY * told.error)
        if verified:  # what one paragraph needs is not done for the others
            assert min(told.rechecked for told in together) < 0.5 < max(told.rechecked for told in together)
            assert len({told.error for told in together}) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma3"])
def test_sweeps_together_reuse_the_prefixes_of_every_kind_of_cache(family):
    lm = tiny(family)
    asked = tuple(Sweep(row, draws=2, prefix_length=12) for row in paragraphs(4))
    for request, told in zip(asked, result(lm, Sweeps(asked)).scores, strict=True):
        alone = result(lm, request)
        np.testing.assert_array_equal(told.em, alone.em)
        np.testing.assert_allclose(told.nll, alone.nll, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("other", [{"seed": 2}, {"draws": 2}, {"prefix_length": 11}, {"verified": True}])
def test_only_sweeps_that_are_alike_go_together(other):
    one, two = paragraphs(2)
    alike = Sweep(one, prefix_length=12), Sweep(two, prefix_length=12, reference="own")
    assert len(result(tiny("gpt2"), Sweeps(alike)).scores) == 2
    with pytest.raises(UsageError, match="differ in nothing but the paragraph"):
        result(tiny("gpt2"), Sweeps((alike[0], replace(alike[1], **other))))


def test_a_cache_stays_as_it_is_whatever_is_made_of_it(demo, rows):
    clean = torch.tensor([rows[0][:60], rows[1][:60]])
    cache = demo.new_cache()
    with torch.inference_mode():
        demo.hidden(clean, cache)
        before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        shorter = demo.shortened(cache, clean, 20)
        chosen = demo.selected(shorter, torch.tensor([1, 1, 0]))
        told = demo.hidden(clean[[1, 1, 0], 20:], chosen)
        torch.testing.assert_close(told, demo.hidden(clean[[1, 1, 0]])[:, 20:], rtol=1e-3, atol=1e-4)
    assert (shorter.get_seq_length(), chosen.get_seq_length(), cache.get_seq_length()) == (20, 60, 60)
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_random_replacements_are_seeded_and_uniform_without_the_original(demo, rows):
    one, same, other = (result(demo, Sweep(rows[0], seed=s, draws=3)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.replacements, same.replacements)
    assert (one.replacements != other.replacements).mean() > 0.9
    fewer = result(demo, Sweep(rows[0], seed=1, draws=1))
    np.testing.assert_array_equal(fewer.replacements[:, 0], one.replacements[:, 0])
    spread = np.concatenate([one.replacements.ravel(), other.replacements.ravel()])
    assert spread.max() > 0.9 * demo.info.vocabulary
    assert spread.min() < 0.1 * demo.info.vocabulary


def test_next_best_is_what_the_model_expected_there(demo, rows):
    told = result(demo, Sweep(rows[0], "next-best", draws=2))
    for position in (1, 25, 49):
        expected = result(demo, Alternatives(rows[0][:50], position, 2)).tokens
        np.testing.assert_array_equal(told.replacements[position], expected)


def test_next_best_at_the_first_position_is_what_begins_a_text_or_what_comes_second(demo, rows, monkeypatch):
    for bos in (demo.bos, None):  # where nothing predicts it: what the model expects after it
        monkeypatch.setattr(demo, "bos", bos)
        with torch.no_grad():
            logits = demo.model(input_ids=torch.tensor([[rows[0][0] if bos is None else bos]])).logits[0, -1]
        expected = [token for token in logits.argsort(descending=True).tolist() if token != rows[0][0]][:3]
        told = result(demo, Sweep(rows[0], "next-best", draws=3)).replacements
        assert told[0].tolist() == expected
        with torch.no_grad():
            after_two = demo.model(input_ids=torch.tensor([rows[0][:2]])).logits[0, -1].argsort(descending=True)
        assert told[2].tolist() == [token for token in after_two.tolist() if token != rows[0][2]][:3]


def test_ranked_tokens_follow_the_corpus_counts(demo_paragraphs):
    counts = demo_paragraphs.counts
    frequent = demo_paragraphs.ranked_tokens("most-frequent", 4)
    rarest = demo_paragraphs.ranked_tokens("rarest", 4)
    assert counts[list(frequent)].tolist() == sorted(counts.tolist(), reverse=True)[:4]
    assert counts[list(rarest)].tolist() == sorted(counts[counts > 0].tolist())[:4]


def test_a_model_whose_cache_cannot_be_trusted_sweeps_whole_rows_with_the_same_result(demo, rows, monkeypatch):
    reused = result(demo, Sweep(rows[0]))
    monkeypatch.setattr(demo, "reuses_prefix", False)
    whole = result(demo, Sweep(rows[0]))
    np.testing.assert_array_equal(reused.em, whole.em)
    np.testing.assert_allclose(reused.nll, whole.nll, rtol=1e-3, atol=1e-5)


def test_a_sweep_tells_what_it_knows_so_far(demo, rows):
    from memloc_core.analyses.perturbation import run_sweep

    steps = run_sweep(demo, Sweep(rows[0]))
    first = next(steps)
    assert first.total == 50
    assert (first.partial.em[: first.done] >= 0).all()
    assert (first.partial.em[first.done :] == -1).all()
    assert np.isnan(first.partial.drops()[first.done :]).all()
    steps.close()


@pytest.mark.parametrize("group_of", [1, 7])
def test_out_of_memory_inside_a_sweep_changes_nothing(demo, rows, group_of):
    whole = result(demo, Sweep(rows[0]))

    def allocator_limit(module, args, kwargs):
        if kwargs["input_ids"].shape[0] > group_of:
            raise torch.OutOfMemoryError("simulated")

    hook = demo.model.base_model.register_forward_pre_hook(allocator_limit, with_kwargs=True)
    try:
        halved = result(demo, Sweep(rows[0]))
    finally:
        hook.remove()
    np.testing.assert_array_equal(halved.em, whole.em)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"draws": 0}, "0 draws"),
        ({"strategy": "given", "tokens": (4,)}, "2 different tokens"),
        ({"strategy": "given", "tokens": (4, 99_999)}, "99999"),
        ({"prefix_length": 100}, "no prefix of 100"),
    ],
)
def test_impossible_sweeps_are_told_what_is_wrong(demo, rows, change, says):
    paragraph = (*rows[0][:3], 4, *rows[0][4:])
    with pytest.raises(UsageError, match=says):
        result(demo, Sweep(paragraph, **change))


def test_a_replacement_outside_the_prefix_is_refused(demo, rows):
    with pytest.raises(UsageError, match="Position 50"):
        result(demo, Perturb(rows[0], ((50, 1),)))


@pytest.mark.parametrize("original", [0, 1, 2])
def test_a_random_replacement_is_any_token_but_the_original(original):
    drawn = [random_tokens(seed, 5, 4, vocabulary=3, original=original) for seed in range(50)]
    assert {token for row in drawn for token in row} == {0, 1, 2} - {original}


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"strategy": "bogus"}, "no strategy 'bogus'"), ({"seed": -1}, "seed of -1"), ({"draws": 0}, "0 draws")],
)
def test_what_no_sweep_can_be_is_refused_of_sweeps_together_too(bad, said):
    sweep = replace(Sweep(paragraphs(1)[0], prefix_length=12), **bad)
    for asked in (sweep, Sweeps((sweep, sweep))):
        with pytest.raises(UsageError, match=said):
            result(tiny("gpt2"), asked)


def test_sweeps_together_are_as_many_as_fit_into_memory(demo, demo_paragraphs, monkeypatch):
    asked = tuple(Sweep(demo_paragraphs.row(i)) for i in range(5))
    whole, seen = result(demo, Sweeps(asked)).scores, []
    monkeypatch.setattr(demo, "rows_at_once", lambda length, backward=False: 2)
    hook = demo.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    few = result(demo, Sweeps(asked)).scores
    hook.remove()
    assert max(seen) == 2
    for one, other in zip(whole, few, strict=True):
        np.testing.assert_array_equal(one.em, other.em)
