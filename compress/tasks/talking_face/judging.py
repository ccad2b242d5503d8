"""What frames of a clip are worth: mouths against the truth, lower halves against the real ones, mouth and speech against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcompress.compress.models.lip_experts import FRAMES
from mcompress.compress.tasks.talking_face.expert import LOWER, LipSyncExpert
from mcompress.compress.tasks.talking_face.footage import KnownMouth
from mcompress.compress.tasks.talking_face.lips import Mouths
from mcompress.record import HIGHEST_DB
from mcompress.targets.schema import Measurement

CURVES = ("mouth_opening", "mouth_width")
"""Columns of measured mouths, by the names of their curves."""
MOUTH_UNIT = "neutral mouth widths"
STILL = 1e-9
"""A curve that varies less than this stands still, and has no correlation with another."""


def lip_numbers(found: Mouths, known: KnownMouth, on: str) -> Iterator[Measurement]:
    """Mean absolute error and correlation of opening and width, and how much of the pictures their nearest mouths explain."""
    source = "lips.measure_mouths against the mouths that the clip was drawn with"
    for column, name in enumerate(CURVES):
        made, true = found.mouths[:, column], known.mouths[:, column]
        error = float(np.abs(made - true).mean())
        yield Measurement(what=f"{name}_error", value=error, unit=MOUTH_UNIT, how="host", on=on, n=len(made), source=source)
        likeness = correlation(made, true)
        if likeness is not None:
            yield Measurement(what=f"{name}_correlation", value=likeness, unit="", how="host", on=on, n=len(made), source=source)
    explained = float(found.explained.mean())
    what = "share of the mouth's picture that the nearest known mouth explains, mean over frames"
    yield Measurement(what="mouth_explained", value=explained, unit="", how="host", on=on, n=len(found.explained), source=what)


def correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Pearson's, in [-1, 1]; None where one of them stands still."""
    if min(float(one.std()), float(other.std())) < STILL:
        return None
    return float(np.clip(np.corrcoef(one, other)[0, 1], -1, 1))


def lower_half_db(frames: Tensor, truth: Tensor, on: str) -> Measurement:
    """PSNR of the lower halves of uint8 frames (T, 3, 96, 96), over all of them together, dB; 200 for frames that are equal."""
    error = float(((frames[:, :, LOWER:].double() - truth[:, :, LOWER:].double()) / 255.0).square().mean())
    value = HIGHEST_DB if error == 0 else min(HIGHEST_DB, -10 * math.log10(error))
    return Measurement(what="psnr_db", value=value, unit="dB", how="host", on=on, n=len(frames), source="lower halves, RGB, all frames together")


@torch.no_grad()
def sync_score(expert: LipSyncExpert, frames: Tensor, windows: Tensor, on: str) -> Measurement:
    """The mean of what the expert says of every run of five frames and the speech that begins with it; in [0, 1], 1 where they fit.

    Frames are uint8 (T, 3, 96, 96), windows (T, 1, 80, 16); T is at least 5.
    """
    said = expert.similarity(frames.float() / 255.0, windows)
    what = f"mean cosine over runs of {FRAMES} frames, by the {expert.title}; neither LSE-C nor LSE-D"
    return Measurement(what="lip_sync", value=float(said.mean()), unit="", how="host", on=on, n=len(said), source=what)
