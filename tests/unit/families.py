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
    "olmo": lambda: transformers.OlmoConfig(**_LLAMA, num_key_value_heads=2),
    "olmo3": lambda: transformers.Olmo3Config(**_LLAMA, num_key_value_heads=2, sliding_window=5),
    "gemma": lambda: transformers.GemmaConfig(**_LLAMA, num_key_value_heads=2, head_dim=10),
    "gemma2": lambda: transformers.Gemma2Config(
        **_LLAMA, num_key_value_heads=2, head_dim=10, sliding_window=5, query_pre_attn_scalar=10
    ),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **_LLAMA, num_key_value_heads=2, head_dim=10, sliding_window=5, query_pre_attn_scalar=10
    ),
    "gemma3": lambda: transformers.Gemma3Config(  # sees as well, with as many layers
        text_config={**_LLAMA, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 5},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=1,
    ),
    "granite": lambda: transformers.GraniteConfig(
        **_LLAMA, num_key_value_heads=2, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5
    ),
    "cohere": lambda: transformers.CohereConfig(**_LLAMA, num_key_value_heads=2, logit_scale=0.25),
    "smollm3": lambda: transformers.SmolLM3Config(**_LLAMA, num_key_value_heads=2, no_rope_layer_interval=2),
    "starcoder2": lambda: transformers.Starcoder2Config(**_LLAMA, num_key_value_heads=2, sliding_window=5),
    "phi": lambda: transformers.PhiConfig(
        **_LLAMA,
        num_key_value_heads=2,
        qk_layernorm=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000, "partial_rotary_factor": 0.34},
    ),
    "gptj": lambda: transformers.GPTJConfig(**_GPT, n_embd=24, n_layer=3, n_head=4, n_positions=64, rotary_dim=4),
    # Families without an adapter.
    "opt": lambda: transformers.OPTConfig(
        **_GPT,
        hidden_size=24,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=12,
        pad_token_id=1,
    ),
    "falcon": lambda: transformers.FalconConfig(
        **_GPT, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, multi_query=True
    ),
    "mamba": lambda: transformers.MambaConfig(
        **_GPT, hidden_size=24, num_hidden_layers=3, state_size=4, pad_token_id=0
    ),
    # One attention block in two places, beside others.
    "zamba2": lambda: transformers.Zamba2Config(
        **_LLAMA,
        layers_block_type=["linear_attention", "hybrid", "hybrid"],
        mamba_d_state=8,
        n_mamba_heads=4,
        num_mem_blocks=1,
        adapter_rank=4,
        chunk_size=8,
    ),
    # Keys beyond 16 tokens are turned in another way.
    "longrope": lambda: transformers.Phi3Config(
        **_LLAMA,
        num_key_value_heads=2,
        original_max_position_embeddings=16,
        sliding_window=8,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 3,
            "long_factor": [2.0] * 3,
            "original_max_position_embeddings": 16,
        },
    ),
}
UNKNOWN = ("opt", "falcon", "mamba", "zamba2", "longrope")
ALL = tuple(name for name in _CONFIGS if name not in UNKNOWN)
# Those that differ in kind; the others differ from one of them in norms, windows and scales alone.
KNOWN = ("gpt_neo", "gpt2", "gpt_neox", "gptj", "phi", "llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2")


@cache
def tiny(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The tiny model of a family, made once."""
    return made(family, dtype)


def made(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The tiny model of a family."""
    return held(family, _CONFIGS[family](), dtype)


def held(family: str, config: Any, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Weights five times the usual size, biases included: a random model's small ones hide a wrong split."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.eval().requires_grad_(False)
    text = config.get_text_config()
    info = ModelInfo(
        name=family,
        folder="",
        architecture=type(model).__name__,
        fingerprint=family,
        identity=family,
        dtype=str(dtype).removeprefix("torch."),
        device="cpu",
        attention="eager",
        layers=text.num_hidden_layers,
        heads=getattr(text, "num_attention_heads", 0),
        width=text.hidden_size,
        parameters=0,
        vocabulary=VOCABULARY,
        positions=getattr(text, "max_position_embeddings", 0) or 64,
    )
    return LanguageModel(model, info)


def paragraphs(n: int, length: int = 20, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    rows = torch.randint(0, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed))
    return tuple(map(tuple, rows.tolist()))
