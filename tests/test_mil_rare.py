"""Operators of the Core ML evaluator that the converter does not make of the other tests' functions: against PyTorch or the specification's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from test_mil_convolutions import ANY, compute, int32
from torch import Tensor
from torch.nn import functional as F

from mcompress.errors import ExportError
from mcompress.export.mil.arguments import Arguments, Given
from mcompress.export.mil.evaluate import OPERATORS
from mcompress.export.mil.program import Operation, Value
from mcompress.export.mil.types import Array

SMALL = torch.linspace(-0.9, 0.9, 24).reshape(1, 2, 3, 4)
TRUTHS = torch.tensor([[True, False], [True, True]]), torch.tensor([[True, True], [False, True]])
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atanh": torch.atanh,
    "cosh": torch.cosh,
    "sinh": torch.sinh,
    "softsign": F.softsign,
    "tan": torch.tan,
    "non_zero": lambda x: torch.nonzero(x).int(),
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
}
COMPARED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"equal": torch.eq, "not_equal": torch.ne, "greater_equal": torch.ge}
LOGICAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"logical_or": torch.logical_or, "logical_xor": torch.logical_xor}


@pytest.mark.parametrize("kind", UNARY)
def test_functions_of_one_array(kind: str) -> None:
    found = compute(kind, ANY, {"x": SMALL.numpy()})
    np.testing.assert_allclose(found, UNARY[kind](SMALL).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [*COMPARED, *LOGICAL])
def test_comparisons(kind: str) -> None:
    function = {**COMPARED, **LOGICAL}[kind]
    x, y = TRUTHS if kind in LOGICAL else (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]))
    assert compute(kind, ANY, {"x": x.numpy(), "y": y.numpy()}).tolist() == function(x, y).tolist()


def test_slopes_per_channel_and_products() -> None:
    slopes = torch.tensor([0.1, 0.3])
    np.testing.assert_allclose(compute("prelu", ANY, {"x": SMALL.numpy(), "alpha": slopes.numpy()}), F.prelu(SMALL, slopes).numpy(), rtol=1e-6)
    found = compute("reduce_prod", ANY, {"x": SMALL.numpy(), "axes": int32(2), "keep_dims": np.array(True)})
    np.testing.assert_allclose(found, SMALL.prod(2, keepdim=True).numpy(), rtol=1e-5)


def test_arrays_of_one_value_and_of_steps() -> None:
    assert compute("fill", ANY, {"shape": int32(2, 3), "value": np.array(4, np.int32)}).tolist() == [[4] * 3] * 2
    assert compute("fill", ANY, {"shape": int32(2)}).tolist() == [0.0, 0.0]
    assert compute("fill_like", ANY, {"ref_tensor": int32(1, 2, 3), "value": np.array(0.5, np.float32)}).tolist() == [0.5] * 3
    steps = {"start": np.array(1.0, np.float32), "end": np.array(3.0, np.float32), "step": np.array(0.5, np.float32)}
    assert compute("range_1d", ANY, steps).tolist() == [1.0, 1.5, 2.0, 2.5]


def test_batches_become_pixels_again() -> None:
    x = torch.randn(1, 3, 5, 6)
    padded = F.pad(x, (0, 2, 1, 0))
    block = int32(2, 2)
    spread = compute("space_to_batch", ANY, {"x": x.numpy(), "block_shape": block, "paddings": int32(1, 0, 0, 2).reshape(2, 2)})
    whole = compute("batch_to_space", ANY, {"x": spread, "block_shape": block, "crops": int32(0, 0, 0, 0).reshape(2, 2)})
    np.testing.assert_array_equal(whole, padded.numpy())
    cropped = compute("batch_to_space", ANY, {"x": spread, "block_shape": block, "crops": int32(1, 0, 0, 2).reshape(2, 2)})
    np.testing.assert_array_equal(cropped, x.numpy())


def test_a_shape_is_put_together_from_others() -> None:
    """The example of the specification: the first two axes of one array and all but the first of the other."""
    references = (np.zeros((2, 3, 4)), np.zeros((1, 5, 6)))
    given = {
        "x": (np.arange(180.0),),
        "ref_tensors": references,
        "begins": (int32(0)[0], int32(1)[0]),
        "ends": (int32(2)[0], int32(0)[0]),
        "end_masks": (np.array(False), np.array(True)),
    }
    operation = Operation("it", "reshape_like", {}, (Value("out", ANY),), {}, (), "test")
    found = OPERATORS["reshape_like"](Arguments(operation, {name: tuple(np.asarray(one) for one in values) for name, values in given.items()}))
    assert isinstance(found, np.ndarray)
    assert found.shape == (2, 3, 5, 6)


def test_a_slice_is_replaced() -> None:
    x, update = torch.zeros(4, 5), torch.arange(4.0).reshape(2, 2)
    masks = {"begin_mask": np.array([True, False]), "end_mask": np.array([False, True])}
    given = {"x": x.numpy(), "update": update.numpy(), "begin": int32(9, 1), "end": int32(3, 9), "stride": int32(2, 2), **masks}
    x[0:3:2, 1::2] = update
    np.testing.assert_array_equal(compute("slice_update", ANY, given), x.numpy())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"interpolation_mode": "NEAREST_NEIGHBOR"}, lambda x: F.interpolate(x, size=(6, 4))),
        ({"sampling_mode": "UNALIGN_CORNERS"}, lambda x: F.interpolate(x, size=(6, 4), mode="bilinear")),
        ({"sampling_mode": "STRICT_ALIGN_CORNERS"}, lambda x: F.interpolate(x, size=(6, 4), mode="bilinear", align_corners=True)),
    ],
)
def test_the_last_axes_are_resized(given: Mapping[str, Given], expected: Callable[[Tensor], Tensor]) -> None:
    sizes = {"shape": int32(1, 6, 0), "resized_dims": np.array(2, np.uint32)}  # 0 keeps a size
    np.testing.assert_allclose(compute("resize", ANY, {"x": SMALL.numpy(), **sizes, **given}), expected(SMALL).numpy(), atol=1e-6)


def test_pixels_are_repeated_to_a_size() -> None:
    given = {"x": SMALL.numpy(), "target_size_height": int32(7), "target_size_width": int32(9)}
    np.testing.assert_array_equal(compute("resize_nearest_neighbor", ANY, given), F.interpolate(SMALL, size=(7, 9)).numpy())


DATA, UPDATES = torch.arange(1.0, 13.0).reshape(4, 3), torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
INDICES = torch.tensor([[0, 1, 2], [3, 1, 0]])
SUMMED = {"update": "update", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@pytest.mark.parametrize("mode", [None, *SUMMED])
def test_scattering_along_an_axis(mode: str | None) -> None:
    """Without a mode, updates are added: the default of the specification."""
    said: dict[str, Given] = {} if mode is None else {"mode": mode}
    data, updates, indices = DATA.numpy(), UPDATES.numpy(), INDICES.numpy().astype(np.int32)
    found = compute("scatter_along_axis", ANY, {"data": data, "updates": updates, "indices": indices, **said})
    if mode == "update":
        # Where two updates meet, no order is promised: all but that one place.
        expected, met = DATA.scatter(0, INDICES, UPDATES).numpy(), (1, 1)
        found[met] = expected[met]
    else:
        expected = DATA.scatter_reduce(0, INDICES, UPDATES, SUMMED[mode or "add"]).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", [None, "update", "sub", "div"])
def test_scattering_slices(mode: str | None) -> None:
    said: dict[str, Given] = {} if mode is None else {"mode": mode}
    rows = int32(3, 1)
    combined: dict[str | None, Callable[[Tensor], Tensor]] = {
        None: lambda old: old + UPDATES,
        "update": lambda old: UPDATES,
        "sub": lambda old: old - UPDATES,
        "div": lambda old: old / UPDATES,
    }
    expected = DATA.clone()
    expected[[3, 1]] = combined[mode](DATA[[3, 1]])
    for kind, indices in (("scatter", rows), ("scatter_nd", rows[:, None])):
        found = compute(kind, ANY, {"data": DATA.numpy(), "updates": UPDATES.numpy(), "indices": indices, **said})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, err_msg=kind)


def test_gathering_at_places() -> None:
    places = np.array([[0, 2], [3, 1]], np.int32)
    assert compute("gather_nd", ANY, {"x": DATA.numpy(), "indices": places}).tolist() == [3.0, 11.0]
    batched = compute("gather_nd", ANY, {"x": DATA.numpy(), "indices": int32(2, 0, 1, 0)[:, None], "batch_dims": np.array(1, np.int32)})
    assert batched.tolist() == [3.0, 4.0, 8.0, 10.0]
    with pytest.raises(ExportError, match=r"an index lies outside an array of shape \(4, 3\)"):
        compute("gather_nd", ANY, {"x": DATA.numpy(), "indices": places + 2})
    with pytest.raises(ExportError, match=r"an index lies outside an array of shape \(4, 3\)"):
        compute("scatter_nd", ANY, {"data": DATA.numpy(), "updates": np.zeros(2, np.float32), "indices": places + 2})


def test_a_constant_kept_in_half_precision() -> None:
    halves: Array = np.array([0.1, 65504], np.float16)
    found = compute("constexpr_cast", ANY, {"source_val": halves, "output_dtype": "fp32"})
    assert found.dtype == np.float32
    assert found.tolist() == halves.astype(np.float32).tolist()
    with pytest.raises(ExportError, match="output_dtype is 'fp64'"):
        compute("constexpr_cast", ANY, {"source_val": halves, "output_dtype": "fp64"})
