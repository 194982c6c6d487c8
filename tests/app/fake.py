"""A session that computes small answers by rules that a test can work out by hand, without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memloc_core.errors import MemlocError
from memloc_core.requests import (
    Ablated,
    Alternatives,
    Answer,
    Continuation,
    Continue,
    Edited,
    ExactMatch,
    ExactMatches,
    ModelInfo,
    ParagraphSet,
    Perturb,
    Perturbation,
    Progress,
    Provenance,
    Request,
    Sweep,
    SweepScores,
    TokenAlternatives,
    Vocabulary,
)

P, C = 50, 50
SPECIAL = [b"\n", b"\t", b"\x1b[2J", b"\xe2", b" [red]", "\u202e".encode(), " 漢字".encode(), b"\x07", b""]
WORDS = [f"{' ' if i % 4 else ''}w{i}".encode() for i in range(200)]
PIECES = [*WORDS, *SPECIAL, b" dog", b"dog", b" dogs"]
V = len(PIECES)
DOG = len(WORDS) + len(SPECIAL)


def make_vocabulary() -> Vocabulary:
    offsets = np.cumsum([0, *map(len, PIECES)])
    return Vocabulary(np.frombuffer(b"".join(PIECES), np.uint8), offsets.astype(np.int64), "fake")


def make_paragraphs(n: int = 30) -> ParagraphSet:
    tokens = np.array([[(row * 31 + 7 * i) % len(WORDS) for i in range(P + C)] for row in range(n)], np.int64)
    for place, size in ((-1, 1), (-2, 200), (-3, 40_000)):
        tokens[:, place] = np.arange(n) // size % 200  # no two rows are alike
    return ParagraphSet(
        source="fake",
        fingerprint="fake",
        prefix_length=P,
        ids=tuple(f"{row:03d}abc" for row in range(n)),
        tokens=tokens,
        counts=np.arange(V, 0, -1).astype(np.int64) * 3,
        counts_of="corpus",
        repetitions=np.array([2 ** (row % 8) for row in range(n)], np.int64),
        family=np.arange(n, dtype=np.int64) // 3,
        genre=tuple(("recipe", "letter", "notice")[row % 3] for row in range(n)),
        split=tuple(("train", "fresh")[row % 2] for row in range(n)),
    )


def base_em(row: int) -> int:
    """50 for the first rows, then a middle, then small ones: rows 0..9, 10..19, 20..29 of each thirty."""
    step = row % 30
    return C if step < 10 else 45 - 2 * (step - 10) if step < 20 else step - 20


def effect(position: int, token: int) -> int:
    """By how much one replacement lowers the exact match."""
    return (3 * position + token) % 17


def em_after(row: int, replacements: tuple[tuple[int, int], ...], reference: str = "true") -> int:
    start = C if reference == "own" else base_em(row)
    return max(0, start - sum(effect(i, t) for i, t in replacements))


class FakeSession:
    """The interface of `memloc_tui.session.Session`; `hold`, `deaf` and `fail` shape how answers come."""

    def __init__(self, n: int = 30, paragraphs: ParagraphSet | None = None) -> None:
        self._vocabulary, self._paragraphs = make_vocabulary(), paragraphs or make_paragraphs(n)
        self.rows = {self._paragraphs.row(i): i for i in range(min(n, len(self._paragraphs)))}
        self.vocabulary: Vocabulary | None = None
        self.paragraphs: ParagraphSet | None = None
        self.model: ModelInfo | None = None
        self.confirmed = False
        self.kept: dict[Request, Answer[Any]] = {}
        self.asked: list[Request] = []
        self.cancelled: list[Request] = []
        self.hold: dict[type[Request], asyncio.Event] = {}
        self.fail: dict[type[Request], MemlocError] = {}
        self.deaf: set[type[Request]] = set()  # answers these even after they were cancelled, as a slow engine might
        self.fail_open: MemlocError | None = None
        self.cached = False  # whether `parts` are known without the engine
        self.parts = ("vocabulary", "paragraphs", "model")
        self.closed = 0
        self.margin = 0.5
        self.edits: tuple[Any, ...] = ()
        self.paused: list[bool] = []
        self.on_state: Callable[[str], None] = lambda state: None
        self.on_notice: Callable[[str], None] = lambda text: None

    @property
    def known(self) -> bool:
        return self.vocabulary is not None and self.paragraphs is not None and self.model is not None

    async def open(self, on_part: Callable[[str], None] = lambda part: None) -> None:
        if self.fail_open and not self.cached:
            raise self.fail_open
        for part in self.parts:
            if part == "vocabulary":
                self.vocabulary = self._vocabulary
            elif part == "paragraphs":
                self.paragraphs = self._paragraphs
            else:
                self.model = self.make_model()
            on_part(part)
        await self.confirm()

    async def confirm(self) -> None:
        if self.fail_open:
            raise self.fail_open
        self.on_state("ready")

    def make_model(self, identity: str = "one") -> ModelInfo:
        return ModelInfo(
            name="fake [b]model[/b]", folder="", architecture="Fake", fingerprint="f", identity=identity,
            dtype="fp32", device="cpu", attention="eager", layers=2, heads=2, width=8, parameters=1,
            vocabulary=V, positions=128,
        )  # fmt: skip

    def set_edits(self, edits: Any) -> None:
        self.edits = tuple(edits)

    def pause(self, request: Request, paused: bool) -> bool:
        self.paused.append(paused)
        return True

    def question(self, request: Request) -> Request:
        """The request with the edits that are on."""
        if isinstance(request, Edited):
            return request if request.edits else request.request
        on = tuple(edit.fingerprint for edit in self.edits if edit.on)
        return Edited(request, on) if on else request

    def keep(self, answer: Answer[Any]) -> None:
        self.kept[self.question(answer.request)] = answer

    def peek(self, request: Request) -> Answer[Any] | None:
        return self.kept.get(self.question(request))

    async def ask(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Answer[Any]:
        question = self.question(request)
        edits, request = (question.edits, question.request) if isinstance(question, Edited) else ((), question)
        if question in self.kept:
            return self.kept[question]
        self.asked.append(question)
        try:
            if (event := self.hold.get(type(request))) is not None:
                if type(request) in self.deaf:
                    while not event.is_set():
                        try:
                            await event.wait()
                        except asyncio.CancelledError:
                            self.cancelled.append(request)
                else:
                    await event.wait()
            else:
                await asyncio.sleep(0)
            if (error := self.fail_open or self.fail.get(type(request))) is not None:
                raise error
            if isinstance(request, Sweep):
                result: Any = await self._sweep(request, on_progress)
            else:
                result = await self.compute(request, edits, on_progress)
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        answer = Answer(request, result, Provenance("fake", "f", "", "fp32", "cpu", "eager", 0.012))
        self.kept[question] = answer
        return answer

    def together(self, requests: Sequence[Request]) -> int:
        return 1

    async def ask_together(self, requests: Sequence[Request], heard: Any = None) -> list[Answer[Any]]:
        return [await self.ask(request, heard) for request in requests]

    async def compute(self, request: Request, edits: tuple[str, ...], on_progress: Any) -> Any:
        """What a subclass knows beyond `answer`."""
        return self.answer(request)

    async def _sweep(self, request: Sweep, on_progress: Callable[[Progress], None] | None) -> SweepScores:
        full = self.sweep(request)
        if event := self.hold.get(SweepScores):  # type: ignore[call-overload]
            known = full.em.copy()
            known[20:] = -1
            if on_progress:
                partial = SweepScores(full.reference, full.em_before, full.replacements, known, full.margin, full.nll)
                on_progress(Progress(20, P, "positions", partial=partial))
            await event.wait()
        return full

    def sweep(self, request: Sweep) -> SweepScores:
        row = self.rows[request.paragraph]
        new = [[(11 * i + d) % V for d in range(request.draws)] for i in range(P)]
        em = [[em_after(row, ((i, t),), request.reference) for t in ts] for i, ts in enumerate(new)]
        shape = np.full((P, request.draws), 0.5, np.float32)
        before = C if request.reference == "own" else base_em(row)
        reference = np.array(request.paragraph[P:], np.int64)
        verification = (0.1, 0.4, 0.25) if request.verified else ()
        return SweepScores(reference, before, np.array(new), np.array(em), shape, shape, *verification)

    def answer(self, request: Request) -> Any:
        if isinstance(request, ExactMatch):
            rows = [self.rows[p] for p in request.paragraphs]
            em = np.array([base_em(r) for r in rows], np.int64)
            predicted = np.array(
                [self.predicted(p[:P], p[P:], base_em(r)) for p, r in zip(request.paragraphs, rows, strict=True)]
            )
            nll = np.array([2.0 - e / 25 for e in em], np.float32)
            margin = np.full(len(rows), self.margin, np.float32)
            return ExactMatches(em, margin, nll, np.repeat(nll[:, None], C, 1), predicted)
        if isinstance(request, Perturb):
            row = self.rows[request.paragraph]
            prefix = list(request.paragraph[:P])
            for i, t in request.replacements:
                prefix[i] = t
            before = C if request.reference == "own" else base_em(row)
            after = em_after(row, request.replacements, request.reference)
            reference = request.paragraph[P:]
            return Perturbation(
                np.array(reference), before, after, self.margin, self.margin, 0.5, 1.5,
                np.array(self.predicted(tuple(prefix), reference, after)), np.full(C, 1.5, np.float32),
            )  # fmt: skip
        if isinstance(request, Continue):
            tokens = [(sum(request.prompt) + k) % len(WORDS) for k in range(request.length)]
            return Continuation(np.array(tokens), np.full(request.length, 0.5, np.float32))
        if isinstance(request, Ablated):
            return self.answer(request.request)
        if not isinstance(request, Alternatives):
            raise MemlocError(f"The fake knows no {type(request).__name__}.")
        tokens = [(request.position + 5 * k) % len(WORDS) for k in range(1, request.k + 1)]
        return TokenAlternatives(np.array(tokens), np.linspace(0.5, 0.01, request.k).astype(np.float32))

    @staticmethod
    def predicted(prefix: tuple[int, ...], reference: tuple[int, ...], em: int) -> list[int]:
        wrong = sum((*prefix, *reference[:em])) % len(WORDS)
        return [*reference[:em], *([wrong] * (C - em))]

    async def close(self) -> None:
        self.closed += 1
