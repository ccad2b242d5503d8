"""The estimator: every term of one operator by hand, what is unknown, what was assumed, and the bytes of weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up_device import DEVICE, cost
from operator_rows import network, row

from mcompress.targets.columns import apart
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate, operator_latencies, weight_bytes
from mcompress.targets.operators import CLAMPS, Kind, Runtime


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
    moving_ms = taken.memory_ms / device.units["cpu"].speeds["int8"].operators["other"].slowdown
    lower = whole.value - max(taken.compute_ms, taken.memory_ms) + max(taken.compute_ms, moving_ms)
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


def test_weights_of_a_module_called_twice_are_stored_once() -> None:
    once = network(row())
    twice = network(row(), replace(row(), weights_of="o0"))
    assert weight_bytes(twice, "int8") == weight_bytes(once, "int8") > 0


def test_weight_bytes() -> None:
    table = network(row(kernel=1), row(inputs=64, kernel=1))
    assert weight_bytes(table, {"o0": "fp16", "o1": "int8"}) == 2 * 32 * 64 + 64 * 64
    assert weight_bytes(table, "w8a16") == weight_bytes(table, "int8")
