"""Whose weights a constant of a .tflite file holds: those of the network in every form and precision that a file can have.

They are exact, whether as float32, rounded to float16 or quantized as `tflite_scales` does. Only where the converter folds a constant factor into
float weights are they proportional to the network's, channel by channel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mcompress.export.tflite_planned import Planned, Program
from mcompress.export.tflite_scales import quantized_weights

_FOLDED = 1e-5
"""How far weights with a constant factor folded in may be from proportional to the network's, relative."""
_HALF_STEP = 2.0**-9
"""The same in float16."""


def by_weights(program: Program, types: Collection[str]) -> dict[bytes, list[str]]:
    """Digest of weights, in every form that a file can have and in these types of tensors, -> the operators that have them."""
    found: dict[bytes, list[str]] = {}
    for planned in program.operators.values():
        for one in _digests(planned, types):
            found.setdefault(one, []).append(planned.name)
    return found


def digest(values: NDArray[np.generic], scales: Sequence[float] | NDArray[np.float32]) -> bytes:
    """Of what a constant holds, and of its scales where it is quantized."""
    hashed = hashlib.blake2b(f"{values.dtype} {values.size}".encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    hashed.update(np.asarray(scales, dtype=np.float32).tobytes())
    return hashed.digest()


def is_proportional(held: NDArray[np.generic], form: NDArray[np.float32], axis: int) -> bool:
    """Whether `held` is `form` times one factor per output channel (dimension `axis`): the converter folds constant factors into float weights."""
    if held.shape != form.shape or held.dtype == np.int8:
        return False
    tolerance = _FOLDED if held.dtype == np.float32 else _HALF_STEP
    ours = np.moveaxis(held.astype(np.float64), axis, 0).reshape(held.shape[axis], -1)
    theirs = np.moveaxis(form.astype(np.float64), axis, 0).reshape(held.shape[axis], -1)
    sizes = (theirs * theirs).sum(1)
    factors = np.where(sizes > 0, (ours * theirs).sum(1) / np.where(sizes > 0, sizes, 1.0), 0.0)
    return bool(np.abs(ours - factors[:, None] * theirs).max() <= tolerance * max(float(np.abs(ours).max()), 1e-30)) and bool(factors.any())


def _digests(planned: Planned, types: Collection[str]) -> Iterator[bytes]:
    for form, axis in planned.forms():
        if "FLOAT32" in types:
            yield digest(form, ())
        if "FLOAT16" in types:
            with np.errstate(over="ignore"):  # a file has no float16 weights that do not fit: nothing equals infinity then
                half = form.astype(np.float16)
            yield digest(half, ())
        if "INT8" in types:
            yield digest(*quantized_weights(form, axis))
