"""The slim stage: several widths from one training, each a network of its own afterwards.

Weights are shared but for the statistics of batch normalization, which each width gathers for itself (Yu et al. 2019, arXiv 1812.08928, give every
width its own scale and shift as well; here only the statistics differ, so that the narrower weights remain slices).
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import JsonValue
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.slimmable import SlimmableTraining
from mcompress.compress.stage import CompanionNetwork, StageContext, StageOutput
from mcompress.compress.supernet import cut_out, with_own_statistics
from mcompress.compress.train import TrainSettings, train
from mcompress.compress.widths import specs_of
from mcompress.targets.stages import SlimConfig, width_name


def slim(config: SlimConfig, context: StageContext) -> StageOutput:
    """Train all widths together; the model stays what it is, the narrower networks are cut from it.

    Raises `PlanError` for a network that cannot be sliced, `TrainingDiverged`.
    """
    specs = {width_name(share): spec for share, spec in specs_of(context.spec, config.widths).items()}
    widest, *others = specs
    objective = SlimmableTraining(
        context.task, config, context.model, {name: specs[name] for name in others}, context.teacher if config.original else None
    )
    settings = TrainSettings(
        config.steps, config.learning_rate, context.seed, precision=config.precision, checkpoint_every_s=config.checkpoint_every_s
    )
    trained = train(objective, settings, context.checkpoints("slim"), context.progress("slim: training all widths"))
    weights = context.model.state_dict()
    networks = {widest: context.model, **{name: cut_out(specs[name], weights) for name in others}}
    for network in networks.values():  # now that the weights are final
        with_own_statistics(network, context.task, config, context.seed)
    details: dict[str, JsonValue] = {
        "curve": cast("JsonValue", trained.curve),
        "train_seconds": trained.seconds,
        "widths": [_described(name, share, specs[name], networks[name], context) for (name, share) in zip(specs, config.widths, strict=True)],
    }
    narrower = {name: CompanionNetwork(specs[name], networks[name]) for name in others}
    return StageOutput(networks[widest], context.spec, None, (), (), details, narrower=narrower)


@torch.no_grad()
def _described(name: str, share: float, spec: ModelSpec, network: nn.Module, context: StageContext) -> JsonValue:
    """What a width costs, counted, and its quality on the fixed validation crops."""
    inputs, truth = context.task.validation_batch()
    table = operator_table(network, *spec.input_shapes)
    return {
        "name": name,
        "width": share,
        "spec_args": spec.args,
        "params": table.params,
        "macs": table.macs,
        "macs_output_convention": table.macs_output_convention,
        "validation": {context.task.metric: round(context.task.call_quality(network(*inputs), truth), 4)},
    }
