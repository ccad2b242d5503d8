"""What the matrix of scores of attention costs on Apple's Neural Engines, from the latencies that SnapFusion publishes for two U-Nets.

Stable Diffusion's U-Net takes 7.4 times as long as SnapFusion's, with 1.3 times its multiply-adds: what differs is attention at the highest
resolution, where 4,096 places look at 4,096 others. One constant, the rate at which such a matrix is made and used up, explains both.
"""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar

from device_fits.constants import FITTED_ON
from device_fits.figures import SNAPFUSION, Figures
from device_fits.plan import Plan
from mcompress.calibration.device_file import four_digits
from mcompress.compress.networks import network_table
from mcompress.targets.latency import estimate
from mcompress.targets.speeds import PrecisionName, Source

SLOWEST_GBS, FASTEST_GBS = 0.05, 50.0


def estimated_ms(plan: Plan, unit: str, precision: PrecisionName, name: str) -> float:
    """A published network on a unit of the device as planned so far."""
    return estimate(network_table(name), plan.device(), unit, precision).value


def add_scores(plan: Plan, unit: str, figures: Figures, phone: str) -> None:
    """Give attention on a unit the rate of its scores that suits these latencies, ms in FP16, best; other precisions make as many bytes a second."""
    own = plan.units[unit].speeds

    def with_rate(gbs: float) -> None:
        speeds = {}
        for precision, found in own.items():
            row = found.operators["attention"].model_copy(update={"scores_gbs": four_digits(gbs), "source": key(precision)})
            speeds[precision] = found.model_copy(update={"operators": {**found.operators, "attention": row}})
        plan.units[unit] = plan.units[unit].model_copy(update={"speeds": speeds})

    def key(precision: PrecisionName) -> str:
        return f"{unit}-{precision}-attention"

    def best(names: tuple[str, ...]) -> float:
        def error(log_gbs: float) -> float:
            with_rate(math.exp(log_gbs))
            return sum(math.log(estimated_ms(plan, unit, "fp16", name) / figures[name]) ** 2 for name in names)

        return math.exp(
            float(minimize_scalar(error, bounds=(math.log(SLOWEST_GBS), math.log(FASTEST_GBS)), method="bounded", options={"xatol": 1e-3}).x)
        )

    for precision, found in own.items():
        rate = plan.sources[found.operators["attention"].source].text
        listed = ", ".join(f"{name} {ms:g} ms" for name, ms in sorted(figures.items()))
        text = f"{rate}; of its scores the rate that suits {listed} best, in FP16: {SNAPFUSION.text}, {phone}"
        plan.sources[key(precision)] = Source(text=text, date=FITTED_ON, runtime=SNAPFUSION.runtime, fitted_to=tuple(sorted(figures)))
    unseen = {}
    for left_out in figures if len(figures) > 1 else ():
        with_rate(best(tuple(name for name in figures if name != left_out)))
        unseen[left_out] = estimated_ms(plan, unit, "fp16", left_out) / figures[left_out] - 1
    with_rate(best(tuple(figures)))
    if unseen:
        worth = "; ".join(f"fitted to the other alone, {name} is off by {error:+.0%}".replace("%", " %") for name, error in unseen.items())
        for precision in own:
            source = plan.sources[key(precision)]
            plan.sources[key(precision)] = source.model_copy(update={"text": f"{source.text}; {worth}"})
