"""Regions without any training for regions: superpixels, joined where the tower sees the same.

Alphabet: S superpixels, D embedding, H W pixels, h w grid.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from scipy.sparse import coo_array
from skimage.color import rgb2lab
from skimage.segmentation import slic
from sklearn.cluster import AgglomerativeClustering

from skysense_o.data_engine.partition import borders
from skysense_o.inference.prompted_image import PromptedImage

# Chosen on training images of Dubai, see docs/experiments-engine.md.
SUPERPIXEL = 120
"""Pixels, about, of a superpixel of SLIC (Achanta et al. 2012)."""
COLOUR, LOOKS = 1 / 20, 0.5
"""What a step of Lab and the tower's unit vectors count."""
APART = 3.0
"""Ward's distance up to which neighbours are joined."""


def superpixels(seen: PromptedImage, rgb: np.ndarray, regions: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, int (H,W) from 1, and how alike a pixel's superpixel is to its region's mean, float (H,W), 0..1.

    Superpixels are joined bottom up by Ward's criterion, neighbours only, on their mean colour and tower features.

    Args:
        regions: times the distance that is chosen: above 1 gives fewer regions, below more.
    """
    count = max(1, rgb.shape[0] * rgb.shape[1] // SUPERPIXEL)
    parts = slic(rgb, n_segments=count, compactness=10, start_label=0, channel_axis=-1)
    parts = np.unique(parts, return_inverse=True)[1].reshape(parts.shape)
    number = int(parts.max()) + 1
    if number == 1:
        return np.ones(parts.shape, int), np.ones(parts.shape, np.float32)
    looks = tower_means(seen, parts, number)
    colours = means(rgb2lab(rgb), parts, number) * COLOUR
    pairs, _ = borders(parts)
    near = coo_array((np.ones(len(pairs)), pairs.T), shape=(number, number))
    joined = AgglomerativeClustering(
        n_clusters=None, distance_threshold=APART * regions, connectivity=(near + near.T).tocsr(), linkage="ward"
    ).fit_predict(np.concatenate([looks * LOOKS, colours], axis=1))
    centres = means_of(looks, joined)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-6)
    alike = np.clip((looks * centres[joined]).sum(1), 0, 1)
    return joined[parts] + 1, alike[parts].astype(np.float32)


def means(values: np.ndarray, parts: np.ndarray, number: int) -> np.ndarray:
    """(H,W,C) -> (S,C)."""
    flat = parts.ravel()
    sums = np.stack([np.bincount(flat, channel.ravel(), number) for channel in np.moveaxis(values, -1, 0)], axis=1)
    return sums / np.bincount(flat, minlength=number)[:, None]


def means_of(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(S,D) -> (groups,D)."""
    sums = np.zeros((group.max() + 1, rows.shape[1]))
    np.add.at(sums, group, rows)
    return sums / np.bincount(group)[:, None]


def tower_means(seen: PromptedImage, parts: np.ndarray, number: int) -> np.ndarray:
    """(S,D) unit vectors: the dense features of each superpixel, less what the whole image shares."""
    (height, width), (padded_height, padded_width) = seen.size, seen.transform.padded
    h, w = seen.grid
    dense = F.normalize(seen.dense[0].float().flatten(1), dim=0).T.cpu().numpy()  # (hw,D)
    y = ((np.arange(height) + 0.5) * h / padded_height).astype(int)
    x = ((np.arange(width) + 0.5) * w / padded_width).astype(int)
    cell = y[:, None] * w + x[None]
    shares = coo_array((np.ones(parts.size), (parts.ravel(), cell.ravel())), shape=(number, h * w)).tocsr()
    looks = shares @ dense / np.bincount(parts.ravel(), minlength=number)[:, None]
    looks = looks - looks.mean(0)
    return (looks / np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-6)).astype(np.float32)
