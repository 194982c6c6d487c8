"""Token bytes: joined, they are the text that the tokenizer itself decodes to."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from memloc_core.errors import MemlocError
from memloc_core.sources import model_folder
from memloc_core.tokenizers import load_tokenizer, read_vocabulary, token_bytes
from tests.conftest import SHARED, needs_shared

TEXTS = [
    "",
    " a",
    "Hello,  world\n\tnaïve 漢字 🙂 \x00\x1b",
    "  two  spaces ",
    "a\r\nb\u202e\u00ad\u0301",
    "1234 ▁ <0x41> Ġ",
]
MANY = settings(max_examples=40, suppress_health_check=list(HealthCheck))


def joined(vocabulary, ids):
    return b"".join(vocabulary.piece(i) for i in ids).decode("utf-8", "replace")


def write_config(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = write_config(tmp_path_factory.mktemp("gpt2"), vocab_size=50257, bos_token_id=50256)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(SHARED / "gpt2-tokenizer" / name, folder)
    return folder


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A tokenizer as Llama's: U+2581 for spaces, <0xNN> for bytes that no token holds."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁▁", "▁the", "the", "▁caf", "é", *"abcdefghijklmnopqrstuvwxyz"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    folder = write_config(tmp_path_factory.mktemp("sentencepiece"), vocab_size=len(words), bos_token_id=1)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def check(folder, texts):
    tokenizer, vocabulary = load_tokenizer(folder), read_vocabulary(folder)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert joined(vocabulary, ids) == tokenizer.decode(ids, skip_special_tokens=False), text
        assert vocabulary.text(ids) == joined(vocabulary, ids)


def test_the_embedded_tokenizers_bytes_are_what_it_decodes_to():
    check(model_folder("demo"), ["It is ordered that", "\nA claim  of 20 contracts.", " Ingova"])


@needs_shared
def test_gpt2s_bytes_are_what_it_decodes_to(gpt2):
    check(gpt2, TEXTS)
    tokenizer, vocabulary = load_tokenizer(gpt2), read_vocabulary(gpt2)
    assert vocabulary.piece(318) == b" is"
    assert vocabulary.piece(198) == b"\n"
    assert vocabulary.piece(50256) == b"<|endoftext|>"
    assert vocabulary.bos == 50256

    @MANY
    @given(st.text())
    def any_text(text):
        assert joined(vocabulary, tokenizer.encode(text, add_special_tokens=False).ids) == text

    any_text()


@needs_shared
def test_any_ids_of_gpt2_also_those_that_are_no_utf_8(gpt2):
    tokenizer, vocabulary = load_tokenizer(gpt2), read_vocabulary(gpt2)

    @MANY
    @given(st.lists(st.integers(0, 50256), max_size=12))
    def any_ids(ids):
        assert joined(vocabulary, ids) == tokenizer.decode(ids, skip_special_tokens=False)

    any_ids()


def test_sentencepieces_bytes_are_what_it_decodes_to(sentencepiece):
    check(sentencepiece, ["the café", "  the the", "naïve 漢字 🙂", "a"])
    vocabulary = read_vocabulary(sentencepiece)
    assert vocabulary.piece(3 + 0xE6) == b"\xe6"
    assert vocabulary.piece(3 + 256 + 2) == b" the"
    assert vocabulary.piece(1) == b"<s>"


def test_a_byte_level_token_with_a_character_of_no_byte_stands_for_itself(tmp_path):
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.BPE({"Ġa": 0, "Ġ漢": 1, "漢Ġb": 2}, []))
    tokenizer.decoder = decoders.ByteLevel()
    pieces = token_bytes(tokenizer)
    assert [piece.decode() for piece in pieces] == [tokenizer.decode([i]) for i in range(3)]


def test_an_added_token_stands_for_its_own_text():
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.BPE({"Ġa": 0}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|café|>"])
    assert token_bytes(tokenizer) == [b" a", "<|café|>".encode()]


def test_ids_with_gaps_between_them_keep_their_places():
    from tokenizers import Tokenizer, models

    assert token_bytes(Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))) == [b"a", *[b""] * 6, b"b"]


def test_a_vocabulary_larger_than_the_tokenizer_has_tokens_without_bytes(sentencepiece, tmp_path):
    shutil.copy(sentencepiece / "tokenizer.json", tmp_path)
    small = read_vocabulary(sentencepiece)
    large = read_vocabulary(write_config(tmp_path, vocab_size=len(small) + 50))
    assert len(large) == len(small) + 50
    assert [large.piece(i) for i in range(len(large))] == [small.piece(i) for i in range(len(small))] + [b""] * 50
    assert large.piece(10**9) == large.piece(-1) == b""
    assert large.fingerprint != small.fingerprint


def test_a_vocabulary_smaller_than_the_tokenizer_is_cut(sentencepiece, tmp_path):
    shutil.copy(sentencepiece / "tokenizer.json", tmp_path)
    assert len(read_vocabulary(write_config(tmp_path, vocab_size=10))) == 10


def test_without_a_tokenizer_every_token_is_shown_by_its_id(tmp_path):
    from memloc_tui.glyphs import piece_text

    folder = write_config(tmp_path, vocab_size=5)
    vocabulary = read_vocabulary(folder)
    assert load_tokenizer(folder) is None
    assert len(vocabulary) == 5
    assert vocabulary.text([0, 4]) == ""
    assert "3" in piece_text(vocabulary.piece(3), 3)


@pytest.mark.parametrize(("bos", "expected"), [(3, 3), (None, -1), ([1, 2], -1), (99, -1), (-1, -1), ("a", -1)])
def test_a_begin_of_text_token_that_is_none_is_minus_one(tmp_path, sentencepiece, bos, expected):
    shutil.copy(sentencepiece / "tokenizer.json", tmp_path)
    assert read_vocabulary(write_config(tmp_path, vocab_size=20, bos_token_id=bos)).bos == expected


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", "[" * 100_000, '{"vocab_size": "x"}', '{"vocab_size": -4}', '{"vocab_size": 1e12}', "\udcff"],
)
def test_a_config_that_says_no_size_of_vocabulary(tmp_path, config):
    (tmp_path / "config.json").write_text(config, "utf-8", "surrogateescape")
    with pytest.raises(MemlocError, match=r"config\.json"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("config", [{"text_config": {"vocab_size": 9}}, {"text_config": None, "vocab_size": 9}])
def test_the_text_part_of_a_larger_config_counts(tmp_path, config):
    assert len(read_vocabulary(write_config(tmp_path, **config))) == 9


@pytest.mark.parametrize(
    "text", ["", "{}", "[1", '{"model": {"type": "Unheard"}}', '{"version": "1.0", "model": null}']
)
def test_a_broken_tokenizer_is_told_in_one_sentence(tmp_path, text):
    write_config(tmp_path, vocab_size=5)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(MemlocError, match="tokenizer in") as caught:
        read_vocabulary(tmp_path)
    assert "\n" not in str(caught.value)
