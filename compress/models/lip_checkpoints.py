"""Weights of talking-face networks: the arguments that their shapes tell, and the order of the colours that they were trained with.

Wav2Lip's public files hold `state_dict`, whose names, behind the prefix `module.`, are those of the networks here; the compressed generator's are the
same with fewer blocks. They were trained on frames as OpenCV reads them, BGR, which no file says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import JsonValue
from torch import Tensor

from mcompress.compress.models.checkpoint_messages import check_layers
from mcompress.errors import CheckpointError

Args = dict[str, JsonValue]
CALLED = {"wav2lip": "Wav2Lip's generator", "syncnet": "SyncNet", "quality_discriminator": "Wav2Lip's quality discriminator"}
"""What messages call a network whose arguments its weights tell."""
FACE_STAGES, AUDIO_STAGES, DECODER_STAGES = 6, 4, 7
"""Stages that have a width; behind those of face and speech stand two convolutions that end in one pixel."""
COLOURS: dict[str, tuple[tuple[str, int], ...]] = {
    "wav2lip": (("face_encoder_blocks.0.0.conv_block.0.weight", 1), ("output_block.1.weight", 0), ("output_block.1.bias", 0)),
    "syncnet": (("face_encoder.0.conv_block.0.weight", 1),),
    "quality_discriminator": (("face_encoder_blocks.0.0.conv_block.0.weight", 1),),
}
"""Network -> the weights that meet pictures, and which of their axes is the colours, three and three."""


def wav2lip_args_of(state_dict: Mapping[str, Tensor]) -> Args:
    """The arguments of `wav2lip` with which these weights fit.

    The audio encoder is one list of layers; its stages begin where the width changes. Raises `CheckpointError` where these are not such weights, and
    where stages of equal width have residual blocks, which nothing tells apart.
    """
    face = [_shapes(state_dict, f"face_encoder_blocks.{stage}") for stage in range(FACE_STAGES)]
    decoder = [_shapes(state_dict, f"face_decoder_blocks.{stage}") for stage in range(DECODER_STAGES)]
    audio_widths, audio_blocks = _audio_of(_shapes(state_dict, "audio_encoder"))
    check_layers(CALLED["wav2lip"], state_dict, ["output_block.0.conv_block.0"], state_dict)
    return {
        "face_widths": [stage[0][0] for stage in face],
        "audio_widths": audio_widths,
        # a transposed convolution has its outputs on the second axis
        "decoder_widths": [decoder[0][0][0], *(stage[0][1] for stage in decoder[1:])],
        "output_width": int(state_dict["output_block.0.conv_block.0.weight"].shape[0]),
        "face_blocks": [len(stage) - 1 for stage in face[1:]],
        "audio_blocks": audio_blocks,
        "decoder_blocks": [len(stage) - 1 for stage in decoder[1:]],
    }


def syncnet_args_of(state_dict: Mapping[str, Tensor]) -> Args:
    """The arguments of `syncnet` with which these weights fit. Raises `CheckpointError` where these are not such weights."""
    return _width_of(CALLED["syncnet"], state_dict, "face_encoder.16.conv_block.0", 0)


def quality_discriminator_args_of(state_dict: Mapping[str, Tensor]) -> Args:
    """The arguments of `quality_discriminator` with which these weights fit. Raises `CheckpointError` where these are not such weights."""
    return _width_of(CALLED["quality_discriminator"], state_dict, "binary_pred.0", 1)


def for_rgb(network: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network of BGR pictures, turned into those that compute the same from RGB ones.

    Exactly the same: channels of the first convolution, and of what gives the picture, change places. Raises `CheckpointError` for a network of which
    it is not known where the colours are.
    """
    if network not in COLOURS:
        raise CheckpointError(
            f"colour_order is BGR, and which weights of the network '{network}' stand for colours is not known (of {', '.join(COLOURS)} it is); "
            "leave colour_order out, and swap the channels in a network of your own"
        )
    swapped = {name: _swapped(tensors[name], axis) for name, axis in COLOURS[network] if name in tensors}
    return {**tensors, **swapped}


def _swapped(weights: Tensor, axis: int) -> Tensor:
    """Each three channels along `axis` the other way round."""
    before, behind = weights.shape[:axis], weights.shape[axis + 1 :]
    return weights.reshape(*before, -1, 3, *behind).flip(axis + 1).reshape(weights.shape)


def _shapes(state_dict: Mapping[str, Tensor], stage: str) -> list[tuple[int, ...]]:
    """Shapes of the convolutions of a stage, at least one."""
    layers = [f"{stage}.0.conv_block.0"]
    while f"{stage}.{len(layers)}.conv_block.0.weight" in state_dict:
        layers.append(f"{stage}.{len(layers)}.conv_block.0")
    check_layers(CALLED["wav2lip"], state_dict, layers, state_dict)
    return [tuple(state_dict[f"{layer}.weight"].shape) for layer in layers]


def _audio_of(shapes: Sequence[tuple[int, ...]]) -> tuple[list[JsonValue], list[JsonValue]]:
    """Widths of the audio encoder, and residual blocks per stage."""
    *body, _, last = shapes if len(shapes) > AUDIO_STAGES + 1 else (*shapes, (), ())
    starts = [index for index, shape in enumerate(body) if index == 0 or shape[0] != shape[1]]
    if len(body) == AUDIO_STAGES:
        starts = list(range(AUDIO_STAGES))
    if len(starts) != AUDIO_STAGES or not last:
        raise CheckpointError(
            f"{len(starts)} of the {len(shapes)} layers of its audio encoder change the number of channels, which does not tell where the "
            f"{AUDIO_STAGES} stages begin; "
            "give face_widths, audio_widths, decoder_widths, output_width, face_blocks, audio_blocks and decoder_blocks as args"
        )
    ends = [*starts[1:], len(body)]
    return [*(body[start][0] for start in starts), last[0]], [end - start - 1 for start, end in zip(starts, ends, strict=True)]


def _width_of(what: str, state_dict: Mapping[str, Tensor], layer: str, axis: int) -> Args:
    check_layers(what, state_dict, [layer], state_dict)
    return {"width": int(state_dict[f"{layer}.weight"].shape[axis])}


ARGS_OF: dict[str, Callable[[Mapping[str, Tensor]], Args]] = {
    "wav2lip": wav2lip_args_of,
    "syncnet": syncnet_args_of,
    "quality_discriminator": quality_discriminator_args_of,
}
