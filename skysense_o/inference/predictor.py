"""One call from an image and words to masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from skysense_o import meta_arch  # noqa: F401  (fills the registry)
from skysense_o.checkpoint import WeightsError, build_with_weights, find_weights, read_config, weights_hash
from skysense_o.config import default_config, merge_file, merge_tree
from skysense_o.device import choose_device, has_bf16
from skysense_o.image_io import RGBImage, as_image, printable, read_image
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.inference.sliding import segment_array
from skysense_o.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
NONE = "none"
Precision = Literal["fp32", "bf16"]


@dataclass
class Segmentation:
    """What was found in one image.

    classes: as the ids of `labels` count them; the first is "none" where there are background words or a threshold.
    labels: (H,W) ids, int64 (unsigned of 8 or 16 bits where the image was seen in windows). score: (H,W) float32,
    probability of the best name of all. probabilities: (C,H,W) float32 of the asked names, background included, or
    None. presence: name -> probability that it is in the image at all, or None.
    threshold: the one that was applied, or None.
    valid: bool (H,W), or None where all pixels have data. What has none (declared nodata, alpha 0, not finite) is
    shown to the model in its mean colour, has the id `nodata` in `labels` and no share in `areas`, as in scenes.
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
        """The id of pixels without data: 255, or 65535 above 254 names, as in the label maps of scenes."""
        return 255 if len(self.classes) <= 254 else 65535

    @property
    def has_none(self) -> bool:
        """Whether id 0 stands for pixels of no class, rather than for the first class."""
        return self.threshold is not None or any(self.vocabulary.background)

    def areas(self) -> list[dict]:
        """One row a name: id, name, pixels, share of the pixels that have data."""
        labels = self.labels if self.valid is None else self.labels[self.valid]
        pixels = np.bincount(labels.ravel(), minlength=len(self.classes)).tolist()
        return [
            {"id": i, "name": name, "pixels": n, "share": n / labels.size}
            for i, (name, n) in enumerate(zip(self.classes, pixels))
        ]


class Predictor:
    """Holds a model; call it with an image and words.

    >>> predictor = Predictor.from_pretrained("mini")            # doctest: +SKIP
    >>> predictor("town.jpg", ["building|house", "road"]).areas()  # doctest: +SKIP
    """

    def __init__(
        self, model: nn.Module, source: str = "", path: Path | None = None, precision: Precision = "fp32"
    ) -> None:
        """model: a SkySenseO on its device. source, path: of its weights, for the record."""
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision {precision!r} is not known: fp32 or bf16")
        self.model, self.source, self.path, self.precision = model.eval(), source, path, precision
        self._prompted: PromptedImage | None = None
        if precision == "bf16" and not has_bf16(model.device):
            logger.warning("%s multiplies no bfloat16 itself: fp32 is many times faster here", model.device)

    @cached_property
    def sha256(self) -> str:
        """Of the weights' file; "" where the model came from none. Only when asked for: 5 GB take seconds."""
        return weights_hash(self.path) if self.path else ""

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "mini",
        device: str = "auto",
        config_file: str | Path | None = None,
        precision: Precision = "fp32",
        trust_checkpoint: bool = False,
    ) -> Predictor:
        """Build a model and load weights: shipped ones by name, or a file.

        Args:
            weights: "mini", a .safetensors, .pth, .pt or .ckpt file, or hf://org/repo/file.
            device: auto, cpu, cuda, cuda:1, ... or mps.
            config_file: YAML of the model; needed where the file does not hold it (ours in safetensors do).
            precision: fp32, or bf16 for speed and half the memory where the processor has it.
            trust_checkpoint: read old pickles too, which runs whatever code they contain.

        Raises:
            FileNotFoundError, WeightsError (no such weights, or they do not fit), ValueError (device).
        """
        path = find_weights(weights)
        where = choose_device(device)
        cfg = config_of(path, config_file)
        model, report = build_with_weights(cfg, path, half=precision == "bf16", trust=trust_checkpoint)
        logger.log(logging.INFO if report.passed_over else logging.DEBUG, "%s: %s", path.name, report)
        return cls(model.to(where, memory_format=torch.channels_last), str(weights), path, precision)

    @property
    def fill(self) -> list[float]:
        """The colour, RGB in 0..255, that says nothing to the model: for pixels without data."""
        return self.model.tower.pixel_mean.flatten().tolist()

    def threshold_for(self, vocabulary: Vocabulary, threshold: float | None) -> float | None:
        """The threshold that will be applied: a single name has nothing to compete with and gets 0.5 by itself.

        Raises:
            ValueError: outside 0..1.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is out of range: 0 to 1")
        return 0.5 if threshold is None and len(vocabulary) == 1 else threshold

    def windows(self, windows: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """Probabilities of windows at the masks' grid, in this predictor's precision; see `predict_windows`."""
        with self.in_precision():
            return self.model.predict_windows(windows, vocabulary).float()

    def in_precision(self) -> AbstractContextManager:
        """The context in which the model runs in this predictor's precision."""
        half = self.precision == "bf16"
        return torch.autocast(self.model.device.type, torch.bfloat16) if half else nullcontext()

    @torch.inference_mode()
    def __call__(
        self,
        image: str | Path | np.ndarray | Image.Image | RGBImage | PromptedImage,
        classes: Vocabulary | Sequence[str] | str,
        *,
        background: Sequence[str] | str = (),
        threshold: float | None = None,
        probabilities: bool = False,
        window: int | None = None,
        overlap: int | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: a file, a PIL image, or an RGB array (H,W,3); grey, alpha and other depths are understood, see
                `image_io.read_image`. What `set_image` gave saves looking at the image again.
            classes: ["building", "road"], synonyms by bars "building|house"; one line "building,road"; or a Vocabulary.
            background: words for the rest; pixels that fit them best get id 0, "none".
            threshold: 0..1; pixels whose best name has less get id 0, "none". A single name without background words
                has nothing to compete with: its threshold is 0.5 where none is given.
            probabilities: keep the (C,H,W) of all classes too.
            window, overlap: go through the image in windows of so many pixels (see `sliding.segment_array`), for
                images that are too large to be seen at once; labels are then of 8 or 16 bits and there is no
                presence. A file with a place on the ground is a scene, and always seen so, as `demo.py` does, unless
                probabilities are asked for.

        Raises:
            ValueError: names (see Vocabulary), threshold out of range, a window that does not fit, or windows of a
                image that was looked at as a whole. ImageError, FileNotFoundError: the image.
        """
        vocabulary = _vocabulary(classes, background)
        threshold = self.threshold_for(vocabulary, threshold)
        if window is not None and probabilities:
            raise ValueError("probabilities of all classes are not kept in windows: leave out one of the two")
        if window is not None and isinstance(image, PromptedImage):
            raise ValueError("this image was looked at as a whole: leave out window, or give the image itself")
        read = None if isinstance(image, PromptedImage) else self._read(image)
        if window is not None or (read is not None and read.record.placed and not probabilities):
            pixels = torch.tensor(read.filled(self.fill)).permute(2, 0, 1)
            ask = partial(self.windows, vocabulary=vocabulary)
            labels, score = segment_array(pixels, vocabulary, self.model, window, overlap, probabilities=ask)
            classes, labels = fold_background(vocabulary, labels, score, threshold)
            return _without_data(Segmentation(classes, labels, score, vocabulary, threshold=threshold), read.valid)
        seen = image if read is None else self._look(read)
        out = seen.predict_text(vocabulary, "probabilities" if probabilities else "labels")
        kept = out.get("sem_seg")
        score, labels = (out["score"], out["labels"]) if kept is None else kept.max(dim=0)
        presence = out.get("presence")
        classes, labels = fold_background(vocabulary, labels.cpu().numpy(), score.cpu().numpy(), threshold)
        found = Segmentation(
            classes,
            labels,
            score.float().cpu().numpy(),
            vocabulary,
            None if kept is None else kept.float().cpu().numpy(),
            None if presence is None else dict(zip(vocabulary.classes, presence.tolist())),
            threshold,
        )
        return _without_data(found, seen.valid)

    def _read(self, image: str | Path | np.ndarray | Image.Image | RGBImage) -> RGBImage:
        """Told what was done to show it, unless the caller has read it."""
        read = read_image(image) if isinstance(image, (str, Path)) else as_image(image)
        for note in read.record.notes if read is not image else ():
            logger.warning("%s: %s", printable(image) if isinstance(image, (str, Path)) else "the image", note)
        return read

    def _look(self, image: str | Path | np.ndarray | Image.Image | RGBImage) -> PromptedImage:
        read = self._read(image)
        return PromptedImage(self.model, read.filled(self.fill), self.in_precision, read.valid)

    def set_image(self, image: str | Path | np.ndarray | Image.Image | RGBImage) -> PromptedImage:
        """Look at an image once, to be asked by `prompt`. It is returned as well, to keep several at hand.

        >>> seen = predictor.set_image("town.jpg")                     # doctest: +SKIP
        >>> mask, quality = predictor.prompt(box=(10, 10, 90, 60))     # doctest: +SKIP
        >>> seen.name([mask], Vocabulary.parse("ship,harbor,field"))   # doctest: +SKIP
        >>> like = Vocabulary.parse("road").with_examples({"like this": seen.embed([mask])[0]})  # doctest: +SKIP
        >>> predictor(seen, like).areas()                              # doctest: +SKIP

        Raises:
            ImageError, FileNotFoundError: the image.
        """
        self._prompted = self._look(image)
        return self._prompted

    def prompt(
        self,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] = (),
        box: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, float]:
        """The mask that clicks and a box mean in the image of `set_image`; see `PromptedImage.prompt`."""
        if self._prompted is None:
            raise ValueError("no image to ask about: call set_image first")
        return self._prompted.prompt(points, labels, box)


def config_of(path: Path | None, config_file: str | Path | None = None) -> CfgNode:
    """The config of a model for inference: that of the YAML where one is named, else what the weights' file holds."""
    cfg = default_config()
    if config_file:
        merge_file(cfg, config_file)
    else:
        stored = read_config(path)
        if stored is None:
            raise WeightsError(
                f"{path} does not hold its config: name it (--config-file, config_file=), or give the .safetensors that"
                " training writes"
            )
        merge_tree(cfg, yaml.safe_load(stored))
    cfg.MODEL.TOWER.PRETRAINED = False  # the checkpoint brings what it has learned
    return cfg


def _without_data(found: Segmentation, valid: np.ndarray | None) -> Segmentation:
    """The same, with pixels without data marked; see `Segmentation.valid`."""
    if valid is None:
        return found
    labels = found.labels.astype(np.promote_types(found.labels.dtype, np.min_scalar_type(found.nodata)))
    labels[~valid] = found.nodata
    return replace(found, labels=labels, valid=valid)


def _vocabulary(classes: Vocabulary | Sequence[str] | str, background: Sequence[str] | str) -> Vocabulary:
    extra = background.split(",") if isinstance(background, str) and background.strip() else background or ()
    if isinstance(classes, Vocabulary):
        if extra:
            raise ValueError("the Vocabulary that was given holds its own background words: pass none beside it")
        return classes
    return Vocabulary.of(classes.split(",") if isinstance(classes, str) else classes, extra)


def fold_background(
    vocabulary: Vocabulary, labels: np.ndarray, score: np.ndarray, threshold: float | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Ids 0.. of the classes; with background words or a threshold 0 is "none" and the classes start at 1."""
    if threshold is None and not any(vocabulary.background):
        return vocabulary.classes, labels
    if NONE in vocabulary.classes:
        raise ValueError(f"a class is called {NONE!r}, the word for pixels of no class: call it 'nothing|{NONE}'")
    asked = [i for i, flag in enumerate(vocabulary.background) if not flag]
    ids = np.zeros(len(vocabulary), np.promote_types(labels.dtype, np.min_scalar_type(len(asked))))
    ids[asked] = np.arange(1, len(asked) + 1)
    folded = ids[labels]
    if threshold is not None:
        folded[score < threshold] = 0
    return (NONE, *(vocabulary.classes[i] for i in asked)), folded
