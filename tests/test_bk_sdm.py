"""BK-SDM: which blocks go and with which weights the others stay, what is learned stage by stage, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from closed_form import DATA, NOISE_UNET, SCHEDULE, TINY, DiffusionTask, OnePoint, diffusion_context, unet
from conftest import MemoryCheckpoints, silent
from pydantic import ValidationError
from torch import Tensor, nn

from mcompress.compress.bk_sdm import bk_sdm_problems, remove_as_bk_sdm
from mcompress.compress.feature_distillation import distill_features, feature_problems
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec, Prediction, Sampling
from mcompress.compress.models.stable_diffusion import with_guidance
from mcompress.compress.models.unet_blocks import doubled, standing, without
from mcompress.compress.models.unet_weights import BkSdmSize, bk_sdm, inherited
from mcompress.compress.objectives.feature_matching import (
    FeatureLosses,
    FeatureMatching,
    PredictingUnet,
    converted,
    corresponding,
    feature_shapes,
    features_of,
)
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.train import TrainSettings, step_generator, train
from mcompress.errors import PlanError
from mcompress.targets.stages import BkSdmSearchConfig, FeatureDistillConfig

CPU = torch.device("cpu")
ORIGINAL = replace(NOISE_UNET, args={**TINY, "layers_per_block": 2})
SIZES: tuple[BkSdmSize, ...] = ("base", "small", "tiny")
SHORT = FeatureDistillConfig(steps=3, batch_size=2, learning_rate=1e-3, checkpoint_every_s=1e-9)
DOWN_UP = ["down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1"]


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return unet(ORIGINAL, 0)


def slim(spec: ModelSpec, original: nn.Module) -> nn.Module:
    made = build(spec).eval()
    made.load_state_dict({name: value.clone() for name, value in inherited(original.state_dict(), ORIGINAL, spec).items()})
    return made


def objective(student: nn.Module, teacher: nn.Module, predicts: Prediction = "epsilon", **weights: float) -> FeatureMatching:
    losses = FeatureLosses(4, **weights)
    return FeatureMatching(PredictingUnet(student, predicts), PredictingUnet(teacher, "epsilon"), DATA, losses)


def loss(made: FeatureMatching, step: int = 0) -> dict[str, float]:
    made.begin_step(step_generator(0, step), CPU)
    with torch.no_grad():
        return {name: float(value) for name, value in made.terms("student").items()}


# --- the removals ---


@pytest.mark.parametrize("size", SIZES)
def test_the_stage_gives_bk_sdms_network_with_the_originals_weights(size: BkSdmSize, make_context: Callable[..., StageContext]) -> None:
    context = diffusion_context(make_context, ORIGINAL, ORIGINAL)
    whole = {name: value.clone() for name, value in context.model.state_dict().items()}
    output = remove_as_bk_sdm(BkSdmSearchConfig(size=size), context)
    assert output.spec == bk_sdm(ORIGINAL, size)
    assert output.spec.sampling == ORIGINAL.sampling
    wanted = inherited(whole, ORIGINAL, output.spec)
    assert wanted.keys() == output.model.state_dict().keys()
    assert all(torch.equal(value, wanted[name]) for name, value in output.model.state_dict().items())
    build(output.spec).load_state_dict(output.model.state_dict())
    before, after = output.details["before"], output.details["after"]
    assert after["params"] == sum(parameter.numel() for parameter in output.model.parameters())
    assert before["params"] == sum(value.numel() for value in whole.values())
    assert after["macs"] < before["macs"]
    assert after["latency_ms"] < before["latency_ms"]
    assert [one.value for one in output.measurements] == [after["latency_ms"]]
    counted = {(one["stage"], one["kind"]): (one["before"], one["after"]) for one in output.details["block_map"]}
    middle, inner = size == "base", size != "tiny"
    assert counted == {
        ("Down-1", "residual"): (2, 1), ("Down-1", "attention"): (2, 1), ("Mid", "residual"): (7, 2 * middle + 3 * inner),
        ("Mid", "attention"): (1, int(middle)), ("Up-1", "residual"): (3, 2), ("Up-1", "attention"): (3, 2),
    }  # fmt: skip


def test_arguments_of_our_own_and_lists_by_stage_go_along() -> None:
    plain = ModelSpec("diffusion_unet", {}, (), (1, 4, 64, 64))
    assert bk_sdm(replace(plain, args={"attention": "heads"}), "tiny").args == {**bk_sdm(plain, "tiny").args, "attention": "heads"}
    by_stage = bk_sdm(replace(ORIGINAL, args={**ORIGINAL.args, "attention_head_dim": [4, 2]}), "tiny")
    assert by_stage.args["attention_head_dim"] == [4]
    build(by_stage)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ModelSpec("rrdb", {}, (), (1, 3, 8, 8)), "removes blocks of the network 'diffusion_unet', and this one is 'rrdb'"),
        (without(ORIGINAL, ["mid_block.attentions.0"]), "this one has repeats or was pruned. Use method evolve, which removes single blocks of any"),
        (NOISE_UNET, "layers_per_block of this network is 1. Use method evolve, which removes single blocks"),
    ],
)
def test_networks_that_bk_sdm_does_not_fit_are_refused(spec: ModelSpec, said: str, make_context: Callable[..., StageContext]) -> None:
    (problem,) = bk_sdm_problems(BkSdmSearchConfig(), spec)
    assert problem.startswith("stage search, method bk_sdm: ")
    assert said in problem
    if spec is NOISE_UNET:
        with pytest.raises(PlanError, match="layers_per_block of this network is 1"):
            remove_as_bk_sdm(BkSdmSearchConfig(), diffusion_context(make_context, NOISE_UNET, NOISE_UNET))


# --- the distillation ---


def test_an_untouched_copy_has_nothing_to_learn_from_its_original(original: nn.Module) -> None:
    made = objective(copy.deepcopy(original), original)
    found = loss(made)
    assert found["output"] == found["features"] == 0
    assert found["task"] == pytest.approx(float((original(*made.denoising.inputs) - made.denoising.wanted).square().mean().detach()))


def test_features_are_what_the_stages_give_and_the_terms_are_weighted() -> None:
    original = unet(ORIGINAL, 0)  # which keeps the hooks
    student = slim(bk_sdm(ORIGINAL, "base"), original)
    made = objective(student, original, task=0.5, output=2.0, features=3.0)
    found = loss(made)
    inputs = made.denoising.inputs
    seen: dict[tuple[nn.Module, str], Tensor] = {}
    names = [*DOWN_UP[:2], "mid_block", *DOWN_UP[2:]]

    def keep(network: nn.Module, name: str, given: Tensor | tuple[Tensor, ...]) -> None:
        seen[network, name] = given if isinstance(given, Tensor) else given[0]

    for network in (student, original):
        for name in names:
            module = network.get_submodule(f"unet.{name}")
            module.register_forward_hook(lambda _m, _i, given, network=network, name=name: keep(network, name, given))
    with torch.no_grad():
        made_by, predicted = student(*inputs), original(*inputs)
    distances = [float((seen[student, name] - seen[original, name]).square().mean()) for name in names]
    assert found["features"] == pytest.approx(3.0 * sum(distances), rel=1e-4)
    assert found["output"] == pytest.approx(2.0 * float((made_by - predicted).square().mean()), rel=1e-4)
    assert found["task"] == pytest.approx(0.5 * float((made_by - made.denoising.wanted).square().mean()), rel=1e-4)
    for name in ("task", "output", "features"):
        alone = loss(objective(student, original, **{other: float(other == name) for other in ("task", "output", "features")}))
        assert list(alone) == [name]


def test_stages_correspond_from_the_outermost_inwards(original: nn.Module) -> None:
    def names(size: BkSdmSize) -> list[tuple[str, str]]:
        return [(one.student.name, one.teacher.name) for one in corresponding(build(bk_sdm(ORIGINAL, size)), original)]

    assert names("base") == [(name, name) for name in [*DOWN_UP[:2], "mid_block", *DOWN_UP[2:]]]
    assert names("small") == [(name, name) for name in DOWN_UP]
    assert names("tiny") == [("down_blocks.0", "down_blocks.0"), ("up_blocks.0", "up_blocks.1")]
    for size in SIZES:
        assert all(ours == theirs for _, ours, theirs in feature_shapes(bk_sdm(ORIGINAL, size), ORIGINAL))
    evolved = doubled(without(ORIGINAL, list(standing(ORIGINAL))[::3]), "mid_block.attentions.0")
    assert [name for name, *_ in feature_shapes(evolved, ORIGINAL)] == [*DOWN_UP[:2], "mid_block", *DOWN_UP[2:]]


def test_the_innermost_stage_of_a_smaller_network_is_compared_before_latents_get_smaller(original: nn.Module) -> None:
    tap = corresponding(build(bk_sdm(ORIGINAL, "tiny")), original)[0].teacher
    assert tap.before_sampling
    sampler = original.get_submodule("unet.down_blocks.0.downsamplers.0")
    entered: list[Tensor] = []
    handle = sampler.register_forward_hook(lambda _m, given, _o: entered.append(given[0]))
    made = objective(original, original)
    made.begin_step(step_generator(0, 0), CPU)
    with torch.no_grad(), features_of(original, [tap]) as found:
        original(*made.denoising.inputs)
    handle.remove()
    assert torch.equal(found[tap], entered[0])


@pytest.mark.parametrize(("given", "wanted"), [("epsilon", "v_prediction"), ("v_prediction", "epsilon"), ("epsilon", "epsilon")])
def test_what_the_original_predicts_is_converted_to_what_the_network_does(given: Prediction, wanted: Prediction) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, timesteps = torch.randn(5, 4, 4, 4, generator=generator), torch.tensor([0, 10, 500, 900, 999])
    _, text = DATA.training.drawn(5, generator)
    with torch.no_grad():
        answer, expected = (OnePoint(kind)(latents, timesteps, text) for kind in (given, wanted))
    assert torch.allclose(converted(answer, latents, timesteps, SCHEDULE, given, wanted), expected, atol=1e-3, rtol=1e-4)


def test_the_gradient_reaches_the_student_alone_and_every_part_of_it(original: nn.Module) -> None:
    teacher, student = copy.deepcopy(original), slim(bk_sdm(ORIGINAL, "base"), original)
    made = objective(student, teacher, task=0.0, output=0.0)
    made.begin_step(step_generator(0, 0), CPU)
    torch.stack(list(made.terms("student").values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    without_gradient = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert all(name.startswith("unet.conv_") for name in without_gradient), "what follows the last stage gives no feature"
    assert made.players() == {"student": student}
    assert made.frozen() == {"teacher": teacher}


@pytest.mark.parametrize("size", ["base", "tiny"])
def test_a_distilled_network_is_nearer_to_the_original_than_before(size: BkSdmSize, original: nn.Module) -> None:
    student = slim(bk_sdm(ORIGINAL, size), original)
    unseen = objective(student, copy.deepcopy(original))

    def distances() -> dict[str, float]:
        found = [loss(unseen, step) for step in range(10_000, 10_008)]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    before = distances()
    result = train(objective(student, copy.deepcopy(original), task=0.0), TrainSettings(40, 3e-3, 0, 5, average=0.9), MemoryCheckpoints(), silent)
    after = distances()
    assert after["output"] < 0.7 * before["output"]
    assert after["features"] < 0.7 * before["features"]
    assert {name for _, means in result.curve for name in means} == {"student/output", "student/features"}


def context_of(make_context: Callable[..., StageContext], present: ModelSpec | None = None) -> StageContext:
    return diffusion_context(make_context, ORIGINAL, present or bk_sdm(ORIGINAL, "base"))


def weights(output: StageOutput) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in output.model.state_dict().items()}


def test_the_stage_trains_the_network_and_leaves_its_sampling_and_the_original(make_context: Callable[..., StageContext]) -> None:
    for predicts in ("epsilon", "v_prediction"):
        spec = replace(bk_sdm(ORIGINAL, "small"), sampling=Sampling(predicts, 8, 2.0))
        context = context_of(make_context, spec)
        before, start = (copy.deepcopy(network.state_dict()) for network in (context.teacher, context.model))
        output = distill_features(SHORT, context)
        assert output.spec == spec
        assert all(torch.equal(value, before[name]) for name, value in context.teacher.state_dict().items())
        assert any(not torch.equal(value, start[name]) for name, value in output.model.state_dict().items())
        assert {name for _, means in output.details["curve"] for name in means} == {"student/task", "student/output", "student/features"}


def test_a_killed_distillation_continues_to_the_same_weights(make_context: Callable[..., StageContext]) -> None:
    undisturbed = weights(distill_features(SHORT, context_of(make_context)))
    stores: dict[str, MemoryCheckpoints] = {}
    killed = 0
    while True:
        context = replace(context_of(make_context), checkpoints=lambda name: stores.setdefault(name, MemoryCheckpoints(kill_after=1)))
        try:
            output = distill_features(SHORT, context)
            break
        except KeyboardInterrupt:
            killed += 1
    assert killed == len(stores) == 1
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(output).items())


SLIM = bk_sdm(ORIGINAL, "base")
WIDER = replace(SLIM, args={**SLIM.args, "block_out_channels": [16, 32]})


@pytest.mark.parametrize(
    ("original_spec", "present", "said"),
    [
        (replace(ORIGINAL, network="rrdb"), SLIM, "compares the stages of two networks 'diffusion_unet', and the original is 'rrdb'; use another"),
        (replace(ORIGINAL, sampling=None), SLIM, "must know what the original predicts, and its specification has no `sampling`"),
        (ORIGINAL, replace(SLIM, sampling=None), "must know what the network predicts"),
        (ORIGINAL, with_guidance(SLIM, (2.0, 14.0)), "the network takes the scale of guidance as an input; distil features before guidance becomes"),
        (ORIGINAL, WIDER, "down_blocks.1 has 32x2x2, the original's 16x2x2; mid_block has 32x2x2, the original's 16x2x2; up_blocks.0 has 32x4x4"),
    ],
)
def test_networks_that_have_nothing_to_compare_are_refused(original_spec: ModelSpec, present: ModelSpec, said: str) -> None:
    (problem,) = feature_problems(SHORT, DATA, original_spec, present)
    assert problem.startswith("stage distill: method features")
    assert said in problem


def test_widths_matter_to_features_alone(make_context: Callable[..., StageContext]) -> None:
    of_output = SHORT.model_copy(update={"features": 0.0})
    assert feature_problems(of_output, DATA, ORIGINAL, WIDER) == []
    (problem,) = feature_problems(SHORT, DATA, ORIGINAL, SLIM, pruned=True)
    assert problem.endswith("put it before the prune stage, or set features: 0")
    assert feature_problems(of_output, DATA, ORIGINAL, SLIM, pruned=True) == feature_problems(SHORT, DATA, ORIGINAL, SLIM) == []
    with pytest.raises(PlanError, match="method features is for diffusion networks, and the task has none; use method online"):
        distill_features(SHORT, replace(context_of(make_context), task=DiffusionTask(None)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": 0, "output": 0, "features": 0}, "task, output and features are all 0, so nothing would be learned; set one of them"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"features": -1}, "greater than or equal to 0"),
        ({"crop_size": 8}, "Extra inputs are not permitted"),
    ],
)
def test_distillations_that_make_no_sense_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FeatureDistillConfig.model_validate({"stage": "distill", "method": "features", **given})


def test_sizes_are_bk_sdms_and_the_quick_form_trains_a_few_steps() -> None:
    with pytest.raises(ValidationError, match="'base', 'small' or 'tiny'"):
        BkSdmSearchConfig.model_validate({"stage": "search", "method": "bk_sdm", "size": "large"})
    assert FeatureDistillConfig().quick().steps == 4
