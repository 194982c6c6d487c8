"""The codec: every request and result comes back as it was, and nothing else comes back at all."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import typing
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from memloc_core import codec, requests
from memloc_core.codec import CodecError, cache_key, decode, encode, to_json

TYPES = [c for c in vars(requests).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
QUESTIONS = [c for c in TYPES if issubclass(c, requests.Request)]
FAST = settings(max_examples=12, suppress_health_check=list(HealthCheck))
DTYPES = [np.dtype(t) for t in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8")]

texts = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates and control characters too
any_array = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)


def strategy_of(kind, owner):
    """Values of a field's type, as the annotation says it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(strategy_of(inner[0], owner), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(strategy_of(part, owner) for part in inner))
    if origin is dict:
        return st.dictionaries(texts, texts, max_size=3)
    if origin in (typing.Union, type(int | None)):
        return st.one_of(*(strategy_of(part, owner) for part in inner))
    if origin in (np.ndarray, np.typing.NDArray):  # the second from numpy 2.5 on
        return any_array
    if kind in (requests.Request, requests.Result) or isinstance(kind, typing.TypeVar):
        return instances(requests.Perturb if kind is requests.Request else requests.Continuation)
    if dataclasses.is_dataclass(kind):
        return instances(kind)
    return {int: st.integers(), float: st.floats(), str: texts, bool: st.booleans(), type(None): st.none()}[kind]


def instances(cls):
    names = vars(typing) | vars(requests) | {"np": np, "NDArray": np.typing.NDArray}
    names |= {"Ints": np.typing.NDArray[np.int64], "Floats": np.typing.NDArray[np.float32]}
    kinds = typing.get_type_hints(cls, names)
    return st.builds(cls, **{f.name: strategy_of(kinds[f.name], cls) for f in dataclasses.fields(cls)})


def same(a, b):
    """Equal in every field, arrays by type, shape and value, nan equal to nan."""
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@pytest.mark.parametrize("cls", TYPES, ids=lambda c: c.__name__)
def test_every_request_and_result_comes_back_as_it_was(cls):
    @FAST
    @given(instances(cls))
    def check(value):
        assert same(decode(encode(value)), value)

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)], ids=str)
def test_arrays_of_every_kind_and_shape_come_back(dtype, shape):
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    for given_ in (array, array.T, array[..., ::-1] if shape else array, array.astype(dtype.newbyteorder(">"))):
        back = decode(encode(requests.Continuation(given_, array))).tokens
        assert (back.dtype, back.shape, back.tolist()) == (dtype, given_.shape, given_.tolist())


@pytest.mark.parametrize(
    "value",
    [
        requests.Continuation(np.array(["text"]), np.array([object()])),
        requests.Continuation(np.zeros(1, np.complex128), np.zeros(1)),
        requests.OpenModel(object()),
        requests.Continue((1, np.int64(2))),
        object(),
    ],
)
def test_what_has_no_form_is_refused_when_written(value):
    with pytest.raises(CodecError):
        encode(value)


# ----------------------------------------------------------------------------------------------------------- keys


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return 1.0 if math.isnan(value) else math.nextafter(value, math.inf if value < 0 else -math.inf)
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value, changed(value[-1])) if value else (7,)
    if dataclasses.is_dataclass(value):
        first = dataclasses.fields(value)[0].name
        return dataclasses.replace(value, **{first: changed(getattr(value, first))})
    raise AssertionError(type(value))


@pytest.mark.parametrize("cls", QUESTIONS, ids=lambda c: c.__name__)
def test_a_key_changes_with_every_field_and_only_then(cls):
    @FAST
    @given(instances(cls), texts)
    def check(question, identity):
        identity = repr(identity)
        key = cache_key(question, identity)
        assert len(key) == 64
        assert cache_key(decode(encode(question)), identity) == key
        assert cache_key(question, identity + "x") != key
        assert cache_key(question, identity, "an edit") != key
        for field in dataclasses.fields(cls):
            value = getattr(question, field.name)
            if field.compare and not dataclasses.is_dataclass(value):
                other = dataclasses.replace(question, **{field.name: changed(value)})
                assert cache_key(other, identity) != key, field.name

    check()


def test_a_key_changes_with_the_version_of_the_result(monkeypatch):
    question = requests.Continue((1, 2), 3)
    before = cache_key(question, "model")
    monkeypatch.setattr(requests.Continue, "version", 2)
    assert cache_key(question, "model") != before


def test_an_edit_s_name_that_is_no_text_has_a_key_of_its_own():
    question = requests.Continue((1, 2), 3)
    keys = {cache_key(requests.Edited(question, (name,)), "model") for name in ("\ud800", "\ud801", "?")}
    assert len(keys) == 3


def test_equal_numbers_in_different_classes_or_fields_have_different_keys():
    questions = [
        requests.OpenModel("a", "b", "c"),
        requests.OpenModel("a", "c", "b"),
        requests.ReadVocabulary("a"),
        requests.OpenParagraphs("a", "b"),
        requests.OpenParagraphs("b", "a"),
        requests.ExactMatch(((1, 2, 3),), 1),
        requests.ExactMatch(((1,), (2, 3)), 1),
        requests.Perturb((1, 2, 3), ((0, 12),), 1),
        requests.Perturb((1, 2, 3), ((0, 1), (2, 0)), 1),
    ]
    assert len({cache_key(q, "m") for q in questions}) == len(questions)


def test_an_array_in_a_request_is_refused_because_it_would_not_be_in_the_key():
    with pytest.raises(CodecError):
        cache_key(requests.Continue(np.array([1, 2])), "m")


# -------------------------------------------------------------------------------------------------------- bad bytes

ANSWER = requests.Answer(
    requests.Perturb(tuple(range(20)), ((1, 5),), 10),
    requests.Continuation(np.arange(10), np.linspace(0, 1, 10, dtype=np.float32)),
    requests.Provenance("m", "f", "", "float32", "cpu", "eager", 0.5, {"torch": "2"}, ("note",)),
)


def decodes_or_refuses(data):
    try:
        decode(data)
    except CodecError:
        return False
    return True


def test_truncated_bytes_are_refused_at_every_length():
    data = encode(ANSWER)
    assert not any(decodes_or_refuses(data[:length]) for length in range(len(data)))


def test_thousands_of_mutations_give_a_value_or_codec_error_and_nothing_else():
    data, rng = encode(ANSWER), random.Random(0)
    refused = 0
    for _ in range(6000):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            place, kind = rng.randrange(len(bad)), rng.randrange(4)
            if kind == 0:
                bad[place] = rng.randrange(256)
            elif kind == 1:
                bad[place] ^= 1 << rng.randrange(8)
            elif kind == 2:
                bad[place:place] = rng.randbytes(rng.randint(1, 9))
            else:
                del bad[place : place + rng.randint(1, 9)]
        refused += not decodes_or_refuses(bytes(bad))
    assert refused > 3000


@FAST
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_garbage_is_refused(garbage, length):
    assert not decodes_or_refuses(garbage)
    assert not decodes_or_refuses(length.to_bytes(8, "little") + garbage)


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"$type":"Progress"}',
        '{"$type":"__import__","name":"os"}',
        '{"$type":"Ablated","request":1,"heads":[]}',
        '{"$array":"0"}',
        '{"$dict":[]}',
        "1" * 5000,
        "",
        "nul",
    ],
)
def test_a_well_formed_file_with_a_hostile_header_is_refused(body):
    import safetensors.numpy

    data = safetensors.numpy.save({"1": np.zeros(1)}, {"memloc": body})
    with pytest.raises(CodecError):
        decode(data)


# ------------------------------------------------------------------------------------------------------------- JSON


def test_json_of_what_is_no_number_is_null():
    values = np.array([1.5, np.nan, np.inf, -np.inf], np.float32)
    assert to_json(requests.Continuation(values, values[:0])) == {
        "tokens": [1.5, None, None, None],
        "probabilities": [],
    }


@given(st.floats(-(2.0**126), 2.0**126, width=32))
def test_json_of_a_float32_is_the_shortest_text_that_reads_back(value):
    said = to_json(np.float32(value))
    assert np.float32(said) == np.float32(value)
    digits = len(Decimal(repr(said)).normalize().as_tuple().digits)
    assert all(np.float32(f"{value:.{fewer}e}") != np.float32(value) for fewer in range(digits - 1))


@given(st.floats(-(2.0**126), 2.0**126))
def test_json_of_a_double_that_is_no_float32_keeps_every_digit(value):
    assert to_json(value) == value or np.float64(np.float32(value)) == value


def test_json_has_the_fields_of_the_class_and_plain_values():
    said = to_json(ANSWER)
    assert list(said) == ["request", "result", "provenance"]
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["request"]["replacements"] == [[1, 5]]
    assert said["result"]["tokens"] == list(range(10))
    assert said["provenance"]["versions"] == {"torch": "2"}


def test_every_request_is_on_the_menu():
    assert set(requests.REQUESTS) == set(QUESTIONS)
    assert all(issubclass(c.answer, requests.Result) for c in QUESTIONS)
    assert codec._TYPES.keys() == {c.__name__ for c in TYPES}
