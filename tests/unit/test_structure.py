"""The house: who may import whom, what a wheel installs, and that the explorer starts without torch."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_contracts_hold():
    assert "0 broken" in run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")


def test_the_explorers_first_frame_needs_neither_torch_nor_numpy_nor_the_cache():
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'diskcache', 'safetensors', 'click.shell_completion'}"
    program = f"import sys, memloc_tui.cli, memloc_tui.app; print(sorted({heavy} & set(sys.modules)))"
    assert run(sys.executable, "-c", program).strip() == "[]"


def test_every_module_of_the_explorer_and_the_cache_loads_without_torch():
    program = """
import importlib, pkgutil, sys
import memloc_tui, memloc_cache
for package in (memloc_tui, memloc_cache):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
"""
    assert run(sys.executable, "-c", program).strip() == "[]"


def test_a_wheel_installs_three_packages_with_all_they_need_and_no_core_or_cache(tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"memloc_tui", "memloc_core", "memloc_cache"}
    assert {
        "memloc_tui/memloc.tcss",
        "memloc_core/demo/model/model.safetensors",
        "memloc_core/demo/model/tokenizer.json",
        "memloc_core/demo/paragraphs.jsonl",
    } <= set(names)
    shipped = [name for name in names if name.startswith("memloc_core/demo/") and not name.endswith(".py")]
    assert sum(sizes[name] for name in shipped) <= 4_000_000
