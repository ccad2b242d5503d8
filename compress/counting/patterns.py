"""What is several operators in one place and one in another, made one: the forms that runtimes recognise before they execute.

- `x * sigmoid(x)` is SiLU, `x * hardsigmoid(x)` is hard swish, and x/2 * (1 + erf(x / sqrt 2)) is GELU: many opsets of ONNX have no names for them
  (ONNX Runtime fuses the last, GeluFusion). LiteRT executes SiLU as two operators; `mcompress.targets.operators.FUSES` says which runtime fuses what.
- product, scale, mask, softmax, product is attention, whoever wrote it out (Core ML's and ExecuTorch's SDPA, ONNX Runtime's attention fusions).
- statistics and arithmetic are a normalization (`mcompress.compress.counting.normalizations`).
- zeros around the input of a convolution are its padding (XNNPACK's subgraph fusion, ONNX Runtime's PadFusion).
"""

from __future__ import annotations

from dataclasses import replace

from mcompress.compress.counting.links import Links, drop
from mcompress.compress.counting.normalizations import normalizations
from mcompress.compress.counting.steps import WEIGHTED, Step, Trace

_GATES = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
"""Function -> what a tensor times that function of itself is."""
_BEFORE_SOFTMAX = frozenset(("mul", "div", "add", "sub", "masked_fill", "where"))
"""What may stand between the product of queries and keys and the softmax over it: a scale, a mask, a position bias."""
_SOFTMAX = frozenset(("_softmax", "_safe_softmax"))
_AFTER_ERF = 3


def recognise(trace: Trace) -> None:
    """Rewrite the steps of `trace` in place."""
    operations = {step.operation for step in trace.steps}
    if operations & _GATES.keys():
        _gates(trace)
    if "erf" in operations:
        _gelu(trace)
    if operations & _SOFTMAX:
        _attention(trace)
    normalizations(trace)
    if any(step.pads_with_zeros for step in trace.steps):
        _padding(trace)


def _activation(step: Step, operation: str, reads: dict[int, int]) -> Step:
    return replace(step, operation=operation, kind="activation", reads=reads, foldable=False, weight_elements=0, input_shape=step.output_shape)


def _gates(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        after = links.only_reader(index) if step.operation in _GATES and len(step.reads) == 1 else None
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
        convolution = trace.steps[after]
        trace.steps[after] = replace(
            convolution, reads=dict(step.reads), input_shape=step.input_shape, absorbed=(*convolution.absorbed, step.operation)
        )
        dropped.add(index)
    drop(trace, dropped)
