"""Photographs as the tasks share them: those inside the wheels of scikit-image and scikit-learn, and folders of the user's own.

An image is a uint8 tensor (3, H, W).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mcompress.errors import PlanError

SUFFIXES = (".png", ".jpg", ".jpeg")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
UNREADABLE = (OSError, SyntaxError, UnidentifiedImageError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is damaged or no picture, and `read_photo` for one that it refuses."""
TRAINING_PHOTOS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/motorcycle_right.png"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/retina.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
)
HELD_OUT_PHOTOS = (
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
)


@dataclass(frozen=True)
class Photo:
    """One photograph: its name and its pixels, uint8 (3, H, W)."""

    name: str
    pixels: Tensor


@dataclass(frozen=True)
class PhotoSet:
    """Photographs for one purpose, and what was left out (`name: why`)."""

    photos: tuple[Photo, ...]
    skipped: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and pixels."""
        sha = hashlib.sha256()
        for photo in self.photos:
            sha.update(f"{photo.name}:{tuple(photo.pixels.shape)}:".encode())
            sha.update(photo.pixels.numpy().tobytes())
        return sha.hexdigest()


def embedded_photos(which: Sequence[tuple[str, str]]) -> PhotoSet:
    """The colour photographs inside the wheels of scikit-image and scikit-learn, found without importing either."""
    photos = []
    for package, name in which:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise PlanError([f"the embedded photographs need the package {package}; install it with: pip install mcompress"])
        path = Path(spec.origin).parent / name
        photos.append(Photo(path.stem, read_photo(path)))
    return PhotoSet(tuple(photos))


def folder_photos(folder: Path, smallest: int) -> PhotoSet:
    """Every PNG and JPEG below `folder`, sorted by name.

    An unreadable image, or one with a side shorter than `smallest` pixels, is skipped and named; a folder without a usable image is an error.
    """
    if not folder.is_dir():
        raise PlanError([f"data folder '{folder}' does not exist; give a folder that holds {', '.join(SUFFIXES)} files"])
    photos, skipped, named = [], [], dict[str, Path]()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        name = path.relative_to(folder).as_posix().replace("/", "_")  # one level, because pictures of it are filed under its name
        if name in named:
            shown, other = (one.relative_to(folder).as_posix() for one in (path, named[name]))
            skipped.append(f"{shown}: pictures are filed by name, and '{other}' has the same one, '{name}'; rename it")
            continue
        try:
            pixels = read_photo(path)
        except UNREADABLE as error:
            skipped.append(f"{name}: {why_unreadable(path, error)}")
            continue
        if min(pixels.shape[1:]) < smallest:
            skipped.append(f"{name}: {pixels.shape[2]}x{pixels.shape[1]} pixels, at least {smallest} are needed on each side")
            continue
        named[name] = path
        photos.append(Photo(name, pixels))
    if not photos:
        needed = f"{', '.join(SUFFIXES)}, at least {smallest} pixels a side"
        raise PlanError([f"data folder '{folder}' holds no usable image ({needed}){first_reasons(skipped)}"])
    return PhotoSet(tuple(photos), tuple(skipped))


def first_reasons(skipped: Sequence[str]) -> str:
    """The first of what was left out, each on a line of its own, to be put behind a message."""
    return "".join(f"\n  {reason}" for reason in skipped[:10])


def why_unreadable(path: Path, error: Exception) -> str:
    """The reason in words; without the folder, because reports carry them."""
    return f"cannot be read ({str(error).replace(str(path), path.name)})"


def as_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3), upright: a camera saves what it sees and notes in EXIF how it was held."""
    return np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)


def read_photo(path: Path) -> Tensor:
    """The pixels of a file, uint8 (3, H, W). Raises one of `UNREADABLE`."""
    with Image.open(path) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"its pixels are {image.mode}, more than 8 bits; save it as 8-bit RGB")
        array = as_rgb(image)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
