"""Scanning a corpus: the kernel against whole passes, the set against a brute-force reference, stops and resumes."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from memloc_core import codec
from memloc_core.analyses import scanning
from memloc_core.corpora.streams import corpus_files, open_stream
from memloc_core.engine import Engine
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import (
    SCAN_STRATA,
    AssembleScan,
    ExactMatch,
    OpenModel,
    OpenParagraphs,
    PlanScan,
    ScanBlock,
    ScoreWindows,
    scan_stratum,
)
from memloc_core.scan import repetitions
from memloc_core.scan.cluster import Worker
from memloc_core.scan.folder import ScanFolder
from memloc_core.scan.job import Scan, ScanOptions, keep_of
from memloc_core.scan.kernel import exact_matches
from memloc_core.scan.windows import order_of, windows_of
from tests.unit import families

# -------------------------------------------------------------------------------------------------------------- kernel


def rows_that_leave_late(lm, n=40, length=30, prefix=9, seed=0):
    """Random prefixes, each followed by some of the model's own greedy tokens and then by others."""
    generator = np.random.default_rng(seed)
    rows = torch.from_numpy(generator.integers(0, lm.info.vocabulary, (n, length)))
    with torch.inference_mode():
        own, _ = lm.greedy(rows[:, :prefix], length - prefix)
    for row, right in enumerate(generator.integers(-3, length - prefix + 4, n).clip(0, length - prefix)):
        rows[row, prefix : prefix + right] = own[row, :right]
    return rows


@pytest.mark.parametrize("family", [*families.KNOWN, "opt"])
def test_exact_matches_are_those_of_one_whole_pass_in_every_family(family):
    lm = families.tiny(family)
    rows = rows_that_leave_late(lm)
    with torch.inference_mode():
        expected = lm.score(rows, 9).exact_match(rows[:, 9:])
        assert exact_matches(lm, rows, 9).tolist() == expected.tolist()
    assert {0, 21} < set(expected.tolist())


def test_exact_matches_hold_where_the_attention_window_is_shorter_than_the_prefix():
    torch.manual_seed(1)
    config = transformers.MistralConfig(**families._LLAMA, num_key_value_heads=2, sliding_window=6)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    info = replace(families.tiny("mistral").info, architecture="MistralForCausalLM")
    lm = type(families.tiny("mistral"))(model, info)
    rows = rows_that_leave_late(lm)
    with torch.inference_mode():
        assert exact_matches(lm, rows, 9).tolist() == lm.score(rows, 9).exact_match(rows[:, 9:]).tolist()


def test_exact_matches_are_those_of_one_whole_pass_on_the_embedded_model(demo, demo_paragraphs):
    rows = torch.from_numpy(demo_paragraphs.tokens[::7])
    with torch.inference_mode():
        expected = demo.score(rows, 50).exact_match(rows[:, 50:])
        assert exact_matches(demo, rows, 50).tolist() == expected.tolist()
    assert expected.max() == 50


def test_a_model_without_a_usable_cache_is_asked_for_whole_passes(monkeypatch):
    lm = families.tiny("gpt2")
    rows = rows_that_leave_late(lm, 8)
    monkeypatch.setattr(lm, "reuses_prefix", False)
    monkeypatch.setattr(lm, "new_cache", lambda: pytest.fail("the cache was used"))
    with torch.inference_mode():
        assert exact_matches(lm, rows, 9).tolist() == lm.score(rows, 9).exact_match(rows[:, 9:]).tolist()


def test_a_window_that_leaves_at_once_costs_its_prefix_and_no_more(monkeypatch):
    lm = families.tiny("gpt2")
    rows = rows_that_leave_late(lm, 60)
    with torch.inference_mode():
        em = lm.score(rows, 9).exact_match(rows[:, 9:])
        margin = lm.score(rows, 9).deciding_margin(rows[:, 9:])
        rows = rows[(em == 0) & (margin > 1e-2)]
        fed = []
        hidden = lm.hidden
        monkeypatch.setattr(lm, "hidden", lambda ids, cache=None: fed.append(ids.numel()) or hidden(ids, cache))
        assert not exact_matches(lm, rows, 9).any()
    assert len(rows) > 3
    assert sum(fed) == 9 * len(rows)


# --------------------------------------------------------------------------------------------------------- repetitions


@pytest.mark.parametrize("values", [2**64, 8])
@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 65_537, 131_073)])
def test_repetitions_are_counted_as_a_naive_search_counts_them(ids, values, monkeypatch):
    """Also where many windows share one of eight hashes, and for ids that are the same in their lowest 16 bits."""
    real = repetitions.rolling_hashes
    monkeypatch.setattr(repetitions, "rolling_hashes", lambda *given: real(*given) & np.uint64(values - 1))
    generator = np.random.default_rng(3)
    documents = [np.array(ids, np.int32)[generator.integers(0, 3, n)] for n in (0, 2, 40, 5, 200, 6)]
    rows = np.stack([documents[4][i : i + 5] for i in (0, 3, 3, 90, 195)] + [np.array([2, 9, 9, 9, 9], np.int32)])
    wanted = repetitions.distinct(rows)
    counts = np.zeros(len(wanted.tokens), np.int64)
    wanted.count(documents, counts)
    naive = [
        sum(ids[i : i + 5].tolist() == row.tolist() for ids in documents for i in range(len(ids) - 4)) for row in rows
    ]
    assert counts[wanted.same].tolist() == naive
    assert max(naive) > 1
    assert naive[-1] == 0


def test_a_hash_does_not_depend_on_what_else_is_in_the_stream():
    """Each id has its number whatever the largest one is: a window's hash is that of the corpus."""
    window = np.array([70_000, 5, 65_536], np.int32)
    (alone,) = repetitions.rolling_hashes(window, 3)
    for more in ([1], [200_000], [1 << 20]):
        assert repetitions.rolling_hashes(np.array([*window, *more], np.int32), 3)[0] == alone
    assert repetitions.rolling_hashes(window & 0xFFFF, 3)[0] != alone


def test_a_seed_with_which_two_windows_share_a_hash_is_not_taken(monkeypatch):
    """With seed 0 there is one hash only, so the windows are counted with the next seed."""
    rows = np.array([[1, 2], [3, 4]], np.int32)
    real = repetitions.rolling_hashes
    calls = []

    def weak(stream, length, seed=0):
        calls.append(seed)
        return real(stream, length, seed) & np.uint64(0 if seed == 0 else -1 & (2**64 - 1))

    monkeypatch.setattr(repetitions, "rolling_hashes", weak)
    wanted = repetitions.distinct(rows)
    assert wanted.seed == 1
    counts = np.zeros(2, np.int64)
    wanted.count([np.array([1, 2, 3, 4, 3, 4], np.int32)], counts)
    assert counts[wanted.same].tolist() == [1, 2]


def test_the_order_of_a_sample_is_uniform_and_depends_on_nothing_but_place_and_seed():
    document, offset = np.repeat(np.arange(100), 50), np.tile(np.arange(50) * 50, 100)
    order = order_of(document, offset, 0)
    shuffled = np.random.default_rng(0).permutation(len(order))
    assert (order_of(document[shuffled], offset[shuffled], 0) == order[shuffled]).all()
    assert len(np.unique(order)) == len(order)
    assert (order >= 0).all()
    assert abs(np.corrcoef(order, document)[0, 1]) < 0.05
    assert abs(np.corrcoef(order, order_of(document, offset, 1))[0, 1]) < 0.05
    assert 0.45 < order.mean() / 2**63 < 0.55


# ------------------------------------------------------------------------------------------------------------- streams

TEXTS = ['one, "two"\nthree', "", "ü → 🙂", "a" * 300, "last"]


def _files_of_texts(folder):
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "a.jsonl").write_text(lines.replace("\n", "\n\n", 1))
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    import csv

    with (folder / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(TEXTS)])
    table = pa.table({"id": range(5), "text": TEXTS})
    pq.write_table(table, folder / "d.parquet", row_group_size=2)
    for name, make in (("e.arrow", pa.ipc.new_stream), ("f.arrow", pa.ipc.new_file)):
        with make(str(folder / name), table.schema) as writer:
            for batch in table.to_batches(max_chunksize=2):
                writer.write(batch)


def test_every_kind_of_file_gives_its_documents_from_any_of_them_on(tmp_path):
    _files_of_texts(tmp_path)
    for file in corpus_files(str(tmp_path)):
        runs = list(open_stream(file).survey(1))
        assert sum(run.documents for run in runs) == 5, file
        for i, run in enumerate(runs):
            first = sum(r.documents for r in runs[:i])
            assert list(open_stream(file).read(run.start, 5 - first)) == TEXTS[first:], (file, i)
        assert sum(run.documents for run in open_stream(file).survey(1 << 20)) == 5


def test_a_long_text_is_divided_at_lines_and_between_characters(tmp_path):
    text = "é" * 200_000 + "\n" + "a line\n" * 30_000 + "end"
    (tmp_path / "a.txt").write_text(text)
    stream = open_stream(tmp_path / "a.txt")
    runs = list(stream.survey(1))
    pieces = list(stream.read(0, len(runs)))
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 2 * (1 << 16)
    assert pieces[-2].endswith("\n")
    for i in (1, 3, len(runs) - 1):
        assert next(open_stream(tmp_path / "a.txt").read(runs[i].start, 1)) == pieces[i]


def test_arrays_of_ids_are_documents(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(12).reshape(3, 4))
    assert [d.tolist() for d in open_stream(tmp_path / "rows.npy").read(1, 2)] == [[4, 5, 6, 7], [8, 9, 10, 11]]
    np.save(tmp_path / "long.npy", np.arange(100_000, dtype=np.uint32))
    stream = open_stream(tmp_path / "long.npy")
    runs = list(stream.survey(1))
    assert np.concatenate([next(stream.read(run.start, 1)) for run in runs]).tolist() == list(range(100_000))


def test_the_first_record_names_the_column_of_every_block_of_its_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + _lines({"input_ids": [1, 2]}, *({"input_ids": [1, 2], "tokens": [3]},) * 3))
    starts = [run.start for run in open_stream(path).survey(1)]
    assert [next(open_stream(path).read(start, 1)).tolist() for start in starts] == [[1, 2]] * 4


@pytest.mark.parametrize("cell", ["[5, 6, 7]", "5 6 7", "5,6,7"])
def test_token_ids_that_were_written_out_are_ids(tmp_path, cell):
    (tmp_path / "a.csv").write_text(f'text_id,tokens\n1,"{cell}"\n2,\n')
    (tmp_path / "b.jsonl").write_bytes(_lines({"tokens": cell}, {"tokens": ""}))
    pq.write_table(pa.table({"tokens": [cell, "[]"]}), tmp_path / "c.parquet")
    for file in corpus_files(str(tmp_path)):
        first = next(open_stream(file).survey(1)).start
        assert [ids.tolist() for ids in open_stream(file).read(first, 2)] == [[5, 6, 7], []]


def test_a_window_of_exactly_the_share_of_distinct_tokens_is_kept():
    ids = np.array([*range(55), *[0] * 45], np.int32)
    assert len(windows_of([ids], 0, 100, 50, 0.55).tokens) == 1
    assert len(windows_of([ids], 0, 100, 50, 0.56).tokens) == 0


def _lines(*records):
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()


def _parquet(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "column", "said"),
    [
        ("a.jsonl", _lines({"body": "x"}), "", r"a.jsonl has 'body', and none .* --text-column"),
        ("a.jsonl", _lines({"text": "x"}), "body", r"line 1, has no key 'body'; its keys: 'text'"),
        ("a.jsonl", _lines({"text": "x"}, {"text": 3}), "", r"line 2, key 'text' is neither text nor .* but int"),
        ("a.jsonl", _lines({"text": "x"}, {"other": "y"}), "", r"line 2, has no key 'text'"),
        ("a.jsonl", _lines({"tokens": [1, 2]}, {"tokens": [1, 2.5]}), "", r"line 2, .* not of token ids"),
        ("a.jsonl", _lines({"text": "x"}, "{oops"), "", r"line 2, is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "", r"line 2, is no UTF-8"),
        ("a.jsonl", _lines('{"text": "\\ud800"}'), "", r"line 1, .* half a surrogate pair"),
        (
            "a.jsonl",
            _lines({"tokens": [1, 900]}),
            "",
            r"document 0, holds the token id 900, but .* knows the ids 0..119",
        ),
        ("a.jsonl", _lines({"tokens": [1]}, {"tokens": "one"}), "", r"line 2, key 'tokens' is no list .*: 'one'"),
        ("a.jsonl", b"\n\n", "", r"holds no document"),
        ("a.jsonl.gz", gzip.compress(_lines({"text": "x" * 5000}), mtime=0)[:-20], "", r"a.jsonl.gz cannot be read"),
        ("a.csv", b"id,body\n1,x\n", "text", r"a.csv has no column 'text'; it has 'id', 'body'"),
        ("a.csv", b"id,text\n1,x\n2\n", "", r"the row at byte 12, has 1 cells"),
        ("a.csv", b"text\nx\n\xff\n", "", r"a.csv is no UTF-8 near byte 7"),
        ("a.txt", b"fine\n\xff\xfe\n", "", r"a.txt is no UTF-8 at byte 5"),
        ("a.txt", "→".encode()[:2], "", r"ends in the middle of a character"),
        ("a.parquet", _parquet(pa.table({"text": ["x"]}))[:-9], "", r"a.parquet cannot be read .* half-written"),
        ("a.parquet", _parquet(pa.table({"text": [1.5]})), "", r"column 'text' holds double"),
        ("a.parquet", _parquet(pa.table({"body": ["x"]})), "", r"a.parquet has 'body', and none"),
        ("a.npy", b"\x93NUMPY garbage", "", r"a.npy is no plain .npy array"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_said_before_the_scan_begins(name, content, column, said, tmp_path, place):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        Engine().answer(PlanScan((str(tmp_path / name),), str(place), column))


def test_a_corpus_that_is_not_there_is_said_at_once_and_no_hub_is_asked(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("the network was asked"))
    for name in (str(tmp_path / "no.jsonl"), "some/dataset", "demo"):
        with pytest.raises(UsageError):
            corpus_files(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no file of a kind"):
        corpus_files(str(tmp_path / "empty"))


# ---------------------------------------------------------------------------------------------------------------- scans

WINDOW, STRIDE, PREFIX = 24, 8, 10
OPTIONS = ScanOptions(
    window=WINDOW, stride=STRIDE, prefix_length=PREFIX, keep=(-1, -1, 12), count_duplicates=True, min_unique=0.3
)


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tmp_path_factory):
    """A checkpoint with a tokenizer of its 120 words."""
    import shutil

    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("scan") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(120)}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def engine(place):
    from memloc_core.loading import load
    from memloc_core.requests import OpenModel

    engine = Engine()
    engine.lm = load(OpenModel(str(place), device="cpu"))
    return engine


@pytest.fixture(scope="module")
def documents(engine):
    """Random documents, in which passages that the model recites, or begins to recite, are planted 1 to 6 times."""
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 120, n).tolist() for n in generator.integers(0, 160, 60)]
    documents[3], documents[4] = [], [7] * 80
    lm = engine.lm
    for number in range(8):
        prompt = torch.from_numpy(generator.integers(0, 120, (1, PREFIX)))
        with torch.inference_mode():
            own, _ = lm.greedy(prompt, WINDOW - PREFIX)
        passage = torch.cat([prompt, own], 1)[0].tolist()
        if number % 2:
            passage[PREFIX + 7 :] = generator.integers(0, 120, WINDOW - PREFIX - 7).tolist()
        for _ in range(1 + number % 4 * 2):
            into = int(generator.integers(5, 60))
            at = int(generator.integers(0, len(documents[into]) // STRIDE + 1)) * STRIDE
            documents[into] = documents[into][:at] + passage + documents[into][at:]
    return documents


@pytest.fixture
def corpus(documents, tmp_path):
    """The documents in two files: as text, and as ids."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": " ".join(f"w{i}" for i in ids)}) for ids in documents[:30]]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.table({"text": [" ".join(f"w{i}" for i in ids) for ids in documents[30:]]}), folder / "b.parquet")
    return folder


class Here:
    """An engine in this process; it may give up after some requests, or answer in another order."""

    def __init__(self, engine, dies_after=None, backwards=False):
        self.engine, self.dies_after, self.backwards, self.asked = engine, dies_after, backwards, []

    async def answers(self, requests, on_progress):
        requests = list(requests)
        for number, request in reversed(requests) if self.backwards else requests:
            if len(self.asked) == self.dies_after:
                raise MemlocError("killed")
            self.asked.append(request)
            yield number, self.engine.answer(request)


def run_scan(engine, corpus, out, options=OPTIONS, engines=None, block_tokens=8192, place=None, restart=False):
    async def ask(request, on_progress):
        return engine.answer(request)

    async def main():
        scan = Scan(ScanFolder(out), str(corpus), str(place), options, ask)
        here = engines or Here(engine)
        await scan.find()
        await scan.begin(engine.lm.info, block_tokens, replace=restart)
        await scan.scan_blocks(here)
        await scan.score(here)
        if options.count_duplicates:
            await scan.count(here)
        return await scan.finish()

    return asyncio.run(main())


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few documents: their size is otherwise at least 8,192 tokens."""
    from memloc_core.scan import job

    monkeypatch.setattr(job, "PlanScan", lambda *given: PlanScan(*given[:-1], 2_000))


@pytest.fixture(scope="module")
def expected(engine, documents):
    """(document, offset) -> (em, nll, margin) of every window, one whole pass each; and the naive count of each."""
    found = {}
    for number, ids in enumerate(documents):
        for offset in range(0, len(ids) - WINDOW + 1, STRIDE):
            window = ids[offset : offset + WINDOW]
            if len(set(window)) >= OPTIONS.min_unique * WINDOW:
                with torch.inference_mode():
                    scores = engine.lm.score(torch.tensor([window]), PREFIX)
                    logits = engine.lm.model(torch.tensor([window])).logits[0, PREFIX - 1 : -1]
                em = int(scores.exact_match(torch.tensor([window[PREFIX:]])))
                gaps = []  # between the true token and the best other one, up to the first mismatch
                for x, true in list(zip(logits, window[PREFIX:], strict=True))[: em + 1]:
                    gaps.append(abs(float(x[true] - torch.cat([x[:true], x[true + 1 :]]).max())))
                found[number, offset] = em, float(scores.nll.mean()), min(gaps)
    every = Counter(tuple(ids[i : i + WINDOW]) for ids in documents for i in range(len(ids) - WINDOW + 1))
    counts = {(n, at): every[tuple(documents[n][at : at + WINDOW])] for n, at in found}
    return found, counts


def test_a_scan_finds_exactly_what_a_brute_force_search_finds(
    expected, engine, documents, corpus, place, tmp_path, small_blocks
):
    report = run_scan(engine, corpus, tmp_path / "set.parquet", place=place)
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    expected, counts = expected
    c = WINDOW - PREFIX
    strata = {place: SCAN_STRATA[scan_stratum(np.array([em]), c)[0]] for place, (em, *_) in expected.items()}
    by_place = {(row["document"], row["offset"]): row for row in rows}
    assert len(by_place) == len(rows)
    assert list(by_place) == sorted(by_place)
    for stratum in ("memorized", "partly"):
        assert {p for p, row in by_place.items() if row["stratum"] == stratum} == {
            p for p in expected if strata[p] == stratum
        }
    sample = sorted(
        (p for p in expected if strata[p] == "non-memorized"),
        key=lambda p: order_of(np.array([p[0]]), np.array([p[1]]), 0)[0],
    )[:12]
    assert {p for p, row in by_place.items() if row["stratum"] == "non-memorized"} == set(sample)
    for at, row in by_place.items():
        assert row["tokens"] == documents[at[0]][at[1] : at[1] + WINDOW]
        assert row["em"] == expected[at][0]
        assert row["nll"] == pytest.approx(expected[at][1], rel=1e-5)
        assert row["margin"] == pytest.approx(expected[at][2], rel=1e-4, abs=1e-5)
        assert row["count"] == counts[at]
    assert Counter(row["stratum"] for row in rows)["memorized"] >= 4
    assert max(row["count"] for row in rows) >= 5
    assert report.windows == len(expected)
    assert report.ems.tolist() == np.bincount([em for em, *_ in expected.values()], minlength=c + 1).tolist()
    assert report.repetitive == sum(len(range(0, len(ids) - WINDOW + 1, STRIDE)) for ids in documents) - len(expected)
    assert report.repetitive > 0
    assert report.empty == documents.count([])
    assert report.short == sum(0 < len(ids) < WINDOW for ids in documents)
    assert report.documents == len(documents)
    unigrams = np.bincount(np.concatenate(documents).astype(int), minlength=120)
    assert np.load(tmp_path / "set.counts.npy").tolist() == unigrams.tolist()
    assert not (tmp_path / "set.parquet.scan").exists()


def test_the_set_opens_as_paragraphs(engine, corpus, place, tmp_path):
    run_scan(engine, corpus, tmp_path / "set.parquet", place=place)
    request = OpenParagraphs(str(tmp_path / "set.parquet"), str(place), PREFIX, WINDOW - PREFIX)
    opened = Engine().answer(request).result
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    assert opened.tokens.tolist() == [row["tokens"] for row in rows]
    assert opened.repetitions.tolist() == [row["count"] for row in rows]
    assert opened.counts_of == "corpus"


@pytest.mark.parametrize("dies_after", [0, 1, 4, 9])
def test_a_scan_that_was_stopped_goes_on_and_ends_in_the_same_set(
    dies_after, engine, corpus, place, tmp_path, small_blocks
):
    run_scan(engine, corpus, tmp_path / "whole.parquet", place=place)
    first, second = Here(engine, dies_after), Here(engine)
    with pytest.raises(MemlocError, match="killed"):
        run_scan(engine, corpus, tmp_path / "set.parquet", engines=first, place=place)
    blocks = [r.block for r in first.asked if isinstance(r, ScanBlock)]
    run_scan(engine, corpus, tmp_path / "set.parquet", engines=second, place=place)
    again = [r.block for r in second.asked if isinstance(r, ScanBlock)]
    assert not set(blocks) & set(again), "a block was scanned twice"
    assert len(blocks) + len(again) > 6
    assert pq.read_table(tmp_path / "set.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))
    assert (tmp_path / "set.counts.npy").read_bytes() == (tmp_path / "whole.counts.npy").read_bytes()


def test_what_an_engine_left_that_was_killed_while_it_assembled_goes_with_the_next(
    engine, corpus, place, tmp_path, small_blocks
):
    out = tmp_path / "set.parquet"
    with pytest.raises(MemlocError, match="killed"):
        run_scan(engine, corpus, out, engines=Here(engine, 4), place=place)
    folder = ScanFolder(out)
    left = [folder.path / name for name in (".set.1", ".windows.1", ".windows.npy.1")]
    for path in left:
        path.write_bytes(b"half")
    engine.answer(AssembleScan(str(folder.path), str(out), windows=True))
    assert not [path for path in left if path.exists()]
    assert folder.windows.exists()


def test_the_set_depends_neither_on_the_blocks_nor_on_their_order(
    engine, corpus, place, tmp_path, monkeypatch, small_blocks
):
    run_scan(engine, corpus, tmp_path / "a.parquet", place=place)
    run_scan(engine, corpus, tmp_path / "b.parquet", engines=Here(engine, backwards=True), place=place)
    monkeypatch.undo()
    run_scan(engine, corpus, tmp_path / "c.parquet", place=place)
    monkeypatch.setattr(scanning, "_WINDOWS", 2)  # scored together, and what may be wanted is cut every other time
    monkeypatch.setattr(scanning, "_GATHERED", 2)
    run_scan(engine, corpus, tmp_path / "d.parquet", place=place)
    a, b, c, d = (pq.read_table(tmp_path / f"{name}.parquet") for name in "abcd")
    assert a.equals(b)
    assert a.equals(c)
    assert a.equals(d)


def test_the_set_is_there_while_the_scan_runs_and_only_grows(
    engine, corpus, place, tmp_path, small_blocks, monkeypatch
):
    from memloc_core.scan import job

    monkeypatch.setattr(job, "_REFRESH", 0.0)
    monkeypatch.setattr(job, "_REFRESH_SHARE", 1e9)
    options = replace(OPTIONS, keep=(-1, -1, -1))
    seen = []

    class Watched(Here):
        async def answers(self, requests, on_progress):
            async for one in super().answers(requests, on_progress):
                yield one
                await asyncio.sleep(0)
                if (tmp_path / "set.parquet").exists():
                    seen.append(pq.read_table(tmp_path / "set.parquet", columns=["tokens"])["tokens"].to_pylist())

    run_scan(engine, corpus, tmp_path / "set.parquet", options, Watched(engine), place=place)
    last = pq.read_table(tmp_path / "set.parquet")["tokens"].to_pylist()
    assert 0 < len(seen[0]) < len(last)
    assert all(last[: len(rows)] == rows for rows in seen)


def test_a_scan_goes_on_only_as_it_was_begun(engine, corpus, place, tmp_path, small_blocks):
    out = tmp_path / "set.parquet"

    def stopped(options=OPTIONS, corpus=corpus, **more):
        run_scan(engine, corpus, out, options, Here(engine, 2), place=place, **more)

    with pytest.raises(MemlocError, match="killed"):
        stopped()
    with pytest.raises(UsageError, match="--stride was 8, now it is 9"):
        stopped(replace(OPTIONS, stride=9))
    with pytest.raises(UsageError, match="--begin-of-text was False, now it is True"):
        stopped(replace(OPTIONS, begin_of_text=True))
    with pytest.raises(UsageError, match="--keep was memorized,partly,non-memorized:12, now it is memorized"):
        stopped(replace(OPTIONS, keep=(-1, 0, 0)))
    info = engine.lm.info
    engine.lm.info = replace(info, identity="of another rotary base")
    try:
        with pytest.raises(UsageError, match=r"the model's configuration was .*, now it is of another"):
            stopped()
    finally:
        engine.lm.info = info
    text = (corpus / "a.jsonl").read_text()
    (corpus / "a.jsonl").write_text(text + '{"text": "w1"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl has changed"):
        stopped()
    (corpus / "a2.jsonl").write_text('{"text": "w1"}\n')
    with pytest.raises(UsageError, match=r"a2\.jsonl is new in the corpus"):
        stopped()
    (corpus / "a.jsonl").unlink()
    with pytest.raises(UsageError, match=r"a\.jsonl is gone"):
        stopped()
    run_scan(engine, corpus, out, place=place, restart=True)
    with pytest.raises(UsageError, match="is there already"):
        run_scan(engine, corpus, out, place=place)


def test_a_node_of_a_cluster_with_another_model_answers_nothing(tiny_checkpoint):
    opening, request = (codec.encode(r) for r in (OpenModel(str(tiny_checkpoint)), ExactMatch(((1,) * 100,))))
    worker = Worker()
    identity = codec.decode(worker.open(opening)).result.identity

    def asked(identity):
        columns = {"number": [7], "opening": [opening], "request": [request], "identity": [identity]}
        return worker(pa.table(columns)).to_pylist()[0]["answer"]

    assert codec.decode(asked(identity)).result.em.shape == (1,)
    assert b"The model is another one on this node" in asked("of another")


def test_a_set_inside_its_own_corpus_is_refused_before_it_is_there(engine, corpus, place):
    with pytest.raises(UsageError, match="would lie in the corpus itself; give an --out outside of"):
        run_scan(engine, corpus, corpus / "set.parquet", place=place)


def test_the_token_counts_of_another_set_are_not_replaced(engine, corpus, place, tmp_path):
    (tmp_path / "set.jsonl").touch()
    (tmp_path / "set.counts.npy").write_bytes(b"counts of set.jsonl")
    with pytest.raises(UsageError, match=r"set\.counts\.npy is there already"):
        run_scan(engine, corpus, tmp_path / "set.parquet", place=place)
    assert (tmp_path / "set.counts.npy").read_bytes() == b"counts of set.jsonl"


def test_what_another_version_or_a_damaged_disk_left_is_said(engine, corpus, place, tmp_path, small_blocks):
    out = tmp_path / "set.parquet"
    with pytest.raises(MemlocError, match="killed"):
        run_scan(engine, corpus, out, engines=Here(engine, 2), place=place)
    folder = ScanFolder(out)
    part, manifest = folder.path / "blocks" / "000001", folder.path / "manifest.json"
    whole = part.read_bytes()
    part.write_bytes(whole[:-7])
    with pytest.raises(MemlocError, match=r"blocks/000001 is damaged .*; remove it and run the same command again"):
        run_scan(engine, corpus, out, place=place)
    text = manifest.read_text()
    manifest.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(MemlocError, match=r"begun by another version of memloc-tui; use --restart"):
        run_scan(engine, corpus, out, place=place)
    manifest.write_text(text[:40])
    with pytest.raises(MemlocError, match=r"manifest\.json cannot be read .*; use --restart"):
        run_scan(engine, corpus, out, place=place)
    manifest.write_text(text)
    part.unlink()  # as it was told
    run_scan(engine, corpus, out, place=place)
    assert out.exists()


# ------------------------------------------------------------------------------------------------- after begin-of-text


@pytest.mark.parametrize("nll", [False, True])
def test_with_begin_of_text_every_window_is_scored_after_it_and_none_begins_with_it(
    nll, engine, place, tmp_path, small_blocks
):
    """The token is 0: config.json names it. It stands in the documents as well, also twice in a row at a beginning."""
    generator = np.random.default_rng(1)
    documents = [generator.integers(0, 120, n).tolist() for n in generator.integers(0, 120, 40)]
    documents[5:9] = [[0, 0, *range(1, 60)], [0] * 60, [0, *range(1, WINDOW)], [*range(1, 9), 0, *range(9, 9 + WINDOW)]]
    for number in range(12):
        prompt = [0, *generator.integers(1, 120, PREFIX).tolist()]
        with torch.inference_mode():
            own, _ = engine.lm.greedy(torch.tensor([prompt]), WINDOW - PREFIX)
        documents[10 + number] = [*([0] * (number % 2)), *prompt[1:], *own[0].tolist(), *documents[10 + number]]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(_lines(*({"tokens": ids} for ids in documents)))
    options = replace(OPTIONS, keep=(-1, -1, -1), min_unique=0, begin_of_text=True, nll=nll)
    report = run_scan(engine, corpus, tmp_path / "set.parquet", options, place=place)
    expected = {}
    for number, ids in enumerate(documents):
        for offset in range(0, len(ids) - WINDOW + 1, STRIDE):
            while offset < len(ids) and ids[offset] == 0:
                offset += 1
            if offset + WINDOW <= len(ids):
                row = torch.tensor([[0, *ids[offset : offset + WINDOW]]])
                with torch.inference_mode():
                    logits = engine.lm.model(row).logits[0, PREFIX:-1]
                right = (logits.argmax(-1) == row[0, PREFIX + 1 :]).tolist()
                nlls = torch.nn.functional.cross_entropy(logits, row[0, PREFIX + 1 :])
                expected[number, offset] = [*right, False].index(False), float(nlls)
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    assert [(row["document"], row["offset"]) for row in rows] == sorted(expected)
    assert {5, 8} <= {row["document"] for row in rows if row["offset"] % STRIDE}
    assert not {6, 7} & {row["document"] for row in rows}
    with_windows = {number for number, _ in expected}
    assert report.short == sum(len(ids) > 0 and number not in with_windows for number, ids in enumerate(documents))
    assert report.windows == len(rows)
    every = [tuple(ids[i : i + WINDOW]) for ids in documents for i in range(len(ids) - WINDOW + 1)]
    for row in rows:
        ids, at = documents[row["document"]], row["offset"]
        assert row["tokens"] == ids[at : at + WINDOW]
        em, mean = expected[row["document"], at]
        assert row["em"] == em
        assert row["nll"] == pytest.approx(mean, rel=1e-4)
        assert row["count"] == every.count(tuple(row["tokens"]))
    ems = [row["em"] for row in rows]
    assert ems.count(WINDOW - PREFIX) >= 12
    if nll:
        assert report.nlls[0] == pytest.approx(np.mean([row["nll"] for row in rows if row["em"] == 0]), rel=1e-4)
    unigrams = np.bincount(np.concatenate(documents).astype(int), minlength=120)
    assert np.load(tmp_path / "set.counts.npy").tolist() == unigrams.tolist()
    request = OpenParagraphs(str(tmp_path / "set.parquet"), str(place), PREFIX, WINDOW - PREFIX, begin_of_text=True)
    opened = Engine().answer(request).result
    assert opened.tokens.tolist() == [[0, *row["tokens"]] for row in rows]
    scored = engine.answer(ExactMatch(tuple(map(tuple, opened.tokens.tolist())), opened.prefix_length)).result
    assert scored.em.tolist() == ems
    plain = Engine().answer(replace(request, begin_of_text=False)).result
    assert plain.tokens.tolist() == [row["tokens"] for row in rows]


def test_a_scan_of_a_version_without_the_option_goes_on(engine, corpus, place, tmp_path, small_blocks):
    out = tmp_path / "set.parquet"
    with pytest.raises(MemlocError, match="killed"):
        run_scan(engine, corpus, out, engines=Here(engine, 2), place=place)
    manifest = ScanFolder(out).path / "manifest.json"
    begun = json.loads(manifest.read_text())
    del begun["options"]["begin_of_text"]
    manifest.write_text(json.dumps(begun))
    with pytest.raises(UsageError, match="--begin-of-text was False, now it is True"):
        run_scan(engine, corpus, out, replace(OPTIONS, begin_of_text=True), place=place)
    run_scan(engine, corpus, out, place=place)
    assert out.exists()


def test_the_token_needs_a_position_of_its_own_and_a_model_that_has_it(engine, corpus, place, tmp_path):
    options = replace(OPTIONS, window=engine.lm.info.positions, begin_of_text=True)
    with pytest.raises(UsageError, match="128 tokens after the begin-of-text token is more than the 128"):
        run_scan(engine, corpus, tmp_path / "set.parquet", options, place=place)
    without = tmp_path / "without"
    without.mkdir()
    config = json.loads((place / "config.json").read_text())
    (without / "config.json").write_text(json.dumps({**config, "bos_token_id": None}))
    with pytest.raises(UsageError, match="has no begin-of-text token"):
        run_scan(engine, corpus, tmp_path / "set.parquet", options, place=without)
    assert not list(tmp_path.glob("set*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_unique": 1.01}, "--min-unique is a share"),
        ({"min_unique": -0.01}, "--min-unique is a share"),
        ({"min_unique": float("nan")}, "--min-unique is a share"),
        ({"prefix_length": 0}, "cannot have a prefix of 0"),
        ({"prefix_length": WINDOW}, f"cannot have a prefix of {WINDOW}"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes, said):
    OPTIONS.check()
    replace(OPTIONS, min_unique=1.0).check()
    with pytest.raises(UsageError, match=said):
        replace(OPTIONS, **changes).check()


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (9, 12)])
def test_windows_that_are_not_there_are_not_scored(start, stop, engine, tmp_path):
    np.save(tmp_path / "windows.npy", np.zeros((9, WINDOW), np.int32))
    with pytest.raises(UsageError, match=f"holds no window from {start} up to {stop}"):
        engine.answer(ScoreWindows(str(tmp_path / "windows.npy"), start, stop, PREFIX))


def test_a_restart_that_is_refused_costs_no_finished_block(engine, corpus, place, tmp_path, small_blocks):
    out = tmp_path / "set.parquet"
    with pytest.raises(MemlocError, match="killed"):
        run_scan(engine, corpus, out, engines=Here(engine, 2), place=place)
    text = (corpus / "a.jsonl").read_text()
    for options, added, said in ((replace(OPTIONS, window=999), "", "more than the"), (OPTIONS, "{oops", "not JSON")):
        (corpus / "a.jsonl").write_text(text + added)
        with pytest.raises(UsageError, match=said):
            run_scan(engine, corpus, out, options, place=place, restart=True)
        assert ScanFolder(out).done("blocks") == [0, 1]


def test_a_corpus_file_may_have_a_name_that_is_no_utf_8(engine, corpus, place, tmp_path):
    (corpus / "a.jsonl").rename(os.fsdecode(os.fsencode(corpus) + b"/a\xff.jsonl"))
    run_scan(engine, corpus, tmp_path / "set.parquet", place=place)
    sources = pq.read_table(tmp_path / "set.parquet")["source"].to_pylist()
    assert sources[0] == str(corpus.resolve() / "a") + "\\xff.jsonl"


def test_a_corpus_that_changes_under_the_scan_is_noticed(engine, corpus, place, tmp_path, small_blocks):
    """The same size and the same time: only the second reading can tell."""

    class Changes(Here):
        async def answers(self, requests, on_progress):
            async for number, done in super().answers(requests, on_progress):
                yield number, done
            if isinstance(self.asked[-1], ScanBlock):
                file = corpus / "a.jsonl"
                status = file.stat()
                file.write_text(file.read_text().replace("w1 ", "w2 "))
                os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(MemlocError, match="changed while it was scanned"):
        run_scan(engine, corpus, tmp_path / "set.parquet", engines=Changes(engine), place=place)


def test_the_nll_of_every_window_is_summed_where_it_is_asked_for(expected, engine, corpus, place, tmp_path):
    report = run_scan(engine, corpus, tmp_path / "set.parquet", replace(OPTIONS, nll=True), place=place)
    expected, _ = expected
    for em in (0, 1, WINDOW - PREFIX):
        mean = np.mean([nll for e, nll, _ in expected.values() if e == em])
        assert report.nlls[em] == pytest.approx(mean, rel=1e-4)


def test_a_limit_is_the_first_documents(engine, documents, corpus, place, tmp_path):
    report = run_scan(engine, corpus, tmp_path / "set.parquet", replace(OPTIONS, limit=33), place=place)
    assert report.documents == 33
    assert report.tokens == sum(map(len, documents[:33]))


def test_strata_are_asked_for_by_name():
    assert keep_of("memorized,partly,non-memorized:1000") == (-1, -1, 1000)
    assert keep_of("memorized:5") == (5, 0, 0)
    for wrong in ("all", "memorized:", "partly:-1", "memorized:0", ""):
        with pytest.raises(UsageError):
            keep_of(wrong)
