"""The networks that mcompress knows by name: a network is one file here and one line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mcompress.compress.models.imdn import imdn
from mcompress.compress.models.lip_experts import quality_discriminator, syncnet
from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.models.patchgan import patchgan
from mcompress.compress.models.resnet_generator import resnet_generator
from mcompress.compress.models.rrdb import rrdb
from mcompress.compress.models.unet_generator import unet_generator
from mcompress.compress.models.vgg_discriminator import vgg_discriminator
from mcompress.compress.models.wav2lip import wav2lip

MODELS: dict[str, Callable[..., nn.Module]] = {
    "rrdb": rrdb,
    "mfagan": mfagan,
    "imdn": imdn,
    "resnet_generator": resnet_generator,
    "unet_generator": unet_generator,
    "wav2lip": wav2lip,
    "syncnet": syncnet,
    "quality_discriminator": quality_discriminator,
    "patchgan": patchgan,
    "vgg_discriminator": vgg_discriminator,
}
"""Name -> builder. Builders take keyword arguments only, all with defaults, and raise `UsageError` for a value that they cannot take."""
