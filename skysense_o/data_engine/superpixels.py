"""Regions from superpixels: neighbours with similar colours and tower features are merged. Needs no trained decoder.

Shape letters: S superpixels, D embedding, H W pixels, h w grid.
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
"""Approximate size of a SLIC superpixel (Achanta et al. 2012), in pixels."""
COLOUR_WEIGHT, FEATURE_WEIGHT = 1 / 20, 0.5
"""Weights of Lab values and of the tower's unit vectors in the distance between superpixels."""
MAX_DISTANCE = 3.0
"""Largest Ward distance at which neighbours are merged."""


def superpixels(seen: PromptedImage, rgb: np.ndarray, regions: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Divide an image into regions by merging neighbouring superpixels (agglomerative clustering, Ward's criterion).

    Args:
        seen: the image, embedded by the model.
        rgb: the same image, uint8 (H,W,3).
        regions: factor of MAX_DISTANCE; above 1 gives fewer regions, below 1 more.

    Returns:
        int (H,W), the region of each pixel, from 1; and float32 (H,W), the cosine between the feature of the pixel's
        superpixel and the mean feature of its region.
    """
    count = max(1, rgb.shape[0] * rgb.shape[1] // SUPERPIXEL)
    parts = slic(rgb, n_segments=count, compactness=10, start_label=0, channel_axis=-1)
    parts = np.unique(parts, return_inverse=True)[1].reshape(parts.shape)
    number = int(parts.max()) + 1
    if number == 1:
        return np.ones(parts.shape, int), np.ones(parts.shape, np.float32)
    features = tower_means(seen, parts, number)
    colours = means(rgb2lab(rgb), parts, number) * COLOUR_WEIGHT
    pairs, _ = borders(parts)
    near = coo_array((np.ones(len(pairs)), pairs.T), shape=(number, number))
    joined = AgglomerativeClustering(
        n_clusters=None, distance_threshold=MAX_DISTANCE * regions, connectivity=(near + near.T).tocsr(), linkage="ward"
    ).fit_predict(np.concatenate([features * FEATURE_WEIGHT, colours], axis=1))
    centres = means_of(features, joined)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-6)
    cosines = np.clip((features * centres[joined]).sum(1), 0, 1)
    return joined[parts] + 1, cosines[parts].astype(np.float32)


def means(values: np.ndarray, parts: np.ndarray, number: int) -> np.ndarray:
    """Mean of values (H,W,C) over each of the `number` superpixels -> (S,C)."""
    flat = parts.ravel()
    sums = np.stack([np.bincount(flat, channel.ravel(), number) for channel in np.moveaxis(values, -1, 0)], axis=1)
    return sums / np.bincount(flat, minlength=number)[:, None]


def means_of(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of rows (S,D) over each group; group: (S,), the group of each row -> (groups,D)."""
    sums = np.zeros((group.max() + 1, rows.shape[1]))
    np.add.at(sums, group, rows)
    return sums / np.bincount(group)[:, None]


def tower_means(seen: PromptedImage, parts: np.ndarray, number: int) -> np.ndarray:
    """Mean dense feature of each superpixel, minus the mean over all superpixels, as unit vectors (S,D)."""
    (height, width), (padded_height, padded_width) = seen.size, seen.transform.padded
    h, w = seen.grid
    dense = F.normalize(seen.dense[0].float().flatten(1), dim=0).T.cpu().numpy()  # (hw,D)
    y = ((np.arange(height) + 0.5) * h / padded_height).astype(int)
    x = ((np.arange(width) + 0.5) * w / padded_width).astype(int)
    cell = y[:, None] * w + x[None]
    shares = coo_array((np.ones(parts.size), (parts.ravel(), cell.ravel())), shape=(number, h * w)).tocsr()
    features = shares @ dense / np.bincount(parts.ravel(), minlength=number)[:, None]
    features = features - features.mean(0)
    return (features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)).astype(np.float32)
