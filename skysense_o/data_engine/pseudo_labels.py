"""Pictures without labels -> a set in the shape of Sky-SA, labelled by a model and ready to be corrected.

The shape, as its authors publish it: `img_dir/`, `ann_dir/` and `skysa_dataset.jsonl`, one JSON object a line with
`flickr_url` (picture), `segmentation` (label picture) and `ann_list`; a label pixel of value k is the k-th entry of
that picture's `ann_list`, 255 is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.inference.pictures import PictureError, read_picture
from skysense_o.inference.predictor import Predictor
from skysense_o.sample import IGNORE
from skysense_o.vocabulary import Vocabulary


def label_pictures(
    predictor: Predictor,
    pictures: Iterable[Path],
    vocabulary: Vocabulary,
    folder: Path,
    *,
    confidence: float = 0.5,
    min_share: float = 0.001,
) -> Iterator[dict]:
    """Label each picture; what the model is not sure of is left to people as ignored pixels.

    Pictures that an earlier call already labelled in `folder` are passed over, so an interrupted one goes on.

    Args:
        predictor: with any weights. vocabulary: the names to look for; background names are never written.
        folder: of the set; made where it is not.
        confidence: 0..1; pixels whose best name has less are ignored (255).
        min_share: 0..1; names with a smaller share of a picture are ignored in it.

    Yields:
        One record a picture as written: {"flickr_url", "segmentation", "ann_list", "source"}; or {"source", "error"}
        for a picture that cannot be read, which is not written.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence {confidence} is out of range: 0 to 1")
    images, labels, index = folder / "img_dir", folder / "ann_dir", folder / "skysa_dataset.jsonl"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    lines = index.read_text().splitlines() if index.exists() else []
    done = {record["flickr_url"] for record in map(json.loads, lines)}
    for picture in pictures:
        # Two folders may hold the same name; their paths, of this machine, are not for a set that is shared.
        stem = f"{picture.stem}_{hashlib.sha1(str(picture.resolve()).encode()).hexdigest()[:8]}"
        if f"img_dir/{stem}.png" in done:
            continue
        try:
            image = read_picture(picture)
        except (PictureError, FileNotFoundError) as error:
            yield {"source": picture.name, "error": str(error)}
            continue
        found = predictor(image, vocabulary, threshold=confidence)
        kept = [row for row in found.areas()[1:] if row["share"] >= max(min_share, 1 / found.labels.size)]
        remap = np.full(len(found.names), IGNORE, np.uint8)
        for k, row in enumerate(kept[:IGNORE]):
            remap[row["id"]] = k
        Image.fromarray(remap[found.labels]).save(labels / f"{stem}.png")
        Image.fromarray(image).save(images / f"{stem}.png")  # what was labelled: upright, 8 bits
        record = {
            "flickr_url": f"img_dir/{stem}.png",
            "segmentation": f"ann_dir/{stem}.png",
            "ann_list": [{"category_name": row["name"]} for row in kept[:IGNORE]],
            "source": picture.name,
        }
        with open(index, "a") as file:
            file.write(json.dumps(record) + "\n")
        yield record
