"""One sitting with one model and one paragraph set: where every question is asked, by the explorer and the commands.

    request -> memory -> disk cache -> engine process -> answer -> memory and disk

A session opens from the cache alone where it can: a model folder is recognised by its files' names, sizes and times,
so earlier findings show before torch is imported. The engine then reads the weights and either confirms the model's
identity or corrects it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memloc_core.errors import Cancelled, MemlocError
from memloc_core.requests import (
    Answer,
    ModelInfo,
    OpenModel,
    OpenParagraphs,
    ParagraphSet,
    Progress,
    ReadVocabulary,
    Request,
    Vocabulary,
)
from memloc_tui.settings import Settings

if TYPE_CHECKING:
    from memloc_cache.store import ResultCache
    from memloc_tui.engine_client import EngineClient

_REMEMBERED = 4096  # answers kept in memory
OnProgress = Callable[[Progress], None]


@dataclass
class _Flight:
    """A question that is being computed, and everyone who waits for its answer."""

    task: asyncio.Task[Answer[Any]] = field(init=False)
    waiting: int = 0
    listeners: list[OnProgress] = field(default_factory=list)


class Session:
    """See the module. All methods belong to one asyncio loop; nothing here blocks it for more than a few ms.

    `on_state` gets "starting", "loading", "ready", "busy" or "died"; `on_notice` a sentence for the person.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_state: Callable[[str], None] = lambda state: None,
        on_notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings = settings
        self.model: ModelInfo | None = None
        self.vocabulary: Vocabulary | None = None
        self.paragraphs: ParagraphSet | None = None
        self.confirmed = False  # the engine has read the weights, and they are the ones that `model` describes
        self.on_state, self.on_notice = on_state, on_notice
        self._client: EngineClient | None = None
        self._cache: ResultCache | None = None
        self._memory: OrderedDict[str, Answer[Any]] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._on_part: Callable[[str], None] = lambda part: None
        self._model_key = ""

    async def open(self, on_part: Callable[[str], None] = lambda part: None, *, lazily: bool = False) -> None:
        """Open vocabulary, paragraphs and model. `on_part` gets "vocabulary", "paragraphs", "model" as each is there
        (again, if the engine corrects what the cache had said: then every result on screen must be asked for anew).
        `lazily` leaves the engine alone where the cache knows all three, until a question needs it.
        Raises MemlocError with the reason where one of them cannot be opened."""
        from memloc_core import sources

        settings = self.settings
        self._on_part = on_part
        model_state = sources.state(sources.model_folder(settings.model))
        paragraphs_state = sources.state(sources.paragraph_file(settings.paragraphs))
        opening = OpenModel(settings.model, settings.dtype, settings.device)
        vocabulary = ReadVocabulary(settings.model)
        paragraphs = OpenParagraphs(
            settings.paragraphs, settings.model, settings.prefix_length, settings.continuation_length
        )
        self._open_cache()
        client = self._open_client(opening)
        self._model_key = self._state_key(opening, model_state)
        keys = {
            vocabulary: self._state_key(vocabulary, model_state),
            paragraphs: self._state_key(paragraphs, model_state + paragraphs_state),
        }
        for request, part in ((vocabulary, "vocabulary"), (paragraphs, "paragraphs")):
            if known := self._known(keys[request], request):
                self._set_part(part, known.result)
        if known := self._known(self._model_key, opening):
            self._set_part("model", known.result)
        if lazily and self.vocabulary and self.paragraphs and self.model:
            return
        await client.start()
        for request, part in ((vocabulary, "vocabulary"), (paragraphs, "paragraphs")):
            if getattr(self, part) is None:
                answer = await client.ask(request)
                self._store(keys[request], answer)
                self._set_part(part, answer.result)
        assert client.opened is not None
        self._confirm(await asyncio.shield(client.opened))

    def peek(self, request: Request) -> Answer[Any] | None:
        """The answer if it is already in memory or on disk; never asks the engine."""
        return None if self.model is None else self._known(self._key(request), request)

    async def ask(self, request: Request, on_progress: OnProgress | None = None) -> Answer[Any]:
        """The answer from memory, disk or the engine. The same question asked twice is computed once.

        Cancelling the awaiting task cancels the engine's work, once nobody else waits for it. Raises MemlocError
        (what was wrong with the question), EngineDied (ask again: the engine restarts by itself)."""
        if self._client is None:
            raise Cancelled("The session is not open.")
        if self.model is None:
            await self._client.start()
            assert self._client.opened is not None
            self._confirm(await asyncio.shield(self._client.opened))
        key = self._key(request)
        if known := self._known(key, request):
            return known
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(self._compute(key, request, flight))
        if on_progress is not None:
            flight.listeners.append(on_progress)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if on_progress in flight.listeners:
                flight.listeners.remove(on_progress)
            if flight.waiting == 0 and not flight.task.done():
                self._land(key, flight)  # whoever asks again from now on must not wait for what is being cancelled
                flight.task.cancel()

    async def close(self) -> None:
        """End the engine process and close the cache. Safe to call twice, or before `open` has finished."""
        for flight in list(self._flights.values()):
            flight.task.cancel()
        if self._client is not None:
            await self._client.close()
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    async def _compute(self, key: str, request: Request, flight: _Flight) -> Answer[Any]:
        assert self._client is not None

        def heard(progress: Progress) -> None:
            for listener in list(flight.listeners):
                listener(progress)

        try:
            answer = await self._client.ask(request, heard)
            # The engine opens its model before it computes, and the answer is that of the weights it found.
            assert self._client.opened is not None
            self._confirm(await asyncio.shield(self._client.opened))
            self._store(self._key(request), answer)
            return answer
        except MemlocError:
            opened = self._client.opened
            if opened is not None and opened.done() and not opened.cancelled() and opened.exception() is not None:
                await opened  # the model could not be opened: that is the reason, and it is said there
            raise
        finally:
            self._land(key, flight)

    def _land(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _confirm(self, answer: Answer[Any]) -> None:
        """What the engine read replaces what the cache had said, and says so where they differ."""
        info: ModelInfo = answer.result
        before, self.confirmed = self.model, True
        if before != info or self._model_key not in self._memory:
            self._store(self._model_key, answer)
        if before == info:
            return
        if before is not None and before.identity != info.identity:
            self.on_notice(f"The weights of {info.name} are not those of the last visit; its results are new.")
        self._set_part("model", info)

    def _set_part(self, part: str, value: Any) -> None:
        setattr(self, part, value)
        for notice in getattr(value, "notices", ()):
            self.on_notice(notice)
        self._on_part(part)

    def _key(self, request: Request) -> str:
        from memloc_core.codec import cache_key

        assert self.model is not None
        return cache_key(request, self.model.identity)

    @staticmethod
    def _state_key(request: Request, state: str) -> str:
        from memloc_core.codec import cache_key

        return cache_key(request, hashlib.sha256(f"state {state}".encode()).hexdigest())

    def _known(self, key: str, request: Request) -> Answer[Any] | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        answer = self._cache.get(key) if self._cache is not None else None
        # The key is a hash of the request; a row that says otherwise was put there by somebody else.
        if not isinstance(answer, Answer) or answer.request != request or type(answer.result) is not request.answer:
            return None
        self._remember(key, answer)
        return answer

    def _store(self, key: str, answer: Answer[Any]) -> None:
        self._remember(key, answer)
        if self._cache is not None:
            self._cache.put(key, answer)

    def _remember(self, key: str, answer: Answer[Any]) -> None:
        self._memory[key] = answer
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)

    def _open_cache(self) -> None:
        if self.settings.use_cache:
            from memloc_cache.store import ResultCache

            self._cache = ResultCache(self.settings.cache_dir, on_warning=lambda text: self.on_notice(text))

    def _open_client(self, opening: OpenModel) -> EngineClient:
        from memloc_tui.engine_client import EngineClient
        from memloc_tui.state import state_dir

        log = state_dir() / "engine.log"
        self._client = EngineClient(opening, log, lambda state: self.on_state(state))
        return self._client
