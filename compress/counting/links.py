"""Who writes and who reads each value of a trace: what patterns are looked for along."""

from __future__ import annotations

from collections.abc import Collection

from mcompress.compress.counting.steps import Trace


class Links:
    """The steps of a trace as a graph; made anew after steps were dropped."""

    def __init__(self, trace: Trace) -> None:
        self.steps = trace.steps
        self.outputs = trace.outputs
        self.producer: dict[int, int] = {}
        """Value -> index of the step that writes it."""
        self.readers: dict[int, list[int]] = {}
        """Value -> indices of the steps that read it, in their order."""
        for index, step in enumerate(trace.steps):
            for value in step.reads:
                self.readers.setdefault(value, []).append(index)
            for value in step.writes:
                self.producer[value] = index

    def result(self, index: int) -> int:
        """The value that a step is there for."""
        return next(iter(self.steps[index].writes))

    def only_reader(self, index: int) -> int | None:
        """The one step that reads the result of a step, if there is exactly one and the result does not leave the network."""
        result = self.result(index)
        readers = self.readers.get(result, [])
        return readers[0] if len(readers) == 1 and result not in self.outputs else None

    def before(self, index: int) -> int | None:
        """The step whose result only this step reads, through its first operand."""
        made = self.producer.get(next(iter(self.steps[index].reads), -1))
        return made if made is not None and self.only_reader(made) == index else None

    def are_private(self, values: Collection[int], inside: Collection[int]) -> bool:
        """Whether nothing but the steps `inside` reads any of the values, and none leaves the network."""
        return all(value not in self.outputs and set(self.readers.get(value, ())) <= set(inside) for value in values)


def drop(trace: Trace, indices: Collection[int]) -> None:
    """Take steps out."""
    trace.steps = [step for index, step in enumerate(trace.steps) if index not in indices]
