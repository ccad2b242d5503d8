"""One model and one plan to four file formats. `EXPORTERS` is the whole registry: configuration type -> module, imported only when used."""

from __future__ import annotations

import importlib
from typing import cast

from mcompress.export.backend import Backend
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, Export, ExportConfig, OnnxConfig, TFLiteConfig

EXPORTERS: dict[type[Export], str] = {
    OnnxConfig: "mcompress.export.onnx",
    TFLiteConfig: "mcompress.export.tflite",
    ExecuTorchConfig: "mcompress.export.executorch",
    CoreMLConfig: "mcompress.export.coreml",
}


def backend_of(config: ExportConfig) -> Backend[ExportConfig]:
    """The module that writes files for this configuration; its libraries are imported when it is used."""
    return cast("Backend[ExportConfig]", importlib.import_module(EXPORTERS[type(config)]))


def backend_named(name: str) -> Backend[ExportConfig]:
    """The module of a backend by its name in target files: `onnx`, `tflite`, `executorch`, `coreml`. Raises `KeyError` for others."""
    modules = {str(config.model_fields["backend"].default): module for config, module in EXPORTERS.items()}
    return cast("Backend[ExportConfig]", importlib.import_module(modules[name]))
