"""What a file's operators give for one test input, as its runtime computes them, by the plan's names and in PyTorch's layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.backend import FloatArray
from mcompress.export.honoured import FileOperator
from mcompress.export.tflite_tensors import in_layout_of

if TYPE_CHECKING:
    from torch import Tensor

    from mcompress.compress.quantize.plan import ActivationRange


def values_in_file(
    backend: str,
    path: Path,
    encoded: Sequence[NDArray[np.generic]],
    operators: Sequence[FileOperator],
    expected: Mapping[str, Tensor],
    ranges: Mapping[str, ActivationRange],
) -> dict[str, Tensor]:
    """Operator of the plan -> its result in the file. Of several operators of the file that stand for it, the last one's.

    `encoded` are the file's inputs, in its order, types and layouts.
    `expected` has PyTorch's results, whose shapes say whether a tensor is the result or a step towards it, and in which layout.
    `ranges` are the plan's.
    """
    import torch

    asked = _asked(backend, path, encoded, operators, ranges)
    found: dict[str, Tensor] = {}
    for operator in operators:
        if operator.output is None or operator.output not in asked or not operator.stands_for:
            continue
        name = operator.stands_for[-1]
        if name in expected:
            with np.errstate(invalid="ignore"):
                value = in_layout_of(asked[operator.output], expected[name].numpy())
            found.pop(name, None)
            if value is not None:
                found[name] = torch.from_numpy(np.array(value, dtype=np.float32))
    return found


def _asked(
    backend: str, path: Path, encoded: Sequence[NDArray[np.generic]], operators: Sequence[FileOperator], ranges: Mapping[str, ActivationRange]
) -> Mapping[str, FloatArray]:
    if backend == "onnx":
        from mcompress.export import onnx

        return onnx.intermediates(path, encoded, operators)
    if backend == "tflite":
        from mcompress.export.tflite_tensors import intermediates

        return intermediates(path, encoded)
    if backend == "coreml":
        return dict(_in_package(path, encoded, operators, ranges))
    raise ExportError(f"'{backend}' files cannot be asked for the results of their operators; those of onnx, tflite and coreml can")


def _in_package(
    path: Path, encoded: Sequence[NDArray[np.generic]], operators: Sequence[FileOperator], ranges: Mapping[str, ActivationRange]
) -> Iterator[tuple[str, FloatArray]]:
    """The floats of a Core ML package, and what the integers behind its INT8 operators stand for in the plan.

    coremltools multiplies the scales around an INT8 addition by a factor: the floats there are not those of the network, the integers are.
    """
    from mcompress.export.mil.evaluate import constant_value
    from mcompress.export.mil.runner import MilRunner

    runner = MilRunner(path)
    main = runner.program.main
    computed = dict(runner.intermediates(*encoded))
    readers = main.readers()
    for operator in operators:
        if operator.output is None or operator.output not in computed or not operator.stands_for:
            continue
        value, found = computed[operator.output], ranges.get(operator.stands_for[-1])
        if operator.precision != "int8":
            yield operator.output, value.astype(np.float32)
            continue
        quantize = next((reader for reader in readers.get(operator.output, ()) if reader.type == "quantize"), None)
        if quantize is not None and found is not None:
            zero = constant_value(main, quantize.inputs["zero_point"][0]) if "zero_point" in quantize.inputs else None
            integers = computed[quantize.outputs[0].name].astype(np.int32) - (0 if zero is None else zero.astype(np.int32))
            yield operator.output, integers.astype(np.float32) * np.float32(found.scale)
