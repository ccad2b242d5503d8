"""The three tasks of a text-to-image model on a tiny one of random weights: what they draw, judge and owe the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import tiny_pipeline
import torch

from mcompress.compress.models.diffusers_folder import read_diffusers_folder
from mcompress.compress.models.spec import Sampling
from mcompress.compress.tasks.task import Sample
from mcompress.compress.tasks.text_to_image import decoding
from mcompress.compress.tasks.text_to_image.captions import every_scene
from mcompress.compress.tasks.text_to_image.components import snr_db
from mcompress.compress.tasks.text_to_image.data import Captioned, DrawnScenes, ResizedScenes
from mcompress.compress.tasks.text_to_image.decoding import Decoding
from mcompress.compress.tasks.text_to_image.gallery import Gallery, Painters, psnr_db
from mcompress.compress.tasks.text_to_image.judge import embedded_judge
from mcompress.compress.tasks.text_to_image.likeness import AttributeAccuracy, LikenessToOriginal, PictureQuality
from mcompress.compress.tasks.text_to_image.loading import original_of
from mcompress.compress.tasks.text_to_image.original import Original
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.compress.tasks.text_to_image.text_encoding import TextEncoding
from mcompress.errors import ParityError, PlanError

SAMPLING = Sampling("epsilon", 3, 4.0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline.pipeline().save_pretrained(folder)
    return original_of(read_diffusers_folder(folder))


@dataclass(frozen=True)
class Own:
    """Pictures of 16 pixels with captions that the tiny tokenizer takes."""

    captions: tuple[str, ...]
    seed: int
    digest = "own"

    def pictures(self) -> Iterator[torch.Tensor]:
        yield torch.rand(len(self.captions), 3, 16, 16, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1


@pytest.fixture(scope="module")
def task(original: Original) -> TextToImage:
    return TextToImage(
        original, Own(("red", "a", "e", "red red", "b", "red a", "c", "d"), 1), Own(("red b", "a", "b b"), 2), LikenessToOriginal(), SAMPLING
    )


def test_snr_is_ten_decibels_for_a_tenth_of_the_power() -> None:
    truth = torch.tensor([3.0, -1.0])
    assert snr_db(truth * (1 + 0.1**0.5), truth) == pytest.approx(10.0, abs=1e-4)
    assert snr_db(truth, truth) == float("inf")


def linear_answers(calls: list[tuple[torch.Tensor, ...]]) -> Callable[..., torch.Tensor]:
    """A U-Net that notes what it is called with and predicts what it is given."""

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        calls.append(inputs)
        return inputs[0] * 0.5

    return run


def run_of(original: Original) -> Painters:
    """The original's own three networks."""
    return Painters(original.text_encoder.module, original.unet.module, original.decoder.module, SAMPLING)


class Enlarging(torch.nn.Module):
    """A text encoder one of whose states is as large as CLIP's largest."""

    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.inside(tokens).clone()
        states[:, 0, 0] = 33.0632
        return states


def test_states_as_large_as_those_of_clip_are_within_their_range(original: Original) -> None:
    """Stable Diffusion 1.5 gives 33.0632 for the start of every text; calibration refuses what is outside of the range."""
    large = replace(original, text_encoder=replace(original.text_encoder, module=Enlarging(original.text_encoder.module)))
    assert original.state_range == (-32.0, 32.0)
    assert large.state_range == (-50.0, 50.0)
    assert large.unet_inputs(large.latents)[2].value_range == TextEncoding(large, ("red",), ("a",)).output_range == (-50.0, 50.0)
    assert float(large.states(["red red"]).max()) < 50.0


def test_fewer_large_pictures_go_through_a_network_together(original: Original) -> None:
    """Of 512 x 512 pixels one, whose decoder takes 0.7 GB."""
    assert original.pictures_at_once * 16 * 16 <= 48 * 32 * 32
    assert replace(original, latents=(1, 4, 64, 64), enlarged=8).pictures_at_once == 1


# --- the U-Net ---


def test_a_batch_is_what_its_truth_says(task: TextToImage) -> None:
    """Taking the noise out again gives latents of the training pictures."""
    (given, timesteps, states), noise = task.training_batch(6, 8, torch.Generator().manual_seed(3))
    assert given.shape == noise.shape == (6, 4, 8, 8)
    assert states.shape == (6, tiny_pipeline.LENGTH, tiny_pipeline.WIDTH)
    assert timesteps.dtype == torch.float32
    alpha, sigma = task.original.schedule.at(timesteps.long())
    clean = (given - sigma * noise) / alpha
    known = task.encoded.latents
    apart = (clean[:, None] - known[None]).abs().amax((2, 3, 4))
    assert (apart.min(1).values < 1e-3 * known.abs().max() / alpha.flatten()).all()
    velocity = task.for_network(replace(task.embedded_teacher((1, 4, 8, 8))[0], sampling=Sampling("v_prediction", 2, 4.0)))
    (_, _, _), other = velocity.training_batch(6, 8, torch.Generator().manual_seed(3))
    torch.testing.assert_close(other, alpha * noise - sigma * clean, atol=1e-3, rtol=1e-3)


def test_guidance_one_calls_once_per_step_and_every_other_twice(task: TextToImage) -> None:
    sample = task.held_out()[0]
    spec = task.embedded_teacher((1, 4, 8, 8))[0]
    for guidance, expected in ((1.0, 3), (4.0, 6)):
        calls: list[tuple[torch.Tensor, ...]] = []
        picture = task.for_network(replace(spec, sampling=Sampling("epsilon", 3, guidance))).answer(linear_answers(calls), sample)
        assert len(calls) == expected
        assert picture.shape == (1, 3, 16, 16)
        assert picture.min() >= -1
        assert picture.max() <= 1
        assert torch.equal(calls[0][0], sample.inputs[0])
        assert float(calls[0][1]) == float(sample.inputs[1]) == 999.0
        assert torch.equal(calls[0][2], sample.inputs[2])
    assert torch.equal(calls[1][2], task.original.no_caption)


def test_a_task_for_a_network_draws_as_that_network_does_and_changes_nothing_else(task: TextToImage) -> None:
    spec = task.embedded_teacher((1, 4, 8, 8))[0]
    assert spec.sampling == SAMPLING
    other = task.for_network(replace(spec, sampling=Sampling("v_prediction", 2, 1.0)))
    assert other.sampling == Sampling("v_prediction", 2, 1.0)
    assert task.sampling == SAMPLING
    assert task.for_network(replace(spec, sampling=None)).sampling == SAMPLING
    assert other.data_digest == task.data_digest
    for one, same in zip(task.held_out(), other.held_out(), strict=True):
        assert torch.equal(one.truth, same.truth), "truths are the original's pictures, whichever network is judged by them"


def test_the_original_reaches_its_own_pictures_and_others_do_not(task: TextToImage) -> None:
    for sample in task.held_out():
        answer = task.answer(task.original.unet.module, sample)
        assert task.quality(answer, sample.truth) == float("inf")
        assert 0 < task.quality(task.baseline(sample), sample.truth) < 60
        assert task.quality(task.answer(linear_answers([]), sample), sample.truth) < 60


def test_held_out_names_are_names_of_files(original: Original) -> None:
    """Whatever the captions say, and however often."""
    told = Own(("", "red", "Red", "red!", "a/b", ""), 1)
    names = [sample.name for sample in TextToImage(original, told, told, LikenessToOriginal(), Sampling("epsilon", 1, 1.0)).held_out()]
    assert names == ["no-caption", "red", "Red.2", "red.3", "a-b", "no-caption.2"]


def test_calibration_has_every_eighth_sample_without_a_caption_and_stays_in_range(task: TextToImage) -> None:
    samples = list(task.calibration_samples(16, (1, 4, 8, 8), 5))
    for index, sample in enumerate(samples):
        for given, spec in zip(sample.inputs, task.input_specs((1, 4, 8, 8)), strict=True):
            low, high = spec.value_range
            assert given.shape == spec.shape
            if spec.name != "latents":  # an autoencoder of random weights makes latents of any size
                assert low <= given.min()
                assert given.max() <= high
        assert torch.equal(sample.inputs[2], task.original.no_caption) == (index % 8 == 7)
    again = list(task.calibration_samples(3, (1, 4, 8, 8), 5))
    assert all(torch.equal(one.inputs[0], other.inputs[0]) for one, other in zip(samples, again, strict=False))


def test_validation_is_not_trained_on(task: TextToImage) -> None:
    latents, states = task.diffusion().validation
    count = len(task.encoded.source.captions)
    assert len(latents) == len(states) == count // 2
    assert torch.equal(latents, task.encoded.latents[count - count // 2 :])
    drawn, _ = task.diffusion().training.drawn(64, torch.Generator().manual_seed(0))
    assert not any(torch.equal(one, other) for one in drawn for other in latents)
    (given, _, _), truth = task.validation_batch()
    assert torch.equal(given, task.validation_batch()[0][0])
    assert torch.equal(truth, task.validation_batch()[1])


def test_the_digest_changes_with_pictures_judge_and_original(task: TextToImage, original: Original) -> None:
    scenes = every_scene()
    training, held_out = (ResizedScenes(DrawnScenes(tuple(some), 1), (16, 16)) for some in (scenes[:4], scenes[4:6]))

    def digest(original: Original, one: Captioned, other: Captioned, judged: PictureQuality) -> str:
        return TextToImage(original, one, other, judged, SAMPLING).data_digest

    likeness, attributes = LikenessToOriginal(), AttributeAccuracy(embedded_judge())
    first = digest(original, training, held_out, likeness)
    assert digest(original, training, held_out, likeness) == first
    assert first not in {
        digest(original, held_out, held_out, likeness),
        digest(original, training, training, likeness),
        digest(original, training, held_out, attributes),
        digest(replace(original, digest="other"), training, held_out, likeness),
        digest(original, replace(training, size=(8, 8)), held_out, likeness),
        digest(original, replace(training, scenes=replace(training.scenes, seed=2)), held_out, likeness),
    }


# --- whole pictures ---


def test_the_gallery_draws_what_the_tasks_together_draw(task: TextToImage, original: Original) -> None:
    """From the noise of the gallery, step by step; several captions at once give the same as one by one."""
    gallery, painters = task.gallery(), run_of(original)
    drawn = gallery.draw(painters)
    assert drawn.shape == (3, 3, 16, 16)
    torch.testing.assert_close(gallery.draw(replace(painters, batch=2)), drawn, atol=1e-4, rtol=1e-4)
    for batch in (1, 2):
        some = gallery.draw(replace(painters, batch=batch), (0, 2))
        torch.testing.assert_close(some, drawn[[0, 2]], atol=1e-4, rtol=1e-4)
    for place, caption in enumerate(gallery.captions):
        noise = torch.randn(original.latents[1:], generator=torch.Generator().manual_seed(19 * 1_000_003 + place))
        sample = Sample(caption, (noise[None], torch.tensor([999.0]), original.states([caption])), drawn[[place]])
        torch.testing.assert_close(task.answer(original.unet.module, sample), drawn[[place]], atol=1e-5, rtol=1e-5)
    assert psnr_db(drawn, drawn).tolist() == [float("inf")] * 3
    assert psnr_db(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)).item() == pytest.approx(0.0)


def test_a_gallery_without_a_judge_says_what_it_cannot_say(task: TextToImage) -> None:
    gallery = task.gallery()
    assert gallery.judge(gallery.truths(), "x") == ()
    assert gallery.missing[0].startswith("attribute accuracy and distribution distance: the classifier that ships knows the embedded scenes alone")
    assert gallery.truths().shape == (3, 3, 16, 16)


def test_a_gallery_of_scenes_is_judged(original: Original) -> None:
    scenes = tuple(every_scene()[::40])
    gallery = Gallery(original, DrawnScenes(scenes, 2), embedded_judge())
    accuracy, whole, distance = gallery.judge(gallery.truths(), "truths")
    assert (accuracy.what, whole.what, distance.what) == ("attribute accuracy", "whole captions right", "scene distance")
    assert accuracy.value > 99
    assert whole.value <= accuracy.value
    assert gallery.judge(-gallery.truths(), "x")[0].value < 80
    assert gallery.missing == ()


def test_pictures_that_are_not_finite_are_refused(task: TextToImage, original: Original) -> None:
    painters = replace(run_of(original), decoder=lambda latents: torch.full((len(latents), 3, 16, 16), float("nan")))
    with pytest.raises(ParityError, match="NaN or infinite values in the pictures that were drawn"):
        task.gallery().draw(painters)


# --- the decoder and the text encoder ---


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as many latents as for a training."""
    monkeypatch.setattr(decoding, "LEARNT", 6)
    monkeypatch.setattr(decoding, "VALIDATED", 4)


@pytest.mark.usefixtures("few")
def test_the_decoder_learns_what_the_originals_decoder_makes_of_drawn_latents(original: Original) -> None:
    task = Decoding(original, ["red", "a"], ["red red"], Sampling("epsilon", 100, 1.0))
    assert task.sampling.steps == decoding.STEPS, "more steps change latents little"
    (latents,), pictures = task.training_batch(3, 8, torch.Generator().manual_seed(0))
    assert latents.shape == (3, 4, 8, 8)
    assert torch.equal(pictures, original.decoder.module(latents))
    low, high = task.input_specs((1, 4, 8, 8))[0].value_range
    for sample in (*task.held_out(), *task.calibration_samples(4, (1, 4, 8, 8), 1)):
        assert torch.equal(sample.truth, original.decoder.module(sample.picture))
        assert low <= sample.picture.min()
        assert sample.picture.max() <= high
        assert task.quality(sample.truth, sample.truth) == float("inf")
        assert task.call_quality(sample.truth, sample.truth) == 40.0
        assert task.baseline(sample).shape == sample.truth.shape == task.example()[1].shape
    (fixed,), _ = task.validation_batch()
    assert len(fixed) == 4
    assert not any(torch.equal(one, other) for one in fixed for other in latents)


def test_the_baseline_of_the_decoder_is_the_best_linear_map(original: Original) -> None:
    """With a decoder that is linear itself, it gives its means."""

    class Linear(torch.nn.Module):
        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return (0.01 * latents[:, :3] + 0.1).repeat_interleave(2, 2).repeat_interleave(2, 3)

    made = replace(original, decoder=replace(original.decoder, module=Linear()))
    task = Decoding(made, ["red"], ["a"], Sampling("epsilon", 1, 1.0))
    task.__dict__["_drawn"] = torch.randn(decoding.LEARNT + decoding.VALIDATED, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (sample,) = task.held_out()
    torch.testing.assert_close(task.baseline(sample), sample.truth, atol=1e-4, rtol=1e-4)


def test_the_text_encoder_is_judged_by_the_originals_states(original: Original) -> None:
    task = TextEncoding(original, ["red", "red", "a"], ["red a", "red a"])
    assert [sample.name for sample in task.held_out()] == ["caption-00"]
    samples = list(task.calibration_samples(4, (1, tiny_pipeline.LENGTH), 0))
    assert torch.equal(samples[0].inputs[0], original.tokens([""]))
    for sample in (*samples, *task.held_out()):
        assert torch.equal(sample.truth, original.text_encoder.module(sample.inputs[0]))
        low, high = task.input_range
        assert low <= sample.inputs[0].min()
        assert sample.inputs[0].max() <= high
    (held,) = task.held_out()
    assert task.quality(held.truth * 1.1, held.truth) == pytest.approx(20.0, abs=1e-3)
    assert task.call_quality(held.truth, held.truth) == 40.0
    assert task.baseline(held).shape == held.truth.shape == task.example()[1].shape
    assert task.shown(held.truth) is None


def test_digests_of_decoder_and_text_encoder_change_with_captions_sampling_and_original(original: Original) -> None:
    sampling = Sampling("epsilon", 2, 4.0)
    other = replace(original, digest="other")
    of_decoder = {
        Decoding(original, ["a"], ["b"], sampling).data_digest,
        Decoding(original, ["a"], ["c"], sampling).data_digest,
        Decoding(original, ["c"], ["b"], sampling).data_digest,
        Decoding(original, ["a", "b"], [], sampling).data_digest,
        Decoding(original, ["a"], ["b"], replace(sampling, guidance=5.0)).data_digest,
        Decoding(other, ["a"], ["b"], sampling).data_digest,
    }
    assert len(of_decoder) == 6
    of_text = {TextEncoding(one, some, held).data_digest for one in (original, other) for some, held in ((["a"], ["b"]), (["a", "b"], []))}
    assert len(of_text) == 4


def test_captions_that_are_too_long_are_refused(original: Original) -> None:
    assert original.token_counts(["", "red", "red red a"]) == [2, 3, 5]
    with pytest.raises(PlanError, match=r"the caption 'red.*' has 14 tokens; the text encoder takes 12, so make it shorter"):
        original.tokens(["a", "red " * 12])
