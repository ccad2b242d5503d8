"""Small Core ML packages to read and compute: many functions of one input in one package, each an output of its own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mcompress.export.mil import proto
from mcompress.export.mil.evaluate import Arithmetic, evaluate
from mcompress.export.mil.program import MilProgram, read_program


class Outputs(nn.Module):
    """Every function of the same input."""

    def __init__(self, functions: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = list(functions)
        self.layers = nn.ModuleList([function for function in functions if isinstance(function, nn.Module)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in self.functions)


def write_torch(module: nn.Module, example: Tensor | tuple[Tensor, ...], path: Path, *, half: bool = False, ios: int = 17) -> MilProgram:
    """Convert, save and read; outputs are named `out_0`, ... (rounded weights and activations with `half`)."""
    examples = example if isinstance(example, tuple) else (example,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coremltools' own
        import coremltools as ct

        with torch.no_grad():
            program = module if isinstance(module, torch.fx.GraphModule) else module.eval()
            results = program(*examples)
        count = len(results) if isinstance(results, tuple) else 1
        converted = ct.convert(
            torch.export.export(program, examples).run_decompositions({}),
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            outputs=[ct.TensorType(name=f"out_{number}", dtype=np.float32) for number in range(count)],
            skip_model_load=True,
        )
        converted.save(str(path))
    return read_program(path)


def write_built(build: Callable[[Any, Any], list[Any]], shape: tuple[int, ...], path: Path, *, ios: int = 17) -> MilProgram:
    """A package written with coremltools' builder, for what no network of PyTorch becomes: `build(mb, x)` gives its outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coremltools' own
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb

        target = getattr(ct.target, f"iOS{ios}")

        @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)
        def program(x: Any) -> Any:
            return tuple(mb.identity(x=value, name=f"out_{number}") for number, value in enumerate(build(mb, x)))

        converted = ct.convert(
            program, convert_to="mlprogram", minimum_deployment_target=target, compute_precision=ct.precision.FLOAT32, skip_model_load=True
        )
        converted.save(str(path))
    return read_program(path)


def package_of_one(path: Path, kind: str, side: int, scale: int) -> None:
    """A package of one operation of type `kind`, from `input` to `output`, which is `scale` times as large."""
    model = proto.model_messages().Model()
    model.specificationVersion = 8
    main = model.mlProgram.functions["main"]
    main.opset = "CoreML7"
    block = main.block_specializations["CoreML7"]
    operation = block.operations.add(type=kind)
    operation.inputs["x"].arguments.add(name="input")
    block.outputs.append("output")
    for name, size, described, stated in (
        ("input", side, model.description.input.add(), main.inputs.add()),
        ("output", side * scale, model.description.output.add(), operation.outputs.add()),
    ):
        described.name = stated.name = name
        described.type.multiArrayType.dataType = 65568  # float32
        described.type.multiArrayType.shape.extend((1, 3, size, size))
        stated.type.tensorType.dataType = 11  # float32
        stated.type.tensorType.rank = 4
        for length in (1, 3, size, size):
            stated.type.tensorType.dimensions.add().constant.size = length
    (path / "Data").mkdir(parents=True)
    (path / "Data" / "model.mlmodel").write_bytes(model.SerializeToString())
    manifest = {"itemInfoEntries": {"model": {"path": "model.mlmodel"}}, "rootModelIdentifier": "model"}
    (path / "Manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def outputs_of(program: MilProgram, x: Tensor | NDArray[np.float32] | tuple[Tensor, ...], arithmetic: Arithmetic) -> list[NDArray[np.generic]]:
    """The outputs `out_0`, `out_1`, ... of a package for its input, or its inputs in their order."""
    given = x if isinstance(x, tuple) else (x,)
    found = evaluate(program, {one.name: np.asarray(value) for one, value in zip(program.inputs, given, strict=True)}, arithmetic)
    return [found[f"out_{number}"] for number in range(len(found))]


def relative_error(found: NDArray[np.generic], expected: Tensor) -> float:
    """Largest difference, as a share of the largest value (1 where all are smaller than 1e-3)."""
    wanted = expected.detach().numpy().astype(np.float64)
    assert found.shape == wanted.shape
    largest = float(np.abs(wanted).max())
    return float(np.abs(found.astype(np.float64) - wanted).max()) / (largest if largest > 1e-3 else 1.0)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change the protobuf of a package by hand."""
    (file,) = path.glob("Data/*/model.mlmodel")
    model = proto.model_messages().Model()
    model.ParseFromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())


def operations(model: Any) -> Any:
    """The operations of the main function of a protobuf."""
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    return block.operations
