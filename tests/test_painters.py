"""In how many steps networks draw for the picture of all, which captions stand in it, and how it is laid out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcompress.compress.models.spec import Sampling
from mcompress.compress.tasks.text_to_image.showing import BACKGROUND, CAPTION_WIDTH, GAP, places_shown, write_grid
from mcompress.painters import further_steps, in_steps

DDIM, LCM = Sampling("v_prediction", 8, 4.0), Sampling("v_prediction", 8, 4.0, "lcm", 10)
COLUMNS = ("true picture", "original, 32 steps", "compressed, 16 steps", "executorch mixed, 8 steps")


@pytest.mark.parametrize(
    ("network", "taken", "below", "expected"),
    [
        (DDIM, 8, 32, (16, 4)),
        (DDIM, 8, 16, (4,)),
        (DDIM, 8, 17, (16, 4)),
        (DDIM, 5, 32, (10,)),
        (DDIM, 1, 32, (2,)),
        (DDIM, 1, 2, ()),
        (DDIM, 32, 32, (16,)),
        (LCM, 8, 32, (4,)),
        (LCM, 5, 32, (10,)),
        (LCM, 4, 8, (2,)),
    ],
)
def test_twice_and_half_as_many_steps_where_they_can_be_taken(network: Sampling, taken: int, below: int, expected: tuple[int, ...]) -> None:
    assert further_steps(network, taken, below) == expected


def test_steps_are_counted_in_words() -> None:
    assert (in_steps("original", 8), in_steps("compressed", 1)) == ("original, 8 steps", "compressed, 1 step")


@pytest.mark.parametrize(("captions", "expected"), [(3, (0, 1, 2)), (10, tuple(range(10))), (12, (0, 1, 2, 3, 4, 6, 7, 8, 9, 10))])
def test_captions_that_are_shown_are_spread_over_all(captions: int, expected: tuple[int, ...]) -> None:
    assert places_shown(captions, 10) == expected


@pytest.mark.parametrize("side", [16, 32])
def test_every_title_stands_above_its_own_column(side: int, tmp_path: Path) -> None:
    """And every picture where its caption and painter are."""
    shades = {name: torch.full((2, 3, side, side), 1.0 - 0.5 * column) for column, name in enumerate(COLUMNS)}
    shades[COLUMNS[0]][1] = -1.0
    write_grid(tmp_path / "a.png", ("a red dotted triangle in the middle", "a blue star"), shades)
    with Image.open(tmp_path / "a.png") as page:
        pixels = np.asarray(page)
    large = {16: 112, 32: 128}[side]
    band = pixels.shape[0] - 2 * (large + GAP)
    assert pixels.shape[1] == CAPTION_WIDTH + GAP + len(COLUMNS) * (large + GAP)
    written = (pixels[:band] != np.array(BACKGROUND)).any(axis=(0, 2))
    rows = (pixels[:band] != np.array(BACKGROUND)).any(axis=(1, 2))
    assert not rows[0], "nothing is cut off"
    assert not rows[-1]
    for column, name in enumerate(COLUMNS):
        left = CAPTION_WIDTH + GAP + column * (large + GAP)
        assert written[left : left + large].any(), name
        assert not written[left - GAP : left].any(), "between columns nothing is written"
        for row in range(2):
            top = band + row * (large + GAP)
            shade = round((float(shades[name][row].mean()) + 1) * 127.5)
            assert (abs(pixels[top : top + large, left : left + large].astype(int) - shade) <= 1).all()
