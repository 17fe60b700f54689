"""Run the commands `skysense-o segment`, `scene`, `classify` and `ask`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from skysense_o.cli.request import Request, check_request, read_plain, scene_options
from skysense_o.errors import file_error, is_expected, is_full_disk
from skysense_o.image_io import printable
from skysense_o.scenes.georeference import scene_tools
from skysense_o.whole_files import write_json
from skysense_o.words import check_words


def run_task(args: Namespace) -> int:
    """Run the task of a command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("skysense_o").setLevel(logging.INFO)
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # GDAL warns about harmless irregularities of TIFFs
    warnings.filterwarnings("ignore", "Dataset has no geotransform")  # as regions.tif in the work folder
    try:
        request = check_request(args)
    except Exception as error:
        if is_expected(error):
            raise
        name = printable(Path(next(iter(args.input), "")).name)
        print(f"error: {file_error(error, name)}", file=sys.stderr)
        return 1
    if args.task != "segment":
        return _whole_images(request)
    return _prompt_loop(request) if args.interactive else _segment(request)


def _load_predictor(args: Namespace):
    from skysense_o.inference.predictor import Predictor

    return Predictor.from_pretrained(
        args.weights,
        args.device,
        args.config_file,
        args.precision,
        args.trust_checkpoint,
        args.backend,
        whole_images=args.task == "classify",
    )


def _segment(request: Request) -> int:
    """Segment all images; a bad image does not stop the others."""
    from skysense_o.inference.export import listed

    predictor = _load_predictor(request.args)
    processes = None
    if "WORLD_SIZE" in os.environ:  # started by torchrun or Accelerate
        from accelerate import PartialState

        processes = PartialState(cpu=predictor.model.device.type == "cpu")

    def one(path: Path, stem: str) -> None:
        if path in request.scenes:
            written, rows = _segment_scene(request, predictor, path, stem, processes)
        else:
            written, rows = _segment_image(request, predictor, path, stem)
        rows = listed(rows, request.min_share)
        tqdm.write("\n".join([*map(printable, written), *([_table_of(rows)] if rows else [])]))

    return _each(request, one)


def _each(request: Request, work: Callable[[Path, str], None]) -> int:
    """Call work(path, stem) for each image. An image that fails does not end the batch; the errors are printed last.

    Returns:
        The exit code: 2 for a mistake in the only image, 1 if images of a batch failed or an error was unexpected.
    """
    jobs, failed = list(zip(request.paths, request.stems)), []
    code = 2 if len(jobs) == 1 else 1
    with logging_redirect_tqdm():
        for path, stem in tqdm(jobs, unit="image", disable=True if len(jobs) == 1 else None):
            try:
                work(path, stem)
            except BrokenPipeError:  # nobody reads the tables any more
                raise
            except Exception as error:
                failed.append(f"error: {file_error(error, printable(path.name))}")
                code = code if is_expected(error) else 1
                if is_full_disk(error):  # results of other images would not fit either
                    break
    if failed:
        print("\n".join(failed), file=sys.stderr)
        if len(jobs) > 1:
            print(f"{len(failed)} of {len(jobs)} images failed", file=sys.stderr)
    return code if failed else 0


def _segment_image(request: Request, predictor, path: Path, stem: str) -> tuple[list[Path], list[dict]]:
    """Segment a plain image; returns the written files and one row per class."""
    from skysense_o.inference.export import save

    args, vocabulary = request.args, request.vocabulary
    image = request.image or read_plain(path, args)
    segmentation = predictor(
        image,
        vocabulary,
        threshold=args.threshold,
        probabilities="probabilities" in request.formats,
        window=args.window,
        overlap=args.overlap,
        pixel_size=args.pixel_size,
    )
    settings = {
        "weights": predictor.source,
        "weights_sha256": predictor.sha256,
        "words": [list(phrases) for phrases in vocabulary.phrases],
        "background": list(vocabulary.background),
        "precision": args.precision,
        "device": str(predictor.model.device),
        "threshold": segmentation.threshold,
        "pixel_size": args.pixel_size,
        **({} if predictor.backend == "torch" else {"backend": predictor.backend}),
        "input": printable(path.name),
    }
    folder, colors, share = Path(args.output), request.colors, request.min_share
    written = save(segmentation, image.rgb, folder, stem, request.formats, settings, colors, share)
    calibrated = getattr(predictor.model, "presence_calibrated", False)
    presence = (segmentation.presence or {}) if calibrated else {}
    return written, [{**row, "presence": presence.get(row["name"])} for row in segmentation.areas()]


def _segment_scene(request: Request, predictor, path: Path, stem: str, processes) -> tuple[list[Path], list[dict]]:
    """Segment a scene; returns the written files and one row per class."""
    return scene_tools().run_scene(
        predictor,
        path,
        request.vocabulary,
        request.outputs(path, stem),
        scene_options(request.args),
        restart=request.args.restart,
        processes=processes,
    )


def _prompt_loop(request: Request) -> int:
    """Open the first image and read commands (words, points, boxes) from the terminal until the user quits."""
    from skysense_o.data.open_world import open_world
    from skysense_o.interactive.dialogue import Dialogue
    from skysense_o.interactive.opening import open_upload
    from skysense_o.interactive.session import Session

    args = request.args
    image = open_upload(request.paths[0], alone=False)
    session = Session(_load_predictor(args), image)
    loop = Dialogue(session, Path(args.output), lambda: open_world()[0])
    try:
        if args.classes:
            loop.cmdqueue.append(f"words {args.classes}")
        loop.cmdloop()
    finally:
        session.close()
    return 0


def _whole_images(request: Request) -> int:
    """--task classify ranks classes per image; --task ask answers questions about each image."""
    import torch

    from skysense_o.device import choose_device
    from skysense_o.inference.classify import classify, load_vqa_model

    args = request.args
    if args.task == "ask":
        check_words(args.question)
        model = load_vqa_model(args.weights, args.device, args.config_file, args.trust_checkpoint)
    else:
        predictor = _load_predictor(args)
        predictor.warn_unfamiliar(request.vocabulary)
        model = predictor.model

    def one(path: Path, stem: str) -> None:
        image, name = read_plain(path, args).filled(), printable(path.name)
        file = Path(args.output) / f"{stem}_{args.task}.json"
        body = {"input": name, "weights": args.weights}
        with torch.autocast(choose_device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
            if args.task == "ask":
                pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
                answers = model.answer([pixels] * len(args.question), args.question)
                body["answers"] = [{"question": q, "answer": a} for q, a in zip(args.question, answers, strict=True)]
                text = "\n".join(f"{name}: {row['question']} {row['answer']}" for row in body["answers"])
            else:
                rows = classify(model, image, request.vocabulary)
                body["names"] = [{"name": word, "cosine": round(score, 4)} for word, score in rows]
                text = f"{name}\n{tabulate(rows[:10], ['name', 'cosine'], floatfmt='.3f')}"
        write_json(file, body)
        tqdm.write(f"{text}\n{printable(file)}")

    return _each(request, one)


def _table_of(rows: list[dict]) -> str:
    """A table of class, pixels, share, and square metres and presence where they are known."""
    columns = ["class", "pixels", "share"]
    lines = [[row["name"], row["pixels"], f"{100 * row['share']:.1f} %"] for row in rows]
    for title, key, form in (("m2", "area_m2", "{:,.0f}"), ("present", "presence", "{:.2f}")):
        if any(row.get(key) is not None for row in rows):
            columns.append(title)
            for line, row in zip(lines, rows):
                line.append("" if row.get(key) is None else form.format(row[key]))
    return tabulate(lines, columns, intfmt=",", colalign=("left", *["right"] * (len(columns) - 1)))
