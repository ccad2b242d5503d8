"""Bundles of text to image: what they state of drawing, the scripts that they carry, and pictures that those draw without torch."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawing_bundle import DDIM, ENLARGED, LATENTS, LCM, PROMPT, SCALING, bundle, draw, exported, facts, networks, original, target
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from tiny_bundle import a_run
from tiny_pipeline import LENGTH
from transformers import CLIPTokenizer

from mcompress.compress.models.spec import Sampling
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.errors import ExportError, UsageError
from mcompress.export import draw as script
from mcompress.export import draw_bundle, replay
from mcompress.export.bundle import ExportedFile, read_manifest, verify_bundle, write_bundle
from mcompress.export.bundle_files import Refused
from mcompress.export.diffusion_steps import consistency_timesteps
from mcompress.export.draw_bundle import choose, file_sets, read_bundle
from mcompress.export.draw_check import psnr_db
from mcompress.export.draw_picture import drawn_noise
from mcompress.export.draw_png import write_png
from mcompress.export.drawing import DrawingFacts
from mcompress.export.manifest import Manifest
from mcompress.export.prompt_files import read_tokenizer
from mcompress.export.standing_alone import DRAW
from mcompress.whole_picture import check_tokens, drawing_facts

COMPONENTS = ("unet", "text_encoder", "decoder")
NOISE = "vectors/whole-picture.noise.npy"
pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawing")


@pytest.fixture(scope="module")
def known(folder: Path) -> DrawingFacts:
    return facts(folder / "tokenizer")


@pytest.fixture(scope="module")
def files(folder: Path) -> tuple[ExportedFile, ...]:
    """ONNX and TFLite files of all three networks, and a mixed one of the U-Net, which is recommended."""
    floats = [exported(folder, backend, component) for backend in ("onnx", "tflite") for component in COMPONENTS]
    return (*floats, exported(folder, "tflite", "unet", "mixed", recommended=True))


@pytest.fixture(scope="module")
def made(known: DrawingFacts, files: tuple[ExportedFile, ...], folder: Path) -> Path:
    return bundle(folder / "ddim", known, *files)


@pytest.fixture(scope="module")
def consistent(files: tuple[ExportedFile, ...], folder: Path) -> Path:
    """A bundle whose U-Net takes the scale of guidance: ONNX alone."""
    (folder / "guided").mkdir()
    unet = exported(folder / "guided", "onnx", "unet", sampling=LCM)
    return bundle(folder / "lcm", facts(folder / "tokenizer", LCM), unet, *files[1:3])


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.array(image)


def close(picture: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    """But for what rounding to 8 bits can tell apart."""
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= 1
    assert expected.std() > 20, "a picture in which something is to be seen"


def run(made: Path, out: Path, *words: object) -> int:
    """The script in this process, with the bundle's own prompt and noise unless others are given."""
    more = [str(word) for word in words]
    for option, value in (("--prompt", PROMPT), ("--out", out), ("--noise", made / NOISE)):
        if option not in more and not (option == "--noise" and "--seed" in more):
            more += [option, str(value)]
    return script.main(more, made)


def rewritten(bundle: Path, *path: str | int, value: object) -> None:
    """Change an entry of the manifest, and its digest with it."""
    data = json.loads((bundle / "manifest.json").read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    data["manifest_sha256"] = replay.manifest_digest(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def test_the_manifest_says_how_a_prompt_becomes_a_picture(made: Path, known: DrawingFacts) -> None:
    manifest = read_manifest(made)
    assert Manifest.model_validate_json(manifest.model_dump_json(by_alias=True)) == manifest
    drawing = manifest.drawing
    assert drawing is not None
    assert [(one.name, one.inputs, one.per, one.calls) for one in drawing.components] == [
        ("text_encoder", ("tokens",), "text", 2),
        ("unet", ("latents", "timestep", "text"), "step and text", 8),
        ("decoder", ("latents",), "picture", 1),
    ]
    assert [file.component for file in manifest.files] == [*COMPONENTS, *COMPONENTS, "unet"]
    assert (drawing.sampling.timesteps, drawing.sampling.guidance_by) == ((999, 749, 499, 249), "two calls")
    assert (drawing.latents, drawing.scaling_factor, drawing.tokenizer.longest) == (LATENTS, SCALING, LENGTH)
    assert (drawing.picture.height, drawing.picture.width) == (LATENTS[2] * ENLARGED, LATENTS[3] * ENLARGED) == known.picture.shape[:2]
    listed = {content.path: content.sha256 for content in manifest.contents}
    for name in (*drawing.tokenizer.files, drawing.check.noise, drawing.check.picture, *(one.picture for one in drawing.check.drawn)):
        assert listed[str(name)] == replay.digest_of(made / str(name))
    for name in drawing.tokenizer.files:
        assert (made / name).read_bytes() == (known.tokenizer_folder / Path(name).name).read_bytes()
    assert {drawing.references.tokens, drawing.references.steps, drawing.references.pictures, drawing.references.check} <= set(listed)
    assert np.array_equal(np.load(made / NOISE), known.noise)
    assert np.array_equal(np.load(made / drawing.check.picture), known.picture)
    found = {(one.backend, one.variant): one for one in drawing.check.drawn}
    assert list(found) == [("onnx", "float"), ("tflite", "float"), ("tflite", "mixed")]
    assert min(one.psnr_db or 0 for one in found.values() if one.variant == "float") > 50
    assert {one.least_db for one in found.values() if one.variant == "float"} == {35.0}
    mixed = found["tflite", "mixed"]
    assert 20 < (mixed.psnr_db or 0) < 50, "quantization shows"
    assert mixed.least_db == pytest.approx((mixed.psnr_db or 0) - 3, abs=2e-3)


def test_other_tasks_do_not_draw(pristine_bundle: Path) -> None:
    manifest = read_manifest(pristine_bundle)
    assert manifest.drawing is None
    assert {file.component for file in manifest.files} == {None}
    assert not {"draw.py", "bundle_files.py", "tokenizer"} & {path.name for path in pristine_bundle.iterdir()}
    assert "draw.py" not in (pristine_bundle / "LICENSES").read_text() + (pristine_bundle / "MODEL_CARD.md").read_text()
    with pytest.raises(Refused, match="does not draw; its manifest has no `drawing`"):
        read_bundle(pristine_bundle)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("components", 1, "inputs"),
            ["timestep", "latents", "text"],
            "the component unet makes output from timestep, latents, text; tiny-unet-float.onnx",
        ),
        (("components", 1, "calls"), 4, "takes latents, timestep, text and is called 4 times; with this sampling it has 3 inputs and 8 calls"),
        (("components", 0, "name"), "decoder", "components are decoder, unet, decoder; they must be text_encoder, unet and decoder"),
        (("sampling", "timesteps"), [999, 749, 249, 499], "they must be 4, as many as steps, falling, from 0 on"),
        (("sampling", "timesteps"), [1000, 749, 499, 249], "the first timestep is 1000; the schedule has 1000, from 0 on"),
        (("sampling", "grid_steps"), 7, "lcm needs both, ddim has neither"),
        (("sampling", "guidance_by"), "input", "guidance_by is 'input'; with ddim and guidance 3 it is 'two calls'"),
        (("schedule", "beta_schedule"), "cosine", "Input should be 'linear', 'scaled_linear' or 'squaredcos_cap_v2'"),
        (("scaling_factor",), 0, "Input should be greater than 0"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(path: tuple[str | int, ...], value: object, said: str, made: Path) -> None:
    data = read_manifest(made).model_dump(mode="json", by_alias=True)
    place = data["drawing"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError, match=said):
        Manifest.model_validate(data)


def test_special_tokens_beside_the_configuration_go_along(files: tuple[ExportedFile, ...], known: DrawingFacts, tmp_path: Path) -> None:
    """Stable Diffusion 2.x has them in a file of their own; without it the bundle would pad with another token."""
    told = tmp_path / "tokenizer"
    shutil.copytree(known.tokenizer_folder, told)
    (told / "special_tokens_map.json").write_text('{"pad_token": "!"}', encoding="utf-8")
    facts = replace(known, tokenizer_folder=told)
    made = bundle(tmp_path / "made", facts, *files[:3])
    manifest = read_manifest(made)
    assert manifest.drawing is not None
    assert "tokenizer/special_tokens_map.json" in manifest.drawing.tokenizer.files
    listed = {content.path: content.sha256 for content in manifest.contents}
    assert listed["tokenizer/special_tokens_map.json"] == replay.digest_of(told / "special_tokens_map.json")
    tokens = read_tokenizer(made / "tokenizer").tokens(PROMPT, LENGTH)
    assert tokens == CLIPTokenizer.from_pretrained(told)(PROMPT, padding="max_length", max_length=LENGTH)["input_ids"]
    assert tokens[-1] == 0
    (made / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "a"}', encoding="utf-8")
    with pytest.raises(Refused, match=r"tokenizer/special_tokens_map\.json is not the file that the manifest states"):
        read_bundle(made)


def test_files_that_do_not_draw_together_are_refused(files: tuple[ExportedFile, ...], known: DrawingFacts, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no file of the decoder in the bundle, without which nothing is drawn; it was given tiny-unet"):
        bundle(tmp_path, known, *files[:2])
    with pytest.raises(ExportError, match="draw a picture of shape"):
        bundle(tmp_path, replace(known, picture=known.picture[:5]), *files[:3])
    with pytest.raises(ExportError, match="a bundle draws one RGB picture at a time; it was given latents"):
        bundle(tmp_path, replace(known, latents=(2, *LATENTS[1:])), *files[:3])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"the tokenizer cannot be put into the bundle: .*tokenizer_config\.json is missing"):
        bundle(tmp_path, replace(known, tokenizer_folder=tmp_path / "empty"), *files[:3])
    data = read_manifest(made).model_dump(mode="json", by_alias=True)
    data["files"] = [file for file in data["files"] if file["path"] != "tiny-decoder-float.tflite"]
    with pytest.raises(ValidationError, match="there is no float tflite file of decoder; each backend needs one of every component that draws"):
        Manifest.model_validate(data)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("backend", ["onnx", "tflite"])
def test_a_prompt_becomes_pytorchs_picture_without_torch(backend: str, made: Path, known: DrawingFacts, tmp_path: Path) -> None:
    words = ("--backend", backend, "--variant", "float", "--noise", made / NOISE)
    done = draw(made, "--prompt", PROMPT, "--out", tmp_path / "a.png", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    wrote, *times = done.stdout.splitlines()
    used = ", ".join(f"tiny-{name}-float.{backend}" for name in ("text_encoder", "unet", "decoder"))
    assert wrote == f"{tmp_path / 'a.png'}: 10x12 pixels, 4 steps of ddim, guidance 3, noise of whole-picture.noise.npy, by {used}"
    assert [line.split(" ms")[0].rsplit(",", 1)[0] for line in times[:3]] == ["text_encoder: 2 calls", "unet: 8 calls", "decoder: 1 call"]
    assert times[3].startswith("together ")
    close(pixels(tmp_path / "a.png"), known.picture)
    assert all(result.status == "passed" for result in verify_bundle(made)), "nothing was left in the bundle"


def test_consistency_models_take_guidance_and_fresh_noise(consistent: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = facts(folder / "tokenizer", LCM)
    drawing = read_bundle(consistent)
    assert drawing.sampling["timesteps"] == consistency_timesteps(3, 7) == [999, 713, 428], "of 7, rounded as the network was taught"
    assert [(one["name"], one["calls"]) for one in drawing.data["components"]] == [("text_encoder", 1), ("unet", 3), ("decoder", 1)]
    assert expected.noise.shape == (3, *LATENTS[1:])
    done = draw(consistent, "--prompt", PROMPT, "--out", tmp_path / "a.png", "--noise", consistent / NOISE)
    assert done.returncode == 0, done.stderr
    assert "3 steps of lcm, guidance 2.5" in done.stdout
    close(pixels(tmp_path / "a.png"), expected.picture)
    for more, sampling in ((("--guidance", 1), replace(LCM, guidance=1.0)), (("--guidance", 6), replace(LCM, guidance=6.0))):
        assert run(consistent, tmp_path / "b.png", *more) == 0
        assert "unet: 3 calls" in capsys.readouterr().out
        close(pixels(tmp_path / "b.png"), facts(folder / "tokenizer", sampling).picture)
        assert psnr_db(pixels(tmp_path / "b.png"), expected.picture) < 50
    assert run(consistent, tmp_path / "b.png", "--guidance", 20) == 0
    assert "note: guidance 20 is outside of 1 to 14, which the U-Net was taught" in capsys.readouterr().out
    one = facts(folder / "tokenizer", replace(LCM, steps=1))
    np.save(tmp_path / "noise.npy", one.noise)
    assert run(consistent, tmp_path / "b.png", "--steps", 1, "--noise", tmp_path / "noise.npy") == 0
    assert "note: 1 step, and the U-Net was made for 3, with which it was judged" in capsys.readouterr().out
    close(pixels(tmp_path / "b.png"), one.picture)
    assert run(consistent, tmp_path / "b.png", "--steps", 8) == 2
    assert "--steps is 8; it must be from 1 to 7, the steps that it was distilled on" in capsys.readouterr().err
    assert all(result.status == "passed" for result in verify_bundle(consistent))


def test_guidance_one_calls_the_unet_once_a_step(made: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, tmp_path / "a.png", "--guidance", 1, "--backend", "onnx") == 0
    said = capsys.readouterr().out
    assert "guidance 1," in said
    assert "text_encoder: 1 call," in said
    assert "unet: 4 calls," in said
    close(pixels(tmp_path / "a.png"), facts(folder / "tokenizer", replace(DDIM, guidance=1.0)).picture)


@pytest.mark.parametrize("prompt", ["", " \t"])
def test_an_empty_prompt_draws_without_a_caption(
    prompt: str, made: Path, known: DrawingFacts, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, tmp_path / "a.png", "--prompt", prompt, "--backend", "onnx") == 0
    said = capsys.readouterr().out
    assert "note: the prompt is empty, so the picture is drawn without a caption, and guidance has no effect" in said
    assert "unet: 4 calls," in said
    expected = facts(folder / "tokenizer", prompt="").picture
    close(pixels(tmp_path / "a.png"), expected)
    assert psnr_db(expected, known.picture) < 30, "the prompt tells"


def test_steps_and_seeds_are_as_they_say(made: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, tmp_path / "a.png", "--steps", 7, "--backend", "onnx") == 0
    assert "note: 7 steps, and the U-Net was made for 4, with which it was judged" in capsys.readouterr().out
    close(pixels(tmp_path / "a.png"), facts(folder / "tokenizer", replace(DDIM, steps=7)).picture)
    for seed, name in ((5, "b"), (5, "c"), (6, "d")):
        assert run(made, tmp_path / f"{name}.png", "--seed", seed) == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    assert psnr_db(pixels(tmp_path / "b.png"), pixels(tmp_path / "d.png")) < 30
    noise = drawn_noise(read_bundle(made), 4, 5)
    assert (noise.shape, noise.dtype) == ((1, *LATENTS[1:]), np.float32)
    np.save(tmp_path / "noise.npy", np.concatenate([noise, noise]).astype(np.float64))
    assert run(made, tmp_path / "e.png", "--noise", tmp_path / "noise.npy") == 0
    assert (tmp_path / "e.png").read_bytes() == (tmp_path / "b.png").read_bytes(), "more noise than is needed may be given"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--prompt", "red " * 9 + "blue square"),
            "tokens with its start and end, and the text encoder takes at most 12; shorten it: 'blue square' is over",
        ),
        (("--guidance", "0.5"), "--guidance is 0.5; it must be a finite number from 1 on, of which 1 is none"),
        (("--guidance", "nan"), "--guidance is nan; it must be a finite number from 1 on"),
        (("--steps", "0"), "--steps is 0; it must be from 1 to 1000, the timesteps that the U-Net was trained on"),
        (("--steps", "1001"), "--steps is 1001; it must be from 1 to 1000"),
        (("--out", "picture.jpg"), "the picture is a PNG, so its name must end in .png"),
        (("--out", "missing/a.png"), "in one that does not exist"),
        (("--out", "BUNDLE/a.png"), "inside the bundle, which holds what its manifest lists"),
        (("--noise", "none.npy"), "none.npy' cannot be read"),
        (("--noise", "text.npy"), "text.npy' cannot be read"),
        (("--noise", "small.npy"), "small.npy' has shape (1, 4, 5, 6); 4 steps take (1, 4, 6, 5)"),
        (("--noise", "nan.npy"), "holds float32 or values that are not finite; give finite float32 numbers"),
        (("--noise", "whole.npy"), "holds int64 or values that are not finite; give finite float32 numbers"),
        (("--backend", "executorch"), "--backend executorch: the bundle has no such files; it holds onnx float, tflite float, tflite mixed"),
        (("--backend", "onnx", "--variant", "mixed"), "--backend onnx --variant mixed: the bundle has no such files"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_used_is_refused(words: tuple[str, ...], said: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.npy").write_text("no numbers")
    np.save(tmp_path / "small.npy", np.zeros((1, 4, 5, 6), np.float32))
    np.save(tmp_path / "nan.npy", np.full((1, *LATENTS[1:]), np.nan, np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((1, *LATENTS[1:]), np.int64))
    paths = {name: tmp_path / name for name in ("picture.jpg", "missing/a.png", "none.npy", "text.npy", "small.npy", "nan.npy", "whole.npy")}
    given = {**{name: str(path) for name, path in paths.items()}, "BUNDLE/a.png": str(made / "a.png")}
    assert run(made, tmp_path / "out.png", *(given.get(word, word) for word in words)) == 2
    seen = capsys.readouterr()
    assert said in seen.err
    assert seen.out == ""
    assert not list(tmp_path.glob("*.png*"))
    assert not (made / "a.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--prompt is needed"),
        (("--prompt", "a"), "--out is needed"),
        (("--check", "--prompt", "a"), "--check takes no --prompt; the bundle has its own"),
        (("--check", "--steps", "2"), "--check takes no --steps; the bundle has its own"),
        (("--check", "--guidance", "2"), "--check takes no --guidance; the bundle has its own"),
        (("--check", "--noise", "a.npy"), "--check takes no --noise; the bundle has its own"),
        (("--prompt", "a", "--out", "a.png", "--seed", "-1"), "the seed at least 0"),
        (("--prompt", "a", "--out", "a.png", "--threads", "0"), "threads must be at least 1"),
        (("--prompt", "a", "--out", "a.png", "--backend", "coreml"), "invalid choice: 'coreml'"),
    ],
)
def test_a_command_line_that_says_too_little_is_refused(words: tuple[str, ...], said: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(words, made)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("without", "words", "said"),
    [
        (("numpy",), (), "numpy is needed and not installed; pip install numpy"),
        (
            ("ai_edge_litert", "tflite_runtime", "onnxruntime"),
            (),
            "no runtime is installed for onnx float, tflite float, tflite mixed; pip install onnxruntime or pip install ai-edge-litert",
        ),
        (("onnxruntime",), ("--backend", "onnx"), "no runtime is installed for onnx float; pip install onnxruntime"),
    ],
)
def test_packages_that_are_missing_are_named(without: tuple[str, ...], words: tuple[str, ...], said: str, made: Path, tmp_path: Path) -> None:
    done = draw(made, "--prompt", PROMPT, "--out", tmp_path / "a.png", *words, without=without)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_fastest_recommended_set_is_taken(made: Path) -> None:
    drawing = read_bundle(made)
    taken, notes = choose(drawing, None, None)
    assert (taken.name, [file["path"] for file in taken.files.values()]) == (
        "tflite mixed",
        ["tiny-text_encoder-float.tflite", "tiny-unet-mixed.tflite", "tiny-decoder-float.tflite"],
    )
    assert notes == (
        "tflite mixed files draw: the only recommended files whose runtime is installed; --backend and --variant take others",
        "of tiny-text_encoder-float.tflite, tiny-decoder-float.tflite the bundle has no mixed file, so the float one draws",
    )
    assert choose(drawing, "onnx", None)[0].name == "onnx float"
    assert choose(drawing, "onnx", "float")[1] == ()

    def timed(path: str, ms: float | None, *, recommended: bool) -> None:
        (file,) = (one for one in drawing.files if one["path"] == path)
        file["recommended"] = recommended
        file["latency"] = [] if ms is None else [{"what": "latency", "value": ms, "unit": "ms", "how": "host"}]

    for name in COMPONENTS:
        timed(f"tiny-{name}-float.onnx", 1.0, recommended=True)
        timed(f"tiny-{name}-float.tflite", 0.5, recommended=False)
    timed("tiny-unet-mixed.tflite", 1.25, recommended=True)
    taken, notes = choose(drawing, None, None)
    assert taken.name == "onnx float"
    assert notes[0] == (
        "onnx float files draw: of the recommended files whose runtime is installed the fastest where the bundle was made, 11 ms a picture "
        "(tflite mixed 11.5 ms); --backend and --variant take others"
    )
    timed("tiny-decoder-float.onnx", None, recommended=True)
    assert "the fastest where the bundle was made, 11.5 ms a picture (onnx float not timed)" in choose(drawing, None, None)[1][0]
    timed("tiny-unet-mixed.tflite", None, recommended=True)
    assert "onnx float files draw: the first recommended files" in choose(drawing, None, None)[1][0]
    assert [one.name for one in file_sets(drawing)] == ["onnx float", "tflite float", "tflite mixed"]


def test_torch_is_asked_for_where_executorch_needs_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = read_bundle(made)
    elsewhere = drawing._replace(files=[{**file, "backend": "executorch"} for file in drawing.files if file["backend"] == "onnx"])
    monkeypatch.setattr(draw_bundle, "is_installed", lambda packages: "torch" not in packages)
    with pytest.raises(Refused, match="no runtime is installed for executorch float; pip install executorch, which brings torch along"):
        choose(elsewhere, None, None)
    core = drawing._replace(files=[{**file, "backend": "coreml"} for file in drawing.files if file["backend"] == "onnx"])
    with pytest.raises(Refused, match="files for coreml cannot be run by this script; it runs executorch, onnx, tflite"):
        choose(core, None, None)


def test_the_check_draws_with_every_set_of_files(made: Path) -> None:
    done = draw(made, "--check")
    assert done.returncode == 0, done.stderr
    *sets, last = done.stdout.splitlines()
    assert [line.split(":")[0] for line in sets] == [
        f"PASS  whole picture by {name} files" for name in ("onnx float", "tflite float", "tflite mixed")
    ]
    assert all(line.endswith("; the same as what the same files drew where the bundle was made") for line in sets)
    assert last == "PASS  3 of 3 sets of files drew"
    done = draw(made, "--check", "--backend", "tflite", without=("ai_edge_litert", "tflite_runtime"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "FAIL  0 of 2 sets of files drew"
    verified = draw(made, script="verify.py")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.splitlines()[-1] == "PASS  7 of 7 files executed, 3 of 3 whole pictures drawn"
    assert [result.status for result in verify_bundle(made)] == ["passed"] * 10


def test_files_that_draw_something_else_fail(files: tuple[ExportedFile, ...], known: DrawingFacts, tmp_path: Path) -> None:
    """PyTorch's picture is turned upside down: each file computes what it must, and the whole is wrong."""
    turned = bundle(tmp_path, replace(known, picture=known.picture[::-1].copy()), *files[:3])
    done = draw(turned, "--check")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("FAIL  whole picture by onnx float files: PSNR ")
    assert "to the picture that PyTorch draws, at least 35.0 dB (the limit of float files); the same as what" in done.stdout
    verified = draw(turned, script="verify.py")
    assert verified.returncode == 1
    assert verified.stdout.splitlines()[-1] == "FAIL  3 of 3 files executed, 1 of 1 whole pictures drawn"
    assert [result.status for result in verify_bundle(turned)] == ["passed"] * 3 + ["failed"]


def test_a_bundle_that_was_changed_does_not_draw(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*words: object) -> str:
        assert run(copied, tmp_path / "a.png", *words) == 2
        return capsys.readouterr().err

    token = copied / "tokenizer" / "tokenizer.json"
    whole = token.read_bytes()
    token.write_bytes(whole.replace(b'"red</w>"', b'"der</w>"'))
    assert "tokenizer/tokenizer.json is not the file that the manifest states; take the bundle again" in refusal()
    token.write_bytes(whole)
    model = copied / "tiny-unet-float.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert "tiny-unet-float.onnx is not the file that the manifest states" in refusal("--backend", "onnx")
    assert script.main(["--check"], copied) == 2
    assert "tiny-unet-float.onnx was changed" in capsys.readouterr().err
    (copied / "manifest.json").write_text("{}")
    assert "is no manifest of a bundle" in refusal()
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("check", "noise"), "../noise.npy", "names the path '../noise.npy'; only relative paths inside the bundle are allowed"),
        (("check", "drawn", 0, "picture"), "/etc/passwd", "names the path '/etc/passwd'"),
        (("tokenizer", "files", 0), "tokenizer/../../secret.json", "names the path 'tokenizer/../../secret.json'"),
        (("tokenizer", "folder"), "..", "is not in its folder"),
        (("check", "picture"), "vectors/another.npy", "vectors/another.npy is in the manifest but not in the bundle"),
    ],
)
def test_paths_out_of_the_bundle_are_refused(path: tuple[str | int, ...], value: str, said: str, copied: Path) -> None:
    rewritten(copied, "drawing", *path, value=value)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        read_manifest(copied)
    done = draw(copied, script="verify.py")
    assert done.returncode == 1
    assert said in done.stdout


def test_scripts_import_what_lies_beside_them(made: Path) -> None:
    beside = {path.stem for path in made.glob("*.py")}
    assert beside == {Path(name).stem for name in DRAW} | {"verify"}
    allowed = beside | {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime", *sys.stdlib_module_names}
    for name in DRAW:
        tree = ast.parse((made / name).read_text())
        roots = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        roots |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        more = {"torch", "executorch"} if name == "draw_executorch.py" else set()
        assert {root.split(".")[0] for root in roots} <= allowed | more, name


@pytest.mark.parametrize("name", ["draw.py", "verify.py"])
def test_it_runs_where_python_leaves_its_folder_out(name: str, made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(made / name), *(("--prompt", PROMPT, "--out", str(tmp_path / "a.png")) if name == "draw.py" else ())]
    without = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=without, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "a.png").is_file() == (name == "draw.py")
    assert not list(made.rglob("*.pyc"))


def test_the_papers_say_how_to_draw_and_whose_it_is(made: Path, files: tuple[ExportedFile, ...], consistent: Path, tmp_path: Path) -> None:
    card, licences = (made / "MODEL_CARD.md").read_text(), (made / "LICENSES").read_text()
    assert card.splitlines()[2].startswith("Text to image for snapdragon865")
    for said in (
        f'python BUNDLE/draw.py --prompt "{PROMPT}" --out picture.png',
        "10x12 pixels",
        "| `unet` | latents, timestep, text | output | 8 (one for each step and text) |",
        "4 of ddim, at timesteps 999, 749, 499, 249 of 1000 (scaled_linear, 0.00085 to 0.012)",
        "w f(prompt) - (w - 1) f(empty prompt), two calls a step",
        "| tflite mixed | ",
        "Captioned scenes that mcompress draws itself",
        "`precision_plan-decoder.json`",
    ):
        assert said in card
    assert "is an input of the U-Net, which is called once a step" in (consistent / "MODEL_CARD.md").read_text()
    for text in (card, licences):
        assert "photographs inside" not in text
        assert "scikit-learn" not in text
    assert "Code (verify.py, draw.py and the Python files beside it," in licences
    assert "on captioned scenes that mcompress draws itself. The files in tokenizer/ were" in licences
    own = {"model": {"task": "text_to_image", "teacher": {"network": "diffusers", "checkpoint": tmp_path / "stable-diffusion"}}}
    folder = write_bundle(
        tmp_path / "own",
        run=a_run(*(file.record for file in files[:3])),
        target=target().model_validate({**target().model_dump(exclude={"model"}), **own}),
        files=files[:3],
        plan=None,
        drawing=facts(tmp_path / "tokenizer"),
    )
    licences, card = (folder / "LICENSES").read_text(), (folder / "MODEL_CARD.md").read_text()
    assert "the teacher's checkpoint stable-diffusion, of which the files in tokenizer/ are copies;" in licences
    assert "Ask the owner before you ship them." in licences
    assert "The teacher came from the checkpoint `stable-diffusion`" in card
    assert "It has learned captioned scenes" not in card


def test_a_run_tells_its_bundle_how_it_draws(known: DrawingFacts, tmp_path: Path) -> None:
    """The final U-Net's own sampling counts, as step distillation leaves it, before the original's."""
    task = object.__new__(TextToImage)
    task.original, task.sampling = original(tmp_path / "tokenizer", DDIM), DDIM
    task.held_out_pictures = SimpleNamespace(captions=(PROMPT, "a blue star"))
    made, modules = SimpleNamespace(task=task), networks(DDIM)

    def artifact(name: str, sampling: Sampling | None = None) -> SimpleNamespace:
        return SimpleNamespace(network=lambda: modules[name], spec=SimpleNamespace(input_shape=LATENTS, sampling=sampling))

    beside = {name: artifact(name) for name in ("text_encoder", "decoder")}
    found = drawing_facts(made, artifact("unet"), beside)
    assert found is not None
    assert np.array_equal(found.picture, known.picture)
    assert (found.prompt, found.sampling, found.schedule.prediction_type) == (PROMPT, DDIM, "epsilon")
    distilled = replace(DDIM, prediction="v_prediction", steps=2)
    found = drawing_facts(made, artifact("unet", distilled), beside)
    assert found is not None
    assert (found.sampling, found.timesteps, found.schedule.prediction_type) == (distilled, (999, 499), "v_prediction")
    assert not np.array_equal(found.picture, known.picture)
    assert drawing_facts(made, artifact("unet"), {"decoder": artifact("decoder")}) is None, "a U-Net that goes alone does not draw"
    assert drawing_facts(SimpleNamespace(task=object()), artifact("unet"), beside) is None


def test_a_tokenizer_that_the_bundle_cannot_follow_is_refused(folder: Path, tmp_path: Path) -> None:
    known = original(tmp_path / "tokenizer", DDIM)
    check_tokens(known, (PROMPT, "a blue star"))
    data = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    data["model"]["merges"] = data["model"]["merges"][:1]
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ExportError, match="the bundle's tokenizer does not give what transformers gives for 'a red ring'; save the tokenizer in"):
        check_tokens(known, ("a ring", PROMPT))
    with pytest.raises(ExportError, match="the tokenizer cannot be put into a bundle: "):
        check_tokens(replace(known, tokenizer_folder=tmp_path), (PROMPT,))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_png_files_hold_what_was_drawn(tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("png") / "a.png"
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    write_png(path, picture)
    assert np.array_equal(pixels(path), picture)
    assert list(path.parent.iterdir()) == [path]
    assert psnr_db(picture, picture) == inf
    assert psnr_db(np.zeros_like(picture), np.full_like(picture, 255)) == 0


def test_a_picture_that_cannot_be_written_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(_path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"an older one")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert run(made, tmp_path / "a.png") == 2
    assert "a.png' cannot be written ([Errno 28] No space left on device); look at the space" in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"an older one")]
