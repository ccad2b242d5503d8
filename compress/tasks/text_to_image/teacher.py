"""How the embedded text-to-image original was made, and how to make it again:

    python -m mcompress.compress.tasks.text_to_image.teacher --seed 0 --out FOLDER

teaches the autoencoder on pictures of the captioned scenes, then the U-Net together with the text encoder on their latents, and writes a folder as
diffusers does, with weights in fp16, and `teacher.json` with what made it. A training that was stopped continues from its checkpoints in the folder.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.diffusion import NoiseSchedule
from mcompress.compress.objectives.autoencoding import Autoencoding
from mcompress.compress.objectives.denoising import Denoising
from mcompress.compress.tasks.making_teachers import lines_on_stderr, parsed, parser_of
from mcompress.compress.tasks.text_to_image.captions import Scene, every_scene, scenes, words
from mcompress.compress.tasks.text_to_image.drawing import SIDE, draw
from mcompress.compress.tasks.text_to_image.words import write_tokenizer
from mcompress.compress.train import TrainSettings, train

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

logger = logging.getLogger(__name__)
AUTOENCODER = {
    "block_out_channels": (32, 48, 64), "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 16, "sample_size": SIDE,
}  # fmt: skip
"""One stage less than Stable Diffusion's, so that its 4 x 8 x 8 latents hold pictures of 32 pixels."""
UNET = {
    "sample_size": SIDE // 4, "block_out_channels": (32, 48, 48), "layers_per_block": 2, "cross_attention_dim": 64, "attention_head_dim": 4,
    "norm_num_groups": 16, "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
"""1,408,644 parameters, in the layout of Stable Diffusion 1.5 with one stage less."""
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""What the folder holds, as diffusers reads it."""
LONGEST = 16
"""Tokens."""
AUTOENCODER_STEPS, AUTOENCODER_BATCH, AUTOENCODER_RATE, DIVERGENCE = 4_000, 32, 2e-3, 1e-4
STEPS, BATCH, LEARNING_RATE = 14_000, 64, 1.5e-3
PICTURES = 12_600
"""Twenty of each combination that is trained on."""
WARMUP_STEPS, AVERAGE = 200, 0.999
ENCODED_AT_ONCE = 60


class Latents:
    """Latents (M, 4, 8, 8) of pictures with the tokens of their captions (M, L)."""

    def __init__(self, latents: Tensor, tokens: Tensor) -> None:
        self.latents, self.tokens = latents, tokens

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Any of them."""
        which = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[which], self.tokens[which]


def train_autoencoder(steps: int, seed: int, folder: Path) -> AutoencoderKL:
    """The autoencoder, rounded to fp16."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    autoencoder, everything = AutoencoderKL(**AUTOENCODER), every_scene()

    def pictures(generator: torch.Generator) -> Tensor:
        which = torch.randint(len(everything), (AUTOENCODER_BATCH,), generator=generator).tolist()
        return draw([everything[one] for one in which], generator)

    settings = TrainSettings(steps, AUTOENCODER_RATE, seed, WARMUP_STEPS, AVERAGE)
    train(Autoencoding(autoencoder, pictures, DIVERGENCE), settings, FileCheckpoints(folder / "autoencoder.pt"), lines_on_stderr())
    _round(autoencoder)
    return cast("AutoencoderKL", autoencoder.eval())


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, shown: list[Scene], generator: torch.Generator) -> Tensor:
    """Means of the latents, unscaled, of one picture of each scene."""
    found = []
    for first in range(0, len(shown), ENCODED_AT_ONCE):
        pictures = draw(shown[first : first + ENCODED_AT_ONCE], generator)
        found.append(autoencoder.encode(pictures).latent_dist.mean)
    return torch.cat(found)


def train_denoiser(
    steps: int, seed: int, latents: Latents, tokenizer: CLIPTokenizer, folder: Path
) -> tuple[UNet2DConditionModel, CLIPTextModel, float]:
    """The U-Net and the text encoder, rounded to fp16, and the seconds that it took."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**UNET)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=LONGEST, **TEXT, **ids))

    def run(noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return unet(noisy, timesteps, text(tokens)[0], return_dict=False)[0]  # type: ignore[no-any-return]

    no_caption = tokens_of(tokenizer, [""])[0]
    trained: dict[str, nn.Module] = {"unet": unet, "text": text}
    objective = Denoising(trained, run, latents, no_caption, NoiseSchedule(), prediction="epsilon", batch_size=BATCH)
    settings = TrainSettings(steps, LEARNING_RATE, seed, WARMUP_STEPS, AVERAGE)
    result = train(objective, settings, FileCheckpoints(folder / "denoiser.pt"), lines_on_stderr())
    for module in trained.values():
        _round(module)
    return unet.eval(), text.eval(), result.seconds


def tokens_of(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Tokens (N, L), each text filled up with the end token."""
    return torch.tensor(tokenizer(texts, padding="max_length", max_length=LONGEST)["input_ids"])


def make(steps: int, autoencoder_steps: int, seed: int, folder: Path) -> None:
    """Train and write."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    started = time.monotonic()
    write_tokenizer(folder / "tokenizer", words(), LONGEST)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    autoencoder = train_autoencoder(autoencoder_steps, seed, folder)
    seen = scenes(held_out=False)
    shown = [seen[index % len(seen)] for index in range(PICTURES)]
    means = encoded(autoencoder, shown, torch.Generator().manual_seed(seed))
    scaling = round(1.0 / float(means.std()), 4)
    autoencoder.register_to_config(scaling_factor=scaling)
    latents = Latents(means * scaling, tokens_of(tokenizer, [scene.caption for scene in shown]))
    unet, text, seconds = train_denoiser(steps, seed, latents, tokenizer, folder)
    scheduler = DDIMScheduler(
        **vars(NoiseSchedule().settings), clip_sample=False, set_alpha_to_one=True, prediction_type="epsilon", timestep_spacing="trailing"
    )
    for name, part in {"unet": unet, "vae": autoencoder}.items():
        part.half().save_pretrained(folder / name, safe_serialization=True)
    text.half().save_pretrained(folder / "text_encoder", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(PIPELINE, indent=1) + "\n", encoding="utf-8")
    record = {
        "command": f"python -m mcompress.compress.tasks.text_to_image.teacher --steps {steps} --autoencoder-steps {autoencoder_steps} --seed {seed}",
        "pictures": PICTURES,
        "torch": torch.__version__,
        "train_seconds": round(time.monotonic() - started),
        "denoiser_seconds": round(seconds),
    }
    (folder / "teacher.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _round(module: nn.Module) -> None:
    """Weights to the nearest fp16 numbers, as they are shipped."""
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())


if __name__ == "__main__":
    parser = parser_of(__doc__, STEPS)
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_STEPS)
    options = parsed(parser)
    make(options.steps, options.autoencoder_steps, options.seed, options.out)
