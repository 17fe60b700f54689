"""Data sets for scene classification: one folder per class, used as published."""

from __future__ import annotations

from skysense_o.data.datasets.spec import DatasetSpec


def _scenes(name: str, **rest) -> DatasetSpec:
    # Zero-shot evaluation uses every image, because most of these sets have no published split.
    splits = rest.pop("splits", {"all": "*"})
    aliases = {f"{name}_test": "all"} if "test" not in splits else {}
    return DatasetSpec(name=name, task="classification", format="scenes", splits=splits, aliases=aliases, **rest)


SCENES: tuple[DatasetSpec, ...] = (
    _scenes(
        "resisc45",
        images="NWPU-RESISC45|.",
        image_suffix=".jpg",
        counts={"all": 31500},
        homepage="https://gcheng-nwpu.github.io/#Datasets",
        licence="research only",
        citation="Cheng, Han and Lu, Proceedings of the IEEE 2017",
        gsd="0.2 to 30",
        size="400 MB",
    ),
    _scenes(
        "aid",
        images="AID|AID_dataset|.",
        image_suffix=".jpg",
        counts={"all": 10000},
        homepage="https://captain-whu.github.io/AID/",
        licence="research only",
        citation="Xia et al., AID, TGRS 2017",
        gsd="0.5 to 8",
        size="2.6 GB",
        note="folder names have no spaces (DenseResidential); ids are those of the class file",
    ),
    _scenes(
        "eurosat",
        images="2750|EuroSAT/2750|EuroSAT_RGB|.",
        image_suffix=".jpg|.png",
        counts={"all": 27000},
        homepage="https://github.com/phelber/EuroSAT",
        licence="MIT",
        citation="Helber et al., EuroSAT, JSTARS 2019",
        gsd="10",
        size="90 MB",
        note="test only: it is never trained on here",
    ),
    _scenes(
        "ucmerced",
        images="UCMerced_LandUse/Images|Images|images|.",
        image_suffix=".tif|.jpg|.png",
        splits={"all": "*", "train": "captions.jsonl", "test": "captions.jsonl"},
        counts={"all": 2100, "train": 1890, "test": 210},
        homepage="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        licence="public domain (USGS imagery)",
        citation="Yang and Newsam, ACM GIS 2010",
        gsd="0.3",
        size="317 MB",
        note="no published split: captions.jsonl (lines {image, split}) defines train and test",
    ),
    _scenes(
        "rsscn7",
        images="RSSCN7|RSSCN7-master|.",
        image_suffix=".jpg",
        counts={"all": 2800},
        homepage="https://github.com/palewithout/RSSCN7",
        licence="research only",
        citation="Zou et al., GRSL 2015",
        size="350 MB",
        note="folder names have a letter before the class (aGrass)",
    ),
    _scenes(
        "whu_rs19",
        images="WHU-RS19|RSDataset|images|.",
        image_suffix=".jpg|.tif",
        counts={"all": 1005},
        homepage="https://captain-whu.github.io/BED4RS/",
        licence="research only",
        citation="Dai and Yang, GRSL 2011",
        gsd="up to 0.5",
        size="100 MB",
    ),
    _scenes(
        "siri_whu",
        images="12class_tif|Google dataset of SIRI-WHU_earth_im_tiff/12class_tif|.",
        image_suffix=".tif|.jpg",
        counts={"all": 2400},
        homepage="http://www.lmars.whu.edu.cn/prof_web/zhongyanfei/e-code.html",
        licence="research only",
        citation="Zhao et al., Dirichlet-derived multiple topic scene classification, TGRS 2016",
        gsd="2",
        size="100 MB",
        note="files of different classes share their names (0001.tif): folder and name identify an image",
    ),
)
