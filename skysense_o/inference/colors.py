"""Choose colors for classes that can be told apart in a legend.

Color difference: CIEDE2000 (Sharma, Wu and Dalal 2005), on CIELAB coordinates for the white point D65.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]
NONE_COLOR: Color = (96, 96, 96)
"""Color of "none", the pixels of no class."""
MIN_DIFFERENCE = 20.0
"""The colors of the first FEW classes differ by at least this much, in CIEDE2000."""
FEW = 12
MAX_SEARCHED = 40
"""Classes beyond this number get colors that are only unequal, and perhaps hard to tell apart."""

_CUSTOMARY: dict[str, Color] = {
    "water": (38, 120, 226), "river": (38, 120, 226), "lake": (30, 144, 255), "sea": (20, 84, 190),
    "land": (226, 196, 128), "bare land": (226, 196, 128), "sand": (240, 214, 150), "soil": (176, 128, 80),
    "road": (232, 60, 200), "street": (232, 60, 200), "building": (214, 48, 40), "house": (230, 84, 70),
    "vegetation": (46, 152, 62), "tree": (22, 110, 40), "forest": (16, 90, 34), "grass": (130, 196, 70),
    "ground": (204, 160, 96), "field": (190, 204, 90), "bush": (84, 140, 50), "roof": (230, 84, 70),
    "car": (250, 170, 20), "town": (190, 70, 90), "ocean": (20, 84, 190), "snow": (236, 240, 248),
}  # fmt: skip
_WATER = (
    "water river lake sea ocean pond pool canal reservoir stream creek bay lagoon estuary waterway ditch rapids brook"
    " strait gulf inlet waterfall waterbody"
)


def colors_for(
    classes: Sequence[str], given: Sequence[Color] | None = None, taken: Sequence[Color] = ()
) -> list[Color]:
    """Choose one color per class.

    A class gets its given color, or else the customary color of its name. There are two exceptions: the color is too
    similar to that of another class, or it is a blue like water's while only another class is water. Such a class, and
    a class without a color, gets the color that differs most from all other colors.

    Args:
        classes: C names, the most important first.
        given: RGB per class, 0..255, for instance of a class table; None for customary colors.
        taken: other colors, from which the colors of the classes must differ.

    Returns:
        C unequal colors. The colors of the first 12 classes differ by at least 20 in CIEDE2000.

    >>> colors_for(["water", "road", "river"])[:2]
    [(38, 120, 226), (232, 60, 200)]
    """
    water = [is_water(name) for name in classes]
    wished = list(given) if given is not None else [_customary(name) for name in classes]
    search, colors, step = _Search(taken), [None] * len(classes), 0
    first, others = range(min(FEW, len(classes))), range(FEW, len(classes))
    for block, least in ((first, MIN_DIFFERENCE), (others, MIN_DIFFERENCE * FEW / max(1, len(classes)))):
        for i in block:
            reserved = any(water) and not water[i] and wished[i] is not None and sea_blue(np.array(wished[i]))
            if wished[i] is not None and not reserved and search.difference(wished[i]) >= least:
                colors[i] = search.add(wished[i])
        for i in block:
            if colors[i] is None and len(search.chosen) < MAX_SEARCHED:
                colors[i] = search.add(search.most_different(least, water[i], any(water)))
            while colors[i] is None:
                hue = (step * 0.618034) % 1.0  # golden ratio: successive hues lie far apart
                value = (0.95, 0.7, 0.85)[(step // 7) % 3]
                color = tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, (0.8, 0.95, 0.55)[step % 3], value))
                colors[i], step = None if color in search.chosen else search.add(color), step + 1
    return colors


def is_water(name: str) -> bool:
    """Whether a class name means water, by its last word.

    >>> [is_water(name) for name in ("flood water", "Lakes", "water body", "water tower")]
    [True, True, True, False]
    """
    words = name.lower().replace("_", " ").removesuffix(" body").split() or [""]
    return bool({words[-1], words[-1].removesuffix("s")} & set(_WATER.split()))


def sea_blue(rgb: np.ndarray) -> np.ndarray:
    """Which colors look like water.

    Args:
        rgb: (...,3), 0..255.

    Returns:
        bool (...): the hue is blue, and saturated enough to be seen.

    >>> sea_blue(np.array([(38, 120, 226), (0, 0, 255), (128, 0, 255), (0, 128, 128)])).tolist()
    [True, True, False, False]
    """
    lab = lab_of(rgb)
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return (np.hypot(lab[..., 1], lab[..., 2]) > 15) & (hue > 215) & (hue < 307)


def lab_of(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB colors to CIELAB.

    Args:
        rgb: (...,3), 0..255.

    Returns:
        (...,3) float64: L* in 0..100, a*, b*.

    >>> lab_of(np.array([255, 255, 255])).round(2).tolist()[0]
    100.0
    """
    x = np.asarray(rgb, np.float64) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    xyz = linear @ np.array(matrix).T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def ciede2000(lab1: np.ndarray, lab2: np.ndarray) -> np.ndarray:
    """The color difference CIEDE2000 (Sharma et al. 2005, equations 2 to 22).

    Args:
        lab1, lab2: (...,3), see `lab_of`; they are broadcast.

    Returns:
        (...) differences; about 1 can just be seen, 100 is black against white.

    >>> float(ciede2000(np.array([50.0, 2.5, 0.0]), np.array([73.0, 25.0, -18.0])).round(4))
    27.1492
    """
    (l1, a1, b1), (l2, a2, b2) = (np.moveaxis(np.asarray(lab, np.float64), -1, 0) for lab in (lab1, lab2))
    chroma7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(chroma7 / (chroma7 + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    grey = c1 * c2 == 0
    turn = np.where(grey, 0.0, (h2 - h1 + 180) % 360 - 180)
    delta_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    apart = np.abs(h1 - h2) > 180
    mean_h = np.where(grey, h1 + h2, np.where(apart, (h1 + h2 + np.where(h1 + h2 < 360, 360, -360)) / 2, (h1 + h2) / 2))
    t = (
        1
        - 0.17 * np.cos(np.radians(mean_h - 30))
        + 0.24 * np.cos(np.radians(2 * mean_h))
        + 0.32 * np.cos(np.radians(3 * mean_h + 6))
        - 0.20 * np.cos(np.radians(4 * mean_h - 63))
    )
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    rotation = np.sin(np.radians(60 * np.exp(-(((mean_h - 275) / 25) ** 2))))
    rotation = -2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)) * rotation
    x, y, z = (l2 - l1) / s_l, (c2 - c1) / s_c, delta_h / s_h
    return np.sqrt(np.maximum(x**2 + y**2 + z**2 + rotation * y * z, 0))


def _customary(name: str) -> Color | None:
    return _CUSTOMARY.get(name.lower()) or _CUSTOMARY.get(name.lower().removesuffix("s"))


@lru_cache(maxsize=1)
def _candidates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB (N,3) of colors neither very dark nor very light, their CIELAB coordinates, and which are sea blue."""
    levels = np.linspace(0, 255, 9).round()
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = lab_of(rgb)
    usable = (lab[:, 0] > 25) & (lab[:, 0] < 93)
    return rgb[usable].astype(int), lab[usable], sea_blue(rgb[usable])


class _Search:
    """Colors chosen so far, and the difference of each candidate to the most similar one of them."""

    def __init__(self, taken: Sequence[Color]) -> None:
        self.rgb, self.lab, self.blue = _candidates()
        self.chosen: set[Color] = set()
        self.chosen_lab = np.empty((0, 3))
        self.nearest = np.full(len(self.rgb), np.inf)
        for color in taken:
            self.add(color)

    def add(self, color: Color) -> Color:
        """Record a color as chosen, so that later colors are compared with it, and return it."""
        color = tuple(int(value) for value in color)
        lab = lab_of(np.array(color))
        if len(self.chosen) < MAX_SEARCHED:
            self.nearest = np.minimum(self.nearest, ciede2000(self.lab, lab))
        self.chosen.add(color)
        self.chosen_lab = np.concatenate([self.chosen_lab, lab[None]])
        return color

    def difference(self, color: Color) -> float:
        """The difference to the most similar chosen color."""
        return float(ciede2000(lab_of(np.array(color)), self.chosen_lab).min(initial=np.inf))

    def most_different(self, least: float, water: bool, any_water: bool) -> Color:
        """The candidate that differs most from the chosen colors.

        Args:
            least: a water class gets the most different blue if this blue differs by at least this much.
            water: whether the class is water.
            any_water: whether any class is water; then other classes get no blue.
        """
        if water and self.nearest[self.blue].max() >= least:
            allowed = self.blue
        else:
            allowed = ~self.blue if any_water and not water else np.ones(len(self.rgb), bool)
        nearest = self.nearest if self.chosen else 100 - np.abs(self.lab[:, 0] - 55)  # first color: medium lightness
        return tuple(self.rgb[np.where(allowed, nearest, -np.inf).argmax()].tolist())
