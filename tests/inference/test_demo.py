"""Tests of demo.py with the shipped model, and of the messages for wrong arguments."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from skysense_o.inference.colors import NONE_COLOR

DEMO = "demo/demo.py"


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "town.png"
    Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


def test_classes_give_all_kinds_of_files(call, image, tmp_path):
    out = tmp_path / "out"
    formats = "overlay,labels,probabilities,json"
    code, text, _ = call(
        DEMO, "--input", image, "--classes", "building|house,road,tree", "--output", out, "--save", formats
    )
    assert code == 0
    labels = np.asarray(Image.open(out / "town_labels.png"))
    assert labels.dtype == np.uint8
    assert labels.shape == (70, 90)
    arrays = np.load(out / "town_probabilities.npz")
    assert arrays["probabilities"].shape == (3, 70, 90)
    assert arrays["class_names"].tolist() == ["building", "road", "tree"]
    # Weights are saved in half precision, so labels may differ where two classes have equal scores.
    assert (arrays["probabilities"].argmax(0) == labels).mean() > 0.99
    body = json.loads((out / "town.json").read_text())
    assert [(c["id"], c["name"]) for c in body["classes"]] == [(0, "building"), (1, "road"), (2, "tree")]
    assert [c["pixels"] for c in body["classes"]] == np.bincount(labels.ravel(), minlength=3).tolist()
    assert sum(c["share"] for c in body["classes"]) == pytest.approx(1)
    assert len(body["settings"]["weights_sha256"]) == 64
    assert Image.open(out / "town_overlay.png").size[1] > 70
    for file in ("town_overlay.png", "town_labels.png", "town_probabilities.npz", "town.json"):
        assert str(out / file) in text
    assert "building" in text
    assert "%" in text


def test_a_single_class_gets_a_threshold(call, image, tmp_path):
    """A single class gets a threshold of 0.5; without a threshold, all pixels would get this class."""
    assert call(DEMO, "--input", image, "--classes", "building", "--output", tmp_path / "out")[0] == 0
    body = json.loads((tmp_path / "out/town.json").read_text())
    assert [c["name"] for c in body["classes"]] == ["none", "building"]
    assert body["classes"][1]["share"] < 1
    assert body["settings"]["threshold"] == 0.5


def test_with_background_or_threshold_id_0_is_none(call, image, tmp_path):
    words = ("--classes", "building,road", "--background", "sky,sea", "--threshold", "0.3")
    assert call(DEMO, "--input", image, *words, "--output", tmp_path / "out")[0] == 0
    body = json.loads((tmp_path / "out/town.json").read_text())
    assert [c["name"] for c in body["classes"]] == ["none", "building", "road"]
    assert call(DEMO, "--input", image, "--classes", "road", "--threshold", "1", "--output", tmp_path / "one")[0] == 0
    assert not np.asarray(Image.open(tmp_path / "one/town_labels.png")).any()


def test_more_than_254_classes_need_16_bits(call, image, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(f"thing {i}" for i in range(300)))
    code, *_ = call(DEMO, "--input", image, "--classes-file", tmp_path / "words.txt", "--output", tmp_path / "out")
    assert code == 0
    assert np.asarray(Image.open(tmp_path / "out/town_labels.png")).dtype == np.uint16


def test_a_data_set_gives_classes_and_colors(call, image, tmp_path):
    assert call(DEMO, "--input", image, "--dataset", "dubai", "--output", tmp_path / "out")[0] == 0
    body = json.loads((tmp_path / "out/town.json").read_text())
    assert body["classes"][0]["name"] == "water"
    assert body["classes"][0]["color"] == [38, 120, 226]


def test_a_bad_image_does_not_stop_the_batch(call, image, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    Image.open(image).save(tmp_path / "town.tif")
    code, _, err = call(DEMO, "--input", tmp_path / "*.[pt][ni][gf]", "--classes", "road", "--output", tmp_path / "out")
    assert code == 1
    assert "bad.png is not an image" in err
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"town_labels.png", "town_png_labels.png"} == {n for n in written if n.endswith("labels.png")} or {
        "town_labels.png",
        "town_tif_labels.png",
    } == {n for n in written if n.endswith("labels.png")}
    assert not [n for n in written if n.startswith("bad")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--input": "nowhere.jpg"}, "no image at 'nowhere.jpg'"),
        ({"--input": "*.nothing"}, "matches no image"),
        ({"--classes": ""}, "are empty"),
        ({"--classes": "road,,tree"}, "a class name is blank"),
        ({"--classes": "road,road"}, "stands for two classes"),
        ({"--weights": "nowhere"}, "no weights at 'nowhere'"),
        ({"--config-file": "nowhere.yaml"}, "no config at 'nowhere.yaml'"),
        ({"--save": "overlay,movie"}, "unknown formats ['movie']: choose among overlay"),
        ({"--threshold": "1.5"}, "--threshold 1.5 is out of range: 0 to 1"),
        ({"--device": "tpu"}, "unknown device 'tpu': choose auto, cpu"),
    ],
)
def test_wrong_arguments_get_one_line_code_2_and_no_output(call, image, tmp_path, changes, says):
    out = tmp_path / "out"
    options = {"--input": image, "--classes": "road", "--output": out, **changes}
    code, _, err = call(DEMO, *(word for pair in options.items() for word in pair))
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(call, image, tmp_path, monkeypatch):
    monkeypatch.setattr("skysense_o.cli.segment._load_predictor", lambda args: pytest.fail("too late"))

    def refuse(dir):
        assert dir == tmp_path, "the nearest folder that exists is tried"
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # as root, every folder of a usual disk can be written
    code, _, err = call(DEMO, "--input", image, "--classes", "road", "--output", tmp_path / "new/out")
    assert code == 2
    assert "new/out' cannot be written: give another --output" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("content", "says"), [(b"", "0 bytes"), (b"text", "is not an image"), (None, "damaged")])
def test_bad_images_get_code_2_and_no_output(call, image, tmp_path, content, says):
    bad = tmp_path / "bad.png"
    bad.write_bytes(image.read_bytes()[:2000] if content is None else content)
    code, _, err = call(DEMO, "--input", bad, "--classes", "road", "--output", tmp_path / "out")
    assert code == 2
    assert says in err
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_and_invalid_configs_are_errors(call, image, small_model, tmp_path):
    torch.save({"model": small_model.state_dict()}, tmp_path / "w.pth")
    config = tmp_path / "c.yaml"
    words = ("--input", image, "--classes", "road", "--output", tmp_path / "out", "--weights", tmp_path / "w.pth")
    for text, says in (
        ("VERSION: 2\n", "misshaped: tower.lateral.0.weight (16, 320, 1, 1) for (96, 320, 1, 1)"),
        ("MODEL: {TOWERS: 1}\n", "Non-existent config key: MODEL.TOWERS"),
        ("MODEL: [\n", "c.yaml"),
    ):
        config.write_text(text)
        code, _, err = call(DEMO, *words, "--config-file", config)
        assert code == 2
        assert says in err
        assert not (tmp_path / "out").exists()


def test_an_unknown_data_set_is_an_error(call, image, tmp_path):
    code, _, err = call(DEMO, "--input", image, "--dataset", "mars", "--output", tmp_path / "out")
    assert code == 2
    assert "no class table 'mars' in datasets/classes; there are: " in err
    assert ", dubai, " in err
    code, _, err = call(DEMO, "--input", image, "--dataset", "lovda", "--output", tmp_path / "out")
    assert code == 2
    assert "no class table 'lovda' in datasets/classes; did you mean 'loveda'?" in err


def test_an_output_that_is_a_file_is_an_error(call, image, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = call(DEMO, "--input", image, "--classes", "road", "--output", tmp_path / "file")
    assert code == 2
    assert "is a file: give a folder" in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error(call, image, tmp_path):
    code, _, err = call(DEMO, "--input", image, "--classes", "road", "--device", "cuda", "--output", tmp_path / "out")
    assert code == 2
    assert "device 'cuda' is not available, torch sees 0 GPUs: use cpu" in err


def test_the_python_example_of_the_readme_runs(mini, image):
    result = mini(image, ["building", "road"])
    assert result.classes == ("building", "road")
    assert set(result.presence) == {"building", "road"}
    again = mini(np.asarray(Image.open(image)), "building,road")
    assert np.array_equal(result.labels, again.labels)


def test_background_is_split_into_words_not_letters(mini, image):
    result = mini(image, ["road"], background="sky,sea")
    assert result.vocabulary.classes == ("road", "sky", "sea")
    with pytest.raises(ValueError, match="holds its own background words"):
        mini(image, result.vocabulary, background=["sky"])
    with pytest.raises(ValueError, match="must be lists"):
        type(result.vocabulary).of("road")


def test_more_classes_change_no_mask_of_the_shipped_model(mini, image):
    few = mini(image, ["road", "water"], probabilities=True).probabilities
    many = mini(image, ["road", "water", *(f"thing {i}" for i in range(30))], probabilities=True).probabilities
    assert np.abs(many[:2] - few).max() < 1e-6


def test_weights_for_whole_images_say_what_they_are_for(call, image, tmp_path):
    """Regression: the error used to be "No object named 'EmbeddedVQA' found in 'META_ARCH' registry!"."""
    code, _, err = call(DEMO, "--input", image, "--weights", "mini_vqa", "--classes", "road", "--output", tmp_path)
    assert code == 2
    assert "mini_vqa.safetensors makes no masks: it is for whole images (--task classify or ask); for masks give" in err


def test_a_threshold_out_of_range_is_an_error(mini, image):
    with pytest.raises(ValueError, match="threshold 2 is out of range: 0 to 1"):
        mini(image, "road", threshold=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"--input": "nowhere.jpg"},
        {"--classes": "road,,tree"},
        {"--weights": "nowhere"},
        {"--config-file": "nowhere.yaml"},
        {"--aoi": "nowhere.geojson"},
        {"--save": "movie"},
        {"--memory": "much"},
    ],
)
def test_wrong_arguments_are_answered_before_torch_is_imported(image, tmp_path, changes):
    options = {"--input": image, "--classes": "road", "--output": tmp_path / "out", **changes}
    words = [str(word) for pair in options.items() for word in pair]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'demo')!r}); import demo; sys.argv = ['demo.py', *{words!r}]\n"
        "code = demo.exit_code(demo.run)\n"
        "print(code, [name for name in ('torch', 'cv2', 'detectron2', 'rasterio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "2 []", done.stderr


def test_help_of_the_shell_script_installs_nothing():
    done = subprocess.run(["sh", str(ROOT / "demo.sh"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Segment an image:   bash demo.sh [IMAGE [CLASSES")
    assert done.stderr == ""


def test_open_world_lists_only_the_larger_classes_sorted_by_share(call, image, tmp_path):
    code, text, err = call(DEMO, "--input", image, "--open-world", "--output", tmp_path / "out")
    assert code == 0, err
    rows = json.loads((tmp_path / "out/town.json").read_text())["classes"]
    assert len(rows) > 300, "the JSON file must list all classes"
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    table = text[text.index("class") :].splitlines()[2:]
    assert len(table) == sum(share >= 0.001 for share in shares) > 1
    assert table[0].startswith(rows[0]["name"])
    assert Image.open(tmp_path / "out/town_overlay.png").size[1] <= 2 * 70, "the legend is no taller than the image"


def test_progress_bars_and_tables_do_not_run_into_each_other(image, tmp_path):
    """In a terminal, progress bars and tables are printed on separate lines."""
    Image.open(image).save(tmp_path / "city.png")
    command = [sys.executable, DEMO, "--input", str(tmp_path / "*.png"), "--classes", "road,tree", "--output"]
    master, slave = os.openpty()
    # Set the terminal's width, because without a width there would be no progress bar.
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen([*command, str(tmp_path / "out")], cwd=ROOT, stdout=slave, stderr=slave)
    os.close(slave)
    output = b""
    try:
        while block := os.read(master, 65536):
            output += block
    except OSError:  # the process has ended and closed the terminal
        pass
    assert process.wait() == 0, output.decode()
    screen = [line.rstrip("\r").split("\r")[-1].rstrip() for line in output.decode().split("\n")]
    assert "2/2" in output.decode(), "the output must contain a progress bar"
    for stem in ("city", "town"):
        start = screen.index(str(tmp_path / f"out/{stem}_overlay.png"))
        assert screen[start + 3].split() == ["class", "pixels", "share", "present"]
        assert [line.split()[0] for line in screen[start + 5 : start + 7]] == ["road", "tree"]


def test_a_class_may_be_called_none_where_id_0_has_no_name(call, image, tmp_path):
    words = ("--input", image, "--output", tmp_path / "out", "--save", "json,overlay")
    code, _, err = call(DEMO, *words, "--classes", "none,road,tree")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads((tmp_path / "out/town.json").read_text())["classes"]}
    call(DEMO, *words, "--classes", "nothing|none,road,tree")
    renamed = {row["name"]: row for row in json.loads((tmp_path / "out/town.json").read_text())["classes"]}
    assert list(rows) == ["none", "road", "tree"]
    assert list(renamed) == ["nothing", "road", "tree"]
    assert rows["none"]["color"] != list(NONE_COLOR), (
        "the class called 'none' must have its own color, not that of unlabelled pixels"
    )
    for more in (("--threshold", "0.3"), ("--background", "sky")):
        for word in ("none", "None"):
            code, _, err = call(DEMO, *words, *more, "--classes", f"{word},road")
            assert code == 2
            assert f"a class is called '{word}', which is the name of id 0" in err
            assert f"call it 'nothing|{word}', or leave them out" in err
    code, _, err = call(DEMO, *words, "--classes", "none")
    assert (code, "a class is called 'none'" in err) == (2, True), (
        "a single class has a threshold, so 'none' already names the pixels below the threshold"
    )


def test_one_bad_file_never_ends_a_batch(call, image, tmp_path, monkeypatch):
    """Any exception of a library becomes one error line for that file, with its type, and the exit code is 1."""
    from skysense_o.cli import request

    rng = np.random.default_rng(1)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    whole_reader = request.read_image

    def reader(path, **options):
        if path.name in ("b.png", "c.png"):
            raise {"b.png": ZeroDivisionError("of a library\nsecond line"), "c.png": KeyError("tag")}[path.name]
        return whole_reader(path, **options)

    monkeypatch.setattr(request, "read_image", reader)
    words = ("--classes", "road,tree", "--output", tmp_path / "out", "--save", "json", "--input")
    with pytest.raises(ZeroDivisionError):
        call(DEMO, *words, tmp_path / "b.png", tmp_path / "a.png")
    monkeypatch.delenv("SKYSENSE_O_TRACEBACK")
    code, out, err = call(DEMO, *words, *(tmp_path / f"{name}.png" for name in "bca"))
    assert code == 1
    assert "a.json" in out
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert lines[0].startswith("error: b.png: unexpected ZeroDivisionError: of a library second line")
    assert lines[1].startswith("error: c.png: unexpected KeyError: tag")
    code, _, err = call(DEMO, *words, tmp_path / "b.png")
    assert code == 1
    assert "error: b.png: unexpected ZeroDivisionError" in err
