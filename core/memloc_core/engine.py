"""Answers requests: the table from request type to analysis, and the order in which requests are served.

Requests about files need no torch and are answered before it is imported; the table names modules, so each is imported
when its first request comes.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from memloc_core import __version__
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import (
    Ablated,
    ActivationGradients,
    ActivationPatching,
    Alternatives,
    Answer,
    Attention,
    AttentionPattern,
    AttributionPatching,
    Continue,
    ContrastGradients,
    Edited,
    EstimateRun,
    ExactMatch,
    ExportCheckpoint,
    HeadAblation,
    MeasureRemains,
    OpenModel,
    OpenParagraphs,
    ParameterGradients,
    Perturb,
    Progress,
    Provenance,
    RareTokens,
    Rarity,
    ReadVocabulary,
    Request,
    Result,
    Sweep,
    Unlearn,
)

if TYPE_CHECKING:
    from memloc_core.language_model import LanguageModel

# A new analysis is one line here, one pair of dataclasses in `requests`, and one file in `analyses`.
ANALYSES: dict[type[Request], str] = {
    ExactMatch: "exact_match:run",
    Continue: "continuation:run",
    Alternatives: "continuation:run_alternatives",
    Perturb: "perturbation:run",
    Sweep: "perturbation:run_sweep",
    Ablated: "ablation:run_ablated",
    ParameterGradients: "parameter_gradients:run",
    ContrastGradients: "parameter_gradients:run_contrast",
    ActivationGradients: "activation_gradients:run",
    Attention: "attention:run",
    AttentionPattern: "attention:run_pattern",
    Rarity: "rarity:run",
    HeadAblation: "ablation:run",
    AttributionPatching: "patching:run_attribution",
    ActivationPatching: "patching:run",
    RareTokens: "rare_tokens:run",
    Edited: "editing:run",
    Unlearn: "unlearning:run",
    EstimateRun: "unlearning:run_estimate",
    MeasureRemains: "remains:run",
    ExportCheckpoint: "editing:run_export",
}

Steps = Generator[Progress, None, Result]


def analysis(lm: LanguageModel, request: Request) -> Steps:
    """The steps of one analysis. Raises UsageError for a request that is none."""
    if type(request) not in ANALYSES:
        raise UsageError(f"{type(request).__name__} is no analysis.")
    module, function = ANALYSES[type(request)].split(":")
    run = getattr(importlib.import_module(f"memloc_core.analyses.{module}"), function)
    steps: Steps = run(lm, request)
    return steps


class Engine:
    """Holds the open model and turns requests into generators of steps that end with an Answer."""

    def __init__(self) -> None:
        self.lm: LanguageModel | None = None

    def needs_model(self, request: Request) -> bool:
        return type(request) in ANALYSES

    def steps(self, request: Request) -> Generator[Progress, None, Answer[Any]]:
        """Run a request. Raises MemlocError for what the person can mend; closing the generator cancels it."""
        started, waited = time.perf_counter(), 0.0
        notices_before = len(self.lm.notices) if self.lm else 0
        work = self._start(request)
        while True:
            try:
                progress = next(work)
            except StopIteration as stop:
                seconds = time.perf_counter() - started - waited
                return Answer(request, stop.value, self._provenance(seconds, notices_before))
            paused = time.perf_counter()  # what is served between two steps is not this request's time
            try:
                yield progress
            finally:
                waited += time.perf_counter() - paused

    def _start(self, request: Request) -> Steps:
        if isinstance(request, OpenModel):
            return self._open_model(request)
        if isinstance(request, ReadVocabulary | OpenParagraphs):
            return _read(request)
        if type(request) not in ANALYSES:
            raise UsageError(f"{type(request).__name__} is no request.")
        if self.lm is None:
            raise MemlocError("No model is open.")
        return analysis(self.lm, request)

    def _open_model(self, request: OpenModel) -> Steps:
        yield Progress(0, 2, "importing torch")
        from memloc_core import language_model

        yield Progress(1, 2, "reading weights")
        self.lm = None  # the old model's memory goes before the new one needs it
        self.lm = language_model.load(request)
        return self.lm.info

    def _provenance(self, seconds: float, notices_before: int) -> Provenance:
        versions = {"memloc-tui": __version__}
        if self.lm is None:
            return Provenance("", "", "", "", "", "", seconds, versions)
        import torch
        import transformers

        info = self.lm.info
        versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
        notices = tuple(self.lm.notices[notices_before:])
        return Provenance(
            info.name, info.fingerprint, "", info.dtype, info.device, info.attention, seconds, versions, notices
        )


def _read(request: ReadVocabulary | OpenParagraphs) -> Steps:
    yield Progress(0, 1, "files")
    if isinstance(request, OpenParagraphs):
        from memloc_core.paragraphs import open_paragraphs

        return open_paragraphs(request)
    from memloc_core.sources import model_folder
    from memloc_core.tokenizers import read_vocabulary

    return read_vocabulary(model_folder(request.model))
