"""The run folder's views of the cache: stages and sample pictures, linked and not copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def lay_out_samples(folder: Path, pictures: Mapping[str, Path], compressed: Path | None) -> None:
    """`folder/samples/<sample>/<name>.png`: the pictures of each network's evaluation, and what the shown file computed as `compressed.png`.

    `pictures` maps names to cache entries whose `pictures/<sample>/` hold them; `compressed` is the entry of an export.
    """
    samples = folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    for entry in pictures.values():
        for picture in sorted(p for p in (entry / "pictures").rglob("*.png") if p.is_file()):
            _link(picture, samples / picture.parent.name / picture.name)
    if compressed is not None:
        for picture in sorted(p for p in (compressed / "pictures").rglob("file.png") if p.is_file()):
            _link(picture, samples / picture.parent.name / "compressed.png")


def link_folder(source: Path, destination: Path) -> None:
    """Show a cache entry in the run folder without copying its bytes."""
    shutil.rmtree(destination, ignore_errors=True)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        _link(path, destination / path.relative_to(source))


def _link(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.unlink(missing_ok=True)  # writing through a link would change the cache
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, destination)
