"""Images made larger or smaller, and sampled at computed places.

Grids are those that coremltools documents for `resize_bilinear` and `upsample_bilinear`. Nearest neighbour takes the pixel at floor(i * in / out), as
PyTorch and TensorFlow do by default; other sampling modes of nearest neighbour are documented nowhere and refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcompress.export.mil.arguments import Arguments, Operator
from mcompress.export.mil.types import Array, FloatArray

Grid = NDArray[np.float64]


def _nearest(x: Array, axis: int, size: int) -> Array:
    places = np.arange(size) * x.shape[axis] // size
    return np.asarray(np.take(x, places, axis=axis))


def _linear(x: FloatArray, axis: int, grid: Grid) -> FloatArray:
    low = np.floor(grid).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    weight = (grid - low).astype(np.float32).reshape(shape)
    first = np.take(x, low, axis=axis)
    return np.asarray(first + weight * (np.take(x, high, axis=axis) - first))


def _grid(arguments: Arguments, before: int, after: int, mode: str) -> Grid:
    """Where the `after` points lie among `before` pixels."""
    index = np.arange(after, dtype=np.float64)
    if mode == "UNALIGN_CORNERS":
        points = (index + 0.5) * (before / after) - 0.5
    elif mode == "DEFAULT":
        points = index * (before / after)
    elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = index * ((before - 1) / (after - 1)) if after > 1 else np.full(1, (before - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, before - 1) / after
        points = 0.5 * delta + index * delta
    else:
        raise arguments.wrong(
            f"its sampling mode is '{mode}'; known are DEFAULT, ALIGN_CORNERS, STRICT_ALIGN_CORNERS, UNALIGN_CORNERS, OFFSET_CORNERS"
        )
    return np.clip(points, 0, before - 1)


def upsample_nearest_neighbor(arguments: Arguments) -> Array:
    """Rows and columns repeated; factors may be fractions."""
    x = arguments.stored("x")
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        x = _nearest(x, axis, int(np.floor(x.shape[axis] * arguments.number(name, 1.0) + 1e-4)))  # factors in the file are fp32
    return x


def resize_nearest_neighbor(arguments: Arguments) -> Array:
    """To a height and a width."""
    x = _nearest(arguments.stored("x"), -2, arguments.integer("target_size_height"))
    return _nearest(x, -1, arguments.integer("target_size_width"))


def upsample_bilinear(arguments: Arguments) -> Array:
    """By factors, which are computed again from the sizes."""
    x = arguments.floats("x")
    align = arguments.flag("align_corners", default=True)
    half_pixel = arguments.flag("half_pixel_centers", default=not align)
    if align and half_pixel:
        raise arguments.wrong("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS" if half_pixel else "DEFAULT"
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        size = int(np.floor(x.shape[axis] * arguments.number(name, 1.0) + 1e-4))
        x = _linear(x, axis % x.ndim, _grid(arguments, x.shape[axis], size, mode))
    return x


def resize_bilinear(arguments: Arguments) -> Array:
    """To a height and a width."""
    x, mode = arguments.floats("x"), arguments.text("sampling_mode", "DEFAULT")
    for axis, name in ((-2, "target_size_height"), (-1, "target_size_width")):
        x = _linear(x, axis % x.ndim, _grid(arguments, x.shape[axis], arguments.integer(name, 1), mode))
    return x


def resize(arguments: Arguments) -> Array:
    """The last `resized_dims` axes to the last sizes of `shape`, linear or nearest; 0 keeps a size."""
    x, count = arguments.array("x"), arguments.integer("resized_dims")
    kind, mode = arguments.text("interpolation_mode", "LINEAR"), arguments.text("sampling_mode", "DEFAULT")
    sizes = arguments.integers("shape")[-count:] if count else []
    for axis, size in zip(range(x.ndim - count, x.ndim), sizes, strict=True):
        if size == 0:
            continue
        if kind == "LINEAR":
            x = _linear(x.astype(np.float32), axis, _grid(arguments, x.shape[axis], size, mode))
        elif kind == "NEAREST_NEIGHBOR" and mode == "DEFAULT":
            x = _nearest(x, axis, size)
        else:
            raise arguments.wrong(f"{kind} with the sampling mode {mode} is not documented; known are LINEAR, and NEAREST_NEIGHBOR with DEFAULT")
    return x


def resample(arguments: Arguments) -> Array:
    """An image (N, C, H, W) at coordinates (N, H2, W2, 2), x before y: PyTorch's `grid_sample`."""
    x, places = arguments.floats("x"), arguments.array("coordinates").astype(np.float64)
    kind, align = arguments.text("coordinates_mode"), arguments.flag("align_corners", default=True)
    if kind not in ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise arguments.wrong(f"its coordinates_mode is '{kind}'; known are unnormalized, normalized_minus_one_to_one, normalized_zero_to_one")
    mode, padding, value = arguments.text("sampling_mode"), arguments.text("padding_mode"), np.float32(arguments.number("padding_value", 0.0))
    coordinates = []
    for number, size in ((0, x.shape[3]), (1, x.shape[2])):
        place = places[..., number]
        if kind != "unnormalized":
            unit = (place + 1) / 2 if kind == "normalized_minus_one_to_one" else place
            place = unit * (size - 1) if align else unit * size - 0.5
        coordinates.append(_brought_inside(arguments, place, size, padding, align=align))
    if mode == "nearest":
        corners = [(np.rint(coordinates[1]), np.rint(coordinates[0]), np.ones_like(coordinates[0]))]
    elif mode == "bilinear":
        left, top = np.floor(coordinates[0]), np.floor(coordinates[1])
        right, down = coordinates[0] - left, coordinates[1] - top
        corners = [
            (top, left, (1 - down) * (1 - right)),
            (top, left + 1, (1 - down) * right),
            (top + 1, left, down * (1 - right)),
            (top + 1, left + 1, down * right),
        ]
    else:
        raise arguments.wrong(f"its sampling_mode is '{mode}'; known are bilinear, nearest")
    out: FloatArray = np.zeros((x.shape[0], x.shape[1], *places.shape[1:3]), np.float32)
    batch = np.arange(x.shape[0])[:, None, None]
    for row, column, weight in corners:
        inside = (row >= 0) & (row < x.shape[2]) & (column >= 0) & (column < x.shape[3])
        rows, columns = np.clip(row, 0, x.shape[2] - 1).astype(np.int64), np.clip(column, 0, x.shape[3] - 1).astype(np.int64)
        taken = np.where(inside[..., None], x[batch, :, rows, columns], value)
        out += np.moveaxis(taken * weight[..., None].astype(np.float32), -1, 1)
    return out


def _brought_inside(arguments: Arguments, place: Grid, size: int, padding: str, *, align: bool) -> Grid:
    if padding == "constant":
        return place
    if padding == "border":
        return np.clip(place, 0, size - 1)
    if padding in ("reflection", "symmetric"):
        around_pixels = padding == "reflection" and align
        low, span = (0.0, float(size - 1)) if around_pixels else (-0.5, float(size))
        if span == 0:
            return np.zeros_like(place)
        folded = (place - low) % (2 * span)
        return np.clip(np.where(folded > span, 2 * span - folded, folded) + low, 0, size - 1)
    raise arguments.wrong(f"its padding_mode is '{padding}'; known are constant, border, reflection, symmetric")


OPERATORS: dict[str, Operator] = {
    "resample": resample,
    "resize": resize,
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
