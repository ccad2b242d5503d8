"""How operators are named in a Core ML package that we write: after the operators of the exported program whose work they do.

An operator of the program that Core ML writes as three has the names `softmax__2`, `softmax__1`, `softmax`, counted from its result backwards. Values
have the name of the operator that gives them. So the file itself says what its operators stand for, whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcompress.errors import ExportError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from torch import fx
    from torch.export import ExportedProgram

CONVERSIONS = frozenset(("const", "cast", "quantize", "dequantize"))
_EARLIER = re.compile(r"(?P<name>.+)__\d+")


def is_conversion(kind: str) -> bool:
    """Whether a MIL operation of this type computes nothing: constants, stored weights, changes of precision."""
    return kind in CONVERSIONS or kind.startswith("constexpr_")


def source_of(name: str, known: Collection[str]) -> str | None:
    """The operator of the program after which the file's operator `name` is named; None if it is none of `known`."""
    if name in known:
        return name
    earlier = _EARLIER.fullmatch(name)
    return earlier["name"] if earlier is not None and earlier["name"] in known else None


@dataclass(frozen=True)
class SourceNode:
    """A call of the exported program, as far as files are compared with it."""

    name: str
    kind: str
    """`conv2d`, `add`, `getitem`."""
    sources: tuple[str, ...]
    """The calls and inputs that it reads; constants are none."""
    readers: tuple[str, ...]
    """The calls that read it; `output` where the program returns it."""
    parts: tuple[str, ...]
    """Of a call with several results: the calls that take one of them out, which is what a plan knows. Otherwise empty."""
    in_plans: bool
    """Whether a plan has an operator of this name: its result is one floating-point tensor."""


def source_nodes(program: ExportedProgram) -> dict[str, SourceNode]:
    """The calls of the program by name, in execution order, and its inputs (kind `input`)."""
    from mcompress.compress.quantize import kinds

    signature = program.graph_signature
    constants = {*signature.inputs_to_parameters, *signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}
    found = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in constants:
            found[node.name] = SourceNode(node.name, "input", (), _readers(node), (), in_plans=False)
        if node.op == "call_function":
            sources = tuple(source.name for source in node.all_input_nodes if source.name not in constants)
            parts = tuple(user.name for user in node.users if _takes_out(user))
            kind = "getitem" if _takes_out(node) else kinds.kind_of(node)
            found[node.name] = SourceNode(node.name, kind, sources, _readers(node), parts, in_plans=kinds.is_float_tensor(node))
    return found


def _readers(node: fx.Node) -> tuple[str, ...]:
    return tuple(user.name for user in node.users)


def _takes_out(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def rename(model: Message, names: Mapping[str, str]) -> None:
    """Name the operations of a Core ML model, and their first outputs, after `names`: value in the file -> operator of the program.

    The model's inputs and outputs keep their names. Raises `ExportError` when `names` has a value that the model has not.
    """
    (main,) = (function for name, function in model.mlProgram.functions.items() if name == "main")
    block = main.block_specializations[main.opset]
    fixed = {str(item.name) for item in (*model.description.input, *model.description.output)}
    operations = {str(operation.outputs[0].name): operation for operation in block.operations if operation.outputs}
    missing = [name for name in names if name not in operations]
    if missing:
        raise ExportError(f"coremltools says that it wrote '{missing[0]}', and the package has no such value; export again")
    wanted = _counted_backwards([(value, names[value]) for value in operations if value in names])
    taken = {*wanted.values(), *fixed}
    renamed = {value: name for value, name in wanted.items() if value not in fixed}
    for operation in block.operations:
        for output in operation.outputs:
            if output.name in taken and output.name not in wanted and output.name not in fixed:
                renamed[str(output.name)] = _free(str(output.name), taken)
    for value, operation in operations.items():
        if value in wanted:
            operation.attributes["name"].immediateValue.tensor.strings.values[0] = wanted[value]
    for operation in block.operations:
        _rename_values(operation, renamed)
    block.outputs[:] = [renamed.get(str(name), str(name)) for name in block.outputs]


def _counted_backwards(values: Sequence[tuple[str, str]]) -> dict[str, str]:
    seen: dict[str, int] = {}
    found = {}
    for value, name in reversed(values):
        count = seen.get(name, 0)
        seen[name] = count + 1
        found[value] = f"{name}__{count}" if count else name
    return found


def _free(name: str, taken: set[str]) -> str:
    number = 0
    while f"{name}_unnamed{number}" in taken:
        number += 1
    taken.add(f"{name}_unnamed{number}")
    return f"{name}_unnamed{number}"


def _rename_values(operation: Message, renamed: Mapping[str, str]) -> None:
    for output in operation.outputs:
        output.name = renamed.get(output.name, output.name)
    for argument in operation.inputs.values():
        for item in argument.arguments:
            if item.WhichOneof("binding") == "name":
                item.name = renamed.get(item.name, item.name)
    for inner in _inner(operation):
        _rename_values(inner, renamed)


def _inner(operation: Message) -> Iterable[Message]:
    return [inner for block in operation.blocks for inner in block.operations]
