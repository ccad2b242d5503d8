"""Plans of the small generators: INT8 for all that can be, another precision for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from int8_plans import quiet
from torch import Tensor, fx

from mcompress.calibration.observers import Method
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.simulate import simulate
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.export.backend import FloatArray

METHOD: Method = "mse"


def planned(program: fx.GraphModule, inputs: Sequence[Tensor], rest: Precision) -> PrecisionPlan:
    """Calibrated with these inputs, whose values are between -1 and 1; `rest` is what no runtime computes in INT8."""
    ranges, _ = calibrate(program, ((one,) for one in inputs), METHOD, [(-1.0, 1.0)], len(inputs), quiet)
    plan = uniform_plan(program, ranges)
    return replace(plan, operators=tuple(o if o.precision == "int8" else replace(o, precision=rest) for o in plan.operators))


def decibels(program: fx.GraphModule, plan: PrecisionPlan, value: Tensor, result: FloatArray) -> tuple[float, float]:
    """SQNR of a file's result against the simulated plan, and of the simulated plan against the float network, dB."""
    exact, floats = simulate(program, plan, value).detach().numpy(), program(value).detach().numpy()
    return _db(exact, result), _db(floats, exact)


def _db(expected: FloatArray, found: FloatArray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / max(np.square(expected - found).sum(), 1e-20)))
