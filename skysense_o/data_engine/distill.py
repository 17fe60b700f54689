"""Distillation: a small model learns the soft masks that a strong model predicts for unlabelled tiles.

Shape letters: B images, C classes, H W pixels, h w grid.

Distillation has two steps, which share a work folder of the data engine. `label_softly` writes soft/<tile>.png, the
teacher's probabilities, and resumes an interrupted run. `teach` trains on these masks. A sample depends only on the
seed and its index, so a resumed run ends with the same weights as an uninterrupted run.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from skysense_o.data.augment import color_jitter
from skysense_o.data_engine.work_folder import WorkFolder, read_json, read_map, write_json, write_map
from skysense_o.image_io import ImageError
from skysense_o.inference.predictor import Predictor
from skysense_o.losses import soft_mask_divergence
from skysense_o.modeling import Queries
from skysense_o.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
STRIDE = 4
"""Stride of the soft masks, in pixels of the tile."""


def label_softly(work: WorkFolder, teacher: Predictor, vocabulary: Vocabulary) -> list[dict]:
    """Write the teacher's probabilities, rounded to multiples of 1/255, for each kept tile that has none yet.

    Returns:
        {"tile", "error"} for each tile that could not be read; a later call tries these tiles again.

    Raises:
        ValueError: the folder has soft masks that were made by another teacher or with other words.
    """
    said = {
        "teacher_sha256": teacher.sha256,
        "words": [list(words) for words in vocabulary.phrases],
        "background": list(vocabulary.background),
        **getattr(teacher.model, "settings", {}),
    }
    record = work / "soft/teacher.json"
    before = read_json(record) if record.is_file() else said
    different = sorted(key for key in {*said, *before} if said.get(key) != before.get(key))
    if different:
        raise ValueError(
            f"{record.parent} holds soft masks of another {' and '.join(different)}: give the same teacher and words as"
            " before, another --work, or remove that folder"
        )
    write_json(record, said)
    errors = []
    for row in tqdm(work.kept(), unit="tile", desc="soft masks"):
        path = work / f"soft/{row['tile']}.png"
        if path.is_file():
            continue
        try:
            seen = teacher.set_image(work.image(row))
        except (ImageError, FileNotFoundError) as error:
            errors.append({"tile": row["tile"], "error": str(error)})
            continue
        masks = seen.predict_text(vocabulary, "probabilities")["sem_seg"].float()
        cells = tuple(max(1, -(-side // STRIDE)) for side in masks.shape[-2:])
        grid = F.adaptive_avg_pool2d(masks[None], cells)[0]
        write_map(path, (grid * 255).round().byte().flatten(0, 1).cpu().numpy())  # one image: class below class
    return errors


class SoftMasks:
    """The tiles of a work folder with their soft masks."""

    def __init__(self, work: WorkFolder, side: int, divisor: int) -> None:
        """side: side of the crops in pixels, rounded down to a multiple of `divisor`; smaller tiles get mirrored edges.

        Raises:
            FileNotFoundError: the folder has no soft masks. ValueError: `side` is below `divisor`.
        """
        record = work / "soft/teacher.json"
        if not record.is_file():
            raise FileNotFoundError(f"no soft masks in {work.folder}: call `label_softly` first")
        said = read_json(record)
        self.vocabulary = Vocabulary(
            tuple(words[0] for words in said["words"]), tuple(map(tuple, said["words"])), tuple(said["background"])
        )
        if side < divisor:
            raise ValueError(f"INPUT.CROP_SIZE {side} is too small for the student: give {divisor} or more")
        self.work, self.side = work, side // divisor * divisor
        self.rows = [row for row in work.kept() if (work / f"soft/{row['tile']}.png").is_file()]

    def sample(self, seed: int, number: int) -> tuple[Tensor, Tensor]:
        """The sample with the index `number`: a crop with random rotation, flip and colours, uint8 (3,H,W), and the
        teacher's probabilities for it, (C,H/4,W/4).

        Each pass over all tiles has a new order.
        """
        epoch, place = divmod(number, len(self.rows))
        row = self.rows[np.random.default_rng((seed, epoch)).permutation(len(self.rows))[place]]
        rng = np.random.default_rng((seed, epoch, place))
        image, soft = self.work.image(row), read_map(self.work / f"soft/{row['tile']}.png")
        soft = soft.reshape(len(self.vocabulary), -1, soft.shape[-1])
        side = self.side
        lacking = [max(0, side - n) for n in image.shape[:2]]
        image = np.pad(image, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")
        lacking = [max(0, side // STRIDE - n) for n in soft.shape[1:]]
        soft = np.pad(soft, ((0, 0), (0, lacking[0]), (0, lacking[1])), mode="symmetric")
        y, x = (int(rng.integers(0, (n - side) // STRIDE + 1)) * STRIDE for n in image.shape[:2])
        image = image[y : y + side, x : x + side]
        soft = soft[:, y // STRIDE : (y + side) // STRIDE, x // STRIDE : (x + side) // STRIDE]
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        image, soft = np.rot90(image, turns), np.rot90(soft, turns, (1, 2))
        if mirrored:
            image, soft = image[:, ::-1], soft[:, :, ::-1]
        random.seed(int(rng.integers(2**31)))  # the jitter draws from the global generator
        image = color_jitter(1.0).apply_image(np.ascontiguousarray(image))
        return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(soft.copy()).float() / 255


def teach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    masks: SoftMasks,
    folder: Path,
    *,
    steps: int,
    batch: int,
    seed: int = 0,
    every: int = 50,
    clip: float = 1.0,
) -> list[float]:
    """Train a SkySenseO to predict the teacher's soft masks. `folder`/distill.pt is written regularly, and a later
    call resumes from it.

    Returns:
        the loss of each step of this call.
    """
    path, start, losses = folder / "distill.pt", 0, []
    if path.is_file():
        state = torch.load(path, map_location=model.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["step"]
        logger.info("%s: resumed at step %d", path, start)
    model.text_bank.weights_changed()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    progress = tqdm(range(start, steps), unit="step", desc="distil")
    for step in progress:
        torch.manual_seed(seed * 1_000_003 + step)  # seeds the noise that is added to the text embeddings
        images, targets = zip(*(masks.sample(seed, step * batch + i) for i in range(batch)))
        loss = divergence(model, images, targets, masks.vocabulary)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        progress.set_postfix(loss=f"{losses[-1]:.4f}")
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            part = path.with_suffix(".part")
            torch.save({**state, "scheduler": scheduler.state_dict()}, part)
            os.replace(part, path)
    model.eval()
    return losses


def divergence(model: nn.Module, images: Sequence[Tensor], targets: Sequence[Tensor], vocabulary: Vocabulary) -> Tensor:
    """The loss of a student on some crops: `soft_mask_divergence` from the teacher's masks, and if the student predicts
    whether a class is present, the cross-entropy with the teacher's largest probability of the class.
    """
    first = Vocabulary.of([words[:1] for words in vocabulary.phrases])  # the student learns each class's own name
    embedding, _, _ = model.embed_images(images)
    text, valid = model.text_bank(model.tower, [first] * len(images), model.templates)
    logits, presence, _ = model.sem_seg_head.decode(embedding, Queries(model.blur(text), valid))
    target = torch.stack(list(targets)).to(logits.device)
    loss = soft_mask_divergence(logits.float(), target)
    if presence is not None:
        loss = loss + 0.1 * F.binary_cross_entropy_with_logits(presence.float(), target.amax((2, 3)))
    return loss
