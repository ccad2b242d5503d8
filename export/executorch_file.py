"""A .pte file as one graph: the nodes of every XNNPACK delegate inside it and the portable kernels between them, with the tensors that connect them.

Read from the file alone: its instructions, the flatbuffer inside each delegate's payload, and the constants that it stores.
"""

from __future__ import annotations

import itertools
import json
import mmap
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

from mcompress.errors import ExportError

HEADER = {"offset": slice(10, 14), "size": slice(14, 18)}
"""Where the flatbuffer lies inside XNNPACK's payload (XNNHeader in executorch/backends/xnnpack/serialization)."""
NO_VALUE = 0xFFFFFFFF
FORWARD, INPUT_NAMES = "forward", "input_names"
"""The method that computes, and the one that says what its inputs are called, as one text with commas between the names."""
INPUTS = ("input_id", "input1_id", "input2_id", "input3_id", "input4_id", "input5_id", "query_id", "key_id", "value_id", "scale_id", "mask_id")
TYPES = {"fp32": "fp32", "fp16": "fp16", "qint8": "int8", "qcint8": "int8", "qint32": "int32", "qcint32": "int32"}
SCALARS = {"FLOAT": "fp32", "HALF": "fp16", "CHAR": "int8"}
CONVERSIONS = ("quantize", "_to_dim_order_copy", "_clone_dim_order", "aten::clone", "aten::_to_copy", "XNNConvert", "XNNCopy")

Content = bytes | memoryview
"""Of a constant: a part of the file, which is mapped and not read."""


class _Value(TypedDict):
    xvalue_union_type: str
    xvalue_union: dict[str, object]


class _Node(TypedDict, total=False):
    xnode_union_type: str
    xnode_union: dict[str, object]
    output_min_max: dict[str, float]


class _Constant(TypedDict):
    named_key: str


class _Graph(TypedDict):
    xnodes: list[_Node]
    xvalues: list[_Value]
    constant_data: list[_Constant]


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file. `type` is int8, fp16, fp32, int32, or the file's own word for others."""

    type: str
    shape: tuple[int, ...]
    content: Content | None = None
    """The bytes of a constant; None for what is computed."""


@dataclass(frozen=True, eq=False)
class FileNode:
    """One node of a delegate, or one portable kernel. Tensors are numbered through the whole file."""

    name: str
    kind: str
    unit: str
    inputs: tuple[int, ...]
    output: int
    weight: int | None = None
    clips: bool = False
    """Whether an activation is fused into it."""
    attributes: dict[str, object] = field(default_factory=dict)

    @property
    def converts(self) -> bool:
        """Whether it only changes a tensor's type."""
        return any(word in self.kind for word in CONVERSIONS)


@dataclass(frozen=True)
class FileGraph:
    """All of a file, in execution order."""

    nodes: tuple[FileNode, ...]
    tensors: dict[int, FileTensor]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...] = ()


def input_names(stated: str, count: int) -> tuple[str, ...]:
    """The names of a file's `count` inputs; `stated` is what its method `INPUT_NAMES` says, empty for a file without it. Raises `ExportError`."""
    names = tuple(stated.split(",")) if stated else ("input",) if count == 1 else tuple(f"input_{index}" for index in range(count))
    if len(names) != count:
        raise ExportError(f"the file takes {count} inputs and names {len(names)}: {stated}. Export it again.")
    return names


def read(path: Path) -> FileGraph:
    """Read the file. Raises `ExportError` for one without a `forward` method of tensors."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall, String, Tensor, TensorList

    with path.open("rb") as stream:
        whole = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))  # large networks are larger than what is left of memory
    stored = deserialize_pte_binary(whole)
    plans = {plan.name: plan for plan in stored.program.execution_plan}
    if FORWARD not in plans:
        raise ExportError(f"{path.name} has no method named '{FORWARD}'. Export it again.")
    plan = plans[FORWARD]
    said = [value.val for value in plans[INPUT_NAMES].values] if INPUT_NAMES in plans else []
    constants = _constants(stored.named_data)
    nodes: list[FileNode] = []
    tensors: dict[int, FileTensor] = {}
    members: dict[int, tuple[int, ...]] = {}
    for index, value in enumerate(plan.values):
        if isinstance(value.val, Tensor):
            name = value.val.scalar_type.name
            tensors[index] = FileTensor(SCALARS.get(name, name.lower()), tuple(value.val.sizes), b"" if value.val.data_buffer_idx else None)
        elif isinstance(value.val, TensorList):
            members[index] = tuple(value.val.items)
    free = itertools.count(len(plan.values))
    instructions = [item.instr_args for chain in plan.chains for item in chain.instructions]
    for number, instruction in enumerate(instructions):
        if isinstance(instruction, KernelCall):
            kind = plan.operators[instruction.op_index].name
            *given, last = instruction.args
            made = [index for index in members.get(last, (last,)) if index in tensors]  # what it returns; of several tensors the first is the result
            used = [index for item in given for index in members.get(item, (item,)) if index in tensors and index not in made]
            if made:
                nodes.append(FileNode(f"{number} {kind}", kind, "portable", tuple(used), made[0]))
        elif isinstance(instruction, DelegateCall):
            delegate = plan.delegates[instruction.delegate_index]
            payload = bytes(stored.program.backend_delegate_data[delegate.processed.index].data)
            nodes += _delegate_nodes(_xnnpack_graph(payload), number, list(instruction.args), constants, tensors, free)
    names = input_names(next((value.string_val for value in said if isinstance(value, String)), ""), len(plan.inputs))
    return FileGraph(tuple(nodes), tensors, tuple(plan.inputs), tuple(plan.outputs), names)


def _constants(named: object) -> dict[str, Content]:
    """Key -> bytes of every constant of the file (executorch's NamedDataStoreOutput)."""
    buffers, entries = getattr(named, "buffers", []), getattr(named, "pte_data", {})
    return {key: buffers[entry.buffer_index] for key, entry in entries.items()}


def _delegate_nodes(
    graph: _Graph, call: int, outside: Sequence[int], constants: dict[str, Content], tensors: dict[int, FileTensor], free: Iterator[int]
) -> Iterator[FileNode]:
    numbers: dict[int, int] = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = cast("dict[str, object]", union.get("tensor_value", union))
        own, external = _whole(tensor["id_out"]), _whole(tensor["external_id"])
        numbers[own] = outside[external] if external != NO_VALUE else next(free)
        if external == NO_VALUE:
            buffer = _whole(tensor["constant_buffer_idx"])
            content = constants.get(graph["constant_data"][buffer]["named_key"], b"") if buffer else None
            name = str(tensor["datatype"]).removeprefix("xnn_datatype_")
            tensors[numbers[own]] = FileTensor(TYPES.get(name, name), tuple(cast("list[int]", tensor["dims"])), content)
    for position, node in enumerate(graph["xnodes"]):
        kind, union = node["xnode_union_type"], node["xnode_union"]
        joined = int(kind[-1]) if kind.startswith("XNNConcatenate") else len(INPUTS)
        inputs = [numbers[_whole(union[key])] for key in INPUTS if key in union and _whole(union[key]) in numbers][:joined]
        weight = _whole(union["filter_id"]) if "filter_id" in union else None
        limits = node.get("output_min_max")
        clips = limits is not None and (abs(limits["output_min"]) != float("inf") or abs(limits["output_max"]) != float("inf"))
        output = numbers[_whole(union.get("output_id", union.get("output_value_id")))]
        yield FileNode(
            f"{call}.{position} {kind}",
            kind,
            "xnnpack",
            tuple(inputs),
            output,
            None if weight is None else numbers[weight],
            clips and kind != "XNNClamp",
            dict(union),
        )


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise ExportError(f"a delegate inside the file has {value!r} where a number of a tensor must stand. Export it again.")
    return value


def _xnnpack_graph(payload: bytes) -> _Graph:
    """The flatbuffer inside the delegate's payload, through the flatc that ships with ExecuTorch."""
    from executorch.backends.xnnpack import serialization
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    offset, size = (int.from_bytes(payload[part], "little") for part in HEADER.values())
    with tempfile.TemporaryDirectory() as folder:
        schema, data = Path(folder) / "schema.fbs", Path(folder) / "data.bin"
        schema.write_bytes((Path(next(iter(serialization.__path__))) / "schema.fbs").read_bytes())
        data.write_bytes(payload[offset : offset + size])
        _flatc_decompile(folder, str(schema), str(data), ["--defaults-json"])
        text = (Path(folder) / "data.json").read_text(encoding="utf-8")
    # flatc writes infinities, which are the open bounds of activations, in C's spelling.
    return cast("_Graph", json.loads(re.sub(r"(:\s*-?)inf\b", r"\1Infinity", text)))
