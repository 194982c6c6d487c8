"""`memloc-tui download`: the only part that goes to the network, and only when it is asked to.

    probe (seconds) -> which files, how large -> room on the disk? -> fetch, resumable -> every hash right -> links

The files lie as Hugging Face's own tools lay them: `blobs/HASH`, linked from `snapshots/COMMIT/NAME`, and `refs/BRANCH`
names the commit. Links come last, so a model that has not arrived whole is no model to anybody. Every byte is waited
for in a thread of its own: whatever the network does, the main thread can say so and go.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from memloc_core import sources
from memloc_core.errors import MemlocError, UsageError
from memloc_tui.files import write_whole
from memloc_tui.glyphs import visible
from memloc_tui.settings import Settings

T = TypeVar("T")
PROBE_SECONDS = 10.0  # by then the hub has said what it has, or nothing is downloaded
SILENCE_SECONDS = 10.0  # without a byte, then it is tried again
_ATTEMPTS = 3  # that bring no byte further
_CHUNK = 1 << 18
_LARGEST_ANSWER = 64 << 20
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
class Remote:
    """One file on the hub. `blob` is what it is called in the cache: the sha256 of its bytes, or git's sha1 of them."""

    name: str
    size: int
    blob: str

    def digest(self) -> Any:
        return hashlib.sha256() if len(self.blob) == 64 else hashlib.sha1(b"blob %d\0" % self.size)


@dataclass(frozen=True)
class Offer:
    """What the hub has of a model at a revision, as far as it is needed."""

    commit: str
    files: tuple[Remote, ...]


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
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, told_to_end)
    try:
        hub = DataHub(source, name, revision) if data else Hub(name, revision)
        try:
            offer = hub.within(PROBE_SECONDS, hub.offer)
            _refuse_unless_there_is_room(offer)
            folder = hub.fetch(offer)
        except Unreachable as error:
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
        click.echo(json.dumps(about | {"files": [file.name for file in offer.files], "bytes": total}))
    else:
        again = f" --revision {settings.revision}" if settings.revision else ""
        click.echo(f"{name} at {offer.commit[:10]}: {len(offer.files)} files, {_megabytes(total)}, in {folder}")
        click.echo(f"{hub.opens}{'' if data else again}")


class Unreachable(MemlocError):
    """The hub does not answer, or not as a hub does."""


class Hub:
    """One model on the hub that HF_ENDPOINT names, and its place in the local cache."""

    kind, path = "models", ""

    def __init__(self, name: str, revision: str) -> None:
        self.name, self.revision = name, revision
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        if urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise UsageError(f"HF_ENDPOINT is {self.endpoint!r}, which is no web address.")
        self.host = urlsplit(self.endpoint).netloc
        self.folder = sources.repository(name, self.kind)
        self.arrived = 0  # bytes
        self._moved = 0.0  # when something last happened
        self._stop = threading.Event()
        self._opener = urllib.request.build_opener(_Redirect, urllib.request.HTTPSHandler(context=_certificates()))
        self._token = _token()

    # --------------------------------------------------------------------------------------------------- what is there

    @property
    def opens(self) -> str:
        return f"Open it with: memloc-tui --model {self.name}"

    def offer(self) -> Offer:
        """Ask the hub what it has. Raises MemlocError for no such model or revision, and for one without weights."""
        commit, files = self._listed(lambda name: "/" not in name and _is_wanted(name))
        if "config.json" not in files:
            raise MemlocError(f"{self.name} holds no config.json, so it is no model that transformers can open.")
        configuration = [files[name] for name in _CONFIGURATION if name in files]
        return Offer(commit, (*configuration, *self._weights(files, commit)))

    def _listed(self, wanted: Callable[[str], bool]) -> tuple[str, dict[str, Remote]]:
        """The commit, and those of its files that are wanted."""
        asked = f"{self.endpoint}/api/{self.kind}/{self.name}/revision/{quote(self.revision, safe='')}?blobs=true"
        about = self._json(asked, self.name)
        try:
            commit = about["sha"]
            sizes = {entry["rfilename"]: entry for entry in about["siblings"]}
            if not re.fullmatch("[0-9a-f]{40}", commit):
                raise ValueError(commit)
            return commit, {name: _remote(entry) for name, entry in sizes.items() if wanted(name)}
        except (KeyError, TypeError, ValueError, AttributeError):
            what = "a model" if self.kind == "models" else "a data set"
            raise Unreachable(f"{self.host} answers with something that does not describe {what}.") from None

    def _weights(self, files: dict[str, Remote], commit: str) -> list[Remote]:
        """The weights in one format: safetensors before pickles, one file before shards, as the loader looks."""
        for whole in ("model.safetensors", "pytorch_model.bin"):
            if whole in files:
                return [files[whole]]
            index = files.get(f"{whole}.index.json")
            if index is None:
                continue
            listed = self._json(self._address(index, commit), f"{self.name}: {index.name}")
            try:
                shards = sorted(set(listed["weight_map"].values()))
                return [index, *(files[shard] for shard in shards)]
            except (KeyError, TypeError, AttributeError):
                raise MemlocError(f"{self.name}: {index.name} does not say in which files the weights are.") from None
        raise MemlocError(f"{self.name} holds no weights as .safetensors or .bin, so there is nothing to open.")

    def _address(self, file: Remote, commit: str) -> str:
        return f"{self.endpoint}/{self.path}{self.name}/resolve/{commit}/{quote(file.name)}"

    def _json(self, url: str, what: str) -> Any:
        with self._open(url, what) as answer:
            try:
                return json.loads(answer.read(_LARGEST_ANSWER))
            except ValueError:
                raise Unreachable(f"{self.host} answers with something that is no hub's answer.") from None
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"{self.host} broke off its answer ({_reason(error)}).") from None

    def _open(self, url: str, what: str, start: int = 0) -> Any:
        headers = {"User-Agent": "memloc-tui"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            return self._opener.open(urllib.request.Request(url, headers=headers), timeout=SILENCE_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, what) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"{self.host} cannot be reached ({_reason(error)}).") from None

    def _refusal(self, error: urllib.error.HTTPError, what: str) -> MemlocError:
        """What an HTTP status means. The hub answers 401 for what does not exist, too, to whoever is not logged in."""
        code, kind = error.code, error.headers.get("X-Error-Code", "")
        if kind == "GatedRepo" or (code == 403 and kind != "RepoNotFound"):
            logged_in = "with an account that has been granted access" if self._token else ""
            return MemlocError(
                f"{self.name} is gated: accept its conditions on {self.endpoint}/{self.path}{self.name}, then log in "
                f"{logged_in or 'with `hf auth login` or set HF_TOKEN'}, and ask again."
            )
        if kind == "RevisionNotFound":
            return MemlocError(f"{self.name} has no branch, tag or commit {self.revision!r}.")
        if code in (401, 404):
            private = "" if self._token else ", or it is private and you are not logged in (`hf auth login`)"
            return MemlocError(f"{self.host} has no {what}{private}.")
        if code == 416:
            return _Restart(what)
        if code == 429:
            return Unreachable(f"{self.host} asks to wait: too many requests (HTTP 429).")
        return Unreachable(f"{self.host} answers with HTTP {code} for {what}.")

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
                for _ in self._watched(work):
                    bar.update(task, completed=self.arrived, description=visible(current[0]))
            return self._link(offer)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise MemlocError(
                    f"The disk that holds {self.folder} is full; what has arrived is kept. Make room and ask again."
                ) from None
            raise MemlocError(f"{self.folder} cannot be written: {error.strerror or error}.") from None

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """What `work` returns, or Unreachable once the seconds are over: looking up a name takes no timeout."""
        found: list[T] = []
        until = time.monotonic() + seconds
        for _ in self._watched(lambda: found.append(work())):
            if time.monotonic() > until:
                raise Unreachable(f"{self.host} does not answer within {seconds:.0f} s.")
        return found[0]

    def _watched(self, work: Callable[[], None]) -> Iterator[None]:
        """Yield a few times a second while `work` goes on in a thread; raises what it raises.

        Left early, also by Ctrl-C, it tells the thread to stop and does not wait for it.
        """
        failed: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        self._moved = time.monotonic()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                yield
                if time.monotonic() - self._moved > _ATTEMPTS * (SILENCE_SECONDS + 2):  # whatever it hangs in
                    raise Unreachable(f"{self.host} has sent nothing for a long time. What has arrived is kept.")
        finally:
            if thread.is_alive():
                self._stop.set()
        if failed:
            raise failed[0]

    def _fetch(self, file: Remote, commit: str) -> None:
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

    def _complete(self, file: Remote, commit: str, out: Any) -> bool:
        """Append what is missing of a file; whether its bytes are then the right ones."""
        digest, size, attempts = file.digest(), 0, _ATTEMPTS
        out.seek(0)
        while known := out.read(_CHUNK):
            digest.update(known)
            size += len(known)
            self._came(len(known))
        while size < file.size:
            try:
                with self._open(self._address(file, commit), f"{self.name}: {file.name}", size) as answer:
                    if size and answer.status != 206:
                        raise _Restart(file.name)
                    while chunk := answer.read1(_CHUNK):  # what has come so far, and not a whole chunk
                        out.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                        attempts = _ATTEMPTS
                        self._came(len(chunk))
                if size < file.size:
                    raise http.client.IncompleteRead(b"", file.size - size)
            except _Restart:
                out.truncate(0)
                self.arrived -= size
                digest, size = file.digest(), 0
                attempts -= 1
            except (Unreachable, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                attempts -= 1
                if not attempts:
                    said = (
                        str(error) if isinstance(error, Unreachable) else f"{self.host} broke off ({_reason(error)})."
                    )
                    raise Unreachable(
                        f"{said} {_megabytes(self.arrived)} have arrived and are kept; the same command goes on from "
                        "there."
                    ) from None
                self._stop.wait(1)
            if not attempts:
                raise Unreachable(f"{self.host} does not send {file.name}.")
        if size > file.size:
            self.arrived -= size - file.size
        return size == file.size and digest.hexdigest() == file.blob

    def _came(self, size: int) -> None:
        if self._stop.is_set():
            raise Unreachable("Stopped.")
        self.arrived += size
        self._moved = time.monotonic()

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


class DataHub(Hub):
    """A data set there: the files that hold its rows, of the configuration and split that `source` asks for."""

    kind, path = "datasets", "datasets/"

    def __init__(self, source: str, name: str, revision: str) -> None:
        super().__init__(name, revision)
        self.source = source

    @property
    def opens(self) -> str:
        return f"Scan it with: memloc-tui scan {self.source} --out SET.parquet"

    def offer(self) -> Offer:
        """Ask the hub what it has. Raises MemlocError for no such data set or revision, and for one without files."""
        commit, files = self._listed(lambda name: True)
        return Offer(commit, tuple(files[name] for name in sources.data_files(files, self.source)))


class _Restart(MemlocError):
    """The server cannot go on in the middle of a file."""


class _Redirect(urllib.request.HTTPRedirectHandler):
    """The hub sends large files from elsewhere, where our token is nobody's business."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


def _token() -> str:
    """The person's own token, where Hugging Face's tools keep it."""
    from huggingface_hub import get_token

    return get_token() or ""


def _certificates() -> Any:
    import ssl

    context = ssl.create_default_context()
    with contextlib.suppress(ImportError, OSError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


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
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UsageError("HF_HUB_OFFLINE is set, so nothing is downloaded; unset it and ask again.")


def _is_wanted(name: str) -> bool:
    return name in _CONFIGURATION or bool(
        re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)(\.index\.json)?", name, re.ASCII)
    )


def _remote(entry: dict[str, Any]) -> Remote:
    """Raises KeyError, TypeError or ValueError for an entry that does not say size and hash."""
    lfs = entry.get("lfs")
    size, blob = (lfs["size"], lfs["sha256"]) if lfs else (entry["size"], entry["blobId"])
    if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}" if lfs else "[0-9a-f]{40}", blob):
        raise ValueError(blob)
    return Remote(entry["rfilename"], size, blob)


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


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return f"no answer for {SILENCE_SECONDS:.0f} s"
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
