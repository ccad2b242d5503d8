"""NVIDIA's Jetson boards, in pairs whose GPUs are of one kind: one fit to the figures of both, one factor between them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from device_fits.constants import DONOR_TOO, IN_VIEW, Fitted, samples, times
from device_fits.cpus import from_ncnn
from device_fits.figures import (
    AGX_XAVIER,
    FP16_NANO,
    FP16_XAVIER,
    INT8_NANO,
    INT8_TX2,
    NANO,
    TALKING_FACES,
    TORCH2TRT_NANO,
    TORCH2TRT_XAVIER,
    TX2,
    XAVIER_NX,
    Board,
    Figures,
    Publication,
    growth,
)
from device_fits.measured import Measured
from device_fits.plan import ALL, CPU_RUNS, EVERY, Files, Plan, assumed_hop
from device_fits.snapdragon import CPU_FILES
from mcompress.calibration.latency_fit import Fit, HeldOut, Prior, fit
from mcompress.compress.networks import family_of, network_table
from mcompress.published import prior_of
from mcompress.targets.speeds import PrecisionName, Source
from mcompress.targets.validation import Check, Validation

FITTED_ON = "2026-11-22"
"""When the boards were fitted together, and checked on what others published."""
NETWORKS = ("compressed_wav2lip", "wav2lip")
"""What the figures of both boards are of."""
LEVELS: Mapping[PrecisionName, float] = {"fp32": 300.0, "fp16": 1200.0, "int8": 1800.0}
"""Where fits of GPUs with tensor cores start: 10^9 multiply-adds a second."""
FLOAT_ONLY: Files = {"fp16": "fp16", "fp32": "fp32"}
ZERO_POINTS = (
    "TensorRT's parser refuses INT8 with zero points other than 0 (NVIDIA/TensorRT issues 2774 of 2023-03 and 4698 of 2026-02; onnx-tensorrt "
    "release/8.5-GA docs/operators.md); that every version for these boards does is an assumption"
)
"""How it is known which activations TensorRT takes."""
HOP = "a tenth of the Snapdragon 865's, because CPU and GPU share a process and a memory"
KEPT = "relative to convolutions, or to memory, as in the fit of the Snapdragon 865's GPU: two networks decide the level alone"
MIXTURE = ", a mixture of INT8 and FP16 as if all were INT8, so that INT8 is no slower than this"


@dataclass(frozen=True)
class Pair:
    """Two boards: the constants of the faster are those of the slower times one factor, in all precisions."""

    slow: str
    slow_ms: Board
    fast: str
    fast_ms: Board
    tensor_cores: bool
    apart: str = ""
    """What is missing of the figures: `, ...`, or nothing."""

    def ratio(self, networks: Collection[str] = NETWORKS) -> float:
        """How many times as fast the faster is: the geometric mean over all precisions in which these networks are published of both."""
        return growth(
            {
                f"{name} {computed}": (ms, self.fast_ms[computed][name])
                for computed, own in self.slow_ms.items()
                for name, ms in own.items()
                if name in networks and name in self.fast_ms[computed]
            }
        )

    def fit(self, data: Measured, computed: PrecisionName, networks: Collection[str] = NETWORKS, *, without: str | None = None) -> Fit:
        """The slower board's constants from the figures of both, of these networks alone; `without` a family where the fit starts, too."""
        ratio = self.ratio(networks)
        slow = {name: ms for name, ms in self.slow_ms[computed].items() if name in networks}
        fast = {name: ms * ratio for name, ms in self.fast_ms[computed].items() if name in networks}
        some = (*samples(slow), *samples(fast))
        like = data.gpu865.unseen(without)
        prior = replace(prior_of(like, computed, rate_spread=0.1), outputs=(8,), inputs=(1,), pads_memory=(False,))
        if self.tensor_cores:
            return fit(some, replace(prior, gmacs=LEVELS[computed], gbs=40.0, dispatch_us=10.0, invoke_us=30.0))
        estimated = Fit.of(like, prior).estimate_ms([sample.table for sample in some])
        return fit(some, _faster(prior, math.exp(float(np.mean(np.log(estimated / [sample.measured_ms for sample in some]))))))

    @property
    def start(self) -> str:
        """Where the fits start, for a source."""
        factor = "" if self.tensor_cores else ", all times the factor that suits the figures best"
        times_as_fast = f"{self.fast} {self.ratio():.3g} times as fast as {self.slow} in all precisions"
        return f"of both boards together, {times_as_fast}{self.apart}, starting at the Snapdragon 865's GPU{factor}"


VOLTA = Pair("Xavier NX", XAVIER_NX, "AGX Xavier", AGX_XAVIER, tensor_cores=True)
OLDER = Pair("Nano", NANO, "TX2", TX2, tensor_cores=False, apart=" (Wav2Lip in FP32 of the TX2 alone: on the Nano its conversion to TensorRT failed)")


@dataclass(frozen=True)
class Gpu:
    """One board of a pair."""

    pair: Pair
    is_fast: bool
    unseen: Figures
    """What others published of networks that the fit does not see, in FP16."""
    unseen_text: str
    """By whom; or why there are none."""

    @property
    def figures(self) -> Board:
        """Its own."""
        return self.pair.fast_ms if self.is_fast else self.pair.slow_ms

    def precisions(self, data: Measured) -> dict[PrecisionName, Fitted]:
        """Constants, sources and checks of every precision that is published."""
        return {computed: self._fitted(data, computed) for computed in self.figures}

    def _fitted(self, data: Measured, computed: PrecisionName) -> Fitted:
        pair, key = self.pair, f"gpu-{computed}"
        count = len(pair.slow_ms[computed]) + len(pair.fast_ms[computed])
        text = (
            f"fit of tests/benchmarks/fit_devices.py to {count} published latencies, {pair.start}{MIXTURE if computed == 'int8' else ''}: "
            f"{TALKING_FACES.text}{'' if self.unseen and computed != 'fp16' else f'; {self.unseen_text}'}"
        )
        found = self._moved(pair.fit(data, computed), pair.ratio())
        left_out, unseen = tuple(self._left_out(data, computed)), self._never_seen(found) if computed == "fp16" else ()
        others = ", and others that the fit did not see (its start has seen some of them on another chip)"
        how = f"leave-one-out within one family of networks{others}" if unseen else HeldOut(left_out, families=1).how
        return Fitted(
            found.speeds(fitted=key, assumed=f"{key}-assumed"),
            {
                key: Source(text=text, date=FITTED_ON, runtime=TALKING_FACES.runtime, fitted_to=NETWORKS),
                f"{key}-assumed": Source(text=KEPT, date=FITTED_ON, runtime="none"),
            },
            Validation(how=f"{how}, {DONOR_TOO}, {IN_VIEW}", source=key, checks=(*left_out, *unseen)),
            computed,
        )

    def _left_out(self, data: Measured, computed: PrecisionName) -> Iterator[Check]:
        """Each network from the other, and the factor between the boards from the other too."""
        for name, ms in sorted(self.figures[computed].items()):
            others = [other for other in NETWORKS if other != name]
            found = self._moved(self.pair.fit(data, computed, others, without=family_of(name)), self.pair.ratio(others))
            yield Check(network=name, measured_ms=ms, estimated_ms=float(found.estimate_ms([network_table(name)])[0]))

    def _never_seen(self, found: Fit) -> tuple[Check, ...]:
        """With the constants as they are: what leaves a network out at the start would give it others than a user gets."""
        return tuple(
            Check(network=name, measured_ms=ms, estimated_ms=float(found.estimate_ms([network_table(name)])[0]))
            for name, ms in sorted(self.unseen.items())
        )

    def _moved(self, found: Fit, ratio: float) -> Fit:
        """From the slower board to this one."""
        factor = ratio if self.is_fast else 1.0
        moved = replace(
            found.arrays, gmacs=found.arrays.gmacs * factor, near_gbs=found.arrays.near_gbs * factor, far_gbs=found.arrays.far_gbs * factor
        )
        return replace(found, arrays=moved, dispatch_us=found.dispatch_us / factor, invoke_us=found.invoke_us / factor)


def _faster(prior: Prior, factor: float) -> Prior:
    return replace(
        prior, gmacs=prior.gmacs * factor, gbs=prior.gbs * factor, dispatch_us=prior.dispatch_us / factor, invoke_us=prior.invoke_us / factor
    )


def _checked(published: Publication) -> str:
    return f"networks that it did not see: {published.text} ({published.runtime})"


def _as_checked(other: str) -> str:
    return f"no figure of other networks is known of this board: see {other}, whose constants are these times one factor"


def xavier_nx(data: Measured) -> Plan:
    plan = Plan(
        "jetson-xavier-nx", "NVIDIA Jetson Xavier NX", ("xavier-nx",), "linux", 4000, "half of the 8 GB of the smaller module", "gpu",
        assumed_hop(HOP, 100.0),
    )  # fmt: skip
    return _volta(data, plan, Gpu(VOLTA, False, {}, _as_checked("jetson-agx-xavier")))


def agx_xavier(data: Measured) -> Plan:
    plan = Plan(
        "jetson-agx-xavier", "NVIDIA Jetson AGX Xavier", ("agx-xavier",), "linux", 8000, "half of the 16 GB of the first module", "gpu",
        assumed_hop(HOP, 100.0),
    )  # fmt: skip
    return _volta(data, plan, Gpu(VOLTA, True, FP16_XAVIER, _checked(TORCH2TRT_XAVIER)))


def _volta(data: Measured, plan: Plan, gpu: Gpu) -> Plan:
    cores = "as the Raspberry Pi 5's four Cortex-A76, which few figures decide; TensorRT does not use this unit"
    plan.add("cpu", "Carmel", CPU_FILES, ALL, times(from_ncnn(data, "raspberrypi5"), "cpu", 1.0, cores), can=CPU_RUNS)
    can = (
        "TensorRT is published in FP32, FP16 and a mixture of INT8 and FP16 on these boards (Nota-NetsPresso/nota-wav2lip at 01cfa87 of 2024-03-08); "
        "that it takes every kind of operator is an assumption"
    )
    plan.add("gpu", "Volta, with tensor cores", EVERY, ALL, gpu.precisions(data), can=can, fallback="cpu")
    plan.built_from("gpu", "onnx")
    plan.takes_symmetric("gpu", ZERO_POINTS)
    return plan


def tx2(data: Measured) -> Plan:
    plan = _older("jetson-tx2", "NVIDIA Jetson TX2", ("tx2",), "half of the 4 GB of the smaller module")
    gpu = Gpu(OLDER, True, {}, _as_checked("jetson-nano"))
    plan.add("gpu", "Pascal GP10B", FLOAT_ONLY, ALL, gpu.precisions(data), can=_no_int8("GP10B is of compute capability 6.2", INT8_TX2))
    plan.built_from("gpu", "onnx")
    return plan


def nano(data: Measured) -> Plan:
    plan = _older("jetson-nano", "NVIDIA Jetson Nano", (), "half of the 4 GB of the module")
    gpu = Gpu(OLDER, False, FP16_NANO, _checked(TORCH2TRT_NANO))
    plan.add("gpu", "Maxwell GM20B", FLOAT_ONLY, ALL, gpu.precisions(data), can=_no_int8("GM20B is of compute capability 5.3", INT8_NANO))
    plan.built_from("gpu", "onnx")
    return plan


def _older(name: str, title: str, aliases: tuple[str, ...], memory: str) -> Plan:
    """With a GPU alone: of the Cortex-A57 and Denver 2 cores no figure is known here, and no core of another device is like them (Armv8.0)."""
    return Plan(name, title, aliases, "linux", 2000, memory, "gpu", assumed_hop("there is one unit here", 0.0, FITTED_ON), FITTED_ON)


def _no_int8(which: str, said: str) -> str:
    return (
        "TensorRT is published in FP32 and FP16 on this board (Nota-NetsPresso/nota-wav2lip at 01cfa87 of 2024-03-08), and it runs no INT8: the "
        f"{which}, which has no dot products of INT8, and {said}; that it takes every kind of operator in FP32 and FP16 is an assumption"
    )
