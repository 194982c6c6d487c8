"""A Hugging Face hub on this machine that has what a test gives it and misbehaves as told."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """`revisions[name][revision]` is (commit, {file: bytes}); the name of a data set is datasets/ORG/NAME. Large files
    are sent from another host, as the hub does.

    `refuse`: (path's part, HTTP status, X-Error-Code); `stall`: sends this many bytes of each large file, then
    nothing; `cut`: closes after so many bytes, that often; `pace`: seconds between two pieces of 4 kB; `wrong`:
    what it sends in place of what it says it has.
    """

    def __init__(self) -> None:
        self.revisions: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        self.refuse: tuple[str, int, str] | None = None
        self.portal = False
        self.stall: int | None = None
        self.cut: list[int] = []
        self.pace = 0.0
        self.ranges = True
        self.wrong: dict[str, bytes] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def give(self, name: str, files: dict[str, bytes], revision: str = "main", commit: str = COMMIT) -> None:
        self.revisions.setdefault(name, {})[revision] = (commit, files)

    def paths(self) -> list[str]:
        """What was asked of the hub itself, without what it sent elsewhere for."""
        return [path for path, _ in self.requests if not path.startswith("/cdn/")]

    def fetched(self) -> list[str]:
        return [path.rsplit("/", 1)[1] for path in self.paths() if "/resolve/" in path]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".parquet"))


def entry(name: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    about: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
    if is_large(name):
        about["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
    return about


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.requests.append((path, dict(self.headers)))
            if hub.refuse and hub.refuse[0] in path:
                return self.say(hub.refuse[1], b"no", {"X-Error-Code": hub.refuse[2]})
            if hub.portal:
                return self.say(200, b"<html>Please log in to the hotel's network</html>", {})
            parts = [unquote(part) for part in path.split("/")[1:]]
            if parts[0] == "api":
                name, revision = "/".join(parts[1 + (parts[1] == "models") : -2]), parts[-1]
                if name not in hub.revisions:
                    return self.say(401, b"{}", {"X-Error-Code": "RepoNotFound"})
                by_commit = {commit: name for name, (commit, _) in hub.revisions[name].items()}
                revision = by_commit.get(revision, revision)
                if revision not in hub.revisions[name]:
                    return self.say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                commit, files = hub.revisions[name][revision]
                about = {"id": name, "sha": commit, "siblings": [entry(*item) for item in files.items()]}
                return self.say(200, json.dumps(about).encode(), {})
            place = parts.index("resolve")
            by_commit = dict(hub.revisions["/".join(parts[parts[0] == "cdn" : place])].values())
            content = hub.wrong.get(parts[-1], by_commit[parts[place + 1]]["/".join(parts[place + 2 :])])
            if is_large(parts[-1]) and parts[0] != "cdn":
                return self.say(302, b"", {"Location": f"http://localhost:{hub.port}/cdn{self.path}"})
            return self.send(content)

        def send(self, content: bytes) -> None:
            start, body, wanted = 0, content, self.headers.get("Range")
            if hub.ranges and wanted:
                first, last = wanted.removeprefix("bytes=").split("-")
                start = int(first)
                body = content[start : int(last) + 1 if last else None]
            self.send_response(206 if hub.ranges and wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = hub.cut.pop(0) if hub.cut and len(body) > 5000 else None
            for at in range(0, len(body), 4096):
                if cut is not None and at >= cut:
                    self.close_connection = True
                    return
                if hub.stall is not None and len(content) > 5000 and start + at >= hub.stall:
                    hub.closing.wait(30)
                    self.close_connection = True
                    return
                self.wfile.write(body[at : at + 4096])
                hub.sent += len(body[at : at + 4096])
                if hub.pace and len(body) > 5000:
                    time.sleep(hub.pace)

        def say(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
