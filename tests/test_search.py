"""The search stage: elastic weights, budgets, the precision of costs, resumption, the plot of its front."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcompress.compress import rounds
from mcompress.compress.candidates import candidate_cost, smallest_cost, space_of
from mcompress.compress.models.build import build
from mcompress.compress.models.space import SPACES, cut
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.prune import prune
from mcompress.compress.search import search
from mcompress.errors import PlanError
from mcompress.planning import plan
from mcompress.reports.plots import Candidate, pareto
from mcompress.targets.load import load_target
from mcompress.targets.schema import Budget, Target
from mcompress.targets.stages import PruneConfig, SemiSupervisedSearchConfig, SupernetSearchConfig

SHAPE = (1, 3, 32, 32)
TINY = SupernetSearchConfig(steps=2, trials=6, batch_size=1, crop_size=8)
START = ModelSpec("mfagan", {"channels": 16, "blocks": [[1, 16]]}, (), SHAPE)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_candidate_is_the_leading_block_of_the_largest(seed: int) -> None:
    space = SPACES["mfagan"]
    largest = build(ModelSpec("mfagan", space.largest)).state_dict()
    candidate = build(ModelSpec("mfagan", space.random(torch.Generator().manual_seed(seed))))
    weights = cut(largest, candidate)
    candidate.load_state_dict(weights)
    for name, value in weights.items():
        assert torch.equal(value, largest[name][tuple(slice(size) for size in value.shape)])


def test_the_largest_and_smallest_bound_the_space() -> None:
    space = SPACES["mfagan"]
    largest, smallest = (build(ModelSpec("mfagan", args)).state_dict() for args in (space.largest, space.smallest))
    for seed in range(20):
        names = build(ModelSpec("mfagan", space.random(torch.Generator().manual_seed(seed)))).state_dict()
        assert smallest.keys() <= names.keys() <= largest.keys()


def test_nothing_over_budget_is_ever_evaluated_or_returned(make_context, monkeypatch) -> None:
    context = make_context(START)
    largest = candidate_cost(ModelSpec("mfagan", SPACES["mfagan"].largest, (), SHAPE), context.device, context.unit, "int8")
    budget = Budget(macs_g=largest.macs / 1e9 / 4, peak_memory_mb=largest.peak_memory_mb)
    context = make_context(START, budget=budget)
    output = search(TINY, context)
    for row in output.details["trials"]:
        assert row["macs"] / 1e9 <= budget.macs_g
    assert not candidate_cost(output.spec, context.device, context.unit, "int8").exceeded(budget)
    rejected = output.details["rejected"]
    assert output.details["rejected_over_budget"] == len(rejected) > 0
    for row in rejected:
        assert "quality" not in row
        assert row["over"]["macs_g"] == pytest.approx(row["macs"] / 1e9 / budget.macs_g - 1)
        assert set(row["over"]) <= {"macs_g", "peak_memory_mb"}
        assert row["latency_ms"] > 0


def test_the_front_is_sorted_and_holds_the_pick(make_context) -> None:
    details = search(TINY, make_context(START)).details
    front = details["front"]
    assert [f["latency_ms"] for f in front] == sorted(f["latency_ms"] for f in front)
    assert [f["quality"] for f in front] == sorted(f["quality"] for f in front)
    assert [f["picked"] for f in front].count(True) == 1
    assert front[-1]["picked"]


def test_a_killed_search_ends_as_an_undisturbed_one(make_context, tmp_path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = search(TINY, make_context(START, work=tmp_path / "a"))
    context, evaluated = make_context(START, work=tmp_path / "b"), 0
    quality = type(context.task).quality

    def dies_at_the_third(self, output, truth):
        nonlocal evaluated
        evaluated += 1
        if evaluated == 3:
            raise KeyboardInterrupt
        return quality(self, output, truth)

    monkeypatch.setattr(type(context.task), "quality", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        search(TINY, context)
    monkeypatch.setattr(type(context.task), "quality", quality)
    resumed = search(TINY, context)
    assert resumed.spec == undisturbed.spec
    assert resumed.details["trials"] == undisturbed.details["trials"]
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.state_dict().values(), undisturbed.model.state_dict().values(), strict=True))


def test_an_impossible_budget_names_the_nearest(make_context, monkeypatch) -> None:
    monkeypatch.setattr(rounds, "PROPOSALS_PER_TRIAL", 2)
    with pytest.raises(PlanError, match=r"no candidate meets the budget; the smallest network .* is over: macs_g by"):
        search(TINY, make_context(START, budget=Budget(macs_g=1e-6)))


def test_a_network_without_a_space_says_so() -> None:
    with pytest.raises(
        PlanError,
        match=r"'my_net:build' has no search space; set space to one of: mfagan, .*, unet_generator, wav2lip, or remove the search stage",
    ):
        space_of(SupernetSearchConfig(), ModelSpec("my_net:build"))


def test_a_network_is_costed_at_the_precision_that_it_ships_in(make_context) -> None:
    context = make_context(START)
    unit = context.device.units["cpu"]
    as_int8, as_fp16 = (candidate_cost(START, context.device, unit, precision) for precision in ("int8", "fp16"))
    params = sum(p.numel() for p in build(START).parameters())
    assert (as_int8.size_mb, as_fp16.size_mb) == (params / 1e6, 2 * params / 1e6)
    assert as_int8.latency.value < as_fp16.latency.value
    assert (as_int8.latency.on, as_fp16.latency.on) == ("snapdragon865 cpu int8", "snapdragon865 cpu fp16")
    assert as_int8.peak_memory_mb == as_fp16.peak_memory_mb


def test_a_float_search_keeps_a_size_that_only_int8_would_meet(make_context) -> None:
    teacher = make_context(START).teacher_spec
    context = make_context(START)
    floor = smallest_cost(TINY, teacher, context.device, context.unit, "fp16").size_mb
    budget = Budget(size_mb=8 * floor)
    for precision, weight_bytes in (("int8", 1), ("fp16", 2)):
        context = make_context(START, budget=budget, ships_as=precision, work=None)
        output = search(TINY, replace(context, search_folder=context.search_folder / precision))
        assert weight_bytes * sum(p.numel() for p in output.model.parameters()) / 1e6 <= budget.size_mb
        assert output.measurements[0].on.endswith(precision)


def test_pruning_costs_what_ships(make_context) -> None:
    outputs = [prune(PruneConfig(ratio=0.05, importance_batches=1), make_context(START, ships_as=precision)) for precision in ("int8", "fp16")]
    assert [output.measurements[0].on for output in outputs] == ["snapdragon865 gpu int8", "snapdragon865 gpu fp16"]


def test_a_target_without_quantize_is_planned_and_keyed_as_what_float_files_hold() -> None:
    def target(*stages: str, size_mb: float) -> Target:
        given = json.dumps([{"stage": stage, **({"ratio": 0.1} if stage == "prune" else {})} for stage in stages])
        return load_target("snapdragon865", [f"stages={given}", f"budget={{size_mb: {size_mb}}}", "model.input_shape=[1, 3, 32, 32]"])

    space = SPACES["mfagan"]
    params = sum(p.numel() for p in build(ModelSpec("mfagan", space.smallest)).parameters())
    between = 1.5 * params / 1e6  # met at one byte per parameter, missed at four
    as_int8 = target("search", "prune", "quantize", size_mb=between)
    made = plan(as_int8)
    assert [made.key_parts(s.stage, s, "").get("ships_as") for s in as_int8.stages] == ["int8", "int8", None]
    with pytest.raises(PlanError, match=rf"the smallest network of the search space needs {4 * params / 1e6:.3g} MB"):
        plan(target("search", "prune", size_mb=between))
    as_float = target("search", "prune", size_mb=4.5 * params / 1e6)
    assert [plan(as_float).key_parts(s.stage, s, "")["ships_as"] for s in as_float.stages] == ["fp32", "fp32"]


def test_the_plot_of_the_front_shows_what_was_rejected_without_a_quality() -> None:
    trials = [Candidate(2.0, 27.0), Candidate(4.0, 28.0, picked=True)]

    def drawn(rejected_ms: list[float]) -> str:
        return pareto(trials, trials, rejected_ms, limit_ms=5.0, quality_label="PSNR", latency_label="ms")

    assert "over budget, not evaluated" not in drawn([])
    assert ">over budget, not evaluated (3)<" in drawn([3.0, 5.5, 6.0])
    far = drawn([3.0, 5.5, 900.0])
    assert ">over budget, not evaluated (3, 1 of them further right)<" in far
    assert "2 candidates; 2 on the Pareto front; 3 over budget and not evaluated" in far


def test_the_supernet_learns_from_stored_answers_of_the_teacher(make_context) -> None:
    asked = 0

    def count(*_: object) -> None:
        nonlocal asked
        asked += 1

    context = make_context(START)
    context.teacher.register_forward_hook(count)
    search(TINY.model_copy(update={"teacher_batches": 1, "steps": 4}), context)
    assert asked == 1


@pytest.mark.parametrize(("network", "missing"), [("mfagan", ["wider", "deeper"]), ("unet_generator", ["deeper"])])
def test_a_space_without_larger_networks_gives_no_teachers_and_says_so(network: str, missing: list[str], make_context, pairs) -> None:
    context = make_context(START)
    if network == "unet_generator":
        context = replace(context, task=pairs, teacher_spec=ModelSpec(network, {"features": 8, "downs": 3}, (), SHAPE, (-1.0, 1.0)))
    small = {"steps": 1, "batch_size": 1, "crop_size": 32, "trials": 4, "teacher_trials": 2, "teacher_cost": 1000.0, "discriminator_features": 4}
    output = search(SemiSupervisedSearchConfig.model_validate(small), context)
    assert [fallback.what for fallback in output.fallbacks] == [f"{kind} teacher" for kind in missing]
    assert all(f"the search space of '{network}' has no" in fallback.reason for fallback in output.fallbacks)
    assert set(output.teachers) == {"wider", "deeper"} - set(missing)
    assert not any(one.network.training for one in output.teachers.values())
