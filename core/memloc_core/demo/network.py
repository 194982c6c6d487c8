"""The GPT-Neo of the demo, and a forward pass over its weights that trains faster than the one of `transformers`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from memloc_core.demo.corpus import END_ID


def new_network(vocabulary: int, width: int, pattern: list[str], window: int) -> Any:
    """A GPTNeoForCausalLM with random weights; `pattern` is global or local per layer, `window` the reach of local."""
    config = GPTNeoConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_layers=len(pattern),
        num_heads=4,
        attention_types=[[pattern, 1]],
        window_size=window,
        max_position_embeddings=256,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )
    return GPTNeoForCausalLM(config)


def next_token_loss(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy [nats] of tokens [n, t] given all before them.

    Equal to `network(tokens, labels=tokens).loss` up to rounding, but with fused attention.
    """
    transformer = network.transformer
    x = _embed(network, tokens)
    for layer in range(network.config.num_layers):
        x = _block(network, layer, x)
    logits = F.linear(transformer.ln_f(x[:, :-1]), transformer.wte.weight)
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def inattention(network: Any, layer: int, head: int, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean of -log(attention of one head to the wanted tokens), 0 when the head looks at nothing else.

    tokens [n, t]; wanted: bool [vocabulary]. The mean is over all queries that have a wanted token at or before them in
    their own document (documents end in END_ID). The layer is taken as global: a local window that is longer than a
    document makes no difference to what is asked of the head.
    """
    x = _embed(network, tokens)
    for below in range(layer):
        x = _block(network, below, x)
    q, k, _ = _projections(network, layer, x)
    scores = (q[:, head] @ k[:, head].transpose(1, 2)).float()  # [n, t, t]
    document = (tokens == END_ID).cumsum(1)
    visible = torch.ones(scores.shape[1:], dtype=torch.bool, device=tokens.device).tril()
    target = wanted[tokens][:, None, :] & visible & (document[:, :, None] == document[:, None, :])
    every = scores.masked_fill(~visible, float("-inf")).logsumexp(-1)
    some = target.any(-1)
    return (every - scores.masked_fill(~target, -1e4).logsumexp(-1))[some].mean()


def _embed(network: Any, tokens: torch.Tensor) -> Any:
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return network.transformer.wte(tokens) + network.transformer.wpe(positions)


def _projections(network: Any, layer: int, x: torch.Tensor) -> list[torch.Tensor]:
    """q, k and v of residual stream x [n, t, width], each [n, heads, t, head_dim]."""
    block = network.transformer.h[layer]
    attention = block.attn.attention
    y = block.ln_1(x)
    shape = (*x.shape[:2], network.config.num_heads, -1)
    return [p(y).view(shape).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]


def _block(network: Any, layer: int, x: torch.Tensor) -> Any:
    """The residual stream x [n, t, width] after one block. GPT-Neo does not scale its scores, hence `scale=1.0`."""
    config, block, t = network.config, network.transformer.h[layer], x.shape[1]
    q, k, v = _projections(network, layer, x)
    if config.attention_layers[layer] == "local" and config.window_size < t:
        causal = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=causal.triu(1 - config.window_size), scale=1.0)
    else:
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    x = x + block.attn.attention.out_proj(z.transpose(1, 2).reshape(x.shape))
    return x + block.mlp(block.ln_2(x))


@contextmanager
def zeroed_head(network: Any, layer: int, head: int) -> Iterator[None]:
    """Within the `with`, the head's output z is zero before the out-projection (zero-ablation)."""
    dim = network.config.hidden_size // network.config.num_heads

    def zero(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        z = args[0].clone()
        z[..., head * dim : (head + 1) * dim] = 0
        return (z, *args[1:])

    handle = network.transformer.h[layer].attn.attention.out_proj.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()
