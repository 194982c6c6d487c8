"""A real pseudo-terminal with a screen in memory: start a program, type, click, and read what a person would see."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import ptyprocess
import pyte

PYTHON = sys.executable
ENTER, ESCAPE, TAB = "\r", "\x1b", "\t"
UP, DOWN, RIGHT, LEFT, HOME = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1b[H"


class Screen(pyte.Screen):
    """pyte's screen, deaf to the few private sequences that it would misread as text attributes."""

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        if not private:
            super().select_graphic_rendition(*attrs)

    @property
    def display(self) -> list[str]:
        """The lines. Within a frame half of a wide character may stand alone for a moment, which pyte refuses."""
        return ["".join(self.buffer[y][x].data for x in range(self.columns)) for y in range(self.lines)]


class Terminal:
    """`with Terminal([...], columns=120, rows=36) as t: t.until("text")`."""

    def __init__(
        self,
        command: list[str],
        *,
        columns: int = 120,
        rows: int = 36,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        echo: bool = True,
        deaf: bool = False,
    ) -> None:
        """`echo`: whether the terminal itself deals with what is typed while no program reads it: it shows that, and
        stops at Ctrl-S. `deaf`: the program starts with SIGHUP ignored, as under nohup; else it does not, even if
        these tests do."""

        def begin() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if deaf else signal.SIG_DFL)
            if not echo:
                attributes = termios.tcgetattr(0)
                attributes[0] &= ~termios.IXON
                termios.tcsetattr(0, termios.TCSANOW, attributes)

        # COLUMNS and LINES, which a test runner may have set, would stand above the terminal's own size.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        full = {**inherited, "TERM": "xterm-256color", "COLORTERM": "truecolor", **(env or {})}
        self.started = time.perf_counter()
        self.process = ptyprocess.PtyProcess.spawn(
            command,
            dimensions=(rows, columns),
            env=full,
            cwd=str(cwd) if cwd else None,
            echo=echo,
            preexec_fn=begin,
        )
        os.set_blocking(self.process.fd, False)
        self.screen = Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.received = 0
        self.raw = bytearray()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):  # a test may have closed the terminal itself
            if self.process.isalive():
                self.process.kill(signal.SIGKILL)
            self.process.close(force=True)

    def pump(self, seconds: float = 0.0) -> bool:
        """Read what has come, waiting at most `seconds` for the first of it; False when nothing came."""
        ready, _, _ = select.select([self.process.fd], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self.process.fd, 1 << 16)
        except OSError:
            return False
        self.received += len(data)
        self.raw += data
        # pyte does not know colon-separated SGR parameters or the kitty keyboard's sequences.
        self._stream.feed(re.sub(rb"\x1b\[[<>=?][0-9;]*[umpq]", b"", data))
        return bool(data)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def until(self, wanted: str | Callable[[str], object], seconds: float = 30.0) -> str:
        """The screen's text once it holds (or satisfies) `wanted` in a whole frame; AssertionError if it never does.

        A frame comes in pieces: the text is taken when nothing more has come for a moment, so that what stands
        below the wanted words is there too. A screen that never rests (a running clock) is taken as it is."""
        holds = wanted if callable(wanted) else lambda text: wanted in text
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if holds(self.text):
                self.settle(0.1, 1.0)
                if holds(self.text):
                    return self.text
            if not self.pump(0.05) and not self.process.isalive():
                break
        if holds(self.text):
            return self.text
        raise AssertionError(f"{wanted!r} did not appear within {seconds} s; the screen holds:\n{self.text}")

    def settle(self, quiet: float = 0.3, seconds: float = 10.0) -> str:
        """The screen's text once nothing has come for `quiet` seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.pump(quiet):
            pass
        return self.text

    def type(self, keys: str) -> None:
        self.send(keys.encode())

    def send(self, data: bytes) -> None:
        """To the program, reading what comes meanwhile: neither waits for room in the other's queue. OSError: it has
        ended."""
        while data and self.process.isalive():
            ready, free, _ = select.select([self.process.fd], [self.process.fd], [], 1.0)
            if ready:
                self.pump()
            if free:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(self.process.fd, data) :]

    def click(self, column: int, row: int) -> None:
        """A left click at a cell, both from 0, as xterm's SGR mouse mode reports it."""
        self.type(f"\x1b[<0;{column + 1};{row + 1}M\x1b[<0;{column + 1};{row + 1}m")

    def find(self, text: str) -> tuple[int, int]:
        """(column, row) where the text first stands on the screen."""
        for row, line in enumerate(self.screen.display):
            if (column := line.find(text)) >= 0:
                return column, row
        raise AssertionError(f"{text!r} is not on the screen:\n{self.text}")

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def wait_exit(self, seconds: float = 10.0) -> int:
        """The exit code; negative for a signal. AssertionError if it goes on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump(0.05)
            if not self.process.isalive():
                code = self.process.exitstatus
                return code if code is not None else -int(self.process.signalstatus or 0)
        raise AssertionError(f"still running after {seconds} s; the screen holds:\n{self.text}")
