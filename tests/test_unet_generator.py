"""The U-Net generator: published sizes, widths and levels, what is refused, and that a narrower network lies inside a wider one."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import inside_of
from optuna.trial import FixedTrial
from torch import nn

from mcompress.compress.candidates import space_of
from mcompress.compress.cost import count
from mcompress.compress.models.build import build, build_meta
from mcompress.compress.models.space import BASE_WIDTHS, SPACES, space_for
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.unet_generator import unet_generator
from mcompress.errors import PlanError, UsageError
from mcompress.targets.stages import SearchConfig


@pytest.mark.parametrize(
    ("features", "params", "output_size_g", "exact_g"),
    [
        (64, 54_413_955, 18.140, 6.048),
        (32, 13_608_259, 4.648, 1.550),
        (16, 3_404_451, 1.219, 0.406),
        (12, 1_915_899, 0.707, 0.236),
        (8, 852_307, 0.333, 0.111),
    ],
)
def test_sizes_are_the_published_ones(features: int, params: int, output_size_g: float, exact_g: float) -> None:
    counted = count(build_meta(ModelSpec("unet_generator", {"features": features})), (1, 3, 256, 256))
    assert counted["params"] == params
    assert round(counted["macs_output_convention"] / 1e9, 3) == output_size_g
    assert round(counted["macs"] / 1e9, 3) == exact_g


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_images_keep_their_size_and_range(normalization: str) -> None:
    args = {"widths": "3_4_5_2", "downs": 4, "normalization": normalization, "in_channels": 1, "out_channels": 2}
    network = build(ModelSpec("unet_generator", args))
    assert [down.conv.out_channels for down in network.downs] == [3, 8, 20, 16]
    assert [up.conv.out_channels for up in network.ups] == [2, 3, 8, 20]
    image = network(torch.rand(2, 1, 16, 32) * 2 - 1).detach()
    assert image.shape == (2, 2, 16, 32)
    assert float(image.abs().max()) < 1
    # The first level, the innermost on the way in and the last on the way out have no normalization.
    kind = nn.InstanceNorm2d if normalization == "instance" else nn.BatchNorm2d
    assert [isinstance(level.norm, kind) for level in (*network.downs, *network.ups)] == [False, True, True, False, False, True, True, True]


def test_an_image_may_shrink_to_one_pixel() -> None:
    assert unet_generator(features=2, downs=3, normalization="instance")(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_dropout_is_where_it_was_published_and_only_in_training() -> None:
    network = unet_generator(features=2, dropout=True)
    assert [level for level, up in enumerate(network.ups) if isinstance(up.drop, nn.Dropout)] == [4, 5, 6]
    assert not any(isinstance(module, nn.Dropout) for module in unet_generator(features=2).modules())
    image = torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        assert torch.equal(network.eval()(image), network(image))
    assert network.state_dict().keys() == unet_generator(features=2).state_dict().keys()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"widths": [16, 16]}, "widths is [16, 16], which is 2 numbers; it must be a list of 8 whole numbers: one per level, because downs is 8"),
        ({"widths": [16, 16, 1.5], "downs": 3}, "widths[2] is 1.5; it must be a whole number from 1 to 1024"),
        ({"widths": [16] * 8, "features": 8}, "give one of the two"),
        ({"downs": 1}, "downs is 1; it must be a whole number from 2 to 10"),
        ({"dropout": 0.5}, "dropout is 0.5; it must be true or false"),
        ({"normalization": None}, "normalization is None; it must be one of instance, batch"),
    ],
)
def test_what_it_cannot_take_is_refused_with_a_reason(args: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match="unet_generator: .*" + re.escape(message)):
        build(ModelSpec("unet_generator", dict(args)))


@pytest.mark.parametrize("size", [(128, 256), (256, 200)])
def test_images_of_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        UsageError, match=re.escape(f"the image is {size} pixels; with downs 8 both must be multiples of 256. Cut or resize the image")
    ):
        unet_generator(features=2)(torch.zeros(1, 3, *size))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_a_candidate_lies_inside_the_largest_network(seed: int) -> None:
    """With every number outside the candidate at zero, the largest network computes what the candidate computes, joined channels included."""
    space = space_for("unet_generator", (16, 48))
    image = torch.rand(1, 3, 16, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    candidate, reduced = inside_of(space, space.random(torch.Generator().manual_seed(seed)), seed)
    with torch.no_grad():
        torch.testing.assert_close(candidate(image), reduced(image), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("size", "downs"), [((256, 256), 8), ((512, 1024), 8), ((64, 64), 6), ((96, 64), 5), ((12, 8), 2)])
def test_the_space_has_as_many_levels_as_the_image_can_be_halved(size: tuple[int, int], downs: int) -> None:
    space = space_of(SearchConfig(crop_size=256), ModelSpec("unet_generator", {}, (), (1, 3, *size)))
    assert space.largest == {"widths": [24] * downs, "downs": downs, "normalization": "batch"}
    assert space.smallest == {**space.largest, "widths": [6] * downs}
    seen = [space.random(torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert {width for args in seen for width in args["widths"]} == set(BASE_WIDTHS)
    proposed = space.suggest(FixedTrial({f"width{i}": i % 7 for i in range(downs)}))
    assert proposed["widths"] == [BASE_WIDTHS[i % 7] for i in range(downs)]
    for args in (space.largest, space.smallest, seen[0]):
        assert count(build_meta(ModelSpec("unet_generator", args)), (1, 3, *size))["macs"] > 0


def test_images_that_cannot_be_halved_have_no_space_and_other_spaces_do_not_care() -> None:
    with pytest.raises(PlanError, match="sides of 66, 64 pixels can be halved 1 times; the space 'unet_generator' needs 2"):
        space_for("unet_generator", (66, 64))
    assert space_for("mfagan", (7, 7)) is SPACES["mfagan"]


def test_a_search_on_small_crops_has_fewer_levels() -> None:
    space = space_of(SearchConfig(crop_size=64), ModelSpec("unet_generator", {}, (), (1, 3, 256, 256)))
    assert space.largest["downs"] == 6
