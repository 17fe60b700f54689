"""Tests of whole scenes: same grid, no seams, same bytes after an interruption, errors that say what to do."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')
import rasterio
from conftest import ROOT
from made_scenes import UTM, WORDS, colour_predictor, fields, write_scene
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine
from scenes.test_raster import area

from skysense_o.inference.sliding import segment_array
from skysense_o.scenes.export import save_scene
from skysense_o.scenes.options import FORMATS, SceneOptions, SceneOutputs
from skysense_o.scenes.run import run_scene
from skysense_o.vocabulary import Vocabulary

SMALL = {"window": 64, "overlap": 32}


def make(path, folder, formats=("geotiff",), predictor=None, words=WORDS, **options):
    """Run a scene; return {end of the file name: path} of the written files, and the table of areas."""
    options = SceneOptions(**{**SMALL, **options})
    written, rows = run_scene(predictor or colour_predictor(), path, words, SceneOutputs(folder, formats), options)
    return {p.name.removeprefix(path.stem): p for p in written}, rows


def labels_of(path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def expected_labels(pixels: np.ndarray) -> np.ndarray:
    """Return the labels of ColourModel for the whole image, computed with torch."""
    import torch
    import torch.nn.functional as F

    h, w = pixels.shape[1:]
    x = F.pad(torch.from_numpy(pixels)[None].float() / 255, (0, -w % 32, 0, -h % 32), mode="reflect")
    grid = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear", align_corners=False)
    return grid[0, :, :h, :w].argmax(0).numpy()


RPCS = RPC(
    height_off=100, height_scale=500, lat_off=50, lat_scale=0.1, line_off=50, line_scale=50, long_off=10,
    long_scale=0.1, samp_off=60, samp_scale=60, line_num_coeff=[0, 0, -1, *[0] * 17], line_den_coeff=[1, *[0] * 19],
    samp_num_coeff=[0, 1, *[0] * 18], samp_den_coeff=[1, *[0] * 19], err_bias=0, err_rand=0,
)  # fmt: skip
GCPS = (
    [GroundControlPoint(r, c, 10 + c / 1e3, 50 - r / 1e3) for r, c in ((0, 0), (0, 119), (99, 0), (99, 119))],
    rasterio.crs.CRS.from_epsg(4326),
)
GEOREFERENCES = {
    "utm": UTM,
    "degrees": {"crs": "EPSG:4326", "transform": Affine(0.00013, 0, 10.1, 0, -0.00017, 50.3)},
    "rotated": {
        "crs": "EPSG:32633",
        "transform": Affine.translation(5e5, 5e6) @ Affine.rotation(31) @ Affine.scale(2, -3),
    },
    "transform without CRS": {"crs": None, "transform": UTM["transform"]},
    "nowhere": {"crs": None, "transform": None},
    "gcps": {"crs": None, "transform": None, "gcps": GCPS},
    "rpcs": {"crs": None, "transform": None, "rpcs": RPCS},
    "own CRS": {"crs": "+proj=laea +lat_0=47.3 +lon_0=9.1 +ellps=GRS80 +units=m", "transform": UTM["transform"]},
}  # fmt: skip


@pytest.mark.parametrize("name", GEOREFERENCES)
def test_the_result_has_the_georeference_of_the_scene(tmp_path, name):
    pixels = fields(100, 120)
    path = write_scene(tmp_path / "s.tif", pixels, **GEOREFERENCES[name])
    files, _ = make(path, tmp_path / "out", ("geotiff", "confidence"))
    for end in ("_labels.tif", "_confidence.tif"):
        with rasterio.open(path) as source, rasterio.open(files[end]) as result:
            assert result.shape == source.shape
            assert tuple(result.transform) == tuple(source.transform)
            assert result.crs == source.crs
            assert (result.crs and result.crs.to_wkt()) == (source.crs and source.crs.to_wkt())
            pairs = zip(source.gcps[0], result.gcps[0], strict=True)
            assert all((a.row, a.col, a.x, a.y) == (b.row, b.col, b.x, b.y) for a, b in pairs)
            assert result.gcps[1] == source.gcps[1]
            assert result.rpcs == source.rpcs
            assert result.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert np.array_equal(labels_of(files["_labels.tif"]), expected_labels(pixels))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s_confidence.tif", "s_labels.tif"]


def test_a_png_is_georeferenced_by_a_world_file(tmp_path):
    pixels = fields(60, 80)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "p.png")
    (tmp_path / "p.pgw").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    files, _ = make(tmp_path / "p.png", tmp_path / "out")
    with rasterio.open(files["_labels.tif"]) as result:
        assert result.transform == Affine(0.5, 0, 1000, 0, -0.5, 2000)
        assert result.crs is None
    assert np.array_equal(labels_of(files["_labels.tif"]), expected_labels(pixels))


def test_the_label_map_contains_classes_colors_and_settings(tmp_path):
    path = write_scene(tmp_path / "s.tif", fields(700, 600))
    files, rows = make(path, tmp_path / "out", ("geotiff", "confidence"), window=256)
    with rasterio.open(files["_labels.tif"]) as result:
        assert result.tags()["CLASS_1"] == "green"
        assert json.loads(result.tags()["SKYSENSE_O_WORDS"]) == [["red"], ["green"], ["blue"]]
        assert result.nodata == 255
        assert len(set(list(result.colormap(1).values())[:3])) == 3
        assert result.overviews(1) == [2]
        assert result.block_shapes == [(512, 512)]
        assert result.compression.name == "deflate"
        counts = np.bincount(result.read(1).ravel(), minlength=3)
    assert [row["pixels"] for row in rows] == counts[:3].tolist()
    assert sum(row["area_m2"] for row in rows) == 700 * 600 * 4
    with rasterio.open(files["_confidence.tif"]) as result:
        probability = result.read(1) * result.scales[0]
        assert 0.3 < probability.mean() < 1
        assert probability.max() <= 1


def test_more_than_254_classes_are_stored_in_16_bits(tmp_path):
    pixels = fields(40, 60)
    pixels[:, :9] = 0
    path = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    files, _ = make(path, tmp_path / "out", words=Vocabulary.of([f"thing {i}" for i in range(300)]))
    with rasterio.open(files["_labels.tif"]) as result:
        assert result.dtypes == ("uint16",)
        assert result.nodata == 65535
        assert (result.read(1)[:9] == 65535).all()


def test_nodata_stays_nodata_and_costs_no_window(tmp_path):
    pixels = fields(300, 300)
    pixels[:, :, 100:] = 0
    predictor = colour_predictor()
    path = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    files, rows = make(path, tmp_path / "out", ("geotiff", "confidence"), predictor)
    labels = labels_of(files["_labels.tif"])
    assert (labels[:, 100:] == 255).all()
    assert (labels[:, :100] < 3).all()
    assert sum(row["pixels"] for row in rows) == 300 * 100
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert (labels_of(files["_confidence.tif"])[:, 100:] == 255).all()
    assert len(predictor.model.seen) == 9 * 4, "of 9 x 9 windows, only the 9 x 4 with a valid pixel must run"


def test_an_area_of_interest_limits_the_windows_and_the_result(tmp_path):
    path = write_scene(tmp_path / "s.tif", fields(300, 300))
    square = area(tmp_path, [(200, 200), (260, 200), (260, 260), (200, 260), (200, 200)])
    predictor = colour_predictor()
    files, rows = make(path, tmp_path / "out", predictor=predictor, aoi=square)
    inside = labels_of(files["_labels.tif"]) != 255
    assert inside[203:257, 203:257].all()
    assert sum(row["pixels"] for row in rows) == inside.sum() == pytest.approx(3600, rel=0.05)
    assert len(predictor.model.seen) <= 16


def test_the_model_sees_the_requested_gsd_and_the_result_keeps_the_grid(tmp_path):
    pixels = np.repeat(np.repeat(fields(60, 80), 4, axis=1), 4, axis=2)
    path = write_scene(tmp_path / "s.tif", pixels)
    predictor = colour_predictor()
    files, _ = make(path, tmp_path / "out", predictor=predictor, gsd=8)
    assert sum(w.shape[0] for w in predictor.model.seen) < 10, (
        "the model must see the scene at 60 x 80 pixels, which needs few windows"
    )
    labels = labels_of(files["_labels.tif"])
    assert labels.shape == (240, 320)
    assert (labels == pixels.argmax(0)).mean() > 0.9


def test_the_conversion_to_rgb_is_logged_once(tmp_path, caplog):
    path = write_scene(tmp_path / "s.tif", fields(40, 60)[:1].astype("uint16") * 9)
    with caplog.at_level("INFO"):
        make(path, tmp_path / "out")
    assert caplog.text.count("s.tif: band 1 is used as red, green and blue") == 1
    assert caplog.text.count("s.tif: values of uint16 from") == 1


def test_the_scale_is_logged_with_a_warning_if_it_is_far_from_training(tmp_path, caplog):
    path, predictor = write_scene(tmp_path / "s.tif", fields(40, 60)), colour_predictor()
    with caplog.at_level("INFO"):
        make(path, tmp_path / "out", predictor=predictor)
        assert "s.tif: 2 m per pixel" in caplog.text
        assert "trained at" not in caplog.text, "there must be no warning if the weights do not state their scale"
        predictor.known_gsd = (0.5, 0.5)
        make(path, tmp_path / "out", predictor=predictor)
        assert "s.tif: the weights were trained at 0.5 m per pixel: expect poor results\n" in caplog.text
        predictor.known_gsd = (20, 30)
        make(path, tmp_path / "out", predictor=predictor)
        assert "20 to 30 m per pixel: expect poor results, or try --gsd 20" in caplog.text
        predictor.known_gsd = (0.5, 0.5)
        caplog.clear()
        make(path, tmp_path / "out", predictor=predictor, gsd=0.6)
        assert "trained at" not in caplog.text


def all_bytes(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def dies_after(monkeypatch, writes: int, error: Exception):
    """Make writing fail after some rows, as if the process were killed or the disk were full."""
    real, count = os.pwrite, iter(range(10**9))

    def pwrite(*args):
        if next(count) >= writes:
            raise error
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)


def interrupt_and_resume(tmp_path, monkeypatch, predictor, **options):
    """Interrupt a run and resume it; return the number of model calls of an uninterrupted and of the resumed run."""
    path = write_scene(tmp_path / "s.tif", fields(280, 560))
    formats, calls = ("geotiff", "confidence", "areas", "coco"), []
    window_model = predictor.window_model

    def counting(*args):
        model = window_model(*args)
        return lambda windows: calls.append(len(windows)) or model(windows)

    monkeypatch.setattr(predictor, "window_model", counting)
    make(path, tmp_path / "whole", formats, predictor, **options)
    whole = len(calls)
    with monkeypatch.context() as patch:
        dies_after(patch, 500, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            make(path, tmp_path / "cut", formats, predictor, **options)
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["s.work"], (
        "an interrupted run must leave no file under its final name"
    )
    before = len(calls)
    make(path, tmp_path / "cut", formats, predictor, **options)
    assert all_bytes(tmp_path / "cut") == all_bytes(tmp_path / "whole")
    return whole, len(calls) - before


def test_an_interrupted_scene_resumes_and_gives_the_same_bytes(tmp_path, monkeypatch, mini):
    words = Vocabulary.parse("water,land,road")
    whole, rest = interrupt_and_resume(tmp_path, monkeypatch, mini, words=words, window=128)
    assert rest < whole, "a resumed run must not repeat finished windows"


def test_a_scene_of_several_strips_resumes_as_well(tmp_path, monkeypatch):
    whole, rest = interrupt_and_resume(tmp_path, monkeypatch, colour_predictor(), memory=2**18)
    assert rest < 0.8 * whole


def test_a_run_with_other_settings_does_not_resume(tmp_path, monkeypatch, caplog):
    path = write_scene(tmp_path / "s.tif", fields(200, 300))
    with monkeypatch.context() as patch:
        dies_after(patch, 150, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            make(path, tmp_path / "out")
    files, _ = make(path, tmp_path / "out", bands=(3, 2, 1))
    assert "belongs to a run with other settings" in caplog.text
    assert np.array_equal(labels_of(files["_labels.tif"]), expected_labels(fields(200, 300)[::-1].copy()))


def test_a_full_disk_is_an_error_and_leaves_no_partial_file(tmp_path, monkeypatch):
    path = write_scene(tmp_path / "s.tif", fields(200, 300))
    with monkeypatch.context() as patch:
        dies_after(patch, 150, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="the disk is full"):
            make(path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s.work"]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 1000}))
        with pytest.raises(OSError, match="MB free and this scene needs"):
            make(path, tmp_path / "out")
    make(path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s_labels.tif"]


def test_scenes_that_fail_leave_no_file_open(tmp_path, monkeypatch):
    path = write_scene(tmp_path / "s.tif", fields(200, 300))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with monkeypatch.context() as patch:
            dies_after(patch, 0, ValueError("of the disk"))
            with pytest.raises(ValueError, match="of the disk"):
                make(path, tmp_path / "out")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1, (
        "a failed scene may leave at most one file open, which belongs to a cache"
    )


def test_damage_in_the_middle_leaves_no_partial_file(tmp_path):
    """A scene damaged in the middle leaves no output file. Its overview is intact, so the error comes while reading."""
    path = write_scene(
        tmp_path / "s.tif", fields(2200, 1100), tiled=True, blockxsize=256, blockysize=256, compress="deflate"
    )
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2])
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_2_3", "TIFF", bidx=1))
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + 64] = bytes(64)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="cut short or damaged: rows"):
        make(path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s.work"]


def test_several_processes_give_the_same_as_one(tmp_path):
    from skysense_o.image_io import gdal_settings
    from skysense_o.scenes.raster import Raster
    from skysense_o.scenes.scene import label_scene

    path = write_scene(tmp_path / "s.tif", fields(200, 300))
    files, _ = make(path, tmp_path / "one")
    with gdal_settings(), Raster(path) as raster:
        for process in (1, 2, 0):
            scene = label_scene(
                colour_predictor(), raster, WORDS, tmp_path / "three/s.work", SceneOptions(**SMALL),
                process=process, processes=3,
            )  # fmt: skip
        save_scene(scene, SceneOutputs(tmp_path / "three", ("geotiff",)))
    assert np.array_equal(labels_of(tmp_path / "three/s_labels.tif"), labels_of(files["_labels.tif"]))


def test_the_input_is_not_changed(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    path = write_scene(folder / "s.tif", fields(100, 120))
    before = path.read_bytes(), path.stat().st_mtime_ns
    path.chmod(0o444)
    make(path, folder, tuple(FORMATS))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert not [p.name for p in folder.iterdir() if p.name.endswith((".aux.xml", ".ovr", ".part", ".work"))]


SHARED = ROOT.parent / "shared/data/scenes"
REAL = ["itaipu_landsat8_rgb16.tif", "m_4709963_se_14_1_20090818.tif", "landsat_1985.tif"]
DUBAI = Vocabulary.parse("water,land,road,building,vegetation")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real scenes of ../shared/data/scenes")
@pytest.mark.parametrize("name", REAL)
def test_real_scenes_have_every_export_and_their_areas_add_up(tmp_path, mini, name):
    import geopandas

    files, rows = make(SHARED / name, tmp_path, tuple(FORMATS), mini, DUBAI, window=256, overlap=64)
    with rasterio.open(SHARED / name) as source, rasterio.open(files["_labels.tif"]) as result:
        assert (result.shape, result.crs, result.transform) == (source.shape, source.crs, source.transform)
        valid = source.dataset_mask() > 0
        assert np.array_equal(result.read(1) != 255, valid)
        crs = source.crs
    table = geopandas.read_file(files[".gpkg"], layer="regions")
    assert table.crs == crs
    assert table.geometry.is_valid.all()
    for row in rows:
        mine = table[table.class_id == row["id"]]
        assert mine.pixels.sum() == row["pixels"]
        assert mine.area_m2.sum() == pytest.approx(row["area_m2"], rel=1e-9)
    if crs.is_projected:
        assert np.allclose(table.geometry.area, table.area_m2)
    else:
        geod = table.crs.get_geod()  # it connects corners by geodesics, and pixels end at parallels: up to 1.2e-4 apart
        assert np.allclose([abs(geod.geometry_area_perimeter(g)[0]) for g in table.geometry], table.area_m2, rtol=3e-4)
    world = geopandas.read_file(files[".geojson"])
    assert world.crs.to_epsg() == 4326
    assert len(world) == len(table)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real scenes of ../shared/data/scenes")
def test_no_seams_on_a_real_scene(mini):
    """Without overlap, labels change more often at the borders of windows; an overlap removes 90 % of this excess.

    Changes are divided by those in a prediction of the whole scene in one window, so the content of the scene cancels
    out. Only lines on the grid of 16 pixels are compared. Horizontal and vertical borders of windows are
    counted together. This scene has only ten, too few to measure each direction alone: its excess would vary by 30 %
    up or down by chance.
    """
    with rasterio.open(SHARED / REAL[1]) as file:
        pixels = file.read([1, 2, 3])
    whole, _ = segment_array(pixels, DUBAI, mini.model, window=960, overlap=0)
    excess = {}
    window = 256  # the default overlap is a quarter; windows of 128 pixels have too few borders to compare
    for overlap in (64, 0):
        tiled, _ = segment_array(pixels, DUBAI, mini.model, window=window, overlap=overlap)
        counts = np.zeros(4)
        for axis in (0, 1):
            mine, its = ((np.diff(x.astype(int), axis=axis) != 0).sum(axis=1 - axis) for x in (tiled, whole))
            line = np.arange(1, len(mine) + 1)
            inside = line < len(mine) - window  # leave out the last windows, which end at the scene's edge
            border = (line % (window - overlap) == 0) | ((line - overlap) % (window - overlap) == 0) & (line > overlap)
            other = (line % 16 == 0) & ~border & inside
            border &= inside
            counts += [mine[border].sum(), its[border].sum(), mine[other].sum(), its[other].sum()]
        excess[overlap] = (counts[0] / counts[1]) / (counts[2] / counts[3])
    print("changes at borders relative to elsewhere, by overlap:", excess)
    assert excess[0] > 1.25, "without overlap there must be visible seams, or else the test could not fail"
    assert excess[64] - 1 < 0.1 * (excess[0] - 1)


def test_without_gdal_images_work_and_scenes_say_what_to_install(tmp_path):
    Image.fromarray(fields(40, 60).transpose(1, 2, 0)).save(tmp_path / "p.png")
    write_scene(tmp_path / "s.tif", fields(40, 60))
    code = (
        "import sys\n"
        "for name in ('rasterio', 'pyproj', 'shapely', 'geopandas', 'pyogrio', 'scipy'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT / 'demo')!r}); import demo\n"
        "def call(*words):\n"
        f"    sys.argv = ['demo.py', '--classes', 'road,tree', '--output', {str(tmp_path / 'out')!r}, *words]\n"
        "    print('code', demo.exit_code(demo.run))\n"
        f"call('--input', {str(tmp_path / 'p.png')!r}, {str(tmp_path / 's.tif')!r})\n"
        f"call('--input', {str(tmp_path / 's.tif')!r}, '--save', 'geotiff')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert [line for line in done.stdout.split("\n") if "code" in line] == ["code 0", "code 2"], done.stderr
    assert "s.tif is read as a plain image, its georeference is lost" in done.stderr
    assert 'which is not installed: pip install "skysense_o[geo]"' in done.stderr


DEMO = "demo/demo.py"


def test_the_demo_runs_a_scene_with_all_options(call, tmp_path):
    path = write_scene(tmp_path / "s.tif", np.concatenate([fields(80, 100), fields(80, 100)[:1]]))
    options = (
        "--bands",
        "4,3,2",
        "--gsd",
        "4",
        "--memory",
        "500MB",
        "--window",
        "64",
        "--min-area",
        "100",
        "--simplify",
        "1",
    )
    save = "geotiff,confidence,gpkg,geojson,coco,boxes,areas,overlay,json"
    code, text, err = call(
        DEMO, "--input", path, "--classes", "water,land", "--background", "sky", "--output", tmp_path / "out",
        "--save", save, *options,
    )  # fmt: skip
    assert code == 0, err
    ends = ("_labels.tif", "_confidence.tif", ".gpkg", ".geojson", "_coco.json", "_boxes.json", "_areas.csv",
            "_overlay.png", ".json")  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"s{end}" for end in ends}
    assert "m2" in text
    body = json.loads((tmp_path / "out/s.json").read_text())
    assert [row["name"] for row in body["classes"]] == ["none", "water", "land"]
    assert body["settings"]["bands"] == [4, 3, 2]
    assert sum(row["area_m2"] for row in body["classes"]) == 80 * 100 * 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--bands": "5,1,2"}, "it has bands 1 to 3"),
        ({"--bands": "red"}, "--bands 'red' are not numbers"),
        ({"--memory": "much"}, "memory 'much' is not a size of 1 MiB or more: write it as 2GiB"),
        ({"--gsd": "-1"}, "--gsd -1.0 is out of range"),
        ({"--aoi": "nowhere.geojson"}, "no area of interest at 'nowhere.geojson'"),
        ({"--window": "100"}, "a window of 100 pixels does not fit the model"),
        ({"--min-area": "-1"}, "--min-area and --simplify are out of range: 0 or more"),
        ({"--save": "geotiff,probabilities"}, "--save probabilities is not for georeferenced scenes"),
    ],
)
def test_wrong_options_get_one_line_and_no_output(call, tmp_path, changes, says):
    path = write_scene(tmp_path / "s.tif", fields(80, 100))
    options = {"--input": path, "--classes": "road,tree", "--output": tmp_path / "out", **changes}
    code, _, err = call(DEMO, *(word for pair in options.items() for word in pair))
    assert code == 2
    assert says in err
    assert not (tmp_path / "out").exists()


def test_a_plain_image_can_be_segmented_in_windows(mini):
    image = fields(100, 150).transpose(1, 2, 0)
    result = mini(image, "water,land,road", window=64)
    assert result.labels.dtype == np.uint8
    assert result.labels.shape == (100, 150)
    assert result.presence is None
    with pytest.raises(ValueError, match="not kept in windows"):
        mini(image, "water,land", window=64, probabilities=True)


@pytest.mark.slow
def test_two_ray_workers_segment_an_archive(call, tmp_path):
    pytest.importorskip("ray", reason='pip install -e ".[archive]"')
    for name in ("a", "b", "c"):
        write_scene(tmp_path / f"{name}.tif", fields(60, 80))
    (tmp_path / "d.tif").write_text("no raster")
    classes = "water,land,Kiesgrube"
    words = ("--classes", classes, "--output", tmp_path / "out", "--workers", "2", "--cpus", "0.5")
    code, text, err = call("tools/segment_archive.py", "--input", tmp_path / "*.tif", *words)
    assert code == 1
    assert err.count('WARNING: "Kiesgrube" is far from every English word of the training') == 1
    assert "error: " in text
    assert "d.tif is not a raster that can be read" in text
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {f"{name}{end}" for name in "abc" for end in ("_labels.tif", "_areas.csv")}
    assert call("demo/demo.py", "--input", tmp_path / "a.tif", "--classes", classes, "--output", tmp_path / "one",
                "--save", "geotiff")[0] == 0  # fmt: skip
    assert (tmp_path / "one/a_labels.tif").read_bytes() == (tmp_path / "out/a_labels.tif").read_bytes()


@pytest.mark.slow
def test_two_processes_of_torchrun_share_a_scene(tmp_path):
    path = write_scene(tmp_path / "s.tif", fields(280, 300))
    words = ["--input", path, "--classes", "water,land,road", "--save", "geotiff", "--window", "64", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for folder, start in (("two", launch), ("one", [])):
        command = [sys.executable, *start, ROOT / DEMO, *words, "--output", tmp_path / folder]
        done = subprocess.run([str(w) for w in command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [p.name for p in (tmp_path / folder).iterdir()] == ["s_labels.tif"]
    assert np.array_equal(labels_of(tmp_path / "two/s_labels.tif"), labels_of(tmp_path / "one/s_labels.tif"))
