"""The fits to the CSV file, which several devices start from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from device_fits.constants import GUESS, Fitted, Precisions, Words, fitted, rows_of, samples, to_prior
from device_fits.figures import AI_HUB_RELEASES, ai_hub
from mcompress.calibration.latency_fit import RELATIVE_SLOWDOWN, Prior
from mcompress.targets.speeds import KINDS, PrecisionName, SpeedClass

COARSE: tuple[SpeedClass, ...] = (*KINDS, "volumetric_convolution")
CLASSES: tuple[SpeedClass, ...] = (*COARSE, "pointwise_convolution")
"""What whole networks tell apart on a CPU or a GPU, and on an NPU; chosen with these networks in view, which the checks say."""
NPU_SLOWDOWN: dict[SpeedClass, float] = {
    **RELATIVE_SLOWDOWN, "normalization": 1.0, "concatenate": 0.5, "elementwise": 0.7, "activation": 0.7, "pooling": 1.0,
}  # fmt: skip
"""An NPU's compiler merges these into their neighbours, or leaves the tensor in the memory beside the arithmetic."""
HEXAGON = 32
HEXAGON_KEPT = (
    f"{GUESS}; channels in groups of {HEXAGON}, the depth-32 layout of Hexagon NN (nnlib hexagon/include/nn_graph_types.h), "
    "assumed of newer Hexagons too"
)
GPU_PRIOR = Prior("fp16", 200.0, 12.0, 15.0, 1500.0, outputs=(4, 8, 16), inputs=(1, 4), pads_memory=(True,), classes=COARSE, rate_spread=1.0)
CPU_PRIOR = Prior(
    "int8", 200.0, 10.0, 10.0, 100.0, outputs=(8, 16), inputs=(1, 4), pads_memory=(False,), classes=COARSE, rate_spread=0.5, fuses="onnxruntime"
)
HVX_PRIOR = Prior("int8", 450.0, 8.0, 15.0, 800.0, outputs=(HEXAGON,), inputs=(1, 4), pads_memory=(True,), classes=CLASSES, rate_spread=1.0)
NPU_PRIOR = Prior(
    "fp16", 4000.0, 60.0, 2.0, 80.0, outputs=(HEXAGON,), inputs=(1,), pads_memory=(True,), classes=CLASSES, rate_spread=1.0, slowdowns=NPU_SLOWDOWN
)
NPU_INT8_PRIOR = replace(NPU_PRIOR, computed="int8", gmacs=12000.0, gbs=100.0, dispatch_us=1.0)
NPU_W8A16_PRIOR = replace(NPU_PRIOR, computed="w8a16", rate_spread=0.5)
"""Fewer networks are published than in float, so that they move its relations less."""
BOARDS = {"snapdragon8gen1": "QCS8450 (Proxy)", "snapdragon8gen3": "Samsung Galaxy S24", "snapdragon8elite": "Samsung Galaxy S25"}
RB5 = "RB5 (Proxy)"
WRITTEN_AS: dict[str, PrecisionName] = {"w8a8": "int8", "w8a16": "w8a16", "float": "fp16"}


class Measured:
    """The Snapdragon 865's units, and the NPUs of 8 Gen 1, 8 Gen 3 and 8 Elite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        cpu = partial(self._fit, device=RB5, unit="CPU", runtime="onnx", releases=("v0.44.0",))
        self.cpu865 = cpu("cpu-int8", CPU_PRIOR, precision="w8a8")
        self.cpu865_w8a16 = cpu("cpu-w8a16", replace(CPU_PRIOR, computed="w8a16", gmacs=50.0), precision="w8a16")
        self.gpu865 = self._fit("gpu-fp16", GPU_PRIOR, device=RB5, unit="GPU", precision="w8a8", runtime="tflite", releases=("v0.44.0",))
        self.npu865 = self._fit("npu-int8", HVX_PRIOR, device=RB5, unit="NPU", precision="w8a8", runtime="tflite", releases=("v0.39.0",))
        self.npus = {name: self._npu(board) for name, board in BOARDS.items()}

    def _npu(self, board: str) -> Precisions:
        fit = partial(self._fit, device=board, unit="NPU", releases=tuple(AI_HUB_RELEASES))
        return {
            "fp16": fit("npu-fp16", NPU_PRIOR, precision="float", runtime="tflite"),
            "int8": fit("npu-int8", NPU_INT8_PRIOR, precision="w8a8", runtime="tflite"),
            # Published for QNN, not for TFLite.
            "w8a16": fit("npu-w8a16", NPU_W8A16_PRIOR, precision="w8a16", runtime="qnn_dlc"),
        }

    def _fit(self, key: str, prior: Prior, *, device: str, unit: str, precision: str, runtime: str, releases: tuple[str, ...]) -> Fitted:
        rows = rows_of(self.path, device, unit, precision, runtime, releases)
        some = samples({row.network: row.latency_ms for row in rows})
        words = Words(kept=HEXAGON_KEPT if unit == "NPU" else GUESS)
        published = ai_hub(device, unit, precision, runtime, releases, unknown=len(rows.unknown), shared=rows.shared)
        return fitted(key, some, to_prior(prior), published, files=WRITTEN_AS[precision], words=words, one_by_one=True)
