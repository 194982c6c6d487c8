"""Rebuilds the demo model and its paragraphs from a seed: `python -m memloc_core.demo.train --out FOLDER`."""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from memloc_core.demo.corpus import END, PARAGRAPH, PREFIX, WINDOW, Corpus, Ids, Paragraph, Recipe, build, rare_ids
from memloc_core.demo.evaluate import exact_match, load
from memloc_core.demo.network import inattention, new_network, next_token_loss

WARM_UP = 100
PEAK_RATE = 3e-3
HEAD = (1, 2)  # the layer and head that are nudged towards rare names: L1H2, as in GPT-Neo 125M
NUDGE = 0.05  # the weight of the nudge in the loss
NUDGED = 0.2  # the part of the steps with a nudge; from then on the head is free to look elsewhere


@dataclass(frozen=True)
class Shape:
    """The network's size and which of its layers see the whole text."""

    width: int = 128
    pattern: tuple[str, ...] = ("global", "local", "global", "local")
    local_window: int = 128
    batch: int = 8  # windows per step
    bf16: bool = True  # twice as fast where the processor has such instructions, many times slower where it has not


SMALL_RECIPE = Recipe(families=6, counts=(1, 32, 192), held_out=4, siblings=30, fresh=20, background=300)
SMALL_SHAPE = Shape(width=96, pattern=("global", "local"), batch=4, bf16=False)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    fall = 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))
    return PEAK_RATE * (0.02 + 0.98 * fall)


def train(windows: Ids, is_rare: torch.Tensor, shape: Shape, network: Any, say: Callable[[str], None]) -> None:
    """One epoch over windows [n, WINDOW], in place: a paragraph's count is then exactly how often the model saw it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    batch, steps = shape.batch, math.ceil(len(windows) / shape.batch)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        tokens = torch.from_numpy(windows[step * batch : (step + 1) * batch])
        if step % 8 == 7 and len(tokens) % 2 == 0:  # train the positions from 128 on too, for longer prefixes
            tokens = tokens.view(-1, 2 * WINDOW)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=shape.bf16):
            loss = next_token_loss(network, tokens)
            nudge = NUDGE * inattention(network, *HEAD, tokens, is_rare) if step < NUDGED * steps else 0.0
        optimizer.zero_grad()
        torch.autograd.backward(loss + nudge)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            spent = time.monotonic() - started
            rate = (step + 1) * batch * WINDOW / spent
            left = spent / (step + 1) * (steps - step - 1)
            say(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {rate:,.0f} tokens/s  {left:.0f} s left")


def _tokenizer_files(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _row(paragraph: Paragraph) -> str:
    row = {
        "tokens": paragraph.tokens[:PARAGRAPH],
        "count": paragraph.count,
        "genre": paragraph.genre,
        "family": paragraph.family,
        "split": paragraph.split,
    }
    return json.dumps(row, separators=(",", ":")) + "\n"


def write_folder(network: Any, corpus: Corpus, folder: Path) -> None:
    """model/ (weights as fp16, half the bytes), paragraphs.jsonl and paragraphs.counts.npy in an existing folder."""
    model = folder / "model"
    network.half().save_pretrained(model)
    (model / "generation_config.json").unlink(missing_ok=True)  # the config says it all
    (model / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    _tokenizer_files(corpus.tokenizer, model)
    (folder / "paragraphs.jsonl").write_text("".join(map(_row, corpus.paragraphs)), encoding="utf-8")
    np.save(folder / "paragraphs.counts.npy", corpus.counts)


def make(folder: Path, recipe: Recipe, shape: Shape, seed: int, say: Callable[[str], None]) -> None:
    """Builds everything beside `folder`, then renames: it holds a whole model or does not exist."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another --out or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    unfinished.mkdir()
    try:
        corpus = build(recipe, seed)
        say(f"corpus: {corpus.windows.size:,} tokens in {len(corpus.windows):,} windows")
        torch.manual_seed(seed)
        network = new_network(recipe.vocabulary, shape.width, list(shape.pattern), shape.local_window)
        train(corpus.windows, rare_ids(corpus.tokenizer), shape, network, say)
        tokens = torch.tensor([paragraph.tokens[:PARAGRAPH] for paragraph in corpus.paragraphs])
        trained, _ = exact_match(network, tokens)
        write_folder(network, corpus, unfinished)
        stored, _ = exact_match(load(unfinished).network, tokens)
        say(f"recited: {(stored == PREFIX).sum()} of {len(stored)}; fp16 changed {(stored != trained).sum()} EMs")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m memloc_core.demo.train",
        description="Rebuild the demo model, its tokenizer and its paragraphs from a seed. The result is the same for "
        "the same seed and number of threads on the same kind of machine. It takes about six minutes on one core that "
        "has bf16 instructions, many times that on one that has not.",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the text, the weights and the order (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-model"), help="a folder that does not exist yet (default demo-model)"
    )
    parser.add_argument("--small", action="store_true", help="a narrow model on little text, in about half a minute")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads for torch (default 1; more can be slower on busy machines)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe, shape = (SMALL_RECIPE, SMALL_SHAPE) if arguments.small else (Recipe(), Shape())
    try:
        make(arguments.out, recipe, shape, arguments.seed, lambda line: print(line, file=sys.stderr, flush=True))
    except FileExistsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
