"""Measure the time to decode an image, the time to make a training sample, and samples per second by number of workers.

python tools/benchmark.py data
python tools/benchmark.py data --dataset dubai_train --crop 256 --workers 0,1,2

Without --dataset, 16 random images of 512 x 512 (JPEG, with PNG labels) are made in a temporary folder. Decoded images
are not cached here, as if the data set were larger than memory; training caches as many images as fit.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tabulate import tabulate


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset", metavar="NAME", help="a segmentation data set (default: random images)")
    p.add_argument("--crop", type=int, default=512, metavar="N", help="INPUT.CROP_SIZE (default: 512)")
    p.add_argument("--workers", default="0,1,2", metavar="LIST", help="numbers of workers to try (default: 0,1,2)")
    p.add_argument("--seconds", type=float, default=4.0, metavar="S", help="duration of each measurement (default: 4)")
    p.add_argument("--json", metavar="FILE", help="also write the measured numbers to FILE, as JSON")
    return p


def make_up(folder: Path, count: int = 16, side: int = 512) -> str:
    """Write random images with edges and texture, and a dataset.yaml; return the path."""
    rng = np.random.default_rng(0)
    for kind in ("img_dir", "ann_dir"):
        (folder / kind).mkdir(parents=True)
    for n in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((side, side))
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (side, side, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"img_dir/{n}.jpg", quality=90)
        labels = Image.fromarray(rng.integers(0, 6, (20, 20), dtype=np.uint8)).resize((side, side), Image.NEAREST)
        labels.save(folder / f"ann_dir/{n}.png")
    (folder / "dataset.yaml").write_text("classes: [water, land, road, building, vegetation, car]\n")
    return str(folder)


def each(call, items: list, seconds: float) -> float:
    """Return the median CPU time per call in ms, cycling through the items; other processes do not influence it."""
    call(items[0])
    times, end, n = [], time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        start = time.process_time()
        call(items[n % len(items)])
        times.append(time.process_time() - start)
        n += 1
    return 1000 * float(np.median(times))


def rate(records: list[dict], mapper, workers: int, seconds: float) -> float:
    """Return samples per second, measured after a warm-up."""
    from skysense_o.data.loader import training_loader

    batches = iter(training_loader(records, mapper, batch=4, start=0, seed=0, workers=workers))
    for _ in range(2 * max(1, workers)):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - start)


def measure(name: str, crop: int, workers: list[int], seconds: float) -> dict:
    """Measure one data set; return the results with the keys of --json."""
    from skysense_o.config import default_config
    from skysense_o.data import mapper as room
    from skysense_o.data.catalog import records_of
    from skysense_o.data.labels import load_image, read_labels

    room.read_image_and_labels = room.read_image_and_labels.__wrapped__  # bypass the cache of decoded images
    cv2.setNumThreads(0)  # use the settings of a loader process
    records = records_of(name)
    cfg = default_config()
    cfg.INPUT.CROP_SIZE = crop
    mapper = room.TrainingMapper(cfg)
    decode = each(lambda r: (load_image(r["file_name"]), read_labels(r["sem_seg_file_name"])), records, seconds)
    sample = each(mapper, records, seconds)
    rates = {str(w): rate(records, mapper, w, seconds) for w in workers}
    return {
        "decode_ms": decode,
        "sample_ms": sample,
        "mapping_over_decoding": sample / decode - 1,
        "samples_a_second": rates,
    }


def run() -> int:
    args = parser().parse_args()
    import skysense_o.data  # noqa: F401  (registers the data sets)

    workers = [int(word) for word in args.workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        name = args.dataset or make_up(Path(folder) / "made_up")
        numbers = measure(name, args.crop, workers, args.seconds)
    print(f"{args.dataset or 'random images of 512 x 512'}, crops of {args.crop}")
    print(f"decoding image and labels   {numbers['decode_ms']:7.2f} ms")
    print(f"whole sample, with decoding {numbers['sample_ms']:7.2f} ms")
    print(f"augmentation takes {numbers['mapping_over_decoding']:.2f} times as long as decoding")
    rows = [(w, r, r / max(1, int(w))) for w, r in numbers["samples_a_second"].items()]
    print(tabulate(rows, ["workers", "samples/s", "per worker"], floatfmt=".1f"))
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1) + "\n")
    return 0
