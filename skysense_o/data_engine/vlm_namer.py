"""Region names from a vision-language model (VLM): a local model, run by transformers, or an HTTP service.

The service must offer OpenAI's chat completions interface. The environment variables SKYSENSE_O_VLM_URL and
SKYSENSE_O_VLM_KEY hold its address and its key.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import time
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
"""Context around the region in the crop, as a share of the region's longer side."""
MIN_SIDE, MAX_SIDE = 128, 448
"""Smallest and largest longer side of a crop, in pixels; smaller and larger crops are resized."""
MAX_WORDS, MAX_TOKENS = 4, 12
DEFAULT_CONFIDENCE = 0.5
"""Confidence of an answer if the service does not return token probabilities."""
URL, KEY = "SKYSENSE_O_VLM_URL", "SKYSENSE_O_VLM_KEY"
ATTEMPTS, MAX_WAIT = 5, 60.0
"""Largest number of requests per question, and longest pause between two requests, in seconds."""

Answer = tuple[str, float]
"""The text of an answer, and the geometric mean of its token probabilities, 0..1."""


class VLMNamer:
    """Names regions: shows each one, outlined in red, to a model that answers in free text."""

    def __init__(self, ask: Callable[[Image.Image, str], Answer]) -> None:
        self.ask = ask

    def __call__(self, rgb: np.ndarray, regions: np.ndarray) -> list[list[tuple[str, float]]]:
        """See `Namer`. A region whose answer is not a short name gets no candidate."""
        candidates = []
        for k in range(1, int(regions.max()) + 1):
            answer, confidence = self.ask(outlined_crop(rgb, regions == k), QUESTION)
            name = parse_name(answer)
            candidates.append([(name, round(confidence, 4))] if name else [])
        return candidates


def outlined_crop(rgb: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Crop a region with some context and draw its outline in red.

    Args:
        rgb: uint8 (H,W,3).
        mask: bool (H,W), the region.

    Returns:
        an RGB image whose longer side is within MIN_SIDE..MAX_SIDE.
    """
    y, x = np.nonzero(mask)
    margin = math.ceil(MARGIN * max(np.ptp(y) + 1, np.ptp(x) + 1))
    rows = slice(max(0, y.min() - margin), y.max() + margin + 1)
    columns = slice(max(0, x.min() - margin), x.max() + margin + 1)
    crop = Image.fromarray(rgb[rows, columns])
    longest = max(crop.size)
    scale = min(max(longest, MIN_SIDE), MAX_SIDE) / longest
    size = tuple(max(1, round(n * scale)) for n in crop.size)
    inside = np.asarray(Image.fromarray(mask[rows, columns]).resize(size, Image.Resampling.NEAREST))
    pixels = np.array(crop.resize(size, Image.Resampling.BICUBIC))
    pixels[find_boundaries(np.pad(inside, 1), mode="inner")[1:-1, 1:-1]] = (255, 0, 0)
    return Image.fromarray(pixels)


def parse_name(answer: str) -> str:
    """Extract a name from an answer: its first line in lower case, without articles and punctuation.

    Returns:
        the name, or "" if the answer is empty, has no letters, or has more than MAX_WORDS words.
    """
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    name = re.sub(r"[^\w\s/-]", " ", lines[0].lower()) if lines else ""
    words = re.sub(r"^\s*(it is|this is|a|an|the)\s+", "", re.sub(r"^\s*(it is|this is)\s+", "", name)).split()
    return " ".join(words) if 0 < len(words) <= MAX_WORDS and any(map(str.isalpha, "".join(words))) else ""


def local_model(path: Path, device: str = "cpu") -> Callable[[Image.Image, str], Answer]:
    """Load an "image-text-to-text" model of transformers and its processor from a folder; never runs code from it.

    Args:
        path: folder with config.json, weights and processor.
        device: device to run the model on.

    Returns:
        a function from (image, question) to an answer.

    Raises:
        FileNotFoundError: the folder has no config.json.
        ValueError: the folder does not hold such a model.
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
        raise ValueError(f"{path} is not an image-text-to-text model of transformers ({error})") from error

    def ask(image: Image.Image, question: str) -> Answer:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=image, text=prompt, return_tensors="pt").to(device)
        with torch.inference_mode():
            out = model.generate(
                **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
        logprobs = [step[0].float().log_softmax(-1)[token].item() for step, token in zip(out.logits, tokens)]
        answer = processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return answer, math.exp(sum(logprobs) / max(1, len(logprobs)))

    return ask


def service(model: str = "", timeout: float = 60.0, pause: float = 1.0) -> Callable[[Image.Image, str], Answer]:
    """Connect to a chat completions server that accepts images; address and key come from the environment.

    A question is sent again after status 429 or 5xx, a network error or a truncated response, ATTEMPTS times in all.
    Redirects are followed, but the key is not sent to another host.

    Args:
        model: the server's name for the model, if it serves several.
        timeout: seconds to wait for a response.
        pause: seconds before the second attempt; the pause doubles before each further attempt. A Retry-After header
            overrides it.

    Returns:
        a function from (image, question) to an answer. It raises OSError if no attempt gives an answer.

    Raises:
        ValueError: SKYSENSE_O_VLM_URL is not an http(s) address.
    """
    import httpx

    url, key = os.environ.get(URL, ""), os.environ.get(KEY, "")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{URL} is {url!r}: set it to the address of chat completions, http(s)://.../chat/completions")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=True)

    def ask(image: Image.Image, question: str) -> Answer:
        body = _request_body(image, question, model)
        for attempt in range(ATTEMPTS):
            wait = pause * 2**attempt
            try:
                response = client.post(url, json=body)
                if response.is_success:
                    return _parse_response(response.json())
                failure = f"{url} answered {response.status_code}: {response.text[:200]}"
                if response.status_code != 429 and response.status_code < 500:
                    break
                wait = _retry_after(response.headers.get("Retry-After", ""), wait)
            except httpx.HTTPError as error:
                failure = f"{url} cannot be reached ({error}): is the address in {URL} right?"
            except json.JSONDecodeError as error:
                failure = f"{url} does not answer with chat completions: its response is not JSON ({error})"
            except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                failure = f"{url} does not answer with chat completions ({error!r})"
                break
            if attempt + 1 < ATTEMPTS:
                time.sleep(min(wait, MAX_WAIT))
        raise OSError(failure)

    return ask


def _request_body(image: Image.Image, question: str, model: str) -> dict:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": data}}]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "logprobs": True,
    }
    return {**body, "model": model} if model else body


def _parse_response(body: dict) -> Answer:
    """The text of the first choice, and its confidence, from all tokens for which a log-probability is given."""
    choice = body["choices"][0]
    tokens = (choice.get("logprobs") or {}).get("content") or ()
    logprobs = [float(token["logprob"]) for token in tokens if token.get("logprob") is not None]
    confidence = math.exp(sum(logprobs) / len(logprobs)) if logprobs else DEFAULT_CONFIDENCE
    return choice["message"]["content"] or "", confidence


def _retry_after(header: str, default: float) -> float:
    """Seconds from a Retry-After header; `default` if it is absent or a date."""
    return float(header) if header.isdigit() else default
