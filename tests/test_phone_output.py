"""The outputs of the phone's programs and what its sensors say, as they print them."""

from __future__ import annotations

import pytest
from phone_programs import BENCHMARK, CSV, OUTPUT, RUNNER, TABLE

from mcompress.export import profile_phone_output


def test_the_output_of_benchmark_model() -> None:
    timed = profile_phone_output.parse_benchmark(OUTPUT)
    assert timed is not None
    assert (timed.n, timed.mean, timed.p50, timed.p90, timed.load) == (50, 0.0550432, 0.054, 0.058, 18.777)
    assert timed.cv == pytest.approx(1.562 / 55.0432)
    assert timed.warnings == ("p90 is the 95th percentile: benchmark_model does not say the 90th",)
    older = profile_phone_output.parse_benchmark(BENCHMARK.format(percentiles=""))
    assert older is not None
    assert (older.p50, older.p90) == (0.0550432, 0.06)
    assert len(older.warnings) == 2
    alike = profile_phone_output.parse_benchmark("count=3 curr=120\n")
    assert alike is not None
    assert alike.mean == 0.12
    assert profile_phone_output.parse_benchmark("STARTING!\nERROR: Failed to load model\n") is None
    with_operators = profile_phone_output.parse_benchmark(OUTPUT + TABLE + "Timings (microseconds): count=1 curr=14944\n")
    assert with_operators == timed


def test_the_operators_of_benchmark_model_as_table_and_as_csv() -> None:
    assert profile_phone_output.parse_operators(BENCHMARK.format(percentiles="") + TABLE) == [
        ("Delegate/Convolution (NHWC, QU8) IGEMM:0", "Convolution (NHWC, QU8) IGEMM", 0.278),
        ("Delegate/Add (ND):1", "Add (ND)", 0.122),
    ]
    rows = profile_phone_output.parse_operators(CSV)
    assert [(kind, ms) for _, kind, ms in rows] == [("CONV_2D", 1.25), ("ADD", 0.25)]
    assert profile_phone_output.parse_operators("nothing") == []


def test_the_output_of_executor_runner() -> None:
    timed = profile_phone_output.parse_runner("I executorch:executor_runner.cpp:400] Model loaded in 3.250000 ms.\n" + RUNNER, warm_up_s=0.0005)
    assert timed is not None
    assert timed.load == 3.25
    assert timed.n == len(timed.samples) == 40 - 5  # 0.115 + 0.125 + 0.135 + 0.105 ms are below 0.5 ms, the fifth goes past it
    assert timed.p50 == pytest.approx(0.12, abs=0.006)
    old = profile_phone_output.parse_runner("Model executed successfully 4 time(s) in 10.000000 ms.", warm_up_s=0.05)
    assert old is not None
    assert (old.mean, old.n) == (2.5, 4)
    assert "the sum alone" in old.warnings[0]
    assert profile_phone_output.parse_runner("E executorch: Loading of method forward failed", warm_up_s=0.0) is None


def test_what_a_phones_sensors_say() -> None:
    text = "\n".join(
        [
            "/sys/devices/system/cpu/cpu7/cpufreq/scaling_max_freq=1804800",
            "/sys/devices/system/cpu/cpu7/cpufreq/cpuinfo_max_freq=2841600",
            "/sys/class/thermal/thermal_zone3/type=cpu-1-3",
            "/sys/class/thermal/thermal_zone3/temp=96000",
            "/sys/class/thermal/thermal_zone3/trip_point_0_type=passive",
            "/sys/class/thermal/thermal_zone3/trip_point_0_temp=95000",
            "/sys/class/thermal/thermal_zone9/type=battery",
            "/sys/class/thermal/thermal_zone9/temp=99000",
            "/sys/class/thermal/cooling_device2/type=thermal-cpufreq-1",
            "/sys/class/thermal/cooling_device2/cur_state=0",
            "status=2",
        ]
    )
    reading, status = profile_phone_output.parse_sensors(text)
    assert reading.limit_khz == {"cpu7": 1804800}
    assert reading.zones_mc == {"thermal_zone3 cpu-1-3": 96000}
    assert status == 2
    assert profile_phone_output.hot(reading, status) == "Android's thermal status is moderate"
    assert "96 degrees, its limit is 95" in profile_phone_output.hot(reading, 0)
    assert profile_phone_output.hot(profile_phone_output.parse_sensors("")[0], -1) == ""
