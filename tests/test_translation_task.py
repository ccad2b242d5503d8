"""Translation as a task: labelled fraction, validation, batches, the unpaired mode, user folders, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mcompress.compress.tasks.photographs import Photo, PhotoSet
from mcompress.compress.tasks.translation import crops, embedded
from mcompress.compress.tasks.translation.pairs import Pair, split
from mcompress.compress.tasks.translation.scenes import scene
from mcompress.compress.tasks.translation.task import Translation
from mcompress.compress.tasks.translation.unpaired import UnpairedTranslation
from mcompress.errors import PlanError
from mcompress.targets.schema import DataConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int, height: int = 48, width: int = 64) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=generator(seed), dtype=torch.uint8)


def made(count: int, height: int = 48, width: int = 64) -> tuple[Pair, ...]:
    """Pairs whose target is the negative of the input."""
    inputs = [picture(seed, height, width) for seed in range(count)]
    return tuple(Pair(f"pair {number}", image, 255 - image) for number, image in enumerate(inputs))


def photos(first: int, count: int) -> PhotoSet:
    return PhotoSet(tuple(Photo(f"photo {seed}", picture(seed)) for seed in range(first, first + count)))


def write(folder: Path, name: str, pixels: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)


@pytest.mark.parametrize(("smaller", "larger"), [(0.1, 0.25), (0.25, 0.5), (0.5, 1.0), (0.07, 0.08)])
def test_what_is_labelled_at_a_smaller_fraction_is_labelled_at_a_larger_one(smaller: float, larger: float) -> None:
    pairs = made(40, 32, 32)
    few, many = split(pairs, smaller), split(pairs, larger)
    for pool, fraction in ((few, smaller), (many, larger)):
        labelled = {pair.name for pair in pool.labelled}
        validation = {pair.name for pair in pool.validation}
        unlabelled = {photo.name for photo in pool.unlabelled}
        count = math.ceil(fraction * 40 - 1e-9)
        assert len(labelled) + len(validation) == count
        assert len(validation) == math.ceil(count / 8)
        assert not labelled & validation
        assert labelled | validation | unlabelled == {pair.name for pair in pairs}
        assert len(unlabelled) == 40 - count
    assert {pair.name for pair in few.labelled} <= {pair.name for pair in many.labelled}
    assert {pair.name for pair in few.validation} <= {pair.name for pair in many.validation}


def test_what_is_labelled_follows_from_names_alone() -> None:
    pairs = made(20, 32, 32)
    assert [p.name for p in split(pairs, 0.3).labelled] == [p.name for p in split(pairs[::-1], 0.3).labelled]


@pytest.mark.parametrize(("count", "fraction", "left"), [(40, 0.02, "1 of 40"), (1, 1.0, "1 of 1"), (0, 1.0, "0 of 0"), (10, 0.1, "1 of 10")])
def test_a_fraction_that_leaves_too_few_pairs_is_refused(count: int, fraction: float, left: str) -> None:
    with pytest.raises(PlanError, match=rf"labelled_fraction is {fraction:g}, which leaves {left} pairs .* at least 2"):
        Translation(made(count, 32, 32), made(1), fraction)


def test_a_refusal_says_what_was_left_out() -> None:
    torn = "A/torn.png: cannot be read (truncated)"
    with pytest.raises(PlanError, match=r"leaves 1 of 2 pairs their target.*or more pairs\n  A/torn\.png: cannot be read"):
        Translation(made(2), made(1), 0.5, skipped=(torn,))
    with pytest.raises(PlanError, match=r"has 1 inputs.*Give more\n  A/torn\.png: cannot be read"):
        UnpairedTranslation(PhotoSet(photos(0, 1).photos, (torn,)), photos(20, 1), photos(40, 1))


def test_the_fraction_that_a_refusal_suggests_is_enough() -> None:
    with pytest.raises(PlanError, match=r"a fraction of at least 0\.026 ") as caught:
        split(made(40, 32, 32), 0.02)
    suggested = float(str(caught.value).split("a fraction of at least ")[1].split(" ")[0])
    assert len(split(made(40, 32, 32), suggested).labelled) == 1


def test_batches_hold_pairs_that_belong_together_and_none_of_validation() -> None:
    task = Translation(made(10), made(2), 0.5)
    (inputs,), truths = task.training_batch(16, 32, generator())
    assert inputs.shape == truths.shape == (16, 3, 32, 32)
    assert torch.allclose(inputs, -truths, atol=1e-6)
    assert -1 <= inputs.min() < -0.9 < 0.9 < inputs.max() <= 1
    (again,), _ = task.training_batch(16, 32, generator())
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, task.training_batch(16, 32, generator(1))[0][0])
    (validation,), truth = task.validation_batch()
    assert torch.equal(validation, task.validation_batch()[0][0])
    assert torch.allclose(validation, -truth, atol=1e-6)
    held_back = {pair.name for pair in task.pool.validation}
    assert not held_back & {pair.name for pair in task.pool.labelled}
    corners = {tuple(p.input[:, y, x].tolist()) for p in task.pool.validation for y in range(48) for x in range(64)}
    drawn = crops.to_bytes(task.unlabelled_batch(64, 8, generator())[0]).permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    assert sum(tuple(pixel) in corners for pixel in drawn) < 0.01 * len(drawn)


def test_unlabelled_batches_hold_labelled_and_unlabelled_inputs_alike() -> None:
    flat = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in range(10)]
    task = Translation(tuple(Pair(f"p{n}", image, image) for n, image in enumerate(flat)), made(1), 0.4, (Photo("more", flat[0] + 200),))
    seen = set(crops.to_bytes(task.unlabelled_batch(300, 16, generator())[0])[:, 0, 0, 0].tolist())
    expected = {int(pair.input[0, 0, 0]) for pair in task.pool.labelled} | {int(photo.pixels[0, 0, 0]) for photo in task.pool.unlabelled}
    assert seen == expected
    assert 200 in seen
    assert (task.labelled_pairs, task.unlabelled_images) == (4, 7)
    targets = set(crops.to_bytes(task.domain_batch(100, 16, generator()))[:, 0, 0, 0].tolist())
    assert targets == {int(pair.target[0, 0, 0]) for pair in task.pool.labelled}


def test_mirroring_is_alike_for_all_pictures_and_only_where_the_data_allow_it() -> None:
    image = torch.rand(64, 3, 4, 6)
    allowed, not_allowed = Translation(made(4), made(1)), Translation(made(4), made(1), mirrors=False)
    one, other = allowed.reorient((image, -image), generator())
    assert torch.equal(one, -other)
    changed = [not torch.equal(a, b) for a, b in zip(one, image, strict=True)]
    assert 10 < sum(changed) < 54
    assert all(torch.equal(a, b.flip(2)) for a, b, c in zip(one, image, changed, strict=True) if c)
    (same,) = not_allowed.reorient((image,), generator())
    assert torch.equal(same, image)


def test_pictures_too_small_for_a_crop_are_left_out_of_it() -> None:
    task = Translation((*made(4), Pair("small", picture(90, 32, 32), picture(91, 32, 32))), made(1))
    assert task.largest_crop() == 48
    assert task.training_batch(20, 48, generator())[0][0].shape == (20, 3, 48, 48)


def test_calibration_inputs_of_any_size_come_from_labelled_training_pairs_and_begin_alike() -> None:
    task = Translation(made(6), made(1))
    few = list(task.calibration_samples(2, (2, 3, 100, 150), 5))
    many = list(task.calibration_samples(5, (2, 3, 100, 150), 5))
    assert all(torch.equal(a.picture, b.picture) and a.name == b.name for a, b in zip(few, many, strict=False))
    assert all(sample.picture.shape == (2, 3, 100, 150) for sample in many)
    assert all(torch.allclose(sample.picture, -sample.truth, atol=1e-6) for sample in many)
    whole = crops.to_bytes(many[0].picture[0])
    assert torch.equal(whole[:, :48, 64:127], whole[:, :48, :63].flip(2))  # mirrored, the border once


def test_held_out_pictures_are_cut_to_multiples_of_four_and_the_metric_is_exact() -> None:
    task = Translation(made(4), made(2, 51, 66))
    assert task.held_out_sizes == {"pair 0": (48, 64), "pair 1": (48, 64)}
    sample = task.held_out()[1]
    assert sample.picture.shape == sample.truth.shape == (1, 3, 48, 64)
    assert sample.name == "pair 1"
    assert task.quality(sample.truth, sample.truth) == math.inf
    assert task.quality(sample.truth + 1e-4, sample.truth) == math.inf  # less than half a step of 8 bits
    shifted = crops.to_values(torch.full((3, 8, 8), 105, dtype=torch.uint8)[None])
    assert task.quality(shifted, crops.to_values(torch.full((1, 3, 8, 8), 100))) == pytest.approx(10 * math.log10(255**2 / 25))
    baseline = task.baseline(sample)
    assert baseline.shape == sample.truth.shape
    mean = torch.stack([pair.target.float().mean((1, 2)) for pair in task.pool.labelled]).mean(0) / 127.5 - 1
    assert torch.allclose(baseline[0, :, 3, 5], mean, atol=1e-5)


def test_the_digest_tells_data_and_labels_apart() -> None:
    digests = [
        Translation(made(10), made(1)).data_digest,
        Translation(made(10), made(1), 0.5).data_digest,
        Translation(made(10), made(2)).data_digest,
        Translation(made(10), made(1), 0.5, mirrors=False).data_digest,
        Translation(made(10), made(1), 0.5, photos(70, 1).photos).data_digest,
        UnpairedTranslation(photos(0, 4), photos(8, 2), photos(20, 1)).data_digest,
    ]
    assert len(set(digests)) == len(digests)
    assert Translation(made(10), made(1)).data_digest == digests[0]


class Negative(nn.Module):
    """A stand-in for an original, with dropout that must be off when it judges."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-1.0))
        self.dropout = nn.Dropout(0.9)

    def forward(self, image: Tensor) -> Tensor:
        return self.dropout(image * self.gain)


def test_unpaired_truths_are_what_the_original_makes() -> None:
    untaught = UnpairedTranslation(photos(0, 10), photos(20, 4), photos(40, 2))
    teacher = Negative().train()
    task = untaught.taught_by(teacher)
    for (inputs,), truths in [(s.inputs, s.truth) for s in (*task.held_out(), *task.calibration_samples(2, (1, 3, 72, 72), 0))] + [
        task.validation_batch()
    ]:
        assert torch.equal(inputs, -truths)
        assert not truths.requires_grad
    assert teacher.training
    assert task.data_digest == untaught.data_digest
    assert task.metric == "teacher_psnr_db"
    assert not task.paired
    with pytest.raises(PlanError, match="no original was given"):
        untaught.held_out()


def test_unpaired_batches_come_from_their_own_domain_and_truths_from_the_original_alone() -> None:
    low = PhotoSet(tuple(Photo(f"{n}", picture(n) // 4) for n in range(9)))
    high = PhotoSet(tuple(Photo(f"{n}", 255 - picture(n) // 4) for n in range(3)))
    task = UnpairedTranslation(low, high, low)
    assert task.unlabelled_batch(8, 40, generator())[0].max() < 0 < task.domain_batch(8, 40, generator()).min()
    assert len(task.validation) == 2
    assert task.unlabelled_images == 7
    assert not {photo.name for photo in task.validation} & {photo.name for photo in task.inputs}
    with pytest.raises(PlanError, match=r"data\.pairing is unpaired, so the truth is what the original makes of an input, and no original was given"):
        task.training_batch(1, 16, generator())
    (inputs,), truths = task.taught_by(Negative()).training_batch(4, 40, generator())
    assert torch.equal(inputs, task.unlabelled_batch(4, 40, generator())[0])
    assert torch.equal(truths, -inputs)


@pytest.mark.parametrize(("inputs", "targets"), [(1, 3), (0, 3), (3, 0)])
def test_too_few_unpaired_pictures_are_refused(inputs: int, targets: int) -> None:
    with pytest.raises(PlanError, match=rf"{inputs} inputs and {targets} pictures"):
        UnpairedTranslation(photos(0, inputs), photos(20, targets), photos(40, 1))


def test_a_users_folders_replace_the_embedded_pairs(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "pairs", f"{number}.png", torch.cat([picture(number), 255 - picture(number)], dim=2))
        write(tmp_path / "inputs", f"{number}.png", picture(50 + number))
    write(tmp_path / "inputs", "tiny.png", picture(0, 8, 8))
    write(tmp_path / "held" / "A", "x.png", picture(80))
    write(tmp_path / "held" / "B", "x.png", 255 - picture(80))
    data = DataConfig(training=tmp_path / "pairs", held_out=tmp_path / "held", unlabelled=tmp_path / "inputs", labelled_fraction=0.5)
    task = Translation.from_config(data)
    assert isinstance(task, Translation)
    assert (task.labelled_pairs, task.unlabelled_images) == (2, 6)
    assert [sample.name for sample in task.held_out()] == ["x"]
    assert torch.allclose(task.held_out()[0].picture, -task.held_out()[0].truth, atol=1e-6)
    assert task.skipped == ("tiny.png: 8x8 pixels, at least 32 are needed on each side",)
    assert task.mirrors
    assert task.held_out_sizes == {"x": (48, 64)}
    apart = Translation.from_config(
        DataConfig(training=tmp_path / "held", held_out=tmp_path / "inputs", unlabelled=tmp_path / "inputs", pairing="unpaired")
    )
    assert isinstance(apart, UnpairedTranslation)
    assert apart.unlabelled_images == 4
    assert len(apart.held_out_photos.photos) == 4
    assert set(apart.held_out_sizes.values()) == {(48, 64)}


def test_one_message_holds_the_problems_of_every_folder(tmp_path: Path) -> None:
    for place in ("training/A", "training/B", "held/A"):
        write(tmp_path / place, "x.png", torch.zeros(4, 40, 40, dtype=torch.uint8))
    write(tmp_path / "held" / "A", "alone.png", picture(1))
    (tmp_path / "held" / "B").mkdir()
    folders = {"training": tmp_path / "training", "held_out": tmp_path / "held", "unlabelled": tmp_path / "nowhere"}
    with pytest.raises(PlanError) as caught:
        Translation.from_config(DataConfig(**folders))
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["data.training"] * 2 + ["data.held_out"] * 2 + ["data.unlabelled"]
    with pytest.raises(PlanError) as caught:
        Translation.from_config(DataConfig(**folders, pairing="unpaired"))
    text = "\n".join(caught.value.problems)
    for expected in (
        "data.training: 'A/x.png' is RGBA",
        "data.training: 'B/x.png' is RGBA",
        "data.held_out: 'x.png' is RGBA",
        "nowhere' does not exist",
    ):
        assert expected in text


def test_pictures_that_are_too_small_for_a_crop_are_counted() -> None:
    small = picture(90, 32, 32)
    assert Translation((*made(9), Pair("small", small, small)), made(1), 1.0, (Photo("more", small),)).count_fitting(32) == (9, 9)
    paired = Translation(made(9), made(1), 1.0, (Photo("more", small),))
    assert (paired.count_fitting(32), paired.count_fitting(33)) == ((8, 8), (7, 8))
    apart = UnpairedTranslation(photos(0, 9), PhotoSet((Photo("small", small),)), photos(20, 1))
    assert (apart.count_fitting(32), apart.count_fitting(33)) == ((8, 8), (7, 8))


@pytest.fixture(scope="module")
def small_pool() -> embedded.EmbeddedPairs:
    return embedded.EmbeddedPairs(embedded.scene_pairs(1, 6, 48), embedded.scene_pairs(2, 2, 64), mirrors=False)


def test_embedded_scenes_are_exact_pairs_that_are_never_mirrored(monkeypatch: pytest.MonkeyPatch, small_pool: embedded.EmbeddedPairs) -> None:
    monkeypatch.setitem(embedded.EMBEDDED, "objects", lambda: small_pool)
    task = Translation.from_config(DataConfig())
    assert isinstance(task, Translation)
    assert not task.mirrors
    pair = small_pool.training[3]
    assert torch.equal(pair.target, torch.from_numpy(scene(1, 3, 48).shaded))
    assert not {pair.name for pair in small_pool.training} & {pair.name for pair in small_pool.held_out}
    apart = Translation.from_config(DataConfig(pairing="unpaired"))
    assert isinstance(apart, UnpairedTranslation)
    assert not {photo.name for photo in apart.given_inputs.photos} & {photo.name for photo in apart.targets.photos}
    assert len(apart.given_inputs.photos) + len(apart.targets.photos) == 6


def test_the_embedded_pools_are_as_large_as_their_constants_say() -> None:
    assert embedded.TRAINING_SCENES >= 64
    assert embedded.TRAINING_SEED != embedded.HELD_OUT_SEED
    pairs = embedded.photographs()
    assert len(pairs.training) >= 90
    assert {tuple(pair.target.shape) for pair in pairs.training} == {(3, embedded.TRAINING_SIZE, embedded.TRAINING_SIZE)}
    assert {tuple(pair.target.shape) for pair in pairs.held_out} == {(3, embedded.HELD_OUT_SIZE, embedded.HELD_OUT_SIZE)}
    assert len(pairs.held_out) == 4
    assert all(set(pair.input.unique().tolist()) <= {0, 255} for pair in pairs.training)
