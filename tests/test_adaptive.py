"""Adaptive online semi-supervised distillation, the semi-supervised supernet, evolution, and the search for teachers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import optuna
import pytest
import torch
from conftest import MemoryCheckpoints, silent
from optuna.trial import TrialState
from pydantic import ValidationError
from torch import Tensor, nn

from mcompress.compress.distill import distill_adaptively
from mcompress.compress.evolution import FIRST_GENERATION, EvolutionSampler, choices
from mcompress.compress.models.build import build
from mcompress.compress.models.space import SPACES, Args, cut
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.adaptive import MEMORY, QUALITY_EVERY, AdaptiveDistillation, TeacherQuality
from mcompress.compress.objectives.discriminators import SharedDiscriminator, layers_for
from mcompress.compress.objectives.features import with_features
from mcompress.compress.objectives.mean_teacher import AVERAGE, AveragedTeacher
from mcompress.compress.objectives.pix2pix import Pix2Pix
from mcompress.compress.objectives.semi_supervised import SemiSupervisedTraining
from mcompress.compress.stage import CompanionNetwork, StageContext
from mcompress.compress.supernet import apply_candidate, gather_statistics, state_of
from mcompress.compress.tasks.translation.task import Translation
from mcompress.compress.teaching import TeacherSearch, find_teachers
from mcompress.compress.train import TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import AdaptiveDistillConfig, SemiSupervisedSearchConfig

ALONE: dict[str, object] = {"steps": 3, "batch_size": 2, "crop_size": 32, "original": "alone"}
SMALL: dict[str, object] = {"steps": 3, "batch_size": 2, "crop_size": 32, "discriminator_features": 4}


@pytest.fixture(scope="module")
def task() -> Translation:
    return Translation.from_config(DataConfig(labelled_fraction=0.25))


def generator(seed: int = 0, width: int = 4, depth: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    args: Args = {"widths": [width] * 8, "depths": [depth] * 3, "convolutions": "separable", "normalization": "batch"}
    return build(ModelSpec("resnet_generator", args))


def objective(task: Translation, original: nn.Module | None = None, **more: object) -> AdaptiveDistillation:
    config = AdaptiveDistillConfig.model_validate({**SMALL, **more})
    torch.manual_seed(0)
    return AdaptiveDistillation(task, config, generator(), {"wider": generator(1, 6), "deeper": generator(2, 4, 2)}, original)


def fit(what: AdaptiveDistillation, steps: int = 3, store: MemoryCheckpoints | None = None) -> dict[str, dict[str, Tensor]]:
    settings = TrainSettings(steps, 1e-3, 0, checkpoint_every_s=1e-9)
    return train(what, settings, store or MemoryCheckpoints(), silent).averaged


def test_the_teachers_learn_from_the_truth_and_the_student_from_neither_truth_nor_discriminator(task: Translation) -> None:
    made = objective(task, gram=0.1, total_variation=0.1)
    assert list(made.players()) == ["wider", "deeper", "discriminator", "student"]
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    for teacher in ("wider", "deeper"):
        assert set(made.terms(teacher)) == {"truth", "adversarial"}
    assert set(made.terms("discriminator")) == {"gan of wider", "gan of deeper"}
    kinds = {name.partition(" of ")[0] for name in made.terms("student")}
    assert kinds == {"output", "ssim", "gram", "feature", "total_variation", "channel"}

    def without_truth(truth: float | None) -> dict[str, float]:
        again = objective(task, gram=0.1, total_variation=0.1)
        again.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
        if truth is not None:
            again.batch = replace(again.batch, truth=torch.full_like(again.batch.truth, truth))
        return {name: float(value.detach()) for name, value in again.terms("student").items()}

    assert without_truth(None) == without_truth(0.0) == without_truth(1.0)


def test_no_gradient_of_the_student_reaches_a_teacher(task: Translation) -> None:
    made = objective(task)
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    torch.stack(list(made.terms("student").values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for teacher in made.learning.values() for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in made.student["student"].parameters())


def test_a_student_that_is_its_teachers_has_nothing_to_learn(task: Translation) -> None:
    same = generator().eval()
    made = AdaptiveDistillation(task, AdaptiveDistillConfig.model_validate({**SMALL, "channel": 0.0}), same, {"wider": same, "deeper": same}, None)
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    assert {name: float(value.detach()) for name, value in made.terms("student").items()} == pytest.approx(
        {"output": 0.0, "ssim": 0.0, "feature of wider": 0.0, "feature of deeper": 0.0}, abs=1e-4
    )


def test_teachers_count_by_the_inverse_of_their_squared_errors() -> None:
    quality = TeacherQuality(2, "quality")
    quality.note([0.01, 0.03])
    assert quality.weights() == pytest.approx([0.75, 0.25])
    quality.note([0.03, 0.01])
    assert quality.weights() == pytest.approx([0.5, 0.5])
    equal = TeacherQuality(2, "equal")
    equal.note([0.01, 0.03])
    assert equal.weights() == [0.5, 0.5]


def test_the_weights_follow_the_teachers_while_they_learn(task: Translation) -> None:
    """They are measured with the means by which the teachers teach, on pairs that nothing is trained on, and half of what was known stays."""
    made = objective(task)
    inputs, truth = task.validation_batch()

    def errors() -> list[float]:
        with torch.no_grad():
            return [float((mean(*inputs)[0] - truth).square().mean()) for mean in made.means.values()]

    first = errors()
    for step in range(QUALITY_EVERY):
        made.begin_step(torch.Generator().manual_seed(step), torch.device("cpu"))
    assert made.quality.squared_error.tolist() == pytest.approx(first)
    made.means["wider"].get_buffer("mean tail bias").fill_(-3.0)
    second = errors()
    assert second[0] > 1.5 * first[0]
    assert second[1] == first[1]
    made.begin_step(torch.Generator().manual_seed(QUALITY_EVERY), torch.device("cpu"))
    expected = [MEMORY * before + (1 - MEMORY) * now for before, now in zip(first, second, strict=True)]
    assert made.quality.squared_error.tolist() == pytest.approx(expected)
    inverse = [1 / error for error in expected]
    assert made.quality.weights() == pytest.approx([one / sum(inverse) for one in inverse])


def test_a_training_that_was_killed_ends_with_the_same_weights(task: Translation) -> None:
    whole = fit(objective(task), 4)
    store = MemoryCheckpoints(kill_after=2)
    with pytest.raises(KeyboardInterrupt):
        fit(objective(task), 4, store)
    again = fit(objective(task), 4, store)
    assert all(torch.equal(value, again[player][name]) for player, state in whole.items() for name, value in state.items())


def test_teachers_that_learn_every_second_step_sit_the_others_out(task: Translation) -> None:
    made, learned = objective(task, teachers_every=2), []
    for step in range(4):
        made.begin_step(torch.Generator().manual_seed(step), torch.device("cpu"))
        learned.append(bool(made.terms("wider")))
        assert bool(made.terms("deeper")) == learned[-1]
        assert bool(made.terms("discriminator")) == learned[-1]
        assert made.terms("student")
    assert learned == [True, False, True, False]


def test_without_a_term_that_needs_one_there_is_no_discriminator(task: Translation) -> None:
    made = objective(task, adversarial=0.0, feature=0.0, gram=0.0)
    assert list(made.players()) == ["wider", "deeper", "student"]
    fit(made, 1)


def test_the_original_can_teach_and_stays_as_it_is(task: Translation) -> None:
    original = generator(3, 8)
    before = {name: value.clone() for name, value in original.state_dict().items()}
    made = objective(task, original)
    assert list(made.teachers) == ["wider", "deeper", "original"]
    fit(made, 2)
    assert len(made.quality.weights()) == 3
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


def test_feature_maps_that_do_not_correspond_are_refused(task: Translation) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            return out

    with pytest.raises(PlanError, match="terms of features need feature maps that correspond; the student has"):
        AdaptiveDistillation(task, AdaptiveDistillConfig.model_validate(SMALL), Other(), {"wider": generator()}, None)


def test_feature_maps_are_those_of_the_named_modules() -> None:
    network = generator().eval()
    output, features = with_features(network, torch.zeros(1, 3, 32, 32))
    assert torch.equal(output, network(torch.zeros(1, 3, 32, 32)))
    assert [tuple(feature.shape) for feature in features] == [(1, 16, 8, 8)] * 4


@pytest.mark.parametrize(("side", "layers"), [(8, 1), (16, 2), (32, 3), (64, 3), (256, 3)])
def test_small_pictures_have_a_discriminator_of_fewer_layers(side: int, layers: int) -> None:
    assert layers_for(side) == layers
    made = SharedDiscriminator(("a", "b"), 4, 2, side, source_channels=3)
    picture = torch.rand(2, 3, side, side)
    assert made("a", picture, picture).shape == made("b", picture, picture).shape
    assert not torch.equal(made("a", picture, picture), made("b", picture, picture))


def test_shared_blocks_are_shared() -> None:
    own, shared = (sum(p.numel() for p in SharedDiscriminator(("a", "b"), 4, blocks, 64, source_channels=0).parameters()) for blocks in (0, 3))
    one = sum(p.numel() for p in SharedDiscriminator(("a",), 4, 0, 64, source_channels=0).parameters())
    assert own == 2 * one
    assert one < shared < own


def supernet_objective(task: Translation) -> tuple[SemiSupervisedTraining, nn.Module]:
    space = SPACES["resnet_generator"]
    torch.manual_seed(0)
    supernet = build(ModelSpec(space.network, space.largest))
    config = SemiSupervisedSearchConfig.model_validate({**SMALL, "batch_size": 1})
    return SemiSupervisedTraining(task, config, space, supernet), supernet


def test_labels_train_the_largest_network_and_the_largest_the_others(task: Translation) -> None:
    made, supernet = supernet_objective(task)
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    terms = made.terms("supernet")
    assert {name.partition(" of ")[2] for name in terms} == {"", "smallest", "random1"}
    statistics = {name: value.clone() for name, value in supernet.named_buffers()}
    candidates = torch.stack([value for name, value in terms.items() if " of " in name]).sum()
    candidates.backward()  # type: ignore[no-untyped-call]
    smallest = cut({name: parameter.grad for name, parameter in state_of(supernet).items() if parameter.grad is not None} | statistics, _smallest())
    assert all(bool((smallest[name] != 0).any()) for name in ("head.conv.weight", "tail.weight"))
    # Of the largest network nothing outside the candidates moves: what it computed was taken as it is.
    largest_only = supernet.get_submodule("groups.0.4.conv1.pointwise").weight  # the fifth block of a group, which no student has
    assert largest_only.grad is None or not bool(largest_only.grad.any())  # type: ignore[union-attr, operator]


def _smallest() -> nn.Module:
    space = SPACES["resnet_generator"]
    return build(ModelSpec(space.network, space.smallest))


def test_a_candidate_normalizes_with_statistics_of_its_own_and_leaves_the_supernets_alone(task: Translation) -> None:
    space = SPACES["resnet_generator"]
    torch.manual_seed(0)
    supernet = build(ModelSpec(space.network, space.largest))
    before = {name: value.clone() for name, value in supernet.named_buffers()}
    inputs, _ = task.training_batch(2, 32, torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = apply_candidate(space, space.smallest, state_of(supernet), inputs)
    assert all(torch.equal(value, before[name]) for name, value in supernet.named_buffers())
    smallest = _smallest()
    smallest.load_state_dict(cut(supernet.state_dict(), smallest))
    gather_statistics(smallest, [inputs])
    norm = smallest.get_submodule("head.norm")
    assert int(norm.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert norm.momentum == 0.1
    with torch.no_grad():
        assert smallest(*inputs) == pytest.approx(output, abs=0.05)  # running variances are unbiased, those of a batch are not


def test_evolution_inherits_from_the_best_and_begins_at_random() -> None:
    study = optuna.create_study(direction="maximize")
    space = SPACES["resnet_generator"]
    for number in range(60):
        study.sampler = EvolutionSampler(number)
        trial = study.ask()
        widths = space.suggest(trial)["widths"]
        assert isinstance(widths, list)
        study.tell(trial, float(sum(int(str(width)) for width in widths)))
    values = [float(trial.values[0]) for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    first, last = values[:FIRST_GENERATION], values[-FIRST_GENERATION:]
    assert sum(last) > sum(first) * 1.2
    assert max(last) >= max(first)


def test_evolution_proposes_the_same_for_the_same_seed_and_history() -> None:
    def proposed() -> list[Args]:
        study = optuna.create_study(direction="maximize")
        found = []
        for number in range(24):
            study.sampler = EvolutionSampler(number)
            trial = study.ask()
            found.append(SPACES["resnet_generator"].suggest(trial))
            study.tell(trial, float(number % 5))
        return found

    assert proposed() == proposed()


def test_evolution_draws_every_choice_of_the_first_generation() -> None:
    seen: Counter[object] = Counter()
    for number in range(FIRST_GENERATION * 8):
        study = optuna.create_study(sampler=EvolutionSampler(number))
        seen[study.ask().suggest_int("depth0", 1, 3)] += 1
    assert set(seen) == {1, 2, 3}
    assert min(seen.values()) > FIRST_GENERATION
    with pytest.raises(TypeError, match="FloatDistribution"):
        choices(optuna.distributions.FloatDistribution(0.0, 1.0))


def test_half_of_the_children_come_of_two_parents_and_the_others_are_mutations_of_one() -> None:
    """The best quarter has one width each; a child that is no mutation has nothing else, and of two parents it may have the widths of both."""
    names = [f"width{i}" for i in range(8)]
    history = [
        optuna.trial.create_trial(
            params=dict.fromkeys(names, number), distributions=dict.fromkeys(names, optuna.distributions.IntDistribution(0, 15)), value=float(number)
        )
        for number in range(FIRST_GENERATION)
    ]
    best = set(range(FIRST_GENERATION - FIRST_GENERATION // 4, FIRST_GENERATION))
    mutated = mixed = drawn = 0
    for seed in range(400):
        study = optuna.create_study(direction="maximize", sampler=EvolutionSampler(seed))
        study.add_trials(history)
        trial = study.ask()
        child = [trial.suggest_int(name, 0, 15) for name in names]
        foreign = sum(width not in best for width in child)
        mutated += foreign > 0
        drawn += foreign
        mixed += foreign == 0 and len(set(child)) > 1
    assert drawn / 400 == pytest.approx(0.5 * 0.2 * 12 / 16 * 8, rel=0.2)
    assert mutated / 400 == pytest.approx(0.5 * (1 - (1 - 0.2 * 12 / 16) ** 8), rel=0.2)
    assert mixed / 400 == pytest.approx(0.5 * 3 / 4, rel=0.25)


STUDENT: Args = {"widths": [8] * 8, "depths": [2, 2, 2], "convolutions": "separable", "normalization": "batch"}


def _sizes(args: Args) -> tuple[list[int], list[int]]:
    widths, depths = args["widths"], args["depths"]
    assert isinstance(widths, list)
    assert isinstance(depths, list)
    return [int(str(width)) for width in widths], [int(str(depth)) for depth in depths]


def _macs(args: Args) -> int:
    widths, depths = _sizes(args)
    return sum(widths) * sum(depths)


def test_the_wider_teacher_is_wider_and_the_deeper_deeper_and_neither_costs_too_much() -> None:
    search = TeacherSearch(SPACES["resnet_generator"], 2.0 * _macs(STUDENT), 20, 0, _macs, lambda args: float(_macs(args)))
    found = find_teachers(STUDENT, search, lambda _done, _total, _note: None)
    assert list(found) == ["wider", "deeper"]
    wide, deep = _sizes(found["wider"].args), _sizes(found["deeper"].args)
    assert wide[1] == [2, 2, 2]
    assert all(width >= 8 for width in wide[0])
    assert sum(wide[0]) > 64
    assert deep[0] == [8] * 8
    assert all(depth >= 2 for depth in deep[1])
    assert sum(deep[1]) > 6
    assert all(_macs(STUDENT) < one.macs <= 2.0 * _macs(STUDENT) for one in found.values())


def test_a_kind_of_teacher_that_nothing_affordable_is_of_is_left_out() -> None:
    search = TeacherSearch(SPACES["resnet_generator"], 1.01 * _macs(STUDENT), 5, 0, _macs, lambda args: float(_macs(args)))
    assert find_teachers(STUDENT, search, lambda _done, _total, _note: None) == {}


def test_a_teacher_teaches_by_the_running_mean_of_its_weights_and_keeps_its_own() -> None:
    teacher = generator()
    mean = AveragedTeacher(teacher)
    picture = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = teacher.eval()(picture)
        for parameter in teacher.parameters():
            parameter.add_(0.5)
        after = {name: value.clone() for name, value in teacher.state_dict().items()}
        assert torch.equal(mean(picture)[0], before)
        assert all(torch.equal(value, after[name]) for name, value in teacher.state_dict().items())
        mean.follow(1_000_000)
    moved = mean.get_buffer("mean tail bias")
    assert torch.allclose(moved, after["tail.bias"] - 0.5 * AVERAGE, atol=1e-6)
    assert not any(name.startswith("_teacher") for name in mean.state_dict())


def test_pix2pix_plays_on_labelled_pairs_alone(task: Translation) -> None:
    made = Pix2Pix(task, AdaptiveDistillConfig.model_validate(SMALL), generator())
    assert list(made.players()) == ["generator", "discriminator"]
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    with pytest.raises(ValueError, match="the discriminator moves after the generator"):
        made.terms("discriminator")
    assert set(made.terms("generator")) == {"truth", "adversarial"}
    made.terms("discriminator")["gan"].backward()
    assert all(parameter.grad is None for parameter in made.network.parameters())


def test_a_weight_that_nothing_can_use_is_said(task: Translation) -> None:
    config = AdaptiveDistillConfig.model_validate(SMALL)
    alone = AdaptiveDistillation(task, config, generator(), {}, generator(3, 8))
    assert list(alone.players()) == ["student"]
    assert set(alone.left_out) == {"adversarial", "feature", "channel"}
    assert "no teacher learns" in alone.left_out["feature"]
    fit(alone, 1)
    deeper = AdaptiveDistillation(task, config, generator(), {"deeper": generator(2, 4, 2)}, None)
    assert deeper.left_out == {"channel": "it compares with the wider teacher, and there is none"}
    assert not objective(task).left_out


def test_the_original_alone_teaches_on_all_inputs(
    make_context: Callable[..., StageContext], pairs: Translation, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec("resnet_generator", {"features": 4, "depths": [1, 0, 0]}, (), (1, 3, 32, 32), (-1.0, 1.0))
    wider = CompanionNetwork(spec, build(spec))
    before = {name: value.clone() for name, value in wider.network.state_dict().items()}
    context = replace(make_context(spec), task=pairs, teacher=build(spec).eval(), teachers={"wider": wider})
    output = distill_adaptively(AdaptiveDistillConfig.model_validate(ALONE), context)
    assert output.details["teacher_weights"] == {"original": 1.0}
    assert not output.fallbacks
    alone = AdaptiveDistillation(pairs, AdaptiveDistillConfig.model_validate(ALONE), context.model, {}, context.teacher)
    with monkeypatch.context() as patched:
        patched.setattr(pairs, "unlabelled_batch", lambda count, side, _generator: (torch.full((count, 3, side, side), 0.25),))
        fit(alone, 1)
    labelled, others = alone.inputs[0][:2], alone.inputs[0][2:]
    assert bool((others == 0.25).all())
    assert not bool((labelled == 0.25).all())
    assert all(torch.equal(value, before[name]) for name, value in output.teachers["wider"].network.state_dict().items())


def test_what_rests_beside_an_original_alone_may_be_written_out() -> None:
    config = AdaptiveDistillConfig.model_validate({**ALONE, "truth": 0.0, "feature": 0.0})
    assert AdaptiveDistillConfig.model_validate(config.model_dump()) == config
    assert TeacherQuality(1, "quality").weights() == [1.0]


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"feature": 0.5, "teachers_every": 4}, "feature and teachers_every would do nothing; remove it, or set original: true"),
        ({"shared_blocks": 0}, "shared_blocks would do nothing"),
        ({"output": 0.0, "ssim": 0.0}, "original is alone, and output and ssim are 0"),
        ({"output": 0.0, "ssim": 0.0, "feature": 0.0}, "original is alone, and output and ssim are 0"),
    ],
)
def test_an_original_alone_takes_nothing_of_learning_teachers(more: dict[str, object], refused: str) -> None:
    with pytest.raises(ValidationError, match=refused):
        AdaptiveDistillConfig.model_validate({**ALONE, **more})


def test_adaptive_distillation_that_would_teach_nothing_says_so(make_context: Callable[..., StageContext], pairs: Translation) -> None:
    spec = ModelSpec("resnet_generator", {"features": 4, "depths": [1, 0, 0]}, (), (1, 3, 32, 32), (-1.0, 1.0))
    context = replace(make_context(spec), task=pairs, teacher=build(spec).eval())
    with pytest.raises(
        PlanError, match="has no teacher, because the search before it found neither a wider nor a deeper network; set original: true"
    ):
        distill_adaptively(AdaptiveDistillConfig.model_validate(SMALL), context)
    config = AdaptiveDistillConfig.model_validate({**SMALL, "original": True, "output": 0.0, "ssim": 0.0})
    with pytest.raises(PlanError, match=r"output and ssim are 0, and gram and feature need .* nothing would be learned\. Set output or ssim"):
        distill_adaptively(config, context)
    output = distill_adaptively(config.model_copy(update={"output": 1.0, "ssim": 0.0}), context)
    assert [fallback.what for fallback in output.fallbacks] == ["term adversarial", "term feature", "term channel"]


def test_statistics_are_gathered_without_dropout() -> None:
    torch.manual_seed(0)
    dropped, plain = (build(ModelSpec("unet_generator", {"features": 4, "downs": 5, "dropout": dropout})) for dropout in (True, False))
    plain.load_state_dict(dropped.state_dict())
    batches = [torch.rand(2, 3, 32, 32) for _ in range(2)]
    for network in (dropped, plain):
        gather_statistics(network, [(one,) for one in batches])
        assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in dropped.state_dict().items())
