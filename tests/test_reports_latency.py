"""Where the milliseconds go, and the roofline: figures equal run.json's, sums add up, older records are said to hold none, names are escaped."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from reported_run import network, with_milliseconds
from rich.console import Console

from mcompress.breakdown import breakdown_of, ceilings_of
from mcompress.compress.candidates import table_cost
from mcompress.record import Run
from mcompress.reports import latency_budget, roofline, wording
from mcompress.reports.advice import advice
from mcompress.reports.html import write_report
from mcompress.reports.terminal import render
from mcompress.targets.device import Device
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import Precisions, estimate, operator_latencies
from mcompress.targets.operators import OperatorTable
from mcompress.targets.speeds import BYTES, CLASSES

HOSTILE = '<script>alert(1)</script> $x^2$ "[bold]&'
MIXED = {"head": "fp16", "blocks.2.point": "fp16", "tail": "fp16"}


def mixed(table: OperatorTable) -> Precisions:
    return {row.name: "fp16" if row.name in MIXED else "int8" for row in table.operators if row.macs}


def shown(run: Run, folder: Path) -> tuple[str, str]:
    """The page, and its text without tags."""
    folder.mkdir(exist_ok=True)
    run.save(folder)
    page = write_report(folder).read_text(encoding="utf-8")
    return page, " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<main") :]).split())


def in_terminal(run: Run, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(run, console)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    return Run.load(run_folder)


@pytest.fixture(scope="module")
def cpu(run: Run) -> Run:
    """On a CPU with a runtime that computes a leaky ReLU in a pass of its own, in two precisions: every kind of cost occurs."""
    host = load_device("host")
    unit = host.units["cpu"].model_copy(update={"fuses": "xnnpack"})
    return with_milliseconds(run, device=host.model_copy(update={"units": {"cpu": unit}}), unit="cpu", precisions=mixed(network(24, 6)))


@pytest.mark.parametrize(
    ("device", "unit", "precision"), [("snapdragon865", "gpu", "int8"), ("snapdragon865", "npu", "int8"), ("host", "cpu", "int8")]
)
def test_a_breakdown_is_the_estimate(device: str, unit: str, precision: Precisions) -> None:
    known, table = load_device(device), network(24, 6)
    found, rows = breakdown_of(table, known, unit, precision, floats="fp16"), operator_latencies(table, known, unit, precision)
    assert found.latency == estimate(table, known, unit, precision)
    assert [operator.latency_ms for operator in found.operators] == [row.latency_ms for row in rows]
    assert [operator.name for operator in found.operators] == [operator.name for operator in table.operators]
    assert sum(operator.latency_ms for operator in found.operators) + found.fixed_ms == pytest.approx(found.latency.value, rel=1e-12)
    assert sum(operator.macs for operator in found.operators) == table.macs
    for operator, row in zip(found.operators, table.operators, strict=True):
        assert operator.bytes == (row.elements_read + row.elements_written + row.weight_elements) * BYTES[operator.computed_in]  # type: ignore[index]
    assert found.all_in_ms["int8"] == found.latency.value


def test_ceilings_are_those_of_the_device_and_say_their_source() -> None:
    device = load_device("snapdragon865")
    found = breakdown_of(network(24, 6), device, "gpu", "int8", floats="fp16")
    (ceiling,) = ceilings_of(device, [found])
    speeds = device.units["gpu"].speeds["fp16"]
    assert (ceiling.unit, ceiling.precision, ceiling.gbs) == ("gpu", "fp16", speeds.memory.gbs)
    assert set(ceiling.gmacs) | set(ceiling.moved_gbs) == {operator.kind for operator in found.operators}
    assert ceiling.gmacs["depthwise_convolution"] == speeds.operators["depthwise_convolution"].gmacs
    assert device.sources[speeds.memory.source].text in ceiling.source


def test_no_operator_is_above_its_ceiling(cpu: Run, run: Run) -> None:
    for each in (cpu, run):
        found = roofline.roofline(each)
        assert found is not None
        highest = {kind: max(c.gmacs.get(kind, 0.0) for c in found.ceilings) for dot in found.multiplying for kind in [dot.kind]}
        fastest = max(c.far_gbs or c.gbs for c in found.ceilings)
        for dot in found.multiplying:
            assert dot.gmacs <= highest[dot.kind] * (1 + 1e-9)
            assert dot.gmacs <= max(fastest, max(c.gbs for c in found.ceilings)) * dot.intensity * (1 + 1e-9)


def test_every_operator_is_in_a_dot(run: Run) -> None:
    for name, breakdown in latency_budget.breakdowns(run).items():
        dots = roofline.dots_of(name, breakdown)
        assert sum(dot.latency_ms for dot in dots) == pytest.approx(sum(operator.latency_ms for operator in breakdown.operators), rel=1e-12)
        assert sum(dot.share for dot in dots) + breakdown.fixed_ms / breakdown.latency.value == pytest.approx(1.0)
        assert len(dots) < len(breakdown.operators)  # equal blocks coincide


def test_sums_add_up(cpu: Run, run: Run) -> None:
    for each in (cpu, run):
        found = latency_budget.latency_budget(each)
        assert found is not None
        for index, breakdown in enumerate(found.breakdowns.values()):
            assert sum(row.times_ms[index] for row in found.parts) == pytest.approx(breakdown.latency.value, rel=1e-12)
            assert sum(row.percents[index] for row in found.parts) == pytest.approx(100.0)
            kinds = latency_budget.kind_rows(breakdown)
            assert sum(row.total_ms for row in kinds.values()) + breakdown.fixed_ms == pytest.approx(breakdown.latency.value, rel=1e-12)
            assert sum(row.count for row in kinds.values()) == len(breakdown.operators)
        costs = [row.cost.latency_ms for row in found.operators]
        assert costs == sorted(costs, reverse=True)
        assert len(costs) == len(found.last.operators)


def test_every_kind_of_cost_is_told_apart(cpu: Run) -> None:
    found = latency_budget.latency_budget(cpu)
    assert found is not None
    assert {row.part for row in found.parts} >= {"compute", "memory", "dispatch", "boundary", "apart"}
    for row in found.operators:
        parts = latency_budget.parts_of(row.cost)
        assert sum(parts.values()) == pytest.approx(row.cost.latency_ms, rel=1e-12)
        assert latency_budget.BOUNDS[max(parts, key=lambda part: parts[part])] == row.bound


def test_figures_of_the_page_equal_those_of_run_json(run: Run, tmp_path: Path) -> None:
    page, text = shown(run, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    for model in ("teacher", "compressed"):
        breakdown = record["models"][model]["breakdown"]
        assert f"{model}: {wording.number(breakdown['latency']['value'])} ms" in text
        for part in ("dispatch_ms", "apart_ms", "boundary_ms"):
            spent = sum(operator[part] for operator in breakdown["operators"])
            assert not spent or wording.number(spent) in text
    compressed = record["models"]["compressed"]["breakdown"]
    listed = re.findall(r"<tr><th scope=\"row\"><code>([^<]*)</code><small>[^<]*</small></th><td class=\"n\" title=[^>]*>([\d.e-]+)</td>", page)
    expected = sorted(compressed["operators"], key=lambda operator: -operator["latency_ms"])
    assert listed == [(operator["name"], wording.number(operator["latency_ms"])) for operator in expected]
    before = page[: page.index(f"The other {len(expected) - latency_budget.SHOWN} operators")]
    assert sum(f"<code>{operator['name']}</code><small>" in before for operator in expected) == latency_budget.SHOWN
    for operator in expected:
        assert wording.count(operator["macs"]) in text or not operator["macs"]
        assert wording.size(operator["bytes"]) in text
    assert compressed["latency"]["band"] in text
    assert compressed["latency"]["source"] in text
    for ceiling in record["roofline"]:
        assert f"{wording.number(ceiling['gbs'])} GB/s" in text
        assert ceiling["source"] in text


def test_dots_and_bars_say_what_they_are(run: Run, tmp_path: Path) -> None:
    page, _ = shown(run, tmp_path)
    found = roofline.roofline(run)
    assert found is not None
    titles = re.findall(r"<title>([^<]*)</title>", page[page.index("<main") :])
    assert sum("multiply-adds per byte" in title for title in titles) == len(found.multiplying)
    assert sum("GB/s" in title for title in titles) == len(found.multiplying) + len(found.moving)
    assert any(title.startswith("compressed, fixed cost: ") for title in titles)
    assert page.count('role="img" aria-label="Roofline of ') == 1


def test_the_terminal_says_it_in_one_line(run: Run) -> None:
    breakdown = latency_budget.breakdowns(run)["compressed"]
    first = next(iter(latency_budget.kind_rows(breakdown).values()))
    said = in_terminal(run)
    share = wording.share(first.total_ms, breakdown.latency.value)
    assert f"Where the time goes: {share} {wording.kind(first.kind, first.count)} (" in said
    assert f"{wording.number(breakdown.latency.value)} ms estimated on snapdragon865 gpu int8" in said


def changed(run: Run, **update: object) -> Run:
    """The run with another breakdown of the compressed model."""
    record = run.models["compressed"]
    assert record.breakdown is not None
    breakdown = record.breakdown.model_copy(update=update)
    return run.model_copy(update={"models": run.models | {"compressed": record.model_copy(update={"breakdown": breakdown})}})


def only(run: Run, name: str, part: str) -> Run:
    """The run in which nearly all time of the compressed model is one part of one operator: 10 ms, where everything else takes 1 microsecond."""
    breakdown = run.models["compressed"].breakdown
    assert breakdown is not None
    nothing = dict.fromkeys(("compute_ms", "memory_ms", "dispatch_ms", "boundary_ms", "apart_ms"), 0.0)
    rows = []
    for operator in breakdown.operators:
        spent = {"memory_ms": 1e-3} | ({part: 10.0} if operator.name == name else {})
        latency = max(spent.get("compute_ms", 0.0), spent["memory_ms"]) + sum(spent.get(p, 0.0) for p in ("dispatch_ms", "boundary_ms", "apart_ms"))
        rows.append(operator.model_copy(update=nothing | spent | {"latency_ms": latency}))
    total = sum(row.latency_ms for row in rows)
    whole = breakdown.latency.model_copy(update={"value": total})
    return changed(run, operators=tuple(rows), fixed_ms=0.0, latency=whole, all_in_ms={})


@pytest.mark.parametrize(
    ("name", "part", "said", "saves"),
    [
        ("shuffle2", "memory_ms", ("pixel shuffles ('shuffle2'", "bound by memory: half the bytes"), "5.00 ms"),
        ("up1", "compute_ms", ("convolutions ('up1'", "bound by compute", "half the multiply-adds there"), "5.00 ms"),
        ("up1", "dispatch_ms", ("is starting 24 operators",), "5.00 ms"),
        ("tail", "boundary_ms", ("conversions before 1 operator, most before 'tail': one precision",), "10.0 ms"),
        ("blocks.1.point", "apart_ms", ("1 activation (leaky_relu)",), "10.0 ms"),
    ],
)
def test_the_advice_follows_the_costs(run: Run, name: str, part: str, said: tuple[str, ...], saves: str) -> None:
    sentence = advice(only(run, name, part))
    for words in (*said, saves):
        assert words in sentence, sentence


def test_the_advice_names_the_fixed_cost_and_the_other_precision(run: Run) -> None:
    one = only(run, "up1", "compute_ms")
    assert "instead of 10.0 ms, if quality allows" in advice(changed(one, all_in_ms={"fp16": 2.0}))
    breakdown = one.models["compressed"].breakdown
    assert breakdown is not None
    whole = breakdown.latency.model_copy(update={"value": 40.0})
    assert advice(changed(one, latency=whole, fixed_ms=30.0)).startswith("75 % of the time (30.0 ms) is the fixed cost")


def test_nothing_is_promised_of_operators_that_nobody_knows(run: Run) -> None:
    one = only(run, "up1", "compute_ms")
    breakdown = one.models["compressed"].breakdown
    assert breakdown is not None
    rows = [row.model_copy(update={"kind": "other"}) if row.name == "up1" else row for row in breakdown.operators]
    sentence = advice(changed(one, operators=tuple(rows), all_in_ms={"fp16": 2.0}))
    assert "100 % of the time (10.0 ms) is assumed for 1 operator that the operator table does not know ('up1')" in sentence
    assert "multiply-adds" not in sentence


def test_a_record_of_an_older_version_says_what_it_lacks(run: Run, tmp_path: Path) -> None:
    record = json.loads(run.model_dump_json(by_alias=True))
    del record["roofline"]
    for model in record["models"].values():
        del model["breakdown"]
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "run.json holds no operators" in page
    assert "run.json holds no ceilings" in page
    old = Run.load(tmp_path)
    assert latency_budget.summary(old) is None
    assert "Where the time goes" not in in_terminal(old)


def test_one_model_alone_is_shown(run: Run, tmp_path: Path) -> None:
    alone = run.model_copy(update={"models": {"compressed": run.models["compressed"]}})
    page, text = shown(alone, tmp_path)
    assert "Operators of the compressed model, by cost" in text
    assert "before</text>" not in page


def test_hostile_names_are_escaped(run: Run, tmp_path: Path) -> None:
    breakdown = run.models["compressed"].breakdown
    assert breakdown is not None
    rows = tuple(row.model_copy(update={"name": HOSTILE, "kind": f"{HOSTILE}{i}", "unit": HOSTILE}) for i, row in enumerate(breakdown.operators))
    ceilings = tuple(ceiling.model_copy(update={"title": HOSTILE, "unit": HOSTILE, "source": HOSTILE}) for ceiling in run.roofline)
    hostile = changed(run, operators=rows).model_copy(update={"roofline": ceilings})
    page, _ = shown(hostile, tmp_path)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "$x^2$" in page  # not read as a formula
    assert "[bold]&" in in_terminal(hostile, 400)


def test_what_was_measured_is_told_from_what_is_taken_apart(run: Run, tmp_path: Path) -> None:
    record = run.models["compressed"]
    here = record.model_copy(update={"latency": (record.latency[1],)})
    _, text = shown(run.model_copy(update={"models": run.models | {"compressed": here}}), tmp_path)
    assert "The compressed model was measured at 30.0 ms (PyTorch, 2 threads)" in text


def slowed(device: Device, factor: float) -> Device:
    """The device with all constants so many times slower."""
    data = device.model_dump(mode="json")
    for unit in data["units"].values():
        unit["boundary"]["hop_us"] *= factor
        for speeds in unit["speeds"].values():
            speeds["overhead"]["dispatch_us"] *= factor
            speeds["overhead"]["invoke_us"] *= factor
            speeds["memory"] |= {key: speeds["memory"][key] / factor for key in ("gbs", "far_gbs") if speeds["memory"].get(key)}
            for speed in speeds["operators"].values():
                speed["gmacs"] = speed["gmacs"] / factor if speed["gmacs"] else None
    return Device.model_validate(data)


@pytest.mark.parametrize("name", ["snapdragon865", "host"])
def test_candidates_and_breakdowns_follow_the_constants_of_the_device(name: str) -> None:
    """A device that is four times slower in every constant makes every latency that a run compares four times longer."""
    table, fast = network(24, 6), load_device(name)
    slow = slowed(fast, 4.0)
    unit = fast.preferred_unit
    for device in (fast, slow):
        assert table_cost(table, device, device.units[unit], "int8").latency == estimate(table, device, unit, "int8")
        assert breakdown_of(table, device, unit, "int8", floats="fp16").latency == estimate(table, device, unit, "int8")
    assert table_cost(table, slow, slow.units[unit], "int8").latency.value == pytest.approx(4 * estimate(table, fast, unit, "int8").value)


def test_shares_and_kinds_are_worded() -> None:
    assert set(CLASSES) <= set(wording.KINDS)
    assert [wording.share(part, 100.0) for part in (0.0, 0.01, 0.96, 41.4, 100.0)] == ["0 %", "below 1 %", "1 %", "41 %", "100 %"]
    assert (wording.kind("shuffle"), wording.kind("shuffle", 2), wording.kind("of_tomorrow", 2)) == ("pixel shuffle", "pixel shuffles", "of tomorrow")
    assert wording.share(1.0, 0.0) == "0 %"
