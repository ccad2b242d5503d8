"""The sizes that a file is measured and counted at: what it states, what was asked for, and what may be assumed."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Sequence, Tuple

from .protocol import Input, Unusable, WrongInput

BATCH_ASSUMED = "batch 1 assumed, which the file leaves open"
"""Only where the first sizes are all that is open."""


class Asked(NamedTuple):
    """The sizes that a job asks for, as `Job` has them."""

    shapes: Sequence[Sequence[int]]
    inputs: Dict[str, List[int]]


class Sizes(NamedTuple):
    """The sizes of all inputs, in the file's order."""

    inputs: List[Input]
    assumed: str


def sizes_of(stated: Sequence[Tuple[str, Sequence[object]]], asked: Asked) -> Sizes:
    """Those that the file states, and what was asked for where it leaves them open; nothing else is ever made up.

    `stated` has the name and the sizes of each input. A size is open unless it is a number above 0; a text stands for one size wherever it is.
    Raises `WrongInput` for what the file does not take, and for sizes that stay open; an open batch alone is 1, and said.
    """
    first = stated[0][0] if stated else ""
    given = {name or first: list(shape) for name, shape in asked.inputs.items()}
    known = dict(stated)
    for name, shape in given.items():
        if name not in known:
            raise WrongInput("--input names '%s', but the inputs of the file are: %s" % (name, ", ".join(known) or "none"))
        if not _takes(known[name], shape):
            shown = "%s=%s" % (name, shown_shape(shape)) if name in asked.inputs else shown_shape(shape)
            advice = "; leave --input out" if all(_size(size, {}) for size in known[name]) else ""
            raise WrongInput("--input is %s, but the file takes %s only%s" % (shown, shown_shape(known[name]), advice))
    if asked.shapes and not given and stated:
        if len(asked.shapes) > len(stated):
            raise Unusable("the file takes %d inputs, and %d were asked for" % (len(stated), len(asked.shapes)))
        given = {name: _in_its_order(sizes, shape) for (name, sizes), shape in zip(stated, asked.shapes) if shape}
    called: Dict[str, int] = {}
    for name, shape in given.items():
        for size, one in zip(known[name], shape):
            if isinstance(size, str) and size and called.setdefault(size, one) != one:
                raise WrongInput("the file has one size for '%s', and --input gives it %d and %d" % (size, called[size], one))
    inputs: List[Input] = []
    for name, sizes in stated:
        inputs.append({"name": name, "shape": given.get(name) or [_size(size, called) for size in sizes]})
    open_ = [index for index, one in enumerate(inputs) if 0 in one["shape"]]
    if not open_:
        return Sizes(inputs, "")
    if not given and all(0 not in inputs[index]["shape"][1:] for index in open_):
        for index in open_:
            inputs[index]["shape"][0] = 1
        return Sizes(inputs, BATCH_ASSUMED)
    shown = "; ".join("%s: %s" % (stated[index][0], shown_shape(stated[index][1])) for index in open_)
    how = "--input SHAPE" if len(stated) == 1 else " ".join("--input %s=SHAPE" % stated[index][0] for index in open_)
    raise WrongInput("the file leaves sizes open (%s); give %s" % (shown, how))


def _size(size: object, called: Dict[str, int]) -> int:
    """One size of an input; 0 if it is open."""
    if isinstance(size, str):
        return called.get(size, 0)
    return size if isinstance(size, int) and size > 0 else 0


def _takes(sizes: Sequence[object], shape: Sequence[int]) -> bool:
    return len(shape) == len(sizes) and all(_size(size, {}) in (0, one) for size, one in zip(sizes, shape))


def _in_its_order(sizes: Sequence[object], shape: Sequence[int]) -> List[int]:
    """`shape` as the file takes it: one that states all its sizes may have them in the order of another layout."""
    own = [_size(size, {}) for size in sizes]
    if _takes(sizes, shape):
        return list(shape)
    if 0 in own or sorted(own) != sorted(shape):
        raise Unusable("the file takes an input of shape %s, and %s was asked for" % (list(sizes), list(shape)))
    return own


def shown_shape(sizes: Sequence[object]) -> str:
    """As `--input` takes it, with the names of open sizes, or `?`."""
    return ",".join(str(size) if _size(size, {}) or (isinstance(size, str) and size) else "?" for size in sizes)
