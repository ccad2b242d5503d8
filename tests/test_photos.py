"""Photographs: the embedded split, folders, degradation, augmentation, the metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mcompress.compress.tasks import photographs
from mcompress.compress.tasks.super_resolution import photos
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.errors import PlanError
from mcompress.targets.schema import DataConfig


def save(path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def test_no_held_out_photo_is_trained_on() -> None:
    training = photographs.embedded_photos(photographs.TRAINING_PHOTOS)
    held_out = photographs.embedded_photos(photographs.HELD_OUT_PHOTOS)
    assert len(held_out.photos) >= 4
    assert not {p.name for p in training.photos} & {p.name for p in held_out.photos}
    assert not {p.pixels.numpy().tobytes() for p in training.photos} & {p.pixels.numpy().tobytes() for p in held_out.photos}


def test_held_out_holds_saturated_colours() -> None:
    saturations = []
    for photo in photographs.embedded_photos(photographs.HELD_OUT_PHOTOS).photos:
        pixels = photo.pixels.float()
        saturations.append(float((pixels.amax(0) - pixels.amin(0)).mean() / 255))
    assert max(saturations) > 0.3


def test_folder_reads_png_and_jpeg_and_names_what_it_skips(tmp_path) -> None:
    save(tmp_path / "a" / "one.png", 140, 150)
    save(tmp_path / "two.JPG", 130, 128)
    save(tmp_path / "a_one.png", 140, 150)
    save(tmp_path / "small.png", 40, 200)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    (tmp_path / "notes.txt").write_text("no image")
    found = photographs.folder_photos(tmp_path, 128)
    assert [p.name for p in found.photos] == ["a_one.png", "two.JPG"]
    assert any(s.startswith("broken.png: cannot be read") for s in found.skipped)
    assert "a_one.png: pictures are filed by name, and 'a/one.png' has the same one, 'a_one.png'; rename it" in found.skipped
    assert "small.png: 200x40 pixels, at least 128 are needed on each side" in found.skipped


@pytest.mark.parametrize("make", ["missing", "empty"])
def test_a_folder_without_images_is_an_error(tmp_path, make: str) -> None:
    folder = tmp_path / "data"
    if make == "empty":
        folder.mkdir()
    with pytest.raises(PlanError, match=r"does not exist|holds no usable image"):
        photographs.folder_photos(folder, 128)


def test_degrade_halves_twice_and_rounds_to_8_bits() -> None:
    high = torch.rand(2, 3, 64, 48)
    low = photos.degrade(high)
    assert low.shape == (2, 3, 16, 12)
    assert torch.allclose(low * 255, (low * 255).round(), atol=1e-4)
    flat = torch.full((1, 3, 32, 32), 100 / 255)
    assert torch.equal(photos.degrade(flat), torch.full((1, 3, 8, 8), 100 / 255))


def test_degrade_is_antialiased() -> None:
    """One-pixel stripes vanish to grey; plain subsampling would keep one of the two colours."""
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    assert (photos.degrade(stripes)[..., 4:-4] - 0.5).abs().max() < 0.01


def test_a_batch_is_a_function_of_its_generator(task) -> None:
    first, again, other = (task.training_batch(3, 16, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    ((low,), high), ((low_again,), high_again), ((other_low,), _) = first, again, other
    assert torch.equal(low, low_again)
    assert torch.equal(high, high_again)
    assert not torch.equal(low, other_low)
    assert low.shape == (3, 3, 16, 16)
    assert high.shape == (3, 3, 64, 64)
    assert torch.equal(low, photos.degrade(high))


def test_sizes_of_held_out_inputs_are_known_without_making_them() -> None:
    made = SuperResolution(photographs.PhotoSet(()), photographs.embedded_photos(photographs.HELD_OUT_PHOTOS))
    assert made.held_out_sizes == {sample.name: tuple(sample.picture.shape[2:]) for sample in made.held_out()}


def test_a_photograph_smaller_than_a_crop_is_counted() -> None:
    sides = photographs.PhotoSet(tuple(photographs.Photo(str(side), torch.zeros(3, side, 200, dtype=torch.uint8)) for side in (128, 159, 160)))
    task = SuperResolution(sides, sides)
    assert (task.count_fitting(32), task.count_fitting(40)) == ((3, 3), (1, 3))


def test_psnr_of_a_known_error() -> None:
    truth = torch.zeros(1, 3, 8, 8)
    task = SuperResolution(photographs.PhotoSet(()), photographs.PhotoSet(()))
    assert task.quality(truth + 51 / 255, truth) == pytest.approx(-20 * math.log10(0.2), abs=1e-4)


def test_calibration_samples_fill_any_shape(task) -> None:
    samples = list(task.calibration_samples(3, (2, 3, 200, 170), 0))
    assert [tuple(one.picture.shape) for one in samples] == [(2, 3, 200, 170)] * 3
    assert [tuple(one.truth.shape) for one in samples] == [(2, 3, 800, 680)] * 3
    assert all(torch.equal(photos.degrade(one.truth), one.picture) for one in samples)
    assert len({one.name for one in samples}) == 3


def test_the_first_calibration_samples_are_the_same_for_any_count(task) -> None:
    few, many = (list(task.calibration_samples(count, (1, 3, 16, 16), 5)) for count in (2, 4))
    assert all(torch.equal(a.picture, b.picture) and a.name == b.name for a, b in zip(few, many, strict=False))


def test_user_folders_replace_the_embedded_photos(tmp_path) -> None:
    save(tmp_path / "train" / "a.png", 200, 200)
    save(tmp_path / "test" / "b.png", 60, 44)
    task = SuperResolution.from_config(DataConfig(training=tmp_path / "train", held_out=tmp_path / "test"))
    (sample,) = task.held_out()
    assert tuple(sample.picture.shape) == (1, 3, 15, 11)
    other = SuperResolution.from_config(DataConfig())
    assert task.data_digest != other.data_digest
