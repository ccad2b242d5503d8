"""Weight files of Core ML packages (`weights/weight.bin`): MIL blob storage, version 2.

Facts of the format (coremltools, `mlmodel/src/MILBlob/Blob/StorageFormat.hpp`), all little-endian: a header of 64 bytes (uint32 count, uint32 version
2, zeros), then per blob 64 bytes of metadata (uint32 sentinel 0xDEADBEEF, uint32 type, uint64 size in bytes, uint64 offset of the data, uint64 bits
of padding) and the data, each at a multiple of 64 bytes. A program refers to the offset of the metadata. Values of less than a byte are a stream of
bits, the lowest bit first.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.mil.types import NUMPY, PACKED_BITS, Array

ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
VERSION = 2
_HEADER = struct.Struct("<II")
_METADATA = struct.Struct("<IIQQQ")
BLOB_DTYPES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    5: "bf16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
"""`BlobDataType` of the format -> MIL's name."""
_COPIED_AT_ONCE = 2**24
ADVICE = "The package is damaged or was edited; export it again."


@dataclass(frozen=True)
class Blob:
    """Where one constant lies in a weight file; its metadata were checked, its values are read when asked for."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte of the data."""
    size_bytes: int

    def read(self) -> Array:
        """The values, unpacked. Raises `ExportError` if the file became shorter, or the type has no reader."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.start)
                content = stream.read(self.size_bytes)
        except OSError as problem:
            raise ExportError(f"{self.file} cannot be read: {problem.strerror}. {ADVICE}") from problem
        if len(content) < self.size_bytes:
            raise ExportError(f"{self.file} ends inside the data at byte {self.start} ({len(content)} of {self.size_bytes} bytes). {ADVICE}")
        return unpacked(content, self.dtype, self.shape)


def unpacked(content: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """Little-endian values as an array; those of less than a byte one per byte, those of bfloat16 as fp32."""
    if dtype == "bf16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)
    if dtype not in PACKED_BITS:
        return np.frombuffer(content, NUMPY[dtype]).reshape(shape)
    bits = PACKED_BITS[dtype]
    count = math.prod(shape)
    stream = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little", count=count * bits).reshape(count, bits)
    values: NDArray[np.uint8] = (stream << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if dtype == "int4":
        return ((values.astype(np.int8) ^ np.int8(8)) - np.int8(8)).reshape(shape)
    return values.reshape(shape)


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that values of that type take in a weight file."""
    count = math.prod(shape)
    if dtype in PACKED_BITS:
        return -(-count * PACKED_BITS[dtype] // 8)
    return count * (2 if dtype == "bf16" else NUMPY[dtype].itemsize)


class WeightFile:
    """One weight file. Raises `ExportError` if it is not one."""

    def __init__(self, path: Path) -> None:
        try:
            self._size_bytes = path.stat().st_size
            with path.open("rb") as stream:
                header = stream.read(ALIGNMENT)
        except OSError as problem:
            raise ExportError(f"the weight file {path} cannot be read: {problem.strerror}. {ADVICE}") from problem
        if len(header) < ALIGNMENT:
            raise ExportError(f"the weight file {path} has {self._size_bytes} bytes; its header alone has {ALIGNMENT}. {ADVICE}")
        _count, version = _HEADER.unpack_from(header)
        if version != VERSION:
            raise ExportError(f"the weight file {path} is of version {version}; only version {VERSION} can be read. {ADVICE}")
        self._path = path

    def size_at(self, offset: int) -> int:
        """Bytes of data of the blob whose metadata are at `offset`."""
        return self._metadata(offset, f"a blob lies at byte {offset} of {self._path}")[1]

    def copy(self, offset: int, to: BinaryIO) -> int:
        """Write the blob whose metadata are at `offset` behind what is in another weight file; gives the offset there."""
        kind, size_bytes, start, padding_bits = self._metadata(offset, f"a blob lies at byte {offset} of {self._path}")
        place = to.seek(-(-to.seek(0, os.SEEK_END) // ALIGNMENT) * ALIGNMENT)
        to.write(_METADATA.pack(SENTINEL, kind, size_bytes, place + ALIGNMENT, padding_bits).ljust(ALIGNMENT, b"\0"))
        with self._path.open("rb") as stream:
            stream.seek(start)
            left = size_bytes
            while left:
                content = stream.read(min(left, _COPIED_AT_ONCE))
                if not content:
                    raise ExportError(f"{self._path} ends inside the data at byte {start}. {ADVICE}")
                to.write(content)
                left -= len(content)
        return place

    def blob(self, offset: int, dtype: str, shape: tuple[int, ...], owner: str) -> Blob:
        """The blob whose metadata are at `offset`, which must hold `dtype` values of `shape`; `owner` names the constant in errors."""
        where = f"the constant '{owner}' lies at byte {offset} of {self._path}"
        kind, size_bytes, start, padding_bits = self._metadata(offset, where)
        if BLOB_DTYPES.get(kind) != dtype:
            raise ExportError(f"{where}: the program says {dtype}, the weight file {BLOB_DTYPES.get(kind, f'type {kind}')}. {ADVICE}")
        if start + size_bytes > self._size_bytes or start < offset + ALIGNMENT:
            raise ExportError(
                f"{where}: its data, bytes {start} to {start + size_bytes}, are not inside the file of {self._size_bytes} bytes. {ADVICE}"
            )
        needed = bytes_of(dtype, shape)
        if size_bytes != needed or (dtype in PACKED_BITS and padding_bits != 8 * size_bytes - math.prod(shape) * PACKED_BITS[dtype]):
            raise ExportError(f"{where}: {dtype} values of shape {shape} take {needed} bytes, the weight file holds {size_bytes}. {ADVICE}")
        return Blob(self._path, dtype, shape, start, size_bytes)

    def _metadata(self, offset: int, where: str) -> tuple[int, int, int, int]:
        """Type, bytes, start of the data, bits of padding."""
        if offset < ALIGNMENT or offset % ALIGNMENT or offset + ALIGNMENT > self._size_bytes:
            raise ExportError(f"{where}, which has {self._size_bytes} bytes; offsets are multiples of {ALIGNMENT} inside the file. {ADVICE}")
        with self._path.open("rb") as stream:
            stream.seek(offset)
            sentinel, kind, size_bytes, start, padding_bits = _METADATA.unpack(stream.read(_METADATA.size))
        if sentinel != SENTINEL:
            raise ExportError(f"{where}, where {SENTINEL:#010x} must stand and {sentinel:#010x} stands. {ADVICE}")
        return kind, size_bytes, start, padding_bits
