"""The sizes at which a phone's program measures a file, which is read here: the program itself says neither what it took nor that sizes are open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcompress.errors import UsageError
from mcompress.export.agent.protocol import WrongInput
from mcompress.export.agent.sizes import Asked, sizes_of
from mcompress.export.profile_jobs import InputShape, Job


@dataclass(frozen=True)
class PhoneSizes:
    """Empty for a file that cannot be read here; whether it is one, the phone's runtime says."""

    inputs: tuple[InputShape, ...] = ()
    assumed: str = ""
    flags: tuple[str, ...] = ()
    """What `benchmark_model` must be told."""


def sizes_on_phone(job: Job) -> PhoneSizes:
    """Raises `UsageError` for sizes that the file leaves open or does not take as `--input` gives them, and for a program that cannot be told any.

    Raises `Unusable` for a file that does not take the sizes which its bundle states.
    """
    if job.backend != "tflite":
        if job.inputs:
            raise UsageError(f"executor_runner measures at the sizes that {job.file.name} states; leave --input out, or export it with other sizes")
        return PhoneSizes()
    try:
        stated = _stated(job)
    except (UsageError, ImportError):
        return PhoneSizes()
    try:
        sizes = sizes_of(stated, Asked(job.shapes, {one.name: list(one.shape) for one in job.inputs}))
    except WrongInput as error:
        raise UsageError(str(error)) from error
    inputs = tuple(InputShape(one["name"], tuple(one["shape"])) for one in sizes.inputs)
    is_open = any(size < 1 for _, shape in stated for size in shape)
    return PhoneSizes(inputs, sizes.assumed, _flags(inputs) if is_open else ())


def _stated(job: Job) -> list[tuple[str, tuple[int, ...]]]:
    from mcompress.export.tables.tflite_file import decode, stated_sizes

    return stated_sizes(decode(job.file))


def _flags(inputs: Sequence[InputShape]) -> tuple[str, ...]:
    shapes = ":".join(",".join(map(str, one.shape)) for one in inputs)
    return f"--input_layer={','.join(one.name for one in inputs)}", f"--input_layer_shape={shapes}"
