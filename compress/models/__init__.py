"""The networks that mcompress knows by name: a network is one file here and one line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mcompress.compress.models.imdn import imdn
from mcompress.compress.models.lip_experts import FRAMES, quality_discriminator, syncnet
from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.models.patchgan import patchgan
from mcompress.compress.models.resnet_generator import resnet_generator
from mcompress.compress.models.rrdb import rrdb
from mcompress.compress.models.stable_diffusion import clip_text, diffusion_unet, latent_decoder
from mcompress.compress.models.unet_generator import unet_generator
from mcompress.compress.models.vgg_discriminator import vgg_discriminator
from mcompress.compress.models.wav2lip import FACE_CHANNELS, FACE_SIDE, MEL_BANDS, MEL_FRAMES, wav2lip

MODELS: dict[str, Callable[..., nn.Module]] = {
    "rrdb": rrdb,
    "mfagan": mfagan,
    "imdn": imdn,
    "resnet_generator": resnet_generator,
    "unet_generator": unet_generator,
    "wav2lip": wav2lip,
    "syncnet": syncnet,
    "quality_discriminator": quality_discriminator,
    "diffusion_unet": diffusion_unet,
    "latent_decoder": latent_decoder,
    "clip_text": clip_text,
    "patchgan": patchgan,
    "vgg_discriminator": vgg_discriminator,
}
"""Name -> builder. Builders take keyword arguments only, all with defaults, and raise `UsageError` for a value that they cannot take."""

ONE_SIZE: dict[str, dict[str, tuple[int, ...]]] = {
    "wav2lip": {"face": (1, FACE_CHANNELS, FACE_SIDE, FACE_SIDE), "audio": (1, 1, MEL_BANDS, MEL_FRAMES)},
    "syncnet": {"mouths": (1, 3 * FRAMES, FACE_SIDE // 2, FACE_SIDE), "audio": (1, 1, MEL_BANDS, MEL_FRAMES)},
    "quality_discriminator": {"mouths": (1, 3, FACE_SIDE // 2, FACE_SIDE)},
}
"""Networks that take inputs of one size only -> these inputs, in their order."""
