"""Stable Diffusion's networks, small, through the whole machinery: counted, quantized, written for all four runtimes, executed and proven."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import quiet
from pydantic import JsonValue
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.stable_diffusion import clip_text, diffusion_unet, latent_decoder
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.halves import half_constants, half_simulated
from mcompress.compress.quantize.plan import PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.export import backend_named
from mcompress.export.backend import FloatArray, Written, captured
from mcompress.export.honoured import standing_for
from mcompress.export.parity import Halved
from mcompress.export.proof import Networks, Proof, proven
from mcompress.targets.device_files import load_device
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.latency import estimate

CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig(), "executorch": ExecuTorchConfig()}
UNET: dict[str, JsonValue] = {
    "sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4, "block_out_channels": [16], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None,
}  # fmt: skip
DECODER: dict[str, JsonValue] = {
    "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 0,
    "latent_channels": 4, "sample_size": 16, "norm_num_groups": 4,
}  # fmt: skip
CLIP: dict[str, JsonValue] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
    "bos_token_id": 30, "eos_token_id": 31, "pad_token_id": 31,
}  # fmt: skip
WIDE_ANGLES = {"sin", "cos", "mul", "unsqueeze"}
"""The steps' angles reach 1000 radians, which half numbers have to within a quarter of one."""


@dataclass(frozen=True)
class Case:
    """A network, and what it takes: name -> range, and an example."""

    network: nn.Module
    ranges: Mapping[str, tuple[float, float]]
    given: Callable[[np.random.Generator], tuple[FloatArray, ...]]
    int8: tuple[str, ...]
    """Modules that bear it, though the weights are random."""

    def inputs(self, count: int, seed: int = 3) -> list[tuple[FloatArray, ...]]:
        source = np.random.default_rng(seed)
        return [self.given(source) for _ in range(count)]

    @property
    def examples(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in zip(self.ranges, self.inputs(1)[0], strict=True)}

    def plan(self) -> PrecisionPlan:
        """INT8 for the convolutions and linear layers in the modules `int8`, FP32 for the angles of the steps, FP16 for everything else."""
        program = graph_of(export_program(self.network, *self.examples.values()))
        samples = (tuple(map(torch.from_numpy, values)) for values in self.inputs(4, 5))
        plan = uniform_plan(program, calibrate(program, samples, "mse", list(self.ranges.values()), 4, quiet)[0])
        wide = WIDE_ANGLES if "timestep" in self.ranges else set[str]()

        def precision(one: PlannedOperator) -> Precision:
            if one.kind in ("conv2d", "linear") and any(part in one.module for part in self.int8):
                return "int8"
            return "fp32" if one.name in wide else "fp16"

        return replace(plan, operators=tuple(replace(one, precision=precision(one)) for one in plan.operators))


def latents(source: np.random.Generator) -> FloatArray:
    return np.clip(source.normal(size=(1, 4, 8, 8)), -4, 4).astype(np.float32)


def of_unet(source: np.random.Generator) -> tuple[FloatArray, ...]:
    step = source.integers(0, 1000, (1,)).astype(np.float32)
    return latents(source), step, np.clip(source.normal(size=(1, 8, 16)), -4, 4).astype(np.float32)


def tokens(source: np.random.Generator) -> tuple[FloatArray, ...]:
    given = np.full((1, 8), 31.0, np.float32)
    words = int(source.integers(2, 7))
    given[0, 0], given[0, 1:words] = 30, source.integers(0, 30, words - 1)
    return (given,)


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    return {
        "unet": Case(
            diffusion_unet(**UNET).eval(),
            {"latents": (-4, 4), "timestep": (0, 999), "text": (-4, 4)},
            of_unet,
            ("attn1", ".ff.", "up_blocks.0.resnets.0.conv1"),
        ),
        "decoder": Case(
            latent_decoder(**DECODER).eval(), {"latents": (-4, 4)}, lambda source: (latents(source),), ("attentions", "up_blocks.0.resnets.0.conv1")
        ),
        "clip": Case(clip_text(**CLIP).eval(), {"tokens": (0, 31)}, tokens, ("q_proj", "k_proj", "fc1")),
    }


@pytest.fixture(scope="module")
def known() -> dict[str, Case]:
    """The three networks."""
    return cases()


NAMES = ("unet", "decoder", "clip")
FLOAT = [*((name, backend) for name in NAMES for backend in ("onnx", "coreml")), ("decoder", "tflite"), ("clip", "executorch")]
"""All kinds of operators in every format; a mixed file has them all in float as well, somewhere."""
PORTABLE = {"aten::embedding", "aten::sin", "aten::cos", "aten::cat", "aten::gelu"}
"""What ExecuTorch's delegate leaves: tables of words, the angles of the steps and what joins them, and GELU of half numbers."""


def proof_of(case: Case, backend: str, plan: PrecisionPlan | None, folder: Path) -> tuple[Written, Proof]:
    config, program = CONFIGS[backend], export_program(case.network, *case.examples.values())
    with captured(folder / "log.txt"):
        written = backend_named(backend).write(config, case.network, case.examples, plan, folder / "network")
        runner = backend_named(backend).load(written.path, 1)
        reference = case.network if plan is None else Simulated(graph_of(program), plan)
        halved = (
            Halved(half_simulated(program), half_constants(program), CoreMLConfig().half_limit_db) if (backend, plan) == ("coreml", None) else None
        )
        limit = config.float_limit if plan is None else config.int8_limit_db
        return written, proven(backend, written, Networks(case.network, reference, case.inputs(3, 11)), plan, runner, limit, halved)


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_is_known_and_estimated(name: str, known: dict[str, Case]) -> None:
    case = known[name]
    table = operator_table(case.network, *(tuple(value.shape) for value in case.examples.values()))
    assert table.unknown == ()
    assert not [row for row in table.operators if row.operation == "div"], "what divides by 1 is no work"
    for device in ("apple-a16", "snapdragon8gen2"):
        for unit in load_device(device).units:
            assert estimate(table, load_device(device), unit, "fp16").value > 0


@pytest.mark.export
@pytest.mark.parametrize(("name", "backend"), FLOAT)
def test_float_files_are_proven(name: str, backend: str, known: dict[str, Case], tmp_path: Path) -> None:
    case = known[name]
    written, proof = proof_of(case, backend, None, tmp_path)
    assert proof.parity.passed, (proof.parity, proof.divergence)
    assert [port.name for port in written.inputs] == list(case.ranges)
    assert {port.dtype for port in (*written.inputs, *written.outputs)} == {"float32"}
    assert written.coverage.total == len(written.operators) == sum(written.precision_counts.values())


@pytest.mark.export
@pytest.mark.parametrize("backend", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_mixed_files_are_proven_and_hold_their_plan(name: str, backend: str, known: dict[str, Case], tmp_path: Path) -> None:
    case, plan = known[name], known[name].plan()
    written, proof = proof_of(case, backend, plan, tmp_path)
    assert proof.parity.passed, (proof.parity, proof.divergence, proof.doubts)
    assert proof.parity.limit == CONFIGS[backend].int8_limit_db, "the usual limit, not the plan's agreement with itself"
    if backend == "executorch":
        assert {operator.kind for operator in written.operators if operator.unit == "portable"} <= PORTABLE
    standing = standing_for(written.operators)
    for one in plan.operators:
        if one.precision == "int8":
            assert {operator.precision for operator in standing[one.name]} == {"int8"}, one.name
    said = {fallback.operator for fallback in written.coverage.fallbacks}
    for one in plan.operators:
        if one.precision != "int8" and any(operator.precision != one.precision for operator in standing.get(one.name, ())):
            assert one.name in said, "what is not as planned is said"
