"""Where models and paragraph files lie, and how to tell cheaply whether they have changed. No torch, no network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from memloc_core.errors import UsageError

DEMO = "demo"


def model_folder(model: str, revision: str = "") -> Path:
    """The checkpoint folder that `model` names: `demo`, a folder, or `org/name` in the local Hugging Face cache.

    `revision`: a branch, a tag, a commit or its first seven or more digits, of a name in that cache; "" is `main`.
    Raises UsageError where there is none, or where the folder holds no config.json.
    """
    if model == DEMO:
        from memloc_core.demo import MODEL_FOLDER

        _refuse_revision(model, revision)
        return MODEL_FOLDER
    try:
        path = Path(model).expanduser()
        if path.is_file():
            raise UsageError(f"{path} is a file; --model takes the folder that holds config.json and the weights.")
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise UsageError(f"{path} holds no config.json, so it is no Hugging Face checkpoint folder.")
            _refuse_revision(model, revision)
            return path.resolve()
        snapshot = _hub_snapshot(model, revision or "main")
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody` is a RuntimeError
        raise UsageError(f"{model!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if snapshot is not None:
        return snapshot
    fetch = f"memloc-tui download {model}" + (f" --revision {revision}" if revision else "")
    if known := _revisions(model):
        raise UsageError(
            f"The local Hugging Face cache holds {model} at {', '.join(known)}, but not at {revision or 'main'}: "
            f"give --revision, or fetch it with `{fetch}`."
        )
    raise UsageError(
        f"There is no folder {model!r}, and no model of that name in the local Hugging Face cache {hub_cache()}. "
        f"Nothing is downloaded by itself: give a checkpoint folder, or fetch the model with `{fetch}`."
    )


def _refuse_revision(model: str, revision: str) -> None:
    if revision:
        raise UsageError(f"--revision goes with the name of a model in the Hugging Face cache; {model!r} is a folder.")


def paragraph_files(source: str) -> tuple[Path, ...]:
    """The files that `source` names, in the order in which they are read; raises UsageError where there are none.

    Several: the `.npy` files of prefixes and of suffixes that PREFIX.npy+SUFFIX.npy names or that lie in a folder, as
    the LM extraction benchmark releases them; the `.arrow` files of a data set that `datasets` wrote, be it a folder
    of `save_to_disk` or, as `org/name`, `org/name@config` and `org/name:split`, one that it has prepared in its cache.
    """
    if source == DEMO:
        from memloc_core.demo import PARAGRAPHS_FILE

        return (PARAGRAPHS_FILE,)
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _files_in(path.resolve())
        if path.is_file():
            return (path.resolve(),)
        if path.exists():
            raise UsageError(f"{path} is neither a file nor a folder.")
        halves = [Path(half).expanduser() for half in source.split("+")]
        if len(halves) == 2 and all(half.suffix.lower() == ".npy" for half in halves):
            if missing := [half for half in halves if not half.is_file()]:
                raise UsageError(f"There is no paragraph file {str(missing[0])!r}.")
            return tuple(half.resolve() for half in halves)
        if files := _prepared(source):
            return files
        if files := downloaded(source):
            if len(files) > 1 and any(file.suffix != ".arrow" for file in files):
                raise UsageError(
                    f"{source} is {len(files)} files in {files[0].parent}; --paragraphs takes one of them, `memloc-tui "
                    "scan` takes all."
                )
            return files
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{source!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    raise UsageError(
        f"There is no paragraph file {str(path)!r}"
        + (
            f", and no data set of that name in the local cache {_datasets_cache()}. Nothing is downloaded by itself: "
            f"`memloc-tui download --data {source}` fetches one."
            if _DATA_SET.match(source)
            else "."
        )
    )


def state(*paths: Path) -> str:
    """sha256 over the names, sizes and modification times of files (and their .counts.npy), or of folders' files.

    Equal states mean, in all likelihood, equal contents: enough to show an earlier result at once, before the engine
    has read the weights and confirmed it.
    """
    from hashlib import sha256

    digest = sha256()
    for path in paths:
        digest.update(os.fsencode(path))
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


_DATA_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".arrow", ".txt", ".txt.gz")  # best first
_PAIR = ("_prefix.npy", "_suffix.npy")
_DATA_SET = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<config>[\w.-]+))?(:(?P<split>\w[\w.]*))?$", re.ASCII)


def _files_in(folder: Path) -> tuple[Path, ...]:
    """The paragraph files of a folder: one pair of prefixes and suffixes, or a data set saved by `datasets`."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in folder.iterdir() if (p / "state.json").is_file())
        if len(splits) != 1:
            raise UsageError(
                f"{folder} holds the splits {', '.join(splits) or '(none)'}; give one of them: {folder}/SPLIT."
            )
        folder = folder / splits[0]
    if (folder / "state.json").is_file():
        return _saved(folder)
    prefixes = sorted(
        p for p in folder.iterdir() if p.name.endswith(_PAIR[0]) and not p.name.endswith("_preprefix.npy")
    )
    pairs = [(p, q) for p in prefixes if (q := p.with_name(p.name.removesuffix(_PAIR[0]) + _PAIR[1])).is_file()]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        names = ", ".join(f"{p.name}+{q.name}" for p, q in pairs)
        raise UsageError(f"{folder} holds {len(pairs)} pairs of prefixes and suffixes ({names}); give one of them.")
    raise UsageError(
        f"{folder} is a folder that holds neither NAME_prefix.npy with NAME_suffix.npy nor a data set that `datasets` "
        "saved; --paragraphs takes a file otherwise."
    )


def _saved(folder: Path) -> tuple[Path, ...]:
    import json

    try:
        names = [entry["filename"] for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]]
        files = tuple(folder / name for name in names)
        if not files or not all(file.parent == folder and file.suffix == ".arrow" for file in files):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(f"{folder / 'state.json'} does not say which .arrow files make up the data set.") from None
    if missing := [file for file in files if not file.is_file()]:
        raise UsageError(f"{folder} is incomplete: {missing[0].name} is missing.")
    return files


def _datasets_cache() -> Path:
    if folder := os.environ.get("HF_DATASETS_CACHE"):
        return Path(folder).expanduser()
    return _hub_home() / "datasets"


def _prepared(source: str) -> tuple[Path, ...]:
    """The .arrow files of a data set in the cache of `datasets`: NAME/CONFIG/VERSION/HASH/*-SPLIT*.arrow."""
    wanted = _DATA_SET.match(source)
    place = _datasets_cache() / wanted["name"].replace("/", "___") if wanted else None
    if wanted is None or place is None or not place.is_dir():
        return ()
    versions = [p.parent for p in place.glob("*/*/*/dataset_info.json")]
    configs = sorted({p.parents[1].name for p in versions})
    config = wanted["config"] or ("default" if "default" in configs else configs[0] if len(configs) == 1 else "")
    versions = [p for p in versions if p.parents[1].name == config]
    if not versions:
        raise UsageError(
            f"{wanted['name']} is in the local cache with the configurations {', '.join(configs) or '(none)'}; "
            f"give one of them: {wanted['name']}@CONFIGURATION."
        )
    newest = max(versions, key=lambda p: p.stat().st_mtime)
    by_split: dict[str, list[Path]] = {}
    stem = wanted["name"].split("/")[1]
    for file in sorted(newest.glob("*.arrow")):  # NAME-SPLIT.arrow, or NAME-SPLIT-00000-of-00002.arrow
        if match := re.fullmatch(re.escape(stem) + r"-(\w[\w.]*?)(-\d{5}-of-\d{5})?\.arrow", file.name):
            by_split.setdefault(match[1], []).append(file)
    split = wanted["split"] or (next(iter(by_split)) if len(by_split) == 1 else "")
    if split not in by_split:
        raise UsageError(
            f"{wanted['name']} is in the local cache with the splits {', '.join(by_split) or '(none)'}; "
            f"give one of them: {source.split(':')[0]}:SPLIT."
        )
    return tuple(by_split[split])


def data_set(source: str) -> tuple[str, str, str] | None:
    """(ORG/NAME, configuration, split) of `ORG/NAME[@CONFIG][:SPLIT]`, "" for what is not given; None for others."""
    found = _DATA_SET.match(source)
    return (found["name"], found["config"] or "", found["split"] or "") if found else None


def data_files(names: Iterable[str], source: str) -> list[str]:
    """Of the files in a data set's repository those to read, in order; raises UsageError where there are none.

    They are of one format, for a set is often there in several, and of the configuration (a folder) and the split (a
    word of the path) that `source` asks for.
    """
    name, config, split = data_set(source) or ("", "", "")
    plain = sorted(file for file in names if is_revision(file))  # no hidden ones, and no way out of the folder
    known = [file for file in plain if file.lower().endswith(_DATA_SUFFIXES)]
    found = [file for file in known if not config or config in file.split("/")[:-1]]
    found = [file for file in found if not split or split in re.split(r"[/._-]", file)]
    for suffix in _DATA_SUFFIXES:
        if of_one := [file for file in found if file.lower().endswith(suffix)]:
            return of_one
    if known:
        more = ", ..." if len(known) > 5 else ""
        raise UsageError(f"{source} names none of the files of {name}: {', '.join(known[:5])}{more}.")
    raise UsageError(f"{name} holds no file of a kind that can be read: {', '.join(_DATA_SUFFIXES)}.")


def downloaded(source: str) -> tuple[Path, ...]:
    """The files of a data set that `memloc-tui download --data` has fetched; () where it has not."""
    wanted = data_set(source)
    place = repository(wanted[0], "datasets") if wanted else None
    if place is None or not (place / "refs").is_dir():
        return ()
    references = [file for file in (place / "refs").rglob("*") if file.is_file()]
    main = [file for file in references if file == place / "refs" / "main"] or references[:1]
    snapshot = place / "snapshots" / (main[0].read_text().strip() if main else "-")
    if not snapshot.is_dir():
        return ()
    here = [str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()]
    return tuple(snapshot / file for file in data_files(here, source))  # not resolved: a blob's name has no ending


def hub_cache() -> Path:
    """Hugging Face's own rule for its cache folder (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    return _hub_home() / "hub"


def repository(name: str, kind: str = "models") -> Path:
    """Where the cache keeps a model, or of the kind "datasets" a data set.

    `refs/REVISION` names a commit, `snapshots/COMMIT` holds its files.
    """
    return hub_cache() / f"{kind}--{name.replace('/', '--')}"


def is_revision(revision: str) -> bool:
    """Whether a branch, tag or commit may be called so; it becomes part of a path."""
    return all(re.fullmatch(r"[\w+@=-][\w.+@=-]*", part, re.ASCII) for part in revision.split("/"))


def _hub_home() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser()


def _hub_snapshot(name: str, revision: str) -> Path | None:
    if not is_revision(revision):
        raise UsageError(f"{revision!r} is no name of a branch, tag or commit.")
    snapshots = repository(name) / "snapshots"
    reference = repository(name) / "refs" / revision
    if reference.is_file():
        found = [snapshots / reference.read_text().strip()]
    elif re.fullmatch(r"[0-9a-f]{7,40}", revision) and snapshots.is_dir():
        found = [folder for folder in snapshots.iterdir() if folder.name.startswith(revision)]
    else:
        found = []
    return found[0] if len(found) == 1 and (found[0] / "config.json").is_file() else None


def _revisions(name: str) -> list[str]:
    """The revisions of a model that can be opened, at most five of them."""
    try:
        references = repository(name) / "refs"
        known = [str(file.relative_to(references)) for file in references.rglob("*") if file.is_file()]
        return [revision for revision in sorted(known) if is_revision(revision) and _hub_snapshot(name, revision)][:5]
    except (OSError, ValueError):
        return []
