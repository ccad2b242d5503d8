"""The estimator: every term by hand, the sum of the rows, many tables at once, and what must hold for any table."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mcompress.errors import TargetError, UsageError
from mcompress.targets.columns import apart
from mcompress.targets.device import Device
from mcompress.targets.device_files import list_devices, load_device, parse_device
from mcompress.targets.latency import estimate, estimate_many, operator_latencies, weight_bytes
from mcompress.targets.operators import CLAMPS, Kind, Operator, OperatorTable, Runtime
from mcompress.targets.speeds import PRECISIONS, PrecisionName

RATES = "convolution: {source: a, gmacs: 100, ramp_inputs: 18, ramp_outputs: 4}\n" + "\n".join(
    f"          {name}: {{source: a, gmacs: {gmacs}}}"
    for name, gmacs in {"depthwise_convolution": 20, "grouped_convolution": 50, "transposed_convolution": 100, "matmul": 60, "attention": 40}.items()
)
TEXT = f"""\
name: test-device
title: A device for tests
os: linux
preferred_unit: npu
memory: {{source: a, limit_mb: 100}}
sources:
  a: {{text: an assumption for tests, date: '2026-01-02', runtime: none}}
units:
  npu:
    title: an NPU
    runs: {{int8: [convolution, depthwise_convolution, elementwise, activation, concatenate], fp16: [convolution, elementwise]}}
    computes_in: {{int8: int8, fp16: fp16}}
    fallback_unit: cpu
    boundary: {{source: a, hop_us: 500}}
    speeds:
      int8:
        alignment: {{source: a, outputs: 32, inputs: 4, pads_memory: true}}
        memory: {{source: a, gbs: 10}}
        overhead: {{source: a, dispatch_us: 7, invoke_us: 90}}
        operators:
          {RATES}
          concatenate: {{source: a, slowdown: 0.5}}
          clamp: {{source: a, slowdown: 4}}
      fp16:
        alignment: {{source: a, outputs: 32, inputs: 4, pads_memory: true}}
        memory: {{source: a, gbs: 10}}
        overhead: {{source: a, dispatch_us: 9, invoke_us: 110}}
        operators:
          {RATES.replace("gmacs: 100", "gmacs: 50")}
  cpu:
    title: a CPU
    runs: {{int8: all, fp16: all}}
    computes_in: {{int8: int8, fp16: int8}}
    boundary: {{source: a, hop_us: 1}}
    speeds:
      int8:
        alignment: {{source: a, outputs: 1, inputs: 1}}
        memory: {{source: a, gbs: 20, cache_mb: 1, far_gbs: 5}}
        overhead: {{source: a, dispatch_us: 3, invoke_us: 40}}
        operators:
          {RATES}
          shuffle: {{source: a, slowdown: 3}}
          normalization: {{source: a, slowdown: 6}}
"""
DEVICE: Device = parse_device(TEXT, "test.yaml")


def row(
    kind: Kind = "convolution", inputs: int = 32, outputs: int = 64, side: int = 50, kernel: int = 3, groups: int = 1, name: str = "o",
    operation: str = "convolution",
) -> Operator:  # fmt: skip
    multiplies = kind.endswith("convolution") or kind in ("matmul", "attention")
    macs = outputs * inputs // groups * kernel**2 * side**2 if multiplies else 0
    return Operator(
        name=name, kind=kind, operation=operation, fused=(), input_shape=(1, inputs, side, side), output_shape=(1, outputs, side, side),
        groups=groups, kernel=(kernel, kernel), stride=1, macs=macs, macs_output_convention=macs, elements_read=inputs * side**2,
        elements_written=outputs * side**2,
        weight_elements=outputs * inputs // groups * kernel**2 if multiplies else 0, live_elements=(inputs + outputs) * side**2,
    )  # fmt: skip


def network(*rows: Operator) -> OperatorTable:
    return OperatorTable(tuple(replace(operator, name=f"o{index}") for index, operator in enumerate(rows)), 0)


def cost(operator: Operator, unit: str = "npu", precision: PrecisionName = "int8") -> float:
    return operator_latencies(network(operator), DEVICE, unit, precision)[0].latency_ms


def test_one_convolution_by_hand() -> None:
    (found,) = operator_latencies(network(row(inputs=30, outputs=60)), DEVICE, "npu", "int8")
    padded = 64 * 32 * 9 * 2500
    assert found.compute_ms == pytest.approx(padded / 100e6 * (1 + 18 / 32) * (1 + 4 / 64))
    moved = 32 * 2500 + 64 * 2500 + 60 * 30 * 9
    assert found.memory_ms == pytest.approx(moved / 10e6)
    assert (found.dispatch_ms, found.boundary_ms) == (pytest.approx(0.007), 0.0)
    assert found.latency_ms == pytest.approx(max(found.compute_ms, found.memory_ms) + 0.007)
    assert (found.unit, found.precision) == ("npu", "int8")


def test_two_bytes_an_element_in_fp16() -> None:
    one, two = (operator_latencies(network(row()), DEVICE, "npu", name)[0] for name in ("int8", "fp16"))  # type: ignore[arg-type]
    assert two.memory_ms == pytest.approx(2 * one.memory_ms)
    assert two.compute_ms == pytest.approx(2 * one.compute_ms)


def test_a_memory_bound_operator_by_hand() -> None:
    (found,) = operator_latencies(network(row("concatenate", 64, 64, operation="cat")), DEVICE, "npu", "int8")
    assert (found.compute_ms, found.memory_ms) == (0.0, pytest.approx(0.5 * 2 * 64 * 2500 / 10e6))


def test_a_finer_class_has_its_own_slowdown_and_the_rest_that_of_the_kind() -> None:
    assert cost(row("activation", 64, 64, operation="relu")) - 0.007 == pytest.approx(4 * (cost(row("activation", 64, 64, operation="gelu")) - 0.007))


def test_channels_cost_in_stairs() -> None:
    times = {channels: cost(row(outputs=channels, side=100)) for channels in (32, 33, 48, 64, 65)}
    assert times[33] == pytest.approx(times[48], rel=0.01)
    assert times[48] == pytest.approx(times[64], rel=0.01)
    assert times[65] > 1.4 * times[64]
    assert cost(row(outputs=33), "cpu") < 0.6 * cost(row(outputs=64), "cpu")


def test_few_input_channels_are_slow() -> None:
    thin, thick = (row(inputs=channels, side=200, kernel=1) for channels in (4, 400))
    per_mac = [operator_latencies(network(one), DEVICE, "cpu", "int8")[0].compute_ms / one.macs for one in (thin, thick)]
    assert per_mac[0] / per_mac[1] == pytest.approx((1 + 18 / 4) / (1 + 18 / 400))


def test_grouped_convolution_is_not_dense() -> None:
    dense, grouped = row(groups=1), row("grouped_convolution", groups=4)
    assert grouped.macs * 4 == dense.macs
    assert cost(grouped, "cpu") < cost(dense, "cpu")
    (found,) = operator_latencies(network(grouped), DEVICE, "cpu", "int8")
    assert found.compute_ms == pytest.approx(grouped.macs / 50e6)


def test_what_is_larger_than_the_cache_comes_from_afar() -> None:
    small, large = row("elementwise", 4, 4, side=100, operation="add"), row("elementwise", 400, 400, side=100, operation="add")
    assert cost(small, "cpu") - 0.003 == pytest.approx(0.08 / 20)
    assert cost(large, "cpu") - 0.003 == pytest.approx(8 / 20 + (8 - 1) * (1 / 5 - 1 / 20))


def test_weights_are_fetched_anew_when_all_of_them_do_not_fit() -> None:
    alone = network(row("matmul", 1000, 900, side=1, kernel=1, operation="addmm"))
    twice = network(*alone.operators, *alone.operators)
    one, two = (operator_latencies(table, DEVICE, "cpu", "int8")[0] for table in (alone, twice))
    beyond = 1 - 1 / 1.8
    assert (one.stream_ms, two.stream_ms) == (0.0, pytest.approx(0.9 * beyond / 5))
    assert one.memory_ms - two.memory_ms == pytest.approx(0.9 * beyond / 20)
    assert two.latency_ms == pytest.approx(max(two.compute_ms, two.memory_ms) + two.dispatch_ms + two.stream_ms)


def test_a_conversion_moves_the_padding_as_well() -> None:
    """The NPU stores 48 channels as 64, in both precisions; the CPU behind it as 48."""
    table = network(row(outputs=48), row(inputs=48, outputs=48), row("shuffle", 48, 48, operation="permute"))
    (_, other_precision, _) = operator_latencies(table, DEVICE, "npu", {"o0": "int8", "o1": "fp16"})
    assert other_precision.boundary_ms == pytest.approx(64 * 2500 * (1 + 2) / 10e6 + 0.009)
    (_, _, other_unit) = operator_latencies(table, DEVICE, "npu", {"o0": "int8", "o1": "int8"})
    assert other_unit.boundary_ms == pytest.approx((64 + 48) * 2500 / 20e6 + 0.5)


def test_a_change_of_precision_is_one_more_pass_and_a_dispatch() -> None:
    table = network(row(), row(inputs=64), row(inputs=64))
    mixed = operator_latencies(table, DEVICE, "npu", {"o0": "int8", "o1": "fp16", "o2": "int8"})
    assert [found.precision for found in mixed] == ["int8", "fp16", "int8"]
    moved = 64 * 2500 * (1 + 2) / 10e6
    assert [found.boundary_ms for found in mixed] == [0.0, pytest.approx(moved + 0.009), pytest.approx(moved + 0.007)]
    found = estimate(table, DEVICE, "npu", {"o0": "int8", "o1": "fp16", "o2": "int8"})
    assert (found.on, found.band) == ("test-device npu int8+fp16", "not validated (mixed precision)")
    # A CPU that computes both alike has nothing to convert.
    assert all(one.boundary_ms == 0 for one in operator_latencies(table, DEVICE, "cpu", {"o0": "int8", "o1": "fp16", "o2": "int8"}))


def test_what_the_unit_does_not_take_runs_elsewhere_and_waits_twice() -> None:
    table = network(row(), row("shuffle", 64, 64, operation="pixel_shuffle"), row(inputs=64))
    found = operator_latencies(table, DEVICE, "npu", "int8")
    assert [one.unit for one in found] == ["npu", "cpu", "npu"]
    moved = 2 * 64 * 2500
    assert [one.boundary_ms for one in found] == [0.0, pytest.approx(0.5 + moved / 20e6), pytest.approx(0.5 + moved / 10e6)]
    assert found[1].memory_ms == pytest.approx(3 * 2 * 64 * 2500 / 20e6)
    whole = estimate(table, DEVICE, "npu", "int8")
    assert whole.source is not None
    assert "1 of 3 operators on cpu, which the npu does not take" in whole.source
    assert (whole.band, whole.on) == ("not validated (several units)", "test-device npu+cpu int8")
    assert whole.value > 1 + estimate(network(row(), row(inputs=64)), DEVICE, "npu", "int8").value


def test_an_unknown_operator_is_named_counted_and_bounded() -> None:
    strange = row("other", 64, 64, operation="fft_rfft2")
    table = network(row(), strange)
    (_, found) = operator_latencies(table, DEVICE, "cpu", "int8")
    slowest = max(
        operator_latencies(network(replace(strange, kind=kind)), DEVICE, "cpu", "int8")[0].latency_ms for kind in ("shuffle", "normalization")
    )
    assert found.latency_ms >= slowest
    assert found.memory_ms == pytest.approx(6 * 2 * 64 * 2500 / 20e6)  # as slow as the slowest, a normalization
    assumed = operator_latencies(network(replace(strange, macs=64 * 64 * 2500 * 9)), DEVICE, "cpu", "int8")[0]
    assert assumed.compute_ms > found.compute_ms
    whole = estimate(table, DEVICE, "cpu", "int8")
    assert whole.source is not None
    assert "; 1 operator of no known kind (fft_rfft2) is " in whole.source
    assert f"moving its data alone takes {2 * 64 * 2500 / 20e6 + 0.003:.3g} ms" in whole.source
    many = network(*(replace(strange, operation=f"odd_{index}") for index in range(5)))
    source = estimate(many, DEVICE, "cpu", "int8").source
    assert source is not None
    assert "5 operators of no known kind (odd_0, odd_1, odd_2 and 2 more)" in source


def test_a_validated_band_is_not_printed_for_an_assumption() -> None:
    device = load_device("snapdragon865")
    convolution, strange = row(inputs=64, side=200), row("other", 64, 64, side=200, operation="fft_rfft2")
    known = estimate(network(convolution), device, "cpu", "int8")
    assert str(known.band).startswith("median error ")
    whole = estimate(network(convolution, strange), device, "cpu", "int8")
    (_, taken) = operator_latencies(network(convolution, strange), device, "cpu", "int8")
    moving = replace(taken, memory_ms=taken.memory_ms / device.units["cpu"].speeds["int8"].operators["other"].slowdown)
    lower = whole.value - taken.latency_ms + moving.latency_ms
    share = f"{taken.latency_ms / whole.value:.0%}".replace("%", " %")
    assert whole.band == f"not validated ({share} of it is an operator of no known kind; between {lower:.3g} and {whole.value:.3g} ms)"
    twice = estimate(network(convolution, strange, strange), device, "cpu", "int8")
    assert " % of it are operators of no known kind; between " in str(twice.band)
    tiny = replace(strange, elements_read=10, elements_written=10)
    assert estimate(network(*[convolution] * 20, tiny), device, "cpu", "int8").band == known.band


def test_the_source_names_what_was_used_and_what_was_assumed() -> None:
    device = load_device("snapdragon865")
    cpu = device.sources["cpu-int8"]
    seen = f"operator table x constants of snapdragon865 cpu ({cpu.runtime}, {cpu.date}"
    assert estimate(network(row()), device, "cpu", "int8").source == f"{seen})"
    transposed = estimate(network(row("transposed_convolution")), device, "cpu", "int8")
    assert transposed.source == f"{seen}; assumed: transposed_convolution)"
    assert estimate(network(row()), DEVICE, "cpu", "int8").source == "operator table x constants of test-device cpu (all assumed)"
    through = estimate(network(row(), row("normalization", 64, 64)), device, "npu", "int8")
    assert "snapdragon865 npu+gpu (" in str(through.source)
    assert all(device.sources[name].runtime in str(through.source) for name in ("npu-int8", "gpu-fp16"))
    assert "; assumed: npu boundary); 1 of 2 operators on gpu, which the npu does not take" in str(through.source)


def test_an_activation_that_the_runtime_does_not_fuse_is_a_pass_of_its_own() -> None:
    units = DEVICE.units | {"cpu": DEVICE.units["cpu"].model_copy(update={"fuses": "litert"})}
    device = DEVICE.model_copy(update={"units": units})
    inside, apart = (replace(row(), fused=(name,)) for name in ("relu", "silu"))
    assert operator_latencies(network(inside), device, "cpu", "int8") == operator_latencies(network(inside), DEVICE, "cpu", "int8")
    (found,) = operator_latencies(network(apart), device, "cpu", "int8")
    assert found.apart_ms == pytest.approx(2 * 64 * 2500 / 20e6 + 0.003)
    assert found.latency_ms == pytest.approx(cost(row(), "cpu") + found.apart_ms)


@pytest.mark.parametrize(
    ("runtime", "kind", "activation", "inside"),
    [
        ("onnxruntime", "convolution", "tanh", True),
        ("onnxruntime", "depthwise_convolution", "leaky_relu", True),
        ("onnxruntime", "elementwise", "tanh", False),
        ("onnxruntime", "elementwise", "relu", False),
        ("onnxruntime", "transposed_convolution", "relu", False),
        ("onnxruntime", "matmul", "tanh", True),
        ("onnxruntime", "convolution", "silu", False),
        ("xnnpack", "elementwise", "relu", True),
        ("xnnpack", "matmul", "relu6", True),
        ("xnnpack", "convolution", "tanh", False),
        ("xnnpack", "normalization", "relu", False),
        ("litert", "pooling", "relu", True),
        ("litert", "normalization", "relu", False),
    ],
)
def test_what_a_runtime_computes_inside_depends_on_the_operator(runtime: Runtime, kind: Kind, activation: str, inside: bool) -> None:
    table = network(replace(row(kind), fused=(activation,)))
    (in_floats,) = (int(found) for found in apart([table], runtime, "fp32"))
    assert (in_floats == -1) is inside
    # A quantized file says in which range the result is written: a clamp costs nothing, whatever it is behind.
    (quantized,) = (int(found) for found in apart([table], runtime, "int8"))
    assert (quantized == -1) is (inside or activation in CLAMPS)


def test_what_nothing_can_run_is_refused() -> None:
    with pytest.raises(UsageError, match=r"test-device npu cannot run operator 'o0' \(convolution\) in fp32, and nor can its fallback"):
        estimate(network(row()), DEVICE, "npu", "fp32")
    with pytest.raises(UsageError, match="precision 'int4' is not known; known are int8, w8a16, fp16, fp32"):
        estimate(network(row()), DEVICE, "npu", "int4")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="unit 'gpu' is not known of device test-device; known are npu, cpu"):
        estimate(network(row()), DEVICE, "gpu", "int8")
    with pytest.raises(UsageError, match="1 operators with multiply-adds have no precision, the first is 'o1'"):
        estimate(network(row(), row()), DEVICE, "npu", {"o0": "int8"})
    with pytest.raises(UsageError, match="operator 'zero' is not known"):
        estimate(network(row()), DEVICE, "npu", {"o0": "int8", "zero": "int8"})
    with pytest.raises(UsageError, match="the operator table is empty"):
        estimate(OperatorTable((), 0), DEVICE, "npu", "int8")
    with pytest.raises(UsageError, match="an operator table is empty"):
        estimate_many([network(row()), OperatorTable((), 0)], DEVICE, "npu", "int8")


KINDS: tuple[Kind, ...] = (
    "convolution", "depthwise_convolution", "grouped_convolution", "elementwise", "concatenate", "shuffle", "other", "normalization",
)  # fmt: skip


def random_tables(count: int, seed: int = 0, most: int = 30, least: int = 1) -> list[OperatorTable]:
    """Tables of chains with skips; one in eight says nothing of its edges."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows: list[Operator] = []
        known = rng.random() > 1 / 8
        for index in range(int(rng.integers(least, most))):
            kind: Kind = rng.choice(KINDS)
            channels = int(rng.integers(1, 40)) * 4
            groups = channels if kind == "depthwise_convolution" else 4 if kind == "grouped_convolution" else 1
            outputs = channels if groups > 1 else int(rng.integers(1, 300))
            made = row(kind, channels, outputs, int(rng.integers(1, 90)), int(rng.choice([1, 3, 7])), groups, operation=f"{kind}_op")
            makers = () if index == 0 else (index - 1,) if rng.random() < 0.7 else (index - 1, int(rng.integers(index)))
            read = tuple((maker, rows[maker].elements_written) for maker in dict.fromkeys(makers))
            rows.append(replace(made, sources=read if known else None))
        found.append(network(*rows))
    return found


@pytest.mark.parametrize("unit", ["npu", "cpu"])
def test_many_tables_at_once_are_the_same_as_one_by_one(unit: str) -> None:
    tables = random_tables(60)
    singly = [estimate(table, DEVICE, unit, "int8").value for table in tables]
    np.testing.assert_allclose(estimate_many(tables, DEVICE, unit, "int8"), singly, rtol=1e-12)
    assert estimate_many([], DEVICE, unit, "int8").shape == (0,)


@pytest.mark.parametrize("unit", ["npu", "cpu"])
def test_the_whole_is_the_sum_of_its_rows_and_the_fixed_cost(unit: str) -> None:
    for table in random_tables(30, seed=1):
        rows = operator_latencies(table, DEVICE, unit, "int8")
        taking_part = [DEVICE.units[name] for name in {row.unit for row in rows}]
        fixed = sum(one.speeds[one.computes_in["int8"]].overhead.invoke_us / 1e3 for one in taking_part)
        assert estimate(table, DEVICE, unit, "int8").value == pytest.approx(fixed + sum(found.latency_ms for found in rows))


def test_no_latency_is_zero_negative_or_no_number() -> None:
    for table in random_tables(50, seed=2):
        for unit in DEVICE.units:
            rows = operator_latencies(table, DEVICE, unit, "int8")
            assert all(math.isfinite(found.latency_ms) and found.latency_ms > 0 for found in rows)


@pytest.mark.parametrize("unit", ["npu", "cpu"])
def test_more_work_never_takes_less_time(unit: str) -> None:
    rng = np.random.default_rng(3)
    for table in random_tables(60, seed=4, most=12):
        index = int(rng.integers(len(table.operators)))
        before = table.operators[index]
        wider = replace(
            before, macs=before.macs * 2, elements_read=before.elements_read * 2, elements_written=before.elements_written * 2,
            weight_elements=before.weight_elements * 2,
        )  # fmt: skip
        more = replace(table, operators=(*table.operators[:index], wider, *table.operators[index + 1 :]))
        longer = replace(table, operators=(*table.operators, replace(before, name="last")))
        value = estimate(table, DEVICE, unit, "int8").value
        assert estimate(more, DEVICE, unit, "int8").value >= value
        assert estimate(longer, DEVICE, unit, "int8").value > value


def test_weights_of_a_module_called_twice_are_stored_once() -> None:
    once = network(row())
    twice = network(row(), replace(row(), weights_of="o0"))
    assert weight_bytes(twice, "int8") == weight_bytes(once, "int8") > 0


def test_weight_bytes() -> None:
    table = network(row(kernel=1), row(inputs=64, kernel=1))
    assert weight_bytes(table, {"o0": "fp16", "o1": "int8"}) == 2 * 32 * 64 + 64 * 64
    assert weight_bytes(table, "w8a16") == weight_bytes(table, "int8")


def reading(operator: Operator, *makers: int, elements: int | None = None) -> Operator:
    """The operator with edges from the rows of these indices, 50 x 50 pixels of 64 channels each."""
    return replace(operator, sources=tuple((maker, 64 * 2500 if elements is None else elements) for maker in makers))


INT8_TO_FP16 = 64 * 2500 * (1 + 2) / 10e6 + 0.009


def test_a_long_skip_into_another_precision_is_converted() -> None:
    """A U-Net: its first convolution is read by the next, and by the sum at the end."""
    rows = (reading(row()), reading(row(inputs=64), 0), reading(row(inputs=64), 1), reading(row("elementwise", 64, 64, operation="add"), 2, 0))
    found = operator_latencies(network(*rows), DEVICE, "npu", {"o0": "int8", "o1": "fp16", "o2": "fp16"})
    assert [one.precision for one in found] == ["int8", "fp16", "fp16", "fp16"]
    # The sum reads what was converted for the second row already.
    assert [one.boundary_ms for one in found] == [0.0, pytest.approx(INT8_TO_FP16), 0.0, 0.0]
    found = operator_latencies(network(*rows), DEVICE, "npu", {"o0": "int8", "o1": "int8", "o2": "fp16", "o3": "fp16"})
    assert [one.boundary_ms for one in found] == [0.0, 0.0, pytest.approx(INT8_TO_FP16), pytest.approx(INT8_TO_FP16)]


def test_a_long_skip_onto_another_unit_is_moved_and_waited_for() -> None:
    """The NPU takes no shuffle: the tensor of the first row goes to the CPU when it is needed there, and everything else stays where it is."""
    rows = (reading(row()), reading(row(inputs=64), 0), reading(row("shuffle", 64, 64, operation="cat"), 1, 0), reading(row(inputs=64), 2))
    found = operator_latencies(network(*rows), DEVICE, "npu", "int8")
    moved = 2 * 64 * 2500
    # Two tensors, and one wait: both are there once the NPU has ended.
    assert [one.boundary_ms for one in found] == [0.0, 0.0, pytest.approx(0.5 + 2 * moved / 20e6), pytest.approx(0.5 + moved / 10e6)]


def test_a_tensor_is_converted_once_for_all_readers_of_a_form() -> None:
    readers = [reading(row(inputs=64), 0) for _ in range(3)]
    table = network(reading(row()), *readers)
    found = operator_latencies(table, DEVICE, "npu", {"o0": "fp16"} | dict.fromkeys(("o1", "o2", "o3"), "int8"))  # type: ignore[arg-type]
    assert [one.boundary_ms for one in found] == [0.0, pytest.approx(64 * 2500 * (1 + 2) / 10e6 + 0.007), 0.0, 0.0]
    # Readers in two forms need two conversions; one in the form of the maker needs none.
    elsewhere = reading(row("shuffle", 64, 64, operation="permute"), 0)
    found = operator_latencies(network(reading(row()), elsewhere, *readers), DEVICE, "npu", {"o0": "fp16", "o1": "int8", "o2": "int8", "o3": "int8",
        "o4": "fp16"})  # fmt: skip
    assert [one.boundary_ms > 0 for one in found] == [False, True, True, False, False]
    # Each reader may take a part only: together they convert what there is, and a part alone is no more than a part.
    quarters = [reading(row(inputs=16), 0, elements=16 * 2500) for _ in range(3)]
    found = operator_latencies(network(reading(row()), *quarters), DEVICE, "npu", {"o0": "fp16", "o1": "int8", "o2": "int8", "o3": "int8"})
    assert found[1].boundary_ms == pytest.approx(3 * 16 * 2500 * (1 + 2) / 10e6 + 0.007)


def test_interleaved_branches_cost_the_same_as_one_after_the_other() -> None:
    """One branch in INT8, the other in FP16 and with an operator in the middle that the NPU leaves to the CPU."""
    one = [row(), row(inputs=64), row("activation", 64, 64, operation="relu"), row(inputs=64)]
    other = [row(), row("shuffle", 64, 64, operation="permute"), row(inputs=64), row(inputs=64)]
    total = row("elementwise", 64, 64, operation="add")
    after = [reading(each, *([index - 1] if index else [])) for index, each in enumerate(one)]
    after += [reading(each, *([index + 3] if index else [])) for index, each in enumerate(other)]
    pairs = [(index, branch) for index in range(4) for branch in (0, 1)]
    mixed = [reading((one, other)[branch][index], *([2 * index - 2 + branch] if index else [])) for index, branch in pairs]
    found = []
    for rows, int8, fp16, last in ((after, (0, 1, 2, 3), (4, 6, 7), (3, 7)), (mixed, (0, 2, 4, 6), (1, 5, 7), (6, 7))):
        files: dict[str, PrecisionName] = {f"o{index}": "int8" if index in int8 else "fp16" for index in (*int8, *fp16)}
        found.append(operator_latencies(network(*rows, reading(total, *last)), DEVICE, "npu", files))
    assert sum(each.boundary_ms for each in found[0]) > 1.0
    assert sorted(each.boundary_ms for each in found[0]) == pytest.approx(sorted(each.boundary_ms for each in found[1]))
    assert sum(each.latency_ms for each in found[0]) == pytest.approx(sum(each.latency_ms for each in found[1]))


def test_precision_follows_the_edges() -> None:
    """An activation behind an INT8 convolution is INT8, whatever ran in between."""
    relu = row("activation", 64, 64, operation="relu")
    rows = (reading(row()), reading(row()), reading(relu, 0), reading(relu, 1), reading(row("elementwise", 64, 64, operation="add"), 2, 3))
    found = operator_latencies(network(*rows), DEVICE, "cpu", {"o0": "int8", "o1": "fp16"})
    assert [one.precision for one in found] == ["int8", "fp16", "int8", "fp16", "fp16"]


def test_rows_that_read_the_networks_inputs_cross_no_boundary() -> None:
    rows = (reading(row()), reading(row("shuffle", 64, 64, operation="permute")))
    assert [one.boundary_ms for one in operator_latencies(network(*rows), DEVICE, "npu", "int8")] == [0.0, 0.0]


@pytest.mark.parametrize("name", list_devices())
def test_tokens_cost_the_same_whichever_axis_is_the_batch(name: str) -> None:
    device, tokens, width = load_device(name), 197, 384
    first = row("normalization", operation="native_layer_norm")
    tables = [
        network(
            replace(
                first, input_shape=shape, output_shape=shape, channel_axis=-1, elements_read=tokens * width, elements_written=tokens * width,
                weight_elements=2 * width,
            )
        )
        for shape in ((1, tokens, width), (tokens, 1, width))
    ]  # fmt: skip
    for unit in device.units.values():
        for file in unit.runs:
            one, other = (estimate(table, device, unit.name, file).value for table in tables)
            assert one == other


THREE: Device = parse_device(
    TEXT.replace("    fallback_unit: cpu\n", "    fallback_unit: gpu\n").replace(
        "  cpu:\n",
        """\
  gpu:
    title: a GPU
    runs: {int8: [convolution, shuffle]}
    computes_in: {int8: fp16}
    fallback_unit: cpu
    boundary: {source: a, hop_us: 200}
    speeds:
      fp16:
        alignment: {source: a, outputs: 4, inputs: 4, pads_memory: true}
        memory: {source: a, gbs: 30}
        overhead: {source: a, dispatch_us: 20, invoke_us: 900}
        operators: {convolution: {source: a, gmacs: 100}}
  cpu:
""",
    ),
    "three.yaml",
)


def test_the_chain_of_fallbacks_is_followed_to_its_end() -> None:
    rows = [row("shuffle", 64, 64, operation="permute"), row("normalization", 64, 64, operation="native_layer_norm"), row(inputs=64)]
    table = network(row(), *rows)
    found = operator_latencies(table, THREE, "npu", "int8")
    assert [one.unit for one in found] == ["npu", "gpu", "cpu", "npu"]
    pixels = 64 * 2500
    assert [one.boundary_ms for one in found] == [
        0.0, pytest.approx(0.5 + (1 + 2) * pixels / 30e6), pytest.approx(0.2 + (1 + 2) * pixels / 30e6), pytest.approx(0.5 + 2 * pixels / 10e6),
    ]  # fmt: skip
    whole = estimate(table, THREE, "npu", "int8")
    assert whole.value == pytest.approx(sum(one.latency_ms for one in found) + 0.09 + 0.9 + 0.04)
    assert (whole.on, whole.band) == ("test-device npu+gpu+cpu int8", "not validated (several units)")
    assert "; 1 of 4 operators on gpu, 1 on cpu, which the npu does not take" in str(whole.source)
    # What only the last of the chain takes is not refused, and what nobody takes names all of them.
    assert estimate(network(row()), THREE, "npu", "fp16").value > 0
    (found_fp16,) = operator_latencies(network(rows[1]), THREE, "npu", "fp16")
    assert found_fp16.unit == "cpu"
    with pytest.raises(UsageError, match=r"cannot run operator 'o0' .* in fp32, and nor can its fallback, the gpu or the cpu"):
        estimate(network(row()), THREE, "npu", "fp32")


@pytest.mark.parametrize("name", list_devices())
def test_nothing_is_refused_while_some_unit_of_the_chain_takes_it(name: str) -> None:
    device = load_device(name)
    for unit in device.units.values():
        for file in PRECISIONS:
            for kind in KINDS:
                takers = [one for one in device.chain(unit.name) if one.takes(kind, file)]
                if takers:
                    (found,) = operator_latencies(network(row(kind, 32, 32)), device, unit.name, file)
                    assert found.unit == takers[0].name
                else:
                    with pytest.raises(UsageError, match="cannot run operator"):
                        estimate(network(row(kind, 32, 32)), device, unit.name, file)


def test_fallbacks_in_a_circle_are_refused() -> None:
    text = TEXT.replace("    title: a CPU\n", "    title: a CPU\n    fallback_unit: npu\n")
    with pytest.raises(TargetError, match=r"units\.npu\.fallback_unit leads in a circle, npu -> cpu -> npu"):
        parse_device(text, "circle.yaml")


@pytest.mark.parametrize("name", ["snapdragon865", "snapdragon888", "tensor-g1"])
def test_asking_a_unit_that_takes_nothing_is_never_faster_than_its_fallback(name: str) -> None:
    from mcompress.compress.networks import network_table

    device, table = load_device(name), network_table("resnet18")
    direct, through = estimate(table, device, "gpu", "fp16"), estimate(table, device, "npu", "fp16")
    assert through.value >= direct.value
    assert through.band == direct.band
    assert f"constants of {name} gpu" in str(through.source)
