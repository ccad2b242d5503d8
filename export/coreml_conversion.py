"""From the network and its plan to a saved Core ML package in which every operator has its planned precision and carries the program's name.

coremltools takes the precision of an operator from a function of ours; which operator of the program it has before it is known from the `debug_handle`
that coremltools copies from the exported program through all of its passes. Names are written into the package once it is saved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import ExportError
from mcompress.export.coreml_names import SourceNode, is_conversion, rename, source_nodes
from mcompress.targets.exports import CoreMLConfig

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from mcompress.compress.quantize.plan import PrecisionPlan

MARK = "mcompress"
"""Key of an operator's name among the metadata (`custom`) that torch.export carries along when it traces again."""
HANDLES = "executorch_debug_handle_mapping.json"
"""Where coremltools writes which handle each operation of the package has."""
FP16_SCALE_ERROR = 1 / 256  # relative; half of the step of a weight of 127. Scales below 6e-5 have fewer bits in fp16
INSIDE = frozenset(("relu", "relu6", "clip"))
"""What may stand between an INT8 operator and the quantization of its result."""


def save_package(config: CoreMLConfig, model: nn.Module, example: Tensor, program: ExportedProgram, plan: PrecisionPlan | None, path: Path) -> None:
    """Write `path` with input `input` and output `output`, both float32. Without a plan everything is FP16.

    `program` is `export_program(model, example)`. Whatever was at `path` is replaced.
    """
    import coremltools as ct

    nodes = source_nodes(program)
    source, handles = _with_handles(model, example, program, plan)
    chosen = ct.precision.FLOAT16 if plan is None else ct.transform.FP16ComputePrecision(op_selector=_Precisions(nodes, handles, plan).in_fp16)
    converted = ct.convert(
        source,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, config.minimum_deployment_target),
        compute_precision=chosen,
        outputs=[ct.TensorType(name="output", dtype=np.float32)],
        skip_model_load=True,
    )
    specification = converted.get_spec()
    given = str(specification.description.input[0].name)
    if given != "input":
        ct.utils.rename_feature(specification, given, "input")
        converted = ct.models.MLModel(specification, weights_dir=converted.weights_dir, skip_model_load=True)
    _save_named(converted, path, handles)


def _with_handles(model: nn.Module, example: Tensor, program: ExportedProgram, plan: PrecisionPlan | None) -> tuple[ExportedProgram, dict[int, str]]:
    """What coremltools converts, its calls marked with handles; handle -> name of the call in `program`."""
    import torch

    from mcompress.compress.quantize.program import reference_program

    names = {node.name for node in program.graph.nodes if node.op == "call_function"}
    marked = program if plan is None else reference_program(model, example, plan)
    for node in marked.graph.nodes:
        if node.name in names:
            node.meta["custom"] = {**node.meta.get("custom", {}), MARK: node.name}
    source = program if plan is None else torch.export.export(marked, (example,))
    source = source.run_decompositions({})
    handles = dict(enumerate(sorted(names), start=1))
    of_name = {name: handle for handle, name in handles.items()}
    for node in source.graph.nodes:
        name = (node.meta.get("custom") or {}).get(MARK)
        node.meta["debug_handle"] = of_name.get(name) if name is not None else None
    return source, handles


def _save_named(converted: ct.models.MLModel, path: Path, handles: Mapping[int, str]) -> None:
    """Save, then name the operations of the saved package; coremltools' own table of handles leaves the package."""
    import coremltools as ct

    if path.exists():
        shutil.rmtree(path)
    converted.save(str(path))
    table = path / HANDLES
    mapping = json.loads(table.read_text(encoding="utf-8"))["mapping"]
    table.unlink()
    names = {}
    for handle, places in mapping.items():
        for place in places if handle != "null" else ():
            kind, value = place[-1]["Operator"], place[-1]["Output"]
            if not is_conversion(kind):
                names[value] = handles[int(handle)]
    model_file = Path(ct.libmodelpackage.ModelPackage(str(path)).getRootModel().path())
    model = ct.utils.load_spec(str(model_file))
    rename(model, names)
    model_file.write_bytes(model.SerializeToString())


class _Precisions:
    """Says of every operation of coremltools' program whether it becomes FP16."""

    def __init__(self, nodes: Mapping[str, SourceNode], handles: Mapping[int, str], plan: PrecisionPlan) -> None:
        self._nodes, self._handles = nodes, handles
        self._planned = {operator.name: operator.precision for operator in plan.operators}
        self._merged: dict[str, list[str]] | None = None

    def in_fp16(self, operation: Operation) -> bool:
        """What `op_selector` wants. Constants follow the operations that read them."""
        if self._merged is None:
            self._merged = self._find_merged(operation)
        kind = operation.op_type
        if kind == "const":
            return False
        if kind == "quantize":
            return _fits(operation.scale) and (operation.x.op is None or is_conversion(operation.x.op.op_type) or self._computes_fp16(operation.x.op))
        if is_conversion(kind) and kind != "cast":  # dequantize and stored weights
            readers = operation.outputs[0].child_ops
            return _fits(operation.scale) and all(reader.op_type == "quantize" or self._computes_fp16(reader) for reader in readers)
        return self._computes_fp16(operation)

    def _computes_fp16(self, operation: Operation) -> bool:
        name = self._name_of(operation)
        if name is None:
            return True
        merged = [name, *(self._merged or {}).get(name, ())]
        planned = {self._planned.get(part) for whole in merged for part in (whole, *self._parts(whole))}
        if "fp32" in planned:
            return False
        return "int8" not in planned or all(_fits(scale) for scale in _scales_around(operation))

    def _parts(self, name: str) -> tuple[str, ...]:
        return self._nodes[name].parts if name in self._nodes else ()

    def _name_of(self, operation: Operation) -> str | None:
        from coremltools.converters.mil.mil.scope import ScopeSource

        found = operation.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) or [None]
        return self._handles.get(found[0])

    def _find_merged(self, operation: Operation) -> dict[str, list[str]]:
        """Operators that coremltools has merged into a later one: they have no operation of their own any more. By the name of the later one."""
        written = {self._name_of(other) for other in operation.enclosing_block.operations if not is_conversion(other.op_type)}
        merged: dict[str, list[str]] = {}
        for name, node in self._nodes.items():
            if node.in_plans and node.kind != "getitem" and name not in written:
                later = later_of(name, self._nodes, written)
                if later is not None:
                    merged.setdefault(later, []).append(name)
        return merged


def later_of(name: str, nodes: Mapping[str, SourceNode], written: set[str | None]) -> str | None:
    """The first operator behind `name` that is in `written`, along operators whose result has one reader; None if there is none."""
    while len(nodes[name].readers) == 1:
        name = nodes[name].readers[0]
        if name not in nodes:
            return None
        if name in written:
            return name
    return None


def _scales_around(operation: Operation) -> Iterator[object]:
    """The scales of the quantized tensors that an INT8 operation reads, and that its result becomes, through a ReLU between the two."""
    first = operation
    while first.op_type in INSIDE and first.x.op is not None and not is_conversion(first.x.op.op_type):
        first = first.x.op
    for inputs in first.inputs.values():
        for value in inputs if isinstance(inputs, list | tuple) else [inputs]:
            if value.op is not None and (value.op.op_type == "dequantize" or value.op.op_type.startswith("constexpr_affine")):
                yield value.op.scale
    readers = list(operation.outputs[0].child_ops)
    while len(readers) == 1 and readers[0].op_type in INSIDE:
        readers = list(readers[0].outputs[0].child_ops)
    yield from (reader.scale for reader in readers if reader.op_type == "quantize")


def _fits(scale: object) -> bool:
    """Whether FP16 tells the scales apart from their neighbours well enough; zero and infinity are far off as well."""
    value = np.asarray(getattr(scale, "val", None), dtype=np.float64)
    with np.errstate(over="ignore"):
        return bool(np.all(np.abs(value.astype(np.float16).astype(np.float64) - value) <= FP16_SCALE_ERROR * np.abs(value)))
