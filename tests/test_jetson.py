"""NVIDIA's Jetson boards: what is published of Wav2Lip and its compressed form, and what the estimator makes of it."""

from __future__ import annotations

import itertools
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from device_fits.figures import AGX_XAVIER, NANO, TX2, XAVIER_NX, Board
from device_fits.jetson import OLDER, VOLTA
from int8_plans import quiet

from mcompress.checks_networks import int8_problems
from mcompress.cli import app
from mcompress.compress.models.wav2lip import QUARTER_WIDTH, WITHOUT_BLOCKS, wav2lip
from mcompress.compress.networks import family_of, network_table
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.decisions import Problem, named_table, problem_of
from mcompress.compress.quantize.planner import least_latency
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.sensitivity import measure_sensitivity
from mcompress.compress.tasks.task import Sample
from mcompress.device_commands import reproduced, reproduced_lines
from mcompress.errors import UsageError
from mcompress.estimating import estimate_model
from mcompress.targets.connect.facts import parse_facts
from mcompress.targets.device_files import list_devices, load_device
from mcompress.targets.exports import OnnxConfig, TFLiteConfig
from mcompress.targets.identity import contradiction
from mcompress.targets.latency import estimate
from mcompress.targets.load import load_target
from mcompress.targets.precision_latency import precision_latency
from mcompress.targets.reach import unit_of
from mcompress.targets.speeds import PrecisionName
from mcompress.unit_validations import unit_validations

ORIGINAL, COMPRESSED = "wav2lip", "compressed_wav2lip"
FIGURE: dict[str, Board] = {
    "jetson-agx-xavier": {
        "fp32": {ORIGINAL: 9.27, COMPRESSED: 1.12}, "fp16": {ORIGINAL: 3.64, COMPRESSED: 0.75}, "int8": {ORIGINAL: 3.19, COMPRESSED: 0.64}
    },
    "jetson-xavier-nx": {
        "fp32": {ORIGINAL: 16.16, COMPRESSED: 1.73}, "fp16": {ORIGINAL: 4.52, COMPRESSED: 0.92}, "int8": {ORIGINAL: 3.59, COMPRESSED: 0.81}
    },
    "jetson-tx2": {"fp32": {ORIGINAL: 30.06, COMPRESSED: 2.98}, "fp16": {ORIGINAL: 22.22, COMPRESSED: 2.49}},
    "jetson-nano": {"fp32": {COMPRESSED: 5.39}, "fp16": {ORIGINAL: 44.26, COMPRESSED: 4.47}},
}  # fmt: skip
"""fig5.png of Nota-NetsPresso/nota-wav2lip, ms; `int8` is the mixture of FP16 and INT8, and the Nano's FP32 original is not available."""
BOARDS = tuple(FIGURE)
WITH_INT8 = ("jetson-agx-xavier", "jetson-xavier-nx")
WITHOUT_INT8 = ("jetson-tx2", "jetson-nano")
EVERY = tuple((board, precision) for board, own in FIGURE.items() for precision in own)
LATENCY_WITHIN = 1.2
"""Every estimate is within this factor of what is published; the fits have seen these figures."""
RATIO_WITHIN = 1.15
"""So is every ratio of the original to the compressed form, within this."""
HEADLINE_WITHIN = 1.25
"""And that of the original in FP32 to the compressed form in any precision."""
UNSEEN_WITHIN = {"jetson-agx-xavier": 1.4, "jetson-nano": 2.5}
"""Networks that no fit saw: on the Nano their publisher's figures are faster than those of the talking faces let expect."""
INPUTS = ("face=1,6,96,96", "audio=1,1,80,16")
COMPRESSED_ARGS = {**QUARTER_WIDTH, **WITHOUT_BLOCKS, "output_width": 8}


@cache
def ms(board: str, network: str, precision: PrecisionName) -> float:
    return estimate(network_table(network), load_device(board), "gpu", precision).value


def apart(one: float, other: float) -> float:
    """The factor between two positive numbers, at least 1."""
    return max(one / other, other / one)


def test_the_figures_that_the_fits_have_are_the_published_ones() -> None:
    assert {"jetson-agx-xavier": AGX_XAVIER, "jetson-xavier-nx": XAVIER_NX, "jetson-tx2": TX2, "jetson-nano": NANO} == FIGURE


@pytest.mark.parametrize("board", BOARDS)
def test_the_files_hold_every_published_figure_and_no_other_of_these_networks(board: str) -> None:
    validation = load_device(board).units["gpu"].validation
    stored = {
        precision: {check.network: check.measured_ms for check in found.checks if family_of(check.network) == "wav2lip"}
        for precision, found in validation.items()
    }
    assert stored == FIGURE[board]


@pytest.mark.parametrize(("board", "precision"), EVERY)
def test_latencies_are_of_the_published_size(board: str, precision: PrecisionName) -> None:
    for network, published in FIGURE[board][precision].items():
        assert apart(ms(board, network, precision), published) <= LATENCY_WITHIN


@pytest.mark.parametrize(("board", "precision"), [(board, precision) for board, precision in EVERY if ORIGINAL in FIGURE[board][precision]])
def test_the_gain_of_compressing_is_of_the_published_size(board: str, precision: PrecisionName) -> None:
    published = FIGURE[board][precision][ORIGINAL] / FIGURE[board][precision][COMPRESSED]
    assert apart(ms(board, ORIGINAL, precision) / ms(board, COMPRESSED, precision), published) <= RATIO_WITHIN


@pytest.mark.parametrize(("board", "precision"), [(board, precision) for board, precision in EVERY if board != "jetson-nano"])
def test_the_gain_of_everything_together_is_of_the_published_size(board: str, precision: PrecisionName) -> None:
    """On the Xavier NX 19.9 times in the mixture, 17.6 in FP16, 9.3 in FP32."""
    published = FIGURE[board]["fp32"][ORIGINAL] / FIGURE[board][precision][COMPRESSED]
    assert apart(ms(board, ORIGINAL, "fp32") / ms(board, COMPRESSED, precision), published) <= HEADLINE_WITHIN


@pytest.mark.parametrize("board", BOARDS)
def test_the_order_is_the_published_one_everywhere(board: str) -> None:
    precisions: tuple[PrecisionName, ...] = ("int8", "fp16", "fp32") if board in WITH_INT8 else ("fp16", "fp32")
    for precision in precisions:
        assert ms(board, COMPRESSED, precision) < ms(board, ORIGINAL, precision)
    for network in (ORIGINAL, COMPRESSED):
        assert all(ms(board, network, less) <= ms(board, network, more) for less, more in itertools.pairwise(precisions))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("network", [ORIGINAL, COMPRESSED])
def test_the_boards_are_in_the_published_order(network: str, precision: PrecisionName) -> None:
    times = [ms(board, network, precision) for board in BOARDS]
    assert times == sorted(times)
    assert len(set(times)) == len(times)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("network", ["resnet50", "mobilenet_v2"])
def test_tx2_is_faster_than_nano_by_one_factor(network: str, precision: PrecisionName) -> None:
    assert ms("jetson-nano", network, precision) / ms("jetson-tx2", network, precision) == pytest.approx(OLDER.ratio(), rel=2e-3)


@pytest.mark.parametrize(("pair", "figures"), [(VOLTA, (XAVIER_NX, AGX_XAVIER)), (OLDER, (NANO, TX2))])
def test_the_factor_between_two_boards_is_the_mean_of_what_both_have(pair: object, figures: tuple[Board, Board]) -> None:
    slow, fast = figures
    logs = [math.log(slow[p][name] / fast[p][name]) for p in slow for name in slow[p] if name in fast[p]]
    assert pair.ratio() == pytest.approx(math.exp(sum(logs) / len(logs)))  # type: ignore[attr-defined]
    assert len(logs) == (6 if pair is VOLTA else 3)


@pytest.mark.parametrize("board", BOARDS)
def test_what_was_left_out_is_less_well_known(board: str) -> None:
    """The level from one network of a family predicts the other: what is stored is no better than with both."""
    for precision, found in load_device(board).units["gpu"].validation.items():
        assert found.how.startswith("leave-one-out within one family of networks")
        own = [check for check in found.checks if check.network in (ORIGINAL, COMPRESSED)]
        with_both = sum(abs(math.log(ms(board, check.network, precision) / check.measured_ms)) for check in own)
        assert sum(abs(math.log(check.estimated_ms / check.measured_ms)) for check in own) > with_both - 0.01


@pytest.mark.parametrize(("board", "count", "median"), [("jetson-agx-xavier", 6, 0.15), ("jetson-nano", 4, 0.65)])
def test_networks_that_no_fit_saw(board: str, count: int, median: float) -> None:
    """NVIDIA-AI-IOT/torch2trt, FP16, batch 1."""
    device = load_device(board)
    found = device.units["gpu"].validation["fp16"]
    unseen = [check for check in found.checks if family_of(check.network) != "wav2lip"]
    assert len(unseen) == count
    assert not {check.network for check in unseen} & set(device.sources[found.source].fitted_to)
    assert "others that the fit did not see" in found.how
    assert "torch2trt" in device.sources[found.source].text
    assert float(np.median([abs(check.error) for check in unseen])) <= median
    for check in unseen:
        assert check.estimated_ms == pytest.approx(ms(board, check.network, "fp16"), rel=2e-3)
        assert apart(check.estimated_ms, check.measured_ms) <= UNSEEN_WITHIN[board]


@pytest.mark.parametrize("board", BOARDS)
def test_it_is_said_what_is_not_known(board: str) -> None:
    """The batch size is not in the figure; nor are errors of other networks where nobody published any."""
    device = load_device(board)
    for found in unit_validations(board, "gpu"):
        assert device.sources[found.checked.source].runtime == "TensorRT, version, batch size and power mode not stated"
        assert "batch size and power mode not stated" in "\n".join(found.lines())
        assert ("no figure of other networks is known" in found.source) == (board in ("jetson-xavier-nx", "jetson-tx2"))
        assert "batch size" in estimate(network_table(COMPRESSED), device, "gpu", "fp16").source


@pytest.mark.parametrize("board", BOARDS)
def test_what_is_printed_of_the_networks_in_the_fit(board: str) -> None:
    for one in unit_validations(board, "gpu"):
        published = FIGURE[board][next(name for name in one.unit.runs if name == one.precision)]
        rows = reproduced(one.device, one.unit, one.precision)
        assert [(row.network, row.measured_ms) for row in rows] == sorted(published.items(), key=lambda pair: -pair[1])
        text = "\n".join(reproduced_lines(one.device, one.unit, one.precision))
        assert "which says nothing of others (TensorRT, version, batch size and power mode not stated)" in text
        for row in rows:
            assert re.search(rf"{row.network} +{row.measured_ms:.3f} ms +{row.estimated_ms:.3f} ms +{re.escape(f'{row.error:+.1%}')}", text)
        ratios = re.search(r"wav2lip to compressed_wav2lip +([0-9.]+) x +([0-9.]+) x", text)
        assert (ratios is not None) == (len(published) == 2)
        if ratios is not None:
            assert float(ratios[1]) == pytest.approx(published[ORIGINAL] / published[COMPRESSED], abs=0.006)
            assert float(ratios[2]) == pytest.approx(rows[0].estimated_ms / rows[1].estimated_ms, abs=0.006)


@pytest.mark.parametrize("name", ["snapdragon865", "host"])
def test_nothing_of_the_kind_is_printed_where_many_networks_decide(name: str) -> None:
    for one in unit_validations(name, None):
        assert reproduced(one.device, one.unit, one.precision) == ()
        assert reproduced_lines(one.device, one.unit, one.precision) == []


def test_an_int8_estimate_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(UsageError, match=r"jetson-nano gpu cannot run operator .* in int8; the device can run it as: fp16 on gpu, fp32 on gpu"):
        estimate_model(ORIGINAL, "jetson-nano", None, "int8", inputs=INPUTS)
    with pytest.raises(UsageError, match=r"wav2lip has no precision of its own; .* gpu of jetson-tx2 takes fp16, fp32"):
        estimate_model(ORIGINAL, "jetson-tx2", inputs=INPUTS)


@pytest.mark.parametrize("board", WITHOUT_INT8)
def test_there_is_no_int8_where_the_gpu_has_none(board: str) -> None:
    device = load_device(board)
    integers: tuple[PrecisionName, ...] = ("int8", "w8a16")
    for precision in integers:
        with pytest.raises(UsageError, match=rf"{board} gpu cannot run operator .* in {precision}; the device can run it as: fp16 on gpu, fp32 on"):
            estimate(network_table(COMPRESSED), device, "gpu", precision)
    assert device.units.keys() == {"gpu"}
    assert device.units["gpu"].runs.keys() == device.units["gpu"].computes_in.keys() == device.units["gpu"].speeds.keys() == {"fp16", "fp32"}
    capability = device.units["gpu"].capability
    assert capability is not None
    assert re.search(r"runs no INT8: .* compute capability (6\.2|5\.3), which has no dot products of INT8", device.sources[capability.source].text)


def test_a_partly_int8_plan_is_refused_there_too() -> None:
    table = network_table(COMPRESSED)
    mixed: dict[str, PrecisionName] = {operator.name: "fp16" for operator in table.operators}
    mixed[table.operators[3].name] = "int8"
    with pytest.raises(UsageError, match="fp16 on gpu, fp32 on gpu"):
        estimate(table, load_device("jetson-tx2"), "gpu", mixed)
    found = precision_latency(table, load_device("jetson-tx2"), "gpu", ("int8", "fp16"))
    assert np.isinf(found.own_ms[:, 0]).all()
    assert np.isfinite(found.own_ms[:, 1]).all()


def test_an_int8_estimate_is_there_on_the_xaviers(capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [part for one in INPUTS for part in ("--input", one)]
    app(["estimate", ORIGINAL, *inputs, "--device", "jetson-xavier-nx", "--precision", "int8"], standalone_mode=False)
    said = capsys.readouterr().out
    assert re.search(r"^3\.\d+ ms estimated on jetson-xavier-nx gpu int8 for wav2lip", said)
    assert "median error 48 %" in said


@pytest.mark.parametrize("board", WITH_INT8)
@pytest.mark.parametrize("network", [ORIGINAL, COMPRESSED])
def test_a_mixture_costs_its_operators_and_its_seams(board: str, network: str) -> None:
    """Never less than all in INT8; each seam costs an operator, so that FP16 here and there is slower than FP16 everywhere."""
    table, device = network_table(network), load_device(board)
    found, count = precision_latency(table, device, "gpu", ("int8", "fp16")), len(table.operators)
    int8, fp16 = found.of(np.zeros(count, np.int64)), found.of(np.ones(count, np.int64))
    assert (int8, fp16) == (pytest.approx(ms(board, network, "int8")), pytest.approx(ms(board, network, "fp16")))
    ends = np.isin(np.arange(count), (0, count - 1)).astype(np.int64)
    assert int8 < found.of(ends) < fp16
    assert found.of(np.arange(count) % 2) > fp16
    chance = np.random.default_rng(0)
    for share in (0.05, 0.3, 0.7):
        chosen = (chance.random(count) < share).astype(np.int64)
        assert found.of(chosen) > int8
        names: dict[str, PrecisionName] = {op.name: "fp16" if half else "int8" for op, half in zip(table.operators, chosen, strict=True)}
        assert estimate(table, device, "gpu", names).value == pytest.approx(found.of(chosen))


@pytest.fixture(scope="module")
def compressed_problem() -> Problem:
    """The compressed generator of the published size, as the quantize stage sees it, with the noise that its operators really add."""
    torch.manual_seed(0)
    network = wav2lip(output_width=8, **QUARTER_WIDTH, **WITHOUT_BLOCKS)
    with torch.no_grad():
        for _ in range(8):  # statistics of the batch norms, so that activations neither vanish nor grow with depth
            network(torch.rand(4, 6, 96, 96), torch.rand(4, 1, 80, 16) * 8 - 4)
    network.eval()
    inputs = torch.rand(1, 6, 96, 96), torch.rand(1, 1, 80, 16) * 8 - 4
    graph = graph_of(export_program(network, *inputs))
    ranges, _ = calibrate(graph, iter([inputs]), "minmax", [(0.0, 1.0), (-4.0, 4.0)], 1, quiet)
    sample = Sample("face", inputs, torch.zeros(1, 3, 96, 96))
    sensitivity = measure_sensitivity(graph, iter([sample]), ranges, lambda *_: 0.0, 1, quiet)
    table = named_table(graph, *(tuple(value.shape) for value in inputs))
    return problem_of(graph, table, ranges, sensitivity, load_device("jetson-xavier-nx"), ("gpu",), ("int8", "fp16"))


def test_plans_of_the_compressed_generator_lie_between_int8_and_fp16(compressed_problem: Problem) -> None:
    """The fastest plan for each noise, from that of INT8 down: less noise is never faster, and no plan leaves the interval."""
    int8, fp16 = (compressed_problem.latency_ms(compressed_problem.uniform(precision)) for precision in ("int8", "fp16"))
    assert int8 < fp16
    most, least = (compressed_problem.noise_of(compressed_problem.uniform(precision)) for precision in ("int8", "fp16"))
    latencies, mixed = [], 0
    for share in (1.0, 0.8, 0.5, 0.2, 0.0):
        found = least_latency(compressed_problem, 1.001 * (least + share * (most - least)))
        assert found is not None
        latencies.append(found.latency_ms)
        mixed += len(set(found.chosen)) == 2
    assert mixed >= 3
    assert latencies == sorted(latencies)
    assert int8 * (1 - 1e-6) <= latencies[0]
    assert latencies[-1] <= fp16 * (1 + 1e-6)


TX2_SAYS = "machine=aarch64\ntree=NVIDIA Jetson TX2 Developer Kit\ncompatible=nvidia,quill nvidia,tegra186\n"
NANO_SAYS = "machine=aarch64\ntree=NVIDIA Jetson Nano Developer Kit\ncompatible=nvidia,p3450-0000 nvidia,jetson-nano nvidia,tegra210\n"
ORIN_NANO = "machine=aarch64\ntree=NVIDIA Jetson Orin Nano Developer Kit\ncompatible=nvidia,p3768-0000 nvidia,tegra234\n"
TX1_SAYS = "machine=aarch64\ntree=NVIDIA Jetson TX1 Developer Kit\ncompatible=nvidia,p2597 nvidia,tegra210\n"


@pytest.mark.parametrize(
    ("board", "says", "refused"),
    [
        ("jetson-tx2", TX2_SAYS, None), ("tx2", TX2_SAYS, None), ("jetson-nano", NANO_SAYS, None), ("jetson-tx2", NANO_SAYS, "which is jetson-nano"),
        ("jetson-nano", TX2_SAYS, "which is jetson-tx2"), ("jetson-xavier-nx", TX2_SAYS, "which is jetson-tx2"),
        ("jetson-nano", ORIN_NANO, "jetson-nano is known as NVIDIA Jetson Nano"),
        ("jetson-tx2", TX1_SAYS, "and jetson-tx2 is NVIDIA Jetson TX2, tx2"),
    ],
)  # fmt: skip
def test_a_board_is_told_from_its_neighbours(board: str, says: str, refused: str | None) -> None:
    found = contradiction(load_device(board), parse_facts(says))
    assert found is None if refused is None else refused in (found or "")


def test_they_are_listed() -> None:
    assert set(BOARDS) <= set(list_devices())


def test_a_quantize_stage_is_refused_where_nothing_runs_int8() -> None:
    target = load_target(Path(__file__).parents[1] / "targets" / "jetson-xavier-nx-talking-face.yaml")
    nano, xavier = load_device("jetson-nano"), load_device("jetson-xavier-nx")
    assert int8_problems(target, xavier, xavier.unit()) == []
    assert int8_problems(target, nano, nano.unit()) == [
        "stages[2] (quantize): the gpu of jetson-nano runs fp16, fp32 and no INT8; remove the stage, which leaves float files, "
        "or take another device or unit"
    ]


def test_a_unit_without_int8_is_named_beside_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target(Path(__file__).parents[1] / "targets" / "jetson-xavier-nx-talking-face.yaml")
    nano, phone = load_device("jetson-nano"), load_device("snapdragon865")
    both = nano.model_copy(update={"units": {**nano.units, "cpu": phone.units["cpu"]}})
    monkeypatch.setattr("mcompress.checks_networks.reached_units", lambda *_given: ("gpu", "cpu"))
    monkeypatch.setattr(type(both), "chain", lambda self, name: (self.units[name],))
    (problem,) = int8_problems(target, both, both.unit("gpu"))
    assert "the gpu of jetson-nano runs fp16, fp32 and no INT8" in problem


def test_only_onnx_files_reach_the_gpu_of_a_jetson() -> None:
    """TensorRT builds engines from ONNX; what LiteRT's GPU delegate would take there is not what was published."""
    device = load_device("jetson-xavier-nx")
    gpu, cpu = device.unit("gpu"), device.unit("cpu")
    assert unit_of(OnnxConfig(), device, gpu) is gpu
    assert unit_of(TFLiteConfig(), device, gpu) is cpu
    assert unit_of(TFLiteConfig(), load_device("jetson-nano"), load_device("jetson-nano").unit("gpu")) is None
    phone = load_device("snapdragon865")
    assert unit_of(TFLiteConfig(), phone, phone.unit("gpu")) is phone.unit("gpu")
