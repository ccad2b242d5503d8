"""Whole networks on the Core ML evaluator: against PyTorch in FP32, and quantized against the fake-quantized reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import int8_plan
from mil_packages import outputs_of, relative_error, write_torch
from torch import Tensor

from mcompress.compress.models import MODELS
from mcompress.compress.quantize.program import reference_program
from mcompress.export.mil.evaluate import Evaluation
from mcompress.export.mil.runner import MilRunner

NETWORKS: dict[str, tuple[object, ...]] = {
    "mfagan": ({"channels": 8, "blocks": ((2, 8), (1, 8))}, (1, 3, 16, 12)),
    "imdn": ({"features": 16, "blocks": 2}, (1, 3, 16, 12)),
    "rrdb": ({"features": 8, "blocks": 1, "growth": 4}, (1, 3, 16, 12)),
    "resnet_generator": ({"features": 4, "depths": (1, 0, 1), "convolutions": "separable"}, (1, 3, 16, 12)),
    "unet_generator": ({"features": 4, "downs": 3}, (1, 3, 16, 24)),
    "wav2lip": (
        {"face_widths": (4,) * 6, "audio_widths": (4,) * 5, "decoder_widths": (4,) * 7, "output_width": 4, "decoder_blocks": (0, 0, 1, 0, 0, 0)},
        (1, 6, 96, 96),
        (1, 1, 80, 16),
    ),
    "syncnet": ({"width": 16}, (1, 15, 48, 96), (1, 1, 80, 16)),
    "quality_discriminator": ({"width": 16}, (1, 3, 48, 96)),
    "patchgan": ({"features": 8}, (1, 3, 32, 40)),
    "vgg_discriminator": ({"features": 8}, (1, 3, 128, 128)),
    "diffusion_unet": (
        {
            "sample_size": 8,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "block_out_channels": [16],
            "layers_per_block": 1,
            "down_block_types": ["CrossAttnDownBlock2D"],
            "up_block_types": ["UpBlock2D"],
            "mid_block_type": None,
        },
        (1, 4, 8, 8),
        (1,),
        (1, 8, 16),
    ),
    "latent_decoder": (
        {
            "block_out_channels": [8, 8],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "layers_per_block": 0,
            "latent_channels": 4,
            "sample_size": 16,
            "norm_num_groups": 4,
        },
        (1, 4, 8, 8),
    ),
}
"""One of each, small: arguments and the shape of each input."""


def made_with_all(name: str) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    arguments, *shapes = NETWORKS[name]
    torch.manual_seed(3)
    return MODELS[name](**arguments).eval(), tuple(torch.rand(shape) for shape in shapes)  # type: ignore[arg-type]


def made(name: str) -> tuple[torch.nn.Module, Tensor]:
    network, (example,) = made_with_all(name)
    return network, example


def test_every_network_is_covered() -> None:
    beyond = {"clip_text"}  # coremltools alone does not take all of its operators; see tests/test_stable_diffusion_exports.py
    assert set(NETWORKS) == set(MODELS) - beyond


@pytest.mark.export
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_what_pytorch_computes(name: str, tmp_path: Path) -> None:
    network, examples = made_with_all(name)
    program = write_torch(network, examples, tmp_path / "net.mlpackage")
    (found,) = outputs_of(program, examples, "fp32")
    assert relative_error(found, network(*examples)) < 1e-5


@pytest.mark.export
def test_half_precision_files(tmp_path: Path) -> None:
    network, example = made("mfagan")
    write_torch(network, example, tmp_path / "net.mlpackage", half=True)
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()  # what the file holds
    exact, written = MilRunner(tmp_path / "net.mlpackage", "fp32"), MilRunner(tmp_path / "net.mlpackage")
    assert relative_error(exact.run(example.numpy()), network(example)) < 1e-5
    error = relative_error(written.run(example.numpy()), network(example))
    assert 1e-5 < error < 2e-3
    assert "simulated FP16" in written.runtime
    assert written.inputs[0].shape == tuple(example.shape)
    assert written.outputs[0].dtype == "float32"


@pytest.mark.export
def test_intermediates_come_in_order_and_are_rounded(tmp_path: Path) -> None:
    network, example = made("rrdb")
    write_torch(network, example, tmp_path / "net.mlpackage", half=True)
    runner = MilRunner(tmp_path / "net.mlpackage")
    seen = dict(runner.intermediates(example.numpy()))
    operations = [operation for operation in runner.program.main.operations if operation.type != "const"]
    assert list(seen) == [value.name for operation in operations for value in operation.outputs]
    np.testing.assert_array_equal(seen["out_0"], runner.execute(example.numpy()))
    types = runner.program.main.types()
    assert {name: array.dtype.name for name, array in seen.items()} == {name: types[name].numpy_dtype().name for name in seen}
    exact = dict(MilRunner(tmp_path / "net.mlpackage", "fp32").intermediates(example.numpy()))
    worst = max(float(np.abs(exact[name] - seen[name].astype(np.float32)).max() / max(1e-3, np.abs(exact[name]).max())) for name in seen)
    assert worst < 1e-2


@pytest.mark.export
def test_overflow_of_half_precision_is_seen(tmp_path: Path) -> None:
    class Square(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt((x * x).sum(1))

    x = torch.full((1, 2, 1, 1), 300.0)
    program = write_torch(Square(), x, tmp_path / "net.mlpackage", half=True)
    (exact,), (written,) = outputs_of(program, x, "fp32"), outputs_of(program, x, "as written")
    assert exact.item() == pytest.approx(300 * 2**0.5)
    assert np.isinf(written).all()


@pytest.mark.export
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_an_int8_network_computes_what_its_reference_computes(half: bool, tmp_path: Path) -> None:
    network, example = made("mfagan")
    plan = int8_plan(network, [example, torch.rand(example.shape)])
    reference = reference_program(network, example, plan)
    program = write_torch(reference, example, tmp_path / "int8.mlpackage", half=half)
    kinds = {operation.type for operation in program.main.operations}
    assert kinds >= {"quantize", "dequantize", "constexpr_affine_dequantize"}
    expected = reference(example).detach().numpy()
    (found,) = outputs_of(program, example, "as written" if half else "fp32")
    noise = float(np.square(found - expected).mean())
    sqnr_db = 10 * np.log10(float(np.square(expected).mean()) / max(noise, 1e-30))
    assert sqnr_db > (35 if half else 60), sqnr_db
    codes = [
        array
        for _, results in Evaluation(program).steps({program.inputs[0].name: example.numpy()})
        for array in results.values()
        if array.dtype == np.int8
    ]
    assert codes
