"""The review command: the web page, import and export, agreement, and the final result."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from skysense_o.errors import install_extra
from skysense_o.text_files import parse_json
from skysense_o.vocabulary import read_class_file
from skysense_o.whole_files import write_text

FORMATS = ("label-studio", "coco")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the review, except --work, which all steps share."""
    parser.add_argument(
        "--reviewer", default="", metavar="NAME", help="name of the reviewer (default: the page asks for it)"
    )
    parser.add_argument(
        "--round", type=int, default=1, metavar="N", help="1: all regions; 2 and up: disagreements only (default: 1)"
    )
    parser.add_argument("--names", metavar="FILE", help="further class names to suggest, one per line")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=7870, help="port of the page (default: 7870)")
    parser.add_argument("--agreement", action="store_true", help="print kappa, alpha and disagreements; open no page")
    parser.add_argument("--export", choices=FORMATS, help="write the regions in this format to the file given by --to")
    parser.add_argument("--to", metavar="FILE", help="output file of --export")
    parser.add_argument("--import", dest="source", metavar="FILE", help="read annotations: COCO or Label Studio JSON")
    parser.add_argument("--finish", action="store_true", help="write the majority decisions to review/final")


def run_review(args: argparse.Namespace) -> None:
    """Run the review command.

    Raises:
        ValueError: options do not go together, or a file cannot be imported.
        FileNotFoundError: there are no regions to review, or a file does not exist.
    """
    from skysense_o.data_engine.review.session import Review

    if (args.export is None) != (args.to is None):
        raise ValueError("--export FORMAT and --to FILE go together")
    if args.round < 1:
        raise ValueError(f"--round {args.round} is out of range: 1, 2, ...")
    review = Review(Path(args.work))
    for line in review.log.bad:
        print(f"warning: {line}", file=sys.stderr)
    if args.source:
        _import(review, Path(args.source), args)
    if args.export:
        _export(review, args.export, Path(args.to), args.reviewer or None)
    if args.agreement:
        from skysense_o.data_engine.review.agreement import agreement

        print(agreement(review).text())
    if args.finish:
        _finish(review)
    if not (args.source or args.export or args.agreement or args.finish):
        _serve(review, args)


def _import(review, path: Path, args: argparse.Namespace) -> None:
    from skysense_o.data_engine.review.coco import from_coco
    from skysense_o.data_engine.review.exchange import take_over
    from skysense_o.data_engine.review.label_studio import from_label_studio

    data = parse_json(path.read_bytes(), str(path))
    if isinstance(data, dict) and {"images", "annotations", "categories"} <= set(data):
        who = args.reviewer or "coco"
        imported = {(who, tile): rows for tile, rows in from_coco(review, data).items()}
    elif isinstance(data, list):
        imported = from_label_studio(review, data, args.reviewer or "label-studio")
    else:
        raise ValueError(f"{path} is neither a COCO file nor Label Studio's JSON, a list of tasks")
    counts: Counter = Counter()
    for (who, tile), rows in sorted(imported.items()):
        counts += take_over(review, who, tile, rows, args.round)
    unread = Counter(one.unread for rows in imported.values() for one in rows if one.unread)
    if unread:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(unread.items()))
        print(f"results of these types were not read, and nothing was decided on their regions: {listed}")
    actions = ", ".join(f"{count} {action}" for action, count in sorted(counts.items())) or "nothing new"
    tiles, people = ({key[k] for key in imported} for k in (1, 0))
    print(f"{len(tiles)} tiles of {len(review.tiles)}, by {', '.join(sorted(people)) or 'nobody'}: {actions}")
    if len(tiles) < len(review.tiles):
        print(f"{len(review.tiles) - len(tiles)} tiles have no annotations in the file; nothing was decided on them")


def _export(review, format: str, path: Path, reviewer: str | None) -> None:
    from skysense_o.data_engine.review.coco import to_coco
    from skysense_o.data_engine.review.exchange import UNNAMED
    from skysense_o.data_engine.review.label_studio import labelling_config, to_label_studio

    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "coco":
        write_text(path, json.dumps(to_coco(review, reviewer)))
        print(f"{len(review.tiles)} tiles -> {path}")
        return
    write_text(path, json.dumps(to_label_studio(review, reviewer)))
    decided = {d.name for history in review.log.history.values() for d in history if d.name}
    config = path.with_suffix(".xml")
    write_text(config, labelling_config(review.tiles.names() | decided | {UNNAMED}))
    print(f"{len(review.tiles)} tiles -> {path}; the project's labelling interface -> {config}")


def _finish(review) -> None:
    from skysense_o.data_engine.review.finish import finish

    done = finish(review)
    print(
        f"{done.tiles} tiles: {done.kept} regions named, {done.rejected} rejected -> {review.work / 'review' / 'final'}"
    )
    if done.open:
        print(f"{len(done.open)} regions are left out and will be ignored in training; --round 2 reviews them:")
        for tile, region, why in done.open[:20]:
            print(f"  {tile}, region {region}: {why}")
        if len(done.open) > 20:
            print(f"  and {len(done.open) - 20} more")


def _serve(review, args: argparse.Namespace) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: no usage data is sent
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the review page needs gradio: {install_extra('engine')}", name="gradio") from error
    from skysense_o.data_engine.review.page import CSS, ReviewPage, build_page, page_script
    from skysense_o.data_engine.review.serving import serve_review

    names = read_class_file(args.names) if args.names else []
    root = Path(tempfile.mkdtemp(prefix="skysense_o_review_"))
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    try:
        page = ReviewPage(review, names, args.reviewer, args.round)
        serve_review(build_page(page), root, args.host, args.port, css=CSS, head=page_script())
    finally:
        shutil.rmtree(root, ignore_errors=True)
