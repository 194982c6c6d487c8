"""Where each family of models keeps its weights, and how they divide into heads: a table over the raw model.

A family is one row of `FAMILIES`. Everything here is a view of the real parameters or a hook on the real modules, so
nothing is folded, copied or computed a second time.

Letters in shapes: n rows, t tokens, w width, h query heads, g key/value heads (fewer than h in grouped attention).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memloc_core.errors import UsageError

KINDS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")

# What a hook can see of a block, and what comes in: "residual" its input [n, t, w]; "z" the heads' outputs before the
# out-projection [n, t, h * head_dim]; "mlp" what the MLP writes [n, t, w]; "qkv" each of the projections' outputs,
# before any rotation or norm; "pattern" the attention weights [n, h, t, t].
Site = Literal["residual", "z", "mlp", "qkv", "pattern"]
Hook = Callable[[Tensor], Tensor | None]  # what it returns, if anything, takes the tensor's place


@dataclass(frozen=True)
class Family:
    """Module paths: `blocks` from the model, the others from a block.

    `qkv` names one module or three. One module's outputs are laid out as `fused` says: all queries, then all keys,
    then all values ("qkv, head"), or head by head ("head, qkv").
    """

    blocks: str
    attention: str
    qkv: tuple[str, ...]
    out: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    fused: Literal["", "qkv, head", "head, qkv"] = ""


_GPT_NEO = Family(
    blocks="transformer.h",
    attention="attn.attention",
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    out="attn.attention.out_proj",
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
)
_GPT2 = Family(
    blocks="transformer.h",
    attention="attn",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
    fused="qkv, head",
)
_GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    attention="attention",
    qkv=("attention.query_key_value",),
    out="attention.dense",
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_out="mlp.dense_4h_to_h",
    fused="head, qkv",
)
_LLAMA = Family(
    blocks="model.layers",
    attention="self_attn",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
)
_PHI = Family(
    blocks="model.layers",
    attention="self_attn",
    qkv=_LLAMA.qkv,
    out="self_attn.dense",
    mlp_in=("mlp.fc1",),
    mlp_out="mlp.fc2",
)
_STARCODER2 = Family(
    blocks="model.layers",
    attention="self_attn",
    qkv=_LLAMA.qkv,
    out="self_attn.o_proj",
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
)
_GPTJ = Family(
    blocks="transformer.h",
    attention="attn",
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    out="attn.out_proj",
    mlp_in=("mlp.fc_in",),
    mlp_out="mlp.fc_out",
)
# By `config.model_type`. A new family is one row here and one line in tests/unit/families.py.
FAMILIES: dict[str, Family] = {
    "gpt_neo": _GPT_NEO,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "gptj": _GPTJ,
    "phi": _PHI,
    "starcoder2": _STARCODER2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "granite": _LLAMA,
    "cohere": _LLAMA,
    "smollm3": _LLAMA,
}


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it is a weight matrix, or a stack of them, such as the experts of one layer. A convolution along the
    text, [channels, 1, width], is none."""
    return parameter.ndim == 2 or (parameter.ndim == 3 and min(parameter.shape[1:]) > 1)


def keeps_inputs_first(module: nn.Module) -> bool:
    """Whether its weights are [in, out]: GPT-2's Conv1D, and a few families' stacks of experts. All others' are
    [out, in]."""
    return type(module).__name__ in ("Conv1D", "Llama4TextExperts") or bool(getattr(module, "is_transposed", False))


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of a block.

    `divide` takes a tensor of the parameter's shape (the weights, or their gradient) to views of it by kind:
    W_Q [h, head_dim, w], W_K and W_V [g, head_dim, w], W_O [h, w, head_dim], W_in [1, d_mlp, w], W_out [1, w, d_mlp].
    """

    parameter: nn.Parameter
    divide: Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Architecture:
    """A loaded model seen through its family's row of the table."""

    model: Any
    family: Family
    heads: int
    kv_heads: int
    head_dim: int
    _returns_tuple: bool  # whether a block returns (hidden, ...) or hidden alone

    @property
    def blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.model.get_submodule(self.family.blocks)
        return blocks

    @property
    def components(self) -> tuple[str, ...]:
        """The components of a layer, as "W_Q H0" .. "W_K KV0" .. "W_in", "W_out": 50 for GPT-Neo 125M."""
        count = self._count_by_kind()
        return tuple(name for kind in KINDS for name in _names(kind, count[kind], grouped=self.kv_heads < self.heads))

    def matrices(self, layer: int) -> list[Matrix]:
        """The weight matrices of one block; a gated MLP has two that give W_in."""
        block, family = self.blocks[layer], self.family

        def matrix(path: str, divide: Callable[[Tensor], dict[str, Tensor]]) -> Matrix:
            module = block.get_submodule(path)
            turned = keeps_inputs_first(module)
            return Matrix(module.weight, lambda x: divide(x.mT if turned else x))  # type: ignore[arg-type]

        return [
            *(matrix(path, lambda x, i=i: self.divide_qkv(x, i)) for i, path in enumerate(family.qkv)),  # type: ignore[misc]
            matrix(family.out, lambda x: {"W_O": torch.unflatten(x, 1, (self.heads, -1)).movedim(1, 0)}),
            *(matrix(path, lambda x: {"W_in": x[None]}) for path in family.mlp_in),
            matrix(family.mlp_out, lambda x: {"W_out": x[None]}),
        ]

    def divide_qkv(self, x: Tensor, module: int) -> dict[str, Tensor]:
        """The output features of the module-th of `qkv`, [out, ...], as {kind: [heads, head_dim, ...]}."""
        if not self.family.fused:
            return {KINDS[module]: torch.unflatten(x, 0, (-1, self.head_dim))}
        order = (3, self.heads) if self.family.fused == "qkv, head" else (self.heads, 3)
        x = torch.unflatten(x, 0, (*order, self.head_dim))
        return dict(zip(KINDS[:3], x.unbind(order.index(3)), strict=True))

    def by_head(self, z: Tensor) -> Tensor:
        """z [..., h * head_dim] as [..., h, head_dim]."""
        return torch.unflatten(z, -1, (self.heads, self.head_dim))

    @contextlib.contextmanager
    def hooked(self, *hooks: tuple[Site, int, Hook]) -> Iterator[None]:
        """Within, each (site, layer, hook) sees every forward pass, in the order given."""
        with contextlib.ExitStack() as stack:
            for site, layer, hook in hooks:
                for handle in self._register(site, layer, hook):
                    stack.callback(handle.remove)
            yield

    @contextlib.contextmanager
    def resumed(self, layer: int, residual: Tensor) -> Iterator[None]:
        """Within, a forward pass of n rows skips the blocks below `layer` and enters it with `residual` [n, t, w]."""

        def skip(hidden: Tensor, *_: Any, **__: Any) -> Any:
            return (hidden, None) if self._returns_tuple else hidden

        skipped: list[Any] = list(self.blocks[:layer])
        try:
            for block in skipped:
                block.forward = skip  # on the instance: it hides the class' method
            with self.hooked(("residual", layer, lambda _: residual)):
                yield
        finally:
            for block in skipped:
                vars(block).pop("forward", None)

    def _register(self, site: Site, layer: int, hook: Hook) -> Iterator[Any]:
        block, family = self.blocks[layer], self.family

        def on_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            new = hook(args[0])
            return None if new is None else (new, *args[1:])

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return hook(output)

        def on_pattern(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
            if output[1] is None:
                raise UsageError("This model's attention gives no weights; it has to be loaded with eager attention.")
            hook(output[1])

        if site == "residual":
            yield block.register_forward_pre_hook(on_input)
        elif site == "z":
            yield block.get_submodule(family.out).register_forward_pre_hook(on_input)
        elif site == "mlp":
            yield block.get_submodule(family.mlp_out).register_forward_hook(on_output)
        elif site == "pattern":
            yield block.get_submodule(family.attention).register_forward_hook(on_pattern)
        else:
            for path in family.qkv:
                yield block.get_submodule(path).register_forward_hook(on_output)

    def _count_by_kind(self) -> dict[str, int]:
        return {"W_Q": self.heads, "W_K": self.kv_heads, "W_V": self.kv_heads, "W_O": self.heads, "W_in": 1, "W_out": 1}


def find(model: Any) -> Architecture | None:
    """The adapter for a loaded model; None for a family that is not in the table, or a model that strays from it."""
    config = model.config.get_text_config()
    family = FAMILIES.get(config.model_type)
    if family is None:
        return None
    seeing = family.blocks.replace("model.", "model.language_model.", 1)  # where a model that sees keeps its text model
    if any(name == seeing for name, _ in model.named_modules()):
        family = replace(family, blocks=seeing)
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    try:
        block = model.get_submodule(family.blocks)[0]
        shapes = [block.get_submodule(path).weight.shape for path in (*family.qkv, family.out)]
        _ = [block.get_submodule(path).weight for path in (*family.mlp_in, family.mlp_out)]
    except AttributeError:
        return None
    if sum(map(sum, shapes)) != _expected(config.hidden_size, heads, kv_heads, head_dim, len(family.qkv)):
        return None
    output: list[Any] = []
    handle = block.register_forward_hook(lambda module, args, result: output.append(result))
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device))
    finally:
        handle.remove()
    return Architecture(model, family, heads, kv_heads, head_dim, isinstance(output[0], tuple))


def _expected(width: int, heads: int, kv_heads: int, head_dim: int, modules: int) -> int:
    """Rows plus columns of the query, key, value and out-projections, however they are fused."""
    return (modules + 1) * width + (2 * heads + 2 * kv_heads) * head_dim


def _names(kind: str, count: int, *, grouped: bool) -> list[str]:
    if kind in ("W_in", "W_out"):
        return [kind]
    head = "KV" if grouped and kind in ("W_K", "W_V") else "H"
    return [f"{kind} {head}{i}" for i in range(count)]
