"""CLIP's text transformer, run only on the tokens that count. N strings, L tokens, S shared ones, C channels, D."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def is_plain(text: nn.Module) -> bool:
    """Whether `encode_tokens` serves this text tower: causal, pre-norm blocks, pooled at the end-of-text token."""
    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    blocks = getattr(getattr(text, "transformer", None), "resblocks", ())
    causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
    return pool == "argmax" and causal and all(type(block) is ResidualAttentionBlock for block in blocks)


def encode_tokens(text: nn.Module, tokens: Tensor) -> Tensor:
    """(N,L) token ids -> (N,D), not normalised: what open_clip's `text(tokens)` gives, for a fraction of the work.

    The mask is causal. So what follows the end of a string changes nothing, and is cut off; and what all strings begin
    with, such as the first words of a template, is the same in each layer for all of them, and runs once.
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
    """How many leading tokens all strings have in common; the first end-of-text token is not one of them."""
    same = (tokens[:, :first_end] == tokens[0, :first_end]).all(dim=0)
    return int(same.long().cumprod(0).sum())


def _block(block: ResidualAttentionBlock, head: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """head (1,S,C) and x (N,L-S,C), one layer on: each string's own tokens see the shared ones, never the reverse."""
    q0, k0, v0 = attention_heads(block, head)
    q, k, v = attention_heads(block, x)
    k, v = (torch.cat([a.expand(len(x), -1, -1, -1), b], dim=2) for a, b in ((k0, k), (v0, v)))
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    first = F.scaled_dot_product_attention(q0, k0, v0, is_causal=True)
    return after_attention(block, head, first), after_attention(block, x, read)


def attention_heads(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,L,C) -> queries, keys, values (N,heads,L,C/heads) each."""
    qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    return tuple(qkv.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4))


def after_attention(block: ResidualAttentionBlock, x: Tensor, read: Tensor) -> Tensor:
    """The rest of a block: x (N,L,C) and what its heads have read (N,heads,L,C/heads) -> (N,L,C)."""
    x = x + block.ls_1(block.attn.out_proj(read.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
