"""Make a tiny work folder of the data engine, in the state after its steps `propose` and `name`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.data_engine.review import cli as review_cli

HEIGHT, WIDTH = 80, 120
# Boxes (x0, y0, x1, y1) by region number; pixel rows below the boxes belong to no region.
BOXES = {1: (0, 0, 50, 40), 2: (50, 0, 120, 40), 3: (0, 40, 120, 72)}
NAMES = {1: "building", 2: "water", 3: "tree"}
COLORS = {0: (90, 90, 90), 1: (190, 80, 70), 2: (60, 100, 180), 3: (50, 130, 60)}


def tile_name(k: int) -> str:
    return f"town{k}_{k:08x}"


def make_work(work: Path, tiles: int = 2) -> list[str]:
    """Write tiles/, regions/ and names/, with three regions and some unassigned pixels per tile; return tile names."""
    for folder in ("tiles", "regions", "names"):
        (work / folder).mkdir(parents=True)
    rng, names = np.random.default_rng(0), [tile_name(k) for k in range(tiles)]
    for tile in names:
        labels = np.zeros((HEIGHT, WIDTH), np.uint16)
        for region, (x0, y0, x1, y1) in BOXES.items():
            labels[y0:y1, x0:x1] = region
        colors = np.array([COLORS[region] for region in range(4)])
        image = np.clip(colors[labels] + rng.integers(-15, 16, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(work / "tiles" / f"{tile}.png")
        Image.fromarray(labels).save(work / "regions" / f"{tile}.png")
        regions = [
            {"region": r, "box": list(box), "pixels": int((labels == r).sum()), "score": 0.9}
            for r, box in BOXES.items()
        ]
        called = [
            {"region": r, "name": name, "confidence": 0.8, "candidates": [[name, 0.8], ["road", 0.3]]}
            for r, name in NAMES.items()
        ]
        (work / "regions" / f"{tile}.json").write_text(json.dumps(regions))
        (work / "names" / f"{tile}.json").write_text(json.dumps(called))
    return names


def command(work, *words) -> None:
    """Run `tools/data_engine.py review --work DIR ...` in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work")
    review_cli.add_arguments(parser)
    review_cli.run_review(parser.parse_args(["--work", str(work), *map(str, words)]))


class Said:
    """A namer that gives the names in its list, in turn."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, rgb, regions):
        return [[(self.names[k % len(self.names)], 0.9)] for k in range(int(regions.max()))]
