"""Frames: what is packed is read back, and what is no frame is refused before its body is read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from memloc_core.frames import FRAME_CAP, HEADER, FrameError, Kind, pack, unpack_header


@given(st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_a_frame_reads_back(kind, id_, body):
    frame = pack(kind, id_, body)
    assert unpack_header(frame[: HEADER.size]) == (kind, id_, len(body))
    assert frame[HEADER.size :] == body


def test_a_frame_is_laid_out_as_the_module_says():
    assert pack(Kind.CANCEL, 258) == bytes([0, 0, 0, 9, 2, 0, 0, 0, 0, 0, 0, 1, 2])
    assert pack(Kind.ASK, 1, b"ab") == bytes([0, 0, 0, 11, 1, 0, 0, 0, 0, 0, 0, 0, 1]) + b"ab"


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 2**64 - 1))
def test_any_header_is_a_frame_within_the_cap_or_refused(length, kind, id_):
    within = 9 <= length <= FRAME_CAP + 9 and 1 <= kind <= max(Kind)
    try:
        unpacked = unpack_header(struct.pack(">IBQ", length, kind, id_))
    except FrameError:
        assert not within
    else:
        assert within
        assert unpacked == (kind, id_, length - 9)


@pytest.mark.parametrize("length", [0, 8, FRAME_CAP + 10, 2**32 - 1])
def test_an_impossible_length_is_refused(length):
    with pytest.raises(FrameError, match="body"):
        unpack_header(struct.pack(">IBQ", length, Kind.ANSWER, 1))


@pytest.mark.parametrize("kind", [0, max(Kind) + 1, 255])
def test_an_unknown_kind_is_refused_and_named(kind):
    with pytest.raises(FrameError, match=f"kind {kind}"):
        unpack_header(struct.pack(">IBQ", 9, kind, 1))


def test_a_body_over_the_cap_is_refused_before_it_is_copied():
    class Huge(bytes):
        def __len__(self):
            return FRAME_CAP + 1

    with pytest.raises(FrameError, match="over the limit"):
        pack(Kind.ANSWER, 1, Huge())
