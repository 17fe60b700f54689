"""Step 2: leave out near-duplicates of other tiles, and tiles that duplicate an image of a test set.

Duplicates are found first by their perceptual hashes (which tools/check_dataset.py uses too), then by the image tower's
embeddings. faiss searches the nearest neighbours.

Shape letters: N tiles, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from skysense_o.data.catalog import find, records_of
from skysense_o.data.image_hash import ALIKE_BITS, image_hash
from skysense_o.data.labels import BadData, load_image
from skysense_o.data_engine.collect import spans
from skysense_o.data_engine.vector_store import Vectors
from skysense_o.data_engine.work_folder import WorkFolder, write_table
from skysense_o.image_io import image_size

if TYPE_CHECKING:
    from skysense_o.inference.predictor import Predictor

EXACT = 200_000
"""Up to this many tiles, the search by embeddings is exact. For more tiles, it uses an HNSW graph (Malkov and Yashunin
2018), which may miss neighbours."""
NEIGHBOURS = 32
"""Nearest neighbours examined per tile. A pair counts if either tile is among the other's neighbours."""
BLOCK = 4096
NOT_KEPT = {"tile": "", "kept": False, "of": "", "why": "", "distance": 0.0}
Pair = tuple[int, int, float]


def deduplicate(
    work: WorkFolder,
    predictor: Predictor | None,
    *,
    bits: int = ALIKE_BITS,
    distance: float = 0.005,
    against: Sequence[str] = (),
    side: int = 512,
) -> list[dict]:
    """Decide for each tile whether it is kept, and write the decisions to duplicates.parquet.

    Args:
        work: the work folder, after step "collect".
        predictor: its image tower computes the embeddings; None compares hashes only.
        bits: two tiles are duplicates if their 256-bit hashes differ in at most this many bits.
        distance: two tiles are duplicates if 1 - cosine of their embeddings is at most this.
        against: names of test sets; tiles that duplicate one of their images are left out, too.
        side: test images are cut into parts of at most this many pixels per side, like the images of the tiles.

    Returns:
        the rows of duplicates.parquet, one per tile: {"tile", "kept", "of", "why", "distance"}; "of" is the tile or
        test image that this tile duplicates.

    Raises:
        ValueError: `bits` or `distance` is out of range.
        KeyError: a test set is unknown.
        FileNotFoundError: a test set is not on disk, see `records_of`.
    """
    if not 0 <= bits <= 64:
        raise ValueError(f"--bits {bits} is out of range: 0 to 64 of the hash's 256 bits")
    if not 0 <= distance <= 1:
        raise ValueError(f"--distance {distance} is out of range: 0 to 1 (1 - cosine)")
    catalog = work.catalog()
    tested = [part for name in against for part in set_parts(name, side)]
    names = [name for name, _, _ in tested] + [row["tile"] for row in catalog]
    reads = {name: (path, window) for name, path, window in tested}
    reads.update((row["tile"], (work / row["file"], None)) for row in catalog)

    hashes = Vectors(work / "vectors/hashes")
    hashes.add((name, image_hash(Image.fromarray(pixels))) for name, pixels in images(hashes, names, reads, "hash"))
    damaged = [{**NOT_KEPT, "tile": name, "why": "unreadable"} for name in hashes.missing(names)]
    names = [name for name in names if name in hashes.known]
    duplicates = {"hash": first_of_each(same_hash(hashes.of(names), bits), len(tested))}
    rest = [i for i in range(len(names)) if i not in duplicates["hash"]]
    if predictor is not None:
        vectors = Vectors(work / "vectors/embeddings")
        remaining = [names[i] for i in rest]
        vectors.add((name, embedding(predictor, pixels)) for name, pixels in images(vectors, remaining, reads, "embed"))
        tests = sum(i < len(tested) for i in rest)
        near = first_of_each(near_vectors(vectors.of(remaining), distance), tests)
        duplicates["embedding"] = {rest[i]: (rest[j], value) for i, (j, value) in near.items()}
    rows = damaged
    for i in range(len(tested), len(names)):
        row = {**NOT_KEPT, "tile": names[i], "kept": True}
        for why, pairs in duplicates.items():
            if i in pairs:
                of, value = pairs[i]
                why = "leak" if of < len(tested) else why
                row.update(kept=False, of=names[of].partition("@")[0], why=why, distance=float(value))
        rows.append(row)
    rows.sort(key=lambda row: row["tile"])
    write_table(work / "duplicates.parquet", rows, schema())
    return rows


def schema():
    """The Arrow schema of duplicates.parquet."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema([("tile", text), ("kept", pa.bool_()), ("of", text), ("why", text), ("distance", pa.float32())])


def set_parts(name: str, side: int) -> Iterator[tuple[str, Path, tuple[range, range]]]:
    """Yield ("set:<data set>/<file>@<part>", path, (rows, columns)) for each part of each image of a data set."""
    key = find(name)[0][0].name if ":" in name or "/" in name else name
    for path in dict.fromkeys(record["file_name"] for record in records_of(name)):
        height, width = image_size(path)
        parts = [(rows, columns) for rows in spans(height, side) for columns in spans(width, side)]
        for k, part in enumerate(parts):
            yield f"set:{key}/{Path(path).name}@{k}", Path(path), part


def images(vectors: Vectors, names: Sequence[str], reads: dict, what: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, pixels uint8 (H,W,3)) for each name without a stored vector; unreadable tiles are skipped.

    Args:
        vectors: the stored vectors.
        names: names of the tiles and of the parts of test images.
        reads: name -> (path, (rows, columns) or None for the whole image).
        what: label of the progress bar.

    Raises:
        BadData: an image of a test set cannot be read.
    """
    for name in tqdm(vectors.missing(names), unit="tile", desc=what):
        path, window = reads[name]
        try:
            image = load_image(path).filled()
        except BadData:
            if window is not None:  # an unreadable test image is an error, because leaving it out could hide a leak
                raise
            continue
        yield (
            name,
            image if window is None else image[window[0].start : window[0].stop, window[1].start : window[1].stop],
        )


def embedding(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """The image tower's pooled embedding of an image uint8 (H,W,3): float32 (D,), unit length."""
    import torch

    from skysense_o.inference.classify import image_vectors

    with torch.inference_mode(), predictor.in_precision():
        return image_vectors(predictor.model.tower, [pixels])[0].cpu().numpy()


def same_hash(hashes: np.ndarray, bits: int) -> list[Pair]:
    """Find pairs of hashes that differ in at most `bits` bits.

    Of identical hashes, only the first is compared with other hashes, and the others are paired with the first. So
    1,000 copies give about 1,000 pairs instead of half a million.

    Args:
        hashes: uint8 (N,32).
        bits: largest Hamming distance.

    Returns:
        (i, j, Hamming distance) with j < i.
    """
    import faiss

    _, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    leader = first[inverse.ravel()]
    pairs = [(int(i), int(j), 0.0) for i, j in enumerate(leader) if i != j]
    leaders = np.unique(leader)
    index = faiss.IndexBinaryFlat(hashes.shape[1] * 8)
    index.add(np.ascontiguousarray(hashes[leaders]))
    for start in range(0, len(leaders), BLOCK):
        limits, values, others = index.range_search(
            np.ascontiguousarray(hashes[leaders[start : start + BLOCK]]), bits + 1
        )
        ones = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(int))
        earlier = others < ones
        pairs += zip(leaders[ones[earlier]].tolist(), leaders[others[earlier]].tolist(), values[earlier].tolist())
    return pairs


def near_vectors(vectors: np.ndarray, distance: float, exact: int = EXACT) -> list[Pair]:
    """Find pairs of unit vectors whose cosine distance is at most `distance`.

    Args:
        vectors: float32 (N,D), unit length.
        distance: largest 1 - cosine.
        exact: largest number of vectors for an exact search; above it the search is approximate.

    Returns:
        (i, j, 1 - cosine) with j < i.
    """
    import faiss

    if len(vectors) < 2:
        return []
    kind = "Flat" if len(vectors) <= exact else "HNSW32,Flat"
    index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    pairs: list[Pair] = []
    for start in range(0, len(vectors), BLOCK):
        cosines, others = index.search(vectors[start : start + BLOCK], min(NEIGHBOURS, len(vectors)))
        ones = start + np.repeat(np.arange(len(cosines))[:, None], cosines.shape[1], axis=1)
        apart = 1 - cosines
        near = (apart <= distance) & (others != ones) & (others >= 0)
        one, other = np.maximum(ones, others)[near], np.minimum(ones, others)[near]
        pairs += zip(one.tolist(), other.tolist(), np.maximum(apart[near], 0).tolist())
    return list(dict.fromkeys(pairs))


def first_of_each(pairs: Iterable[Pair], tests: int) -> dict[int, tuple[int, float]]:
    """Choose which items to leave out: in the order of their indices, each item that is near an earlier, kept item.

    So every item left out is near a kept item, and a chain of items that differ a little is not left out as a whole.

    Args:
        pairs: (i, j, distance) with j < i.
        tests: the first `tests` items come from test sets and are always kept.

    Returns:
        index of an item left out -> (index of the nearest kept item, distance).
    """
    earlier: dict[int, list[tuple[float, int]]] = {}
    for i, j, value in pairs:
        if i >= tests:
            earlier.setdefault(i, []).append((value, j))
    out: dict[int, tuple[int, float]] = {}
    for i in sorted(earlier):
        near = min(((value, j) for value, j in earlier[i] if j not in out), default=None)
        if near is not None:
            out[i] = near[1], near[0]
    return out
