"""Data sets with captions or questions, in their published file formats."""

from __future__ import annotations

from functools import partial

from skysense_o.data.datasets.spec import DatasetSpec

KARPATHY = {"train": "train", "val": "val", "test": "test"}
_captions = partial(DatasetSpec, task="image-text", format="captions", splits=KARPATHY)
_rsvqa = partial(
    DatasetSpec,
    task="vqa",
    format="rsvqa",
    image_suffix=".tif",
    homepage="https://rsvqa.sylvainlobry.com",
    citation="Lobry et al., RSVQA, TGRS 2020",
)

LANGUAGE: tuple[DatasetSpec, ...] = (
    _captions(
        name="rsicd",
        index="dataset_rsicd.json|captions.jsonl",
        images="RSICD_images|images",
        counts={"train": 8734, "val": 1094, "test": 1093},
        homepage="https://github.com/201528014227051/RSICD_optimal",
        licence="none stated",
        citation="Lu et al., TGRS 2017",
        size="550 MB",
    ),
    _captions(
        name="rsitmd",
        index="dataset_RSITMD.json",
        images="images",
        splits={"train": "train", "test": "test"},
        counts={"train": 4291, "test": 452},
        homepage="https://github.com/xiaoyuan1996/AMFMN",
        licence="none stated",
        citation="Yuan et al., TGRS 2021",
        size="900 MB",
    ),
    _captions(
        name="ucm_captions",
        folder="ucmerced",
        index="dataset.json|captions.jsonl",
        images="imgs|UCM_captions/imgs|UCMerced_LandUse/Images|images",
        homepage="https://github.com/201528014227051/RSICD_optimal",
        licence="none stated; imagery public domain (USGS)",
        citation="Qu et al., Deep semantic understanding of high resolution remote sensing image, CITS 2016",
        gsd="0.3",
        size="250 MB",
    ),
    DatasetSpec(
        name="skyscript",
        task="image-text",
        format="table",
        splits={"train": "train_top30pct", "val": "val_5K", "test": "test_30K"},
        index="SkyScript_{split}_filtered_by_CLIP_openai.csv|dataframe/SkyScript_{split}_filtered_by_CLIP_openai.csv",
        images=".",
        homepage="https://github.com/wangzhecheng/SkyScript",
        licence="MIT (code and captions); imagery by source",
        citation="Wang et al., SkyScript, AAAI 2024",
        gsd="0.1 to 30",
        size="200 GB",
    ),
    DatasetSpec(
        name="rs5m",
        task="image-text",
        format="shards",
        splits={"train": "**/*train*.tar", "val": "**/*val*.tar"},
        homepage="https://github.com/om-ai-lab/RS5M",
        licence="CC0 (captions); imagery by source",
        citation="Zhang et al., RS5M and GeoRSCLIP, TGRS 2024",
        size="500 GB",
        note="webdataset shards, members img_content and caption; read without unpacking",
    ),
    DatasetSpec(
        name="rs5m_table",
        task="image-text",
        format="table",
        folder="rs5m",
        splits={"train": "train"},
        index="*{split}*.csv",
        images="images|.",
        homepage="https://github.com/om-ai-lab/RS5M",
        licence="CC0 (captions); imagery by source",
        citation="Zhang et al., RS5M and GeoRSCLIP, TGRS 2024",
        note="the CSV files with unpacked images",
    ),
    DatasetSpec(
        name="webdataset",
        task="image-text",
        format="shards",
        splits={"train": "**/*.tar"},
        homepage="https://github.com/webdataset/webdataset",
        licence="that of what is in it",
        citation="",
        note="any webdataset shards of your own, with images and txt, caption or json files of the same stem",
    ),
    _rsvqa(
        name="rsvqa_lr",
        splits=KARPATHY,
        index="LR_split_{split}_questions.json",
        images="Images_LR",
        licence="CC BY 4.0",
        gsd="10",
        size="200 MB",
    ),
    _rsvqa(
        name="rsvqa_hr",
        splits={**KARPATHY, "test_phili": "test_phili"},
        index="USGS_split_{split}_questions.json",
        images="Data",
        licence="CC BY 4.0; imagery public domain (USGS)",
        gsd="0.15",
        size="15 GB",
        note="test_phili is the second test set, of a city without training images",
    ),
    DatasetSpec(
        name="rsivqa",
        task="vqa",
        format="text questions",
        folder="ucmerced",
        splits={"all": "all", "train": "train", "test": "test", "train_count": "train how many"},
        index="vqa.jsonl|ucm_vqa.txt|UCM/ucm_vqa.txt",
        images="UCMerced_LandUse/Images|Images|images",
        image_suffix=".tif",
        homepage="https://github.com/spectralpublic/RSIVQA",
        licence="none stated; cite, do not redistribute",
        citation="Zheng et al., TGRS 2021",
        gsd="0.3",
        note="questions about UC Merced; ucm_vqa.txt has no splits, so each split then has all its questions",
    ),
    *(
        DatasetSpec(
            name=name,
            task="vqa",
            format="conversations",
            folder="vhm_eval",
            splits={"test": "test"},
            index=f"{file}|datasets_eval/{file}",
            homepage="https://huggingface.co/datasets/FitzPC/VHM_eval_dataset",
            licence="none stated; imagery research only",
            citation="Pang et al., VHM, AAAI 2025",
            size="7 GB with all its parts",
        )
        for name, file in (("siri_whu_vqa", "cls_SIRI_WHU.json"), ("aid_vqa", "cls_AID.json"))
    ),
)
