"""Faces of several networks beside each other, enlarged and titled, as the frames of one video."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

ENLARGED = 2
"""Times, on each side."""
GAP, BAND, FOOT = 8, 28, 60
"""Pixels between faces, of the band above them that holds the titles, and below them, where a player's controls hide no mouth."""
TITLE_SIZE = 15
BACKGROUND, TITLE_COLOUR = (22, 22, 20), (235, 231, 222)


def side_by_side(shown: Mapping[str, Tensor]) -> Tensor:
    """Title -> frames, uint8 (T, 3, H, W), all of one shape -> uint8 (T, 3, BAND + 2 H + FOOT, columns of 2 W and gaps)."""
    shapes = {tuple(frames.shape) for frames in shown.values()}
    if len(shapes) != 1:
        raise ValueError(f"frames have the shapes {sorted(shapes)}; faces side by side must be as many and as large as each other")
    ((count, _, height, width),) = shapes
    tall, wide = ENLARGED * height, ENLARGED * width
    page = _page(list(shown), tall, wide)
    frames = page.expand(count, -1, -1, -1).clone()
    for column, one in enumerate(shown.values()):
        left = GAP + column * (wide + GAP)
        frames[:, :, BAND : BAND + tall, left : left + wide] = _enlarged(one)
    return frames


def _enlarged(frames: Tensor) -> Tensor:
    large = functional.interpolate(frames.float(), scale_factor=ENLARGED, mode="bicubic", align_corners=False)
    return large.clamp(0, 255).round().to(torch.uint8)


def _page(titles: list[str], tall: int, wide: int) -> Tensor:
    """What is the same in every frame: the background and the titles, uint8 (3, H, W)."""
    page = Image.new("RGB", (GAP + len(titles) * (wide + GAP), BAND + tall + FOOT), BACKGROUND)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TITLE_SIZE)
    for column, title in enumerate(titles):
        middle = GAP + column * (wide + GAP) + wide / 2
        draw.text((middle, BAND / 2), title, fill=TITLE_COLOUR, font=font, anchor="mm")
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).contiguous()
