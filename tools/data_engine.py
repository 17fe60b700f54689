#!/usr/bin/env python
"""Turn unlabelled images into a labelled data set in Sky-SA's format, step by step (data_engine.md).

python tools/data_engine.py all --input "survey/*.jpg" --classes "building|house,road,tree" --work output/survey
python tools/data_engine.py collect --input "survey/*.tif" --licence CC-BY-4.0 --credit "A. Person" --work output/survey
python tools/data_engine.py deduplicate --against ucmerced_test --work output/survey
python tools/data_engine.py propose --method superpixels --work output/survey
python tools/data_engine.py name --open-world --work output/survey
python tools/data_engine.py review --work output/survey
python tools/data_engine.py graph --work output/survey
python tools/data_engine.py publish --val 0.1 --work output/survey

Each step reads and writes plain files. To resume an interrupted step, run its command again.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data_engine.review import cli as review_cli
from skysense_o.errors import exit_code

HINT = 'which is not installed: pip install -e ".[engine]"'


def _input(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="images, rasters, folders, globs in quotes"
    )
    p.add_argument("--tile", type=int, default=512, metavar="PX", help="longest side of a tile (default: 512)")
    p.add_argument("--licence", default="", metavar="TEXT", help="licence of these images, for the catalogue")
    p.add_argument("--credit", default="", metavar="TEXT", help="author or owner of these images, for the catalogue")
    p.add_argument("--gsd", type=float, metavar="M", help="metres per pixel of images that are not georeferenced")


def _duplicates(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--bits", type=int, default=8, help="duplicates differ in at most this many of 256 hash bits (default: 8)"
    )
    p.add_argument(
        "--distance", type=float, default=0.005, help="largest 1 - cosine of duplicates' embeddings (default: 0.005)"
    )
    p.add_argument("--against", nargs="+", default=[], metavar="NAME", help="leave out tiles like images of these sets")
    p.add_argument("--hashes-only", action="store_true", help="compare hashes only: fast, but misses shifted copies")


def _regions(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--method",
        choices=("superpixels", "words", "everything", "sam"),
        help="how to find regions (default: words with --classes or --dataset, else superpixels)",
    )
    p.add_argument(
        "--least", type=int, default=100, metavar="PX", help="merge regions smaller than this (default: 100)"
    )
    p.add_argument(
        "--coarse",
        type=float,
        default=1.0,
        help="for superpixels: above 1 gives fewer regions, below 1 more (default: 1)",
    )
    p.add_argument("--sam", type=Path, metavar="FILE", help="for sam: a Segment Anything checkpoint")


def _words(p: argparse.ArgumentParser) -> None:
    words = p.add_mutually_exclusive_group()
    words.add_argument("--classes", metavar="WORDS", help='classes, "a,b,c"; synonyms with bars, "a|b,c"')
    words.add_argument("--dataset", metavar="NAME", help="classes of datasets/classes/NAME.json")
    words.add_argument("--open-world", action="store_true", help="some 370 classes of all kinds (the default)")
    p.add_argument("--background", default="", metavar="WORDS", help="background classes; they are never written")


def _naming(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--by",
        default="masks",
        choices=("masks", "features", "tower", "vlm", "service"),
        help="what names regions: the model's masks (default) or features; an image-text tower; a local vision-language"
        " model (vlm); a vision-language model behind HTTP (service)",
    )
    p.add_argument(
        "--tower",
        default="mini_vqa",
        metavar="W",
        help="for tower: weights with an image-text tower (default: mini_vqa)",
    )
    p.add_argument("--vlm", type=Path, metavar="DIR", help="for vlm: a folder with an image-text-to-text model")
    p.add_argument("--vlm-name", default="", metavar="NAME", help="for service: the model's name on the server")
    p.add_argument(
        "--synonyms",
        type=float,
        metavar="COS",
        help="merge names whose text embeddings have at least this cosine (default: 0.85 for free text, else none)",
    )
    p.add_argument("--graph", metavar="FILE", help="relation graph: merge only names that it does not call dissimilar")


def _sure(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--confidence", type=float, default=0.5, help="leave out names below this, unless reviewed (default: 0.5)"
    )


def _publishing(p: argparse.ArgumentParser) -> None:
    p.add_argument("--val", type=float, default=0.1, help="share of tiles for validation (default: 0.1)")
    p.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    p.add_argument(
        "--group", default="", metavar="REGEX", help=r'keep files with the same match in one split: "(scene\d+)_"'
    )
    p.add_argument("--title", default="", help="title of the data sheet")


def _model(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' or a file (default: mini)")
    p.add_argument("--config-file", metavar="FILE", help="model config, for weights that do not contain it")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = p.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, (text, groups, _) in STEPS.items():
        step = steps.add_parser(name, help=text, description=text)
        step.add_argument("--work", required=True, metavar="DIR", help="work folder of all steps; created if missing")
        if name != "review":  # reviewers' decisions are never deleted
            step.add_argument(
                "--restart", action="store_true", help="repeat this step; deletes its and later steps' files"
            )
        for add in groups:
            add(step)
    return p


def _options(args: argparse.Namespace, names: str) -> dict:
    """The options that a step's files depend on, as JSON values. Paths are cut to file names, for privacy."""
    values = {name: getattr(args, name) for name in names.split()}
    values.update({name: value.name for name, value in values.items() if isinstance(value, Path)})
    return {name: [Path(v).name for v in value] if isinstance(value, list) else value for name, value in values.items()}


def _predictor(args: argparse.Namespace):
    from skysense_o.inference.predictor import Predictor

    if getattr(args, "predictor", None) is None:  # loaded once for all steps of "all"
        args.predictor = Predictor.from_pretrained(args.weights, args.device, args.config_file)
    return args.predictor


def _vocabulary(args: argparse.Namespace):
    from skysense_o.data.classes import load_classes
    from skysense_o.data.open_world import open_world
    from skysense_o.vocabulary import Vocabulary
    from skysense_o.words import split_words

    extra = split_words(args.background)
    if args.classes:
        return Vocabulary.parse(args.classes, args.background)
    if args.dataset:
        table = load_classes(args.dataset)
        return Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)], extra)
    return open_world(extra)[0]


def _collect(work, args) -> list[str]:
    from skysense_o.data_engine.collect import collect
    from skysense_o.image_io import find_images

    images = find_images(args.input)
    with work.step("collect", _options(args, "tile"), args.restart):
        done = collect(work, images, side=args.tile, licence=args.licence, credit=args.credit, gsd=args.gsd)
    empty = f", {done.empty} parts without data left out" if done.empty else ""
    print(f"collect: {done.tiles} tiles, {done.sources} images read now{empty}, {len(done.errors)} unreadable")
    return [e["error"] for e in done.errors]


def _deduplicate(work, args) -> list[str]:
    from skysense_o.data_engine.deduplicate import deduplicate

    predictor = None if args.hashes_only else _predictor(args)
    sha = predictor.sha256 if predictor else ""
    side = work.options("collect").get("tile", 512)
    with work.step("deduplicate", {**_options(args, "bits distance against"), "weights": sha}, args.restart):
        rows = deduplicate(work, predictor, bits=args.bits, distance=args.distance, against=args.against, side=side)
    why = {reason: sum(row["why"] == reason for row in rows) for reason in ("hash", "embedding", "leak")}
    kept = sum(row["kept"] for row in rows)
    print(f"deduplicate: {kept} of {len(rows)} tiles kept; left out: " + ", ".join(f"{n} {w}" for w, n in why.items()))
    return []


def _propose(work, args) -> list[str]:
    from skysense_o.data_engine.propose import propose, proposer

    args.method = args.method or ("words" if args.classes or args.dataset else "superpixels")
    predictor = None if args.method == "sam" else _predictor(args)
    vocabulary = _vocabulary(args) if args.method == "words" else None
    find = proposer(
        args.method, predictor, vocabulary=vocabulary, sam=args.sam, device=_device(args), regions=args.coarse
    )
    options = {**_options(args, "method least coarse sam"), "weights": predictor.sha256 if predictor else ""}
    options["words"] = list(vocabulary.classes) if vocabulary else []
    with work.step("propose", options, args.restart):
        errors = propose(work, find, least=args.least)
    print(f"propose: regions of {len(work.kept()) - len(errors)} tiles")
    return [f"{e['tile']}: {e['error']}" for e in errors]


def _device(args: argparse.Namespace) -> str:
    from skysense_o.device import choose_device

    return str(choose_device(args.device))


def _name(work, args) -> list[str]:
    from skysense_o.checkpoint import find_weights, weights_hash
    from skysense_o.data.relation_graph import load_graph
    from skysense_o.data_engine.name import name_regions

    predictor = _predictor(args)
    namer, words = _namer(args, predictor)
    merge = args.synonyms if args.synonyms is not None else (0.85 if namer.free else 2.0)
    graph = load_graph(args.graph) if args.graph else None
    options = {**_options(args, "by vlm vlm_name"), "words": words, "synonyms": merge, "weights": predictor.sha256}
    if args.by == "tower":
        options["tower"] = weights_hash(find_weights(args.tower))
    options["graph"] = Path(args.graph).name if args.graph else ""
    with work.step("name", options, args.restart):
        errors = name_regions(work, namer, predictor.model, merge=merge, graph=graph)
    print(f"name: regions of {len(work.kept()) - len(errors)} tiles named")
    return [f"{e['tile']}: {e['error']}" for e in errors]


def _namer(args: argparse.Namespace, predictor):
    from skysense_o.data_engine.namers import TowerNamer, VocabularyNamer
    from skysense_o.data_engine.vlm_namer import VLMNamer, local_model, service
    from skysense_o.inference.classify import load_tower

    if args.by == "service":
        return VLMNamer(service(args.vlm_name)), []
    if args.by == "vlm":
        if args.vlm is None:
            raise ValueError("--by vlm needs --vlm DIR, a folder with an image-text-to-text model of transformers")
        return VLMNamer(local_model(args.vlm, _device(args))), []
    vocabulary = _vocabulary(args)
    words = ["|".join(words) for words in vocabulary.phrases]
    if args.by == "tower":
        tower, templates = load_tower(args.tower, args.device)
        return TowerNamer(tower, vocabulary, templates), words
    return VocabularyNamer(predictor, vocabulary, args.by), words


def _review(work, args) -> list[str]:
    review_cli.run_review(args)
    return []


def _graph(work, args) -> list[str]:
    from skysense_o.data_engine.build_graph import build_relation_graph

    predictor = _predictor(args)
    with work.step("graph", {**_options(args, "confidence"), "weights": predictor.sha256}, args.restart):
        graph = build_relation_graph(work, predictor, confidence=args.confidence)
    print(
        f"graph: {len(graph)} classes, {int((graph.scores > 0).sum())} relations -> {work / 'graph/skysa_graph.jsonl'}"
    )
    return []


def _publish(work, args) -> list[str]:
    from skysense_o.data_engine.publish import publish

    with work.step("publish", _options(args, "confidence val seed group title"), args.restart):
        s = publish(work, confidence=args.confidence, val=args.val, seed=args.seed, group=args.group, title=args.title)
    images = s["images"]
    parts = ", ".join(f"{images.get(part, 0)} {part}" for part in ("train", "val"))
    print(f"publish: {images['all']} images ({parts}), {s['pairs']} pairs, {s['names']} classes -> {work / 'set'}")
    print(f"train on it: DATASETS.TRAIN \"('{work / 'set'}:train',)\"; check it: tools/check_dataset.py {work / 'set'}")
    return []


Step = tuple[str, Iterable[Callable], Callable]
STEPS: dict[str, Step] = {
    "collect": ("cut images and rasters into tiles and list them in a catalogue", [_input], _collect),
    "deduplicate": ("leave out near duplicates and images of test sets", [_duplicates, _model], _deduplicate),
    "propose": ("divide each tile into regions", [_regions, _words, _model], _propose),
    "name": ("give each region a name, a confidence and candidates", [_naming, _words, _model], _name),
    "review": ("let people accept, rename, merge, split or reject regions", [review_cli.add_arguments], _review),
    "graph": ("score the similarity of all classes from 1 to 10", [_sure, _model], _graph),
    "publish": ("write the data set: images, labels, split, statistics, data sheet", [_sure, _publishing], _publish),
    "all": (
        "run every step except review",
        [_input, _duplicates, _regions, _naming, _words, _sure, _publishing, _model],
        None,
    ),
}


def run() -> int:
    args = parser().parse_args()
    try:
        from skysense_o.data_engine.work_folder import WorkFolder

        work, errors = WorkFolder(args.work), []
        steps = [s for s in STEPS if s not in ("review", "all")] if args.step == "all" else [args.step]
        for step in steps:
            errors += STEPS[step][2](work, args)
            args.restart = False  # the first step has removed the files of the others
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the data engine needs {error.name}, {HINT}", name=error.name) from error
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
