"""Processors and GPUs: which one, how much of its memory is free and was taken, and when there was too little."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from memloc_core import memory
from memloc_core.errors import UsageError

# What allocators and libraries say that have no error of their own for it.
_RAN_OUT = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_ON_A_GPU = 16_000_000  # numbers in a piece of work, 64 MB in fp32


def device_of(wanted: str) -> torch.device:
    """The device that `--device` names; "auto": the first GPU, or else the processor. Raises UsageError for none."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"--device {wanted!r} is no device; give auto, cpu, cuda:0 or mps.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(f"--device {wanted}: this machine shows {found} CUDA device{'s' * (found != 1)}.")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UsageError(f"--device {wanted}: not available on this machine; give auto, cpu, cuda:0 or mps.")
    return device


def compute_exactly() -> None:
    """float32 shall be float32: no TF32, no sums in half precision, whatever the environment or a library has chosen.

    Exact match hangs on small margins.
    """
    if hasattr(torch.backends, "fp32_precision"):  # the newer switch, of everything
        torch.backends.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def widest(device: torch.device) -> torch.dtype:
    """What long sums are made in there."""
    return torch.float32 if device.type == "mps" else torch.float64


def numbers_at_once(device: torch.device, cached: int) -> int:
    """How long a tensor that is worked off in pieces may be there: `cached`, as much as a processor's caches hold.

    A GPU needs longer ones, or it waits for the next piece to be asked for.
    """
    return _ON_A_GPU if device.type == "cuda" else cached


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still get there; on a GPU with what torch holds without using it."""
    if device.type != "cuda":
        return memory.free_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """A processor's tensor there. A GPU takes it when it gets to it; nobody waits for that."""
    if device.type == "cuda" and numbers.device.type == "cpu":
        numbers = numbers.pin_memory()  # what can be swapped out may have to wait
    return numbers.to(device, non_blocking=device.type != "mps")  # which may read what is no longer there


def fetched(tensors: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
    """Begins to bring them over; what comes back waits for them, but for nothing that a GPU is asked for later."""
    kind = tensors[0].device.type
    here = [tensor.to("cpu", non_blocking=kind != "mps") for tensor in tensors]
    brought = torch.cuda.current_stream(tensors[0].device).record_event() if kind == "cuda" else None

    def arrived() -> list[NDArray[Any]]:
        if brought is not None:
            brought.synchronize()
        return [tensor.numpy() for tensor in here]

    return arrived


def give_back() -> None:
    """Let other programs have the GPU memory that torch holds without using it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def ran_out(error: BaseException) -> bool:
    """Whether memory was too small: torch has an error of its own for that, but not everywhere."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _RAN_OUT)


def is_lost(error: BaseException) -> bool:
    """Whether a GPU has failed in such a way that every later question to it in this process will fail too."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not ran_out(error)  # since torch 2.8


class PeakMemory:
    """The most memory that an analysis held beyond what was taken when it began.

    Measured on a GPU. Elsewhere estimated: `row_bytes` of the rows in a step, and the `held` bytes between steps.
    """

    def __init__(self, device: torch.device, held: int = 0) -> None:
        self.bytes = 0
        self.held = held
        self._device = device
        self._before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

    @property
    def is_measured(self) -> bool:
        """Whether `bytes` have what is held between steps in them, without being told."""
        return self._device.type == "cuda"

    @contextlib.contextmanager
    def step(self, estimate: int) -> Iterator[None]:
        """One step of the analysis. Other requests may run between two steps, so nothing is measured there."""
        if not self.is_measured:
            yield
            self.bytes = max(self.bytes, self.held + estimate)
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        yield
        self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self._device) - self._before)
