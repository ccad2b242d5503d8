"""The ResNet generator: published sizes, widths and depths, what is refused, and that a smaller network lies inside a larger one."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import inside_of
from optuna.trial import FixedTrial

from mcompress.compress.candidates import space_of
from mcompress.compress.cost import count
from mcompress.compress.models.build import build, build_meta
from mcompress.compress.models.resnet_generator import resnet_generator
from mcompress.compress.models.space import BASE_WIDTHS, RESNET_DEPTHS, SPACES, TEACHER_DEPTHS
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import PlanError, UsageError
from mcompress.targets.stages import SearchConfig

SPACE = SPACES["resnet_generator"]
SEPARABLE = {"convolutions": "separable"}


@pytest.mark.parametrize(
    ("args", "params", "output_size_g", "exact_g"),
    [
        ({}, 11_378_179, 56.799, 49.552),
        (SEPARABLE, 1_987_075, 18.314, 11.067),
        ({**SEPARABLE, "features": 48}, 1_130_883, 10.565, 6.488),
        ({**SEPARABLE, "features": 32}, 514_307, 4.929, 3.117),
        ({**SEPARABLE, "features": 24}, 295_875, 2.904, 1.885),
        ({**SEPARABLE, "features": 16}, 137_347, 1.408, 0.955),
        ({**SEPARABLE, "features": 12}, 80_547, 0.858, 0.603),
        ({**SEPARABLE, "features": 8}, 38_723, 0.440, 0.326),
        ({**SEPARABLE, "widths": "24_24_24_32_20_16"}, 341_627, 2.649, 1.941),
        ({**SEPARABLE, "widths": "16_16_32_16_32_32_16_16"}, 356_867, 2.525, 1.846),
        ({**SEPARABLE, "widths": "16_16_24_16_32_64_16_24"}, 355_235, 2.618, 1.939),
        ({**SEPARABLE, "widths": "32_32_48_32_48_48_16_16"}, 822_051, 4.962, 4.056),
        ({**SEPARABLE, "widths": "24_24_40_56_24_56_16_40"}, 702_835, 4.832, 3.699),
        ({**SEPARABLE, "widths": "32_32_48_32_32_48_24_24"}, 780_819, 5.560, 4.031),
        ({**SEPARABLE, "widths": "48_32_40_40_24_32"}, 707_347, 5.633, 4.104),
        ({**SEPARABLE, "widths": [32, 32, 48, 32, 48, 32, 16, 16]}, 746_211, 4.653, 3.747),
    ],
)
def test_sizes_are_the_published_ones(args: dict[str, object], params: int, output_size_g: float, exact_g: float) -> None:
    counted = count(build_meta(ModelSpec("resnet_generator", dict(args))), (1, 3, 256, 256))
    assert counted["params"] == params
    assert round(counted["macs_output_convention"] / 1e9, 3) == output_size_g
    assert round(counted["macs"] / 1e9, 3) == exact_g


@pytest.mark.parametrize(
    ("args", "published_g"),
    [
        ({}, 56.8),
        ({**SEPARABLE, "features": 16}, 1.408),
        ({**SEPARABLE, "widths": "24_24_24_32_20_16"}, 2.67),
        ({**SEPARABLE, "widths": "16_16_32_16_32_32_16_16"}, 2.55),
        ({**SEPARABLE, "widths": "16_16_24_16_32_64_16_24"}, 2.64),
        ({**SEPARABLE, "widths": "32_32_48_32_48_48_16_16"}, 4.99),
        ({**SEPARABLE, "widths": "24_24_40_56_24_56_16_40"}, 4.83),
        ({**SEPARABLE, "widths": "32_32_48_32_32_48_24_24"}, 5.59),
        ({**SEPARABLE, "widths": "48_32_40_40_24_32"}, 5.66),
        ({**SEPARABLE, "widths": "32_32_48_32_48_32_16_16"}, 4.68),
    ],
)
def test_multiply_adds_are_the_published_ones_but_for_the_normalization_that_others_count(args: dict[str, object], published_g: float) -> None:
    counted = count(build_meta(ModelSpec("resnet_generator", dict(args))), (1, 3, 256, 256))
    assert counted["macs_output_convention"] / 1e9 == pytest.approx(published_g, rel=0.015)


def test_the_student_of_omgd_has_a_fortieth_of_the_work() -> None:
    whole, student = (count(build_meta(ModelSpec("resnet_generator", args)), (1, 3, 256, 256)) for args in ({}, {**SEPARABLE, "features": 16}))
    assert whole["macs_output_convention"] / student["macs_output_convention"] > 40.3
    assert whole["params"] / student["params"] > 82.5


def test_six_numbers_are_eight_with_one_for_all_blocks() -> None:
    six, eight = (resnet_generator(widths=widths, convolutions="separable").state_dict() for widths in ("4_5_6_7_8_9", [4, 5, 6, 7, 7, 7, 8, 9]))
    assert {name: value.shape for name, value in six.items()} == {name: value.shape for name, value in eight.items()}


@pytest.mark.parametrize("convolutions", ["plain", "separable"])
@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_images_keep_their_size_and_range(convolutions: str, normalization: str) -> None:
    args = {"widths": [3, 4, 5, 2, 3, 4, 5, 6], "depths": [1, 0, 2], "convolutions": convolutions, "normalization": normalization}
    network = build(ModelSpec("resnet_generator", {**args, "in_channels": 1, "out_channels": 2}))
    image = network(torch.rand(2, 1, 8, 20) * 2 - 1).detach()
    assert image.shape == (2, 2, 8, 20)
    assert float(image.abs().max()) < 1
    biases = {name for name, _ in network.named_parameters() if name.endswith(".bias") and "norm" not in name}
    assert ("head.conv.bias" in biases) == (normalization == "instance")
    assert "tail.bias" in biases


def test_it_starts_as_published() -> None:
    torch.manual_seed(0)
    network = resnet_generator(features=32, depths=(1, 1, 1), normalization="batch")
    weight = network.groups[0][0].conv1.weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(network.head.norm.weight.detach().mean()) == pytest.approx(1.0, abs=0.02)
    assert not network.tail.bias.any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"widths": [16, 16]}, "widths is [16, 16], which is 2 numbers; it must be a list of 8 or 6 whole numbers: first convolution, two down"),
        ({"widths": [16] * 7}, "which is 7 numbers; it must be a list of 8 or 6 whole numbers"),
        ({"widths": []}, "widths is []; it must be a list of 8 or 6"),
        ({"widths": 3232483248481616}, "widths is 3232483248481616; it must be a list of 8 or 6 whole numbers: first"),
        ({"widths": 3232483248481616}, "in YAML, put quotes around numbers that underscores join"),
        ({"widths": [16] * 7 + [16.0]}, "widths[7] is 16.0; it must be a whole number from 1 to 1024"),
        ({"widths": [16] * 7 + [True]}, "widths[7] is True"),
        ({"widths": "16_16_x_16_16_16"}, "widths[2] is 'x'; it must be a whole number"),
        ({"widths": [0] * 8}, "widths[0] is 0"),
        ({"widths": {"head": 16}}, "widths is {'head': 16}; it must be a list"),
        ({"widths": [16] * 8, "features": 16}, "features is 16 and widths is [16, 16, 16, 16, 16, 16, 16, 16]; give one of the two"),
        ({"depths": [3, 3]}, "depths is [3, 3], which is 2 numbers; it must be a list of 3 whole numbers: residual blocks in each of the 3 groups"),
        ({"depths": 9}, "depths is 9; it must be a list of 3"),
        ({"depths": [3, 3, -1]}, "depths[2] is -1; it must be a whole number from 0 to 32"),
        ({"convolutions": "depthwise"}, "convolutions is 'depthwise'; it must be one of plain, separable"),
        ({"normalization": "layer"}, "normalization is 'layer'; it must be one of instance, batch"),
        ({"features": "64"}, "features is '64'; it must be a whole number from 1 to 1024"),
        ({"out_channels": 0}, "out_channels is 0; it must be a whole number from 1 to 64"),
    ],
)
def test_what_it_cannot_take_is_refused_with_a_reason(args: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match="resnet_generator: .*" + re.escape(message)):
        build(ModelSpec("resnet_generator", dict(args)))


@pytest.mark.parametrize("size", [(18, 16), (16, 17), (4, 16)])
def test_images_of_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=re.escape(f"the image is {size} pixels; both must be multiples of 4 and at least 8")):
        resnet_generator(features=2)(torch.zeros(1, 3, *size))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_a_candidate_lies_inside_the_largest_network(seed: int) -> None:
    """With every number outside the candidate at zero, the largest network computes what the candidate computes: blocks that it lacks add nothing."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    candidate, reduced = inside_of(SPACE, SPACE.random(torch.Generator().manual_seed(seed)), seed)
    with torch.no_grad():
        torch.testing.assert_close(candidate(image), reduced(image), atol=2e-5, rtol=1e-4)


def test_the_space_is_bounded_by_its_largest_and_smallest() -> None:
    deepest = max(*RESNET_DEPTHS, *TEACHER_DEPTHS)
    assert (SPACE.largest["widths"], SPACE.largest["depths"]) == ([24] * 8, [deepest] * 3)
    assert (SPACE.smallest["widths"], SPACE.smallest["depths"]) == ([6] * 8, [1] * 3)
    seen = [SPACE.random(torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert {width for args in seen for width in args["widths"]} == set(BASE_WIDTHS)
    assert {depth for args in seen for depth in args["depths"]} == set(RESNET_DEPTHS)
    assert {args["convolutions"] for args in (*seen, SPACE.largest, SPACE.smallest)} == {"separable"}
    proposed = SPACE.suggest(FixedTrial({**{f"width{i}": i % 7 for i in range(8)}, **{f"depth{i}": i + 1 for i in range(3)}}))
    assert proposed == {"widths": [6, 8, 10, 12, 16, 20, 24, 6], "depths": [1, 2, 3], "convolutions": "separable", "normalization": "batch"}
    assert space_of(SearchConfig(), ModelSpec("resnet_generator", {}, (), (1, 3, 64, 64))) is SPACE
