"""A picture as a PNG file (ISO/IEC 15948): 8-bit RGB, rows without filters. Needs numpy; copied into the bundles of text to image."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EIGHT_BIT, RGB = 8, 2


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write (H, W, 3), through a sibling that takes the file's place. Raises `OSError`."""
    height, width = picture.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)  # each row begins with its filter, 0 for none
    header = struct.pack(">2I5B", width, height, EIGHT_BIT, RGB, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks))
        temporary.replace(path)
    finally:
        if temporary.is_file():
            temporary.unlink()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
