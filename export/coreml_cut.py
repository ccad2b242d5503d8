"""Where the program of a Core ML package is divided into two models of a pipeline, and what each of the two has.

Among the places where the larger model is about as small as it can be, that one where the least data cross.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from mcompress.errors import ExportError
from mcompress.export.coreml_handover import Handover, dtype_of, feature, sizes_of
from mcompress.export.coreml_precisions import INSIDE
from mcompress.export.mil.blob import WeightFile

if TYPE_CHECKING:
    from google.protobuf.message import Message

UNEVEN = 0.02
"""Share of all weights by which a model may be larger than the best cut makes it, for less data between the models."""


@dataclass(frozen=True)
class Whole:
    """The function `main` of a model, and which of its operations compute: all but those that go wherever they are read."""

    model: Message
    weights: WeightFile
    name: str

    @cached_property
    def operations(self) -> list[Message]:
        """In execution order."""
        functions = list(self.model.mlProgram.functions)
        if functions != ["main"]:
            raise self._undivided(f"it has the functions {', '.join(sorted(functions))}; only main can be divided")
        found = list(main_block(self.model).operations)
        nested = next((operation for operation in found if operation.blocks), None)
        if nested is not None:
            raise self._undivided(f"{nested.type} '{nested.outputs[0].name}' holds blocks of operations")
        return found

    @cached_property
    def computing(self) -> list[int]:
        """Their positions."""
        return [place for place in range(len(self.operations)) if place not in self.carried]

    @cached_property
    def carried(self) -> set[int]:
        """Positions of constants, of `dequantize`, and of casts of the network's inputs, but where they give a result of the network."""
        return {
            place
            for place, operation in enumerate(self.operations)
            if operation.type.startswith("const")
            or (operation.outputs[0].name not in self.ends and (operation.type == "dequantize" or self._casts_input(operation)))
        }

    def _casts_input(self, operation: Message) -> bool:
        return operation.type == "cast" and all(str(item.name) not in self.makers for item in operation.inputs["x"].arguments)

    @cached_property
    def ends(self) -> list[str]:
        """The network's results."""
        return [str(item.name) for item in self.model.description.output]

    @cached_property
    def makers(self) -> dict[str, int]:
        """Value -> the position of the operation that gives it."""
        return {str(value.name): place for place, operation in enumerate(self.operations) for value in operation.outputs}

    @cached_property
    def types(self) -> dict[str, Message]:
        """Value -> it with its type: the function's inputs, then what operations give, in order."""
        given = {str(value.name): value for value in self.model.mlProgram.functions["main"].inputs}
        return given | {str(value.name): value for operation in self.operations for value in operation.outputs}

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Computed value or input -> the computing operations that read it, counted among those; through a `dequantize` as well."""
        found: dict[str, list[int]] = {}
        for number, place in enumerate(self.computing):
            for name in self.computed([place]):
                found.setdefault(name, []).append(number)
        return found

    def carried_by(self, places: Iterable[int]) -> set[int]:
        """Positions of the carried operations that these read, and those read in turn."""
        found, pending = set[int](), list(places)
        while pending:
            for name in _read(self.operations[pending.pop()]):
                place = self.makers.get(name)
                if place is not None and place in self.carried and place not in found:
                    found.add(place)
                    pending.append(place)
        return found

    def computed(self, places: Sequence[int]) -> dict[str, None]:
        """What these operations, and those that they carry, read of others."""
        together = [*places, *self.carried_by(places)]
        return dict.fromkeys(name for place in together for name in _read(self.operations[place]) if self.makers.get(name, -1) not in self.carried)

    def best_cut(self) -> int:
        """The number of computing operations of the first model."""
        first, second = self._weights_before(), self._weights_behind()
        crossing = self._crossing()
        larger = {
            cut: max(first[cut], second[cut]) for cut in range(1, len(self.computing)) if first[cut] and second[cut] and crossing[cut] < math.inf
        }
        if not larger:
            raise self._undivided("there is no place where the operators in front and those behind both have weights")
        most = min(larger.values()) + UNEVEN * second[0]
        return min((cut for cut, size in larger.items() if size <= most), key=lambda cut: (crossing[cut], larger[cut]))

    @cached_property
    def _blobs_read(self) -> list[dict[int, int]]:
        """Per computing operation, the weights that it reads: place in the weight file -> bytes."""
        found = []
        for place in self.computing:
            blobs = (blob for each in (place, *self.carried_by([place])) for blob in blobs_of(self.operations[each]))
            found.append({int(blob.offset): self.weights.size_at(int(blob.offset)) for blob in blobs})
        return found

    def _weights_before(self) -> list[int]:
        """Bytes of weights that the first model has, for every cut; what both read is in both."""
        return _summed(self._blobs_read)

    def _weights_behind(self) -> list[int]:
        return _summed(self._blobs_read[::-1])[::-1]

    def _crossing(self) -> list[float]:
        """Bytes that go from one model to the other, for every cut; infinite where they cannot."""
        sizes, barred = [[0] * (len(self.computing) + 1) for _ in range(2)]
        for number, place in enumerate(self.computing):
            for value in self.operations[place].outputs:
                last = max(self.readers.get(str(value.name), [number]))
                bytes_ = 4 * math.prod(sizes_of(value))
                for steps, amount in ((sizes, bytes_), (barred, 0 if self._can_cross(value) else 1)):
                    if last > number:
                        steps[number + 1] += amount
                        steps[last + 1] -= amount
        return [math.inf if bar else size for size, bar in zip(accumulate(sizes), accumulate(barred), strict=True)]

    def _can_cross(self, value: Message) -> bool:
        """No model is to begin with what belongs to the operator in front: the quantization of its result, a ReLU."""
        name, dtype = str(value.name), dtype_of(value)
        if not sizes_of(value) or not all(sizes_of(value)):
            return False
        if dtype in ("int8", "uint8"):
            return str(self.operations[self.makers[name]].type) == "quantize"
        kinds = {str(self.operations[self.computing[number]].type) for number in self.readers.get(name, ())}
        return dtype in ("fp16", "fp32", "int32") and not kinds <= {"quantize", *INSIDE}

    def parts(self, cut: int) -> tuple[Message, Message]:
        """Both models; their weights are still in the whole's file."""
        front, behind = self.computing[:cut], self.computing[cut:]
        read = self.computed(behind)
        crossing = [value for name, value in self.types.items() if name in read and self.makers.get(name, len(self.operations)) < behind[0]]
        handed = [Handover(value, self.operations[self.makers[str(value.name)]], self.types) for value in crossing]
        inputs = [name for name in self.types if name not in self.makers]
        given = [name for name in self.ends if self.makers.get(name, -1) <= front[-1]]
        first = self._part([self.types[name] for name in inputs if name in self.computed(front) or name not in read])
        main_block(first).operations.extend([*self._with_carried(front), *(one for each in handed for one in each.giving())])
        second = self._part([*(self.types[name] for name in inputs if name in read), *(each.feature for each in handed)])
        scales = {self.makers[name] for each in handed for name in each.constants}
        needed = sorted(scales | self.carried_by(scales))
        main_block(second).operations.extend(self.operations[place] for place in needed)
        main_block(second).operations.extend([*(one for each in handed for one in each.taking()), *self._with_carried(behind, but=set(needed))])
        self._give(first, [*(self.types[name] for name in given), *(each.feature for each in handed if each.feature.name not in given)])
        self._give(second, [self.types[name] for name in self.ends if name not in given])
        return first, second

    def _with_carried(self, places: Sequence[int], but: set[int] | None = None) -> Iterator[Message]:
        yield from (self.operations[place] for place in sorted({*places, *self.carried_by(places)} - (but or set())))

    def _part(self, inputs: Sequence[Message]) -> Message:
        """A model like the whole without operations, that takes these."""
        part = type(self.model)()
        part.CopyFrom(self.model)
        function, block = part.mlProgram.functions["main"], main_block(part)
        del function.inputs[:], block.operations[:], block.outputs[:], part.description.input[:], part.description.output[:]
        function.inputs.extend(inputs)
        part.description.input.extend(self._described(value) for value in inputs)
        return part

    def _give(self, part: Message, outputs: Sequence[Message]) -> None:
        main_block(part).outputs.extend(str(value.name) for value in outputs)
        part.description.output.extend(self._described(value) for value in outputs)

    def _described(self, value: Message) -> Message:
        described = (*self.model.description.input, *self.model.description.output)
        return next((item for item in described if item.name == value.name), None) or feature(value)

    def _undivided(self, why: str) -> ExportError:
        return ExportError(f"{self.name} cannot be divided into two models: {why}. Leave chunks: 2 out of the export")


def _summed(read: Sequence[Mapping[int, int]]) -> list[int]:
    """Bytes read up to each operation, each weight once."""
    seen, sums = set[int](), [0]
    for blobs in read:
        sums.append(sums[-1] + sum(size for offset, size in blobs.items() if offset not in seen))
        seen |= blobs.keys()
    return sums


def main_block(model: Message) -> Message:
    """The operations of a model's function `main`."""
    function = model.mlProgram.functions["main"]
    block: Message = function.block_specializations[function.opset]
    return block


def _read(operation: Message) -> Iterator[str]:
    for argument in operation.inputs.values():
        yield from (str(item.name) for item in argument.arguments if item.WhichOneof("binding") == "name")


def blobs_of(operation: Message) -> Iterator[Message]:
    """The places in a weight file that the operation names."""
    held = [*operation.attributes.values(), *(item.value for one in operation.inputs.values() for item in one.arguments if item.HasField("value"))]
    yield from (value.blobFileValue for value in held if value.WhichOneof("value") == "blobFileValue")
