"""Stable Diffusion 1.5's U-Net at its real size, and SnapFusion's: counted without data, evolved, and exported, beside the converters alone.

    python tests/benchmarks/text_to_image_full_size.py --out tests/benchmarks/results

Every export has a process of its own, one after the other, whose seconds and peak resident memory are recorded: seconds on the clock and of the
processor, which other work on the machine changes less, for writing the file and reading it back. The memory includes the network that is exported,
and parts of files that are mapped. Weights are random; neither time nor memory depends on them. `--network tiny` tries the benchmark itself.

`evolved` is the original after `evolve` has brought it to the budget by the estimator's table of its blocks: to SnapFusion's 230 ms with attention
whole, as it was measured for the paper; with attention by heads, where the original meets that as it is, to what SnapFusion's own network takes then.
Random weights say nothing of pictures: there is no robust training, and blocks are taken as equally good, so that those go first that save most.
Their values are measured all the same, on small random latents, for that is part of the work. What is exported as `evolved` is the one of
`--attention`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from comparing_trainings import stage_context
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.attention_layout import fastest_attention
from mcompress.compress.cost import OperatorTable, operator_table
from mcompress.compress.diffusion import NoiseSchedule
from mcompress.compress.evolving import by_value, evolve
from mcompress.compress.evolving_actions import ScoredBlock
from mcompress.compress.models.build import build, build_meta
from mcompress.compress.models.spec import InputSpec, ModelSpec, Sampling
from mcompress.compress.models.split_attention import LAYOUTS
from mcompress.compress.models.stable_diffusion import SD_15, SNAPFUSION_REPEATS, diffusion_unet
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.tasks.task import Task
from mcompress.environment import cpu_name
from mcompress.errors import MCompressError
from mcompress.export import backend_named
from mcompress.export.backend import OUTPUT
from mcompress.export.replay import size_of
from mcompress.targets.device_files import load_device
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.latency import estimate
from mcompress.targets.schema import Budget
from mcompress.targets.stages import EvolveSearchConfig

logger = logging.getLogger("benchmark")
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "coreml": CoreMLConfig(), "tflite": TFLiteConfig(), "executorch": ExecuTorchConfig()}
RAW = ("onnx", "coreml")
"""Backends whose converters are tried alone as well."""
TINY: dict[str, JsonValue] = {
    "sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4, "block_out_channels": [16, 24], "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
NETWORKS: dict[str, dict[str, JsonValue]] = {
    "original": SD_15,
    "slimmed": {**SD_15, "repeats": SNAPFUSION_REPEATS},
    "evolved": SD_15,
    "tiny": TINY,
}
EVOLVED = "evolved"
PUBLISHED_MS = 230.0
"""A call of SnapFusion's U-Net, iPhone 14 Pro (Li et al. 2023, arXiv 2306.00980)."""
VALUED_SIDE, VALUED_LATENTS, VALUED_TIMESTEPS = 8, 2, 1
SIDES = {"tiny": (8, (8, 16))}
DEVICE, UNIT, PRECISION = "apple-a16", "npu", "fp16"
LONGEST_S = 3600


def spec_of(network: str, attention: str, repeats: Mapping[str, JsonValue] | None = None) -> ModelSpec:
    """`repeats`: of an evolved network."""
    side, states = SIDES.get(network, (64, (77, 768)))
    further = (InputSpec("timestep", (1,), (0.0, 999.0)), InputSpec("text", (1, *states), (-4.0, 4.0)))
    args = {**NETWORKS[network], "attention": attention, **({"repeats": dict(repeats)} if repeats is not None else {})}
    return ModelSpec("diffusion_unet", args, (), (1, 4, side, side), (-4.0, 4.0), "latents", further)


@dataclass(frozen=True)
class RandomLatents:
    """What `evolve` asks a task for; nothing is trained."""

    data: Diffusion

    def diffusion(self) -> Diffusion:
        return self.data


def evolved(attention: str) -> dict[str, object]:
    """The original, brought to the budget of its layout: what went, how long that took, and what is left."""
    started, cpu_started = time.perf_counter(), _cpu_s()
    original = replace(spec_of("original", attention), sampling=Sampling("epsilon", 50, 7.5))
    torch.manual_seed(0)
    network = build(original).eval().requires_grad_(False)
    built = time.perf_counter()
    drawn = torch.Generator().manual_seed(1)
    latents, states = (torch.randn(VALUED_LATENTS, *shape, generator=drawn) for shape in ((4, VALUED_SIDE, VALUED_SIDE), (77, 768)))
    task = cast("Task", RandomLatents(Diffusion(NothingToTrainOn(), (latents, states), torch.zeros(1, 77, 768), NoiseSchedule())))
    device = load_device(DEVICE)
    limit_ms = PUBLISHED_MS if attention == "whole" else estimate(_table("slimmed", attention), device, UNIT, PRECISION).value
    context = stage_context(task, DEVICE, Budget(latency_ms=limit_ms), (original, network), 0, Path())
    config = EvolveSearchConfig(
        steps=0, steps_between=0, group=2, most_doubled=0, evaluation_latents=VALUED_LATENTS, evaluation_timesteps=VALUED_TIMESTEPS
    )
    output = evolve(config, replace(context, unit=device.unit(UNIT), ships_as=PRECISION), slowest_first)
    details = cast("dict[str, Any]", output.details)
    return {
        "attention": attention,
        "limit_ms": round(limit_ms, 2),
        "latency_ms": {when: round(details[when]["latency_ms"], 2) for when in ("before", "after")},
        "params": sum(one.numel() for one in output.model.parameters()),
        "repeats": details["repeats"],
        "removed": [[one["block"] for one in action["blocks"]] for action in details["actions"]],
        "build_s": round(built - started, 2),
        "evolve_s": round(time.perf_counter() - built, 2),
        "cpu_s": round(_cpu_s() - cpu_started, 2),
        "peak_mb": _peak_mb(),
    }


def slowest_first(scored: list[ScoredBlock]) -> list[ScoredBlock]:
    """By value, if all were equally good."""
    return by_value([replace(one, loss_rise=1.0) for one in scored])


class NothingToTrainOn:
    """Training data of which nothing is drawn."""

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def _table(network: str, attention: str) -> OperatorTable:
    spec = spec_of(network, attention)
    return operator_table(build_meta(spec), *spec.input_shapes)


def counted(network: str, repeats: Mapping[str, JsonValue] | None) -> dict[str, object]:
    """Seconds to build and count it without data in both layouts, what it then costs, and which layout the device gets."""
    found: dict[str, object] = {"network": network}
    for layout in LAYOUTS:
        spec = spec_of(network, layout, repeats)
        started = time.perf_counter()
        with torch.device("meta"):
            module = diffusion_unet(**spec.args).eval()  # type: ignore[arg-type]  # of JSON
        built = time.perf_counter()
        table = operator_table(module, *spec.input_shapes)
        found[layout] = {
            "build_s": round(built - started, 2),
            "count_s": round(time.perf_counter() - built, 2),
            "params": table.params,
            "macs": table.macs,
            "rows": len(table.operators),
            "peak_activation_mb_fp32": round(4 * table.peak_activation_elements / 1e6, 1),
            "planned_peak_mb_fp32": round(4 * table.planned_peak_elements / 1e6, 1),
        }
    device = load_device(DEVICE)
    chosen, milliseconds = fastest_attention(spec_of(network, "whole", repeats), device, device.unit(UNIT), PRECISION)
    found["attention"] = chosen.args.get("attention", "whole")
    found["estimated_ms"] = {name: round(value, 2) for name, value in milliseconds.items()}
    return found


def exported(way: str, backend: str, spec: ModelSpec, folder: Path) -> dict[str, object]:
    """In this process: build it with random weights and write it, by our backend (`ours`) or by the converter alone (`raw`)."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    torch.manual_seed(0)
    module = diffusion_unet(**spec.args).eval().requires_grad_(False)  # type: ignore[arg-type]  # of JSON
    examples = {one.name: torch.zeros(one.shape) for one in spec.inputs}
    found: dict[str, object] = {"build_s": round(time.perf_counter() - started, 2), "resident_mb_before": _peak_mb()}
    started, cpu_started = time.perf_counter(), _cpu_s()
    try:
        path = ours(backend, module, examples, folder) if way == "ours" else RAW_WAYS[backend](module, examples, folder)
        found["bytes"] = size_of(path)
    except MCompressError as error:
        found["refused"] = str(error)[:500]
    return {**found, "export_s": round(time.perf_counter() - started, 2), "cpu_s": round(_cpu_s() - cpu_started, 2), "peak_mb": _peak_mb()}


def ours(backend: str, module: nn.Module, examples: Mapping[str, Tensor], folder: Path) -> Path:
    """The backend, with its checks and its reading back."""
    return backend_named(backend).write(CONFIGS[backend], module, examples, None, folder / "network").path


def raw_onnx(module: nn.Module, examples: Mapping[str, Tensor], folder: Path) -> Path:
    """torch.onnx.export alone, its weights beside the graph."""
    program = torch.onnx.export(
        module, tuple(examples.values()), dynamo=True, opset_version=OnnxConfig().opset, input_names=[*examples], output_names=[OUTPUT], optimize=True
    )
    assert program is not None
    inside = folder / "network"
    inside.mkdir()
    program.save(str(inside / "network.onnx"), external_data=True)
    return inside


def raw_coreml(module: nn.Module, examples: Mapping[str, Tensor], folder: Path) -> Path:
    """coremltools alone, FP16."""
    import coremltools as ct

    program = torch.export.export(module, tuple(examples.values())).run_decompositions({})
    for node in [node for node in program.graph.nodes if node.target is torch.ops.aten.alias.default]:  # coremltools has no such operator
        node.replace_all_uses_with(node.args[0])
        program.graph.erase_node(node)
    made = ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT16, skip_model_load=True
    )
    made.save(str(folder / "network.mlpackage"))
    return folder / "network.mlpackage"


RAW_WAYS: dict[str, Callable[[nn.Module, Mapping[str, Tensor], Path], Path]] = {"onnx": raw_onnx, "coreml": raw_coreml}


def _cpu_s() -> float:
    """Of this process and those that it waited for, such as ExecuTorch's flatc."""
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _peak_mb() -> float:
    """Of this process, or of the largest that it waited for."""
    kilobytes = max(resource.getrusage(one).ru_maxrss for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(kilobytes / (1e6 if sys.platform == "darwin" else 1e3), 1)


def alone(*arguments: str) -> dict[str, object]:
    """What this file prints when it is run with `arguments`, in a process of its own; what ended it where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *arguments, "--folder", folder]
        started = time.perf_counter()
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            return {"failed": f"longer than {LONGEST_S} s"}
    seconds = round(time.perf_counter() - started, 1)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing was printed"]
        return {"failed": f"exit code {done.returncode}: {last[0][:500]}", "process_s": seconds}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "process_s": seconds}


def ratios(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Seconds and memory of our backends as multiples of the converters'."""
    raw = {(row["backend"], row["network"]): row for row in rows if row["way"] == "raw"}
    found: list[dict[str, object]] = []
    for row in rows:
        other = raw.get((row["backend"], row["network"]))
        if row["way"] == "ours" and other is not None and "bytes" in row and "bytes" in other:
            each = {name: round(float(str(row[name])) / float(str(other[name])), 3) for name in ("export_s", "cpu_s", "peak_mb")}
            found.append({"backend": row["backend"], "network": row["network"], **each})
    return found


class Found:
    """The results in their file, which is written after every row; what is in it already is not done again."""

    def __init__(self, path: Path, facts: Mapping[str, JsonValue], *, again: bool) -> None:
        self.path = path
        self.document: dict[str, Any] = {**facts, "evolved": [], "counted": [], "exports": [], "ratios": []}
        if not again and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if {name: before.get(name) for name in facts} == dict(facts):
                self.document |= before

    def row(self, part: str, which: Mapping[str, str], *arguments: str) -> dict[str, Any]:
        """A row of `part`, known by `which`, done in a process of its own where it is not there."""
        rows: list[dict[str, Any]] = self.document[part]
        known = next((one for one in rows if {name: one.get(name) for name in which} == dict(which)), None)
        if known is not None:
            return known
        rows.append({**which, **alone(*arguments)})
        logger.info("%s", rows[-1])
        self.document["ratios"] = ratios(self.document["exports"])
        self.path.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        return rows[-1]

    def complete(self, networks: Sequence[str], backends: Sequence[str], attention: str) -> None:
        """All rows of these networks."""
        layout = ("--attention", attention)
        for network in networks:
            known = ["--network", network]
            if network == EVOLVED:
                evolution = self.row("evolved", {"attention": attention}, "--one", "evolve", *layout)
                if "repeats" not in evolution:
                    continue  # it failed, and its row says how
                known += ["--repeats", json.dumps(evolution["repeats"])]
            self.row("counted", {"network": network}, "--one", "count", *known)
            for backend in backends:
                for way in ("ours", "raw") if backend in RAW else ("ours",):
                    which = {"network": network, "backend": backend, "way": way}
                    self.row("exports", which, "--one", way, "--backend", backend, *known, *layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*NETWORKS], nargs="+", default=["original", "slimmed", EVOLVED])
    parser.add_argument("--backend", choices=[*CONFIGS], nargs="+", default=[*CONFIGS])
    parser.add_argument("--attention", choices=LAYOUTS, default="whole", help="of the exported networks")
    parser.add_argument("--again", action="store_true", help="do what is in the file already once more")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--one", choices=("count", "evolve", "ours", "raw"), help="in this process: one network, and of an export one backend")
    parser.add_argument("--repeats", type=json.loads, help="of an evolved network")
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    if options.one:
        network, backend = options.network[0], options.backend[0]
        with os.fdopen(os.dup(1), "w", encoding="utf-8") as result:
            os.dup2(2, 1)  # what converters print is not the result
            if options.one == "count":
                found = counted(network, options.repeats)
            elif options.one == "evolve":
                found = evolved(options.attention)
            else:
                found = exported(options.one, backend, spec_of(network, options.attention, options.repeats), options.folder)
            result.write(json.dumps(found) + "\n")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    facts = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "device": f"{DEVICE} {UNIT} {PRECISION}",
        "attention": options.attention,
    }
    path = options.out / f"text_to_image_full_size_{options.attention}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    Found(path, facts, again=options.again).complete(options.network, options.backend, options.attention)


if __name__ == "__main__":
    main()
