"""Run the steps of the data engine with the options of a command line."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from skysense_o.cli.cluster import cluster_of
from skysense_o.cli.engine_arguments import add_engine_arguments
from skysense_o.data_engine.review import cli as review_cli
from skysense_o.errors import install_extra

__all__ = ["add_engine_arguments", "run_engine"]


def _options(args: Namespace, names: str) -> dict:
    """The options that a step's files depend on, as JSON values. Paths are cut to file names, for privacy."""
    values = {name: getattr(args, name) for name in names.split()}
    values.update({name: value.name for name, value in values.items() if isinstance(value, Path)})
    return {name: [Path(v).name for v in value] if isinstance(value, list) else value for name, value in values.items()}


def _predictor(args: Namespace):
    from skysense_o.inference.predictor import Predictor

    if getattr(args, "predictor", None) is None:  # loaded once for all steps of "all"
        args.predictor = Predictor.from_pretrained(args.weights, args.device, args.config_file)
    return args.predictor


def _vocabulary(args: Namespace):
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
    from skysense_o.data_engine.propose import propose

    args.method = args.method or ("words" if args.classes or args.dataset else "superpixels")
    weights = "" if args.method == "sam" else _predictor(args).sha256
    words = list(_vocabulary(args).classes) if args.method == "words" else []
    options = {**_options(args, "method least coarse sam"), "weights": weights, "words": words}
    with _each(args, _proposer) as each, work.step("propose", options, args.restart):
        errors = propose(work, None, least=args.least, each=each)
    print(f"propose: regions of {len(work.kept()) - len(errors)} tiles")
    return [f"{e['tile']}: {e['error']}" for e in errors]


def _proposer(args: Namespace):
    from skysense_o.data_engine.propose import proposer

    predictor = None if args.method == "sam" else _predictor(args)
    vocabulary = _vocabulary(args) if args.method == "words" else None
    return proposer(
        args.method, predictor, vocabulary=vocabulary, sam=args.sam, device=_device(args), regions=args.coarse
    )


@contextmanager
def _each(args: Namespace, load: Callable[[Namespace], object]):
    """Context manager for the loop over tiles: with `load(args)` here, or on each worker of a Ray cluster."""
    from skysense_o.workers import here

    cluster = cluster_of(args)
    if cluster is None:
        yield here(load(args))
        return
    plain = {name: value for name, value in vars(args).items() if name != "predictor"}
    with cluster.each(partial(load, Namespace(**plain))) as each:
        yield each


def _device(args: Namespace) -> str:
    from skysense_o.device import choose_device

    return str(choose_device(args.device))


def _name(work, args) -> list[str]:
    from skysense_o.checkpoint import find_weights, weights_hash
    from skysense_o.data.relation_graph import load_graph
    from skysense_o.data_engine.name import name_regions

    predictor, free = _predictor(args), args.by in ("vlm", "service")
    words = [] if free else ["|".join(words) for words in _vocabulary(args).phrases]
    merge = args.synonyms if args.synonyms is not None else (0.85 if free else 2.0)
    graph = load_graph(args.graph) if args.graph else None
    options = {**_options(args, "by vlm vlm_name"), "words": words, "synonyms": merge, "weights": predictor.sha256}
    if args.by == "tower":
        options["tower"] = weights_hash(find_weights(args.tower))
    options["graph"] = Path(args.graph).name if args.graph else ""
    with _each(args, _namer) as each, work.step("name", options, args.restart):
        errors = name_regions(work, None, predictor.model, merge=merge, graph=graph, each=each)
    print(f"name: regions of {len(work.kept()) - len(errors)} tiles named")
    return [f"{e['tile']}: {e['error']}" for e in errors]


def _namer(args: Namespace):
    from skysense_o.data_engine.namers import TowerNamer, VocabularyNamer
    from skysense_o.data_engine.vlm_namer import VLMNamer, local_model, service
    from skysense_o.inference.classify import load_tower

    if args.by == "service":
        return VLMNamer(service(args.vlm_name))
    if args.by == "vlm":
        if args.vlm is None:
            raise ValueError("--by vlm needs --vlm DIR, a folder with an image-text-to-text model of transformers")
        return VLMNamer(local_model(args.vlm, _device(args)))
    vocabulary = _vocabulary(args)
    if args.by == "tower":
        tower, templates = load_tower(args.tower, args.device)
        return TowerNamer(tower, vocabulary, templates)
    return VocabularyNamer(_predictor(args), vocabulary, args.by)


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


RUN = {
    "collect": _collect,
    "deduplicate": _deduplicate,
    "propose": _propose,
    "name": _name,
    "review": _review,
    "graph": _graph,
    "publish": _publish,
}


def run_engine(args: Namespace) -> int:
    """Run a step, or all of them; the exit code is 1 if some images could not be read."""
    try:
        from skysense_o.data_engine.work_folder import WorkFolder

        work, errors = WorkFolder(args.work), []
        steps = [step for step in RUN if step != "review"] if args.step == "all" else [args.step]
        for step in steps:
            errors += RUN[step](work, args)
            args.restart = False  # the first step has also removed the files of the later steps
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "detectron2":
            raise
        missing = f"the data engine needs {error.name}, which is not installed: {install_extra('engine')}"
        raise ModuleNotFoundError(missing, name=error.name) from error
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0
