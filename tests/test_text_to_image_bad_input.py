"""Targets of text to image that cannot be run, or not as they are: what planning says of them, once each, with the place and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_pipeline
import torch
from PIL import Image

from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.errors import PlanError, TargetError
from mcompress.planning import Plan, plan
from mcompress.targets.load import load_target

LATENTS = "[1, 4, 8, 8]"
EVOLVE = "{stage: search, method: evolve, steps: 0, steps_between: 0}"
QUANTIZE = "{stage: quantize, samples: 2}"
CAPTIONS = {"training": ("red", "red red", "", "a"), "held_out": ("red", "red a")}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as diffusers saves it and captioned pictures, which no test changes; read once for all tests that write nothing but targets."""
    folder = tmp_path_factory.mktemp("own")
    tiny_pipeline.pipeline().save_pretrained(folder / "pipeline")
    for part, captions in CAPTIONS.items():
        (folder / part).mkdir()
        for number, caption in enumerate(captions):
            picture = np.random.default_rng(number).integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / part / f"{number}.png")
            (folder / part / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture
def own(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "own"))


def target(
    folder: Path, *, stages: str = f"[{QUANTIZE}]", device: str = "apple-a16", data: str = "{training: training, held_out: held_out}",
    more: str = "", **model: str,
) -> Path:  # fmt: skip
    """A target file in the folder; `model` replaces what stands there, and leaves out what is empty."""
    said = {"task": "text_to_image", "teacher": "{checkpoint: pipeline}", "input_shape": LATENTS, "sampling": "{steps: 4, guidance: 4.0}", **model}
    inner = ", ".join(f"{name}: {value}" for name, value in said.items() if value)
    lines = [
        "name: t", f"device: {device}", "threads: 1", f"model: {{{inner}}}", *([f"data: {data}"] if data else []), f"stages: {stages}",
        "exports: [{backend: onnx}]", more,
    ]  # fmt: skip
    (folder / "t.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "t.yaml"


def planned(file: Path) -> Plan:
    torch.manual_seed(0)
    return plan(load_target(file))


def problems_of(file: Path) -> list[str]:
    """Without the target's name, which begins them."""
    with pytest.raises(PlanError) as caught:
        planned(file)
    assert all(problem.startswith("target 't': ") for problem in caught.value.problems)
    return [problem.removeprefix("target 't': ") for problem in caught.value.problems]


def only_problem(file: Path) -> str:
    (problem,) = problems_of(file)
    return problem


# --- the folder of the original ---

Change = Callable[[Path], object]
FOLDERS: dict[str, tuple[Change, str]] = {
    "a missing part": (
        lambda at: shutil.rmtree(at / "text_encoder"),
        "model_index.json: text_encoder is missing, there is no folder '{at}/text_encoder'; it must be of class CLIPTextModel: download",
    ),
    "missing weights": (
        lambda at: (at / "vae" / tiny_pipeline.WEIGHTS["vae"]).unlink(),
        "{at}/vae has no diffusion_pytorch_model.safetensors, whole, in shards, or as its fp16 variant",
    ),
    "another prediction": (
        lambda at: tiny_pipeline.edit(at / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        'scheduler_config.json: prediction_type is "sample"; it must be one of epsilon, v_prediction',
    ),
    "another scheduler": (
        lambda at: tiny_pipeline.edit(at / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
        'scheduler_config.json: the scheduler is "FlowMatchEulerDiscreteScheduler"; it must be one whose noise follows from betas',
    ),
    "a short schedule": (
        lambda at: tiny_pipeline.edit(at / "scheduler" / "scheduler_config.json", num_train_timesteps=3),
        "model.sampling.steps is 4, and the original's noise schedule has 3 timesteps; at most so many are possible",
    ),
    "not finite": (
        lambda at: tiny_pipeline.rename(at / "vae" / tiny_pipeline.WEIGHTS["vae"], str, **{"decoder.conv_in.bias": torch.full((8,), float("nan"))}),
        "'decoder.conv_in.bias' holds NaN or infinity; these weights come from a training that diverged",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_refused_once_for_all_three_networks(name: str, own: Path) -> None:
    change, message = FOLDERS[name]
    change(own / "pipeline")
    assert message.format(at=own / "pipeline") in only_problem(target(own))


def test_an_original_that_is_no_folder(pristine: Path) -> None:
    weights = f"pipeline/unet/{tiny_pipeline.WEIGHTS['unet']}"
    for teacher, told in (("{network: imdn}", "imdn"), (f"{{network: diffusion_unet, checkpoint: {weights}}}", "diffusion_unet")):
        assert only_problem(target(pristine, teacher=teacher)) == (
            f"model.teacher.network is '{told}'; of text to image give the folder of a whole model as model.teacher.checkpoint, as diffusers saves "
            "it, or leave the teacher out for the embedded one"
        )


@pytest.mark.parametrize(("saved", "note"), [({"max_shard_size": "12KB"}, None), ({"variant": "fp16"}, "fp16")])
def test_shards_and_half_precision_are_taken(saved: dict[str, object], note: str | None, own: Path) -> None:
    shutil.rmtree(own / "pipeline")
    made = tiny_pipeline.pipeline()
    if note:
        made.to(torch.float16)
    made.save_pretrained(own / "pipeline", **saved)  # type: ignore[arg-type]
    notes = planned(target(own, component="text_encoder")).data_notes
    assert note is None or any(note in one for one in notes)


# --- captions ---


def test_captions_that_are_too_long_are_listed_with_the_words_that_are_over(own: Path) -> None:
    long = " ".join(["red"] * 9 + ["a", "b", "c"])  # 12 words, and start and end
    (own / "training" / "0.txt").write_text(long, encoding="utf-8")
    (own / "held_out" / "1.txt").write_text(f"{long} red", encoding="utf-8")
    assert problems_of(target(own)) == [
        "data.training: the caption of '0.png' has 14 tokens, and the text encoder takes 12, start and end among them; over are 'b c' of "
        f"'{long}'. Shorten it",
        "data.held_out: the caption of '1.png' has 15 tokens, and the text encoder takes 12, start and end among them; over are 'b c red' of "
        f"'{long} red'. Shorten it",
    ]


def test_embedded_captions_that_the_original_cannot_take(pristine: Path) -> None:
    problem = only_problem(target(pristine, data=""))
    assert problem.startswith("data: the embedded caption 'a ")
    assert problem.endswith(
        "the text encoder takes 12, start and end among them; give pictures with captions of your own as data.training and data.held_out"
    )


def test_both_folders_are_read_before_anything_is_said(own: Path) -> None:
    (own / "training" / "0.txt").unlink()
    shutil.copy(own / "held_out" / "1.png", own / "held_out" / "1.jpg")
    one, other = problems_of(target(own))
    assert one.startswith("data.training: '0.png' has no caption")
    assert other.startswith("data.held_out: '1.jpg' and '1.png' have one name")


def test_no_guidance_an_empty_caption_and_a_small_picture_are_taken_and_said(own: Path) -> None:
    Image.new("RGB", (9, 30)).save(own / "training" / "1.png")
    found = planned(target(own, sampling="{steps: 4, guidance: 1}"))
    assert found.data_notes == (
        "data.training: 1.png: 9x30 pixels, enlarged to the 16x16 that the original draws",
        "data.training: 2.png: its caption is empty; it stands for what is drawn without one, which guidance needs",
    )
    assert found.teacher_spec.sampling is not None
    assert found.teacher_spec.sampling.guidance == 1
    assert set(found.beside) == {"text_encoder", "decoder"}
    assert found.task.metric == "psnr_db"


# --- the tokenizer ---


def test_a_tokenizer_that_the_bundle_cannot_follow_is_found_before_anything_is_trained(own: Path) -> None:
    """Once, and of the target alone that makes a bundle which draws."""
    folder = own / "pipeline" / "tokenizer"
    tiny_pipeline.edit(folder / "tokenizer_config.json", extra_special_tokens=["re"])  # which the script knows nothing of
    assert only_problem(target(own)) == (
        f"the bundle's tokenizer does not give what transformers gives for 'red'; save the tokenizer in {folder} again with transformers, as "
        "vocab.json and merges.txt"
    )
    assert planned(target(own, component="decoder")).beside == {}
    end = {"__type": "AddedToken", "content": tiny_pipeline.END, "lstrip": True}
    tiny_pipeline.edit(folder / "tokenizer_config.json", extra_special_tokens=[], eos_token=end)
    assert only_problem(target(own)) == (
        f"the tokenizer cannot be put into a bundle: {folder / 'tokenizer_config.json'}: the token '{tiny_pipeline.END}' has lstrip, which is not "
        "done here; set it to false"
    )


def test_a_tokenizer_with_other_special_tokens_beside_its_configuration_is_taken(own: Path) -> None:
    """As Stable Diffusion 2.x has it."""
    (own / "pipeline" / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "!"}', encoding="utf-8")
    task = planned(target(own)).task
    assert isinstance(task, TextToImage)
    assert task.original.tokens([""])[0, 2:].tolist() == [0] * (tiny_pipeline.LENGTH - 2)


# --- the target file ---

MAIN = {"task": "super_resolution", "teacher": "", "input_shape": "", "sampling": ""}
FILES: dict[str, tuple[dict[str, str], str]] = {
    "weak guidance": ({"sampling": "{guidance: 0.5}"}, "model.sampling.guidance is 0.5; "),
    "too many steps": ({"sampling": "{steps: 1001}"}, "model.sampling.steps is 1001; "),
    "no steps": ({"sampling": "{steps: 0}"}, "model.sampling.steps is 0; "),
    "an unknown component": ({"component": "vae"}, "model.component is 'vae'; "),
    "unknown components": (
        {"more": "components: {vae: {budget: {size_mb: 1}}}"},
        "components.vae is not known; components takes decoder, text_encoder",
    ),
    "no stages": ({"more": "components: {decoder: {stages: []}}"}, "components.decoder.stages is an empty list; "),
    "an unknown stage": ({"more": "components: {decoder: {stages: [{stage: quantise}]}}"}, "components.decoder.stages[0].stage is 'quantise'; "),
    "components of a component": (
        {"component": "decoder", "more": f"components: {{decoder: {{stages: [{QUANTIZE}]}}}}"},
        "components go along with the unet, and model.component is decoder; remove one of the two",
    ),
    "components of another task": (
        {**MAIN, "data": "", "more": f"components: {{decoder: {{stages: [{QUANTIZE}]}}}}"},
        "components belongs to the task text_to_image, and model.task is super_resolution; remove one of the two",
    ),
    "sampling of another task": (
        {**MAIN, "data": "", "sampling": "{steps: 4}"},
        "model.sampling belongs to the task text_to_image, and model.task is",
    ),
    "pairs": (
        {"data": "{training: training, held_out: held_out, pairing: unpaired}"},
        "data.pairing belongs to the task translation, and model.task",
    ),
    "no folder": ({"teacher": "{checkpoint: nowhere}"}, "model.teacher.checkpoint is 'nowhere'; there is no such file"),
    "no data": ({"data": "{training: nowhere, held_out: held_out}"}, "data.training is 'nowhere'; there is no such folder"),
    "half a step": (
        {"stages": "[{stage: distill, method: steps, student_steps: 5}]"},
        "student_steps is 5, and middle_steps 16; one step must stand",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_target_file_may_not_say(name: str, pristine: Path) -> None:
    changes, message = FILES[name]
    with pytest.raises(TargetError) as caught:
        load_target(target(pristine, **changes))  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", ["[1, 4, 9, 9]", "[1, 4, 8, 16]", "[1, 3, 8, 8]", ""])
def test_latents_that_the_original_does_not_draw(shape: str, pristine: Path) -> None:
    assert only_problem(target(pristine, input_shape=shape)) == (
        f"model.input_shape is {shape or '[1, 4, 64, 64]'}; the original draws latents of {LATENTS}, channels, height and width, and pictures are "
        f"made of whole ones: write {LATENTS}"
    )


def test_stages_that_components_cannot_have(pristine: Path) -> None:
    """All of them are said, each with its network."""
    decoder = f"[{EVOLVE}, {{stage: distill, crop_size: 16}}, {{stage: distill, method: steps}}, {{stage: slim}}]"
    text_encoder = "[{stage: distill}, {stage: prune, ratio: 0.5}]"
    more = f"components: {{decoder: {{stages: {decoder}, budget: {{quality: {{within: 1}}}}}}, text_encoder: {{stages: {text_encoder}}}}}"
    assert [problem for problem in problems_of(target(pristine, more=more)) if problem.startswith("components.")] == [
        "components.text_encoder: stages[0] (distill): of the text encoder, which runs once a picture, nothing is trained or removed; it can be "
        "quantized: remove the stage",
        "components.text_encoder: stages[1] (prune): of the text encoder, which runs once a picture, nothing is trained or removed; it can be "
        "quantized: remove the stage",
        "components.decoder: stages[1] (distill): crop_size is 16; latents are never cut, and their side is 8: write crop_size: 8",
        "components.decoder: stages[3] (slim): crop_size is 32; latents are never cut, and their side is 8: write crop_size: 8",
        "components.decoder: budget.quality.within is 1, a loss against the original; latent_decoding is judged by its likeness to what the original "
        "itself makes, so that has none to lose. Use at_least, the least acceptable psnr_db",
        "components.decoder: stages[0] (search): there is no search space of decoders; use prune, which makes it as narrow as you like, and distill "
        "behind it",
        "components.decoder: stages[2] (distill): method steps is for a network that is called again and again, and the decoder is called once; use "
        "method online",
        "components.decoder: stages[3] (slim): a picture is made by three networks, and each ships in one width; remove the stage, or use prune",
    ]


def test_stages_that_a_unet_cannot_have(pristine: Path) -> None:
    prune, uniform = "{stage: prune, latency_ratio: 0.5, blocks: true}", "{stage: prune, ratio: 0.5, uniform: true}"
    stages = f"[{{stage: search, crop_size: 8}}, {prune}, {uniform}, {{stage: slim, crop_size: 8}}]"
    more = "budget: {quality: {metric: attribute_accuracy_percent, within: 1}}"
    found = problems_of(target(pristine, stages=stages, more=more))
    assert found == [
        "budget.quality.within is 1, a loss against the original; text_to_image is judged by its likeness to what the original itself makes, so that "
        "has none to lose. Use at_least, the least acceptable psnr_db",
        "budget.quality.metric is 'attribute_accuracy_percent'; text_to_image measures psnr_db; write metric: psnr_db",
        "stages[0] (search): method supernet has no search space of U-Nets; use method evolve, which removes and doubles their blocks",
        *(
            f"stages[{index}] (prune): channels of a diffusion U-Net are not pruned here; remove the stage, or use method evolve or bk_sdm of a "
            "search stage, which removes its blocks"
            for index in (1, 2)
        ),
        "stages[3] (slim): a picture is made by three networks, and each ships in one width; remove the stage, or use method evolve or bk_sdm of a "
        "search stage, which removes its blocks",
    ]


def test_a_budget_that_no_evolution_reaches_and_steps_behind_consistency(pristine: Path) -> None:
    stages = f"[{EVOLVE}, {{stage: distill, method: consistency}}, {{stage: distill, method: steps}}]"
    over, guided = problems_of(target(pristine, stages=stages, more="budget: {latency_ms: 0.000001}"))
    assert over.startswith("budget.latency_ms is 1e-06; the network without any of its ")
    assert over.endswith("which is the nearest that evolving reaches. Raise the limit, or take a smaller original")
    assert guided == (
        "stage distill: method steps: the network takes the scale of guidance as an input, so it is called once a step; use method consistency"
    )


def test_removals_and_features_are_of_the_unet_alone_and_of_two_layers_a_stage(pristine: Path) -> None:
    stages = "[{stage: search, method: bk_sdm}, {stage: distill, method: features}]"
    more = f"components: {{decoder: {{stages: {stages}}}, text_encoder: {{stages: {stages}}}}}"
    runs_once = "of the text encoder, which runs once a picture, nothing is trained or removed; it can be quantized: remove the stage"
    assert problems_of(target(pristine, stages=stages, more=more)) == [
        f"components.text_encoder: stages[0] (search): {runs_once}",
        f"components.text_encoder: stages[1] (distill): {runs_once}",
        "components.decoder: stages[0] (search): there is no search space of decoders; use prune, which makes it as narrow as you like, and distill "
        "behind it",
        "components.decoder: stages[1] (distill): method features compares the stages of diffusion UNets, and the decoder is none; use method online",
        "stage search, method bk_sdm: BK-SDM keeps the first of two layers of a stage; layers_per_block of this network is 1. Use method evolve, "
        "which removes single blocks of any diffusion UNet, or remove the stage",
    ]


def test_features_behind_guidance(pristine: Path) -> None:
    stages = "[{stage: distill, method: consistency}, {stage: distill, method: features}]"
    assert "the network takes the scale of guidance as an input; distil features before" in only_problem(target(pristine, stages=stages))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (f"[{EVOLVE}]", "stage search, method evolve: evolves the network 'diffusion_unet', and this one is "),
        ("[{stage: search, method: bk_sdm}]", "stage search, method bk_sdm: removes blocks of the network 'diffusion_unet', and this one is "),
        ("[{stage: distill, method: features}]", "stage distill: method features is for diffusion networks, and the task has none; use method"),
        ("[{stage: distill, method: steps}]", "stage distill: method steps is for diffusion networks, and the task has none; use method online"),
        ("[{stage: distill, method: consistency}]", "stage distill: method consistency is for diffusion networks, and the task has none; use method"),
    ],
)
def test_stages_of_diffusion_on_another_task(stages: str, message: str, pristine: Path) -> None:
    assert only_problem(target(pristine, stages=stages, data="", more="budget: {latency_ms: 5}", **MAIN)).startswith(message)


def test_a_unit_without_int8(pristine: Path) -> None:
    """Also where nobody asked for it: networks beside the U-Net are quantized unless the target says otherwise."""
    found = problems_of(target(pristine, device="jetson-nano", stages="[{stage: distill, method: steps}]"))
    seen = "stages[0] (quantize): the gpu of jetson-nano runs fp16, fp32 and no INT8"
    assert found == [
        f"components.text_encoder: {seen}; take another device or unit, for a text encoder has no other stage",
        f"components.decoder: {seen}; give the decoder stages without it, which leaves float files, or take another device or unit",
    ]


def test_a_quick_run_keeps_whole_latents() -> None:
    """Nothing of a latent is ever cut, however little is trained on it."""
    from mcompress.targets.schema import Target

    distill = {"stage": "distill", "crop_size": 64}
    made = Target.model_validate(
        {
            "name": "t", "device": "apple-a16", "model": {"task": "text_to_image", "teacher": {"checkpoint": "x"}}, "stages": [{"stage": "quantize"}],
            "components": {"decoder": {"stages": [distill]}}, "exports": [{"backend": "onnx"}],
        }
    ).quick()  # fmt: skip
    assert made.model.input_shape == (1, 4, 64, 64)
    (stage,) = made.components["decoder"].stages
    assert stage.crop_size == 64  # type: ignore[union-attr]
    assert stage.steps < 100  # type: ignore[union-attr]
