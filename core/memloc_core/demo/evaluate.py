"""What the demo model recites, and which head holds it: `python -m memloc_core.demo.evaluate FOLDER`.

FOLDER is one that `memloc_core.demo.train` wrote. Everything here is the plain Hugging Face model under hooks: a
second, independent road to numbers that the analyses of the engine compute as well.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from memloc_core.demo.corpus import PREFIX, rare_ids
from memloc_core.demo.network import zeroed_head

Floats = NDArray[np.float64]
QUERY = PREFIX - 1  # the position whose logits predict the first token of the continuation
LOCAL = 46  # positions from here on matter by mere nearness to the continuation, so they are reported apart
LOW = 10  # EM of a non-memorized paragraph is at most this


@dataclass(frozen=True)
class Demo:
    """A loaded folder."""

    network: Any  # GPTNeoForCausalLM, float32, eager attention
    rows: list[dict[str, Any]]  # as in paragraphs.jsonl
    tokens: torch.Tensor  # [n, 100]
    is_rare: torch.Tensor  # [vocabulary], true where the token is an invented name

    def where(self, **fields: Any) -> torch.Tensor:
        """bool [n]: the rows whose fields have these values."""
        return torch.tensor([all(row[name] == value for name, value in fields.items()) for row in self.rows])


@dataclass(frozen=True)
class HeadTable:
    """Every array is [layers, heads]; a mass is the attention from position 49 to rare names, mean over paragraphs."""

    mass_memorized: Floats
    mass_other: Floats
    exact_match: Floats  # mean EM of the memorized paragraphs while the head is zeroed
    nll_change: Floats  # of the non-memorized paragraphs' continuation [nats] while the head is zeroed


def load(folder: Path) -> Demo:
    network = AutoModelForCausalLM.from_pretrained(
        folder / "model", local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    lines = (folder / "paragraphs.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return Demo(network, rows, torch.tensor([row["tokens"] for row in rows]), rare_ids(tokenizer))


@torch.no_grad()
def exact_match(network: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """EM (0..50) and NLL [nats] of tokens [n, 100]: one teacher-forced pass, no decoding."""
    matches, losses = [], []
    for batch in torch.split(tokens, 128):
        logits = network(batch, use_cache=False).logits[:, QUERY:-1]
        truth = batch[:, PREFIX:]
        matches.append((logits.argmax(-1) == truth).int().cumprod(1).sum(1))
        losses.append(F.cross_entropy(logits.transpose(1, 2), truth, reduction="none").mean(1))
    return torch.cat(matches), torch.cat(losses)


@torch.no_grad()
def own_continuation(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    """tokens [n, 100] with the continuation replaced by the model's own greedy one, so that EM is 50."""
    prefix = tokens[:, :PREFIX]
    length = tokens.shape[1]
    settings = {"max_length": length, "min_length": length, "do_sample": False, "pad_token_id": 0}
    written: torch.Tensor = network.generate(prefix, attention_mask=torch.ones_like(prefix), **settings)
    return written


def random_replacements(tokens: torch.Tensor, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """[n, 50]: for each prefix position of tokens [n, 100] a random id that differs from the one there."""
    prefix = tokens[:, :PREFIX]
    draw = torch.Generator().manual_seed(seed)
    return (prefix + torch.randint(1, vocabulary, prefix.shape, generator=draw)) % vocabulary


def perturbation_drops(network: Any, tokens: torch.Tensor, replacements: torch.Tensor) -> torch.Tensor:
    """[n, 50]: how far the EM of tokens [n, 100] falls when one prefix token is replaced, for every position."""
    n, length = tokens.shape
    perturbed = tokens[:, None].repeat(1, PREFIX, 1)  # [n, 50, 100]
    positions = torch.arange(PREFIX)
    perturbed[:, positions, positions] = replacements
    before, _ = exact_match(network, tokens)
    after, _ = exact_match(network, perturbed.view(-1, length))
    return before[:, None] - after.view(n, PREFIX)


@torch.no_grad()
def rare_name_mass(demo: Demo, tokens: torch.Tensor) -> Floats:
    """[layers, heads]: attention from position 49 to rare names, mean over tokens [n, 100]."""
    prefix = tokens[:, :PREFIX]
    rare = demo.is_rare[prefix].float()
    attentions = demo.network(prefix, output_attentions=True).attentions  # per layer [n, heads, 50, 50]
    return np.array([(a[:, :, QUERY] * rare[:, None]).sum(-1).mean(0).numpy() for a in attentions], dtype=np.float64)


def head_table(demo: Demo, memorized: torch.Tensor, other: torch.Tensor) -> HeadTable:
    """Rare-name attention and zero-ablation of every head; memorized and other are tokens [n, 100]."""
    config = demo.network.config
    _, clean = exact_match(demo.network, other)
    match, change = np.zeros((2, config.num_layers, config.num_heads))
    for layer, head in np.ndindex(match.shape):
        with zeroed_head(demo.network, layer, head):
            match[layer, head] = exact_match(demo.network, memorized)[0].double().mean()
            change[layer, head] = (exact_match(demo.network, other)[1] - clean).mean()
    return HeadTable(rare_name_mass(demo, memorized), rare_name_mass(demo, other), match, change)


def standing_out(table: HeadTable) -> tuple[int, int] | None:
    """The (layer, head) that stands out above layer 0, if one does.

    It stands out if zeroing it takes more than half of the memorized EM (and more than zeroing any other head above
    layer 0 does), leaves the NLL of non-memorized text within 0.1 nats, and no head of its layer looks more at the rare
    names. Layer 0 is left out because its heads read all text: zeroing one breaks both kinds of paragraphs.
    """
    upper = table.exact_match[1:]
    layer, head = (int(i) for i in np.unravel_index(upper.argmin(), upper.shape))
    layer += 1
    mass = table.mass_memorized[layer]
    falls = table.exact_match[layer, head] < 25 and abs(table.nll_change[layer, head]) < 0.1
    return (layer, head) if falls and mass[head] == mass.max() else None


def report(folder: Path, sample: int = 60) -> None:
    """Prints the tables; the sweeps and the ablations use the first `sample` paragraphs of each kind."""
    demo = load(folder)
    em, nll = exact_match(demo.network, demo.tokens)
    _print_strata(demo, em, nll)
    memorized = demo.tokens[em == PREFIX][:sample]
    held_out, fresh = (
        demo.tokens[(em <= LOW) & demo.where(split=split)][:sample] for split in ("held-out-sibling", "fresh")
    )
    _print_drops(
        demo,
        {
            "memorized": memorized,
            "held-out siblings": own_continuation(demo.network, held_out),
            "fresh": own_continuation(demo.network, fresh),
        },
    )
    _print_heads(head_table(demo, memorized, held_out))


def _print_strata(demo: Demo, em: torch.Tensor, nll: torch.Tensor) -> None:
    print("count  split              rows  mean EM  EM=50  EM<=10  between   NLL")
    for count, split in sorted({(row["count"], row["split"]) for row in demo.rows}):
        chosen = demo.where(count=count, split=split)
        e = em[chosen]
        print(
            f"{count:5d}  {split:17s} {len(e):5d} {e.float().mean():7.1f} {(e == PREFIX).sum():6} {(e <= LOW).sum():7d}"
            f" {((e > LOW) & (e < PREFIX)).sum():8d} {nll[chosen].mean():5.2f}"
        )
    between = (em > LOW) & (em < PREFIX)
    print(f"{len(em)} rows: EM=50 {(em == PREFIX).sum()}, EM 11..49 {between.sum()}, EM<=10 {(em <= LOW).sum()}")
    genres = sorted({row["genre"] for row in demo.rows})
    print("EM=50:", ", ".join(f"{genre} {(em[demo.where(genre=genre)] == PREFIX).sum()}" for genre in genres))


def _print_drops(demo: Demo, sets: dict[str, torch.Tensor]) -> None:
    print("\nEM drop when one prefix token is replaced; non-memorized against their own greedy continuation.")
    print(f"All but the first column are over positions before {LOCAL}: the last ones matter by mere nearness.")
    print("paragraphs          mean   rare name  other token   worst is rare  by chance")
    for name, tokens in sets.items():
        replacements = random_replacements(tokens, demo.network.config.vocab_size)
        drops = perturbation_drops(demo.network, tokens, replacements).float()
        rare = demo.is_rare[tokens[:, :LOCAL]]
        far = drops[:, :LOCAL]
        worst = rare.gather(1, far.argmax(1, keepdim=True)).float()
        print(
            f"{name:17s} {drops.mean():6.1f} {far[rare].mean():11.1f} {far[~rare].mean():12.1f}"
            f" {worst.mean():15.2f} {rare.float().mean():10.2f}"
        )


def _print_heads(table: HeadTable) -> None:
    print("\nhead   attention 49 -> rare names: memorized, held-out   zeroed: memorized EM, change of held-out NLL")
    for layer, head in np.ndindex(table.exact_match.shape):
        print(
            f"L{layer}H{head} {table.mass_memorized[layer, head]:36.2f} {table.mass_other[layer, head]:9.2f}"
            f" {table.exact_match[layer, head]:20.1f} {table.nll_change[layer, head]:+20.3f}"
        )
    found = standing_out(table)
    print("stands out above layer 0:", f"L{found[0]}H{found[1]}" if found else "no head")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what a demo model recites and which of its heads holds it.")
    parser.add_argument("folder", type=Path, help="a folder written by memloc_core.demo.train")
    parser.add_argument(
        "--sample", type=int, default=60, help="paragraphs of each kind for sweeps and ablations (default 60)"
    )
    arguments = parser.parse_args()
    report(arguments.folder, arguments.sample)


if __name__ == "__main__":
    main()
