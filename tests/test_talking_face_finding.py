"""Finding the face in pictures, following it through a clip, cutting it out, and what is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mcompress.compress.tasks.photographs import embedded_photos
from mcompress.compress.tasks.talking_face import following
from mcompress.compress.tasks.talking_face.finding import Box, crop_faces, find_face, find_faces
from mcompress.compress.tasks.talking_face.following import follow_face
from mcompress.errors import PlanError, UsageError

PHOTOGRAPHS = {"astronaut": ("skimage", "data/astronaut.png"), "officer": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")}
MOUTHS = {"astronaut": (223.8, 145.0, 43.6), "officer": (267.5, 280.3, 92.0)}
"""Middle of the mouth (x, y), and from between the pupils to it, in pixels, as marked by eye."""
TRUE = Box(163.5, 65.4, 118.6)
"""Of the astronaut as found; other tests only compare with it."""


@cache
def photograph(name: str) -> Tensor:
    return embedded_photos([PHOTOGRAPHS[name]]).photos[0].pixels


def scaled(picture: Tensor, factor: float) -> Tensor:
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    size = (round(image.width * factor), round(image.height * factor))
    return torch.from_numpy(np.array(image.resize(size, Image.Resampling.LANCZOS))).permute(2, 0, 1)


def differ(one: Box, other: Box) -> float:
    """How far apart their middles are, and their sides, whichever is more, in sides."""
    apart = [one.x + one.side / 2 - other.x - other.side / 2, one.y + one.side / 2 - other.y - other.side / 2, one.side - other.side]
    return max(abs(value) for value in apart) / other.side


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_box_holds_the_face_with_the_mouth_at_two_thirds_of_the_height(name: str) -> None:
    box = find_face(photograph(name), name)
    x, y, eyes = MOUTHS[name]
    assert (x - box.x) / box.side == pytest.approx(0.5, abs=0.04)
    assert (y - box.y) / box.side == pytest.approx(0.677, abs=0.04)
    assert box.side / eyes == pytest.approx(2.8, rel=0.06)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_scaled_picture_gives_the_scaled_box(factor: float) -> None:
    box = find_face(scaled(photograph("astronaut"), factor), "astronaut")
    assert differ(Box(box.x / factor, box.y / factor, box.side / factor), TRUE) < 0.02


@pytest.mark.parametrize(("right", "down"), [(0, 40), (90, 21)])
def test_a_shifted_picture_gives_the_shifted_box(right: int, down: int) -> None:
    box = find_face(photograph("astronaut")[:, down : down + 400, right : right + 400], "astronaut")
    assert differ(Box(box.x + right, box.y + down, box.side), TRUE) < 0.04


def test_mirrored_and_dark_pictures_give_the_same_box() -> None:
    picture = photograph("astronaut")
    box = find_face(picture.flip(2), "astronaut")
    assert differ(Box(512 - box.x - box.side, box.y, box.side), TRUE) < 0.01
    assert differ(find_face((picture * 0.4).to(torch.uint8), "astronaut"), TRUE) < 0.02


def test_several_faces_are_found_and_refused() -> None:
    astronaut = photograph("astronaut")
    twins = torch.cat([astronaut, astronaut.flip(2)], dim=2)[:, :330]
    boxes = sorted(find_faces(twins), key=lambda box: box.x)
    assert len(boxes) == 2
    assert differ(boxes[0], TRUE) < 0.02
    pair = torch.cat([astronaut, scaled(photograph("officer"), 512 / 600)], dim=2)[:, :330]
    with pytest.raises(PlanError, match=r"^data\.face: several faces \(2\), and one is needed: crop to one face$"):
        find_face(pair, "data.face")


def test_pictures_without_a_face_are_refused() -> None:
    noise = torch.randint(0, 256, (3, 200, 220), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        PlanError, match=r"^clip\.mp4: no face found; one must be upright, look at the camera and span at least a sixth of the shorter side"
    ):
        find_face(torch.full((3, 200, 220), 90, dtype=torch.uint8), "clip.mp4")
    assert find_faces(noise) == ()


@pytest.mark.parametrize("name", ["motorcycle_left.png", "page.png"])
def test_what_is_no_face_is_not_taken_for_one(name: str) -> None:
    (photo,) = embedded_photos([("skimage", f"data/{name}")]).photos
    assert find_faces(photo.pixels) == ()


@pytest.mark.parametrize("share", [0.165])
def test_a_face_of_a_sixth_of_the_shorter_side_is_found(share: float) -> None:
    large = torch.full((3, round(TRUE.side / share), round(TRUE.side / share)), 128, dtype=torch.uint8)
    large[:, -512:, :512] = photograph("astronaut")
    box = find_face(large, "astronaut")
    assert differ(Box(box.x, box.y - large.shape[1] + 512, box.side), TRUE) < 0.1


@pytest.mark.parametrize("cut", [Box(163, 63, 120), Box(175, 68, 95), Box(184, 80, 80)], ids=["fills", "tight", "cut off"])
def test_a_face_that_fills_the_frame_is_found_and_its_box_reaches_over_the_border(cut: Box) -> None:
    rows, columns = slice(int(cut.y), int(cut.y + cut.side)), slice(int(cut.x), int(cut.x + cut.side))
    box = find_face(photograph("astronaut")[:, rows, columns], "astronaut")
    assert differ(Box(box.x + cut.x, box.y + cut.y, box.side), TRUE) < 0.08


def random_frames(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_box_of_the_size_of_a_face_is_cut_out_exactly() -> None:
    frames = random_frames(2, 130, 170)
    faces = crop_faces(frames, [Box(20, 30, 96), Box(74, 0, 96)])
    assert torch.equal(faces, torch.stack([frames[0, :, 30:126, 20:116], frames[1, :, :96, 74:170]]))
    assert crop_faces(frames[:0], []).shape == (0, 3, 96, 96)


def test_what_a_box_has_beyond_the_frame_is_mirrored() -> None:
    (frame,) = frames = random_frames(1, 120, 100)
    around = torch.from_numpy(np.pad(frame.numpy(), ((0, 0), (40, 40), (40, 40)), mode="symmetric"))
    for x, y in ((-25, 10), (30, -39), (31, 50), (-30, -20)):
        assert torch.equal(crop_faces(frames, [Box(x, y, 96)])[0], around[:, 40 + y : 136 + y, 40 + x : 136 + x])


def test_faces_are_resized_without_aliasing_and_moved_by_parts_of_a_pixel() -> None:
    checkered = ((torch.arange(384)[:, None] + torch.arange(384)) % 2 * 255).to(torch.uint8).expand(1, 3, 384, 384)
    assert (crop_faces(checkered, [Box(0, 0, 384)])[0, :, 4:-4, 4:-4].int() - 127).abs().max() <= 2
    ramp = torch.arange(256, dtype=torch.float32).to(torch.uint8).expand(1, 3, 200, 256)
    for x in (30.0, 30.5, 31.25):
        columns = crop_faces(ramp, [Box(x, 4, 192)])[0, 0, 48].double()  # two pixels make one
        expected = x + 2 * torch.arange(96) + 0.5
        assert (columns - expected)[4:-4].abs().max() <= 0.75
    flat = torch.full((1, 3, 50, 60), 77, dtype=torch.uint8)
    assert (crop_faces(flat, [Box(-3.3, 5.2, 41.7)], side=64) == 77).all()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "1 frames and 0 boxes; each frame needs one box"),
        (
            [Box(-90, 10, 60)],
            r"box 0 \(x -90, y 10, side 60\) does not fit a frame of 100x80 pixels; its middle must be inside and its side at least 1",
        ),
        ([Box(10, 70, 40)], "does not fit a frame of 100x80"),
        ([Box(10, 10, 0.5)], "does not fit"),
        ([Box(10, 10, float("nan"))], "does not fit"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(boxes: list[Box], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        crop_faces(random_frames(1, 80, 100), boxes)


def pan(count: int) -> tuple[Tensor, list[Box]]:
    """The astronaut while the camera moves, and where the face is."""
    moved = [(round(40 + 30 * np.sin(number / 8)), 2 * number) for number in range(count)]
    frames = torch.stack([photograph("astronaut")[:, down : down + 320, right : right + 320] for right, down in moved])
    return frames, [Box(TRUE.x - right, TRUE.y - down, TRUE.side) for right, down in moved]


def test_a_moving_face_is_followed() -> None:
    frames, true = pan(21)
    track = follow_face(frames, "clip.mp4")
    assert track.notes == ()
    assert len(track.boxes) == 21
    assert max(differ(box, truth) for box, truth in zip(track.boxes, true, strict=True)) < 0.06
    sides = [box.side for box in track.boxes]
    assert max(sides) / min(sides) < 1.03
    faces = crop_faces(frames, track.boxes).float()
    assert (faces[1:] - faces[:-1]).abs().mean() < 0.5 * (frames[1:, :, 60:200, 60:200].float() - frames[:-1, :, 60:200, 60:200]).abs().mean()


def test_frames_without_a_face_are_bridged_and_noted() -> None:
    frames, true = pan(16)
    frames[8:13] = 128
    track = follow_face(frames, "clip.mp4")
    assert track.notes == ("clip.mp4: no face found on 1 of 4 searched frames (at 0.40 s); its place there is interpolated",)
    assert max(differ(box, truth) for box, truth in zip(track.boxes, true, strict=True)) < 0.12


def test_clips_of_few_or_many_faces_are_refused() -> None:
    frames, _ = pan(11)
    frames[1:] = 128
    with pytest.raises(PlanError, match=r"^clip\.mp4: no face found; .* \(on 2 of 3 frames that were searched, and at least half must show one\)$"):
        follow_face(frames, "clip.mp4")
    twins = torch.cat([photograph("astronaut")[:, :330]] * 2, dim=2)[None].expand(7, -1, -1, -1)
    with pytest.raises(PlanError, match=r"^clip\.mp4: several faces \(2\), and one is needed: crop to one face$"):
        follow_face(twins, "clip.mp4")


def scripted(monkeypatch: pytest.MonkeyPatch, boxes: list[tuple[Box, ...]]) -> Tensor:
    """Frames for which these boxes are found; how often frames were searched is not hidden: each may be asked for once."""
    asked = iter(boxes)
    monkeypatch.setattr(following, "find_faces", lambda _frame: next(asked))
    return random_frames(5 * len(boxes) - 4, 8, 8)


def test_between_searched_frames_boxes_move_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    line = [(Box(10.0 * number, 100 - 5.0 * number, 50),) for number in range(13)]
    track = follow_face(scripted(monkeypatch, line), "clip.mp4")
    assert len(track.boxes) == 61
    for number in range(16, 45):  # where the ends are out of the smoothing's reach
        box = track.boxes[number]
        assert (box.x, box.y, box.side) == pytest.approx((2.0 * number, 100 - 1.0 * number, 50), abs=1e-6)


def test_a_single_false_box_does_not_move_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    still = [(Box(100, 80, 50),)] * 9
    wrong = [*still[:4], (Box(300, 10, 90),), *still[5:]]
    assert follow_face(scripted(monkeypatch, wrong), "clip.mp4").boxes == follow_face(scripted(monkeypatch, still), "clip.mp4").boxes
    crowd = [*still[:4], (Box(300, 10, 90), Box(101, 80, 50)), *still[5:]]
    track = follow_face(scripted(monkeypatch, crowd), "clip.mp4")
    assert track.boxes[20].x == pytest.approx(100)
    assert track.notes == ("clip.mp4: several faces on 1 of 9 searched frames; the one that is nearest to the others' place is taken",)


def test_a_cut_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    shots = [(Box(10, 10, 50),)] * 4 + [(Box(200, 10, 50),)] * 4
    track = follow_face(scripted(monkeypatch, shots), "clip.mp4")
    assert track.notes == ("clip.mp4: the face jumps by 190 pixels between 0.60 s and 0.80 s; if that is a cut, cut the clip there",)


def test_a_still_picture_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(Box(10, 10, 50),)])
    track = follow_face(random_frames(1, 80, 80).expand(30, -1, -1, -1), "clip.mp4")
    assert max(differ(box, Box(10, 10, 50)) for box in track.boxes) < 1e-9
