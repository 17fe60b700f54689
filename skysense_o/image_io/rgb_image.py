"""What the reader returns: RGB pixels, which of them are valid, and how the file was converted.

Shape letters: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from skysense_o.image_io.orientation import UPRIGHT

FILL = (124, 116, 104)
"""Default RGB for pixels without data: the mean color of ImageNet, which carries little information for a model."""


@dataclass(frozen=True)
class ReadRecord:
    """How an image was converted.

    Attributes:
        container: the file format: "PNG", "TIFF", ..., or "array".
        bands: indices of the bands that were used, from 1.
        dtype: the type of the stored values.
        stretch: (value that became 0, value that became 255), the same for all bands; None for 8-bit values.
        orientation: the EXIF orientation; 1 is upright.
        georeferenced: whether the file has a CRS, a transform, ground control points or RPCs.
        notes: remarks for the user.
    """

    container: str
    bands: tuple[int, ...] = (1, 2, 3)
    dtype: str = "uint8"
    stretch: tuple[float, float] | None = None
    orientation: int = UPRIGHT
    georeferenced: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RGBImage:
    """An image as all parts of the project see it.

    Attributes:
        rgb: uint8 (H,W,3), upright.
        valid: bool (H,W), which pixels have data; None if all have.
        record: how the image was converted.
    """

    rgb: np.ndarray
    valid: np.ndarray | None = None
    record: ReadRecord = field(default_factory=lambda: ReadRecord("array"))

    @property
    def size(self) -> tuple[int, int]:
        """Size of the image (H,W)."""
        return self.rgb.shape[:2]

    def filled(self, color=FILL) -> np.ndarray:
        """RGB uint8 (H,W,3) in which pixels without data have this color; `rgb` itself if all pixels have data."""
        if self.valid is None:
            return self.rgb
        rgb = self.rgb.copy()
        rgb[~self.valid] = [round(value) for value in color]
        return rgb
