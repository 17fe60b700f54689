"""Run the image half of a model, its tower and `SAMMaskHead.refine`, in ONNX Runtime or OpenVINO.

The image half takes nine tenths of the time of an answer. Torch computes the rest: words, clicks and masks. The
exported file is made once for each weights file and kept in a cache.
Shape letters: B images, D embedding, H W pixels, h w grid.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from skysense_o.cpu_threads import available_cores
from skysense_o.device import has_amx
from skysense_o.errors import install_extra
from skysense_o.modeling.sam_head import ImageEmbedding
from skysense_o.weight_paths import weights_hash
from skysense_o.whole_files import whole, write_json

if TYPE_CHECKING:
    from skysense_o.inference.predictor import Predictor

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "onnx", "openvino", "auto")
PACKAGES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "onnxscript")}
FORMAT = 1
"""Increased when the exported graph changes, so that files of earlier versions are not used."""

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Prepared images float32 (B,3,H,W) -> the outputs of `ImageEncoder`."""


class ImageEncoder(nn.Module):
    """The exported graph: prepared images (B,3,H,W) -> dense features, and the tensors of `ImageEmbedding`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = model.tower, model.sem_seg_head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.tower.encode_image(x)
        image = self.head.refine(features)
        return (features.dense, *chain(*image.layers), *image.final, image.canvas)


class ExportedEncoder:
    """Runs the exported graph of a model: prepared images (B,3,H,W) -> (ImageEmbedding, dense features)."""

    def __init__(self, path: Path, backend: str, precision: str) -> None:
        self.path, self.backend, self.precision = path, backend, precision
        self._open: dict[int, Run] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> tuple[ImageEmbedding, Tensor]:
        dense, *rest = (torch.from_numpy(out) for out in self._run()(x.float().contiguous().numpy()))
        *layers, key, value, canvas = rest
        threes = [tuple(layers[i : i + 3]) for i in range(0, len(layers), 3)]
        return ImageEmbedding(threes, (key, value), canvas, tuple(x.shape[-2:])), dense

    def _run(self) -> Run:
        """The graph for as many threads as torch uses in this thread: 1 where several windows run in parallel."""
        threads = torch.get_num_threads()
        with self._lock:
            if threads not in self._open:
                load = _onnxruntime if self.backend == "onnx" else _openvino
                self._open[threads] = load(self.path, threads, self.precision)
            return self._open[threads]


def _onnxruntime(path: Path, threads: int, precision: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see cpu_threads.py
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"image": x})


def _openvino(path: Path, threads: int, precision: str) -> Run:
    import openvino

    cores = available_cores()
    streams = cores if threads == 1 else 1  # one thread: several windows run in parallel, each in its own stream
    settings = {
        "INFERENCE_NUM_THREADS": max(threads, streams),
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    model, own = openvino.Core().compile_model(str(path), "CPU", settings), threading.local()

    def run(x: np.ndarray) -> list[np.ndarray]:
        if not hasattr(own, "request"):  # each thread needs its own request
            own.request = model.create_infer_request()
        found = own.request.infer({"image": x})
        return [np.array(found[i]) for i in range(len(model.outputs))]  # copies: the next call overwrites `found`

    return run


def cache_folder() -> Path:
    """Where exported graphs are kept: SKYSENSE_O_CACHE, or skysense_o in the user's cache folder."""
    own = os.environ.get("SKYSENSE_O_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skysense_o"


def use_backend(predictor: Predictor, backend: str) -> str:
    """Let a predictor's image half run in a backend.

    Args:
        backend: one of BACKENDS. auto is OpenVINO for bf16 on processors with AMX and ONNX Runtime for fp32, if they
            are installed and can run the predictor, else torch; RESULTS.md has the measurements behind this choice.

    Returns:
        The backend that is used from now on.

    Raises:
        ValueError: the backend is unknown, or cannot run this model, device or precision.
        ModuleNotFoundError: the backend's package is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known: {', '.join(BACKENDS)}")
    if backend == "auto":
        fastest = "openvino" if predictor.precision == "bf16" and has_amx() else "onnx"
        try:
            return use_backend(predictor, "torch" if _missing(fastest) or _why_not(predictor, fastest) else fastest)
        except (OSError, RuntimeError) as error:  # no disk space for the export, or an unsuitable package version
            why = next(iter(str(error).splitlines()), error)
            logger.warning("using the backend torch instead of %s: %s", fastest, why)
            backend = "torch"
    if backend == "torch":
        predictor.model.exported = None
        return backend
    if _missing(backend):
        needs = f"backend {backend} needs {_missing(backend)}, which is not installed"
        raise ModuleNotFoundError(f"{needs}: {install_extra(backend)}", name=_missing(backend))
    if _why_not(predictor, backend):
        raise ValueError(f"backend {backend} {_why_not(predictor, backend)}")
    predictor.model.exported = ExportedEncoder(exported_file(predictor), backend, predictor.precision)
    return backend


def _missing(backend: str) -> str:
    """The first package that a backend lacks, or ""."""
    return next((package for package in PACKAGES[backend] if find_spec(package) is None), "")


def _why_not(predictor: Predictor, backend: str) -> str:
    """Say why a backend cannot run a predictor, and how to mend this; "" if the backend can run the predictor."""
    model = predictor.model
    head = getattr(model, "sem_seg_head", None)
    if model.device.type != "cpu":
        return f"runs on a CPU, and the device is {model.device}: use the device cpu, or the backend torch"
    if model.tower.input_size or not hasattr(head, "shared_tokens"):
        what = f"{type(model.tower).__name__} with {type(head or model).__name__}"
        return f"runs MiniTower with SAMMaskHead, and the model is {what}: use the backend torch"
    if predictor.path is None:
        return "needs weights from a file, whose hash names the cached export: use Predictor.from_pretrained"
    if backend == "onnx" and predictor.precision == "bf16":
        return "computes in fp32, and the precision is bf16: use fp32, or the backend openvino"
    return ""


def exported_file(predictor: Predictor) -> Path:
    """The file of the exported image half: from the cache if it has its recorded hash, else exported now."""
    torch_version = torch.__version__.partition("+")[0]
    model = f"{predictor.sha256[:32]}-{sha256((predictor.config or '').encode()).hexdigest()[:12]}"
    path = cache_folder() / f"{model}-{predictor.precision}-{FORMAT}-torch{torch_version}.onnx"
    record = path.with_suffix(".json")
    try:
        if json.loads(record.read_text())["onnx_sha256"] == weights_hash(path):
            return path
    except (OSError, ValueError, KeyError):  # the cached file is absent or incomplete
        pass
    logger.info("exporting the image half of %s to %s, once", predictor.source, path)
    own = path.with_name(
        f"{path.stem}-{os.getpid()}.onnx"
    )  # its own file, because other processes may export the same weights now
    _export(predictor.model, own)
    body = {"weights": predictor.source, "sha256": predictor.sha256, "onnx_sha256": weights_hash(own)}
    write_json(own.with_suffix(".json"), body)
    os.replace(own, path)
    os.replace(own.with_suffix(".json"), record)
    return path


def _export(model: nn.Module, path: Path) -> None:
    from skysense_o.inference.onnx import write_graph

    half = copy.deepcopy(ImageEncoder(model)).float().eval()  # without `model.exported`, which cannot be copied
    layers = len(half.head.transformer.layers)
    names = [f"{what}{i}" for i in range(layers) for what in ("keys", "values", "shared")]
    with whole(path) as part:
        write_graph(half, part, {}, ["dense", *names, "final_keys", "final_values", "canvas"])
