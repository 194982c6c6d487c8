"""`memloc-tui download`: what the hub has, brought into the local cache, and only when it is asked to.

    probe (seconds) -> which files, how large -> room on the disk? -> fetch, resumable -> every hash right -> links

The files lie as Hugging Face's own tools lay them: `blobs/HASH`, linked from `snapshots/COMMIT/NAME`, and `refs/BRANCH`
names the commit. Links come last, so a model that has not arrived whole is no model to anybody. Every byte is waited
for in a thread of its own: whatever the network does, the main thread can say so and go.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from memloc_core import hub, sources
from memloc_core.errors import MemlocError, UsageError
from memloc_tui.files import write_whole
from memloc_tui.glyphs import escaped, visible
from memloc_tui.settings import Settings

_CHUNK = 1 << 18
# Beside the weights: what a model and its tokenizer are read from. No code, no other format of the same weights.
_CONFIGURATION = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


@dataclass(frozen=True)
class Offer:
    """What the hub has of a model at a revision, as far as it is needed."""

    commit: str
    files: tuple[hub.Remote, ...]


def download(settings: Settings, source: str, as_json: bool, data: bool = False) -> None:
    """Bring a model, or `data`'s files, into the local Hugging Face cache.

    Raises MemlocError; Ctrl-C ends it and loses nothing.
    """
    revision = settings.revision or "main"
    name = (sources.data_set(source) or ("",))[0] or source if data else source
    _check_name(name, revision, data)
    ended_by = [signal.SIGINT]

    def told_to_end(*_: object) -> None:
        ended_by.append(signal.SIGTERM)
        raise KeyboardInterrupt  # not by SIGINT, which is ignored in the background of a script

    signal.signal(signal.SIGTERM, told_to_end)
    try:
        asked = DataDownload(source, name, revision) if data else ModelDownload(name, revision)
        try:
            offer = asked.within(hub.PROBE_SECONDS, asked.offer)
            _refuse_unless_there_is_room(offer)
            folder = asked.fetch(offer)
        except hub.Unreachable as error:
            raise MemlocError(f"{error}{'' if data else _already_here(name, settings.revision)}") from None
    except KeyboardInterrupt:
        click.echo("memloc-tui: stopped; what has arrived is kept, and the same command goes on from there.", err=True)
        sys.exit(128 + ended_by[-1])
    total = sum(file.size for file in offer.files)
    if as_json:
        about = {
            "data_set" if data else "model": name,
            "revision": revision,
            "commit": offer.commit,
            "folder": str(folder),
        }
        click.echo(escaped(json.dumps(about | {"files": [file.name for file in offer.files], "bytes": total})))
    else:
        click.echo(f"{name} at {offer.commit[:10]}: {len(offer.files)} files, {_megabytes(total)}, in {folder}")
        click.echo(asked.opened_by(folder))


class ModelDownload(hub.Hub):
    """One model on the hub, and its place in the local cache."""

    def __init__(self, name: str, revision: str, kind: str = "models") -> None:
        super().__init__(name, revision, kind)
        self.folder = sources.repository(name, kind)
        self.arrived = 0  # bytes

    # --------------------------------------------------------------------------------------------------- what is there

    def opened_by(self, folder: Path) -> str:
        """The command that opens what lies in the folder now."""
        again = f" --revision {self.revision}" if self.revision != "main" else ""
        return f"Open it with: memloc-tui --model {self.name}{again}"

    def offer(self) -> Offer:
        """Ask the hub what it has. Raises MemlocError for no such model or revision, and for one without weights."""
        commit, files = self.listed(lambda name: "/" not in name and _is_wanted(name))
        if "config.json" not in files:
            raise MemlocError(f"{self.name} holds no config.json, so it is no model that transformers can open.")
        configuration = [files[name] for name in _CONFIGURATION if name in files]
        return Offer(commit, (*configuration, *self._weights(files, commit)))

    def _weights(self, files: dict[str, hub.Remote], commit: str) -> list[hub.Remote]:
        """The weights in one format: safetensors before pickles, one file before shards, as the loader looks."""
        for whole in ("model.safetensors", "pytorch_model.bin"):
            if whole in files:
                return [files[whole]]
            index = files.get(f"{whole}.index.json")
            if index is None:
                continue
            listed = self.json(self.address(index.name, commit), f"{self.name}: {index.name}")
            try:
                shards = sorted(set(listed["weight_map"].values()))
                return [index, *(files[shard] for shard in shards)]
            except (KeyError, TypeError, AttributeError):
                raise MemlocError(f"{self.name}: {index.name} does not say in which files the weights are.") from None
        raise MemlocError(f"{self.name} holds no weights as .safetensors or .bin, so there is nothing to open.")

    # --------------------------------------------------------------------------------------------------------- fetching

    def fetch(self, offer: Offer) -> Path:
        """Have every file of the offer, whole and verified, then link them. The snapshot's folder."""
        total = sum(file.size for file in offer.files)
        err = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        current = [self.name]

        def work() -> None:
            (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
            for file in offer.files:
                current[0] = file.name
                self._fetch(file, offer.commit)

        try:
            with Progress(
                *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
            ) as bar:
                task = bar.add_task(visible(self.name), total=total)
                for _ in self.watched(work):
                    bar.update(task, completed=self.arrived, description=visible(current[0]))
            return self._link(offer)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise MemlocError(
                    f"The disk that holds {self.folder} is full; what has arrived is kept. Make room and ask again."
                ) from None
            raise MemlocError(f"{self.folder} cannot be written: {error.strerror or error}.") from None

    def _fetch(self, file: hub.Remote, commit: str) -> None:
        """Have one file as a blob, going on from what an earlier attempt has left."""
        blob = self.folder / "blobs" / file.blob
        if blob.is_file() and blob.stat().st_size == file.size:
            self._came(file.size)
            return
        part = blob.with_name(f"{file.blob}.incomplete")
        with part.open("a+b", buffering=0) as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MemlocError(f"{self.name} is being downloaded by another process.") from None
            except OSError:  # a file system without locks; a mixture would not pass the check of its hash
                pass
            for last in (False, True):
                if self._complete(file, commit, out):
                    os.fsync(out.fileno())
                    os.replace(part, blob)
                    return
                self.arrived -= file.size
                out.truncate(0)  # what was left of an earlier attempt may have been another file's
                if last:
                    raise MemlocError(f"{self.name}: {file.name} has arrived damaged twice. Nothing of it is kept.")

    def _complete(self, file: hub.Remote, commit: str, out: Any) -> bool:
        """Append what is missing of a file; whether its bytes are then the right ones."""
        digest, size, attempts = file.digest(), 0, hub.ATTEMPTS
        out.seek(0)
        while known := out.read(_CHUNK):
            digest.update(known)
            size += len(known)
            self._came(len(known))
        while size < file.size:
            try:
                with self.open(self.address(file.name, commit), f"{self.name}: {file.name}", size) as answer:
                    if size and answer.status != 206:
                        raise hub.Restart(file.name)
                    while chunk := self._read(answer):
                        out.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                        attempts = hub.ATTEMPTS
                        self._came(len(chunk))
                if size < file.size:
                    raise self._broke_off(http.client.IncompleteRead(b"", file.size - size))
            except hub.Restart:
                out.truncate(0)
                self.arrived -= size
                digest, size = file.digest(), 0
                attempts -= 1
            except hub.Unreachable as error:
                attempts -= 1
                if not attempts:
                    raise hub.Unreachable(
                        f"{error} {_megabytes(self.arrived)} have arrived and are kept; the same command goes on from "
                        "there."
                    ) from None
                self.stop.wait(1)
            if not attempts:
                raise hub.Unreachable(f"{self.host} does not send {file.name}.")
        if size > file.size:
            self.arrived -= size - file.size
        return size == file.size and digest.hexdigest() == file.blob

    def _read(self, answer: Any) -> bytes:
        """What has come so far, and not a whole chunk. Raises Unreachable; OSErrors of the file are other ones."""
        try:
            return bytes(answer.read1(_CHUNK))
        except (OSError, http.client.HTTPException) as error:
            raise self._broke_off(error) from None

    def _broke_off(self, error: Exception) -> hub.Unreachable:
        return hub.Unreachable(f"{self.host} broke off ({hub.reason_of(error)}).")

    def _came(self, size: int) -> None:
        if self.stop.is_set():
            raise hub.Unreachable("Stopped.")
        self.arrived += size
        self.moved = time.monotonic()

    def _link(self, offer: Offer) -> Path:
        snapshot = self.folder / "snapshots" / offer.commit
        snapshot.mkdir(parents=True, exist_ok=True)
        # config.json last: a folder without one is no model.
        for file in sorted(offer.files, key=lambda file: file.name == "config.json"):
            place = snapshot / file.name
            made = place.with_name(f".{place.name}.{os.getpid()}")
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                made.unlink()
            try:
                made.symlink_to(Path("../" * (2 + file.name.count("/")), "blobs", file.blob))
            except OSError:  # a file system without links
                shutil.copyfile(self.folder / "blobs" / file.blob, made)
            os.replace(made, place)
        if self.revision != offer.commit:
            reference = self.folder / "refs" / self.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_whole(reference, offer.commit)
        return snapshot


class DataDownload(ModelDownload):
    """A data set there: the files that hold its rows, of the configuration and split that `source` asks for."""

    def __init__(self, source: str, name: str, revision: str) -> None:
        super().__init__(name, revision, "datasets")
        self.source = source

    def opened_by(self, folder: Path) -> str:
        found: tuple[Path, ...] = ()
        with contextlib.suppress(UsageError):
            found = sources.downloaded(self.source)  # by the name, which knows no revision
        corpus = self.source if found and found[0].is_relative_to(folder) else shlex.quote(str(folder))
        return f"Scan it with: memloc-tui scan {corpus} --out SET.parquet"

    def offer(self) -> Offer:
        """Ask the hub what it has. Raises MemlocError for no such data set or revision, and for one without files."""
        commit, files = self.listed()
        return Offer(commit, tuple(files[name] for name in sources.data_files(files, self.source)))


def _check_name(name: str, revision: str, data: bool) -> None:
    if name == sources.DEMO:
        raise UsageError("The demo model comes with memloc-tui; there is nothing to download.")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII) or ".." in name or "--" in name:
        like = "data set on the hub, such as ORG/NAME@CONFIG:SPLIT" if data else "model on the hub, such as ORG/NAME"
        raise UsageError(f"{name!r} is no name of a {like}.")
    if Path(name).is_dir() and not data:
        raise UsageError(f"{name!r} is a folder here; memloc-tui --model {name} opens it.")
    if not sources.is_revision(revision):
        raise UsageError(f"{revision!r} is no name of a branch, tag or commit.")
    hub.refuse_offline()


def _is_wanted(name: str) -> bool:
    return name in _CONFIGURATION or bool(
        re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)(\.index\.json)?", name, re.ASCII)
    )


def _refuse_unless_there_is_room(offer: Offer) -> None:
    place = sources.hub_cache()
    blobs = [*place.glob("*--*/blobs/*")] if place.is_dir() else []
    have = {path.name.removesuffix(".incomplete"): path.stat().st_size for path in blobs if path.is_file()}
    need = sum(max(0, file.size - have.get(file.blob, 0)) for file in offer.files)
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if need > free:
        raise MemlocError(
            f"{_megabytes(need)} are to be downloaded, and the disk that holds {place} has {_megabytes(free)} free. "
            "Make room, or set HF_HOME to another disk."
        )


def _already_here(name: str, revision: str) -> str:
    with contextlib.suppress(MemlocError):
        return f" A copy that was fetched earlier is here: {sources.model_folder(name, revision)}"
    return ""


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
