"""The prune stage: what is left computes what the original computes with the removed channels at zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.prune import prune
from mcompress.targets.stages import PruneConfig

SHAPE = (1, 3, 32, 32)
SPECS = {
    "mfagan": ModelSpec("mfagan", {"channels": 24, "blocks": [[2, 24], [1, 16]]}, (), SHAPE),
    "rrdb": ModelSpec("rrdb", {"features": 16, "blocks": 1, "growth": 8}, (), SHAPE),
    "imdn": ModelSpec("imdn", {}, (), SHAPE),
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
