"""`memloc-tui serve`: the first frame reaches a browser, and nobody else is let in. Needs the extra `web`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memloc_core.errors import MemlocError, UsageError
from memloc_tui.commands import serve as browser
from memloc_tui.settings import Settings

try:
    import aiohttp
    import textual_serve  # noqa: F401
except ImportError:
    aiohttp = None  # type: ignore[assignment]

needs_web = pytest.mark.skipif(aiohttp is None, reason="the extra `web` is not installed")
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def serving(folder: Path, *arguments: str, **more: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`memloc-tui serve`: where it says it is. Ctrl-C ends it, and that is no failure."""
    env = {**os.environ, "MEMLOC_CACHE_DIR": str(folder), "MEMLOC_STATE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "memloc_tui", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, **more)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", said)
        assert found, said
        yield found.group(), process
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("served")) as (url, _):
        assert url.startswith("http://127.0.0.1:")
        yield url


@needs_web
@pytest.mark.skipif(sys.platform != "linux", reason="another loopback address answers on Linux alone")
async def test_another_address_is_listened_on_with_a_warning(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", stderr=subprocess.PIPE) as (url, process):
        assert process.stderr is not None
        assert "Warning: 0.0.0.0 may be reached from other machines" in process.stderr.readline()
        port = url.removeprefix("http://0.0.0.0:")
        elsewhere = f"http://127.0.0.2:{port}"  # this machine too, where a server on 127.0.0.1 alone does not answer
        async with (
            aiohttp.ClientSession() as client,
            client.get(elsewhere, headers={"Host": f"box:{port}"}) as page,
        ):
            assert page.status == 200


@needs_web
async def test_the_page_and_its_socket_deliver_the_first_frame(served: str) -> None:
    async with aiohttp.ClientSession() as client:
        async with client.get(served, headers={"Host": "localhost:9000"}) as page:  # as behind ssh -L 9000:...
            assert page.status == 200
            text = await page.text()
        assert "ws://localhost:9000/ws" in text
        seen = b""
        async with client.ws_connect(f"{served}/ws?width=120&height=36", origin=served) as socket:
            async with asyncio.timeout(60):
                while b"1 Paragraphs" not in seen or b"quit" not in seen:
                    message = await socket.receive()
                    assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT)
                    seen += message.data if isinstance(message.data, bytes) else message.data.encode()
                seen = b""
                await socket.send_json(["stdin", "?"])
                while b"Every action by name" not in seen:
                    seen += (await socket.receive()).data or b""


@needs_web
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": "null"},
        {"Host": "evil.example:8000"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
    ],
)
async def test_a_page_of_another_site_is_refused(served: str, headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as client:
        for path in ("/", "/ws"):
            async with client.get(served + path, headers=headers) as answer:
                assert answer.status == 403


@needs_web
@pytest.mark.skipif(chromium is None, reason="no Chromium here")
async def test_a_real_browser_draws_it(served: str, tmp_path: Path) -> None:
    """Chromium, driven by its own protocol: the page has its first bytes, and a picture of more than the splash."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--window-size=1200,800"]
    command = [str(chromium), *flags, "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as client:
            port = tmp_path / "DevToolsActivePort"
            while not port.is_file() or not port.read_text().strip():
                await asyncio.sleep(0.05)
            devtools = f"http://127.0.0.1:{port.read_text().split()[0]}"
            pages = await (await client.get(f"{devtools}/json")).json()
            async with client.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                calls = iter(range(1, 10_000))

                async def call(method: str, **parameters: Any) -> Any:
                    number = next(calls)
                    await socket.send_json({"id": number, "method": method, "params": parameters})
                    while (said := await socket.receive_json()).get("id") != number:
                        pass
                    return said["result"]

                async def picture() -> bytes:
                    return b64decode((await call("Page.captureScreenshot"))["data"])

                await call("Page.navigate", url=served)
                script = "document.body && document.body.classList.contains('-first-byte')"
                while not (await call("Runtime.evaluate", expression=script))["result"].get("value"):
                    await asyncio.sleep(0.1)
                while len(await picture()) < 30_000:  # the splash is 10 KB, a screen of text far more
                    await asyncio.sleep(0.2)
    finally:
        process.kill()
        process.wait()


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    with pytest.raises(MemlocError, match=r"pip install '\.\[web\]'"):
        browser.serve(Settings(), Settings(), None, 0)


@pytest.mark.parametrize(
    ("host", "origin", "address", "is_ours"),
    [
        ("localhost:8000", None, "127.0.0.1", True),
        ("localhost:9000", "http://localhost:9000", "127.0.0.1", True),
        ("[::1]:8000", "http://[::1]:8000", "::1", True),
        ("127.0.0.1:8000", "http://localhost:8000", "127.0.0.1", False),
        ("box:8000", "http://box:8000", "127.0.0.1", False),
        ("box:8000", "http://box:8000", "0.0.0.0", True),
        ("box:8000", "http://evil:8000", "0.0.0.0", False),
    ],
)
def test_who_is_let_in(host: str, origin: str | None, address: str, is_ours: bool) -> None:
    assert browser.allowed(host, origin, address) is is_ours


def test_the_explorer_in_the_browser_gets_the_same_options() -> None:
    more: dict[str, Any] = {"begin_of_text": True, "use_cache": False, "prefix_length": 9}
    settings = Settings(model="a b", paragraphs="x;y", edits=("e1", "e2"), **more)
    said = browser.options(settings, Settings())
    from click.testing import CliRunner

    from memloc_tui.cli import _settings, cli

    seen: list[Any] = []

    @cli.command("seen", hidden=True)
    @__import__("click").pass_context
    def show(context: Any) -> None:
        seen.append(_settings(context, {}))

    try:
        CliRunner().invoke(cli, [*said, "seen"], catch_exceptions=False)
    finally:
        cli.commands.pop("seen")
    assert seen == [settings]
    assert browser.options(settings, settings) == []
    assert browser.options(Settings(), Settings(begin_of_text=True)) == ["--no-begin-of-text"]


def test_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert [browser.is_loopback(a) for a in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "box")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    with pytest.raises((UsageError, MemlocError)):
        browser._free("no.such.host.invalid", 8000)
    with __import__("socket").create_server(("127.0.0.1", 0)) as taken, pytest.raises(MemlocError, match="--port"):
        browser._free("127.0.0.1", taken.getsockname()[1])
