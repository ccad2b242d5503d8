"""Names of operators inside the names of a .tflite file's tensors.

The converter writes the path of the module that an operator came from, several where it merged operators, each closed by a semicolon and with a
number where the same path comes twice. `shortened` leaves what matters: `conv2d;relu#3`, the operators, and the tensor's index where a second tensor
has the same ones.
"""

from __future__ import annotations

import re

MARK = "at_"
"""Stands in front of an operator's name in the path of its module."""
_MARKED = re.compile(rf"Step_{MARK}(\w+)")
_INDEX = "#"
_BETWEEN = ";"


def marked(name: str) -> tuple[str, ...]:
    """The operators in a name as the converter wrote it, in its order; of repeated ones, the last, because the last names the value."""
    return tuple(reversed(dict.fromkeys(reversed(_MARKED.findall(name)))))


def shortened(names: tuple[str, ...], index: int) -> str:
    """The name of tensor `index` that those operators made."""
    return f"{_BETWEEN.join(names) or 'tensor'}{_INDEX}{index}"


def operators_in(name: str) -> tuple[str, ...]:
    """Inverse of `shortened`; names of other writers come back as they are."""
    return tuple(name.partition(_INDEX)[0].split(_BETWEEN))
