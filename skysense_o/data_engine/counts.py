"""What a set holds, in numbers and figures, beside what is published of Sky-SA."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skysense_o.data_engine.annotations import TileAnnotation
from skysense_o.sample import IGNORE

SKY_SA = {"images": 35_000, "pairs": 183_375, "names": 1_763, "pairs an image": 5.2}
"""As its authors give it; the last is the quotient of the first two."""
SHOWN = 40
"""Names in the figure, the most frequent."""


@dataclass
class Counts:
    """Counted image by image. pairs: region-text pairs, one a name of an image; sizes: pixels of each."""

    images: Counter = field(default_factory=Counter)  # by split
    reviewed: int = 0
    pixels: Counter = field(default_factory=Counter)  # by name
    shown_in: Counter = field(default_factory=Counter)  # images, by name
    per_image: list[int] = field(default_factory=list)  # pairs
    regions: list[int] = field(default_factory=list)  # connected, an image
    sizes: list[int] = field(default_factory=list)
    labelled: int = 0
    seen: int = 0
    gsd: list[float] = field(default_factory=list)

    def add(self, row: dict, labels: np.ndarray, names: list[str], annotation: TileAnnotation, split: str) -> None:
        """One image: labels uint8 (H,W), ids into names."""
        pixels = np.bincount(labels.ravel(), minlength=256)
        self.images[split] += 1
        self.reviewed += annotation.reviewed
        self.pixels.update({name: int(n) for name, n in zip(names, pixels)})
        self.shown_in.update(names)
        self.per_image.append(len(names))
        self.regions.append(len(annotation.names))
        self.sizes += pixels[: len(names)].tolist()
        self.labelled += int((labels != IGNORE).sum())
        self.seen += labels.size
        if row["gsd"] == row["gsd"]:
            self.gsd.append(row["gsd"])

    def summary(self) -> dict:
        """Plain values, as statistics.json has them."""
        total = sum(self.images.values())
        sizes = np.percentile(self.sizes, (5, 25, 50, 75, 95)).round().astype(int).tolist()
        return {
            "images": {"all": total, **self.images, "reviewed by people": self.reviewed},
            "pairs": len(self.sizes),
            "regions": sum(self.regions),
            "names": len(self.pixels),
            "pairs an image": round(len(self.sizes) / total, 3),
            "regions an image": round(sum(self.regions) / total, 3),
            "labelled share of pixels": round(self.labelled / self.seen, 4),
            "pixels of a pair, 5th to 95th percentile": sizes,
            "metres a pixel": [round(min(self.gsd), 4), round(max(self.gsd), 4)] if self.gsd else None,
            "pixels": dict(self.pixels.most_common()),
            "images that show": dict(self.shown_in.most_common()),
            "Sky-SA, as published": SKY_SA,
        }


def draw_figures(counts: Counts, folder: Path) -> None:
    """names.png, density.png and sizes.png."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    names, numbers = zip(*counts.shown_in.most_common(SHOWN))
    axes.bar(range(len(names)), numbers, color="#3b6ea5")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    more = len(counts.shown_in) - len(names)
    axes.set(ylabel="images", title=f"Names{f', the first {len(names)} of {len(counts.shown_in)}' if more else ''}")
    figure.savefig(folder / "names.png", dpi=120)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(counts.per_image, bins=np.arange(0.5, max(counts.per_image) + 1.5), color="#3b6ea5")
    mean = float(np.mean(counts.per_image))
    axes.axvline(mean, color="#c0392b", label=f"mean, {mean:.1f}")
    axes.axvline(SKY_SA["pairs an image"], color="#555555", linestyle="--", label="Sky-SA, mean as published: 5.2")
    axes.set(xlabel="region-text pairs", ylabel="images", title="Density")
    axes.legend()
    figure.savefig(folder / "density.png", dpi=120)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(counts.sizes, bins=np.geomspace(1, max(2, *counts.sizes), 40), color="#3b6ea5")
    axes.set(xscale="log", xlabel="pixels", ylabel="region-text pairs", title="Sizes")
    figure.savefig(folder / "sizes.png", dpi=120)
