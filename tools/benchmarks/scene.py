"""Benchmark the segmentation of a large scene.

Measured are windows per second in the whole run and in the model alone, and the memory in addition to the weights. A
second run is killed and resumed, to test that it writes the same label map.

python tools/benchmark.py scene --width 30000 --height 2048 --names 100
python tools/benchmark.py scene --width 30000 --height 30000 --names 100 --stand-in --no-kill

--stand-in replaces the model's forward pass by cheap arithmetic, to measure reading, blending and writing alone. The
results are printed as one JSON object.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "demo" / "demo.py"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--width", type=int, default=30000, help="width in pixels (default: 30000)")
    p.add_argument("--height", type=int, default=2048, help="height in pixels (default: 2048)")
    p.add_argument("--names", type=int, default=100, help="number of classes (default: 100)")
    p.add_argument("--memory", default="2GiB", help="memory that the run may use beyond the weights (default: 2GiB)")
    p.add_argument("--weights", default="mini", help="'mini' or a file (default: mini)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    p.add_argument("--stand-in", action="store_true", help="replace the model by cheap arithmetic")
    p.add_argument("--no-kill", action="store_true", help="do not test killing and resuming a second run")
    p.add_argument(
        "--folder", help="folder for files, which take 13 bytes per pixel (default: the system's temporary folder)"
    )
    return p


def make_scene(path: Path, height: int, width: int) -> None:
    """Write a tiled, compressed 8-bit GeoTIFF of smooth random colours with noise."""
    import numpy as np
    import rasterio
    from PIL import Image
    from rasterio.transform import Affine
    from rasterio.windows import Window

    georeference = {"crs": "EPSG:32633", "transform": Affine(1, 0, 500000, 0, -1, 5200000)}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "lzw", "BIGTIFF": "IF_SAFER"}
    options = {"driver": "GTiff", "count": 3, "dtype": "uint8", "photometric": "RGB", **georeference, **layout}
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", height=height, width=width, **options) as file:
        for top in range(0, height, 512):
            rows = min(512, height - top)
            coarse = Image.fromarray(rng.integers(30, 226, (8, max(2, width // 64), 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((width, 512), Image.Resampling.BICUBIC))[:rows].transpose(2, 0, 1)
            grain = rng.integers(0, 16, (rows, width), dtype=np.uint8)
            file.write(smooth // 2 + 60 + grain, window=Window(0, top, width, rows))


def stand_in(predictor):
    """Replace the model's forward pass by a linear mix of colours with the same stride."""
    import torch
    import torch.nn.functional as F

    def predict_windows(windows, vocabulary):
        angles = torch.arange(3 * len(vocabulary), device=windows.device).mul(
            2.4
        )  # the best class depends on the colour
        grid = F.avg_pool2d(windows.float().div_(127.5).sub_(1), predictor.model.stride)
        return torch.einsum("cd,bdhw->bchw", angles.sin().view(-1, 3), grid).mul_(4).sigmoid_()

    predictor.model.predict_windows = predict_windows


class Watch:
    """Record this process's peak resident memory, by sampling, and the time spent in the model.

    Args:
        predictor: the predictor to watch; its `window_model` is wrapped.
        start: memory in bytes that was in use after loading the model.
    """

    def __init__(self, predictor, start: int) -> None:
        import psutil

        self.process, self.model_seconds, self.windows = psutil.Process(), 0.0, 0
        self.start = self.peak = start
        window_model = predictor.window_model

        def watched(*args):
            model = window_model(*args)

            def timed(windows):
                begin = time.perf_counter()
                out = model(windows)
                self.model_seconds += time.perf_counter() - begin
                self.windows += len(windows)
                return out

            return timed

        predictor.window_model = watched
        self.window_model, self.running = window_model, True
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.02)


def bare_speed(predictor, path: Path, vocabulary, count: int = 24) -> float:
    """Return windows per second of the model alone, on windows of the scene that are already in memory."""
    import torch

    from skysense_o.scenes.raster import Raster

    with Raster(path) as raster, torch.inference_mode():
        step = max(1, (raster.size[1] - 512) // count)
        columns = range(0, max(1, raster.size[1] - 512), step)
        batch = [torch.from_numpy(raster.pixels(range(512), range(x, x + 512), (0, 0, 0))) for x in columns]
        predictor.windows(batch[0][None], vocabulary)
        begin = time.perf_counter()
        for window in batch:
            predictor.windows(window[None], vocabulary)
        return len(batch) / (time.perf_counter() - begin)


def kill_and_resume(args, scene: Path, folder: Path, words: Path) -> tuple[float, Path]:
    """Start the demo, kill it and resume it; return (share done before the kill, path of the label map)."""
    command = [sys.executable, DEMO, "--input", scene, "--classes-file", words, "--output", folder, "--save", "geotiff"]
    command += ["--weights", args.weights, "--device", args.device, "--memory", args.memory]
    first = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL)
    journal, done = folder / f"{scene.stem}.work" / "journal_0.jsonl", 0
    while first.poll() is None and done < args.height / 3:
        time.sleep(0.2)
        lines = journal.read_text().splitlines()[1:] if journal.is_file() else []
        done = json.loads(lines[-1])["rows"] if lines else 0
    first.send_signal(signal.SIGKILL)
    first.wait()
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done / args.height, folder / f"{scene.stem}_labels.tif"


def run() -> int:
    args = parser().parse_args()
    from skysense_o.inference.predictor import Predictor
    from skysense_o.vocabulary import Vocabulary

    vocabulary = Vocabulary.of([f"thing {i}" for i in range(args.names)])
    predictor = Predictor.from_pretrained(args.weights, args.device)
    if args.stand_in:
        stand_in(predictor)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        print(json.dumps(measure(args, predictor, vocabulary, Path(name)), indent=1))
    return 0


def measure(args: argparse.Namespace, predictor, vocabulary, folder: Path) -> dict:
    """Measure one scene, with files in `folder`; return the results by name."""
    import psutil

    from skysense_o.image_io import gdal_settings
    from skysense_o.scenes.georeference import scene_tools
    from skysense_o.scenes.options import SceneOptions, SceneOutputs, parse_bytes

    tools, scene, words = scene_tools(), folder / "scene.tif", folder / "words.txt"
    words.write_text("\n".join(vocabulary.classes))
    loaded = psutil.Process().memory_info().rss
    with gdal_settings():
        make_scene(scene, args.height, args.width)
    bare = bare_speed(predictor, scene, vocabulary)
    watch, options = Watch(predictor, loaded), SceneOptions(memory=parse_bytes(args.memory))
    begin = time.perf_counter()
    marks: dict[str, float] = {}
    real = tools.save_scene

    def save_scene(*a, **k):
        marks["segmented"] = time.perf_counter()
        return real(*a, **k)

    tools.save_scene = save_scene
    outputs = SceneOutputs(folder / "out", ("geotiff", "confidence", "areas"))
    written, rows = tools.run_scene(predictor, scene, vocabulary, outputs, options)
    end, watch.running = time.perf_counter(), False
    tools.save_scene, predictor.window_model = real, watch.window_model
    seconds = marks["segmented"] - begin
    figures = {
        "pixels": [args.height, args.width],
        "names": args.names,
        "model": "stand-in" if args.stand_in else args.weights,
        "device": str(predictor.model.device),
        "windows": watch.windows,
        "seconds": round(seconds, 1),
        "windows_per_second": round(watch.windows / seconds, 3),
        "bare_windows_per_second_before": round(bare, 3),
        "bare_windows_per_second_after": round(bare_speed(predictor, scene, vocabulary), 3),
        "calls_of_the_model_under_way": round(watch.model_seconds / seconds, 3),
        "seconds_to_write_the_files": round(end - marks["segmented"], 1),
        "peak_MiB_beside_the_weights": round((watch.peak - watch.start) / 2**20),
        "MiB_with_the_model_loaded": round(watch.start / 2**20),
        "label_map_MB": round(written[0].stat().st_size / 1e6, 1),
        "classes_found": sum(row["pixels"] > 0 for row in rows),
    }
    if not args.no_kill and not args.stand_in:
        share, again = kill_and_resume(args, scene, folder / "again", words)
        figures["killed_at"] = round(share, 3)
        figures["same_bytes_after_the_kill"] = again.read_bytes() == written[0].read_bytes()
    return figures
