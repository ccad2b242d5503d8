"""What a finished run puts into its bundle so that `mcompress check` can compare it with another one."""

from __future__ import annotations

import json

from mcompress.compress.cost import FP32_BYTES
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.environment import cpu_name
from mcompress.export.comparison import Comparison, NetworkCost, constants_of, plain_operators, stored_estimate
from mcompress.offer import planned_precisions
from mcompress.planning import Plan
from mcompress.record import ExportRecord, Run
from mcompress.targets.operators import OperatorTable
from mcompress.targets.speeds import PrecisionName


def comparison_of(made: Plan, record: Run, table: OperatorTable, plan: PrecisionPlan | None) -> Comparison:
    """`table` is that of the network which the files were written from; each file is estimated on the unit that it is offered for."""
    floats: dict[str, PrecisionName] = {config.backend: config.floats for config in made.target.exports}
    files = {
        _name(export): stored_estimate(
            table,
            made.device,
            export.unit,
            planned_precisions(table, plan if export.variant == "mixed" else None, floats[export.backend], export.operators),
        )
        for export in record.exports
        if export.unit is not None and export.shipped
    }
    return Comparison(
        model=json.loads(made.teacher_spec.to_json()),
        held_out=made.data_digest,
        gate=made.target.gate,
        constants=constants_of(made.device),
        packages=record.environment.packages,
        cpu=cpu_name(),
        network=NetworkCost(
            params=table.params, macs=table.macs, peak_memory_bytes=(table.planned_peak_elements or table.peak_activation_elements) * FP32_BYTES
        ),
        table=plain_operators(table),
        files=files,
        pictures={_name(export): export.pictures for export in record.exports if export.pictures and export.shipped},
    )


def _name(export: ExportRecord) -> str:
    """Of the file, in the bundle."""
    return export.file.rpartition("/")[2]
