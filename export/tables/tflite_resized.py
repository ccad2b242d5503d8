"""The sizes of a TFLite file's tensors: those that it states, or those that LiteRT finds for other input shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcompress.errors import UsageError
from mcompress.export.tables.asked import sizes_asked
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.tflite_file import File, stated_sizes


@dataclass(frozen=True)
class Sizes:
    """The shape of each tensor, by its index, and what was assumed for what the file leaves open, empty if nothing was."""

    shapes: Mapping[int, Shape]
    assumed: str


def sizes_of(file: File, given: Shape | Mapping[str, Shape] | None) -> Sizes:
    """`given` is the shape of the first input, or name -> shape; None takes those of the file.

    Raises `UsageError` for shapes that the file does not take, and where it leaves more than the batch open; what a converter writes as the shape
    of a tensor whose signature is open is not what anybody asked for, and not taken.
    """
    own = stated_sizes(file)
    sizes = sizes_asked(file.path, own, given)
    found = {index: tensor.shape for index, tensor in enumerate(file.tensors)}
    notes = [sizes.assumed] if sizes.assumed else []
    if any(size < 1 for _, shape in own for size in shape):
        wanted = {index: tuple(one["shape"]) for index, one in zip(file.inputs, sizes.inputs, strict=True)}
        try:
            # Even where the file has these sizes beside the open ones: its inner tensors can have those that the network was traced with.
            found |= _resized(file, wanted)
        except UsageError as error:
            if any(found[index] != shape for index, shape in wanted.items()):
                raise
            notes.append(f"inner sizes as the file states them, which LiteRT does not confirm ({error})")
    for index, shape in found.items():
        if any(size < 0 for size in shape):
            what = f"tensor '{file.tensors[index].name}' of {file.path}"
            raise UsageError(f"{what} has no static shape but {_shown(shape)}; export it with static shapes")
    return Sizes(found, "; ".join(notes))


def _resized(file: File, wanted: Mapping[int, Shape]) -> dict[int, Shape]:
    """Shapes of all tensors, from LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        interpreter = Interpreter(model_path=str(file.path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        for tensor, shape in wanted.items():
            interpreter.resize_tensor_input(tensor, shape)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shapes = " and ".join(f"{file.tensors[index].name}={_shown(shape)}" for index, shape in wanted.items())
        raise UsageError(f"{file.path} does not take inputs of the shape {shapes}: {reason}") from error
    details = interpreter.get_tensor_details()
    return {detail["index"]: tuple(int(size) for size in detail["shape"]) for detail in details if detail["index"] < len(file.tensors)}


def _shown(shape: Sequence[int]) -> str:
    return ",".join(str(size) for size in shape)
