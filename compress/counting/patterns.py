"""What is several operators in one place and one in another, made one: the forms that runtimes recognise before they execute.

- `x * sigmoid(x)` is SiLU, `x * hardsigmoid(x)` is hard swish, and x/2 * (1 + erf(x / sqrt 2)) is GELU: many opsets of ONNX have no names for them
  (ONNX Runtime fuses the last, GeluFusion, and its approximation with tanh, FastGeluFusion). LiteRT executes SiLU as two operators;
  `mcompress.targets.operators.FUSES` says which runtime fuses what.
- a lower and an upper limit are one clamp.
- exp(x - max(x)) over its own sum is softmax, which LiteRT has for the last axis only.
- product, scale, mask, softmax, product is attention, whoever wrote it out (Core ML's and ExecuTorch's SDPA, ONNX Runtime's attention fusions).
- statistics and arithmetic are a normalization (`mcompress.compress.counting.normalizations`).
- zeros around the input of a convolution are its padding (XNNPACK's subgraph fusion, ONNX Runtime's PadFusion).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from mcompress.compress.counting.links import Links, drop
from mcompress.compress.counting.normalizations import normalizations
from mcompress.compress.counting.steps import WEIGHTED, Step, Trace
from mcompress.targets.operators import CLAMPS

_GATES = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
"""Function -> what a tensor times that function of itself is."""
_BEFORE_SOFTMAX = frozenset(("mul", "div", "add", "sub", "masked_fill", "where"))
"""What may stand between the product of queries and keys and the softmax over it: a scale, a mask, a position bias."""
_SOFTMAX = frozenset(("_softmax", "_safe_softmax"))
_AFTER_ERF = 3
_LONGEST_POLYNOMIAL = 8
"""Steps; x + a x^3 times b is five or six."""


def recognise(trace: Trace) -> None:
    """Rewrite the steps of `trace` in place."""
    operations = {step.operation for step in trace.steps}
    if operations & _GATES.keys():
        _gates(trace)
    if "erf" in operations:
        _gelu(trace)
    if "tanh" in operations:
        _gelu_of_tanh(trace)
    if {"exp", "amax"} <= operations:
        _softmax(trace)
    if "clamp" in operations:
        _clamps(trace)
    if any(step.operation in _SOFTMAX for step in trace.steps):
        _attention(trace)
    normalizations(trace)
    if any(step.pads_with_zeros for step in trace.steps):
        _padding(trace)


def _activation(step: Step, operation: str, reads: dict[int, int]) -> Step:
    return replace(step, operation=operation, kind="activation", reads=reads, foldable=False, weight_elements=0, input_shape=step.output_shape)


def _gates(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        # Of a part of a value the gate may be on the other part (GLU).
        whole = all(elements == trace.elements_of[trace.buffer_of[value]] for value, elements in step.reads.items())
        after = links.only_reader(index) if step.operation in _GATES and len(step.reads) == 1 and whole else None
        if after is not None and trace.steps[after].operation == "mul" and set(trace.steps[after].reads) == {*step.reads, *step.writes}:
            trace.steps[after] = _activation(trace.steps[after], _GATES[step.operation], dict(step.reads))
            dropped.add(index)
    drop(trace, dropped)


def _gelu(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        scaled = links.before(index) if step.operation == "erf" else None
        if scaled is None or trace.steps[scaled].operation not in ("div", "mul") or len(trace.steps[scaled].reads) != 1:
            continue
        (source,) = trace.steps[scaled].reads
        chain, halves, multiplied, current = [scaled, index], set[int](), False, index
        for _ in range(_AFTER_ERF):
            after = links.only_reader(current)
            if after is None or trace.steps[after].operation not in ("add", "mul"):
                break
            others = set(trace.steps[after].reads) - set(trace.steps[current].writes)
            halved = {links.producer.get(value, -1) for value in others - {source}}
            if any(half < 0 or trace.steps[half].operation != "mul" or set(trace.steps[half].reads) != {source} for half in halved):
                break
            multiplied, current = multiplied or bool(others), after
            halves |= halved
            chain.append(after)
        if multiplied:
            trace.steps[chain[-1]] = _activation(trace.steps[chain[-1]], "gelu", {source: trace.steps[scaled].reads[source]})
            dropped |= {*chain[:-1], *halves}
    drop(trace, dropped)


def _gelu_of_tanh(trace: Trace) -> None:
    """x/2 * (1 + tanh(b (x + a x^3))), in whatever order its powers and factors are written."""
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        shifted = links.only_reader(index) if step.operation == "tanh" else None
        if shifted is None or trace.steps[shifted].operation != "add" or len(trace.steps[shifted].reads) != 1:
            continue
        after = [shifted, *_scaled(links, shifted)]
        product = links.only_reader(after[-1])
        if product is None or trace.steps[product].operation != "mul":
            continue
        others = set(trace.steps[product].reads) - set(trace.steps[after[-1]].writes)
        source = next(iter(others), -1)
        half = links.producer.get(source)
        inside = _polynomial(links, index, source)
        if inside is None and half is not None and trace.steps[half].operation == "mul" and len(trace.steps[half].reads) == 1:
            source = next(iter(trace.steps[half].reads))
            inside = _polynomial(links, index, source)
            inside = inside | {half} if inside is not None else None
        if inside is None:
            continue
        inside |= {index, product, *after}
        if half not in inside and len(after) == 1:
            inside.update(_scaled(links, product))
        end = max(inside)
        if links.are_private([links.result(i) for i in inside if i != end], inside):
            trace.steps[end] = _activation(trace.steps[end], "gelu", {source: step.writes[links.result(index)]})
            dropped |= inside - {end}
    drop(trace, dropped)


def _scaled(links: Links, index: int) -> list[int]:
    """The step that multiplies the result with a number, if that is all that happens to it."""
    after = links.only_reader(index)
    if after is None or links.steps[after].operation != "mul":
        return []
    return [after] if links.steps[after].foldable and not links.steps[after].weight_elements else []


def _polynomial(links: Links, tanh: int, source: int) -> set[int] | None:
    """The steps that make what `tanh` reads of `source` alone, a power of it among them; None if it is made otherwise."""
    left, inside, powers = set(links.steps[tanh].reads), set[int](), 0
    while left:
        value = left.pop()
        made = links.producer.get(value)
        if value == source:
            continue
        if made is None or links.steps[made].operation not in ("mul", "add", "pow") or len(inside) > _LONGEST_POLYNOMIAL:
            return None
        inside.add(made)
        powers += links.steps[made].operation == "pow" or (links.steps[made].operation == "mul" and not links.steps[made].foldable)
        left |= set(links.steps[made].reads)
    return inside if powers else None


def _softmax(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        apart = links.before(index) if step.operation == "exp" else None
        if apart is None or trace.steps[apart].operation != "sub":
            continue
        for source, top in itertools.permutations(trace.steps[apart].reads, 2):
            above = _made_by(links, top, "amax", source)
            readers = links.readers.get(links.result(index), [])
            total = next((i for i in readers if trace.steps[i].operation == "sum"), None)
            result = links.only_reader(total) if total is not None else None
            if above is None or total is None or result is None or trace.steps[result].operation != "div" or set(readers) != {total, result}:
                continue
            inside = {*above, apart, index, total}
            if links.are_private([links.result(i) for i in inside], {*inside, result}):
                shape = trace.steps[apart].output_shape
                axis = next((i for i, sizes in enumerate(zip(shape, trace.steps[total].output_shape, strict=False)) if sizes[0] != sizes[1]), None)
                reads = {source: trace.steps[apart].reads[source]}
                trace.steps[result] = replace(
                    trace.steps[result], operation="_softmax", kind="normalization", reads=reads, input_shape=shape, foldable=False, axis=axis
                )
                dropped |= inside
    drop(trace, dropped)


def _made_by(links: Links, value: int, operation: str, source: int) -> set[int] | None:
    """The steps from `source` to `value`: `operation`, and perhaps a limit on its result."""
    made = links.producer.get(value)
    inside = set[int]()
    while made is not None and links.steps[made].operation == "clamp":
        inside.add(made)
        made = links.before(made)
    if made is None or links.steps[made].operation != operation or set(links.steps[made].reads) != {source}:
        return None
    return {made, *inside}


def _clamps(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        before = links.before(index) if step.operation == "clamp" else None
        if before is not None and trace.steps[before].operation in CLAMPS and trace.steps[before].precision == step.precision:
            trace.steps[index] = replace(step, reads=dict(trace.steps[before].reads), input_shape=trace.steps[before].input_shape)
            dropped.add(before)
    drop(trace, dropped)


def _attention(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        if step.operation not in _SOFTMAX:
            continue
        last, chain = links.only_reader(index), [index]
        while (before := links.before(chain[0])) is not None:
            chain.insert(0, before)
            if trace.steps[before].operation not in _BEFORE_SOFTMAX:
                break
        first = trace.steps[chain[0]]
        if last is None or not _is_product(first) or not _is_product(trace.steps[last]):
            continue
        chain.append(last)
        inner = {value for i in chain[:-1] for value in trace.steps[i].writes}
        reads = {value: elements for i in chain for value, elements in trace.steps[i].reads.items() if value not in inner}
        for value in first.reads.keys() & trace.steps[last].reads.keys():
            # Keys and values may be parts of one buffer: both are read.
            reads[value] = min(first.reads[value] + trace.steps[last].reads[value], trace.elements_of[trace.buffer_of[value]])
        work = first.macs + trace.steps[last].macs
        trace.steps[last] = replace(
            trace.steps[last],
            operation="attention",
            kind="attention",
            reads=reads,
            input_shape=first.input_shape,
            macs=work,
            macs_output_convention=work,
            weight_elements=sum(trace.steps[i].weight_elements for i in chain),
            absorbed=tuple(trace.steps[i].operation for i in chain[:-1]),
            scratch_elements=2 * math.prod(first.output_shape),
        )
        dropped.update(chain[:-1])
    drop(trace, dropped)
    _scales_into_attention(trace)


def _is_product(step: Step) -> bool:
    return step.kind == "matmul" and not step.weight_elements and len(step.input_shape) > 2


def _scales_into_attention(trace: Trace) -> None:
    """A factor on queries or keys is the scale of their product: wherever it is written, it costs no pass over memory."""
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        after = links.only_reader(index) if step.operation in ("mul", "div") and len(step.reads) == 1 and not step.weight_elements else None
        if after is None or trace.steps[after].kind != "attention":
            continue
        attention = trace.steps[after]
        (source, elements), (result,) = next(iter(step.reads.items())), step.writes
        total = attention.reads.pop(result) + attention.reads.get(source, 0)
        attention.reads[source] = min(max(total, elements), trace.elements_of[trace.buffer_of[source]])
        dropped.add(index)
    drop(trace, dropped)


def _padding(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        after = links.only_reader(index) if step.pads_with_zeros and len(step.reads) == 1 else None
        if after is None or trace.steps[after].kind not in WEIGHTED - {"matmul", "transposed_convolution"}:
            continue
        # A convolution has padding around its positions only; one that is negative cuts them off.
        cuts = any(padded < given for given, padded in zip(step.input_shape, step.output_shape, strict=False))
        if cuts or step.input_shape[:2] != step.output_shape[:2]:
            continue
        convolution = trace.steps[after]
        trace.steps[after] = replace(
            convolution, reads=dict(step.reads), input_shape=step.input_shape, absorbed=(*convolution.absorbed, step.operation)
        )
        dropped.add(index)
    drop(trace, dropped)
