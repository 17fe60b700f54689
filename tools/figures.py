#!/usr/bin/env python
"""Make the figures of README.md and docs/ from the shipped images and weights.

python tools/figures.py                                    # docs/figures/teaser.png, exer.png and gallery_*.jpg
python tools/figures.py --weights output/mini/model_final.safetensors --output output/figures

teaser.png: each shipped image above its masks. exer.png: masks of one image for several lists of classes.
gallery_*.jpg: images and masks for docs/gallery.md, whose captions must be checked by eye when the weights change.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

import numpy as np
from PIL import Image

from skysense_o.errors import exit_code
from skysense_o.whole_files import whole

TEASER = {  # file -> classes and threshold
    "yellowstone_0.15m.jpg": ("road,tree,grass", None),
    "yellowstone_0.25m.jpg": ("tree,grass,bare land", None),
    "foz_30m.tif": ("water|river|lake", 0.9),
}
EXAMPLES = (
    "yellowstone_0.4m.jpg",
    ("road", "street,forest", "highway|track,trees|meadow", "road,tree,grass,bare land"),
)
GALLERY = {
    "road": ("yellowstone_0.4m.jpg", "road,tree,grass"),
    "absent": ("yellowstone_0.4m.jpg", "road,tree,grass,building,water,car"),
    "meadow": ("yellowstone_0.25m.jpg", "tree,grass,bare land,road,water,building"),
    "water": ("foz_30m.tif", "water"),
    "foz": ("foz_30m.tif", "water,forest,crop field,built-up area"),
    "fields": ("fields_30m.jpg", "crop field,forest,bare land"),
    "town": ("fields_30m.jpg", "water,forest,crop field,town"),
}
WIDTH, GAP = 480, 12  # width of a column and gap between columns, in pixels


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' (default) or a file")
    p.add_argument("--output", default=str(ROOT / "docs/figures"), metavar="DIR")
    return p


def enlarged(image: np.ndarray) -> np.ndarray:
    """Resize an image uint8 (H,W,3) to a width of WIDTH pixels."""
    height = round(image.shape[0] * WIDTH / image.shape[1])
    return np.asarray(Image.fromarray(image).resize((WIDTH, height), Image.Resampling.LANCZOS))


def masks(image: np.ndarray, found) -> Image.Image:
    """Draw the masks over the image, WIDTH pixels wide, with a legend of the classes below."""
    from skysense_o.inference.drawing import overlay, with_legend
    from skysense_o.inference.export import palette_of

    palette, shares = palette_of(found.classes), [row["share"] for row in found.areas()]
    large = enlarged(image)
    labels = Image.fromarray(found.labels.astype(np.uint8)).resize(large.shape[1::-1], Image.Resampling.NEAREST)
    return with_legend(overlay(large, np.asarray(labels), palette), found.classes, palette, shares)


def beside(columns: list[list[Image.Image]]) -> Image.Image:
    """Arrange columns of images on a white canvas, with aligned rows."""
    heights = [max(column[row].height for column in columns) for row in range(len(columns[0]))]
    size = len(columns) * (WIDTH + GAP) + GAP, sum(heights) + (len(heights) + 1) * GAP
    sheet = Image.new("RGB", size, "white")
    for index, column in enumerate(columns):
        top = GAP
        for image, height in zip(column, heights):
            sheet.paste(image, (GAP + index * (WIDTH + GAP), top))
            top += height + GAP
    return sheet


def run() -> int:
    args = parser().parse_args()
    from skysense_o.image_io import read_image
    from skysense_o.inference.predictor import Predictor

    predictor, folder = Predictor.from_pretrained(args.weights, "cpu"), Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    columns = []
    for name, (words, threshold) in TEASER.items():
        image = read_image(ROOT / "demo" / name).rgb
        columns.append([Image.fromarray(enlarged(image)), masks(image, predictor(image, words, threshold=threshold))])
    name, lists = EXAMPLES
    image = read_image(ROOT / "demo" / name).rgb
    seen = predictor.set_image(image)
    answers = [[masks(image, predictor(seen, words))] for words in lists]
    for file, sheet in (("teaser.png", beside(columns)), ("exer.png", beside(answers))):
        sheet.quantize(256, dither=Image.Dither.NONE).save(folder / file, optimize=True)
        print(f"{folder / file}: {sheet.width} x {sheet.height}, {(folder / file).stat().st_size / 1e6:.2f} MB")
    for name, (file, words) in GALLERY.items():
        image = read_image(ROOT / "demo" / file).rgb
        sheet = beside([[Image.fromarray(enlarged(image))], [masks(image, predictor(image, words))]])
        with whole(folder / f"gallery_{name}.jpg") as part:
            sheet.convert("RGB").save(part, format="JPEG", quality=85)
        print(folder / f"gallery_{name}.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
