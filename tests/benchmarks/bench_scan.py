"""Scanning a corpus at GPT-Neo 125M's shape, against one whole teacher-forced pass over the same windows.

Random weights recite nothing, so the windows are made to leave the truth as those of an ordinary corpus do: the first
tokens of each continuation are the model's own greedy ones, as many as a geometric law says (each token is right with
probability 0.4), and one window of a hundred is the model's own to its end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memloc_core.demo import MODEL_FOLDER, PARAGRAPHS_FILE
from memloc_core.requests import Block
from memloc_core.scan.kernel import PIECES, exact_matches
from memloc_core.scan.windows import Reading, read_block, windows_of
from memloc_core.tokenizers import load_tokenizer
from tests.benchmarks.common import devices, paired, random_model, ratio, report

LAYERS, WIDTH, VOCABULARY, PREFIX, LENGTH = 12, 768, 50257, 50, 100
BATCH = {"cpu": 50, "cuda": 2048}
RIGHT = 0.4  # that a token of an ordinary text is the model's first choice
ROWS = {"cpu": 100, "cuda": 4096}  # windows, of which one in a hundred is memorized

GOALS = {
    "whole teacher-forced pass / scan": (">=", 1.5),
    "scan's rate / matmul's": (">=", 0.6),
    "tokenizing's rate / the model's": (">=", 3.0),
    "corpus and windows held, 10 x the corpus / 1 x": ("<=", 2.0),
    "one engine / two": (">=", 1.7),
}


def flops(layer_tokens: int, scored_tokens: int) -> float:
    return 2.0 * (layer_tokens * LAYERS * 12 * WIDTH**2 + scored_tokens * WIDTH * VOCABULARY)


def fed_after_the_prefix(em: int) -> int:
    """Tokens of the continuation that the kernel runs for a window of this exact match."""
    fed = 0
    for piece in (*PIECES, LENGTH):
        if em <= fed:
            break
        fed = min(fed + piece, LENGTH - PREFIX - 1)
    return fed


def corpus_like(lm: Any) -> tuple[torch.Tensor, list[int]]:
    """Windows [n, 100] and the exact match that each was made for."""
    n, generator = ROWS[lm.device.type], torch.Generator().manual_seed(0)
    rows = torch.randint(0, lm.info.vocabulary, (n, LENGTH), generator=generator)
    wanted = (np.random.default_rng(0).geometric(1 - RIGHT, n) - 1).tolist()
    with torch.inference_mode():
        own, _ = lm.greedy(rows[:, :PREFIX], max(wanted) + 1)
        whole, _ = lm.greedy(rows[7::100, :PREFIX], LENGTH - PREFIX)
    for row, length in enumerate(wanted):
        rows[row, PREFIX : PREFIX + length] = own[row, :length]
        rows[row, PREFIX + length] = (own[row, length] + 1) % lm.info.vocabulary
    rows[7::100, PREFIX:] = whole
    wanted[7::100] = [LENGTH - PREFIX] * len(whole)
    return rows, wanted


def kernel_figures(lm: Any) -> dict[str, Any]:
    rows, wanted = corpus_like(lm)
    device, n, batch = lm.info.device, len(rows), BATCH[lm.device.type]
    found: dict[str, Any] = {}
    later = sum(map(fed_after_the_prefix, wanted))
    fed, scored = n * PREFIX + later, n + later
    batches = [slice(i, i + batch) for i in range(0, n, batch)]

    def scan() -> None:
        found["scan"] = torch.cat([exact_matches(lm, rows[b], PREFIX) for b in batches])

    def whole() -> None:
        found["whole"] = torch.cat(
            [lm.score(rows[b], PREFIX).exact_match(rows[b, PREFIX:].to(lm.device)) for b in batches]
        )

    shapes = ((WIDTH, WIDTH, 4), (WIDTH, 4 * WIDTH, 1), (4 * WIDTH, WIDTH, 1))
    sizes = [(a, b) for a, b, _ in shapes] + [(WIDTH, VOCABULARY)]
    weights = {(a, b): torch.randn(b, a, device=device) for a, b in sizes}
    inputs = {a: torch.randn(batch * PREFIX, a, device=device) for a in (WIDTH, 4 * WIDTH)}

    def matmuls() -> None:
        """The multiplications of the prefixes alone, of the same shapes, and nothing else."""
        for _ in batches:
            for a, b, times in shapes:
                for _ in range(LAYERS * times):
                    torch.nn.functional.linear(inputs[a], weights[a, b])
            torch.nn.functional.linear(inputs[WIDTH][:batch], weights[WIDTH, VOCABULARY])

    with torch.inference_mode():
        matmuls()
        taken = paired(3, device, scan=scan, whole=whole, matmul=matmuls)
    same = [a == b == c for a, b, c in zip(*(x.tolist() for x in found.values()), wanted, strict=True)]
    assert device != "cpu" or all(same), "the exact matches differ"  # a GPU rounds by the number of rows
    rate = flops(fed, scored) / flops(n * PREFIX, n)
    return {
        "windows": n,
        "tokens fed per window": fed / n,
        "same exact matches both ways, and as made, share": sum(same) / n,
        "scan, windows per second": n / min(taken["scan"]),
        "whole pass, windows per second": n / min(taken["whole"]),
        "whole teacher-forced pass / scan": ratio(taken, "whole", "scan"),
        "scan, GFLOP/s": flops(fed, scored) / min(taken["scan"]) / 1e9,
        "scan's rate / matmul's": ratio(taken, "matmul", "scan") * rate,
        "scan, tokens per second": n * PREFIX / min(taken["scan"]),
    }


def reading_figures(folder: Path) -> dict[str, float]:
    """Tokens per second of one core from a file of text to windows: of all that share it, the model needs the rest."""
    text = " ".join(load_tokenizer(MODEL_FOLDER).decode(json.loads(line)["tokens"]) for line in PARAGRAPHS_FILE.open())
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text[i : i + 4000]}) + "\n" for i in range(0, 200_000, 100)))
    documents = len(file.read_text().splitlines())
    reading = Reading(load_tokenizer(MODEL_FOLDER).get_vocab_size())
    began = time.process_time()  # of all threads
    for some in read_block(Block(str(file), "text", 0, documents, 0, "demo"), reading):
        windows_of(some, 0, 100, 50, 0.5)
    return {"reading and tokenizing, tokens per second of a core": reading.tokens / (time.process_time() - began)}


def memory_figures(folder: Path) -> dict[str, float]:
    """What an engine holds while it scans a corpus, and one ten times as long, in one block each.

    It may hold the windows that are scored together and those that are read meanwhile, which the shorter corpus does
    not fill yet. One that held its corpus would hold ten times as much of the longer one.
    """
    program = """
import resource, sys, tracemalloc
from memloc_core import loading
from memloc_core.analyses import scanning
from memloc_core.requests import Block, OpenModel, ScanBlock
lm = loading.load(OpenModel("demo", device="cpu"))
tracemalloc.start()  # Python's and numpy's: the corpus and its windows, not what the model works with
block = Block(sys.argv[1], "tokens", 0, int(sys.argv[2]), 0, "demo")
for _ in scanning.run(lm, ScanBlock(block, keep=(100, 100, 100))):
    pass
print(tracemalloc.get_traced_memory()[1], 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    rows = [json.loads(line)["tokens"] for line in PARAGRAPHS_FILE.open()]
    held, peaks = {}, {}
    for times in (5, 50):
        file = folder / f"{times}.jsonl"
        file.write_text("".join(json.dumps({"tokens": row * 5}) + "\n" for row in rows for _ in range(times // 5)))
        documents = len(rows) * (times // 5)
        done = subprocess.run(
            [sys.executable, "-c", program, str(file), str(documents)], capture_output=True, text=True, check=True
        )
        held[times], peaks[times] = map(int, done.stdout.split())
    return {
        "peak MB of an engine": peaks[50] / 2**20,
        "of it corpus and windows, MB": held[50] / 2**20,
        "corpus and windows held, 10 x the corpus / 1 x": held[50] / held[5],
    }


def worker_figures(folder: Path) -> dict[str, float]:
    """One engine of one thread that scans two blocks, one after the other, against two engines with a block each."""
    program = """
import sys, time
from memloc_core import loading
from memloc_core.analyses import scanning
from memloc_core.requests import Block, OpenModel, ScanBlock
lm = loading.load(OpenModel("demo", device="cpu"))
print("ready", flush=True)
sys.stdin.readline()
for number in sys.argv[2:]:
    for _ in scanning.run(lm, ScanBlock(Block(sys.argv[1], "", 250 * int(number), 250, 0, "demo"), threads=1)):
        pass
print("done", flush=True)
"""
    rows = [json.loads(line)["tokens"] * 3 for line in PARAGRAPHS_FILE.open()]
    np.save(folder / "rows.npy", np.array(rows[:500]))

    def scanned(*blocks: tuple[str, ...]) -> float:
        """Seconds from the moment when all engines have their model until all have scanned theirs."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = (sys.executable, "-c", program, str(folder / "rows.npy"))
        processes = [subprocess.Popen((*command, *own), **pipes) for own in blocks]
        for process in processes:
            process.stdout.readline()  # type: ignore[union-attr]
        began = time.perf_counter()
        for process in processes:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        for process in processes:
            process.stdout.readline()  # type: ignore[union-attr]
        took = time.perf_counter() - began
        for process in processes:
            process.communicate()
        return took

    return {"one engine / two": statistics.median(scanned(("0", "1")) / scanned(("0",), ("1",)) for _ in range(3))}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        reading = reading_figures(Path(folder))
        for device in devices():
            figures = kernel_figures(random_model(device=device)) | reading
            if device == "cpu":
                figures |= memory_figures(Path(folder)) | worker_figures(Path(folder))
            figures["tokenizing's rate / the model's"] = (
                figures["reading and tokenizing, tokens per second of a core"] / figures["scan, tokens per second"]
            )
            report(f"scan at 125M, fp32, {device}", figures, GOALS if device == "cpu" else {})


if __name__ == "__main__":
    main()
