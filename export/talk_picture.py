"""The picture of `talk.py`: read, its face cut out and made the network's input, and the network's faces put back.

Needs numpy, Pillow and, where a face is looked for, scikit-image. This file is part of mcompress and is copied into the bundles of talking faces.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mcompress.compress.tasks.talking_face.face_search import Box, no_face, search_faces, several
from mcompress.export.bundle_files import Refused
from mcompress.export.talk_bundle import Step, TalkingFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mcompress.export.replay import Real

    Picture = NDArray[np.uint8]

SMALLEST_SIDE, LARGEST_SIDE = 32, 4096
"""Pixels a side of a picture."""
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is damaged or no picture."""


class Rules(NamedTuple):
    """What the manifest says of the way from a picture to the network and back; rows from `masked_from` on are the network's.

    `mouth_x`, `mouth_y`: the middle of a closed mouth, in pixels of a face of `side` x `side`.
    """

    side: int
    mouth_x: float
    mouth_y: float
    multiply: float
    add: float
    mask_value: float
    masked_from: int
    low: float
    high: float
    feather: int
    is_bgr: bool


def rules_of(file: TalkingFile, speech_input: str) -> Rules:
    """The rules of a file. Raises `Refused` for steps that are not those of a face that is cut out square."""
    (face,) = (name for name in file["preprocessing"] if name != speech_input)
    before, after = file["preprocessing"][face], file["postprocessing"]
    cut, scale, mask = (_arguments(before, operation, face) for operation in ("crop_face", "scale", "mask_rows"))
    clip, paste = (_arguments(after, operation, "the output") for operation in ("clip", "paste_rows"))
    side = int(cut["height"])
    if side != int(cut["width"]) or int(mask["last"]) != side - 1 or paste["first"] != mask["first"]:
        raise Refused(
            f"the manifest cuts faces of {cut['width']}x{side} pixels and masks rows {mask['first']} to {mask['last']}; this script does not"
        )
    order = [step["arguments"]["order"] for step in before if step["operation"] == "colour_order"]
    return Rules(
        side,
        float(cut["mouth_x"]),
        float(cut["mouth_y"]),
        float(scale["multiply"]),
        float(scale["add"]),
        float(mask["value"]),
        int(mask["first"]),
        float(clip["low"]),
        float(clip["high"]),
        int(paste["feather"]),
        order == ["BGR"],
    )


def _arguments(steps: Sequence[Step], operation: str, what: str) -> dict[str, float | int | str]:
    found = [step["arguments"] for step in steps if step["operation"] == operation]
    if len(found) != 1:
        raise Refused(f"the manifest has {len(found)} steps {operation} for {what}; this script needs one")
    return found[0]


def read_picture(path: Path) -> Picture:
    """RGB (H, W, 3), upright. Raises `Refused`."""
    if not path.is_file():
        raise Refused(f"picture '{path}' does not exist or is no file; give a PNG or JPEG file")
    try:
        with Image.open(path) as image:
            if image.mode == "F" or image.mode.startswith("I"):
                raise Refused(f"picture '{path}' has pixels of kind {image.mode}, more than 8 bits; save it as 8-bit RGB")
            picture = np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)  # a camera notes how it was held
    except UNREADABLE as error:
        raise Refused(f"picture '{path}' cannot be read ({error}); give a whole PNG or JPEG file") from error
    height, width = picture.shape[:2]
    if min(height, width) < SMALLEST_SIDE or max(height, width) > LARGEST_SIDE:
        allowed = f"{SMALLEST_SIDE} to {LARGEST_SIDE} on each side are allowed"
        raise Refused(f"picture '{path}' has {width}x{height} pixels; {allowed}, so scale it to that")
    return picture


def face_box(picture: Picture, given: str | None, rules: Rules, name: str, option: str) -> tuple[Box, str]:
    """Where the face is, in whole pixels, and how that is known: it was given, the picture is all face, or it was found. Raises `Refused`."""
    height, width = picture.shape[:2]
    side = rules.side
    if given is not None:
        box = _parsed(given, option)
        largest = 2 * max(width, height)
        across, down = rules.mouth_x / side, rules.mouth_y / side
        has_mouth = 0 <= box.x + box.side * across < width and 0 <= box.y + box.side * down < height
        is_inside = has_mouth and 0 <= box.x + box.side / 2 < width and 0 <= box.y + box.side / 2 < height
        if not (SMALLEST_SIDE <= box.side <= largest and is_inside):
            mouth = f"its mouth, at {across:.2g} of its width and {down:.2g} of its height"
            fits = f"its middle and {mouth}, must be inside, and its side {SMALLEST_SIDE} to {largest}"
            raise Refused(f"{option} {given} does not fit {name}, which has {width}x{height} pixels; {fits}")
        return box, f"{name}: the face is where {option} says, {_shown(box)}"
    if (height, width) == (side, side):
        return Box(0, 0, side), f"{name}: {side}x{side} pixels, taken as a face that has been cut out already"
    if find_spec("skimage") is None:
        raise Refused(f"{name}: to look for the face, scikit-image is needed; pip install scikit-image, or say where it is with {option} X,Y,SIDE")
    found = search_faces(picture)
    if len(found) != 1:
        raise Refused(f"{name}: {several(len(found)) if found else no_face()}, or say where it is with {option} X,Y,SIDE")
    x, y, found_side = (round(value) for value in (found[0].x, found[0].y, found[0].side))
    box = Box(x, y, found_side)
    return box, f"{name}: the face was found by scikit-image's cascade, {_shown(box)}; {option} says otherwise"


def _parsed(given: str, option: str) -> Box:
    try:
        x, y, side = (int(number) for number in given.split(","))
    except ValueError as error:
        raise Refused(f"{option} is '{given}'; it must be three whole numbers of pixels, X,Y,SIDE: the left and upper border and the side") from error
    return Box(x, y, side)


def _shown(box: Box) -> str:
    return f"at {box.x:g},{box.y:g} with a side of {box.side:g} pixels"


def network_input(face: Picture, reference: Picture, rules: Rules) -> Real:
    """The masked face above the reference, both (side, side, 3): float32 (1, 6, side, side)."""
    both = [np.moveaxis(one[..., ::-1] if rules.is_bgr else one, -1, 0).astype(np.float32) for one in (face, reference)]
    frame, other = (one * np.float32(rules.multiply) + np.float32(rules.add) for one in both)
    frame[:, rules.masked_from :] = rules.mask_value
    return np.concatenate([frame, other])[None]


def as_pixels(face: Real, rules: Rules) -> Picture:
    """What the network made, (3, side, side), as a picture (side, side, 3)."""
    share = (np.clip(face, rules.low, rules.high) - rules.low) / (rules.high - rules.low)
    picture = np.moveaxis(np.rint(255 * share), 0, -1).astype(np.uint8)
    return np.ascontiguousarray(picture[..., ::-1] if rules.is_bgr else picture)


class Canvas:
    """A picture into which faces are pasted. What lies above the masked rows or outside the box stays as it is, bit for bit."""

    def __init__(self, picture: Picture, box: Box, rules: Rules) -> None:
        self.picture, self._side = picture, int(box.side)
        height, width = picture.shape[:2]
        left, upper = max(0, int(box.x)), max(0, int(box.y))
        right, lower = min(width, int(box.x) + self._side), min(height, int(box.y) + self._side)
        self._to = (slice(upper, lower), slice(left, right))
        inside = (slice(upper - int(box.y), lower - int(box.y)), slice(left - int(box.x), right - int(box.x)))
        self._inside = inside
        places = (np.arange(self._side) + 0.5) * rules.side / self._side  # middles of the pixels, in rows and columns of the face
        along = [_faded(places, first, rules.side, rules.feather) for first in (rules.masked_from, 0)]
        self._weights = (along[0][:, None] * along[1])[inside][..., None].astype(np.float32)

    def paste(self, face: Picture) -> Picture:
        """The picture with this face (side, side, 3) in it."""
        resized = np.asarray(Image.fromarray(face).resize((self._side, self._side), Image.Resampling.BICUBIC))[self._inside]
        shown = self.picture.copy()
        there = shown[self._to].astype(np.float32)
        shown[self._to] = np.rint(there + self._weights * (resized - there)).astype(np.uint8)
        return shown


def _faded(places: NDArray[np.float64], first: int, end: int, feather: int) -> NDArray[np.float64]:
    """1 between `first` and `end`, 0 outside, and in between over `feather`."""
    return np.clip(np.minimum(places - first, end - places) / max(feather, 1e-9), 0, 1)
