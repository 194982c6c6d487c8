"""`--begin-of-text` from the command line, on a small Llama whose tokenizer begins every text with <s>."""

from __future__ import annotations

import hashlib
import json
import struct
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from memloc_core.loading import load
from memloc_core.requests import ExactMatch, OpenModel, Sweep
from tests.conftest import result
from tests.e2e.conftest import succeeded

P, C, BEGIN = 20, 12, 1
LENGTHS = ("--prefix-length", str(P), "--continuation-length", str(C))
OPTIONS = ("--model", "llama", "--device", "cpu", *LENGTHS, "--begin-of-text")


@pytest.fixture(scope="module")
def texts():
    """Ids of forty texts; `place` lets the model recite every other one after <s>."""
    return np.random.default_rng(0).integers(3, 120, (40, P + C)).tolist()


@pytest.fixture(scope="module")
def place(texts, tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("begun")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": 120, "bos_token_id": BEGIN, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**shape, **ids, max_position_embeddings=64, initializer_range=0.3)).eval()
    model.save_pretrained(folder / "llama")
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, 120))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.add_special_tokens(words[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer.save(str(folder / "llama" / "tokenizer.json"))
    for ids in texts[::2]:
        for at in range(P, P + C):
            with torch.inference_mode():
                logits = model(torch.tensor([[BEGIN, *ids[:at]]])).logits[0, -1]
                ids[at] = 3 + int(logits[3:].argmax())  # no text holds <s>
    said = [" ".join(words[token] for token in ids) for ids in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": f"{a} {b}"}) + "\n" for a, b in pairwise(said)))
    return folder


@pytest.fixture(scope="module")
def llama(place):
    return load(OpenModel(str(place / "llama"), device="cpu"))


@pytest.fixture(scope="module")
def listed(memloc):
    return json.loads(succeeded(memloc("list", *OPTIONS, "--paragraphs", "rows.jsonl", "--json")))


def test_a_list_is_of_the_texts_after_the_token(listed, texts, llama, memloc):
    begun = tuple((BEGIN, *ids) for ids in texts)
    expected = result(llama, ExactMatch(begun, P + 1))
    assert [r["em"] for r in listed] == expected.em.tolist()
    assert (expected.em[::2] == C).sum() > 15
    assert [r["id"] for r in listed] == [
        hashlib.sha256(struct.pack(f"<{1 + P + C}q", *row)).hexdigest()[:10] for row in begun
    ]
    assert [r["text"] for r in listed] == ["".join(f"w{i}" for i in ids) for ids in texts]
    plain = memloc("list", *OPTIONS, "--no-begin-of-text", "--paragraphs", "rows.jsonl", "--json")
    assert [r["em"] for r in json.loads(plain.stdout)] == result(
        llama, ExactMatch(tuple(map(tuple, texts)), P)
    ).em.tolist()
    assert "--begin-of-text puts it before them" in " ".join(plain.stderr.split())


def test_the_token_is_one_more_position_of_every_sweep(listed, texts, llama, memloc):
    arguments = ("analyze", "sweep", *OPTIONS, "--paragraphs", "rows.jsonl", "--paragraph", listed[0]["id"], "--json")
    record = json.loads(succeeded(memloc(*arguments)))
    expected = result(llama, Sweep((BEGIN, *texts[0]), prefix_length=P + 1))
    assert len(record["drops"]) == P + 1
    assert record["em"] == expected.em.tolist()


def test_a_report_names_the_token_and_leaves_it_out_of_the_text(listed, texts, memloc):
    arguments = ("report", *OPTIONS, "--paragraphs", "rows.jsonl", "--paragraph", listed[0]["id"])
    said = succeeded(memloc(*arguments, "--format", "md"))
    assert f"40 paragraphs of {P + 1} + {C} tokens from rows.jsonl, the first of each the begin-of-text token" in said
    record = json.loads(succeeded(memloc(*arguments, "--format", "json")))["paragraphs"][0]
    assert record["tokens"] == [BEGIN, *texts[0]]
    assert record["text"] == "".join(f"w{i}" for i in texts[0])


def test_a_scanned_set_is_recited_as_the_scan_says_where_it_is_opened_with_the_option(memloc, place, llama):
    arguments = ("--model", "llama", "--device", "cpu", "--prefix-length", str(P), "--begin-of-text")
    shape = ("--window", str(P + C), "--stride", str(P + C), "--min-unique", "0")
    done = memloc("scan", "corpus.jsonl", "--out", "set.parquet", *arguments, *shape)
    assert done.returncode == 0, done.stderr
    assert f"Open it: memloc-tui --begin-of-text --paragraphs {place / 'set.parquet'}" in done.stdout
    rows = pq.read_table(place / "set.parquet").to_pylist()
    assert {len(row["tokens"]) for row in rows} == {P + C}
    listed = json.loads(succeeded(memloc("list", *OPTIONS, "--paragraphs", "set.parquet", "--json")))
    assert [r["em"] for r in listed] == [row["em"] for row in rows]
    expected = result(llama, ExactMatch(tuple((BEGIN, *row["tokens"]) for row in rows), P + 1))
    assert [row["em"] for row in rows] == expected.em.tolist()
    assert expected.em.max() == C


def test_unlearning_and_comparing_go_by_it(listed, memloc, texts):
    rows = ("--paragraphs", "rows.jsonl")
    one = ("--paragraph", next(r["id"] for r in listed if r["em"] == C))
    few = ("--keep", "6", "--steps", "3", "--goal", "steps", "--kl-weight", "1")
    done = memloc("unlearn", *OPTIONS, *rows, *one, *few, "--out", "gone.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    names = [name for key, value in _items(record) if key == "variants" for name in value]
    assert "prefix" in names
    assert "after begin-of-text" not in names
    both = json.loads(succeeded(memloc("compare", *OPTIONS, *rows, *one, "--with-edit", "gone.safetensors", "--json")))
    assert both["paragraphs"][0]["a"]["em"] == C
    assert len(both["paragraphs"][0]["b"]["drops"]) == P + 1


def _items(value):
    """Every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner)


def test_a_model_without_such_a_token_is_told(memloc, place):
    config = json.loads((place / "llama" / "config.json").read_text())
    bare = place / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps({**config, "bos_token_id": None}))
    (bare / "model.safetensors").write_bytes((place / "llama" / "model.safetensors").read_bytes())
    np.save(place / "ids.npy", np.zeros((3, P + C), int))
    done = memloc("list", "--model", "bare", "--device", "cpu", *LENGTHS, "--begin-of-text", "--paragraphs", "ids.npy")
    assert done.returncode == 2
    assert "bare has no begin-of-text token" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
