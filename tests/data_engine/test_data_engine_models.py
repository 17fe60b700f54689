"""Tests of other models in the data engine: Segment Anything, and a vision-language model (VLM), local or served."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skimage", reason='the data engine needs pip install -e ".[engine]"')

from skysense_o.checkpoint import WeightsError
from skysense_o.data_engine import vlm_namer
from skysense_o.data_engine.partition import paint_masks, tidy
from skysense_o.data_engine.sam import build_sam, load_sam, sam_masks
from skysense_o.data_engine.vlm_namer import (
    KEY,
    QUESTION,
    URL,
    VLMNamer,
    local_model,
    outlined_crop,
    parse_name,
    service,
)


@pytest.fixture
def sam_file(tmp_path):
    """Save a narrow Segment Anything with random weights; return the checkpoint's path and the model."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    model = Sam(
        ImageEncoderViT(
            img_size=256, patch_size=16, embed_dim=32, depth=3, num_heads=2, out_chans=32, use_rel_pos=True,
            window_size=5, global_attn_indexes=(1,), norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        PromptEncoder(32, (16, 16), (256, 256), 16),
        MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(2, 32, 8, 64), iou_head_hidden_dim=48),
    )  # fmt: skip
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth", model.eval()


def test_the_size_of_segment_anything_is_inferred_from_its_weights(sam_file):
    path, model = sam_file
    again = load_sam(path)
    assert again.image_encoder.blocks[0].window_size == 5
    assert again.image_encoder.blocks[1].window_size == 0
    assert again.image_encoder.blocks[0].attn.num_heads == 2
    x = torch.rand(1, 3, 256, 256)
    assert torch.equal(again.image_encoder(x), model.image_encoder(x))


def test_vit_b_inferred_from_shapes_equals_the_registrys_model():
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        published = sam_model_registry["vit_b"]()
        ours = build_sam(published.state_dict())
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in published.state_dict().items()}
    windows = [[block.window_size for block in model.image_encoder.blocks] for model in (ours, published)]
    assert windows[0] == windows[1]


def test_masks_of_segment_anything_become_regions(sam_file):
    rgb = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    find = sam_masks(
        sam_file[0], points_per_side=4, pred_iou_thresh=-9.0, stability_score_thresh=0.0, box_nms_thresh=1.0
    )
    masks, iou_pred = find(rgb)
    assert len(masks) > 1
    assert masks.shape[1:] == (90, 120)
    assert ((iou_pred >= 0) & (iou_pred <= 1)).all()
    regions = tidy(paint_masks(masks, iou_pred, (90, 120))[0], 30)
    assert regions.shape == (90, 120)
    assert regions.max() >= 1
    none = sam_masks(sam_file[0], points_per_side=2, pred_iou_thresh=1e9)(rgb)[0]
    assert none.shape == (0, 90, 120)


def test_other_checkpoints_raise_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Segment Anything checkpoint at"):
        load_sam(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="other.pth is not a Segment Anything checkpoint"):
        load_sam(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("A storage tank.", "storage tank"), ("It is a Parking Lot\nwith cars", "parking lot"), ("", ""), ("...", ""),
        ("T-junction", "t-junction"), ("the long description of everything that is here", ""), ("42", ""),
    ],
)  # fmt: skip
def test_answers_become_names(answer, named):
    assert parse_name(answer) == named


def test_a_region_is_shown_with_its_outline_and_surroundings():
    rgb = np.full((100, 100, 3), 90, np.uint8)
    mask = np.zeros((100, 100), bool)
    mask[40:60, 50:90] = True
    image = np.asarray(outlined_crop(rgb, mask))
    # A crop of 40 x 60 pixels with margins, which ends at the image's edge, enlarged to a width of 128.
    assert image.shape == (85, 128, 3)
    red = (image == (255, 0, 0)).all(-1)
    assert red.any()
    assert not red[:10].any()
    assert not red[40:45, 60].any(), "the inside of the region must not be red, only its outline"


class Server:
    """A local chat completions server that sends prepared answers and records the requests."""

    def __init__(self) -> None:
        self.answers: list[tuple] = []  # (status, body[, headers])
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                server.keys.append(self.headers["Authorization"])
                code, body, *headers = server.answers.pop(0)
                self.send_response(code)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1/chat/completions"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv(URL, server.url)
    monkeypatch.setenv(KEY, "a-secret")
    yield server
    server.close()


def reply(text: str, logprobs: list[float | None] | None = None) -> tuple[int, str]:
    tokens = {"content": [{"logprob": value} for value in logprobs]} if logprobs else None
    return 200, json.dumps({"choices": [{"message": {"content": text}, "logprobs": tokens}]})


def test_a_service_names_regions(server):
    server.answers = [reply("A harbour.", [-0.1, -0.3]), reply("ship"), reply("I am not sure what this could be")]
    regions = np.repeat(np.array([0, 1, 2, 3], np.uint16), 20)[None].repeat(40, 0)
    namer = VLMNamer(service("some-model"))
    named = namer(np.zeros((40, 80, 3), np.uint8), regions)
    assert named == [[("harbour", pytest.approx(np.exp(-0.2), abs=1e-4))], [("ship", 0.5)], []]
    request = server.requests[0]
    assert request["model"] == "some-model"
    text, image = request["messages"][0]["content"]
    assert text["text"] == QUESTION
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert server.keys == ["Bearer a-secret"] * 3


IMAGE = Image.new("RGB", (8, 8))


def test_tokens_without_a_probability_are_left_out_of_the_confidence(server):
    server.answers = [reply("ship", [-0.2, None, -0.4]), reply("ship", [None, None])]
    ask = service()
    assert ask(IMAGE, "?") == ("ship", pytest.approx(np.exp(-0.3)))
    assert ask(IMAGE, "?") == ("ship", 0.5)


def test_a_busy_service_is_retried_with_back_off(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(vlm_namer.time, "sleep", pauses.append)
    truncated = (200, '{"choices": [', {"Content-Length": "4000"})
    cut = (200, '{"choices": [')
    busy = (429, "slow down", {"Retry-After": "7"})
    server.answers = [busy, (503, "starting"), truncated, cut, reply("ship")]
    assert service(pause=0.5)(IMAGE, "?") == ("ship", 0.5)
    assert pauses == [7, 1, 2, 4]
    server.answers = [(429, "slow down", {"Retry-After": "9999"})] * 5
    pauses.clear()
    with pytest.raises(OSError, match="chat/completions answered 429: slow down"):
        service()(IMAGE, "?")
    assert pauses == [60] * 4


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((401, "no such key"), "answered 401: no such key"),
        ((200, "{}"), "does not answer with chat completions"),
        ((200, "[]"), "does not answer with chat completions"),
        ((200, '{"choices": [{"message": {"content": "a"}, "logprobs": 3}]}'), "does not answer with chat completions"),
    ],
)
def test_a_permanent_error_is_not_retried(server, answer, match):
    server.answers = [answer]
    with pytest.raises(OSError, match=match):
        service()(IMAGE, "?")
    assert len(server.requests) == 1


def test_the_key_is_not_sent_to_another_host_by_a_redirect(server):
    other = Server()
    other.answers = [reply("ship")]
    server.answers = [(307, "", {"Location": other.url}), (307, "", {"Location": server.url}), reply("road")]
    ask = service()
    assert ask(IMAGE, "?") == ("ship", 0.5)
    assert other.keys == [None]
    assert ask(IMAGE, "?") == ("road", 0.5)
    assert server.keys == ["Bearer a-secret"] * 3, "the original host must still get the key"
    other.close()


def test_a_wrong_address_raises_an_error(monkeypatch):
    monkeypatch.setenv(URL, "http://127.0.0.1:9/")
    with pytest.raises(OSError, match="cannot be reached .*: is the address in SKYSENSE_O_VLM_URL right?"):
        service(pause=0)(IMAGE, "?")
    monkeypatch.delenv(URL)
    with pytest.raises(ValueError, match="SKYSENSE_O_VLM_URL is '': set it to the address of chat completions"):
        service()


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    """Save a narrow LLaVA with random weights and a tokenizer of twenty words; return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )  # fmt: skip

    folder = tmp_path_factory.mktemp("llava")
    words = [
        "<unk>",
        "<pad>",
        "<s>",
        "</s>",
        "<image>",
        "USER:",
        "ASSISTANT:",
        *QUESTION.split(),
        "ship",
        "road",
        "tree",
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=28, patch_size=14)
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    text = LlamaConfig(**small, vocab_size=len(vocabulary), num_key_value_heads=2, **ids)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"], vision_feature_layer=-2
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}USER: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}ASSISTANT:"
    )
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_local_model_names_regions(tiny_llava):
    """A local VLM with random weights gives the same answer each time, and its confidence is a probability."""
    regions = np.repeat(np.array([1, 2], np.uint16), 20)[None].repeat(40, 0)
    rgb = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    ask = local_model(tiny_llava)
    answer, confidence = ask(outlined_crop(rgb, regions == 1), QUESTION)
    assert isinstance(answer, str)
    assert 0 < confidence < 1
    assert ask(outlined_crop(rgb, regions == 1), QUESTION) == (answer, confidence)
    assert len(VLMNamer(ask)(rgb, regions)) == 2


def test_folders_without_a_local_model_raise_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at .*: --vlm takes a folder"):
        local_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not an image-text-to-text model of transformers"):
        local_model(tmp_path)
