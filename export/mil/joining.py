"""The models of a Core ML pipeline as one program, which computes what Core ML does when it runs them one after the other.

What one model gives and a later one takes by the same name is one value. Names that are a model's own keep to it in a pipeline: where two models use
the same one, the later value is renamed. A model's casts stay, so that the program has the precisions that Core ML computes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from mcompress.errors import ExportError
from mcompress.export.mil.program import MAIN, Argument, Block, Function, MilProgram, Operation, Value
from mcompress.export.mil.types import ValueType


def joined(models: Sequence[MilProgram], inputs: Sequence[Value], outputs: Sequence[Value], wrong: Callable[[str], ExportError]) -> Function:
    """One function that takes `inputs` and gives `outputs`, those of the pipeline; `wrong` makes the error that is raised where models do not fit.

    They do not fit where a model takes what neither the pipeline nor a model in front of it gives, or takes it as another type, where a name is given
    twice, or where nobody gives a result. Models with several functions or control flow are refused.
    """
    if not models:
        raise wrong("it holds a pipeline of no models")
    known: dict[str, ValueType] = {value.name: value.type for value in inputs}
    taken: dict[str, ValueType] = {}
    given: set[str] = set()
    used = {*known, *(name for model in models for name in model.main.block.outputs)}
    operations: list[Operation] = []
    for number, model in enumerate(models, start=1):
        main = model.main
        if set(model.functions) != {MAIN}:
            raise wrong(f"model {number} of the pipeline has the functions {', '.join(sorted(model.functions))}; only one can be read")
        for value in main.inputs:
            _check_taken(value, number, len(models), known, wrong)
            if value.name not in given:
                taken.setdefault(value.name, value.type)
        twice = next((name for name in main.block.outputs if name in known), None)
        if twice is not None:
            raise wrong(f"model {number} of the pipeline gives '{twice}', which is there already")
        operations += _renamed(main, number, used, wrong)
        types = main.types()
        known |= {name: types[name] for name in main.block.outputs}
        given |= set(main.block.outputs)
    missing = next((value.name for value in outputs if value.name not in given), None)
    if missing is not None:
        raise wrong(f"no model of its pipeline, of {len(models)} models, gives '{missing}', which is a result of the package")
    block = Block((), tuple(value.name for value in outputs), tuple(operations))
    opset = max(model.main.opset for model in models)
    return Function(MAIN, opset, tuple(Value(value.name, taken.get(value.name, value.type)) for value in inputs), block)


def _check_taken(value: Value, number: int, count: int, known: Mapping[str, ValueType], wrong: Callable[[str], ExportError]) -> None:
    if value.name not in known:
        nobody = "which neither the package takes nor a model in front of it gives"
        raise wrong(f"model {number} of its pipeline, of {count} models, takes '{value.name}', {nobody}")
    one, other = known[value.name], value.type
    sizes = zip(one.shape, other.shape, strict=False)
    if one.dtype != other.dtype or (
        one.shape and (len(one.shape) != len(other.shape) or any(None not in pair and pair[0] != pair[1] for pair in sizes))
    ):
        raise wrong(f"model {number} of the pipeline takes '{value.name}' as {other}; what there is of that name is {one}")


def _renamed(main: Function, number: int, used: set[str], wrong: Callable[[str], ExportError]) -> Iterator[Operation]:
    """The operations of a model, with names of its own where they are taken; `used` grows by all of its names."""
    features = {*main.block.outputs, *(value.name for value in main.inputs)}
    names: dict[str, str] = {}
    for operation in main.operations:
        if operation.blocks:
            raise wrong(f"{operation.type} '{operation.name}' in model {number} of the pipeline holds blocks of operations, which cannot be joined")
        for value in operation.outputs:
            if value.name not in features:
                if value.name in used:
                    names[value.name] = _free(f"{value.name}_in_model_{number}", used)
                used.add(names.get(value.name, value.name))
    for operation in main.operations:
        yield replace(
            operation,
            name=names.get(operation.name, operation.name),
            inputs={key: tuple(_argument(item, names) for item in items) for key, items in operation.inputs.items()},
            outputs=tuple(Value(names.get(value.name, value.name), value.type) for value in operation.outputs),
            place=f"model {number}, {operation.place}",
        )


def _argument(item: Argument, names: Mapping[str, str]) -> Argument:
    return names.get(item, item) if isinstance(item, str) else item


def _free(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    return name
