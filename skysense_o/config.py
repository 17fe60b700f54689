"""Every key that SkySense-O adds to Detectron2's config, once, with its default and the reason for it."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from yaml import YAMLError

from skysense_o.renamed_keys import with_new_names


def add_skysense_o_config(cfg: CfgNode) -> None:
    """Add our keys to a Detectron2 config; an unknown key in a YAML stays an error."""
    cfg.MODEL.META_ARCHITECTURE = "SkySenseO"
    cfg.MODEL.DEVICE = "auto"  # cuda where there is one, else cpu

    cfg.MODEL.GSD = 0.0  # metres a pixel that the weights were trained at, to warn of scenes far from it; 0: not known

    # What the weights were trained on; training fills it in, and inference warns about words and scenes far from it.
    cfg.MODEL.KNOWN = CfgNode()
    cfg.MODEL.KNOWN.CLASSES = []  # each with its synonyms, separated by bars; [] if unknown
    cfg.MODEL.KNOWN.DATASETS = []
    cfg.MODEL.KNOWN.GSD = []  # least and greatest metres per pixel; [] if unknown

    # The image-text tower.
    cfg.MODEL.TOWER = CfgNode()
    cfg.MODEL.TOWER.NAME = "MiniTower"
    cfg.MODEL.TOWER.PRETRAINED = True  # start the image half from ImageNet; False where a checkpoint follows
    cfg.MODEL.TOWER.SCENE_SIDE = 0  # a whole image is shown as this square, as in pretraining; 0: INPUT.CROP_SIZE
    cfg.MODEL.TOWER.WIDTH = 96  # channels of the pyramid; with 96 a 512 x 512 image takes 0.14 s on 2 cores

    cfg.MODEL.TOWER.RECOMPUTE = False  # keep no activations inside the tower's layers: less memory, a third more time
    cfg.MODEL.TOWER.LORA_RANK = 0  # freeze the tower's attention and train updates of this rank instead; 0: none

    # SkySenseCLIP, with the sizes of the published weights.
    cfg.MODEL.TOWER.INPUT_SIZE = 384  # images are squeezed to this square; 0: native size
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
    cfg.MODEL.TOWER.OPEN_CLIP.NAME = "ViT-B-32"  # as open_clip lists them, or hf-hub:org/repo, or local-dir:folder
    cfg.MODEL.TOWER.OPEN_CLIP.WEIGHTS = ""  # a file (RemoteCLIP, GeoRSCLIP) or a tag of open_clip (laion2b_s34b_b79k)

    cfg.MODEL.TOWER.OPEN_CLIP.ATTENTION = []  # of a ViT's last block: qq, kk, vv; none: its value path (MaskCLIP)
    cfg.MODEL.TOWER.OPEN_CLIP.RESIDUAL = False  # with ATTENTION keep that block's residual and feed-forward layer

    # The mask decoder. SAMMaskHead: sizes of Segment Anything, so that its weights fit.
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "SAMMaskHead"
    head.WIDTH = 256
    head.DEPTH = 2
    head.HEADS = 8
    head.MLP = 2048
    head.SHARED_TOKENS = 5
    head.PRESENCE = True  # a score for whether the phrase is in the image at all; trained by MODEL.LOSS.PRESENCE
    head.SAM_WEIGHTS = ""  # start SAMMaskHead from the decoder of a Segment Anything checkpoint, such as sam_vit_b.pth
    head.PROMPTS = False  # take clicks and boxes, too; trained by MODEL.LOSS.PROMPT
    head.PHRASE_CHUNK = 256  # phrases decoded at a time, in either decoder; changes memory, no result

    # CostAggregationHead: sizes of the published weights.
    head.HIDDEN = 128
    head.WINDOW = 12
    head.PAD_LEN = 256  # class attention sees at least so many rows; changing it changes every mask
    head.MAX_CLASSES = 256  # above so many phrases only the best are decoded (published); 0: all

    # TrainingFreeHead: masks of a tower as it is.
    head.TRAINING_FREE = CfgNode()
    head.TRAINING_FREE.TEMPERATURE = 0.02  # of the softmax over phrases; CLIP itself was trained to about 0.01
    head.TRAINING_FREE.GLOBAL_BIAS = 0.3  # share of the global token that is subtracted from each cell (SegEarth-OV)
    head.TRAINING_FREE.UPSAMPLING = "bilateral"  # bilinear, or bilateral: along the image's edges, SCALE times finer
    head.TRAINING_FREE.SCALE = 4
    head.TRAINING_FREE.SPATIAL_SIGMA = 0.7  # cells
    head.TRAINING_FREE.COLOUR_SIGMA = 0.4  # of the normalised image
    head.TRAINING_FREE.AFFINITY = ""  # a DINOv2 or DINOv3 ViT of timm that says which cells belong together; "": none
    head.TRAINING_FREE.AFFINITY_SHIFT = 1.2  # times the mean cosine, below which cells are apart (ProxyCLIP)
    head.TRAINING_FREE.AFFINITY_SCALE = 3.0  # of the cosines in its softmax (ProxyCLIP)

    # SAM 3 (MODEL.META_ARCHITECTURE Sam3; MODEL.WEIGHTS hf://facebook/sam3 or a folder).
    cfg.MODEL.SAM3 = CfgNode()
    cfg.MODEL.SAM3.FUSE = "max"  # semantic: its semantic map alone; instances: mask times score; max: the larger
    cfg.MODEL.SAM3.PRESENCE = "window"  # multiplied with it: none, or presence as judged on each window or the image
    cfg.MODEL.SAM3.WEAK_PHRASE = 0.0  # phrases of less presence count as absent; 0: none
    cfg.MODEL.SAM3.INSTANCE_SCORE = 0.5  # of an instance, presence included; --threshold goes before it
    cfg.MODEL.SAM3.INSTANCES = True  # boxes, COCO and polygons are its instances, not the regions of the label map
    cfg.MODEL.SAM3.PHRASE_CHUNK = 4  # pairs of an image and a phrase at a time: about 0.5 GB each; no result changes

    # Questions about images (MODEL.META_ARCHITECTURE EmbeddedVQA or LlavaVQA).
    cfg.MODEL.VQA = vqa_model = CfgNode()
    # Who is asked about whole images (questions; classes and captions, if it can) when another model is evaluated:
    # weights that hold their config.
    vqa_model.WEIGHTS = ""
    vqa_model.ANSWERS = []  # EmbeddedVQA: what it can say; empty: all answers of DATASETS.TRAIN
    vqa_model.SIDE = 256  # images are resized to this square
    vqa_model.WIDTH = 256
    vqa_model.GRID = 8  # it reads the image at so many places in each direction
    vqa_model.DROPOUT = 0.3  # a few thousand questions are soon known by heart
    vqa_model.COUNTING = False  # EmbeddedVQA: a map of density says which number, where the answer is one
    vqa_model.LANGUAGE_MODEL = "lmsys/vicuna-7b-v1.5"  # LlavaVQA: a name or folder for transformers; as published
    vqa_model.LANGUAGE_LORA_RANK = 0  # updates of this rank to train in the language model; 0: it stays as it is
    vqa_model.PRECISION = "bf16"  # of the language model: bf16 or fp32
    vqa_model.MOST_TOKENS = 16  # of an answer; a word or a phrase is wanted

    # Do as the published code where it errs, to compare with published numbers: padding is not undone.
    cfg.MODEL.REFERENCE_COMPAT = False

    # Patterns of parameters that MODEL.WEIGHTS may lack in training: they start from scratch. Anything else that is
    # missing is an error, and in evaluation these are too.
    cfg.MODEL.ALLOW_MISSING = []

    # Patterns of tensors of MODEL.WEIGHTS that the model may do without (by default what pretraining alone needs, and
    # clicks and boxes where SEM_SEG_HEAD.PROMPTS is False, the counter where VQA.COUNTING is); anything else that
    # it has not is an error.
    cfg.MODEL.IGNORE_UNEXPECTED = ["^pretraining\\.", "^sem_seg_head\\.prompt", "^counter\\."]

    # Words. A phrase is rendered in each template, and the unit vectors are averaged.
    cfg.MODEL.TEMPLATES = ["{}"]
    cfg.MODEL.TEXT_NOISE = 0.0  # length of the Gaussian noise added to text vectors in training: words, not points

    # Weights of the losses; a term of weight 0 is not computed. See losses.py.
    cfg.MODEL.LOSS = loss = CfgNode()
    loss.BCE = 1.0
    loss.FOCAL = 0.0
    loss.CROSS_ENTROPY = 0.0
    loss.DICE = 0.0
    loss.PRESENCE = 0.1
    loss.REGION = 0.0
    loss.REGION_PUBLISHED = 0.0  # the published code's form: min-max scaled, BCE
    loss.VISION_CENTRIC = 0.0  # our reading of the paper; it has 0.4, as for the region loss
    loss.VISION_CENTRIC_PUBLISHED = 0.0  # the published code's form, which is another
    loss.PROMPT = 0.0  # clicks and boxes: Dice and BCE on the mask, squared error of the predicted IoU
    loss.PROMPT_ROUNDS = 2  # how often a prompt is asked in a step, with a corrective click after each
    loss.REGION_TEMPERATURE = 0.07  # CLIP's starting value
    loss.REGION_UPSCALE = 0  # 16: regions are pooled from the published code's map, of 269.7 M parameters; 0: none
    loss.IGNORED_AS_NEGATIVE = False  # BCE: ignored pixels train as negatives of every name, as published
    loss.BAGS = 0.0  # of words that are known to be somewhere in an image; only samples that say so have any
    loss.CANDIDATES = 0.0  # of pixels that are not the one class of a set: one of the common words has to fit
    loss.CAPTIONS = 0.0  # which of several captions is the image's own; keeps whole images in a mixed training
    loss.GRID = 2  # pixels of a label that one cell of the losses takes, where labels do not say everything
    loss.CLASS_CHUNK = 64  # names of the pixel losses at full size at a time; changes memory, no result

    # Pretraining (MODEL.META_ARCHITECTURE ImageTextPretraining): weights of its terms, 0: not computed.
    cfg.PRETRAIN = CfgNode()
    cfg.PRETRAIN.IMAGE_TEXT = 1.0
    cfg.PRETRAIN.IMAGE_IMAGE = 1.0
    cfg.PRETRAIN.RECONSTRUCTION = 1.0
    cfg.PRETRAIN.SIGMOID = False  # pairwise sigmoid loss for image and text: needs no large batch
    cfg.PRETRAIN.IMAGE_TEMPERATURE = 0.1  # of the image-image contrast (SimCLR's)
    cfg.PRETRAIN.CHUNK = 0  # images whose activations are in memory at a time, for batches of any size; 0: all
    cfg.PRETRAIN.CROP_SHARE = [0.4, 1.0]  # of an image's area that a view shows
    cfg.PRETRAIN.BLOCK = 32  # side of the blocks that reconstruction hides, as in SimMIM
    cfg.PRETRAIN.HIDDEN = 0.6  # their share, as in SimMIM; the paper gives none

    # Training images.
    # labels: with label images; captions: with captions; questions: with answers; mixed: any labels, see mixed_mapper
    cfg.INPUT.MAPPER = "labels"
    cfg.INPUT.POINTS = ""  # where objects are that VQA.COUNTING counts: a file below datasets/points
    cfg.INPUT.CROP_SIZE = 256  # side of the square the model trains on, in pixels
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]  # log-uniform; ground sampling distance is seldom known
    cfg.INPUT.SINGLE_CATEGORY_MAX_AREA = 0.75  # a crop with more of one class is drawn again; 1.0: any crop will do
    cfg.INPUT.TURN = True  # quarter turns: the earth has no up
    cfg.INPUT.COLOR_JITTER = 1.0  # strength; 1 is SSD's: brightness 32, contrast and saturation 0.5..1.5, hue 18

    cfg.INPUT.PROMPTS = 0  # clicks and boxes an image, of connected parts; needed where MODEL.LOSS.PROMPT is above 0

    # Training words.
    cfg.INPUT.SYNONYMS = True  # call a class by any of its synonyms
    cfg.INPUT.DISTRACTORS = 4  # unrelated names added to each sample, from INPUT.DISTRACTOR_FILE
    cfg.INPUT.DISTRACTOR_FILE = "distractors.txt"  # one name a line, below datasets/classes
    cfg.INPUT.TEXT_BATCH = 0  # names a sample has in all, its own first; published: 100; 0: its own and DISTRACTORS
    cfg.INPUT.GRAPH = ""  # relation graph to draw the others from; splits named graph_* bring their own
    cfg.INPUT.SAMPLING_HYPER = [1, 3, 9, 10]  # scores of a negative, of a near synonym; what the published code uses

    # Mixed training (INPUT.MAPPER mixed).
    cfg.INPUT.BOX_MASKS = ""  # folder that tools/box_masks.py wrote to; needed by data sets with boxes
    cfg.INPUT.WORDS = 14  # names a sample is asked for, its own first
    cfg.INPUT.HYPERNYMS = 0.3  # how often a wider word of what is there is asked for, too
    cfg.INPUT.CAPTIONS = 32  # captions that an image is compared with, its own among them

    # Data.
    cfg.DATASETS.WEIGHTS = ()  # of each set of TRAIN, whole numbers: so many samples of each round; (): by size
    cfg.DATASETS.FOLDERS = []  # folders of one's own with a dataset.yaml; each gets names, <name>_<split>
    cfg.DATALOADER.SKIP_BAD = False  # pass over files that cannot be used, count and list them, instead of stopping

    # Optimiser: ordered [pattern, learning-rate factor, weight decay]; the first pattern found in a name wins.
    cfg.SOLVER.GROUPS = [[".", 1.0, 1e-4]]
    cfg.SOLVER.PRECISION = "auto"  # no, bf16, fp16 (Accelerate's mixed precision), or bf16 where the processor has it
    cfg.SOLVER.ACCUMULATION = 1  # micro-batches a step; IMS_PER_BATCH is the total of a step
    cfg.SOLVER.LR_BATCH = 0  # the total batch that BASE_LR is meant for; another one scales it by LR_RULE. 0: never
    cfg.SOLVER.LR_RULE = "sqrt"  # sqrt (for Adam: Malladi et al. 2022) or linear (for SGD: Goyal et al. 2017)
    cfg.SOLVER.LAYER_DECAY = 1.0  # learning rate of each layer of the image tower, as a share of the next one's
    cfg.SOLVER.CHECKPOINTS_KEPT = 3  # numbered checkpoints that stay, the newest; 0: all
    cfg.SOLVER.WANDB = ""  # project at Weights & Biases to log to as well (offline without WANDB_API_KEY); "": none
    cfg.SOLVER.EMA_DECAY = 0.0  # moving average of the weights, evaluated and saved as the final model; 0: off

    # How the evaluation calls the classes: "names", "synonyms" (best of them), or "heldout" words with their file.
    cfg.TEST.WORDS = "names"
    cfg.TEST.HELDOUT_FILE = ""
    cfg.TEST.PROMPTS = False  # evaluate clicks and boxes as well
    cfg.TEST.IMAGES = 1  # side-by-side sheets of the best, as many of the middle and of the worst images
    cfg.TEST.PREDICTIONS = []  # what to keep of segmentation: coco (sem_seg_predictions.json), png

    # The protocol of segmentation; see evaluation/protocol.py.
    cfg.TEST.PROTOCOL = ""  # a name of configs/protocols, or a file: what it says goes before KEY VALUE
    cfg.TEST.SHORT_SIDE = 0  # images are resized to it; published: 640; 0: as they are
    cfg.TEST.LONG_SIDE = 0  # but to no more than this; published: 2560; 0: no limit
    cfg.TEST.WINDOW = 0  # side of sliding windows; 0: whole images; -1: the model's own
    cfg.TEST.OVERLAP = -1  # of the windows, in pixels; -1: a quarter
    cfg.TEST.SCALES = [1.0]  # the probabilities of these sizes are averaged
    cfg.TEST.FLIPS = False  # and of the mirrored images
    cfg.TEST.BACKGROUND = []  # words for the rest: what fits them best counts as the background class, or as none
    cfg.TEST.THRESHOLD = 0.0  # probability that the best name needs, else the same; 0: every pixel gets its best name
    cfg.TEST.CLASS_THRESHOLDS = []  # [name, threshold] for single names, in place of THRESHOLD
    cfg.TEST.RETRIEVAL = ""  # file of further words a name (o1.json's form); {} in it: the class table's name

    cfg.TEST.TEMPLATES = ""  # file of sentences with {}, one a line, for scene classes; "": MODEL.TEMPLATES

    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.TEST.EVAL_PERIOD = 0


# What a model is built from, and so what a weights file must say; the rest of a config is about a run.
MODEL_KEYS = ("META_ARCHITECTURE", "KNOWN", "TOWER", "TEMPLATES", "REFERENCE_COMPAT", "GSD", "VQA")
HEAD_KEYS = (
    "NAME", "WIDTH", "DEPTH", "HEADS", "MLP", "SHARED_TOKENS", "PHRASE_CHUNK", "PRESENCE", "PROMPTS",
    "HIDDEN", "WINDOW", "PAD_LEN", "MAX_CLASSES", "TRAINING_FREE",
)  # fmt: skip


def model_config(cfg: CfgNode) -> CfgNode:
    """The part of a config that describes the model, for the metadata of its weights."""
    part = CfgNode({"MODEL": {key: cfg.MODEL[key] for key in MODEL_KEYS}})
    part.MODEL.TOWER, part.MODEL.VQA = part.MODEL.TOWER.clone(), part.MODEL.VQA.clone()
    part.MODEL.VQA.WEIGHTS, part.MODEL.VQA.LANGUAGE_LORA_RANK = "", 0
    part.MODEL.TOWER.LORA_RANK, part.MODEL.TOWER.RECOMPUTE = 0, False  # the one is merged, the other is of a run
    if cfg.MODEL.META_ARCHITECTURE == "Sam3":
        part.MODEL.SAM3 = cfg.MODEL.SAM3.clone()
    part.MODEL.SEM_SEG_HEAD = CfgNode({key: cfg.MODEL.SEM_SEG_HEAD[key] for key in HEAD_KEYS})
    return part


def merge_tree(cfg: CfgNode, tree: dict) -> None:
    """Merge a config tree, as a YAML holds it, into a config."""
    cfg.merge_from_other_cfg(CfgNode(with_new_names(tree)))


def merge_file(cfg: CfgNode, path: str | Path) -> None:
    """Merge a YAML into a config.

    Raises:
        FileNotFoundError: no such file. ValueError: no YAML, or a key that does not exist.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config at {str(path)!r}: see configs/")
    try:
        merge_tree(cfg, CfgNode.load_yaml_with_base(str(path)))
    except (KeyError, AssertionError, YAMLError) as error:
        raise ValueError(
            f"config {path}: {error.args[0] if error.args else error}; see skysense_o/config.py"
        ) from error


def default_config() -> CfgNode:
    """Detectron2's defaults with ours added."""
    cfg = get_cfg()
    add_skysense_o_config(cfg)
    return cfg
