"""Whether the files of a bundle draw what PyTorch draws: one prompt, the same noise, the whole picture.

Needs numpy and the runtimes. This file is part of mcompress and is copied into the bundles of text to image.
"""

from __future__ import annotations

from math import inf, log10
from typing import TYPE_CHECKING

import numpy as np

from mcompress.export.bundle_files import Refused
from mcompress.export.draw_bundle import ABLE, INSTALL_ABLE, file_sets, is_ready, read_bundle
from mcompress.export.draw_picture import Order, Painter, read_noise, read_prompt
from mcompress.export.replay import Result

if TYPE_CHECKING:
    from pathlib import Path

    from mcompress.export.draw_bundle import Drawing, Drawn, FileSet
    from mcompress.export.draw_picture import Picture

HIGHEST = 255.0


def check_pictures(folder: Path, threads: int = 1, backend: str | None = None, variant: str | None = None) -> list[Result]:
    """A result for each set of files of the bundle, or for those of a backend or variant. Raises `Refused` for a bundle that does not draw."""
    drawing = read_bundle(folder)
    sets = [one for one in file_sets(drawing) if backend in (None, one.backend) and variant in (None, one.variant)]
    if not sets:
        held = ", ".join(one.name for one in file_sets(drawing))
        raise Refused(f"the bundle has no such files; it holds {held}")
    return [_checked(drawing, one, threads) for one in sets]


def check_order_of(drawing: Drawing) -> Order:
    """What is drawn for the check."""
    check, sampling = drawing.data["check"], drawing.sampling
    noise = read_noise(drawing, sampling["steps"], drawing.folder / check["noise"])
    return Order(read_prompt(drawing, check["prompt"]), noise, sampling["steps"], sampling["guidance"])


def psnr_db(picture: Picture, other: Picture) -> float:
    """Of two 8-bit pictures; infinite for equal ones."""
    power = float(np.mean((picture.astype(np.float64) - other) ** 2))
    return inf if power == 0 else 10 * log10(HIGHEST**2 / power)


def _checked(drawing: Drawing, files: FileSet, threads: int) -> Result:
    what = f"whole picture by {files.name} files"
    if files.backend not in ABLE:
        return Result(what, files.backend, "not executed", None, None, f"draw.py runs {', '.join(ABLE)}")
    if not is_ready(files.backend):
        return Result(what, files.backend, "not executed", None, None, f"no runtime is installed for it; {INSTALL_ABLE[files.backend]}")
    check = drawing.data["check"]
    stated = next((one for one in check["drawn"] if (one["backend"], one["variant"]) == (files.backend, files.variant)), None)
    if stated is None or stated["least_db"] is None:
        reason = "it was not drawn where the bundle was made, so there is nothing to hold it against"
        return Result(what, files.backend, "not executed", None, None, reason)
    try:
        picture = Painter(drawing, files, threads).draw(check_order_of(drawing))
    except Refused as error:
        return Result(what, files.backend, "failed", None, None, str(error))
    except (RuntimeError, ValueError, OSError) as error:
        return Result(what, files.backend, "failed", None, None, f"its runtime refused it: {error}")
    return _verdict(drawing, stated, picture, Result(what, files.backend, "failed", None, None, ""))


def _verdict(drawing: Drawing, stated: Drawn, picture: Picture, result: Result) -> Result:
    least, expected = stated["least_db"], np.load(drawing.folder / drawing.data["check"]["picture"], allow_pickle=False)
    if picture.shape != expected.shape or least is None:
        return result._replace(reason=f"it has shape {picture.shape}; PyTorch's picture has {expected.shape}")
    found = psnr_db(picture, expected)
    reason = f"{_like(found)} the picture that PyTorch draws, at least {least:.1f} dB ({stated['basis']})"
    if stated["picture"] is not None:
        here = psnr_db(picture, np.load(drawing.folder / stated["picture"], allow_pickle=False))
        reason += f"; {_like(here)} what the same files drew where the bundle was made"
    return result._replace(status="passed" if found >= least else "failed", reason=reason)


def _like(value: float) -> str:
    return "the same as" if value == inf else f"PSNR {value:.1f} dB to"
