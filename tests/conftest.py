"""What all tests share: folders of their own, the demo model once, and checkpoints made on the spot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Ignored where these tests run in the background of a script, and then by all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker for each core already; torch is not imported yet
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("memloc", deadline=None)  # another process may take the core for as long as it likes
settings.load_profile("memloc")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the person's own cache and state, and none starts threads that fight for the cores."""
    monkeypatch.setenv("MEMLOC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MEMLOC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def demo() -> Iterator[Any]:
    """The embedded model as the engine holds it."""
    import torch

    from memloc_core.loading import load
    from memloc_core.requests import OpenModel

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(OpenModel("demo", device="cpu"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def demo_paragraphs() -> Any:
    from memloc_core.paragraphs import open_paragraphs
    from memloc_core.requests import OpenParagraphs

    return open_paragraphs(OpenParagraphs("demo", "demo"))


@pytest.fixture(scope="session")
def scored_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that knows how every paragraph of the embedded model is recited: a copy saves a test the wait."""
    folder = tmp_path_factory.mktemp("scored")
    own = {"MEMLOC_CACHE_DIR": str(folder / "cache"), "MEMLOC_STATE_DIR": str(folder / "state"), "OMP_NUM_THREADS": "1"}
    command, nothing = [sys.executable, "-m", "memloc_tui", "list", "--json"], subprocess.DEVNULL
    subprocess.run(command, env=os.environ | own, check=True, timeout=300, stdin=nothing, stdout=nothing)
    return folder / "cache"


@pytest.fixture
def scored(scored_cache: Path, tmp_path: Path) -> None:
    """The test's own cache begins as a copy of that one."""
    shutil.copytree(scored_cache, tmp_path / "cache")


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a randomly initialised GPT-Neo of any shape; returns its folder."""

    def make(name: str = "tiny", **shape: Any) -> Path:
        import torch
        from transformers import GPTNeoConfig, GPTNeoForCausalLM

        defaults: dict[str, Any] = {
            "vocab_size": 120,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128,
            "window_size": 16,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("checkpoint") / name
        GPTNeoForCausalLM(GPTNeoConfig(**(defaults | shape))).save_pretrained(folder)
        return folder

    return make


def give_words(folder: Path) -> None:
    """A tokenizer of the words w0 .. w119 for a checkpoint of `make_checkpoint`'s size."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f" w{i}": i for i in range(120)}, " w0")).save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


def result(lm: Any, request: Any) -> Any:
    """The result of one analysis on a loaded model, all steps taken."""
    from memloc_core.engine import Engine

    engine = Engine()
    engine.lm = lm
    return engine.answer(request).result


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the paper's released paragraphs are not here")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MEMLOC_CONFIG"] = os.devnull  # not the person's own
