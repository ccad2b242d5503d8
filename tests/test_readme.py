"""What README and CONTRIBUTING say is there: commands, options, exit codes, the example target, make targets, files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny_pipeline
import torch
import typer
import yaml
from PIL import Image
from safetensors.torch import save_file

from mcompress import errors
from mcompress.cli import app
from mcompress.compress.attention_layout import fastest_attention
from mcompress.compress.evolving_costs import UnetCosts, evolve_problems
from mcompress.compress.models.lip_experts import syncnet
from mcompress.compress.models.resnet_generator import resnet_generator
from mcompress.compress.models.rrdb import rrdb
from mcompress.compress.models.spec import InputSpec, ModelSpec, Sampling
from mcompress.compress.models.stable_diffusion import SD_15
from mcompress.compress.models.wav2lip import QUARTER_WIDTH, WITHOUT_BLOCKS, wav2lip
from mcompress.compress.tasks.talking_face.clips import synthetic_clip
from mcompress.compress.tasks.talking_face.sound import write_wav
from mcompress.planning import plan
from mcompress.targets.device_files import load_device
from mcompress.targets.load import load_target
from mcompress.targets.reach import ships_as
from mcompress.targets.schema import Target

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app)
ROWS = re.findall(r"^\| `mcompress ((?:device )?\w+)(.*?)` \|", README.replace("\\|", "/"), flags=re.M)


def leaves(command: object, name: str = "") -> dict[str, set[str]]:
    """Every command by its whole name, with its options."""
    if isinstance(command, typer.core.TyperGroup):
        return {whole: options for part, inner in command.commands.items() for whole, options in leaves(inner, f"{name} {part}".strip()).items()}
    return {name: {option for parameter in command.params for option in parameter.opts}}  # type: ignore[attr-defined]


def test_the_table_has_every_command_and_no_other() -> None:
    assert {name for name, _ in ROWS} == set(leaves(COMMANDS))


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_option_of_the_table_exists(name: str, row: str) -> None:
    assert set(re.findall(r"--[a-z0-9]+(?:-[a-z0-9]+)*", row)) - {"--no-measure"} <= leaves(COMMANDS)[name]


def yaml_of(name: str) -> str:
    """The README's target of that name."""
    (text,) = re.findall(rf"```yaml\n(name: {name}\n.*?)```", README, flags=re.S)
    return str(text)


def test_every_target_of_the_readme_is_tried_here() -> None:
    assert sorted(re.findall(r"```yaml\nname: (\w+)\n", README)) == ["my_cyclegan", "my_pix2pix", "my_sr", "my_talking_face", "my_text_to_image"]


def pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(chance.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def test_the_example_targets_of_translation_plan(tmp_path: Path) -> None:
    original = resnet_generator(features=4, depths=(1, 1, 1))
    torch.save(original.state_dict(), tmp_path / "latest_net_G.pth")
    (tmp_path / "original").mkdir()
    save_file(original.state_dict(), tmp_path / "original" / "teacher.safetensors")
    for folder, count in (("pairs", 8), ("pairs_held_out", 1)):
        pictures(tmp_path / folder, count, (256, 512))
    pictures(tmp_path / "more_inputs", 2, (256, 256))
    for folder in ("photos", "photos_held_out"):
        for domain in "AB":
            pictures(tmp_path / folder / domain, 2, (256, 256))
    for name in ("my_pix2pix", "my_cyclegan"):
        (tmp_path / f"{name}.yaml").write_text(yaml_of(name))
        made = plan(load_target(tmp_path / f"{name}.yaml"))
        assert made.teacher_spec.args["features"] == 4
        assert made.teacher_spec.input_range == (-1.0, 1.0)


def test_the_example_target_of_talking_faces_plans(tmp_path: Path) -> None:
    torch.save({"state_dict": wav2lip(**{**QUARTER_WIDTH, **WITHOUT_BLOCKS}, output_width=8).state_dict()}, tmp_path / "wav2lip.pth")
    torch.save({"state_dict": syncnet(width=16).state_dict()}, tmp_path / "lipsync_expert.pth")
    for folder, seeds in (("clips", (1, 2)), ("clips_held_out", (3,))):
        for seed in seeds:
            clip = synthetic_clip(seed, 0.8)
            pictures = tmp_path / folder / f"clip{seed}"
            pictures.mkdir(parents=True)
            write_wav(pictures / "speech.wav", clip.samples, 16_000)
            for number, frame in enumerate(clip.frames):
                Image.fromarray(frame.permute(1, 2, 0).numpy()).save(pictures / f"{number:04d}.png")
    text = yaml_of("my_talking_face")
    (tmp_path / "my_talking_face.yaml").write_text(text)
    made = plan(load_target(tmp_path / "my_talking_face.yaml"))
    assert made.teacher_spec.args["face_widths"] == [4, 8, 16, 32, 64, 128]
    assert not any("colour_order" in note for note in made.data_notes)
    (tmp_path / "assumed.yaml").write_text(text.replace(", colour_order: BGR", ""))
    notes = [note for note in plan(load_target(tmp_path / "assumed.yaml")).data_notes if "colour_order" in note]
    assert [note.partition(":")[0] for note in notes] == ["model.teacher", "model.expert"]


def test_the_example_target_plans(tmp_path: Path) -> None:
    text = yaml_of("my_sr")
    (tmp_path / "my_sr.yaml").write_text(text)
    torch.save({"params_ema": rrdb(features=8, blocks=1, growth=4).state_dict()}, tmp_path / "RRDB_ESRGAN_x4.pth")
    for folder in ("train", "test"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((160, 160, 3), dtype=np.uint8)).save(tmp_path / "photos" / folder / "a.png")
    (override,) = re.findall(r"`--set (\S+)`", README)
    made = plan(load_target(tmp_path / "my_sr.yaml", [override]))
    assert made.teacher_spec.args == {"features": 8, "blocks": 1, "growth": 4}
    assert made.target.stages[1].model_dump()["steps"] == 500


def test_exit_codes() -> None:
    (line,) = re.findall(r"^Exit codes: (.*)\.$", README, flags=re.M)
    said = {int(code) for code in re.findall(r"\b(\d) ", line)}
    used = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MCompressError)}
    assert said == used | {0, 1}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_and_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"`?make ([a-z][a-z0-9-]*)\b`", text):
        assert re.search(rf"^{name}:", makefile, flags=re.M), name
    for name in re.findall(r"`((?:tests|src|compress|targets|export|docs|examples)/[\w./]*)`|\]\(([\w./]+)\)", text):
        assert (ROOT / (name[0] or name[1])).exists(), name


def test_the_example_target_of_text_to_image_plans(tmp_path: Path) -> None:
    tiny_pipeline.pipeline().save_pretrained(tmp_path / "stable-diffusion-v1-5")
    for folder, count in (("pictures", 4), ("pictures_held_out", 2)):
        pictures(tmp_path / folder, count, (16, 16))
        for index in range(count):
            (tmp_path / folder / f"{index}.txt").write_text("red", encoding="utf-8")
    text = yaml_of("my_text_to_image")
    for whole, small in (("[1, 4, 64, 64]", "[1, 4, 8, 8]"), ("crop_size: 64", "crop_size: 8")):
        assert text.count(whole) == 1
        text = text.replace(whole, small)
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    made = plan(load_target(tmp_path / "t.yaml"))
    assert [stage.stage for stage in made.target.stages] == ["search", "distill", "quantize"]
    assert set(made.beside) == {"decoder", "text_encoder"}


def test_the_budget_of_the_example_is_one_that_stable_diffusion_must_lose_blocks_for() -> None:
    target = Target.model_validate(yaml.safe_load(yaml_of("my_text_to_image")))
    device = load_device(target.device)
    unit = device.units[device.preferred_unit]
    further = (InputSpec("timestep", (1,), (0.0, 999.0)), InputSpec("text", (1, 77, 768), (-64.0, 64.0)))
    sampling = Sampling("epsilon", target.model.sampling.steps, target.model.sampling.guidance)
    published = ModelSpec("diffusion_unet", SD_15, (), (1, 4, 64, 64), (-6.0, 6.0), "latents", further, sampling)
    precision = ships_as(target, device, unit)
    assert precision == "fp16", "not INT8, which a plan may leave most of the network without"
    original = fastest_attention(published, device, unit, precision)[0]
    assert UnetCosts(device, unit, precision).of(original).exceeded(target.budget)
    assert evolve_problems(original, target.budget, device, unit, precision) == []
