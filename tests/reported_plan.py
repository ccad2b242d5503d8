"""What an invented quantize stage left, and what invented files hold of it: the part of `reported_run` that speaks of precisions."""

from __future__ import annotations

import numpy as np

from mcompress.record import OperatorRecord

IN_FP16 = ("conv2d_0", "conv2d_30")
IN_FP32 = "sigmoid"
TANGLED = 12
"""This operator's activation is merged into it in every file."""


def planned_operators() -> list[dict[str, object]]:
    """Rows of `sensitivity`: 31 convolutions, two of them kept in FP16, and a sigmoid that has no INT8 kernel."""
    rng = np.random.default_rng(4)
    rows: list[dict[str, object]] = []
    for i in range(31):
        name = f"conv2d_{i}"
        kept = name in IN_FP16
        db = 33.5 if kept else float(50 + 12 * rng.random())
        saved = "INT8 would save 0.21 ms and take the predicted output from 42.0 to 33.1 dB"
        why = saved if kept else f"0.3 ms faster than fp16; alone it leaves {db:.1f} dB"
        rows.append(
            {
                "operator": name,
                "module": f"blocks.{i // 6}.scales.{i % 6}",
                "kind": "conv2d",
                "precision": "fp16" if kept else "int8",
                "sqnr_db": db,
                "fp16_sqnr_db": 71.0 + rng.random(),
                "quality_lost": 0.21 if kept else 0.001,
                "reason": why,
            }
        )
        if i == TANGLED:
            rows.append({**rows[-1], "operator": "relu", "kind": "relu", "sqnr_db": None, "fp16_sqnr_db": None, "quality_lost": None})
            rows[-1]["reason"] = f"fused into {name}"
    last = {"operator": IN_FP32, "module": "", "kind": "sigmoid", "precision": "fp32", "sqnr_db": None, "fp16_sqnr_db": None, "quality_lost": None}
    return [*rows, {**last, "reason": "sigmoid has no INT8 kernel that all runtimes share; it is computed in float"}]


def tried_plans() -> list[dict[str, object]]:
    """A front of six plans; the two fastest lose more than 0.1 dB."""
    plans = ((15.9, 31.8, 33.0, 0.31, 31), (16.1, 36.4, 36.9, 0.13, 30), (16.4, 42.0, 41.7, 0.042, 29), (18.3, 46.0, 45.2, 0.011, 24),
             (21.7, 52.0, 50.9, 0.004, 13), (26.2, 74.0, 73.1, -0.0003, 0))  # fmt: skip
    return [
        {
            "latency_ms": ms,
            "predicted_sqnr_db": predicted,
            "sqnr_db": measured,
            "quality_lost": lost,
            "int8_macs": int8 / 31,
            "counts": {"int8": int8, "fp16": 31 - int8, "fp32": 1},
            "gap": 0.0,
            "seconds": 0.21,
            "taken": ms == 16.4,
        }
        for ms, predicted, measured, lost, int8 in plans
    ]


def quantize_details() -> dict[str, object]:
    """details.json of the stage."""
    return {
        "sensitivity": planned_operators(),
        "output_sqnr_db": 42.3,
        "quality_lost": 0.038,
        "calibration_samples": 32,
        "sensitivity_samples": 4,
        "range": "mse",
        "goal": "latency",
        "within": 0.1,
        "least_sqnr_db": 0.0,
        "latency_limit_ms": None,
        "planned_units": ["cpu", "gpu"],
        "planned_ms": {"chosen": {"cpu": 9.5, "gpu": 6.9}, "all int8": {"cpu": 9.0, "gpu": 6.9}, "all float": {"cpu": 19.3, "gpu": 6.9}},
        "precision_front": tried_plans(),
        "faster_plans_that_broke_the_floor": 2,
        "optimality_gap": 0.0,
        "counts": {"int8": 30, "fp16": 2, "fp32": 1},
        "recovery": [
            {"for": "all INT8", "step": "equalize", "before_db": 29.12, "after_db": 31.4, "kept": True},
            {"for": "all INT8", "step": "round weights", "before_db": 31.4, "after_db": 33.0, "kept": True},
            {"for": "all INT8", "step": "correct biases", "before_db": 33.0, "after_db": 32.96, "kept": False},
            {"for": "the plan", "step": "correct biases", "before_db": 41.7, "after_db": 42.3, "kept": True},
        ],
    }


def operators_of(variant: str, *, halves: bool) -> tuple[OperatorRecord, ...]:
    """A file's operators: a mixed file holds the plan; without `halves` its runtime computes FP16 operators in FP32."""
    found = []
    for row in planned_operators():
        name, planned = str(row["operator"]), str(row["precision"])
        if name == "relu":
            continue
        held = planned if variant == "mixed" else "fp32"
        computed = "fp32" if held == "fp16" and not halves else held
        stands_for = (name, "relu") if name == f"conv2d_{TANGLED}" else (name,)
        found.append(OperatorRecord(name=f"op/{name}", kind="conv", stands_for=stands_for, precision=held, computed=computed, unit="xnnpack"))
    return tuple(found)
