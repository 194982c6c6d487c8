"""Runs that are compared and not applied: what `unlearning` gives, without the changed weights."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from memloc_core.analyses import unlearning
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Progress, TryRun, Unlearning
from memloc_core.steps import retold


def run(lm: LanguageModel, request: TryRun) -> Generator[Progress, None, Unlearning]:
    """The run of `request`, its edit left empty. Raises what the run raises."""
    steps = unlearning.run(lm, request.run, watched=request.watched)
    return _without_edit((yield from retold(steps, lambda progress: replace(progress, partial=None))))


def _without_edit(result: Unlearning) -> Unlearning:
    no_places, no_values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    edit = replace(
        result.edit, parameters=(), starts=np.zeros(1, np.int64), indices=no_places, old=no_values, new=no_values
    )
    return replace(result, edit=edit)
