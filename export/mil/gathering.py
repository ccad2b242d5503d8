"""Operators that read or write at computed places. An index outside the array is an error: Core ML promises nothing for it."""

from __future__ import annotations

import numpy as np

from mcompress.export.mil.arguments import Arguments, Operator
from mcompress.export.mil.types import Array


def gather(arguments: Arguments) -> Array:
    """Slices along an axis, one per index; with `batch_dims`, per batch."""
    x, axis = arguments.stored("x"), arguments.integer("axis", 0) % arguments.stored("x").ndim
    indices = _along_axis(arguments, x.shape[axis])
    batch = arguments.integer("batch_dims", 0)
    if not batch:
        return np.take(x, indices, axis=axis)
    outer = x.shape[:batch]
    parts = [np.take(x[place], indices[place], axis=axis - batch) for place in np.ndindex(*outer)]
    return np.stack(parts).reshape(*outer, *parts[0].shape)


def gather_along_axis(arguments: Arguments) -> Array:
    """One element per index, along an axis."""
    x, axis = arguments.stored("x"), arguments.integer("axis", 0)
    return np.take_along_axis(x, _along_axis(arguments, x.shape[axis]), axis)


def gather_nd(arguments: Arguments) -> Array:
    """Slices at the places that the last axis of the indices names."""
    x, batch = arguments.stored("x"), arguments.integer("batch_dims", 0)
    indices = _places(arguments, x.shape[batch:])
    if not batch:
        return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])
    outer = x.shape[:batch]
    parts = [x[place][tuple(np.moveaxis(indices[place], -1, 0))] for place in np.ndindex(*outer)]
    return np.stack(parts).reshape(*outer, *parts[0].shape)


_COMBINED: dict[str, np.ufunc] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def scatter(arguments: Arguments) -> Array:
    """Slices of the data along an axis replaced by, or combined with, the updates."""
    data, axis = arguments.array("data").copy(), arguments.integer("axis", 0) % arguments.stored("data").ndim
    indices = _along_axis(arguments, data.shape[axis])
    _put(arguments, data, (slice(None),) * axis + (indices,), arguments.array("updates"))
    return data


def scatter_along_axis(arguments: Arguments) -> Array:
    """One element of the data per index, along an axis."""
    data, axis = arguments.array("data").copy(), arguments.integer("axis", 0) % arguments.stored("data").ndim
    indices = _along_axis(arguments, data.shape[axis])
    places: list[Array] = list(np.indices(indices.shape))
    places[axis] = indices
    _put(arguments, data, tuple(places), arguments.array("updates"))
    return data


def scatter_nd(arguments: Arguments) -> Array:
    """Slices of the data at the places that the last axis of the indices names."""
    data = arguments.array("data").copy()
    indices = _places(arguments, data.shape)
    _put(arguments, data, tuple(np.moveaxis(indices, -1, 0)), arguments.array("updates"))
    return data


def _put(arguments: Arguments, data: Array, places: tuple[Array | slice, ...], updates: Array) -> None:
    mode = arguments.text("mode", "add")
    if mode == "update":
        data[places] = updates
    elif mode in _COMBINED:
        _COMBINED[mode].at(data, places, updates)  # type: ignore[arg-type]  # numpy takes tuples here, its stubs do not
    else:
        raise arguments.wrong(f"its mode is '{mode}'; known are update, {', '.join(_COMBINED)}")


def _along_axis(arguments: Arguments, size: int) -> Array:
    """Indices of an axis of that size."""
    indices = _indices(arguments)
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise arguments.wrong(f"its indices run from {indices.min()} to {indices.max()}, and the axis has {size} elements")
    return indices


def _places(arguments: Arguments, shape: tuple[int, ...]) -> Array:
    """Indices whose last axis names a place on the first axes of that shape."""
    indices = _indices(arguments)
    limits = np.array(shape[: indices.shape[-1]])
    if np.any(indices < -limits) or np.any(indices >= limits):
        raise arguments.wrong(f"an index lies outside an array of shape {shape}")
    return indices


def _indices(arguments: Arguments) -> Array:
    arguments.without_meaning("validate_indices")  # they are always checked
    return arguments.stored("indices").astype(np.int64)


OPERATORS: dict[str, Operator] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
}
