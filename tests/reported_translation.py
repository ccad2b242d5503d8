"""Run folders of image translation as the pipeline writes them, with drawn scenes and invented numbers: what the tests of the reports read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from reported_run import exported, mean, model, psnr, save
from ruamel.yaml import YAML

from mcompress.compress.tasks.translation.embedded import scene_pairs
from mcompress.record import BudgetRecord, DataRecord, EnvironmentRecord, Run, StageRecord, TargetRecord

SIDE = 96
NAME = "xiaomi10-edges2objects"
LABELS = {0.1: 10, 0.25: 24, 0.5: 48, 1.0: 96}
STUDENT = {"features": [16, 16, 8, 16, 16, 8]}
TEACHERS = {
    "wider": {"spec_args": {"features": [24, 24, 16, 24, 24, 16]}, "macs": 1_500_000_000, "quality": 17.25},
    "deeper": {"spec_args": {"features": [16, 16, 8, 16, 16, 8], "blocks": 12}, "macs": 1_000_000_000, "quality": 16.5},
}
WEIGHTS = {"wider": 0.625, "deeper": 0.375}
TEACHER_TERMS = ("truth", "adversarial")
STUDENT_TERMS = ("ssim of wider", "gram of wider", "ssim of deeper", "gram of deeper", "channel", "total_variation", "feature of wider")


def write_pictures(folder: Path, gain: float) -> dict[str, dict[str, dict[str, float]]]:
    """Mixtures of the mean colour and the target; `gain` moves what was trained from labels nearer to it."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    noise = torch.Generator().manual_seed(0)
    for pair in scene_pairs(2, 2, SIDE):
        source, target = (picture[None].float() / 255 for picture in (pair.input, pair.target))
        grey = target.mean(dim=(2, 3), keepdim=True).expand_as(target)
        made = {
            "mean colour": grey,
            "teacher": torch.lerp(grey, target, 0.8),
            "student": torch.lerp(grey, target, 0.3 + gain),
            "distilled": torch.lerp(grey, target, 0.6 + gain),
            "compressed": torch.lerp(grey, target, 0.6 + gain) + 0.01 * torch.randn(target.shape, generator=noise),
        }
        for variant, picture in {"input": source, "truth": target, **made}.items():
            save(picture, folder / pair.name / f"{variant}.png")
        for variant, picture in made.items():
            scores.setdefault(variant, {})[pair.name] = {"psnr_db": psnr(picture.clamp(0, 1), target)}
    return scores


def details_of_stages() -> dict[str, dict[str, object]]:
    """As a semi-supervised search and an adaptive distillation leave them."""
    trials = [{"latency_ms": 10.0 + i, "quality": 14.0 + 0.2 * i, "macs": 300_000_000 + i * 50_000_000, "spec_args": STUDENT} for i in range(6)]
    front: list[dict[str, object]] = [{**trial, "peak_memory_mb": 4.0} for trial in trials]
    front[4]["picked"] = True
    terms = [f"{player}/{term}" for player in TEACHERS for term in TEACHER_TERMS]
    terms += [f"discriminator/gan of {player}" for player in TEACHERS] + [f"student/{term}" for term in STUDENT_TERMS]
    curve = [[step, {term: (1 + number) * math.exp(-step / 400) / 10 for number, term in enumerate(terms)}] for step in range(10, 401, 10)]
    return {
        "search": {
            "front": front,
            "trials": trials,
            "rejected": [{"latency_ms": 19.0, "macs": 900_000_000, "peak_memory_mb": 9.0, "over": {"macs_g": 0.16}}],
            "rejected_over_budget": 1,
            "curve": [[step, {"supernet/largest": 1 / step, "supernet/smallest": 2 / step}] for step in range(10, 401, 10)],
            "teachers": TEACHERS,
        },
        "distill": {"curve": curve, "teacher_weights": WEIGHTS},
    }


def write_target(folder: Path, **data: object) -> None:
    """A resolved target as far as runs are compared by it."""
    text = {"name": NAME, "device": "snapdragon865", "data": {"pairing": "aligned", "embedded": "objects", **data}, "seed": 0}
    with (folder / "target.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(text, stream)


def write_translation_run(folder: Path, *, fraction: float = 0.25, pairing: str = "aligned") -> Run:
    """A whole run folder of translation; the quality grows with the labels. Unpaired, the metric is likeness to the teacher."""
    paired = pairing == "aligned"
    scores = write_pictures(folder / "samples", 0.1 * fraction)
    metric = "psnr_db" if paired else "teacher_psnr_db"
    if not paired:
        scores = {name: {sample: {metric: value["psnr_db"]} for sample, value in samples.items()} for name, samples in scores.items()}
        scores["teacher"] = {sample: {metric: 200.0} for sample in scores["teacher"]}
    details = details_of_stages()
    for stage, found in details.items():
        (folder / "stages" / stage).mkdir(parents=True)
        (folder / "stages" / stage / "details.json").write_text(json.dumps(found))
    digests = {stage: format(index, "x") * 64 for index, stage in enumerate(details, start=10)}

    def average(samples: dict[str, dict[str, float]]) -> dict[str, float]:
        return {metric: mean({name: {"psnr_db": values[metric]} for name, values in samples.items()})["psnr_db"]}

    sizes = {
        "teacher": (1_100_000, 5_200_000_000),
        "student": (61_000, 500_000_000),
        "distilled": (61_000, 500_000_000),
        "compressed": (61_000, 500_000_000),
    }
    models = {}
    for name, (params, macs) in sizes.items():
        plain = {sample: {"psnr_db": values[metric]} for sample, values in scores[name].items()}
        record = model(params, macs, 4_000_000, 4 * params, plain, macs / 4e7, macs / 1e7, "fp16")
        models[name] = record.model_copy(update={"quality": average(scores[name]), "quality_per_sample": scores[name], "spec": {"network": name}})
    shown = models["compressed"].quality
    run = Run(
        target=TargetRecord(name=NAME, digest="cafe" * 16, title="Qualcomm Snapdragon 865", task="translation"),
        environment=EnvironmentRecord(python="3.11.9", platform="Linux x86_64", packages={"torch": "2.13.0"}, commit="50aabac", seed=0),
        stages=tuple(
            StageRecord(name=name, method=method, digest=digests[name], parent=parent, cached=False, seconds=200.0)
            for name, method, parent in (("search", "semi_supervised", "9" * 64), ("distill", "adaptive", digests["search"]))
        ),
        models=models,
        baseline={**scores["mean colour"], "mean": average(scores["mean colour"])},
        baseline_name="mean colour",
        data=DataRecord(
            pairing="aligned" if paired else "unpaired",
            labelled_fraction=fraction if paired else 1.0,
            labelled_pairs=LABELS[fraction] if paired else 0,
            unlabelled_images=96 - LABELS[fraction] if paired else 42,
        ),
        exports=(exported("onnx", "mixed", ".onnx", 88_310, value=43.2, host=14.9, units={"cpu int8": 32}, recommended=True, quality=shown),),
        budget=(BudgetRecord(what="latency_ms", limit=15.0, value=12.5, how="estimated", met=True),),
        fallbacks=(),
    )
    run.save(folder)
    write_target(folder, labelled_fraction=run.data.labelled_fraction if run.data else 1.0, **({} if paired else {"pairing": "unpaired"}))
    return run
