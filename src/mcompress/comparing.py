"""What a finished run puts into its bundle so that `mcompress check` can compare it with another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mcompress.artifact import Artifact
from mcompress.compress.cost import FP32_BYTES
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.environment import cpu_name
from mcompress.export.comparison import Comparison, NarrowerNetwork, NetworkCost, constants_of, plain_operators, stored_estimate
from mcompress.offer import planned_precisions
from mcompress.planning import Plan
from mcompress.record import ExportRecord, Run
from mcompress.targets.operators import OperatorTable
from mcompress.targets.speeds import PrecisionName


@dataclass(frozen=True)
class Planned:
    """A network's table, and its precision plan if it was quantized."""

    table: OperatorTable
    plan: PrecisionPlan | None
    final: Artifact | None = None
    """What its last stage left, of a network that goes along."""


def comparison_of(made: Plan, record: Run, whole: Planned, narrower: Mapping[str, Planned]) -> Comparison:
    """`whole` is the network that the files were written from, `narrower` those of narrower widths by their names; each file is estimated on the
    unit that it is offered for.
    """
    floats: dict[str, PrecisionName] = {config.backend: config.floats for config in made.target.exports}
    files = {}
    for export in record.exports:
        if export.unit is None or not export.shipped:
            continue
        of = whole if export.beside is None else narrower[export.beside]
        precisions = planned_precisions(of.table, of.plan if export.variant == "mixed" else None, floats[export.backend], export.operators)
        files[_name(export)] = stored_estimate(of.table, made.device, export.unit, precisions, export.beside)
    return Comparison(
        model=json.loads(made.teacher_spec.to_json()),
        held_out=made.data_digest,
        gate=made.target.gate,
        constants=constants_of(made.device),
        packages=record.environment.packages,
        cpu=cpu_name(),
        network=_cost(whole.table),
        table=plain_operators(whole.table),
        files=files,
        pictures={_name(export): export.pictures for export in record.exports if export.pictures and export.shipped},
        narrower={name: NarrowerNetwork(network=_cost(of.table), table=plain_operators(of.table)) for name, of in narrower.items()},
    )


def _cost(table: OperatorTable) -> NetworkCost:
    peak = table.planned_peak_elements or table.peak_activation_elements
    return NetworkCost(params=table.params, macs=table.macs, peak_memory_bytes=peak * FP32_BYTES)


def _name(export: ExportRecord) -> str:
    """Of the file, in the bundle."""
    return export.file.rpartition("/")[2]
