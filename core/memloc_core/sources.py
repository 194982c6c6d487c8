"""Where models and paragraph files lie, and how to tell cheaply whether they have changed. No torch, no network."""

from __future__ import annotations

import os
from pathlib import Path

from memloc_core.errors import UsageError

DEMO = "demo"


def model_folder(model: str) -> Path:
    """The checkpoint folder that `model` names: `demo`, a folder, or `org/name` in the local Hugging Face cache.

    Raises UsageError where there is none, or where the folder holds no config.json.
    """
    if model == DEMO:
        from memloc_core.demo import MODEL_FOLDER

        return MODEL_FOLDER
    try:
        path = Path(model).expanduser()
        if path.is_file():
            raise UsageError(f"{path} is a file; --model takes the folder that holds config.json and the weights.")
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise UsageError(f"{path} holds no config.json, so it is no Hugging Face checkpoint folder.")
            return path.resolve()
        snapshot = _hub_snapshot(model)
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody` is a RuntimeError
        raise UsageError(f"{model!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if snapshot is None:
        raise UsageError(
            f"There is no folder {model!r}, and no model of that name in the local Hugging Face cache {_hub_cache()}. "
            "Nothing is downloaded by itself: give a checkpoint folder, or fetch the model first."
        )
    return snapshot


def paragraph_file(source: str) -> Path:
    """The file that `source` names; raises UsageError where there is none."""
    if source == DEMO:
        from memloc_core.demo import PARAGRAPHS_FILE

        return PARAGRAPHS_FILE
    try:
        path = Path(source).expanduser()
        if not path.exists():
            raise UsageError(f"There is no paragraph file {str(path)!r}.")
        if not path.is_file():
            raise UsageError(f"{path} is not a file; --paragraphs takes a .jsonl, .npy, .pt, .csv or .parquet file.")
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{source!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def state(path: Path) -> str:
    """sha256 over the name, size and modification time of a file (and its .counts.npy), or of a folder's files.

    Equal states mean, in all likelihood, equal contents: enough to show an earlier result at once, before the engine
    has read the weights and confirmed it.
    """
    from hashlib import sha256

    digest = sha256(os.fsencode(path))
    try:
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.is_file())
        else:
            files = [p for p in (path, path.with_suffix(".counts.npy")) if p.is_file()]
        for file in files:
            status = file.stat()
            digest.update(os.fsencode(f"\n{file.name}\t{status.st_size}\t{status.st_mtime_ns}"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def _hub_cache() -> Path:
    """Hugging Face's own rule for its cache folder (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _hub_snapshot(name: str) -> Path | None:
    repository = _hub_cache() / ("models--" + name.replace("/", "--"))
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    folder = repository / "snapshots" / reference.read_text().strip()
    return folder if (folder / "config.json").is_file() else None
