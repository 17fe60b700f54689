"""Step 6: compute the relation graph between all classes, and write it as plain JSON and in Sky-SA's format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from skysense_o.data.relation_graph import RelationGraph
from skysense_o.data.similarity import combined, confusions, cooccurrence, prototype_cosines
from skysense_o.data_engine.annotations import tile_annotations
from skysense_o.data_engine.namers import embeddings
from skysense_o.data_engine.review.log import DecisionLog
from skysense_o.data_engine.work_folder import WorkFolder, read_json, whole
from skysense_o.inference.classify import text_cosines

if TYPE_CHECKING:
    from skysense_o.inference.predictor import Predictor


def build_relation_graph(work: WorkFolder, predictor: Predictor, *, confidence: float = 0.5) -> RelationGraph:
    """Compute how similar the classes of the data set are; write graph/graph.json and graph/skysa_graph.jsonl.

    The score of two classes combines three measures: the cosine of their prototypes (mean feature over their regions),
    the cosine of their text embeddings, and how often they occur in the same image. Classes that reviewers renamed into
    each other often enough get the highest score. Region features are cached in graph/features; each call computes
    everything else again.

    Args:
        work: the work folder, after step "name".
        predictor: the model that embeds regions and class names.
        confidence: see `tile_annotations`.

    Returns:
        the graph.

    Raises:
        ValueError: there are fewer than two classes.
    """
    annotated = list(tile_annotations(work, confidence))
    classes = sorted({name for _, a in annotated for name in a.classes.values()})
    if len(classes) < 2:
        raise ValueError(
            f"a graph needs at least two classes, but {work.folder} has {len(classes)}: lower --confidence"
        )
    index = {name: i for i, name in enumerate(classes)}
    sums, counts = None, np.zeros(len(classes))
    for row, annotation in tqdm(annotated, unit="tile", desc="graph"):
        if not annotation.classes:
            continue
        vectors = _features(work, predictor, row, annotation.regions)
        sums = np.zeros((len(classes), vectors.shape[1])) if sums is None else sums
        for k, name in annotation.classes.items():
            if k:  # region 0 (pixels of no region) has no feature vector
                sums[index[name]] += vectors[k - 1]
                counts[index[name]] += 1
    measures = {
        "looks": prototype_cosines(sums, counts),
        "words": text_cosines(predictor.model, classes),
        "cooccurrence": cooccurrence((list(a.classes.values()) for _, a in annotated), classes),
    }
    graph = combined(classes, measures, confusions(renames(work)))
    graph.save(work / "graph/graph.json")
    graph.save_as_skysa(work / "graph/skysa_graph.jsonl")
    return graph


def _features(work: WorkFolder, predictor: Predictor, row: dict, regions: np.ndarray) -> np.ndarray:
    """Features (R,D) of a tile's regions 1..R, cached until the regions change; zeros for regions without pixels."""
    path = work / f"graph/features/{row['tile']}.npz"
    if path.is_file():
        with np.load(path) as file:
            if np.array_equal(file["regions"], regions):
                return file["vectors"]
    ids, dense = np.unique(regions, return_inverse=True)
    ids, dense = ids[ids > 0], dense.reshape(regions.shape) + (0 if ids[0] == 0 else 1)
    vectors = np.zeros((int(regions.max()), predictor.model.tower.dim), np.float32)
    if len(ids):
        vectors[ids.astype(int) - 1] = embeddings(predictor.set_image(work.image(row)), dense).cpu().numpy()
    with whole(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, regions=regions, vectors=vectors)
    return vectors


def renames(work: WorkFolder) -> Iterator[tuple[str, str]]:
    """Yield (the namer's name, the reviewer's name) for each rename that was not undone."""
    proposed: dict[str, dict[int, str]] = {}
    for decisions in DecisionLog(work.folder).history.values():
        for decision in decisions:
            if decision.action != "rename":
                continue
            tile = decision.tile
            if tile not in proposed:
                names = work / f"names/{tile}.json"
                proposed[tile] = {e["region"]: e["name"] for e in read_json(names)} if names.is_file() else {}
            yield proposed[tile].get(decision.region, ""), decision.name or ""
