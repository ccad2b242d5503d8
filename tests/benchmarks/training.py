"""Does distillation help, does discriminator distillation help, does the search help? Comparisons that anyone can rerun.

    make benchmarks            (or: python tests/benchmarks/training.py --steps 1500 --seeds 3 --out tests/benchmarks/results)

Super-resolution on the embedded photographs: PSNR on the held-out photographs, mean and spread over seeds, at equal steps and at equal wall time.
Everything runs in one thread, and its processor time is compared: on an idle machine that is the wall time, and a busy one does not change it. The
last result lies in `results/` beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from comparing_trainings import fit, stage_context
from torch import nn

from mcompress.compress.candidates import CandidateCost, candidate_cost
from mcompress.compress.models.build import build
from mcompress.compress.models.space import SPACES
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.search import search
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.train import TrainSettings
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget, DataConfig
from mcompress.targets.stages import DistillConfig, SupernetSearchConfig

logger = logging.getLogger("benchmark")
SHAPE = (1, 3, 128, 128)
STUDENT = ModelSpec("mfagan", {"channels": 32, "blocks": [[3, 32]] * 3}, (), SHAPE)
BUDGET = Budget(macs_g=4.895, peak_memory_mb=16.16, latency_ms=30)  # that of targets/snapdragon865.yaml
RANDOM_PICKS = 2  # per seed
GENERATOR_ONLY = {"truth": 0.3, "output": 1.0}
WITH_ADVERSARY = {**GENERATOR_ONLY, "adversarial": 0.0005}
WITH_DISCRIMINATOR = {**WITH_ADVERSARY, "discriminator": 1.0}
STORED_ANSWERS = 250  # batches


def quality_db(task: SuperResolution, network: nn.Module) -> float:
    with torch.no_grad():
        return statistics.mean(task.quality(network(*s.inputs), s.truth) for s in task.held_out())


def trained(
    task: SuperResolution,
    spec: ModelSpec,
    weights: dict[str, float] | None,
    teacher: nn.Module,
    steps: int,
    seed: int,
    teacher_batches: int | None = None,
) -> tuple[float, float]:
    """(PSNR dB, seconds) of a network trained from scratch: on the truth alone, or by distillation with these weights."""
    torch.manual_seed(seed)
    network = build(spec)
    config = DistillConfig(steps=steps, batch_size=8, crop_size=24, teacher_batches=teacher_batches, **(weights or {}))
    objective = FitTruth(task, config, network) if weights is None else Distillation(task, config, network, teacher, seed)
    seconds = fit(objective, TrainSettings(steps, 1e-3, seed))
    return quality_db(task, network), seconds


def summary(values: list[float]) -> dict[str, object]:
    return {"mean_db": round(statistics.mean(values), 3), "spread_db": round(statistics.stdev(values), 3), "each_db": [round(v, 3) for v in values]}


def compare_training(task: SuperResolution, teacher: nn.Module, steps: int, seeds: int) -> dict[str, object]:
    rows: dict[str, dict[str, object]] = {}
    ways: dict[str, tuple[dict[str, float] | None, int | None]] = {
        "from scratch": (None, None),
        "distilled, generator only, teacher asked at each step": (GENERATOR_ONLY, None),
        "distilled, generator only": (GENERATOR_ONLY, STORED_ANSWERS),
        "distilled, generator and adversary": (WITH_ADVERSARY, STORED_ANSWERS),
        "distilled, generator and discriminator": (WITH_DISCRIMINATOR, STORED_ANSWERS),
    }
    seconds: dict[str, float] = {}
    for name, (weights, answers) in ways.items():
        runs = [trained(task, STUDENT, weights, teacher, steps, seed, answers) for seed in range(seeds)]
        seconds[name] = statistics.mean(s for _, s in runs)
        rows[name] = {"steps": steps, "seconds": round(seconds[name], 1), **summary([q for q, _ in runs])}
        logger.info("%s %s", name, rows[name])
    for name in list(ways)[1:]:
        more = round(steps * seconds[name] / seconds["from scratch"])
        runs = [trained(task, STUDENT, None, teacher, more, seed) for seed in range(seeds)]
        label = f"from scratch, wall time of '{name}'"
        rows[label] = {"steps": more, "seconds": round(statistics.mean(s for _, s in runs), 1), **summary([q for q, _ in runs])}
        logger.info("%s %s", label, rows[label])
    return rows


def random_spec_at(latency_ms: float, generator: torch.Generator, cost_of: Callable[[ModelSpec], CandidateCost]) -> ModelSpec:
    """A random network of the space within 5 % of a latency and within the budget."""
    for _ in range(5000):
        spec = ModelSpec("mfagan", SPACES["mfagan"].random(generator), (), SHAPE)
        cost = cost_of(spec)
        if abs(cost.latency.value - latency_ms) <= 0.05 * latency_ms and not cost.exceeded(BUDGET):
            return spec
    raise SystemExit(f"no random candidate at {latency_ms:.2f} ms in 5000 draws")


def compare_search(task: SuperResolution, teacher_spec: ModelSpec, teacher: nn.Module, steps: int, seeds: int) -> dict[str, object]:
    device = load_device("snapdragon865")
    unit = device.units[device.preferred_unit]
    picks, randoms, chosen = [], [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as work:
            context = stage_context(task, "snapdragon865", BUDGET, (teacher_spec, teacher), seed, Path(work))
            output = search(SupernetSearchConfig(steps=steps, trials=60, batch_size=8, crop_size=24), context)
        pick = ModelSpec("mfagan", output.spec.args, (), SHAPE)
        latency_ms = candidate_cost(pick, device, unit, "int8").latency.value
        generator = torch.Generator().manual_seed(seed)
        picks.append(trained(task, pick, GENERATOR_ONLY, teacher, steps, seed, STORED_ANSWERS)[0])
        others = [random_spec_at(latency_ms, generator, lambda spec: candidate_cost(spec, device, unit, "int8")) for _ in range(RANDOM_PICKS)]
        found = [round(trained(task, other, GENERATOR_ONLY, teacher, steps, seed, STORED_ANSWERS)[0], 3) for other in others]
        randoms.extend(found)
        chosen.append(
            {
                "latency_ms": round(latency_ms, 3),
                "pick": pick.args,
                "pick_db": round(picks[-1], 3),
                "randoms": [{"network": other.args, "db": db} for other, db in zip(others, found, strict=True)],
            }
        )
        logger.info("search seed %d: %s", seed, chosen[-1])
    return {"the pick of the search": summary(picks), "random networks at its estimated latency": summary(randoms), "networks": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("training", "search"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    task = SuperResolution.from_config(DataConfig())
    teacher_spec, teacher = task.embedded_teacher(SHAPE)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "steps": options.steps,
        "seeds": options.seeds,
        "threads": 1,
        "torch": torch.__version__,
        "teacher_db": round(quality_db(task, teacher.eval()), 3),
    }
    if options.only != "search":
        result = {**facts, "rows": compare_training(task, teacher, options.steps, options.seeds)}
        (options.out / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    if options.only != "training":
        result = {**facts, "rows": compare_search(task, teacher_spec, teacher, options.steps, options.seeds)}
        (options.out / "search.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
