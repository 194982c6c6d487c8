"""The question on screen: how does the continuation fare under these replacements, and what does the model say?

First what is known already, at once; then the engine. The score comes before the model's own continuation, and an
answer is kept only if its question is still the one on screen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from memloc_core.errors import Cancelled, EngineDied, MemlocError
from memloc_core.requests import Ablated, Answer, Continue, Perturb, Request
from memloc_tui.glyphs import visible
from memloc_tui.screens.study import Question, Study
from memloc_tui.view import Score, Trial, score_of

if TYPE_CHECKING:
    from textual.worker import WorkType

    from memloc_tui.screens.explorer import Explorer

PATIENCE = 0.15  # seconds before a pane says that it waits: a fast answer never flickers


class Asking:
    """Keeps a study's answer up to date with its question."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer

    @property
    def study(self) -> Study:
        assert self.explorer.study is not None
        return self.explorer.study

    def ask(self) -> None:
        """Show what is known about the current question, and ask the engine for the rest."""
        study = self.study
        if study.current < 0:
            return
        question = study.question
        study.error = "" if study.identity else self.explorer.memloc.refusal
        if not study.identity:
            self.explorer.draw()
            return
        self._recall()
        score = self._known_score(question)
        if score is not None:
            own = self._known_own(question, score)
            self._answered(question, score, own or ())
            if own is not None:
                self.explorer.workers.cancel_group(self.explorer, "answer")
                return
        else:
            study.asking = False
            self.explorer.set_timer(PATIENCE, lambda: self._still_asking(question))
            # A new paragraph's text comes before its numbers; a new token before its effect, beside the old numbers.
            self.explorer.draw(all_panes=study.score is None)
        work: WorkType[None] = partial(self._answer, question)
        self.explorer.run_worker(work, group="answer", exclusive=True, exit_on_error=False)

    def _recall(self) -> None:
        """The paragraph's trials of earlier sittings, as far as the cache knows their answers under these weights."""
        study, session = self.study, self.explorer.memloc.session
        if study.here.recalled or session is None:
            return
        study.here.recalled = True
        p = study.catalogue.paragraphs
        for against, replaced, ablated in reversed(study.resume.tried.get(study.id, [])):
            replacements, heads = (tuple((a, b) for a, b in pairs) for pairs in (replaced, ablated))
            if all(study.fits(*pair) for pair in replacements):
                request: Request = Perturb(p.row(study.current), replacements, p.prefix_length, against)
                if answer := session.peek(Ablated(request, heads) if heads else request):
                    study.record(Trial(replacements, score_of(answer, cached=True)))

    def _still_asking(self, question: Question) -> None:
        study = self.explorer.study
        if study is not None and study.question == question != study.answered and not study.error:
            study.asking = True
            self.explorer.draw()

    def perturb(self, question: Question) -> Request:
        """The request behind a question's score."""
        study = self.study
        p = study.catalogue.paragraphs
        reference = study.reference(question.row) if question.replacements else "true"
        return study.posed(Perturb(p.row(question.row), question.replacements, p.prefix_length, reference))

    def continuation(self, question: Question, score: Score) -> Request:
        """The model's own text from the first mismatch on: after the prefix as it stands and what it recites."""
        prompt = (*self.study.prefix(question.row, question.replacements), *score.reference[: score.em])
        return self.study.posed(Continue(prompt, len(score.reference) - score.em))

    def _clean_score(self, row: int) -> Score | None:
        """The score of the unperturbed paragraph from the list's own answers."""
        catalogue = self.study.catalogue
        scored = catalogue.scored(row)
        if scored is None:
            return None
        result, at = scored
        em, nll = int(result.em[at]), float(result.nll[at])
        true = tuple(catalogue.paragraphs.tokens[row, catalogue.paragraphs.prefix_length :].tolist())
        predicted, token_nll = (tuple(values[at].tolist()) for values in (result.predicted, result.token_nll))
        return Score(true, predicted, em, em, float(result.margin[at]), nll, nll, token_nll=token_nll)

    def _known_score(self, question: Question) -> Score | None:
        whole = not question.replacements and not question.ablated
        if whole and (score := self._clean_score(question.row)) is not None:
            return score
        if question.replacements and self._needs_stratum(question):
            return None
        session = self.explorer.memloc.session
        answer = session.peek(self.perturb(question)) if session else None
        return self._scored(question, answer, cached=True) if answer else None

    def _scored(self, question: Question, answer: Answer[Any], cached: bool) -> Score:
        """An answer's score. Of an unperturbed paragraph without some heads: beside what it is with all of them."""
        score = score_of(answer, cached)
        clean = self._clean_score(question.row)
        if question.ablated and not question.replacements and clean is not None:
            return replace(score, em_before=clean.em, nll_before=clean.nll)
        return score

    def _needs_stratum(self, question: Question) -> bool:
        """Whether the reference depends on an exact match that is not known yet."""
        return question.reference == "auto" and self.study.catalogue.em[question.row] < 0

    def _known_own(self, question: Question, score: Score) -> tuple[int, ...] | None:
        if score.em >= len(score.reference):
            return ()
        session = self.explorer.memloc.session
        answer: Any = session.peek(self.continuation(question, score)) if session else None
        return tuple(answer.result.tokens.tolist()) if answer else None

    async def _answer(self, question: Question) -> None:
        session, study = self.explorer.session, self.study

        def late() -> bool:
            return self.explorer.study is not study or question != study.question

        try:
            if question.replacements and self._needs_stratum(question):
                p = study.catalogue.paragraphs
                clean = Perturb(p.row(question.row), (), p.prefix_length)
                em = score_of(await session.ask(clean), cached=False).em
                if study.catalogue.em[question.row] < 0:
                    study.catalogue.em[question.row] = em  # its chunk will confirm it
            if late():
                return
            score = self._known_score(question)
            if score is None:
                score = self._scored(question, await session.ask(self.perturb(question)), cached=False)
                if late():
                    return
                self._answered(question, score, ())
            if score.em < len(score.reference):
                answer: Any = await session.ask(self.continuation(question, score))
                if not late():
                    self._answered(question, score, tuple(answer.result.tokens.tolist()))
        except Cancelled:
            return
        except MemlocError as error:
            if not late():
                study.error, study.asking = visible(str(error)), False
                self.explorer.draw()
            if isinstance(error, EngineDied):
                self.explorer.memloc.engine_died(error)

    def _answered(self, question: Question, score: Score, own: tuple[int, ...]) -> None:
        study = self.study
        study.answered = question
        study.score, study.own, study.asking, study.error = score, own, False, ""
        if study.trying is not None:
            self.explorer.choosing.learned(dict(question.replacements), score.em)
        elif question.replacements:
            study.record(Trial(question.replacements, score))
            self.explorer.memloc.save_soon()
        self.explorer.draw()

    def answers(self) -> list[Any]:
        """The answers on screen, with what reproduces them."""
        session, study = self.explorer.memloc.session, self.study
        if session is None or study.current < 0:
            return []
        question = study.question
        requests: list[Request] = [self.perturb(question)]
        if not question.replacements:
            requests.append(study.catalogue.request(study.catalogue.chunk_of(study.current)))
        if study.score is not None and study.score.em < len(study.score.reference):
            requests.append(self.continuation(question, study.score))
        if (sweep := study.here.sweep) is not None and sweep.done:
            requests.append(sweep.request)
        return [answer for request in requests if (answer := session.peek(request)) is not None]
