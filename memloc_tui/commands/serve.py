"""`memloc-tui serve`: the explorer in a browser, by textual-serve, for whoever sits at this machine.

Each tab that opens the page gets an explorer of its own, with an engine of its own. There is no password: who reaches
the port can do what the explorer can, as you. So it listens on the loopback address, and it answers no page of another
site that a browser on this machine may have open (a site could otherwise open our socket, by its name or by ours).
"""

from __future__ import annotations

import asyncio
import ipaddress
import shlex
import socket
import sys
from dataclasses import fields
from typing import Any

import click

from memloc_core.errors import MemlocError, UsageError
from memloc_tui.settings import Settings

LOOPBACK = "127.0.0.1"
WARNING = (
    "Warning: {host} may be reached from other machines, and there is no password: whoever opens the page reads your "
    "paragraphs, runs analyses and writes files as you. Better: leave --host out, and use ssh -L (docs/browser.md)."
)
# The page's template asks another site for a font, and may stand in a frame: neither.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'"
)
_OPTIONS = {"edits": "--edit"}


def serve(settings: Settings, defaults: Settings, host: str | None, port: int) -> None:
    """Serve until Ctrl-C. Raises UsageError, or MemlocError where the extra is missing or the port is taken."""
    try:
        from textual_serve.server import Server
    except ModuleNotFoundError:
        raise MemlocError("The browser needs an extra package: pip install '.[web]' in the checkout.") from None
    address = host or LOOPBACK
    if not is_loopback(address):
        click.echo(WARNING.format(host=address), err=True)
    port = _free(address, port)
    command = shlex.join((sys.executable, "-m", "memloc_tui", *options(settings, defaults)))
    _served(Server, address, port, command).serve()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def options(settings: Settings, defaults: Settings) -> list[str]:
    """The command line that makes `settings` of `defaults`, which the explorer reads from its configuration itself."""
    said: list[str] = []
    for name in (field.name for field in fields(settings)):
        value = getattr(settings, name)
        if value == getattr(defaults, name):
            continue
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        if name == "use_cache":
            said += ["--no-cache"] if not value else []
        elif isinstance(value, bool):
            said += [option if value else f"--no-{option[2:]}"]
        elif name == "edits":
            said += [part for edit in value for part in (option, edit)]
        else:
            said += [option, str(value)]
    return said


def allowed(host: str, origin: str | None, address: str) -> bool:
    """Whether a request is from a page of ours: `host` as the browser calls us, `origin` the page that asks.

    A name that is not ours (a rebound DNS name) is refused where we listen on the loopback address, and so is any
    page that did not come from the very name and port that it asks.
    """
    if origin is not None and origin.partition("://")[2] != host:
        return False
    return not is_loopback(address) or is_loopback(_name(host))


def _name(host: str) -> str:
    """The host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _free(host: str, port: int) -> int:
    """The port, or for 0 one that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except socket.gaierror:
        raise UsageError(f"{host!r} is no address of this machine.") from None
    except OSError as error:
        raise MemlocError(f"Port {port} of {host} cannot be used: {error.strerror}. --port takes another.") from None


async def _say_where(address: str, port: int) -> None:
    """Once the page is there."""
    reached = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(address, address)
    while True:
        try:
            _, writer = await asyncio.open_connection(reached, port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            break
    shown = f"[{address}]" if ":" in address else address
    click.echo(f"The explorer is at http://{shown}:{port}/ (Ctrl-C ends it).")
    sys.stdout.flush()


def _served(base: type[Any], address: str, port: int, command: str) -> Any:
    """textual-serve's server, for us alone."""
    from aiohttp import web

    class Served(base):  # type: ignore[misc]
        def initialize_logging(self) -> None:
            """No log: an access is nobody's news."""

        async def on_startup(self, app: web.Application) -> None:
            self._saying = asyncio.create_task(_say_where(address, port))

        async def _make_app(self) -> web.Application:
            @web.middleware
            async def ours(request: web.Request, handler: Any) -> web.StreamResponse:
                if not allowed(request.host, request.headers.get("Origin"), address):
                    raise web.HTTPForbidden(text="This page belongs to the person at this machine.")
                response: web.StreamResponse = await handler(request)
                if not response.prepared:  # a socket's is sent already
                    response.headers["Content-Security-Policy"] = _POLICY
                return response

            app: web.Application = await super()._make_app()
            app.middlewares.append(ours)
            return app

        async def handle_index(self, request: web.Request) -> Any:
            # Behind `ssh -L 9000:localhost:8000` the browser knows another port than we do.
            self.public_url = f"{request.scheme}://{request.host}"
            return await super().handle_index(request)

    return Served(command, host=address, port=port, title="memloc")
