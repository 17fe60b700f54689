"""The data sheet of a published set, which answers the questions of Gebru et al., Datasheets for Datasets (2021)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

QUESTIONS_LEFT = "Whoever publishes the set has to answer the other questions of this section."


def datasheet(title: str, statistics: dict, rows: Sequence[dict], engine: dict) -> str:
    """Write the data sheet as Markdown.

    Args:
        title: title of the sheet.
        statistics: see `Counts.summary`.
        rows: catalogue rows of the images in the set.
        engine: step -> its options and library versions, from engine.json.
    """
    images, sky = statistics["images"], statistics["Sky-SA, as published"]
    metres = statistics["metres a pixel"]
    ground = f"{metres[0]} to {metres[1]}" if metres else "unknown"
    options = {step: entry["options"] for step, entry in engine.items()}
    people = images["reviewed by people"]
    table = [
        ("images", images["all"], sky["images"]),
        ("region-text pairs", statistics["pairs"], sky["pairs"]),
        ("classes", statistics["names"], sky["names"]),
        ("pairs per image", statistics["pairs an image"], sky["pairs an image"]),
        ("connected regions per image", statistics["regions an image"], "not published"),
        ("labelled share of pixels", statistics["labelled share of pixels"], "not published"),
    ]
    return f"""# {title}

## Motivation

The set is made for open-vocabulary segmentation of remote sensing images. {QUESTIONS_LEFT}

## Composition

| | this set | Sky-SA, as published |
|---|---|---|
{chr(10).join(f"| {quantity} | {here} | {there} |" for quantity, here, there in table)}

{images.get("train", 0)} images are for training, {images.get("val", 0)} for validation. All tiles of one source image
are in the same split, and so are source images that touch on the ground. Metres per pixel: {ground}.
Pixels with value 255 are unlabelled: the model was not confident enough and no reviewer decided. `statistics.json` and
`figures/` have further numbers.

## Collection

{_table("licence", "licence", rows)}

{_table("credit", "credit", rows)}

## Labelling

{_how(people, images["all"], statistics)}

Options of each step:

{chr(10).join(f"- {step}: {_options(chosen)}" for step, chosen in options.items())}

## Uses

The set is for training and validation. It is not a test set: names come from a model, and reviewers who corrected names
saw the model's proposals. {QUESTIONS_LEFT}

## Distribution and maintenance

The licence of each image is in `skysa_dataset.jsonl`; `manifest.json` holds the SHA-256 of every file.
{QUESTIONS_LEFT}
"""


def _how(people: int, total: int, statistics: dict) -> str:
    if not people:
        return "Regions and names come from a model alone. No person has checked them."
    return f"Regions and names were proposed by a model; people decided on those of {people} of the {total} images."


def _table(title: str, key: str, rows: Sequence[dict]) -> str:
    counts = Counter(row[key] or "not stated" for row in rows)
    lines = [f"| {value} | {count} |" for value, count in counts.most_common()]
    return "\n".join([f"| {title} | tiles |", "|---|---|", *lines])


def _options(chosen: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in chosen.items() if value not in ("", None, [], False)) or "none"
