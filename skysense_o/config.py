"""The config keys that SkySense-O adds to Detectron2's, with defaults and reasons."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from skysense_o.errors import message
from skysense_o.renamed_keys import with_new_names
from skysense_o.shipped_files import find_config
from skysense_o.text_files import parse_yaml


def add_skysense_o_config(cfg: CfgNode) -> None:
    """Add our keys to a Detectron2 config; an unknown key in a YAML stays an error."""
    cfg.MODEL.META_ARCHITECTURE = "SkySenseO"
    cfg.MODEL.DEVICE = "auto"  # cuda if available, else cpu
    cfg.MODEL.GSD = 0.0  # metres per pixel of the training images, to warn about other scales; 0: unknown

    # What the weights were trained on. Training fills these keys in, and inference warns about other words and scales.
    cfg.MODEL.KNOWN = CfgNode()
    cfg.MODEL.KNOWN.CLASSES = []  # each class with its synonyms, separated by bars; [] if unknown
    cfg.MODEL.KNOWN.BLEND = -1.0  # 0..1: share of similar training words in the vector of another word; -1: not set
    cfg.MODEL.KNOWN.DATASETS = []
    cfg.MODEL.KNOWN.KINDS = []  # concepts that are kinds of others, see `Kinds`; [] if unknown
    cfg.MODEL.KNOWN.GSD = []  # least and greatest metres per pixel; [] if unknown
    cfg.MODEL.KNOWN.PRESENCE = []  # calibration of the presence of a class, see `Presence`; [] if not calibrated

    # The image-text tower.
    cfg.MODEL.TOWER = CfgNode()
    cfg.MODEL.TOWER.NAME = "MiniTower"
    cfg.MODEL.TOWER.PRETRAINED = True  # start the image encoder from ImageNet weights; False if a checkpoint is loaded
    # Side of the square to which images are resized for classification, as in pretraining; 0: INPUT.CROP_SIZE.
    cfg.MODEL.TOWER.SCENE_SIDE = 0
    cfg.MODEL.TOWER.WIDTH = 96  # channels of the pyramid; with 96 a 512 x 512 image takes 0.14 s on 2 cores

    # Recompute the tower's activations in the backward pass: less memory, 1/3 more time.
    cfg.MODEL.TOWER.RECOMPUTE = False
    # In inference on a CPU, store linear layers in the order in which oneDNN multiplies them, which is faster.
    # For SkySenseCLIP only; loading takes longer.
    cfg.MODEL.TOWER.PACKED = False
    cfg.MODEL.TOWER.LORA_RANK = 0  # rank of LoRA updates of the tower's (then frozen) attention weights; 0: no LoRA

    # SkySenseCLIP, with the sizes of the published weights.
    cfg.MODEL.TOWER.INPUT_SIZE = 384  # side of the square to which images are resized; 0: original size
    cfg.MODEL.TOWER.SWIN = CfgNode()
    cfg.MODEL.TOWER.SWIN.DIM = 352
    cfg.MODEL.TOWER.SWIN.DEPTHS = [2, 2, 18, 2]
    cfg.MODEL.TOWER.SWIN.HEADS = [8, 16, 32, 64]
    cfg.MODEL.TOWER.SWIN.WINDOWS = [8, 8, 8, 16]
    cfg.MODEL.TOWER.SWIN.PRETRAINED_WINDOWS = [0, 0, 0, 8]
    cfg.MODEL.TOWER.SWIN.EXTRA_NORM_EVERY = 6
    cfg.MODEL.TOWER.SWIN.DROP_PATH = 0.2
    cfg.MODEL.TOWER.CLIP_TEXT = CfgNode()
    cfg.MODEL.TOWER.CLIP_TEXT.WIDTH = 1024
    cfg.MODEL.TOWER.CLIP_TEXT.HEADS = 16
    cfg.MODEL.TOWER.CLIP_TEXT.LAYERS = 24
    cfg.MODEL.TOWER.CLIP_TEXT.OUTPUT_DIM = 1024

    # OpenCLIPTower.
    cfg.MODEL.TOWER.OPEN_CLIP = CfgNode()
    cfg.MODEL.TOWER.OPEN_CLIP.NAME = "ViT-B-32"  # a model name of open_clip, or hf-hub:org/repo, or local-dir:folder
    cfg.MODEL.TOWER.OPEN_CLIP.WEIGHTS = ""  # a file (RemoteCLIP, GeoRSCLIP) or a tag of open_clip (laion2b_s34b_b79k)

    # Self-attention of a ViT's last block, a sum of qq, kk and vv (see `ViTReader`); []: only its values (MaskCLIP).
    cfg.MODEL.TOWER.OPEN_CLIP.ATTENTION = []
    cfg.MODEL.TOWER.OPEN_CLIP.RESIDUAL = False  # with ATTENTION: keep the last block's residual and feed-forward layer

    # The mask decoder. SAMMaskHead has the sizes of Segment Anything, so that weights of Segment Anything fit.
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "SAMMaskHead"
    head.WIDTH = 256
    head.DEPTH = 2
    head.HEADS = 8
    head.MLP = 2048
    head.SHARED_TOKENS = 5
    head.PRESENCE = True  # predict whether a phrase is in the image; trained by MODEL.LOSS.PRESENCE
    head.SAM_WEIGHTS = ""  # start SAMMaskHead from the decoder of a Segment Anything checkpoint, such as sam_vit_b.pth
    head.PROMPTS = False  # accept clicks and boxes; trained by MODEL.LOSS.PROMPT
    head.CLASS_MAPS = False  # clicks and boxes also use the probabilities of classes, see class_maps.py
    head.PHRASE_CHUNK = 256  # phrases decoded at a time; affects memory, not results

    # CostAggregationHead: sizes of the published weights.
    head.HIDDEN = 128
    head.WINDOW = 12
    head.PAD_LEN = 256  # class attention is padded to this number of phrases; other values change every mask
    # After the first layer, drop phrases whose cosine is in every cell more than this below the best phrase's; 0: off.
    head.PRUNE = 0.0
    head.MAX_CLASSES = 256  # only this many of the best phrases are decoded, as published; 0: all

    # TrainingFreeHead: masks from a tower without training.
    head.TRAINING_FREE = CfgNode()
    head.TRAINING_FREE.TEMPERATURE = 0.02  # temperature of the softmax over phrases; CLIP learned about 0.01
    head.TRAINING_FREE.GLOBAL_BIAS = 0.3  # factor of the global token, which is subtracted from each cell (SegEarth-OV)
    head.TRAINING_FREE.UPSAMPLING = "bilateral"  # bilinear, or bilateral: along the image's edges, SCALE times finer
    head.TRAINING_FREE.SCALE = 4
    head.TRAINING_FREE.SPATIAL_SIGMA = 0.7  # of the bilateral filter, in cells of the coarse grid
    head.TRAINING_FREE.COLOUR_SIGMA = 0.4  # of the bilateral filter, in values of the normalised image
    head.TRAINING_FREE.AFFINITY = ""  # a DINOv2 or DINOv3 ViT of timm whose features group cells; "": none
    head.TRAINING_FREE.AFFINITY_SHIFT = 1.2  # cosines below this factor times the mean cosine do not count (ProxyCLIP)
    head.TRAINING_FREE.AFFINITY_SCALE = 3.0  # scale of the cosines in the softmax over cells (ProxyCLIP)

    # SAM 3 (MODEL.META_ARCHITECTURE Sam3; MODEL.WEIGHTS hf://facebook/sam3 or a folder).
    cfg.MODEL.SAM3 = CfgNode()
    cfg.MODEL.SAM3.FUSE = "max"  # semantic: only the semantic map; instances: mask times score; max: the larger of both
    cfg.MODEL.SAM3.PRESENCE = "window"  # multiply by a phrase's presence score in the "window" or "image", or "none"
    cfg.MODEL.SAM3.WEAK_PHRASE = 0.0  # phrases with a lower presence score count as absent; 0: off
    cfg.MODEL.SAM3.INSTANCE_SCORE = 0.5  # lowest score (times presence score) of an instance; --threshold overrides it
    cfg.MODEL.SAM3.INSTANCES = True  # boxes, COCO and polygons show instances, not regions of the label map
    cfg.MODEL.SAM3.PHRASE_CHUNK = 4  # image-phrase pairs at a time, about 0.5 GB each; affects memory, not results

    # Questions about images (MODEL.META_ARCHITECTURE EmbeddedVQA or LlavaVQA).
    cfg.MODEL.VQA = vqa_model = CfgNode()
    # Weights of the model that answers questions when another model is evaluated. If this model can classify images
    # and compare captions, it does so as well.
    vqa_model.WEIGHTS = ""
    vqa_model.ANSWERS = []  # EmbeddedVQA: list of possible answers; empty: all answers of DATASETS.TRAIN
    vqa_model.SIDE = 256  # side of the square to which images are resized
    vqa_model.WIDTH = 256
    vqa_model.GRID = 8  # the image is pooled to a grid of GRID x GRID cells
    vqa_model.DROPOUT = 0.3  # high, because the model soon memorises a few thousand questions
    vqa_model.COUNTING = False  # EmbeddedVQA: an answer that is a number is computed from a density map of objects
    vqa_model.LANGUAGE_MODEL = "lmsys/vicuna-7b-v1.5"  # LlavaVQA: name or folder of the model; as published
    vqa_model.LANGUAGE_LORA_RANK = 0  # rank of LoRA updates of the language model; 0: the model is frozen
    vqa_model.PRECISION = "bf16"  # precision of the language model: bf16 or fp32
    vqa_model.MOST_TOKENS = 16  # longest answer, in tokens; answers are words or phrases

    # Reproduce an error of the published code, for comparison with published numbers: padding is not removed.
    cfg.MODEL.REFERENCE_COMPAT = False

    # Patterns of parameters that may be missing in MODEL.WEIGHTS in training; they are initialised randomly. Other
    # missing parameters are errors. In evaluation, all missing parameters are errors.
    cfg.MODEL.ALLOW_MISSING = []

    # Patterns of tensors in MODEL.WEIGHTS that are ignored if the model has no such parameter; other unexpected tensors
    # are errors. The default covers pretraining heads, the prompt encoder and the counter.
    cfg.MODEL.IGNORE_UNEXPECTED = ["^pretraining\\.", "^sem_seg_head\\.prompt", "^counter\\."]

    # Text. A phrase is inserted into each template, and the unit vectors of the resulting texts are averaged.
    cfg.MODEL.TEMPLATES = ["{}"]
    cfg.MODEL.TEXT_NOISE = 0.0  # expected length of Gaussian noise on text embeddings in training (regularisation)

    # Weights of the losses; a term of weight 0 is not computed. See losses.py.
    cfg.MODEL.LOSS = loss = CfgNode()
    loss.BCE = 1.0
    loss.FOCAL = 0.0
    loss.CROSS_ENTROPY = 0.0
    loss.DICE = 0.0
    loss.PRESENCE = 0.1
    loss.REGION = 0.0
    loss.REGION_PUBLISHED = 0.0  # region loss of the published code: BCE of min-max scaled cosines
    loss.VISION_CENTRIC = 0.0  # vision-centric loss as in the paper, where it and the region loss have the weight 0.4
    loss.VISION_CENTRIC_PUBLISHED = 0.0  # vision-centric loss as in the published code, which differs from the paper
    loss.PROMPT = 0.0  # clicks and boxes: Dice, BCE, and squared error of the predicted IoU
    loss.CORRECTION = 0.0  # corrections of the masks of clicks and boxes, with CLASS_MAPS: Dice and BCE
    loss.PROMPT_ROUNDS = 2  # predictions per prompt in a training step, with a corrective click between two of them
    loss.REGION_TEMPERATURE = 0.07  # CLIP's initial temperature
    loss.REGION_UPSCALE = 0  # 16: pool regions from the published code's feature map (269.7 M parameters); 0: off
    loss.IGNORED_AS_NEGATIVE = False  # BCE: ignored pixels are negatives of every class, as published
    loss.BAGS = 0.0  # for words that are known to be in an image, without their place (`partial_losses.bags`)
    loss.CANDIDATES = 0.0  # for data sets of one class, whose other pixels show one of several common classes
    loss.CAPTIONS = 0.0  # for choosing the caption of an image among several captions; in mixed training
    loss.GRID = 2  # for partly labelled samples: the losses are computed on cells of this many label pixels a side
    loss.CLASS_CHUNK = 64  # classes per chunk of the pixel losses; affects memory, not results

    # Pretraining (MODEL.META_ARCHITECTURE ImageTextPretraining): weights of its terms, 0: not computed.
    cfg.PRETRAIN = CfgNode()
    cfg.PRETRAIN.IMAGE_TEXT = 1.0
    cfg.PRETRAIN.IMAGE_IMAGE = 1.0
    cfg.PRETRAIN.RECONSTRUCTION = 1.0
    cfg.PRETRAIN.SIGMOID = False  # pairwise sigmoid loss for image and text, which needs no large batch
    cfg.PRETRAIN.IMAGE_TEMPERATURE = 0.1  # temperature of the image-image contrast, as in SimCLR
    cfg.PRETRAIN.CHUNK = 0  # images whose activations are in memory at a time; 0: all
    cfg.PRETRAIN.CROP_SHARE = [0.4, 1.0]  # smallest and largest share of an image's area that a random view shows
    cfg.PRETRAIN.BLOCK = 32  # side of hidden blocks in pixels, as in SimMIM
    cfg.PRETRAIN.HIDDEN = 0.6  # share of hidden blocks, as in SimMIM; the paper has no number

    # Training images.
    # labels: label images; captions; questions: questions with answers; mixed: any labels, see mixed_mapper
    cfg.INPUT.MAPPER = "labels"
    cfg.INPUT.POINTS = ""  # annotated objects for VQA.COUNTING: a file of datasets/points, or a full path
    cfg.INPUT.CROP_SIZE = 256  # side of training crops, in pixels
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]  # log-uniform scale of crops; wide, because pixel sizes are seldom known
    cfg.INPUT.SINGLE_CATEGORY_MAX_AREA = 0.75  # draw another crop if a class fills more of it; 1.0: never
    cfg.INPUT.TURN = True  # rotate by multiples of 90 degrees, because aerial images have no upright direction
    cfg.INPUT.COLOR_JITTER = 1.0  # strength; 1 as in SSD: brightness +-32, contrast and saturation 0.5..1.5, hue +-18

    cfg.INPUT.PROMPTS = 0  # clicks and boxes per image; required if MODEL.LOSS.PROMPT is above 0

    # Training words.
    cfg.INPUT.SYNONYMS = True  # draw a class's name or one of its synonyms
    cfg.INPUT.DISTRACTORS = 4  # negative classes per sample, from INPUT.DISTRACTOR_FILE
    cfg.INPUT.DISTRACTOR_FILE = "distractors.txt"  # a file of datasets/classes, one class per line
    cfg.INPUT.TEXT_BATCH = 0  # classes per sample; published: 100; 0: the classes of the image plus DISTRACTORS
    cfg.INPUT.GRAPH = ""  # relation graph to draw negatives from; splits named graph_* have their own graph
    # Lowest and highest graph score of negatives, then of classes that are too similar to be negatives; as published.
    cfg.INPUT.SAMPLING_HYPER = [1, 3, 9, 10]

    # Mixed training (INPUT.MAPPER mixed).
    cfg.INPUT.BOX_MASKS = ""  # output folder of tools/box_masks.py; required by data sets with boxes
    cfg.INPUT.WORDS = 14  # classes per sample; the classes of the image come first
    cfg.INPUT.HYPERNYMS = 0.3  # probability of adding a more general word for a class of the image
    cfg.INPUT.CAPTIONS = 32  # captions to choose from per image, the image's own included; 0: read none

    # Data.
    cfg.DATASETS.WEIGHTS = ()  # samples per round of each set of TRAIN, whole numbers; (): in proportion to size
    cfg.DATASETS.FOLDERS = []  # your own folders with a dataset.yaml; their splits are named <name>_<split>
    cfg.DATALOADER.SKIP_BAD = False  # skip files that cannot be used and list them, instead of stopping

    # Optimiser: ordered [pattern, learning-rate factor, weight decay]; the first pattern found in a name wins.
    cfg.SOLVER.GROUPS = [[".", 1.0, 1e-4]]
    cfg.SOLVER.PRECISION = "auto"  # no, bf16, fp16 (Accelerate's mixed precision); auto: bf16 if the device supports it
    cfg.SOLVER.ACCUMULATION = 1  # micro-batches per step; IMS_PER_BATCH is the total per step
    cfg.SOLVER.SHARD = False  # FSDP2 instead of DDP: shard parameters, gradients and optimizer state over processes
    cfg.SOLVER.LR_BATCH = 0  # batch size that BASE_LR is for; LR_RULE scales BASE_LR for others; 0: no scaling
    cfg.SOLVER.LR_RULE = "sqrt"  # sqrt (for Adam: Malladi et al. 2022) or linear (for SGD: Goyal et al. 2017)
    cfg.SOLVER.LAYER_DECAY = 1.0  # learning rate of a layer of the image tower, relative to the layer above
    cfg.SOLVER.CHECKPOINTS_KEPT = 3  # number of latest checkpoints to keep; 0: all
    cfg.SOLVER.WANDB = ""  # project at Weights & Biases to log to (offline without WANDB_API_KEY); "": off
    cfg.SOLVER.EMA_DECAY = 0.0  # decay of the moving average of weights, which is evaluated and saved; 0: off

    # Words for the classes: "names", "synonyms" (the best one counts), or "heldout" words of HELDOUT_FILE.
    cfg.TEST.WORDS = "names"
    cfg.TEST.HELDOUT_FILE = ""
    cfg.TEST.PROMPTS = False  # evaluate clicks and boxes as well
    cfg.TEST.IMAGES = 1  # number of comparison sheets for each of the best, the median and the worst images
    cfg.TEST.PREDICTIONS = []  # formats of stored segmentations: coco (sem_seg_predictions.json), png

    # The protocol of segmentation; see evaluation/protocol.py.
    cfg.TEST.PROTOCOL = ""  # a name in configs/protocols, or a file; KEY VALUE pairs override its keys
    cfg.TEST.SHORT_SIDE = 0  # length to which the shorter side of images is resized; published: 640; 0: original
    cfg.TEST.LONG_SIDE = 0  # largest longer side after resizing; published: 2560; 0: no limit
    cfg.TEST.WINDOW = 0  # side of sliding windows; 0: whole images; -1: the model's default size
    cfg.TEST.OVERLAP = -1  # overlap of the windows in pixels; -1: a quarter of WINDOW
    cfg.TEST.SCALES = [1.0]  # relative sizes whose probabilities are averaged
    cfg.TEST.FLIPS = False  # average over mirrored images; in classification over the 8 symmetries of a square
    cfg.TEST.BACKGROUND = []  # words for everything else; their pixels get the background class, or no class
    cfg.TEST.THRESHOLD = 0.0  # least probability of the best class; less probable pixels are background. 0: off
    cfg.TEST.CLASS_THRESHOLDS = []  # [class, threshold] pairs that override THRESHOLD
    cfg.TEST.RETRIEVAL = ""  # file with more words per class, such as o1.json; {} stands for the class table's name
    cfg.TEST.TEMPLATES = ""  # file with one template per line, for scene classes; "": MODEL.TEMPLATES

    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.TEST.EVAL_PERIOD = 0


# The keys that describe a model and are stored with its weights; all other keys describe a run.
MODEL_KEYS = ("META_ARCHITECTURE", "KNOWN", "TOWER", "TEMPLATES", "REFERENCE_COMPAT", "GSD", "VQA")
HEAD_KEYS = (
    "NAME", "WIDTH", "DEPTH", "HEADS", "MLP", "SHARED_TOKENS", "PHRASE_CHUNK", "PRESENCE", "PROMPTS", "CLASS_MAPS",
    "HIDDEN", "WINDOW", "PAD_LEN", "MAX_CLASSES", "PRUNE", "TRAINING_FREE",
)  # fmt: skip


def model_config(cfg: CfgNode) -> CfgNode:
    """The part of a config that describes the model, for the metadata of its weights."""
    part = CfgNode({"MODEL": {key: cfg.MODEL[key] for key in MODEL_KEYS}})
    part.MODEL.TOWER, part.MODEL.VQA = part.MODEL.TOWER.clone(), part.MODEL.VQA.clone()
    part.MODEL.VQA.WEIGHTS, part.MODEL.VQA.LANGUAGE_LORA_RANK = "", 0
    part.MODEL.TOWER.LORA_RANK, part.MODEL.TOWER.RECOMPUTE = 0, False  # LoRA is merged into saved weights
    if cfg.MODEL.META_ARCHITECTURE == "Sam3":
        part.MODEL.SAM3 = cfg.MODEL.SAM3.clone()
    part.MODEL.SEM_SEG_HEAD = CfgNode({key: cfg.MODEL.SEM_SEG_HEAD[key] for key in HEAD_KEYS})
    return part


def merge_file(cfg: CfgNode, path: str | Path) -> None:
    """Merge a YAML file into a config.

    Raises:
        FileNotFoundError: the file does not exist. ValueError: it is not YAML, or has an unknown key.
    """
    path = find_config(path)
    _merge(cfg, partial(CfgNode.load_yaml_with_base, str(path)), str(path))


def merge_text(cfg: CfgNode, text: str, where: str) -> None:
    """Merge YAML text into a config, with the errors of `merge_file`; `where` names the text in messages."""
    _merge(cfg, partial(parse_yaml, text, where), where)


def _merge(cfg: CfgNode, read: Callable[[], dict], where: str) -> None:
    try:
        cfg.merge_from_other_cfg(CfgNode(with_new_names(read())))
    except FileNotFoundError:
        raise
    except Exception as error:  # yacs raises many kinds of errors for a YAML with the wrong nesting
        reason = message(error) or type(error).__name__
        raise ValueError(f"config {where}: {reason}; see skysense_o/config.py") from error


def default_config() -> CfgNode:
    """Detectron2's defaults with ours added."""
    cfg = get_cfg()
    add_skysense_o_config(cfg)
    return cfg
