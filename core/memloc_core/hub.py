"""Asking a Hugging Face hub: what a model or a data set has, and any part of a file. No torch.

Nothing here is called but by `memloc-tui download` and `memloc-tui scan --stream`: the network is never touched by
itself. The hub is the one that HF_ENDPOINT names.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from memloc_core import sources
from memloc_core.errors import MemlocError, UsageError

T = TypeVar("T")
PROBE_SECONDS = 10.0  # by then the hub has said what it has, or it is given up
SILENCE_SECONDS = 10.0  # without a byte, then it is tried again
ATTEMPTS = 3  # that bring no byte further
PIECE = 8 << 20  # bytes of a file that is read in parts
_PIECES = 16  # of them are kept
_SCHEME = "hub://"
_LARGEST_ANSWER = 64 << 20


class Unreachable(MemlocError):
    """The hub does not answer, or not as a hub does."""


class Restart(MemlocError):
    """The server cannot go on in the middle of a file."""


@dataclass(frozen=True)
class Remote:
    """One file on the hub. `blob` is what it is called in the cache: the sha256 of its bytes, or git's sha1 of them."""

    name: str
    size: int
    blob: str

    def digest(self) -> Any:
        return hashlib.sha256() if len(self.blob) == 64 else hashlib.sha1(b"blob %d\0" % self.size)


def refuse_offline() -> None:
    """Raise UsageError where the person has told Hugging Face's tools to stay off the network."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UsageError("HF_HUB_OFFLINE is set, so nothing is downloaded; unset it and ask again.")


class Hub:
    """One model, or of the kind "datasets" one data set, at a revision."""

    def __init__(self, name: str, revision: str, kind: str = "models") -> None:
        self.name, self.revision, self.kind = name, revision, kind
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        if urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise UsageError(f"HF_ENDPOINT is {self.endpoint!r}, which is no web address.")
        self.host = urlsplit(self.endpoint).netloc
        self._page = f"{self.endpoint}/{'datasets/' if kind == 'datasets' else ''}{name}"
        self.moved = 0.0  # when something last happened
        self.stop = threading.Event()
        self._opener = urllib.request.build_opener(_Redirect, urllib.request.HTTPSHandler(context=_certificates()))
        self._token = _token()

    def listed(self, wanted: Callable[[str], bool] = lambda name: True) -> tuple[str, dict[str, Remote]]:
        """The commit, and those of its files that are wanted. Raises MemlocError where there is no such thing."""
        asked = f"{self.endpoint}/api/{self.kind}/{self.name}/revision/{quote(self.revision, safe='')}?blobs=true"
        about = self.json(asked, self.name)
        try:
            commit = about["sha"]
            sizes = {entry["rfilename"]: entry for entry in about["siblings"]}
            if not re.fullmatch("[0-9a-f]{40}", commit):
                raise ValueError(commit)
            return commit, {name: _remote(entry) for name, entry in sizes.items() if wanted(name)}
        except (KeyError, TypeError, ValueError, AttributeError):
            what = "a model" if self.kind == "models" else "a data set"
            raise Unreachable(f"{self.host} answers with something that does not describe {what}.") from None

    def address(self, file: str, commit: str) -> str:
        return f"{self._page}/resolve/{commit}/{quote(file)}"

    def json(self, url: str, what: str) -> Any:
        """What the hub answers. Raises Unreachable where that is no JSON."""
        with self.open(url, what) as answer:
            try:
                return json.loads(answer.read(_LARGEST_ANSWER))
            except ValueError:
                raise Unreachable(f"{self.host} answers with something that is no hub's answer.") from None
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"{self.host} broke off its answer ({reason_of(error)}).") from None

    def open(self, url: str, what: str, start: int = 0, stop: int = 0) -> Any:
        """The answer to one request, from the byte `start` on, up to `stop` where that is given. Raises MemlocError."""
        headers = {"User-Agent": "memloc-tui"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if start or stop:
            headers["Range"] = f"bytes={start}-{stop - 1 if stop else ''}"
        try:
            return self._opener.open(urllib.request.Request(url, headers=headers), timeout=SILENCE_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, what) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"{self.host} cannot be reached ({reason_of(error)}).") from None

    def part(self, file: str, commit: str, start: int, stop: int) -> bytes:
        """The bytes start .. stop of a file. Raises MemlocError where they do not come, tried three times."""
        what = f"{self.name}: {file}"
        for left in reversed(range(ATTEMPTS)):
            try:
                with self.open(self.address(file, commit), what, start, stop) as answer:
                    if answer.status != 206:
                        raise MemlocError(
                            f"{self.host} does not send parts of files, so {self.name} cannot be read while it is "
                            f"scanned; fetch it with `memloc-tui download --data {self.name}`."
                        )
                    data: bytes = answer.read()
                if len(data) != stop - start:
                    raise http.client.IncompleteRead(data, stop - start - len(data))
                return data
            except (Unreachable, OSError, http.client.HTTPException) as error:
                if not left:
                    said = str(error) if isinstance(error, Unreachable) else f"{self.host}: {reason_of(error)}."
                    raise Unreachable(f"{what} stopped coming at byte {start:,}: {said}") from None
                self.stop.wait(1)
        raise AssertionError

    def _refusal(self, error: urllib.error.HTTPError, what: str) -> MemlocError:
        """What an HTTP status means. The hub answers 401 for what does not exist, too, to whoever is not logged in."""
        code, kind = error.code, error.headers.get("X-Error-Code", "")
        if kind == "GatedRepo" or (code == 403 and kind != "RepoNotFound"):
            logged_in = "with an account that has been granted access" if self._token else ""
            return MemlocError(
                f"{self.name} is gated: accept its conditions on {self._page}, then log in "
                f"{logged_in or 'with `hf auth login` or set HF_TOKEN'}, and ask again."
            )
        if kind == "RevisionNotFound":
            return MemlocError(f"{self.name} has no branch, tag or commit {self.revision!r}.")
        if code in (401, 404):
            private = "" if self._token else ", or it is private and you are not logged in (`hf auth login`)"
            return MemlocError(f"{self.host} has no {what}{private}.")
        if code == 416:
            return Restart(what)
        if code == 429:
            return Unreachable(f"{self.host} asks to wait: too many requests (HTTP 429).")
        return Unreachable(f"{self.host} answers with HTTP {code} for {what}.")

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """What `work` returns, or Unreachable once the seconds are over: looking up a name takes no timeout."""
        found: list[T] = []
        until = time.monotonic() + seconds
        for _ in self.watched(lambda: found.append(work())):
            if time.monotonic() > until:
                raise Unreachable(f"{self.host} does not answer within {seconds:.0f} s.")
        return found[0]

    def watched(self, work: Callable[[], None]) -> Iterator[None]:
        """Yield a few times a second while `work` goes on in a thread; raises what it raises.

        Left early, also by Ctrl-C, it tells the thread to stop and does not wait for it.
        """
        failed: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        self.moved = time.monotonic()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                yield
                if time.monotonic() - self.moved > ATTEMPTS * (SILENCE_SECONDS + 2):  # whatever it hangs in
                    raise Unreachable(f"{self.host} has sent nothing for a long time. What has arrived is kept.")
        finally:
            if thread.is_alive():
                self.stop.set()
        if failed:
            raise failed[0]


# ------------------------------------------------------------------------------------------- files that are not here


class HubFile:
    """A file of a data set on the hub at one commit, `hub://ORG/NAME@COMMIT/FILE`: read in parts, never kept on disk.

    That the parts belong together is the commit's promise; their hash is not checked, which would take the whole file.
    """

    def __init__(self, address: str) -> None:
        """Raises UsageError for an address that is none."""
        found = re.fullmatch(r"hub://([^/@]+/[^/@]+)@([0-9a-f]{40})/(.+)", address)
        if not found:
            raise UsageError(f"{address!r} is no file on the hub, as hub://ORG/NAME@COMMIT/FILE.")
        self.address, self.data_set, self.commit, self.file = address, *found.groups()

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]

    @property
    def size(self) -> int:
        """Bytes. Raises MemlocError."""
        sizes = _sizes(self.data_set, self.commit)
        if self.file not in sizes:
            raise UsageError(f"{self} is gone: the hub no longer lists it.")
        return sizes[self.file]

    def open(self) -> io.BufferedReader:
        """For reading and seeking; what goes wrong is a MemlocError."""
        return io.BufferedReader(_Parts(self), 1 << 16)


class _Parts(io.RawIOBase):
    """The bytes of a file, piece by piece."""

    def __init__(self, file: HubFile) -> None:
        self._file, self._at, self._size = file, 0, file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        index, inside = divmod(self._at, PIECE)
        if self._at >= self._size:
            return 0
        piece = _piece(self._file.address, index * PIECE, min(self._size, (index + 1) * PIECE))
        some = piece[inside : inside + len(buffer)]
        buffer[: len(some)] = some
        self._at += len(some)
        return len(some)


@lru_cache(maxsize=_PIECES)
def _piece(address: str, start: int, stop: int) -> bytes:
    file = HubFile(address)
    return _hub(file.data_set, file.commit).part(file.file, file.commit, start, stop)


@lru_cache(maxsize=4)
def _hub(data_set: str, commit: str) -> Hub:
    return Hub(data_set, commit, "datasets")


@lru_cache(maxsize=4)
def _sizes(data_set: str, commit: str) -> dict[str, int]:
    hub = _hub(data_set, commit)
    return {file.name: file.size for file in hub.within(PROBE_SECONDS, hub.listed)[1].values()}


def is_on_hub(name: str) -> bool:
    """Whether a corpus, or a file of one, is meant to be read from the hub."""
    return name.startswith(_SCHEME)


def on_hub(source: str) -> str:
    """How to ask for a data set ORG/NAME[@CONFIG][:SPLIT] as a corpus that is read from the hub."""
    return _SCHEME + source


def streamed(corpus: str, commit: str = "") -> list[tuple[HubFile, str]]:
    """The files of hub://ORG/NAME[@CONFIG][:SPLIT] in order, each with its state: its size and its hash.

    `commit`: as it was then; by default as its main branch is now. Raises MemlocError.
    """
    source = corpus.removeprefix(_SCHEME)
    name = (sources.data_set(source) or ("",))[0]
    if not name:
        raise UsageError(f"{source!r} is no name of a data set on the hub, such as ORG/NAME@CONFIG:SPLIT.")
    hub = Hub(name, commit or "main", "datasets")
    found, files = hub.within(PROBE_SECONDS, hub.listed)
    return [
        (HubFile(f"{_SCHEME}{name}@{found}/{file}"), f"{files[file].size} bytes, {files[file].blob}")
        for file in sources.data_files(files, source)
    ]


# ----------------------------------------------------------------------------------------------------------- details


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


def _remote(entry: dict[str, Any]) -> Remote:
    """Raises KeyError, TypeError or ValueError for an entry that does not say size and hash."""
    lfs = entry.get("lfs")
    size, blob = (lfs["size"], lfs["sha256"]) if lfs else (entry["size"], entry["blobId"])
    if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}" if lfs else "[0-9a-f]{40}", blob):
        raise ValueError(blob)
    return Remote(entry["rfilename"], size, blob)


def reason_of(error: BaseException) -> str:
    """What a failed request's error says, for a person."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return f"no answer for {SILENCE_SECONDS:.0f} s"
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)
