"""One file per sparse edit: which weights, what they were, what they become, and the run that chose them.

The file is safetensors. Its tensors are the run's arrays by name, first of all

    result.edit.indices  int64 [k]      flat, row-major places; parameter i has indices[starts[i]:starts[i + 1]]
    result.edit.starts   int64 [p + 1]
    result.edit.old      float32 [k]
    result.edit.new      float32 [k]

and its metadata holds, as text: `format`, `model` and `base` (whose weights these are), `fingerprint` (of the edit),
`parameters` (JSON, p names), `metrics` (JSON), `memloc` (JSON: request, provenance and all plain values of the run, see
`codec`) and `sha256`, over the whole file with these 64 digits as zeros. No torch, no pickle.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memloc_core import codec
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import Answer, Edited, SparseEdit, Unlearn, Unlearning

FORMAT = "memloc edit 1"
SIZE_CAP = 1 << 30  # bytes; about 60 million changed weights
_HEADER_CAP = 100_000_000
_ZEROS = "0" * 64
_SHORT = 8


@dataclass(frozen=True)
class Summary:
    """What the header of an edit file says, unverified; `metrics` by name, nan where the run did not measure it."""

    fingerprint: str
    model: str
    base: str
    on_top_of: tuple[str, ...]
    parameters: tuple[str, ...]
    metrics: dict[str, Any]


def encode(answer: Answer[Any]) -> bytes:
    """The file of a run's edit; the same answer always gives the same bytes. Raises MemlocError."""
    if isinstance(answer, Answer) and isinstance(
        answer.request, Edited
    ):  # what it stands on is said by the edit; where files lay, by nobody
        answer = replace(answer, request=answer.request.request)
    _check_answer(answer)
    data = codec.encode(answer)
    header, tensors = _split(data)
    header["__metadata__"] = _metadata(answer) | header["__metadata__"] | {"sha256": _ZEROS}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if 8 + len(text) + len(tensors) > SIZE_CAP:
        raise MemlocError(f"An edit of {len(answer.result.edit):,} weights is over the limit of {SIZE_CAP:,} bytes.")
    whole = len(text).to_bytes(8, "little") + text + tensors
    return _sealed(whole, hashlib.sha256(whole).hexdigest(), _ZEROS)


def decode(data: bytes, name: str = "The edit") -> Answer[Any]:
    """The run that `encode` was given. Raises MemlocError, which calls the data `name`, for anything else."""
    metadata = _header(data, name)
    digest = metadata["sha256"]
    try:
        whole = _sealed(data, _ZEROS, digest)
    except ValueError:
        raise _damaged(name) from None
    if hashlib.sha256(whole).hexdigest() != digest:
        raise _damaged(name)
    try:
        answer = codec.decode(data)
        _check_answer(answer)
        # A file that was put together by hand must not say one thing to people and another to the engine.
        if _metadata(answer) != {key: metadata[key] for key in _metadata(answer)}:
            raise MemlocError("its metadata contradicts its contents")
    except MemlocError as error:
        raise MemlocError(f"{name} holds no valid edit: {str(error).rstrip('.')}.") from None
    except Exception as error:  # a hostile record decodes to values of any type
        raise MemlocError(f"{name} holds no valid edit: {type(error).__name__}.") from None
    return answer  # type: ignore[no-any-return]


def read_edit(path: Path) -> Answer[Any]:
    """The run whose edit a file holds (`.result.edit`), verified whole. Raises UsageError or MemlocError."""
    return decode(_read(path, SIZE_CAP), str(path))


def read_summary(path: Path) -> Summary:
    """What a file's header says, without its tensors. Raises UsageError or MemlocError."""
    metadata = _header(_read(path, _HEADER_CAP, header_only=True), str(path))
    try:
        on_top_of, parameters, metrics = (json.loads(metadata[key]) for key in ("on_top_of", "parameters", "metrics"))
        fingerprint, model, base = (metadata[key] for key in ("fingerprint", "model", "base"))
        texts = (fingerprint, model, base, *on_top_of, *parameters)
        if not all(isinstance(text, str) for text in texts) or not isinstance(metrics, dict):
            raise ValueError("types")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _damaged(str(path)) from None
    return Summary(fingerprint, model, base, tuple(on_top_of), tuple(parameters), metrics)


def write_edit(path: Path, answer: Answer[Any]) -> None:
    """Write an edit file whole or not at all. Raises MemlocError, and then what stood there still does."""
    data, target = encode(answer), path.resolve()
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)  # mkstemp gives 0600; the file is the person's own, under their umask
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise MemlocError(f"{path} cannot be written: {error.strerror or error}.") from None
        raise


def check_edit(edit: SparseEdit) -> None:
    """Raise MemlocError for an edit that no model could have, in a few words that go on a sentence."""
    k, p = len(edit.indices), len(edit.parameters)
    for name, kind, length in (
        ("indices", np.int64, k),
        ("starts", np.int64, p + 1),
        ("old", np.float32, k),
        ("new", np.float32, k),
    ):
        array = getattr(edit, name)
        if not isinstance(array, np.ndarray) or array.dtype != kind or array.shape != (length,):
            raise MemlocError(f"its {name} are not {length:,} numbers of the type {kind.__name__}.")
    if not all(isinstance(text, str) for text in (edit.model, edit.base, *edit.parameters, *edit.on_top_of)):
        raise MemlocError("a name in it is no text.")
    if len(set(edit.parameters)) != p:
        raise MemlocError("it names a parameter twice.")
    if edit.starts[0] != 0 or edit.starts[-1] != k or (np.diff(edit.starts) < 0).any():
        raise MemlocError("its starts do not divide its indices among its parameters.")
    ascending = np.diff(edit.indices) > 0
    ascending[edit.starts[(edit.starts > 0) & (edit.starts < k)] - 1] = True  # where the next parameter begins
    if k and (not ascending.all() or edit.indices.min() < 0):
        raise MemlocError("its indices do not ascend from 0 within a parameter.")
    if not (np.isfinite(edit.new).all() and np.isfinite(edit.old).all()):
        raise MemlocError("it holds a value that is not finite.")


def check_new_folder(folder: Path) -> None:
    """Raise UsageError where no checkpoint can be written into `folder` without touching something else."""
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
        if folder.exists():
            raise UsageError(f"{folder} is there already; an export takes a new or an empty folder.")
        if not os.access(folder.parent, os.W_OK | os.X_OK):
            raise UsageError(f"{folder} cannot be made: its folder is not there, or not yours to write to.")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}.") from None


def unfinished(folder: Path, process: int) -> Path:
    """Where the engine of that process id writes what becomes `folder`."""
    return folder.with_name(f".{folder.name}.unfinished-{process}")


def remove_unfinished(folder: Path) -> None:
    """Remove what engines that were killed in the middle of an export to `folder` have left. Never raises."""
    for left in folder.parent.glob(glob.escape(f".{folder.name}.unfinished-") + "*"):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def another_model(edit: str, model: str, base: str, name: str, fingerprint: str) -> MemlocError:
    """An edit of one model, the other one open: both by name and the beginning of their weights' fingerprints."""
    that = "it as it was then, in the same --dtype" if model == name else "that model"
    return MemlocError(
        f"Edit {edit[:_SHORT]} was made on {model or 'another model'} (weights {base[:_SHORT]}), and the open model is "
        f"{name} (weights {fingerprint[:_SHORT]}): open {that}, or leave the edit away."
    )


def metrics(run: Unlearning) -> dict[str, Any]:
    """A run in a few numbers: at its start and at its best step."""
    best = run.best

    def mean(curve: Any, step: int) -> float | None:
        row = np.asarray(curve)[step] if 0 <= step < len(curve) else np.zeros(0)
        value = float(row.mean()) if row.size else float("nan")
        return float(f"{value:.6g}") if np.isfinite(value) else None

    return {
        "weights": len(run.edit),
        "steps": len(run.loss),
        "best": best,
        "stopped": run.stopped,
        "em_before": mean(run.em, 0),
        "em": mean(run.em, best),
        "longest_run": mean(run.longest_run, best),
        "nll_before": mean(run.nll, 0),
        "nll": mean(run.nll, best),
        "taught_em": mean(run.taught_em, best),
        "kl": mean(run.kl, best),
    }


# ------------------------------------------------------------------------------------------------------- the file


def _metadata(answer: Answer[Any]) -> dict[str, str]:
    edit: SparseEdit = answer.result.edit
    return {
        "format": FORMAT,
        "model": edit.model,
        "base": edit.base,
        "fingerprint": edit.fingerprint,
        "on_top_of": json.dumps(edit.on_top_of),
        "parameters": json.dumps(edit.parameters),
        "metrics": json.dumps(metrics(answer.result)),
    }


def _check_answer(answer: Any) -> None:
    if (
        not isinstance(answer, Answer)
        or not isinstance(answer.request, Unlearn)
        or not isinstance(answer.result, Unlearning)
        or not isinstance(answer.result.edit, SparseEdit)
    ):
        raise MemlocError("it is no run that ended with an edit.")
    check_edit(answer.result.edit)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of safetensors bytes. Raises ValueError."""
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= min(len(data) - 8, _HEADER_CAP):
        raise ValueError("size")
    header = json.loads(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("header")
    return header, data[8 + size :]


def _sealed(data: bytes, digest: str, instead_of: str) -> bytes:
    """The file with another digest in its place; raises ValueError where that place is not to be found."""
    place = data.index(b'"sha256":"' + instead_of.encode() + b'"') + len(b'"sha256":"')
    return data[:place] + digest.encode() + data[place + 64 :]


def _header(data: bytes, name: str) -> dict[str, Any]:
    """The metadata of an edit file's beginning. Raises MemlocError."""
    try:
        metadata = _split(data)[0]["__metadata__"]
        said = metadata["format"]
        digest = metadata["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(name) from None
    if said != FORMAT and str(said).startswith("memloc edit "):
        raise MemlocError(f"{name} is of the format {said!r}; this version reads {FORMAT!r}. Update memloc-tui.")
    if said != FORMAT or not isinstance(digest, str) or len(digest) != 64 or not digest.isalnum():
        raise _damaged(name)
    return dict(metadata)


def _read(path: Path, cap: int, *, header_only: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > SIZE_CAP:
                raise MemlocError(f"{path} is over the {SIZE_CAP >> 20:,} MB that an edit may take.")
            if not header_only:
                return file.read(cap + 1)
            start = file.read(8)
            return start + file.read(min(int.from_bytes(start, "little"), cap))
    except FileNotFoundError:
        raise UsageError(f"There is no edit file {str(path)!r}.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; an edit is one file.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None


def _damaged(name: str) -> MemlocError:
    return MemlocError(f"{name} is no edit file, or one that was damaged or changed since it was written.")
