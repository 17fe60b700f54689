"""The state of an open image as JSON for the browser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skysense_o.interactive.exports import repeat_command
from skysense_o.interactive.region import Region
from skysense_o.interactive.session import Session
from skysense_o.interactive.view import class_rows, square_metres
from skysense_o.interactive.visitors import OpenImage


def image_state(image: OpenImage) -> dict:
    """An image and its latest results. Positions are on the grid that the browser shows."""
    session = image.session
    opened, found, region = session.image, session.found, session.region
    height, width = opened.rgb.shape[:2]
    return {
        "id": image.key,
        "version": image.version,
        "name": opened.name,
        "width": width,
        "height": height,
        "notes": list(opened.notes),
        "map": session.map.described() if session.map else None,
        "words": image.words,
        "background": image.background,
        "threshold": image.threshold,
        "used_threshold": found.threshold if found is not None else None,
        "classes": class_rows(session) if found is not None else None,
        "has_none": found is not None and found.has_none,
        "nodata": found.nodata if found is not None else None,
        "command": repeat_command(session) if found is not None else None,
        "region": _region_state(session, region, image.region_names) if region else None,
        "can_undo": session.can_undo,
        "summary": image.summary,
        "answers": image.answers,
        "scene_names": image.scene_names,
    }


def _region_state(session: Session, region: Region, names: Sequence[tuple[str, float]]) -> dict:
    prompt = region.prompt
    points = _shown(session, [(x + 0.5, y + 0.5) for x, y in prompt.points])
    x0, y0, x1, y1 = prompt.box or (0, 0, 0, 0)
    return {
        "pixels": int(region.mask.sum()),
        "area_m2": square_metres(session, region.mask),
        "iou_pred": region.iou_pred,
        "names": names,
        "points": [(*xy, label) for xy, label in zip(points, prompt.labels)],
        "box": _shown(session, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) if prompt.box else None,
    }


def _shown(session: Session, points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Positions in pixels of the image -> positions on the grid that the browser shows."""
    xy = np.array(points, float).reshape(-1, 2)
    return (xy if session.map is None else session.map.places(xy)).tolist()
