"""Check the boxes of a JPEG 2000 file before GDAL reads them (ISO/IEC 15444-1, annex I).

GDAL 3.10 never returns from a box of length 0 inside another box: it reads the same box again and again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from skysense_o.image_io.files import ImageError, printable

CONTAINERS = (b"jp2h", b"res ", b"asoc", b"jpch", b"jplh", b"cgrp")
"""Boxes that contain boxes."""
MOST_BOXES = 10_000


def check_boxes(path: Path) -> None:
    """Check that each box inside another box has a length, and ends inside that other box.

    Boxes that reach beyond the end of the file, and files that are a codestream without boxes, are left to the decoder.

    Raises:
        ImageError: a box is damaged, or there are more than `MOST_BOXES`.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"\xff\x4f\xff\x51":  # a codestream without boxes
            return
        name, count, parents = printable(path), 0, [(0, os.fstat(file.fileno()).st_size)]
        while parents:
            start, end = parents.pop()
            inside = count > 0
            while start < end:
                count += 1
                length, header, kind = _box(file, start)
                if count > MOST_BOXES:
                    raise ImageError(f"{name} has more than {MOST_BOXES:,} JPEG 2000 boxes: it is damaged")
                if not inside and length == 0:
                    break  # the last box may reach to the end of the file
                if length < header or (inside and start + length > end):
                    raise ImageError(
                        f"{printable(path)} is damaged: a JPEG 2000 box at byte {start:,} has a wrong length"
                    )
                if kind in CONTAINERS:
                    parents.append((start + header, min(end, start + length)))
                start += length


def _box(file: BinaryIO, start: int) -> tuple[int, int, bytes]:
    """Length, length of the header, and type of the box at a position. Length 0: up to the end of the file."""
    file.seek(start)
    head = file.read(16)
    if len(head) < 8:
        return 0, 8, b""
    length, header = int.from_bytes(head[:4], "big"), 8
    if length == 1:
        length, header = int.from_bytes(head[8:16], "big"), 16
    return length, header, head[4:8]
