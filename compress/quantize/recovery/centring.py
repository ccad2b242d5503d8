"""Centring: channels in front of instance norms are moved around zero, by their bias.

An instance norm takes the mean of every channel out, so the bias in front of it may be anything (`channels.removes_scale`). A range for the whole
tensor has to cover all channels; it is smallest where all have their middle at zero. The float network computes the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.recovery.channels import CHANNEL_AXIS, removes_scale
from mcompress.compress.quantize.recovery.noise import NoiseModel


def centre(module: fx.GraphModule, noise: NoiseModel) -> tuple[fx.GraphModule, NoiseModel]:
    """A copy of `module` with centred channels, and the noise model of it. Ranges have to be calibrated again.

    Only operators with a bias of their own that nothing but instance norms read; without any the copy is unchanged.
    """
    found = parameters.copied(module)
    low, high = dict(noise.low), dict(noise.high)
    with torch.no_grad():
        for node, bias in centred(found):
            middle = (low[node.name] + high[node.name]) / 2
            bias.sub_(middle.to(bias))
            low[node.name], high[node.name] = low[node.name] - middle, high[node.name] - middle
    return found, replace(noise, low=low, high=high)


def centred(module: fx.GraphModule) -> list[tuple[fx.Node, Tensor]]:
    """The operators whose channels can be centred, with their biases."""
    shared = parameters.shared_constants(module.graph)
    found = []
    for node in parameters.weighted_operators(module.graph):
        bias = parameters.bias_of(module, node)
        images = node.meta["val"].ndim > CHANNEL_AXIS + 1
        if bias is not None and images and node.users and all(map(removes_scale, node.users)) and parameters.owns_constants(node, shared):
            found.append((node, bias))
    return found
