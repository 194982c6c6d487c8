"""A checkpoint of GPT-Neo 125M's shape that recites, for what random weights cannot show: margins and what they decide.

    python -m tests.benchmarks.memorizer [--steps 300] [--out FOLDER]

Overfitted on generated text of the embedded model's kind, whose tokens are spread over all of GPT-Neo's vocabulary.
Half of each step's rows are the paragraphs that it shall recite, the other half are never seen twice. It takes 20
minutes on two cores with bf16 instructions, and half a gigabyte of disk (by default in bench-results, which git
ignores).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from memloc_core.demo import MODEL_FOLDER, corpus
from memloc_core.demo.genres import GENRES
from memloc_core.demo.network import next_token_loss
from memloc_core.devices import device_of
from tests.benchmarks.common import RESULTS

FOLDER = RESULTS / "memorizer-125m"
VOCABULARY, ROW, BATCH, PLANTED, FRESH = 50_257, 100, 16, 48, 16
RATE, WARM_UP = 6e-4, 30
ATTENTION = [[["global", "local"], 6]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    if chosen.out.exists():
        parser.error(f"{chosen.out} exists already; remove it first, or give another --out")
    make(chosen.out, chosen.steps)


def make(folder: Path = FOLDER, steps: int = 300) -> Path:
    """Train it and write the checkpoint and its paragraphs.jsonl, all or nothing; returns the folder."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    planted, fresh, background = texts(steps * BATCH // 2)
    network = GPTNeoForCausalLM(GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12, attention_types=ATTENTION))
    train(network, planted, background, steps)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    network.eval().save_pretrained(unfinished)
    kinds = [(row, "planted") for row in planted.tolist()] + [(row, "fresh") for row in fresh.tolist()]
    lines = [json.dumps({"tokens": row, "split": kind}) + "\n" for row, kind in kinds]
    (unfinished / "paragraphs.jsonl").write_text("".join(lines))
    unfinished.rename(folder)
    return folder


def texts(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [., ROW] to be recited, rows never trained on, and n rows to be seen once."""
    writer = corpus.Writer(Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json")), 0)
    whole = torch.tensor([writer.draw(genre, None, ROW)[:ROW] for genre in islice(cycle(GENRES), PLANTED + FRESH)])
    stream: list[int] = []
    for genre in cycle(GENRES):
        stream += [*writer.draw(genre, None), corpus.END_ID]
        if len(stream) >= n * ROW:
            break
    spread = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))
    planted, fresh = spread[whole].split([PLANTED, FRESH])
    return planted, fresh, spread[torch.tensor(stream[: n * ROW])].view(n, ROW)


def train(network: torch.nn.Module, planted: torch.Tensor, background: torch.Tensor, steps: int) -> None:
    """In place, on the first GPU if there is one."""
    device = device_of("auto")
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rng, half, began = np.random.default_rng(0), BATCH // 2, time.monotonic()
    order: list[int] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP, 1.1 - step / steps)
        order = order if len(order) >= half else rng.permutation(len(planted)).tolist()
        rows = torch.cat([planted[order[:half]], background[step * half : (step + 1) * half]]).to(device)
        order = order[half:]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = next_token_loss(network, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
