"""The prune stage: what is left computes what the original computes with the removed channels at zero."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.prune import prune
from mcompress.compress.prune_channels import Candidate
from mcompress.targets.stages import PruneConfig

SHAPE = (1, 3, 32, 32)
SPECS = {
    "mfagan": ModelSpec("mfagan", {"channels": 24, "blocks": [[2, 24], [1, 16]]}, (), SHAPE),
    "rrdb": ModelSpec("rrdb", {"features": 16, "blocks": 1, "growth": 8}, (), SHAPE),
    "imdn": ModelSpec("imdn", {}, (), SHAPE),
}
OWN_NETWORK = Path(__file__).parents[1] / "examples" / "own_network"
OUTPUT_LAYERS = {"mfagan": ("tail", "upsampler"), "rrdb": ("conv_last",), "imdn": ("upsampler.0",), "own": ("up2",)}
LARGER = nn.Upsample(scale_factor=4)
ENDINGS = {
    "sigmoid": (LARGER, 3, nn.Sigmoid()),
    "batch normalization": (LARGER, 3, nn.BatchNorm2d(3)),
    "PReLU": (LARGER, 3, nn.PReLU(3)),
    "depthwise convolution": (LARGER, 3, nn.Conv2d(3, 3, 3, padding=1, groups=3)),
    "pixel shuffle": (nn.Identity(), 48, nn.PixelShuffle(4)),
}


def randomised(context):
    with torch.no_grad():
        for parameter in context.model.parameters():
            if not parameter.abs().sum():
                parameter.normal_(0, 0.02)
    return context


@pytest.mark.parametrize("name", ["mfagan", "rrdb"])
def test_pruned_equals_the_original_with_channels_zeroed(name: str, make_context) -> None:
    """Zero a removed channel where it is read; then the full network must give what the pruned one gives."""
    context = randomised(make_context(SPECS[name]))
    original = build(SPECS[name])
    original.load_state_dict(context.model.state_dict())
    output = prune(PruneConfig(ratio=0.2, round_to=8, importance_batches=1), context)
    assert output.spec.edits
    x = torch.rand(SHAPE)
    # Replaying the edits one by one on the original with zeroed consumers is the definition of removal.
    import torch_pruning

    reference = build(SPECS[name])
    reference.load_state_dict(original.state_dict())
    graph = torch_pruning.DependencyGraph().build_dependency(reference, example_inputs=x)
    edit = output.spec.edits[0]
    module = reference.get_submodule(edit.module)
    group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, list(edit.channels))
    zeroed = build(SPECS[name])
    zeroed.load_state_dict(original.state_dict())
    names = {m: n for n, m in reference.named_modules()}
    with torch.no_grad():
        for dep, channels in group:
            layer = zeroed.get_submodule(names[dep.target.module]) if dep.target.module in names else None
            if isinstance(layer, nn.Conv2d) and graph.is_in_channel_pruning_fn(dep.handler):
                layer.weight[:, channels] = 0
    group.prune()
    with torch.no_grad():
        assert torch.allclose(reference(x), zeroed(x), atol=1e-5)


@pytest.mark.parametrize("name", list(SPECS))
def test_spec_and_weights_rebuild_the_pruned_network(name: str, make_context) -> None:
    output = prune(PruneConfig(ratio=0.15, round_to=8, importance_batches=1), randomised(make_context(SPECS[name])))
    again = build(ModelSpec.from_json(output.spec.to_json()))
    again.load_state_dict(output.model.state_dict())
    x = torch.rand(SHAPE)
    with torch.no_grad():
        assert torch.equal(again(x), output.model(x))


def test_channels_stay_multiples_of_the_alignment_and_the_goal_is_met(make_context) -> None:
    context = randomised(make_context(SPECS["mfagan"]))
    before = operator_table(context.model, SHAPE)
    output = prune(PruneConfig(latency_ratio=0.95, round_to=8, importance_batches=1), context)
    for layer in output.details["layers"]:
        assert layer["after"] % 8 == 0
    assert output.details["after"]["latency_ms"] <= 0.95 * output.details["before"]["latency_ms"]
    assert sum(p.numel() for p in output.model.parameters()) == output.details["after"]["params"] < before.params


def test_the_output_keeps_its_shape_and_a_goal_out_of_reach_is_said(make_context) -> None:
    output = prune(PruneConfig(ratio=0.95, round_to=8, importance_batches=1), randomised(make_context(SPECS["mfagan"])))
    with torch.no_grad():
        assert output.model(torch.rand(SHAPE)).shape == (1, 3, 128, 128)
    assert any(f.what == "goal not reached" for f in output.fallbacks)


@pytest.mark.parametrize("name", list(OUTPUT_LAYERS))
def test_layers_that_make_the_output_are_kept_and_that_is_no_fallback(name: str, make_context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OWN_NETWORK))
    context = randomised(make_context(SPECS.get(name) or ModelSpec("my_network:build", {"width": 16, "blocks": 1}, (), SHAPE)))
    before = {layer: context.model.get_submodule(layer).out_channels for layer in OUTPUT_LAYERS[name]}
    output = prune(PruneConfig(ratio=0.1, round_to=8, importance_batches=1), context)
    assert output.fallbacks == ()
    assert output.details["layers"]
    assert {layer: output.model.get_submodule(layer).out_channels for layer in before} == before


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_the_output_is_known_behind_whatever_stands_at_the_end(ending: str, make_context) -> None:
    larger, channels, last = ENDINGS[ending]
    network = nn.Sequential(larger, nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, channels, 3, padding=1), last).eval()
    output = prune(PruneConfig(ratio=0.5, round_to=8, importance_batches=1), replace(make_context(SPECS["mfagan"]), model=network))
    assert output.fallbacks == ()
    assert (output.model[1].out_channels, output.model[3].out_channels) == (8, channels)


def test_a_layer_inside_that_cannot_be_pruned_is_a_fallback(make_context) -> None:
    """Behind a pixel shuffle a convolution reads what is left of 16 channels: one of them cannot go, and nothing of it is the output."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(4), nn.Conv2d(1, 3, 3, padding=1)).eval()
    output = prune(PruneConfig(ratio=0.5, round_to=8, importance_batches=1), replace(make_context(SPECS["mfagan"]), model=network))
    assert "0" in {fallback.what for fallback in output.fallbacks}
    assert network[0].out_channels == 16


class Mobile(nn.Module):
    """An inverted bottleneck between convolutions: depthwise, normalized, with a skip and an activation by itself."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.head, self.wide = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Conv2d(16, inner, 1, bias=False)
        self.deep, self.norm = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.GroupNorm(1, inner, affine=False)
        self.thin, self.tail = nn.Conv2d(inner, 16, 1, bias=False), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        return self.tail(x + self.thin(nn.functional.gelu(self.norm(self.deep(self.wide(x)))) * 0.5))


def test_a_block_is_priced_on_the_table_that_the_network_has_without_it() -> None:
    wide, narrow = (operator_table(Mobile(inner).eval(), SHAPE) for inner in (24, 16))
    both, left = ("deep", "norm"), 16 / 24
    block = Candidate("wide", tuple(range(8)), 1.0, dict.fromkeys((*both, "thin"), left), dict.fromkeys((*both, "wide"), left))
    found = block.narrowed(wide).operators
    assert [replace(row, live_elements=0) for row in found] == [replace(row, live_elements=0) for row in narrow.operators]


@pytest.mark.export
@pytest.mark.parametrize("name", SPECS)
def test_the_exported_file_has_the_parameters_of_the_pruned_network(name: str, make_context, tmp_path: Path) -> None:
    import onnx

    from mcompress.export import onnx as exporter
    from mcompress.targets.exports import OnnxConfig

    output = prune(PruneConfig(ratio=0.2, round_to=8, importance_batches=1), randomised(make_context(SPECS[name])))
    before, after = (sum(p.numel() for p in network.parameters()) for network in (build(SPECS[name]), output.model))
    written = exporter.write(OnnxConfig(), output.model.eval(), {"input": torch.rand(SHAPE)}, None, tmp_path / name)
    graph = onnx.load(str(written.path)).graph
    sizes = {item.name: math.prod(item.dims) for item in graph.initializer}
    # Counted where they are read: the exporter stores equal biases once.
    in_file = sum(sizes[given] for node in graph.node if node.op_type == "Conv" for given in node.input if given in sizes)
    assert in_file == after == operator_table(build(output.spec), SHAPE).params < before
