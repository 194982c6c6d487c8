"""Testing the paper's claims through a session: claim by claim, every answer kept, progress and time left.

The explorer and the command line share it. A finding that was made before is looked up and asks nobody; a claim that
was stopped goes on with the answers that it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from memloc_core.errors import Cancelled, EngineDied, MemlocError, UsageError
from memloc_core.findings import CLAIMS, DRAWN_FROM, NAMES, Claim, Setting
from memloc_core.requests import (
    Ablated,
    Answer,
    Continue,
    Edited,
    ExactMatch,
    Finding,
    ParameterGradients,
    Provenance,
    RareTokens,
    Rarity,
    Request,
    Sweep,
    TryRun,
    Unlearn,
)

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.session import Session


@dataclass(frozen=True)
class Step:
    """How far a claim is: `done` is a share of what is known to be asked for it, `left` seconds, if that is known."""

    claim: Claim
    done: float
    left: float | None


OnStep = Callable[[Step], None]
SIGNS = {"holds": "✓", "does not hold": "✗", "inconclusive": "?"}  # a verdict never is a colour alone


def setting_of(catalogue: Catalogue, model: Any, quick: bool, seed: int = 0) -> Setting:
    """What claims are tested on. The exact matches of the first DRAWN_FROM rows must be in the catalogue."""
    m = min(DRAWN_FROM, len(catalogue.file))
    return Setting(catalogue.file, catalogue.em[:m].copy(), catalogue.nll[:m].copy(), model, quick, seed)


def claims_named(only: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of these names in the paper's order, all of them for (). Raises UsageError for a name of none."""
    if unknown := [name for name in only if name not in NAMES]:
        raise UsageError(f"{unknown[0]!r} is no claim; there are {', '.join(NAMES)}.")
    return tuple(claim for claim in CLAIMS if not only or claim.name in only)


def known(session: Session, setting: Setting, claims: Iterable[Claim] = CLAIMS) -> dict[str, Finding]:
    """What was found before, by the claims' names; nobody is asked."""
    found = {claim.name: _kept(session, claim, setting) for claim in claims}
    return {name: finding for name, finding in found.items() if finding is not None}


def _kept(session: Session, claim: Claim, setting: Setting) -> Finding | None:
    answer = session.peek(claim.question(setting))
    try:
        return answer.result.checked() if answer is not None else None
    except ValueError:  # a row of the cache that no version of this program wrote
        return None


def planned(claims: Iterable[Claim], setting: Setting) -> dict[str, list[Request]]:
    """What each claim asks for at first, by its name; some ask for more when they know that."""
    plan: dict[str, list[Request]] = {}
    for claim in claims:
        steps = claim.steps(setting)
        wanted = _next(steps, None)
        plan[claim.name] = [] if isinstance(wanted, Finding) else list(wanted)
        steps.close()
    return plan


class Pace:
    """Seconds per unit of cost, as measured so far."""

    def __init__(self) -> None:
        self._cost, self._seconds = 0.0, 0.0

    def took(self, cost: float, seconds: float) -> None:
        self._cost += cost
        self._seconds += seconds

    def seconds(self, requests: Iterable[Request], more: float = 0.0) -> float | None:
        """What these will take, and `more` cost; None before anything was measured."""
        return (sum(map(cost, requests)) + more) * self._seconds / self._cost if self._cost else None

    def left(self, session: Session, plan: Iterable[Iterable[Request]]) -> float | None:
        """What is still to be asked of a plan; the same request counts once."""
        requests = {request for part in plan for request in part}
        return self.seconds(request for request in requests if session.peek(request) is None)


async def test(session: Session, claim: Claim, setting: Setting, pace: Pace, on_step: OnStep) -> Finding:
    """One claim. What the model cannot answer makes it inconclusive; raises EngineDied and Cancelled."""
    question = claim.question(setting)
    if (kept := _kept(session, claim, setting)) is not None:
        return kept
    # What is asked one after the other is all asked of the weights as they are now, whatever is on a minute later.
    on, model = [edit for edit in session.edits if edit.on], session.model
    fingerprints, files = tuple(edit.fingerprint for edit in on), tuple(edit.file for edit in on)
    steps = claim.steps(setting)
    provenance: Provenance | None = None
    spent = 0.0

    def told(done: float, theirs: float, total: float, rest: Sequence[Request], progress: Any = None) -> None:
        """`theirs` is the cost of what is being asked, of which so much has been made; without any progress, all."""
        share = 1.0 if progress is None else progress.done / max(1, progress.total)
        on_step(Step(claim, (done + share * theirs) / total, pace.seconds(rest, (1 - share) * theirs)))

    try:
        # Verdicts resample some thousand times: in a thread, or keys would wait.
        wanted = await asyncio.to_thread(_next, steps, None)
        while not isinstance(wanted, Finding):
            answers: list[Any] = []
            total = sum(map(cost, wanted)) or 1.0
            while ahead := [Edited(request, fingerprints, files) for request in wanted[len(answers) :]]:
                some, rest = ahead[: (n := session.together(ahead))], ahead[n:]
                done, theirs = total - sum(map(cost, ahead)), sum(map(cost, some))
                heard = partial(told, done, theirs, total, rest)
                started = monotonic()
                fresh = session.peek(some[0]) is None
                try:
                    found = await session.ask_together(some, heard)
                except (EngineDied, Cancelled):
                    raise
                except MemlocError as error:
                    wanted = await asyncio.to_thread(_throw, steps, error)
                    break
                if fresh:
                    pace.took(theirs, monotonic() - started)
                    spent += sum(answer.provenance.seconds for answer in found)
                provenance = found[-1].provenance
                answers += [answer.result for answer in found]
                heard()
            else:
                wanted = await asyncio.to_thread(_next, steps, answers)
    finally:
        steps.close()
    if session.model != model:
        raise Cancelled("The model turned out to be another while a claim was tested.")
    if wanted.effect is not None:  # what could not be measured may be possible the next time
        provenance = provenance or _of_model(setting)
        session.keep(
            Answer(Edited(question, fingerprints, files), wanted, replace(provenance, seconds=spent, notices=()))
        )
    return wanted


def cost(request: Request) -> float:
    """About how long a request takes, in forward passes of one paragraph."""
    inner = request.request if isinstance(request, Edited) else request
    inner = inner.request if isinstance(inner, Ablated) else inner.run if isinstance(inner, TryRun) else inner
    if isinstance(inner, ExactMatch):
        return len(inner.paragraphs)
    if isinstance(inner, Sweep):
        return 0.6 * inner.prefix_length * inner.draws
    if isinstance(inner, ParameterGradients | Rarity):
        return 2 * len(inner.paragraphs)
    if isinstance(inner, RareTokens):
        return len(inner.paragraphs) * (1 + 2 * inner.pairs)
    if isinstance(inner, Unlearn):
        return 3 * inner.steps * (len(inner.targets) + inner.kept_per_step)  # backward takes two forward passes
    return inner.length / 4 if isinstance(inner, Continue) else 1


def clock(seconds: float) -> str:
    """`0:07`, `12:30`."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def _next(steps: Any, results: Any) -> Any:
    """The next requests of a claim, or its finding."""
    try:
        return steps.send(results)
    except StopIteration as stop:
        return stop.value


def _throw(steps: Any, error: MemlocError) -> Any:
    try:
        return steps.throw(error)
    except StopIteration as stop:
        return stop.value


def _of_model(setting: Setting) -> Provenance:
    m = setting.model
    return Provenance(m.name, m.fingerprint, "", m.dtype, m.device, m.attention, 0.0)
