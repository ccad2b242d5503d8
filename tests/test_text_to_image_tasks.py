"""The three tasks of a text-to-image model on a tiny one of random weights: what they draw, judge and owe the pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_pipeline
import torch

from mcompress.compress.models.diffusers_folder import read_diffusers_folder
from mcompress.compress.models.spec import ModelSpec, Sampling
from mcompress.compress.tasks.text_to_image.components import snr_db
from mcompress.compress.tasks.text_to_image.data import DrawnScenes
from mcompress.compress.tasks.text_to_image.captions import every_scene
from mcompress.compress.tasks.text_to_image.decoding import Decoding
from mcompress.compress.tasks.text_to_image.gallery import Gallery, Painters, psnr_db
from mcompress.compress.tasks.text_to_image.judge import embedded_judge
from mcompress.compress.tasks.text_to_image.likeness import AttributeAccuracy, LikenessToOriginal
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


@pytest.fixture(scope="module")
def task(original: Original) -> TextToImage:
    scenes = tuple(every_scene()[::60])
    return TextToImage(original, DrawnScenes(scenes, 1), DrawnScenes(scenes[:3], 2), LikenessToOriginal(), SAMPLING)


def test_snr_is_ten_decibels_for_a_tenth_of_the_power() -> None:
    truth = torch.tensor([3.0, -1.0])
    assert snr_db(truth * (1 + 0.1**0.5), truth) == pytest.approx(10.0, abs=1e-4)
    assert snr_db(truth, truth) == float("inf")
