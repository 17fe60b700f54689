"""The segmentation of one image, and the rules for "none" and for pixels without data.

Shape letters: C classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from skysense_o.vocabulary import Vocabulary

NONE = "none"
"""Name of id 0 where there are background words or a threshold."""


@dataclass
class Segmentation:
    """The segmentation of one image.

    Attributes:
        classes: class per id. With background words or a threshold, id 0 is "none" and the classes start at id 1.
        labels: (H,W) ids; int64, or uint8 or uint16 if the image was segmented in windows. Pixels without data have
            the id `nodata`.
        score: (H,W) float32, probability of the best class per pixel, background included.
        vocabulary: the requested classes.
        probabilities: (C,H,W) float32 per class of the vocabulary, background included; None unless requested.
        presence: class -> 0..1, whether it is anywhere in the image; None if the model does not predict it. It is a
            probability if the weights are calibrated (`SkySenseO.presence_calibrated`).
        threshold: the threshold that was applied, or None.
        valid: bool (H,W), False where pixels have no data (declared nodata, alpha 0, not finite); None if all have. The
            model gets its mean color there.

    >>> labels, score = np.array([[0, 1], [1, 1]]), np.ones((2, 2), np.float32)
    >>> segmentation = Segmentation(("road", "tree"), labels, score, Vocabulary.parse("road,tree"))
    >>> segmentation.areas()[1]
    {'id': 1, 'name': 'tree', 'pixels': 3, 'share': 0.75}
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    score: np.ndarray
    vocabulary: Vocabulary
    probabilities: np.ndarray | None = None
    presence: dict[str, float] | None = None
    threshold: float | None = None
    valid: np.ndarray | None = None

    @property
    def nodata(self) -> int:
        """The id of pixels without data: 255, or 65535 for more than 254 classes, as in the label maps of scenes."""
        return 255 if len(self.classes) <= 254 else 65535

    @property
    def has_none(self) -> bool:
        """Whether id 0 stands for pixels of no class, rather than for the first class."""
        return self.threshold is not None or any(self.vocabulary.background)

    def areas(self) -> list[dict]:
        """Return one row per class: id, name, pixels, and share (0..1) of the pixels that have data."""
        labels = self.labels if self.valid is None else self.labels[self.valid]
        pixels = np.bincount(labels.ravel(), minlength=len(self.classes)).tolist()
        return [
            {"id": i, "name": name, "pixels": n, "share": n / labels.size}
            for i, (name, n) in enumerate(zip(self.classes, pixels))
        ]


def classes_by_id(vocabulary: Vocabulary, threshold: float | None) -> tuple[str, ...]:
    """The class of each id, see `fold_background`.

    Raises:
        ValueError: a class is called "none", the name of id 0.
    """
    if threshold is None and not any(vocabulary.background):
        return vocabulary.classes
    foreground = [name for name, flag in zip(vocabulary.classes, vocabulary.background) if not flag]
    taken = next((name for name in foreground if name.lower() == NONE), None)
    if taken is not None:
        raise ValueError(
            f"a class is called {taken!r}, which is the name of id 0 where there is a threshold or background words:"
            f" call it 'nothing|{taken}', or leave them out"
        )
    return NONE, *foreground


def fold_background(
    vocabulary: Vocabulary, labels: np.ndarray, score: np.ndarray, threshold: float | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Merge background classes and improbable pixels into id 0, "none".

    Args:
        labels: indices of the vocabulary's classes (H,W).
        score: probability of the best class (H,W).
        threshold: pixels with a lower score become "none"; None for no threshold.

    Returns:
        Class per id, and ids (H,W). Without background words and threshold, both are unchanged; else id 0 is "none" and
        the classes start at 1.

    >>> vocabulary = Vocabulary.of(["road", "tree"], background=["sky"])
    >>> classes, ids = fold_background(vocabulary, np.array([[0, 1, 2]]), np.ones((1, 3)), None)
    >>> classes, ids.tolist()
    (('none', 'road', 'tree'), [[1, 2, 0]])
    """
    classes = classes_by_id(vocabulary, threshold)
    if threshold is None and not any(vocabulary.background):
        return classes, labels
    foreground = [i for i, flag in enumerate(vocabulary.background) if not flag]
    ids = np.zeros(len(vocabulary), np.promote_types(labels.dtype, np.min_scalar_type(len(foreground))))
    ids[foreground] = np.arange(1, len(foreground) + 1)
    folded = ids[labels]
    if threshold is not None:
        folded[score < threshold] = 0
    return classes, folded


def mark_nodata(segmentation: Segmentation, valid: np.ndarray | None) -> Segmentation:
    """Give pixels without data the id `nodata`; see `Segmentation.valid`."""
    if valid is None:
        return segmentation
    dtype = np.promote_types(segmentation.labels.dtype, np.min_scalar_type(segmentation.nodata))
    labels = segmentation.labels.astype(dtype)
    labels[~valid] = segmentation.nodata
    return replace(segmentation, labels=labels, valid=valid)
