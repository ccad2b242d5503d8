"""The sizes of a TFLite file's tensors: those that it states, or those that LiteRT finds for other input shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcompress.errors import UsageError
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.tflite_file import File


@dataclass(frozen=True)
class Sizes:
    """The shape of each tensor, by its index, and what was assumed for what the file leaves open, empty if nothing was."""

    shapes: Mapping[int, Shape]
    assumed: str


def sizes_of(file: File, given: Shape | Mapping[str, Shape] | None) -> Sizes:
    """`given` is the shape of the first input, or name -> shape; None takes those of the file.

    Raises `UsageError` for shapes that the file does not take, and where it leaves more than the batch open and states nothing instead.
    """
    wanted = _wanted(file, given)
    left = [index for index in file.inputs if index not in wanted]
    stated = {index: tensor.shape for index, tensor in enumerate(file.tensors)}
    changed = {index: shape for index, shape in wanted.items() if shape != stated[index]}
    _refuse_static(file, changed, named=isinstance(given, Mapping))
    _refuse_open(file, left)
    found = stated | (_resized(file, changed, named=isinstance(given, Mapping)) if changed else {})
    for index, shape in found.items():
        if any(size < 0 for size in shape):
            what = f"tensor '{file.tensors[index].name}' of {file.path}"
            raise UsageError(f"{what} has no static shape but {_shown(shape)}; export it with static shapes")
    return Sizes(found, _assumed(file, left))


def _wanted(file: File, given: Shape | Mapping[str, Shape] | None) -> dict[int, Shape]:
    """What is asked for, by the index of the input."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(file.inputs[:1], given)
    places = {file.tensors[index].name: index for index in file.inputs}
    for name in given:
        if name not in places:
            raise UsageError(f"--input names '{name}', but the inputs of {file.path} are {', '.join(places)}")
    return {places[name]: shape for name, shape in given.items()}


def _open_axes(file: File, index: int) -> list[int]:
    """The axes of an input whose sizes the file leaves open."""
    tensor = file.tensors[index]
    sizes = tensor.signature if len(tensor.signature) == len(tensor.shape) else tensor.shape
    return [axis for axis, size in enumerate(sizes) if size < 0 or tensor.shape[axis] < 1]


def _refuse_static(file: File, changed: Mapping[int, Shape], *, named: bool) -> None:
    for index in changed:
        if not _open_axes(file, index):
            stated = _shown(file.tensors[index].shape)
            raise UsageError(f"--input is {_all_shown(file, changed, named=named)}, but {file.path} takes {stated} only; leave --input out")


def _refuse_open(file: File, left: Sequence[int]) -> None:
    """Converters state 1 for what is open: for a batch that can be meant, for any other axis it cannot."""
    open_ = []
    for index in left:
        shape = file.tensors[index].shape
        if any(shape[axis] < 1 or (axis > 0 and shape[axis] == 1) for axis in _open_axes(file, index)):
            open_.append(file.tensors[index].name)
    if open_ and len(file.inputs) > 1:
        names = " and ".join(f"'{name}'" for name in open_)
        raise UsageError(f"the inputs {names} of {file.path} have no static shapes; give them, for example --input {open_[0]}=1,128,128,3")
    if open_:
        raise UsageError(f"the input of {file.path} has no static shape; give it, for example --input 1,128,128,3")


def _assumed(file: File, left: Sequence[int]) -> str:
    open_ = [file.tensors[index] for index in left if _open_axes(file, index)]
    of_batch = [file.tensors[index] for index in left if _open_axes(file, index) == [0]]
    parts = [f"batch {batch}" for batch in sorted({tensor.shape[0] for tensor in of_batch})]
    parts += [f"the shape {_shown(tensor.shape)} of '{tensor.name}'" for tensor in open_ if tensor not in of_batch]
    return f"{' and '.join(parts)} assumed, which the file leaves open" if parts else ""


def _resized(file: File, changed: Mapping[int, Shape], *, named: bool) -> dict[int, Shape]:
    """Shapes of all tensors, from LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        interpreter = Interpreter(model_path=str(file.path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        for tensor, shape in changed.items():
            interpreter.resize_tensor_input(tensor, shape)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"--input is {_all_shown(file, changed, named=named)}, which {file.path} does not take: {reason}") from error
    details = interpreter.get_tensor_details()
    return {detail["index"]: tuple(int(size) for size in detail["shape"]) for detail in details if detail["index"] < len(file.tensors)}


def _all_shown(file: File, shapes: Mapping[int, Shape], *, named: bool) -> str:
    return " and ".join(f"{f'{file.tensors[index].name}=' if named else ''}{_shown(shape)}" for index, shape in shapes.items())


def _shown(shape: Sequence[int]) -> str:
    return ",".join(str(size) for size in shape)
