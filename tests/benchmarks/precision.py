"""The precision planner against all-INT8, greedy and random choice, side by side in one run, on trained networks. Writes `results/precision.json`.

    python tests/benchmarks/precision.py [--networks FOLDER] [--out FOLDER] [NAME ...]

Every choice is judged by running the network on samples that nothing was fitted to. Each rival has the same network, the same recovered parameters,
the same sensitivities, and at most the same estimated latency as the planner's plan. Trained weights are kept in FOLDER.

Recovery brings back most of what INT8 loses before any precision is chosen. What choosing does by itself is in `selection_alone`, with the network's
own parameters.

Three questions more, where no NAME is given: how long sensitivity and planning take, how long the program takes for 500 operators, and whether memory
depends on the number of calibration samples.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from quantizer_networks import RECIPES, SEED, embedded_task, spec_of, task_of, trained
from torch import Tensor, fx, nn

from mcompress.compress.checkpoints import NoCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.choosing import Run, Tried, best_within, runner
from mcompress.compress.quantize.decisions import Problem, named_table, plan_of, problem_of
from mcompress.compress.quantize.greedy import assigned, expressible, greedy
from mcompress.compress.quantize.plan import ActivationRange, Precision, PrecisionPlan
from mcompress.compress.quantize.planner import Solution, least_latency
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.reasons import reasons_for
from mcompress.compress.quantize.recovery.recover import Recovered, RecoveryOptions, recover
from mcompress.compress.quantize.recovery.selecting import for_plan
from mcompress.compress.quantize.sensitivity import Sensitivity, measure_sensitivity
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.compress.tasks.task import Inputs, Sample, Task
from mcompress.environment import cpu_name
from mcompress.export.agent.worker import peak_memory_mb
from mcompress.targets.activations import Activations
from mcompress.targets.device_files import load_device
from mcompress.targets.operators import OperatorTable

RESULTS = "precision.json"
DEVICES = (("snapdragon865", ("cpu",)), ("host", ("cpu",)))
JETSON = (("jetson-xavier-nx", ("gpu",)),)
"""Before the others, for what runs there."""
SENSITIVITY_SIDE, SENSITIVITY_SAMPLES, VERIFY_SAMPLES = 48, 4, 4
NOISE_DB = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30)
"""Of the plans that are tried for `RECOVERED`: so much less noise than INT8 throughout."""
STEPS = (0.02, 0.1, 0.25, 0.5)
"""Latency limits: this far from the fastest plan to the one without INT8."""
RANDOM_CHOICES = 8
RECOVERED = 0.8
"""Share of what all-INT8 loses that the plan has to bring back, with `RECOVERED` of the multiply-adds in INT8."""


@dataclass(frozen=True)
class Prepared:
    """A network with everything that does not depend on the device, but for the scheme of its INT8 activations."""

    name: str
    original: fx.GraphModule
    plain_ranges: dict[str, ActivationRange]
    first: Recovered
    sensitivity: Sensitivity
    table: OperatorTable
    task: Task
    shape: tuple[int, ...]
    samples: int
    judging_samples: int
    activations: Activations
    seconds: dict[str, float]

    def fresh(self) -> Iterator[Sample]:
        """What plans are chosen on."""
        return islice(self.task.calibration_samples(self.samples + VERIFY_SAMPLES, self.shape, SEED), self.samples, None)

    def judging(self) -> Iterator[Sample]:
        """What all choices are compared on: no plan has seen it."""
        last = self.samples + VERIFY_SAMPLES
        return islice(self.task.calibration_samples(last + self.judging_samples, self.shape, SEED), last, None)


def prepare(name: str, network: nn.Module, activations: Activations = "asymmetric", *, recovering: bool = True) -> Prepared:
    """Calibrate, recover if `recovering`, measure."""
    recipe = RECIPES[name]
    task, spec = task_of(recipe), spec_of(recipe)
    shape, input_ranges = spec.input_shape, tuple(one.value_range for one in spec.inputs)
    seconds: dict[str, float] = {}

    def timed(what: str) -> Callable[[], None]:
        started = time.monotonic()
        return lambda: seconds.__setitem__(what, round(time.monotonic() - started, 1))

    def inputs() -> Iterator[Inputs]:
        return (sample.inputs for sample in task.calibration_samples(recipe.samples, shape, SEED))

    original = graph_of(export_program(network, *map(torch.zeros, spec.input_shapes)))
    done = timed("calibrate")
    ranges, _ = calibrate(original, inputs(), "mse", input_ranges, recipe.samples, quiet, activations)
    done()
    first = Recovered(original, ranges, (), original)
    if recovering:
        done = timed("recover")
        all_int8 = uniform_plan(original, ranges, activations=activations)
        first = recover(RecoveryOptions(input_ranges), original, all_int8, inputs, SEED, NoCheckpoints(), quiet)
        done()
    side = min(max(SENSITIVITY_SIDE, task.smallest_crop()), recipe.side)
    small = (*shape[:2], side, side)
    module = graph_of(export_program(network, *map(torch.zeros, (small, *spec.input_shapes[1:]))))
    module.load_state_dict(first.module.state_dict())
    done = timed("sensitivity")
    samples = task.calibration_samples(SENSITIVITY_SAMPLES, small, SEED)
    sensitivity = measure_sensitivity(module, samples, first.ranges, task.quality, SENSITIVITY_SAMPLES, quiet)
    done()
    table = named_table(first.module, *spec.input_shapes)
    return Prepared(name, original, ranges, first, sensitivity, table, task, shape, recipe.samples, recipe.judging, activations, seconds)


def quiet(done: int, total: int, note: str) -> None:
    """No progress line."""


def compare(prepared: Prepared, device: str, units: Sequence[str]) -> dict[str, object]:
    """One network on one device."""
    problem = problem_of(prepared.first.module, prepared.table, prepared.first.ranges, prepared.sensitivity, load_device(device), units)
    choosing, run = (
        runner(prepared.original, lambda chosen: network_of(prepared, problem, chosen), samples, prepared.task.quality)
        for samples in (prepared.fresh, prepared.judging)
    )
    int8, plain = problem.uniform("int8"), problem.uniform("fp16")
    fastest, slowest = problem.latency_ms(int8), problem.latency_ms(plain)
    (everything,) = run([assigned(problem, int8)])
    naive = naive_loss(prepared)
    points = []
    for step in STEPS:
        limit = fastest + step * (slowest - fastest)
        rival = greedy(problem, prepared.sensitivity, limit)
        if rival is None:
            continue
        best = best_within(problem, limit, choosing, (rival,)).taken.solution
        chance = [assigned(problem, randomly(problem, int8, plain, limit, seed)) for seed in range(RANDOM_CHOICES)]
        planned, by_greed, *by_chance = run([best, rival, *chance])
        points.append(
            {
                "limit_ms": limit,
                "planner": figures(prepared, problem, planned),
                "greedy": figures(prepared, problem, by_greed),
                "random": [figures(prepared, problem, one) for one in by_chance],
            }
        )
    kept = cheapest_recovering(prepared, problem, run, (int8, plain), naive[1])
    return {
        "device": device,
        "units": list(units),
        "all_int8_ms": fastest,
        "all_float_ms": slowest,
        "all_int8_without_recovery": {"sqnr_db": naive[0], "quality_lost": naive[1]},
        "all_int8": figures(prepared, problem, everything),
        "points": points,
        "recovering": kept,
    }


def network_of(prepared: Prepared, problem: Problem, chosen: Sequence[Precision]) -> Callable[..., Tensor]:
    """The network of an assignment, as the quantize stage makes it."""
    plan = plan_for(prepared, problem, chosen)
    return Simulated(for_plan(prepared.first.twin, prepared.first.module, plan), plan)


def plan_for(prepared: Prepared, problem: Problem, chosen: Sequence[Precision]) -> PrecisionPlan:
    module, ranges = prepared.first.module, prepared.first.ranges
    return plan_of(module, problem, chosen, ranges, [""] * len(chosen), prepared.sensitivity, prepared.activations)


def naive_loss(prepared: Prepared) -> tuple[float, float]:
    """(SQNR in dB, loss of the metric) of INT8 throughout without recovery."""
    plan = uniform_plan(prepared.original, prepared.plain_ranges, activations=prepared.activations)
    run = runner(prepared.original, lambda _: Simulated(prepared.original, plan), prepared.judging, prepared.task.quality)
    (found,) = run([Solution((), 0.0, 0.0, 0.0, 0.0)])
    return found.sqnr_db, found.lost


def cheapest_recovering(
    prepared: Prepared, problem: Problem, run: Run, ends: tuple[Sequence[Precision], Sequence[Precision]], naive_lost: float
) -> dict[str, object] | None:
    """The plan with the most multiply-adds in INT8 that brings back `RECOVERED` of the naive loss, among optimal plans; what stays float in it, and
    why; and random choices of its latency. `ends`: INT8 throughout, and none."""
    int8, plain = ends
    noise = problem.noise_of(int8)
    tried = [assigned(problem, int8)]
    tried += [one for one in (least_latency(problem, noise * 10 ** (-db / 10)) for db in NOISE_DB) if one is not None]
    for one in run(tried):
        if one.lost <= (1 - RECOVERED) * naive_lost:
            limit = one.solution.latency_ms
            chance = run([assigned(problem, randomly(problem, int8, plain, limit, seed)) for seed in range(RANDOM_CHOICES)])
            return {
                **figures(prepared, problem, one),
                "recovered_share": share(one, naive_lost),
                "random_recovered_shares": [share(other, naive_lost) for other in chance],
                "float": kept_float(prepared, problem, one),
            }
    return None


def share(one: Tried, naive_lost: float) -> float | None:
    """Of the naive loss, brought back."""
    return 1 - one.lost / naive_lost if naive_lost > 0 else None


def kept_float(prepared: Prepared, problem: Problem, one: Tried) -> dict[str, str]:
    """Operator, with its module where it has one -> its precision and why it is not INT8."""
    chosen, plan = one.solution.chosen, plan_for(prepared, problem, one.solution.chosen)
    modules = {operator.name: operator.module for operator in plan.operators}
    reasons = reasons_for(prepared.first.module, problem, chosen, prepared.sensitivity)
    heads = [decision.nodes[0] for decision in problem.decisions]
    return {
        f"{head} ({modules[head]})" if modules[head] else head: f"{precision}: {reason}"
        for head, precision, reason in zip(heads, chosen, reasons, strict=True)
        if precision != "int8"
    }


def randomly(problem: Problem, int8: Sequence[Precision], plain: Sequence[Precision], limit: float, seed: int) -> tuple[Precision, ...]:
    """From INT8 throughout, make operators float in random order, as long as the limit allows."""
    chosen, order = list(int8), list(range(len(int8)))
    random.Random(seed).shuffle(order)
    for position in order:
        changed = [*chosen[:position], plain[position], *chosen[position + 1 :]]
        if problem.latency_ms(changed) <= limit:
            chosen = changed
    return tuple(expressible(problem, chosen))


def figures(prepared: Prepared, problem: Problem, one: Tried) -> dict[str, object]:
    found = one.solution
    return {
        "latency_ms": found.latency_ms,
        "sqnr_db": one.sqnr_db if math.isfinite(one.sqnr_db) else None,
        "quality_lost": one.lost,
        "int8_macs": problem.macs_share(prepared.table, found.chosen),
        "gap": found.gap if math.isfinite(found.gap) else None,
        "seconds": round(found.seconds, 3),
    }


def five_hundred() -> dict[str, object]:
    """Planning time of a chain of residual blocks with 500 operators and made-up sensitivities, on the Snapdragon 865's CPU: three precisions."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(250))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return x

    shape = (1, 16, 64, 64)
    graph = graph_of(export_program(Chain().eval(), torch.zeros(shape)))
    rng = np.random.default_rng(SEED)
    names = [node.name for node in graph.graph.nodes if node.op in ("call_function", "placeholder")]
    noise = {name: float(10 ** rng.uniform(-7, -4)) for name in names}
    alone: dict[str, dict[Precision, float]] = {name: {"fp16": value / 1000, "int8": value} for name, value in noise.items()}
    reads = {node.name: {one.name: noise[one.name] / 2 for one in node.all_input_nodes if one.name in noise} for node in graph.graph.nodes}
    weights = {name: value / 3 for name, value in noise.items() if "conv" in name}
    sensitivity = Sensitivity(1, 1.0, 0.0, alone, {}, noise, reads, weights)
    ranges = {name: ActivationRange.from_bounds(-1.0, 1.0) for name in names}
    problem = problem_of(graph, named_table(graph, shape), ranges, sensitivity, load_device("snapdragon865"), ("cpu",))
    most = problem.noise_of(problem.uniform("int8"))
    found = []
    for share in (0.5, 0.2, 0.05):
        one = least_latency(problem, share * most)
        if one is not None:
            found.append({"noise_share": share, "seconds": one.seconds, "gap": one.gap, "latency_ms": one.latency_ms})
    return {"operators": len(problem.decisions), "solutions": found}


def peak_mb(samples: int) -> float:
    """Peak memory of a process that calibrates MFAGAN with so many samples and measures its sensitivities with as many."""
    command = [sys.executable, __file__, "--memory", str(samples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def use_memory(samples: int) -> None:
    """What `peak_mb` runs; prints MB."""
    torch.set_num_threads(1)
    task, side = embedded_task(), 24
    network = build(ModelSpec("mfagan", {"channels": 8, "blocks": [[2, 8]]}, (), (1, 3, side, side)))
    graph = graph_of(export_program(network, torch.zeros(1, 3, side, side)))

    def stream() -> Iterator[Sample]:
        return task.calibration_samples(samples, (1, 3, side, side), SEED)

    ranges, _ = calibrate(graph, (one.inputs for one in stream()), "mse", [(0.0, 1.0)], samples, quiet)
    measure_sensitivity(graph, stream(), ranges, task.quality, samples, quiet)
    sys.stdout.write(f"{peak_memory_mb()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all of them if left out")
    parser.add_argument("--networks", type=Path, default=Path(tempfile.gettempdir()) / "mcompress-benchmark-networks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        use_memory(given.memory)
        return
    path = given.out / RESULTS
    results: dict[str, object] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results["machine"] = {"cpu": cpu_name(), "python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    networks = results.setdefault("networks", {})
    for name in given.names or list(RECIPES):
        networks[name] = judged(name, trained(name, given.networks))  # type: ignore[index]
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if not given.names:
        results["five_hundred_operators"] = five_hundred()
        results["memory_mb"] = {str(count): peak_mb(count) for count in (8, 512)}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def judged(name: str, network: nn.Module) -> dict[str, object]:
    """One network on every device."""
    made: dict[tuple[Activations, bool], Prepared] = {}
    found = []
    for device, units in (*(JETSON if RECIPES[name].task == "talking_face" else ()), *DEVICES):
        (activations,) = {load_device(device).units[unit].activations for unit in units}
        for recovering in (True, False):
            if (activations, recovering) not in made:
                made[activations, recovering] = prepare(name, network, activations, recovering=recovering)
        recovered, plain = (compare(made[activations, recovering], device, units) for recovering in (True, False))
        found.append({**recovered, "activations": activations, "selection_alone": plain})
    first = next(iter(made.values()))
    return {"seconds": first.seconds, "operators": len(first.table.operators), "devices": found}


if __name__ == "__main__":
    main()
