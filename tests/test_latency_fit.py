"""The fit: exact slopes, constants found again from estimates that they made, priors kept where nothing is measured, outliers that bend little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from operator_rows import row

from mcompress.calibration import latency_fit
from mcompress.calibration.latency_fit import CLASSES, KINDS, Prior, Sample, fit, leave_families_out, leave_networks_out
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate
from mcompress.targets.operators import Kind, OperatorTable, Runtime
from mcompress.targets.roofline import SpeedArrays


def tables(count: int, seed: int = 0) -> list[OperatorTable]:
    """Small networks of several kinds, of any size."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows = []
        for _ in range(int(rng.integers(3, 30))):
            channels, side = int(rng.choice([16, 24, 32, 64, 100, 256])), int(rng.choice([7, 14, 28, 56, 112]))
            kind: Kind = rng.choice(["convolution", "depthwise_convolution", "elementwise", "concatenate", "normalization", "matmul"])
            kernel = 3 if kind.endswith("convolution") else 1
            groups = channels if kind == "depthwise_convolution" else 1
            rows.append(row(kind, channels, channels, side, kernel, groups, operation="x"))
        found.append(OperatorTable(tuple(rows), 0))
    return found


PRIOR = Prior("fp16", 300.0, 20.0, 5.0, 100.0, outputs=(8, 32), inputs=(1,), pads_memory=(False, True))


def truth(**changes: object) -> SpeedArrays:
    gmacs = np.array([400.0 if name in latency_fit.MULTIPLYING else np.inf for name in CLASSES])
    gmacs[[CLASSES.index(name) for name in ("depthwise_convolution", "large_depthwise_convolution")]] = 5.0
    slowdown = np.ones(len(CLASSES))
    slowdown[CLASSES.index("normalization")] = slowdown[CLASSES.index("softmax")] = 3.0
    zeros = np.zeros(len(CLASSES))
    found = SpeedArrays(gmacs, zeros, zeros, slowdown, near_gbs=15.0, far_gbs=15.0, cache_mb=np.inf, outputs=32, inputs=1, pads_memory=True)
    return replace(found, **changes)  # type: ignore[arg-type]


def rows(some: list[OperatorTable], fuses: Runtime | None = None) -> latency_fit._Rows:
    return latency_fit._Rows.of(some, replace(PRIOR, fuses=fuses))


def measured(some: list[OperatorTable], noise: float = 0.0) -> list[Sample]:
    times = latency_fit._estimate_ms(rows(some), truth(), 8.0, 300.0, 2)
    factors = np.exp(np.random.default_rng(1).normal(0, noise, len(some)))
    return [Sample(f"n{index}", table, float(ms * factor)) for index, (table, ms, factor) in enumerate(zip(some, times, factors, strict=True))]


def test_constants_are_found_again() -> None:
    found = fit(measured(tables(60)), replace(PRIOR, rate_spread=2.0, level_spread=3.0, pads_memory=(True,)))
    arrays = found.arrays
    assert arrays.outputs == 32
    by_name = dict(zip(CLASSES, arrays.gmacs, strict=True))
    assert by_name["convolution"] == pytest.approx(400, rel=0.05)
    assert by_name["depthwise_convolution"] == pytest.approx(5, rel=0.1)
    assert arrays.near_gbs / arrays.slowdown[CLASSES.index("normalization")] == pytest.approx(5.0, rel=0.15)
    assert found.invoke_us == pytest.approx(300, rel=0.1)
    assert found.loss < 0.05


def test_estimates_of_what_was_left_out() -> None:
    some = measured(tables(40), noise=0.05)
    chosen = fit(some, PRIOR)
    checks = leave_families_out(some, partial(fit, prior=chosen.narrowed)).checks
    assert [check.network for check in checks] == [sample.name for sample in some]
    errors = np.abs([check.error for check in checks])
    assert np.median(errors) < 0.1
    seen = np.abs(chosen.estimate_ms([s.table for s in some]) / [s.measured_ms for s in some] - 1)
    assert errors.mean() > seen.mean()


def test_samples_of_one_family_are_left_out_together() -> None:
    some = [replace(sample, family=f"f{index // 3}") for index, sample in enumerate(measured(tables(12)))]
    fitted_to: list[set[str]] = []

    def again(kept: Sequence[Sample]) -> latency_fit.Fit:
        fitted_to.append({sample.family for sample in kept})
        return fit(kept, PRIOR)

    held = leave_families_out(some, again)
    assert held.families == 4
    assert fitted_to == [{"f0", "f1", "f2", "f3"} - {left_out} for left_out in ("f0", "f1", "f2", "f3")]
    assert [check.network for check in held.checks] == [sample.name for sample in some]
    assert held.how.startswith("leave-one-family-out")
    three = [sample for sample in some if sample.family != "f0"]
    assert held.checks[1].estimated_ms == float(fit(three, PRIOR).estimate_ms([some[1].table])[0])


def test_one_network_left_out_keeps_its_relatives() -> None:
    some = [replace(sample, family="f") for sample in measured(tables(4))]
    held = leave_networks_out(some, partial(fit, prior=PRIOR))
    assert held.families == 4
    others = [sample for sample in some if sample.name != some[2].name]
    assert held.checks[2].estimated_ms == float(fit(others, PRIOR).estimate_ms([some[2].table])[0])


def test_samples_of_one_name_are_left_out_together() -> None:
    some = measured(tables(12))
    twice = [*some, replace(some[0], measured_ms=some[0].measured_ms * 3)]
    checks = leave_families_out(twice, partial(fit, prior=PRIOR)).checks
    assert checks[0].estimated_ms == checks[-1].estimated_ms


def test_one_family_alone_is_checked_within_itself_and_says_so() -> None:
    some = [replace(sample, family="f") for sample in measured(tables(4))]
    held = leave_families_out(some, partial(fit, prior=PRIOR))
    assert (len(held.checks), held.families) == (4, 1)
    assert "within one family" in held.how
    with pytest.raises(ValueError, match="1 measurements cannot be left out of one another"):
        leave_families_out(some[:1], partial(fit, prior=PRIOR))


def test_one_outlier_bends_little() -> None:
    some = measured(tables(40))
    honest = fit(some, PRIOR)
    spoilt = fit([replace(some[0], measured_ms=some[0].measured_ms * 20), *some[1:]], PRIOR)
    unspoilt = [sample.table for sample in some]
    assert np.median(np.abs(spoilt.estimate_ms(unspoilt) / honest.estimate_ms(unspoilt) - 1)) < 0.05


def test_what_nothing_decides_stays_where_the_prior_has_it() -> None:
    prior = replace(PRIOR, rates={**latency_fit.RELATIVE_RATE, "attention": 0.123})
    found = fit(measured(tables(30)), prior)
    by_name = dict(zip(CLASSES, found.arrays.gmacs, strict=True))
    assert by_name["attention"] / by_name["convolution"] == pytest.approx(0.123 / np.exp(_moved(found, prior)), rel=0.02)
    assert "attention" not in found.determined
    assert {"convolution", "depthwise_convolution"} <= found.determined
    speeds = found.speeds(fitted="fit", assumed="guess")
    assert speeds.operators["attention"].source == "guess"
    assert speeds.operators["convolution"].source == "fit"
    assert set(speeds.operators) >= set(KINDS)


def _moved(found: latency_fit.Fit, prior: Prior) -> float:
    """By how much the rate of convolutions moved away from the level that all classes share."""
    gmacs = dict(zip(CLASSES, found.arrays.gmacs, strict=True))
    level = gmacs["attention"] / prior.rates["attention"]
    return float(np.log(gmacs["convolution"] / level))


def test_an_unknown_operator_costs_the_fit_what_it_costs_the_estimate() -> None:
    """The constants that a fit writes, read back, say of any table what the fit says."""
    strange = replace(row("other", 64, 64, 56, operation="fft_rfft2"), macs=89_000_000)
    known = tables(8)
    mixed = [replace(table, operators=(*table.operators, strange)) for table in known]
    for some in (measured(known), [replace(sample, table=table) for sample, table in zip(measured(known), mixed, strict=True)]):
        found = fit(some, PRIOR)
        again = latency_fit.Fit.of(found.speeds(fitted="fit", assumed="guess"), PRIOR)
        np.testing.assert_allclose(found.estimate_ms(mixed), again.estimate_ms(mixed), rtol=1e-3)  # numbers are written with four digits
        assert np.all(found.estimate_ms(mixed) > found.estimate_ms(known) + strange.macs / found.arrays.gmacs[CLASSES.index("matmul")] / 1e6)


@pytest.mark.parametrize(
    "prior",
    [
        PRIOR,
        replace(PRIOR, computed="int8", classes=CLASSES, ramps=True),
        replace(PRIOR, classes=CLASSES, ramps=True, cache_mb=1.0, far_gbs=4.0),
        replace(PRIOR, classes=CLASSES, ramps=True, fuses="onnxruntime"),
        replace(PRIOR, fuses="onnxruntime"),
    ],
    ids=["whole networks", "suite", "cache", "suite with passes", "networks with passes"],
)
def test_slopes_are_those_of_the_estimate(prior: Prior) -> None:
    strange = [replace(row("other", 64, 64, 28, operation="x"), macs=macs) for macs in (0, 10**6, 10**9)]
    some = [replace(table, operators=tuple(replace(one, fused=("silu",)) for one in (*table.operators, *strange))) for table in tables(10)]
    columns = rows(some, prior.fuses)
    unknowns = latency_fit._Unknowns(prior, 32, 4, True)
    x = unknowns.start + np.random.default_rng(2).normal(0, 0.3, len(unknowns.start))

    def estimated(y: np.ndarray) -> np.ndarray:
        return latency_fit._estimate_ms(columns, *unknowns.arrays(y), 2)

    found = unknowns.gradient(columns, x, 2)
    assert found.shape == (10, len(x))
    for index in range(len(x)):
        step = 1e-5 * (np.arange(len(x)) == index)
        np.testing.assert_allclose(found[:, index], (estimated(x + step) - estimated(x - step)) / 2e-5, atol=2e-4 * estimated(x).max())


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="without measurements there is nothing to fit"):
        fit([], PRIOR)


def test_one_measurement_moves_the_level_and_leaves_the_rest() -> None:
    (one,) = measured(tables(1))
    found = fit([one], replace(PRIOR, rate_spread=0.01))
    assert float(found.estimate_ms([one.table])[0]) == pytest.approx(one.measured_ms, rel=0.02)
    by_name = dict(zip(CLASSES, found.arrays.gmacs, strict=True))
    assert by_name["matmul"] / by_name["convolution"] == pytest.approx(latency_fit.RELATIVE_RATE["matmul"], rel=0.05)


def test_every_number_has_one_source() -> None:
    """A finer class is listed only where it has a number of its own; what follows another has that one's source."""
    some = measured(tables(30))
    coarse = fit(some, PRIOR)
    assert set(coarse.speeds(fitted="fit", assumed="guess").operators) == set(KINDS)
    finer = replace(PRIOR, classes=(*KINDS, "pointwise_convolution"))
    assert "pointwise_convolution" not in fit(some, finer).speeds(fitted="fit", assumed="guess").operators  # all of these have 3x3
    known = replace(finer, rates={**latency_fit.RELATIVE_RATE, "pointwise_convolution": 1.7})
    kept = fit(some, known).speeds(fitted="fit", assumed="guess").operators["pointwise_convolution"]
    assert kept.source == "guess"
    pointwise = OperatorTable((row("convolution", 1024, 1024, 56, kernel=1),), 0)
    alone = fit([Sample("a", pointwise, 11.0)], PRIOR).speeds(fitted="fit", assumed="guess")
    assert alone.operators["convolution"].source == "fit"  # through the class that follows it


def test_an_alignment_that_is_not_chosen_is_not_fitted() -> None:
    some = measured(tables(10))
    assert fit(some, PRIOR).speeds(fitted="fit", assumed="guess").alignment.source == "fit"
    assert fit(some, fit(some, PRIOR).narrowed).speeds(fitted="fit", assumed="guess").alignment.source == "guess"


def test_a_fit_is_repeatable() -> None:
    some = measured(tables(20), noise=0.1)
    one, other = fit(some, PRIOR), fit(some, PRIOR)
    assert one.speeds(fitted="a", assumed="b") == other.speeds(fitted="a", assumed="b")


def test_a_runtime_that_fuses_little_is_fitted_as_it_is_estimated() -> None:
    """One price of an activation's own pass, for the fit and for the estimate."""
    device = load_device("snapdragon865")
    cpu = device.units["cpu"]
    (first,) = tables(1)[0].operators[:1]
    table = OperatorTable((replace(first, fused=("silu",)), replace(first, name="b", fused=("relu",))), 0)
    assert cpu.fuses == "onnxruntime"
    priced = latency_fit.Fit.of(cpu.speeds["int8"], replace(PRIOR, computed="int8", fuses=cpu.fuses))
    whole = replace(priced, prior=replace(priced.prior, fuses=None))
    assert float(priced.estimate_ms([table])[0]) == pytest.approx(estimate(table, device, "cpu", "int8").value, rel=1e-9)
    assert float(priced.estimate_ms([table])[0]) > float(whole.estimate_ms([table])[0])
