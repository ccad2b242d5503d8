"""What an exported graph need not hold: operators that change nothing, checks of types, and what is computed of no input at all.

diffusers' and transformers' networks have all three: they divide by a factor of 1, cast to the type that a tensor has, and make their tables of
frequencies, positions and masks anew in every call. None of it is work for a phone, and every runtime would take it apart in a way of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

aten = torch.ops.aten
CASTS = {
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default, aten._to_copy.default,
}  # fmt: skip
SHAPING = {aten.expand.default, aten.view.default, aten.reshape.default}
NEUTRAL: dict[object, float] = {aten.mul.Tensor: 1, aten.div.Tensor: 1, aten.add.Tensor: 0, aten.sub.Tensor: 0}
"""Operator -> the second operand that leaves the first as it is."""
CHECKS = {aten._assert_tensor_metadata.default}
"""They compare a tensor with the type that it was exported with."""
ATTENTION = aten.scaled_dot_product_attention.default
MASK = 3
"""Position of attention's mask among its arguments."""
HIDDEN = -32768.0
"""What is added to the score of a pair that must not attend: its weight is 0 in half precision and in FP32, and the sum is finite in both."""
LARGEST_CONSTANT = 2**22
"""Elements. What is larger is cheaper to compute than to store."""


def changes_nothing(node: fx.Node) -> bool:
    """Whether the node gives its first argument as it is: same values, type and shape."""
    source = node.args[0] if node.args else None
    if node.op != "call_function" or not isinstance(source, fx.Node):
        return False
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or (before.shape, before.dtype) != (after.shape, after.dtype):
        return False
    if node.target in NEUTRAL:
        other = node.args[1]
        return isinstance(other, int | float) and other == NEUTRAL[node.target]
    return node.target in CASTS | SHAPING


def is_tidy(graph: fx.Graph) -> bool:
    """Whether there is nothing for `tidy` to do."""
    return not any(changes_nothing(node) for node in graph.nodes) and not _of_nothing(graph)


def tidy(module: fx.GraphModule) -> None:
    """Take out of `module`, which changes nothing in place, what `is_tidy` finds; what is computed of nothing becomes buffers. In place.

    Masks of attention that then are constants of yes and no become numbers that are added to the scores, as runtimes have it.
    """
    graph = module.graph
    drop_checks(graph)
    for node in list(graph.nodes):
        if changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    found = _of_nothing(graph)
    values = _computed(module, found)
    for node in found:
        if any(user not in found for user in node.users):
            _becomes_constant(module, node, values[node])
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target == ATTENTION:
            _add_mask(module, node)
    graph.eliminate_dead_code()
    _drop_unread(module)
    module.recompile()


def drop_checks(graph: fx.Graph) -> None:
    """Take out the checks of types, in place."""
    for node in list(graph.nodes):
        if node.target in CHECKS:
            graph.erase_node(node)


def _of_nothing(graph: fx.Graph) -> list[fx.Node]:
    """Nodes, in execution order, that hang on no input and no parameter: tables that are made of numbers, and rows of a table that are always the
    same. Nodes whose result is changed in place later are none.
    """
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not isinstance(value, Tensor):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags or value.numel() > LARGEST_CONSTANT:
            continue
        sources = node.all_input_nodes[1:] if node.target == aten.embedding.default else node.all_input_nodes
        if all(source in found or _is_number(source) for source in sources):
            found[node] = None
    if any(isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable for node in graph.nodes):
        return []
    return list(found)


def _is_number(node: fx.Node) -> bool:
    """Whether the node is a constant that no training changes: whole numbers, yes and no."""
    value = node.meta.get("val")
    return node.op == "get_attr" and isinstance(value, Tensor) and not value.is_floating_point()


def _computed(module: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, Tensor]:
    """What the nodes, which follow one another, give."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        for node in nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in interpreter.env:
                    interpreter.env[source] = interpreter.run_node(source)
            interpreter.env[node] = interpreter.run_node(node)
    return {node: interpreter.env[node] for node in nodes}


def _becomes_constant(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    name = f"table_{node.name}"
    while hasattr(module, name):
        name += "_"
    module.register_buffer(name, value.detach().clone().contiguous())
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(constant)


def _drop_unread(module: fx.GraphModule) -> None:
    """Take out the constants that nothing reads any more."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))]:
        if name not in read:
            owner, _, own = name.rpartition(".")
            delattr(module.get_submodule(owner), own)


def _add_mask(module: fx.GraphModule, node: fx.Node) -> None:
    """Give attention, whose mask is a constant of yes and no, the numbers that mean the same, at the scores' own type."""
    mask = node.args[MASK] if len(node.args) > MASK else node.kwargs.get("attn_mask")
    if not isinstance(mask, fx.Node) or mask.op != "get_attr":
        return
    allowed = module.get_buffer(str(mask.target)) if str(mask.target) in dict(module.named_buffers()) else None
    if allowed is None or allowed.dtype != torch.bool or not bool(allowed.any(-1).all()):
        return  # a row without any pair gives 0 behind yes and no, and the mean behind numbers
    numbers = torch.zeros(allowed.shape, dtype=node.meta["val"].dtype).masked_fill(~allowed, HIDDEN)
    with module.graph.inserting_before(node):
        made = module.graph.create_node("get_attr", f"{mask.target}_added")
    module.register_buffer(str(made.target), numbers)
    made.meta["val"] = numbers
    node.replace_input_with(mask, made)
