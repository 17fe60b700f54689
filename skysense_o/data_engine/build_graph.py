"""Step 6: the relation graph of all names, as plain JSON and in Sky-SA's form."""

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
    """Relate all names of the set; written to graph/graph.json and graph/skysa_graph.jsonl.

    Looks: cosines of prototypes, the mean of the regions' features. Words: cosines of the names. Company: how often
    they share an image. What reviewers renamed into each other scores highest. Made anew by each call, but for the
    regions' features, which are kept in graph/features.

    Args:
        confidence: see `annotations`.

    Raises:
        ValueError: fewer than two names, which have no relation.
    """
    found = list(tile_annotations(work, confidence))
    names = sorted({name for _, a in found for name in a.names.values()})
    if len(names) < 2:
        raise ValueError(f"a graph needs two names at least, {len(names)} are in {work.folder}: lower --confidence?")
    place = {name: i for i, name in enumerate(names)}
    sums, counts = None, np.zeros(len(names))
    for row, annotation in tqdm(found, unit="tile", desc="graph"):
        if not annotation.names:
            continue
        vectors = _features(work, predictor, row, annotation.regions)
        sums = np.zeros((len(names), vectors.shape[1])) if sums is None else sums
        for k, name in annotation.names.items():
            if k:  # the rest region has no features of its own
                sums[place[name]] += vectors[k - 1]
                counts[place[name]] += 1
    measures = {
        "looks": prototype_cosines(sums, counts),
        "words": text_cosines(predictor.model, names),
        "cooccurrence": cooccurrence((list(a.names.values()) for _, a in found), names),
    }
    graph = combined(names, measures, confusions(renames(work)))
    with whole(work / "graph/graph.json") as part:
        graph.save(part)
    with whole(work / "graph/skysa_graph.jsonl") as part:
        graph.save_as_skysa(part)
    return graph


def _features(work: WorkFolder, predictor: Predictor, row: dict, regions: np.ndarray) -> np.ndarray:
    """(R,D) of a tile's regions 1..R; computed once for these very regions. Numbers without a pixel have zeros."""
    path = work / f"graph/features/{row['tile']}.npz"
    if path.is_file():
        with np.load(path) as file:
            if np.array_equal(file["regions"], regions):
                return file["vectors"]
    there, dense = np.unique(regions, return_inverse=True)
    there, dense = there[there > 0], dense.reshape(regions.shape) + (0 if there[0] == 0 else 1)
    vectors = np.zeros((int(regions.max()), predictor.model.tower.dim), np.float32)
    if len(there):
        vectors[there.astype(int) - 1] = embeddings(predictor.set_image(work.image(row)), dense).cpu().numpy()
    with whole(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, regions=regions, vectors=vectors)
    return vectors


def renames(work: WorkFolder) -> Iterator[tuple[str, str]]:
    """(name that the namer gave, name that a reviewer gave instead), of each renaming that stands."""
    given: dict[str, dict[int, str]] = {}
    for decisions in DecisionLog(work.folder).history.values():
        for decision in decisions:
            if decision.action != "rename":
                continue
            tile = decision.tile
            if tile not in given:
                names = work / f"names/{tile}.json"
                given[tile] = {e["region"]: e["name"] for e in read_json(names)} if names.is_file() else {}
            yield given[tile].get(decision.region, ""), decision.name or ""
