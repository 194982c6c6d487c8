"""Memory before loading: what the headers say, what is free, and that what cannot fit is refused unread."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from memloc_core import loading, memory
from memloc_core.errors import MemlocError
from memloc_core.loading import load
from memloc_core.memory import free_memory, weights_of, while_loading
from memloc_core.requests import OpenModel

GB = 1 << 30


def saved(folder, **options):
    """A random Llama of 10 million weights, an eighth of them in its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 5000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, bos_token_id=0, eos_token_id=0))
    (model.half() if options.pop("half", False) else model).save_pretrained(folder, **options)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    saved(folder, half=True)
    return folder


@pytest.mark.parametrize("kind", ["one file", "shards", "half", "bin", "half bin"])
def test_the_headers_say_how_many_weights_there_are(tmp_path, kind):
    model = saved(tmp_path, half="half" in kind, **({"max_shard_size": "10MB"} if kind == "shards" else {}))
    if "bin" in kind:
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    files = len(list(tmp_path.glob("*.safetensors")))
    assert files > 1 if kind == "shards" else files == ("bin" not in kind)
    numbers = sum(p.numel() for p in model.parameters())
    found = weights_of(tmp_path)
    assert found.numbers == pytest.approx(numbers, rel=0.01 if "bin" in kind else 0)
    if "bin" not in kind:
        assert found.largest == max(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_prediction_is_what_loading_takes(llama, dtype):
    """Measured in a process of its own: anonymous memory at its highest, less what it was before."""
    program = f"""
import threading, time, torch
from transformers.models.llama import modeling_llama
from memloc_core.loading import load
from memloc_core.requests import OpenModel
def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024
most, over = [held()], threading.Event()
def watch():
    while not over.is_set():
        most.append(held())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
load(OpenModel({str(llama)!r}, {dtype!r}, "cpu"))
over.set()
print(max(most) - most[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    taken = int(done.stdout)
    predicted = while_loading(weights_of(llama), 4 if dtype == "float32" else 2)
    # The libraries' own few MB come on top, and are no part of the prediction.
    assert 0.8 * predicted < taken < 1.2 * predicted + 20e6


@pytest.mark.parametrize("spoil", [b"", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0not json at all", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_damaged_file_is_the_loaders_to_name(tmp_path, spoil):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(spoil)
    assert weights_of(tmp_path) is None
    (tmp_path / "model.safetensors").unlink()
    for index in ("", "[]", '{"weight_map": {"a": "gone.safetensors"}}'):
        (tmp_path / "model.safetensors.index.json").write_text(index)
        assert weights_of(tmp_path) is None


def test_what_cannot_fit_is_refused_with_the_numbers_before_it_is_read(llama, monkeypatch):
    need = while_loading(weights_of(llama), 4)
    monkeypatch.setattr(memory, "free_memory", lambda: need // 2)
    monkeypatch.setattr(loading, "_from_pretrained", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(MemlocError) as caught:
        load(OpenModel(str(llama), device="cpu"))
    said = str(caught.value)
    for part in (f"{need / 1e9:.2f} GB", f"{need / 2e9:.2f} GB are free", "in float32", "--dtype bfloat16"):
        assert part in said
    assert f"{weights_of(llama).numbers:,} weights" in said


def test_what_fits_in_half_precision_loads_in_half_precision(llama, monkeypatch):
    weights = weights_of(llama)
    between = (while_loading(weights, 2) + while_loading(weights, 4)) // 2
    monkeypatch.setattr(memory, "free_memory", lambda: between)
    with pytest.raises(MemlocError, match="does not fit"):
        load(OpenModel(str(llama), device="cpu"))
    assert load(OpenModel(str(llama), "bfloat16", "cpu")).info.dtype == "bfloat16"


# ------------------------------------------------------------------------------------------------------ what is free


def machine(tmp_path, available, cgroup, files):
    """A /proc and a /sys/fs/cgroup as a machine with these limits shows them."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(str(text))
    return free_memory(proc, groups)


def test_free_memory_is_what_the_machine_has_without_a_limit(tmp_path):
    assert machine(tmp_path, 6 * GB, "0::/\n", {"memory.max": "max"}) == 6 * GB


@pytest.mark.parametrize("place", ["", "a/", "a/b/"])
def test_the_tightest_group_on_the_way_up_counts(tmp_path, place):
    limit = {"memory.max": 3 * GB, "memory.current": 2 * GB, "memory.stat": f"anon 5\ninactive_file {GB}\n"}
    files = {place + name: text for name, text in limit.items()}
    assert machine(tmp_path, 6 * GB, "0::/a/b\n", {"a/b/memory.max": "max"} | files) == 2 * GB


def test_version_one_groups_count_too(tmp_path):
    files = {
        "memory/x/memory.limit_in_bytes": 3 * GB,
        "memory/x/memory.usage_in_bytes": 2 * GB,
        "memory/x/memory.stat": "total_inactive_file 0\n",
    }
    assert machine(tmp_path, 6 * GB, "5:cpu:/x\n4:memory,hugetlb:/x\n", files) == GB


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path):
    files = {"memory.max": GB, "memory.current": 2 * GB, "memory.stat": "inactive_file 0\n"}
    assert machine(tmp_path, 6 * GB, "0::/\n", files) == 0


def test_where_nothing_says_how_much_is_free_a_careful_number_stands(tmp_path):
    assert free_memory(tmp_path, tmp_path) == 4 * GB


# --------------------------------------------------------------------------------------------------- tied and untied


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [False, True])
def test_tied_and_untied_heads_load_from_one_file_and_from_shards(tmp_path, tied, shards):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["tie_word_embeddings"] == tied
    lm = load(OpenModel(str(tmp_path), device="cpu"))
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        whole = lm.logits(lm.hidden(ids))
        torch.testing.assert_close(whole, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert weights_of(tmp_path).numbers == sum(p.numel() for p in model.parameters())
