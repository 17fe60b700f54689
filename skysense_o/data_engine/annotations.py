"""Final labels of a tile: the reviewers' decisions if there are any, else the model's names with enough confidence.

Shape letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skysense_o.data_engine.work_folder import WorkFolder, read_json, read_map
from skysense_o.sample import IGNORE


@dataclass
class TileAnnotation:
    """The labelled regions of one tile.

    Attributes:
        tile: the tile's id.
        regions: integers (H,W), the region number of each pixel.
        classes: region number -> class, for the regions that are labelled.
        reviewed: whether `classes` are the reviewers' decisions; otherwise they are the model's names.
    """

    tile: str
    regions: np.ndarray
    classes: dict[int, str]
    reviewed: bool

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Make the label map.

        Returns:
            a label map, uint8 (H,W), and the list of at most 255 classes, the class with most pixels first. Labels are
            indices into this list; unlabelled pixels and pixels of further classes are IGNORE.
        """
        ids = sorted(self.classes)
        sizes = np.bincount(self.regions.ravel(), minlength=max(ids, default=0) + 1)
        total: dict[str, int] = {}
        for k in ids:
            total[self.classes[k]] = total.get(self.classes[k], 0) + int(sizes[k])
        classes = sorted((c for c, size in total.items() if size), key=lambda c: (-total[c], c))[:IGNORE]
        table = np.full(max(int(self.regions.max()), *ids, 0) + 1, IGNORE, np.uint8)
        index = {name: i for i, name in enumerate(classes)}
        for k in ids:
            table[k] = index.get(self.classes[k], IGNORE)
        return table[self.regions], classes


def tile_annotations(work: WorkFolder, confidence: float) -> Iterator[tuple[dict, TileAnnotation]]:
    """Yield (catalogue row, annotation) for each kept tile that has names.

    Reviewed tiles (review/final) are used unchanged. In other tiles, regions below `confidence` are left out.

    Args:
        work: the work folder, after step "name".
        confidence: minimum confidence of a model's name, 0..1.

    Raises:
        ValueError: `confidence` is outside 0..1.
        FileNotFoundError: no tile has names.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"--confidence {confidence} is out of range: 0 to 1")
    any_names = False
    for row in work.kept():
        final = work / f"review/final/{row['tile']}.json"
        path = final if final.is_file() else work / f"names/{row['tile']}.json"
        if not path.is_file():
            continue
        any_names, reviewed = True, path == final
        regions = read_map(final.with_suffix(".png")) if reviewed else work.regions(row["tile"])
        classes = {
            entry["region"]: entry["name"]
            for entry in read_json(path)
            if entry.get("name") and (reviewed or entry["confidence"] >= confidence)
        }
        yield row, TileAnnotation(row["tile"], regions, classes, reviewed)
    if not any_names:
        raise FileNotFoundError(f"no names in {work.folder}: run the step name first")
