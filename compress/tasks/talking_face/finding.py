"""Finds faces in frames and cuts them out, so that networks see squares that hold a face alike; how, `face_search` says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcompress.compress.tasks.talking_face.face_search import FACE_SIDE, Box, cut_face, no_face, search_faces, several
from mcompress.errors import PlanError, UsageError

__all__ = ["FACE_SIDE", "Box", "crop_faces", "find_face", "find_faces", "no_face", "several"]


def find_faces(frame: Tensor) -> tuple[Box, ...]:
    """The faces of a frame, uint8 (3, H, W), the surest first."""
    return search_faces(frame.permute(1, 2, 0).contiguous().numpy())


def find_face(frame: Tensor, name: str) -> Box:
    """The one face of a frame, uint8 (3, H, W), that messages call `name`. Raises `PlanError` if there is none, or if there are several."""
    boxes = find_faces(frame)
    if len(boxes) == 1:
        return boxes[0]
    raise PlanError([f"{name}: {several(len(boxes)) if boxes else no_face()}"])


def crop_faces(frames: Tensor, boxes: Sequence[Box], side: int = FACE_SIDE) -> Tensor:
    """Cut one box out of each frame and resize it as `cut_face` does: uint8 (T, 3, H, W) and T boxes -> uint8 (T, 3, side, side).

    Raises `UsageError` unless there is one box for each frame, with its middle in the frame.
    """
    if len(boxes) != len(frames):
        raise UsageError(f"{len(frames)} frames and {len(boxes)} boxes; each frame needs one box")
    faces = torch.empty((len(frames), 3, side, side), dtype=torch.uint8)
    for number, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        try:
            face = cut_face(frame.permute(1, 2, 0).numpy(), box, side)
        except ValueError as error:
            raise UsageError(f"box {number} {error}") from error
        faces[number] = torch.from_numpy(face).permute(2, 0, 1)
    return faces
