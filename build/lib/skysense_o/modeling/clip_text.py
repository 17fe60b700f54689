"""CLIP's text transformer without redundant tokens.

Shape letters: N strings, L tokens per string, S leading tokens that all strings share, C channels, D embedding.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def is_plain(text: nn.Module) -> bool:
    """Whether `encode_tokens` supports a text tower: causal, pre-norm blocks, pooled at the end-of-text token."""
    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    blocks = getattr(getattr(text, "transformer", None), "resblocks", ())
    causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
    return pool == "argmax" and causal and all(type(block) is ResidualAttentionBlock for block in blocks)


def encode_tokens(text: nn.Module, tokens: Tensor) -> Tensor:
    """Encode strings; equals open_clip's `text(tokens)` at a fraction of the cost.

    The attention is causal. So tokens after the end of a string have no effect and are cut off. The tokens with which
    all strings start, such as the first words of a template, have the same activations in all strings and are computed
    once.

    Args:
        text: a text tower that `is_plain`.
        tokens: int (N,L) token ids.

    Returns:
        (N,D), not normalised.
    """
    ends = tokens.argmax(dim=1)  # the end-of-text token has the largest id
    tokens = tokens[:, : int(ends.max()) + 1]
    shared = _shared(tokens, int(ends.min()))
    position = text.positional_embedding[: tokens.shape[1]]
    x = text.token_embedding(tokens).to(position.dtype) + position
    head, x = x[:1, :shared], x[:, shared:]
    own = x.shape[1]
    mask = torch.ones(own, shared + own, dtype=torch.bool, device=x.device).tril(shared)
    recompute = text.transformer.grad_checkpointing and torch.is_grad_enabled()
    layer = partial(checkpoint, _block, use_reentrant=False) if recompute else _block
    for block in text.transformer.resblocks:
        head, x = layer(block, head, x, mask)
    pooled = text.ln_final(x)[torch.arange(len(x)), ends - shared]
    project = text.text_projection
    return project(pooled) if isinstance(project, nn.Module) else pooled if project is None else pooled @ project


def _shared(tokens: Tensor, first_end: int) -> int:
    """The number S of leading tokens that all strings share, before the first end-of-text token."""
    same = (tokens[:, :first_end] == tokens[0, :first_end]).all(dim=0)
    return int(same.long().cumprod(0).sum())


def _block(block: ResidualAttentionBlock, head: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Run one block on the shared tokens head (1,S,C) and on the other tokens x (N,L-S,C), which attend to both."""
    q0, k0, v0 = attention_heads(block, head)
    q, k, v = attention_heads(block, x)
    k, v = (torch.cat([a.expand(len(x), -1, -1, -1), b], dim=2) for a, b in ((k0, k), (v0, v)))
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    first = F.scaled_dot_product_attention(q0, k0, v0, is_causal=True)
    return after_attention(block, head, first), after_attention(block, x, read)


def attention_heads(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,L,C) -> query, key, value, each (N,heads,L,C/heads)."""
    qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    return tuple(qkv.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4))


def after_attention(block: ResidualAttentionBlock, x: Tensor, read: Tensor) -> Tensor:
    """Finish a block: x (N,L,C) and the result of the attention heads (N,heads,L,C/heads) -> (N,L,C)."""
    x = x + block.ls_1(block.attn.out_proj(read.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
