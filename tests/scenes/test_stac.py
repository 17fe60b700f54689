"""Tests of STAC items as input and output."""

from __future__ import annotations

import json
import socket

import pytest

pystac = pytest.importorskip("pystac", reason='pip install "skysense_o[geo]"')

from made_scenes import WORDS, colour_predictor, fields, write_scene

from skysense_o.cli.arguments import add_scene_arguments, parser_of
from skysense_o.cli.request import check_request
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.scenes.run import run_scene
from skysense_o.scenes.stac import item_image

TIFF = "image/tiff; application=geotiff"


@pytest.fixture
def item(tmp_path):
    """Write a STAC item with one scene and a thumbnail; return its path."""
    write_scene(tmp_path / "s.tif", fields(64, 96))
    assets = {
        "visual": {"href": "./s.tif", "type": TIFF, "roles": ["data"]},
        "thumbnail": {"href": "s.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
        "metadata": {"href": "s.xml", "type": "application/xml"},
    }
    body = {"type": "Feature", "stac_version": "1.1.0", "id": "s", "assets": assets}
    body["properties"] = {"datetime": "2026-05-04T10:11:12Z"}
    (tmp_path / "s.json").write_text(json.dumps(body))
    return tmp_path / "s.json"


def changed(item, **assets):
    body = json.loads(item.read_text())
    body["assets"].update(assets)
    item.write_text(json.dumps(body))
    return item


def test_the_image_of_an_item(item):
    assert item_image(item) == item.parent / "s.tif"
    other = {"href": (item.parent / "s.tif").as_uri(), "type": TIFF, "roles": ["data"]}
    changed(item, second=other)
    with pytest.raises(ValueError, match="2 assets that are images: choose one with --asset KEY: visual, second"):
        item_image(item)
    assert item_image(item, "second") == item.parent / "s.tif"
    with pytest.raises(ValueError, match="has no asset 'third'; its assets are visual, thumbnail, metadata, second"):
        item_image(item, "third")


@pytest.mark.parametrize(
    "text", ["[]", '{"type": "Feature"}', '{"type": "FeatureCollection", "stac_version": "1.1.0"}']
)
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json is not a STAC item"):
        item_image(tmp_path / "a.json")


def test_an_asset_on_a_network_is_refused(item):
    changed(item, visual={"href": "https://example.org/s.tif", "type": TIFF})
    with pytest.raises(ValueError, match="https://example.org/s.tif is not a local file: download it"):
        item_image(item)


def test_the_command_line_takes_an_item(item, tmp_path):
    parser = parser_of("", add_scene_arguments)
    words = ["--classes", "red,green,blue", "--save", "geotiff,stac", "--output", str(tmp_path / "out")]
    request = check_request(parser.parse_args([str(item), *words]))
    assert request.paths == [tmp_path / "s.tif"]
    assert request.outputs(request.paths[0], "s").item == item


def test_the_results_are_an_item(item, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("the schemas come with pystac")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    outputs = SceneOutputs(tmp_path / "out", ("geotiff", "gpkg", "json", "areas", "stac"), item=item)
    options = SceneOptions(window=64, overlap=16)
    written, rows = run_scene(colour_predictor(), tmp_path / "s.tif", WORDS, outputs, options, progress=False)
    assert written[-1].name == "s_item.json"
    read = pystac.Item.from_file(written[-1])
    read.validate()
    assert read.datetime.isoformat() == "2026-05-04T10:11:12+00:00"
    assert read.properties["skysense_o:datetime_from"] == "the source item"
    assert read.properties["skysense_o:classes"] == rows
    assert read.properties["gsd"] == pytest.approx(2, rel=0.01)
    assert set(read.assets) == {"labels", "gpkg", "json", "areas"}
    for asset in read.assets.values():
        assert (tmp_path / "out" / asset.href).is_file()
    assert read.assets["labels"].media_type == pystac.MediaType.COG
    (link,) = read.get_links("derived_from")
    assert not link.href.startswith("/"), "the link must be relative, because absolute paths hold only on this machine"
    assert (tmp_path / "out" / link.href).resolve() == item.resolve()
    west, south, east, north = read.bbox
    assert (west, north) == pytest.approx((15, 46.95), abs=0.01), (
        "the corner is at 500,000 m east, 5,200,000 m north in UTM zone 33"
    )
    assert 0 < east - west < 0.01
    assert 0 < north - south < 0.01
    with pytest.raises(ValueError, match="s_item.json has the results of a scene, not its image") as error:
        item_image(written[-1])
    assert f"give {item} instead" in str(error.value)
    assert item_image(written[-1], "labels").name == "s_labels.tif", "a named asset is taken as it is"


def test_a_scene_at_the_antimeridian(tmp_path):
    from rasterio.transform import Affine

    place = {"crs": "EPSG:4326", "transform": Affine(0.01, 0, 179.7, 0, -0.01, 10)}
    path = write_scene(tmp_path / "a.tif", fields(64, 64), **place)
    outputs = SceneOutputs(tmp_path / "out", ("geotiff", "stac"))
    options = SceneOptions(window=64, overlap=16)
    written, _ = run_scene(colour_predictor(), path, WORDS, outputs, options, progress=False)
    read = pystac.Item.from_file(written[-1])
    assert read.geometry["type"] == "MultiPolygon"
    assert read.bbox == pytest.approx([179.7, 9.36, -179.66, 10])
    assert read.properties["skysense_o:datetime_from"] == "the image file's time of change"
    (link,) = read.get_links("via")
    assert (link.rel, link.href, link.media_type) == ("via", "../a.tif", "image/tiff")


def test_without_a_place_there_is_no_item(tmp_path):
    path = write_scene(tmp_path / "p.tif", fields(64, 64), crs=None, transform=None)
    with pytest.raises(ValueError, match="STAC needs longitudes"):
        run_scene(colour_predictor(), path, WORDS, SceneOutputs(tmp_path / "out", ("stac",)), progress=False)
