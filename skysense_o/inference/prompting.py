"""Clicks and boxes on one picture: its features are kept, so that an answer comes at the speed of a click."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skysense_o import geometry


class PromptedImage:
    """One picture as the mask decoder has refined it. Ask it as often as you like."""

    @torch.inference_mode()
    def __init__(self, model: nn.Module, rgb: np.ndarray) -> None:
        """
        Args:
            model: a SkySenseO in eval mode. rgb: uint8 (H,W,3).

        Raises:
            ValueError: a model that takes words only.
        """
        if not model.sem_seg_head.takes_prompts:
            raise ValueError(
                "these weights take words only: use some that were trained with MODEL.SEM_SEG_HEAD.PROMPTS True"
                " (configs/mini/prompts.yaml)"
            )
        self.model, self.size = model, rgb.shape[:2]
        x, (self.frame,) = geometry.prepare([torch.tensor(rgb).permute(2, 0, 1)], model.tower)
        self.refined = model.sem_seg_head.refine(model.tower.encode_image(x))

    @torch.inference_mode()
    def prompt(
        self,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] = (),
        box: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, float]:
        """The mask that clicks and a box mean.

        Args:
            points: x,y of pixels of the picture. labels: 1 inside the mask, 0 outside it, one a point.
            box: x0,y0,x1,y1, its first and last pixel.

        Returns:
            mask bool (H,W), and the IoU it is thought to have, 0..1.

        Raises:
            ValueError: nothing asked; labels that do not match; a place outside the picture; a box inside out.
        """
        points, labels, box = self._checked(points, labels, box)
        xy = self.frame.points(points)[None, None]
        corners = self.frame.points(box.view(2, 2)).view(1, 1, 4)
        device = self.model.device
        logits, quality = self.model.draw(self.refined, *(x.to(device) for x in (xy, labels[None, None], corners)))
        full = F.interpolate(logits.float(), size=self.frame.padded, mode="bilinear", align_corners=False)
        mask = full[0, 0, : self.size[0], : self.size[1]] > 0
        return mask.cpu().numpy(), float(quality[0, 0].clamp(0, 1))

    def _checked(self, points, labels, box) -> tuple[Tensor, Tensor, Tensor]:
        """(N,2), (N,) and (4,), NaN where there is no box."""
        if len(points) != len(labels):
            raise ValueError(
                f"{len(points)} points with {len(labels)} labels: give each point 1 (inside) or 0 (outside)"
            )
        if not len(points) and box is None:
            raise ValueError("neither a point nor a box: give one at least")
        wrong = sorted(set(labels) - {0, 1})
        if wrong:
            raise ValueError(f"point labels {wrong}: permitted are 1 (inside) and 0 (outside)")
        height, width = self.size
        for x, y in [*points, *([box[:2], box[2:]] if box is not None else [])]:
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(f"({x}, {y}) lies outside the picture, which is {width} x {height} (x, y)")
        if box is not None and (box[0] > box[2] or box[1] > box[3]):
            raise ValueError(f"box {tuple(box)} is inside out: give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
        return (
            torch.tensor(points, dtype=torch.float32).view(-1, 2),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(box if box is not None else [float("nan")] * 4, dtype=torch.float32),
        )
