"""The slim stage: one set of weights, several widths."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mcompress.targets.stages.likeness import LikenessConfig
from mcompress.targets.stages.stage import Weight

FEWEST, MOST = 2, 3
"""Widths in one bundle: each is a file of its own per backend, and the app carries all of them."""
LEAST = 0.1


def width_name(width: float) -> str:
    """`w050` for the share 0.5; how a width is called in file names, stages and tables."""
    return f"w{round(100 * width):03d}"


class SlimConfig(LikenessConfig):
    """Make the network slimmable (SlimGAN): train several widths on one set of weights, of which a narrower network has the leading channels.

    The widest learns from the truth and the original; every other one from the next wider, on images with and without a label. Only pixels are
    compared unless `ssim`, `feature`, `gram` or `adversarial` have a weight.
    """

    stage: Literal["slim"] = "slim"
    method: Literal["stepwise"] = "stepwise"
    widths: tuple[Annotated[float, Field(ge=LEAST, le=1)], ...] = (1.0, 0.5)
    """Shares of the network's channels, two or three, from wide to narrow; the first is 1, the network as it comes."""
    ssim: Weight = 0.0
    """One minus the structural similarity to the next wider network's output."""
    feature: Weight = 0.0
    """Mean absolute error of the features that the next wider network's discriminator sees in both pictures."""
    adversarial: Weight = 0.0
    """GAN term of every width against a discriminator of its own (SlimGAN)."""
    original: bool = True
    """Whether the widest learns from the original's output as well, with the weight of `output`."""
    shared_blocks: int = Field(default=3, ge=0, le=4)
    """So many of the four blocks of the discriminator serve all widths; the rest is each width's own."""

    @model_validator(mode="after")
    def _widths_from_wide_to_narrow(self) -> Self:
        widths = list(self.widths)
        if not FEWEST <= len(widths) <= MOST:
            raise ValueError(f"widths is {widths}; it must hold {FEWEST} or {MOST} shares, for example [1.0, 0.5]")
        if widths[0] != 1.0:
            raise ValueError(f"widths starts with {widths[0]:g}; the first must be 1.0, the network as it comes")
        for wide, narrow in pairwise(widths):
            if width_name(narrow) >= width_name(wide):
                raise ValueError(f"widths has {narrow:g} behind {wide:g}; each must be narrower than the one before, by 0.01 or more")
        return self
