"""Several widths on one set of weights: what is shared, who learns from whom, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mcompress.artifact import load_artifact, model_digest, save_output
from mcompress.compress.models.build import build
from mcompress.compress.models.space import cut
from mcompress.compress.models.spec import ModelSpec, PruningEdit
from mcompress.compress.objectives.slimmable import WIDEST, SlimmableTraining
from mcompress.compress.slim import slim
from mcompress.compress.stage import CompanionNetwork, StageContext, StageOutput
from mcompress.compress.tasks.translation.task import Translation
from mcompress.compress.train import step_generator
from mcompress.compress.widths import narrower_number, specs_of
from mcompress.errors import PlanError, TargetError
from mcompress.planning import plan
from mcompress.targets.load import load_target
from mcompress.targets.stages import SlimConfig, width_name

SHAPE = (1, 3, 16, 16)
RESNET = ModelSpec(
    "resnet_generator",
    {"widths": [8] * 8, "depths": [1, 0, 0], "convolutions": "separable", "normalization": "batch"},
    (),
    SHAPE,
    (-1.0, 1.0),
)
UNET = ModelSpec("unet_generator", {"features": 8, "downs": 3}, (), SHAPE, (-1.0, 1.0))
MFAGAN = ModelSpec("mfagan", {"channels": 8, "blocks": [[2, 8]]}, (), SHAPE)
GAME = {"ssim": 0.3, "feature": 0.1, "adversarial": 0.01, "discriminator_features": 4}
THREE = SlimConfig.model_validate({"widths": (1.0, 0.75, 0.5), "steps": 2, "batch_size": 2, "crop_size": 16, "learning_rate": 1e-2, **GAME})
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def context(make_context: Callable[..., StageContext], pairs: Translation) -> Callable[[ModelSpec], StageContext]:
    def make(spec: ModelSpec) -> StageContext:
        torch.manual_seed(1)
        original = ModelSpec("resnet_generator", {"features": 4, "depths": [1, 0, 0]}, (), SHAPE, (-1.0, 1.0))
        made = make_context(spec)
        return made if spec is MFAGAN else replace(made, task=pairs, teacher=build(original).eval(), teacher_spec=original)

    return make


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ([1.0], "must hold 2 or 3 shares"),
        ([1.0, 0.75, 0.5, 0.25], "must hold 2 or 3 shares"),
        ([0.75, 0.5], "starts with 0.75; the first must be 1.0"),
        ([1.0, 0.5, 0.75], "0.75 behind 0.5; each must be narrower"),
        ([1.0, 0.5, 0.5], "0.5 behind 0.5; each must be narrower"),
        ([1.0, 0.5, 0.499], "by 0.01 or more"),
        ([1.5, 1.0], "less than or equal to 1"),
        ([1.0, 0.0], "greater than or equal to 0.1"),
    ],
)
def test_widths_are_two_or_three_shares_from_wide_to_narrow(widths: list[float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SlimConfig.model_validate({"stage": "slim", "widths": widths})


def test_a_base_number_goes_to_the_nearest_even_number_that_is_not_too_small_or_too_large() -> None:
    assert [narrower_number(base, 0.5) for base in (64, 24, 10, 8, 6, 3)] == [32, 12, 6, 4, 4, 3]
    assert [narrower_number(20, share) for share in (1.0, 0.75, 0.33, 0.1)] == [20, 16, 6, 4]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (RESNET, {**RESNET.args, "widths": [4] * 8}),
        (ModelSpec("resnet_generator", {"widths": "32_24_16_16_12_8"}), {"widths": [16, 12, 8, 8, 6, 4]}),
        (ModelSpec("resnet_generator"), {"features": 32}),
        (UNET, {"features": 4, "downs": 3}),
        (MFAGAN, {"channels": 4, "blocks": [[2, 4]]}),
        (ModelSpec("mfagan"), {"channels": 16, "blocks": [[3, 16]] * 4}),
    ],
)
def test_the_narrower_network_has_a_share_of_every_width(spec: ModelSpec, wanted: dict[str, object]) -> None:
    found = specs_of(spec, (1.0, 0.5))
    assert found[1.0] is spec
    assert found[0.5] == replace(spec, args=wanted)
    build(found[0.5])


@pytest.mark.parametrize(
    ("spec", "widths", "said"),
    [
        (ModelSpec("rrdb"), (1.0, 0.5), "'rrdb' has no narrower form .*networks that have: resnet_generator, unet_generator, mfagan.*model.student"),
        (ModelSpec("my_networks:build"), (1.0, 0.5), "'my_networks:build' has no narrower form"),
        (RESNET.with_edits((PruningEdit("head.conv", is_output=True, channels=(0,)),)), (1.0, 0.5), "was pruned.*remove the prune stage"),
        (RESNET, (1.0, 0.95), "widths 1 and 0.95 give the same network.*further apart"),
        (RESNET, (1.0, 0.5, 0.4), "widths 0.5 and 0.4 give the same network"),
    ],
)
def test_networks_that_cannot_be_sliced_are_refused(spec: ModelSpec, widths: tuple[float, ...], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        specs_of(spec, widths)


@pytest.mark.parametrize("spec", [RESNET, UNET, MFAGAN], ids=lambda spec: spec.network)
def test_after_training_a_narrower_network_is_a_slice_of_the_widest_but_for_its_statistics(
    spec: ModelSpec, context: Callable[[ModelSpec], StageContext]
) -> None:
    made = context(spec)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    config = THREE.model_copy(update={"widths": (1.0, 0.5)})
    output = slim(config, made)
    wide, (companion,) = output.model.state_dict(), output.narrower.values()
    narrow, expected = companion.network.state_dict(), cut(wide, companion.network)
    assert list(output.narrower) == ["w050"]
    assert not output.model.training
    assert not companion.network.training
    assert any(not torch.equal(before[name], value) for name, value in wide.items() if not name.endswith(STATISTICS))
    for name, value in narrow.items():
        if not name.endswith(STATISTICS):
            assert torch.equal(value, expected[name]), name
    if spec is RESNET:  # nothing is joined in it, so slices are leading blocks
        for name, value in narrow.items():
            if not name.endswith(STATISTICS):
                assert torch.equal(value, wide[name][tuple(slice(size) for size in value.shape)]), name
    means = [name for name in narrow if name.endswith("running_mean")]
    assert bool(means) == (spec is not MFAGAN)
    assert all(not torch.equal(narrow[name], expected[name]) for name in means[1:])
    rows = output.details["widths"]
    assert isinstance(rows, list)
    assert [row["name"] for row in rows if isinstance(row, dict)] == ["w100", "w050"]


def test_macs_of_every_width_are_counted_exactly(context: Callable[[ModelSpec], StageContext]) -> None:
    """Head 7x7 and two 3x3 of stride 2, a separable block at a quarter, two 3x3 up, 7x7: counted by hand for 8 and for 4 channels."""

    def macs(width: int) -> int:
        full, half, quarter = (16 * 16, 8 * 8, 4 * 4)
        head, tail = 49 * 3 * width * full, 49 * width * 3 * full
        downs = 9 * width * 2 * width * half + 9 * 2 * width * 4 * width * quarter
        # Depthwise convolutions take the reflected border: 6x6 in, 4x4 out.
        block = 2 * (9 * 4 * width + 4 * width * 4 * width) * quarter
        # A transposed convolution multiplies every input value with every weight.
        ups = 9 * 4 * width * 2 * width * quarter + 9 * 2 * width * width * half
        return head + tail + downs + block + ups

    details = slim(THREE.model_copy(update={"widths": (1.0, 0.5), "steps": 1}), context(RESNET)).details
    rows = details["widths"]
    assert isinstance(rows, list)
    assert [row["macs"] for row in rows if isinstance(row, dict)] == [macs(8), macs(4)]


def training(pairs: Translation, config: SlimConfig, original: nn.Module | None = None) -> SlimmableTraining:
    torch.manual_seed(0)
    specs = {width_name(share): spec for share, spec in specs_of(RESNET, config.widths).items() if share < 1.0}
    made = SlimmableTraining(pairs, config, build(RESNET).train(), specs, original)
    made.begin_step(step_generator(0, 0), torch.device("cpu"))
    return made


def test_each_width_learns_from_the_next_wider_and_no_gradient_reaches_that(pairs: Translation) -> None:
    """What only a wider network has gets no gradient from a narrower one's terms, although these compare with the wider one's picture."""
    objective = training(pairs, THREE)
    terms = objective.terms("network")
    parameters = dict(objective.network.named_parameters())
    for name, shape in (*objective.shapes.items(), (WIDEST, objective.network)):
        own = [value for term, value in terms.items() if term.endswith(f"of {name}") or (name == WIDEST and term == "truth")]
        assert len(own) == (2 if name == WIDEST else 4)  # output, ssim, feature, adversarial
        gradients = torch.autograd.grad(torch.stack(own).sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
        sizes = {parameter: value.shape for parameter, value in shape.named_parameters()}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None, parameter
            inside = torch.zeros_like(gradient)
            inside[tuple(slice(size) for size in sizes[parameter])] = 1.0
            assert float((gradient * (1.0 - inside)).abs().max()) == 0.0, (name, parameter)
        assert float(gradients[0].abs().max()) > 0.0


def test_a_width_is_compared_with_the_next_wider_and_not_with_the_widest(pairs: Translation) -> None:
    config = THREE.model_copy(update={"ssim": 0.0, "feature": 0.0, "adversarial": 0.0, "output": 2.0})
    objective = training(pairs, config)
    terms = objective.terms("network")
    inputs, weights = objective.inputs, dict(objective.network.state_dict())
    pictures = [objective.network(*inputs)]
    for share in config.widths[1:]:
        network = build(specs_of(RESNET, config.widths)[share]).train()
        network.load_state_dict(cut(weights, network))
        pictures.append(network(*inputs))
    wanted = {
        "output of w075": 2.0 * (pictures[1] - pictures[0]).abs().mean(),
        "output of w050": 2.0 * (pictures[2] - pictures[1]).abs().mean(),
        "truth": (pictures[0][:2] - objective.batch.truth).abs().mean(),
    }
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value)
    assert len(objective.inputs[0]) == 4  # two labelled, two of any kind


def test_the_original_teaches_the_widest_where_it_is_wanted(pairs: Translation) -> None:
    class Black(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.full_like(image, -1.0)

    objective = training(pairs, THREE, Black())
    terms = objective.terms("network")
    wanted = (objective.network(objective.inputs[0])[:2] + 1.0).abs().mean()
    torch.testing.assert_close(terms["original"], wanted)
    assert objective.frozen().keys() == {"original"}
    assert "original" not in training(pairs, THREE.model_copy(update={"output": 0.0}), Black()).terms("network")


def test_discriminators_are_one_per_width_and_share_their_first_blocks(pairs: Translation) -> None:
    objective = training(pairs, THREE.model_copy(update={"shared_blocks": 1}))
    assert list(objective.discriminator.own) == [WIDEST, "w075", "w050"]
    assert len(objective.discriminator.shared) == 1
    objective.terms("network")
    assert list(objective.terms("discriminator")) == ["gan of widest", "gan of w075", "gan of w050"]
    without = training(pairs, THREE.model_copy(update={"adversarial": 0.0, "feature": 0.0}))
    assert without.players().keys() == {"network"}


def test_narrower_networks_are_kept_as_artifacts_of_their_own(tmp_path: Path, context: Callable[[ModelSpec], StageContext]) -> None:
    output = slim(THREE.model_copy(update={"steps": 1}), context(RESNET))
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    save_output(output, tmp_path / "with")
    save_output(replace(output, narrower={}), tmp_path / "without")
    alone = model_digest(output.spec, output.model.state_dict())
    assert load_artifact(tmp_path / "without").digest == alone  # as without a slim stage
    artifact = load_artifact(tmp_path / "with")
    assert artifact.digest != alone
    found = artifact.narrower()
    assert list(found) == ["w075", "w050"]
    for name, one in found.items():
        made = output.narrower[name]
        assert one.spec == made.spec
        assert one.digest == model_digest(made.spec, made.network.state_dict())
        assert all(torch.equal(value, made.network.state_dict()[key]) for key, value in one.network().state_dict().items())


def test_the_digest_depends_on_the_narrower_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    digests = set()
    model = build(RESNET)
    for seed in (0, 1):
        torch.manual_seed(seed)
        narrow = specs_of(RESNET, (1.0, 0.5))[0.5]
        (tmp_path / str(seed)).mkdir()
        save_output(StageOutput(model, RESNET, narrower={"w050": CompanionNetwork(narrow, build(narrow))}), tmp_path / str(seed))
        digests.add(load_artifact(tmp_path / str(seed)).digest)
    assert len(digests) == 2


TARGET = """\
name: slimmed
device: snapdragon865
model:
  task: translation
  student: {network: resnet_generator, args: {features: 8, depths: [1, 1, 1]}}
  input_shape: [1, 3, 32, 32]
stages:
  - {stage: slim, steps: 1, batch_size: 1, crop_size: 16}
  - {stage: quantize, samples: 2}
exports: [{backend: onnx}]
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ['stages=[{"stage": "quantize"}, {"stage": "slim"}]'],
            "'slim' stands behind 'quantize'; the order is search, then prune and distill",
        ),
        (['stages=[{"stage": "slim"}, {"stage": "distill"}]'], "'distill' stands behind 'slim'"),
        (['stages=[{"stage": "slim"}, {"stage": "slim"}]'], "'slim' stands 2 times"),
        (['stages=[{"stage": "prune", "ratio": 0.1}, {"stage": "slim"}]'], "'prune' and 'slim' exclude each other.*remove one of the two"),
        (['model.student={"network": "unet_generator", "args": {"features": 4, "downs": 3}}'], "widths 1 and 0.5 give the same network"),
        (["data.pairing=unpaired"], "learns from labelled pairs, and data.pairing is unpaired"),
        (["stages[0].widths=[1.0, 0.5, 0.25, 0.2]"], r"stages\[0\].*must hold 2 or 3"),
        (['model={"task": "super_resolution", "input_shape": [1, 3, 32, 32]}'], "'rrdb' has no narrower form"),
    ],
)
def test_a_target_that_cannot_be_slimmed_is_refused_before_anything_runs(tmp_path: Path, changes: list[str], said: str) -> None:
    path = tmp_path / "slimmed.yaml"
    path.write_text(TARGET)
    with pytest.raises((PlanError, TargetError), match=said):
        plan(load_target(path, changes))
