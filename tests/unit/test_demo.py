"""The demo model: the text written for it, the script that trains it, and the files that ship."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import memloc_core.demo as demo_package
from memloc_core.demo import MODEL_FOLDER, PARAGRAPHS_FILE
from memloc_core.demo.corpus import END_ID, LAST_NAME, PARAGRAPH, PREFIX, Corpus, Recipe, build, rare_ids
from memloc_core.demo.evaluate import (
    Demo,
    exact_match,
    head_table,
    load,
    perturbation_drops,
    random_replacements,
    standing_out,
)
from memloc_core.demo.genres import GENRES
from memloc_core.demo.network import inattention, new_network, next_token_loss, zeroed_head
from memloc_core.demo.text import write
from memloc_core.demo.train import SMALL_RECIPE
from memloc_core.demo.words import ORDINARY, RARE

TINY = Recipe(families=10, counts=(1, 5), held_out=2, siblings=3, fresh=10, background=60)
SHIPPED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # One thread: two that wait for each other on busy cores are many times slower.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env)


def greedy(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[n, 50]: the continuation that `generate` writes, with the end-of-text token treated like any other."""
    network.generation_config.eos_token_id = None
    prefix = tokens[:, :PREFIX]
    full: torch.Tensor = network.generate(
        prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=PREFIX, do_sample=False, pad_token_id=0
    )
    return full[:, PREFIX:]


def leading_matches(written: list[int], truth: list[int]) -> int:
    """EM by its definition: tokens equal until the first mismatch."""
    for i, (ours, theirs) in enumerate(zip(written, truth, strict=True)):
        if ours != theirs:
            return i
    return len(truth)


# -- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("genre", GENRES, ids=lambda genre: genre.name)
def test_articles_agree_and_no_slot_is_left_open(genre: Any) -> None:
    for i in range(200):
        text = write(genre, str(i), str(i)).text
        assert not re.search(r"(?<!<)\b[Aa] [aeiouAEIO]", text), text
        assert not re.search(r"\b[Aa]n [^aeiouAEIO]", text), text
        assert not re.search(r"\{\w+\}|\{[aA] \w+\}", text), text


def test_words_of_a_slot_and_rare_names_are_unique() -> None:
    for words in (*ORDINARY.values(), *RARE.values()):
        assert len(set(words)) == len(words)
    names = [name for words in RARE.values() for name in words]
    assert len(set(names)) == len(names) >= 400
    assert not set(names) & {word for words in ORDINARY.values() for word in words}


def test_siblings_share_the_opening_but_for_their_rare_names() -> None:
    names = {name for words in RARE.values() for name in words}
    for genre in GENRES:
        one, other = (re.findall(r"\w+|\W", write(genre, "frame", fill).opening) for fill in ("1", "2"))
        differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        assert 1 <= len(differing) <= 5
        assert {word for pair in differing for word in pair} <= names


def test_a_document_depends_only_on_its_keys() -> None:
    assert write(GENRES[0], "a", "b") == write(GENRES[0], "a", "b")
    assert write(GENRES[0], "a", "b") != write(GENRES[0], "a", "c")


# -- the corpus -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build(TINY, seed=3)


def test_every_paragraph_is_in_the_windows_as_often_as_its_count_says(corpus: Corpus) -> None:
    windows = [" ".join(map(str, window)) + " " for window in corpus.windows.tolist()]
    for paragraph in corpus.paragraphs:
        wanted = " ".join(map(str, paragraph.tokens)) + " "
        assert sum(wanted in window for window in windows) == paragraph.count
        assert (paragraph.count == 0) == (paragraph.split != "planted")
    assert {p.split for p in corpus.paragraphs} == {"planted", "held-out-sibling", "fresh"}


def test_the_prefixes_of_a_family_differ_in_two_to_five_rare_names_and_in_nothing_else(corpus: Corpus) -> None:
    is_rare = rare_ids(corpus.tokenizer).numpy()
    for family in range(TINY.families):
        prefixes = np.array([p.tokens[:PREFIX] for p in corpus.paragraphs if p.family == family])
        assert (np.unique(prefixes, axis=0).shape) == prefixes.shape
        varying = (prefixes != prefixes[0]).any(axis=0)
        assert 2 <= varying.sum() <= 5
        assert is_rare[prefixes[:, varying]].all()
        assert np.flatnonzero(varying).max() <= LAST_NAME


def test_the_corpus_is_the_same_in_another_process(corpus: Corpus) -> None:
    script = (
        "import hashlib; from memloc_core.demo.corpus import Recipe, build;"
        f"c = build({TINY!r}, 3);"
        "print(hashlib.sha256(c.windows.tobytes() + c.counts.tobytes() + c.tokenizer.to_str().encode()).hexdigest())"
    )
    ours = hashlib.sha256(corpus.windows.tobytes() + corpus.counts.tobytes() + corpus.tokenizer.to_str().encode())
    assert run_python("-c", script).stdout.strip() == ours.hexdigest()


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return new_network(300, 32, ["global", "local", "global", "local"], window=24).eval()


def test_the_training_loss_equals_that_of_transformers(network: Any) -> None:
    tokens = torch.randint(0, 300, (3, 60))
    torch.testing.assert_close(next_token_loss(network, tokens), network(tokens, labels=tokens).loss, atol=1e-6, rtol=0)


@torch.no_grad()
def test_inattention_equals_a_loop_over_the_attentions_of_transformers() -> None:
    torch.manual_seed(0)
    network = new_network(300, 32, ["global", "global"], window=24).eval()
    network.set_attn_implementation("eager")
    tokens = torch.randint(1, 300, (3, 40))
    tokens[0, 17] = tokens[2, 30] = END_ID
    wanted = torch.zeros(300, dtype=torch.bool)
    wanted[tokens[:, [3, 20, 21]]] = True
    attention = network(tokens, output_attentions=True).attentions[1][:, 2]
    losses = []
    for text, rows in zip(tokens.tolist(), attention, strict=True):
        for query in range(40):
            start = max((i + 1 for i in range(query) if text[i] == END_ID), default=0)
            looked = [rows[query, i] for i in range(start, query + 1) if wanted[text[i]]]
            if looked and text[query] != END_ID:
                losses.append(-sum(looked).log())
    measured = inattention(network, 1, 2, tokens, wanted)
    assert len(losses) > 60
    torch.testing.assert_close(measured, torch.stack(losses).mean(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_zeroed_head_adds_nothing_and_comes_back(network: Any) -> None:
    tokens = torch.randint(0, 300, (3, 60))
    before = network(tokens).logits
    with zeroed_head(network, 1, 3):
        zeroed = network(tokens).logits
    torch.testing.assert_close(network(tokens).logits, before, atol=0, rtol=0)
    dim = network.config.hidden_size // network.config.num_heads
    network.transformer.h[1].attn.attention.out_proj.weight[:, 3 * dim : 4 * dim] = 0
    torch.testing.assert_close(network(tokens).logits, zeroed, atol=1e-6, rtol=0)


# -- the training script, with --small --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "small"
    done = run_python("-m", "memloc_core.demo.train", "--small", "--seed", "1", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    assert re.search(r"step 100/\d+ .* tokens/s .* s left", done.stderr)
    changed = re.search(r"fp16 changed (\d+) EMs", done.stderr)
    assert changed
    assert int(changed[1]) <= 1
    assert [path.name for path in folder.parent.iterdir()] == ["small"], "nothing unfinished is left beside it"
    return folder


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Demo:
    return load(small_folder)


def test_the_small_model_recites_what_it_saw_often_and_not_what_was_held_out(small: Demo) -> None:
    written = greedy(small.network, small.tokens).tolist()
    match = [leading_matches(w, t) for w, t in zip(written, small.tokens[:, PREFIX:].tolist(), strict=True)]
    often = [m for m, row in zip(match, small.rows, strict=True) if row["count"] == max(SMALL_RECIPE.counts)]
    unseen = [m for m, row in zip(match, small.rows, strict=True) if row["count"] == 0]
    assert often.count(PREFIX) >= 3
    assert sum(unseen) / len(unseen) < 5


def test_exact_match_by_one_pass_equals_generate(small: Demo) -> None:
    written = greedy(small.network, small.tokens).tolist()
    match = [leading_matches(w, t) for w, t in zip(written, small.tokens[:, PREFIX:].tolist(), strict=True)]
    assert exact_match(small.network, small.tokens)[0].tolist() == match


def test_a_perturbation_drop_equals_generating_after_an_edit_by_hand(small: Demo) -> None:
    row = small.tokens[small.where(count=max(SMALL_RECIPE.counts))][:1]
    replacements = random_replacements(row, small.network.config.vocab_size)
    assert (replacements != row[:, :PREFIX]).all()
    drops = perturbation_drops(small.network, row, replacements)
    before = leading_matches(greedy(small.network, row)[0].tolist(), row[0, PREFIX:].tolist())
    for position in (0, 20, 49):
        edited = row.clone()
        edited[0, position] = replacements[0, position]
        after = leading_matches(greedy(small.network, edited)[0].tolist(), row[0, PREFIX:].tolist())
        assert drops[0, position] == before - after


def test_an_existing_folder_is_refused_and_kept(small_folder: Path) -> None:
    before = (small_folder / "paragraphs.jsonl").read_bytes()
    done = run_python("-m", "memloc_core.demo.train", "--small", "--out", str(small_folder))
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (small_folder / "paragraphs.jsonl").read_bytes() == before


# -- what ships -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Demo:
    return load(MODEL_FOLDER.parent)


def test_the_package_itself_is_light() -> None:
    script = "import sys, memloc_core.demo; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    assert run_python("-c", script).stdout.strip() == "[]"


def test_the_shipped_files_are_complete_and_small() -> None:
    assert {path.name for path in MODEL_FOLDER.iterdir()} == set(SHIPPED_FILES)
    counts = PARAGRAPHS_FILE.with_suffix(".counts.npy")
    files = [*MODEL_FOLDER.iterdir(), PARAGRAPHS_FILE, counts]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    network = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, local_files_only=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER, local_files_only=True)
    table = np.load(counts, allow_pickle=False)
    assert table.shape == (network.config.vocab_size,) == (len(tokenizer),)
    assert table.dtype == np.int64
    rows = [json.loads(line) for line in PARAGRAPHS_FILE.read_text(encoding="utf-8").splitlines()]
    assert all(len(row["tokens"]) == PARAGRAPH and max(row["tokens"]) < len(tokenizer) for row in rows)
    assert all(set(row) == {"tokens", "count", "genre", "family", "split"} for row in rows)


def test_ids_survive_a_round_trip_through_the_text(shipped: Demo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER, local_files_only=True)
    for ids in shipped.tokens[:100].tolist():
        assert tokenizer(tokenizer.decode(ids))["input_ids"][:PREFIX] == ids[:PREFIX]


def test_the_shipped_model_has_memorized_partly_memorized_and_other_paragraphs(shipped: Demo) -> None:
    match, _ = exact_match(shipped.network, shipped.tokens)
    assert (match == PREFIX).sum() >= 140
    assert (match <= 10).sum() >= 300
    assert ((match > 10) & (match < PREFIX)).sum() >= 25
    unseen = shipped.where(count=0)
    assert (match[unseen] < PREFIX).all()


def test_l1h2_of_the_shipped_model_stands_out(shipped: Demo) -> None:
    match, _ = exact_match(shipped.network, shipped.tokens)
    other = shipped.where(split="held-out-sibling") & (match <= 10)
    table = head_table(shipped, shipped.tokens[match == PREFIX][:40], shipped.tokens[other][:40])
    assert standing_out(table) == (1, 2)


def test_the_docstring_gives_the_numbers_of_the_shipped_model(shipped: Demo) -> None:
    match, _ = exact_match(shipped.network, shipped.tokens)
    found = re.search(r"recites (\d+) of its (\d+)\s+paragraphs", demo_package.__doc__ or "")
    assert found
    assert int(found[2]) == len(match)
    assert abs(int(found[1]) - int((match == PREFIX).sum())) <= 2, "a narrow margin may fall either way elsewhere"
