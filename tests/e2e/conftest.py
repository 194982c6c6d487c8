"""Commands in processes of their own, each module's with a folder of its own for work, cache and state."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest


class Memloc:
    """`memloc-tui` in a folder: call it with arguments for the finished process, `start` it for one that goes on."""

    def __init__(self, folder: Path, *always: str) -> None:
        """`always`: arguments that stand before all others."""
        own = {"MEMLOC_CACHE_DIR": "cache", "MEMLOC_STATE_DIR": "state", "HF_HUB_CACHE": "hub"}
        places = {name: str(folder / place) for name, place in own.items()}
        self.folder, self.command = folder, (sys.executable, "-m", "memloc_tui", *always)
        self.environment = {**os.environ, **places, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

    def start(self, *arguments: str, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options |= {"cwd": self.folder, "env": {**self.environment, **(env or {})}, "text": True}
        return subprocess.Popen((*self.command, *arguments), **options | more)

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, **options) as process:
            try:
                stdout, stderr = process.communicate(timeout=300)
            finally:
                process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module's folder; modules put into it what their commands need."""
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def memloc(place: Path) -> Memloc:
    return Memloc(place)


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Iterator[Any]:
    """The checkpoint as the engine holds it."""
    import torch

    from memloc_core.loading import load
    from memloc_core.requests import OpenModel

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(OpenModel(str(tiny_checkpoint), device="cpu"))
    torch.set_num_threads(threads)


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed; it had nothing else to say."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def wait_for(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 120.0
) -> None:
    """Until something is so; AssertionError if it never is, or if the process that should bring it about has ended."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came to be so"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)
