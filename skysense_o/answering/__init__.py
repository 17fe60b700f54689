"""Questions about pictures, answered in words."""

from skysense_o.answering.answerer import Answerer, normalise
from skysense_o.answering.embedded import EmbeddedAnswerer
from skysense_o.answering.llava import LlavaAnswerer

__all__ = ["Answerer", "EmbeddedAnswerer", "LlavaAnswerer", "normalise"]
