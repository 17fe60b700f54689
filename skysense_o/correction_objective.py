"""Training of the network that corrects masks of clicks and boxes (`MaskCorrector`); all else is frozen.

Shape letters: B images, K prompts per image, R = BK masks, N clicks, H W pixels, h w grid of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.class_maps import WINDOW, ClassMaps
from skysense_o.clicks import corrective
from skysense_o.geometry import ImageTransform
from skysense_o.losses import mask_dice, mean_of_means
from skysense_o.modeling.mask_corrector import last_clicks, nearness
from skysense_o.prompt_objective import prepared_prompts
from skysense_o.sample import IGNORE, Sample

if TYPE_CHECKING:
    from skysense_o.meta_arch import SkySenseO

TRAINED = 2
"""Rounds per step that are trained on, drawn anew for each step. The others only lead to their masks."""
FOCUS = 8.0
"""Further weight in the BCE of a pixel under the last click, which decreases with the distance from it."""
DROPPED = 0.15
"""Share of the masks that are corrected without class maps, so that the network does not rely on them alone."""


class CorrectionObjective:
    """Dice and BCE of corrected masks. Before each further round every mask gets one more click, in its largest error.

    Unlike in `ClassMaps`, cells under clicks and outside of boxes are not set, a click may add and remove, and a box
    counts although a click lies outside of it. So the network itself learns to follow clicks and boxes.
    """

    def __init__(self, weight: float, rounds: int) -> None:
        """
        Args:
            weight: weight of the loss.
            rounds: number of corrections per step, at least TRAINED.

        Raises:
            ValueError: there are too few rounds.
        """
        if rounds < TRAINED:
            raise ValueError(
                f"MODEL.LOSS.PROMPT_ROUNDS {rounds} is too small for MODEL.LOSS.CORRECTION: at least {TRAINED}"
            )
        self.weight, self.rounds = weight, rounds

    @classmethod
    def from_config(cls, cfg) -> CorrectionObjective | None:
        loss = cfg.MODEL.LOSS
        return cls(loss.CORRECTION, loss.PROMPT_ROUNDS) if loss.CORRECTION else None

    def __call__(
        self,
        model: SkySenseO,
        image_embedding: object,
        samples: Sequence[Sample],
        transforms: Sequence[ImageTransform],
        sem_seg: Tensor,
    ) -> dict[str, Tensor]:
        """
        Args:
            model: its `prompt_corrector` is trained.
            image_embedding: B images, from `embed_images`; their grid has at most WINDOW cells a side.
            samples: B samples with `prompts`.
            transforms: one per image.
            sem_seg: (B,H,W) labels, padded with IGNORE.

        Returns:
            "loss_correction".

        Raises:
            ValueError: a sample has no prompts, or the images are too large.
        """
        if not all("prompts" in sample for sample in samples):
            raise ValueError("MODEL.LOSS.CORRECTION needs samples with prompts: set INPUT.PROMPTS above 0")
        prompts, size = [sample["prompts"] for sample in samples], sem_seg.shape[-2:]
        padding = [(0, size[1] - p["masks"].shape[2], 0, size[0] - p["masks"].shape[1]) for p in prompts]
        target = torch.cat([F.pad(p["masks"], by) for p, by in zip(prompts, padding)]).to(sem_seg.device)
        known = (sem_seg != IGNORE).repeat_interleave(len(target) // len(samples), dim=0)
        with torch.no_grad():
            masks, shares, maps = self._first(model, image_embedding, prompts, transforms)
        grid = masks.shape[-2:]
        if max(grid) > WINDOW:
            raise ValueError(
                f"a mask grid of {tuple(grid)} cells is too large for MODEL.LOSS.CORRECTION: at most {WINDOW} a side;"
                " make INPUT.CROP_SIZE smaller"
            )
        clicks = [_clicks(p, k) for p in prompts for k in range(len(p["labels"]))]
        boxes = [() if box.isnan().any() else tuple(box.tolist()) for p in prompts for box in p["boxes"]]
        trained, terms = set(torch.randperm(self.rounds)[:TRAINED].tolist()), []
        whole = (slice(0, grid[0]), slice(0, grid[1]))
        errors = [m.cpu().numpy() for m in (target, known)]
        for turn in range(self.rounds):
            now = (_resized(masks, size) > 0).cpu().numpy()
            for row, (mask, truth, sure) in enumerate(zip(now, *errors)):
                if truth.any() and (turn or not clicks[row]):
                    clicks[row] = [*clicks[row], corrective(truth, mask, sure)]
            cells = [one.in_cells(c, box, whole, grid, grid) for one, c, box in zip(maps, clicks, boxes)]
            points, labels, corners = _stacked(cells)
            with torch.set_grad_enabled(turn in trained and torch.is_grad_enabled()):
                found = model.sem_seg_head.correct(image_embedding, whole, shares, masks, points, labels, corners)
            prompted = zip(maps, found.detach(), clicks, boxes)
            masks = torch.stack([one.clicked_parts(mask, c, box) for one, mask, c, box in prompted])
            if turn in trained:
                last, label = last_clicks(points, labels)
                removed = (found > 0) & (masks <= 0)  # whatever these parts are, they are not in the mask
                near, removed = _resized(nearness(masks, last, label >= 0), size), _resized(removed.float(), size) > 0.5
                terms.append(correction_loss(_resized(found, size), target, known & ~removed, 1 + FOCUS * near))
        return {"loss_correction": self.weight * torch.stack(terms).mean()}

    def _first(
        self, model: SkySenseO, image_embedding: object, prompts: Sequence[dict], transforms: Sequence[ImageTransform]
    ) -> tuple[Tensor, list[Tensor], list[ClassMaps]]:
        """The masks (R,h,w) before any correction, the class maps in their cells, and the `ClassMaps` of each mask."""
        points, labels, boxes = (x.to(model.device) for x in prepared_prompts(prompts, transforms))
        drawn, _ = model.predict_prompts(image_embedding, points[:, :, :1], labels[:, :, :1], boxes)
        known: dict = {}

        def probabilities(vocabulary, row: int) -> Tensor:
            if vocabulary.classes not in known:
                known[vocabulary.classes] = model.class_probabilities(image_embedding, len(prompts), vocabulary)
            return known[vocabulary.classes][row]

        masks, shares, maps = [], [], []
        for b, (prompt, transform) in enumerate(zip(prompts, transforms)):
            one = ClassMaps(lambda vocabulary, b=b: probabilities(vocabulary, b).float(), transform)
            grid = drawn.shape[-2:]
            inside = one.in_window((slice(0, grid[0]), slice(0, grid[1])), grid, grid)
            for k, box in enumerate(prompt["boxes"]):
                box = () if box.isnan().any() else tuple(box.tolist())
                clicks = _clicks(prompt, k)[:1]
                logits = drawn[b, k].float()
                if prompt["masks"][k].any():  # else there is neither a click nor a box
                    logits = one.first(clicks, box, lambda *_, logits=logits: logits.clone())
                masks.append(logits)
                share = float(torch.rand(()) >= DROPPED)
                shares.append([share * each for each in inside])
                maps.append(one)
        return torch.stack(masks), [torch.cat(each) for each in zip(*shares)], maps


def correction_loss(logits: Tensor, target: Tensor, known: Tensor, weight: Tensor) -> Tensor:
    """BCE, weighted by pixel, and Dice of R masks, averaged over those whose target is not empty.

    Args:
        logits: (R,H,W).
        target: bool (R,H,W).
        known: bool (R,H,W); False where the label is ignored.
        weight: (R,H,W), of each pixel in the BCE.
    """
    weight = weight * known
    bce = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none") * weight
    each = bce.sum((1, 2)) / weight.sum((1, 2)).clamp(min=1) + mask_dice(logits, target, known)
    return mean_of_means(each[None], target.flatten(1).any(-1)[None])


def _clicks(prompt: dict, k: int) -> list[tuple[float, float, int]]:
    """The clicks of a prompt, without padding."""
    return [(*xy, label) for xy, label in zip(prompt["points"][k].tolist(), prompt["labels"][k].tolist()) if label >= 0]


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (R,h,w) -> (R,H,W)."""
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def _stacked(cells: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Points, labels and boxes of R masks from `ClassMaps.in_cells`, padded to the same number of clicks."""
    points, labels, boxes = zip(*cells)
    most = max(x.shape[1] for x in labels)
    return (
        torch.cat([F.pad(x, (0, 0, 0, most - x.shape[1])) for x in points]),
        torch.cat([F.pad(x, (0, most - x.shape[1]), value=-1) for x in labels]),
        torch.cat(boxes),
    )
