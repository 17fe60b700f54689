"""The data sheet of a set, by the questions of Gebru et al., Datasheets for Datasets (2021)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

QUESTIONS_LEFT = "To be answered by who publishes the set."


def datasheet(title: str, statistics: dict, rows: Sequence[dict], engine: dict) -> str:
    """Markdown.

    Args:
        statistics: see `Counts.summary`. rows: of the catalogue, of the images in the set. engine: what ran, with
            which options.
    """
    images, sky = statistics["images"], statistics["Sky-SA, as published"]
    metres = statistics["metres a pixel"]
    ground = f"{metres[0]} to {metres[1]}" if metres else "not known"
    options = {step: entry["options"] for step, entry in engine.items()}
    people = images["reviewed by people"]
    table = [
        ("images", images["all"], sky["images"]),
        ("region-text pairs", statistics["pairs"], sky["pairs"]),
        ("names", statistics["names"], sky["names"]),
        ("pairs an image", statistics["pairs an image"], sky["pairs an image"]),
        ("connected regions an image", statistics["regions an image"], "not published"),
        ("labelled share of pixels", statistics["labelled share of pixels"], "not published"),
    ]
    return f"""# {title}

## Motivation

Open-vocabulary segmentation of images of the earth from above. {QUESTIONS_LEFT}

## Composition

| | this set | Sky-SA, as published |
|---|---|---|
{chr(10).join(f"| {what} | {here} | {there} |" for what, here, there in table)}

{images.get("train", 0)} images are for training, {images.get("val", 0)} for validation. Tiles of one source, and
sources that touch on the ground, are on one side only. Metres a pixel: {ground}.
Pixels of value 255 are unlabelled: nobody was sure enough. `statistics.json` and `figures/` have the rest.

## Collection

{_table("licence", "licence", rows)}

{_table("credit", "credit", rows)}

## Labelling

{_how(people, images["all"], statistics)}

Options of each step:

{chr(10).join(f"- {step}: {_options(chosen)}" for step, chosen in options.items())}

## Uses

Training and validation. It is not a test set: names come from a model, and where people corrected them they saw what
it proposed. {QUESTIONS_LEFT}

## Distribution and maintenance

The licence of each image is in `skysa_dataset.jsonl`; `manifest.json` holds the sha256 of every file.
{QUESTIONS_LEFT}
"""


def _how(people: int, total: int, statistics: dict) -> str:
    if not people:
        return "Regions and names are a model's alone. No person has looked at them."
    return f"Regions and names are a model's proposals; people decided on those of {people} of the {total} images."


def _table(title: str, key: str, rows: Sequence[dict]) -> str:
    counts = Counter(row[key] or "not stated" for row in rows)
    lines = [f"| {value} | {count} |" for value, count in counts.most_common()]
    return "\n".join([f"| {title} | tiles |", "|---|---|", *lines])


def _options(chosen: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in chosen.items() if value not in ("", None, [], False)) or "none"
