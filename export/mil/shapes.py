"""Operators that move or make values without computing: shapes, slices, joins, padding, shuffles. Types stay as they are kept."""

from __future__ import annotations

import math

import numpy as np

from mcompress.export.mil.arguments import Arguments, Operator
from mcompress.export.mil.types import Array


def reshape(arguments: Arguments) -> Array:
    """0 in the shape keeps the size of that axis, -1 takes what is left."""
    x, shape = arguments.stored("x"), arguments.integers("shape")
    if 0 in shape and len(shape) != x.ndim:
        raise arguments.wrong(f"its shape {shape} keeps sizes (0) of an input of another rank, {x.shape}")
    wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    known = math.prod(size for size in wanted if size != -1)
    if wanted.count(-1) > 1 or (known != x.size if -1 not in wanted else known == 0 or x.size % known):
        raise arguments.wrong(f"an input of shape {x.shape} cannot become {shape}")
    return x.reshape(wanted)


def reshape_like(arguments: Arguments) -> Array:
    """The shape is put together from axes of other arrays."""
    shape: list[int] = []
    parts = zip(arguments.several("ref_tensors"), arguments.several("begins"), arguments.several("ends"), arguments.several("end_masks"), strict=True)
    for reference, begin, end, mask in parts:
        shape += reference.shape[int(begin) : None if mask else int(end)]
    return arguments.stored("x").reshape(shape)


def expand_dims(arguments: Arguments) -> Array:
    """New axes of size 1, counted in the result."""
    return np.expand_dims(arguments.stored("x"), tuple(arguments.integers("axes")))


def squeeze(arguments: Arguments) -> Array:
    """Removes axes of size 1; a named axis of another size stays."""
    x = arguments.stored("x")
    axes = arguments.integers("axes", range(x.ndim))
    return np.squeeze(x, axis=tuple(axis for axis in axes if x.shape[axis] == 1))


def transpose(arguments: Arguments) -> Array:
    """Axes in the order of `perm`."""
    return np.transpose(arguments.stored("x"), arguments.integers("perm"))


def flatten2d(arguments: Arguments) -> Array:
    """Two axes: those before `axis` and the rest."""
    x, axis = arguments.stored("x"), arguments.integer("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def concat(arguments: Arguments) -> Array:
    """Along an axis; interleaved, the first slices of all come first."""
    values, axis = arguments.several("values"), arguments.integer("axis")
    if not arguments.flag("interleave", default=False):
        return np.concatenate(values, axis=axis)
    axis %= values[0].ndim
    shape = values[0].shape
    return np.stack(values, axis=axis + 1).reshape(*shape[:axis], shape[axis] * len(values), *shape[axis + 1 :])


def stack(arguments: Arguments) -> Array:
    """Along a new axis."""
    return np.stack(arguments.several("values"), axis=arguments.integer("axis"))


def split(arguments: Arguments) -> tuple[Array, ...]:
    """Even parts, or parts of `split_sizes`."""
    x, axis = arguments.stored("x"), arguments.integer("axis")
    if arguments.has("split_sizes"):
        sizes = arguments.integers("split_sizes")
        if arguments.integer("num_splits", len(sizes)) != len(sizes):
            raise arguments.wrong(f"parts of {sizes} are not as many as its num_splits, {arguments.integer('num_splits')}")
    else:
        count = arguments.integer("num_splits")
        sizes = [x.shape[axis] // count] * count
    if sum(sizes) != x.shape[axis]:
        raise arguments.wrong(f"parts of {sizes} do not make up axis {axis} of an input of shape {x.shape}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis))


def slice_by_index(arguments: Arguments) -> Array:
    """As numpy slices: begin, end, stride per axis; masks leave an end open or take one element."""
    return arguments.stored("x")[_slices(arguments)]


def slice_update(arguments: Arguments) -> Array:
    """A copy in which such a slice is replaced."""
    result = arguments.stored("x").copy()
    result[_slices(arguments)] = arguments.stored("update")
    return result


def _slices(arguments: Arguments) -> tuple[slice | int, ...]:
    rank = arguments.stored("x").ndim
    begins, ends, strides = arguments.integers("begin"), arguments.integers("end"), arguments.integers("stride", [1] * rank)
    masks = [arguments.integers(name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")]
    taken: list[slice | int] = []
    for begin, end, stride, open_begin, open_end, squeezed in zip(begins, ends, strides, *masks, strict=True):
        if squeezed:
            taken.append(0 if open_begin else begin)
        else:
            taken.append(slice(None if open_begin else begin, None if open_end else end, stride))
    return tuple(taken)


def slice_by_size(arguments: Arguments) -> Array:
    """`size` elements from `begin` on, per axis; -1 takes the rest."""
    x = arguments.stored("x")
    parts = []
    for begin, size, available in zip(arguments.integers("begin"), arguments.integers("size"), x.shape, strict=True):
        start = begin + available if begin < 0 else begin
        parts.append(slice(start, None if size == -1 else start + size))
    return x[tuple(parts)]


def reverse(arguments: Arguments) -> Array:
    """Back to front along axes."""
    x = arguments.stored("x")
    return np.flip(x, tuple(arguments.integers("axes", range(x.ndim))))


def tile(arguments: Arguments) -> Array:
    """Repeated along every axis."""
    return np.tile(arguments.stored("x"), arguments.integers("reps"))


def pad(arguments: Arguments) -> Array:
    """The last axes padded with a constant, the border's values, or the values behind the border."""
    x, widths, mode = arguments.stored("x"), arguments.integers("pad"), arguments.text("mode", "constant")
    pairs = list(zip(widths[0::2], widths[1::2], strict=True))
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    if mode == "constant":
        value = x.dtype.type(arguments.number("constant_val", 0.0))
        return np.pad(x, pairs, constant_values=value)
    arguments.without_meaning("constant_val")
    if mode == "reflect":
        return np.pad(x, pairs, mode="reflect")
    if mode == "replicate":
        return np.pad(x, pairs, mode="edge")
    raise arguments.wrong(f"its mode is '{mode}'; known are constant, reflect, replicate")


def crop(arguments: Arguments) -> Array:
    """Rows and columns cut off."""
    x, (top, bottom), (left, right) = arguments.stored("x"), arguments.integers("crop_height"), arguments.integers("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def pixel_shuffle(arguments: Arguments) -> Array:
    """Channels to pixels as PyTorch orders them: channel, row in the block, column in the block."""
    x, factor = arguments.stored("x"), arguments.integer("upscale_factor")
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels // factor**2, factor, factor, height, width)
    return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(n, channels // factor**2, height * factor, width * factor)


def pixel_unshuffle(arguments: Arguments) -> Array:
    """The inverse of `pixel_shuffle`."""
    x, factor = arguments.stored("x"), arguments.integer("downscale_factor")
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // factor, factor, width // factor, factor)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(n, channels * factor**2, height // factor, width // factor)


def depth_to_space(arguments: Arguments) -> Array:
    """Channels to pixels as TensorFlow orders them: row in the block, column in the block, channel."""
    x, block = arguments.stored("x"), arguments.integer("block_size")
    n, channels, height, width = x.shape
    blocks = x.reshape(n, block, block, channels // block**2, height, width)
    return blocks.transpose(0, 3, 4, 1, 5, 2).reshape(n, channels // block**2, height * block, width * block)


def space_to_depth(arguments: Arguments) -> Array:
    """The inverse of `depth_to_space`."""
    x, block = arguments.stored("x"), arguments.integer("block_size")
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // block, block, width // block, block)
    return blocks.transpose(0, 3, 5, 1, 2, 4).reshape(n, channels * block**2, height // block, width // block)


def space_to_batch(arguments: Arguments) -> Array:
    """Pixels of each place in a block become samples, after padding."""
    x, (rows, columns) = arguments.stored("x"), arguments.integers("block_shape")
    top, bottom, left, right = arguments.integers("paddings")
    x = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // rows, rows, width // columns, columns)
    return blocks.transpose(3, 5, 0, 1, 2, 4).reshape(n * rows * columns, channels, height // rows, width // columns)


def batch_to_space(arguments: Arguments) -> Array:
    """The inverse of `space_to_batch`, cropping."""
    x, (rows, columns) = arguments.stored("x"), arguments.integers("block_shape")
    top, bottom, left, right = arguments.integers("crops")
    n, channels, height, width = x.shape
    blocks = x.reshape(rows, columns, n // (rows * columns), channels, height, width)
    whole = blocks.transpose(2, 3, 4, 0, 5, 1).reshape(n // (rows * columns), channels, height * rows, width * columns)
    return whole[:, :, top : height * rows - bottom, left : width * columns - right]


def sliding_windows(arguments: Arguments) -> Array:
    """All windows along an axis, as a new axis behind it."""
    x, axis = arguments.stored("x"), arguments.integer("axis") % arguments.stored("x").ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, arguments.integer("size"), axis=axis)
    taken = windows[(slice(None),) * axis + (slice(None, None, arguments.integer("stride", 1)),)]
    return np.moveaxis(taken, -1, axis + 1)


def shape(arguments: Arguments) -> Array:
    """Sizes of the axes."""
    return np.array(arguments.stored("x").shape, dtype=np.int32)


def fill(arguments: Arguments) -> Array:
    """One value everywhere."""
    return np.full(arguments.integers("shape"), arguments.stored("value") if arguments.has("value") else np.float32(0))


def fill_like(arguments: Arguments) -> Array:
    """One value, in the shape of another array."""
    return np.full(arguments.stored("ref_tensor").shape, arguments.stored("value") if arguments.has("value") else np.float32(0))


def range_1d(arguments: Arguments) -> Array:
    """start, start + step, ... below end."""
    start, end, step = (arguments.array(name).reshape(()) for name in ("start", "end", "step"))
    count = max(0, math.ceil((float(end) - float(start)) / float(step)))
    return (start + step * np.arange(count)).astype(start.dtype)


def one_hot(arguments: Arguments) -> Array:
    """`on_value` where the index says, `off_value` elsewhere; the default values are 1 and 0."""
    indices, count, axis = arguments.stored("indices"), arguments.integer("one_hot_vector_size"), arguments.integer("axis", -1)
    on = arguments.stored("on_value") if arguments.has("on_value") else np.int32(1)
    off = arguments.stored("off_value") if arguments.has("off_value") else np.asarray(on).dtype.type(0)
    return np.moveaxis(np.where(indices[..., None] == np.arange(count), on, off), -1, axis)


def band_part(arguments: Arguments) -> Array:
    """Zeros outside a band around the diagonal of the last two axes."""
    x, lower, upper = arguments.stored("x"), arguments.integer("lower", -1), arguments.integer("upper", -1)
    rows, columns = np.indices(x.shape[-2:])
    kept = ((lower < 0) | (rows - columns <= lower)) & ((upper < 0) | (columns - rows <= upper))
    return np.where(kept, x, x.dtype.type(0))


def non_zero(arguments: Arguments) -> Array:
    """Indices of the elements that are not zero, one row each."""
    return np.argwhere(arguments.stored("x")).astype(np.int32)


OPERATORS: dict[str, Operator] = {
    "band_part": band_part,
    "batch_to_space": batch_to_space,
    "concat": concat,
    "crop": crop,
    "depth_to_space": depth_to_space,
    "expand_dims": expand_dims,
    "fill": fill,
    "fill_like": fill_like,
    "flatten2d": flatten2d,
    "non_zero": non_zero,
    "one_hot": one_hot,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "range_1d": range_1d,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "reverse": reverse,
    "shape": shape,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "sliding_windows": sliding_windows,
    "space_to_batch": space_to_batch,
    "space_to_depth": space_to_depth,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
}
