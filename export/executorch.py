"""ExecuTorch with the XNNPACK delegate, executed by executorch.runtime.

What the file holds is read back from it: the portable kernels among its instructions, and the operators in the delegates' own flatbuffers, each with
the types of its tensors and with the operators of the plan that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.backend import (
    OUTPUT,
    BackendCall,
    FloatArray,
    Port,
    Written,
    as_fallbacks,
    check_examples,
    check_inputs,
    encode_all,
    layout_of,
    require,
    version_of,
)
from mcompress.export.executorch_check import check_loadable, trust
from mcompress.export.executorch_file import INPUT_NAMES, FileGraph, input_names, read
from mcompress.export.honoured import counts_of, departures, units_of
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import ExecuTorchConfig

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from mcompress.compress.quantize.plan import PrecisionPlan

NAME = "executorch"
SUFFIX = ".pte"
REASONS = {
    "leaky_relu": "XNNPACK's INT8 LeakyReLU multiplies by 16-bit numbers, and here the scales or the slope leave their range",
    "upsample_nearest2d": "ExecuTorch has no INT8 nearest-neighbour resize, and only whole factors can be written as a multiplication by ones",
}
REASONS |= dict.fromkeys(
    ("group_norm", "layer_norm"), "means and squares of half numbers leave the range of FP16, and XNNPACK has no normalization that sums in FP32"
)
WIDENED = (
    "computed in fp16, but its weights are stored as fp32 ({} bytes more): XNNPACK takes the weights of a half convolution as fp32 only, "
    "and rounds them when the file is loaded"
)
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."


def probe() -> None:
    """Raise `MissingBackendError` if a package is missing."""
    require(NAME, {"executorch": "executorch"}, "It has packages for Linux (x86-64, Arm64) and macOS (Apple silicon).")


def write(config: ExecuTorchConfig, model: nn.Module, examples: Mapping[str, Tensor], plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.pte: fp32 without a plan, every operator in its planned precision otherwise. Static shapes, NCHW float32.

    The format names no inputs: `forward` takes them in order. Where it is not one named `input`, the file says the
    names in a method of its own (`INPUT_NAMES`).

    Operators in fp16 need a processor that XNNPACK has half-precision kernels for: Armv8.2 with half arithmetic, or x86 with F16C and AVX2 (which
    computes in fp32 and rounds every result). Elsewhere the runtime refuses the file.
    """
    del config  # the format has no choices yet
    probe()
    given = check_examples(examples)
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE):
        from mcompress.export.executorch_lowering import lower, rewritten

        module = rewritten(model, given, plan)
        with path.open("wb") as stream:
            lower(module, given, stream, list(examples))
        trust(path)
        written = _read_back(path, module, plan)
        check_inputs(path, examples, written.inputs)
        return written


def _read_back(path: Path, module: fx.GraphModule, plan: PrecisionPlan | None) -> Written:
    from mcompress.export.executorch_match import file_operators, widened_weights

    file = read(path)
    operators = file_operators(file, module)
    portable = {item.kind: item.reason for item in operators if item.unit != "xnnpack"}
    fallbacks = tuple(OperatorFallback(operator=kind, reason=reason) for kind, reason in portable.items())
    fallbacks += departures("ExecuTorch", plan, operators, REASONS)
    fallbacks += tuple(OperatorFallback(operator=name, reason=WIDENED.format(more)) for name, more in widened_weights(file, operators).items())
    inputs = tuple(_port(path, name, file, index) for name, index in zip(file.input_names, file.inputs, strict=True))
    outputs = tuple(_port(path, OUTPUT, file, index) for index in file.outputs)
    return Written(
        path,
        counts_of(operators),
        CoverageRecord(total=len(operators), by_unit=units_of(operators), fallbacks=fallbacks),
        as_fallbacks(path, fallbacks),
        inputs,
        outputs,
        operators=operators,
    )


def _port(path: Path, name: str, file: FileGraph, index: int) -> Port:
    tensor = file.tensors.get(index)
    if tensor is None:
        raise ExportError(f"'{name}' of {path.name} is no tensor. Export it again.")
    return Port(name, tensor.shape, {"fp32": "float32", "fp16": "float16"}.get(tensor.type, tensor.type), layout_of(tensor.shape))


class _ExecuTorchRunner:
    """A loaded `forward` method.

    A method keeps the address of the pool of threads that there was when it was loaded, and reads freed memory once that was replaced. So before the
    pool is, every runner gives up its method, and loads it again, with its own number of threads, when it is next asked.
    """

    _alive: ClassVar[WeakSet[_ExecuTorchRunner]] = WeakSet()

    def __init__(self, path: Path, threads: int) -> None:
        import torch  # first: it loads the libraries that the runtime is linked with

        # The C++ runtime itself. `executorch.runtime` wraps it and imports the whole compiler (4 s and 300 MB), which would be counted as the file's
        # memory and paid for each timing; the bundle's verify.py executes the same files through `executorch.runtime`.
        from executorch.extension.pybindings import _portable_lib

        self._torch, self._library, self._threads = torch, _portable_lib, threads
        self._program = _portable_lib._load_program(str(path), program_verification=_portable_lib.Verification.InternalConsistency)
        self._method: Any = None
        self.runtime = f"executorch {version_of('executorch')} XNNPACK CPU"
        meta = self._loaded().method_meta()
        names = input_names(self._stated_names(), meta.num_inputs())
        self.inputs: tuple[Port, ...] = tuple(_float_port(name, meta.input_tensor_meta(index)) for index, name in enumerate(names))
        self.outputs: tuple[Port, ...] = (_float_port(OUTPUT, meta.output_tensor_meta(0)),)

    def _loaded(self) -> Any:
        if self._method is None:
            if self._library._threadpool_get_thread_count() != self._threads:
                for runner in self._alive:
                    runner._method = None
                self._library._unsafe_reset_threadpool(self._threads)  # the only way to say how many threads XNNPACK may use
            self._method = self._program.load_method("forward")
            self._alive.add(self)
        return self._method

    def _stated_names(self) -> str:
        methods = [self._program.get_method_name(index) for index in range(self._program.num_methods())]
        return str(self._program.load_method(INPUT_NAMES).call([])[0]) if INPUT_NAMES in methods else ""

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """Float32 NCHW in and out; of several outputs the first."""
        return self._execute(encoded)[0]

    def run(self, *values: FloatArray) -> FloatArray:
        """Float32 NCHW in and out."""
        return self.outputs[0].decode(self.execute(*encode_all(self.inputs, values)))

    def run_for_all(self, *values: FloatArray) -> list[FloatArray]:
        """The same, with every output of a file that has several."""
        return [self.outputs[0].decode(output) for output in self._execute(encode_all(self.inputs, values))]

    def _execute(self, encoded: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        # The binding clones the outputs, because the runtime reuses their memory.
        return [output.numpy() for output in self._loaded()([self._torch.from_numpy(one) for one in encoded])]


def _float_port(name: str, meta: Any) -> Port:
    sizes = tuple(meta.sizes())
    return Port(name, sizes, "float32", layout_of(sizes))


def load(path: Path, threads: int) -> _ExecuTorchRunner:
    """Load the file into ExecuTorch's runtime. Raises `ExportError`, also for damaged files.

    The number of threads is the whole process's: of several runners each may have its own, at the cost of loading again in turn.
    """
    probe()
    check_loadable(path)
    with BackendCall(NAME, f"load {path.name}", "The file may be damaged; export it again."):
        return _ExecuTorchRunner(path, threads)
