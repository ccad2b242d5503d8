"""Pairs of pictures: an input and the target that belongs to it, and which of the pairs keep their target."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mcompress.compress.tasks.photographs import Photo, PhotoSet, first_reasons
from mcompress.errors import PlanError

ONE_IN = 8
"""Of so many labelled pairs, one is kept from training, for choosing between candidates."""


@dataclass(frozen=True)
class Pair:
    """One pair: its name, and input and target of the same size, uint8 (3, H, W)."""

    name: str
    input: Tensor
    target: Tensor


@dataclass(frozen=True)
class Pool:
    """Pictures for training: labelled pairs, those kept for validation, and inputs without a target."""

    labelled: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    unlabelled: tuple[Photo, ...]


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """SHA-256 over names, shapes and pixels."""
    return PhotoSet(tuple(Photo(pair.name, picture) for pair in pairs for picture in (pair.input, pair.target))).digest


def split(pairs: tuple[Pair, ...], fraction: float, further: tuple[Photo, ...] = (), skipped: tuple[str, ...] = ()) -> Pool:
    """The pool in which `fraction` of the pairs, rounded up, keep their target; of the others and of `further` only the input is used.

    The order is that of the names' hashes, so that what is labelled at a smaller fraction is labelled at a larger one, and so is what is kept for
    validation: one labelled pair in `ONE_IN`. Raises `PlanError` where fewer than two pairs keep their target: one trains, one validates;
    the message says what was `skipped`.
    """
    count = math.ceil(fraction * len(pairs) - 1e-9)  # 0.07 * 100 is 7.000000000000001
    if not 0 < fraction <= 1 or count < 2:
        left = f"data.labelled_fraction is {fraction:g}, which leaves {max(count, 0)} of {len(pairs)} pairs their target"
        needed = "at least 2 must keep it, one to train on and one to choose between candidates"
        raise PlanError([f"{left}; {needed}. {_what_to_do(len(pairs))}{first_reasons(skipped)}"])
    ordered = sorted(pairs, key=name_hash)
    validation = tuple(ordered[:count:ONE_IN])
    labelled = tuple(pair for position, pair in enumerate(ordered[:count]) if position % ONE_IN)
    return Pool(labelled, validation, tuple(Photo(pair.name, pair.input) for pair in ordered[count:]) + further)


def name_hash(picture: Photo | Pair) -> str:
    """The key of an order that has nothing to do with what names say, and that further names do not change."""
    return hashlib.sha256(picture.name.encode()).hexdigest()


def _what_to_do(pairs: int) -> str:
    if pairs < 2:
        return "Give more pairs"
    smallest = math.ceil(1000 / pairs + 1e-9) / 1000  # more than one pair
    return f"Give a fraction of at least {min(smallest, 1.0):g} and at most 1, or more pairs"
