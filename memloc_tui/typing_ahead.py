"""Keys that come faster than they can be carried out, as they do in bursts over a slow line, are carried out in turn.

Textual hands each key at once to the widget that has the keyboard, though the key before may be about to give it to
another one: of Enter and `w` in one burst the chooser would take the `w` as text before Enter closes it.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from contextlib import suppress
from typing import Any

from textual import events
from textual.app import App
from textual.message_pump import MessagePump

_ROUNDS = 2  # a key's action may post a message, and whoever hears of that gives the keyboard away
_PATIENCE = 0.5  # seconds for one widget: one that has just been removed may never answer
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def pasted(text: str, whole: bool) -> str:
    """What a text field gets of a paste, the ends of its lines as newlines. Most fields show it as it is: those get
    nothing that steers a terminal."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if whole else _STEERS.sub("", text)


class TypingAhead(App[object], inherit_bindings=False):
    """An app in which a key waits until what the one before set going has reached everyone from its widget upwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ahead: deque[events.Key | events.Paste] = deque()
        self._turn: asyncio.Task[None] | None = None

    @property
    def typing(self) -> bool:
        """Whether a key is still being carried out, or waits to be."""
        return self._turn is not None or bool(self._ahead)

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            self._ahead.append(event)
            if self._turn is None:
                await self._take()
        else:
            await super().on_event(event)

    async def _take(self) -> None:
        """Carry out the next key; the one after it comes when this one is through."""
        self._turn = None
        if self._ahead and self.screen_stack:  # without a screen the app is ending
            path: list[MessagePump] = [*(self.focused or self.screen).ancestors_with_self]
            self._turn = asyncio.create_task(self._end_turn(path))  # before: a key may end the app
            event = self._ahead.popleft()
            if isinstance(event, events.Paste):
                event.text = pasted(event.text, getattr(self.focused, "takes_all", False))
            await super().on_event(event)

    async def _end_turn(self, path: list[MessagePump]) -> None:
        for _ in range(_ROUNDS):
            for pump in path:  # a message bubbles this way, and is ahead of us in each one's queue
                passed = asyncio.Event()
                if pump.is_running and pump.call_later(passed.set):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(passed.wait(), _PATIENCE)
        self.call_next(self._take)
