"""Folders of diffusers: what they hold computes what diffusers computes, whatever form its weights have, and what is done otherwise is noted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.schedulers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file
from tiny_pipeline import LENGTH, VOCABULARY, WEIGHTS, WIDTH, edit, pipeline, rename, unet

from mcompress.compress.diffusion import NoiseSchedule, ScheduleSettings
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.diffusers_folder import DiffusersFolder, read_diffusers_folder
from mcompress.compress.models.diffusers_folder.fields import Fields
from mcompress.compress.models.diffusers_folder.networks import text_facts, unet_facts, vae_facts
from mcompress.compress.models.diffusers_folder.scheduler import SchedulerFacts, scheduler_facts
from mcompress.compress.models.diffusers_folder.weights import OLD_ATTENTION, today
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.tasks.text_to_image.loading import original_of
from mcompress.errors import PlanError


@pytest.fixture(scope="module")
def original() -> StableDiffusionPipeline:
    return pipeline()


@pytest.fixture(scope="module")
def pristine(original: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves it; to be read only."""
    folder = tmp_path_factory.mktemp("pipeline")
    original.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "pipeline"))


@torch.no_grad()
def check_outputs(read: DiffusersFolder, original: StableDiffusionPipeline, tolerance: float = 1e-6) -> None:
    """Every network of the folder computes what the pipeline's computes."""
    latents, text, time = torch.randn(2, 4, 8, 8), torch.randn(2, LENGTH, WIDTH), torch.tensor([3.0, 700.0])
    tokens, pictures = torch.randint(0, VOCABULARY, (2, LENGTH)), torch.rand(2, 3, 16, 16) * 2 - 1
    autoencoder = read.load_autoencoder()
    pairs = (
        (read.unet.load()(latents, time, text), original.unet(latents, time, text).sample),
        (read.decoder.load()(latents), original.vae.decode(latents).sample),
        (read.text_encoder.load()(tokens.float()), original.text_encoder(tokens).last_hidden_state),
        (autoencoder.encode(pictures).latent_dist.mean, original.vae.encode(pictures).latent_dist.mean),
        (autoencoder.decode(latents).sample, original.vae.decode(latents).sample),
    )
    for ours, theirs in pairs:
        assert ours.dtype == torch.float32
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs.float(), rtol=tolerance, atol=tolerance)


def test_a_folder_loads_as_diffusers_loads_it(pristine: Path, original: StableDiffusionPipeline) -> None:
    read = read_diffusers_folder(pristine)
    check_outputs(read, original)
    check_outputs(read, StableDiffusionPipeline.from_pretrained(pristine))
    assert read.notes == ()
    assert (read.scaling_factor, read.latents, read.pixels_per_latent, read.longest, read.takes_guidance) == (0.25, (1, 4, 8, 8), 2, LENGTH, False)
    assert read.tokenizer_folder == pristine / "tokenizer"
    assert set(read.files) == {path for path in pristine.rglob("*") if path.is_file()}
    assert not any(part.load().training for part in (read.unet, read.decoder, read.text_encoder))


def test_arguments_are_what_differs_from_the_defaults(pristine: Path) -> None:
    read = read_diffusers_folder(pristine)
    stages = {"block_out_channels": [8, 8], "norm_num_groups": 4}
    blocks = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
    own = {"sample_size": 8, "cross_attention_dim": WIDTH, "attention_head_dim": 4, "layers_per_block": 1}
    assert read.unet.args == {**own, **blocks, **stages}
    assert read.decoder.args == {
        "sample_size": 16, **stages, "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    }  # fmt: skip
    for part in (read.unet, read.decoder, read.text_encoder):
        spec = ModelSpec(part.network, part.args)
        assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_network_with_every_default_keeps_its_own_size(folder: Path) -> None:
    """No arguments at all would be Stable Diffusion 1.5's."""
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", "sample_size": 32}), encoding="utf-8")
    assert unet_facts(Fields(folder / "config.json")).args == {"sample_size": 32, "cross_attention_dim": 1280}


# --- what is published ---

SD_15_UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
    "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
SD_15_VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD_15_TEXT = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
    "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}  # fmt: skip
SD_15_SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


def fields(folder: Path, values: object) -> Fields:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return Fields(folder / "config.json")


def test_stable_diffusion_s_published_configurations_have_its_counts(tmp_path: Path) -> None:
    read_unet, read_vae = unet_facts(fields(tmp_path, SD_15_UNET)), vae_facts(fields(tmp_path, SD_15_VAE))
    read_text = text_facts(fields(tmp_path, SD_15_TEXT))
    networks = [
        build_meta(ModelSpec("diffusion_unet", read_unet.args)),
        build_meta(ModelSpec("latent_decoder", read_vae.args)).get_submodule("decoder"),
        build_meta(ModelSpec("clip_text", read_text.args)),
    ]
    assert [sum(one.numel() for one in network.parameters()) for network in networks] == [859_520_964, 49_490_179, 123_060_480]
    assert read_unet.args == {"sample_size": 64, "cross_attention_dim": 768}
    assert (read_unet.latent_size, read_vae.scaling_factor, read_vae.pixels_per_latent, read_text.longest) == ((64, 64), 0.18215, 8, 77)
    assert read_unet.notes == read_text.notes == ()
    assert read_vae.notes == (
        f"{tmp_path / 'config.json'}: scaling_factor is missing; diffusers' 0.18215 is taken, Stable Diffusion 1 and 2's; give another one there",
    )
    assert vae_facts(fields(tmp_path, {**SD_15_VAE, "scaling_factor": 0.18215})).notes == ()


def test_stable_diffusion_s_published_scheduler_is_taken_for_its_noise(tmp_path: Path) -> None:
    found = scheduler_facts(fields(tmp_path, SD_15_SCHEDULER))
    note = f"{tmp_path / 'config.json'}: PNDMScheduler is taken for its noise schedule alone; sampling is DDIM, its timesteps spaced trailing"
    assert found == SchedulerFacts("PNDMScheduler", ScheduleSettings(), "epsilon", False, (note,))


# --- forms of weights ---


def old_attention(name: str) -> str:
    for old, new in OLD_ATTENTION.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def test_attention_of_old_autoencoders_has_other_names(folder: Path, original: StableDiffusionPipeline) -> None:
    file = folder / "vae" / WEIGHTS["vae"]
    rename(file, old_attention)
    names = list(load_file(file))
    assert sum(".proj_attn." in name or ".query." in name for name in names) == 8
    assert not any(".to_q." in name for name in names)
    read = read_diffusers_folder(folder)
    check_outputs(read, original)
    check_outputs(read, StableDiffusionPipeline.from_pretrained(folder))


@pytest.mark.parametrize(
    "name", ["decoder.mid_block.attentions.0.group_norm.weight", "decoder.conv_in.weight", "query.weight", "a.attentions.0.key.b"]
)
def test_other_names_stay(name: str) -> None:
    assert today(name) == name


def test_text_encoders_of_older_transformers_have_a_prefix_and_positions(folder: Path, original: StableDiffusionPipeline) -> None:
    file = folder / "text_encoder" / WEIGHTS["text_encoder"]
    assert "embeddings.token_embedding.weight" in load_file(file)
    positions = torch.arange(LENGTH)[None]
    rename(file, "text_model.{}".format, **{"text_model.embeddings.position_ids": positions})
    read = read_diffusers_folder(folder)
    check_outputs(read, original)
    check_outputs(read, StableDiffusionPipeline.from_pretrained(folder))
    rename(file, lambda name: name.removeprefix("text_model."))
    check_outputs(read_diffusers_folder(folder), original)


def test_shards_load(original: StableDiffusionPipeline, tmp_path: Path) -> None:
    original.save_pretrained(tmp_path, max_shard_size="12KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 3
    assert len(list((tmp_path / "text_encoder").glob("*-of-*.safetensors"))) > 1
    read = read_diffusers_folder(tmp_path)
    check_outputs(read, original)
    assert {path for path in tmp_path.rglob("*.safetensors") if path.is_file()} <= set(read.files)


@pytest.mark.parametrize("size", ["10GB", "12KB"], ids=["whole", "shards"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_weights_load_as_float32_and_are_noted(size: str, kind: torch.dtype, tmp_path: Path) -> None:
    halved = pipeline().to(dtype=kind)
    halved.save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    assert not any((tmp_path / part / file).exists() for part, file in WEIGHTS.items())
    read = read_diffusers_folder(tmp_path)
    check_outputs(read, halved.to(dtype=torch.float32))
    name = str(kind).removeprefix("torch.")
    assert len(read.notes) == 3
    for part, note in zip(WEIGHTS, read.notes, strict=True):
        assert note.startswith(str(tmp_path / part))
        assert "fp16" in note.partition(": ")[0]
        assert note.endswith(f": stored as {name}, loaded as float32")


def test_the_whole_file_is_taken_where_there_are_several(folder: Path, original: StableDiffusionPipeline) -> None:
    shutil.copy(folder / "vae" / WEIGHTS["vae"], folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    read = read_diffusers_folder(folder)
    check_outputs(read, original)
    assert read.notes == (f"{folder / 'vae'}: took diffusion_pytorch_model.safetensors, not diffusion_pytorch_model.fp16.safetensors",)


# --- what is noted ---


def test_parts_that_make_no_picture_are_left_out(folder: Path) -> None:
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    edit(folder / "model_index.json", **checker)
    assert read_diffusers_folder(folder).notes == (
        f"{folder / 'model_index.json'}: left out safety_checker, feature_extractor, which make no picture",
    )


def test_fields_that_diffusers_does_not_know_are_noted(folder: Path) -> None:
    edit(folder / "unet" / "config.json", decay=0.9999, power=0.75)
    (note,) = read_diffusers_folder(folder).notes
    assert note == f"{folder / 'unet' / 'config.json'}: left out decay, power, which the installed diffusers' UNet2DConditionModel does not have"


def test_latent_consistency_models_are_known(tmp_path: Path) -> None:
    made = pipeline(LCMScheduler(steps_offset=1, original_inference_steps=40, timestep_scaling=8.0), unet=unet(time_cond_proj_dim=6))
    made.save_pretrained(tmp_path)
    read = read_diffusers_folder(tmp_path)
    assert read.takes_guidance
    assert read.unet.args["time_cond_proj_dim"] == 6
    assert read.scheduler.settings == ScheduleSettings()
    (note,) = read.notes
    assert note.endswith("LCMScheduler is taken for its noise schedule alone; sampling is DDIM, its timesteps spaced trailing")
    with pytest.raises(PlanError, match="the original must be one that is called with and without the caption"):
        original_of(read)
    loaded = read.unet.load().state_dict()
    assert {name: value.tolist() for name, value in made.unet.state_dict().items()} == {
        name.removeprefix("unet."): value.tolist() for name, value in loaded.items()
    }


@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_other_schedulers_are_taken_for_their_noise(kind: type, prediction: str, folder: Path) -> None:
    scheduler = kind(num_train_timesteps=500, beta_start=0.001, beta_end=0.02, beta_schedule="scaled_linear", prediction_type=prediction)
    scheduler.save_pretrained(folder / "scheduler")
    read = read_diffusers_folder(folder)
    assert read.scheduler.prediction == prediction
    torch.testing.assert_close(NoiseSchedule(read.scheduler.settings).alphas ** 2, scheduler.alphas_cumprod, rtol=1e-6, atol=1e-7)
    (note,) = read.notes
    assert note.endswith(f"{kind.__name__} is taken for its noise schedule alone; sampling is DDIM, its timesteps spaced trailing")


def test_what_ddim_would_do_otherwise_is_noted(folder: Path) -> None:
    DDIMScheduler(set_alpha_to_one=False, beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "scheduler")
    read = read_diffusers_folder(folder)
    assert read.scheduler.settings.beta_schedule == "squaredcos_cap_v2"
    note, _ = read.notes
    unlike, _, here = note.partition(": ")[2].partition(" is not taken over; ")
    assert set(unlike.split(", ")) == {"clip_sample true", "set_alpha_to_one false", 'timestep_spacing "leading"'}
    assert here == 'sampling is DDIM with timestep_spacing "trailing", set_alpha_to_one true, clip_sample false, thresholding false'


def test_predicted_noise_where_hardly_any_signal_is_left_is_noted(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    edit(file, beta_schedule="squaredcos_cap_v2")
    read = read_diffusers_folder(folder)
    alpha = float(NoiseSchedule(read.scheduler.settings).alphas[999])
    assert round(1 / alpha, -3) == 20_000
    assert read.notes == (
        f"{file}: beta_schedule squaredcos_cap_v2 leaves alpha^2 = 2.4e-09 of the signal at timestep 999, where sampling starts, and prediction_type "
        f"is epsilon: the clean latents are off there by {1 / alpha:,.0f} times the error of the predicted noise; networks of v_prediction have no "
        "such error",
    )
    edit(file, prediction_type="v_prediction")
    assert read_diffusers_folder(folder).notes == ()
    edit(file, prediction_type="epsilon", beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    assert read_diffusers_folder(folder).notes == ()


def test_a_schedule_without_signal_at_its_end_is_told(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    read = read_diffusers_folder(folder)
    assert read.scheduler.rescale_betas_zero_snr
    (note,) = read.notes
    assert note.endswith(": rescale_betas_zero_snr is not taken over; the schedule here keeps a little signal at the last timestep")


def test_the_defaults_of_a_scheduler_are_its_own(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDPMScheduler"}), encoding="utf-8")
    assert read_diffusers_folder(folder).scheduler.settings == ScheduleSettings(1000, 0.0001, 0.02, "linear")
    file.write_text(json.dumps({"_class_name": "LCMScheduler"}), encoding="utf-8")
    assert read_diffusers_folder(folder).scheduler.settings == ScheduleSettings(1000, 0.00085, 0.012, "scaled_linear")
