"""The paper's claims as a table: what each says, its number, where it is seen, and the function that tests it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from memloc_core.errors import MemlocError
from memloc_core.findings import recitation, storage, unlearning
from memloc_core.findings.setting import Setting
from memloc_core.findings.verdicts import TooLittle
from memloc_core.requests import ClaimTest, Finding, Request

Steps = Generator[Sequence[Request], Sequence[Any], Finding]


@dataclass(frozen=True)
class Claim:
    """One claim. `paper` is the paper's number for the same effect in `unit`, on GPT-Neo 125M; None: it gives none."""

    name: str
    sentence: str
    unit: str
    paper: float | None
    paper_says: str
    view: str  # the tab that shows it
    test: Callable[[Setting], recitation.Steps]

    def steps(self, setting: Setting) -> Steps:
        """Yields the requests that it needs, takes their results, and returns the finding.

        What cannot be answered (a MemlocError thrown in by the caller) and too little data make it inconclusive.
        """
        try:
            found = yield from self.test(setting)
        except (TooLittle, MemlocError) as reason:
            return self.open(setting, str(reason))
        return Finding(
            self.name,
            self.sentence,
            found.verdict,
            found.effect,
            (found.low, found.high),
            found.n,
            setting.seed,
            self.paper,
            self.paper_says,
            self.unit,
            found.says,
            setting.paragraphs.ids[found.best] if found.best >= 0 else "",
            self.view,
        ).checked()

    def question(self, setting: Setting) -> ClaimTest:
        """Under what its finding is kept."""
        return ClaimTest(self.name, setting.fingerprint, setting.p, setting.quick, setting.seed)

    def open(self, setting: Setting, why: str) -> Finding:
        """The finding of a claim that could not be tested."""
        words = (self.paper, self.paper_says, self.unit, why, "", self.view)
        return Finding(self.name, self.sentence, "inconclusive", None, None, 0, setting.seed, *words)


CLAIMS = (
    Claim(
        "all-or-nothing",
        "Paragraphs are recited whole or hardly at all: few lie between.",
        "share of paragraphs",
        0.044,
        "586 of 13,450 paragraphs lie between",
        "perturb",
        recitation.all_or_nothing,
    ),
    Claim(
        "lower-nll",
        "Memorized paragraphs have the lower NLL, with hardly any overlap.",
        "share of pairs",
        None,
        "a figure, no number",
        "perturb",
        recitation.lower_nll,
    ),
    Claim(
        "harder-to-corrupt",
        "Memorized paragraphs are harder to corrupt by replacing a prefix token.",
        "EM per replaced token",
        33.12 - 12.19,
        "12.19 against 33.12",
        "perturb",
        recitation.harder_to_corrupt,
    ),
    Claim(
        "few-tokens",
        "A few tokens carry the recitation, more than in other text.",
        "share of the drop",
        None,
        "a figure, no number",
        "perturb",
        recitation.few_tokens,
    ),
    Claim(
        "early-token",
        "A single early token can often corrupt the whole continuation.",
        "share of paragraphs",
        None,
        "often",
        "perturb",
        recitation.early_token,
    ),
    Claim(
        "lower-layers",
        "A larger share of the gradient of memorized paragraphs lies in the lower layers.",
        "share of the gradient",
        0.587 - 0.293,
        ".587 against .293",
        "gradients",
        storage.lower_layers,
    ),
    Claim(
        "smaller-gradients",
        "The gradients of memorized paragraphs are smaller.",
        "times as large",
        9.71 / 53.01,
        "9.71 against 53.01",
        "gradients",
        storage.smaller_gradients,
    ),
    Claim(
        "component",
        "The contrast with other text points at one component.",
        "times the next one",
        None,
        "head 2 of layer 1",
        "gradients",
        storage.points_at_a_component,
    ),
    Claim(
        "rare-head",
        "A head attends to rare tokens, beyond what chance gives.",
        "tau-b",
        -0.97,
        "L1H2: -0.97, by another ranking",
        "heads",
        storage.attends_to_rare,
    ),
    Claim(
        "head-needed",
        "Without that head memorized text suffers more than other text.",
        "nats per token",
        None,
        "not tested",
        "heads",
        storage.head_is_needed,
    ),
    Claim(
        "rare-tokens",
        "Replacing a rare prefix token hurts more than replacing a common one.",
        "EM per replaced token",
        None,
        "examples, no number",
        "perturb",
        recitation.rare_tokens,
    ),
    Claim(
        "few-weights",
        "0.1 % of the weights unlearn a paragraph as well as all of them.",
        "EM left",
        26.75 - 26.90,
        "26.75 against 26.90",
        "unlearn",
        unlearning.few_weights,
    ),
    Claim(
        "random-weights",
        "As many random weights do not.",
        "EM left",
        49.80 - 26.75,
        "49.80 against 26.75",
        "unlearn",
        unlearning.random_weights,
    ),
    Claim(
        "editing",
        "Editing a paragraph is harder than unlearning it.",
        "EM left",
        33.65 - 26.75,
        "33.65 against 26.75",
        "unlearn",
        unlearning.editing,
    ),
    Claim(
        "memorized-resist",
        "Memorized text is harder to unlearn than other text.",
        "EM left",
        None,
        "a figure, no number",
        "unlearn",
        unlearning.memorized_resist,
    ),
)
NAMES = tuple(claim.name for claim in CLAIMS)
