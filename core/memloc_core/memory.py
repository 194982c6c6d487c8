"""How much memory a checkpoint will take, read from its files' headers before anything is loaded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_FINITE = 6  # bytes per number that looking for NaN in one matrix takes


@dataclass(frozen=True)
class Weights:
    """What a checkpoint's files hold, by their headers."""

    numbers: int
    largest: int  # numbers in the largest tensor


def weights_of(folder: Path) -> Weights | None:
    """The weights that loading this folder will read; None where the files do not say (the loader says what is wrong).

    A pickle's size is read from the file's, at the precision that config.json gives.
    """
    try:
        if files := _files(folder, "model.safetensors"):
            sizes = [math.prod(entry["shape"]) for file in files for entry in _header(file).values()]
            return Weights(sum(sizes), max(sizes))
        if files := _files(folder, "pytorch_model.bin"):
            config = json.loads((folder / "config.json").read_bytes())
            half = str(config.get("dtype") or config.get("torch_dtype")) in ("float16", "bfloat16")
            numbers = sum(file.stat().st_size for file in files) // (2 if half else 4)
            return Weights(numbers, numbers // 4)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def row_bytes(shape: Any, length: int, size: int, *, backward: bool = False) -> int:
    """What one row of `length` tokens takes in a forward pass, or a forward and backward pass, by estimate.

    `shape`: has layers, heads, width and vocabulary; `size`: bytes per number. Counted per token: a block's inner
    activations (about 16 widths), and keys and values of every layer. What is kept for the backward pass is about 24
    widths and 3 attention patterns in every layer, and the logits of half the row three times over.
    """
    widths, patterns = (16 + 24 * shape.layers, 3 * shape.layers) if backward else (16 + 2 * shape.layers, 2)
    logits = 6 * length * shape.vocabulary if backward else 0
    return int(length * size * shape.width * widths + length * length * shape.heads * 4 * patterns + logits)


def while_loading(weights: Weights, size: int) -> int:
    """The most bytes that reading these weights at `size` bytes a number takes at once.

    All of them, and beside them the largest matrix while it is converted or looked through for NaN.
    """
    return weights.numbers * size + weights.largest * max(_FINITE, size)


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still get: Linux' MemAvailable, or less where a control group of ours is tighter.

    Elsewhere a careful 4 GiB.
    """
    free = 4 << 30
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return max(0, min([free, *_group_limits(proc, groups)]))


def _group_limits(proc: Path, groups: Path) -> list[int]:
    """What each of our control groups (version 2, or version 1's `memory`) has left; file pages can be given back."""
    left: list[int] = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return left
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, used, inactive = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, inactive = groups / "memory", "total_inactive_file"
            most, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            try:
                limit, taken = int((folder / most).read_text()), int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left.append(limit - taken + int(stat.get(inactive, 0)))
            except (OSError, ValueError):  # "max", the root group, or a container that shows only its own
                pass
            if folder == root:
                break
    return left


def _files(folder: Path, name: str) -> list[Path]:
    """The file of this name, or the shards that its index lists: in the order in which the loader looks for them."""
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    return [folder / shard for shard in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError(size)
        header: dict[str, Any] = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return header
