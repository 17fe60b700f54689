"""Questions about images, answered in words."""

from skysense_o.vqa.embedded import EmbeddedAnswerer
from skysense_o.vqa.llava import LlavaAnswerer
from skysense_o.vqa.vqa_model import Answerer, normalise

__all__ = ["Answerer", "EmbeddedAnswerer", "LlavaAnswerer", "normalise"]
