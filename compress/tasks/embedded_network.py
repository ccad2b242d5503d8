"""The small networks that ship beside a task: `teacher.json` says which network and how it was made, `teacher.safetensors` holds its weights."""

from __future__ import annotations

import json
from importlib.resources import files

import safetensors.torch
from torch import nn

from mcompress.compress.models.build import build
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.errors import PlanError


def embedded_network(task: str, inputs: tuple[InputSpec, ...], stem: str = "teacher") -> tuple[ModelSpec, nn.Module]:
    """The network `stem` in the folder of `task` with its weights. Raises `PlanError` for a task that ships none."""
    folder = files(f"mcompress.compress.tasks.{task}")
    if not folder.joinpath(f"{stem}.json").is_file():
        raise PlanError([f"model.teacher.network is embedded, but no original ships for {task}; name a network of `mcompress list models`"])
    record = json.loads(folder.joinpath(f"{stem}.json").read_text(encoding="utf-8"))
    spec = ModelSpec.taking(inputs, record["model"], record["args"])
    network = build(spec)
    weights = safetensors.torch.load(folder.joinpath(f"{stem}.safetensors").read_bytes())
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return spec, network
