"""From the network and its plan to a saved Core ML package in which every operator has its planned precision and carries the program's name.

coremltools takes the precision of an operation from `coreml_precisions`. Which operator of the program it stands for follows from the `debug_handle`
that coremltools copies from the exported program through all of its passes. Names are written into the package once it is saved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcompress.export.backend import OUTPUT
from mcompress.export.coreml_names import is_conversion, rename, source_nodes
from mcompress.export.coreml_precisions import Precisions, register_split
from mcompress.targets.exports import CoreMLConfig

if TYPE_CHECKING:
    from coremltools.models import MLModel
    from google.protobuf.message import Message
    from torch import Tensor, fx, nn
    from torch.export import ExportedProgram

    from mcompress.compress.quantize.plan import PrecisionPlan

MARK = "mcompress"
"""Key of an operator's name among the metadata (`custom`) that torch.export carries along when it traces again."""
HANDLES = "executorch_debug_handle_mapping.json"
"""Where coremltools writes which handle each operation of the package has."""


def save_package(
    config: CoreMLConfig, model: nn.Module, examples: Mapping[str, Tensor], program: ExportedProgram, plan: PrecisionPlan | None, path: Path
) -> None:
    """Write `path` with the inputs `examples` and the output `output`, all float32. Without a plan everything is FP16.

    `program` is `export_program(model, *examples.values())`. Whatever was at `path` is replaced.
    """
    import coremltools as ct

    source, handles = _with_handles(model, tuple(examples.values()), program, plan)
    precision, passes = ct.precision.FLOAT16, ct.PassPipeline.DEFAULT
    if plan is not None:
        chosen = Precisions(source_nodes(program), handles, plan)
        precision = ct.transform.FP16ComputePrecision(op_selector=chosen.in_fp16)
        passes.insert_pass(passes.passes.index("common::add_fp16_cast"), register_split(chosen))
    converted = ct.convert(
        source,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, config.minimum_deployment_target),
        compute_precision=precision,
        pass_pipeline=passes,
        outputs=[ct.TensorType(name=OUTPUT, dtype=np.float32)],
        skip_model_load=True,
    )
    _save_named(converted, path, handles, list(examples))


def _with_handles(
    model: nn.Module, examples: tuple[Tensor, ...], program: ExportedProgram, plan: PrecisionPlan | None
) -> tuple[ExportedProgram, dict[int, str]]:
    """What coremltools converts, its calls marked with handles; handle -> name of the call in `program`."""
    import torch

    from mcompress.compress.quantize.program import reference_program

    names = {node.name for node in program.graph.nodes if node.op == "call_function"}
    if plan is None:
        _mark(program.graph, names)
        source = program.run_decompositions({})
    else:
        reference = reference_program(model, examples, plan)
        _mark(reference.graph, names)
        source = torch.export.export(reference, examples).run_decompositions({})
    handles = dict(enumerate(sorted(names), start=1))
    of_name = {name: handle for handle, name in handles.items()}
    for node in source.graph.nodes:
        name = (node.meta.get("custom") or {}).get(MARK)
        node.meta["debug_handle"] = of_name.get(name) if name is not None else None
    return source, handles


def _mark(graph: fx.Graph, names: Collection[str]) -> None:
    """Write its name to every call of `names` where tracing again keeps it; names themselves may change then (`relu_` becomes `relu`)."""
    for node in graph.nodes:
        if node.name in names:
            node.meta["custom"] = {**node.meta.get("custom", {}), MARK: node.name}


def _save_named(converted: MLModel, path: Path, handles: Mapping[int, str], inputs: Sequence[str]) -> None:
    """Save, then name the inputs and the operations of the saved package; coremltools' own table of handles leaves the package."""
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
    _name_inputs(model, inputs)
    rename(model, names)
    model_file.write_bytes(model.SerializeToString())


def _name_inputs(model: Message, inputs: Sequence[str]) -> None:
    """Name the inputs of a Core ML model, which are in the order of the network's arguments; two may have each other's names."""
    import coremltools as ct

    given = [str(item.name) for item in model.description.input]
    changed = {old: new for old, new in zip(given, inputs, strict=False) if old != new}
    on_the_way = {old: f"{MARK}_input_{number}" for number, old in enumerate(changed)}
    for names in (on_the_way, {on_the_way[old]: new for old, new in changed.items()}):
        for old, new in names.items():
            ct.utils.rename_feature(model, old, new, rename_outputs=False)
