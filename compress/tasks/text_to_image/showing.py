"""Pictures of captions beside one another: a row for each caption, a column for each painter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

SHOWN_SIDE = 112
"""Pixels of a picture in the grid; smaller ones are enlarged by the whole number that comes nearest."""
GAP, BAND, CAPTION_WIDTH = 8, 40, 230
TITLE_SIZE = 13
BACKGROUND, INK = (250, 250, 252), (40, 44, 52)
LETTERS_PER_LINE = 30


def write_grid(path: Path, captions: Sequence[str], columns: Mapping[str, Tensor], rows: int) -> None:
    """PNG of `rows` captions, spread evenly over all; `columns`: title -> pictures (N, 3, H, W) in [-1, 1], one for each caption."""
    places = [index * len(captions) // min(rows, len(captions)) for index in range(min(rows, len(captions)))]
    side = max(1, round(SHOWN_SIDE / next(iter(columns.values())).shape[-1])) * next(iter(columns.values())).shape[-1]
    page = Image.new("RGB", (CAPTION_WIDTH + len(columns) * (side + GAP) + GAP, BAND + len(places) * (side + GAP)), BACKGROUND)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TITLE_SIZE)
    for column, (title, pictures) in enumerate(columns.items()):
        left = CAPTION_WIDTH + GAP + column * (side + GAP)
        draw.multiline_text((left + side / 2, BAND / 2), _wrapped(title, side // 7), fill=INK, font=font, anchor="mm", align="center")
        for row, place in enumerate(places):
            page.paste(_picture(pictures[place], side), (left, BAND + row * (side + GAP)))
    for row, place in enumerate(places):
        middle = BAND + row * (side + GAP) + side / 2
        draw.multiline_text((GAP, middle), _wrapped(captions[place], LETTERS_PER_LINE), fill=INK, font=font, anchor="lm")
    page.save(path)


def _picture(picture: Tensor, side: int) -> Image.Image:
    factor = side // picture.shape[-1]
    large = functional.interpolate(picture[None], scale_factor=float(factor), mode="nearest")[0] if factor > 1 else picture
    pixels = ((large.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((side, side))


def _wrapped(text: str, letters: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > letters:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
