"""What networks cost, and what they are worth on held-out data, as rows: the run's own, and apart from it those that go along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mcompress.record import ModelRecord, Run
from mcompress.reports import components, wording


@dataclass(frozen=True)
class CostRow:
    """One kind of cost over all models; `shares` are in percent of the largest."""

    label: str
    note: str
    values: tuple[str, ...]
    ratios: tuple[str, ...]
    shares: tuple[float, ...]


def cost_rows(models: Mapping[str, ModelRecord]) -> list[CostRow]:
    """Costs of every model, as text, as ratio to the first, and as bars."""
    kinds = (
        ("Parameters", "counted", [m.params for m in models.values()], wording.count),
        ("Multiply-adds", "counted, exact work", [m.macs for m in models.values()], wording.count),
        (
            "Multiply-adds, published convention",
            "transposed convolutions by output size",
            [m.macs_output_convention for m in models.values()],
            wording.count,
        ),
        ("Peak activation memory", "live tensors as fp32", [m.peak_activation_bytes for m in models.values()], wording.size),
        ("Activation traffic", "read and written, as fp32", [m.activation_traffic_bytes for m in models.values()], wording.size),
        ("Weights", "as stored", [m.weight_bytes for m in models.values()], wording.size),
    )
    rows = []
    for label, note, values, text in kinds:
        if not values or (label.endswith("convention") and values == [m.macs for m in models.values()]):
            continue
        largest = max(values) or 1
        ratios = (
            "",
            *(wording.ratio(values[0], value) + (" less" if value < values[0] else "") if value != values[0] else "the same" for value in values[1:]),
        )
        rows.append(CostRow(label, note, tuple(text(v) for v in values), ratios, tuple(100 * v / largest for v in values)))
    return rows


def quality_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """(what, value, against the baseline, computed by) for the means over held-out data; of the run's own network and its files."""
    rows = []
    base = run.baseline.get("mean", {})
    for name in dict.fromkeys(n for m in wording.models_of(run).values() for n in m.quality):
        label, unit = wording.metric(name)
        if name in base:
            rows.append((f"{run.baseline_name}, {label}", wording.quality(name, base[name]), "", "PyTorch"))
        sources = [(model, record.quality, wording.quality_source(run, model)) for model, record in wording.models_of(run).items()]
        sources += [(wording.file_name(e), e.quality, e.parity.runtime) for e in components.exports_of(run, None)]
        for what, values, by in sources:
            if name in values:
                gain = wording.gain(values[name], base[name]) if name in base else ""
                gain = f"{gain} {unit}".strip().replace("-", "\N{MINUS SIGN}") if gain else ""
                rows.append((f"{what}, {label}", wording.quality(name, values[name]), gain, by))
    return rows


@dataclass(frozen=True)
class NetworkPart:
    """A network that goes along: its original and what became of it."""

    title: str
    models: Mapping[str, ModelRecord]
    costs: tuple[CostRow, ...]
    qualities: tuple[tuple[str, str, str], ...]
    """(what, value, computed by), by its own metric, on held-out data of its own."""


def network_parts(run: Run) -> tuple[NetworkPart, ...]:
    """The networks beside the run's own, none of whose numbers are about it."""
    return tuple(
        NetworkPart(components.title(name), models, tuple(cost_rows(models)), tuple(_qualities_along(run, name, models)))
        for name, models in components.along(run).items()
    )


def _qualities_along(run: Run, component: str, models: Mapping[str, ModelRecord]) -> Iterator[tuple[str, str, str]]:
    sources = [(which, model.quality, wording.quality_source(run, components.model_key(component, which))) for which, model in models.items()]
    sources += [(wording.file_name(export), export.quality, export.parity.runtime) for export in components.exports_of(run, component)]
    for name in dict.fromkeys(name for _, quality, _ in sources for name in quality):
        for what, quality, by in sources:
            if name in quality:
                yield f"{what}, {wording.metric(name)[0]}", wording.quality(name, quality[name]), by
