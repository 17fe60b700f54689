"""Export the image tower and decoder to ONNX: image and text embeddings in, one mask per phrase out.

The text tower is not exported. Text embeddings are computed once (`embed_words`) and are an input, so the file works
with any vocabulary.

Shape letters: B images, T phrases, D embedding, H W pixels, h w grid.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skysense_o.inference.classify import phrase_vectors
from skysense_o.inference.predictor import Predictor
from skysense_o.modeling import Queries
from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import whole, write_json

OPSET = 20
MAX_SIDE, MAX_BATCH, MAX_PHRASES = 8192, 64, 65536
TOLERANCE = 1e-3
"""Largest accepted difference of logits, whose values reach about 30."""


class ImageHalf(nn.Module):
    """The exported part of a model.

    Input: image (B,3,H,W), RGB 0..255; text (T,D) unit vectors. Output: logits (B,T,h,w), and presence (B,T) if the
    decoder has a presence head.
    """

    def __init__(self, model: nn.Module, chunk: int | None = None) -> None:
        super().__init__()
        self.tower, self.head, self.chunk = model.tower, model.sem_seg_head, chunk

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        x = (image - self.tower.pixel_mean) / self.tower.pixel_std
        text = text[None, :, None].expand(image.shape[0], -1, -1, -1)
        valid = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        logits, presence, _ = self.head(self.tower.encode_image(x), Queries(text, valid), self.chunk)
        return (logits,) if presence is None else (logits, presence)


def embed_words(predictor: Predictor, vocabulary: Vocabulary) -> np.ndarray:
    """Text embeddings of a vocabulary, (T,D) float32 unit vectors, one per phrase."""
    with torch.inference_mode():
        return phrase_vectors(predictor.model.tower, vocabulary, predictor.model.templates).cpu().numpy()


def export_onnx(predictor: Predictor, path: Path) -> dict:
    """Write an ONNX file, and a JSON with the same stem that describes its inputs and outputs.

    H and W may be any multiples of the divisor of the tower, B and T any numbers.

    Args:
        path: path of the ONNX file.

    Returns:
        The content of the JSON.

    Raises:
        ValueError: the tower has a fixed input size, or the decoder is not SAMMaskHead; neither is supported.
    """
    model = predictor.model
    head = getattr(model, "sem_seg_head", None)
    if model.tower.input_size or not hasattr(head, "shared_tokens"):
        raise ValueError(
            f"{type(model.tower).__name__} with {type(head or model).__name__} cannot be exported yet:"
            " MiniTower with SAMMaskHead can"
        )
    half, divisor = copy.deepcopy(ImageHalf(model)).float().cpu().eval(), model.tower.divisor
    half.tower.prepare_inference()  # with fixed padding, the sizes stay simple expressions while tracing
    names = ["logits", *["presence"] * (model.sem_seg_head.presence is not None)]
    text = F.normalize(torch.randn(5, model.tower.dim), dim=-1)
    phrases = {0: torch.export.Dim("T", min=1, max=MAX_PHRASES)}
    with whole(path) as part:
        write_graph(half, part, {"text": (text, phrases)}, names)
    description = {
        "inputs": {
            "image": f"float32 (B,3,H,W), RGB, 0..255; H and W multiples of {divisor}: pad right and bottom",
            "text": f"float32 (T,{model.tower.dim}), unit vectors, one per phrase; tools/export.py --words writes them",
        },
        "outputs": {
            "logits": f"float32 (B,T,H/{model.stride},W/{model.stride}); sigmoid gives probabilities",
            **(
                {"presence": "float32 (B,T); whether the phrase is in the image: a logit, not calibrated"}
                if len(names) > 1
                else {}
            ),
        },
        "padding_value_rgb": [float(v) for v in model.tower.pixel_mean.flatten()],
        "divisor": divisor,
        "stride": model.stride,
        "templates": list(model.templates),
        "training_metres_per_pixel": model.gsd or None,
        "weights": predictor.source,
        "weights_sha256": predictor.sha256,
        "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "opset": OPSET,
        "torch": torch.__version__,
    }
    write_json(path.with_suffix(".json"), description)
    return description


@torch.no_grad()
def write_graph(half: nn.Module, path: Path, others: dict[str, tuple[Tensor, dict]], outputs: Sequence[str]) -> None:
    """Write the graph of a module with a `tower`, whose first input is an image (B,3,H,W) of any size.

    Args:
        others: name of each further input -> an example and its dynamic axes.
        outputs: names of the outputs.
    """
    divisor = half.tower.divisor
    batch, rows, columns = (
        torch.export.Dim("B", min=1, max=MAX_BATCH),
        *(divisor * torch.export.Dim(side, min=1, max=MAX_SIDE // divisor) for side in ("rows", "columns")),
    )
    # All sizes differ, because torch.export assumes that sizes which are equal in the example are always equal.
    image = torch.zeros(2, 3, 3 * divisor, 4 * divisor)
    program = torch.onnx.export(
        half,
        (image, *(example for example, _ in others.values())),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image", *others],
        output_names=list(outputs),
        dynamic_shapes=({0: batch, 2: rows, 3: columns}, *(axes for _, axes in others.values())),
        verbose=False,
    )
    program.save(str(path))


def difference(predictor: Predictor, path: Path, sizes: Sequence[tuple[int, int, int, int]]) -> float:
    """Compare the logits of the file in onnxruntime with the logits of the model in torch.

    Args:
        sizes: (B, H, W, T) of each random input.

    Returns:
        The largest absolute difference.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    half, worst = ImageHalf(predictor.model).float().cpu().eval(), 0.0
    g = torch.Generator().manual_seed(0)
    for batch, height, width, phrases in sizes:
        image = torch.randint(0, 256, (batch, 3, height, width), generator=g).float()
        text = F.normalize(torch.randn(phrases, predictor.model.tower.dim, generator=g), dim=-1)
        with torch.inference_mode():
            ours = half(image, text)
        theirs = session.run(None, {"image": image.numpy(), "text": text.numpy()})
        worst = max(worst, *(float(np.abs(a.numpy() - b).max()) for a, b in zip(ours, theirs)))
    return worst
