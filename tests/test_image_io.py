"""Tests of the image reader: what it reads, reports and refuses. Its callers are tested in test_image_doors.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from socketserver import BaseRequestHandler, TCPServer

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from skysense_o.data.labels import BadData, read_labels
from skysense_o.image_io import ImageError, as_image, image_size, is_georeferenced, read_image
from skysense_o.image_io.files import decoding
from skysense_o.image_io.orientation import as_stored, upright

RED = (200, 30, 10)


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RGB", "a.png", RED),
        ("RGB", "a.tif", RED),
        ("RGBA", "a.png", RED),
        ("P", "a.png", RED),
        ("L", "a.png", (79, 79, 79)),
        ("L", "a.jpg", (79, 79, 79)),
    ],
)
def test_each_mode_becomes_rgb_and_red_stays_red(tmp_path, mode, name, expected):
    Image.new("RGB", (6, 4), RED).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / name)
    image = read_image(tmp_path / name).rgb
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert np.abs(image[1, 1].astype(int) - expected).max() <= 3


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_16_bits_are_stretched_over_the_whole_image(tmp_path, channels, suffix):
    ramp = np.linspace(3000, 9000, 40 * 50).reshape(40, 50).astype(np.uint16)
    alpha = np.full_like(ramp, 65535)
    deep = ramp if channels == 1 else np.stack([ramp, ramp // 2, ramp // 4, alpha][:channels], -1)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), deep)  # OpenCV stores blue first
    read = read_image(tmp_path / f"deep{suffix}")
    image = read.rgb
    assert image.dtype == np.uint8
    assert image.min() == 0
    assert image.max() == 255
    assert "stretched" in read.record.notes[-1]
    if channels > 1:
        assert image[-1, -1, 0] < image[-1, -1, 2], "red is the darkest channel here and must stay the darkest"


def test_float_arrays_ignore_nan_and_infinity():
    array = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 30)
    array[0, 0] = np.nan
    assert as_image(array).rgb.max() == 255


def test_arrays_without_finite_values_are_errors():
    with pytest.raises(ImageError, match="no valid pixel"):
        as_image(np.full((3, 3), np.nan))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5, 2), (5,), (2, 5, 5, 3)])
def test_other_shapes_are_errors(shape):
    with pytest.raises(ImageError, match="expected"):
        as_image(np.zeros(shape, np.uint8))


def test_missing_empty_wrong_and_truncated_files_are_errors(tmp_path):
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


def test_tiffs_that_pillow_cannot_decode_are_read_with_gdal(tmp_path):
    """Regression: TIFFs with YCbCr but no JPEG, or with WebP, which Pillow cannot decode, were reported as damaged."""
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    y, x = np.mgrid[0:40, 0:60]
    rgb = np.stack([x * 4, y * 6, 255 - x * 2 - y * 2], -1).astype(np.uint8)
    Image.fromarray(rgb).convert("YCbCr").save(tmp_path / "ycbcr.tif")
    shape = {"height": 40, "width": 60, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(tmp_path / "webp.tif", "w", compress="webp", webp_lossless=True, **shape) as file:
        file.write(rgb.transpose(2, 0, 1))
    assert np.abs(read_image(tmp_path / "ycbcr.tif").rgb.astype(int) - rgb).max() <= 4
    assert np.array_equal(read_image(tmp_path / "webp.tif").rgb, rgb)


def test_the_stretch_is_measured_on_a_sample_of_valid_pixels():
    """The stretch of a large array is estimated from a sample; non-finite values are excluded and marked invalid."""
    array = np.linspace(0, 50_000, 3000 * 1200 * 3, dtype=np.float32).reshape(3000, 1200, 3)
    array[:900] = np.inf
    image = as_image(array)
    low, high = np.percentile(array[900:].astype(np.float64), (2, 98))
    assert image.record.stretch == pytest.approx((low, high), rel=1e-3)
    assert not image.valid[:900].any()
    assert image.valid[900:].all()
    expected = np.clip((array[900:] - low) / (high - low) * 255, 0, 255)
    assert np.abs(image.rgb[900:] - expected).max() <= 2
    assert (image.filled((1, 2, 3))[:900] == (1, 2, 3)).all()


def test_8_bit_arrays_and_pil_images_are_not_changed():
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert np.array_equal(as_image(rgb).rgb, rgb)
    assert np.array_equal(as_image(Image.fromarray(rgb)).rgb, rgb)
    assert np.array_equal(as_image(rgb[..., 0] > 99).rgb[..., 2], (rgb[..., 0] > 99) * 255)
    clear = as_image(np.dstack([rgb, (rgb[..., 0] > 99).astype(np.uint8)]))
    assert np.array_equal(clear.valid, rgb[..., 0] > 99)
    turned, exif = Image.fromarray(rgb), Image.Exif()
    exif[0x0112] = 6
    turned.getexif().update(exif)
    assert np.array_equal(as_image(turned).rgb, np.rot90(rgb, -1)), (
        "a PIL image must be rotated by its EXIF orientation, like a file"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_as_stored_is_the_inverse_of_upright(orientation):
    stored = np.arange(6).reshape(2, 3)
    out = np.zeros_like(upright(stored, orientation))
    as_stored(out, orientation)[:] = stored
    assert np.array_equal(out, upright(stored, orientation))


@pytest.mark.parametrize(("orientation", "quarter"), [(3, 2), (6, 1), (8, 3)])
def test_labels_turn_with_their_image(tmp_path, orientation, quarter):
    """Labels stored in the orientation of their image file are rotated with it; upright labels are not rotated."""
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(labels).save(tmp_path / "upright.png")
    Image.fromarray(np.rot90(labels, quarter).copy()).save(tmp_path / "stored.png")
    assert np.array_equal(read_labels(tmp_path / "upright.png", (4, 6), orientation), labels)
    # A rotation by 180 degrees keeps the size, so it cannot be detected and labels are taken as upright.
    if orientation != 3:
        assert np.array_equal(read_labels(tmp_path / "stored.png", (4, 6), orientation), labels)
    with pytest.raises(BadData, match="but its image"):
        read_labels(tmp_path / "upright.png", (5, 6), orientation)


def test_a_label_image_is_turned_by_its_own_exif(tmp_path):
    labels, exif = np.arange(24, dtype=np.uint8).reshape(4, 6), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(labels).copy()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_labels(tmp_path / "a.png", (4, 6), 6), labels)


def test_the_pixel_limit_is_an_error_and_can_be_removed(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (300, 200)).save(path)
    with pytest.raises(
        ImageError, match=r"a.png has 300 x 200 pixels, more than the limit of 1,000.*max_pixels=0.*_MAX_PIXELS=0"
    ):
        read_image(path, max_pixels=1000)
    monkeypatch.setenv("SKYSENSE_O_MAX_PIXELS", "1000")
    with pytest.raises(ImageError, match="more than the limit of 1,000"):
        read_image(path)
    assert read_image(path, max_pixels=0).size == (200, 300)
    monkeypatch.setenv("SKYSENSE_O_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="SKYSENSE_O_MAX_PIXELS 'many' is not a whole number"):
        read_image(path)


def test_pillows_own_limit_is_not_changed(tmp_path, monkeypatch):
    code = "from PIL import Image; was = Image.MAX_IMAGE_PIXELS; import skysense_o.data.encode, skysense_o.image_io;"
    code += "assert Image.MAX_IMAGE_PIXELS == was"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(tmp_path / "a.png").size == (200, 300)
    assert Image.MAX_IMAGE_PIXELS == 10


RADIANCE = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.png", RADIANCE, "a.png is not an image that can be read: use .jpg"),
        ("a.tif", b"II*\0\x08\0\0\0\xff\xff", "a.tif is cut short or damaged"),
        ("a.tif", b"<GDAL_WMTS><GetCapabilitiesUrl>http://x</GetCapabilitiesUrl></GDAL_WMTS>", "is not an image that"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "a.png is cut short or damaged"),
        ("a.jpg", b"\xff\xd8\xff" + b"\0" * 400, "a.jpg is cut short or damaged"),
        ("a.bmp", b"BM" + b"\xff" * 60, "a.bmp is cut short or damaged"),
        ("a.gif", b"GIF89a" + b"\0" * 9, "a.gif is cut short or damaged"),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 30, "a.webp is cut short or damaged"),
        ("a.vrt", b"<VRTDataset rasterXSize='3'", "a.vrt is not a readable VRT"),
    ],
)
def test_wrong_files_give_one_error_that_names_them(tmp_path, name, content, says):
    pytest.importorskip("rasterio")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=says):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    "error",
    [
        cv2.error("bad"),
        RuntimeError("Symlink loop"),
        OverflowError("int"),
        KeyError("k"),
        IndexError("9"),
        MemoryError(),
    ],
)
def test_each_error_of_a_decoder_becomes_an_image_error(error):
    with pytest.raises(ImageError, match="^town.png (is cut short or damaged|needs more memory)"), decoding("town.png"):
        raise error


def test_link_loops_and_names_that_are_not_utf8_are_errors(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises((ImageError, FileNotFoundError), match="a.png"):
        read_image(tmp_path / "a.png")
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.new("RGB", (6, 4), RED).save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", odd)
    assert read_image(os.fsdecode(odd)).rgb[0, 0].tolist() == list(RED)
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 6), 3000, np.uint16))
    os.rename(tmp_path / "deep.png", odd)
    with pytest.raises(ImageError, match=r"caf\\xe9.png has a name that is not UTF-8.*rename it") as caught:
        read_image(os.fsdecode(odd))
    str(caught.value).encode()  # the message can be encoded as UTF-8, so it can be printed


def test_images_without_valid_pixels_are_errors(tmp_path):
    Image.new("RGBA", (6, 4), (9, 9, 9, 0)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a.png has no valid pixel"):
        read_image(tmp_path / "a.png")


def test_image_size_decodes_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:-200])
    assert image_size(tmp_path / "a.jpg") == (90, 60)
    with pytest.raises(ImageError, match="cut short or damaged"):
        read_image(tmp_path / "a.jpg")


# Files from untrusted sources


@pytest.fixture
def server():
    """Start an HTTP server; return its address and the list of requests it receives."""
    requests = []

    class Handler(BaseRequestHandler):
        def handle(self):
            requests.append(self.request.recv(4096))
            self.request.sendall(b"HTTP/1.0 404 no\r\n\r\n")

    with TCPServer(("127.0.0.1", 0), Handler) as tcp:
        threading.Thread(target=tcp.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{tcp.server_address[1]}", requests
        tcp.shutdown()


VRT = (
    '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    '<SourceFilename relativeToVRT="0">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
    "</VRTDataset>"
)


@pytest.mark.parametrize("name", ["a.tif", "a.vrt", "a.png", "a.xml"])
@pytest.mark.parametrize(
    "text",
    [
        "<GDAL_WMTS><GetCapabilitiesUrl>{}/wmts?</GetCapabilitiesUrl></GDAL_WMTS>",
        "<WCS_GDAL><ServiceURL>{}/wcs?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>",
        '<GDAL_WMS><Service name="WMS"><ServerUrl>{}/wms?</ServerUrl></Service></GDAL_WMS>',
        VRT.replace("{}", "/vsicurl/{}/a.tif"),
        VRT.replace("{}", "{}/a.tif"),
        VRT.replace("{}", "WMS:{}/wms?"),
    ],
)
def test_no_file_causes_a_network_request(tmp_path, server, name, text):
    pytest.importorskip("rasterio")
    from skysense_o.scenes.raster import Raster

    address, requests = server
    (tmp_path / name).write_text(text.format(address))
    for read in (read_image, Raster):
        with pytest.raises(ImageError, match=name):
            read(tmp_path / name)
    assert not is_georeferenced(tmp_path / name)
    assert requests == []


def test_remote_overviews_and_network_file_systems_are_refused(tmp_path, server):
    rasterio = pytest.importorskip("rasterio")
    from odd_images import PLACE, colours, write

    from skysense_o.image_io import gdal_settings
    from skysense_o.scenes.raster import Raster

    address, requests = server
    path = write(tmp_path / "a.tif", colours(), photometric="RGB", **PLACE)
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{address}/a.ovr")
    with pytest.raises(ImageError, match="refers to another file for its overviews, which needs --remote"):
        Raster(path)
    assert np.array_equal(read_image(path).rgb, colours()), "Pillow reads no overviews, so it must still read the image"
    with gdal_settings():
        for system in ("/vsicurl/", "/vsicurl_streaming/", "/vsigs/", "/vsis3/"):
            with pytest.raises(rasterio.errors.RasterioIOError):
                rasterio.open(f"{system}{address}/a.tif")
    assert requests == []


def test_nested_vrts_are_checked(tmp_path):
    pytest.importorskip("rasterio")
    (tmp_path / "inner.vrt").write_text(VRT.format("/vsicurl/http://127.0.0.1:9/a.tif"))
    (tmp_path / "outer.vrt").write_text(VRT.format(tmp_path / "inner.vrt"))
    with pytest.raises(ImageError, match="inner.vrt refers to '/vsicurl/.*which is not a local image"):
        read_image(tmp_path / "outer.vrt")
    (tmp_path / "loop.vrt").write_text(VRT.format(tmp_path / "loop.vrt"))
    with pytest.raises(ImageError, match="nested too deeply"):
        read_image(tmp_path / "loop.vrt")


# Without the extra "geo"


def test_without_gdal_16_bit_images_are_read_or_refused_with_a_hint(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    from odd_images import PLACED, PLAIN

    def made(kind: str, table=PLAIN):
        folder = tmp_path / kind.replace(" ", "_").replace(".", "")
        folder.mkdir()
        return table[kind](folder)

    readable = ("png 16 bits", "png 16 bits and alpha", "tiff 16 bits by pixel", "png 16 bits, orientation 6",
                "tiff 16 bits, orientation 8", "tiff grey float", "pgm of 16 bits", "ppm of 16 bits")  # fmt: skip
    files = {kind: made(kind) for kind in readable}
    expected = {kind: read_image(file.path) for kind, file in files.items()}
    refused = [made(kind).path for kind in ("tiff 16 bits by band", "tiff palette of 16 bits", "tiff uint32")]
    refused.append(made("erdas .img", PLACED).path)
    placed = made("png and .PGW", PLACED)
    for room in ("reading", "gdal_access"):
        monkeypatch.setattr(f"skysense_o.image_io.{room}.has_geo", lambda: False)
    for kind, file in files.items():
        image = read_image(file.path)
        assert np.array_equal(image.filled(), expected[kind].filled()), kind
    for path in refused:
        with pytest.raises(ImageError, match=r'pip install "skysense_o\[geo\]"'):
            read_image(path)
    assert is_georeferenced(placed.path)
    assert "its georeference is lost" in read_image(placed.path).record.notes[0]


MEMORY = """
import resource, sys, threading, time
from skysense_o.image_io import read_image
import rasterio
def now():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = now(); most = before; done = False
def watch():
    global most
    while not done:
        most = max(most, now()); time.sleep(0.01)
thread = threading.Thread(target=watch); thread.start()
image = read_image(sys.argv[1], max_pixels=0)
done = True; thread.join()
print(image.rgb.shape[0], image.rgb[-1, -1, 0], most - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_16_bit_png_takes_three_bytes_per_pixel_plus_200_mib(tmp_path, channels):
    """Regression: a large 16-bit PNG took 10.8 GiB, because it was read twice and stretched as a whole in float."""
    side = 9000
    ramp = (np.arange(side, dtype=np.uint32) * 7 % 60_000).astype(np.uint16)
    image = np.broadcast_to(ramp[:, None, None], (side, side, channels))
    cv2.imwrite(str(tmp_path / "a.png"), np.ascontiguousarray(image), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    del image
    code = [sys.executable, "-c", MEMORY, str(tmp_path / "a.png")]
    done = subprocess.run(code, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    height, _, grown = map(int, done.stdout.split())
    assert height == side
    assert grown <= 3 * side * side + 200 * 2**20, f"{grown / 2**20:.0f} MiB"


def test_two_stars_find_each_file_once(tmp_path):
    """Regression: with a link to a parent folder, `**` used to find the same file 41 times."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    for name in ("a/x.png", "a/b/y.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    from skysense_o.image_io import find_images

    found = find_images([f"{tmp_path}/**/*.png"])
    assert sorted(str(path.relative_to(tmp_path)) for path in found) == ["a/b/y.png", "a/x.png"]
