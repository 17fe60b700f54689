#!/usr/bin/env python
"""Start a web page that segments images and GeoTIFFs by words, clicks and boxes, and offers the results as files.

skysense-o app        (or python demo/app.py)
skysense-o app --weights output/prompts/model_final.safetensors --port 7861

docs/security.md explains what to do before other people may connect.
"""

import argparse
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

from skysense_o.cli.arguments import add_backend
from skysense_o.errors import exit_code, install_extra
from skysense_o.interactive.limits import Limits, parse_size

SCENES = 5
"""Number of classes of the whole image that the page shows."""
EXAMPLES = (  # title, file, words, and optionally a threshold; demo/README.md describes the results
    ("Road in a forest", "yellowstone_0.4m.jpg", "road, vegetation"),
    ("River and town (GeoTIFF)", "foz_30m.tif", "water|river|lake", 0.9),
    ("Meadow and trees", "yellowstone_0.25m.jpg", "tree, grass, bare land"),
)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' (default), a file, or hf://org/repo/file")
    p.add_argument(
        "--answerer", default="mini_vqa", metavar="W", help="VQA weights for questions; '' for none (default: mini_vqa)"
    )
    p.add_argument(
        "--basemap",
        default="",
        metavar="URL",
        help="address of map tiles with {z}, {x} and {y}; users can switch this map on below GeoTIFFs (default: none)",
    )
    p.add_argument("--config-file", metavar="FILE", help="config of the model, for weights files without a config")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add_backend(p)
    p.add_argument("--host", default="127.0.0.1", help="address to bind (default: localhost only)")
    p.add_argument("--port", type=int, default=7860)
    limits, g = Limits(), p.add_argument_group("limits")
    g.add_argument("--max-upload", default="64mb", metavar="SIZE", help="largest uploaded file (default: 64mb)")
    g.add_argument("--max-request", default="1mb", metavar="SIZE", help="largest other request (default: 1mb)")
    g.add_argument("--max-folder", default="4gb", metavar="SIZE", help="all uploads and results on disk (default: 4gb)")
    g.add_argument("--session-memory", default="1gb", metavar="SIZE", help="memory of all open images (default: 1gb)")
    for option, name, text in (
        ("--sessions", "sessions", "number of open images; the one that was idle longest is closed first"),
        ("--images", "images", "number of open images per user; the oldest is closed first"),
        ("--max-pixels", "pixels", "larger images are scaled down to N pixels"),
        ("--max-read-pixels", "read_pixels", "images with more than N pixels are refused"),
        ("--max-words", "words", "largest number of words per request"),
        ("--max-word-length", "word_length", "largest number of characters per word"),
        ("--time-limit", "seconds", "time limit per request in seconds"),
        ("--jobs", "jobs", "number of requests that run at the same time"),
        ("--queue", "queue", "number of requests that may wait"),
    ):
        value = getattr(limits, name)
        g.add_argument(
            option, type=type(value), default=value, metavar="N", dest=name, help=f"{text} (default: {value:,})"
        )
    return p


def limits_of(args: argparse.Namespace) -> Limits:
    """Return the limits of the page, as set by the options.

    Raises:
        ValueError: If a size cannot be parsed or a limit is not above 0.
    """
    names = ("sessions", "images", "pixels", "read_pixels", "words", "word_length", "seconds", "jobs", "queue")
    return Limits(
        session_bytes=parse_size(args.session_memory),
        upload_bytes=parse_size(args.max_upload),
        request_bytes=parse_size(args.max_request),
        folder_bytes=parse_size(args.max_folder),
        **{name: getattr(args, name) for name in names},
    )


def whole_image_tasks(vqa_model) -> tuple[Callable, Callable]:
    """Return two functions: (uint8 RGB (H,W,3), question) -> answer, and RGB -> (class, cosine) pairs."""
    import torch

    from skysense_o import Vocabulary
    from skysense_o.data.classes import load_classes
    from skysense_o.inference.classify import classify

    table = load_classes("ucmerced")
    classes = Vocabulary(table.classes, tuple(zip(table.classes)), table.background)

    def answer(rgb, question: str) -> str:
        return vqa_model.answer([torch.from_numpy(rgb.copy()).permute(2, 0, 1)], [question])[0]

    return answer, lambda rgb: classify(vqa_model, rgb, classes)[:SCENES]


def make_page(args: argparse.Namespace, limits: Limits, root: Path):
    """Load the models that the options name, and return the page that uses them."""
    from skysense_o.inference.classify import load_vqa_model
    from skysense_o.inference.predictor import Predictor
    from skysense_o.interactive.page import Example, Page

    predictor = Predictor.from_pretrained(args.weights, args.device, args.config_file, backend=args.backend)
    tasks = whole_image_tasks(load_vqa_model(args.answerer, args.device)) if args.answerer else (None, None)
    examples = [Example(title, HERE / file, *words) for title, file, *words in EXAMPLES]
    return Page(predictor, root, limits, *tasks, examples, args.basemap)


def run() -> int:
    from skysense_o.interactive.serving import folder_until_stopped, serve

    args = parser().parse_args()
    limits = limits_of(args)
    if args.basemap and not all(part in args.basemap for part in ("http", "{z}", "{x}", "{y}")):
        raise ValueError(
            f"--basemap {args.basemap!r} is not an address of map tiles: write it as https://.../{{z}}/{{x}}/{{y}}.png"
        )
    with folder_until_stopped("skysense_o_page_") as (root, stopped):
        try:
            from skysense_o.interactive.routes import create_app
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("skysense_o"):
                raise
            text = f"the web page needs {error.name}: {install_extra('app')}"
            raise ModuleNotFoundError(text, name=error.name) from error
        page = make_page(args, limits, root)
        threading.Thread(target=page.encode_naming_vocabulary, daemon=True).start()
        address = serve(create_app(page), args.host, args.port)
        print(f"SkySense-O is at {address} (Ctrl+C ends it)", flush=True)
        stopped.wait()
    return 0


if __name__ == "__main__":
    try:
        code = exit_code(run)
    except SystemExit as stop:
        code = stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # with sys.exit the process would abort while torch's threads still run
