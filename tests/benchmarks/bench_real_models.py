"""Real models and sets: what the adapters add to a forward pass, and near-duplicates of 10,000 paragraphs."""

from __future__ import annotations

import statistics

import torch
import transformers

from memloc_core.near_duplicates import clusters
from tests.benchmarks.common import paired, ratio, report, seconds
from tests.unit.families import held
from tests.unit.test_near_duplicates import natural

SHAPE = {"vocab_size": 4000, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8}
MODERN = {**SHAPE, "intermediate_size": 688, "max_position_embeddings": 128, "pad_token_id": 0}
CONFIGS = {
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=4000,
        hidden_size=256,
        num_layers=6,
        num_heads=8,
        attention_types=[[["global", "local"], 3]],
        max_position_embeddings=128,
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=4000, n_embd=256, n_layer=6, n_head=8, n_positions=128),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**MODERN),
    "llama": lambda: transformers.LlamaConfig(**MODERN, num_key_value_heads=4),
    "qwen3": lambda: transformers.Qwen3Config(**MODERN, num_key_value_heads=4, head_dim=32),
    "olmo2": lambda: transformers.Olmo2Config(**MODERN, num_key_value_heads=4),
}
REPEATS = 15


def adapters(family: str) -> float:
    """The model as the engine holds it over the bare one: both to whole logits of eight rows of 100 tokens."""
    config = CONFIGS[family]()
    lm = held(family, config)
    bare = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    rows = torch.randint(0, 4000, (8, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        works = {"ours": lambda: lm.logits(lm.hidden(rows)), "bare": lambda: bare(input_ids=rows, use_cache=False)}
        paired(3, **works)
        return ratio(paired(REPEATS, **works), "ours", "bare")


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    figures = {f"{family}: as the engine holds it / bare": adapters(family) for family in CONFIGS}
    families = list(figures.values())
    figures |= {"mean of the families": statistics.mean(families), "largest of the families": max(families)}
    goals = {"mean of the families": ("<=", 1.03), "largest of the families": ("<=", 1.05)}
    for n in (1_000, 10_000):
        rows = natural(n)
        figures[f"near-duplicates of {n:,} paragraphs, s"] = seconds(lambda rows=rows: clusters(rows))
    goals["near-duplicates of 10,000 paragraphs, s"] = ("<=", 5.0)
    report("real_models", figures, goals)


if __name__ == "__main__":
    main()
