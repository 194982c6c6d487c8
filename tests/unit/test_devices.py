"""Devices: errors that mean too little memory, exact arithmetic, and memory that is given back."""

from __future__ import annotations

import io
import os
import weakref

import pytest
import torch

from memloc_core import devices, worker
from memloc_core.engine import Engine
from memloc_core.errors import MemlocError
from memloc_core.language_model import LanguageModel
from memloc_core.loading import load
from memloc_core.requests import ExactMatch, OpenModel
from memloc_core.unlearning import watching

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later", 2),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_known_in_every_form_and_costs_a_smaller_batch(tiny_checkpoint, error):
    assert devices.ran_out(error)
    assert not devices.is_lost(error)
    lm, sizes = load(OpenModel(str(tiny_checkpoint))), []

    def run(start, stop):
        sizes.append(stop - start)
        if stop - start > 2:
            raise error

    assert list(lm.in_batches(run, 4, 20)) == [2, 4]
    assert sizes == [4, 2, 2]


def test_the_processor_s_own_allocator_is_among_them():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert devices.ran_out(raised.value)


def test_a_gpu_gets_longer_pieces_of_work_than_a_processor_s_caches_hold():
    for wanted in (1_000_000, 4_000_000):
        assert devices.numbers_at_once(torch.device("cpu"), wanted) == wanted < devices.numbers_at_once(CUDA, wanted)
    assert watching.greedy_rows(torch.device("cpu")) < watching.greedy_rows(CUDA)


def test_other_errors_are_no_lack_of_memory():
    assert not devices.ran_out(RuntimeError("shapes do not fit"))
    assert not devices.ran_out(ValueError("out of memory"))
    assert not devices.is_lost(RuntimeError("shapes do not fit"))
    assert devices.is_lost(torch.AcceleratorError("CUDA error: device-side assert triggered", 710))


def test_no_gpu_is_lost_where_torch_has_no_error_for_it(monkeypatch):
    monkeypatch.delattr(torch, "AcceleratorError")  # torch 2.6 and 2.7
    assert not devices.is_lost(RuntimeError("CUDA error: device-side assert triggered"))


def test_too_little_memory_while_a_model_is_tried_out_is_not_taken_for_what_it_cannot_do(tiny_checkpoint, monkeypatch):
    """It would be held whole: logits for every token, no prefix used again."""
    plain, calls, fails_at = LanguageModel.hidden, [], [0]

    def hidden(self, ids, cache=None):
        calls.append(1)
        if len(calls) == fails_at[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, ids, cache)

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    load(OpenModel(str(tiny_checkpoint)))
    for fails_at[0] in range(1, len(calls) + 1):
        calls.clear()
        with pytest.raises(MemlocError, match="does not fit on cpu"):
            load(OpenModel(str(tiny_checkpoint)))


def test_a_gpu_that_has_failed_for_good_takes_its_process_along(monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    sink = io.BytesIO()
    engine = worker.Worker(io.BytesIO(), sink)

    def fails(request):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)

    monkeypatch.setattr(engine._engine, "steps", fails)
    engine._step(worker.Job(1, 1, ExactMatch(())))
    assert ended == [1]
    assert b"device-side assert" in sink.getvalue()


def test_what_torch_holds_without_using_it_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 << 30)
    assert devices.free_bytes(CUDA) == 76 << 30


def test_a_loaded_model_computes_in_float32_whatever_was_chosen_before(tiny_checkpoint):
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    load(OpenModel(str(tiny_checkpoint)))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    torch.backends.fp32_precision = "tf32"  # a library's, by the newer switch
    load(OpenModel(str(tiny_checkpoint)))
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_the_model_before_is_gone_when_the_next_one_is_read(tiny_checkpoint, monkeypatch):
    engine = Engine()
    engine.answer(OpenModel(str(tiny_checkpoint)))
    before = weakref.ref(engine.lm.model)
    there = []

    def reads(request):
        there.append(before())
        raise MemlocError("no more is needed")

    monkeypatch.setattr("memloc_core.loading.load", reads)
    with pytest.raises(MemlocError, match="no more"):
        engine.answer(OpenModel(str(tiny_checkpoint)))
    assert there == [None]
