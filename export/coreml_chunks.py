"""A Core ML package whose weights are more than a phone maps at once, as a pipeline of two models that Core ML runs one after the other.

It stays one package, which apps load and call as before: a model of type `pipeline` (Model.proto), each of its models with a weight file of its own
(`weights/0-weight.bin`), as coremltools' `make_pipeline` writes them. coremltools' `bisect_model` builds the program and both halves again, and holds
the weights in memory several times. Here the program's own messages are dealt out and weights are copied from file to file, so that every operator
keeps its name and its precision.

Each model is complete by itself: constants, casts of inputs, and the `dequantize` in front of an INT8 operator are in every model that reads them.
Between the models go float32 and int32 tensors, as with `bisect_model`: half precision is cast there and back, and an INT8 tensor is dequantized and
quantized again. Neither changes a number: rounding to fp16 moves a dequantized value by less than an eighth of its step.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mcompress.export.coreml_cut import Whole, blobs_of, main_block
from mcompress.export.mil.blob import ALIGNMENT, VERSION, WeightFile
from mcompress.export.mil.proto import model_messages
from mcompress.export.mil.reading import MODEL_PATH

if TYPE_CHECKING:
    from google.protobuf.message import Message

WEIGHTS = "weights/weight.bin"


def split(package: Path) -> None:
    """Divide the model of a saved package into two of about equally large weights, in place.

    Raises `ExportError` where it cannot be divided: control flow, several functions, or no place where both models would have weights.
    """
    import coremltools as ct

    model_file = Path(ct.libmodelpackage.ModelPackage(str(package)).getRootModel().path())
    model = model_messages().Model()
    model.ParseFromString(model_file.read_bytes())
    program = Whole(model, WeightFile(model_file.parent / WEIGHTS), package.name)
    whole = model_messages().Model(specificationVersion=model.specificationVersion)
    whole.description.CopyFrom(model.description)
    for number, part in enumerate(program.parts(program.best_cut())):
        place = f"weights/{number}-weight.bin"
        with (model_file.parent / place).open("wb") as stream:
            _move_weights(part, program.weights, stream, MODEL_PATH + place)
        whole.pipeline.models.append(part)
    model_file.write_bytes(whole.SerializeToString())
    (model_file.parent / WEIGHTS).unlink()


def _move_weights(part: Message, weights: WeightFile, stream: BinaryIO, name: str) -> None:
    """Write the weights that the part reads, each once, and let it read them in the file `name`, which `stream` is."""
    moved: dict[int, int] = {}
    stream.write(b"\0" * ALIGNMENT)
    for operation in main_block(part).operations:
        for blob in blobs_of(operation):
            offset = int(blob.offset)
            if offset not in moved:
                moved[offset] = weights.copy(offset, stream)
            blob.fileName, blob.offset = name, moved[offset]
    stream.seek(0)
    stream.write(struct.pack("<II", len(moved), VERSION))
