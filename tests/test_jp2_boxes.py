"""Tests that damaged boxes in JPEG 2000 files give an error; GDAL alone would never return from some of these files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from skysense_o.image_io import ImageError, gdal_settings, read_image
from skysense_o.image_io.jp2_boxes import MOST_BOXES, check_boxes

pytestmark = pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without OpenJPEG")


@pytest.fixture
def jp2() -> bytearray:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000")
    return bytearray(stream.getvalue())


def changed(jp2: bytearray, kind: bytes, length: int) -> bytearray:
    """Set the length field of the first box of the given type."""
    start = jp2.index(kind) - 4
    jp2[start : start + 4] = length.to_bytes(4, "big")
    return jp2


@pytest.mark.parametrize("length", [0, 1, 7, 10_000])
def test_a_box_inside_another_one_has_a_right_length(jp2, tmp_path, length):
    """Regression: GDAL read a nested box of length 0 again and again without end."""
    (tmp_path / "a.jp2").write_bytes(changed(jp2, b"colr", length))
    with pytest.raises(ImageError, match="a.jp2 is damaged: a JPEG 2000 box at byte 62 has a wrong length"):
        check_boxes(tmp_path / "a.jp2")
    with pytest.raises(ImageError, match="a.jp2"):
        read_image(tmp_path / "a.jp2")


def test_a_vrt_of_a_damaged_file_is_an_error(jp2, tmp_path):
    pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')
    from skysense_o.image_io.gdal_access import open_dataset

    (tmp_path / "a.jp2").write_bytes(changed(jp2, b"colr", 0))
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="32" rasterYSize="24"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">a.jp2</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    with pytest.raises(ImageError, match="a.jp2 is damaged"), gdal_settings():
        open_dataset(tmp_path / "a.vrt")


def test_good_files_pass(jp2, tmp_path):
    """Length 0 is allowed for the last box, which then ends with the file; a bare codestream has no boxes."""
    path = tmp_path / "a.jp2"
    for good in (bytes(jp2), bytes(changed(bytearray(jp2), b"jp2c", 0)), bytes(jp2[jp2.index(b"jp2c") + 4 :])):
        path.write_bytes(good)
        check_boxes(path)
        assert read_image(path).rgb.shape == (24, 32, 3)


def test_the_number_of_boxes_is_limited(jp2, tmp_path):
    (tmp_path / "a.jp2").write_bytes(bytes(jp2[:12]) + b"\0\0\0\x08free" * (MOST_BOXES + 1))
    with pytest.raises(ImageError, match="more than 10,000 JPEG 2000 boxes"):
        check_boxes(tmp_path / "a.jp2")
