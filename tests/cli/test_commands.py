"""Tests of the command `skysense-o`: help, version, errors, and subcommands, which run the code of the scripts."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, load_script

import skysense_o
from skysense_o.cli import main, segment
from skysense_o.cli.main import COMMANDS, run_command


def run(capsys, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = run_command([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version_and_help(capsys):
    assert run(capsys, "--version") == (0, f"skysense-o {skysense_o.__version__}\n", "")
    code, said, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"\n    {name} " in said for name in COMMANDS)
    assert run(capsys)[0] == 2, "without a command, the exit code is 2"
    code, _, err = run(capsys, "fly")
    assert code == 2
    assert "invalid choice: 'fly'" in err


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.run])
def test_the_examples_of_each_command_are_ones_that_it_takes(name, capsys):
    code, said, _ = run(capsys, name, "--help")
    assert code == 0
    for example in COMMANDS[name].examples:
        assert f"skysense-o {name} {example}".rstrip() in said
        words = shlex.split(example)
        script, named = main._script_of([name, *words])
        if script:
            assert words[named - 1 :] or (ROOT / script).is_file()
        else:
            main._parser(name).parse_args([name, *words])


@pytest.mark.parametrize("words", [("app",), ("data", "show"), ("data", "prepare", "wbs_si")])
def test_scripts_run_as_commands(words):
    # Each command runs in a subprocess, because the web page's script ends its own process.
    command = [sys.executable, "-m", "skysense_o", *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python " in done.stdout, "the help must show the script's own examples"


def test_prepare_without_a_name_lists_the_names(capsys):
    code, _, err = run(capsys, "data", "prepare")
    assert code == 2
    assert err.startswith("error: data prepare needs the name of a data set: chn6_cug, coco_stuff,"), err
    assert err.count("\n") == 1


def test_a_data_set_that_no_script_prepares(capsys):
    code, _, err = run(capsys, "data", "prepare", "moon")
    assert code == 2
    assert "invalid choice: 'moon'" in err
    assert "wbs_si" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("segment nowhere.jpg --classes road", "no image at 'nowhere.jpg'"),
        ("segment --classes road", "no image: give files, folders or globs"),
        ("scene nowhere.tif --classes road", "no image at 'nowhere.tif'"),
        ("scene nowhere.json --classes road", "no STAC item at 'nowhere.json'"),
        ("segment README.md --interactive nowhere.jpg", "takes one image, and 2 were given (README.md, nowhere.jpg)"),
        ("segment nowhere.jpg --threshold 2 other.jpg", "--threshold 2.0 is out of range"),
        ("segment README.md --interactive --dataset dubai --threshold 0.4", "leave out --dataset, --threshold"),
        ("classify README.md", "no classes: give --classes, --classes-file, --dataset or --open-world"),
        ("classify nowhere.jpg --dataset ucmerced", "no image at 'nowhere.jpg'"),
        ("ask nowhere.jpg --question why", "no image at 'nowhere.jpg'"),
        ("train --config-file nowhere.yaml", "no config at 'nowhere.yaml'"),
        ("eval --config-file configs/mini/finetune.yaml KEY --resume", "'--resume' is among the KEY VALUE pairs"),
        ("export --output a.pt", "write a name that ends in .onnx"),
    ],
)
def test_mistakes_are_answered_before_torch_is_imported(words, text, tmp_path):
    code = (
        f"import sys; from skysense_o.cli.main import run_command; code = run_command({words.split()!r})\n"
        "print(code, [name for name in ('torch', 'cv2', 'detectron2', 'rasterio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "2 []", done.stderr
    assert done.stderr.startswith("error: ")
    assert text in done.stderr


def test_files_may_stand_before_and_behind_options(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(segment, "run_task", lambda args: seen.append((args.files, args.classes)))
    assert run(capsys, "segment", "a.jpg", "--classes", "road", "b.jpg", "--open", "c.jpg")[0] == 2, (
        "two sources of words"
    )
    assert run(capsys, "segment", "a.jpg", "--classes", "road", "b.jpg", "--device", "cpu", "c.jpg")[0] == 0
    assert seen == [(["a.jpg", "b.jpg", "c.jpg"], "road")]
    code, _, err = run(capsys, "segment", "a.jpg", "--classes", "road", "b.jpg", "--fast")
    assert code == 2
    assert "unrecognized arguments: b.jpg --fast" in err
    code, _, err = run(capsys, "export", "--output", "a.onnx", "b.jpg")
    assert code == 2
    assert "unrecognized arguments: b.jpg" in err


def test_it_segments_as_the_demo_does(capsys, call, tmp_path):
    image, words = ROOT / "demo/yellowstone_0.4m.jpg", ("--classes", "road,tree", "--save", "labels")
    code, said, err = run(capsys, "segment", image, *words, "--output", tmp_path / "a")
    assert code == 0, err
    assert str(tmp_path / "a/yellowstone_0.4m_labels.png") in said
    assert call("demo/demo.py", "--input", image, *words, "--output", tmp_path / "b")[0] == 0
    (one,), (other,) = ((tmp_path / name).iterdir() for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_completion_knows_commands_and_options(capsys):
    pytest.importorskip("shtab", reason='pip install "skysense_o[completion]"')
    code, said, _ = run(capsys, "--completion", "bash")
    assert code == 0
    assert all(word in said for word in ("segment", "--open-world", "prepare", "--max-upload", "deduplicate"))
    assert subprocess.run(["bash", "-n"], input=said, text=True).returncode == 0


@pytest.mark.parametrize("words", ["--help", "--completion bash", "app --help"])
def test_a_command_whose_output_nobody_reads_ends_quietly(words):
    if "--completion" in words:
        pytest.importorskip("shtab", reason='pip install "skysense_o[completion]"')
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    unread, stdout = os.pipe()
    os.close(unread)  # as after `| true`
    command = [sys.executable, "-m", "skysense_o", *words.split()]
    done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=stdout, stderr=subprocess.PIPE, text=True)
    os.close(stdout)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_batch_whose_output_nobody_reads_ends_at_once():
    def unread(path, stem):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        segment._each(SimpleNamespace(paths=["a.jpg", "b.jpg"], stems=["a", "b"]), unread)


def test_without_detectron2_one_line_says_what_to_do(tmp_path):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from skysense_o.cli.main import run_command\n"
        f"code = run_command(['segment', 'demo/fields_30m.jpg', '--classes', 'a', '--output', {str(tmp_path)!r}])\n"
        "import skysense_o\n"
        "try: skysense_o.Predictor\n"
        "except ModuleNotFoundError as error: print(code, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    cure = "Detectron2 is not installed, and not on PyPI under its name: python -m skysense_o doctor --install"
    assert done.stderr.strip().splitlines()[-1] == f"error: {cure}"
    assert done.stdout.strip() == f"2 {cure}"


def test_a_config_of_ours_is_found_from_any_folder(tmp_path, monkeypatch):
    from skysense_o.shipped_files import find_config

    monkeypatch.chdir(tmp_path)
    assert find_config("configs/mini/finetune.yaml") == ROOT / "configs/mini/finetune.yaml"
    (tmp_path / "configs/mini").mkdir(parents=True)
    (tmp_path / "configs/mini/finetune.yaml").touch()
    assert str(find_config("configs/mini/finetune.yaml")) == "configs/mini/finetune.yaml", (
        "a user's own file comes before the shipped file of the same name"
    )
    with pytest.raises(FileNotFoundError, match="no config at 'configs/mini/nowhere.yaml': see configs/"):
        find_config("configs/mini/nowhere.yaml")


def test_the_demo_has_all_options_of_the_commands():
    options = {action.dest for action in load_script("demo/demo.py").parser()._actions}
    for name in ("segment", "scene", "classify", "ask"):
        args = main._parser(name).parse_args([name, "--question", "why"] if name == "ask" else [name])
        assert set(vars(args)) - {"files", "command", "completion"} <= options
        assert options - {"help"} <= set(vars(args)), (
            "run_task reads every option of the demo, so each command must have it"
        )
