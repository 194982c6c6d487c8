"""Loading a model: what is read is what transformers would compute with, and what must not be read is refused."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from memloc_core import sources
from memloc_core.errors import MemlocError, UsageError
from memloc_core.loading import load, weight_fingerprint
from memloc_core.requests import Continue, ExactMatch, OpenModel, Sweep
from memloc_core.tokenizers import load_tokenizer
from tests.conftest import result
from tests.unit.test_exact_match import generated, leading_matches

IDS = torch.tensor([[(5 * i + 3) % 120 for i in range(40)], [(11 * i + 7) % 120 for i in range(40)]])


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return load(OpenModel(str(tiny_checkpoint), device="cpu"))


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may spoil."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def opened(folder, **options):
    return load(OpenModel(str(folder), **({"device": "cpu"} | options)))


def refused(folder, **options):
    """The one sentence or two that loading ends with."""
    with pytest.raises(MemlocError) as caught:
        opened(folder, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 800
    return said


def config_of(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def respoil(folder, change):
    """Apply `change` to the dictionary of the folder's tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


# ------------------------------------------------------------------------------------------------------- same numbers


def plain_logits(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    model.requires_grad_(False)  # Mamba's convolution takes another road for weights that want a gradient
    with torch.no_grad():
        return model(input_ids=IDS).logits


def logits(lm):
    with torch.inference_mode():
        return lm.logits(lm.hidden(IDS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_transformers_own_exactly(tiny_checkpoint, dtype):
    kind = getattr(torch, dtype)
    assert torch.equal(logits(opened(tiny_checkpoint, dtype=dtype)), plain_logits(tiny_checkpoint, kind).float())


def test_a_half_precision_file_loads_as_float32(copy):
    respoil(copy, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    config_of(copy, dtype="float16", torch_dtype="float16")
    lm = opened(copy)
    assert lm.info.dtype == "float32"
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert torch.equal(logits(lm), plain_logits(copy))


@pytest.mark.parametrize("kind", ["sharded", "bin", "old bin", "sharded bin"])
def test_other_files_of_the_same_weights_are_the_same_model(tiny, tiny_checkpoint, tmp_path, kind):
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    if kind == "sharded":
        tiny.model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    elif kind == "sharded bin":
        names = sorted(tensors)
        for number, part in enumerate((names[::2], names[1::2])):
            torch.save({name: tensors[name] for name in part}, tmp_path / f"part-{number}.bin")
        index = {name: f"part-{number % 2}.bin" for number, name in enumerate(names)}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    lm = opened(tmp_path)
    assert lm.info.fingerprint == tiny.info.fingerprint
    assert lm.info.identity == tiny.info.identity
    assert torch.equal(logits(lm), logits(tiny))


def test_one_changed_weight_is_another_model(tiny, copy):
    respoil(copy, lambda tensors: tensors["transformer.h.1.mlp.c_fc.weight"][3, 5].add_(2**-20))
    lm = opened(copy)
    assert lm.info.fingerprint != tiny.info.fingerprint
    assert lm.info.identity != tiny.info.identity


def test_a_setting_that_changes_what_the_weights_compute_is_another_identity(tiny, copy):
    config_of(copy, window_size=3)
    lm = opened(copy)
    assert not torch.equal(logits(lm), logits(tiny))
    assert lm.info.fingerprint == tiny.info.fingerprint
    assert lm.info.identity != tiny.info.identity


def test_precision_is_part_of_the_identity(tiny, tiny_checkpoint):
    assert opened(tiny_checkpoint, dtype="bfloat16").info.identity != tiny.info.identity


def test_weights_that_the_model_does_not_have_are_ignored(tiny, copy):
    respoil(copy, lambda tensors: tensors.update({"somebody.elses.weight": torch.ones(3)}))
    assert opened(copy).info.identity == tiny.info.identity


# ------------------------------------------------------------------------------------------------------ other families

SHAPE = {"vocab_size": 120, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MODERN = {**SHAPE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "gpt2": {**SHAPE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neo": {**SHAPE, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4}
    | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    "gpt_neox": {**MODERN, "max_position_embeddings": 64},
    "llama": {**MODERN, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "mistral": {**MODERN, "num_key_value_heads": 2, "sliding_window": 5},
    "cohere": {**MODERN, "num_key_value_heads": 4, "logit_scale": 0.25},
    "gemma2": {**MODERN, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
    | {"final_logit_softcapping": 0.01, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8},
    "granite": {**MODERN, "num_key_value_heads": 4, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "opt": {**SHAPE, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"word_embed_proj_dim": 16, "max_position_embeddings": 64},
    "bloom": {**SHAPE, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**SHAPE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": True},
    "mamba": {**SHAPE, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_causal_family_gives_its_own_logits_and_generates_exact_match(family, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    for parameter in model.parameters():  # larger than at the start of training, so that predictions differ
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    lm = opened(tmp_path)
    assert torch.equal(logits(lm), plain_logits(tmp_path))

    said = generated(lm, IDS[:, :20], 20)
    assert result(lm, Continue(tuple(IDS[0, :20].tolist()), 20)).tokens.tolist() == said[0].tolist()
    rows = torch.cat([IDS[:, :20], said], 1)
    rows[1, 30] = (rows[1, 30] + 1) % 120  # the second text leaves the model's after ten tokens
    scored = result(lm, ExactMatch(tuple(map(tuple, rows.tolist())), 20))
    assert scored.em.tolist() == [20, 10]

    swept = result(lm, Sweep(tuple(rows[0].tolist()), "given", 1, 0, (7, 8), 20))
    perturbed = rows[:1].repeat(20, 1)
    for position, token in enumerate(swept.replacements[:, 0]):
        perturbed[position, position] = int(token)
    own = generated(lm, perturbed[:, :20], 20).tolist()
    assert swept.em[:, 0].tolist() == [leading_matches(o, rows[0, 20:].tolist()) for o in own]


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    assert "looks ahead" in refused(tmp_path)


# ---------------------------------------------------------------------------------------------------- damaged folders


def spoil_missing(tensors):
    del tensors["transformer.h.0.mlp.c_fc.weight"]


def spoil_shape(tensors):
    tensors["transformer.wpe.weight"] = torch.zeros(4, 4)


def spoil_nan(tensors):
    tensors["transformer.ln_f.bias"][2] = torch.nan


def spoil_infinite(tensors):
    tensors["transformer.wte.weight"][2, 2] = -torch.inf


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_missing, r"h\.0\.mlp\.c_fc\.weight"),
        (spoil_shape, "wpe|size|shape|mismatch"),
        (spoil_nan, r"ln_f\.bias hold NaN"),
        (spoil_infinite, "wte.weight hold NaN or infinite"),
    ],
)
def test_spoiled_tensors_are_refused_by_name(copy, spoil, says):
    respoil(copy, spoil)
    said = refused(copy)
    assert re.search(says, said), said
    assert str(copy) in said


def test_a_truncated_weights_file_is_refused_at_every_length(copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert str(copy) in refused(copy)


def test_a_shard_that_is_gone_is_refused(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path, max_shard_size="20KB")
    next(tmp_path.glob("model-00002*")).unlink()
    refused(tmp_path)


def test_a_folder_without_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "holds no weights" in refused(copy)
    (copy / "training_args.bin").write_bytes(b"no weights")
    refused(copy)


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "[" * 100_000, '{"model_type": "unheard-of"}', "{}", '{"model_type": 5}', "\x00"]
)
def test_a_config_that_says_nothing(copy, config):
    (copy / "config.json").write_text(config)
    refused(copy)


def test_a_model_with_an_encoder_is_told_to_be_none(copy):
    config_of(copy, model_type="t5")
    refused(copy)


def test_a_model_that_asks_for_quantization_that_is_not_here(copy):
    config_of(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(copy)


class Burglar:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["new", "old", "raw"])
def test_a_bin_file_with_code_is_refused_and_not_run(copy, tmp_path, how):
    loot = tmp_path / "loot"
    tensors = load_file(copy / "model.safetensors") | {"lm_head.weight": Burglar(loot)}
    (copy / "model.safetensors").unlink()
    file = copy / "pytorch_model.bin"
    if how == "raw":
        file.write_bytes(pickle.dumps(tensors))
    else:
        torch.save(tensors, file, _use_new_zipfile_serialization=how == "new")
    assert "refused" in refused(copy)
    assert not loot.exists()


@pytest.mark.parametrize("model_type", ["gpt_neo", "burglary"])
def test_code_beside_the_weights_is_never_run(tiny, copy, tmp_path, model_type):
    loot = tmp_path / "loot"
    for name in ("modeling_burglar.py", "configuration_burglar.py", "tokenization_burglar.py"):
        (copy / name).write_text(f"open({str(loot)!r}, 'w')\n")
    auto_map = {
        "AutoConfig": "configuration_burglar.Config",
        "AutoModelForCausalLM": "modeling_burglar.Model",
        "AutoTokenizer": ["tokenization_burglar.Tokenizer", None],
    }
    config_of(copy, model_type=model_type, auto_map=auto_map)
    (copy / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map, "tokenizer_class": "Tokenizer"}))
    (copy / "vocab.json").write_text("{}")
    if model_type == "gpt_neo":
        assert opened(copy).info.fingerprint == tiny.info.fingerprint
    else:
        refused(copy)
    with contextlib.suppress(MemlocError):
        load_tokenizer(copy)
    assert not loot.exists()


# --------------------------------------------------------------------------------------------------------- which model


def test_a_name_in_the_hub_cache_is_resolved(tiny, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny-neo"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    lm = opened("somebody/tiny-neo")
    assert lm.info.identity == tiny.info.identity
    assert lm.info.name == "tiny-neo"


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HUB_CACHE": "a"}, "a"),
        ({"HF_HOME": "b"}, "b/hub"),
        ({"XDG_CACHE_HOME": "c"}, "c/huggingface/hub"),
        ({"HF_HOME": "b", "XDG_CACHE_HOME": "c"}, "b/hub"),
        ({}, ".cache/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_where_hugging_face_has_it(tmp_path, monkeypatch, variables, place):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("HOME", str(tmp_path))
    snapshot = tmp_path / place / "models--o--n" / "snapshots" / "r"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("r\n")
    assert sources.model_folder("o/n") == snapshot


@pytest.mark.parametrize("reference", [None, b"gone", b"\xff\xfe", b"", b"\0"])
def test_a_name_that_the_hub_cache_does_not_have(tmp_path, monkeypatch, reference):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    if reference is not None:
        (tmp_path / "models--o--n" / "refs").mkdir(parents=True)
        (tmp_path / "models--o--n" / "refs" / "main").write_bytes(reference)
    with pytest.raises(UsageError, match="o/n"):
        sources.model_folder("o/n")


@pytest.mark.parametrize(
    "model", ["no-such-folder", "~nobody-has-this-name", "x" * 5000, "a\0b", "../../etc", "\udcff"]
)
def test_no_such_model(tmp_path, monkeypatch, model):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError):
        sources.model_folder(model)


def test_a_file_or_another_folder_instead_of_a_checkpoint(copy, tmp_path):
    with pytest.raises(UsageError, match="is a file"):
        opened(copy / "model.safetensors")
    with pytest.raises(UsageError, match=r"no config\.json"):
        opened(tmp_path)


def test_a_fingerprint_is_of_all_that_a_checkpoint_stores():
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(3))
    before = weight_fingerprint(model)
    model.register_buffer("mask", torch.ones(3), persistent=False)
    assert weight_fingerprint(model) == before
    model.register_buffer("bias", torch.ones(3))
    stored = weight_fingerprint(model)
    assert stored != before
    model.bias[1] = 2
    assert weight_fingerprint(model) not in (stored, before)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "", "meta", "xpu:0", "-1"])
def test_no_such_device(tiny_checkpoint, device):
    with pytest.raises(UsageError, match="--device"):
        opened(tiny_checkpoint, device=device)


@pytest.mark.parametrize("dtype", ["float64", "fp16", "int8", "", "None"])
def test_no_such_dtype(tiny_checkpoint, dtype):
    with pytest.raises(UsageError, match="--dtype"):
        opened(tiny_checkpoint, dtype=dtype)


# ------------------------------------------------------------------------------------------------------------- states


def test_the_state_of_a_folder_changes_with_its_files_and_only_with_them(copy):
    before = sources.state(copy)
    assert sources.state(copy) == before
    os.utime(copy / "model.safetensors", ns=(1, 1))
    touched = sources.state(copy)
    (copy / "tokenizer.json").write_text("{}")
    added = sources.state(copy)
    (copy / "tokenizer.json").rename(copy / "other.json")
    assert len({before, touched, added, sources.state(copy)}) == 4


def test_the_state_of_a_paragraph_file_includes_its_counts(tmp_path):
    file = tmp_path / "rows.npy"
    np.save(file, np.zeros((1, 2), int))
    os.utime(file, ns=(5, 5))
    states = [sources.state(file)]
    np.save(tmp_path / "rows.counts.npy", np.zeros(3, int))
    states.append(sources.state(file))
    os.utime(tmp_path / "rows.counts.npy", ns=(5, 5))
    states.append(sources.state(file))
    np.save(file, np.zeros((2, 2), int))
    os.utime(file, ns=(5, 5))
    states.append(sources.state(file))
    assert len(set(states)) == 4
    (tmp_path / "unrelated.npy").write_bytes(b"x")
    assert sources.state(file) == states[-1]


def test_equal_files_in_another_folder_have_another_state(copy, tmp_path):
    twin = shutil.copytree(copy, tmp_path / "twin")
    assert sources.state(twin) != sources.state(copy)


def in_a_fresh_process(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_opening_a_model_and_asking_it_leaves_the_compiler_out():
    """Its import takes a second, and leaves a folder among the temporary files. torch's optimizers ask for it."""
    in_a_fresh_process(
        "import sys\n"
        "from memloc_core.engine import Engine\n"
        "from memloc_core.requests import ExactMatch, MeasureRemains, OpenModel, Unlearn\n"
        "engine, rows = Engine(), tuple(tuple(range(i, 100 + i)) for i in range(100, 107))\n"
        "engine.answer(OpenModel('demo'))\n"
        "engine.answer(ExactMatch(rows, 50))\n"
        "engine.answer(Unlearn(rows[:1], rows[1:3], goal='steps', steps=1, held_out=rows[3:5]))\n"
        "engine.answer(MeasureRemains(rows[:1], 50, (), rows[1:], shifts=(), extensions=(), relearn_steps=1))\n"
        "assert not {'torch._dynamo', 'torch.distributed.tensor'} & set(sys.modules)\n"
    )


def test_transformers_knows_the_same_models_though_it_looked_for_them_once():
    in_a_fresh_process(
        "from pathlib import Path\n"
        "import transformers\n"
        "from transformers.utils import import_utils\n"
        "from memloc_core.model_library import list_models_once\n"
        "define, create = import_utils.define_import_structure, import_utils.create_import_structure_from_path\n"
        "looked = []\n"
        "import_utils.create_import_structure_from_path = lambda path: looked.append(path) or create(path)\n"
        "list_models_once()\n"
        "assert looked == [], looked\n"
        "assert import_utils.define_import_structure is define\n"
        "own = import_utils.spread_import_structure(create(str(Path(transformers.__file__).parent / 'models')))\n"
        "import transformers.models\n"
        "assert set(dir(transformers.models)) >= {name.split('.')[0] for names in own.values() for name in names}\n"
        "assert transformers.models.gpt_neo.GPTNeoForCausalLM is transformers.GPTNeoForCausalLM\n"
    )


def test_who_needs_the_compiler_gets_the_real_one():
    """Within and after: what stood in for it is gone, and it compiles."""
    in_a_fresh_process(
        "import sys, torch\n"
        "from memloc_core.model_library import compiler_held_back\n"
        "there, disable = torch.distributed.is_available(), torch.compiler.disable\n"
        "with compiler_held_back():\n"
        "    import transformers.masking_utils as masking\n"
        "    assert torch.distributed.is_available() is False\n"
        "    assert torch._dynamo.config.suppress_errors is False\n"
        "    assert torch.distributed.is_available() is there\n"
        "assert torch.compiler.disable is disable\n"
        "with masking.TransformGetItemToIndex():\n"
        "    assert torch.arange(3)[torch.tensor(2)] == 2\n"
        "compiled = torch.compile(lambda x: x.sin() + 1, backend='eager')\n"
        "assert torch.equal(compiled(torch.ones(3)), torch.ones(3).sin() + 1)\n"
    )
