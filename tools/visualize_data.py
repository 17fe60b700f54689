#!/usr/bin/env python
"""Draw a contact sheet of training samples: augmented crops, their labels, and the classes sampled for them.

For data sets with boxes, points or outlines, it shows whole images with these objects drawn in.

skysense-o data show dubai_train --output output/dubai.png        (or python tools/visualize_data.py dubai_train ...)
skysense-o data show skysa_graph_train --count 12 --opts INPUT.TEXT_BATCH 100
skysense-o data show simd_train --output output/boxes.png
skysense-o data show path/to/my/folder --output output/mine.png --opts INPUT.CROP_SIZE 512
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from skysense_o.errors import exit_code
from skysense_o.whole_files import whole


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", help="a data set for training, or the path of a folder with dataset.yaml")
    p.add_argument(
        "--output", default="output/data.png", metavar="FILE", help="image to write (default: output/data.png)"
    )
    p.add_argument("--config-file", metavar="FILE", help="YAML file with INPUT settings (default: built-in defaults)")
    p.add_argument("--count", type=int, default=8, metavar="N", help="number of samples (default: 8)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    p.add_argument("--opts", default=[], nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return p


def panel(sample: dict, colors: list[tuple[int, int, int]]) -> Image.Image:
    """Draw an image next to its labels, and below them a legend: present classes in colour, absent classes in grey."""
    from skysense_o.inference.drawing import overlay
    from skysense_o.sample import IGNORE

    image = sample["image"].permute(1, 2, 0).numpy()
    labels = sample["sem_seg"].numpy()
    painted = overlay(image, np.where(labels == IGNORE, len(colors), labels), [*colors, (0, 0, 0)], 0.6)
    side, font, line = image.shape[0], ImageFont.load_default(13), 17
    present = [c for c in np.unique(labels) if c != IGNORE]
    names = sample["vocabulary"].classes
    others = ", ".join(name for c, name in enumerate(names) if c not in present)
    lines = _wrapped(f"also: {others}", font, 2 * side - 8)[:4] if others else []
    ignored = float((labels == IGNORE).mean())
    rows = len(present) + len(lines) + (ignored > 0)
    sheet = Image.new("RGB", (2 * side, side + line * rows + 8), "white")
    sheet.paste(Image.fromarray(image), (0, 0))
    sheet.paste(Image.fromarray(painted), (side, 0))
    draw, y = ImageDraw.Draw(sheet), side + 4
    for c in present:
        draw.rectangle((4, y, 16, y + 12), fill=colors[c], outline=(60, 60, 60))
        draw.text((22, y - 1), f"{names[c]}  {100 * float((labels == c).mean()):.1f} %", fill=(20, 20, 20), font=font)
        y += line
    if ignored:
        draw.rectangle((4, y, 16, y + 12), fill=(0, 0, 0))
        draw.text((22, y - 1), f"ignored  {100 * ignored:.1f} %", fill=(20, 20, 20), font=font)
        y += line
    for text in lines:
        draw.text((4, y - 1), text, fill=(120, 120, 120), font=font)
        y += line
    return sheet


def object_panel(record: dict) -> Image.Image:
    """Draw an image with its boxes, points or outlines, and below it the number of objects per class."""
    from skysense_o.data.captions import read_record_image
    from skysense_o.data.catalog import spec_of
    from skysense_o.data.classes import load_classes
    from skysense_o.data.weak.shapes import shape_boxes

    image, table = read_record_image(record), load_classes(spec_of(record["dataset"]).class_table_name)
    shapes = record.get("shapes", [])
    objects = record.get("boxes", record.get("points", shape_boxes(shapes)))
    counts = {c: sum(int(one[-1]) == c for one in objects) for c in sorted({int(one[-1]) for one in objects})}
    line = 17
    sheet = Image.new("RGB", (max(256, image.shape[1]), image.shape[0] + line * max(1, len(counts)) + 8), "white")
    sheet.paste(Image.fromarray(image), (0, 0))
    draw, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(13), image.shape[0] + 4
    for shape in shapes:
        color = table.colors[shape["class"]]
        for polygon in shape["polygons"]:
            draw.polygon([tuple(point) for point in polygon], outline=color, width=2)
        for x, y, r in shape["circles"]:
            draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=2)
    for *place, label in objects if not shapes else ():
        corners = place if len(place) == 4 else [place[0] - 3, place[1] - 3, place[0] + 3, place[1] + 3]
        (draw.rectangle if len(place) == 4 else draw.ellipse)(corners, outline=table.colors[int(label)], width=2)
    for c, count in counts.items():
        draw.rectangle((4, y, 16, y + 12), fill=table.colors[c], outline=(60, 60, 60))
        draw.text((22, y - 1), f"{table.classes[c]}  {count}", fill=(20, 20, 20), font=font)
        y += line
    if not counts:
        draw.text((4, y - 1), "nothing is marked", fill=(120, 120, 120), font=font)
    return sheet


def _wrapped(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def contact_sheet(panels: list[Image.Image], columns: int = 2) -> Image.Image:
    """Arrange panels in rows; the highest panel sets the height of its row."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = columns * (max(p.width for p in panels) + 8)
    sheet = Image.new("RGB", (width, sum(max(p.height for p in row) + 8 for row in rows)), (225, 225, 225))
    y = 4
    for row in rows:
        for column, one in enumerate(row):
            sheet.paste(one, (column * width // columns + 4, y))
        y += max(p.height for p in row) + 8
    return sheet


def run() -> int:
    args = parser().parse_args()
    import skysense_o.data  # noqa: F401  (registers the data sets)
    from skysense_o.config import default_config, merge_file
    from skysense_o.data.catalog import records_of
    from skysense_o.data.classes import ClassTable
    from skysense_o.data.loader import NumberedSamples
    from skysense_o.data.mapper import TrainingMapper, classes_of_record
    from skysense_o.inference.drawing import colors_for

    cfg = default_config()
    if args.config_file:
        merge_file(cfg, args.config_file)
    try:
        cfg.merge_from_list(args.opts)
    except (KeyError, AssertionError) as error:
        raise ValueError(f"config: {error}; keys are listed in skysense_o/config.py") from error
    records = records_of(args.name)
    if {"boxes", "points", "shapes"} & set(records[0]):
        chosen = np.random.default_rng(args.seed).permutation(len(records))[: args.count]
        return write(args.output, [object_panel(records[i]) for i in chosen])
    if "sem_seg_file_name" not in records[0]:
        raise ValueError(
            f"{args.name!r} has no label images, boxes, points or shapes: only sets with these can be shown"
        )
    samples = NumberedSamples(records, TrainingMapper(cfg), args.seed)
    by_file, panels = {r["file_name"]: r for r in records}, []
    for number in range(min(args.count, len(records))):
        sample = samples[number]
        own = classes_of_record(by_file[sample["file_name"]])
        table = own.colors if isinstance(own, ClassTable) else ()
        colors = [*table, *colors_for(sample["vocabulary"].classes)[len(table) :]]
        panels.append(panel(sample, colors))
    return write(args.output, panels)


def write(path: str, panels: list[Image.Image]) -> int:
    form = Image.registered_extensions().get(Path(path).suffix.lower(), "PNG")
    with whole(Path(path)) as part:
        contact_sheet(panels).save(part, format=form)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
