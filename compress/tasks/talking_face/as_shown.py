"""A decoded picture as a player shows it: RGB from the colour space that the file names, square pixels, turned and mirrored."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.video.frame import VideoFrame

UNSPECIFIED = 2
"""The colour space of a picture that does not name one (ITU-T H.273)."""
HIGH_DEFINITION = 720
"""Lines from which on a picture that names no colour space is taken for BT.709, under it for BT.601, as players do."""
HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics (ITU-T H.273) of pictures that are brighter than a screen."""


def as_shown(frame: VideoFrame, aspect: Fraction) -> NDArray[np.uint8]:
    """RGB, uint8 (H, W, 3). `aspect`: the width of a pixel over its height, as the picture is stored."""
    from av.video.reformatter import Colorspace, Interpolation

    source = None  # as the picture says
    if frame.colorspace == UNSPECIFIED:
        source = Colorspace.ITU709 if frame.height >= HIGH_DEFINITION else Colorspace.ITU601
    quality = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    width = max(1, round(frame.width * aspect))
    rgb = frame.reformat(width=width, format="rgb24", src_colorspace=source, interpolation=quality, threads=1).to_ndarray()
    return np.ascontiguousarray(_turned(cast("NDArray[np.uint8]", rgb), _display_matrix(frame)))


def notes_on(frame: VideoFrame, aspect: Fraction) -> list[str]:
    """What is special about the pictures of a file, told by its first one."""
    notes = []
    if aspect != 1:
        notes.append(f"its pixels are {float(aspect):.3f} times as wide as high; made square")
    if len(frame.format.components) == 1 and not frame.format.has_palette:
        notes.append("grey; read as RGB with three equal channels")
    if any(component.is_alpha for component in frame.format.components):
        notes.append("its transparency is left out")
    if frame.interlaced_frame:
        notes.append("interlaced; the two halves of each picture are from two times")
    if frame.color_trc in HDR:
        notes.append(f"its colours are {HDR[frame.color_trc]}, for screens of high dynamic range; read without tone mapping")
    a, b, c, d = _display_matrix(frame)
    if min(abs(a), abs(b)) > 0.01 * max(abs(a), abs(b)) or min(abs(c), abs(d)) > 0.01 * max(abs(c), abs(d)):
        notes.append("turned by an angle that is not a multiple of 90 degrees; read at the nearest one")
    return notes


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d): what is stored at (x, y) is shown at (a x + c y, b x + d y), up to a shift (ISO/IEC 14496-12, the matrix of a track header)."""
    data = cast("Mapping[str, Buffer]", frame.side_data).get("DISPLAYMATRIX")
    if data is None:
        return 1.0, 0.0, 0.0, 1.0
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    return a, b, c, d


def _turned(picture: NDArray[np.uint8], matrix: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """(H, W, 3) by the multiple of 90 degrees, and the mirroring, that is nearest to the matrix."""
    a, b, c, d = matrix
    sideways = abs(b) + abs(c) > abs(a) + abs(d)
    if sideways:
        picture = picture.transpose(1, 0, 2)
    across, down = (c, b) if sideways else (a, d)
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
