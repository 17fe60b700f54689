"""The mask decoder: tower features and queries in, one mask per phrase or prompt out.

Alphabet: B images, T phrases, P templates, D embedding, K geometric queries, N points, h w grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from skysense_o.modeling.tower import Features


@dataclass
class Queries:
    """What is asked of a decoder."""

    text: Tensor  # (B,T,P,D) unit vectors
    valid: Tensor  # (B,T) bool; an invalid phrase adds to no sum and its logits are never read
    points: Tensor | None = None  # (B,K,N,2) x,y in pixels of the prepared image
    labels: Tensor | None = None  # (B,K,N) 1 inside, 0 outside, -1 padding
    boxes: Tensor | None = None  # (B,K,4) half-open XYXY in pixels of the prepared image; NaN where absent

    @property
    def prompts(self) -> int:
        """K, how many geometric queries each image has."""
        given = [x.shape[1] for x in (self.points, self.boxes) if x is not None]
        return given[0] if given else 0


class MaskDecoder(nn.Module):
    """Interface of all decoders."""

    takes_prompts: bool  # False: K > 0 is an error
    upscale: int = 4  # how many times finer than the dense map the logits are, each way

    def forward(
        self, features: Features, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            features: of the image tower, for B images.
            queries: T phrases and K prompts an image.
            chunk: how many phrases to hold in memory at a time; None: all.

        Returns:
            logits (B,T+K,h',w'), presence (B,T) logits or None, iou_pred (B,K) or None: the IoU that a
            prompt's mask is thought to have.
        """
        raise NotImplementedError

    def refine(self, features: Features) -> object:
        """The part of `forward` that no query changes, for `decode`; the features themselves where there is none."""
        return features

    def decode(
        self, image_embedding: object, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `forward`, of an image that `refine` has seen already."""
        return self.forward(image_embedding, queries, chunk)

    def check(self, queries: Queries) -> None:
        """Refuse prompts that this decoder was not built for."""
        if queries.prompts and not self.takes_prompts:
            raise ValueError(
                f"{queries.prompts} points or boxes were given, but {type(self).__name__} takes words only: ask"
                " by names, or use weights that were trained with MODEL.SEM_SEG_HEAD.PROMPTS"
            )
