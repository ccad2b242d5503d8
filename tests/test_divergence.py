"""The first wrong operator of a file is named: weights of one operator are changed in a file of each format, and exactly it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from int8_plans import int8_plan
from onnx import numpy_helper
from torch import Tensor, nn

from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import Simulated
from mcompress.errors import ParityError
from mcompress.export import backend_named, executorch_prefix
from mcompress.export.backend import FloatArray, Runner, Written, captured
from mcompress.export.divergence import Divergence, as_record, first_divergence
from mcompress.export.divergence_prefixes import bisect
from mcompress.export.proof import Networks, Proof, proven, worst_input
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

pytestmark = pytest.mark.export
SHAPE = (1, 3, 16, 16)
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig(), "executorch": ExecuTorchConfig()}
BROKEN, MODULE = "conv2d_3", "blocks.0.scales.1"


@dataclass(frozen=True)
class Case:
    network: nn.Module
    plan: PrecisionPlan | None
    written: Written
    backend: str

    def first(self, operators: Written | None = None) -> Divergence | None:
        written = operators or self.written
        return first_divergence(self.backend, written.path, self.network, self.plan, written.operators, images(4)[3].numpy())


Make = Callable[[str, str], Case]


def images(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(4)
    return [torch.rand(SHAPE, generator=source) for _ in range(count)]


def small() -> nn.Module:
    torch.manual_seed(0)
    return mfagan(blocks=((2, 8),), channels=8).eval()


def mixed(plan: PrecisionPlan) -> PrecisionPlan:
    """INT8, FP16 and FP32, an operator with its ReLU in one; what is broken is FP16."""
    chosen: dict[str, Precision] = {"conv2d_2": "fp32", "add": "fp32", BROKEN: "fp16", "relu_2": "fp16", "conv2d_5": "fp16", "conv2d_7": "fp16"}
    return replace(plan, operators=tuple(replace(one, precision=chosen.get(one.name, one.precision)) for one in plan.operators))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder, network, kept = tmp_path_factory.mktemp("files"), small(), dict[tuple[str, str], Case]()
    int8 = int8_plan(network, images(3))
    plans = {"float": None, "int8": int8, "mixed": mixed(int8)}

    def made(backend: str, name: str) -> Case:
        if (backend, name) not in kept:
            with captured(folder / "log.txt"):
                written = backend_named(backend).write(CONFIGS[backend], network, images(1)[0], plans[name], folder / f"{backend}-{name}")
            kept[backend, name] = Case(network, plans[name], written, backend)
        return kept[backend, name]

    return made


@pytest.mark.parametrize("name", ["float", "int8", "mixed"])
@pytest.mark.parametrize("backend", ["onnx", "tflite", "coreml"])
def test_a_healthy_file_has_no_divergence_and_a_broken_one_names_its_operator(backend: str, name: str, make: Make, tmp_path: Path) -> None:
    case = make(backend, name)
    assert case.first() is None
    found = broken(case, BROKEN, tmp_path).first()
    assert found is not None
    assert (found.operator, found.module, found.kind) == (BROKEN, MODULE, "conv2d")
    expected = {"float": "fp16" if backend == "coreml" else "fp32", "int8": "int8", "mixed": "fp16"}[name]
    assert found.precision == expected
    assert found.planned == (None if name == "float" else expected)
    assert found.alone
    assert found.value > found.limit
    assert not found.not_seen
    assert set(found.together) <= {"relu_2"}
    advice = {"int8": f"keep: {{{BROKEN}: fp16}}", "fp16": f"keep: {{{BROKEN}: fp32}}", "fp32": "replace it in the network"}[expected]
    assert advice in found.suggestion
    said = as_record(found).sentence()
    for word in (BROKEN, MODULE, expected, found.suggestion):
        assert word in said


def broken(case: Case, operator: str, folder: Path) -> Case:
    """The case with the output channels of `operator` in the wrong order in the file."""
    path = folder / case.written.path.name
    place = next(one for one in case.written.operators if operator in one.stands_for)
    {"onnx": break_onnx, "tflite": break_tflite, "coreml": break_package}[case.backend](case.written.path, place.name, path)
    return replace(case, written=replace(case.written, path=path))


def break_onnx(source: Path, name: str, path: Path) -> None:
    model = onnx.load(str(source))
    weight = next(node for node in model.graph.node if node.name == name).input[1]
    constants = {item.name: item for item in model.graph.initializer}
    while weight not in constants:
        weight = next(node for node in model.graph.node if weight in node.output).input[0]
    values = numpy_helper.to_array(constants[weight])
    constants[weight].CopyFrom(numpy_helper.from_array(values[::-1].copy(), weight))
    onnx.save(model, str(path))


def break_tflite(source: Path, name: str, path: Path) -> None:
    from mcompress.export import tflite_edit
    from mcompress.export.tflite_match import constant_behind, makers_of, stored

    sheet = tflite_edit.opened(source)
    tensor = constant_behind(sheet, makers_of(sheet), int(sheet.operators[int(name.split("#")[1])].inputs[1]))
    held = stored(sheet, tensor)
    assert held is not None
    sheet.model.buffers[sheet.tensors[tensor].buffer].data = np.frombuffer(held[::-1].tobytes(), dtype=np.uint8)
    tflite_edit.save(sheet, path)


def break_package(source: Path, name: str, path: Path) -> None:
    import shutil

    from mcompress.export.mil.blob import Blob
    from mcompress.export.mil.program import read_program

    shutil.copytree(source, path)
    main = read_program(path).main
    operation = next(one for one in main.operations if one.name == name)
    producer = main.producers()[str(operation.inputs["weight"][0])]
    constant = producer.attributes["quantized_data" if producer.type.startswith("constexpr") else "val"]
    blob = constant.held
    assert isinstance(blob, Blob)
    data = bytearray(blob.file.read_bytes())
    data[blob.start : blob.start + blob.size_bytes] = constant.array[::-1].tobytes()
    blob.file.write_bytes(bytes(data))
