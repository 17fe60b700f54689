"""Types of the model's inputs and outputs, used by all parts of the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from torch import Tensor
from typing_extensions import NotRequired

if TYPE_CHECKING:
    from skysense_o.vocabulary import Vocabulary

IGNORE = 255
"""Label of pixels without a class; they are neither trained on nor evaluated."""

MAYBE, UNKNOWN, NO, YES = -2, -1, 0, 1
"""What a label value means for a class. A pixel whose value is MAYBE for several classes has one of them. A number n
from 2 to 100 means: at least n percent of the pixels with this label value have the class."""

Reduce = Literal["labels", "probabilities"]


class Prompts(TypedDict):
    """K prompts (clicks or a box) for one image, with their target masks; x, y in pixels of the image."""

    masks: Tensor  # bool (K,H,W); empty masks are not trained on
    points: Tensor  # float (K,N,2)
    labels: Tensor  # int64 (K,N): 1 foreground, 0 background, -1 padding
    boxes: Tensor  # float (K,4): half-open XYXY; NaN for a prompt without box


class Sample(TypedDict):
    """One image and its vocabulary. Made by the data mappers, the evaluation and `Predictor`."""

    image: Tensor  # uint8 (3,H,W), RGB
    vocabulary: Vocabulary
    height: NotRequired[int]  # size of the output; default: size of the image
    width: NotRequired[int]
    sem_seg: NotRequired[Tensor]  # int64 (H,W): index into vocabulary.classes, or IGNORE; needed in training
    says: NotRequired[
        Tensor
    ]  # int8 (V,C): what label value v means for class c: 1 yes, 0 no, -1 unknown, n > 1: at least n
    # percent of its pixels; without it label value v means yes for class v and no for all others
    captions: NotRequired[tuple[str, ...]]  # the first describes this image, the others describe other images
    visual_similarity: NotRequired[
        Tensor
    ]  # float (C,C) in 0..1, how alike two classes look (score / 10), 0 where unknown
    view: NotRequired[Tensor]  # uint8 (3,H,W), another view of the same image; in pretraining
    hidden: NotRequired[Tensor]  # bool (H,W), pixels to reconstruct; in pretraining
    prompts: NotRequired[Prompts]  # clicks and boxes; in training, for a decoder that takes them
    question: NotRequired[str]  # visual question answering
    answer: NotRequired[str]  # in the training of question answering
    points: NotRequired[Tensor]  # float (K,2), x, y of the objects to count, as fractions of width and height
    file_name: NotRequired[str]
    skipped: NotRequired[list[str]]  # reasons for records skipped before this one; the loader removes the key


class Prediction(TypedDict):
    """Output of the model for one sample; C classes, H W the size of the output."""

    sem_seg: NotRequired[Tensor]  # float (C,H,W), independent probabilities per class; reduce="probabilities"
    labels: NotRequired[Tensor]  # int64 (H,W), index of the best class; reduce="labels"
    score: NotRequired[Tensor]  # float (H,W), probability of that class; reduce="labels"
    presence: NotRequired[Tensor]  # float (C,), whether the class is in the image, 0..1


@dataclass
class Instances:
    """N objects in one image, sorted by class."""

    labels: Tensor  # int64 (N,): index into vocabulary.classes
    scores: Tensor  # float (N,), 0..1
    boxes: Tensor  # float (N,4): half-open XYXY, in pixels
    masks: Tensor  # bool (N,H,W)

    def __len__(self) -> int:
        return len(self.labels)
