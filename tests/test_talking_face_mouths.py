"""Mouths that follow the sounds, faces that show exactly these mouths, and the measure of lips in a picture."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mcompress.compress.tasks.talking_face import face as faces
from mcompress.compress.tasks.talking_face.face import CANONICAL, MOVING, NEUTRAL_WIDTH, OPENINGS, WIDTHS, Look, lip_edges, paint, render
from mcompress.compress.tasks.talking_face.heads import random_look, random_poses
from mcompress.compress.tasks.talking_face.lips import BLURRED, measure_mouth, measure_mouths
from mcompress.compress.tasks.talking_face.mouths import SHAPES, frame_times, mouth_track, mouths_at
from mcompress.compress.tasks.talking_face.phonemes import BILABIALS, SOUNDS, Timed
from mcompress.compress.tasks.talking_face.portraits import DENSITY, FACES, LANDMARKS, MARGIN, MOUTH, SIDE, Portrait, portrait
from mcompress.compress.tasks.talking_face.speech import utterance
from mcompress.errors import PlanError

ALL_FACES = pytest.mark.parametrize("name", FACES)
SOME_MOUTHS = [(opening, width) for opening in (0.0, 0.04, 0.15, 0.33, 0.5) for width in (0.6, 0.8, 1.0, 1.25)]


def timed(*symbols: str, each_s: float = 0.2) -> tuple[Timed, ...]:
    return tuple(Timed(symbol, k * each_s, (k + 1) * each_s) for k, symbol in enumerate(symbols))


def at(phonemes: tuple[Timed, ...], *times_s: float) -> np.ndarray:
    return mouths_at(phonemes, np.array(times_s))


def canonical() -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres from `MOUTH`."""
    centres = np.arange(SIDE, dtype=np.float32) + 0.5
    return tuple(np.meshgrid(centres - MOUTH[0], centres - MOUTH[1]))  # type: ignore[return-value]


def test_every_sound_has_a_shape_that_can_be_drawn() -> None:
    assert SHAPES.keys() == SOUNDS.keys()
    for shape in SHAPES.values():
        for opening, width in ((shape.opening, shape.width), shape.glide or (0.1, 1.0)):
            assert OPENINGS[0] <= opening <= OPENINGS[1]
            assert WIDTHS[0] <= width <= WIDTHS[1]


@pytest.mark.parametrize("symbol", BILABIALS)
def test_lips_are_closed_as_long_as_a_bilabial_is_and_part_at_its_release(symbol: str) -> None:
    phonemes = timed("a", symbol, "a")
    shut, released = phonemes[1].closure_s
    assert (at(phonemes, *np.linspace(shut, released, 50))[:, 0] == 0).all()
    assert (at(phonemes, shut - 0.03, released + 0.03)[:, 0] > 0.005).all()
    assert (at(phonemes, 0.1, 0.5)[:, 0] > 0.35).all()


def test_shapes_are_open_spread_rounded_or_pressed_as_the_sounds_are() -> None:
    opening, width = at(timed("a", "i", "u", "f", "s", "o", "m", each_s=0.3), *(0.15 + 0.3 * k for k in range(7))).T
    a, i, u, f, s, _, m = opening
    assert a > 2.5 * i > 2.5 * u > f > m == 0
    assert s < 0.5 * a
    a, i, u, f, s, o, _ = width
    assert i > s > a > o > u
    assert u < 0.75


def test_movement_starts_before_its_sound_and_neighbours_draw_a_sound_towards_them() -> None:
    rest = timed("sil", "a", "sil", each_s=0.4)
    assert at(rest, 0.38)[0, 0] > 0.08
    assert at(rest, 0.2)[0, 0] < 0.01
    short = {vowel: at(timed(vowel, "k", vowel, each_s=0.08), 0.12)[0] for vowel in ("i", "u")}
    assert short["u"][1] < 0.85 < 1.05 < short["i"][1]


def test_tracks_are_smooth_and_stay_where_faces_can_be_drawn() -> None:
    for seed in range(12):
        said = utterance(seed, 3.0)
        track = mouth_track(said)
        assert track.shape == (75, 2)
        assert track[:, 0].min() >= OPENINGS[0]
        assert track[:, 0].max() <= OPENINGS[1]
        assert track[:, 1].min() >= WIDTHS[0]
        assert track[:, 1].max() <= WIDTHS[1]
        fine = mouths_at(said.phonemes, np.arange(0, 3, 0.001))
        assert np.abs(np.diff(fine, axis=0)).max() < 0.016  # per ms: a mouth opens in 30 ms at the fastest
        assert np.array_equal(mouths_at(said.phonemes, frame_times(3.0)), track)
        assert track[:, 0].max() > 0.2


def test_a_frame_shows_the_middle_of_its_time_and_one_that_is_cut_off_is_none() -> None:
    assert frame_times(0.2).tolist() == pytest.approx([0.02, 0.06, 0.1, 0.14, 0.18])
    assert len(frame_times(0.239)) == 5
    assert len(frame_times(4.0)) == 100


@ALL_FACES
def test_without_movement_of_the_head_nothing_outside_the_mouth_and_jaw_changes(name: str) -> None:
    (left, right), (top, bottom) = MOVING
    outside = np.ones((SIDE, SIDE), bool)
    outside[int(top) : int(bottom), int(left) : int(right)] = False
    whole = portrait(name).picture[MARGIN * DENSITY : (MARGIN + SIDE) * DENSITY, MARGIN * DENSITY : (MARGIN + SIDE) * DENSITY]
    photo = whole.reshape(SIDE, DENSITY, SIDE, DENSITY, 3).mean(axis=(1, 3)) * 255
    still = render(portrait(name), 0.0, 1.0)
    assert np.abs(still[outside] - photo[outside]).max() < 0.51
    for opening, width in SOME_MOUTHS:
        shown = render(portrait(name), opening, width)
        assert np.array_equal(shown[outside], still[outside])
        if (opening, width) != (0.0, 1.0):
            assert (shown != still).any()


@ALL_FACES
def test_the_face_is_torn_only_between_the_lips_and_folds_nowhere(name: str) -> None:
    x, y = canonical()
    x, y, step = x.astype(np.float64), y.astype(np.float64), 0.01

    def origins(opening: float, width: float, right: float, down: float) -> np.ndarray:
        edges = lip_edges(opening, width, x + right)
        return np.stack(faces._origins(portrait(name), opening, width, x + right, y + down, *edges))

    for opening, width in SOME_MOUTHS:
        here = origins(opening, width, 0, 0)
        across, along = ((origins(opening, width, *move) - here) / step for move in ((step, 0), (0, step)))
        upper, lower = lip_edges(opening, width, x)
        whole = ((y < upper - 0.1) | (y > lower + 0.1)) & (np.abs(np.abs(x) - width * NEUTRAL_WIDTH / 2) > 0.1)
        area = (across[0] * along[1] - across[1] * along[0])[whole]
        assert area.min() > 0
        assert area.max() < 4
        assert along[1][whole].min() > 0.3


@ALL_FACES
def test_the_edges_of_the_lips_come_from_the_edges_of_the_lips_in_the_photograph(name: str) -> None:
    real = portrait(name)
    for opening, width in SOME_MOUTHS:
        half = width * NEUTRAL_WIDTH / 2
        x = np.linspace(-half, half, 41, dtype=np.float32)
        upper, lower = lip_edges(opening, width, x)
        for y, table in ((upper - 1e-4, real.upper), (lower + 1e-4, real.lower)):
            source_x, source_y = faces._origins(real, opening, width, x, y.astype(np.float32), upper, lower)
            assert source_y == pytest.approx(np.interp(source_x, np.arange(-40, 40.25, 0.25), table), abs=0.03)
        assert source_x[[0, -1]] == pytest.approx([-real.half_width, real.half_width], abs=0.01)


@pytest.mark.parametrize(("opening", "width"), SOME_MOUTHS)
def test_the_gap_and_the_corners_in_the_picture_are_the_opening_and_the_width(opening: float, width: float) -> None:
    """Counted in pixels of a green face, independently of the measure that compares pictures."""
    green = Portrait("green", np.full((288, 288, 3), (0.0, 1.0, 0.0), np.float32), 15.0, np.zeros(321, np.float32), np.zeros(321, np.float32))
    x, y = np.meshgrid(np.linspace(-22, 22, 881, dtype=np.float32), np.linspace(-12, 18, 601, dtype=np.float32))  # 20 samples a pixel
    seen = paint(green, opening, width, x, y)
    not_green = seen[..., 0] > 0.04  # lips and shade have no red there
    if opening == 0:
        assert not not_green.any()
        return
    gap = not_green[:, 440].sum() / 20
    assert gap == pytest.approx(opening * NEUTRAL_WIDTH, abs=0.9)  # half a pixel of soft edge on each side
    if opening > 0.1:
        columns = np.nonzero(not_green.any(axis=0))[0]
        assert np.ptp(columns) / 20 == pytest.approx(width * NEUTRAL_WIDTH, abs=1.0)


def many_mouths(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], Tensor]:
    """Mouths (T, 2), poses and frames (T, 3, 96, 96) of a face: all openings and widths, each posed and lit in its own way."""
    generator = np.random.default_rng(7)
    truth = np.array([(opening, width) for opening in np.linspace(*OPENINGS, 12) for width in np.linspace(*WIDTHS, 7)])
    poses = np.concatenate([random_poses(generator, 1, 25) for _ in truth])
    shown = [render(portrait(name), o, w, pose, random_look(generator)).transpose(2, 0, 1) for (o, w), pose in zip(truth, poses, strict=True)]
    return truth, poses, torch.from_numpy(np.stack(shown))


@ALL_FACES
def test_lips_are_measured_to_a_hundredth_or_two_over_poses_and_looks(name: str) -> None:
    truth, poses, frames = many_mouths(name)
    found = measure_mouths(frames, poses, name)
    error = np.abs(found.mouths - truth)
    assert (error.mean(axis=0) < (0.005, 0.008)).all()
    assert (error.max(axis=0) < (0.015, 0.045)).all()
    assert found.explained.min() > 0.93
    noisy = frames.float() + 8 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    assert (np.abs(measure_mouths(noisy, poses, name).mouths - truth).mean(axis=0) < (0.006, 0.01)).all()


def test_blur_makes_mouths_read_too_narrow_by_what_reports_say() -> None:
    misread = []
    for name in FACES:
        truth, poses, frames = many_mouths(name)
        soft = torch.from_numpy(ndimage.gaussian_filter(frames.float().numpy(), (0, 0, BLURRED.sigma, BLURRED.sigma)))
        misread.append(measure_mouths(soft, poses, name).mouths - truth)
    assert np.abs(misread).mean(axis=(0, 1)) == pytest.approx((BLURRED.opening, BLURRED.width), rel=0.1)
    assert np.mean(misread, axis=(0, 1))[1] < -BLURRED.width / 2


@ALL_FACES
def test_the_measure_grows_with_opening_and_with_width(name: str) -> None:
    openings = [measure_mouth(render(portrait(name), opening, 0.95), CANONICAL, name)[0] for opening in np.linspace(*OPENINGS, 26)]
    assert all(other > one for one, other in pairwise(openings))
    widths = [measure_mouth(render(portrait(name), 0.12, width), CANONICAL, name)[1] for width in np.linspace(*WIDTHS, 27)]
    assert all(other > one for one, other in pairwise(widths))


@ALL_FACES
def test_a_blend_of_two_mouths_is_measured_between_them_and_no_mouth_explains_little(name: str) -> None:
    low, high = (render(portrait(name), opening, 1.0).astype(np.float32) for opening in (0.1, 0.22))
    for share in (0.3, 0.5, 0.7):
        blend = np.rint(low + (high - low) * share).astype(np.uint8)
        assert 0.1 < measure_mouth(blend, CANONICAL, name)[0] < 0.22
    noise = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    assert measure_mouths(noise, np.stack([CANONICAL] * 3), name).explained.max() < 0.3
    assert measure_mouths(torch.full((1, 3, SIDE, SIDE), 90), CANONICAL[None], name).explained.max() < 0.01


def test_a_look_changes_lightness_but_not_what_is_measured() -> None:
    real = portrait("astronaut")
    plain, dark = render(real, 0.2, 0.9), render(real, 0.2, 0.9, look=Look(gain=(0.5, 0.5, 0.5), slope=(0.3, -0.2)))
    assert dark.mean() < 0.6 * plain.mean()
    assert measure_mouth(dark, CANONICAL, "astronaut") == pytest.approx(measure_mouth(plain, CANONICAL, "astronaut"), abs=0.01)


@pytest.mark.parametrize("mouth", [(-0.01, 1.0), (0.6, 1.0), (0.2, 0.5), (0.2, 1.4)])
def test_a_mouth_that_cannot_be_drawn_is_refused(mouth: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"cannot be drawn; openings \(0\.0, 0\.5\) and widths \(0\.6, 1\.25\) can"):
        render(portrait("astronaut"), *mouth)


def test_landmarks_of_another_photograph_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LANDMARKS, "stranger", LANDMARKS["astronaut"].__class__(**{**vars(LANDMARKS["astronaut"]), "size": (512, 600)}))
    with pytest.raises(PlanError, match=r"data/astronaut\.png of skimage has 512x512 pixels, not 512x600"):
        portrait("stranger")
