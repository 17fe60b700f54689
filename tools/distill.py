#!/usr/bin/env python
"""Distillation: train a small model on the masks that a strong model predicts for your images and words.

  python tools/data_engine.py collect --work work --input "survey/*.tif"
  python tools/distill.py --work work --teacher hf://facebook/sam3 --classes "building|house,road" --output output/small

The first command cuts the images into tiles. The second writes the teacher's soft masks into the work folder and trains
the student of --config-file on them; run the second command again to resume it. The demo and run_eval.sh accept the
student's weights, OUTPUT/student.safetensors.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

from skysense_o.errors import exit_code
from skysense_o.vocabulary import Vocabulary

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mini" / "distill.yaml"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True, metavar="DIR", help="work folder with collected tiles")
    p.add_argument("--teacher", default="mini", metavar="W", help="weights of the teacher (default: mini)")
    p.add_argument(
        "--teacher-config",
        default="",
        metavar="FILE",
        help="config of the teacher, if its weights do not contain the config",
    )
    p.add_argument(
        "--classes",
        required=True,
        metavar="WORDS",
        help='classes "a,b,c"; synonyms with bars, "a|b,c", are used by the teacher',
    )
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the student's weights and logs")
    p.add_argument(
        "--config-file", default=str(CONFIG), metavar="FILE", help="config of the student (default: mini/distill)"
    )
    p.add_argument("--device", default="auto", help="device: auto, cpu, cuda, ...")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="precision of the teacher")
    p.add_argument("options", nargs="*", metavar="KEY VALUE", help="changes to the student's config")
    return p


def run() -> int:
    args = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("skysense_o").setLevel(logging.INFO)
    from detectron2.solver import build_lr_scheduler

    from skysense_o.checkpoint import save_weights
    from skysense_o.config import default_config, merge_file, model_config
    from skysense_o.data_engine.distill import SoftMasks, label_softly, teach
    from skysense_o.data_engine.work_folder import WorkFolder
    from skysense_o.inference.predictor import Predictor
    from skysense_o.training.optimizer import build_optimizer
    from skysense_o.training.run import build_model, learning_rate

    cfg = default_config()
    merge_file(cfg, args.config_file)
    cfg.merge_from_list(args.options)
    cfg.MODEL.DEVICE = args.device
    if cfg.MODEL.META_ARCHITECTURE != "SkySenseO":
        raise ValueError(f"the student is a SkySenseO, not {cfg.MODEL.META_ARCHITECTURE!r}: give another --config-file")
    vocabulary, work, output = Vocabulary.parse(args.classes), WorkFolder(args.work), Path(args.output)
    work.kept()  # this raises an error if there are no tiles, before a model is loaded
    teacher = Predictor.from_pretrained(args.teacher, args.device, args.teacher_config or None, args.precision)
    errors = label_softly(work, teacher, vocabulary)
    for error in errors:
        logging.warning("%s: %s", error["tile"], error["error"])
    del teacher
    output.mkdir(parents=True, exist_ok=True)
    model = build_model(cfg, cfg.MODEL.ALLOW_MISSING)
    masks = SoftMasks(work, cfg.INPUT.CROP_SIZE, model.tower.divisor)
    optimizer = build_optimizer(model, cfg.SOLVER.GROUPS, learning_rate(cfg), cfg.SOLVER.LAYER_DECAY)
    losses = teach(
        model,
        optimizer,
        build_lr_scheduler(cfg, optimizer),
        masks,
        output,
        steps=cfg.SOLVER.MAX_ITER,
        batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        every=cfg.SOLVER.CHECKPOINT_PERIOD,
        clip=cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE,
    )
    path = output / "student.safetensors"
    save_weights(model, path, model_config(cfg).dump())
    if losses:
        print(f"{len(masks.rows)} tiles, {len(losses)} steps: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
    print(path)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
