"""What messages say of the names in weights files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from torch import Tensor

from mcompress.errors import CheckpointError

SHOWN = 5
"""Keys that a message names."""


def first_names(names: Iterable[object]) -> str:
    """The first few names, for a message."""
    shown = list(islice(names, SHOWN + 1))
    return ", ".join(f"'{name}'" for name in shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")


def check_layers(what: str, tensors: Mapping[str, Tensor], layers: Iterable[str], given: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless `tensors` has the weights of these convolutions; `given` has the names that the file has."""
    missing = [f"{layer}.weight" for layer in layers if f"{layer}.weight" not in tensors or tensors[f"{layer}.weight"].dim() != 4]
    if missing:
        raise CheckpointError(
            f"these are not the weights of {what}: '{missing[0]}' is missing or of no convolution; the first keys are {first_names(given)}"
        )
