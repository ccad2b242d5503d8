"""What the manifest states about a talking face beyond its files: the steps around its network, its sound, and how it follows sound that arrives.

The packages of the tasks import torch, so they are imported where a bundle of a talking face is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcompress.errors import ExportError
from mcompress.export.interface import TensorFacts
from mcompress.export.manifest import ProcessingStep
from mcompress.export.manifest_speech import Component, MelParameters, Speech, Streaming
from mcompress.export.stated import postprocessing_of, preprocessing_of, sides_of

FEATHER_ROWS = 6
"""Of the 96 of a face: wide enough that the border does not show, and narrower than the way from the mask to the lips."""


def face_preprocessing_of(took: TensorFacts) -> tuple[ProcessingStep, ...]:
    """From a picture and another one of the same person to the input of a talking face's network, as data. Raises `ExportError` for no picture."""
    if not took.picture:
        raise ExportError(f"'{took.name}' is stated as no picture; a talking face's network takes faces there, so state it as one")
    from mcompress.compress.tasks.talking_face.portraits import MOUTH
    from mcompress.compress.tasks.talking_face.task import MASKED_FROM

    height, width = sides_of(took)
    across, down = MOUTH
    cut: dict[str, float | int | str] = {"height": height, "width": width, "mouth_x": across, "mouth_y": down}
    _tile, *steps = preprocessing_of(took)
    scaled = next(place for place, step in enumerate(steps, 1) if step.operation == "scale")
    return (
        ProcessingStep(operation="crop_face", arguments=cut),
        *steps[:scaled],
        ProcessingStep(operation="mask_rows", arguments={"first": MASKED_FROM, "last": height - 1, "value": 0.0}),
        ProcessingStep(operation="stack", arguments={"first": "the masked frame", "second": "the reference frame"}),
        *steps[scaled:],
    )


def speech_preprocessing_of(took: TensorFacts, speech: Speech) -> tuple[ProcessingStep, ...]:
    """From sound to the input that takes it, as data. Raises `ExportError` for a picture."""
    if took.picture:
        raise ExportError(f"'{took.name}' is stated as a picture; a talking face's network takes speech there, so state that it is none")
    window: dict[str, float | int | str] = {"bands": speech.mel.bands, "columns": speech.mel.frames_per_window}
    return (ProcessingStep(operation="log_mel", arguments=window), *preprocessing_of(took))


def face_postprocessing_of(gave: TensorFacts) -> tuple[ProcessingStep, ...]:
    """From the output of a talking face's network to the picture, as data."""
    from mcompress.compress.tasks.talking_face.task import MASKED_FROM

    rows: dict[str, float | int | str] = {"first": MASKED_FROM, "last": sides_of(gave)[0] - 1, "feather": FEATHER_ROWS}
    return (*postprocessing_of(gave), ProcessingStep(operation="paste_rows", arguments=rows))


def speech_of(took: Sequence[TensorFacts]) -> Speech:
    """What the input `audio` of a talking face's network is made of. Raises `ExportError` for a network that has no such input."""
    from mcompress.compress.tasks.talking_face.windows import SETTINGS

    if "audio" not in (facts.name for facts in took):
        names = ", ".join(facts.name for facts in took)
        raise ExportError(f"the network takes {names}; a talking face's takes its speech as 'audio', so name that argument of forward so")
    columns_per_s = SETTINGS.sample_rate_hz / SETTINGS.hop
    return Speech(
        input="audio",
        mel=MelParameters.model_validate(SETTINGS.as_dict()),
        columns_per_s=columns_per_s,
        columns_per_frame=columns_per_s / SETTINGS.video_fps,
        reference="mel.py",
    )


def streaming_of(took: Sequence[TensorFacts], gave: Sequence[TensorFacts], speech: Speech) -> Streaming:
    """One component without state: it takes a frame's window of sound, and what it needs of the sound is all that it waits for."""
    mel = speech.mel
    first = (mel.frames_per_window - 1) * mel.hop + mel.n_fft // 2  # a column is known half a transform after its middle
    # A window begins with the frame, or less than a column before it; the first one begins with it.
    return Streaming(
        state="none",
        components=(Component(name="generator", inputs=tuple(one.name for one in took), outputs=tuple(one.name for one in gave)),),
        frames_per_chunk=took[0].shape[0],
        samples_before_first_frame=first,
        samples_per_column=mel.hop,
        look_ahead_s=first / mel.sample_rate_hz,
    )
