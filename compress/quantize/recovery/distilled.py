"""Quantization-aware distillation: the quantized network learns the float network's output on calibration inputs.

Polino et al. 2018, "Model compression via distillation and quantization" (arXiv 1802.05668): the student is the quantized network, the teacher the
float one, and gradients pass straight through the rounding. Besides weights and biases the ranges of activations are learned (LSQ, Esser et al. 2020,
arXiv 1902.08153). No truth is needed.

Everything is learned as an offset in units of its own step (a weight's INT8 step, a range's logarithm), so that one learning rate fits all layers and
scales. The scale of a row of weights is fixed, and the weight that sets it does not move: what comes out lies on the grid that exporters find again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import WEIGHT_MAX, weight_scales
from mcompress.compress.quantize.plan import INT8_MAX, INT8_MIN, ActivationRange, PrecisionPlan
from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.representable import representable
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.tasks.task import Inputs, moved
from mcompress.compress.train import CheckpointStore, Objective, Progress, TrainSettings, train
from mcompress.errors import StageError

RANGE_UNIT = 0.5  # log units of a range's bound per unit of its parameter: the learning rate of weights is in INT8 steps, which are larger


@dataclass(frozen=True)
class DistillSettings:
    """How long and how fast: `learning_rate` is in INT8 steps of a weight per training step, at its peak."""

    steps: int
    batch_size: int = 2
    learning_rate: float = 0.02


def distill(
    module: fx.GraphModule,
    plan: PrecisionPlan,
    teacher: fx.GraphModule,
    inputs: Sequence[Inputs],
    settings: DistillSettings,
    seed: int,
    checkpoints: CheckpointStore,
    progress: Progress,
) -> tuple[fx.GraphModule, PrecisionPlan]:
    """Train a copy of `module` under `plan` towards `teacher` on `inputs` (all of one shape, kept in memory, with the teacher's answers).

    Raises `TrainingDiverged`, and `StageError` without inputs.
    """
    if not inputs:
        raise StageError("no calibration inputs were given; recovery needs at least one")
    student = Student(module, plan)
    objective = _Match(student, inputs, [parameters.float_output(teacher, *value) for value in inputs], settings.batch_size)
    warmup = min(20, settings.steps // 4)
    train(objective, TrainSettings(settings.steps, settings.learning_rate, seed, warmup_steps=warmup), checkpoints, progress)
    return student.result()


class _Match(Objective):
    """Objective: mean squared error to the float output, relative to what it is at the start; each batch in a random orientation."""

    def __init__(self, student: Student, inputs: Sequence[Inputs], answers: Sequence[Tensor], batch_size: int) -> None:
        self._student, self._inputs, self._answers, self._batch_size = student, inputs, answers, batch_size
        with torch.no_grad():
            errors = [float((student(*value) - answer).square().mean()) for value, answer in zip(inputs[:4], answers[:4], strict=True)]
        self._unit = max(sum(errors) / len(errors), 1e-20)

    def players(self) -> Mapping[str, nn.Module]:
        return {"student": self._student}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        chosen = torch.randint(len(self._inputs), (self._batch_size,), generator=generator).tolist()
        self._batch = [(moved(self._inputs[index], device), self._answers[index].to(device)) for index in chosen]

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        errors = [(self._student(*value) - answer).square().mean() for value, answer in self._batch]
        return {"output": torch.stack(errors).mean() / self._unit}


class Student(nn.Module):
    """The network under a plan, with learnable offsets of weights, biases and ranges."""

    def __init__(self, module: fx.GraphModule, plan: PrecisionPlan) -> None:
        """All offsets start at zero."""
        super().__init__()
        # Not submodules: only the offsets are trained.
        object.__setattr__(self, "network", parameters.copied(module).requires_grad_(False))
        self.plan = plan
        self.weights, self.biases, self.bounds = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.steps: dict[str, Tensor] = {}
        self.movable: dict[str, Tensor] = {}
        self.bias_steps: dict[str, Tensor] = {}
        int8, shared = plan.int8_names(), parameters.shared_constants(module.graph)
        for node in parameters.weighted_operators(module.graph):
            if node.name in int8 and parameters.owns_constants(node, shared):
                self._prepare(node)
        self.group_of = _groups(module, plan)
        for group in sorted(set(self.group_of.values())):
            self.bounds[group] = nn.Parameter(torch.zeros(1 if plan.activations == "symmetric" else 2))
        self.simulated = _Learning(self)

    network: fx.GraphModule

    def _prepare(self, node: fx.Node) -> None:
        axis = kinds.WEIGHTED[node.target]
        weight, bias = parameters.weight_of(self.network, node), parameters.bias_of(self.network, node)
        steps = weight_scales(weight, axis)
        self.steps[node.name] = steps
        flat = weight.transpose(0, axis).flatten(1)
        movable = torch.ones_like(flat).scatter_(1, flat.abs().argmax(1, keepdim=True), 0.0)
        shape = list(weight.transpose(0, axis).shape)
        self.movable[node.name] = movable.reshape(shape).transpose(0, axis).contiguous()
        self.weights[node.name] = nn.Parameter(torch.zeros_like(weight, memory_format=torch.contiguous_format))
        if bias is not None:
            written = self.plan.ranges.get((kinds.fused_activation(node) or node).name)
            self.bias_steps[node.name] = torch.full_like(bias, written.scale) if written else steps
            self.biases[node.name] = nn.Parameter(torch.zeros_like(bias))

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, C, H, W) -> the network's output."""
        return self.simulated(*inputs)

    def weight(self, name: str, weight: Tensor, axis: int) -> Tensor:
        """The present weight of an operator, on its grid."""
        steps = self.steps[name]
        moved = weight + self.weights[name] * self.movable[name] * parameters.per_channel(steps, weight, axis)
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(moved, steps, zeros, axis, -WEIGHT_MAX, WEIGHT_MAX)

    def range(self, name: str) -> tuple[Tensor, Tensor]:
        """Scale and zero point (rounded) of a tensor whose range is learned."""
        low, high = self.plan.ranges[name].bounds
        moved = (self.bounds[self.group_of[name]] * RANGE_UNIT).exp()
        if self.plan.activations == "symmetric":
            return self.plan.ranges[name].scale * moved, torch.zeros(1)
        low_now, high_now = low * moved[0], high * moved[1]
        scale = (high_now - low_now) / (INT8_MAX - INT8_MIN)
        return scale.reshape(1), (INT8_MIN - low_now / scale).reshape(1)

    @torch.no_grad()
    def result(self) -> tuple[fx.GraphModule, PrecisionPlan]:
        """The network and the plan with what was learned; scales are no smaller than integer kernels take."""
        found = parameters.copied(self.network)
        for node in parameters.weighted_operators(found.graph):
            if node.name in self.weights:
                weight, bias = parameters.weight_of(found, node), parameters.bias_of(found, node)
                weight.copy_(self.weight(node.name, weight, kinds.WEIGHTED[node.target]))
                if bias is not None:
                    bias.add_(self.biases[node.name] * self.bias_steps[node.name])
        ranges = dict(self.plan.ranges)
        for name in self.group_of:
            scale, zero_point = self.range(name)
            ranges[name] = ActivationRange(float(scale), min(max(round(float(zero_point)), INT8_MIN), INT8_MAX))
        return found.requires_grad_(False), replace(self.plan, ranges=representable(found, ranges))


class _Learning(Simulated):
    """The simulation with the student's present values."""

    def __init__(self, student: Student) -> None:
        super().__init__(student.network, student.plan)
        self._student = [student]  # in a list, because modules do not own those who run them

    def _weight(self, n: fx.Node, source: fx.Node, value: Tensor) -> Tensor:
        if n.name in self._student[0].weights:
            return self._student[0].weight(n.name, value, kinds.WEIGHTED[n.target])
        return super()._weight(n, source, value)

    def bias(self, name: str, bias: Tensor) -> Tensor:
        student = self._student[0]
        return bias + student.biases[name] * student.bias_steps[name] if name in student.biases else bias

    def quantized(self, name: str, value: Tensor) -> Tensor:
        student = self._student[0]
        if name not in student.group_of:
            return super().quantized(name, value)
        scale, zero_point = student.range(name)
        gradient = (value.numel() * INT8_MAX) ** -0.5  # LSQ's factor
        return torch._fake_quantize_learnable_per_tensor_affine(value, scale, zero_point, INT8_MIN, INT8_MAX, gradient)


def _groups(module: fx.GraphModule, plan: PrecisionPlan) -> dict[str, str]:
    """Tensors whose range is learned -> the name of the tensor that stands for all that share it. The network's input keeps its range."""
    representatives = kinds.scale_groups(module.graph)
    fixed = {representatives.get(node, node) for node in module.graph.nodes if node.op == "placeholder"}
    found = {}
    for node, representative in representatives.items():
        if node.name in plan.ranges and representative not in fixed and node.op != "placeholder":
            found[node.name] = representative.name
    return found
