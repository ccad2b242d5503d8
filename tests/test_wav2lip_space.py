"""The search space of talking faces: the hand-made cut is in it, and candidates lie inside the largest network."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import inside_of
from optuna.trial import FixedTrial

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build, build_meta
from mcompress.compress.models.space import SPACES, WAV2LIP_MOST_BLOCKS, WAV2LIP_STAGES, WAV2LIP_WIDTHS, cut
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.wav2lip import QUARTER_WIDTH, WITHOUT_BLOCKS, Wav2Lip

SPACE = SPACES["wav2lip"]
SHAPES = ((1, 6, 96, 96), (1, 1, 80, 16))


def faces(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(2, 6, 96, 96, generator=source), torch.randn(2, 1, 80, 16, generator=source)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_a_candidate_lies_inside_the_largest_network(seed: int) -> None:
    """With every number outside the candidate at zero, the largest network computes what the candidate computes; a block of zeros adds nothing."""
    candidate, reduced = inside_of(SPACE, SPACE.random(torch.Generator().manual_seed(seed)), seed)
    with torch.no_grad():
        torch.testing.assert_close(candidate(*faces(seed)), reduced(*faces(seed)), atol=2e-5, rtol=1e-4)


def test_the_hand_made_cut_is_a_member() -> None:
    assert sum(SPACE.suggest(FixedTrial({**{f"width{i}": 0 for i in range(19)}, "block0": 4, "block1": 4}))["face_blocks"]) == 1
    member = SPACE.suggest(FixedTrial({**{f"width{i}": 2 for i in range(19)}, **{f"block{i}": -1 - i for i in range(2)}}))
    assert member == {
        **{name: list(value) for name, value in {**QUARTER_WIDTH, **WITHOUT_BLOCKS}.items()},
        "output_width": 8,
    }
    assert operator_table(build_meta(ModelSpec("wav2lip", member)), *SHAPES).params == 1_258_143


def test_random_members_take_every_value_and_lie_between_smallest_and_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    members = [SPACE.random(generator) for _ in range(200)]
    assert {member["face_widths"][0] for member in members} == set(WAV2LIP_WIDTHS)
    blocks = [(*member["face_blocks"], *member["decoder_blocks"]) for member in members]
    assert {sum(counts) for counts in blocks} == set(range(WAV2LIP_MOST_BLOCKS + 1))
    assert {stage for counts in blocks for stage, count in enumerate(counts) if count} == set(range(WAV2LIP_STAGES))
    assert all(len(member["face_blocks"]) + len(member["decoder_blocks"]) == WAV2LIP_STAGES for member in members)
    macs = [operator_table(build_meta(ModelSpec("wav2lip", args)), *SHAPES).macs for args in (SPACE.smallest, members[0], SPACE.largest)]
    assert all(low < high for low, high in pairwise(macs))


def test_a_cut_of_the_whole_is_the_whole() -> None:
    largest = build(ModelSpec("wav2lip", SPACE.largest))
    assert isinstance(largest, Wav2Lip)
    weights = largest.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in cut(weights, largest).items())
    first = {layer: sources for layer, sources in largest.joined().items() if layer.startswith("face_decoder_blocks.1.")}
    assert first == {"face_decoder_blocks.1.0.conv_block.0": ("face_decoder_blocks.0.0.conv_block.0", "face_encoder_blocks.6.0.conv_block.0")}
