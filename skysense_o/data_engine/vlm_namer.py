"""Names from a vision-language model: one on this machine by transformers, or a service by HTTP.

The service speaks the chat completions form that most servers of such models offer; address and key come from the
environment, SKYSENSE_O_VLM_URL and SKYSENSE_O_VLM_KEY.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

QUESTION = (
    "This is an image of the earth from above. What is the thing or the kind of ground inside the red outline?"
    " Answer with its name only, one to three words."
)
MARGIN = 0.25
"""Of the region's longer side: what is shown round it."""
SMALLEST, LARGEST = 128, 448
"""Pixels of the longer side of what is shown."""
MOST_WORDS, MOST_TOKENS = 4, 12
UNKNOWN = 0.5
"""Confidence where a service does not tell how probable its words are."""
URL, KEY = "SKYSENSE_O_VLM_URL", "SKYSENSE_O_VLM_KEY"

Answer = tuple[str, float]
"""What was said, and the geometric mean of its tokens' probabilities, 0..1."""


class VLMNamer:
    """Shows each region, outlined in red, to a model that answers in free text."""

    free = True

    def __init__(self, ask: Callable[[Image.Image, str], Answer]) -> None:
        self.ask = ask

    def __call__(self, rgb: np.ndarray, regions: np.ndarray) -> list[list[tuple[str, float]]]:
        """See `Namer`. An answer that is no short name gives the region none."""
        named = []
        for k in range(1, int(regions.max()) + 1):
            answer, confidence = self.ask(shown(rgb, regions == k), QUESTION)
            name = cleaned(answer)
            named.append([(name, round(confidence, 4))] if name else [])
        return named


def shown(rgb: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The region's surroundings with its outline in red."""
    y, x = np.nonzero(mask)
    margin = math.ceil(MARGIN * max(np.ptp(y) + 1, np.ptp(x) + 1))
    rows = slice(max(0, y.min() - margin), y.max() + margin + 1)
    columns = slice(max(0, x.min() - margin), x.max() + margin + 1)
    part = Image.fromarray(rgb[rows, columns])
    longest = max(part.size)
    scale = min(max(longest, SMALLEST), LARGEST) / longest
    size = tuple(max(1, round(n * scale)) for n in part.size)
    inside = np.asarray(Image.fromarray(mask[rows, columns]).resize(size, Image.Resampling.NEAREST))
    pixels = np.array(part.resize(size, Image.Resampling.BICUBIC))
    pixels[find_boundaries(np.pad(inside, 1), mode="inner")[1:-1, 1:-1]] = (255, 0, 0)
    return Image.fromarray(pixels)


def cleaned(answer: str) -> str:
    """A name from an answer: its first line in lower case, without articles and marks; "" where that is no name."""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    name = re.sub(r"[^\w\s/-]", " ", lines[0].lower()) if lines else ""
    words = re.sub(r"^\s*(it is|this is|a|an|the)\s+", "", re.sub(r"^\s*(it is|this is)\s+", "", name)).split()
    return " ".join(words) if 0 < len(words) <= MOST_WORDS and any(map(str.isalpha, "".join(words))) else ""


def local_model(path: Path, device: str = "cpu") -> Callable[[Image.Image, str], Answer]:
    """A model of transformers' kind "image-text-to-text" in a folder, with its processor.

    Raises:
        FileNotFoundError: no such folder. ValueError: what is in it is no such model; no code of it is run.
    """
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"no model at {str(path)!r}: --vlm takes a folder with config.json, weights and processor"
        )
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True).to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no image-text-to-text model of transformers ({error})") from error

    def ask(image: Image.Image, question: str) -> Answer:
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(said, add_generation_prompt=True)
        given = processor(images=image, text=prompt, return_tensors="pt").to(device)
        with torch.inference_mode():
            out = model.generate(
                **given, max_new_tokens=MOST_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        tokens = out.sequences[0, given["input_ids"].shape[1] :]
        chances = [step[0].float().log_softmax(-1)[token].item() for step, token in zip(out.logits, tokens)]
        answer = processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return answer, math.exp(sum(chances) / max(1, len(chances)))

    return ask


def service(model: str = "", timeout: float = 60.0) -> Callable[[Image.Image, str], Answer]:
    """A server of chat completions that takes images.

    Args:
        model: its name for the server, where that has several. timeout: seconds an answer may take.

    Raises:
        ValueError: no address in the environment.
    """
    url, key = os.environ.get(URL, ""), os.environ.get(KEY, "")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{URL} is {url!r}: set it to the address of chat completions, http(s)://.../chat/completions")

    def ask(image: Image.Image, question: str) -> Answer:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        data = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": data}}]
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": MOST_TOKENS,
            "temperature": 0,
            "logprobs": True,
        }
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(
            url, json.dumps({**body, **({"model": model} if model else {})}).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                choice = json.load(reply)["choices"][0]
            answer, told = choice["message"]["content"] or "", (choice.get("logprobs") or {}).get("content")
        except urllib.error.HTTPError as error:
            raise OSError(f"{url} answered {error.code}: {error.read(200).decode(errors='replace')}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise OSError(f"{url} cannot be reached ({error}): is the address in {URL} right?") from error
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise OSError(f"{url} does not answer as chat completions do ({error!r})") from error
        chances = [token["logprob"] for token in told or ()]
        return answer, math.exp(sum(chances) / len(chances)) if chances else UNKNOWN

    return ask
