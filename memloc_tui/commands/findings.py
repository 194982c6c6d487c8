"""`memloc-tui findings`: the paper's claims on this model and this set, with the paper's numbers beside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from rich.padding import Padding
from rich.text import Text

from memloc_core.codec import to_json
from memloc_core.findings import DRAWN_FROM
from memloc_core.requests import Finding
from memloc_tui.commands.console import Asker, Out, print_json, run, table_of
from memloc_tui.figures import figure, interval
from memloc_tui.findings import SIGNS, Pace, Step, claims_named, clock, planned, setting_of, test
from memloc_tui.glyphs import visible
from memloc_tui.settings import Settings

OnFound = Callable[[int, Finding, float, "float | None"], None]
LOOKS = {"holds": "green", "does not hold": "red", "inconclusive": "yellow"}


def findings(settings: Settings, quick: bool, only: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Test the claims, one after the other; each finding is kept as soon as it is made."""
    claims = claims_named(only)

    async def work(asker: Asker) -> tuple[dict[str, Any], list[Finding]]:
        def say(done: int, finding: Finding, seconds: float, left: float | None) -> None:
            rest = f"; about {clock(left)} left" if left and done < len(claims) else ""
            asker.say(f"{done} of {len(claims)}  {finding.claim}: {finding.verdict} ({seconds:.1f} s{rest})")

        found = await findings_of(asker, quick, only, seed, say)
        model, paragraphs = asker.session.model, asker.catalogue.paragraphs
        assert model is not None
        about: dict[str, Any] = {"model": model.name, "fingerprint": model.fingerprint, "dtype": model.dtype}
        about |= {"device": model.device, "edits": [edit.fingerprint for edit in asker.session.edits if edit.on]}
        about |= {"paragraphs": paragraphs.source, "paragraphs_fingerprint": paragraphs.fingerprint}
        return about | {"quick": quick, "seed": seed}, found

    about, found = run(settings, work)
    if as_json:
        print_json(to_json({"findings": [vars(finding) for finding in found], **about}))
        return
    out = Out()
    table = table_of("claim", "effect", "95 % interval", "n", "paper", left=("verdict",))
    table.box = None  # 80 columns hold it without lines
    for f in found:
        numbers = (figure(f.effect), interval(*f.interval)) if f.effect is not None and f.interval else ("–", "–")
        paper = figure(f.paper) if f.paper is not None else "–"
        verdict = Text(f"{SIGNS[f.verdict]} {f.verdict}", LOOKS[f.verdict])
        table.add_row(f.claim, *numbers, str(f.n or "–"), paper, verdict)
    out.print(table)
    for f in found:
        head = Text.assemble("\n", (f"{SIGNS[f.verdict]} ", LOOKS[f.verdict]), (f.sentence, "bold"))
        said = f"Effect: {f.unit}. Paper: {f.paper_says}." + (f" Seen in {f.paragraph}." if f.paragraph else "")
        out.print(head)
        out.print(Padding(Text.assemble(visible(f.says), (f" {said}", "dim")), (0, 0, 0, 2)))


async def findings_of(
    asker: Asker, quick: bool, only: Sequence[str] = (), seed: int = 0, on_found: OnFound | None = None
) -> list[Finding]:
    """Every claim (or those of `only`) tested on the asker's paragraphs, under its progress bar.

    `on_found` gets how many are done, the finding, the seconds it took, and about how many the rest will take.
    Raises UsageError, EngineDied.
    """
    claims = claims_named(only)
    await asker.score(range(min(DRAWN_FROM, len(asker.catalogue.file))))
    setting = setting_of(asker.catalogue, asker.session.model, quick, seed)
    plan, pace, found = await asyncio.to_thread(planned, claims, setting), Pace(), []

    def heard(show: Callable[[float], None], step: Step) -> None:
        show(step.done)

    for place, claim in enumerate(claims, 1):
        started = monotonic()
        with asker.bar(f"claim {place} of {len(claims)}, {claim.name}") as show:
            found.append(await test(asker.session, claim, setting, pace, partial(heard, show)))
        if on_found is not None:
            left = pace.left(asker.session, [plan[later.name] for later in claims[place:]])
            on_found(place, found[-1], monotonic() - started, left)
    return found
