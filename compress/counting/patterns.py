"""What is several operators in one place and one in another, made one: the forms that runtimes recognise before they execute.

- `x * sigmoid(x)` is SiLU, and x/2 * (1 + erf(x / sqrt 2)) is GELU: ONNX has no name for them in the opsets that are exported (ONNX Runtime fuses the
  second, GeluFusion). LiteRT executes SiLU as two operators; `mcompress.targets.operators.FUSES` says which runtime fuses what.
- product, scale, mask, softmax, product is attention, whoever wrote it out (Core ML's and ExecuTorch's SDPA, ONNX Runtime's attention fusions).
- zeros around the input of a convolution are its padding (XNNPACK's subgraph fusion, ONNX Runtime's PadFusion).
"""

from __future__ import annotations

from dataclasses import replace

from mcompress.compress.counting.steps import WEIGHTED, Step, Trace

_BEFORE_SOFTMAX = frozenset(("mul", "div", "add", "sub", "masked_fill", "where"))
"""What may stand between the product of queries and keys and the softmax over it: a scale, a mask, a position bias."""
_SOFTMAX = frozenset(("_softmax", "_safe_softmax"))
_AFTER_ERF = 3


class _Graph:
    """Who writes and who reads each value."""

    def __init__(self, trace: Trace) -> None:
        self.steps = trace.steps
        self.counted = trace.readers()
        self.producer: dict[int, int] = {}
        self.reader: dict[int, int] = {}
        for index, step in enumerate(trace.steps):
            for value in step.reads:
                self.reader[value] = index
            for value in step.writes:
                self.producer[value] = index

    def only_reader(self, index: int) -> int | None:
        """The one step that reads the result of a step, if there is exactly one and the result does not leave the network."""
        result = next(iter(self.steps[index].writes))
        return self.reader.get(result) if self.counted.get(result) == 1 else None

    def before(self, index: int) -> int | None:
        """The step whose result only this step reads, through its first operand."""
        made = self.producer.get(next(iter(self.steps[index].reads)))
        return made if made is not None and self.only_reader(made) == index else None


def recognise(trace: Trace) -> None:
    """Rewrite the steps of `trace` in place."""
    operations = {step.operation for step in trace.steps}
    if "sigmoid" in operations:
        _silu(trace)
    if "erf" in operations:
        _gelu(trace)
    if operations & _SOFTMAX:
        _attention(trace)
    if any(step.pads_with_zeros for step in trace.steps):
        _padding(trace)


def _drop(trace: Trace, indices: set[int]) -> None:
    trace.steps = [step for index, step in enumerate(trace.steps) if index not in indices]


def _activation(step: Step, operation: str, reads: dict[int, int]) -> Step:
    return replace(step, operation=operation, kind="activation", reads=reads, foldable=False, weight_elements=0, input_shape=step.output_shape)


def _silu(trace: Trace) -> None:
    graph, dropped = _Graph(trace), set[int]()
    for index, step in enumerate(trace.steps):
        after = graph.only_reader(index) if step.operation == "sigmoid" and len(step.reads) == 1 else None
        if after is not None and trace.steps[after].operation == "mul" and set(trace.steps[after].reads) == {*step.reads, *step.writes}:
            trace.steps[after] = _activation(trace.steps[after], "silu", dict(step.reads))
            dropped.add(index)
    _drop(trace, dropped)


def _gelu(trace: Trace) -> None:
    graph, dropped = _Graph(trace), set[int]()
    for index, step in enumerate(trace.steps):
        scaled = graph.before(index) if step.operation == "erf" else None
        if scaled is None or trace.steps[scaled].operation not in ("div", "mul") or len(trace.steps[scaled].reads) != 1:
            continue
        (source,) = trace.steps[scaled].reads
        chain, halves, multiplied, current = [scaled, index], set[int](), False, index
        for _ in range(_AFTER_ERF):
            after = graph.only_reader(current)
            if after is None or trace.steps[after].operation not in ("add", "mul"):
                break
            others = set(trace.steps[after].reads) - set(trace.steps[current].writes)
            halved = {graph.producer.get(value, -1) for value in others - {source}}
            if any(half < 0 or trace.steps[half].operation != "mul" or set(trace.steps[half].reads) != {source} for half in halved):
                break
            multiplied, current = multiplied or bool(others), after
            halves |= halved
            chain.append(after)
        if multiplied:
            trace.steps[chain[-1]] = _activation(trace.steps[chain[-1]], "gelu", {source: trace.steps[scaled].reads[source]})
            dropped |= {*chain[:-1], *halves}
    _drop(trace, dropped)


def _attention(trace: Trace) -> None:
    graph, dropped = _Graph(trace), set[int]()
    for index, step in enumerate(trace.steps):
        if step.operation not in _SOFTMAX:
            continue
        last, chain = graph.only_reader(index), [index]
        while (before := graph.before(chain[0])) is not None:
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
    _drop(trace, dropped)
    _scales_into_attention(trace)


def _is_product(step: Step) -> bool:
    return step.kind == "matmul" and not step.weight_elements and len(step.input_shape) > 2


def _scales_into_attention(trace: Trace) -> None:
    """A factor on queries or keys is the scale of their product: wherever it is written, it costs no pass over memory."""
    graph, dropped = _Graph(trace), set[int]()
    for index, step in enumerate(trace.steps):
        after = graph.only_reader(index) if step.operation in ("mul", "div") and len(step.reads) == 1 and not step.weight_elements else None
        if after is None or trace.steps[after].kind != "attention":
            continue
        attention = trace.steps[after]
        (source, elements), (result,) = next(iter(step.reads.items())), step.writes
        total = attention.reads.pop(result) + attention.reads.get(source, 0)
        attention.reads[source] = min(max(total, elements), trace.elements_of[trace.buffer_of[source]])
        dropped.add(index)
    _drop(trace, dropped)


def _padding(trace: Trace) -> None:
    graph, dropped = _Graph(trace), set[int]()
    for index, step in enumerate(trace.steps):
        after = graph.only_reader(index) if step.pads_with_zeros and len(step.reads) == 1 else None
        if after is None or trace.steps[after].kind not in WEIGHTED - {"matmul", "transposed_convolution"}:
            continue
        convolution = trace.steps[after]
        trace.steps[after] = replace(
            convolution, reads=dict(step.reads), input_shape=step.input_shape, absorbed=(*convolution.absorbed, step.operation)
        )
        dropped.add(index)
    _drop(trace, dropped)
