"""transformers without what this process never uses, and without doing the same twice: an engine starts sooner.

To import transformers' modelling code, and to build a model without storage as a checkpoint's loading does, imports
torch's compiler and distributed tensors, and with them sympy: to decorate functions and to check types. Nothing is
compiled or sharded here, so stand-ins take the decorators meanwhile. Whoever asks them for more gets the real ones.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_HIGHER_ORDER = f"{_COMPILER}._trace_wrapped_higher_order_op"


def _decorates_nothing(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
    return function if function is not None else lambda inner: inner


class _OnFirstUse:
    """In the place of the one class that transformers takes from the compiler."""

    def __new__(cls) -> Any:
        return importlib.import_module(_HIGHER_ORDER).TransformGetItemToIndex()


_STAND_INS: dict[str, dict[str, Any]] = {
    _COMPILER: dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _decorates_nothing),
    _HIGHER_ORDER: {"TransformGetItemToIndex": _OnFirstUse},
}


def list_models_once() -> None:
    """Import transformers.models, whose folders transformers reads through twice: half a second for each time.

    What it found when it was imported itself stands for what it would find again.
    """
    import transformers
    from transformers.utils import import_utils

    if "transformers.models" in sys.modules:
        return
    library: Any = import_utils
    models = Path(transformers.__file__).parent / "models"
    define = library.define_import_structure

    def known(path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(path) != models / "__init__.py":
            return define(path, prefix)
        found = define(models, prefix="models")  # kept there since the import
        return {
            needs: {name.removeprefix("models."): has for name, has in names.items() if name.startswith("models.")}
            for needs, names in found.items()
        }

    library.define_import_structure = known
    try:
        importlib.import_module("transformers.models")
    finally:
        library.define_import_structure = define


@contextlib.contextmanager
def compiler_held_back() -> Iterator[None]:
    """Within, torch's compiler and process groups are not imported unless somebody asks for more than decorators.

    Does nothing where the compiler is there already.
    """
    if _COMPILER in sys.modules:
        yield
        return
    compiler: Any = torch.compiler
    disable, available = compiler.disable, torch.distributed.is_available

    def give_back() -> None:
        compiler.disable, torch.distributed.is_available = disable, available
        vars(torch).pop("_dynamo", None)
        for name in _STAND_INS:
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]

    class _StandIn(ModuleType):
        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__") and (self.__name__, attribute) != (_COMPILER, "__path__"):
                raise AttributeError(attribute)
            give_back()
            return getattr(importlib.import_module(self.__name__), attribute)

    for name, known in _STAND_INS.items():
        sys.modules[name] = _StandIn(name)
        vars(sys.modules[name]).update(known)
    compiler.disable, torch.distributed.is_available = _decorates_nothing, lambda: False
    try:
        yield
    finally:
        give_back()
