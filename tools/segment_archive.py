#!/usr/bin/env python
"""Segment many georeferenced scenes in parallel, on this machine or on a Ray cluster.

python tools/segment_archive.py --input "archive/*.tif" --classes "water,forest" --output out --workers 2

Each scene is one task; each worker loads the model once. Run the same command again to resume interrupted scenes. A
scene that cannot be read is reported at the end and does not stop the others.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

from skysense_o.cli.cluster import add_cluster_arguments, cluster_of
from skysense_o.errors import exit_code
from skysense_o.vocabulary import Vocabulary


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--input", nargs="+", required=True, metavar="FILE", help="scenes, folders or globs in quotes")
    p.add_argument("--classes", required=True, metavar="WORDS", help='classes, "a,b,c"; synonyms with bars, "a|b,c"')
    p.add_argument(
        "--background", default="", metavar="WORDS", help="background classes, whose pixels become 'none' (id 0)"
    )
    p.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the results; must have the same path on all machines"
    )
    p.add_argument(
        "--save",
        default="geotiff,areas",
        metavar="LIST",
        help="output formats, see --save of demo/demo.py (default: geotiff,areas)",
    )
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' or a file (default: mini)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    p.add_argument(
        "--memory", default="2GiB", metavar="SIZE", help="memory per worker, beyond the weights (default: 2GiB)"
    )
    add_cluster_arguments(p, default="local")
    return p


def run() -> int:
    args = parser().parse_args()
    args.address = args.address or "local"
    vocabulary, cluster = Vocabulary.parse(args.classes, args.background), cluster_of(args)
    from skysense_o.image_io import find_images, stems_of
    from skysense_o.inference.segmentation import classes_by_id
    from skysense_o.scenes.georeference import scene_tools
    from skysense_o.scenes.options import FORMATS, SceneOptions, SceneOutputs, parse_bytes
    from skysense_o.scenes.ray_archive import segment_archive

    classes_by_id(vocabulary, None)  # this raises an error if a class is called "none", the name of id 0
    scene_tools()  # this raises an error if the extra "geo" is missing
    formats = [word.strip() for word in args.save.split(",") if word.strip()]
    unknown = [word for word in formats if word not in FORMATS]
    if unknown or not formats:
        what = f"unknown formats {unknown}" if unknown else "no format"
        raise ValueError(f"--save {args.save!r}: {what}: choose among {', '.join(FORMATS)}")
    outputs = SceneOutputs(Path(os.path.abspath(args.output)), formats)
    paths = [Path(os.path.abspath(path)) for path in find_images(args.input)]
    rows = segment_archive(
        list(zip(paths, stems_of(paths))), vocabulary, outputs, SceneOptions(memory=parse_bytes(args.memory)),
        cluster, weights=args.weights, device=args.device,
    )  # fmt: skip
    for warning in dict.fromkeys(warning for row in rows for warning in row["warnings"]):
        print(f"WARNING: {warning}", file=sys.stderr)
    for row in rows:
        print("\n".join(row["written"]) if not row["error"] else f"error: {row['error']}", flush=True)
    return 1 if any(row["error"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
