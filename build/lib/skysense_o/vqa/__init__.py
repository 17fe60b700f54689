"""Visual question answering."""

from skysense_o.vqa.embedded import EmbeddedVQA
from skysense_o.vqa.llava import LlavaVQA
from skysense_o.vqa.vqa_model import VQAModel, normalise

__all__ = ["EmbeddedVQA", "LlavaVQA", "VQAModel", "normalise"]
