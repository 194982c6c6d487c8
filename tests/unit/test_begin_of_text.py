"""Paragraphs after the begin-of-text token, against what the tokenizer encodes and against the same without it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from memloc_core.analyses import prefix_signals, rarity
from memloc_core.errors import UsageError
from memloc_core.findings.overview import by_stratum
from memloc_core.findings.setting import Setting
from memloc_core.paragraphs import open_paragraphs
from memloc_core.requests import ExactMatch, OpenParagraphs, PrefixSignals, RareTokens, Rarity
from tests.conftest import result
from tests.unit.families import paragraphs, tiny

BEGIN = 23  # x, which no text here holds
TEXTS = ["abcdefghijkl", "llkkjjiihhgg", "mnopabcdefghij"]
P = 12  # prefix tokens of the 20 of `families.paragraphs`


@pytest.fixture
def folder(tmp_path):
    """A model folder as far as paragraphs look at it; its tokenizer puts x before every text."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 120, "bos_token_id": 7}))
    tokenizer = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)}, unk_token="z"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="x $A", special_tokens=[("x", BEGIN)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def opened(folder, tmp_path):
    """Open rows with a prefix of 8 and a continuation of 4 tokens."""

    def open_(rows, begin_of_text=True, prefix=8):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps({"text" if isinstance(row, str) else "tokens": row}) + "\n" for row in rows))
        return open_paragraphs(OpenParagraphs(str(file), str(folder), prefix, 4, begin_of_text=begin_of_text))

    return open_


# ------------------------------------------------------------------------------------------------------------- opening


def test_text_is_what_the_tokenizer_makes_of_it_with_all_that_it_puts_around_it(folder, opened):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found, without = opened(TEXTS), opened(TEXTS, begin_of_text=False)
    assert found.tokens.tolist() == [tokenizer.encode(text).ids[:13] for text in TEXTS]
    assert found.prefix_length == 9
    assert found.begin == BEGIN
    assert found.texts.tolist() == without.tokens.tolist() == without.texts.tolist()
    assert found.ids == tuple(hashlib.sha256(row.astype("<i8").tobytes()).hexdigest()[:10] for row in found.tokens)
    assert not set(found.ids) & set(without.ids)
    assert found.notices == ()
    assert "--begin-of-text puts it before them" in without.notices[0]
    assert without.begin == -1


def test_ids_that_begin_with_the_token_already_are_the_same_paragraphs(opened):
    text = [[(7 * row + i) % 20 for i in range(12)] for row in range(3)]
    found = opened([text[0], [BEGIN, *text[1]], [*text[2], 5, 6]])
    assert found.tokens.tolist() == [[BEGIN, *row] for row in text]
    again = opened(found.tokens.tolist())
    assert again.tokens.tolist() == found.tokens.tolist()
    assert again.fingerprint == found.fingerprint


def test_a_row_that_is_too_short_after_the_token_is_left_out_and_told(opened):
    found = opened([list(range(12)), [BEGIN, *range(11)], [*range(11)]])
    assert found.tokens.tolist() == [[BEGIN, *range(12)]]
    assert "2 of 3 rows of rows.jsonl are shorter than 12 tokens after the begin-of-text token" in found.notices[0]
    assert "(the first is row 2 with 11)" in found.notices[0]


def test_prefixes_and_suffixes_of_two_files_get_the_token_before_the_prefix(tmp_path, folder):
    before, after = np.arange(30).reshape(3, 10) % 20, np.arange(12).reshape(3, 4)
    before[:, 1] = BEGIN
    np.save(tmp_path / "before.npy", before)
    np.save(tmp_path / "after.npy", after)
    request = OpenParagraphs(
        f"{tmp_path / 'before.npy'}+{tmp_path / 'after.npy'}", str(folder), 8, 4, begin_of_text=True
    )
    expected = [[BEGIN, *x[2:], *y] for x, y in zip(before.tolist(), after.tolist(), strict=True)]
    assert open_paragraphs(request).tokens.tolist() == expected
    with pytest.raises(UsageError, match="shorter than 13 tokens after the begin-of-text token"):
        open_paragraphs(replace(request, prefix_length=9))  # which begins with it in the file and has 8 others


def test_the_token_is_not_counted_where_the_set_counts_itself_and_has_no_count(opened, tmp_path):
    found, without = opened(TEXTS), opened(TEXTS, begin_of_text=False)
    assert found.counts.tolist() == without.counts.tolist()
    assert found.counts[BEGIN] == 0
    for row in range(3):
        assert found.prefix_counts(row) == (-1, *without.prefix_counts(row))
    corpus = np.arange(120)
    np.save(tmp_path / "rows.counts.npy", corpus)
    found = opened(TEXTS)
    assert found.counts_of == "corpus"
    assert found.prefix_counts(0) == (-1, *range(8))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vocab_size": 120, "bos_token_id": 7}, 7),
        ({"text_config": {"vocab_size": 120, "bos_token_id": 7}}, 7),
        ({"vocab_size": 120}, None),
        ({"vocab_size": 120, "bos_token_id": None}, None),
        ({"vocab_size": 120, "bos_token_id": 120}, None),
        ({"vocab_size": 120, "bos_token_id": [1, 2]}, None),
    ],
)
def test_where_the_tokenizer_puts_none_config_json_names_it_or_there_is_none(folder, opened, config, expected):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.Sequence([])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    if expected is None:
        with pytest.raises(UsageError, match=r"has no begin-of-text token: .* leave out --begin-of-text"):
            opened(TEXTS)
    else:
        assert opened(TEXTS).tokens[:, 0].tolist() == [expected] * 3
    assert opened(TEXTS, begin_of_text=False).notices == ()
    (folder / "tokenizer.json").unlink()  # rows of ids need none
    if expected is not None:
        assert opened([list(range(12))]).tokens.tolist() == [[expected, *range(12)]]


def test_a_first_token_that_all_share_makes_no_near_duplicates(opened):
    """Eight of ten different tokens shared are no near-duplicates, nine of eleven would be."""
    rows = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8], [0, 1, 2, 3, 4, 5, 6, 7, 9, 9, 9, 9]]
    found = opened(rows)
    assert len(set(found.related([0, 1]).tolist())) == 2
    plain = replace(found, begin=-1)
    assert len(set(plain.related([0, 1]).tolist())) == 1, "with the token among them they would be"


def test_findings_of_the_same_rows_read_otherwise_are_others(opened):
    found = opened(TEXTS)
    em, nll = np.zeros(3, np.int64), np.zeros(3, np.float32)
    one, other = (Setting(p, em, nll, tiny("gpt2").info) for p in (found, replace(found, begin=-1)))
    assert one.fingerprint != other.fingerprint
    assert by_stratum(one, str)[-1].unique == pytest.approx(np.mean([len(set(text[:12])) / 12 for text in TEXTS]))


# ------------------------------------------------------------------------------------------------------------ analyses


def begun(request, token=0):
    """The same request about paragraphs after a begin-of-text token."""
    name = "prefixes" if isinstance(request, PrefixSignals) else "paragraphs"
    rows = tuple((token, *row) for row in getattr(request, name))
    more = {} if name == "prefixes" else {"prefix_length": request.prefix_length + 1}
    return replace(request, **{name: rows}, counts=tuple((-1, *own) for own in request.counts), **more)


def request_of(kind, n=40, **more):
    """Random paragraphs whose token t has corpus count 10 * (t + 1)."""
    rows = paragraphs(n)
    counts = tuple(tuple(10 * (t + 1) for t in row[:P]) for row in rows)
    if kind is PrefixSignals:
        return PrefixSignals(tuple(row[:P] for row in rows), counts)
    return kind(paragraphs=rows, counts=counts, prefix_length=P, **more)


def test_exact_match_is_what_generate_gives_after_the_token():
    lm, rows = tiny("llama"), paragraphs(6)
    prompts = torch.tensor([[0, *row[:P]] for row in rows])
    whole = lm.model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    recited = tuple((0, *row[:P], *own) for row, own in zip(rows, whole[:, P + 1 :].tolist(), strict=True))
    assert result(lm, ExactMatch(recited, P + 1)).em.tolist() == [8] * 6
    assert result(lm, ExactMatch(tuple(row[1:] for row in recited), P)).em.min() < 8


@pytest.mark.parametrize("shuffle", ["positions", "paragraphs"])
def test_a_sink_at_the_token_changes_nothing_of_the_rarity(shuffle, monkeypatch):
    """Heads that give it nine tenths of their attention, and to the text what they would have given it otherwise."""
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(61, 3, 4, generator=generator)

    def attend(lm, rows, query):
        rows = rows[:, : query + 1]
        text = rows[:, rows.shape[1] - P :]
        weights = own[text].permute(0, 2, 3, 1)
        weights = weights / weights.sum(-1, keepdim=True)
        if rows.shape[1] == P:
            return weights
        return torch.cat([torch.full((*weights.shape[:3], 1), 0.9), 0.1 * weights], -1)

    monkeypatch.setattr(rarity, "attention_rows", attend)
    request = request_of(Rarity, resamples=60, shuffle=shuffle)
    plain, after = result(tiny("llama"), request), result(tiny("llama"), begun(request))
    assert after.query == plain.query + 1
    for name in ("ranks", "tokens_per_rank", "attention", "tau", "low", "high", "null_mean", "null_low", "p", "p_all"):
        np.testing.assert_allclose(getattr(after, name), getattr(plain, name), rtol=1e-4, atol=1e-6, err_msg=name)
    assert after.strongest == plain.strongest


def test_rare_tokens_and_their_partners_are_those_of_the_text():
    lm, request = tiny("llama"), request_of(RareTokens, 11, tokens=(58, 59, 60, 57), pairs=3, resamples=50)
    plain, after = result(lm, request), result(lm, begun(request))
    for name in ("rare", "common"):
        places = getattr(plain, name)
        assert getattr(after, name).tolist() == np.where(places >= 0, places + 1, -1).tolist()


def test_the_detectors_rarest_fifth_is_of_the_text(monkeypatch):
    """Attention that is its position says where the rarest tokens stand."""

    def attend(lm, rows, query):
        return torch.arange(rows.shape[1]).float().expand(len(rows), 3, 4, -1)

    monkeypatch.setattr(prefix_signals, "attention_rows", attend)
    request = begun(request_of(PrefixSignals, 5))
    found = result(tiny("llama"), request)
    told = found.values[:, found.names.index("rarest head")]
    for counts, total in zip(request.counts, told.tolist(), strict=True):
        order = sorted(range(1, P + 1), key=lambda place: (counts[place], place))
        assert total == sum(order[: P // 5])


@pytest.mark.parametrize("kind", [Rarity, RareTokens, PrefixSignals])
def test_a_count_is_missing_only_before_the_text_of_every_paragraph(kind):
    more = {"tokens": (58, 59, 60, 57)} if kind is RareTokens else {}
    request = begun(request_of(kind, 12, **more))
    for counts in (((3, *request.counts[0][1:]), *request.counts[1:]), ((-1, -1, *request.counts[0][2:]),) * 12):
        with pytest.raises(UsageError, match="Only a begin-of-text token has no corpus count"):
            result(tiny("llama"), replace(request, counts=counts))


@pytest.mark.parametrize("kind", [Rarity, RareTokens])
def test_where_no_clusters_are_given_the_token_makes_no_near_duplicates_either(kind):
    """Ten rows, which is the fewest; two share 16 of 20 different tokens, and with one more would be one."""
    alike = ((*range(1, 19), 1, 2), (*range(1, 17), 19, 20, 1, 2))
    rows = (*alike, *paragraphs(8))
    counts = tuple(tuple(10 * (t + 1) for t in row[:P]) for row in rows)
    more = {"tokens": (58, 59, 60, 57)} if kind is RareTokens else {}
    request = begun(kind(paragraphs=rows, counts=counts, prefix_length=P, resamples=50, **more))
    result(tiny("llama"), request)
    plain = tuple((*row[:1], *own[1:]) for row, own in zip(counts, request.counts, strict=True))
    with pytest.raises(UsageError, match=r"at least 10 paragraphs that are unrelated .*; 9 were given"):
        result(tiny("llama"), replace(request, counts=plain))
