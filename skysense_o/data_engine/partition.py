"""Masks and label maps -> regions that are connected, not tiny, and together the whole image.

Alphabet: K masks, R regions, H W pixels.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from skimage.measure import label


def paint_masks(masks: np.ndarray, iou_pred: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Masks that may overlap -> labels (H,W), 0 where none is, and the quality of each pixel's mask, float (H,W).

    Large masks are painted first, so what lies on something else stays whole.

    Args:
        masks: bool (K,H,W). iou_pred: (K,), 0..1.
    """
    labels, score = np.zeros(size, np.int32), np.zeros(size, np.float32)
    for k in np.argsort(-masks.sum((1, 2)), kind="stable") if len(masks) else ():
        labels[masks[k]], score[masks[k]] = k + 1, iou_pred[k]
    return labels, score


def tidy(labels: np.ndarray, least: int) -> np.ndarray:
    """Labels (H,W), 0 for the rest -> uint16 (H,W): 1..R connected, in the order of their first pixels; 0 the rest.

    A piece of fewer than `least` pixels, of the rest as well, goes to the neighbour with the longest shared border: the
    smallest first. Only an image that is smaller as a whole keeps such a piece. No pixel is lost.
    """
    pieces = label(labels.astype(np.int64) + 1, connectivity=1) - 1
    parent = merge_regions(pieces, least)
    is_rest = np.zeros(len(parent), bool)
    is_rest[pieces[labels == 0]] = True
    whose = parent[pieces]
    whose[is_rest[whose]] = -1
    found, first, inverse = np.unique(whose, return_index=True, return_inverse=True)
    rank = np.zeros(len(found), np.int64)
    named = found >= 0
    rank[named] = 1 + np.argsort(np.argsort(first[named]))
    if rank.max(initial=0) > 65535:
        raise ValueError(f"{rank.max()} regions in one tile, 65535 are permitted: give a larger --least")
    return rank[inverse.reshape(labels.shape)].astype(np.uint16)


def borders(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbours (E,2), the lower number first, and how many pixel sides each pair shares (E,)."""
    sides = [(pieces[:, :-1], pieces[:, 1:]), (pieces[:-1], pieces[1:])]
    pairs = np.concatenate([np.stack([a[a != b], b[a != b]], 1) for a, b in sides])
    pairs.sort(axis=1)
    return np.unique(pairs, axis=0, return_counts=True)


def merge_regions(pieces: np.ndarray, least: int) -> np.ndarray:
    """Pieces (H,W), numbered from 0 -> for each number the piece it belongs to now."""
    sizes = np.bincount(pieces.ravel()).tolist()
    neighbours: list[Counter] = [Counter() for _ in sizes]
    for (a, b), length in zip(*(array.tolist() for array in borders(pieces))):
        neighbours[a][b] = neighbours[b][a] = length
    parent = list(range(len(sizes)))
    queue = sorted((n, k) for k, n in enumerate(sizes) if n < least)
    while queue:
        size, k = queue.pop(0)
        if parent[k] != k or sizes[k] != size or not neighbours[k]:
            continue  # it is another's by now, or has grown and stands further back
        to = max(neighbours[k], key=lambda other: (neighbours[k][other], -other))
        parent[k] = to
        sizes[to] += size
        for other, length in neighbours[k].items():
            del neighbours[other][k]
            if other != to:
                neighbours[other][to] += length
                neighbours[to][other] += length
        if sizes[to] < least:
            queue.append((sizes[to], to))
            queue.sort()
    for k in range(len(parent)):
        while parent[k] != parent[parent[k]]:
            parent[k] = parent[parent[k]]
    return np.array(parent)
