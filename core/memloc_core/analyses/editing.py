"""Any analysis with sparse edits in the weights, and the export of an edited model as a checkpoint."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Generator
from pathlib import Path

from memloc_core import edit_files
from memloc_core.engine import ANALYSES, Steps, analysis
from memloc_core.errors import MemlocError, UsageError
from memloc_core.language_model import LanguageModel
from memloc_core.requests import Edited, ExportCheckpoint, Exported, Progress, SparseEdit
from memloc_core.steps import within
from memloc_core.weight_edits import PlacedEdits

_REMEMBERED = 8  # edits kept in memory
_SHARD = "2GB"
# What a tokenizer needs beside the weights; read by `transformers` and by memloc.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
_known: OrderedDict[str, SparseEdit] = OrderedDict()  # by fingerprint, so it does not matter where a file lay


def run(lm: LanguageModel, request: Edited) -> Steps:
    """The inner request's steps, each with the edits in the weights; between two steps they are the original's."""
    if type(request.request) not in ANALYSES or isinstance(request.request, Edited):
        raise UsageError(f"{type(request.request).__name__} runs no model; no edit can be active in it.")
    return within(PlacedEdits(lm, _load(request)).applied, analysis(lm, request.request))


def run_export(lm: LanguageModel, request: ExportCheckpoint) -> Generator[Progress, None, Exported]:
    """Write the weights as they are now as a Hugging Face checkpoint, in a folder that is there whole or not at all."""
    folder = Path(request.folder).expanduser().absolute()
    edit_files.check_new_folder(folder)
    yield Progress(0, 2, "checkpoint")
    edit_files.remove_unfinished(folder)
    temporary = edit_files.unfinished(folder, os.getpid())
    try:
        lm.model.save_pretrained(temporary, max_shard_size=_SHARD)
        for name in _TOKENIZER_FILES:
            if (source := Path(lm.info.folder) / name).is_file():
                shutil.copyfile(source, temporary / name)
        yield Progress(1, 2, "checkpoint")  # a cancellation closes us here
        size = sum(file.stat().st_size for file in temporary.iterdir())
        edit_files.check_new_folder(folder)
        temporary.replace(folder)  # also onto an empty folder
    except OSError as error:
        raise MemlocError(f"{folder} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(str(folder), size)


def _load(request: Edited) -> list[SparseEdit]:
    """The edits of a request, from memory or from their files."""
    if len(request.files) not in (0, len(request.edits)):
        raise UsageError(f"{len(request.edits)} edits need as many files, and {len(request.files)} are given.")
    files = request.files or ("",) * len(request.edits)
    edits = []
    for fingerprint, file in zip(request.edits, files, strict=True):
        edit = _known.get(fingerprint)
        if edit is None:
            if not file:
                raise UsageError(f"Edit {fingerprint[:8]} is asked for without a file.")
            edit = edit_files.read_edit(Path(file)).result.edit
            if edit.fingerprint != fingerprint:
                raise MemlocError(
                    f"{file} holds edit {edit.fingerprint[:8]} now, and {fingerprint[:8]} is asked for: "
                    "the file was replaced; choose it again."
                )
            _known[fingerprint] = edit
        _known.move_to_end(fingerprint)
        edits.append(edit)
    while len(_known) > max(_REMEMBERED, len(edits)):
        _known.popitem(last=False)
    return edits
