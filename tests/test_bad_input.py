"""Malformed targets and command lines: exit 2, a message that names place, value, what is allowed and what to do, and never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from mcompress import cli
from mcompress.errors import CheckpointError, MissingBackendError, PlanError
from mcompress.planning import plan
from mcompress.targets.load import load_target
from mcompress.targets.own_modules import import_beside
from mcompress.targets.stages import TrainingConfig

GOOD = """\
name: ok
device: snapdragon865
threads: 1
model: {input_shape: [1, 3, 32, 32]}
budget: {macs_g: 50}
stages:
  - {stage: distill, steps: 2, batch_size: 1, crop_size: 8}
  - {stage: quantize, samples: 2}
exports:
  - {backend: onnx}
"""
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command line in this process, in an empty folder with `good.yaml`; returns the exit code and what was printed to standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mcompress", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        error = capfd.readouterr().err
        assert "Traceback" not in error
        return int(caught.value.code or 0), error

    yield run
    import_beside(None)


def in_model(text: str) -> str:
    return GOOD.replace("input_shape", f"{text}, input_shape")


def in_distill(text: str) -> str:
    return GOOD.replace("crop_size: 8", text)


def shape(text: str) -> str:
    return GOOD.replace("[1, 3, 32, 32]", text)


BOMB = "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)) + "\n"
NO_SHAPE = "cannot be exported; it must be [1, channels, height, width] with height and width of at least 8"
NEEDED = "super_resolution needs [1, 3, 128, 128]"

TARGETS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "t.yaml:1: the file is empty; a target needs at least name, device and exports (examples: mcompress list targets)"),
    "binary": (bytes(range(256)), "t.yaml: not a text file: byte 128 is not UTF-8; a target is YAML text in UTF-8"),
    "utf-16": (GOOD.encode("utf-16"), "t.yaml: not a text file: byte 0 is not UTF-8"),
    "null character": (b"name: a\0b\n", "t.yaml:1: not valid YAML: unacceptable character #x0000"),
    "a list": ("- 1\n", "t.yaml:1: the file holds a list; it must be a mapping with name, device and exports"),
    "a number": ("42\n", "t.yaml:1: the file holds 42; it must be a mapping"),
    "a password file": ("root:x:0:0:root:/root:/bin/bash\n", "the file holds 'root:x:0:0:root:/root:/bin/bash'; it must be a mapping"),
    "alias bomb": (BOMB, "t.yaml:1: more than 20000 values, aliases counted each time they are used"),
    "cycle": ("a: &x {b: *x}\n", "t.yaml:1: nested too deeply; at most 50 levels are read"),
    "code": (
        GOOD.replace("name: ok", "name: !!python/object/apply:os.system [id]"),
        "t.yaml:1: the tag !!python/object/apply:os.system is not allowed",
    ),
    "two documents": (GOOD + "---\n" + GOOD, "t.yaml:11: not valid YAML: expected a single document"),
    "unknown alias": (GOOD + "seed: *nope\n", "t.yaml:11: not valid YAML: found undefined alias 'nope'"),
    "tabs": ("name:\tok\n\tdevice: x\n", "t.yaml:1: not valid YAML"),
    "stages a mapping": (
        GOOD.replace("  - {stage: distill", "  x: {stage: distill").replace("  - {stage: q", "  y: {stage: q"),
        "t.yaml:6: stages is a mapping; it must be a list",
    ),
    "a stage by its name": (GOOD.replace("{stage: quantize, samples: 2}", "quantize"), "t.yaml:8: stages[1] is 'quantize'; it must be a mapping"),
    "no stages": (
        "name: a\ndevice: kona\nstages: []\nexports: [{backend: onnx}]\n",
        "t.yaml:3: stages is an empty list; it must have at least 1 item",
    ),
    "one backend twice": (
        GOOD + "  - {backend: onnx, opset: 20}\n",
        "t.yaml:9: exports: onnx stands there more than once; a backend writes its files once, under one name, so keep one",
    ),
    "model a list": (GOOD.replace("{input_shape: [1, 3, 32, 32]}", "[1]"), "t.yaml:4: model is a list; it must be a mapping"),
    "shape of three": (shape("[3, 32, 32]"), f"t.yaml:4: model.input_shape: [3, 32, 32] {NO_SHAPE}"),
    "shape of five": (shape("[1, 3, 32, 32, 32]"), f"t.yaml:4: model.input_shape: [1, 3, 32, 32, 32] {NO_SHAPE}"),
    "shape of nothing": (shape("[]"), f"t.yaml:4: model.input_shape: [] {NO_SHAPE}"),
    "a batch of two": (shape("[2, 3, 32, 32]"), "Exported files take one picture at a time"),
    "a side of four": (shape("[1, 3, 4, 32]"), f"t.yaml:4: model.input_shape: [1, 3, 4, 32] {NO_SHAPE}"),
    "a side without end": (shape("[1, 3, 99999999999999999999, 8]"), "and at most 33554432 values in all, for example [1, 3, 128, 128]"),
    "a fraction of a pixel": (shape("[1, 3, 32.5, 32]"), "t.yaml:4: model.input_shape[2] is 32.5; it must be a whole number, at least 1"),
    "shape as text": (shape("1x3x32x32"), "t.yaml:4: model.input_shape is '1x3x32x32'; it must be a list"),
    "one channel": (
        shape("[1, 1, 32, 32]"),
        "model.input_shape is [1, 1, 32, 32], 1 channels; the data of super_resolution has 3: write [1, 3, 32, 32]",
    ),
    "negative seed": (GOOD + "seed: -1\n", "t.yaml:11: seed is -1; it must be at least 0 and at most 2147483647"),
    "5000 digits": (GOOD.replace("steps: 2", "steps: " + "9" * 5000), "t.yaml:7: stages[0].steps is a number of 5000 digits; at most 100 are read"),
    "infinity": (GOOD.replace("50", "1e999"), "t.yaml:5: budget.macs_g is inf; it must be a finite number, above 0"),
    "not a number": (GOOD.replace("50", ".nan"), "t.yaml:5: budget.macs_g is nan; it must be a finite number, above 0"),
    "unknown key in another script": (GOOD + "größe: 3\n", "t.yaml:11: größe is not known; a target takes name, device"),
    "a key that turns text around": (GOOD + "\u202ename: x\n", "t.yaml:11: '\\u202ename' is not known"),
    "half a character": (GOOD.replace("name: ok", 'name: "\\ud800"'), "t.yaml:1: name is '\\ud800'; it must be text in Unicode"),
    "name with a slash": (GOOD.replace("name: ok", "name: a/b"), "t.yaml:1: name is 'a/b'; it must be letters, digits, '_', '.' and '-'"),
    "name is the folder above": (GOOD.replace("name: ok", "name: .."), "t.yaml:1: name is '..'; it must be letters, digits"),
    "device is a path": (
        GOOD.replace("snapdragon865", "../../etc/passwd"),
        "t.yaml:2: device '../../etc/passwd' is not known (mcompress list devices, or a file *.yaml)",
    ),
    "unknown unit": (GOOD + "unit: tpu\n", "t.yaml:11: unit 'tpu' is not known of snapdragon865; known are cpu, gpu, npu"),
    "data nowhere": (
        GOOD + "data: {training: nope, held_out: nope}\n",
        "t.yaml:11: data.training is 'nope'; there is no such folder (relative paths",
    ),
    "data of endless name": (GOOD + f"data: {{training: {'x' * 5000}, held_out: y}}\n", "..., which is no path: File name too long"),
    "data with a null": (GOOD + 'data: {training: "a\\0b", held_out: x}\n', "data.training is 'a\\x00b'; there is no such folder"),
    "data is a file": (GOOD + "data: {training: file, held_out: file}\n", "t.yaml:11: data.training is 'file'; there is no such folder"),
    "an expert of another task": (
        GOOD.replace("input_shape", "expert: {network: syncnet, checkpoint: file}, input_shape"),
        "t.yaml:4: model.expert belongs to the task talking_face, and model.task is super_resolution; remove one of the two",
    ),
    "held-out data that are trained on": (
        GOOD + "data: {training: empty, held_out: empty/../empty}\n",
        "data.held_out is the folder of data.training, '",
    ),
    "data without pictures": (
        GOOD + "data: {training: empty, held_out: empty}\n",
        "holds no usable image (.png, .jpg, .jpeg, at least 128 pixels a side)",
    ),
    "weight below 0": (in_distill("ssim: -1"), "t.yaml:7: stages[0].ssim is -1; it must be at least 0 and at most 1e+06"),
    "unknown game": (
        in_distill("adversarial_loss: wasserstein"),
        "t.yaml:7: stages[0].adversarial_loss is 'wasserstein'; it must be one of least_squares, relativistic, hinge",
    ),
    "nothing to learn": (
        in_distill("truth: 0, output: 0, total_variation: 1"),
        "t.yaml:7: stages[0]: every weight is 0, so nothing would be learned; set truth",
    ),
    "a network that is no name": (in_model("network: '..:x'"), "t.yaml:4: model.network is '..:x'; it must be a name from `mcompress list models`"),
    "a module that is not there": (
        in_model("network: 'no_such_module:build'"),
        "there is no module 'no_such_module'; put the file beside the target file",
    ),
    "a function that is no network": (
        in_model("network: 'json:loads', args: {s: '1'}"),
        "network 'json:loads' returned a int; it must return a torch.nn.Module",
    ),
    "arguments out of range": (in_model("network: rrdb, args: {blocks: -1}"), "rrdb: blocks is -1; it must be a whole number from 1 to 128"),
    "a teacher that judges": (in_model("network: patchgan"), f"the teacher's output is [1, 1, 2, 2] for an input of [1, 3, 32, 32]; {NEEDED}"),
    "a teacher of another size": (
        in_model("network: vgg_discriminator"),
        "does not run on an input of [1, 3, 32, 32]: vgg_discriminator: the image is (32, 32)",
    ),
    "a student that judges": (
        in_model("student: {network: patchgan}"),
        f"the student's output is [1, 1, 2, 2] for an input of [1, 3, 32, 32]; {NEEDED}",
    ),
    "weights that are a folder": (in_model("teacher: {checkpoint: empty}"), "this is a folder, not a weights file. Give a .safetensors or .pth file"),
    "weights that are text": (in_model("teacher: {checkpoint: good.yaml}"), "holds something other than weights, and was not executed"),
    "a budget that nothing can change": (
        GOOD.replace("50", "0.001"),
        "budget.macs_g is 0.001; the network needs 1.1 GMACs, and no stage of this target",
    ),
}


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_malformed_target(name: str, command: Command, tmp_path: Path) -> None:
    content, expected = TARGETS[name]
    (tmp_path / "t.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, error = command("plan", "t.yaml")
    assert code == 2, error
    assert error.startswith("error: ")
    assert expected in error
    assert "pydantic" not in error


OVERRIDES = {
    "": "an override is KEY=VALUE, for example stages[1].ratio=0.3",
    "=1": "an override is KEY=VALUE",
    "stages[-1].steps=3": "an override is KEY=VALUE",
    "stages[99999999999999999999].x=1": "stages has 2 entries, the first is [0]; [99999999999999999999] does not exist",
    "stages=1": "--set stages=1: stages is 1; it must be a list",
    "a.b.c=1": "a is not known; a target takes name",
    "name=../x": "--set name=../x: name is '../x'; it must be letters, digits",
    "seed=&a [*a]": "nested too deeply",
    "stages[0].steps=!!python/name:os.system": "the tag !!python/name:os.system is not allowed",
    "threads=1e99": "threads is 1e+99; it must be a whole number, at least 1 and at most 256",
    "model.input_shape=[1,3,8]": "--set model.input_shape=[1,3,8]: model.input_shape: [1, 3, 8] cannot be exported; it must be [1, channels",
    "exports=[{backend: caffe}]": "exports[0].backend is 'caffe'; it must be one of onnx, tflite, executorch, coreml",
}


@pytest.mark.parametrize("override", list(OVERRIDES))
@pytest.mark.parametrize("verb", ["show", "plan"])
def test_a_malformed_override(verb: str, override: str, command: Command) -> None:
    code, error = command(verb, "good.yaml", "--set", override)
    assert code == 2, error
    assert OVERRIDES[override] in error
    assert error.startswith("error: good.yaml: --set") or "is not known" in error


COMMANDS: dict[tuple[str, ...], str] = {
    ("plan", "empty"): "empty: this is a folder; give a target file",
    ("show", "."): ".: this is a folder; give a target file",
    ("plan", "../../nowhere.yaml"): "there is no such file, and no shipped target of that name; shipped targets are",
    ("show", "targets/snapdragon865"): "there is no such file, and no shipped target of that name",
    ("plan", "snapdragn865"): "did you mean 'snapdragon865'?",
    ("plan", "a\0b"): "cannot be read: embedded null byte",
    ("plan", "x" * 5000): "cannot be read: File name too long",
    ("plan",): "Missing argument 'TARGET'",
    ("frobnicate",): "No such command 'frobnicate'",
    ("plan", "good.yaml", "--out", "file"): "--out is 'file'; it must be a folder, or a path where one can be made, that you may write to",
    ("run", "good.yaml", "--quick", "--out", "file"): "--out is 'file'; it must be a folder",
    ("run", "good.yaml", "--quick", "--out", "file/x"): "--out is 'file/x'; it must be a folder",
    ("run", "good.yaml", "--quick", "--out", "/dev/null"): "--out is '/dev/null'; it must be a folder",
    ("run", "good.yaml", "--quick", "--force", "polish"): "--force polish: this target has no such stage; it has: distill, quantize, export",
    ("run", "empty"): "empty: this is a folder; give a target file",
    ("list", "nothing"): "cannot list 'nothing'; what can be listed: models, devices",
    (
        "count",
        "rrdb",
        "--input",
        "1,3,8",
    ): "--input is '1,3,8', which rrdb does not take: module 'conv_first' of RRDBNet failed on an input of shape (1, 3, 8)",
    (
        "count",
        "rrdb",
        "--input",
        "0,3,8,8",
    ): "--input is '0,3,8,8'; it must be positive whole numbers with commas between them, the batch first, for example 1,3,128,128",
    (
        "count",
        "rrdb",
        "--input",
        "a,b",
    ): "--input is 'a,b'; it must be positive whole numbers with commas between them, the batch first, for example 1,3,128,128",
    (
        "count",
        "rrdb",
        "--input",
        "1,4,8,8",
    ): "--input is '1,4,8,8', which rrdb does not take: module 'conv_first' of RRDBNet failed on an input of shape (1, 4, 8, 8)",
    ("count", "unet_generator"): "--input is '1,3,128,128', which unet_generator does not take: the image is (128, 128) pixels",
    ("count", "patchgan", "--input", "1,3,1,1"): "--input is '1,3,1,1', which patchgan does not take",
    ("count", "rrdb", "--input", "1,3,99999999,99999999"): "which rrdb does not take",
    ("count", "nope"): "network 'nope' is not known; known are clip_text, diffusion_unet, imdn, latent_decoder, mfagan",
    ("count", "rrdb", "--args", "{"): "--args is not JSON",
    ("count", "rrdb", "--args", "[1]"): "--args is [1]; it must be a JSON object",
    ("count", "mfagan", "--args", '{"blocks": [[1]]}'): "mfagan: blocks is [[1]]; it must hold at least one pair",
    ("verify", "empty"): "'empty' is not a bundle: it has no manifest.json",
    ("report", "empty"): "'empty' is not a run: it has no run.json",
}


@pytest.mark.parametrize("arguments", list(COMMANDS), ids=lambda arguments: " ".join(arguments)[:40].replace("\0", "0"))
def test_a_malformed_command_line(arguments: tuple[str, ...], command: Command) -> None:
    code, error = command(*arguments)
    assert code == 2, error
    assert COMMANDS[arguments] in error


def test_a_message_is_printed_as_it_is(command: Command, tmp_path: Path) -> None:
    """rich would print a picture for `:x:` and take `[bold]` for a style."""
    (tmp_path / "a:x:[bold].yaml").write_text("", encoding="utf-8")
    assert "error: a:x:[bold].yaml:1: the file is empty" in command("plan", "a:x:[bold].yaml")[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(command: Command, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").chmod(0)
    code, error = command("plan", "good.yaml")
    assert code == 2
    assert "good.yaml: cannot be read: Permission denied" in error


def problems_of(text: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        plan(load_target(path))
    assert caught.value.exit_code == 2
    assert all(problem.startswith("target 'ok': ") for problem in caught.value.problems)
    return caught.value.problems


def test_one_list_holds_order_data_teacher_and_student_problems(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"no weights at all")
    text = (
        GOOD.replace("- {stage: quantize, samples: 2}", "- {stage: quantize}\n  - {stage: prune, ratio: 0.1}")
        + "data: {training: empty, held_out: empty}\n"
    )
    text = text.replace("input_shape", "teacher: {checkpoint: weights.pth}, student: {network: mfagn}, input_shape")
    found = "\n".join(problems_of(text, tmp_path))
    for expected in ("'prune' stands behind 'quantize'", "empty' holds no usable image", "weights.pth"):
        assert expected in found


def test_a_data_problem_does_not_hide_a_student_that_is_not_there_or_a_budget_that_is_missed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data = "data: {training: empty, held_out: empty}\n"
    teacher = "network: rrdb, args: {features: 8, blocks: 1, growth: 4}"
    found = "\n".join(problems_of(GOOD.replace("input_shape", f"teacher: {{{teacher}}}, student: {{network: mfagn}}, input_shape") + data, tmp_path))
    assert "holds no usable image" in found
    assert "network 'mfagn' is not known (did you mean 'mfagan'?)" in found
    found = "\n".join(problems_of(in_model(teacher).replace("50", "1e-6") + data, tmp_path))
    assert "holds no usable image" in found
    assert "budget.macs_g is 1e-06; the network needs" in found


def test_a_crop_problem_does_not_hide_the_metric_or_an_impossible_budget(tmp_path: Path) -> None:
    text = GOOD.replace("crop_size: 8", "crop_size: 512").replace("{macs_g: 50}", "{macs_g: 1e-6, quality: {metric: vibes, within: 1}}")
    found = problems_of(text, tmp_path)
    assert len(found) == 3
    assert "crop_size is 512" in found[0]
    assert "metric is 'vibes'; super_resolution measures psnr_db" in found[1]
    assert "budget.macs_g is 1e-06" in found[2]


def test_crops_that_are_smaller_than_the_windows_of_ssim_are_found_before_training(tmp_path: Path) -> None:
    text = TRANSLATED.replace("crop_size: 64", "crop_size: 8, ssim: 0.5")
    assert "ssim compares windows of 11 pixels, and crops of crop_size 8 make pictures of 8; raise crop_size to 12" in "\n".join(
        problems_of(text, tmp_path)
    )


TRANSLATED = """\
name: ok
device: snapdragon865
threads: 1
model: {task: translation, input_shape: [1, 3, 256, 256], student: {network: unet_generator, args: {features: 4, downs: 7}}}
stages:
  - {stage: distill, batch_size: 1, crop_size: 64}
exports:
  - {backend: onnx}
"""


def test_crops_and_validation_squares_on_which_a_network_does_not_run(tmp_path: Path) -> None:
    (found,) = problems_of(TRANSLATED, tmp_path)
    assert "stages[0] (distill): the network 'unet_generator' does not run on crops of crop_size 64: unet_generator: the image is (64, 64)" in found
    assert "with downs 7 both must be multiples of 128" in found
    text = TRANSLATED.replace("downs: 7", "downs: 8").replace("crop_size: 64", "crop_size: 128")
    (found,) = problems_of(text, tmp_path)  # online distillation does not validate
    assert "does not run on crops of crop_size 128" in found
    found = "\n".join(problems_of(text.replace("distill,", "distill, method: adaptive, original: true,"), tmp_path))
    assert "does not run on the squares of 128 pixels that the data are validated on" in found


def write_pairs(folder: Path, *sides: int) -> None:
    """Side-by-side pictures with these sides, pixels."""
    folder.mkdir()
    for number, side in enumerate(sides):
        Image.new("RGB", (2 * side, side), (number, 0, 0)).save(folder / f"{number}.png")


def test_held_out_pictures_on_which_a_network_does_not_run_are_found_before_training(tmp_path: Path) -> None:
    write_pairs(tmp_path / "training", 128, 128, 40)
    write_pairs(tmp_path / "held_out", 128, 100, 200)
    data = f"data: {{training: {tmp_path}/training, held_out: {tmp_path}/held_out}}\n"
    text = TRANSLATED.replace("downs: 7", "downs: 6") + data
    (found,) = problems_of(text, tmp_path)
    assert (
        "data.held_out: the network 'unet_generator' does not run on 2 of 3 held-out pictures, for example '1.png': unet_generator: the image "
        in found
    )
    assert "is (100, 100) pixels; with downs 6 both must be multiples of 64. Cut or resize the image, or lower downs" in found
    (found,) = problems_of(
        text.replace(", student: {network: unet_generator, args: {features: 4, downs: 6}}", "").replace(
            "distill, batch_size: 1", "search, space: unet_generator, batch_size: 1"
        ),
        tmp_path,
    )
    assert "does not run on 2 of 3 held-out pictures" in found
    (tmp_path / "t.yaml").write_text(text.replace("downs: 6", "downs: 2"), encoding="utf-8")
    small, teacher = plan(load_target(tmp_path / "t.yaml")).data_notes
    assert small == "stages[0] (distill): 1 of 2 training pictures are smaller than crop_size 64"
    assert teacher.startswith("model.teacher: the embedded original was made for the embedded objects alone; on these data ")
    assert plan(load_target(Path(__file__).parents[1] / "targets" / "xiaomi10-edges2objects.yaml")).data_notes == ()


def test_it_is_said_whether_teacher_or_student_has_wrong_arguments_even_beside_unusable_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "void").mkdir()
    widths = "network: resnet_generator, args: {widths: 24_16_16}"
    text = TRANSLATED.replace("network: unet_generator, args: {features: 4, downs: 7}", widths)
    text += f"data: {{training: {tmp_path}/empty, held_out: {tmp_path}/void}}\n"
    found = problems_of(text, tmp_path)
    assert [problem.split(": ")[1] for problem in found] == ["data.training", "data.held_out", "model.student"]
    assert "resnet_generator: widths is 241616; it must be a list of 8 or 6 whole numbers: first convolution" in found[2]
    found = problems_of(text.replace("student", "teacher"), tmp_path)
    assert "model.teacher: resnet_generator: widths is 241616" in "\n".join(found)


def test_a_quick_run_leaves_a_u_net_the_images_that_it_takes(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TRANSLATED.replace("downs: 7", "downs: 6"), encoding="utf-8")
    made = plan(load_target(tmp_path / "t.yaml").quick())
    assert made.target.model.input_shape == (1, 3, 256, 256)
    (stage,) = made.target.stages
    assert isinstance(stage, TrainingConfig)
    assert (stage.crop_size, stage.steps) == (64, 12)


def test_an_adaptive_distillation_that_nobody_teaches(tmp_path: Path) -> None:
    text = TRANSLATED.replace("distill,", "distill, method: adaptive,").replace("downs: 7", "downs: 6")
    (found,) = problems_of(text, tmp_path)
    assert "stages[0].method is adaptive, and it has no teacher; put a search of method semi_supervised before it, or set original: true" in found
    (tmp_path / "t.yaml").write_text(text.replace("adaptive,", "adaptive, original: true,"), encoding="utf-8")
    plan(load_target(tmp_path / "t.yaml"))
    search = "- {stage: search, method: semi_supervised, space: mfagan, batch_size: 1, crop_size: 64}\n  - {stage: distill"
    text = text.replace(", student: {network: unet_generator, args: {features: 4, downs: 6}}", "").replace("- {stage: distill", search)
    assert "the search space of 'mfagan' has no networks larger than its students; set original: true" in "\n".join(problems_of(text, tmp_path))


def test_weights_that_do_not_fit_are_a_problem_of_the_target(tmp_path: Path) -> None:
    assert CheckpointError("x").exit_code == 2
    assert CheckpointError("x\ny").problems == ["x\ny"]


def test_a_missing_backend_alone_is_exit_4_and_with_other_problems_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingBackendError("the onnx backend needs onnx. Install with: pip install 'mcompress[onnx]'")

    monkeypatch.setattr("mcompress.export.onnx.probe", missing)
    path = tmp_path / "t.yaml"
    path.write_text(GOOD, encoding="utf-8")
    with pytest.raises(MissingBackendError) as caught:
        plan(load_target(path))
    assert caught.value.exit_code == 4
    found = problems_of(GOOD.replace("crop_size: 8", "crop_size: 512"), tmp_path)
    assert "crop_size is 512" in found[0]
    assert "pip install 'mcompress[onnx]'" in found[1]


def test_a_student_without_weights_starts_as_the_seed_says(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "t.yaml"
    path.write_text(in_model("student: {network: imdn, args: {features: 16, blocks: 1}}"), encoding="utf-8")

    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # whatever ran before
        return next(iter(plan(load_target(path, [f"seed={seed}"])).start.state_dict().values()))

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
