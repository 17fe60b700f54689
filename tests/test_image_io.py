"""Images as people have them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from skysense_o.inference.drawing import color_labels, colors_for, overlay, with_legend
from skysense_o.inference.images import ImageError, as_rgb, read_image

RED = (200, 30, 10)


@pytest.mark.parametrize(
    ("mode", "name", "want"),
    [
        ("RGB", "a.png", RED),
        ("RGB", "a.tif", RED),
        ("RGBA", "a.png", RED),
        ("P", "a.png", RED),
        ("L", "a.png", (79, 79, 79)),
        ("L", "a.jpg", (79, 79, 79)),
    ],
)
def test_every_mode_becomes_rgb_and_red_stays_red(tmp_path, mode, name, want):
    Image.new("RGB", (6, 4), RED).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert np.abs(image[1, 1].astype(int) - want).max() <= 3


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_16_bits_are_stretched_over_the_whole_image(tmp_path, caplog, channels, suffix):
    ramp = np.linspace(3000, 9000, 40 * 50).reshape(40, 50).astype(np.uint16)
    alpha = np.full_like(ramp, 65535)
    deep = ramp if channels == 1 else np.stack([ramp, ramp // 2, ramp // 4, alpha][:channels], -1)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), deep)  # OpenCV writes blue first
    image = read_image(tmp_path / f"deep{suffix}")
    assert image.dtype == np.uint8
    assert image.min() == 0
    assert image.max() == 255
    assert "stretched" in caplog.text
    if channels > 1:
        assert image[-1, -1, 0] < image[-1, -1, 2], "red is the darkest channel here and must stay so"


def test_float_arrays_ignore_what_is_not_finite():
    array = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 30)
    array[0, 0] = np.nan
    assert as_rgb(array).max() == 255


def test_nothing_finite_is_refused():
    with pytest.raises(ImageError, match="no finite value"):
        as_rgb(np.full((3, 3), np.nan))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5, 2), (5,), (2, 5, 5, 3)])
def test_shapes_that_are_no_image(shape):
    with pytest.raises(ImageError, match="expected"):
        as_rgb(np.zeros(shape, np.uint8))


def test_missing_empty_false_and_truncated_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_image(tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"is empty \(0 bytes\)"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ImageError, match="is not an image that can be read"):
        read_image(tmp_path / "text.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png"):
        Image.fromarray(noise).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match="cut short or damaged"):
            read_image(tmp_path / name)


def test_colours_differ_even_for_hundreds_of_names():
    colors = colors_for([f"thing {i}" for i in range(300)])
    assert len(set(colors)) == 300
    assert colors_for(["water", "road"])[0] == (38, 120, 226)


def test_overlay_keeps_red_red_and_marks_borders():
    image, labels = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.int64)
    labels[:, 4:] = 1
    laid = overlay(image, labels, [RED, (0, 0, 250)])
    assert laid[0, 0].tolist() == [150, 65, 55]
    assert laid[0, 4].tolist() == [0, 0, 250]
    assert color_labels(labels, [RED, (0, 0, 250)])[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("size", [(4, 4), (60, 1200), (900, 300)])
def test_the_legend_covers_no_pixel_of_the_image(size):
    image = np.full((*size, 3), 7, np.uint8)
    names = ["a rather long name of a class", "b", "c", "d", "e"]
    sheet = np.asarray(with_legend(image, names, colors_for(names), [0.2] * 5))
    assert (sheet[: size[0], : size[1]] == 7).all()
    assert sheet.shape[0] > size[0]
