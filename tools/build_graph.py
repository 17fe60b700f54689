#!/usr/bin/env python
"""Compute a relation graph: a similarity score from 1 to 10 for each pair of classes, from text, images or a CSV.

python tools/build_graph.py --dataset dubai --by text --output output/dubai_graph.json
python tools/build_graph.py --dataset dubai_train --by images --weights mini --output output/dubai_graph.json
python tools/build_graph.py --dataset eurosat --by images --limit 500 --output output/eurosat_graph.json
python tools/build_graph.py --by concepts --training configs/mini/ablation.yaml --limit 100 --output output/graph.json
python tools/build_graph.py --by scores --scores pairs.csv --output output/graph.json

--by text compares the classes' text embeddings by cosine. --by images compares class prototypes by cosine: the mean of
the image tower's dense features over the pixels of each class (over whole images for scene classification).
--by concepts does this for the concepts of a mixed training (datasets/concepts.json), over the pixels that its labels
tell to be of a concept. --by scores reads a CSV of from,to,score. Cosines become scores by their rank among all pairs:
the least similar tenth gets 1, the most similar tenth 10. The file records the source of each score. INPUT.GRAPH FILE
uses the graph in training.
"""

import argparse
import csv
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--by", required=True, choices=("text", "images", "concepts", "scores"), help="source of the scores")
    p.add_argument("--dataset", metavar="NAME", help="data set with the classes and, for --by images, the images")
    p.add_argument("--classes", metavar="WORDS", help='for --by text: classes "a,b,c" instead of a data set')
    p.add_argument("--training", metavar="FILE", help="for --by concepts: config of a mixed training")
    p.add_argument("--scores", metavar="FILE", help="for --by scores: CSV file with the columns from,to,score")
    p.add_argument("--output", required=True, metavar="FILE", help="JSON file to write")
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' or a file (default: mini)")
    p.add_argument("--config-file", metavar="FILE", help="config of the model, for weights files without a config")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    p.add_argument(
        "--limit",
        type=int,
        default=200,
        metavar="N",
        help="for images and concepts: number of images of each data set, evenly spread over it (default: 200)",
    )
    return p


def names_of(args: argparse.Namespace) -> list[str]:
    """Return the classes given by --classes or --dataset."""
    from skysense_o.data.catalog import find
    from skysense_o.data.classes import load_classes
    from skysense_o.vocabulary import Vocabulary

    if args.classes:
        return list(Vocabulary.parse(args.classes).classes)
    if not args.dataset:
        raise ValueError("give --dataset, or --classes for --by text")
    spec = find(args.dataset)[0][0]
    if not spec.class_table_name:
        raise ValueError(f"{args.dataset!r} has no class table: each image has its own classes")
    return list(load_classes(spec.class_table_name).classes)


def features(model, records: list[dict], names: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each record the dense features (D,N) of its grid cells and their class ids (N,) or IGNORE."""
    import torch

    from skysense_o.data.labels import load_image
    from skysense_o.data.mapper import read_image_and_labels
    from skysense_o.geometry import prepare
    from skysense_o.sample import IGNORE

    for record in tqdm(records, unit="image"):
        scene = "label" in record
        image, labels = (load_image(record["file_name"]).filled(), None) if scene else read_image_and_labels(record)
        x, transforms = prepare(
            [torch.from_numpy(np.array(image.transpose(2, 0, 1))).to(model.tower.pixel_mean.device)], model.tower
        )
        with torch.no_grad():
            dense = model.tower.encode_image(x).dense[0].float()
        height, width = dense.shape[1:]
        cells = np.full((height, width), IGNORE)
        # A grid cell gets the class at its centre. The image is padded on the right and at the bottom.
        y = ((np.arange(height) + 0.5) * transforms[0].padded[0] / height).astype(int)
        z = ((np.arange(width) + 0.5) * transforms[0].padded[1] / width).astype(int)
        inside = np.ix_(y < image.shape[0], z < image.shape[1])
        cells[inside] = record["label"] if scene else labels[np.ix_(y[y < image.shape[0]], z[z < image.shape[1]])]
        yield dense.flatten(1).cpu().numpy(), cells.ravel()


def by_images(model, records: list[dict], names: list[str]) -> np.ndarray:
    """Return cosines (C,C) between class prototypes; NaN for classes that occur in no image."""
    from skysense_o.data.similarity import prototype_cosines

    sums, counts = None, np.zeros(len(names))
    for dense, cells in features(model, records, len(names)):
        sums = np.zeros((len(names), len(dense))) if sums is None else sums
        for c in np.unique(cells[cells < len(names)]):
            sums[c] += dense[:, cells == c].sum(1)
            counts[c] += (cells == c).sum()
    return prototype_cosines(sums, counts)


def by_concepts(model, config: str, limit: int) -> np.ndarray:
    """Return cosines (K,K) between the prototypes of the concepts, in `limit` images of each training set of a config.

    Each image counts once for each of its concepts, so an image full of water counts as much as one with a pond.
    """
    import torch

    from skysense_o.config import default_config, merge_file
    from skysense_o.data.catalog import records_of
    from skysense_o.data.concepts import load_concepts
    from skysense_o.data.mixed_mapper import MixedMapper
    from skysense_o.data.similarity import prototype_cosines
    from skysense_o.geometry import prepare
    from skysense_o.partial_losses import partial_targets, pool_yes, says_table
    from skysense_o.sample import YES
    from skysense_o.vocabulary import Vocabulary

    if not config:
        raise ValueError("--by concepts needs --training, the config of a mixed training")
    cfg = default_config()
    merge_file(cfg, config)
    cfg.INPUT.GRAPH = ""
    everything, mapper = Vocabulary.of([(name,) for name in load_concepts().names]), MixedMapper(cfg)
    mapper.words = lambda labels, says, own: (everything, says, None)
    sums, counts = np.zeros((len(everything), model.tower.dim)), np.zeros(len(everything))
    chosen = [record for name in cfg.DATASETS.TRAIN for record in spread(records_of(name), limit)]
    for index, record in enumerate(tqdm(chosen, unit="image")):
        random.seed(index)
        np.random.seed(index)
        sample = mapper(record)
        x, _ = prepare([sample["image"].to(model.tower.pixel_mean.device)], model.tower)
        with torch.no_grad():
            dense = model.tower.encode_image(x).dense.float().cpu()
        target = partial_targets(sample["sem_seg"][None], says_table([sample["says"]], len(everything)))
        here = (target == YES).flatten(2).any(-1)[0].numpy()
        sums[here] += pool_yes(dense, target)[0].numpy()[here]
        counts += here
    return prototype_cosines(sums, counts)


def spread(records: list[dict], limit: int) -> list[dict]:
    """`limit` of the records, evenly spread over the data set."""
    return [records[i] for i in np.unique(np.linspace(0, len(records) - 1, limit).astype(int))]


def by_scores(path: str):
    """Read a graph from a CSV file of from,to,score."""
    from skysense_o.data.relation_graph import HIGHEST, LOWEST, RelationGraph

    if not path or not Path(path).is_file():
        raise FileNotFoundError(f"no scores file at {path!r}: --scores takes a CSV of from,to,score")
    names: dict[str, int] = {}
    edges = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if not line or line[0].startswith("#"):
                continue
            if len(line) != 3 or not line[2].strip().isdigit() or not LOWEST <= int(line[2]) <= HIGHEST:
                raise ValueError(f"{path}, line {number}: {','.join(line)!r} is not from,to,score with a score 1 to 10")
            edges.append((*(names.setdefault(name.strip(), len(names)) for name in line[:2]), int(line[2]), 0))
    return RelationGraph.of_edges(list(names), np.array(edges), [f"file of scores {Path(path).name}"])


def run() -> int:
    args = parser().parse_args()
    import skysense_o.data  # noqa: F401  (registers the data sets)
    from skysense_o.data.catalog import records_of
    from skysense_o.data.relation_graph import RelationGraph

    if args.by == "scores":
        graph = by_scores(args.scores)
    elif args.by == "concepts":
        from skysense_o.data.concepts import load_concepts
        from skysense_o.inference.predictor import Predictor

        model = Predictor.from_pretrained(args.weights, args.device, args.config_file).model
        values = by_concepts(model, args.training, args.limit)
        source = f"cosine of concept prototypes in {args.training}, weights {Path(str(args.weights)).name}"
        graph = RelationGraph.from_similarity(load_concepts().names, values, source)
    else:
        names = names_of(args)
        records = records_of(args.dataset) if args.by == "images" else []
        if args.by == "images" and not {"label", "sem_seg_file_name"} & set(records[0]):
            raise ValueError(f"{args.dataset!r} has neither classes nor label images")
        from skysense_o.inference.predictor import Predictor

        predictor = Predictor.from_pretrained(args.weights, args.device, args.config_file)
        if args.by == "text":
            from skysense_o.inference.classify import text_cosines

            values = text_cosines(predictor.model, names)
        else:
            values = by_images(predictor.model, spread(records, args.limit), names)
        source = {"text": "cosine of names", "images": f"cosine of class prototypes in {args.dataset}"}[args.by]
        graph = RelationGraph.from_similarity(names, values, f"{source}, weights {Path(str(args.weights)).name}")
    graph.save(args.output)
    order = np.dstack(
        np.unravel_index(np.argsort(-graph.scores.astype(int), axis=None, kind="stable"), graph.scores.shape)
    )[0]
    rows = [(graph.names[i], graph.names[j], graph.scores[i, j]) for i, j in order[:10] if graph.scores[i, j]]
    print(tabulate(rows, ["most similar", "", "score"]))
    print(f"{len(graph)} classes, {int((graph.scores > 0).sum())} relations -> {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
