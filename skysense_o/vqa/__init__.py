"""Questions about pictures, answered in words."""

from skysense_o.vqa.vqa_model import Answerer, normalise
from skysense_o.vqa.embedded import EmbeddedAnswerer
from skysense_o.vqa.llava import LlavaAnswerer

__all__ = ["Answerer", "EmbeddedAnswerer", "LlavaAnswerer", "normalise"]
