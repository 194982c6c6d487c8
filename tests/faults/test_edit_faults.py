"""Edit files that are truncated, tampered with, or put together by hand: refused in one sentence, never half read."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import struct

import numpy as np
import pytest
import safetensors.numpy as tensors

from memloc_core import codec, edit_files
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import Continuation, Continue, Provenance, SparseEdit
from memloc_tui import edits as kept
from tests.edits import run_of
from tests.faults.rounds import rounds


def edit(k=40, base="f" * 64, seed=0):
    rng = np.random.default_rng(seed)
    indices = np.concatenate([np.sort(rng.choice(1000, k // 2, replace=False)) for _ in range(2)])
    old = rng.normal(size=k).astype(np.float32)
    return SparseEdit("demo", base, (), ("a.weight", "b.weight"), np.array([0, k // 2, k]), indices, old, old + 1)


RUN = run_of(edit())
DATA = edit_files.encode(RUN)
HEADER = struct.unpack("<Q", DATA[:8])[0]


def refused(data):
    """The sentence with which bytes are refused; fails the test for any other end, and for a wrong edit."""
    with pytest.raises(MemlocError) as caught:
        edit_files.decode(bytes(data), "x.safetensors")
    text = str(caught.value)
    assert text.startswith("x.safetensors ")
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def sealed(metadata=None, data=DATA, **plain):
    """A file whose digest is right although somebody changed its metadata."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] |= (metadata or {}) | {"sha256": "0" * 64}
    if plain:
        record = json.loads(header["__metadata__"]["memloc"])
        for path, value in plain.items():
            place = record
            for name in path.split("__")[:-1]:
                place = place[name]
            place[path.split("__")[-1]] = value
        header["__metadata__"]["memloc"] = json.dumps(record)
    text = json.dumps(header, separators=(",", ":")).encode()
    whole = len(text).to_bytes(8, "little") + text + data[8 + size :]
    from hashlib import sha256

    return whole.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + sha256(whole).hexdigest().encode(), 1)


def test_the_helper_that_seals_makes_files_that_are_read():
    assert codec.encode(edit_files.decode(sealed())) == codec.encode(RUN)


def test_truncated_at_every_length():
    for length in range(len(DATA)):
        assert "damaged or changed" in refused(DATA[:length])
    assert "damaged or changed" in refused(DATA + b"\0")


def test_any_byte_changed():
    """Every byte of length, header and tensors, once: also in the digest itself, in names, and in the padding."""
    rng = random.Random(0)
    for place in range(len(DATA)):
        bad = bytearray(DATA)
        bad[place] ^= 1 << rng.randrange(8)
        refused(bad)


def test_bytes_cut_out_put_in_and_swapped(seen, no_code):
    rng, n = random.Random(1), rounds(1_000, 10_000)
    for _ in range(n):
        bad = bytearray(DATA)
        a, b = sorted((rng.randrange(len(bad)), rng.randrange(len(bad))))
        kind = rng.randrange(3)
        if kind == 0:
            del bad[a : a + rng.randint(1, 64)]
        elif kind == 1:
            bad[a:a] = rng.randbytes(rng.randint(1, 64))
        else:
            bad[a : a + 8], bad[b : b + 8] = bad[b : b + 8], bad[a : a + 8]
        if bad != DATA:
            refused(bad)
    seen(f"{n:,} damaged edit files, all refused in a sentence; and {len(DATA):,} cut, {len(DATA):,} of one bit")


def test_the_metadata_of_another_file():
    other = edit_files.encode(run_of(edit(base="e" * 64, seed=1)))
    size = struct.unpack("<Q", other[:8])[0]
    assert "damaged or changed" in refused(other[: 8 + size] + DATA[8 + HEADER :])
    assert "damaged or changed" in refused(DATA[: 8 + HEADER] + other[8 + size :])
    said = json.loads(other[8 : 8 + size])["__metadata__"]
    for name in ("base", "fingerprint", "metrics"):
        if name != "metrics":
            assert "contradicts" in refused(sealed({name: said[name]}))
    assert "contradicts" in refused(sealed({"model": "gpt-neo"}))
    assert "contradicts" in refused(sealed({"parameters": '["a.weight"]'}))
    assert "contradicts" in refused(sealed({"metrics": "{}"}))


def test_a_right_digest_over_a_wrong_edit():
    for change, said in (
        ({"result__edit__parameters": ["a.weight", "a.weight"]}, "twice"),
        ({"result__edit__base": 7}, "no text"),
        ({"result__edit__indices": {"$array": "result.edit.new"}}, "int64"),
        ({"result__edit__starts": {"$array": "result.edit.indices"}}, "starts"),
        ({"result": {"$type": "Progress", "done": 1, "total": 2}}, "no run"),
        ({"request": {"$type": "Continue", "prompt": [1], "length": 5}}, "no run"),
        ({"$type": "Progress"}, "no valid edit"),
        ({"result__best": None}, "no valid edit"),
    ):
        text = refused(sealed(**change))
        assert said in text, text
    indices = RUN.result.edit.indices.copy()
    indices[[3, 4]] = indices[[4, 3]]
    descending = dataclasses.replace(RUN.result.edit, indices=indices)
    with pytest.raises(MemlocError, match="do not ascend"):
        edit_files.encode(run_of(descending))
    swapped = bytearray(DATA)
    at = DATA.index(RUN.result.edit.indices.tobytes())
    swapped[at : at + RUN.result.edit.indices.nbytes] = indices.tobytes()
    assert "do not ascend" in refused(sealed(data=bytes(swapped)))


def test_files_that_are_no_edit_at_all():
    other = codec.encode(codec.requests.Answer(Continue((1,), 2), Continuation(np.zeros(2), np.zeros(2)), provenance()))
    plain = tensors.save({"weight": np.zeros(3, np.float32)}, {"format": "pt"})
    deep = b"[" * 100_000
    for data in (b"", b"{}", b"\x80\x04K\x01.", other, plain, DATA[8:], os.urandom(3000)):
        assert "damaged or changed" in refused(data)
    assert "damaged or changed" in refused(len(deep).to_bytes(8, "little") + deep)
    assert "memloc edit 2" in refused(sealed({"format": "memloc edit 2"}))
    for wrong in ({"format": 7}, {"sha256": "0"}, {"format": None}):
        header = json.loads(DATA[8 : 8 + HEADER])
        header["__metadata__"] |= wrong
        text = json.dumps(header).encode()
        refused(len(text).to_bytes(8, "little") + text + DATA[8 + HEADER :])


def provenance():
    return Provenance("m", "f", "", "float32", "cpu", "eager", 1.0)


def test_what_is_no_run_is_not_written(tmp_path):
    path = tmp_path / "e.safetensors"
    for wrong in (None, RUN.result, codec.requests.Answer(Continue((1,), 2), RUN.result, provenance())):
        with pytest.raises(MemlocError):
            edit_files.write_edit(path, wrong)
    assert not list(tmp_path.iterdir())


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(edit_files.SIZE_CAP + 1)  # sparse: takes no room
    for read in (edit_files.read_edit, edit_files.read_summary):
        with pytest.raises(MemlocError, match="over the 1,024 MB"):
            read(path)
    monkeypatch.setattr(edit_files, "SIZE_CAP", 2000)
    with pytest.raises(MemlocError, match="40 weights is over the limit of 2,000"):
        edit_files.encode(RUN)


def test_a_header_that_claims_to_be_endless(tmp_path):
    path = tmp_path / "e.safetensors"
    path.write_bytes((1 << 63).to_bytes(8, "little") + DATA[8:])
    for read in (edit_files.read_edit, edit_files.read_summary):
        with pytest.raises(MemlocError, match="damaged or changed"):
            read(path)


def test_places_where_no_file_can_be_read_or_written(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    fifo = tmp_path / "missing" / "e.safetensors"
    for path, said in ((folder, "is a folder"), (fifo, "There is no edit file"), (tmp_path / "no", "There is no edit")):
        with pytest.raises(UsageError, match=said):
            edit_files.read_edit(path)
    for path in (folder, fifo):
        with pytest.raises(MemlocError, match="cannot be written"):
            edit_files.write_edit(path, RUN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]
    assert not list(folder.iterdir())


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "e.safetensors"
    edit_files.write_edit(path, RUN)

    def full(*_):
        raise OSError(28, "No space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(MemlocError, match="No space left"):
                edit_files.write_edit(path, run_of(edit(seed=3)))
        assert path.read_bytes() == DATA
        assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def test_a_store_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMLOC_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(MemlocError, match="cannot be made"):
        kept.store(RUN)
    assert kept.stored() == []
