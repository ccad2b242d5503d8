"""Architecture evolving: blocks go by quality per millisecond, never past the budget, and a killed search ends as an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise
from typing import cast

import pytest
import torch
from conftest import MemoryCheckpoints, silent
from pydantic import JsonValue, ValidationError
from torch import Tensor, nn

from mcompress.compress import evolving, evolving_costs
from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.diffusion import NoiseSchedule, guided, noisy, velocity
from mcompress.compress.evolving import block_map, by_value, evolve, evolve_problems
from mcompress.compress.evolving_actions import Action, Journal, Phase, ScoredBlock, Training
from mcompress.compress.evolving_costs import UnetCosts
from mcompress.compress.evolving_error import PredictionError
from mcompress.compress.models.build import build, example_inputs
from mcompress.compress.models.spec import InputSpec, ModelSpec, PruningEdit, Sampling
from mcompress.compress.models.unet_blocks import passed_by, standing, with_count, without, without_blocks
from mcompress.compress.models.unet_weights import repeats_of
from mcompress.compress.objectives.denoising import Denoising
from mcompress.compress.objectives.stochastic_depth import StochasticDepth
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.stages import STAGES
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import Objective, TrainResult, TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget
from mcompress.targets.stages import EvolveSearchConfig

TINY: dict[str, JsonValue] = {
    "sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4, "block_out_channels": [8, 16], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
INPUTS = (InputSpec("latents", (1, 4, 8, 8), (-2.0, 2.0)), InputSpec("timestep", (1,), (0.0, 999.0)), InputSpec("text", (1, 5, 8), (-1.0, 1.0)))
SPEC = replace(ModelSpec.taking(INPUTS, "diffusion_unet", TINY), sampling=Sampling("epsilon", 8, 3.0))
UNTRAINED = EvolveSearchConfig(steps=0, steps_between=0, batch_size=4, evaluation_latents=4, evaluation_timesteps=2, group=1)
TRAINED = UNTRAINED.model_copy(update={"steps": 3, "steps_between": 2, "checkpoint_every_s": 0.001})


class RandomLatents:
    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 4, 8, 8, generator=generator), torch.randn(count, 5, 8, generator=generator)


PHONE = load_device("apple-a16")
COSTS = UnetCosts(PHONE, PHONE.unit(None), "fp16")
DIFFUSION = Diffusion(RandomLatents(), RandomLatents().drawn(8, torch.Generator().manual_seed(9)), torch.zeros(1, 5, 8), NoiseSchedule())


class DiffusionTask:
    def diffusion(self) -> Diffusion:
        return DIFFUSION


@pytest.fixture(autouse=True)
def _networks_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (evolving, evolving_costs):
        monkeypatch.setattr(module, "UnetCosts", lambda device, unit, precision: COSTS if device is PHONE else UnetCosts(device, unit, precision))


@pytest.fixture
def make(make_context: Callable[..., StageContext]) -> Callable[..., StageContext]:
    """A context on a phone's neural engine; the budget is a share of the whole network's latency."""

    def made(share: float | None = None, spec: ModelSpec = SPEC, **others: object) -> StageContext:
        torch.manual_seed(0)
        context = make_context(ModelSpec("rrdb", {"features": 8, "blocks": 1, "growth": 4}, (), (1, 3, 32, 32)), ships_as="fp16")
        budget = Budget() if share is None else Budget(latency_ms=share * COSTS.of(spec).latency.value)
        of_unet = {"task": DiffusionTask(), "device": PHONE, "unit": PHONE.unit(None), "spec": spec, "model": build(spec).eval(), "budget": budget}
        return replace(context, **{**of_unet, **others})

    return made


def actions_of(output: StageOutput) -> list[dict[str, JsonValue]]:
    return cast("list[dict[str, JsonValue]]", output.details["actions"])


@torch.no_grad()
def computed(network: nn.Module) -> Tensor:
    return network(*example_inputs(SPEC))


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_stochastic_depth_that_always_executes_is_plain_denoising() -> None:
    def trained(keep: float | None) -> nn.Module:
        torch.manual_seed(0)
        network = build(SPEC)
        if keep is None:
            objective: Denoising | StochasticDepth = Denoising(
                {"unet": network}, network, DIFFUSION.training, DIFFUSION.no_caption, DIFFUSION.schedule, prediction="epsilon", batch_size=2
            )
        else:
            objective = StochasticDepth(network, SPEC, DIFFUSION, "epsilon", batch_size=2, keep=keep)
        train(objective, TrainSettings(3, 1e-3, 0), MemoryCheckpoints(), silent)
        return network

    assert same(trained(1.0), trained(None))
    assert not same(trained(0.5), trained(None))


def test_stochastic_depth_passes_blocks_by_as_often_as_it_is_told_and_the_loss_is_that_of_what_is_left() -> None:
    network = build(SPEC).eval()
    objective = StochasticDepth(network, SPEC, DIFFUSION, "epsilon", batch_size=2, keep=0.75)
    passed = 0
    for step in range(200):
        objective.begin_step(torch.Generator().manual_seed(step), torch.device("cpu"))
        passed += len(objective.passed)
    assert passed / 200 / len(standing(SPEC)) == pytest.approx(0.25, abs=0.02)
    assert objective.passed
    loss = objective.terms("denoiser")["squared"]
    left = without_blocks(SPEC, network, objective.passed)[1]
    wanted = nn.functional.mse_loss(left(*objective.denoising.inputs), objective.denoising.wanted)
    assert torch.allclose(loss, wanted, atol=1e-6)


def test_captions_are_left_out_of_some_samples() -> None:
    objective = StochasticDepth(build(SPEC), SPEC, DIFFUSION, "epsilon", batch_size=400, keep=1.0)
    objective.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    without_caption = (objective.denoising.inputs[2] == 0).all(-1).all(-1)
    assert float(without_caption.float().mean()) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_error_is_that_of_what_the_network_predicts(prediction: str) -> None:
    network, schedule = build(SPEC).eval(), DIFFUSION.schedule
    sampling = Sampling(prediction, 8, 3.0)
    found = PredictionError(UNTRAINED, DIFFUSION, sampling, 5, network).of(network)
    generator, errors, (latents, text) = torch.Generator().manual_seed(5), [], DIFFUSION.validation
    for timestep in (749 - 1 + 1, 249):
        noise, timesteps = torch.randn(4, 4, 8, 8, generator=generator), torch.full((4,), timestep)
        alpha, sigma = schedule.at(timesteps)
        wanted = noise if prediction == "epsilon" else velocity(latents[:4], noise, alpha, sigma)
        with torch.no_grad():
            errors.append(nn.functional.mse_loss(network(noisy(latents[:4], noise, alpha, sigma), timesteps, text[:4]), wanted))
    assert found == pytest.approx(float(torch.stack(errors).mean()), rel=1e-6)
    in_batches = UNTRAINED.model_copy(update={"batch_size": 3})
    assert PredictionError(in_batches, DIFFUSION, sampling, 5, network).of(network) == pytest.approx(found, rel=1e-5)


def test_under_guidance_the_original_has_no_error_and_captions_count() -> None:
    network = build(SPEC).eval()
    config = UNTRAINED.model_copy(update={"measure": "guided", "evaluation_timesteps": 1})
    error = PredictionError(config, DIFFUSION, Sampling("epsilon", 8, 3.0), 0, network)
    assert error.of(network) == 0
    name = next(name for name, block in standing(SPEC).items() if block.attention)
    latents, timesteps = DIFFUSION.validation[0][:4], torch.full((4,), 499)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    inputs = noisy(latents, noise, *DIFFUSION.schedule.at(timesteps)), timesteps

    @torch.no_grad()
    def predicted() -> Tensor:
        return guided(network(*inputs, DIFFUSION.validation[1][:4]), network(*inputs, torch.zeros(4, 5, 8)), 3.0)

    wanted = predicted()
    with passed_by(network, [(name, standing(SPEC)[name])]):
        assert error.of(network) == pytest.approx(float(nn.functional.mse_loss(predicted(), wanted)), rel=1e-5)
        assert error.of(network) > 0


def test_a_blocks_milliseconds_are_what_the_whole_saves_without_it() -> None:
    whole, blocks = COSTS.by_block(SPEC)
    assert whole == COSTS.of(SPEC)
    assert blocks.keys() == standing(SPEC).keys()
    for name, milliseconds in blocks.items():
        saved = whole.latency.value - COSTS.of(without(SPEC, [name])).latency.value
        assert milliseconds == pytest.approx(saved, abs=1e-6)
        assert milliseconds > 0


def test_blocks_go_from_the_least_valuable_on_until_the_budget_is_met(make) -> None:
    context = make(0.93)
    original = context.model
    output = evolve(UNTRAINED.model_copy(update={"most_doubled": 0}), context)
    actions, error = actions_of(output), PredictionError(UNTRAINED, DIFFUSION, SPEC.sampling, 0, original)
    spec, gone = SPEC, []
    for action in actions:
        assert action["what"] == "removed"
        (chosen,) = action["blocks"]
        _, milliseconds = COSTS.by_block(spec)
        before, values = error.of(without_blocks(SPEC, original, gone)[1]), {}
        needed = action["latency_before_ms"] - context.budget.latency_ms
        for name in milliseconds:
            rise = error.of(without_blocks(SPEC, original, [*gone, name])[1]) - before
            values[name] = rise / min(milliseconds[name], needed)
        assert chosen["needed_ms"] == pytest.approx(needed)
        assert chosen["value"] == pytest.approx(values[chosen["block"]], abs=1e-5)
        assert values[chosen["block"]] <= min(values.values()) + 1e-5
        assert action["error_before"] == pytest.approx(before, abs=1e-6)
        gone.append(chosen["block"])
        spec = without(SPEC, gone)
        assert action["latency_after_ms"] == COSTS.of(spec).latency.value
    assert all(one["latency_after_ms"] == two["latency_before_ms"] for one, two in pairwise(actions))
    assert [one["latency_after_ms"] <= context.budget.latency_ms for one in actions] == [False] * (len(actions) - 1) + [True]
    assert len(actions) >= 2
    assert output.spec == spec
    assert output.measurements[0].value <= context.budget.latency_ms
    assert torch.allclose(computed(output.model), computed(without_blocks(SPEC, original, gone)[1]), atol=1e-6)
    scores = cast("list[dict[str, float]]", output.details["scores"])
    assert [one["value"] for one in scores] == sorted(one["value"] for one in scores)
    assert {one["block"] for one in scores} == set(standing(SPEC))
    again = build(ModelSpec.from_json(output.spec.to_json())).eval()
    again.load_state_dict(output.model.state_dict())
    assert torch.equal(computed(again), computed(output.model))
    assert output.spec.sampling == SPEC.sampling


def test_what_is_saved_beyond_the_budget_is_no_gain() -> None:
    large, small = ScoredBlock("large", 0.008, 0.06, 0.012), ScoredBlock("small", 0.0026, 0.016, 0.012)
    assert replace(large, needed_ms=None).value < replace(small, needed_ms=None).value
    assert by_value([large, small]) == [small, large]
    slow, quick = ScoredBlock("slow", -0.001, 10.0), ScoredBlock("quick", -0.001, 0.01)
    assert slow.value < quick.value < ScoredBlock("useful", 1e-9, 10.0).value, "of blocks that do equal harm the one that saves most goes first"
    assert ScoredBlock("first", 0.002, 0.01, 0.5).value == pytest.approx(0.2), "while more is needed than it takes, all that it takes counts"


def test_it_is_costed_as_asked(make: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(evolving, "UnetCosts", lambda _device, _unit, precision: (asked.append(precision), COSTS)[1])
    for costed_as in ("int8", None):
        evolve(UNTRAINED.model_copy(update={"costed_as": costed_as, "most_doubled": 0}), make(1.0))
    assert asked == ["int8", "fp16"]


def test_a_group_loses_no_more_than_the_budget_needs(make) -> None:
    first, enough = "mid_block.resnets.0", "down_blocks.0.attentions.0"
    limit = COSTS.of(without(SPEC, [enough])).latency.value
    assert COSTS.of(without(SPEC, [first])).latency.value > limit
    config = UNTRAINED.model_copy(update={"group": 100, "most_doubled": 0})

    def in_this_order(scored: list[ScoredBlock]) -> list[ScoredBlock]:
        return sorted(scored, key=lambda one: (first, enough, one.block).index(one.block))

    output = evolve(config, make(budget=Budget(latency_ms=limit)), order=in_this_order)
    (action,) = actions_of(output)
    assert [one["block"] for one in action["blocks"]] == [enough]
    assert action["latency_after_ms"] == limit


@pytest.mark.parametrize("share", [0.77, 0.9, 1.2])
def test_the_result_is_never_over_the_budget(share: float, make) -> None:
    context = make(share)
    output = evolve(UNTRAINED.model_copy(update={"group": 4, "most_doubled": 2}), context)
    assert not COSTS.of(output.spec).exceeded(context.budget)
    after = [one["latency_after_ms"] for one in actions_of(output) if one["what"] != "removed"]
    assert all(one <= context.budget.latency_ms for one in after)


def test_the_most_valuable_block_is_doubled_and_a_copy_without_worth_is_taken_back(make, monkeypatch) -> None:
    worth = {"down_blocks.0.attentions.0": 3.0, "mid_block.attentions.0": 2.0, "down_blocks.0.resnets.0": 1.0}
    context = make(2.0)
    milliseconds = COSTS.by_block(SPEC)[1]

    class ByHand:
        """A network without blocks that are worth something has a higher error; the copy of the attention block of the middle is worth nothing."""

        def __init__(self, *_: object) -> None:
            pass

        def of(self, network: nn.Module) -> float:
            error = 10.0
            for name, value in worth.items():
                block = network.get_submodule(f"unet.{name}")
                copies = list(block.children()) if isinstance(block, nn.ModuleList) else [block]
                there = sum("Removed" not in type(one).__name__ for one in copies)
                error -= value * milliseconds[name] * (min(there, 1) if name.startswith("mid") else there)
            return error

    monkeypatch.setattr(evolving, "PredictionError", ByHand)
    output = evolve(UNTRAINED.model_copy(update={"most_doubled": 3}), context)
    assert [(one["what"], one["blocks"][0]["block"]) for one in actions_of(output)] == [
        ("doubled", "down_blocks.0.attentions.0"),
        ("doubled", "mid_block.attentions.0"),
        ("taken back", "mid_block.attentions.0.1"),
        ("doubled", "down_blocks.0.resnets.0"),
    ]
    assert actions_of(output)[0]["blocks"][0]["value"] == pytest.approx(3.0)
    assert repeats_of(output.spec) == {"down_blocks.0.attentions.0": 2, "down_blocks.0.resnets.0": 2}
    assert [one.what for one in output.fallbacks] == ["mid_block.attentions.0.1"]
    again = build(ModelSpec.from_json(output.spec.to_json())).eval()
    again.load_state_dict(output.model.state_dict())
    assert torch.equal(computed(again), computed(output.model))
    limited = evolve(UNTRAINED.model_copy(update={"most_doubled": 1}), make(2.0))
    assert repeats_of(limited.spec) == {"down_blocks.0.attentions.0": 2}
    assert actions_of(evolve(UNTRAINED, make(1.0))) == []  # the budget is met, and has no room
    worth.clear()
    assert actions_of(evolve(UNTRAINED, make(2.0))) == []  # it has room, and no block is worth anything


def test_a_network_that_came_with_a_doubled_block_can_lose_both(make) -> None:
    name = "mid_block.attentions.0"
    spec = with_count(SPEC, name, 2)
    context = make(spec=spec)
    least = COSTS.of(without(spec, standing(spec))).latency.value
    output = evolve(UNTRAINED.model_copy(update={"group": 100}), replace(context, budget=Budget(latency_ms=least * 1.0001)))
    assert repeats_of(output.spec) == {one.name: 0 for one in standing(spec).values()}
    assert {"stage": "Mid", "side": 4, "channels": 16, "kind": "attention", "before": 2, "after": 0} in output.details["blocks"]


def test_the_block_map_counts_by_stage_and_kind() -> None:
    after = with_count(with_count(SPEC, "down_blocks.0.attentions.0", 0), "up_blocks.1.attentions.0", 2)
    assert [(one["stage"], one["kind"], one["before"], one["after"]) for one in cast("list[dict[str, JsonValue]]", block_map(SPEC, after))] == [
        ("Down-1", "residual", 1, 1),
        ("Down-1", "attention", 1, 0),
        ("Mid", "residual", 5, 5),
        ("Mid", "attention", 1, 1),
        ("Up-1", "residual", 2, 2),
        ("Up-1", "attention", 2, 3),
    ]


class Killed(Exception):
    pass


def test_a_killed_search_ends_as_an_undisturbed_one(make, tmp_path) -> None:
    config = TRAINED.model_copy(update={"group": 3, "most_doubled": 1})
    undisturbed = evolve(config, make(0.85))
    assert {one["what"] for one in actions_of(undisturbed)} == {"removed", "doubled"}
    saves, kills, resumed = count(1), 0, None

    class Dies(FileCheckpoints):
        def save(self, state: dict[str, object]) -> None:
            super().save(state)
            if next(saves) % 5 == 0:
                raise Killed

    while resumed is None:
        try:
            resumed = evolve(config, make(0.85, checkpoints=lambda name: Dies(tmp_path / f"{name}.pt")))
        except Killed:
            kills += 1
            assert kills < 30, "a search that was killed makes no headway"
    assert kills >= 5
    assert resumed.spec == undisturbed.spec != SPEC
    assert same(resumed.model, undisturbed.model)
    for told in (resumed.details, undisturbed.details):
        for training in cast("list[dict[str, JsonValue]]", told["trainings"]):
            del training["seconds"]
    assert resumed.details == undisturbed.details
    assert resumed.fallbacks == undisturbed.fallbacks


def test_what_was_measured_is_not_measured_again(make, monkeypatch, tmp_path) -> None:
    stores: dict[str, MemoryCheckpoints] = {}
    context = make(0.85, checkpoints=lambda name: stores.setdefault(name, MemoryCheckpoints()))
    first = evolve(UNTRAINED, context)
    assert stores["evolving"].saves > len(standing(SPEC))
    asked = 0
    of = PredictionError.of

    def counted(self: PredictionError, network: nn.Module) -> float:
        nonlocal asked
        asked += 1
        return of(self, network)

    monkeypatch.setattr(PredictionError, "of", counted)
    again = evolve(UNTRAINED, make(0.85, checkpoints=lambda name: stores.setdefault(name, MemoryCheckpoints())))
    assert again.details == first.details
    assert asked == 1  # of the network before the stage


def test_training_between_actions_goes_on_from_what_is_left(make, monkeypatch) -> None:
    seeds = []

    def seeded(objective: Objective, settings: TrainSettings, *others: object) -> TrainResult:
        seeds.append(settings.seed)
        return train(objective, settings, *others)

    monkeypatch.setattr(evolving, "train", seeded)
    output = evolve(TRAINED, make(0.85))
    assert len(set(seeds)) == len(seeds) == len(actions_of(output)) + 1  # every training has batches of its own
    trainings = cast("list[dict[str, JsonValue]]", output.details["trainings"])
    assert [one["phase"] for one in trainings] == list(range(len(actions_of(output)) + 1))
    assert not same(output.model, evolve(TRAINED.model_copy(update={"steps_between": 0}), make(0.85)).model)
    first = cast("list[list[JsonValue]]", trainings[0]["curve"])
    assert len(first) == 3


def test_a_state_of_another_search_is_not_taken_for_weights() -> None:
    store = MemoryCheckpoints()
    Phase(store, 5).save({"step": 1})
    assert Phase(store, 3).past(decided=5)
    assert not Phase(store, 3).past(decided=4)
    assert not Phase(store, 5).past(decided=5)
    assert Phase(store, 5).load() == {"step": 1}
    assert Phase(store, 4).load() is None


def test_the_journal_remembers_all(tmp_path) -> None:
    store = FileCheckpoints(tmp_path / "journal.pt")
    journal, block = Journal(store), ScoredBlock("mid_block.attentions.0", -0.5, 0.25)
    assert block.value == -0.125
    assert ScoredBlock("free", 1.0, 0.0).as_json()["value"] is None
    journal.trained(Training(0, 1.5, [(1, {"denoiser/squared": 2.0})]))
    journal.trained(Training(0, 9.0, []))
    journal.act(Action("removed", (block,), 1.0, 3.0, 2.75), [block])
    assert journal.error("", lambda: 7.0) == 7.0
    again = Journal(FileCheckpoints(tmp_path / "journal.pt"))
    assert (again.actions, again.first, again.trainings) == (journal.actions, [block], [Training(0, 1.5, [(1, {"denoiser/squared": 2.0})])])
    assert again.error("", lambda: 0.0) == 7.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "rrdb", "args": {}}, "evolves the network 'diffusion_unet', and this one is 'rrdb'"),
        ({"edits": (PruningEdit("unet.conv_in", True, (0,)),)}, r"pruned already \(1 edits\)"),
        ({"sampling": None}, "not known what the network predicts"),
        (
            {"further_inputs": (*SPEC.further_inputs, InputSpec("guidance", (1,), (0.0, 14.0)))},
            "takes latents, timestep, text, guidance; it must take",
        ),
    ],
)
def test_what_cannot_evolve_is_refused(change: dict[str, object], said: str, make) -> None:
    context = make(0.8)
    with pytest.raises(PlanError, match=said):
        evolve(UNTRAINED, replace(context, spec=replace(SPEC, **change)))


def test_an_impossible_budget_names_the_nearest_before_anything_is_measured(make, monkeypatch) -> None:
    context = make(0.01)
    monkeypatch.setattr(evolving, "PredictionError", None)
    least = COSTS.of(without(SPEC, standing(SPEC))).latency.value
    said = rf"budget\.latency_ms is .*; the network without any of its {len(standing(SPEC))} blocks that can go needs {least:.3g} ms .*the nearest"
    with pytest.raises(PlanError, match=said):
        evolve(UNTRAINED, context)
    reachable = Budget(latency_ms=least, size_mb=1e-6)
    (problem,) = evolve_problems(SPEC, reachable, context.device, context.unit, "fp16")
    assert problem.startswith("budget.size_mb is 1e-06; the network without any of its")
    assert evolve_problems(SPEC, Budget(latency_ms=least), context.device, context.unit, "fp16") == []


def test_a_budget_without_latency_and_a_task_without_diffusion_are_refused(make, task) -> None:
    with pytest.raises(PlanError, match=r"budget\.latency_ms is not set"):
        evolve(UNTRAINED, make())
    task_without = replace(make(0.8), task=type("Other", (), {"diffusion": lambda _: None})())
    with pytest.raises(PlanError, match="the task has no diffusion network"):
        evolve(UNTRAINED, task_without)


def test_the_configuration_is_a_search_of_its_own() -> None:
    assert STAGES[EvolveSearchConfig] is evolve
    quick = EvolveSearchConfig(group=2).quick()
    assert (quick.steps, quick.steps_between, quick.batch_size, quick.group, quick.evaluation_latents) == (12, 2, 4, 8, 4)
    for wrong in ({"keep_probability": 0.0}, {"group": 0}, {"crop_size": 32}, {"measure": "clip"}):
        with pytest.raises(ValidationError):
            EvolveSearchConfig.model_validate(wrong)
