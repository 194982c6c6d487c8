"""One codec, on the wire and on disk: safetensors bytes whose metadata holds the rest as JSON. No pickle.

`encode` turns any dataclass of `requests` into bytes, `decode` turns them back, and either refuses what it does not
know. Arrays become tensors named by their place (`result.edit.indices`), so that the bytes read well without this file
too; tuples become JSON lists and come back as tuples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import numpy as np
import safetensors.numpy as tensors
from safetensors import SafetensorError

from memloc_core import requests
from memloc_core.errors import MemlocError

_TYPES = {c.__name__: c for c in vars(requests).values() if isinstance(c, type) and dataclasses.is_dataclass(c)}
_HEADER_CAP = 100_000_000  # safetensors' own limit on its header
_FLOAT32_MAX = 3.4028234663852886e38


class CodecError(MemlocError):
    """The bytes are not something this version wrote."""


def encode(value: Any) -> bytes:
    """Bytes of one dataclass of `requests`; raises CodecError for a value that has no such form."""
    if type(value) is not _TYPES.get(type(value).__name__):
        raise CodecError(f"A {type(value).__name__} has no form on disk or on the wire.")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    body = _json(value, arrays)
    try:
        return bytes(tensors.save(arrays, {"memloc": body}))
    except (TypeError, ValueError, KeyError, SafetensorError) as error:
        raise CodecError(f"A {type(value).__name__} holds an array that cannot be written: {error}") from error


def decode(data: bytes) -> Any:
    """The dataclass that `encode` was given. Raises CodecError for anything else, never another exception."""
    try:
        size = int.from_bytes(data[:8], "little")
        if not 0 < size <= min(len(data) - 8, _HEADER_CAP):
            raise CodecError("The header's length does not fit the data.")
        header = json.loads(data[8 : 8 + size])
        return _value(json.loads(header["__metadata__"]["memloc"]), tensors.load(data))
    except CodecError:
        raise
    except Exception as error:  # a hostile or truncated row can raise almost anything inside the parsers
        raise CodecError(f"The data is not a memloc record: {type(error).__name__}.") from error


def canonical(request: requests.Request) -> str:
    """The one text form of a request: sorted keys, no spaces; the same question always gives the same text."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    text = _json(request, arrays, sort_keys=True)
    if arrays:
        raise CodecError("A request holds plain values only: an array would not be part of its key.")
    return text


def cache_key(request: requests.Request, identity: str, edit: str = "") -> str:
    """sha256 hex of the request, its result's schema version, the model's identity and the active edits.

    `Edited` is such an edit: it changes no other part of the key, and with no edits none at all.
    """
    if isinstance(request, requests.Edited):
        edit = "\n".join(map(str, (*([edit] if edit else []), *request.edits)))
        request = request.request
    text = "\n".join((canonical(request), str(request.version), identity, edit))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def to_json(value: Any) -> Any:
    """A dataclass as plain JSON values under its field names; nan becomes null (for `--json`)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # What was computed in float32 in the shortest text that float32 reads back: 0.1, not 0.10000000149011612.
        single = np.float32(value) if abs(value) <= _FLOAT32_MAX else np.float32(0)
        return float(str(single)) if float(single) == value else value
    return value


def _json(value: Any, arrays: dict[str, np.ndarray[Any, Any]], *, sort_keys: bool = False) -> str:
    """Escaped to ASCII: a file's name or a row's genre may hold half a surrogate pair, which UTF-8 has no bytes for."""
    try:
        return json.dumps(_plain(value, arrays), sort_keys=sort_keys, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"A {type(value).__name__} holds what cannot be written: {error}") from error


def _plain(value: Any, arrays: dict[str, np.ndarray[Any, Any]], place: str = "") -> Any:
    """`place`: the field names and list positions that lead to the value, each with a dot behind it."""
    if isinstance(value, np.ndarray):
        name = place[:-1] or "array"
        arrays[name] = np.require(value, requirements="C")
        return {"$array": name}
    if type(value).__name__ in _TYPES and dataclasses.is_dataclass(value):
        fields = {
            f.name: _plain(getattr(value, f.name), arrays, f"{place}{f.name}.") for f in dataclasses.fields(value)
        }
        return {"$type": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        if not value or isinstance(value[0], int):
            return list(value)  # long runs of token ids: no look at each
        return [_plain(v, arrays, f"{place}{i}.") for i, v in enumerate(value)]
    if isinstance(value, dict):  # its keys may be any text, so their numbers stand in the place
        return {"$dict": {k: _plain(v, arrays, f"{place}{i}.") for i, (k, v) in enumerate(value.items())}}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise CodecError(f"{type(value).__name__} has no place in a request or a result.")


def _value(plain: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(plain, list):
        if not plain or isinstance(plain[0], int):
            return tuple(plain)
        return tuple(_value(v, arrays) for v in plain)
    if not isinstance(plain, dict):
        return plain
    if "$array" in plain:
        return arrays[plain["$array"]]
    if "$dict" in plain:
        return {k: _value(v, arrays) for k, v in plain["$dict"].items()}
    kind = _TYPES[plain["$type"]]
    return kind(**{k: _value(v, arrays) for k, v in plain.items() if k != "$type"})
