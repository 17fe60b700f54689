"""One call from a picture and words to masks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn

from skysense_o import meta_arch  # noqa: F401  (fills the registry)
from skysense_o.checkpoint import WeightsError, find_weights, load_weights, read_config, weights_hash
from skysense_o.config import default_config, merge_file
from skysense_o.device import choose_device
from skysense_o.inference.pictures import as_rgb, read_picture
from skysense_o.inference.prompting import PromptedImage
from skysense_o.vocabulary import Vocabulary

NONE = "none"


@dataclass
class Segmentation:
    """What was found in one picture.

    names: as the ids of `labels` count them; the first is "none" where there are background words or a threshold.
    labels: (H,W) int64 ids. score: (H,W) float32, probability of the best name of all. probabilities: (C,H,W) float32
    of the asked names, background included, or None. presence: name -> probability that it is in the picture at all.
    threshold: the one that was applied, or None.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    score: np.ndarray
    vocabulary: Vocabulary
    probabilities: np.ndarray | None = None
    presence: dict[str, float] | None = None
    threshold: float | None = None

    def areas(self) -> list[dict]:
        """One row a name: id, name, pixels, share of the picture."""
        pixels = np.bincount(self.labels.ravel(), minlength=len(self.names)).tolist()
        return [
            {"id": i, "name": name, "pixels": n, "share": n / self.labels.size}
            for i, (name, n) in enumerate(zip(self.names, pixels))
        ]


class Predictor:
    """Holds a model; call it with a picture and words.

    >>> predictor = Predictor.from_pretrained("mini")            # doctest: +SKIP
    >>> predictor("town.jpg", ["building|house", "road"]).areas()  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, source: str = "", sha256: str = "", precision: str = "fp32") -> None:
        """model: a SkySenseO on its device. source, sha256: of its weights, for the record. precision: fp32 or bf16."""
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision {precision!r} is not known: fp32 or bf16")
        self.model, self.source, self.sha256, self.precision = model.eval(), source, sha256, precision
        self._prompted: PromptedImage | None = None

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "mini",
        device: str = "auto",
        config_file: str | Path | None = None,
        precision: str = "fp32",
    ) -> Predictor:
        """Build a model and load weights: shipped ones by name, or a file.

        Args:
            weights: "mini", or a .safetensors, .pth or .pt file.
            device: auto, cpu, cuda, cuda:1, ... or mps.
            config_file: YAML of the model; needed where the file does not hold it (ours in safetensors do).
            precision: fp32, or bf16 for speed.

        Raises:
            FileNotFoundError, WeightsError (no such weights, or they do not fit), ValueError (device).
        """
        path = find_weights(weights)
        where = choose_device(device)
        cfg = _config_of(path, config_file)
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
        load_weights(model, path)
        model = model.to(where, memory_format=torch.channels_last)
        return cls(model, str(weights), weights_hash(path), precision)

    @torch.inference_mode()
    def __call__(
        self,
        image: str | Path | np.ndarray | Image.Image,
        names: Vocabulary | Sequence[str] | str,
        *,
        background: Sequence[str] | str = (),
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> Segmentation:
        """Segment one picture.

        Args:
            image: a file, a PIL image, or an RGB array (H,W,3); grey, alpha and 16 bits are understood.
            names: ["building", "road"], synonyms by bars "building|house"; one line "building,road"; or a Vocabulary.
            background: words for the rest; pixels that fit them best get id 0, "none".
            threshold: 0..1; pixels whose best name has less get id 0, "none". A single name without background words
                has nothing to compete with: its threshold is 0.5 where none is given.
            probabilities: keep the (C,H,W) of all names too.

        Raises:
            ValueError: names (see Vocabulary), threshold out of range. PictureError, FileNotFoundError: the picture.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is out of range: 0 to 1")
        vocabulary = _vocabulary(names, background)
        if threshold is None and len(vocabulary) == 1:
            threshold = 0.5
        rgb = read_picture(image) if isinstance(image, (str, Path)) else as_rgb(image)
        sample = {"image": torch.tensor(rgb).permute(2, 0, 1), "vocabulary": vocabulary}
        with self._half():
            out = self.model.predict([sample], "probabilities" if probabilities else "labels")[0]
        kept = out.get("sem_seg")
        score, labels = (out["score"], out["labels"]) if kept is None else kept.max(dim=0)
        presence = out.get("presence")
        names, labels = _fold_background(vocabulary, labels.cpu().numpy(), score.cpu().numpy(), threshold)
        return Segmentation(
            names,
            labels,
            score.float().cpu().numpy(),
            vocabulary,
            None if kept is None else kept.float().cpu().numpy(),
            None if presence is None else dict(zip(vocabulary.names, presence.tolist())),
            threshold,
        )

    def set_image(self, image: str | Path | np.ndarray | Image.Image) -> PromptedImage:
        """Look at a picture once, to be asked by `prompt`. It is returned as well, to keep several at hand.

        Raises:
            ValueError: weights that take words only. PictureError, FileNotFoundError: the picture.
        """
        rgb = read_picture(image) if isinstance(image, (str, Path)) else as_rgb(image)
        with self._half():
            self._prompted = PromptedImage(self.model, rgb)
        return self._prompted

    def prompt(
        self,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] = (),
        box: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, float]:
        """The mask that clicks and a box mean in the picture of `set_image`; see `PromptedImage.prompt`."""
        if self._prompted is None:
            raise ValueError("no picture to ask about: call set_image first")
        with self._half():
            return self._prompted.prompt(points, labels, box)

    def _half(self) -> AbstractContextManager:
        half = self.precision == "bf16"
        return torch.autocast(self.model.device.type, torch.bfloat16) if half else nullcontext()


def _config_of(path: Path, config_file: str | Path | None) -> CfgNode:
    cfg = default_config()
    if config_file:
        merge_file(cfg, config_file)
    else:
        stored = read_config(path)
        if stored is None:
            raise WeightsError(f"{path} does not hold its config: name it, with --config-file or config_file=")
        cfg.merge_from_other_cfg(CfgNode.load_cfg(stored))
    cfg.MODEL.TOWER.PRETRAINED = False  # the checkpoint brings what it has learned
    return cfg


def _vocabulary(names: Vocabulary | Sequence[str] | str, background: Sequence[str] | str) -> Vocabulary:
    extra = background.split(",") if isinstance(background, str) and background.strip() else background or ()
    if isinstance(names, Vocabulary):
        if extra:
            raise ValueError("the Vocabulary that was given holds its own background words: pass none beside it")
        return names
    return Vocabulary.of(names.split(",") if isinstance(names, str) else names, extra)


def _fold_background(
    vocabulary: Vocabulary, labels: np.ndarray, score: np.ndarray, threshold: float | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Ids 0.. of the names; with background words or a threshold 0 is "none" and the names start at 1."""
    if threshold is None and not any(vocabulary.background):
        return vocabulary.names, labels
    asked = [i for i, flag in enumerate(vocabulary.background) if not flag]
    ids = np.zeros(len(vocabulary), np.int64)
    ids[asked] = np.arange(1, len(asked) + 1)
    folded = ids[labels]
    if threshold is not None:
        folded[score < threshold] = 0
    return (NONE, *(vocabulary.names[i] for i in asked)), folded
