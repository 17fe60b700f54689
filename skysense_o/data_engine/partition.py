"""Turn masks and label maps into connected regions that cover the whole image and are not tiny.

Shape letters: K masks, R regions, H W pixels.
"""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
from skimage.measure import label


def paint_masks(masks: np.ndarray, iou_pred: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Flatten overlapping masks into one label map. Small masks are painted over large masks.

    Args:
        masks: bool (K,H,W).
        iou_pred: (K,), the predicted IoU of each mask, 0..1.
        size: (H,W).

    Returns:
        int32 (H,W), the number of each pixel's mask, from 1, or 0 if it has none; float32 (H,W), the mask's iou_pred.
    """
    labels, score = np.zeros(size, np.int32), np.zeros(size, np.float32)
    for k in np.argsort(-masks.sum((1, 2)), kind="stable") if len(masks) else ():
        labels[masks[k]], score[masks[k]] = k + 1, iou_pred[k]
    return labels, score


def tidy(labels: np.ndarray, least: int) -> np.ndarray:
    """Split a label map into connected regions and merge those of fewer than `least` pixels into a neighbour.

    Starting with the smallest piece, each small piece joins the neighbour with the longest shared border. Small pieces
    of label 0 (no region) are merged as well. A piece that fills the whole image has no neighbour and stays.

    Args:
        labels: integers (H,W), 0 for pixels of no region.
        least: smallest size of a region, in pixels.

    Returns:
        uint16 (H,W): 0 for pixels of no region, regions 1..R in the order of their first pixels.

    Raises:
        ValueError: there are more than 65535 regions.
    """
    pieces = label(labels.astype(np.int64) + 1, connectivity=1) - 1
    parent = merge_regions(pieces, least)
    is_rest = np.zeros(len(parent), bool)
    is_rest[pieces[labels == 0]] = True
    merged = parent[pieces]
    merged[is_rest[merged]] = -1
    ids, first, inverse = np.unique(merged, return_index=True, return_inverse=True)
    rank = np.zeros(len(ids), np.int64)
    is_region = ids >= 0
    rank[is_region] = 1 + np.argsort(np.argsort(first[is_region]))
    if rank.max(initial=0) > 65535:
        raise ValueError(f"{rank.max()} regions in one tile, at most 65535 fit: give a larger --least")
    return rank[inverse.reshape(labels.shape)].astype(np.uint16)


def borders(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find neighbouring pieces and the length of their shared borders.

    Args:
        pieces: integers (H,W).

    Returns:
        (E,2), pairs of neighbours with the lower number first; (E,), shared border of each pair in pixel edges.
    """
    sides = [(pieces[:, :-1], pieces[:, 1:]), (pieces[:-1], pieces[1:])]
    pairs = np.concatenate([np.stack([a[a != b], b[a != b]], 1) for a, b in sides])
    pairs.sort(axis=1)
    return np.unique(pairs, axis=0, return_counts=True)


def merge_regions(pieces: np.ndarray, least: int) -> np.ndarray:
    """Merge every piece of fewer than `least` pixels into a neighbour, the smallest piece first.

    Args:
        pieces: integers (H,W), the index of each pixel's piece, from 0.
        least: smallest size of a piece, in pixels.

    Returns:
        for each piece, the index of the piece that it was merged into (its own index if it was not merged).
    """
    sizes = np.bincount(pieces.ravel()).tolist()
    neighbours: list[Counter] = [Counter() for _ in sizes]
    for (a, b), length in zip(*(array.tolist() for array in borders(pieces))):
        neighbours[a][b] = neighbours[b][a] = length
    parent = list(range(len(sizes)))
    queue = [(n, k) for k, n in enumerate(sizes) if n < least]
    heapq.heapify(queue)
    while queue:
        size, k = heapq.heappop(queue)
        if parent[k] != k or sizes[k] != size or not neighbours[k]:
            continue  # the piece is merged already, has grown and is queued again with its new size, or is alone
        to = max(neighbours[k], key=lambda other: (neighbours[k][other], -other))
        parent[k] = to
        sizes[to] += size
        for other, length in neighbours[k].items():
            del neighbours[other][k]
            if other != to:
                neighbours[other][to] += length
                neighbours[to][other] += length
        if sizes[to] < least:
            heapq.heappush(queue, (sizes[to], to))
    for k in range(len(parent)):
        while parent[k] != parent[parent[k]]:
            parent[k] = parent[parent[k]]
    return np.array(parent)
