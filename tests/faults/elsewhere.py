"""A device beside the processor, for machines without one: memory of its own, as far as torch can tell.

Its tensors compute on the processor, so that answers can be compared, but refuse what a GPU refuses: tensors of two
devices in one operation, numpy, and more memory than there is. Import it in a process of its own: torch registers a
device for good.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("elsewhere")
DEVICE = torch.device("elsewhere", 0)
aten = torch.ops.aten
_OF_BOTH = {  # as on a GPU: copies, and indices that lie on the processor
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}


class Memory:
    """Bytes of the tensors that are alive there: `taken` now, `peak` at most, `limit` where there is one."""

    def __init__(self) -> None:
        self.taken = self.peak = 0
        self.limit: int | None = None
        self._of: dict[int, int] = {}

    def hold(self, here: torch.Tensor) -> Held:
        place, size = here.untyped_storage().data_ptr(), here.untyped_storage().nbytes()
        if place not in self._of:
            if self.limit is not None and self.taken + size > self.limit:
                raise torch.OutOfMemoryError(f"Elsewhere out of memory. Tried to allocate {size} bytes.")
            self.taken += size
            self.peak = max(self.peak, self.taken)
        self._of[place] = self._of.get(place, 0) + 1
        return Held(self, place, size)

    def free(self, place: int, size: int) -> None:
        self._of[place] -= 1
        if not self._of[place]:
            del self._of[place]
            self.taken -= size


memory = Memory()
waits: list[str] = []  # what on a GPU would have waited until everything asked for before was computed


class Held:
    """One tensor's claim to its memory, as long as it lives."""

    def __init__(self, of: Memory, place: int, size: int) -> None:
        self.of, self.place, self.size = of, place, size

    def __del__(self) -> None:
        self.of.free(self.place, self.size)


class There(torch.Tensor):
    """A tensor on the device; `here` has its numbers."""

    here: torch.Tensor
    held: Held

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        assert type(here) is torch.Tensor, type(here)
        held = memory.hold(here)
        out = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        out.here, out.held = here, held
        return out

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))

    # What torch does not ask of a class of its own.

    @property
    def data(self) -> Any:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, other: There) -> None:
        assert (other.shape, other.dtype) == (self.shape, self.dtype), "not simulated"
        self.here, self.held = other.here, other.held

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation on the processor's tensors. What comes out is there, unless another device was asked for."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        return op.decompose(*args, **kwargs)
    tensors = [x for x in tree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    assert all(x.shape == x.here.shape for x in there), f"{op} is not simulated"
    if there and op not in _OF_BOTH and any(x.ndim for x in tensors if not isinstance(x, There)):
        raise RuntimeError(f"{op}: expected all tensors to be on the same device, but found {DEVICE} and cpu")
    wanted = torch.device(kwargs.get("device") or (DEVICE if tensors else "cpu"))
    crosses = op == aten._to_copy.default and wanted.type != (DEVICE if there else torch.device("cpu")).type
    if op == aten._local_scalar_dense.default or (crosses and not kwargs.get("non_blocking")):
        waits.append(op.name())
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    bare, named = tree.tree_map_only(There, lambda x: x.here, (args, kwargs))
    out = op(*bare, **named)
    if op._schema.name.endswith("_"):
        return args[0] if isinstance(out, torch.Tensor) else None
    if wanted.type == "cpu":
        return out
    with torch.inference_mode(args[0].is_inference()) if op.is_view else contextlib.nullcontext():
        return tree.tree_map_only(torch.Tensor, There, out)  # a view of an ordinary tensor is always an ordinary one


_rest = torch.library.Library("_", "IMPL")
_rest.fallback(_run, "PrivateUse1")
torch.autograd.set_multithreading_enabled(False)  # an error in a thread that is not Python's would end the process
# What torch would make of smaller operations that it cannot see through here.
_whole = torch.library.Library("aten", "IMPL")
for _op in (aten._to_copy.default, aten.arange.default, aten.arange.start, aten.arange.start_step):
    _whole.impl(_op, functools.partial(_run, _op), "PrivateUse1")
