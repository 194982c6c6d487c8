"""Token bytes and text encoding from a model folder's tokenizer files, without torch or transformers where possible."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import EncodedText, Vocabulary

_LARGEST_VOCABULARY = 10_000_000  # what a config.json may make us reserve room for


def load_tokenizer(folder: Path) -> Any | None:
    """The folder's `tokenizers.Tokenizer`, or None where it holds no tokenizer. Raises MemlocError if it is broken."""
    import tokenizers

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()  # a file may ask for both, which would change a paragraph's length
            tokenizer.no_truncation()
            return tokenizer
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            tokenizer = tokenizers.Tokenizer(model)
            tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = tokenizers.decoders.ByteLevel()
            return tokenizer
        if any((folder / name).is_file() for name in ("tokenizer.model", "spiece.model", "vocab.json")):
            from transformers import AutoTokenizer

            slow = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return slow.backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MemlocError(f"The tokenizer in {folder} cannot be read: {reason}") from error
    return None


def encode_text(folder: Path, text: str) -> EncodedText:
    """The ids of a text. Raises MemlocError where the folder holds no tokenizer, UsageError for broken Unicode."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise MemlocError(f"{folder} holds no tokenizer, so text cannot be turned into its tokens.")
    try:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    except (TypeError, UnicodeError):
        raise UsageError("The text is no valid Unicode.") from None
    return EncodedText(np.array(ids, np.int64))


def begin_of_text(folder: Path) -> int:
    """The id of the token that the folder's tokenizer puts before every text, -1 where it puts none."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        return -1
    alone, whole = (tokenizer.encode("a", add_special_tokens=with_them).ids for with_them in (False, True))
    return int(whole[0]) if len(whole) > len(alone) and whole[1 : 1 + len(alone)] == alone else -1


def begin_of_text_token(folder: Path, model: str) -> int:
    """What --begin-of-text puts before a text: `begin_of_text`, or else the token that config.json names.

    Raises UsageError where neither is a token of the model.
    """
    config = read_config(folder)
    size = vocabulary_size(config, folder) or 2**31
    token = begin_of_text(folder)
    token = token if 0 <= token < size else _named_begin_of_text(config, size)
    if token < 0:
        raise UsageError(
            f"{model} has no begin-of-text token: its tokenizer puts none before a text, and its config.json names "
            "none that it knows; leave out --begin-of-text."
        )
    return token


def _named_begin_of_text(config: dict[str, Any], size: int) -> int:
    """`bos_token_id` of config.json, or of its `text_config` as in models that see; -1 for none of `size` tokens."""
    text_config = config.get("text_config")
    bos = config.get("bos_token_id")
    if bos is None and isinstance(text_config, dict):
        bos = text_config.get("bos_token_id")
    return bos if isinstance(bos, int) and 0 <= bos < size else -1


def read_vocabulary(folder: Path) -> Vocabulary:
    """Every token's bytes, `vocab_size` of config.json many; ids that the tokenizer lacks have no bytes."""
    config = read_config(folder)
    size = vocabulary_size(config, folder)
    tokenizer = load_tokenizer(folder)
    pieces = token_bytes(tokenizer) if tokenizer is not None else []
    pieces = (pieces + [b""] * size)[:size] if size else pieces
    blob = np.frombuffer(b"".join(pieces), np.uint8)
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    fingerprint = hashlib.sha256(offsets.tobytes() + blob.tobytes()).hexdigest()
    return Vocabulary(blob, offsets, fingerprint, _named_begin_of_text(config, len(pieces)))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dictionary; raises MemlocError where it is no JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MemlocError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise MemlocError(f"{folder / 'config.json'} is no JSON object.")
    return config


def vocabulary_size(config: dict[str, Any], folder: Path) -> int:
    """How many token ids the model knows, 0 where config.json does not say. Raises MemlocError for no such number."""
    text_config = config.get("text_config")
    size = config.get("vocab_size") or (text_config.get("vocab_size") if isinstance(text_config, dict) else None) or 0
    if not isinstance(size, int) or not 0 <= size <= _LARGEST_VOCABULARY:
        raise MemlocError(f"{folder / 'config.json'} gives the vocabulary's size as {size!r:.40}.")
    return size


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each id stands for.

    Byte-level BPE writes each byte as one printable character, SentencePiece writes a space as U+2581 and rare bytes
    as <0xNN>; special tokens stand for their own text.
    """
    description = json.loads(tokenizer.to_str())
    special = {entry["id"]: entry["content"].encode() for entry in description.get("added_tokens") or ()}
    byte_of = _byte_level_alphabet() if "ByteLevel" in json.dumps(description.get("decoder")) else None
    pieces = []
    for token in range(1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)):
        piece = tokenizer.id_to_token(token) or ""
        if token in special:
            pieces.append(special[token])
        elif byte_of is not None:  # a token with a character that stands for no byte stands for itself, whole
            known = all(c in byte_of for c in piece)
            pieces.append(b"".join(byte_of[c] for c in piece) if known else piece.encode())
        elif match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
            pieces.append(bytes.fromhex(match[1]))
        else:
            pieces.append(piece.replace("\u2581", " ").encode("utf-8", "surrogatepass"))
    return pieces


def _byte_level_alphabet() -> dict[str, bytes]:
    """Byte-level BPE's characters: printable Latin-1 bytes stand for themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(0x100 + i): bytes([byte]) for i, byte in enumerate(others)}
