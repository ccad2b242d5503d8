"""The text encoder as a task: nothing of it is trained, so all that it needs are captions, and what the original makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor, nn

from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.tasks.text_to_image.components import AS_GOOD_AS_EQUAL_DB, Component, snr_db
from mcompress.compress.tasks.text_to_image.original import Original

VALIDATED = 16
VALIDATION_SEED = 31


class TextEncoding(Component):
    """Tokens in, their states out; truths are the original's states."""

    name = "text_encoding"
    metric, metric_title = "snr_db", "signal-to-noise ratio of the text states, beside the original's"
    baseline_name = "the states of an empty caption"
    input_channels = side = 1

    def __init__(self, original: Original, captions: Sequence[str], held_out: Sequence[str]) -> None:
        self.original, self.captions, self.held_out_captions = original, tuple(dict.fromkeys(captions)), tuple(dict.fromkeys(held_out))
        self.input_range, self.skipped = original.text_inputs()[0].value_range, original.notes
        self.output_range = original.state_range

    def example(self) -> tuple[Tensor, Tensor]:
        """Tokens, and the states of the empty caption."""
        return torch.zeros(1, self.original.longest), torch.zeros_like(self.original.no_caption)

    @property
    def data_digest(self) -> str:
        """SHA-256 of the captions and of the original."""
        return sha256("\n".join((*self.captions, "", *self.held_out_captions, self.original.digest)).encode()).hexdigest()

    def input_specs(self, input_shape: tuple[int, ...]) -> tuple[InputSpec, ...]:  # noqa: ARG002  (the tokenizer says how many)
        """Tokens."""
        return self.original.text_inputs()

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """The original's text encoder."""
        return self.original.spec(self.original.text_encoder, self.input_specs(input_shape)), self.original.text_encoder.module

    @property
    def held_out_sizes(self) -> dict[str, tuple[int, int]]:
        """None: all texts are filled up to one length."""
        return {}

    def held_out(self) -> tuple[Sample, ...]:
        """One held-out caption each."""
        return self._held_out

    @cached_property
    def _held_out(self) -> tuple[Sample, ...]:
        return tuple(Sample(f"caption-{place:02d}", *self._pair([caption])) for place, caption in enumerate(self.held_out_captions))

    def _pair(self, captions: Sequence[str]) -> tuple[Inputs, Tensor]:
        return (self.original.tokens(captions),), self.original.states(captions)

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """Some captions, always the same."""
        return self.training_batch(VALIDATED, 1, torch.Generator().manual_seed(VALIDATION_SEED))

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:  # noqa: ARG002  (never cut)
        """Tokens (N, L) of training captions, float32, and the original's states (N, L, D)."""
        which = torch.randint(len(self.captions), (batch_size,), generator=generator).tolist()
        return self._pair([self.captions[place] for place in which])

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Training captions; the first is the empty one, which every picture with guidance needs."""
        generator = torch.Generator().manual_seed(seed)
        for index in range(count):
            pair = self._pair([""]) if index == 0 else self.training_batch(input_shape[0], 1, generator)
            yield Sample(f"caption #{index}", *pair)

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """Signal-to-noise ratio, dB."""
        return snr_db(output, truth)

    def call_quality(self, output: Tensor, truth: Tensor) -> float:
        """The same, at most `AS_GOOD_AS_EQUAL_DB`."""
        return min(self.quality(output, truth), AS_GOOD_AS_EQUAL_DB)

    def baseline(self, sample: Sample) -> Tensor:
        """Whatever the caption says."""
        return self.original.no_caption.expand_as(sample.truth)

    def shown(self, answer: Tensor) -> None:
        """None."""
