"""Folders of one's own pictures with captions: what is read, what is left out and said, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mcompress.compress.tasks.text_to_image.caption_files import MOST_PROBLEMS
from mcompress.compress.tasks.text_to_image.folders import MOST_JUDGED, CaptionedFolder, captioned_folder
from mcompress.errors import PlanError

SIZE = (16, 16)


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def put(path: Path, caption: str | None = "a red circle", picture: np.ndarray | None = None) -> Path:
    """A picture, and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(16, 16) if picture is None else picture).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def metadata(folder: Path, *lines: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(f"{text}\n", encoding="utf-8")


def read(folder: Path, place: str = "data.training") -> CaptionedFolder:
    return captioned_folder(folder, place, SIZE)


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(PlanError) as caught:
        read(folder)
    assert all(problem.startswith("data.training: ") for problem in caught.value.problems)
    return [problem.removeprefix("data.training: ") for problem in caught.value.problems]


def drawn(found: CaptionedFolder) -> torch.Tensor:
    return torch.cat(list(found.pictures.pictures()))


def test_both_forms_give_the_same_pictures_and_captions(tmp_path: Path) -> None:
    captions = {"a.png": "a red circle", "deep/b.png": "two  blue\nsquares", "c.png": ""}
    for form in ("beside", "told"):
        for seed, (name, caption) in enumerate(captions.items()):
            put(tmp_path / form / name, caption if form == "beside" else None, pixels(20, 24, seed=seed))
    metadata(tmp_path / "told", "", *({"file_name": name, "text": captions[name], "source": "us"} for name in ("a.png", "c.png", "deep/b.png")))
    beside, told = read(tmp_path / "beside"), read(tmp_path / "told")
    assert beside.pictures.captions == told.pictures.captions == ("a red circle", "", "two blue squares")
    assert torch.equal(drawn(beside), drawn(told))
    assert beside.pictures.digest == told.pictures.digest
    note = "data.training: c.png: its caption is empty; it stands for what is drawn without one, which guidance needs"
    assert beside.notes == told.notes == (note,)


def test_a_picture_of_the_right_size_comes_as_it_is(tmp_path: Path) -> None:
    one, other = pixels(*SIZE), pixels(*SIZE, seed=1)
    put(tmp_path / "a.png", picture=one)
    put(tmp_path / "b.png", picture=other)
    pictures = drawn(read(tmp_path))
    assert pictures.dtype == torch.float32
    assert torch.equal(((pictures + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(np.stack([one, other])).permute(0, 3, 1, 2))
    assert torch.equal(pictures, torch.from_numpy(np.stack([one, other])).permute(0, 3, 1, 2) / 127.5 - 1)


def test_what_is_cut_off_lies_at_the_edges_and_the_rest_is_resized(tmp_path: Path) -> None:
    """The middle is white: so is the whole of what is left, and nothing of the black beside it."""
    wide, tall = np.zeros((32, 96, 3), np.uint8), np.zeros((80, 40, 3), np.uint8)
    wide[:, 32:64], tall[20:60] = 255, 255
    put(tmp_path / "tall.png", picture=tall)
    put(tmp_path / "wide.png", picture=wide)
    found = read(tmp_path)
    assert found.notes == ()
    assert torch.equal(drawn(found), torch.ones(2, 3, *SIZE))


def test_a_picture_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    upright, exif = pixels(*SIZE), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was held with its right side down: to be turned by 90 degrees clockwise
    for name, picture, noted in (("a.png", upright, None), ("b.png", np.rot90(upright).copy(), exif)):
        Image.fromarray(picture).save(tmp_path / name, **({} if noted is None else {"exif": noted}))
        (tmp_path / name).with_suffix(".txt").write_text("x", encoding="utf-8")
    one, other = drawn(read(tmp_path))
    assert torch.equal(one, other)


def test_grey_palette_and_opaque_pictures_are_read_as_rgb(tmp_path: Path) -> None:
    opaque = np.concatenate([pixels(16, 16), np.full((16, 16, 1), 255, np.uint8)], 2)
    put(tmp_path / "a.png", picture=opaque)
    put(tmp_path / "b.png", picture=opaque[:, :, 0])
    found = read(tmp_path)
    pictures = drawn(found)
    assert found.notes == ()
    assert torch.equal(pictures[0], torch.from_numpy(opaque[:, :, :3]).permute(2, 0, 1) / 127.5 - 1)
    assert torch.equal(pictures[1], pictures[0][:1].expand(3, -1, -1))


def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path) -> None:
    for name in ("good.png", "other.png", "small.png", "tiny.png"):
        side = {"small.png": 12, "tiny.png": 4}.get(name, 16)
        put(tmp_path / name, picture=pixels(side, side + 1))
    put(tmp_path / "glass.png", picture=pixels(16, 16, 4))
    put(tmp_path / "deep.png").unlink()
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "deep.png")
    torn = put(tmp_path / "torn.png")
    torn.write_bytes(torn.read_bytes()[:300])
    (tmp_path / "README.txt").write_text("about", encoding="utf-8")
    found = read(tmp_path)
    assert [path.name for path in found.pictures.files] == ["good.png", "other.png", "small.png", "tiny.png"]
    notes = [note.removeprefix("data.training: ") for note in found.notes]
    assert notes[0] == "README.txt: no picture has its name, so it is left out"
    assert notes[1] == "deep.png: cannot be read (its pixels are I;16, more than 8 bits; save it as 8-bit RGB); left out"
    assert notes[2] == "glass.png: left out, for transparent pixels have no colour; put it on a background and save it as RGB"
    assert notes[3].startswith("torn.png: cannot be read (")
    assert notes[4] == "small.png: 13x12 pixels, enlarged to the 16x16 that the original draws, as 2 pictures are in all"
    assert len(notes) == 5


def test_pictures_that_no_line_names_are_left_out_and_said(tmp_path: Path) -> None:
    for name in "abcd":
        put(tmp_path / f"{name}.png", None)
    metadata(tmp_path, {"file_name": "c.png", "text": "x"}, {"file_name": "a.png", "text": "y"})
    found = read(tmp_path)
    assert found.pictures.captions == ("x", "y")
    assert found.notes == ("data.training: b.png: metadata.jsonl does not name it, so it is left out, as 2 files are in all",)


def beside(folder: Path) -> None:
    put(folder / "a.png")
    put(folder / "b.png")


def told(*lines: object) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        put(folder / "a.png", None)
        metadata(folder, {"file_name": "a.png", "text": "x"}, *lines)

    return make


EXAMPLE = '{"file_name": "0001.png", "text": "a red car"}'
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda at: None, "data folder '{at}' does not exist; give a folder that holds pictures (.png, .jpg, .jpeg), each with its caption"),
    "nothing": (lambda at: at.mkdir(), "folder '{at}' holds no usable picture; at least 2 are needed: pictures (.png, .jpg, .jpeg), each with its"),
    "one picture": (lambda at: put(at / "a.png"), "folder '{at}' holds 1 usable picture; at least 2 are needed: "),
    "one and a torn one": (
        lambda at: (put(at / "a.png"), put(at / "b.png").write_bytes(b"")),
        "or metadata.jsonl with file_name and text\n  b.png: cannot be read (cannot identify image file 'b.png'); left out",
    ),
    "no caption": (
        lambda at: (beside(at), put(at / "c.png", None)),
        "'c.png' has no caption; write it into 'c.txt' (an empty one stands for no caption), or remove the picture",
    ),
    "one name": (
        lambda at: (beside(at), put(at / "b.jpg")),
        "'b.jpg' and 'b.png' have one name, and the caption 'b.txt' would be that of both; rename or remove one",
    ),
    "another encoding": (
        lambda at: (beside(at), (at / "a.txt").write_bytes("blå".encode("latin-1"))),
        "caption 'a.txt' cannot be read as UTF-8 ('utf-8' codec can't decode byte 0xe5 in position 2: unexpected end of data); save it as that",
    ),
    "empty captions": (
        lambda at: (put(at / "a.png", ""), put(at / "b.png", " \n")),
        "all 2 captions in '{at}' are empty, and pictures follow from captions; say what the pictures show",
    ),
    "a table": (
        lambda at: (beside(at), (at / "metadata.csv").write_text("file_name,text\n", encoding="utf-8")),
        "'{at}' describes its pictures in another form; save it as metadata.jsonl, a JSON object with file_name and text a line",
    ),
    "no JSON": (
        told("{'file_name': 1}"),
        "metadata.jsonl:2 cannot be read as JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); each line must be an "
        f"object, for example {EXAMPLE}",
    ),
    "a list": (told([1]), f"metadata.jsonl:2 is a list; it must have file_name and text, both text, for example {EXAMPLE}"),
    "another column": (
        told({"file_name": "b.png", "caption": "x"}),
        f"metadata.jsonl:2 has 'file_name', 'caption'; it must have file_name and text, both text, for example {EXAMPLE}",
    ),
    "a number": (told({"file_name": "b.png", "text": 3}), "metadata.jsonl:2 has 'file_name', 'text'; it must have file_name and text, both text"),
    "twice": (told({"file_name": "a.png", "text": "y"}), "metadata.jsonl:2 names 'a.png', as line 1 does; keep one of them"),
    "missing": (told({"file_name": "b.png", "text": "y"}), "metadata.jsonl:2: there is no file 'b.png' in the folder; add it, or remove the line"),
    "outside": (
        told({"file_name": "../a.png", "text": "y"}),
        "metadata.jsonl:2 names '../a.png', outside of the folder; pictures must be in it, with names relative to it",
    ),
    "absolute": (told({"file_name": "/a.png", "text": "y"}), "metadata.jsonl:2 names '/a.png', outside of the folder"),
    "metadata of another encoding": (
        lambda at: (beside(at), (at / "metadata.jsonl").write_bytes(b"\xff")),
        "'metadata.jsonl' cannot be read as UTF-8 (",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    folder = tmp_path / "own"
    make(folder)
    (problem,) = problems_of(folder)
    assert message.format(at=folder) in problem if "{at}" in message else message in problem


def test_all_problems_of_a_folder_are_said_at_once_and_a_long_list_is_cut(tmp_path: Path) -> None:
    for number in range(MOST_PROBLEMS + 7):
        put(tmp_path / f"{number:03d}.png", None)
    found = problems_of(tmp_path)
    assert len(found) == MOST_PROBLEMS + 1
    assert found[0].startswith("'000.png' has no caption")
    assert found[-1] == "and 7 more problems like these"


def test_so_many_held_out_captions_are_judged(tmp_path: Path) -> None:
    for number in range(2 * MOST_JUDGED + 1):
        put(tmp_path / f"{number:03d}.png", f"number {number}", pixels(16, 16)[:1, :1].repeat(16, 0).repeat(16, 1))
    found = read(tmp_path, "data.held_out")
    assert len(found.pictures.captions) == len(set(found.pictures.captions)) == MOST_JUDGED
    assert found.pictures.captions[:2] == ("number 0", "number 2")
    assert found.pictures.captions[-1] == f"number {(MOST_JUDGED - 1) * (2 * MOST_JUDGED + 1) // MOST_JUDGED}"
    many = f"of {2 * MOST_JUDGED + 1} captions {MOST_JUDGED} are drawn and judged, spread evenly; more take too long"
    assert found.notes == (f"data.held_out: {tmp_path.name}: {many}",)
    assert len(read(tmp_path).pictures.captions) == 2 * MOST_JUDGED + 1


def test_the_digest_changes_with_pixels_captions_and_size(tmp_path: Path) -> None:
    beside(tmp_path)
    first = read(tmp_path).pictures.digest
    assert read(tmp_path).pictures.digest == first
    assert captioned_folder(tmp_path, "data.training", (8, 8)).pictures.digest != first
    (tmp_path / "a.txt").write_text("a blue circle", encoding="utf-8")
    second = read(tmp_path).pictures.digest
    put(tmp_path / "b.png", picture=pixels(16, 16, seed=5))
    assert len({first, second, read(tmp_path).pictures.digest}) == 3


def test_a_picture_that_is_gone_when_it_is_needed(tmp_path: Path) -> None:
    beside(tmp_path)
    found = read(tmp_path)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(PlanError, match=r"b\.png' cannot be read \(.*\), and it could be before; restore it and run again"):
        drawn(found)
