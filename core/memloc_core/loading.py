"""Loading a model: local files only; nothing that runs code, is partly random or cannot fit into memory."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from memloc_core import devices, gelu, memory, sources
from memloc_core.devices import ran_out
from memloc_core.errors import MemlocError, UsageError
from memloc_core.language_model import LOGITS_AT_ONCE, LanguageModel
from memloc_core.model_library import compiler_held_back, list_models_once
from memloc_core.requests import ModelInfo, OpenModel
from memloc_core.tokenizers import read_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROW = 100  # tokens of the row that must fit beside the weights
_WEIGHT_FILES = ("*.safetensors", "*.bin")


def load(request: OpenModel) -> LanguageModel:
    """Load a model from local files only. Raises UsageError or MemlocError, saying which file and what is wrong.

    Refused: remote code, pickles that are more than plain weights, missing, misshapen or non-finite weights, and what
    cannot fit into memory, before it is read.
    """
    folder = sources.model_folder(request.model, request.revision)
    device = devices.device_of(request.device)
    devices.compute_exactly()
    if request.dtype != "auto" and request.dtype not in DTYPES:
        raise UsageError(f"--dtype {request.dtype!r} is none of auto, {', '.join(DTYPES)}.")
    # A half-precision file would otherwise load as half, and exact match hangs on small margins.
    dtype = DTYPES.get(request.dtype, torch.float32)
    list_models_once()
    _refuse_unless_it_fits(folder, request.model, dtype, device)
    with compiler_held_back():
        model, attention = _from_pretrained(folder, request.model, dtype)
    for name, tensor in _stored(model):
        if not torch.isfinite(tensor).all():
            raise MemlocError(f"{folder}: the weights {name} hold NaN or infinite values; the file is damaged.")
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    shape = _shape(config)
    fingerprint = weight_fingerprint(model)
    kind = str(dtype).removeprefix("torch.")
    settings = _settings_of(config)
    about = (fingerprint, kind, attention, device.type, settings)
    identity = hashlib.sha256("\n".join(about).encode()).hexdigest()
    info = ModelInfo(
        name=_name(request),
        folder=str(folder),
        architecture=type(model).__name__,
        fingerprint=fingerprint,
        identity=identity,
        dtype=kind,
        device=str(device),
        attention=attention,
        layers=shape.layers,
        heads=shape.heads,
        width=shape.width,
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=shape.vocabulary,
        positions=int(getattr(config, "max_position_embeddings", 0) or 0),
    )
    try:
        model.to(device)
        if device.type == "cuda":  # where the slow ones take a seventh of a sweep in fp32
            gelu.fuse(gelu.slow_ones(model))
        return LanguageModel(model, info)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise MemlocError(
            f"{request.model} does not fit on {device}: try --dtype bfloat16, another --device, or a smaller model."
        ) from None


def _name(request: OpenModel) -> str:
    """How the model is called: the last part of its folder or name, and the revision where one was asked for."""
    if request.model == sources.DEMO:
        return sources.DEMO
    return Path(request.model).name + (f"@{request.revision}" if request.revision else "")


def _shape(config: Any) -> SimpleNamespace:
    """The sizes that every causal model has (a state space model has no heads), by config.json."""
    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"}
    sizes = {ours: int(getattr(config, theirs, 0) or 0) for ours, theirs in names.items()}
    return SimpleNamespace(**sizes, vocabulary=int(config.vocab_size))


def _refuse_unless_it_fits(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raise MemlocError, with the numbers, where the weights and one row's activations cannot fit."""
    weights = memory.weights_of(folder)
    if weights is None:
        return
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        shape = _shape(config.get_text_config())
        row = memory.row_bytes(shape, _ROW, dtype.itemsize) + min(4 * _ROW * shape.vocabulary, 4 * LOGITS_AT_ONCE)
    except Exception:  # whatever is wrong with config.json, the loader says it
        row = 0
    kept = weights.numbers * dtype.itemsize
    loading = memory.while_loading(weights, dtype.itemsize)
    needs = [("this machine's memory", loading if device.type != "cpu" else max(loading, kept + row))]
    free = [memory.free_memory()]
    if device.type == "cuda":
        needs.append((str(device), kept + row))
        free.append(_free_on(device))
    for (place, need), left in zip(needs, free, strict=True):
        if need > left:
            smaller = "--dtype bfloat16, " if dtype is torch.float32 else ""
            raise MemlocError(
                f"{name} does not fit into {place}: it takes {need / 1e9:,.2f} GB ({kept / 1e9:,.2f} GB are "
                f"{weights.numbers:,} weights in {str(dtype).removeprefix('torch.')}) and {left / 1e9:,.2f} GB are "
                f"free. Try {smaller}another machine or a smaller model."
            )


def _free_on(device: torch.device) -> int:
    try:
        return devices.free_bytes(device)
    except RuntimeError as error:  # the first look at a GPU takes some hundred megabytes of it
        if not ran_out(error):
            raise
        return 0


def _settings_of(config: Any) -> str:
    """What config.json says beyond the weights: a window's size or a rotary base changes results, a path does not."""
    about_the_file = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    settings = {name: value for name, value in config.to_dict().items() if name not in about_the_file}
    return json.dumps(settings, sort_keys=True, default=str)


def _stored(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter once, and the buffers that a checkpoint holds beside them (biases of routers, scales)."""
    kept = model.state_dict()
    return [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers() if name in kept)]


def weight_fingerprint(model: nn.Module) -> str:
    """sha256 over the name, shape, type and bytes, as loaded, of all that a checkpoint stores: whatever its format."""

    def digest(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        whole = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        whole.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
        return whole.digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return hashlib.sha256(b"".join(pool.map(digest, sorted(_stored(model), key=lambda item: item[0])))).hexdigest()


def _from_pretrained(folder: Path, name: str, dtype: torch.dtype) -> tuple[Any, str]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHT_FILES):
        raise MemlocError(f"{folder} holds no weights (no .safetensors and no .bin file).")
    kind = read_config(folder).get("model_type")
    options: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": False,
        "dtype": dtype,
        "output_loading_info": True,
        "use_safetensors": True if next(folder.glob("*.safetensors"), None) else None,
    }
    try:
        try:
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", **options
            )
        except ValueError as error:
            if "attn_implementation" not in str(error):
                raise
            model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:  # each file format and each architecture raises its own
        text = str(error).strip().splitlines() or [type(error).__name__]
        if "weights_only" in str(error) or "Unpickl" in type(error).__name__ or "Unsupported global" in str(error):
            raise MemlocError(
                f"{folder}: the .bin file is damaged or holds more than plain weights, and loading it could run code; "
                "it is refused. Convert the model to safetensors where you trust it."
            ) from error
        raise MemlocError(f"{folder} cannot be loaded as a causal language model ({kind}): {text[0]}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(str(key) for key in report.get(what) or ()):
            raise MemlocError(
                f"{folder}: {len(wrong)} weights are {what.split('_')[0]} (the first: {wrong[0]}), "
                "so the model would be partly random. The checkpoint is incomplete or of another architecture."
            )
    return model, str(getattr(model.config, "_attn_implementation", "") or "eager")
