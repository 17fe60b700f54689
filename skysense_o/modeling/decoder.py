"""The interface of mask decoders: tower features and queries in, one mask per phrase or prompt out.

Shape letters: B images, T phrases, P templates, D embedding, K prompts (clicks or a box), N points per prompt,
h w grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from skysense_o.modeling.tower import Features


@dataclass
class Queries:
    """The phrases and prompts of a batch.

    >>> import torch
    >>> Queries(text=torch.zeros(1, 3, 2, 384), valid=torch.ones(1, 3, dtype=torch.bool)).prompts
    0
    """

    text: Tensor  # (B,T,P,D) unit vectors
    valid: Tensor  # (B,T) bool; False: padding, which affects no other phrase and whose logits are not used
    points: Tensor | None = None  # (B,K,N,2) x,y in pixels of the prepared image
    labels: Tensor | None = None  # (B,K,N) 1 foreground, 0 background, -1 padding
    boxes: Tensor | None = None  # (B,K,4) half-open XYXY in pixels of the prepared image; NaN where absent

    @property
    def prompts(self) -> int:
        """K, the number of prompts per image."""
        counts = [x.shape[1] for x in (self.points, self.boxes) if x is not None]
        return counts[0] if counts else 0


class MaskDecoder(nn.Module):
    """Interface of mask decoders, which predict a mask for each phrase and for each prompt."""

    takes_prompts: bool  # whether prompts are accepted; if False, they raise an error
    upscale: int = 4  # side of the logits divided by the side of the dense map

    def forward(
        self, features: Features, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Decode one mask per phrase and per prompt.

        Args:
            features: features of B images.
            queries: T phrases and K prompts per image.
            chunk: number of phrases to hold in memory at once; None: all.

        Returns:
            logits (B,T+K,h',w'); presence (B,T), logits of whether each phrase is in the image at all, None if the
            decoder does not predict it; iou_pred (B,K), the predicted IoU of each prompt's mask, None without prompts.

        Raises:
            ValueError: the decoder got prompts, but does not take them.
        """
        raise NotImplementedError

    def refine(self, features: Features) -> object:
        """Compute the part of `forward` that does not depend on the queries, as input of `decode`."""
        return features

    def decode(
        self, image_embedding: object, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Decode the masks as `forward` does, but from an image embedding that `refine` has returned."""
        return self.forward(image_embedding, queries, chunk)

    def check(self, queries: Queries) -> None:
        """Raise ValueError for prompts that this decoder does not take."""
        if queries.prompts and not self.takes_prompts:
            raise ValueError(
                f"{queries.prompts} points or boxes were given, but {type(self).__name__} takes words only: use class"
                " names, or weights that were trained with MODEL.SEM_SEG_HEAD.PROMPTS"
            )
