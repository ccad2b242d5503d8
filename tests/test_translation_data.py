"""Pairs for translation: solids and rays, scenes, edges of photographs, folders of a user's own, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mcompress.compress.tasks.photographs import HELD_OUT_PHOTOS, Photo, embedded_photos, read_photo
from mcompress.compress.tasks.translation import folders
from mcompress.compress.tasks.translation.photo_edges import canny_edges, photo_pairs
from mcompress.compress.tasks.translation.scenes import JITTER, KINDS, RADII, SAMPLES, Kind, Scene, _frames, scene
from mcompress.compress.tasks.translation.shapes import Rays
from mcompress.errors import PlanError

ALL_KINDS = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def save(path: Path, height: int, width: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "L": (), "LA": (2,)}[mode]
    values = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(values).save(path)


def rays(kind: Kind, seed: int, shift: tuple[float, float] = (0.0, 0.0)) -> tuple[Rays, np.ndarray]:
    """A grid of rays over one turned solid, moved by `shift`, and the solid's frame."""
    generator = np.random.default_rng(seed)
    tilt = np.deg2rad(generator.uniform(*kind.tilt, 1))
    axes = _frames(tilt, generator.uniform(0, 6.28, 1), np.deg2rad(kind.spin) * generator.random(1))[0].astype(np.float32)
    u, v = (grid.ravel().astype(np.float32) for grid in np.meshgrid(np.linspace(-1.1, 1.1, 45), np.linspace(-1.1, 1.1, 45)))
    places = np.stack([u + np.float32(shift[0]), v + np.float32(shift[1]), np.zeros_like(u)])
    stretch = np.full(u.shape, generator.random(), np.float32)
    return Rays(axes @ places, np.repeat(axes[:, 2:], len(u), axis=1), stretch), axes


@ALL_KINDS
@pytest.mark.parametrize("seed", range(4))
def test_a_solid_lies_in_the_unit_ball_and_its_normals_are_those_of_its_depths(kind: Kind, seed: int) -> None:
    here, axes = rays(kind, seed)
    hits = kind.cast(here)
    assert 0.05 < hits.met.mean() < 0.75
    points = here.at(hits.depth)[:, hits.met]
    assert np.linalg.norm(points, axis=0).max() < 1.006
    normal = (axes.T @ hits.normal)[:, hits.met]  # in the picture's coordinates
    assert np.allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-3)
    assert normal[2].min() > -0.2  # what is seen faces the viewer, but for rays that graze and are taken to meet
    assert np.quantile(normal[2], 0.01) > -0.05
    step = 1e-3
    for axis, shift in enumerate(((step, 0.0), (0.0, step))):
        beside = kind.cast(rays(kind, seed, shift)[0])
        flat = hits.met & beside.met & (hits.face == beside.face)
        rise = (beside.depth - hits.depth)[flat] / step
        n = (axes.T @ hits.normal)[:, flat]
        facing = n[2] > 0.4  # elsewhere depth curves too much over one step
        assert facing.sum() > 20
        error = np.abs(rise[facing] + n[axis][facing] / n[2][facing])
        assert np.quantile(error, 0.98) < 0.06


def test_a_sphere_and_a_ring_are_where_their_equations_say() -> None:
    ball, ring = KINDS[0], next(kind for kind in KINDS if kind.name == "ring")
    here, _ = rays(ball, 0)
    hits = ball.cast(here)
    distance = np.linalg.norm(here.origin, axis=0)
    clear = np.abs(distance - 1) > 1e-5
    assert np.array_equal(hits.met[clear], distance[clear] < 1)
    assert np.allclose(hits.depth[hits.met] ** 2 + distance[hits.met] ** 2, 1, atol=1e-5)
    here, _ = rays(ring, 1)
    hits = ring.cast(here)
    x, y, z = here.at(hits.depth)[:, hits.met]
    tube = 0.22 + 0.12 * here.stretch[0]
    assert np.allclose(np.hypot(np.hypot(x, y) - (1 - tube), z), tube, atol=0.008)


def test_every_kind_has_colours_and_all_are_told_apart() -> None:
    drawn = [scene(3, index, 192) for index in range(3)]
    means = {}
    for number, kind in enumerate(KINDS):
        pixels = []
        for one in drawn:
            which = np.nonzero(one.solids.kind == number)[0]
            shown = np.isin(one.solid[::SAMPLES, ::SAMPLES], which) & (which.size > 0)
            pixels.append(one.shaded[:, shown])
        means[kind.name] = np.concatenate(pixels, axis=1).mean(axis=1)
        assert np.isfinite(means[kind.name]).all(), f"no {kind.name} is seen in three scenes"
    names = list(means)
    closest = min(np.abs(means[a] - means[b]).max() for i, a in enumerate(names) for b in names[:i])
    assert closest > 8


@pytest.fixture(scope="module")
def drawn() -> Scene:
    return scene(5, 7, 96)


def test_a_scene_is_a_function_of_seed_index_and_size(drawn: Scene) -> None:
    again, other = scene(5, 7, 96), scene(5, 8, 96)
    assert np.array_equal(drawn.edges, again.edges)
    assert np.array_equal(drawn.shaded, again.shaded)
    assert not np.array_equal(drawn.shaded, other.shaded)
    assert not np.array_equal(drawn.shaded, scene(6, 7, 96).shaded)
    assert drawn.edges.shape == drawn.shaded.shape == (3, 96, 96)
    assert drawn.edges.dtype == drawn.shaded.dtype == np.uint8


def test_edges_are_black_on_white_and_lie_exactly_where_solids_and_faces_change(drawn: Scene) -> None:
    assert np.array_equal(drawn.edges[0], drawn.edges[1])
    assert np.array_equal(drawn.edges[0], drawn.edges[2])
    part = drawn.solid * 16 + drawn.face
    changes = np.zeros(part.shape, bool)
    for axis in (0, 1):
        differs = np.diff(part, axis=axis) != 0
        first = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        second = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        changes[first] |= differs
        changes[second] |= differs
    share = changes.reshape(96, SAMPLES, 96, SAMPLES).mean(axis=(1, 3))
    expected = np.rint(255 * (1 - share))
    within_rings = drawn.edges[0] != expected  # a ring in front of itself is one solid and one face
    assert (drawn.edges[0][within_rings] < expected[within_rings]).all()
    ring = next(number for number, kind in enumerate(KINDS) if kind.name == "ring")
    owners = drawn.solid.reshape(96, SAMPLES, 96, SAMPLES).transpose(0, 2, 1, 3).reshape(96, 96, -1)[within_rings]
    assert all(ring in drawn.solids.kind[row[row >= 0]] for row in owners)
    assert 0.08 < (share > 0).mean() < 0.5


def test_nearer_solids_hide_farther_ones_and_size_does_not_change_with_the_picture(drawn: Scene) -> None:
    assert 0.3 < (drawn.solid >= 0).mean() < 0.9
    for size in (64, 200):
        solids = scene(1, 0, size).solids
        assert solids.radius.min() >= RADII[0]
        assert solids.radius.max() <= RADII[1]
        assert solids.centre.max() < size + 40 + JITTER
    last = len(drawn.solids.kind) - 1
    inside = [number for number in range(last + 1) if ((drawn.solids.centre[number] > 8) & (drawn.solids.centre[number] < 88)).all()]
    x, y = (drawn.solids.centre[inside[-1]] * SAMPLES).astype(int)
    assert drawn.solid[y, x] >= inside[-1] or drawn.solids.kind[inside[-1]] == 5  # through a ring one looks


@pytest.mark.parametrize("size", [8, 2048])
def test_a_size_that_cannot_be_drawn_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} pixels.*32 to 1024"):
        scene(0, 0, size)


def test_edges_of_a_photograph_are_black_where_it_changes() -> None:
    half = torch.zeros(3, 40, 60, dtype=torch.uint8)
    half[:, :, 30:] = 200
    edges = canny_edges(half)
    assert edges.shape == half.shape
    columns = (edges[0] == 0).nonzero()[:, 1].unique().tolist()
    assert set(columns) <= {29, 30}
    assert columns
    assert set(edges.unique().tolist()) == {0, 255}
    assert (canny_edges(torch.full((3, 40, 40), 90, dtype=torch.uint8)) == 255).all()


def test_squares_of_a_photograph_are_parts_of_it_that_do_not_overlap() -> None:
    (photo,) = embedded_photos(HELD_OUT_PHOTOS[1:2]).photos
    pairs = photo_pairs(photo, 96, 5)
    assert len(pairs) == 5
    assert len({pair.name for pair in pairs}) == 5
    edges = canny_edges(photo.pixels)
    rows, columns = (photo.pixels.shape[1] // 96), (photo.pixels.shape[2] // 96)
    for pair in pairs:
        place = int(pair.name.rsplit("_", 1)[1])
        top = (photo.pixels.shape[1] - rows * 96) // 2 + place // columns * 96
        left = (photo.pixels.shape[2] - columns * 96) // 2 + place % columns * 96
        assert torch.equal(pair.target, photo.pixels[:, top : top + 96, left : left + 96])
        assert torch.equal(pair.input, edges[:, top : top + 96, left : left + 96])
    assert photo_pairs(Photo("small", torch.zeros(3, 50, 200, dtype=torch.uint8)), 96, 5) == ()


def test_two_folders_and_side_by_side_pictures_give_the_same_pairs(tmp_path: Path) -> None:
    for name in ("one", "deep/two"):
        save(tmp_path / "two" / "A" / f"{name}.png", 40, 48)
        save(tmp_path / "two" / "B" / f"{name}.png", 40, 48)
        sides = [np.asarray(Image.open(tmp_path / "two" / side / f"{name}.png")) for side in "AB"]
        (tmp_path / "joined" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(sides, axis=1)).save(tmp_path / "joined" / f"{name}.png")
    apart, joined = folders.aligned(tmp_path / "two", "data.training"), folders.aligned(tmp_path / "joined", "data.training")
    assert [pair.name for pair in apart.pairs] == ["deep_two", "one"]
    assert sorted(pair.name for pair in joined.pairs) == ["deep_two.png", "one.png"]
    for one, other in zip(apart.pairs, sorted(joined.pairs, key=lambda pair: pair.name), strict=True):
        assert torch.equal(one.input, other.input)
        assert torch.equal(one.target, other.target)
    assert apart.skipped == joined.skipped == ()


def test_partners_may_have_other_suffixes_and_grey_inputs_are_converted_and_noted(tmp_path: Path) -> None:
    save(tmp_path / "A" / "x.png", 40, 40, "L")
    save(tmp_path / "B" / "x.jpg", 40, 40)
    found = folders.aligned(tmp_path, "data.training")
    (pair,) = found.pairs
    assert torch.equal(pair.input[0], pair.input[1])
    assert np.array_equal(pair.input[2].numpy(), np.asarray(Image.open(tmp_path / "A" / "x.png")))
    assert found.skipped == ("A/x.png: grey, as 1 inputs are in all; read as RGB with three equal channels",)


def test_every_problem_of_a_folder_is_listed_with_its_file_and_what_to_do(tmp_path: Path) -> None:
    save(tmp_path / "A" / "size.png", 40, 48)
    save(tmp_path / "B" / "size.png", 40, 50)
    save(tmp_path / "A" / "alone.png", 40, 40)
    save(tmp_path / "B" / "lonely.png", 40, 40)
    save(tmp_path / "A" / "clear.png", 40, 40, "RGBA")
    save(tmp_path / "B" / "clear.png", 40, 40)
    save(tmp_path / "A" / "grey.png", 40, 40)
    save(tmp_path / "B" / "grey.png", 40, 40, "L")
    save(tmp_path / "A" / "twice.png", 40, 40)
    save(tmp_path / "A" / "twice.jpg", 40, 40)
    save(tmp_path / "B" / "twice.png", 40, 40)
    with pytest.raises(PlanError) as caught:
        folders.aligned(tmp_path, "data.training")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6
    assert all(problem.startswith("data.training: ") for problem in caught.value.problems)
    assert "'A/size.png' has 48x40 pixels and 'B/size.png' 50x40; both of a pair must have the same size, so resize or crop one of them" in text
    assert "'A/alone.png' has no partner in B; each name must be in both, so add a picture 'alone' to B or remove this one" in text
    assert "'B/lonely.png' has no partner in A" in text
    assert "'A/clear.png' is RGBA, and transparent pixels have no colour; put it on a background and save it as 8-bit RGB" in text
    assert "'B/grey.png' is grey, and targets must be in colour" in text
    assert "'A/twice.jpg' and 'A/twice.png' have one name, 'twice', and results are filed by name; rename or remove one" in text


def test_two_pictures_in_other_folders_may_not_have_one_name(tmp_path: Path) -> None:
    for place in ("a/b.png", "a_b.png", "c.png"):
        save(tmp_path / place, 40, 80)
    for read in (folders.aligned, folders.inputs):
        with pytest.raises(PlanError, match=r"^data\.held_out: 'a/b\.png' and 'a_b\.png' have one name, 'a_b\.png'"):
            read(tmp_path, "data.held_out")


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path: Path) -> None:
    for number in range(60):
        save(tmp_path / f"{number}.png", 32, 65)
    with pytest.raises(PlanError) as caught:
        folders.aligned(tmp_path, "data.held_out")
    assert len(caught.value.problems) == folders.MOST_PROBLEMS + 1
    assert "'0.png' is 65 pixels wide" in caught.value.problems[0]
    assert caught.value.problems[-1] == "data.held_out: and 10 more problems like these"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L"])
def test_side_by_side_pictures_must_be_rgb(tmp_path: Path, mode: str) -> None:
    save(tmp_path / "p.png", 40, 80, mode)
    with pytest.raises(PlanError, match=r"data\.training: 'p\.png' is (grey|RGBA|LA)"):
        folders.aligned(tmp_path, "data.training")


def test_a_colour_that_stands_for_transparency_and_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(PlanError) as caught:
        folders.inputs(tmp_path, "data.unlabelled")
    assert "'deep.png' is I;16; pictures must be 8-bit RGB" in caught.value.problems[0]
    assert "'key.png' is RGB with transparency, and transparent pixels have no colour" in caught.value.problems[1]


def test_damaged_and_small_pictures_are_left_out_with_their_partner_and_named(tmp_path: Path) -> None:
    for side in "AB":
        save(tmp_path / side / "good.png", 40, 40)
        save(tmp_path / side / "small.png", 16, 40)
        save(tmp_path / side / "torn.png", 40, 40)
    (tmp_path / "B" / "torn.png").write_bytes((tmp_path / "B" / "torn.png").read_bytes()[:600])
    found = folders.aligned(tmp_path, "data.training")
    assert [pair.name for pair in found.pairs] == ["good"]
    assert any(note.startswith("B/torn.png: cannot be read (") for note in found.skipped)
    assert "small: 40x16 pixels, at least 32 are needed on each side" in found.skipped
    (tmp_path / "A" / "good.png").write_bytes(b"no picture")
    with pytest.raises(PlanError) as refused:
        folders.aligned(tmp_path, "data.training")
    assert "A/good.png: cannot be read (cannot identify image file 'good.png')" in str(refused.value)


def test_a_picture_that_its_camera_held_sideways_is_read_upright(tmp_path: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was held with its right side down: to be turned by 90 degrees clockwise
    (tmp_path / "A").mkdir()
    (tmp_path / "B").mkdir()
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "A" / "one.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "B" / "one.png")
    (pair,) = folders.aligned(tmp_path, "data.training").pairs
    assert torch.equal(pair.input, torch.from_numpy(upright).permute(2, 0, 1))
    assert torch.equal(read_photo(tmp_path / "A" / "one.png"), pair.input)


def make_nothing(folder: Path) -> None:
    """Leave it missing."""


def make_empty(folder: Path) -> None:
    folder.mkdir()


def make_small(folder: Path) -> None:
    save(folder / "a.png", 8, 16)


def make_half(folder: Path) -> None:
    save(folder / "A" / "a.png", 40, 40)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_nothing, "does not exist"),
        (make_empty, "holds no usable pair"),
        (make_small, r"holds no usable pair .*\n  a.png: 8x8 pixels"),
        (make_half, r"B' does not exist; inputs are in A and targets in B"),
    ],
)
def test_a_folder_without_a_pair_is_an_error(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(PlanError, match=message):
        folders.aligned(tmp_path / "data", "data.training")


def test_unpaired_folders_are_read_apart(tmp_path: Path) -> None:
    save(tmp_path / "A" / "x.png", 40, 40, "L")
    save(tmp_path / "B" / "y.png", 60, 50)
    save(tmp_path / "B" / "z.png", 33, 90)
    one, other = folders.two_domains(tmp_path, "data.training")
    assert [photo.name for photo in one.photos] == ["x.png"]
    assert [tuple(photo.pixels.shape) for photo in other.photos] == [(3, 60, 50), (3, 33, 90)]
    assert [photo.name for photo in folders.held_out_inputs(tmp_path, "data.held_out").photos] == ["x.png"]
    assert [photo.name for photo in folders.held_out_inputs(tmp_path / "B", "data.held_out").photos] == ["y.png", "z.png"]
    with pytest.raises(PlanError, match=r"unpaired data need the folders"):
        folders.two_domains(tmp_path / "A", "data.training")
