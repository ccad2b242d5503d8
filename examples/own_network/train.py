"""How `my_network.safetensors` was made: python train.py

Plain PyTorch on the photographs that come with mcompress. Your own training program takes the place of this file; only its weights are wanted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from my_network import build
from safetensors.torch import save_file
from torch.nn import functional

from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.targets.schema import DataConfig

logger = logging.getLogger("train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("my_network.safetensors"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task, network, source = SuperResolution.from_config(DataConfig()), build(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps, eta_min=1e-5)
    for step in range(1, options.steps + 1):
        low, high = task.training_batch(8, 24, source)
        loss = functional.l1_loss(network(low), high)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            logger.info("step %d of %d: loss %.4f", step, options.steps, loss.item())
    with torch.no_grad():
        for sample in task.held_out():
            mine, bicubic = (task.quality(image, sample.truth) for image in (network(sample.input), task.baseline(sample)))
            logger.info("%s: %.2f dB, bicubic %.2f dB", sample.name, mine, bicubic)
    save_file({name: value.half() for name, value in network.state_dict().items()}, options.out)


if __name__ == "__main__":
    main()
