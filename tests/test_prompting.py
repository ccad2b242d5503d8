"""From a prompt to latents without torch: CLIP's tokens are those of transformers, the steps those of diffusers, both from files that stand alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from mcompress.export import diffusion_steps, prompt_files, prompt_tokens
from mcompress.export.diffusion_steps import (
    BETA_SCHEDULES,
    PREDICTIONS,
    Consistency,
    Schedule,
    alphas_of,
    boundary_scalings,
    clean_and_noise,
    consistency_clean,
    consistency_steps,
    consistency_timesteps,
    ddim,
    ddim_step,
    guided,
    trailing_timesteps,
)
from mcompress.export.prompt_files import END, START, read_tokenizer
from mcompress.export.prompt_tokens import PromptError, PromptTokenizer, normalized
from mcompress.export.standing_alone import write_scripts

Real = NDArray[np.float32]
LONG = 4096
"""More tokens than any prompt here has."""
CORPUS = [
    "a red circle, photo-realistic, trending on artstation",
    "the big blue square's left of it; they're striped and it's rough, isn't it?",
    "ein grünes Dreieck in der Größe von 42 Äpfeln, très élégant, señor",
    "красный круг и синий квадрат, εφαρμογή σε τετράγωνο",
    "赤い円と青い四角 빨간 원 🎉👩‍👩‍👧 10,000 !!! ... ???",
]
PROMPTS = [
    "",
    " ",
    "a red circle",
    "  A\tRED\n\ncircle  ",
    "it's we'll they're I'd 's !'s 'sss ''ve IT'S",
    "photo-realistic, 8k, f/1.4 -- 12½ Ⅷ ٣٤",
    "café cafe\u0301 CAFÉ Å \u212b ﬁ ß ẞ ǅ İI",
    "ΑΣ ΣΣ. ὈΔΥΣΣΕΎΣ",
    "日本語のテキスト、漢字。 한국어 ไทย हिन्दी عربى",
    "🎉👩‍👩‍👧 ❤️ \u200b \u3000 \x00 \x1c \x85 \u2028",
    f"a{END}b {START} {END.upper()}",
    "!",
]


def an_added_token(content: str, *, is_normalized: bool) -> dict[str, object]:
    return {"content": content, "lstrip": False, "normalized": is_normalized, "rstrip": False, "single_word": False}


@pytest.fixture(scope="module")
def learned() -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary and merges, learned from `CORPUS`: every byte alone and at the end of a word, then what is merged, then start and end."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pieces = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    cut = [pre_tokenizers.Split(Regex(pieces), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    trained.pre_tokenizer = pre_tokenizers.Sequence(cut)
    trainer = trainers.BpeTrainer(
        vocab_size=1200, end_of_word_suffix="</w>", initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [*sorted(alphabet), *sorted(f"{symbol}</w>" for symbol in alphabet)]
    tokens += [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in set(tokens)]
    return {token: number for number, token in enumerate([*tokens, START, END])}, model["merges"]


Write = Callable[..., Path]


@pytest.fixture
def write(learned: tuple[dict[str, int], list[list[str]]], tmp_path: Path) -> Write:
    """Tokenizer files as Stable Diffusion's public folders have them; `config` changes fields of tokenizer_config.json."""

    def written(**config: object) -> Path:
        vocabulary, merges = learned
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
        told = {"model_max_length": 77, "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END, "tokenizer_class": "CLIPTokenizer"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, **config}), encoding="utf-8")
        return tmp_path

    return written


def same(ours: PromptTokenizer, theirs: CLIPTokenizer, prompt: str) -> None:
    expected = theirs(prompt)["input_ids"]
    assert ours.tokens(prompt, len(expected)) == expected


CONFIGS = {
    "plain": {},
    "SD-1.5": {
        "bos_token": {"__type": "AddedToken", **an_added_token(START, is_normalized=True)},
        "eos_token": {"__type": "AddedToken", **an_added_token(END, is_normalized=True)},
        "unk_token": {"__type": "AddedToken", **an_added_token(END, is_normalized=True)},
    },
    "SD-2.x": {
        "bos_token": {"__type": "AddedToken", **an_added_token(START, is_normalized=True)},
        "eos_token": {"__type": "AddedToken", **an_added_token(END, is_normalized=True)},
        "unk_token": {"__type": "AddedToken", **an_added_token(END, is_normalized=True)},
        "pad_token": "!",
    },
    "padded on the left": {"padding_side": "left"},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("whole", [False, True], ids=["vocab.json", "tokenizer.json"])
def test_the_tokens_are_those_of_transformers(name: str, whole: bool, write: Write, tmp_path: Path) -> None:
    theirs = CLIPTokenizer.from_pretrained(write(**CONFIGS[name]))
    folder = tmp_path
    if whole:
        folder = tmp_path / "saved"
        theirs.save_pretrained(folder)
        assert not (folder / "vocab.json").exists()
    ours = read_tokenizer(folder)
    for prompt in [*PROMPTS, *CORPUS]:
        same(ours, theirs, prompt)
        padded = theirs(prompt, padding="max_length", max_length=200)["input_ids"]
        assert ours.tokens(prompt, 200) == padded


SAYS = {"bos_token": START, "eos_token": END, "unk_token": END}
MAPS: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "SD-2.x": (
        CONFIGS["SD-1.5"],
        {**{name: an_added_token(token, is_normalized=True) for name, token in SAYS.items()}, "pad_token": "!"},
        "!",
    ),
    "of everything": (
        {},
        {"bos_token": "b</w>", "eos_token": {"content": "c</w>"}, "unk_token": {"content": "d</w>"}, "pad_token": "a</w>"},
        "a</w>",
    ),
    "as text where the configuration normalizes": (CONFIGS["SD-1.5"], dict(SAYS), END),
    "as objects without normalized": ({}, {name: {"content": token} for name, token in SAYS.items()}, END),
    "beside numbered tokens": ({"added_tokens_decoder": {}}, {"pad_token": "!"}, END),
}
"""Configuration, special_tokens_map.json, and what pads with both."""


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("whole", [False, True], ids=["vocab.json", "tokenizer.json"])
def test_special_tokens_beside_the_configuration_are_those_of_transformers(
    name: str, whole: bool, write: Write, tmp_path: Path, learned: tuple[dict[str, int], object]
) -> None:
    config, mapped, padding = MAPS[name]
    folder = write(**config)
    if whole:
        folder = tmp_path / "saved"
        CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(folder)
        (folder / "tokenizer_config.json").write_bytes((tmp_path / "tokenizer_config.json").read_bytes())
    (folder / "special_tokens_map.json").write_text(json.dumps(mapped), encoding="utf-8")
    ours, theirs = read_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    assert ours.tokens("", 3)[2] == learned[0][padding]
    for prompt in [*PROMPTS, *CORPUS]:
        same(ours, theirs, prompt)
        assert ours.tokens(prompt, 200) == theirs(prompt, padding="max_length", max_length=200)["input_ids"]


def test_tokens_that_the_configuration_numbers_are_taken(write: Write, learned: tuple[dict[str, int], list[list[str]]]) -> None:
    count = len(learned[0])
    spelled = {str(learned[0][name]): {**an_added_token(name, is_normalized=True), "special": True} for name in (START, END)}
    folder = write(added_tokens_decoder={**spelled, str(count): {**an_added_token("<cat-toy>", is_normalized=False), "special": False}})
    ours, theirs = read_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    assert count in ours.tokens("a <cat-toy>, red", 20)
    for prompt in ["a <cat-toy>, red", "<CAT-toy>", "<cat-toy><cat-toy>", *PROMPTS]:
        same(ours, theirs, prompt)


def test_tokens_that_the_configuration_numbers_go_before_those_of_tokenizer_json(
    write: Write, tmp_path: Path, learned: tuple[dict[str, int], object]
) -> None:
    saved = tmp_path / "saved"
    CLIPTokenizer.from_pretrained(write()).save_pretrained(saved)
    spelled = {str(learned[0][name]): {**an_added_token(name, is_normalized=True), "special": True} for name in (START, END)}
    write(added_tokens_decoder=spelled)
    (saved / "tokenizer_config.json").write_bytes((tmp_path / "tokenizer_config.json").read_bytes())
    ours, theirs = read_tokenizer(saved), CLIPTokenizer.from_pretrained(saved)
    for prompt in PROMPTS:
        same(ours, theirs, prompt)


@given(st.lists(st.one_of(st.sampled_from(PROMPTS), st.text(), st.text("aáА 'sStTdD!1.½界🎉\u0301\u200d\n"))).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_any_text_has_the_tokens_of_transformers(both: tuple[PromptTokenizer, CLIPTokenizer], prompt: str) -> None:
    same(*both, "".join(character for character in prompt if unicodedata.category(character) != "Cn"))


@pytest.fixture(scope="module")
def both(learned: tuple[dict[str, int], list[list[str]]], tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptTokenizer, CLIPTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    theirs = CLIPTokenizer(vocab=learned[0], merges=[(left, right) for left, right in learned[1]], model_max_length=77)
    theirs.save_pretrained(folder)
    return read_tokenizer(folder), theirs


def test_the_vocabulary_joins_letters(both: tuple[PromptTokenizer, CLIPTokenizer]) -> None:
    """So that the merges are tested, and not bytes alone."""
    assert len(both[0].tokens("striped circle trending", 5)) == 5


def test_an_empty_prompt_is_start_end_and_padding(both: tuple[PromptTokenizer, CLIPTokenizer], learned: tuple[dict[str, int], object]) -> None:
    start, end = learned[0][START], learned[0][END]
    assert both[0].tokens("", 5) == [start, end, end, end, end]
    assert both[0].tokens("", 2) == [start, end]


def test_a_prompt_that_is_too_long_is_refused_with_the_words_that_are_over(both: tuple[PromptTokenizer, CLIPTokenizer]) -> None:
    ours, theirs = both
    prompt = "A red circle, Photo-Realistic trending"
    count = len(theirs(prompt)["input_ids"])
    assert len(ours.tokens(prompt, count)) == count
    message = rf"the prompt has {count} tokens with its start and end, and the text encoder takes at most {{}}; shorten it: '{{}}' is over"
    with pytest.raises(PromptError, match=message.format(count - 1, "trending")):
        ours.tokens(prompt, count - 1)
    shorter = len(theirs("a red circle, photo-")["input_ids"])
    with pytest.raises(PromptError, match=message.format(shorter, "photo-realistic trending")):
        ours.tokens(prompt, shorter)
    with pytest.raises(PromptError, match=message.format(2, "a red circle, photo-realistic trending")):
        ours.tokens(prompt, 2)
    with pytest.raises(PromptError, match=r"'(blue ){60} \.\.\.' is over|blue \.\.\.' is over"):
        ours.tokens("blue " * LONG, 77)


def test_a_prompt_that_is_no_unicode_is_refused(both: tuple[PromptTokenizer, CLIPTokenizer]) -> None:
    with pytest.raises(PromptError, match=r"the prompt holds '\\udc80' at character 3, no Unicode; write it again"):
        both[0].tokens("re\udc80d", 77)


def test_capital_sigma_is_never_final() -> None:
    assert normalized("ΑΣ  \t\u3000İ\u0065\u0301") == "ασ i̇é"


def test_what_the_vocabulary_lacks_is_unknown(write: Write, learned: tuple[dict[str, int], list[list[str]]]) -> None:
    folder = write()
    lacking = {token: number for token, number in learned[0].items() if token not in ("z", "z</w>")}
    (folder / "vocab.json").write_text(json.dumps(lacking), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    ours, theirs = read_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    same(ours, theirs, "a zebra z")
    assert ours.tokens("z", 3) == [learned[0][START], learned[0][END], learned[0][END]]


BROKEN: dict[str, tuple[str, str, str]] = {
    "no merges": ("merges.txt", "", r"merges\.txt cannot be read .* a tokenizer has tokenizer_config\.json, and vocab\.json with merges\.txt, or"),
    "no vocabulary": ("vocab.json", "", r"vocab\.json cannot be read"),
    "no configuration": ("tokenizer_config.json", "", r"tokenizer_config\.json cannot be read"),
    "no JSON": ("vocab.json", "{", r"vocab\.json is no JSON .*; take it again from where it was made"),
    "a list": ("vocab.json", "[1]", r"vocab\.json holds a list; it must be a JSON object"),
    "no numbers": ("vocab.json", '{"a": "b"}', r"the vocabulary gives 'a' the number 'b'; it must be a whole number from 0 on"),
    "no special tokens": ("vocab.json", '{"a": 1}', r"the token '<\|startoftext\|>' has no number, for it is not in the vocabulary"),
    "a merge of three": ("merges.txt", "#version: 0.2\na b c\n", r"a merge is \['a', 'b', 'c'\]; it must be two tokens with one blank between them"),
    "a merge of another": ("merges.txt", "q x\n", r"the merge of 'q' and 'x' makes what the vocabulary does not have; take both from one tokenizer"),
    "unknown added": ("added_tokens.json", '{"<toy>": 9}', r"added_tokens\.json adds <toy>, which the vocabulary does not have; load the tokenizer"),
    "a side": ("tokenizer_config.json", '{"padding_side": "up"}', r"padding_side is 'up'; it must be right or left"),
    "stripping": (
        "tokenizer_config.json",
        json.dumps({"eos_token": {"content": END, "lstrip": True}}),
        r"the token '<\|endoftext\|>' has lstrip, which is not done here; set it to false",
    ),
    "a token without text": (
        "tokenizer_config.json",
        '{"eos_token": 7}',
        r"a special token is 7; it must be text, or an object",
    ),
    "a special token beside": ("special_tokens_map.json", '{"pad_token": 7}', r"special_tokens_map\.json: a special token is 7; it must be text"),
    "no map": ("special_tokens_map.json", "[]", r"special_tokens_map\.json holds a list; it must be a JSON object"),
    "a decoder of lists": ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', r"added_tokens_decoder is \[1\]; it must be an object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tokenizer_files_are_refused(name: str, write: Write) -> None:
    folder = write()
    file, content, message = BROKEN[name]
    (folder / file).write_text(content, encoding="utf-8")
    if not content:
        (folder / file).unlink()
    with pytest.raises(PromptError, match=message):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece"}}, r"its model is not CLIP's, BPE with the suffix '</w>'; take the tokenizer of the text encoder"),
        ({"added_tokens": None}, "lacks the vocabulary, the merges or the added tokens; take it again"),
    ],
)
def test_a_broken_tokenizer_json_is_refused(change: dict[str, object], message: str, write: Write, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    CLIPTokenizer.from_pretrained(write()).save_pretrained(saved)
    file = saved / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(PromptError, match=message):
        read_tokenizer(saved)


# --- steps ---


def exact_alphas(schedule: Schedule) -> torch.Tensor:
    """diffusers' formulas once more, in float64."""
    betas = DDIMScheduler(**schedule._asdict()).betas.double()
    count = schedule.num_train_timesteps
    if schedule.beta_schedule == "linear":
        betas = torch.linspace(schedule.beta_start, schedule.beta_end, count, dtype=torch.float64)
    elif schedule.beta_schedule == "scaled_linear":
        betas = torch.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, count, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def normal(seed: int, *shape: int) -> Real:
    return np.random.default_rng(seed).standard_normal(shape or (1, 4, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_alphas_are_those_of_diffusers(beta_schedule: str) -> None:
    schedule = Schedule(beta_schedule=beta_schedule, prediction_type="v_prediction")
    alphas = alphas_of(schedule)
    assert alphas.dtype == np.float64
    assert np.all(np.diff(alphas) < 0)
    assert np.abs(alphas - DDIMScheduler(**schedule._asdict()).alphas_cumprod.numpy()).max() < 1e-6  # theirs are float32
    if beta_schedule != "squaredcos_cap_v2":
        assert np.abs(alphas - exact_alphas(schedule).numpy()).max() < 1e-13


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 10, 16, 20, 25, 32, 50, 1000])
def test_timesteps_are_those_of_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert trailing_timesteps(steps) == scheduler.timesteps.tolist()


@given(st.integers(1, 2000).flatmap(lambda count: st.tuples(st.integers(1, count), st.just(count))))
@settings(deadline=None)
def test_timesteps_fall_from_the_last_and_nest(steps_and_count: tuple[int, int]) -> None:
    steps, count = steps_and_count
    timesteps = trailing_timesteps(steps, count)
    assert timesteps[0] == count - 1
    assert len(timesteps) == steps
    assert all(after < before for before, after in zip(timesteps, [*timesteps[1:], -1], strict=True))
    if 2 * steps <= count:
        assert trailing_timesteps(2 * steps, count)[::2] == timesteps


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_a_ddim_step_is_that_of_diffusers(prediction_type: str, beta_schedule: str, steps: int) -> None:
    schedule = Schedule(beta_schedule=beta_schedule, prediction_type=prediction_type)
    scheduler = DDIMScheduler(**schedule._asdict(), timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)
    alphas = alphas_of(schedule)
    scheduler.alphas_cumprod = torch.from_numpy(alphas)
    scheduler.set_timesteps(steps)
    timesteps = trailing_timesteps(steps)
    for position, timestep in enumerate(timesteps):
        latents, prediction = normal(position).astype(np.float64), normal(position + 1000).astype(np.float64)
        theirs = scheduler.step(torch.from_numpy(prediction), timestep, torch.from_numpy(latents)).prev_sample.numpy()
        after = alphas[timesteps[position + 1]] if position + 1 < steps else 1.0
        ours = ddim_step(prediction, latents, float(alphas[timestep]), float(after), prediction_type)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def network(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """Something smooth that depends on both."""
    return torch.tanh(latents.roll(1, -1) * 0.8 + timestep / 1000)


def predict(latents: Real, timestep: int) -> Real:
    predicted: Real = network(torch.from_numpy(latents), timestep).numpy()
    return predicted


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(prediction_type="v_prediction")], ids=PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 8, 20])
def test_ddim_goes_the_way_of_diffusers(schedule: Schedule, steps: int) -> None:
    """float32 all the way; diffusers' alphas are float32 too, so what differs grows a little."""
    scheduler = DDIMScheduler(**schedule._asdict(), timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(normal(0))
    for timestep in scheduler.timesteps:
        latents = scheduler.step(network(latents, int(timestep)), timestep, latents).prev_sample
    ours = ddim(predict, normal(0), schedule, steps)
    assert ours.dtype == np.float32
    assert np.abs(ours - latents.numpy()).max() < 1e-5 * np.abs(latents.numpy()).max()


def test_ddim_follows_the_noise_that_is_there() -> None:
    """A network that knows the noise leads to the clean latents, on a grid that does not divide the timesteps either."""
    clean, noise = normal(1), normal(2)
    for kind in PREDICTIONS:
        schedule = Schedule(prediction_type=kind)
        alphas = alphas_of(schedule)

        def knows(_noisy: Real, timestep: int, kind: str = kind, alphas: NDArray[np.float64] = alphas) -> Real:
            alpha = float(alphas[timestep])
            return noise if kind == "epsilon" else np.float32(alpha**0.5) * noise - np.float32((1 - alpha) ** 0.5) * clean

        last = float(alphas[-1])
        start = (last**0.5 * clean + (1 - last) ** 0.5 * noise).astype(np.float32)
        for steps in (1, 7, 32):
            np.testing.assert_allclose(ddim(knows, start, schedule, steps), clean, atol=2e-5)


@given(st.floats(1e-6, 1.0), st.integers(0, 100))
def test_both_predictions_say_the_same(alpha: float, seed: int) -> None:
    clean, noise = normal(seed).astype(np.float64), normal(seed + 1).astype(np.float64)
    noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    for prediction, kind in ((noise, "epsilon"), (velocity, "v_prediction")):
        found = clean_and_noise(prediction, noisy, alpha, kind)
        np.testing.assert_allclose(found[0], clean, atol=1e-9)
        np.testing.assert_allclose(found[1], noise, atol=1e-9)


@given(st.floats(-5, 30), st.integers(0, 100))
def test_guidance_weighs_both_texts(guidance: float, seed: int) -> None:
    conditional, unconditional = normal(seed, 1, 3, 4), normal(seed + 1, 1, 3, 4)
    calls: list[Real] = []

    def seen(text: Real) -> Real:
        calls.append(text)
        return 2 * text

    given_both = guided(seen, conditional, unconditional, guidance)
    expected = 2 * unconditional.astype(np.float64) + guidance * (2 * conditional.astype(np.float64) - 2 * unconditional)
    np.testing.assert_allclose(given_both, expected, rtol=1e-5, atol=1e-4)
    assert len(calls) == (1 if guidance == 1 else 2)


def test_guidance_1_runs_the_network_once() -> None:
    calls: list[Real] = []

    def seen(text: Real) -> Real:
        calls.append(text)
        return text

    text = normal(3)
    assert np.array_equal(guided(seen, text, None, 1.0), text)
    assert len(calls) == 1
    with pytest.raises(ValueError, match=r"guidance is 7\.5; only 1 does without the text states of the empty prompt, so give them"):
        guided(seen, text, None, 7.5)
    with pytest.raises(ValueError, match="guidance is nan; it must be a finite number, 1 for none"):
        guided(seen, text, text, float("nan"))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
def test_consistency_steps_are_those_of_diffusers(prediction_type: str, steps: int) -> None:
    schedule, consistency = Schedule(prediction_type=prediction_type), Consistency()
    scheduler = LCMScheduler(**schedule._asdict())
    scheduler.alphas_cumprod = torch.from_numpy(alphas_of(schedule)).float()
    scheduler.set_timesteps(steps)
    assert consistency_timesteps(steps, consistency.grid_steps) == scheduler.timesteps.tolist()
    latents, drawn = torch.from_numpy(normal(0)), torch.Generator().manual_seed(5)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(network(latents, int(timestep)), timestep, latents, generator=drawn).prev_sample
    again = torch.Generator().manual_seed(5)

    def draw() -> Real:
        fresh: Real = torch.randn((1, 4, 8, 8), generator=again).numpy()
        return fresh

    ours = consistency_steps(predict, normal(0), draw, schedule, consistency, steps)
    assert ours.dtype == np.float32
    assert np.abs(ours - latents.numpy()).max() < 1e-5 * np.abs(latents.numpy()).max()


def test_a_consistency_model_gives_its_input_where_no_noise_is() -> None:
    assert boundary_scalings(0, 10.0) == (1.0, 0.0)
    latents = normal(0)
    assert np.array_equal(consistency_clean(normal(1), latents, 0, 0.999, "epsilon", 10.0), latents)
    skip, out = boundary_scalings(999, 10.0)
    assert skip < 1e-8
    assert out == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(num_train_timesteps=0), "num_train_timesteps is 0; it must be at least 1"),
        (Schedule(beta_start=0.0), r"beta_start is 0\.0 and beta_end 0\.012; they must be above 0 and below 1, beta_start not above beta_end"),
        (Schedule(beta_start=0.5, beta_end=0.1), r"beta_start is 0\.5 and beta_end 0\.1"),
        (Schedule(beta_end=1.0), r"beta_end 1\.0"),
        (Schedule(beta_end=float("nan")), "beta_end nan"),
        (Schedule(beta_schedule="sigmoid"), "beta_schedule is 'sigmoid'; it must be one of linear, scaled_linear, squaredcos_cap_v2"),
        (Schedule(prediction_type="sample"), "prediction_type is 'sample'; it must be one of epsilon, v_prediction"),
    ],
)
def test_schedules_that_cannot_be_computed_are_refused(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alphas_of(schedule)


def test_counts_of_steps_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0; it must be from 1 to 1000, the timesteps that the network was trained on"):
        trailing_timesteps(0)
    with pytest.raises(ValueError, match="steps is 51; it must be from 1 to 50, the steps that the network was distilled on"):
        consistency_timesteps(51, 50)
    with pytest.raises(ValueError, match="steps is 0; it must be from 1 to 1000"):
        consistency_timesteps(1, 0)


def test_the_files_stand_alone_with_numpy_and_python_3_8(tmp_path: Path, write: Write) -> None:
    sources = {Path(module.__file__).name: f"export/{Path(module.__file__).name}" for module in (prompt_tokens, prompt_files, diffusion_steps)}
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_scripts(bundle, sources)
    own = {Path(name).stem for name in sources}
    for name in sources:
        for statement in ast.walk(ast.parse((bundle / name).read_text(encoding="utf-8"), feature_version=(3, 8))):
            if isinstance(statement, ast.ImportFrom):
                assert statement.level == 0
                assert (statement.module or "").split(".")[0] in {"numpy", *own, *sys.stdlib_module_names}
            elif isinstance(statement, ast.Import):
                assert all(alias.name.split(".")[0] in {"numpy", *sys.stdlib_module_names} for alias in statement.names)
    write()
    program = (
        "import json, sys; sys.path.insert(0, 'bundle'); import numpy as np; from pathlib import Path\n"
        "from prompt_files import read_tokenizer; from diffusion_steps import Schedule, ddim\n"
        "tokens = read_tokenizer(Path('.')).tokens(sys.argv[1], 40)\n"
        "np.save('latents.npy', ddim(lambda latents, timestep: latents / 2, np.load('noise.npy'), Schedule(), 8))\n"
        "print(json.dumps([tokens, sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'mcompress', 'transformers', 'diffusers'})]))"
    )
    np.save(tmp_path / "noise.npy", normal(9))
    done = subprocess.run([sys.executable, "-I", "-c", program, CORPUS[0]], cwd=tmp_path, check=True, capture_output=True, text=True)
    tokens, heavy = json.loads(done.stdout)
    assert heavy == []
    assert tokens == read_tokenizer(tmp_path).tokens(CORPUS[0], 40)
    assert np.array_equal(np.load(tmp_path / "latents.npy"), ddim(lambda latents, _timestep: latents / 2, normal(9), Schedule(), 8))
