"""What a device says about itself, and the processors that are chosen by it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mcompress.errors import UsageError
from mcompress.targets.connect import Host, Pinned, pinned, threads_text
from mcompress.targets.connect.facts import MOST_THREADS, DeviceFacts, parse_facts

TWO_FAST = parse_facts("machine=aarch64\ncore0=1800000\ncore1=1800000\ncore2=2400000\ncore3=2400000\n")
FASTEST = "the fastest of unequal ones"


@pytest.fixture
def one_processor() -> Iterator[int]:
    """The first of those that this thread, and what it starts, may use; the others are out of reach until the test is over."""
    before = os.sched_getaffinity(0)
    first = min(before)
    os.sched_setaffinity(0, {first})
    yield first
    os.sched_setaffinity(0, before)


def test_this_machine_says_which_processors_may_be_used() -> None:
    with Host() as host:
        assert host.facts().allowed == tuple(sorted(os.sched_getaffinity(0)))


def test_what_is_left_of_the_processors_is_said(one_processor: int) -> None:
    with Host() as host:
        assert host.facts().allowed == (one_processor,)


@pytest.mark.parametrize(
    ("said", "allowed"), [("allowed=0-2,5", (0, 1, 2, 5)), ("allowed=3", (3,)), ("allowed=", None), ("", None), ("allowed=?", None)]
)
def test_the_list_of_allowed_processors(said: str, allowed: tuple[int, ...] | None) -> None:
    assert parse_facts(f"machine=aarch64\n{said}\n").allowed == allowed


@pytest.mark.parametrize(
    ("allowed", "threads", "chosen"),
    [
        (None, 2, Pinned((2, 3), FASTEST)),
        ((0, 1, 2, 3), 1, Pinned((3,), FASTEST)),
        ((0, 1, 2), 1, Pinned((2,), FASTEST)),  # 3 is as fast, and out of reach
        ((0, 2), 2, Pinned((0, 2), FASTEST)),
        ((0, 1), 1, Pinned(None)),  # alike
        ((3,), 1, Pinned(None)),
        ((0, 3), 3, Pinned(None)),
    ],
)
def test_processors_are_chosen_among_those_that_may_be_used(allowed: tuple[int, ...] | None, threads: int, chosen: Pinned) -> None:
    assert pinned(replace(TWO_FAST, allowed=allowed), "it", threads, None) == chosen


@pytest.mark.parametrize("threads", [0, -1, MOST_THREADS + 1])
@pytest.mark.parametrize("facts", [TWO_FAST, parse_facts("")])
def test_a_number_of_threads_that_nobody_has_is_refused(threads: int, facts: DeviceFacts) -> None:
    with pytest.raises(UsageError, match=f"--threads is {threads}; it must be at least 1 and at most 256"):
        pinned(facts, "it", threads, None)


@pytest.mark.parametrize(
    ("threads", "cpus", "text"), [(1, (), "1 thread"), (1, (3,), "1 thread on processor 3"), (2, (2, 3), "2 threads on processors 2, 3")]
)
def test_threads_and_processors_in_words(threads: int, cpus: tuple[int, ...], text: str) -> None:
    assert threads_text(threads, cpus) == text
