"""The embedded captions, their pictures, their tokenizer, and who judges pictures."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from mcompress.compress.tasks.text_to_image.captions import ATTRIBUTES, Scene, every_scene, is_held_out, scenes, words
from mcompress.compress.tasks.text_to_image.drawing import SIDE, draw
from mcompress.compress.tasks.text_to_image.judge import attributes_right, embedded_judge, scene_distance
from mcompress.compress.tasks.text_to_image.words import byte_letters, taught_merges, write_tokenizer


def drawn(some: list[Scene], seed: int = 0) -> torch.Tensor:
    return draw(some, torch.Generator().manual_seed(seed))


def test_held_out_combinations_are_new_but_their_parts_are_not() -> None:
    trained, held_out = scenes(held_out=False), scenes(held_out=True)
    assert len(trained) + len(held_out) == 6 * 4 * 6 * 5 == len({scene.caption for scene in every_scene()})
    assert len(held_out) == 90
    for one, other in itertools.combinations(range(len(ATTRIBUTES)), 2):
        sizes = [len(values) for values in ATTRIBUTES.values()]
        assert len({(scene.values[one], scene.values[other]) for scene in trained}) == sizes[one] * sizes[other]
    assert {value for scene in held_out for value in enumerate(scene.values)} == {value for scene in trained for value in enumerate(scene.values)}


def test_a_picture_shows_its_colour_where_the_caption_says() -> None:
    plain = [scene for scene in every_scene() if ATTRIBUTES["texture"][scene.texture] == "plain" and ATTRIBUTES["shape"][scene.shape] == "circle"]
    from mcompress.compress.tasks.text_to_image.captions import COLOURS, PLACES

    for scene, picture in zip(plain, drawn(plain), strict=True):
        x, y = (int(share * SIDE) for share in PLACES[list(PLACES)[scene.place]])
        wanted = torch.tensor(COLOURS[list(COLOURS)[scene.colour]]) * 2 - 1
        torch.testing.assert_close(picture[:, y, x], wanted)


def test_pictures_are_functions_of_their_seed() -> None:
    some = every_scene()[::37]
    assert torch.equal(drawn(some), drawn(some))
    assert not torch.equal(drawn(some), drawn(some, 1))
    pictures = drawn(every_scene())
    assert pictures.shape == (720, 3, SIDE, SIDE)
    assert pictures.min() >= -1
    assert pictures.max() <= 1


def test_textures_differ_in_nothing_but_the_texture() -> None:
    """The same seed draws the same figure: outside it, the pictures are equal."""
    plain, striped = (Scene(0, texture, 0, 0) for texture in (0, 1))
    one, other = drawn([plain])[0], drawn([striped])[0]
    differs = (one != other).any(0)
    assert differs.any()
    assert torch.equal(one[:, ~differs], other[:, ~differs])
    assert not differs[:3].any()


def test_every_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, words(), 16)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for scene in every_scene()[::7]:
        tokens = tokenizer(scene.caption)["input_ids"]
        assert len(tokens) == len(scene.caption.split()) + 2
        assert tokenizer.decode(tokens[1:-1]) == scene.caption
    assert len(tokenizer("Ünseen!")["input_ids"]) > 3  # byte by byte
    assert len(set(byte_letters())) == 256


def test_merges_are_learnt_by_frequency() -> None:
    """Written out by hand: in `aab`, `ab` the pair (a, b</w>) comes twice, (a, a) once."""
    assert taught_merges(["aab", "ab"]) == [("a", "b</w>"), ("a", "ab</w>")]


def test_the_shipped_tokenizer_is_the_one_of_the_captions(tmp_path: Path) -> None:
    import mcompress.compress.tasks.text_to_image as package

    write_tokenizer(tmp_path, words(), 16)
    shipped = Path(package.__file__).parent / "embedded" / "tokenizer"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (shipped / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8")


def test_the_judge_knows_scenes_and_notices_what_is_wrong() -> None:
    judge, some = embedded_judge(), every_scene()[::5]
    pictures = drawn(some, 123)
    assert attributes_right(judge, pictures, some).mean() > 0.995
    wrong = [Scene((scene.colour + 1) % 6, scene.texture, scene.shape, (scene.place + 2) % 5) for scene in some]
    right = attributes_right(judge, pictures, wrong)
    assert right[:, 0].mean() < 0.02
    assert right[:, 3].mean() < 0.02
    assert right[:, 1:3].mean() > 0.99


def test_the_distance_of_scenes() -> None:
    judge, some = embedded_judge(), every_scene()
    pictures = drawn(some, 1)
    assert scene_distance(judge, pictures, pictures) == pytest.approx(0.0, abs=1e-3)
    others, noisy = drawn(some, 2), (pictures + 0.4 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0)))
    near, far = scene_distance(judge, pictures, others), scene_distance(judge, noisy, others)
    assert near < 0.2 * far
    assert scene_distance(judge, pictures, others) == pytest.approx(scene_distance(judge, others, pictures), rel=1e-6)
    reds = drawn([scene for scene in some if scene.colour == 0], 3)
    assert scene_distance(judge, reds, others) > 5 * near


def test_held_out_follows_the_rule() -> None:
    assert is_held_out(Scene(0, 0, 0, 0))
    assert not is_held_out(Scene(1, 0, 0, 0))
