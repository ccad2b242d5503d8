"""Targets that several tests run whole."""

from __future__ import annotations

ONE_STAGE = """\
name: one
device: snapdragon865
threads: 1
model: {student: {network: imdn, args: {features: 16, blocks: 1}}, input_shape: [1, 3, 32, 32]}
stages: [{stage: distill, steps: 3, batch_size: 1, crop_size: 8, checkpoint_every_s: 0.001}]
exports: [{backend: onnx}]
"""
