"""A tiny random model of every family in the table, as the engine holds it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

from memloc_core.language_model import LanguageModel
from memloc_core.requests import ModelInfo

VOCABULARY = 61
_GPT = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA = {
    **_GPT,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_CONFIGS: dict[str, Any] = {
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **_GPT,
        hidden_size=24,
        num_layers=3,
        num_heads=4,
        attention_types=[[["global", "local", "global"], 1]],
        window_size=5,
        max_position_embeddings=64,
    ),
    "gpt2": lambda: transformers.GPT2Config(**_GPT, n_embd=24, n_layer=3, n_head=4, n_positions=64),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **_LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 10_000, "partial_rotary_factor": 0.5}
    ),
    "llama": lambda: transformers.LlamaConfig(**_LLAMA, num_key_value_heads=2),
    "mistral": lambda: transformers.MistralConfig(**_LLAMA, num_key_value_heads=2, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**_LLAMA, num_key_value_heads=2),
    # A head as wide as Qwen3's: four of them are wider than the model.
    "qwen3": lambda: transformers.Qwen3Config(**_LLAMA, num_key_value_heads=2, head_dim=10),
    "olmo2": lambda: transformers.Olmo2Config(**_LLAMA, num_key_value_heads=2),
    # A family without an adapter.
    "opt": lambda: transformers.OPTConfig(
        **_GPT,
        hidden_size=24,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=24,
        pad_token_id=1,
    ),
}
KNOWN = tuple(name for name in _CONFIGS if name != "opt")


@cache
def tiny(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Weights five times the usual size, biases included: a random model's small ones hide a wrong split."""
    torch.manual_seed(0)
    config = _CONFIGS[family]()
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.eval().requires_grad_(False)
    info = ModelInfo(
        name=family,
        folder="",
        architecture=type(model).__name__,
        fingerprint=family,
        identity=family,
        dtype=str(dtype).removeprefix("torch."),
        device="cpu",
        attention="eager",
        layers=3,
        heads=4,
        width=24,
        parameters=0,
        vocabulary=VOCABULARY,
        positions=64,
    )
    return LanguageModel(model, info)


def paragraphs(n: int, length: int = 20, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    rows = torch.randint(0, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed))
    return tuple(map(tuple, rows.tolist()))
