"""Originals of a user's own pictures: pix2pix from pairs, CycleGAN without, and the command line that makes them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from mcompress.compress.models.spec import InputSpec
from mcompress.compress.tasks.translation import teacher
from mcompress.compress.tasks.translation.own_teachers import OwnTeacherRecipe, make_cycle_teacher, make_pix2pix_teacher
from mcompress.compress.teacher import load_network
from mcompress.errors import PlanError
from mcompress.targets.schema import TeacherConfig

SMALL = OwnTeacherRecipe(steps=2, precision="no", features=4, crop_size=32)
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def write(folder: Path, pictures: Tensor) -> None:
    """(N, 3, H, W) in [0, 1]."""
    folder.mkdir(parents=True)
    for index, image in enumerate(pictures):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{index}.png")


def domains(folder: Path, count: int = 4, side: int = 40) -> Path:
    """Pairs whose targets are the inverted inputs; without their names, two collections."""
    pictures = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(7)) / 2
    write(folder / "A", pictures)
    write(folder / "B", 1 - pictures)
    return folder


def of_pairs(data: Path, folder: Path, recipe: OwnTeacherRecipe = SMALL) -> None:
    make_pix2pix_teacher(recipe, data, folder)


def of_domains(data: Path, folder: Path, recipe: OwnTeacherRecipe = SMALL) -> None:
    make_cycle_teacher(recipe, data, folder)


@pytest.mark.parametrize(
    ("make", "player", "prefix", "command", "measured"),
    [
        (of_pairs, "generator", "", "teacher --steps 2", "validation_psnr_db"),
        (of_domains, "generators", "a_to_b.", "teacher --unpaired --steps 2", "validation_cycle_psnr_db"),
    ],
    ids=["pix2pix", "CycleGAN"],
)
def test_two_folders_make_an_original_that_a_target_takes(
    make: Callable[..., None], player: str, prefix: str, command: str, measured: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = domains(tmp_path / "data")
    (data / "A" / "0.png").rename(data / "A" / "broken.png")
    (data / "A" / "broken.png").write_bytes(b"no picture")
    (data / "B" / "0.png").rename(data / "B" / "broken.png")
    make(data, tmp_path)
    taken = TeacherConfig(network="resnet_generator", checkpoint=tmp_path / "teacher.safetensors")
    spec, network = load_network(taken, (InputSpec("input", (1, 3, 32, 32), (-1.0, 1.0)),))
    assert spec.args["features"] == 4
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["averaged"][player]
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved[f"{prefix}{name}"])
    record = json.loads((tmp_path / "teacher.json").read_text())
    assert record["command"].endswith(
        f"{command} --seed 0 --precision no --features 4 --crop-size 32 --batch-size 1 --learning-rate 0.0002 --data FOLDER"
    )
    assert str(tmp_path) not in json.dumps(record)
    assert record[measured] > 0
    assert record["skipped_pictures"] == capsys.readouterr().err.count("A/broken.png: cannot be read") == 1


def test_pix2pix_learns_what_the_pairs_show(tmp_path: Path) -> None:
    """All inputs are dark and all targets bright: the network's colour must move from that of its start to theirs."""
    data = domains(tmp_path / "data")
    found = []
    for steps in (1, 60):
        folder = tmp_path / str(steps)
        folder.mkdir()
        of_pairs(data, folder, OwnTeacherRecipe(steps=steps, precision="no", features=4, crop_size=32, learning_rate=2e-3))
        found.append(json.loads((folder / "teacher.json").read_text())["validation_psnr_db"])
    assert found[1] > found[0] + 3


@pytest.mark.parametrize("crop", [8, 33, 44])
@pytest.mark.parametrize("make", [of_pairs, of_domains])
def test_a_crop_that_the_pictures_cannot_give_is_refused(make: Callable[..., None], crop: int, tmp_path: Path) -> None:
    recipe = OwnTeacherRecipe(steps=1, precision="no", features=4, crop_size=crop)
    with pytest.raises(PlanError, match=rf"--crop-size is {crop}; it must be a multiple of 4, at least 32, at most 40"):
        make(domains(tmp_path / "data"), tmp_path, recipe)


class Made:
    """What the command line makes, in place of making it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[object, ...]] = []
        for name in ("make_pix2pix_teacher", "make_cycle_teacher", "train_teacher"):
            monkeypatch.setattr(teacher, name, lambda *given, name=name: self.calls.append((name, *given)))

    def by(self, options: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
        monkeypatch.setattr("sys.argv", ["teacher", *shlex.split(options), "--out", str(folder)])
        teacher.main()
        return self.calls.pop()


def test_the_options_say_which_original_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made(monkeypatch)
    assert made.by("--steps 7", tmp_path, monkeypatch) == ("train_teacher", 7, 0, "bf16", tmp_path)
    recipe = OwnTeacherRecipe(9, 1, "no", features=64, learning_rate=1e-3)
    options = "--steps 9 --seed 1 --precision no --features 64 --learning-rate 1e-3"
    assert made.by(f"{options} --data x", tmp_path, monkeypatch) == ("make_pix2pix_teacher", recipe, Path("x"), tmp_path)
    assert made.by(f"{options} --data x --unpaired", tmp_path, monkeypatch) == ("make_cycle_teacher", recipe, Path("x"), tmp_path)
    assert made.by("--unpaired", tmp_path, monkeypatch) == ("make_cycle_teacher", OwnTeacherRecipe(teacher.STEPS), None, tmp_path)
    with pytest.raises(SystemExit):
        made.by("--crop-size 64", tmp_path, monkeypatch)
    assert "--crop-size belongs to --data or --unpaired; the embedded teacher is made in one way" in capsys.readouterr().err


def test_the_commands_of_the_readme_make_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch)
    commands = re.findall(r"^python -m mcompress\.compress\.tasks\.translation\.teacher (.*) --out original$", README, flags=re.M)
    assert [made.by(options, tmp_path, monkeypatch)[0] for options in commands] == ["make_pix2pix_teacher", "make_cycle_teacher"]


def test_the_command_line_names_what_is_wrong_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["teacher", "--data", str(tmp_path / "none"), "--steps", "2", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        teacher.main()
    assert caught.value.code == PlanError([]).exit_code
    error = capsys.readouterr().err
    assert error.startswith("error: --data: ")
    assert "none' does not exist" in error
