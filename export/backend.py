"""What an export backend owes the pipeline, and the border to its libraries: their messages, their errors, their absence.

Importing this module, or a backend's module, imports neither torch nor the backend's libraries; `write` and `load` do.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import DiskFullError, ExportError, MCompressError, MissingBackendError
from mcompress.export import replay
from mcompress.export.honoured import FileOperator
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import Export
from mcompress.targets.schema import Fallback

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mcompress.compress.quantize.plan import PrecisionPlan

FloatArray = NDArray[np.float32]
Config = TypeVar("Config", bound=Export, contravariant=True)
OUTPUT = "output"
"""The name of the only output in every format that has names."""


@dataclass(frozen=True)
class Port:
    """One input or output of a file, as the file states it. `scale` and `zero_point` are None for floating-point ports."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """numpy's name: `float32`, `int8`."""
    layout: str
    """`NCHW` or `NHWC` for four axes; `ND` for another number of them, which are in the network's order."""
    scale: float | None = None
    zero_point: int | None = None

    @property
    def network_shape(self) -> tuple[int, ...]:
        """As the network has it: NCHW, whatever the file's layout is."""
        return tuple(self.shape[axis] for axis in (0, 3, 1, 2)) if self.layout == "NHWC" else self.shape

    def encode(self, value: FloatArray) -> NDArray[np.generic]:
        """Float32, as the network takes it (NCHW) -> what the file takes."""
        return replay.encode(value, self._facts())

    def decode(self, value: NDArray[np.generic]) -> FloatArray:
        """What the file gives -> float32, as the network gives it (NCHW)."""
        return replay.decode(value, self._facts())

    def _facts(self) -> replay.Facts:
        shape = list(self.shape)
        return {"name": self.name, "shape": shape, "dtype": self.dtype, "layout": self.layout, "scale": self.scale, "zero_point": self.zero_point}


def layout_of(shape: Sequence[int], of_images: str = "NCHW") -> str:
    """The layout of a tensor in a format that keeps images as `of_images` says."""
    return of_images if len(shape) == replay.IMAGE_AXES else replay.PLAIN


@dataclass(frozen=True)
class Written:
    """A written file and what was read back from it."""

    path: Path
    precision_counts: dict[str, int]
    """Operators in the file that compute in int8, fp16, fp32; conversions between precisions are not counted."""
    coverage: CoverageRecord
    fallbacks: tuple[Fallback, ...]
    inputs: tuple[Port, ...]
    """In the file's order, which is that of the arguments of the network's `forward`."""
    outputs: tuple[Port, ...]
    least_runtime: str | None = None
    """The oldest runtime that can take the file, as the file itself states it, for example `iOS 17`; None for formats that do not say."""
    operators: tuple[FileOperator, ...] = ()
    """Every operator of the file, as read back from it."""


class Runner(Protocol):
    """A loaded file, ready to run on this machine."""

    runtime: str
    """Runtime and version, for example `onnxruntime 1.31.1 CPU`."""
    inputs: tuple[Port, ...]
    """In the file's order."""
    outputs: tuple[Port, ...]
    """One."""

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """Run the file on all of its inputs, each of its own type and layout (`encode` of its port); this is what a latency measures."""

    def run(self, *values: FloatArray) -> FloatArray:
        """Float32 as the network has it (NCHW) in and out; converts to and from what the file takes.

        Raises `ExportError` for another number of inputs than the file takes.
        """


class Backend(Protocol, Generic[Config]):
    """What each module in `EXPORTERS` has."""

    def probe(self) -> None:
        """Raise `MissingBackendError` if a package is not installed; imports nothing."""

    def write(self, config: Config, model: nn.Module, examples: Mapping[str, Tensor], plan: PrecisionPlan | None, path_stem: Path) -> Written:
        """Write the float file (`plan` None) or the mixed-precision file beside `path_stem`, adding the suffix. Raises `ExportError`.

        `examples` has the name that the file gives to each argument of the network's `forward`, in their order, and an example of it.
        """

    def load(self, path: Path, threads: int) -> Runner:
        """Load a written file with that many threads. Raises `ExportError`."""


def check_examples(examples: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The examples, in order. Raises `ExportError` for names and tensors that not every format can have as an input."""
    if not examples:
        raise ExportError("a network without inputs cannot be exported; give an example of each argument of its `forward`")
    for name, example in examples.items():
        if not (name.isascii() and name.isidentifier()) or name == OUTPUT:
            raise ExportError(f"an input is named '{name}'; it must be letters, digits and `_` without a digit in front, and not '{OUTPUT}'")
        if not example.is_floating_point() or not example.ndim:
            of = f"{str(example.dtype).removeprefix('torch.')} of {example.ndim} axes"
            raise ExportError(f"the input '{name}' is {of}; inputs are floating-point tensors of at least one axis. Convert it inside the network")
    return tuple(examples.values())


def check_inputs(path: Path, examples: Mapping[str, Tensor], inputs: Sequence[Port]) -> None:
    """Raise `ExportError` unless the file takes the network's inputs, in their order, which is for its converter to see to."""
    wanted = [(name, tuple(example.shape)) for name, example in examples.items()]
    found = [(port.name, port.network_shape) for port in inputs]
    if wanted != found:
        took, takes = (", ".join(f"{name} {shape}" for name, shape in ports) or "nothing" for ports in (found, wanted))
        raise ExportError(f"{path.name} takes {took}; the network takes {takes}. Take this backend out of the target's exports")


def encode_all(inputs: Sequence[Port], values: Sequence[FloatArray]) -> tuple[NDArray[np.generic], ...]:
    """Float32 as the network takes it -> what the file takes, for all inputs. Raises `ExportError` for another number of them."""
    if len(values) != len(inputs):
        raise ExportError(f"the file takes {len(inputs)} inputs ({', '.join(port.name for port in inputs)}); {len(values)} were given")
    return tuple(port.encode(value) for port, value in zip(inputs, values, strict=True))


def require(backend: str, packages: Mapping[str, str], note: str) -> None:
    """Raise `MissingBackendError` unless every module of `packages` (module -> distribution) can be found."""
    missing = [distribution for module, distribution in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingBackendError(
            f"the {backend} backend needs {', '.join(packages.values())}; not installed: {', '.join(missing)}. "
            f"Install with: pip install 'mcompress[{backend}]'. {note} This is {platform.system()} on {platform.machine()}."
        )


def version_of(distribution: str) -> str:
    """Installed version, or `unknown`."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class BackendCall(contextlib.AbstractContextManager[None]):
    """Turns whatever a backend's library raises into `ExportError`, keeping the cause; our own errors pass; a full disk becomes `DiskFullError`."""

    def __init__(self, backend: str, doing: str, advice: str) -> None:
        """`doing` completes "X failed to ..."; `advice` says what the user can do."""
        self._backend, self._doing, self._advice = backend, doing, advice
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        """Show the library's warnings instead of raising them, whatever the process has set."""
        self._warnings.__enter__()
        warnings.simplefilter("default")

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        """Translate."""
        self._warnings.__exit__(None, None, None)
        if not isinstance(problem, Exception) or isinstance(problem, MCompressError):
            return
        if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
            raise DiskFullError(f"no space left while {self._backend} tried to {self._doing}; free some space and run again") from problem
        cause = str(problem).strip() or "no message"
        raise ExportError(f"{self._backend} failed to {self._doing}: {type(problem).__name__}: {cause[:2000]}. {self._advice}") from problem


@contextlib.contextmanager
def captured(log: Path) -> Iterator[None]:
    """Append everything that the process writes to standard output and error to `log`, C++ libraries included. For one thread at a time."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    try:
        with log.open("a", encoding="utf-8", buffering=1) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            try:
                with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                    yield
            finally:
                _let_go(stream)
    finally:
        os.dup2(saved_out, 1)
        os.dup2(saved_err, 2)
        os.close(saved_out)
        os.close(saved_err)


def _let_go(stream: TextIO) -> None:
    """Libraries that set up their logging meanwhile took `stream` for standard error, and would write to it when it is closed."""
    loggers = [logging.getLogger(), *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger))]
    for handler in (handler for one in loggers for handler in one.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.stream = sys.stderr  # not setStream, which flushes: a handler of coremltools has been seen to hold a stream that is closed


def as_fallbacks(file: Path, found: tuple[OperatorFallback, ...]) -> tuple[Fallback, ...]:
    """The same, for the run's list of everything that happened differently; it says in which file."""
    return tuple(Fallback(where=f"export {file.name}", what=item.operator, reason=item.reason) for item in found)
