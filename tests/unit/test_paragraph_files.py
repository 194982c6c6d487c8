"""Paragraph files: what each kind opens to, and what is said of a file that does not open."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import shutil
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from memloc_core.corpora.files import read_rows
from memloc_core.errors import MemlocError, UsageError
from memloc_core.paragraphs import open_paragraphs
from memloc_core.requests import OpenParagraphs
from tests.conftest import SHARED, needs_shared

IDS = [[(7 * row + 3 * i) % 120 for i in range(12)] for row in range(5)]


@pytest.fixture
def folder(tmp_path):
    """A model folder as far as paragraphs look at it: a vocabulary of 120, no tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 120}')
    return folder


@pytest.fixture
def opened(folder):
    def open_(file, prefix=8, continuation=4):
        return open_paragraphs(OpenParagraphs(str(file), str(folder), prefix, continuation))

    return open_


@pytest.fixture
def give_tokenizer(folder):
    """Give the model a tokenizer of letters: a is 0, b is 1."""

    def give(**extra):
        from tokenizers import Tokenizer, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)}, unk_token="z"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        for name, options in extra.items():
            getattr(tokenizer, name)(**options)
        tokenizer.save(str(folder / "tokenizer.json"))

    return give


def write_table(path, columns):
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# ------------------------------------------------------------------------------------------------- each kind of file


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("column", ["tokens", "token_ids", "input_ids"])
@pytest.mark.parametrize(
    "as_written",
    [
        lambda data: data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: b"\n  \n" + data.replace(b"\n", b"\n\n") + b"\n\t\n",
        lambda data: data.rstrip(b"\n"),
    ],
    ids=["plain", "CRLF", "BOM", "blank lines", "no last newline"],
)
def test_jsonl_of_token_ids(tmp_path, opened, column, as_written):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(as_written(lines({column: row} for row in IDS)))
    assert opened(file).tokens.tolist() == IDS


def test_jsonl_of_text_is_encoded_by_the_models_tokenizer(tmp_path, opened, give_tokenizer):
    give_tokenizer()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines([{"text": "abcdefghijkl"}, {"text": "llkkjjiihhgg"}]))
    assert opened(file).tokens.tolist() == [list(range(12)), [11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6]]


def test_padding_and_truncation_in_the_tokenizers_file_change_no_paragraph(tmp_path, opened, give_tokenizer):
    give_tokenizer(enable_truncation={"max_length": 3}, enable_padding={"length": 40})
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines([{"text": "abcdefghijkl"}, {"text": "abc"}]))
    found = opened(file)
    assert found.tokens.tolist() == [list(range(12))]
    assert "1 of 2" in found.notices[0]


def test_text_without_the_token_that_the_tokenizer_begins_every_text_with_is_told(
    tmp_path, folder, opened, give_tokenizer
):
    from tokenizers import Tokenizer, processors

    give_tokenizer()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines([{"text": "abcdefghijkl"}]))
    assert opened(file).notices == ()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="x $A", special_tokens=[("x", 23)])
    tokenizer.save(str(folder / "tokenizer.json"))
    found = opened(file)
    assert found.tokens.tolist() == [list(range(12))], "a paragraph is what its file says"
    assert "puts token 23 before every text" in found.notices[0]
    file.write_bytes(lines([{"tokens": [23, *range(11)]}]))
    assert opened(file).notices == ()


@pytest.mark.parametrize("dtype", ["u1", "i2", "<i4", ">i4", "i8", "u8"])
def test_npy_of_any_integers(tmp_path, opened, dtype):
    np.save(tmp_path / "rows.npy", np.array(IDS, dtype))
    assert opened(tmp_path / "rows.npy").tokens.tolist() == IDS


@pytest.mark.parametrize("legacy", [False, True])
def test_pt(tmp_path, opened, legacy):
    import torch

    rows = torch.tensor(IDS, dtype=torch.int32).T.contiguous().T
    torch.save(rows, tmp_path / "rows.pt", _use_new_zipfile_serialization=not legacy)
    assert opened(tmp_path / "rows.pt").tokens.tolist() == IDS


@pytest.mark.parametrize("cell", [json.dumps, lambda row: ",".join(map(str, row)), lambda row: " ".join(map(str, row))])
def test_csv_of_token_ids(tmp_path, opened, cell):
    file = write_csv(tmp_path / "rows.csv", ["tokens", "genre"], [[cell(row), "x"] for row in IDS])
    assert opened(file).tokens.tolist() == IDS


def test_csv_of_ids_as_numpy_prints_them_and_with_a_comma_and_a_space(tmp_path, opened):
    cells = [[str(np.array(IDS[0]))], [", ".join(map(str, IDS[1]))]]
    assert opened(write_csv(tmp_path / "rows.csv", ["tokens"], cells)).tokens.tolist() == IDS[:2]


def test_csv_of_text_with_line_ends_and_quotes_inside(tmp_path, opened, give_tokenizer):
    give_tokenizer()
    file = write_csv(tmp_path / "rows.csv", ["paragraph"], [['ab"\n,cdefghij'], ["mnopqrstuvwxyz"]])
    assert opened(file).tokens.tolist() == [[0, 1, 25, 25, 25, *range(2, 9)], list(range(12, 24))]


@pytest.mark.parametrize("text", ["NA", "null", "nan", "None", "N/A", "007", "1.50", "1e5", "true"])
def test_csv_of_text_that_looks_like_something_else_is_read_as_it_stands(tmp_path, text):
    class Tokenizer:
        def encode_batch(self, texts, add_special_tokens):
            return [SimpleNamespace(ids=list(each.encode())) for each in texts]

    file = write_csv(tmp_path / "rows.csv", ["text", "genre", "count"], [[text, text, "7"], [text, "", "NA"]])
    found = read_rows([file], Tokenizer, 1)
    assert [bytes(ids).decode() for ids in found.tokens] == [text, text]
    assert found.columns == {"genre": [text, None], "count": ["7", "NA"]}


def test_csv_whose_types_change_half_way_is_read_whole(tmp_path, opened):
    rows = [[json.dumps([*IDS[0][:-1], i % 100]), i, ""] for i in range(10_500)] + [[json.dumps(IDS[1]), "", "x"]]
    found = opened(write_csv(tmp_path / "rows.csv", ["tokens", "count", "genre"], rows))
    assert (found.repetitions[-1], found.genre[-1]) == (-1, "x")


@pytest.mark.parametrize("kind", ["i4", "u2", "i8"])
def test_parquet_of_token_ids(tmp_path, opened, kind):
    file = write_table(tmp_path / "rows.parquet", {"tokens": [np.array(row, kind) for row in IDS]})
    assert opened(file).tokens.tolist() == IDS


def test_parquet_of_text(tmp_path, opened, give_tokenizer):
    give_tokenizer()
    file = write_table(tmp_path / "rows.parquet", {"text": ["abcdefghijkl"], "unrelated": [1.5]})
    assert opened(file).tokens.tolist() == [list(range(12))]


def test_a_table_leaves_no_second_copy_of_itself_in_the_users_cache(tmp_path, opened, monkeypatch):
    import datasets

    cache = tmp_path / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    opened(write_table(tmp_path / "rows.parquet", {"tokens": IDS}))
    assert not [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size > 0]


def test_the_name_of_a_file_may_be_in_capitals_and_hold_no_utf_8(tmp_path, opened):
    file = tmp_path / os.fsdecode(b"r\xff\xe2ws.NPY")
    np.save(tmp_path / "rows.npy", np.array(IDS))
    (tmp_path / "rows.npy").rename(file)
    assert opened(file).tokens.tolist() == IDS


# ------------------------------------------------------------------------------------------- several files, data sets


@pytest.fixture
def halves(tmp_path):
    """Prefixes and suffixes in two files, as the LM extraction benchmark releases them."""
    place = tmp_path / "benchmark"
    place.mkdir()
    np.save(place / "train_prefix.npy", np.array(IDS, np.uint16)[:, :8])
    np.save(place / "train_suffix.npy", np.array(IDS, np.uint16)[:, 8:])
    np.save(place / "train_preprefix.npy", np.array(IDS, np.uint16))
    return place


def test_prefixes_and_suffixes_in_two_files_or_their_folder(halves, opened):
    pair = f"{halves / 'train_prefix.npy'}+{halves / 'train_suffix.npy'}"
    for source in (pair, halves):
        assert opened(source).tokens.tolist() == IDS
    assert opened(halves, 5, 3).tokens.tolist() == [row[3:11] for row in IDS]  # what stands directly before the suffix


def test_a_changed_suffix_is_another_state(halves):
    from memloc_core import sources

    before = sources.state(*sources.paragraph_files(str(halves)))
    os.utime(halves / "train_suffix.npy", ns=(5, 5))
    assert sources.state(*sources.paragraph_files(str(halves))) != before


def test_halves_that_do_not_belong_together(halves, opened, tmp_path):
    with pytest.raises(UsageError, match=r"prefixes of 8 tokens, fewer than the 9"):
        opened(halves, 9, 3)
    np.save(halves / "val_prefix.npy", np.zeros((2, 8), int))
    np.save(halves / "val_suffix.npy", np.zeros((3, 4), int))
    with pytest.raises(UsageError, match=r"2 pairs .*train_prefix\.npy\+train_suffix\.npy, val_prefix"):
        opened(halves)
    with pytest.raises(UsageError, match=r"2 prefixes and .* 3 suffixes"):
        opened(f"{halves / 'val_prefix.npy'}+{halves / 'val_suffix.npy'}")
    with pytest.raises(UsageError, match=r"no paragraph file .*gone\.npy"):
        opened(f"{halves / 'val_prefix.npy'}+{halves / 'gone.npy'}")
    with pytest.raises(UsageError, match="neither"):
        opened(tmp_path)


def test_a_plus_in_a_files_own_name_is_no_pair(tmp_path, opened):
    np.save(tmp_path / "a.npy+b.npy", np.array(IDS))
    assert opened(tmp_path / "a.npy+b.npy").tokens.tolist() == IDS


def test_txt_holds_one_paragraph_a_line(tmp_path, opened, give_tokenizer):
    give_tokenizer()
    file = tmp_path / "rows.txt"
    file.write_bytes(b"\xef\xbb\xbfabcdefghijkl\r\n\n  \nllkkjjiihhgg")
    assert opened(file).tokens.tolist() == [list(range(12)), [11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6]]
    file.write_bytes(b"abcdefghijkl\nabc\xffdefghijkl\n")
    with pytest.raises(UsageError, match="line 2, is not UTF-8"):
        opened(file)
    file.write_bytes(b"\n \n")
    with pytest.raises(UsageError, match="one on each line"):
        opened(file)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow(tmp_path, opened, kind):
    import pyarrow as pa

    table = pa.table({"input_ids": pa.array(IDS, pa.list_(pa.uint16())), "count": [4] * 5, "unrelated": [1.5] * 5})
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(str(tmp_path / "rows.arrow"), table.schema) as out:
        out.write_table(table)
    found = opened(tmp_path / "rows.arrow")
    assert found.tokens.tolist() == IDS
    assert found.repetitions.tolist() == [4] * 5
    whole = (tmp_path / "rows.arrow").read_bytes()
    for length in (3, 40, len(whole) // 2):
        (tmp_path / "rows.arrow").write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"rows\.arrow"):
            opened(tmp_path / "rows.arrow")


def test_a_data_set_saved_by_datasets(tmp_path, opened):
    import datasets

    rows = datasets.Dataset.from_dict({"tokens": IDS, "genre": list("abcde")})
    rows.select([4, 2, 0]).save_to_disk(tmp_path / "saved", num_shards=2)
    found = opened(tmp_path / "saved")
    assert (found.tokens.tolist(), found.genre) == ([IDS[4], IDS[2], IDS[0]], ("e", "c", "a"))
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "one")
    assert opened(tmp_path / "one").tokens.tolist() == IDS
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "two")
    with pytest.raises(UsageError, match="the splits test, train; give one of them"):
        opened(tmp_path / "two")
    assert opened(tmp_path / "two" / "test").tokens.tolist() == [IDS[1]]


@pytest.mark.parametrize("spoil", ["gone", "elsewhere", "nothing", "no json"])
def test_a_saved_data_set_that_is_incomplete(tmp_path, opened, spoil):
    import datasets

    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"tokens": IDS}).save_to_disk(folder)
    if spoil == "gone":
        next(folder.glob("*.arrow")).unlink()
    else:
        said = {"elsewhere": '{"_data_files": [{"filename": "../x.arrow"}]}', "nothing": '{"_data_files": []}'}
        (folder / "state.json").write_text(said.get(spoil, "{"))
    with pytest.raises(UsageError, match=r"is missing|does not say which"):
        opened(folder)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data set in the local cache, prepared by `datasets` itself from files that then go away."""
    import datasets

    cache = tmp_path / "hf"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    file = write_table(tmp_path / "rows.parquet", {"tokens": IDS})
    datasets.load_dataset(
        "parquet", data_files={"train": str(file), "test": str(file)}, cache_dir=str(tmp_path / "made")
    )
    (made,) = (tmp_path / "made").glob("parquet/*/*/*/dataset_info.json")
    place = cache / "somebody___rows" / "default" / "0.0.0" / "abc"
    shutil.copytree(made.parent, place)
    for arrow in place.glob("*.arrow"):
        arrow.rename(place / arrow.name.replace("parquet-", "rows-"))
    return place


def test_a_hub_data_set_that_is_in_the_local_cache_opens_by_its_name(prepared, opened):
    assert opened("somebody/rows:train").tokens.tolist() == IDS
    assert opened("somebody/rows@default:test").tokens.tolist() == IDS
    with pytest.raises(UsageError, match="the splits test, train; give one of them: somebody/rows:SPLIT"):
        opened("somebody/rows")
    (prepared / "rows-test.arrow").unlink()
    assert opened("somebody/rows").tokens.tolist() == IDS
    shutil.copytree(prepared.parents[1], prepared.parents[2] / "small")
    prepared.parents[1].rename(prepared.parents[2] / "large")
    with pytest.raises(UsageError, match="the configurations large, small; give one of them"):
        opened("somebody/rows")
    assert opened("somebody/rows@small").tokens.tolist() == IDS


@pytest.mark.parametrize(
    "name", ["somebody/else", "somebody/rows:validation", "somebody/rows@none", "some/../etc", "x"]
)
def test_a_hub_data_set_that_is_not_there_is_said_and_never_asked_of_the_network(prepared, opened, name):
    import socket

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
        with pytest.raises(UsageError):
            opened(name)


# ---------------------------------------------------------------------------------------------------- what is beside


def test_the_other_columns_are_read_and_unknown_ones_are_minus_one_or_empty(tmp_path, opened):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"count": 32, "family": 3, "genre": "recipe", "split": "train"},
        {"count": None, "genre": None},
        {"count": "many", "family": 1.5, "genre": 7},
        {"count": 8.0, "family": 10**30, "split": "\ud800"},
        {},
    ]
    file.write_bytes(lines({"tokens": ids, **row} for ids, row in zip(IDS, rows, strict=True)))
    found = opened(file)
    assert found.repetitions.tolist() == [32, -1, -1, 8, -1]
    assert found.family.tolist() == [3, -1, -1, -1, -1]
    assert found.genre == ("recipe", "", "7", "", "")
    assert found.split == ("train", "", "", "\ud800", "")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_families_may_have_names_and_numbers_may_be_text(tmp_path, opened, ending):
    def told(families, counts):
        file = tmp_path / f"rows.{ending}"
        rows = [{"tokens": ids, "family": f, "count": c} for ids, f, c in zip(IDS, families, counts, strict=True)]
        if ending == "csv":
            write_csv(file, list(rows[0]), [[json.dumps(row["tokens"]), row["family"], row["count"]] for row in rows])
        else:
            file.write_bytes(lines(rows))
        found = opened(file)
        return found.family.tolist(), found.repetitions.tolist()

    assert told(["oaks", "7", "elms", "oaks", ""], ["12", "1e3", "", "many", "0"]) == (
        [8, 7, 9, 8, -1],
        [12, 1000, -1, -1, 0],
    )
    assert told(["-1", "nan", "NA", "None", "-1"], ["inf", "9" * 30, "-1", "1.5", "x"]) == ([-1] * 5, [-1] * 5)


def test_counts_in_a_table_with_gaps_stay_whole_numbers(tmp_path, opened):
    rows = [[json.dumps(IDS[0]), "32"], [json.dumps(IDS[1]), ""]]
    found = opened(write_csv(tmp_path / "rows.csv", ["tokens", "count"], rows))
    assert found.repetitions.tolist() == [32, -1]


def test_counts_are_the_corpus_own_where_they_lie_beside_the_file_and_else_the_sets(tmp_path, opened):
    np.save(tmp_path / "rows.npy", np.array(IDS))
    found = opened(tmp_path / "rows.npy")
    flat = [i for row in IDS for i in row]
    assert (found.counts_of, found.counts.tolist()) == ("set", [flat.count(t) for t in range(120)])
    np.save(tmp_path / "rows.counts.npy", np.arange(120, dtype=np.uint32))
    found = opened(tmp_path / "rows.npy")
    assert (found.counts_of, found.counts.tolist()) == ("corpus", list(range(120)))


@pytest.mark.parametrize(
    "counts", [np.arange(119), np.zeros((120, 1), int), np.zeros(120), np.array([object()] * 120), None]
)
def test_a_counts_file_of_another_shape_is_refused(tmp_path, opened, counts):
    np.save(tmp_path / "rows.npy", np.array(IDS))
    if counts is None:
        (tmp_path / "rows.counts.npy").write_bytes(b"")
    else:
        np.save(tmp_path / "rows.counts.npy", counts)
    with pytest.raises(MemlocError, match=r"rows\.counts\.npy"):
        opened(tmp_path / "rows.npy")


def test_ids_are_a_hash_of_the_token_ids_alone(tmp_path, opened):
    np.save(tmp_path / "rows.npy", np.array(IDS, np.int16))
    (tmp_path / "rows.jsonl").write_bytes(lines({"tokens": row} for row in IDS[::-1]))
    expected = [hashlib.sha256(struct.pack("<12q", *row)).hexdigest()[:10] for row in IDS]
    assert list(opened(tmp_path / "rows.npy").ids) == expected
    assert list(opened(tmp_path / "rows.jsonl").ids) == expected[::-1]


# ----------------------------------------------------------------------------------------------- lengths and ids


def test_longer_rows_are_cut_and_shorter_ones_left_out_and_counted(tmp_path, opened):
    rows = [IDS[0], IDS[1][:11], IDS[2] + [5, 6], [], IDS[4]]
    (tmp_path / "rows.jsonl").write_bytes(lines({"tokens": row, "count": i} for i, row in enumerate(rows)))
    found = opened(tmp_path / "rows.jsonl")
    assert found.tokens.tolist() == [IDS[0], IDS[2], IDS[4]]
    assert found.repetitions.tolist() == [0, 2, 4]
    assert "2 of 5 rows" in found.notices[0]
    assert "row 2 with 11" in found.notices[0]


@pytest.mark.parametrize(("prefix", "continuation"), [(1, 1), (11, 1), (1, 11), (5, 2)])
def test_any_split(tmp_path, opened, prefix, continuation):
    np.save(tmp_path / "rows.npy", np.array(IDS))
    found = opened(tmp_path / "rows.npy", prefix, continuation)
    assert found.prefix_length == prefix
    assert found.tokens.tolist() == [row[: prefix + continuation] for row in IDS]


@pytest.mark.parametrize(("prefix", "continuation"), [(0, 4), (8, 0), (-1, 5), (9, 4), (10**12, 1)])
def test_impossible_lengths(tmp_path, opened, prefix, continuation):
    np.save(tmp_path / "rows.npy", np.array(IDS))
    with pytest.raises(UsageError, match=r"at least one|shorter than"):
        opened(tmp_path / "rows.npy", prefix, continuation)


@pytest.mark.parametrize("wrong", [120, -1, 2**31, 2**62 - 1, -(2**62) + 1])
@pytest.mark.parametrize("kind", ["jsonl", "npy"])
@pytest.mark.parametrize("known", [True, False])
def test_ids_beyond_the_vocabulary(tmp_path, folder, opened, wrong, kind, known):
    if not known:
        (folder / "config.json").write_text("{}")
    rows = [IDS[0], [*IDS[1][:5], wrong, *IDS[1][6:]]]
    file = tmp_path / f"rows.{kind}"
    if kind == "npy":
        np.save(file, np.array(rows))
    else:
        file.write_bytes(lines({"tokens": row} for row in rows))
    if wrong == 120 and not known:
        assert opened(file).tokens.tolist() == rows
        return
    with pytest.raises(UsageError, match=str(wrong)):
        opened(file)


# --------------------------------------------------------------------------------------------------- bad files


def bad(name, data):
    return pytest.param(name, data, id=f"{name} {data[:24]!r}")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        bad("rows.jsonl", b"[1, 2]\n"),
        bad("rows.jsonl", b'{"tokens": [1, 2}\n'),
        bad("rows.jsonl", b'{"tokens": "1 2 3"}\n'),
        bad("rows.jsonl", b'{"tokens": [1, 2.5]}\n'),
        bad("rows.jsonl", b'{"tokens": [1, true]}\n'),
        bad("rows.jsonl", b'{"tokens": [[1], 2]}\n'),
        bad("rows.jsonl", b'{"tokens": [1e400, NaN]}\n'),
        bad("rows.jsonl", b'{"tokens": [' + b"9" * 5000 + b"]}\n"),
        bad("rows.jsonl", b'{"tokens": [' + b"9" * 25 + b"]}\n"),
        bad("rows.jsonl", b'{"tokens": [1]}\n{"text": "abc"}\n'),
        bad("rows.jsonl", b'{"other": 1}\n'),
        bad("rows.jsonl", b'{"text": null}\n'),
        bad("rows.jsonl", b'{"text": "abc"}\n'),  # and the model has no tokenizer
        bad("rows.jsonl", b"\n\n \n"),
        bad("rows.jsonl", b"\xff\xfe{\x00}\x00\n\x00"),
        bad("rows.jsonl", b"[" * 100_000),
        bad("rows.jsonl", b""),
        bad("rows.npy", b""),
        bad("rows.npy", b"\x93NUMPY"),
        bad("rows.npy", b"no array at all"),
        bad("rows.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<i8', 'fortran_order': False, ".ljust(118)),
        bad(
            "rows.npy",
            b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr':'<i8','fortran_order':False,'shape':(1<<60,)}".ljust(118),
        ),
        bad(
            "rows.npy",
            b"\x93NUMPY\x01\x00\x76\x00"
            + b"{'descr':'<i8','fortran_order':False,'shape':(1000000000000,9)}".ljust(117)
            + b"\n",
        ),
        bad("rows.pt", b""),
        bad("rows.pt", b"PK\x03\x04 no zip"),
        bad("rows.pt", b"\x80\x02}q\x00."),
        bad("rows.csv", b""),
        bad("rows.csv", b"\n"),
        bad("rows.csv", b"tokens\n"),
        bad("rows.csv", b"tokens\n1 2 x\n"),
        bad("rows.csv", b'tokens\n"[1, [2]]"\n'),
        bad("rows.csv", b'tokens,genre\n"1 2 3",a\n,b\n'),
        bad("rows.csv", b"other\n1\n"),
        bad("rows.csv", b"text\nabc\n"),
        bad("rows.csv", b"\x00\xff\xfe\x00"),
        bad("rows.csv", b'tokens,genre\n"1 2 3",a,b\n'),
        bad("rows.csv", b'tokens\n"1 2 3\n4 5 6\n'),
        bad("rows.parquet", b""),
        bad("rows.parquet", b"PAR1 not quite PAR1"),
        bad("rows.txt", b"1 2 3"),
        bad("rows", b"1 2 3"),
    ],
)
def test_a_bad_file_is_told_by_its_name_in_one_sentence(tmp_path, opened, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as caught:
        opened(tmp_path / name, 2, 1)
    said = str(caught.value)
    assert str(tmp_path / name) in said
    assert "\n" not in said
    assert len(said) < 600


@pytest.mark.parametrize(
    "array",
    [np.array(IDS, float), np.arange(12), np.zeros((2, 3, 4), int), np.zeros((0, 12), int), np.array([["a"]])],
    ids=["float", "1-D", "3-D", "no row", "text"],
)
@pytest.mark.parametrize("kind", ["npy", "pt"])
def test_arrays_that_are_no_rows_of_ids(tmp_path, opened, array, kind):
    if kind == "npy":
        np.save(tmp_path / "rows.npy", array)
    elif array.dtype.kind == "U":
        pytest.skip("no such tensor")
    else:
        import torch

        torch.save(torch.from_numpy(array), tmp_path / "rows.pt")
    with pytest.raises(UsageError, match=r"n, length|no paragraph"):
        opened(tmp_path / f"rows.{kind}")


def test_other_things_in_a_pt_file(tmp_path, opened):
    import torch

    for what in ({"ids": torch.tensor(IDS)}, [1, 2], torch.tensor(IDS, dtype=torch.bfloat16)):
        torch.save(what, tmp_path / "rows.pt")
        with pytest.raises(UsageError, match="holds"):
            opened(tmp_path / "rows.pt")


def test_an_archive_of_arrays_under_the_name_npy(tmp_path, opened):
    with (tmp_path / "rows.npy").open("wb") as file:
        np.savez(file, a=np.array(IDS))
    with pytest.raises(UsageError, match="archive"):
        opened(tmp_path / "rows.npy")


class Burglar:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["pt", "old pt", "raw pickle", "npy", "counts"])
def test_a_pickle_is_refused_and_never_run(tmp_path, opened, how):
    import torch

    loot, file = tmp_path / "loot", tmp_path / ("rows.npy" if how in ("npy", "counts") else "rows.pt")
    if how == "raw pickle":
        file.write_bytes(pickle.dumps(Burglar(loot)))
    elif how == "npy":
        np.save(file, np.array([[Burglar(loot)] * 12], object), allow_pickle=True)
    elif how == "counts":
        np.save(file, np.array(IDS))
        np.save(tmp_path / "rows.counts.npy", np.array([Burglar(loot)] * 120, object), allow_pickle=True)
    else:
        torch.save([Burglar(loot)], file, _use_new_zipfile_serialization=how == "pt")
    with pytest.raises(MemlocError):
        opened(file)
    assert not loot.exists()
    # The trap is set: whoever unpickles it makes the file.
    if how == "raw pickle":
        pickle.loads(file.read_bytes())
        assert loot.exists()


@pytest.mark.parametrize("source", ["nothing.npy", "~nobody-has-this-name/x.npy", "x" * 5000, ".", "/dev/null", ""])
def test_no_such_file(opened, source):
    with pytest.raises(UsageError):
        opened(source)


# ------------------------------------------------------------------------------------------- the paper's own files


@pytest.fixture
def gpt_neo(folder):
    (folder / "config.json").write_text('{"vocab_size": 50257}')
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(SHARED / "gpt2-tokenizer" / name, folder)
    return folder


@needs_shared
def test_the_papers_paragraphs_open_and_read_as_its_table_says(gpt_neo, opened):
    from memloc_core.tokenizers import read_vocabulary

    found = opened(SHARED / "paper" / "50_50_preds.pt", 50, 50)
    assert found.tokens.shape == (442, 100)
    vocabulary = read_vocabulary(gpt_neo)
    with (SHARED / "paper" / "mem_strings.csv").open(newline="", encoding="utf-8") as file:
        said = [row["paragraph"] for row in csv.DictReader(file)]
    texts = {vocabulary.text(row) for row in found.tokens}
    assert sum(text in texts for text in said) >= 0.9 * len(said)


@needs_shared
@pytest.mark.parametrize(("name", "n"), [("50_50", 442), ("30_49", 141), ("11_29", 436)])
def test_every_released_set_of_the_paper_opens_and_decodes(gpt_neo, opened, name, n):
    from memloc_core.tokenizers import read_vocabulary

    found = opened(SHARED / "paper" / f"{name}_preds.pt", 50, 50)
    assert found.tokens.shape == (n, 100)
    vocabulary = read_vocabulary(gpt_neo)
    assert all(len(vocabulary.text(row)) > 50 for row in found.tokens)


@needs_shared
def test_the_papers_table_of_strings_opens_as_text(gpt_neo, opened):
    found = opened(SHARED / "paper" / "mem_strings.csv", 50, 50)
    rows = {tuple(row) for row in opened(SHARED / "paper" / "50_50_preds.pt", 50, 50).tokens.tolist()}
    same = sum(tuple(row) in rows for row in found.tokens.tolist())
    assert same >= 0.9 * len(found)
    assert len(found) > 400
    with (SHARED / "paper" / "mem_strings.csv").open(newline="", encoding="utf-8") as file:
        counts = [int(row["count"]) for row in csv.DictReader(file)]
    assert set(found.repetitions.tolist()) <= set(counts)
