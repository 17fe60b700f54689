#!/usr/bin/env python
"""Measure the quality and speed of the data engine's steps, for docs/experiments-engine.md.

python tools/experiments/data_engine.py regions --data dubai_val          # boundaries and segments; a grid as baseline
python tools/experiments/data_engine.py names --count 5                   # UC Merced: classes and captions
python tools/experiments/data_engine.py copies --count 4                  # embedding distance of altered copies
python tools/experiments/data_engine.py scale --tiles 100000 --work DIR   # time and memory
"""

import argparse
import json
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
from PIL import Image
from skimage.measure import label
from skimage.segmentation import find_boundaries
from tabulate import tabulate
from tqdm import tqdm

from skysense_o.data.catalog import records_of, spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.mapper import read_image_and_labels
from skysense_o.data.open_world import open_world
from skysense_o.data_engine.collect import collect, spans
from skysense_o.data_engine.deduplicate import deduplicate, embedding, near_vectors
from skysense_o.data_engine.namers import TowerNamer, VocabularyNamer
from skysense_o.data_engine.partition import tidy
from skysense_o.data_engine.propose import proposer
from skysense_o.data_engine.work_folder import WorkFolder
from skysense_o.errors import exit_code
from skysense_o.image_io import read_image
from skysense_o.inference.classify import load_tower
from skysense_o.inference.predictor import Predictor
from skysense_o.sample import IGNORE
from skysense_o.vocabulary import Vocabulary

LEAST = 100
TOLERANCE = 3


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("regions", "names", "copies", "scale"), help="name of the experiment")
    p.add_argument("--data", default="dubai_val", help="for regions: a data set with labels (default: dubai_val)")
    p.add_argument(
        "--limit", type=int, default=1000, help="for regions: number of images, evenly spread (default: 1000)"
    )
    p.add_argument(
        "--open-world", action="store_true", help="for regions: also test with the classes of open_world.json (slow)"
    )
    p.add_argument(
        "--coarse",
        default="1",
        metavar="LIST",
        help="for regions: values of the data engine's option --coarse, separated by commas",
    )
    p.add_argument(
        "--count",
        type=int,
        default=5,
        help="for names and copies: images per class of UC Merced's test split (default: 5)",
    )
    p.add_argument(
        "--method",
        default="superpixels",
        help="for names: how regions are proposed, superpixels or words (default: superpixels)",
    )
    p.add_argument("--tiles", type=int, default=100_000, help="for scale: number of tiles (default: 100000)")
    p.add_argument("--work", type=Path, help="for scale: a folder for the tiles")
    p.add_argument(
        "--by",
        default="masks,features,tower",
        metavar="LIST",
        help="for names: the namers to test (default: all three)",
    )
    p.add_argument(
        "--tower", default="mini_vqa", metavar="W", help="for names: the tower's weights (default: mini_vqa)"
    )
    p.add_argument("--weights", default="mini", help="'mini' or a file (default: mini)")
    return p


def boundary_f(regions: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Return precision, recall and F-score of region boundaries within TOLERANCE pixels, without ignored pixels."""
    known = cv2.erode((truth != IGNORE).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    found, true = (find_boundaries(m, mode="thick") & known for m in (regions, truth))
    if not found.any() or not true.any():
        return float("nan"), float("nan"), float("nan")
    to_true, to_found = (cv2.distanceTransform((~m).astype(np.uint8), cv2.DIST_L2, 5) for m in (true, found))
    precision, recall = (to_true[found] <= TOLERANCE).mean(), (to_found[true] <= TOLERANCE).mean()
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def found_components(regions: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Count true segments of at least LEAST pixels; return (number matched with IoU >= 0.5, number of segments)."""
    parts = label(truth.astype(int), background=IGNORE, connectivity=1)
    sizes, own = np.bincount(parts.ravel()), np.bincount(regions.ravel())
    both = np.zeros((len(sizes), len(own)), int)
    np.add.at(both, (parts.ravel(), regions.ravel()), 1)
    iou = both / np.maximum(sizes[:, None] + own[None] - both, 1)
    counted = np.flatnonzero(sizes >= LEAST)
    counted = counted[counted > 0]
    return int((iou[counted].max(1) >= 0.5).sum()), len(counted)


def squares(size: tuple[int, int], count: int) -> np.ndarray:
    """Return labels of a grid of about `count` squares, numbered from 1."""
    side = max(1.0, (size[0] * size[1] / max(1, count)) ** 0.5)
    rows, columns = (max(1, round(n / side)) for n in size)
    y, x = (np.arange(n) * parts // n for n, parts in zip(size, (rows, columns)))
    return y[:, None] * columns + x[None] + 1


def regions_of(args: argparse.Namespace, predictor: Predictor) -> None:
    table = load_classes(spec_of("dubai").class_table_name)
    methods = {
        f"superpixels, coarse {c}": proposer("superpixels", predictor, regions=float(c)) for c in args.coarse.split(",")
    }
    methods["words, 5 classes"] = proposer("words", predictor, vocabulary=Vocabulary.of(table.classes))
    if args.open_world:
        methods["words, open world"] = proposer("words", predictor, vocabulary=open_world()[0])
    scores: dict = defaultdict(list)
    records = records_of(args.data)
    for i in tqdm(np.unique(np.linspace(0, len(records) - 1, args.limit).astype(int)), unit="image"):
        record = records[i]
        image, truth = read_image_and_labels(record)
        for rows in spans(image.shape[0], 512):
            for columns in spans(image.shape[1], 512):
                cut = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
                for name, find in methods.items():
                    regions = tidy(find(np.ascontiguousarray(image[cut]))[0], LEAST)
                    for kind, found in (
                        (name, regions),
                        (f"{name}: as many squares", squares(truth[cut].shape, len(np.unique(regions)))),
                    ):
                        scores[kind].append(
                            (
                                *boundary_f(found, truth[cut]),
                                *found_components(found, truth[cut]),
                                len(np.unique(found)),
                            )
                        )
    rows = []
    for name, values in scores.items():
        v = np.array(values)
        rows.append(
            (name, v[:, 5].mean(), *np.nanmean(v[:, :3], axis=0), v[:, 3].sum() / v[:, 4].sum(), int(v[:, 4].sum()))
        )
    head = ["method", "regions per tile", "precision", "recall", "boundary F", "segments matched", "of"]
    print(f"{args.data}, {len(values)} tiles; borders within {TOLERANCE} px; parts of {LEAST} px or more, IoU 0.5")
    print(tabulate(rows, head, floatfmt=(None, ".1f", ".3f", ".3f", ".3f", ".3f", "d")))


def sample(count: int) -> list[dict]:
    """Return `count` records per class of UC Merced's test split."""
    by_class: dict = defaultdict(list)
    for record in records_of("ucmerced_test"):
        by_class[record["label"]].append(record)
    return [record for label in sorted(by_class) for record in by_class[label][:count]]


def occurs_in(words: tuple[str, ...], captions: str) -> bool:
    """Return whether one of a class's words occurs in the captions, in singular or plural."""
    text = f" {captions.lower()} "
    return any(
        f" {form} " in text for word in words for form in (word, word + "s", word + "es", word.removesuffix("s"))
    )


def names_of(args: argparse.Namespace, predictor: Predictor) -> None:
    table = load_classes("ucmerced")
    classes, world = Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)]), open_world()[0]
    captions = {}
    with open(spec_of("ucmerced").root / "captions.jsonl") as file:
        for line in map(json.loads, file):
            captions[Path(line["image"]).stem] = " ".join(line["captions"])
    find, records, rows = proposer(args.method, predictor, vocabulary=classes), sample(args.count), []
    for by in args.by.split(","):
        if by == "tower":
            tower, templates = load_tower(args.tower)
            namers = {key: TowerNamer(tower, v, templates) for key, v in (("classes", classes), ("world", world))}
        else:
            namers = {key: VocabularyNamer(predictor, v, by) for key, v in (("classes", classes), ("world", world))}
        right, called, confidences = [], [], []
        for record in tqdm(records, unit="image", desc=by):
            rgb = read_image(record["file_name"]).rgb
            regions = tidy(find(rgb)[0], LEAST)
            pixels = np.bincount(regions.ravel(), minlength=int(regions.max()) + 1)[1:]
            votes: dict = defaultdict(float)
            for n, candidates in zip(pixels, namers["classes"](rgb, regions)):
                votes[candidates[0][0]] += n
                confidences.append((candidates[0][1], candidates[0][0] == table.classes[record["label"]]))
            right.append(max(votes, key=votes.get) == table.classes[record["label"]])
            called.append(sorted({c[0][0] for c in namers["world"](rgb, regions)}))
        phrases = dict(zip(world.classes, world.phrases))
        texts = [captions[Path(r["file_name"]).stem] for r in records]
        hits = np.array([[np.mean([occurs_in(phrases[n], text) for n in names]) for text in texts] for names in called])
        labels = np.array([r["label"] for r in records])
        own, others = np.diag(hits).mean(), hits[labels[:, None] != labels[None]].mean()
        surest = sorted(confidences, reverse=True)[: len(confidences) // 4]
        share = np.mean([r for _, r in surest])
        print(f"{by}: of the surest quarter of regions, confidence {surest[-1][0]:.2f} and more, {share:.3f} are right")
        rows.append((by, np.mean(right), 1 / len(classes), np.mean([r for _, r in confidences]), own, others))
    head = ["by", "image = folder", "chance", "region = folder", "in its captions", "in captions of other classes"]
    print(f"UC Merced, {len(records)} test images; {len(classes)} classes, and {len(world)} names of the open world")
    print(tabulate(rows, head, floatfmt=".3f"))


def copies_of(args: argparse.Namespace, predictor: Predictor) -> None:
    images = [read_image(r["file_name"]).rgb for r in sample(args.count)]
    vectors = np.stack([embedding(predictor, image) for image in images])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    changes = {
        "JPEG, quality 50": lambda image: cv2.imdecode(
            cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], -1
        ),
        "brighter by 20": lambda image: np.clip(image.astype(int) + 20, 0, 255).astype(np.uint8),
        "shifted by 8": lambda image: np.ascontiguousarray(image[8:, 8:]),
        "shifted by 32": lambda image: np.ascontiguousarray(image[32:, 32:]),
        "resized to 3/4": lambda image: cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA),
        "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    }
    rows = []
    for name, change in changes.items():
        apart = 1 - np.array([embedding(predictor, change(i)) @ v for i, v in zip(images, vectors)])
        rows.append((name, *np.percentile(apart, (5, 50, 95)), (apart <= 0.005).mean()))
    nearest = 1 - cosines.max(1)
    rows.append(("nearest other image", *np.percentile(nearest, (5, 50, 95)), (nearest <= 0.005).mean()))
    print(tabulate(rows, ["1 - cosine", "5 %", "50 %", "95 %", "share <= 0.005"], floatfmt=".4f"))


def scale_of(args: argparse.Namespace, predictor: Predictor) -> None:
    if args.work is None:
        raise ValueError("scale needs --work DIR, a folder for the tiles")
    images, rng = args.work / "images", np.random.default_rng(0)
    images.mkdir(parents=True, exist_ok=True)
    copies = args.tiles // 20
    for i in tqdm(range(args.tiles), unit="tile", desc="make"):
        if i >= args.tiles - copies:  # this tile is a copy of an earlier tile with less contrast
            image = (np.asarray(Image.open(images / f"{i - args.tiles + copies:06d}.png")) * 0.95).astype(np.uint8)
        else:
            image = cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(image).save(images / f"{i:06d}.png", compress_level=1)
    work, rows = WorkFolder(args.work / "work"), []

    def timed(what, run):
        start, cpu = time.monotonic(), time.process_time()
        result = run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append((what, time.monotonic() - start, time.process_time() - cpu, peak))
        return result

    timed("collect", lambda: collect(work, sorted(images.iterdir()), side=512))
    rows_of_tiles = timed("deduplicate, hashes", lambda: deduplicate(work, None))
    out = {row["tile"].split("_")[0] for row in rows_of_tiles if not row["kept"]}
    expected = {f"{i:06d}" for i in range(args.tiles - copies, args.tiles)}
    vectors = rng.normal(size=(args.tiles, predictor.model.tower.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    timed("neighbours of embeddings, exact (random vectors)", lambda: near_vectors(vectors, 0.005))
    timed("neighbours of embeddings, HNSW (random vectors)", lambda: near_vectors(vectors, 0.005, exact=0))
    some = [np.array(Image.open(p)) for p in sorted(images.iterdir())[:500]]
    timed("embed 500 tiles", lambda: [embedding(predictor, image) for image in some])
    print(
        tabulate(
            rows,
            [f"{args.tiles} tiles of 64 x 64", "s", "s of CPU", "peak GiB so far"],
            floatfmt=(None, ".1f", ".1f", ".2f"),
        )
    )
    print(f"copies left out: {len(out & expected)} of {copies}; others left out: {len(out - expected)}")


def run() -> int:
    args = parser().parse_args()
    import skysense_o.data  # noqa: F401  (registers the data sets)

    work = {"regions": regions_of, "names": names_of, "copies": copies_of, "scale": scale_of}[args.what]
    predictor = Predictor.from_pretrained(args.weights)
    work(args, predictor)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
