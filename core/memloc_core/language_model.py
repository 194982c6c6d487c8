"""A loaded causal language model: the raw Hugging Face weights, and the few ways every analysis runs them.

Letters in shapes: n rows, t tokens, c continuation positions, w width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memloc_core import architectures, devices, memory
from memloc_core.devices import PeakMemory, ran_out
from memloc_core.errors import Cancelled, MemlocError, UsageError
from memloc_core.requests import ModelInfo, Tokens

LOGITS_AT_ONCE = 128_000_000  # elements of the largest logits tensor on a GPU, 512 MB in fp32
_LOGITS_IN_CACHE = 2_000_000  # elements of a piece of logits that a processor's caches hold
_ROWS_AT_ONCE = 1024  # that a processor scores for each time that it reads the head's weights
_TILE = 128  # rows: a GPU's matrix product computes whole tiles of them


NO_TOKEN = -1  # what a pass predicts whose logits are NaN: no token, so it matches none


@dataclass(frozen=True)
class TokenScores:
    """What teacher forcing says about each target token, [n, c]."""

    predicted: Tensor  # int64, argmax; NO_TOKEN where the logits are no numbers
    margin: Tensor  # float32 logits: true token minus best other, negative where another token wins
    nll: Tensor  # float32 nats

    def exact_match(self, targets: Tensor) -> Tensor:
        """Leading positions where the argmax is the target, [n]: greedy decoding's exact match (README)."""
        return (self.predicted == targets).long().cumprod(-1).sum(-1)

    def deciding_margin(self, targets: Tensor) -> Tensor:
        """Smallest |margin| over the matched run and the first mismatch, [n]: what the exact match hangs on."""
        decides = (self.predicted == targets).long().cumprod(-1)
        decides = torch.cat([torch.ones_like(decides[:, :1]), decides[:, :-1]], -1).bool()
        return self.margin.abs().masked_fill(~decides, torch.inf).amin(-1)


class LanguageModel:
    """The raw model, its identity, and cancellation.

    `logits` of `hidden` equal the model's own logits: that is checked on the loaded weights. Of a model whose head is
    more than one matrix and what `_known_ends` has, `hidden` returns whole logits and `logits` passes them through.
    """

    def __init__(self, model: Any, info: ModelInfo) -> None:
        self.model = model
        self.info = info
        self.device = model.device
        self.cancelled = threading.Event()
        self.notices: list[str] = []
        self.edits: tuple[str, ...] = ()  # fingerprints of what `weight_edits` has in the weights now, in their order
        config = model.config.get_text_config()
        bos = getattr(config, "bos_token_id", None)
        self.bos: int | None = bos if isinstance(bos, int) and 0 <= bos < info.vocabulary else None
        self._splits = self._trunk_and_head_equal_the_model()
        self._refuse_unless_causal()
        self.reuses_prefix = self._cached_prefix_equals_whole_pass()
        self._rope_changes = _where_rope_changes(config)
        self.adapter = architectures.find(model)
        self.blocks = self._find_blocks()
        cancelled = self.cancelled

        def stop_if_cancelled(module: nn.Module, inputs: Any) -> None:  # knows no `self`, or nothing would free a model
            if cancelled.is_set():
                raise Cancelled("Cancelled.")

        for block in self.blocks:
            block.register_forward_pre_hook(stop_if_cancelled)

    # ------------------------------------------------------------------------------------------------- forward passes

    def hidden(self, ids: Tensor, cache: Any = None) -> Tensor:
        """Final hidden states after the last norm, [n, t, w], for ids [n, t] that follow what `cache` holds.

        The cache, a transformers `Cache`, is extended in place.
        """
        run = self.model.base_model if self._splits else self.model
        out = run(input_ids=devices.sent(ids, self.device), past_key_values=cache, use_cache=cache is not None)
        hidden: Tensor = out.last_hidden_state if self._splits else out.logits
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., w], in float32 (a float64 model's stay so)."""
        return _at_least_float32(
            self._after_head(self.model.get_output_embeddings()(hidden)) if self._splits else hidden
        )

    def token_scores(self, hidden: Tensor, targets: Tensor) -> TokenScores:
        """Score targets [n, c] under the hidden states [n, c, w] that predict them.

        The logits exist only a piece at a time, and each piece is read a few times in place: `logsumexp` alone would
        take a third of the head's matmul on a CPU.
        """
        flat, wanted = hidden.flatten(0, 1), targets.to(hidden.device).flatten()[:, None]
        step = _ROWS_AT_ONCE if self.device.type == "cpu" else self._rows_of_logits()
        parts = [self._scores_of(flat[i : i + step], wanted[i : i + step]) for i in range(0, len(flat), step)]
        predicted, margin, nll = (torch.cat(column).view(targets.shape) for column in zip(*parts, strict=True))
        return TokenScores(predicted, margin, nll)

    def _rows_of_logits(self) -> int:
        """How many rows' logits a GPU holds at once."""
        rows = max(1, LOGITS_AT_ONCE // self.info.vocabulary)
        return rows if rows < _TILE else rows - rows % _TILE

    def _scores_of(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Argmax, margin and NLL, each [n, 1], of targets [n, 1] under hidden states [n, w]."""
        predicted = torch.zeros_like(targets)
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        top, second, true = torch.full((3, *targets.shape), -torch.inf, dtype=kind, device=targets.device)
        others = torch.zeros_like(top)  # sum of exp(logit - top) over all tokens but the top one
        for first, logits in self._logit_pieces(hidden):
            place = targets - first
            inside = (place >= 0) & (place < logits.shape[-1])
            true = torch.where(inside, logits.gather(-1, place.clamp(0, logits.shape[-1] - 1)), true)
            at = logits.argmax(-1, keepdim=True)
            peak = logits.gather(-1, at).clamp_min(torch.finfo(kind).min)  # a piece may be -inf as a whole
            logits.scatter_(-1, at, -torch.inf)
            second = torch.maximum(torch.maximum(second, logits.amax(-1, keepdim=True)), torch.minimum(top, peak))
            rest = logits.sub_(peak).exp_().sum(-1, keepdim=True)
            wins = peak > top
            others = torch.where(
                wins, rest + (others + 1) * (top - peak).exp(), others + (rest + 1) * (peak - top).exp()
            )
            predicted = torch.where(wins, at + first, predicted)
            top = torch.maximum(top, peak)
        margin = torch.where(predicted == targets, top - second, true - top)
        # -log p = (top - true) + log(1 + sum of exp(other - top)): exact also where p is nearly one.
        nll = others.log1p() + (top - true)
        return predicted.masked_fill(nll.isnan(), NO_TOKEN), margin, nll

    def _logit_pieces(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of hidden states [n, w], to be written over: (first token, [n, tokens]) after (first token, ...).

        A processor's caches hold a piece of the vocabulary, so that only the head's matmul goes through memory.
        """
        head = self.model.get_output_embeddings() if self._splits else None
        if type(head) is not nn.Linear or self.device.type != "cpu":
            logits = self.logits(hidden)
            yield 0, logits if self._splits else logits.clone()  # else they are the model's own output
            return
        width = max(1, _LOGITS_IN_CACHE // len(hidden))
        for first in range(0, len(head.weight), width):
            bias = None if head.bias is None else head.bias[first : first + width]
            piece = F.linear(hidden, head.weight[first : first + width], bias)
            yield first, _at_least_float32(self._after_head(piece))

    def score(self, rows: Tensor, prefix_length: int, targets: Tensor | None = None) -> TokenScores:
        """Score the continuations of rows [n, t] by one pass: logits at prefix_length - 1 .. t - 2 only."""
        hidden = self.hidden(rows[:, :-1])[:, prefix_length - 1 :]
        return self.token_scores(hidden, rows[:, prefix_length:] if targets is None else targets)

    def notice_float16(self) -> None:
        """Say what float16 does to gradients, which are smallest where a model has memorized."""
        if self.info.dtype == "float16":
            self.notices.append("In float16 gradients below 0.00000006 become 0; float32 and bfloat16 keep them.")

    def refuse_no_numbers(self, *values: Any) -> None:
        """Raise MemlocError where scores [...] are NaN: an overflow in half precision, or weights that are broken."""
        if any(math.isnan(float(torch.as_tensor(value).sum())) for value in values):
            info, mend = self.info, "its weights may be broken"
            if self.edits:
                mend = "switch the edits off"
            elif info.dtype != "float32":
                mend = "--dtype float32 may help"
            raise MemlocError(f"{info.name} gives no numbers (NaN) in {info.dtype} for this text; {mend}.")

    def nll(self, rows: Tensor, prefix_length: int) -> Tensor:
        """NLL [n, c] in nats of the continuations of rows [n, t], differentiable."""
        hidden = self.hidden(rows[:, :-1])[:, prefix_length - 1 :]
        targets = rows[:, prefix_length:].to(self.device)
        return F.cross_entropy(self.logits(hidden).mT, targets, reduction="none")

    def reuses(self, length: int) -> bool:
        """Whether in rows of `length` tokens the keys and values of a prefix serve for what follows."""
        return self.reuses_prefix and not 0 < self._rope_changes < length

    def greedy(self, prompts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Greedy tokens [n, length] after prompts [n, t], and their probabilities; end-of-text is a token like any.

        A model whose keys and values cannot be reused reads the whole text again for every token.
        """
        cache = self.new_cache() if self.reuses(prompts.shape[1] + length) else None
        ids = prompts.to(self.device)
        tokens, probabilities = [], []
        for _ in range(length):
            logits = self.logits(self.hidden(ids, cache)[:, -1])
            token = logits.argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], -1) if cache is None else token
            tokens.append(token)
            probabilities.append((logits.gather(-1, token) - logits.logsumexp(-1, keepdim=True)).exp())
        return torch.cat(tokens, -1).cpu(), torch.cat(probabilities, -1).cpu()

    def new_cache(self) -> Any:
        """An empty key/value cache of the kind this model wants."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def selected(self, cache: Any, rows: Tensor) -> Any:
        """A copy of a cache for these of its rows [n], each as often as it is named; the original stays as it is."""
        twin = _copied(cache)
        twin.batch_select_indices(devices.sent(rows, self.device))
        return twin

    def shortened(self, cache: Any, rows: Tensor, tokens: int) -> Any:
        """A cache of the first `tokens` tokens of rows [n, t], from one of more of them, which stays as it is.

        Where a sliding window has forgotten the beginning it is computed anew.
        """
        twin = _copied(cache)
        try:
            twin.crop(tokens - cache.get_seq_length())
        except (RuntimeError, ValueError):
            twin = self.new_cache()
            self.hidden(rows[:, :tokens], twin)
        return twin

    # ----------------------------------------------------------------------------------------------- heads and blocks

    def architecture(self, analysis: str) -> architectures.Architecture:
        """The model's adapter. Raises UsageError, naming the analysis, where the model's family has none."""
        if self.adapter is None:
            raise UsageError(
                f"{analysis} needs to know where a model keeps its heads and its MLP, and memloc does not know it of "
                f"{self.info.architecture}; exact match, perturbation, sweeps and gradients per layer still work."
            )
        return self.adapter

    def check_head(self, layer: int, head: int) -> None:
        """Raise UsageError for a head that this model does not have."""
        layers, heads, name = self.info.layers, self.info.heads, self.info.name
        if not (0 <= layer < layers and 0 <= head < heads):
            raise UsageError(
                f"There is no head L{layer}H{head}: {name} has layers 0..{layers - 1} with heads 0..{heads - 1}."
            )

    @contextlib.contextmanager
    def ablated(self, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Within, the outputs z of these (layer, head) are zero in every forward pass."""
        architecture = self.architecture("Head ablation")
        masks: dict[int, Tensor] = {}
        for layer, head in heads:
            self.check_head(layer, head)
            if layer not in masks:
                masks[layer] = torch.ones(architecture.heads, architecture.head_dim, device=self.device)
            masks[layer][head] = 0

        def hook(mask: Tensor) -> architectures.Hook:
            return lambda z: z * mask.flatten().to(z.dtype)

        with architecture.hooked(*(("z", layer, hook(mask)) for layer, mask in masks.items())):
            yield

    # --------------------------------------------------------------------------------------------------- rows at once

    def row_bytes(self, length: int, *, backward: bool = False) -> int:
        """What one row of `length` tokens takes in a forward pass, or a forward and backward pass, by estimate."""
        return memory.row_bytes(self.info, length, next(self.model.parameters()).element_size(), backward=backward)

    def rows_at_once(self, length: int, *, backward: bool = False) -> int:
        """How many rows of `length` tokens one pass may take: a tenth of the free memory, at least one."""
        row = self.row_bytes(length, backward=backward)
        most = 4096 if self.device.type == "cuda" else 64  # larger ones leave a processor's caches and gain nothing
        return max(1, min(most, int(devices.free_bytes(self.device) * 0.1) // row))

    def in_batches(
        self,
        run: Callable[[int, int], None],
        n: int,
        length: int,
        *,
        backward: bool = False,
        peak: PeakMemory | None = None,
    ) -> Iterator[int]:
        """Call run(start, stop) over n rows in batches, and yield how many are done after each.

        `backward`: the rows go through a backward pass as well; `peak` is told what each batch takes.

        Out of memory halves the batch and goes on with the same rows; `notices` says so. A single row that does not
        fit raises MemlocError.
        """
        size, start = self.rows_at_once(length, backward=backward), 0
        row = self.row_bytes(length, backward=backward)
        while start < n:
            stop, too_many = min(n, start + size), False
            try:
                with peak.step((stop - start) * row) if peak else contextlib.nullcontext():
                    run(start, stop)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if stop - start == 1:
                    raise MemlocError(
                        f"Not enough memory on {self.device} for a single row of {length} tokens."
                    ) from None
                too_many = True
            if too_many:  # out here, where the error no longer holds what the pass had made
                size = (stop - start) // 2
                self.notices.append(f"Out of memory with {stop - start} rows at once; went on with {size}.")
                devices.give_back()
                continue
            start = stop
            yield start

    # --------------------------------------------------------------------------------------------- checks and cancel

    def check_tokens(self, tokens: Any, length: int) -> None:
        """Raise UsageError for ids beyond the vocabulary, or a row longer than the model's positions."""
        highest, lowest = max(tokens, default=0), min(tokens, default=0)
        if highest >= self.info.vocabulary or lowest < 0:
            wrong = highest if highest >= self.info.vocabulary else lowest
            raise UsageError(f"Token id {wrong} is beyond {self.info.name}'s vocabulary of {self.info.vocabulary:,}.")
        if self.info.positions and length > self.info.positions:
            raise UsageError(f"{length} tokens are more than the {self.info.positions} that {self.info.name} can read.")

    def rows(self, paragraphs: tuple[Tokens, ...], prefix_length: int) -> Tensor:
        """Paragraphs as rows [n, t]. Raises UsageError unless they have one length, beyond the prefix, of known ids."""
        lengths = {len(row) for row in paragraphs}
        if len(lengths) != 1 or not 0 < prefix_length < min(lengths):
            raise UsageError("This analysis needs paragraphs of one length, longer than the prefix.")
        for row in paragraphs:
            self.check_tokens(row, len(row))
        return torch.tensor(paragraphs)

    def _probe_ids(self) -> Tensor:
        positions = min(self.info.positions or 12, 12)
        return (torch.arange(positions, device=self.device) * 7 % self.info.vocabulary)[None]

    def _trunk_and_head_equal_the_model(self) -> bool:
        self._splits = False
        ids = self._probe_ids()
        with torch.inference_mode():
            whole = _at_least_float32(self.model(input_ids=ids).logits)
            if not torch.isfinite(whole).all():
                raise MemlocError(f"{self.info.name} gives logits that are not finite; its weights are damaged.")
            if self.model.get_output_embeddings() is None:
                return False
            self._splits = True
            for after in _known_ends(self.model.config.get_text_config()):
                self._after_head = after
                with _tried(AttributeError, TypeError, RuntimeError, ValueError):
                    if torch.equal(self.logits(self.hidden(ids)), whole):
                        return True
            return False

    def _find_blocks(self) -> list[nn.Module]:
        """The transformer blocks: of the lists of modules that text runs through (a model that sees has others) the
        first one that is as long as there are layers, else the longest."""
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList) and len(module)]
        ran: list[int] = []
        with contextlib.ExitStack() as hooks, torch.inference_mode():
            for i, found in enumerate(lists):
                handle = found[0].register_forward_pre_hook(lambda *_, i=i: ran.append(i))
                hooks.callback(handle.remove)
            self.model(input_ids=self._probe_ids())
        used = [lists[i] for i in sorted(set(ran))]
        fitting = (found for found in used if len(found) == self.info.layers)
        return list(next(fitting, max(used, key=len, default=[])))

    def _refuse_unless_causal(self) -> None:
        """A model that looks ahead, such as BERT, would be scored on tokens that it has already seen."""
        ids = self._probe_ids()
        half = ids.shape[1] // 2
        with torch.inference_mode():
            whole, alone = self.hidden(ids)[:, :half], self.hidden(ids[:, :half])
        if not self._nearly(alone, whole):
            raise MemlocError(
                f"{self.info.name} ({self.info.architecture}) is no causal language model: it looks ahead."
            )

    @staticmethod
    def _nearly(a: Tensor, b: Tensor) -> bool:
        """Equal up to rounding."""
        tolerance = {torch.float32: 1e-3}.get(b.dtype, 5e-2) * float(b.abs().max())
        return bool((a - b).abs().max() <= tolerance)

    def _cached_prefix_equals_whole_pass(self) -> bool:
        """Whether tokens after a cached prefix get the hidden states of a whole pass (up to rounding)."""
        ids = self._probe_ids()
        half = ids.shape[1] // 2
        with torch.inference_mode(), _tried(Exception):
            whole = self.hidden(ids)[:, half:]
            cache, twice = self.new_cache(), torch.tensor([0, 0])
            self.hidden(ids[:, :half], cache)
            again = [self.hidden(ids[:, half:].repeat(2, 1), self.selected(cache, twice)) for _ in range(2)]
            return all(self._nearly(once, whole) for once in again)  # so the copy was one
        return False


@contextlib.contextmanager
def _tried(*errors: type[Exception]) -> Iterator[None]:
    """What a model may not be able to do, and then raises one of these; too little memory says nothing of that."""
    try:
        yield
    except errors as error:
        if ran_out(error):
            raise


def _copied(cache: Any) -> Any:
    """A cache of its own that shares tensors with the given one: cutting, selecting and adding all make new ones."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _where_rope_changes(config: Any) -> int:
    """The tokens beyond which a "longrope" model (Phi-3's long ones) turns all its keys differently; 0 for others."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) != "longrope":
        return 0
    named = "original_max_position_embeddings"
    return int(rope.get(named) or getattr(config, named, 0) or 0)


def _known_ends(config: Any) -> list[Callable[[Tensor], Tensor]]:
    """What a family may do to what its head puts out: Gemma caps it, Granite divides it, Cohere multiplies it."""
    cap, below, times = (
        getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale")
    )
    known: list[Callable[[Tensor], Tensor]] = [lambda x: x]
    if cap:
        known.append(lambda x: torch.tanh(x / cap) * cap)
    if below:
        known.append(lambda x: x / below)
    if times:
        known.append(lambda x: x * times)
    return known
