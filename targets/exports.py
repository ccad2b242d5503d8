"""One configuration class per export backend."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from mcompress.targets.speeds import PrecisionName


class Export(BaseModel):
    """What every backend has: the parity limits that its files must meet, and how long they are timed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    systems: ClassVar[tuple[str, ...]] = ("android", "ios", "linux", "macos", "windows")
    """Operating systems on which the backend's files run."""
    units: ClassVar[tuple[str, ...]] = ("cpu",)
    """Compute units that the files reach with the runtime's own delegates, the fastest first."""
    floats: ClassVar[PrecisionName] = "fp32"
    """What is written for an operator that is not INT8."""
    backend: str

    float_limit: float = Field(default=1e-3, gt=0, le=1)
    """Largest absolute difference of the float file to PyTorch, as a share of the output range."""
    int8_limit_db: float = Field(default=35.0, ge=0, le=120)
    """Least SQNR of the quantized file against the fake-quantized reference, dB."""
    keep_slower: bool = False
    """Whether the mixed file is shipped even if it is slower than the float file in the backend's runtime on the machine that makes the bundle."""
    profile_s: float = Field(default=3.0, gt=0, le=600)
    """A file is run on this machine for at most so many seconds to time it (at least 10 and at most 50 runs)."""

    def quick(self) -> Self:
        """The same export, timed briefly."""
        return self.model_copy(update={"profile_s": min(self.profile_s, 0.3)})


class OnnxConfig(Export):
    """ONNX, executed by onnxruntime."""

    backend: Literal["onnx"] = "onnx"
    opset: int = Field(default=18, ge=17, le=23)


class TFLiteConfig(Export):
    """TFLite (LiteRT), executed by ai-edge-litert; on phones also by LiteRT's GPU delegate."""

    units: ClassVar[tuple[str, ...]] = ("gpu", "cpu")

    backend: Literal["tflite"] = "tflite"


class ExecuTorchConfig(Export):
    """ExecuTorch with the XNNPACK delegate, executed by executorch.runtime."""

    backend: Literal["executorch"] = "executorch"


class CoreMLConfig(Export):
    """Core ML program; executed by Core ML on macOS, elsewhere by mcompress's evaluator, which says nothing about time."""

    systems: ClassVar[tuple[str, ...]] = ("ios", "macos")
    units: ClassVar[tuple[str, ...]] = ("npu", "gpu", "cpu")
    floats: ClassVar[PrecisionName] = "fp16"

    backend: Literal["coreml"] = "coreml"
    float_limit: float = Field(default=1e-4, gt=0, le=1)
    """Largest absolute difference of the float file, which is FP16 and for this computed in FP32, to PyTorch with its constants in FP16, as a share
    of the output range. Right files are below 3e-6; a constant that the converter folds in an unforeseen way may add its rounding."""
    half_limit_db: float = Field(default=40.0, ge=0, le=120)
    """Least SQNR of the float file, computed as written, against PyTorch with FP16 simulated, dB. Right files have 64 dB and more."""
    minimum_deployment_target: Literal["iOS16", "iOS17", "iOS18"] = "iOS17"
    chunks: Literal[1, 2] = 1
    """2 divides the package into two models of about equally large weights, each in a file of its own, for networks whose weights are more than a
    phone maps at once (Apple chunks the U-Net of Stable Diffusion for iOS). It stays one package, a pipeline: apps load and call it as one model."""


ExportConfig = Annotated[OnnxConfig | TFLiteConfig | ExecuTorchConfig | CoreMLConfig, Field(discriminator="backend")]
