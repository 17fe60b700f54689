"""Segment an image with one call.

Shape letters: C classes, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from skysense_o import meta_arch, sam3  # noqa: F401  (fills the registry)
from skysense_o.checkpoint import (
    build_with_weights,
    check_makes_masks,
    config_of,
    find_weights,
    weights_hash,
)
from skysense_o.config import model_config
from skysense_o.device import choose_device, has_bf16
from skysense_o.image_io import RGBImage, as_image, printable, read_image
from skysense_o.inference.backend import use_backend
from skysense_o.inference.hub import HubModel
from skysense_o.inference.pixel_size import at_full_size, reduced, reduction
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.inference.segmentation import Segmentation, classes_by_id, fold_background, mark_nodata
from skysense_o.inference.sliding import segment_array, window_probabilities
from skysense_o.training_words import TrainingWords, describe_unfamiliar
from skysense_o.vocabulary import Vocabulary, as_vocabulary

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]


class Predictor(HubModel):
    """Segments images with one model.

    >>> predictor = Predictor.from_pretrained("mini", device="cpu")
    >>> segmentation = predictor("demo/yellowstone_0.4m.jpg", ["road|track", "vegetation"])
    >>> segmentation.classes, segmentation.labels.shape
    (('road', 'vegetation'), (259, 312))
    >>> [row["name"] for row in segmentation.areas()]
    ['road', 'vegetation']
    """

    def __init__(
        self,
        model: nn.Module,
        source: str = "",
        path: Path | None = None,
        precision: Precision = "fp32",
        known_gsd: Sequence[float] = (),
        config: str = "",
    ) -> None:
        """
        Args:
            model: a SkySenseO on its device; is put into eval mode.
            source: name of the model's weights, for records.
            path: the weights file, or None.
            precision: fp32 or bf16.
            known_gsd: least and greatest metres per pixel of the training images.
            config: YAML of the model, with which it can be saved.

        Raises:
            ValueError: the precision is neither fp32 nor bf16.
        """
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision {precision!r}: choose fp32 or bf16")
        self.model, self.source, self.path, self.precision = model.eval(), source, path, precision
        self.config, self.backend = config, "torch"
        self.known_gsd, self._warned = tuple(known_gsd), set[str]()
        if precision == "bf16" and not has_bf16(model.device):
            logger.warning("%s does not support bfloat16 natively: fp32 is many times faster here", model.device)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights file; "" without a file. Computed on first use, which takes seconds for 5 GB."""
        return weights_hash(self.path) if self.path else ""

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "mini",
        device: str = "auto",
        config_file: str | Path | None = None,
        precision: Precision = "fp32",
        trust_checkpoint: bool = False,
        backend: str = "torch",
        whole_images: bool = False,
        **download: Any,
    ) -> Predictor:
        """Build a model and load its weights.

        Args:
            weights: the name of shipped weights such as "mini", a .safetensors, .pth, .pt or .ckpt file, or
                hf://org/repo/file; a folder of `save_pretrained`, or "org/repo" after `push_to_hub`; SAM 3 as
                hf://facebook/sam3 or a folder of it.
            device: auto, cpu, cuda, cuda:1, ... or mps.
            config_file: YAML of the model; needed for weights that do not contain their config; the .safetensors
                that this project writes contain it.
            precision: fp32, or bf16 for more speed and half the memory on hardware that supports it.
            trust_checkpoint: also read pickles, which executes any code in them.
            backend: torch, onnx, openvino or auto: the runtime of the image encoder on a CPU, see `use_backend`.
            whole_images: also accept weights that make no masks, for `classify`.
            download: revision, token, cache_dir, local_files_only, ...; see huggingface_hub.hf_hub_download.

        Raises:
            FileNotFoundError: the weights or the config do not exist.
            WeightsError: the weights cannot be read, or do not fit the config.
            ValueError: the device or the backend is unknown, or this machine does not have it.
        """
        path, chosen = find_weights(weights, **download), choose_device(device)
        cfg = config_of(path, config_file)
        if not whole_images:
            check_makes_masks(cfg, path)
        model, report = build_with_weights(cfg, path, half=precision == "bf16", trust=trust_checkpoint)
        logger.log(logging.INFO if report.passed_over else logging.DEBUG, "%s: %s", path.name, report)
        model.tower.prepare_inference()
        if cfg.MODEL.TOWER.PACKED and chosen.type == "cpu":
            model.tower.pack()
        gsd = cfg.MODEL.KNOWN.GSD or ([cfg.MODEL.GSD] * 2 if cfg.MODEL.GSD else [])
        model = model.to(chosen, memory_format=torch.channels_last)
        predictor = cls(model, str(weights), path, precision, gsd, model_config(cfg).dump())
        predictor.config_in_file = config_file is None
        predictor.backend = use_backend(predictor, backend)
        return predictor

    @property
    def fill(self) -> list[float]:
        """The model's mean color, RGB in 0..255; pixels without data get it."""
        return self.model.tower.pixel_mean.flatten().tolist()

    def threshold_for(self, vocabulary: Vocabulary, threshold: float | None) -> float | None:
        """The threshold to apply: the given one, or 0.5 for a single class, which has no other class to compete with.

        Raises:
            ValueError: the threshold is outside 0..1, or a class has the name of id 0, see `classes_by_id`.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is out of range: 0 to 1")
        threshold = 0.5 if threshold is None and len(vocabulary) == 1 else threshold
        classes_by_id(vocabulary, threshold)
        return threshold

    @torch.inference_mode()
    def unfamiliar(self, vocabulary: Vocabulary) -> dict[str, str]:
        """Requested class -> a sentence, if the weights were not trained on it; see `TrainingWords.unfamiliar`."""
        words: TrainingWords | None = getattr(self.model, "training_words", None)  # SAM 3 has none
        found = words.unfamiliar(vocabulary) if words else {}
        return dict(zip(found, describe_unfamiliar(found)))

    def warn_unfamiliar(self, vocabulary: Vocabulary) -> None:
        """Log the sentences of `unfamiliar`, each once."""
        for sentence in self.unfamiliar(vocabulary).values():
            if sentence not in self._warned:
                self._warned.add(sentence)
                logger.warning("%s", sentence)

    def windows(self, windows: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """Predict probabilities of windows on the mask grid; see `SkySenseO.predict_windows`."""
        with self.in_precision():
            return self.model.predict_windows(windows, vocabulary).float()

    def window_model(
        self, vocabulary: Vocabulary, overview: Callable[[], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Like `windows`, for the windows of one image. overview: see `window_probabilities`."""
        with self.in_precision():
            ask = window_probabilities(self.model, vocabulary, overview)

        def probabilities(windows: torch.Tensor) -> torch.Tensor:
            with self.in_precision():
                return ask(windows).float()

        return probabilities

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
        pixel_size: float | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: a file, a PIL image, or an array (H,W), (H,W,3) or (H,W,4), see `image_io.read_image`; or the result
                of `set_image`, which is already encoded.
            classes: a list ["building|house", "road"], with bars between synonyms; the same in one line,
                "building|house,road"; or a Vocabulary.
            background: background words, as a list or in one line; pixels that fit them best get id 0, "none".
            threshold: 0..1; pixels whose best class is less probable get id 0, "none". None for no threshold, but 0.5
                for a single class without background words.
            probabilities: also return the probabilities of all classes.
            window, overlap: segment the image in windows of this size and overlap, in pixels, because it is too large
                for one pass (see `sliding.segment_array`). The result then has no presence. A georeferenced file is
                always segmented in windows, as `demo.py` does, unless probabilities are requested.
            pixel_size: metres on the ground per pixel, for images that are not georeferenced. If this is much less than
                in the training images (drones), the image is reduced for the model; the result has its original size.

        Returns:
            Labels and scores, see `Segmentation`.

        Raises:
            ValueError: the classes are invalid (see `Vocabulary.of`); the threshold or the pixel size is out of range;
                the window does not fit the model; both `window` and `probabilities` are given; or `window` or
                `pixel_size` is given for an encoded image.
            ImageError, FileNotFoundError: the image cannot be read.
        """
        vocabulary = as_vocabulary(classes, background)
        self.warn_unfamiliar(vocabulary)
        threshold = self.threshold_for(vocabulary, threshold)
        if window is not None and probabilities:
            raise ValueError("probabilities of all classes are not kept in windows: leave out window or probabilities")
        given = "window" if window is not None else "pixel_size" if pixel_size is not None else None
        if given and isinstance(image, PromptedImage):
            raise ValueError(f"this image is already encoded as a whole: leave out {given}, or pass the image itself")
        factor = reduction(pixel_size, self.known_gsd)
        read = None if isinstance(image, PromptedImage) else self._read(image)
        georeferenced = read is not None and read.record.georeferenced
        factor = 1.0 if georeferenced else factor
        if window is not None or (georeferenced and not probabilities):
            found = self._in_windows(reduced(read.filled(self.fill), factor), vocabulary, window, overlap)
            labels, score = at_full_size(*found, read.size)
            classes, labels = fold_background(vocabulary, labels, score, threshold)
            return mark_nodata(Segmentation(classes, labels, score, vocabulary, threshold=threshold), read.valid)
        encoded = image if read is None else self._encode(read, factor)
        reduce = "probabilities" if probabilities else "labels"
        out = encoded.predict_text(vocabulary, reduce, read and read.size)
        per_class = out.get("sem_seg")
        score, labels = (out["score"], out["labels"]) if per_class is None else per_class.max(dim=0)
        presence = out.get("presence")
        classes, labels = fold_background(vocabulary, labels.cpu().numpy(), score.cpu().numpy(), threshold)
        segmentation = Segmentation(
            classes,
            labels,
            score.float().cpu().numpy(),
            vocabulary,
            None if per_class is None else per_class.float().cpu().numpy(),
            None if presence is None else dict(zip(vocabulary.classes, presence.tolist())),
            threshold,
        )
        return mark_nodata(segmentation, encoded.valid)

    def _in_windows(
        self, rgb: np.ndarray, vocabulary: Vocabulary, window: int | None, overlap: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        pixels = torch.tensor(rgb).permute(2, 0, 1)
        model = self.window_model(vocabulary, lambda: pixels)
        return segment_array(pixels, vocabulary, self.model, window, overlap, probabilities=model)

    def _read(self, image: str | Path | np.ndarray | Image.Image | RGBImage) -> RGBImage:
        """Read an image, and log how it was converted unless the caller has read it."""
        read = read_image(image) if isinstance(image, (str, Path)) else as_image(image)
        for note in read.record.notes if read is not image else ():
            logger.warning("%s: %s", printable(image) if isinstance(image, (str, Path)) else "the image", note)
        return read

    def _encode(self, read: RGBImage, factor: float = 1.0) -> PromptedImage:
        return PromptedImage(self.model, reduced(read.filled(self.fill), factor), self.in_precision, read.valid)

    def set_image(self, image: str | Path | np.ndarray | Image.Image | RGBImage) -> PromptedImage:
        """Encode an image once, to segment it several times: with classes, clicks, boxes or regions.

        Args:
            image: see `__call__`.

        Raises:
            ImageError, FileNotFoundError: the image cannot be read.

        >>> predictor = Predictor.from_pretrained("mini", device="cpu")
        >>> image = predictor.set_image("demo/yellowstone_0.4m.jpg")
        >>> predictor(image, ["road", "tree"]).classes, predictor(image, ["water"]).classes
        (('road', 'tree'), ('none', 'water'))
        """
        return self._encode(self._read(image))
