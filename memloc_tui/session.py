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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from memloc_core.errors import Cancelled, MemlocError
from memloc_core.requests import (
    Answer,
    Edited,
    EncodeText,
    ModelInfo,
    OpenModel,
    OpenParagraphs,
    ParagraphSet,
    Progress,
    ReadVocabulary,
    Request,
    Sweep,
    Sweeps,
    Vocabulary,
)
from memloc_tui.edits import ActiveEdit, active, check
from memloc_tui.settings import Settings

if TYPE_CHECKING:
    from memloc_cache.store import ResultCache
    from memloc_tui.engine_client import EngineClient

# Sweeps asked as one, which fills passes that those of one paragraph do not; but a stop loses what is being computed.
TOGETHER_ON_GPU, TOGETHER_IF_SMALL, SMALL = 64, 10, 20_000_000  # of so many weights
_REMEMBERED = 4096  # answers kept in memory
OnProgress = Callable[[Progress], None]


@dataclass
class _Flight:
    """A question that is being computed, and everyone who waits for its answer."""

    question: Request
    task: asyncio.Task[Answer[Any]] = field(init=False)
    waiting: int = 0
    listeners: list[OnProgress] = field(default_factory=list)


class Session:
    """See the module. All methods belong to one asyncio loop; nothing here blocks it for more than a few ms.

    `on_state` gets "starting", "loading", "ready", "busy", "died" or "refused"; `on_notice` a sentence for the person.
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
        self.edits: tuple[ActiveEdit, ...] = ()  # in the order in which they are applied
        self.confirmed = False  # the engine has read the weights, and they are the ones that `model` describes
        self.on_state, self.on_notice = on_state, on_notice
        self._client: EngineClient | None = None
        self._cache: ResultCache | None = None
        self._memory: OrderedDict[str, Answer[Any]] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._on_part: Callable[[str], None] = lambda part: None
        self._model_key = self._state = ""
        self._told: set[str] = set()

    async def open(self, on_part: Callable[[str], None] = lambda part: None, *, lazily: bool = False) -> None:
        """Open vocabulary, paragraphs and model. `on_part` gets "vocabulary", "paragraphs", "model" as each is there
        (again, if the engine corrects what the cache had said: then every result on screen must be asked for anew).
        `lazily` leaves the engine alone where the cache knows all three, until a question needs it.
        Raises MemlocError with the reason where one of them cannot be opened."""
        from memloc_core import sources

        settings = self.settings
        self._on_part = on_part
        if settings.edits and not self.edits:
            self.edits = tuple(active(name) for name in settings.edits)
        revision = settings.revision
        self._state = model_state = sources.state(sources.model_folder(settings.model, revision))
        paragraphs_state = sources.state(*sources.paragraph_files(settings.paragraphs))
        opening = OpenModel(settings.model, settings.dtype, settings.device, revision)
        vocabulary = ReadVocabulary(settings.model, revision)
        paragraphs = OpenParagraphs(
            settings.paragraphs,
            settings.model,
            settings.prefix_length,
            settings.continuation_length,
            revision,
            settings.begin_of_text,
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
            check(self.edits, known.result)
        if lazily and self.known:
            return
        await client.start()
        for request, part in ((vocabulary, "vocabulary"), (paragraphs, "paragraphs")):
            if getattr(self, part) is None:
                answer = await client.ask(request)
                if self._unchanged():
                    self._store(keys[request], answer)
                self._set_part(part, answer.result)
        assert client.opened is not None
        answer = await asyncio.shield(client.opened)
        self._confirm(answer)
        check(self.edits, answer.result)

    async def confirm(self) -> None:
        """Have the engine read the weights, unless it has; it is started again if it has ended or could not.
        Raises MemlocError with the reason where it cannot."""
        if self._client is None:
            raise Cancelled("The session is not open.")
        await self._client.start()
        assert self._client.opened is not None
        self._confirm(await asyncio.shield(self._client.opened))

    @property
    def known(self) -> bool:
        """Whether vocabulary, paragraphs and model are there, be it from the cache."""
        return self.vocabulary is not None and self.paragraphs is not None and self.model is not None

    def set_edits(self, edits: Sequence[ActiveEdit]) -> None:
        """From now on ask with these edits, applied in this order; those that are off are only kept in the list.

        Questions on their way keep the edits they were asked with. What is on screen must be asked for anew.
        Raises MemlocError, and changes nothing, for an edit of another model."""
        if self.model is not None:
            check(edits, self.model)
        self.edits = tuple(edits)

    def peek(self, request: Request) -> Answer[Any] | None:
        """The answer if it is already in memory or on disk; never asks the engine."""
        question = self._question(request)
        return self._known(self._key(question), question) if self.model is not None and question.keeps else None

    async def ask(self, request: Request, on_progress: OnProgress | None = None) -> Answer[Any]:
        """The answer from memory, disk or the engine. The same question asked twice is computed once.

        A question about the model is asked with the edits that are on, unless it is an `Edited`, which says itself
        with which. Either way the answer's request is the bare one, and its provenance names the edits.

        Cancelling the awaiting task cancels the engine's work, once nobody else waits for it. Raises MemlocError
        (what was wrong with the question), EngineDied (ask again: the engine restarts by itself)."""
        if self._client is None:
            raise Cancelled("The session is not open.")
        edits, question = self.edits, self._question(request)
        if self.model is None:
            await self.confirm()
        assert self.model is not None
        if not isinstance(request, Edited):
            check(edits, self.model)
        key = self._key(question)
        if question.keeps and (known := self._known(key, question)):
            return known
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(question)
            flight.task = asyncio.create_task(self._compute(key, flight))
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

    def together(self, requests: Sequence[Request]) -> int:
        """How many of the first of these are best asked together: sweeps alike that nobody has answered yet, else 1."""
        assert self.model is not None
        small = TOGETHER_IF_SMALL if self.model.parameters <= SMALL else 1
        most = small if self.model.device == "cpu" else TOGETHER_ON_GPU
        alike = 0
        for request in requests[:most]:
            kind = _any_paragraphs(request)
            if kind is None or kind != _any_paragraphs(requests[0]) or self.peek(request) is not None:
                break
            alike += 1
        return max(1, alike)

    async def ask_together(self, requests: Sequence[Request], heard: OnProgress | None = None) -> list[Answer[Any]]:
        """The answers to as many requests as `together` counts; each is kept as if it had been asked alone."""
        if len(requests) == 1:
            return [await self.ask(requests[0], heard)]
        questions = [self._question(request) for request in requests]
        posed = [question if isinstance(question, Edited) else Edited(question) for question in questions]
        sweeps = tuple(one.request for one in posed if isinstance(one.request, Sweep))  # all of them are
        answer = await self.ask(replace(posed[0], request=Sweeps(sweeps)), heard)
        provenance = replace(answer.provenance, seconds=answer.provenance.seconds / len(posed))
        answers = [Answer(one.request, s, provenance) for one, s in zip(posed, answer.result.scores, strict=True)]
        for one, found in zip(posed, answers, strict=True):
            self.keep(replace(found, request=one))
        return answers

    def keep(self, answer: Answer[Any]) -> None:
        """Keep what was worked out from other answers, under the model and, where the request does not say which, the
        edits that are on now."""
        question = self._question(answer.request)
        self._store(self._key(question), replace(answer, request=question))

    def pause(self, request: Request, paused: bool) -> bool:
        """Take no further step of a question that is being computed, or go on; False where it is none.

        The engine answers others meanwhile. A paused question can be cancelled like any other."""
        found = False
        for flight in self._flights.values():  # its question may hold edits that are off by now
            if request in (flight.question, getattr(flight.question, "request", None)) and self._client is not None:
                found |= self._client.pause(flight.question, paused)
        return found

    async def close(self) -> None:
        """End the engine process and close the cache. Safe to call twice, or before `open` has finished."""
        for flight in list(self._flights.values()):
            flight.task.cancel()
        if self._client is not None:
            await self._client.close()
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    async def _compute(self, key: str, flight: _Flight) -> Answer[Any]:
        assert self._client is not None

        def heard(progress: Progress) -> None:
            for listener in list(flight.listeners):
                listener(progress)

        try:
            answer = await self._client.ask(flight.question, heard)
            self._tell(answer.provenance.notices)
            # The engine opens its model before it computes, and the answer is that of the weights it found.
            assert self._client.opened is not None
            self._confirm(await asyncio.shield(self._client.opened))
            return self._store(self._key(flight.question), answer) if flight.question.keeps else _bare(answer)
        except MemlocError:
            opened = self._client.opened
            if opened is not None and opened.done() and not opened.cancelled() and opened.exception() is not None:
                await opened  # the model could not be opened: that is the reason, and it is said there
            raise
        finally:
            self._land(key, flight)

    def _tell(self, notices: tuple[str, ...]) -> None:
        """What the engine noticed while it computed, such as a batch that was too large: each sentence once."""
        for notice in notices:
            if notice not in self._told:
                self._told.add(notice)
                self.on_notice(notice)

    def _land(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _confirm(self, answer: Answer[Any]) -> None:
        """What the engine read replaces what the cache had said, and says so where they differ."""
        info: ModelInfo = answer.result
        before, self.confirmed = self.model, True
        if (before != info or self._model_key not in self._memory) and self._unchanged():
            self._store(self._model_key, answer)
        if before == info:
            return
        if before is not None and before.identity != info.identity:
            self.on_notice(f"The weights of {info.name} are not those of the last visit; its results are new.")
        self._set_part("model", info)

    def _unchanged(self) -> bool:
        """Whether the model's files are still those that the keys of what was read from them name."""
        from memloc_core import sources

        try:
            return sources.state(sources.model_folder(self.settings.model, self.settings.revision)) == self._state
        except MemlocError:  # gone by now; what was read is right all the same
            return False

    def _set_part(self, part: str, value: Any) -> None:
        setattr(self, part, value)
        for notice in getattr(value, "notices", ()):
            self.on_notice(notice)
        self._on_part(part)

    def _question(self, request: Request) -> Request:
        """The request with the edits that are on; with none, a bare one."""
        if isinstance(request, Edited):
            return request if request.edits else request.request
        on = [edit for edit in self.edits if edit.on]
        if not on or isinstance(request, OpenModel | ReadVocabulary | OpenParagraphs | EncodeText):
            return request
        return Edited(request, tuple(edit.fingerprint for edit in on), tuple(edit.file for edit in on))

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
        return self._remember(key, answer)

    def _store(self, key: str, answer: Answer[Any]) -> Answer[Any]:
        if self._cache is not None and answer.result.is_whole:
            kept = answer
            if isinstance(answer.request, Edited):  # where an edit's file lay is no part of the question
                kept = replace(answer, request=replace(answer.request, files=()))
            self._cache.put(key, kept)
        return self._remember(key, answer)

    def _remember(self, key: str, answer: Answer[Any]) -> Answer[Any]:
        self._memory[key] = answer = _bare(answer)
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
        return answer

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


def _bare(answer: Answer[Any]) -> Answer[Any]:
    """The answer with the request that the edits stood around."""
    return replace(answer, request=answer.request.request) if isinstance(answer.request, Edited) else answer


def _any_paragraphs(request: Request) -> Request | None:
    """The sweep that this is, whatever its paragraph; None for what is no sweep."""
    if isinstance(request, Edited):
        inner = _any_paragraphs(request.request)
        return inner and replace(request, request=inner)
    return replace(request, paragraph=(), reference="true") if isinstance(request, Sweep) else None
