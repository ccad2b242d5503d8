"""Weights rounded so that their errors cancel, instead of each to its nearest step.

Error feedback (GPTQ, Frantar et al. 2022, arXiv 2210.17323, after Hassibi and Stork's optimal brain surgeon): the weights of a row are rounded one
after another, and the error of each is made up for by the weights that are not rounded yet, as far as the inputs' covariance allows. Images are
smooth and positive, so the values under a kernel are nearly equal: what counts is that the errors of a row sum to nothing, which rounding each weight
alone does not see. Every row also tries smaller scales, which clip its largest weights.

Exporters take the scale of a channel from its largest magnitude, which is 127 steps. So the result keeps one weight of each row at exactly +-127
steps: quantizing it again finds the same scale and the same integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import WEIGHT_MAX
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.recovery.moments import Moments, MomentSum
from mcompress.compress.quantize.recovery.noise import by_output_and_input, groups_of
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.tasks.task import Inputs
from mcompress.errors import StageError

SHRINKS = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82)  # scales that every row tries, relative to the one that clips nothing
DAMPING = 0.01  # of the mean variance, added to every variance: directions that calibration did not show stay as they are
BLOCK = 64  # columns between two updates of everything behind them
MEMORY_MB = 256.0  # for covariances at a time; larger networks take several passes over the inputs


def round_weights(module: fx.GraphModule, plan: PrecisionPlan, inputs: Iterable[Inputs], seed: int) -> fx.GraphModule:
    """A copy of `module` in which the weights of INT8 operators lie on their grids, with biases that absorb the mean error.

    `inputs` is gone through once for every `MEMORY_MB` of covariances, so it must be a sequence, or a network must be small.
    Weights that several operators share, and grouped transposed convolutions, are left as they are. Raises `StageError` if there are no inputs.
    """
    found = parameters.copied(module)
    by_name = {node.name: node for node in found.graph.nodes}
    for node, moments in _moments(module, plan, inputs, seed):
        _round(found, by_name[node.name], moments)
    return found


def feedback_shares(module: fx.GraphModule, plan: PrecisionPlan, inputs: Iterable[Inputs], seed: int) -> dict[str, Tensor]:
    """Per INT8 weighted operator: what error feedback leaves of the noise of independent rounding, per weight, (O, I / groups, kernel), 0 to 1.

    Feedback rounds weight j at the cost of the variance of its input that the inputs rounded after it do not explain, instead of its mean square.
    """
    found = {}
    for node, moments in _moments(module, plan, inputs, seed):
        shape = by_output_and_input(parameters.weight_of(module, node), node).shape
        shares = []
        for mean, covariance in zip(moments.mean, moments.covariance, strict=True):
            order = torch.argsort(covariance.diagonal(), descending=True)
            upper = _inverse_factor(_damped(covariance)[order][:, order])
            left = torch.empty_like(mean)
            left[order] = upper.diagonal().pow(-2)
            shares.append((left / (covariance.diagonal() + mean.square()).clamp_min(1e-30)).clamp(0.0, 1.0))
        each = torch.stack(shares).to(torch.float32).reshape(len(shares), 1, *shape[1:])
        found[node.name] = each.expand(-1, shape[0] // len(shares), -1, -1).reshape(shape)
    return found


def _moments(module: fx.GraphModule, plan: PrecisionPlan, inputs: Iterable[Inputs], seed: int) -> Iterator[tuple[fx.Node, Moments]]:
    """Every INT8 weighted operator with weights of its own, with the moments of what it reads.

    Not grouped transposed convolutions: their groups share the scales of the output channels.
    """
    int8, shared = plan.int8_names(), parameters.shared_constants(module.graph)
    nodes = [
        node
        for node in parameters.weighted_operators(module.graph)
        if node.name in int8 and (kinds.WEIGHTED[node.target] == 0 or groups_of(node) == 1) and parameters.owns_constants(node, shared)
    ]
    for part in _parts(module, nodes):
        yield from _measure(module, plan, part, inputs, seed).items()


def _parts(module: fx.GraphModule, nodes: list[fx.Node]) -> Iterator[list[fx.Node]]:
    part: list[fx.Node] = []
    used = 0.0
    for node in nodes:
        rows = by_output_and_input(parameters.weight_of(module, node), node)
        needed = groups_of(node) * float(rows.shape[1] * rows.shape[2]) ** 2 * 8 / 1e6
        if part and used + needed > MEMORY_MB:
            yield part
            part, used = [], 0.0
        part.append(node)
        used += needed
    if part:
        yield part


def _measure(module: fx.GraphModule, plan: PrecisionPlan, nodes: list[fx.Node], inputs: Iterable[Inputs], seed: int) -> dict[fx.Node, Moments]:
    """One pass: the moments of what these operators read in the quantized network."""
    sums = {node: MomentSum(node, parameters.weight_of(module, node)) for node in nodes}
    readers: dict[str, list[fx.Node]] = {}
    for node in nodes:
        readers.setdefault(kinds.activations(node)[0].name, []).append(node)
    generator = torch.Generator().manual_seed(seed)

    def watch(made: fx.Node, value: Tensor) -> None:
        for node in readers.get(made.name, []):
            sums[node].add(value, generator)

    simulated = Simulated(module, plan, watch)
    with torch.no_grad():
        for value in inputs:
            simulated(*value)
    return {node: found.result() for node, found in sums.items()}


@torch.no_grad()
def _round(module: fx.GraphModule, node: fx.Node, moments: Moments) -> None:
    weight, bias = parameters.weight_of(module, node), parameters.bias_of(module, node)
    rows = by_output_and_input(weight, node).flatten(1)
    groups = groups_of(node)
    each = rows.shape[0] // groups
    rounded, shifts = [], []
    for group in range(groups):
        part = rows[group * each : (group + 1) * each]
        grid = rounded_rows(part, moments.covariance[group])
        rounded.append(grid)
        shifts.append((part - grid).double() @ moments.mean[group])
    flat = torch.cat(rounded)
    weight.copy_(_as_weight(flat, weight, node))
    if bias is not None:
        bias.add_(torch.cat(shifts).to(bias))


def rounded_rows(rows: Tensor, covariance: Tensor) -> Tensor:
    """`rows` (R, n) on the grids of their channels, for inputs of this covariance (n, n); every row at the best of the scales in `SHRINKS`.

    Without a bias to absorb it the caller has to account for the mean error. Rows of zeros stay zero.
    """
    count, tried = rows.shape[0], len(SHRINKS)
    exact = rows.double()
    largest = exact.abs().amax(1)
    shrinks = exact.new_tensor(SHRINKS)
    scales = (largest[:, None] * shrinks[None, :] / WEIGHT_MAX).clamp_min(torch.finfo(torch.float32).eps).float().double()
    every, steps = exact.repeat_interleave(tried, 0), scales.reshape(-1)
    damped = _damped(covariance)
    grid = _with_feedback(every, steps, damped)
    nearest = (every / steps[:, None]).round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
    candidates = torch.stack([grid, nearest], 1).reshape(count, tried * 2, -1)  # rounding to nearest stays in the race
    error = exact[:, None, :] - candidates * scales.repeat_interleave(2, 1)[:, :, None]
    costs = torch.einsum("rci,ij,rcj->rc", error, damped, error)
    best = costs.argmin(1)
    chosen = candidates[torch.arange(count), best]
    return (chosen * scales.repeat_interleave(2, 1)[torch.arange(count), best][:, None]).to(rows)


def _with_feedback(rows: Tensor, steps: Tensor, covariance: Tensor) -> Tensor:
    """Integers (R, n). The largest weight of each row is +-127 whatever the errors before it say."""
    order = torch.argsort(covariance.diagonal(), descending=True)
    upper = _inverse_factor(covariance[order][:, order])
    left = rows[:, order].clone()
    grid = torch.zeros_like(left)
    top = left.abs().argmax(1)
    sign = left.gather(1, top[:, None])[:, 0].sign()
    columns = left.shape[1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.zeros(left.shape[0], end - start, dtype=left.dtype)
        for column in range(start, end):
            value = left[:, column]
            integer = (value / steps).round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
            integer = torch.where(top == column, sign * WEIGHT_MAX, integer)
            grid[:, column] = integer
            error = (value - integer * steps) / upper[column, column]
            left[:, column:end] -= error[:, None] * upper[column, column:end][None, :]
            errors[:, column - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    result = torch.empty_like(grid)
    result[:, order] = grid
    return result


def _damped(covariance: Tensor) -> Tensor:
    size = covariance.shape[0]
    return covariance + torch.eye(size, dtype=covariance.dtype) * max(DAMPING * float(covariance.diagonal().mean()), 1e-12)


def _inverse_factor(covariance: Tensor) -> Tensor:
    """The upper triangular U with U^T U = covariance^-1."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        raise StageError("the covariance of an operator's inputs is not positive definite; were the calibration inputs finite?")
    found: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    return found


def _as_weight(rows: Tensor, weight: Tensor, node: fx.Node) -> Tensor:
    """(output channels, inputs per group x kernel) back in the shape of the weight."""
    if kinds.WEIGHTED[node.target] == 0:
        return rows.reshape(weight.shape)
    groups = groups_of(node)
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    return rows.reshape(groups, outputs, inputs, -1).transpose(1, 2).reshape(weight.shape)
