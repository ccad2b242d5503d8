"""Stable Diffusion's U-Net and decoder, and SnapFusion's (arXiv 2306.00980), whose latencies are published for iPhones."""

from __future__ import annotations

from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.models.stable_diffusion import DECODER, SD_15, SNAPFUSION_REPEATS, diffusion_unet, latent_decoder
from mcompress.compress.networks.reference import ReferenceNetwork

LATENTS, STATES = (1, 4, 64, 64), (77, 768)
SOURCE = "https://huggingface.co/docs/diffusers"
HALF_DECODER: dict[str, JsonValue] = {**DECODER, "block_out_channels": [64, 128, 256, 256]}


class OfLatentsAlone(nn.Module):
    """The U-Net with timestep and text states as views of its latents: what it costs needs one input then, and is the same."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor) -> Tensor:
        """(N, 4, H, W) -> the same."""
        any_number = latents[:, 0, 0, 0]
        predicted: Tensor = self.unet(latents, any_number, any_number[:, None, None].expand(-1, *STATES))
        return predicted


DIFFUSION: dict[str, ReferenceNetwork] = {
    "stable_diffusion_unet": ReferenceNetwork(lambda: OfLatentsAlone(diffusion_unet()), LATENTS, 859_520_964, f"arXiv 2112.10752; {SOURCE}", 401.64),
    "snapfusion_unet": ReferenceNetwork(
        lambda: OfLatentsAlone(diffusion_unet(**SD_15, repeats=SNAPFUSION_REPEATS)), LATENTS, 848_000_000, "arXiv 2306.00980", parameters_within=0.11
    ),
    "stable_diffusion_decoder": ReferenceNetwork(latent_decoder, LATENTS, 49_490_179, f"arXiv 2112.10752; {SOURCE}"),
    "half_decoder": ReferenceNetwork(lambda: latent_decoder(**HALF_DECODER), LATENTS, 12_387_459, "arXiv 2306.00980"),
}
"""For pictures of 512 pixels. The 848 M parameters that are published of SnapFusion's U-Net do not follow from the blocks that are: every reading of
them has 723 to 786 M.
"""
