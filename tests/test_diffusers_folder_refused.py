"""Folders of diffusers that cannot be used: every problem is said, with the file, what was seen, what is allowed and what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipeline import LENGTH, VOCABULARY, WEIGHTS, WIDTH, edit, pipeline, rename, text_encoder

from mcompress.compress.models.build import build
from mcompress.compress.models.diffusers_folder import read_diffusers_folder
from mcompress.compress.models.diffusers_folder.scheduler import FAMILIES
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import CheckpointError, PlanError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves it; to be read only."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "pipeline"))


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(PlanError) as caught:
        read_diffusers_folder(folder)
    assert caught.value.problems
    return caught.value.problems


def only_problem(folder: Path) -> str:
    (problem,) = problems_of(folder)
    return problem


def test_a_folder_that_is_none(tmp_path: Path, pristine: Path) -> None:
    assert (
        only_problem(tmp_path / "no")
        == f"{tmp_path / 'no'} does not exist; a diffusers folder is needed, with model_index.json and a sub-folder for each part"
    )
    file = tmp_path / "v1-5-pruned.safetensors"
    file.write_bytes(b"x")
    assert "is a file; a diffusers folder is needed" in only_problem(file)
    assert "from_single_file and save_pretrained" in only_problem(file)
    assert only_problem(tmp_path) == f"{tmp_path} has no model_index.json; give the folder that diffusers saved the pipeline in, whole"
    assert only_problem(pristine / "unet").endswith("has no model_index.json, and looks like one part of a pipeline: give the folder above it")


INDEXES: dict[str, tuple[dict[str, object], list[str]]] = {
    "no U-Net": (
        {"unet": [None, None]},
        [r"model_index\.json: unet is missing, it lists none; it must be of class UNet2DConditionModel: download or copy"],
    ),
    "another U-Net": (
        {"unet": ["diffusers", "UNet2DModel"], "vae": ["diffusers", "VQModel"]},
        [
            r"unet is of class UNet2DModel; only UNet2DConditionModel is taken: give a pipeline like Stable Diffusion 1 or 2",
            r"vae is of class VQModel; only AutoencoderKL is taken",
        ],
    ),
    "T5": ({"text_encoder": ["transformers", "T5EncoderModel"]}, [r"text_encoder is of class T5EncoderModel; only CLIPTextModel is taken"]),
    "with projection": (
        {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]},
        [r"is of class CLIPTextModelWithProjection; only CLIPTextModel"],
    ),
    "another tokenizer": ({"tokenizer": ["transformers", "T5Tokenizer"]}, [r"tokenizer is of class T5Tokenizer; only CLIPTokenizer is taken"]),
    "two text encoders": (
        {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"]},
        [r"text_encoder_2 is of class CLIPTextModelWithProjection: two text encoders, as Stable Diffusion XL has; one is taken"],
    ),
    "a ControlNet": (
        {"controlnet": ["diffusers", "ControlNetModel"]},
        [r"controlnet is of class ControlNetModel, which pictures from text alone do not need; give a pipeline without it"],
    ),
    "no scheduler": ({"scheduler": [None, None]}, [r"scheduler is missing, and without it the noise that the network was trained with is not known"]),
}


@pytest.mark.parametrize("name", INDEXES)
def test_other_pipelines_are_refused(name: str, folder: Path) -> None:
    changes, messages = INDEXES[name]
    edit(folder / "model_index.json", **changes)
    found = problems_of(folder)
    assert len(found) == len(messages)
    for problem, message in zip(found, messages, strict=True):
        assert problem.startswith(str(folder / "model_index.json"))
        assert re.search(message, problem)


UNETS: dict[str, tuple[dict[str, object], str]] = {
    "inpainting": (
        {"in_channels": 9},
        "in_channels is 9, as networks for inpainting have; it must be 4: give a network that makes pictures from text",
    ),
    "editing": ({"in_channels": 8}, "in_channels is 8, as networks that edit pictures have; it must be 4"),
    "odd": ({"in_channels": "four"}, 'in_channels is "four"; it must be 4'),
    "variances": ({"out_channels": 8}, "out_channels is 8, more or less than one value for each of the latents; it must be 4: give another network"),
    "classes": ({"class_embed_type": "timestep"}, 'class_embed_type is "timestep", so it is told a class beside the text; it must be null'),
    "numbered classes": ({"num_class_embeds": 10}, "num_class_embeds is 10, so it is told a class beside the text; it must be null"),
    "SDXL": ({"addition_embed_type": "text_time"}, 'addition_embed_type is "text_time", so it is told more than the text, as Stable Diffusion XL is'),
    "pictures": ({"encoder_hid_dim_type": "image_proj"}, 'encoder_hid_dim_type is "image_proj", so it is told other states than a text encoder\'s'),
    "projected": ({"encoder_hid_dim": 32}, "encoder_hid_dim is 32, so it is told other states"),
    "places": ({"attention_type": "gated"}, 'attention_type is "gated", so it is told more than the text; it must be "default"'),
    "no size": ({"sample_size": None}, "sample_size is null; it must be the side of the latents, as 64, or their height and width, as [64, 96]"),
    "a size of three": ({"sample_size": [8, 8, 8]}, "sample_size is [8, 8, 8]; it must be the side"),
    "another class": (
        {"_class_name": "UNet3DConditionModel"},
        "this is the configuration of UNet3DConditionModel; only UNet2DConditionModel is taken",
    ),
    "unknown blocks": ({"down_block_types": ["DownBlock2D", "DownBlock9D"]}, "network 'diffusion_unet': building it with args"),
}
VAES: dict[str, tuple[dict[str, object], str]] = {
    "latents of 16": ({"latent_channels": 16}, "latent_channels is 16, and the U-Net's latents have others; it must be 4: give another network"),
    "grey": ({"out_channels": 1}, "out_channels is 1, and pictures have three colours; it must be 3"),
    "shifted": ({"shift_factor": 0.1}, "shift_factor is 0.1, and latents are scaled here, not shifted; it must be null"),
    "means": ({"latents_mean": [0, 0, 0, 0]}, "latents_mean is [0, 0, 0, 0], and latents are scaled here, not shifted"),
    "no convolution": ({"use_post_quant_conv": False}, "use_post_quant_conv is false, and Stable Diffusion's autoencoder has this layer"),
    "scaling": ({"scaling_factor": -1}, "scaling_factor is -1; it must be a number above 0"),
    "endless scaling": ({"scaling_factor": float("inf")}, "scaling_factor is Infinity; it must be a number above 0"),
    "no stages": ({"block_out_channels": []}, "block_out_channels is []; it must be a list of widths"),
    "unknown blocks": ({"up_block_types": ["UpBlock9D", "UpBlock9D"]}, "AutoencoderKL cannot be built with"),
}
TEXTS: dict[str, tuple[dict[str, object], str]] = {
    "with projection": (
        {"architectures": ["CLIPTextModelWithProjection"]},
        "this is the configuration of CLIPTextModelWithProjection; only CLIPTextModel is taken here: give another network",
    ),
    "words": ({"hidden_size": "wide"}, 'hidden_size is "wide"; it must be a whole number from 1 on'),
    "truth": ({"vocab_size": True}, "vocab_size is true; it must be a whole number from 1 on"),
    "heads": ({"num_attention_heads": 5}, f"hidden_size {WIDTH} is not a multiple of num_attention_heads 5; take the file again"),
    "activation": ({"hidden_act": "relu9"}, 'hidden_act is "relu9"; it must be one of quick_gelu, gelu'),
    "epsilon": ({"layer_norm_eps": 0}, "layer_norm_eps is 0; it must be a number above 0"),
}
SCHEDULERS: dict[str, tuple[dict[str, object], str]] = {
    "flows": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        'the scheduler is "FlowMatchEulerDiscreteScheduler"; it must be one whose noise follows',
    ),
    "no name": ({"_class_name": None}, f"the scheduler is null; it must be one whose noise follows from betas: {', '.join(FAMILIES)}"),
    "clean latents": ({"prediction_type": "sample"}, 'prediction_type is "sample"; it must be one of epsilon, v_prediction'),
    "sigmoid": ({"beta_schedule": "sigmoid"}, 'beta_schedule is "sigmoid"; it must be one of linear, scaled_linear, squaredcos_cap_v2'),
    "own betas": ({"trained_betas": [0.1, 0.2]}, "trained_betas are given; only betas that follow from beta_schedule are known here"),
    "flow sigmas": ({"use_flow_sigmas": True}, "use_flow_sigmas is set, so the network follows flows; give one that was trained on betas"),
    "no steps": ({"num_train_timesteps": 0}, "num_train_timesteps is 0; it must be a whole number from 1 on"),
    "half a step": ({"num_train_timesteps": 1000.5}, "num_train_timesteps is 1000.5; it must be a whole number from 1 on"),
    "falling": ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start is 0.5 and beta_end 0.1; they must be below 1, and beta_start not above beta_end"),
    "text": ({"beta_end": "much"}, 'beta_end is "much"; it must be a number above 0'),
    "noise alone": (
        {"rescale_betas_zero_snr": True},
        "rescale_betas_zero_snr leaves nothing but noise at the last timestep, where prediction_type epsilon says nothing of the picture",
    ),
}
CONFIGS = {
    "unet/config.json": UNETS,
    "vae/config.json": VAES,
    "text_encoder/config.json": TEXTS,
    "scheduler/scheduler_config.json": SCHEDULERS,
}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, cases in CONFIGS.items() for name in cases])
def test_configurations_that_are_refused(file: str, name: str, folder: Path) -> None:
    changes, message = CONFIGS[file][name]
    edit(folder / file, **changes)
    problem = only_problem(folder)
    assert problem.startswith(f"{folder / file}: ")
    assert message in problem


@pytest.mark.parametrize("file", ["model_index.json", *CONFIGS, "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read as JSON"), ("[]", "holds a list; it must be a JSON object; download or copy it again"), (None, "there is no such file")],
)
def test_files_that_are_missing_or_broken(file: str, content: str | None, message: str, folder: Path) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, encoding="utf-8")
    problem = only_problem(folder)
    assert str(folder) in problem
    assert (message if content is not None or file != "model_index.json" else "has no model_index.json") in problem


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part(part: str, folder: Path) -> None:
    shutil.rmtree(folder / part)
    problem = only_problem(folder)
    assert problem.startswith(f"{folder / 'model_index.json'}: {part} is missing, ")
    assert "download or copy the whole folder" in problem


def test_all_problems_are_said_at_once(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    edit(folder / "unet/config.json", in_channels=9, class_embed_type="timestep")
    edit(folder / "scheduler/scheduler_config.json", prediction_type="sample")
    edit(folder / "text_encoder/config.json", hidden_act="relu9")
    (folder / "text_encoder" / WEIGHTS["text_encoder"]).unlink()
    rename(folder / "vae" / WEIGHTS["vae"], lambda name: name.replace("conv_in", "conv_first"))
    found = problems_of(folder)
    parts = ["model_index.json", "unet", "unet", "vae", "text_encoder", "text_encoder", "scheduler"]
    assert [problem.removeprefix(f"{folder}/").partition("/")[0].partition(":")[0].partition(" ")[0] for problem in found] == parts


# --- weights ---


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickles_are_not_read(part: str, folder: Path) -> None:
    file = folder / part / WEIGHTS[part]
    pickle = file.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    torch.save(load_file(file), pickle)
    file.unlink()
    problem = only_problem(folder)
    assert problem.startswith(
        f"{folder / part} has its weights as '{pickle.name}' alone: pickles, which can run code and are not read. It must have {file.name}"
    )
    assert problem.endswith("save it again with save_pretrained(..., safe_serialization=True)")


@pytest.mark.parametrize("part", WEIGHTS)
def test_missing_weights(part: str, folder: Path) -> None:
    file = folder / part / WEIGHTS[part]
    file.rename(file.with_name("weights.ema.safetensors"))
    lacking = f"{folder / part} has no {file.name}, whole, in shards, or as its fp16 variant"
    assert only_problem(folder) == f"{lacking}; there are 'weights.ema.safetensors'. Download or copy it again."


@pytest.mark.parametrize("size", [0, 5, 1000, -10])
def test_weights_that_are_cut_off(size: int, folder: Path) -> None:
    file = folder / "unet" / WEIGHTS["unet"]
    file.write_bytes(file.read_bytes()[:size])
    assert re.fullmatch(
        rf"{re.escape(str(file))} \(\d+ bytes\) cannot be read as safetensors: .*\. It is cut off or damaged; download or copy it again\.",
        only_problem(folder),
    )


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with its U-Net in shards."""
    pipeline().save_pretrained(tmp_path, max_shard_size="12KB")
    return tmp_path


def test_a_missing_shard(sharded: Path) -> None:
    shards = sorted((sharded / "unet").glob("*-of-*.safetensors"))
    shards[1].unlink()
    assert only_problem(sharded) == (
        f"{sharded / 'unet'} lacks 1 of {len(shards)} shards that diffusion_pytorch_model.safetensors.index.json names: '{shards[1].name}'. "
        "Download or copy them again."
    )


def test_shards_outside_of_the_folder(sharded: Path) -> None:
    index = sharded / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for outside in ("../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "diffusion_pytorch_model.bin"):
        edit(index, weight_map={**listed, "conv_in.bias": outside})
        assert only_problem(sharded) == f"{index} names '{outside}'; shards must be .safetensors files beside it. Do not use this folder."


@pytest.mark.parametrize("listed", [None, [], {}, {"conv_in.bias": 3}])
def test_an_index_without_files(listed: object, sharded: Path) -> None:
    index = sharded / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    edit(index, weight_map=listed)
    assert only_problem(sharded) == f"{index}: weight_map is {json.dumps(listed)}; it must name a file for each weight. Download or copy it again."


def test_an_index_of_other_shards(sharded: Path) -> None:
    index = sharded / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    edit(index, weight_map={**listed, "conv_in.biases": listed["conv_in.bias"]})
    assert only_problem(sharded) == (
        f"{sharded / 'unet' / listed['conv_in.bias']} does not hold what the index says of it; they differ in 'conv_in.biases'. "
        "Download or copy both again."
    )


Change = Callable[[dict[str, torch.Tensor]], None]


def without(name: str) -> Change:
    return lambda tensors: tensors.__delitem__(name)


def with_one(name: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.__setitem__(name, value)


FITS: dict[str, tuple[str, Change, str]] = {
    "missing": ("unet", without("conv_in.bias"), r"\n  1 of \d+ missing in the files: 'conv_in\.bias'\n"),
    "too much": ("unet", with_one("conv_in.scale", torch.zeros(3)), r"\n  1 not in the network: 'conv_in\.scale'\n"),
    "another shape": (
        "unet",
        with_one("conv_in.bias", torch.zeros(3)),
        r"\n  1 of another shape: 'conv_in\.bias' is \(3,\), the network's is \(8,\)\n",
    ),
    "an encoder alone": ("vae", without("decoder.conv_in.weight"), r"\n  1 of \d+ missing in the files: 'decoder\.conv_in\.weight'\n"),
    "no encoder": ("vae", without("encoder.conv_in.weight"), r"\n  1 of \d+ missing in the files: 'encoder\.conv_in\.weight'\n"),
    "a projection": ("text_encoder", with_one("text_projection.weight", torch.zeros(4, 4)), r"\n  1 not in the network: 'text_projection\.weight'\n"),
}


@pytest.mark.parametrize("name", FITS)
def test_weights_of_another_network(name: str, folder: Path) -> None:
    part, change, message = FITS[name]
    file = folder / part / WEIGHTS[part]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    problem = only_problem(folder)
    assert problem.startswith(f"{folder / part}: the weights are not those of the network in config.json:\n")
    assert re.search(message, problem)
    assert problem.endswith("\nTake both from one place.")


def test_a_weight_under_both_of_its_names(folder: Path) -> None:
    file = folder / "vae" / WEIGHTS["vae"]
    name = "decoder.mid_block.attentions.0.{}.bias"
    rename(file, str, **{name.format("query"): torch.zeros(8)})
    assert re.search(
        rf"'{name.format('(query|to_q)')}' is there twice, also as '{name.format('(query|to_q)')}'; save the network again", only_problem(folder)
    )


def test_weights_of_integers(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS["unet"]
    rename(file, str, **{"conv_in.bias": torch.zeros(8, dtype=torch.int8)})
    assert only_problem(folder) == f"{file}: 'conv_in.bias' is stored as I8; it must be one of F64, F32, F16, BF16: save the float network"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_found_when_they_are_read(bad: float, folder: Path) -> None:
    file = folder / "unet" / WEIGHTS["unet"]
    rename(file, str, **{"conv_in.bias": torch.full((8,), bad)})
    read = read_diffusers_folder(folder)
    with pytest.raises(CheckpointError, match=r"'conv_in\.bias' holds NaN or infinity; these weights come from a training that diverged"):
        read.unet.load()


def test_weights_that_are_gone_when_they_are_read(folder: Path) -> None:
    read = read_diffusers_folder(folder)
    (folder / "unet" / WEIGHTS["unet"]).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read any more: .*\. Download or copy it again"):
        read.unet.load()


def test_weights_do_not_load_into_another_network(folder: Path) -> None:
    read = read_diffusers_folder(folder)
    other = build(ModelSpec("diffusion_unet", {**read.unet.args, "layers_per_block": 2}))
    with pytest.raises(CheckpointError, match=r"does not fit the network:\n  \d+ of \d+ missing in the files: 'unet\.down_blocks\.0\.attentions\.1"):
        read.unet.weights.load_into(other)


# --- parts that do not belong together ---


def test_states_of_another_width(folder: Path) -> None:
    text_encoder(hidden_size=2 * WIDTH).save_pretrained(folder / "text_encoder")
    seen = f"the U-Net's cross_attention_dim is {WIDTH}, the text encoder's hidden_size {2 * WIDTH}"
    assert only_problem(folder) == f"{folder}: {seen}; they must be equal: take all parts from one pipeline"


def test_a_tokenizer_of_more_tokens(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["model"]["vocab"]["more"] = VOCABULARY
    file.write_text(json.dumps(data), encoding="utf-8")
    seen = f"the tokenizer's largest token is {VOCABULARY}, and the text encoder's vocab_size {VOCABULARY}"
    assert only_problem(folder) == f"{folder}: {seen}; it must be above it: take all parts from one pipeline"


def test_a_tokenizer_without_its_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    edit(file, model={"vocab": {"a": "b"}})
    assert only_problem(folder) == f"{file}: this is no vocabulary, tokens with their numbers; take it again from where it was made"
    file.unlink()
    lacking = f"{folder / 'tokenizer'} has no vocab.json with merges.txt, and no tokenizer.json; it must have one or the other"
    assert only_problem(folder) == f"{lacking}: download or copy the whole folder"


def test_separate_tokenizer_files_and_a_shorter_text(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n", encoding="utf-8")
    file.unlink()
    assert read_diffusers_folder(folder).longest == LENGTH
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=LENGTH - 2)
    assert read_diffusers_folder(folder).longest == LENGTH - 2
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    assert read_diffusers_folder(folder).longest == LENGTH
