"""Find the files of a corpus, check every document once, and divide the corpus into blocks."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from memloc_core import hub, sources
from memloc_core.corpora.streams import corpus_files, file_size, file_state, located, open_stream, tokenizer_digest
from memloc_core.errors import UsageError
from memloc_core.requests import Block, CorpusFiles, FindCorpus, PlanScan, Progress, ScanPlan
from memloc_core.scan.windows import Reading, read_block, vocabulary_of
from memloc_core.tokenizers import begin_of_text_token

_TRIED = 16  # documents of each file that are tokenized at once, to see that the tokenizer fits the model


def find(request: FindCorpus) -> Generator[Progress, None, CorpusFiles]:
    """Raises UsageError where there is no such corpus, or no begin-of-text token."""
    yield Progress(0, 1, "files")
    model = sources.model_folder(request.model)
    digest, begin = tokenizer_digest(model), begin_of_text_token(model, request.model) if request.begin_of_text else -1
    if hub.is_on_hub(request.corpus):
        found = hub.streamed(request.corpus, request.commit)
        return CorpusFiles(tuple(str(file) for file, _ in found), tuple(state for _, state in found), digest, begin)
    files = corpus_files(request.corpus)
    return CorpusFiles(tuple(map(str, files)), tuple(map(file_state, files)), digest, begin)


def run(request: PlanScan) -> Generator[Progress, None, ScanPlan]:
    """Raises UsageError, naming file and line or row, for the first document that is none."""
    grain = max(1, request.block_bytes)
    total = sum(file_size(located(file)) for file in request.files)
    blocks: list[tuple[int, int, int, int, int]] = []  # the fields of ScanPlan
    done = number = 0
    yield Progress(0, total, "bytes")
    for index, file in enumerate(request.files):
        start = documents = size = 0
        for steps, run in enumerate(open_stream(located(file), request.column).survey(max(1, grain // 8))):
            start = start if documents else run.start
            taken = min(run.documents, request.limit - number - documents) if request.limit else run.documents
            documents, size = documents + taken, size + run.size
            full = bool(request.limit) and number + documents == request.limit
            if size >= grain or full:
                blocks.append((index, start, documents, number, size))
                number, documents, size = number + documents, 0, 0
            if full:
                break
            if steps % 1000 == 0:
                yield Progress(min(total, done + run.start), total, "bytes")
        if documents:
            blocks.append((index, start, documents, number, size))
            number += documents
        if request.limit and number == request.limit:
            break
        done += file_size(located(file))
        yield Progress(done, total, "bytes")
    if not number:
        raise UsageError("The corpus holds no document.")
    file_, start_, documents_, first, sizes = (np.array(column, np.int64) for column in zip(*blocks, strict=True))
    plan = ScanPlan(request.column, file_, start_, documents_, first, sizes)
    _try_the_tokenizer(plan, request)
    return plan


def block_of(plan: ScanPlan, number: int, files: tuple[str, ...], model: str) -> Block:
    """One block of a plan as a request names it."""
    return Block(
        files[int(plan.file[number])],
        plan.column,
        int(plan.start[number]),
        int(plan.documents[number]),
        int(plan.first[number]),
        model,
    )


def _try_the_tokenizer(plan: ScanPlan, request: PlanScan) -> None:
    """Raise UsageError where a file's first documents already show ids that the model does not know.

    On the hub only the first file is asked: a data set there may have thousands, all made alike.
    """
    vocabulary = vocabulary_of(request.model)
    firsts = np.unique(plan.file, return_index=True)[1].tolist()
    for number in firsts[:1] if hub.is_on_hub(request.files[0]) else firsts:
        block = block_of(plan, number, request.files, request.model)
        for _ in read_block(replace(block, documents=min(block.documents, _TRIED)), Reading(vocabulary)):
            pass
