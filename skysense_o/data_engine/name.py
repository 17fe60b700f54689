"""Step 4: give every region a name, a confidence and a list of candidate names."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from skysense_o.data.relation_graph import RelationGraph
from skysense_o.data_engine.namers import TOP, Namer
from skysense_o.data_engine.synonyms import synonyms
from skysense_o.data_engine.work_folder import WorkFolder, each_tile, read_json, write_json
from skysense_o.errors import file_error
from skysense_o.workers import Each, here

if TYPE_CHECKING:
    from torch import nn


def name_regions(
    work: WorkFolder,
    namer: Namer | None,
    model: nn.Module,
    *,
    merge: float = 2.0,
    graph: RelationGraph | None = None,
    each: Each | None = None,
) -> list[dict]:
    """Name the regions of each kept tile that has no names yet, then merge synonyms over all tiles.

    Args:
        work: the work folder, after step "propose".
        namer: gives the candidates of each region.
        model: a SkySenseO; its text tower measures how similar names are.
        merge: names whose text embeddings have at least this cosine are synonyms; with a value above 1, no names are.
        graph: relation graph that can prevent a merge, see `synonyms`.
        each: distributes the tiles over workers that hold a namer; None: this process names all tiles, with `namer`.

    Returns:
        {"tile", "error"} for each tile that could not be named; a later call tries it again.

    Raises:
        FileNotFoundError: there are no regions.
    """
    if not (work / "regions").is_dir():
        raise FileNotFoundError(f"no regions in {work.folder}: run the step propose first")
    rows = work.kept()
    todo = [row for row in rows if not (work / f"names/{row['tile']}.json").is_file()]
    errors = each_tile(each or here(namer), partial(_name_tile, work), todo, "name")
    merge_synonyms(work, [row["tile"] for row in rows], model, merge, graph)
    return errors


def _name_tile(work: WorkFolder, namer: Namer, row: dict) -> str:
    try:
        regions = namer(work.image(row), work.regions(row["tile"]))
    except Exception as error:  # one bad tile does not end the batch
        return file_error(error, row["tile"])
    entries = [_entry(k, candidates[:TOP]) for k, candidates in enumerate(regions, 1)]
    write_json(work / f"names/{row['tile']}.json", entries)
    return ""


def _entry(region: int, candidates: list[tuple[str, float]]) -> dict:
    first, confidence = candidates[0] if candidates else ("", 0.0)
    return {"region": region, "name": first, "confidence": confidence, "candidates": [list(c) for c in candidates]}


def merge_synonyms(
    work: WorkFolder, tiles: list[str], model: nn.Module, cosine: float, graph: RelationGraph | None
) -> None:
    """Write synonyms.json and replace synonyms in names/*.json, where "candidates" keeps the namer's own names."""
    files = [work / f"names/{tile}.json" for tile in tiles]
    files = [path for path in files if path.is_file()]
    counts: Counter = Counter()
    for path in files:
        counts.update(entry["candidates"][0][0] for entry in read_json(path) if entry["candidates"])
    replaced = synonyms(model, counts, cosine, graph)
    write_json(work / "synonyms.json", dict(sorted(replaced.items())))
    for path in files:
        entries = read_json(path)
        merged = []
        for entry in entries:
            best = entry["candidates"][0][0] if entry["candidates"] else ""
            merged.append({**entry, "name": replaced.get(best, best)})
        if merged != entries:
            write_json(path, merged)
