"""An image that is encoded once, then segmented with classes, clicks, boxes or regions.

Shape letters: C classes, K prompts or regions, N points, D embedding, H W pixels, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skysense_o import geometry
from skysense_o.class_maps import ClassMaps
from skysense_o.clicks import box_from_mask, parts_at
from skysense_o.sample import Prediction, Reduce
from skysense_o.vocabulary import Vocabulary

WORDS_ONLY = (
    "these weights take words only: use weights that were trained with MODEL.SEM_SEG_HEAD.PROMPTS True"
    " (configs/mini/prompts.yaml)"
)


class PromptedImage:
    """An encoded image, the result of `Predictor.set_image`.

    Attributes:
        size: (H,W) of the image.
        valid: bool (H,W), which pixels have data; None if all have.

    >>> from skysense_o import Predictor
    >>> predictor = Predictor.from_pretrained("mini", device="cpu")
    >>> image = predictor.set_image("demo/yellowstone_0.4m.jpg")
    >>> region = image.box_mask((150, 10, 200, 60))
    >>> [name for name, cosine in image.name(region[None], Vocabulary.parse("tree,water"), top=1)[0]] != []
    True
    >>> vocabulary = Vocabulary.parse("road").with_examples({"like this": image.embed(region[None])[0]})
    >>> predictor(image, vocabulary).classes
    ('road', 'like this')
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: nn.Module,
        rgb: np.ndarray,
        precision: Callable[[], AbstractContextManager] = nullcontext,
        valid: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            model: a SkySenseO in eval mode.
            rgb: uint8 (H,W,3).
            precision: a function that returns the context manager to run the model in, such as autocast to bfloat16.
            valid: bool (H,W), which pixels have data; None for all. Clicks and boxes select only these.
        """
        self.model, self.size, self.precision, self.valid = model, rgb.shape[:2], precision, valid
        self.class_maps: ClassMaps | None = None  # created for the first prompt that uses them
        with precision():
            self.image_embedding, self.dense, transforms = model.embed_images([torch.tensor(rgb).permute(2, 0, 1)])
        (self.transform,) = transforms

    @property
    def takes_prompts(self) -> bool:
        """Whether the weights were trained with clicks and boxes."""
        return self.model.takes_prompts

    @property
    def has_region_vectors(self) -> bool:
        """Whether regions are named by comparing vectors, which is fast. SAM 3 predicts a mask per class instead."""
        return not hasattr(self.model, "embed_regions")

    @torch.inference_mode()
    def predict_text(self, vocabulary: Vocabulary, reduce: Reduce, size: tuple[int, int] | None = None) -> Prediction:
        """Segment the image with classes; see `SkySenseO.predict` for the result.

        Args:
            size: (height,width) of the result; None for the size of the image.
        """
        sizes = [size or self.size]
        with self.precision():
            return self.model.predict_text(self.image_embedding, [self.transform], [vocabulary], sizes, reduce)[0]

    @torch.inference_mode()
    def class_probabilities(self, vocabulary: Vocabulary) -> Tensor:
        """Probability per class on the mask grid of the padded image: (C,h,w)."""
        with self.precision():
            return self.model.class_probabilities(self.image_embedding, 1, vocabulary)[0].float()

    @torch.inference_mode()
    def prompt(
        self,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] = (),
        box: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, float | None]:
        """Predict the mask of one object from points, a box or both.

        Without a box, only connected parts with a foreground point are returned: a click means one object. Pixels
        without data are in no mask. For MODEL.SEM_SEG_HEAD.CLASS_MAPS, see `ClassMaps`.

        Args:
            points: N points x,y, in pixels of the image.
            labels: per point 1 for foreground (inside the mask) or 0 for background (outside).
            box: half-open XYXY, in pixels of the image.

        Returns:
            Mask bool (H,W), and the IoU that the decoder predicts for it, 0..1; None with CLASS_MAPS.

        Raises:
            ValueError: the weights were trained without prompts; there are neither points nor a box; the numbers of
                points and labels differ; a point or the box lies outside the image; or the box is empty.
        """
        self._check(points, labels, box)
        clicks, box = [(x, y, label) for (x, y), label in zip(points, labels)], () if box is None else tuple(box)
        if self.takes_prompts and self.has_region_vectors and self.model.class_maps and (box or any(labels)):
            self.class_maps = self.class_maps or ClassMaps(self.class_probabilities, self.transform)
            if not clicks:
                return self._with_data(self.class_maps.box_regions.mask(box)), None
            correct = partial(self.model.sem_seg_head.correct, self.image_embedding)
            with self.precision():
                logits, iou_pred = self.class_maps.logits(clicks, box, lambda *p: self._decode(*p)[0], correct), None
        else:
            logits, iou_pred = self._decode(clicks, box)
        mask = (self.to_image(logits[None])[0] > 0).cpu().numpy()
        if not box:  # a box may mean several parts
            mask = parts_at(mask, [(int(x), int(y)) for x, y, label in clicks if label])
        return self._with_data(mask), None if iou_pred is None else float(iou_pred.clamp(0, 1))

    def _with_data(self, mask: np.ndarray) -> np.ndarray:
        return mask if self.valid is None else mask & self.valid

    def _decode(self, clicks: Sequence[tuple[float, float, int]], box: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        points = torch.tensor([click[:2] for click in clicks], dtype=torch.float32).view(1, -1, 2)
        labels = torch.tensor([[click[2] for click in clicks]], dtype=torch.int64)
        corners = torch.tensor([box or [float("nan")] * 4], dtype=torch.float32)
        logits, iou_pred = self.predict_prompts(points, labels, corners)
        return logits[0], None if iou_pred is None else iou_pred[0]

    @torch.inference_mode()
    def predict_prompts(self, points: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict the masks of K prompts in one call.

        Args:
            points: (K,N,2) x,y, in pixels of the image.
            labels: (K,N), 1 foreground, 0 background, -1 padding.
            boxes: (K,4) half-open XYXY, NaN for no box.

        Returns:
            logits (K,h,w) on the mask grid of the padded image, and predicted IoU (K), None with CLASS_MAPS.

        Raises:
            ValueError: the weights were trained without prompts.
        """
        if not self.takes_prompts:
            raise ValueError(WORDS_ONLY)
        xy, corners = self.transform.points(points), self.transform.boxes(boxes)
        with self.precision():
            prompts = (x[None].to(self.model.device) for x in (xy, labels, corners))
            logits, iou_pred = self.model.predict_prompts(self.image_embedding, *prompts)
        return logits[0].float(), None if iou_pred is None else iou_pred[0].float()

    def to_image(self, grid: Tensor) -> Tensor:
        """Resize masks from the mask grid to the image: (K,h,w) over the padded image -> (K,H,W)."""
        full = F.interpolate(grid[None], size=self.transform.padded, mode="bilinear", align_corners=False)
        return full[0, :, : self.size[0], : self.size[1]]

    @torch.inference_mode()
    def embed(self, masks: np.ndarray) -> Tensor:
        """Embed regions: the mean of the dense features inside each mask.

        A cell of the feature grid is weighted by the share of its pixels that lie inside the mask.

        Args:
            masks: bool (K,H,W).

        Returns:
            (K,D) unit vectors in the text space.

        Raises:
            ValueError: a mask is empty, or has another size than the image.
        """
        masks = self._regions(masks)
        if not self.has_region_vectors:  # SAM 3 encodes the box of a region instead of the region
            height, width = self.size
            sides = torch.tensor([width, height, width, height])
            boxes = torch.tensor([box_from_mask(mask) for mask in masks]) / sides
            with self.precision():
                return self.model.embed_regions(self.image_embedding, boxes).float()
        shares = self._shares(masks, self.grid).to(self.dense.device)
        return F.normalize(torch.einsum("khw,dhw->kd", shares, self.dense[0].float()), dim=-1)

    def _regions(self, masks: np.ndarray) -> np.ndarray:
        """Check that masks have the image's size and are not empty -> bool (K,H,W)."""
        masks = np.asarray(masks, bool)
        if masks.ndim != 3 or masks.shape[1:] != self.size:
            height, width = self.size
            raise ValueError(f"masks of shape {masks.shape} do not fit the image: expected (K,{height},{width})")
        if not masks.any((1, 2)).all():
            raise ValueError("a region is empty: it needs at least one pixel")
        return masks

    def _shares(self, masks: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """(K,h,w): the share of each cell over the padded image that a region covers."""
        # One by one, because a hundred full-size float masks would not fit into memory.
        return torch.stack([self.transform.cell_shares(torch.from_numpy(mask), grid) for mask in masks])

    def cosines(self, regions: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Cosines of regions and classes.

        Args:
            regions: (K,D), see `embed`.

        Returns:
            (K,C), -1..1; for a class with synonyms, the cosine of the best synonym.

        Raises:
            ValueError: the model has no region vectors in the text space.
        """
        if not self.has_region_vectors:
            raise ValueError("SAM 3 has no vectors to compare a region with words: name by masks, or use other weights")
        text, _ = self.model.text_bank(self.model.tower, [vocabulary], self.model.templates)
        cosines = regions @ F.normalize(text[0].float().mean(1), dim=-1).T
        return geometry.best_of_phrases(cosines.T, vocabulary.phrase_to_class, len(vocabulary)).T

    @property
    def grid(self) -> tuple[int, int]:
        """(h,w) of the dense features."""
        return tuple(self.dense.shape[-2:])

    @torch.inference_mode()
    def name(self, masks: np.ndarray, vocabulary: Vocabulary, top: int = 5) -> list[list[tuple[str, float]]]:
        """Rank classes for each region by similarity.

        Args:
            masks: bool (K,H,W).
            top: number of classes to return.

        Returns:
            Per region (class, cosine) pairs, the best first; see `cosines`. For SAM 3, which has no region
            vectors in the text space, the class's mean probability inside the region, 0..1.
        """
        if not self.has_region_vectors:
            grid = self.class_probabilities(vocabulary)
            shares = self._shares(self._regions(masks), tuple(grid.shape[-2:])).to(grid)
            values = torch.einsum("khw,chw->kc", shares, grid) / shares.sum((1, 2))[:, None]
        else:
            values = self.cosines(self.embed(masks), vocabulary)
        values, order = values.sort(dim=1, descending=True)
        return [
            [(vocabulary.classes[i], round(value, 4)) for i, value in zip(ids[:top], row[:top])]
            for ids, row in zip(order.tolist(), values.tolist())
        ]

    def box_mask(self, box: Sequence[float]) -> np.ndarray:
        """The mask of all pixels inside a box.

        Args:
            box: half-open XYXY, in pixels of the image.

        Returns:
            bool (H,W).

        Raises:
            ValueError: the box is empty, or extends beyond the image.
        """
        self._check((), (), box)
        mask = np.zeros(self.size, bool)
        x0, y0, x1, y1 = (int(v) for v in box)
        mask[y0:y1, x0:x1] = True
        return mask

    def _check(self, points: Sequence, labels: Sequence[int], box: Sequence[float] | None) -> None:
        """Check a prompt, see `prompt`."""
        if len(points) != len(labels):
            raise ValueError(
                f"{len(points)} points with {len(labels)} labels: give one label per point, 1 (inside) or 0 (outside)"
            )
        if not len(points) and box is None:
            raise ValueError("neither a point nor a box: give at least one")
        wrong = sorted(set(labels) - {0, 1})
        if wrong:
            raise ValueError(f"point labels {wrong}: they must be 1 (inside) or 0 (outside)")
        height, width = self.size
        for x, y in points:
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(f"({x}, {y}) lies outside the image, which is {width} x {height} (x, y)")
        if box is not None:
            x0, y0, x1, y1 = box
            if x0 >= x1 or y0 >= y1:
                raise ValueError(f"box {tuple(box)} is empty: give x0, y0, x1, y1 with x0 < x1 and y0 < y1")
            if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
                raise ValueError(f"box {tuple(box)} extends beyond the image, which is {width} x {height} (x, y)")
