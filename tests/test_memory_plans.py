"""Plans of memory: where each tensor lies, whether any overlap, and how much there must be."""

from __future__ import annotations

from applied import Apply
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.counting.memory import ALIGNMENT_BYTES, Lifetime, place

lifetimes = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 6)).map(lambda t: Lifetime(t[0], t[1], t[1] + t[2])), min_size=1, max_size=40
)


@given(lifetimes)
@settings(max_examples=200, deadline=None)
def test_plans_overlap_nowhere_and_stay_near_the_least(buffers: list[Lifetime]) -> None:
    plan = place(buffers)
    sizes = [-(-one.size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for one in buffers]
    for i, (one, start) in enumerate(zip(buffers, plan.offsets, strict=True)):
        assert start % ALIGNMENT_BYTES == 0
        for j in range(i):
            if one.first <= buffers[j].last and buffers[j].first <= one.last:
                assert start + sizes[i] <= plan.offsets[j] or plan.offsets[j] + sizes[j] <= start
    live = max(sum(size for one, size in zip(buffers, sizes, strict=True) if one.first <= t <= one.last) for t in range(20))
    assert live <= plan.arena_bytes <= sum(sizes)
    # Greedy by size stays within a factor of what lives at once; the paper finds 1 to 16 % on real networks.
    assert plan.arena_bytes <= 2 * live


def test_the_plan_of_a_skip_connection() -> None:
    """x (4), one (8) and two (4 channels of 64): the sum is written over what the second convolution wrote; the input exists to the end."""
    model = Apply(lambda m, x: x + m.two(m.one(x)), one=nn.Conv2d(4, 8, 1), two=nn.Conv2d(8, 4, 1))
    table = operator_table(model, (1, 4, 8, 8))
    assert table.planned_peak_elements == 16 * 64
    assert table.peak_activation_elements == 16 * 64
