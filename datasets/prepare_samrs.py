#!/usr/bin/env python
"""SAMRS: semantic labels of its subsets SOTA, FAST or SIOR. Class ids start at 1; id 0 is others (not annotated).

python datasets/prepare_samrs.py --source SOTA --set sota
python datasets/prepare_samrs.py --source SIOR --set sior

    */images/*.png, or JPEGImages-trainval/*.jpg (SIOR: DIOR's images)
    */gray/*.png            one channel: 0 to 17 (SOTA), 36 (FAST) or 19 (SIOR); 255 not annotated
    train.txt, valid.txt                                one stem per line

Values, lists and folder names are those of the publishers' code (github.com/ViTAE-Transformer/SAMRS: Generate Dataset/
mapping.py; Pretraining and Finetuning/Encoder_Decoder/main_pretrain.py). We have not tried the script on the download
itself: if its folders have other names, the error shows the expected names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_value
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

IMAGE = (r"(?:images|JPEGImages-trainval|JPEGImages)/(?P<stem>[^/]+)\.(?:png|jpg)",)
LABEL = (r"gray/(?P<stem>[^/]+)\.png",)
LISTS = (("train", "train.txt"), ("val", "valid.txt"))


def recipe(name: str, classes: int) -> Recipe:
    values = {255: 0, **{value: value + 1 for value in range(classes)}}
    return Recipe(f"samrs_{name}", IMAGE, LABEL, by_value(values), lists=LISTS)


RECIPES = {"sota": recipe("sota", 18), "fast": recipe("fast", 37), "sior": recipe("sior", 20)}

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPES, "--set"))
