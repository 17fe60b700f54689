"""Tiny georeferenced scenes, and a model whose prediction follows directly from the colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from rasterio.transform import Affine
from torch import nn

from skysense_o import Predictor
from skysense_o.vocabulary import Vocabulary

UTM = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500000, 0, -2, 5200000)}
WORDS = Vocabulary.parse("red,green,blue")


class ColourModel(nn.Module):
    """A model with one class per colour channel: its probability is the channel's mean over each 4 x 4 cell."""

    stride, gsd = 4, 0.0

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Module()
        self.tower.input_size, self.tower.divisor = None, 32
        self.tower.register_buffer("pixel_mean", torch.tensor([100.0, 110.0, 120.0]).view(3, 1, 1))
        self.device, self.seen = torch.device("cpu"), []

    def predict_windows(self, windows, vocabulary):
        self.seen.append(windows.clone())
        grid = F.avg_pool2d(windows.float() / 255, 4)
        return grid.repeat(1, -(-len(vocabulary) // 3), 1, 1)[:, : len(vocabulary)]


def colour_predictor() -> Predictor:
    return Predictor(ColourModel(), "colours")


def fields(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a uint8 (3,H,W) image of smooth patches, each dominated by one channel."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, height // 24 + 2, width // 24 + 2)))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    return (smooth.numpy() * 254 + 1).astype(np.uint8)


def write_scene(path: Path, pixels: np.ndarray, **profile) -> Path:
    """Write pixels (bands,H,W) as a GeoTIFF, in UTM by default."""
    options = {"driver": "GTiff", "count": len(pixels), "dtype": pixels.dtype, **UTM, **profile}
    gcps, rpcs = options.pop("gcps", None), options.pop("rpcs", None)
    options = {key: value for key, value in options.items() if value is not None}
    with rasterio.open(path, "w", height=pixels.shape[1], width=pixels.shape[2], **options) as file:
        file.write(pixels)
        if gcps:
            file.gcps = gcps
        if rpcs:
            file.rpcs = rpcs
    return path
