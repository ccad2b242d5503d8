"""The lip-sync expert: a SyncNet that was trained to tell whether five frames of a mouth fit 200 ms of speech, and then stays as it is.

The embedded one (`expert_training` made it) has seen the embedded clips alone, in a sixty-fourth of SyncNet's published size; what it says is called
"sync by the embedded expert", never LSE-C or LSE-D, which another, published network computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

import torch
from torch import Tensor

from mcompress.compress.models.lip_experts import FRAMES, SyncNet, sync_loss
from mcompress.compress.models.spec import InputSpec
from mcompress.compress.models.wav2lip import FACE_SIDE, MEL_BANDS, MEL_FRAMES
from mcompress.compress.tasks.embedded_network import embedded_network
from mcompress.compress.tasks.talking_face.windows import SETTINGS
from mcompress.compress.tasks.task import Expert, Inputs
from mcompress.compress.teacher import load_network
from mcompress.errors import PlanError
from mcompress.targets.schema import NetworkConfig

LOWER = FACE_SIDE // 2
"""Row where the lower half of a face begins, the half that is masked and judged."""
STEM = "expert"
EMBEDDED_TITLE = "lip-sync expert made by mcompress from the embedded clips"


class LipSyncExpert(Expert):
    """SyncNet on runs of five neighbouring frames."""

    least_batch = FRAMES

    def __init__(self, network: SyncNet, title: str) -> None:
        super().__init__()
        self.network, self.title = network.eval().requires_grad_(False), title

    def similarity(self, faces: Tensor, windows: Tensor) -> Tensor:
        """How well mouth and speech fit, (N // 5,) in [0, 1]: faces (N, 3, 96, 96) in [0, 1] in runs of five, and mel windows (N, 1, 80, 16)."""
        similarity: Tensor = self.network(mouths_of(faces), windows[: len(faces) // FRAMES * FRAMES : FRAMES])
        return similarity

    def forward(self, inputs: Inputs, output: Tensor) -> Tensor:
        """Binary cross-entropy of the cosine to 1 (Wav2Lip, section 3.2, E_sync) of the first five frames, which are neighbours.

        Raises `PlanError` for fewer.
        """
        if len(output) < FRAMES:
            raise PlanError(
                [f"batch_size is {len(output)}; the lip-sync expert judges {FRAMES} frames together: give at least as many, or set expert to 0"]
            )
        similarity = self.similarity(output[:FRAMES], inputs[1])
        return sync_loss(similarity, torch.ones_like(similarity))


def mouths_of(faces: Tensor) -> Tensor:
    """Faces (N, 3, 96, 96) in runs of five -> lower halves, five behind one another: (N // 5, 15, 48, 96); a last run that is shorter is left out."""
    whole = faces[: len(faces) // FRAMES * FRAMES, :, LOWER:]
    return whole.reshape(-1, 3 * FRAMES, *whole.shape[2:])


def sync_inputs() -> tuple[InputSpec, ...]:
    """What SyncNet takes."""
    return (
        InputSpec("mouths", (1, 3 * FRAMES, FACE_SIDE - LOWER, FACE_SIDE), (0.0, 1.0)),
        InputSpec("audio", (1, 1, MEL_BANDS, MEL_FRAMES), (-SETTINGS.largest, SETTINGS.largest)),
    )


@dataclass(frozen=True)
class ExpertSource:
    """Where an expert comes from, and the SHA-256 of its weights; it is read when it is first needed."""

    digest: str
    load: Callable[[], LipSyncExpert]


def embedded_expert() -> ExpertSource | None:
    """The expert that ships; None before it was made."""
    weights = files("mcompress.compress.tasks.talking_face").joinpath(f"{STEM}.safetensors")
    return ExpertSource(sha256(weights.read_bytes()).hexdigest(), _embedded) if weights.is_file() else None


@cache
def _embedded() -> LipSyncExpert:
    _, network = embedded_network("talking_face", sync_inputs(), STEM)
    if not isinstance(network, SyncNet):
        raise TypeError(f"the embedded expert is a {type(network).__name__}")
    return LipSyncExpert(network, EMBEDDED_TITLE)


def given_expert(config: NetworkConfig) -> ExpertSource:
    """The user's expert, a `syncnet` with a checkpoint. Raises `PlanError`."""
    if config.network != "syncnet" or config.checkpoint is None:
        without = " without a checkpoint" if config.checkpoint is None else ""
        raise PlanError(
            [f"model.expert is network '{config.network}'{without}; it must be a trained SyncNet: {{network: syncnet, checkpoint: FILE}}"]
        )
    _, network = load_network(config, sync_inputs())
    if not isinstance(network, SyncNet):
        raise TypeError(f"syncnet built a {type(network).__name__}")
    expert = LipSyncExpert(network, f"lip-sync expert {config.checkpoint.name}")
    digest = sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return ExpertSource(digest.hexdigest(), lambda: expert)
