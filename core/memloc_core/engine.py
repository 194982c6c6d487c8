"""Answers requests: the table from request type to analysis, and the order in which requests are served.

Requests about files need no torch and are answered before it is imported; the table names modules, so each is imported
when its first request comes.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Generator
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from memloc_core import __version__
from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import (
    Ablated,
    ActivationGradients,
    ActivationPatching,
    Alternatives,
    Answer,
    AssembleScan,
    Attention,
    AttentionPattern,
    AttributionPatching,
    Continue,
    ContrastGradients,
    CountBlock,
    DeviceNames,
    Edited,
    EncodeText,
    EstimateRun,
    ExactMatch,
    ExportCheckpoint,
    FindCorpus,
    HeadAblation,
    ListDevices,
    MeasureRemains,
    NearDuplicates,
    OpenModel,
    OpenParagraphs,
    ParameterGradients,
    Perturb,
    PlanScan,
    PrefixSignals,
    Progress,
    Provenance,
    RareTokens,
    Rarity,
    ReadVocabulary,
    Request,
    Result,
    ScanBlock,
    ScoreWindows,
    Sweep,
    Sweeps,
    TryRun,
    Unlearn,
)
from memloc_core.steps import drained

if TYPE_CHECKING:
    from memloc_core.language_model import LanguageModel

# A new analysis is one line here, one pair of dataclasses in `requests`, and one file in `analyses`.
ANALYSES: dict[type[Request], str] = {
    NearDuplicates: "near_duplicates:run",
    ExactMatch: "exact_match:run",
    Continue: "continuation:run",
    Alternatives: "continuation:run_alternatives",
    Perturb: "perturbation:run",
    Sweep: "perturbation:run_sweep",
    Sweeps: "perturbation:run_sweeps",
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
    TryRun: "trial:run",
    EstimateRun: "unlearning:run_estimate",
    MeasureRemains: "remains:run",
    ExportCheckpoint: "editing:run_export",
    PrefixSignals: "prefix_signals:run",
    ScanBlock: "scanning:run",
    ScoreWindows: "scanning:run_scores",
}

# What needs no model, and is answered before one is open.
OF_SCANS: dict[type[Request], str] = {
    FindCorpus: "plan:find",
    PlanScan: "plan:run",
    CountBlock: "repetitions:run",
    AssembleScan: "assemble:run",
}

Steps = Generator[Progress, None, Result]


def analysis(lm: LanguageModel, request: Request) -> Steps:
    """The steps of one analysis. Raises UsageError for a request that is none, or with a word that is no choice."""
    if type(request) not in ANALYSES:
        raise UsageError(f"{type(request).__name__} is no analysis.")
    for asked in request.sweeps if isinstance(request, Sweeps) else (request,):
        kind: Any = type(asked)
        for name, known in _choices(kind).items():
            if (value := getattr(asked, name)) not in known:
                raise UsageError(f"There is no {name} {value!r}; there are {', '.join(known)}.")
        if getattr(asked, "seed", 0) < 0:
            raise UsageError(f"A seed of {asked.seed} is none; give 0 or more.")  # type: ignore[attr-defined]
    module, function = ANALYSES[type(request)].split(":")
    run = getattr(importlib.import_module(f"memloc_core.analyses.{module}"), function)
    steps: Steps = run(lm, request)
    return steps


@cache
def _choices(kind: Any) -> dict[str, tuple[str, ...]]:
    """The fields of a request that are one of a few words, and these."""
    hints = get_type_hints(kind)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


class Engine:
    """Holds the open model and turns requests into generators of steps that end with an Answer."""

    def __init__(self) -> None:
        self.lm: LanguageModel | None = None

    def needs_model(self, request: Request) -> bool:
        return type(request) in ANALYSES

    def steps(self, request: Request) -> Generator[Progress, None, Answer[Any]]:
        """Run a request. Raises MemlocError for what the person can mend; closing the generator cancels it."""
        started, waited = time.perf_counter(), 0.0
        notices: list[str] = []
        work = self._start(request)
        while True:
            told = self.lm.notices if self.lm else []  # not the model: it must go before another one comes
            said = len(told)
            try:
                progress = next(work)
            except (RuntimeError, MemoryError) as error:
                self._tell_if_memory_ran_out(error, request)
                raise
            except StopIteration as stop:
                seconds = time.perf_counter() - started - waited
                edits = request.edits if isinstance(request, Edited) else ()
                notices += self._taken(told, said)
                return Answer(request, stop.value, self._provenance(seconds, tuple(notices), ",".join(edits)))
            notices += self._taken(told, said)  # other requests may run between two steps
            paused = time.perf_counter()  # what is served between two steps is not this request's time
            try:
                yield progress
            finally:
                waited += time.perf_counter() - paused

    def _taken(self, told: list[str], said: int) -> list[str]:
        """What the model noticed in this step, after the `said` notices of before (`told`, if it is the same model)."""
        if self.lm is None:
            return []
        start = said if self.lm.notices is told else 0
        taken = self.lm.notices[start:]
        del self.lm.notices[start:]
        return taken

    def answer(self, request: Request) -> Answer[Any]:
        """All steps at once, for those who use the core as a library. Raises MemlocError as `steps` does."""
        return drained(self.steps(request))

    def _tell_if_memory_ran_out(self, error: Exception, request: Request) -> None:
        """Raise MemlocError for a lack of memory where no batch could be halved."""
        if self.lm is None:
            return
        from memloc_core.devices import ran_out

        if ran_out(error):
            kind = type(request.request if isinstance(request, Edited) else request).__name__
            raise MemlocError(
                f"Not enough memory on {self.lm.device} for {kind}: close what else takes it, or ask for fewer "
                "paragraphs at once."
            )

    def _start(self, request: Request) -> Steps:
        if isinstance(request, OpenModel):
            return self._open_model(request)
        if isinstance(request, ReadVocabulary | OpenParagraphs | EncodeText):
            return _read(request)
        if isinstance(request, ListDevices):
            return _list_devices()
        if type(request) in OF_SCANS:
            module, function = OF_SCANS[type(request)].split(":")
            steps: Steps = getattr(importlib.import_module(f"memloc_core.scan.{module}"), function)(request)
            return steps
        if type(request) not in ANALYSES:
            raise UsageError(f"{type(request).__name__} is no request.")
        if self.lm is None:
            raise MemlocError("No model is open.")
        return analysis(self.lm, request)

    def _open_model(self, request: OpenModel) -> Steps:
        yield Progress(0, 2, "importing torch")
        from memloc_core import devices, loading

        yield Progress(1, 2, "reading weights")
        self.lm = None  # the old model's memory goes before the new one needs it
        gc.collect()  # transformers' models refer to themselves
        devices.give_back()
        self.lm = loading.load(request)
        return self.lm.info

    def _provenance(self, seconds: float, notices: tuple[str, ...], edit: str) -> Provenance:
        versions = {"memloc-tui": __version__}
        if self.lm is None:
            return Provenance("", "", "", "", "", "", seconds, versions)
        import torch
        import transformers

        info = self.lm.info
        versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
        return Provenance(
            info.name, info.fingerprint, edit, info.dtype, info.device, info.attention, seconds, versions, notices
        )


def _read(request: ReadVocabulary | OpenParagraphs | EncodeText) -> Steps:
    yield Progress(0, 1, "files")
    if isinstance(request, OpenParagraphs):
        from memloc_core.paragraphs import open_paragraphs

        return open_paragraphs(request)
    from memloc_core.sources import model_folder
    from memloc_core.tokenizers import encode_text, read_vocabulary

    folder = model_folder(request.model, request.revision)
    return encode_text(folder, request.text) if isinstance(request, EncodeText) else read_vocabulary(folder)


def _list_devices() -> Steps:
    yield Progress(0, 1, "devices")
    import torch

    return DeviceNames(tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",))
