"""Tiny copies of every data set, with its publisher's folders, file names and label values.

Label values are listed by class name as on the publishers' pages, so wrong ids in our tables or scripts are noticed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import load_classes

SIZE = (24, 36)
Truth = dict[str, np.ndarray]  # {"split/stem": (H,W) array of class names}, where "" means an ignored pixel

ISPRS = {
    "others": (255, 0, 0), "road": (255, 255, 255), "building": (0, 0, 255), "grass": (0, 255, 255),
    "tree": (0, 255, 0), "car": (255, 255, 0), "": (0, 0, 0),
}  # fmt: skip
ISAID = {
    "others": (0, 0, 0), "boat": (0, 0, 63), "storage tank": (0, 63, 63), "baseball infield": (0, 63, 0),
    "tennis court": (0, 63, 127), "basketball court": (0, 63, 191), "running track field": (0, 63, 255),
    "bridge": (0, 127, 63), "truck or bus": (0, 127, 127), "car": (0, 0, 127), "helicopter": (0, 0, 191),
    "swimming pool": (0, 0, 255), "roundabout": (0, 191, 127), "soccer field": (0, 127, 191),
    "air plane": (0, 127, 255), "pier": (0, 100, 155),
}  # fmt: skip
UAVID = {
    "Others": (0, 0, 0), "Building": (128, 0, 0), "Road": (128, 64, 128), "Static Car": (192, 0, 192),
    "Tree": (0, 128, 0), "Low Vegetation": (128, 128, 0), "Humans": (64, 64, 0), "Moving Car": (64, 0, 128),
}  # fmt: skip
SOTA = {
    "others": 255, "large vehicle": 0, "swimming pool": 1, "helicopter": 2, "bridge": 3, "plane": 4, "ship": 5,
    "soccer ball field": 6, "small vehicle": 9, "harbor": 14, "helipad": 17,
}  # fmt: skip
FAST = {
    "others": 255,
    "A220": 0,
    "A321": 1,
    "baseball field": 5,
    "boeing737": 7,
    "C919": 13,
    "tracker": 31,
    "warship": 36,
}
SIOR = {"others": 255, "airplane": 0, "airport": 1, "dam": 8, "golf field": 9, "ship": 13, "windmill": 19}
OEM = {"Others": 0, "Bareland": 1, "Rangeland": 2, "Developed space": 3, "Road": 4, "Tree": 5, "Water": 6,
       "Agriculture land": 7, "Building": 8}  # fmt: skip
LOVEDA = {"": 0, "others": 1, "building": 2, "road": 3, "water": 4, "barren": 5, "forest": 6, "agriculture": 7}
FLOODNET = {"Others": 0, "Building Flooded": 1, "Building Non-Flooded": 2, "Road Flooded": 3, "Road Non-Flooded": 4,
            "Water": 5, "Tree": 6, "Vehicle": 7, "Pool": 8, "Grass": 9}  # fmt: skip
UDD5 = {"vegetation": (107, 142, 35), "building": (102, 102, 156), "road": (128, 64, 128), "vehicle": (0, 0, 142),
        "background": (0, 0, 0)}  # fmt: skip
VDD = {"background": 0, "facade": 1, "road": 2, "vegetation": 3, "vehicle": 4, "roof": 5, "water": 6}
FBP = {"others": 0, "industrial area": 1, "paddy field": 2, "river": 11, "snow": 16, "road": 21, "airport": 24}
COCO = {"person": 0, "bicycle": 1, "stop sign": 12, "parking meter": 13, "bench": 14, "hat": None, "backpack": 26,
        "umbrella": 27, "handbag": 30, "toothbrush": 89, "banner": 91, "blanket": 92, "wood": 181, "": 255}  # fmt: skip
del COCO["hat"]  # COCO never used id 25
BUILDINGS, ROADS, WATER = ({"background": 0, name: 255} for name in ("building", "road", "water"))


def random_image(rng: np.random.Generator, size=SIZE) -> np.ndarray:
    return rng.integers(0, 250, (*size, 3), dtype=np.uint8)


def names_of(codes: dict, rng: np.random.Generator, size=SIZE) -> np.ndarray:
    """Return a random (H,W) array of class names in which every name occurs."""
    names = np.array(list(codes), dtype=object)
    order = np.concatenate([np.arange(len(names)), rng.integers(0, len(names), size[0] * size[1] - len(names))])
    return names[rng.permutation(order).reshape(size)]


def encoded(names: np.ndarray, codes: dict) -> np.ndarray:
    """Return a (H,W) array of class names as the publisher stores it: uint8 (H,W) ids or (H,W,3) colours."""
    first = next(iter(codes.values()))
    stored = np.zeros(names.shape + ((3,) if isinstance(first, tuple) else ()), np.uint8)
    for name, code in codes.items():
        stored[names == name] = code
    return stored


def write(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def paired(root: Path, codes: dict, files: list[tuple[str, str, str]], seed: int = 0, lossless=True) -> Truth:
    """Write random images and labels for `files` = (image, label, "split/stem"); return class names by "split/stem"."""
    rng, truth = np.random.default_rng(seed), {}
    for image, label, key in files:
        names = names_of(codes, rng)
        write(root / image, random_image(rng))
        write(root / label, encoded(names, codes))
        truth[key] = names
    return truth


def isaid(root: Path) -> Truth:
    files = [
        (f"{split}/images/images/{stem}.png", f"{split}/Semantic_masks/images/{stem}_instance_color_RGB.png",
         f"{split}/{stem}_0_0_36_24") for split, stem in (("train", "P0000"), ("train", "P0002"), ("val", "P0003"))
    ]  # fmt: skip
    return paired(root / "iSAID", ISAID, files)


def samrs(root: Path, name: str, codes: dict) -> Truth:
    folder, suffix = ("JPEGImages-trainval", "jpg") if name == "SIOR" else ("images", "png")
    files = [
        (f"{folder}/{stem}.{suffix}", f"gray/{stem}.png", f"{split}/{stem}")
        for split, stem in (("train", "a_1"), ("train", "a_2"), ("val", "b_1"))
    ]
    truth = paired(root / name, codes, files)
    (root / name / "train.txt").write_text("a_1\na_2\n")
    (root / name / "valid.txt").write_text("b_1\n")
    return truth


def potsdam(root: Path, bands: str = "RGB", split: str = "") -> Truth:
    tiles = (("train", "2_10"), ("train", "7_9"), ("val", "2_13"))
    files = [
        (f"top_potsdam_{tile}_{bands}.tif", f"top_potsdam_{tile}_label_noBoundary.tif",
         f"{split or part}/{tile}_0_0_36_24") for part, tile in tiles
    ]  # fmt: skip
    return paired(root / "Potsdam", ISPRS, files)


def vaihingen(root: Path) -> Truth:
    areas = (("train", 1), ("train", 37), ("val", 38))
    files = [
        (f"top/top_mosaic_09cm_area{n}.tif", f"top_mosaic_09cm_area{n}_noBoundary.tif",
         f"{split}/area{n}_0_0_36_24") for split, n in areas
    ]  # fmt: skip
    truth = paired(root / "Vaihingen", ISPRS, files)
    write(root / "Vaihingen/gts_for_participants/top_mosaic_09cm_area1.tif", np.zeros((*SIZE, 3), np.uint8))
    return truth


def oem(root: Path) -> Truth:
    files = [
        (f"{region}/images/{region}_{n}.tif", f"{region}/labels/{region}_{n}.tif", f"{split}/{region}_{n}")
        for split, region, n in (("train", "aachen", 1), ("train", "kyoto", 12), ("val", "aachen", 2))
    ]
    truth = paired(root / "OpenEarthMap_wo_xBD", OEM, files)
    (root / "OpenEarthMap_wo_xBD/train.txt").write_text("aachen_1.tif\nkyoto_12.tif\nof_xbd_3.tif\n")
    (root / "OpenEarthMap_wo_xBD/val.txt").write_text("aachen_2.tif\n")
    return truth


def loveda(root: Path) -> Truth:
    parts = (("Train", "Rural", 0), ("Train", "Urban", 1366), ("Val", "Urban", 3514))
    files = [
        (f"{split}/{kind}/images_png/{n}.png", f"{split}/{kind}/masks_png/{n}.png", f"{split.lower()}/{n}")
        for split, kind, n in parts
    ]
    return paired(root / "LoveDA", LOVEDA, files)


def splits(root: Path, codes: dict, image: str, label: str, parts: tuple[str, ...], stem="{split}_{n}") -> Truth:
    """Write a data set whose publisher has a folder per split."""
    files = []
    for split in parts:
        for n in (1, 2):
            key = {"valid": "val"}.get(split, split) + "/" + stem.format(split=split, n=n)
            files.append((image.format(split=split, n=n), label.format(split=split, n=n), key))
    return paired(root, codes, files)


def unsplit(root: Path, codes: dict, image: str, label: str, key: Callable[[int], str], count: int = 5) -> Truth:
    """Write a data set whose publisher defines no splits."""
    return paired(root, codes, [(image.format(n=n), label.format(n=n), key(n)) for n in range(1, count + 1)])


def inria(root: Path) -> Truth:
    return unsplit(
        root / "AerialImageDataset", BUILDINGS, "train/images/tyrol-w{n}.tif", "train/gt/tyrol-w{n}.tif",
        lambda n: f"{'val' if n <= 5 else 'train'}/tyrol-w_{n}_0_0_36_24", 7,
    )  # fmt: skip


def xbd(root: Path) -> Truth:
    truth = {}
    for split in ("train", "tier3", "test", "hold"):
        stem = f"guatemala-volcano_{len(truth):08d}_pre_disaster"
        write(root / f"xview2/{split}/images/{stem}.png", random_image(np.random.default_rng(0)))
        write(root / f"xview2/{split}/images/{stem.replace('pre', 'post')}.png", random_image(np.random.default_rng(1)))
        outline = "POLYGON ((4 2, 20 2, 20 12, 4 12, 4 2), (8 5, 12 5, 12 8, 8 8, 8 5))"
        body = {"features": {"lng_lat": [], "xy": [{"properties": {"feature_type": "building"}, "wkt": outline}]}}
        label = root / f"xview2/{split}/labels/{stem}.json"
        label.parent.mkdir(parents=True)
        label.write_text(json.dumps(body))
        names = np.full(SIZE, "background", dtype=object)
        names[2:13, 4:21] = "building"
        names[5:9, 8:13] = "background"
        truth[f"{split}/{stem}"] = names
    return truth


def spacenet(root: Path) -> Truth:
    """Write SpaceNet's Vegas roads with 0.3 m per pixel; one road crosses the middle from west to east."""
    truth, scale = {}, 0.3 / 111_320
    for n in (9, 10):
        tags = ImageFileDirectory_v2()
        tags[33550], tags[33922] = (scale, scale, 0.0), (0.0, 0.0, 0.0, -115.2, 36.2, 0.0)
        tags.tagtype[33550] = tags.tagtype[33922] = 12
        base = root / "SN3_roads/AOI_2_Vegas"
        name = f"SN3_roads_train_AOI_2_Vegas_{{}}_img{n}"
        write(base / "PS-RGB" / f"{name.format('PS-RGB')}.tif", random_image(np.random.default_rng(n)), tiffinfo=tags)
        line = [[-115.2, 36.2 - 12.5 * scale], [-115.2 + 36 * scale, 36.2 - 12.5 * scale]]
        feature = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": line}}
        label = base / "geojson_roads" / f"{name.format('geojson_roads')}.geojson"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        names = np.full(SIZE, "background", dtype=object)
        names[6:19] = "road"
        truth[f"{'val' if n == 10 else 'train'}/AOI_2_Vegas_{n}"] = names
    return truth


def fbp(root: Path) -> Truth:
    rng, truth = np.random.default_rng(0), {}
    for n in range(1, 6):
        stem, names = f"GF2_PMS1__L1A000{n}-MSS1", names_of(FBP, np.random.default_rng(n))
        bands = np.concatenate(
            [np.full((*SIZE, 1), 251, np.uint8), random_image(rng)], axis=2
        )  # the first band is near infrared
        base = root / "Five-Billion-Pixels"
        write(base / f"Image__8bit_NirRGB/{stem}.tif", bands)
        write(base / f"Annotation__index/{stem}_24label.png", encoded(names, FBP))
        truth[f"{'val' if n == 5 else 'train'}/{stem}_0_0_36_24"] = names
    return truth


def coco_stuff(root: Path) -> Truth:
    return splits(
        root / "coco", COCO, "{split}2017/00000000000{n}.jpg", "stuffthingmaps/{split}2017/00000000000{n}.png",
        ("train", "val"), "00000000000{n}",
    )  # fmt: skip


THREE, TWO = ("train", "val", "test"), ("train", "val")
PREPARED: dict[str, tuple[str, str, list[str], Callable[[Path], Truth]]] = {
    # each row: name of the prepare script, source folder, further options, generator
    "isaid": ("isaid", "iSAID", [], isaid),
    "samrs_sota": ("samrs", "SOTA", ["--set", "sota"], lambda r: samrs(r, "SOTA", SOTA)),
    "samrs_fast": ("samrs", "FAST", ["--set", "fast"], lambda r: samrs(r, "FAST", FAST)),
    "samrs_sior": ("samrs", "SIOR", ["--set", "sior"], lambda r: samrs(r, "SIOR", SIOR)),
    "potsdam": ("potsdam", "Potsdam", ["--bands", "rgb"], potsdam),
    "vaihingen": ("vaihingen", "Vaihingen", [], vaihingen),
    "oem": ("oem", "OpenEarthMap_wo_xBD", [], oem),
    "loveda": ("loveda", "LoveDA", [], loveda),
    "floodnet": ("floodnet", "FloodNet", [], lambda r: splits(
        r / "FloodNet", FLOODNET, "{split}/{split}-org-img/{split}_{n}.jpg",
        "{split}/{split}-label-img/{split}_{n}_lab.png", THREE)),
    "uavid": ("uavid", "uavid", [], lambda r: splits(
        r / "uavid", UAVID, "uavid_{split}/seq{n}/Images/000000.png", "uavid_{split}/seq{n}/Labels/000000.png", TWO,
        "seq{n}_000000_0_0_36_24")),
    "udd5": ("udd5", "UDD5", [], lambda r: splits(
        r / "UDD5", UDD5, "{split}/src/DJI_{split}_{n}.JPG", "{split}/gt/DJI_{split}_{n}.png", TWO, "DJI_{split}_{n}")),
    "vdd": ("vdd", "VDD", [], lambda r: splits(
        r / "VDD", VDD, "{split}/src/{split}_{n}.JPG", "{split}/gt/{split}_{n}.png", THREE)),
    "whu_aerial": ("whu_aerial", "WHU", [], lambda r: splits(
        r / "WHU", BUILDINGS, "{split}/image/{split}_{n}.tif", "{split}/label/{split}_{n}.tif", THREE)),
    "whu_sat2": ("whu_sat2", "SatII", [], lambda r: splits(
        r / "SatII", BUILDINGS, "{split}/image/{split}_{n}.tif", "{split}/label/{split}_{n}.tif", ("train", "test"))),
    "inria": ("inria", "AerialImageDataset", [], inria),
    "xbd_pre": ("xbd_pre", "xview2", [], xbd),
    "chn6_cug": ("chn6_cug", "CHN6-CUG", [], lambda r: splits(
        r / "CHN6-CUG", ROADS, "{split}/images/bj{split}{n}_sat.jpg", "{split}/gt/bj{split}{n}_mask.png", TWO,
        "bj{split}{n}")),
    "deepglobe_road": ("deepglobe_road", "deepglobe", [], lambda r: unsplit(
        r / "deepglobe", ROADS, "train/{n}00_sat.jpg", "train/{n}00_mask.png",
        lambda n: f"{'val' if n == 5 else 'train'}/{n}00")),
    "massachusetts_road": ("massachusetts_road", "massachusetts", [], lambda r: splits(
        r / "massachusetts", ROADS, "{split}/sat/{split}_{n}.tiff", "{split}/map/{split}_{n}.tif",
        ("train", "valid", "test"))),
    "spacenet_road": ("spacenet_road", "SN3_roads", [], spacenet),
    "wbs_si": ("wbs_si", "Water", [], lambda r: unsplit(
        r / "Water", WATER, "Images/water_body_{n}.jpg", "Masks/water_body_{n}.png",
        lambda n: f"{'val' if n == 5 else 'train'}/water_body_{n}")),
    "fbp": ("fbp", "Five-Billion-Pixels", [], fbp),
    "coco_stuff": ("coco_stuff", "coco", [], coco_stuff),
}  # fmt: skip


def scenes(root: Path, name: str) -> int:
    """Write a scene classification set below `root`, in the folders of its publisher; return the number of images."""
    row = spec_of(name)
    rng = np.random.default_rng(0)
    folder = root / (row.folder or row.name) / row.images.split("|")[0]
    suffix = row.image_suffix.split("|")[0]
    table = load_classes(name)
    for one in table.folders:
        for n in (1, 2):
            stem = f"{n:04d}" if name == "siri_whu" else f"{one}_{n}"
            write(folder / one / (stem + suffix), random_image(rng, (16, 16)))
    return 2 * len(table)


def skysa(root: Path, images: int = 6) -> Path:
    """Write a data set like Sky-SA: with repeated names, an empty list, a path on its publisher's disk and a graph."""
    folder, rng = root / "skysa", np.random.default_rng(0)
    lines = []
    lists = [["lake", "forest"], ["road", "car", "road"], ["roof"], [], ["lake", "pond", "Forest"], ["car"]]
    for n in range(images):
        names = lists[n % len(lists)]
        write(folder / f"img_dir/part/{n}.jpg", random_image(rng, (80, 96)), quality=95)
        labels = rng.integers(0, max(1, len(names)), (80, 96), dtype=np.uint8)
        labels[:4] = 255
        write(folder / f"ann_dir/part/{n}.png", labels)
        before = "/private/of/its/publishers/skysa/" if n == 2 else ""
        lines.append({
            "flickr_url": f"{before}img_dir/part/{n}.jpg",
            "segmentation": f"{before}ann_dir/part/{n}.png",
            "ann_list": [{"category_name": name} for name in names],
        })  # fmt: skip
    (folder / "skysa_dataset.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    scores = {
        ("lake", "pond"): 9, ("lake", "forest"): 2, ("lake", "road"): 1, ("lake", "car"): 1, ("lake", "roof"): 3,
        ("forest", "road"): 3, ("forest", "car"): 2, ("forest", "roof"): 7, ("road", "car"): 5, ("road", "roof"): 4,
        ("road", "lake"): 1, ("car", "roof"): 3, ("car", "lake"): 1, ("roof", "lake"): 3, ("pond", "lake"): 9,
    }  # fmt: skip
    (folder / "skysa_graph.jsonl").write_text("\n".join(relation(*pair, score) for pair, score in scores.items()))
    return folder


def relation(source: str, target: str, score, end: str = '"they look so")') -> str:
    d = "{tuple_delimiter}"
    return f'("relationship"{d}"{source}"{d}"{target}"{d}{score}{d}{end}'


def shard(path: Path, samples: list[tuple[str, str]], image="jpg", text="txt") -> None:
    """Write a webdataset shard of (key, caption) samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, caption in samples:
            stream = BytesIO()
            Image.new("RGB", (9, 7), (len(key) * 20, 0, 0)).save(stream, "JPEG")
            body = json.dumps({"caption": caption}).encode() if text == "json" else caption.encode()
            for suffix, data in ((image, stream.getvalue()), (text, body)):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
