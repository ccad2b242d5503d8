"""Why the sizes of a tensor of an ONNX graph are not known, and what helps: said to people."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.export.tables.onnx_attributes import OWN, captured

if TYPE_CHECKING:
    import onnx


def openness(path: Path, graph: onnx.GraphProto, sized: Collection[str], name: str) -> str:
    """Why tensor `name` of the file has no sizes; `sized` are the tensors that have."""
    producers = {one: node for node in graph.node for one in node.output}
    foreign = _foreign(producers, sized, name)
    if foreign is not None:
        what = f"{foreign.op_type} of the domain '{foreign.domain}'" + (f" ({foreign.name})" if foreign.name else "")
        open_result = next(one for one in foreign.output if one and one not in sized)
        return (
            f"{path} has the operator {what}, whose results ONNX cannot size; add the sizes of tensor '{open_result}' to its value_info "
            f"(onnx.helper.make_tensor_value_info)"
        )
    made = producers.get(name)
    where = f", which {made.name or 'a node'} ({made.op_type}) writes" if made is not None else ""
    advice = "simplify it with onnxsim, or export it with torch.onnx.export(..., dynamo=True)"
    return f"the sizes of tensor '{name}' in {path}{where}, depend on numbers that only an execution has; {advice}"


def _foreign(producers: dict[str, onnx.NodeProto], sized: Collection[str], name: str) -> onnx.NodeProto | None:
    """The first operator that ONNX does not know among those whose missing sizes leave those of `name` open."""
    left, seen = [name], set[str]()
    found = None
    while left:
        node = producers.get(left.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.domain not in OWN:
            found = node
        left += [one for one in (*node.input, *captured(node)) if one and one not in sized]
    return found
