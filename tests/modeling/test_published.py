"""Tests that every stage of our model agrees with the published code's outputs for small random weights.

The files `tests/reference/published_*.npz` contain these outputs, some of them as float64.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import TextTransformer
from PIL import Image
from safetensors.torch import load_file

from skysense_o import Predictor
from skysense_o.checkpoint import WeightsError, config_of, find_weights, load_state, load_weights
from skysense_o.config import default_config
from skysense_o.meta_arch import SkySenseO
from skysense_o.modeling import Features, Queries
from skysense_o.modeling.cost_aggregation import CostAggregationHead
from skysense_o.modeling.skysense_clip import SkySenseCLIP
from skysense_o.modeling.swin_v2 import SwinV2
from skysense_o.published import NOT_NEEDED, published_name
from skysense_o.vocabulary import Vocabulary, read_retrieval_words

DATA = Path(__file__).parents[1] / "reference"
HEAD = {
    "hidden": 32,
    "window": 6,
    "image_guidance": 24,
    "text_guidance": 16,
    "decoder_guidance": (16, 8),
    "decoder_dims": (32, 16),
}


def stored(name: str) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"published_{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) if file[key].dtype.kind != "U" else file[key] for key in file.files}


def published_state() -> dict[str, torch.Tensor]:
    clip = stored("clip_state")
    words = torch.zeros(49408, 64)
    words[clip.pop("token_embedding.rows_index").long()] = clip.pop("token_embedding.rows")
    clip["token_embedding.weight"] = words
    return {**{f"sem_seg_head.clip_model.{name}": t for name, t in clip.items()}, **stored("head_state")}


def build() -> SkySenseO:
    visual = SwinV2(
        dim=16,
        depths=(2, 2, 4, 2),
        heads=(2, 4, 8, 16),
        windows=(4, 4, 4, 8),
        pretrained_windows=(0, 0, 0, 4),
        extra_norm_every=3,
        drop_path=0.0,
    )
    text = TextTransformer(width=64, heads=4, layers=2, output_dim=32)
    tower = SkySenseCLIP(visual=visual, text=text, input_size=192)
    head = CostAggregationHead(dim=32, pyramid_channels=(32, 16), pyramid_guidance=(24, 12), **HEAD)
    return SkySenseO(tower=tower, sem_seg_head=head, templates=("A remote sensing image of a {}.",)).eval()


@pytest.fixture(scope="module")
def model() -> SkySenseO:
    model = build()
    report = load_state(model, published_state(), "the published state")
    assert not report.missing
    assert all(NOT_NEEDED.search(name) for name in report.passed_over)
    return model


@pytest.fixture(scope="module")
def double() -> SkySenseO:
    model = build().double()
    load_state(model, published_state(), "the published state")
    return model


@torch.no_grad()
@pytest.mark.parametrize("case", ["x0", "x1", "x2"])
def test_every_stage_of_the_image_tower(double, case):
    """The outputs of the tower's stages equal the published ones.

    Input x0 needs padded windows, x1 has odd sizes, and x2 has a feature map of a single window.
    """
    want = stored("visual")
    for j, got in enumerate(double.tower.visual(want[case].double())):
        torch.testing.assert_close(got, want[f"{case}_stage{j}"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_text_and_its_tokens(double):
    import open_clip

    want = stored("text")
    texts = want["texts"].tolist()
    assert torch.equal(open_clip.tokenizer.tokenize(texts), want["tokens"].long())
    unit = torch.nn.functional.normalize(want["out"], dim=-1)
    torch.testing.assert_close(double.tower.encode_text(texts), unit, atol=1e-5, rtol=0)


@torch.no_grad()
def test_dense_and_pooled_features(double):
    want = stored("encode_image")
    features = double.tower.encode_image(want["x"].double())
    torch.testing.assert_close(features.dense, want["dense3"], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.pooled, want["pooled"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_pooled_features_and_text_share_a_space(model):
    """Classification logits equal the published logits. Users had reported almost random predictions."""
    want, texts = stored("encode_image"), stored("text")["texts"].tolist()
    pooled = torch.nn.functional.normalize(model.tower.encode_image(want["x"]).pooled, dim=-1)
    logits = model.tower.logit_scale.exp() * pooled @ model.tower.encode_text(texts).T
    torch.testing.assert_close(logits, want["logits"], atol=2e-3, rtol=0)


def decoder(pad_len: int, templates: int = 1, changes: dict | None = None) -> CostAggregationHead:
    head = CostAggregationHead(
        dim=40, pyramid_channels=(20, 12), pyramid_guidance=(20, 12), templates=templates, pad_len=pad_len,
        max_classes=pad_len, **HEAD,
    )  # fmt: skip
    # tests/reference has no weights for `pyramid_guidance`, because in the published code these projections are
    # outside the module whose weights were stored.
    head.pyramid_guidance = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    state = {**stored("aggregator"), **(changes or {})}
    published = {name: published_name(f"sem_seg_head.{name}").split("transformer.")[1] for name in head.state_dict()}
    head.load_state_dict({name: state[f"sd/{theirs}"] for name, theirs in published.items()})
    return head.eval()


def inputs(arrays: dict, text: str, dtype: torch.dtype) -> tuple[Features, Queries]:
    pyramid = arrays["guidance2"].to(dtype), arrays["guidance3"].to(dtype)
    words = arrays[text].to(dtype)
    return Features(arrays["img_feats"].to(dtype), pyramid, None), Queries(words, torch.ones(words.shape[:2]).bool())


CASES = [key for key in np.load(DATA / "published_aggregator.npz").files if key.startswith("out_pad")]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("case", CASES)
def test_the_decoder_with_every_padding_and_number_of_phrases(case, chunk):
    """Decoder logits equal the published ones for every padding and number of phrases.

    A decoder that is limited to 16 phrases gives all phrases but the best 16 logits of -100.
    """
    arrays = stored("aggregator")
    pad, names = map(int, re.match(r"out_pad(\d+)_T(\d+)", case).groups())
    dtype = arrays[case].dtype
    logits, presence, quality = decoder(pad).to(dtype)(*inputs(arrays, f"text{names}", dtype), chunk)
    assert presence is None
    assert quality is None
    torch.testing.assert_close(logits, arrays[case], atol=1e-5, rtol=0)
    if (pad, names) == (16, 40):
        assert ((logits == -100).all(dim=(2, 3)).sum(1) == 24).all()


@torch.no_grad()
def test_intermediate_steps_of_the_decoder():
    arrays = stored("aggregator")
    features, queries = inputs(arrays, "text3", torch.float32)
    head = decoder(16)
    cosine = torch.einsum(
        "bdhw,btpd->btphw",
        torch.nn.functional.normalize(features.dense, dim=1),
        torch.nn.functional.normalize(queries.text, dim=-1),
    )
    torch.testing.assert_close(cosine.transpose(1, 2), arrays["T3_correlation"], atol=1e-5, rtol=0)
    x = head._embed(cosine)
    torch.testing.assert_close(x.permute(0, 4, 1, 2, 3), arrays["T3_corr_embed"], atol=1e-5, rtol=0)
    guide = head.image_guidance(features.dense).relu()
    torch.testing.assert_close(guide, arrays["T3_proj_guidance"], atol=1e-5, rtol=0)
    words = arrays["T3_proj_text"]
    x = head.spatial[0](x, head.spatial[0].project_guide(guide))
    torch.testing.assert_close(x.permute(0, 4, 1, 2, 3), arrays["T3_layer0_swin"], atol=1e-5, rtol=0)
    layer = head.over_names[0]
    x = layer(x, words, layer.sums([x], (words,), (queries.valid,)))
    torch.testing.assert_close(x.permute(0, 4, 1, 2, 3), arrays["T3_layer0_out"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_ensemble_of_templates():
    arrays = stored("aggregator")
    changes = {key.replace("sd_prompt4/", "sd/"): t for key, t in arrays.items() if key.startswith("sd_prompt4/")}
    logits = decoder(16, 4, changes)(*inputs(arrays, "text5_prompt4", torch.float32))[0]
    torch.testing.assert_close(logits, arrays["out_prompt4_T5"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_invalid_phrase_changes_nothing():
    """In a batch, shorter vocabularies are padded by invalid phrases, which do not change results of valid phrases."""
    arrays = stored("aggregator")
    features, queries = inputs(arrays, "text10", torch.float32)
    few = decoder(16)(features, Queries(queries.text[:, :3], queries.valid[:, :3]))[0]
    valid = queries.valid.clone()
    valid[:, 3:] = False
    many = decoder(16)(features, Queries(queries.text * valid[..., None, None], valid))[0]
    torch.testing.assert_close(many[:, :3], few, atol=1e-5, rtol=0)


@torch.no_grad()
def test_pruned_phrases_are_not_scored_and_the_others_change_little():
    """The last four of ten phrases are dropped: their embeddings are opposite to a direction that all cells share."""
    arrays = stored("aggregator")
    features, queries = inputs(arrays, "text10", torch.float32)
    away = torch.nn.functional.normalize(torch.ones(40), dim=0)
    features = replace(features, dense=features.dense + 3 * features.dense.std() * 40**0.5 * away[:, None, None])
    signs = torch.tensor([1.0] * 6 + [-1.0] * 4)
    text = torch.nn.functional.normalize(queries.text, dim=-1) + 2 * signs[:, None, None] * away
    queries = Queries(text, queries.valid)
    head, rows = decoder(16), []
    plain = head(features, queries)[0]
    head.spatial[1].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))

    head.prune = 2.0  # cosines differ by at most 2, so no phrase is dropped
    torch.testing.assert_close(head(features, queries)[0], plain, atol=1e-5, rtol=0)

    rows.clear()
    head.prune = 0.7
    pruned = head(features, queries, 4)[0]
    assert rows == [4, 2] * len(queries.text)
    assert (pruned[:, 6:] == -100).all()
    assert (pruned[:, :6] - plain[:, :6]).abs().mean() < 0.2 * plain.std()
    one = replace(features, dense=features.dense[:1], pyramid=tuple(level[:1] for level in features.pyramid))
    alone = head(one, Queries(queries.text[:1], queries.valid[:1]))[0]
    torch.testing.assert_close(pruned[:1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("prune", [0.0, 2.0])
def test_phrases_that_are_not_valid_change_nothing(prune):
    """Regression: pruning counted invalid phrases as dropped phrases, and therefore added too little padding."""
    features, queries = inputs(stored("aggregator"), "text10", torch.float32)
    head = decoder(16)
    head.prune = prune
    valid = queries.valid.clone()
    valid[:, 3:] = False
    together = head(features, Queries(queries.text, valid))[0]
    alone = head(features, Queries(queries.text[:, :3], valid[:, :3]))[0]
    torch.testing.assert_close(together[:, :3], alone, atol=1e-5, rtol=0)


def test_a_negative_margin_of_pruning_is_an_error():
    with pytest.raises(ValueError, match=r"PRUNE -0.1: give a difference of cosines above 0, or 0"):
        CostAggregationHead(dim=8, pyramid_channels=(4, 4), prune=-0.1)


@pytest.mark.parametrize("size", [(5, 7), (6, 6), (13, 20), (1, 9)])
def test_any_map_size(size):
    head = CostAggregationHead(dim=8, pyramid_channels=(4, 4), pyramid_guidance=(4, 4), **{**HEAD, "hidden": 32})
    h, w = size
    features = Features(
        torch.randn(2, 8, h, w), (torch.randn(2, 4, 2 * h, 2 * w), torch.randn(2, 4, 4 * h, 4 * w)), None
    )
    text = torch.nn.functional.normalize(torch.randn(2, 3, 1, 8), dim=-1)
    logits = head(features, Queries(text, torch.ones(2, 3).bool()))[0]
    assert logits.shape == (2, 3, 4 * h, 4 * w)
    assert torch.isfinite(logits).all()


def cases(name: str) -> list[str]:
    return [key for key in np.load(DATA / f"published_{name}.npz").files if re.match(r"i\d+x\d+_o.*_sem_seg", key)]


def predict(model: SkySenseO, arrays: dict, case: str, names: Vocabulary) -> torch.Tensor:
    image, height, width = re.match(r"i(\d+x\d+)_o(\d+)x(\d+)", case).groups()
    sample = {"image": arrays[f"image_{image}"], "vocabulary": names, "height": int(height), "width": int(width)}
    return model.predict([sample], "probabilities")[0]["sem_seg"]


@pytest.mark.parametrize("case", cases("inference_divisible"))
def test_masks_end_to_end(model, case):
    """Masks equal the published code's masks for images whose sides are multiples of 32, which need no padding."""
    arrays = stored("inference_divisible")
    got = predict(model, arrays, case, Vocabulary.of(arrays["names"].tolist()))
    torch.testing.assert_close(got, arrays[case], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", cases("inference"))
def test_masks_of_odd_sizes_with_reference_compat(model, case, monkeypatch):
    arrays = stored("inference")
    names = Vocabulary.of(arrays["names"].tolist())
    ours = predict(model, arrays, case, names)
    monkeypatch.setattr(model, "reference_compat", True)
    torch.testing.assert_close(predict(model, arrays, case, names), arrays[case], atol=1e-4, rtol=0)
    assert (ours - arrays[case]).abs().max() > 0.01, (
        "the default must undo the padding, so its result must differ from the published one"
    )


def test_retrieval_words(model, monkeypatch):
    arrays = stored("inference")
    texts, counts = arrays["rag_texts"].tolist(), arrays["rag_nums"].tolist()
    names, extra = texts[: len(counts)], texts[len(counts) :]
    words = {name: [extra.pop(0) for _ in range(n)] for name, n in zip(names, counts)}
    # The words are matched by class name, so their order may differ.
    vocabulary = Vocabulary.of(names).with_words(dict(reversed(words.items())))
    monkeypatch.setattr(model, "reference_compat", True)
    sample = {"image": arrays["image_100x140"], "vocabulary": vocabulary}
    (got,) = model.predict([sample], "probabilities")
    torch.testing.assert_close(got["sem_seg"], arrays["rag_sem_seg"], atol=1e-4, rtol=0)


def test_retrieval_words_are_matched_by_name(tmp_path):
    """Retrieval words are matched by class name, because the published lists for UAVid have different orders."""
    (tmp_path / "o1.json").write_text('{"Storage_Tank": ["silo", "cistern"], "ship": ["boat"], "except": ["sky"]}')
    words = read_retrieval_words(tmp_path / "o1.json")
    assert Vocabulary.of(["ship", "storage tank"]).with_words(words).phrases == (
        ("ship", "boat"),
        ("storage tank", "silo", "cistern"),
    )
    with pytest.raises(ValueError, match=r"words for \['Storage_Tank'\].*\['ship'\]"):
        Vocabulary.of(["ship"]).with_words(words)


def test_a_file_that_holds_no_retrieval_words(tmp_path):
    (tmp_path / "o1.json").write_text('["ship"]')
    with pytest.raises(ValueError, match="is not a table of retrieval words"):
        read_retrieval_words(tmp_path / "o1.json")


def published_rows(name: str) -> dict[str, tuple[int, ...]]:
    rows = [line.split("\t") for line in (DATA / f"checkpoint_keys_{name}.tsv").read_text().splitlines()[1:]]
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape, _ in rows}


def test_the_huge_model_has_the_published_names_and_shapes(root):
    """The full-size model, built without memory for weights, has the published names and shapes except NOT_NEEDED."""
    cfg = default_config()
    cfg.merge_from_file(str(root / "configs/skysense_o/skysense_o.yaml"))
    with torch.device("meta"):
        model = SkySenseO(cfg)
    ours = {published_name(name): tuple(t.shape) for name, t in model.state_dict().items()}
    theirs = {key: shape for key, shape in published_rows("skysense_o").items() if not NOT_NEEDED.search(key)}
    assert ours == theirs
    assert sum(p.numel() for p in model.parameters()) == 1_284_933_042 - 268_697_600 - 1_049_600
    clip = {key for key in published_rows("clip") if not NOT_NEEDED.search(f"x.{key}")}
    assert clip == {key.removeprefix("sem_seg_head.clip_model.") for key in ours if "clip_model" in key}


def test_a_published_checkpoint_loads_from_its_file(model, tmp_path):
    state = published_state()
    state["tokennizer_model.0.auto_model.x"] = torch.zeros(3)
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "iteration": 7}, tmp_path / "model_final.pth")
    fresh = build()
    report = load_weights(fresh, tmp_path / "model_final.pth")
    assert "tokennizer_model.0.auto_model.x" in report.passed_over
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values()))


SMALL_CONFIG = """
VERSION: 2
MODEL:
  TOWER:
    NAME: SkySenseCLIP
    PRETRAINED: False
    INPUT_SIZE: 192
    SWIN: {DIM: 16, DEPTHS: [2, 2, 4, 2], HEADS: [2, 4, 8, 16], WINDOWS: [4, 4, 4, 8], PRETRAINED_WINDOWS: [0, 0, 0, 4],
           EXTRA_NORM_EVERY: 3}
    CLIP_TEXT: {WIDTH: 64, HEADS: 4, LAYERS: 2, OUTPUT_DIM: 32}
  SEM_SEG_HEAD: {NAME: CostAggregationHead, HIDDEN: 64, WINDOW: 6}
  TEMPLATES: ["A remote sensing image of a {}."]
"""


@pytest.fixture
def published_file(tmp_path, root):
    """Save a small checkpoint in the published format, including the unused tensors of the authors' files."""
    (tmp_path / "small.yaml").write_text(SMALL_CONFIG)
    cfg = default_config()
    cfg.merge_from_file(str(tmp_path / "small.yaml"))
    state = {published_name(name): t.clone() for name, t in SkySenseO(cfg).state_dict().items()}
    state["pixel_shuffle_conv0.weight"] = torch.randn(8, 4, 1, 1)
    state["tokennizer_model.0.auto_model.x"] = torch.randn(3)
    state["sem_seg_head.clip_model.visual.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.arange(9)
    state["sem_seg_head.transformer.layers.0.swin_block.block_2.attn_mask"] = torch.randn(4, 9, 9)
    torch.save({"model": state, "iteration": 3}, tmp_path / "model_final.pth")
    return tmp_path, state


CONVERT = "tools/convert_checkpoint.py"


def test_to_safetensors_and_back_bit_for_bit(call, published_file):
    folder, state = published_file
    config = ("--config-file", folder / "small.yaml")
    assert call(CONVERT, folder / "model_final.pth", folder / "ours.safetensors", *config)[0] == 0
    assert call(CONVERT, folder / "ours.safetensors", folder / "back.pth", *config)[0] == 0
    back = torch.load(folder / "back.pth", weights_only=True)["model"]
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)


def test_the_same_checkpoint_gives_the_same_bytes(call, published_file):
    """Regression: the order of the metadata, and so the SHA-256, used to differ from run to run."""
    folder, _ = published_file
    # Convert six times, because the order may be right by chance.
    paths = [folder / f"{k}.safetensors" for k in range(6)]
    for path in paths:
        assert call(CONVERT, folder / "model_final.pth", path, "--config-file", folder / "small.yaml")[0] == 0
    assert len({path.read_bytes() for path in paths}) == 1


def test_converted_weights_segment_without_a_config(call, published_file):
    folder, _ = published_file
    image = folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(image)
    words = ("--input", image, "--classes", "ship,harbor", "--save", "labels", "--device", "cpu")
    config = ("--config-file", folder / "small.yaml")
    assert call(CONVERT, folder / "model_final.pth", folder / "ours.safetensors", *config)[0] == 0
    for weights, more in (("model_final.pth", config), ("ours.safetensors", ())):
        options = ("--weights", folder / weights, "--output", folder / weights.split(".")[1], *more)
        assert call("demo/demo.py", *words, *options)[0] == 0
    theirs, ours = (np.asarray(Image.open(folder / kind / "a_labels.png")) for kind in ("pth", "safetensors"))
    assert np.array_equal(theirs, ours)


@pytest.mark.parametrize("part", ["image", "text", "decoder"])
def test_one_part_for_inference_in_half_precision(call, published_file, part):
    folder, _ = published_file
    options = ("--config-file", folder / "small.yaml", "--part", part, "--inference", "--dtype", "bf16")
    assert call(CONVERT, folder / "model_final.pth", folder / "part.safetensors", *options)[0] == 0
    state = load_file(folder / "part.safetensors")
    prefix = {"image": "tower.vi", "text": ("tower.text.", "tower.logit_scale"), "decoder": "sem_seg_head."}[part]
    assert state
    assert all(name.startswith(prefix) and t.dtype == torch.bfloat16 for name, t in state.items())


def test_the_config_in_the_source_is_kept(call, tmp_path):
    """Regression: weights of `mini` were given the config of the published model, which they do not fit."""
    words = (find_weights("mini"), tmp_path / "half.safetensors", "--dtype", "bf16")
    assert call(CONVERT, *words)[0] == 0
    assert config_of(tmp_path / "half.safetensors") == config_of(find_weights("mini"))
    assert Predictor.from_pretrained(tmp_path / "half.safetensors", "cpu").known_gsd == (0.1, 1.0)
    code, _, err = call(CONVERT, find_weights("mini"), tmp_path / "mini.pth")
    assert code == 2
    assert "is not the published model, whose parameter names a .pth has: write .safetensors" in err
    code, _, err = call(CONVERT, find_weights("mini"), tmp_path / "image.safetensors", "--part", "image")
    assert code == 2
    assert "mini.safetensors has no part 'image' of the published model: choose another part, or whole" in err


def test_an_unknown_target_is_refused(call, published_file):
    folder, _ = published_file
    code, _, err = call(CONVERT, folder / "model_final.pth", folder / "x.onnx")
    assert code == 2
    assert "ends in '.onnx': write .safetensors or .pth" in err


def test_the_clip_file_overrides_its_image_tower_and_lacks_a_decoder(tmp_path):
    prefix = "sem_seg_head.clip_model."
    clip = {k.removeprefix(prefix): v for k, v in published_state().items() if k.startswith(prefix)}
    better = torch.full_like(clip["visual.norm0.bias"], 0.5)
    model = {"backbone_gep.norm0.bias": better, "backbone_s1.norm0.bias": better, "fusion.x": better}
    torch.save({"clip": clip, "model": model}, tmp_path / "skysense_clip.ckpt")
    with pytest.raises(WeightsError, match="missing: sem_seg_head.pyramid_guidance.0.weight") as error:
        load_weights(build(), tmp_path / "skysense_clip.ckpt")
    assert "tower." not in str(error.value).split("missing")[1].split(";")[0]
