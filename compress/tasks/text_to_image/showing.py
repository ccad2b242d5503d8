"""Pictures of captions beside one another: a row for each caption, a column for each painter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

SHOWN_SIDE = 112
"""Pixels of a picture in the grid; smaller ones are enlarged by the whole number that comes nearest."""
GAP, CAPTION_WIDTH = 8, 230
LETTER_SIZE, LINE_HEIGHT = 18, 22
"""Pixels; a report shows a picture of ten columns at two thirds of its size."""
BACKGROUND, INK = (250, 250, 252), (40, 44, 52)


def places_shown(captions: int, rows: int) -> tuple[int, ...]:
    """Which of so many captions stand in a picture of at most `rows`: spread evenly over all."""
    count = min(rows, captions)
    return tuple(index * captions // count for index in range(count))


def write_grid(path: Path, captions: Sequence[str], columns: Mapping[str, Tensor]) -> None:
    """PNG with a row for each caption; `columns`: title -> pictures (N, 3, H, W) in [-1, 1], one for each caption. A title has a line for each part
    between commas.
    """
    side = max(1, round(SHOWN_SIDE / next(iter(columns.values())).shape[-1])) * next(iter(columns.values())).shape[-1]
    font = ImageFont.load_default(LETTER_SIZE)
    titles = ["\n".join(_wrapped(part, side, font.getlength) for part in title.replace(", ", ",\n").split("\n")) for title in columns]
    band = LINE_HEIGHT * max(title.count("\n") + 1 for title in titles) + GAP
    page = Image.new("RGB", (CAPTION_WIDTH + len(columns) * (side + GAP) + GAP, band + len(captions) * (side + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for column, (title, pictures) in enumerate(zip(titles, columns.values(), strict=True)):
        left = CAPTION_WIDTH + GAP + column * (side + GAP)
        draw.multiline_text((left + side / 2, band / 2), title, fill=INK, font=font, anchor="mm", align="center")
        for row, picture in enumerate(pictures):
            page.paste(_picture(picture, side), (left, band + row * (side + GAP)))
    for row, caption in enumerate(captions):
        middle = band + row * (side + GAP) + side / 2
        draw.multiline_text((GAP, middle), _wrapped(caption, CAPTION_WIDTH - GAP, font.getlength), fill=INK, font=font, anchor="lm")
    page.save(path)


def _picture(picture: Tensor, side: int) -> Image.Image:
    factor = side // picture.shape[-1]
    large = functional.interpolate(picture[None], scale_factor=float(factor), mode="nearest")[0] if factor > 1 else picture
    pixels = ((large.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((side, side))


def _wrapped(text: str, width: int, length: Callable[[str], float]) -> str:
    """In lines of at most `width` pixels, `length` saying how many a line takes; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        if lines[-1] and length(f"{lines[-1]} {word}") > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
