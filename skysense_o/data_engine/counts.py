"""Statistics and figures of a published data set, compared with the published numbers of Sky-SA."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skysense_o.data_engine.annotations import TileAnnotation
from skysense_o.sample import IGNORE

SKY_SA = {"images": 35_000, "pairs": 183_375, "names": 1_763, "pairs an image": 5.2}
"""Numbers that Sky-SA's authors published; "pairs an image" is "pairs" divided by "images"."""
MAX_BARS = 40
"""Number of classes in the figure; the most frequent ones are drawn."""


@dataclass
class Counts:
    """Statistics, updated image by image. All pixels of one class in one image are one region-text pair."""

    images: Counter = field(default_factory=Counter)  # images per split
    reviewed: int = 0  # images with human decisions
    pixels: Counter = field(default_factory=Counter)  # pixels per class
    image_counts: Counter = field(default_factory=Counter)  # images per class
    per_image: list[int] = field(default_factory=list)  # region-text pairs per image
    regions: list[int] = field(default_factory=list)  # connected regions per image
    sizes: list[int] = field(default_factory=list)  # pixels per region-text pair
    labelled: int = 0  # labelled pixels
    total_pixels: int = 0
    gsd: list[float] = field(default_factory=list)  # metres per pixel of the images for which it is known

    def add(self, row: dict, labels: np.ndarray, names: list[str], annotation: TileAnnotation, split: str) -> None:
        """Add one image.

        Args:
            row: the catalogue row of the image.
            labels: uint8 (H,W), indices into `names` or IGNORE.
            names: classes of the image.
            annotation: regions of the image.
            split: "train" or "val".
        """
        pixels = np.bincount(labels.ravel(), minlength=256)
        self.images[split] += 1
        self.reviewed += annotation.reviewed
        self.pixels.update({name: int(n) for name, n in zip(names, pixels)})
        self.image_counts.update(names)
        self.per_image.append(len(names))
        self.regions.append(len(annotation.classes))
        self.sizes += pixels[: len(names)].tolist()
        self.labelled += int((labels != IGNORE).sum())
        self.total_pixels += labels.size
        if row["gsd"] == row["gsd"]:
            self.gsd.append(row["gsd"])

    def summary(self) -> dict:
        """Return the statistics of the data set, which are written to statistics.json."""
        total = sum(self.images.values())
        sizes = np.percentile(self.sizes, (5, 25, 50, 75, 95)).round().astype(int).tolist()
        return {
            "images": {"all": total, **self.images, "reviewed by people": self.reviewed},
            "pairs": len(self.sizes),
            "regions": sum(self.regions),
            "names": len(self.pixels),
            "pairs an image": round(len(self.sizes) / total, 3),
            "regions an image": round(sum(self.regions) / total, 3),
            "labelled share of pixels": round(self.labelled / self.total_pixels, 4),
            "pixels of a pair, 5th to 95th percentile": sizes,
            "metres a pixel": [round(min(self.gsd), 4), round(max(self.gsd), 4)] if self.gsd else None,
            "pixels": dict(self.pixels.most_common()),
            "images that show": dict(self.image_counts.most_common()),
            "Sky-SA, as published": SKY_SA,
        }


def draw_figures(counts: Counts, folder: Path) -> None:
    """Write names.png (images per class), density.png (pairs per image) and sizes.png (pixels per pair)."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    names, numbers = zip(*counts.image_counts.most_common(MAX_BARS))
    axes.bar(range(len(names)), numbers, color="#3b6ea5")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    total = len(counts.image_counts)
    more = f", the {len(names)} most frequent of {total}" if total > len(names) else ""
    axes.set(ylabel="images", title=f"Classes{more}")
    figure.savefig(folder / "names.png", dpi=120)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(counts.per_image, bins=np.arange(0.5, max(counts.per_image) + 1.5), color="#3b6ea5")
    mean = float(np.mean(counts.per_image))
    axes.axvline(mean, color="#c0392b", label=f"mean, {mean:.1f}")
    axes.axvline(SKY_SA["pairs an image"], color="#555555", linestyle="--", label="Sky-SA, mean as published: 5.2")
    axes.set(xlabel="region-text pairs", ylabel="images", title="Region-text pairs per image")
    axes.legend()
    figure.savefig(folder / "density.png", dpi=120)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(counts.sizes, bins=np.geomspace(1, max(2, *counts.sizes), 40), color="#3b6ea5")
    axes.set(xscale="log", xlabel="pixels", ylabel="region-text pairs", title="Pixels per region-text pair")
    figure.savefig(folder / "sizes.png", dpi=120)
