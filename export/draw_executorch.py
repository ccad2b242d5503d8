"""ExecuTorch's files in their runtime, which needs torch; the rest of `draw.py` does without.

This file is part of mcompress and is copied into the bundles of text to image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mcompress.export.bundle_files import Execute
    from mcompress.export.replay import Facts, Tensor


def load_executorch(path: Path, _inputs: Sequence[Facts], _threads: int) -> Execute:
    """A file that is executed with as many threads as ExecuTorch chooses. Raises `RuntimeError` for one that it does not take."""
    try:
        import torch
        from executorch.runtime import Runtime
    except ImportError as error:
        raise RuntimeError(f"executorch cannot be imported ({error}); pip install executorch") from error
    method = Runtime.get().load_program(str(path)).load_method("forward")

    def execute(natives: Sequence[Tensor]) -> Tensor:
        return np.array(method.execute([torch.from_numpy(native) for native in natives])[0].numpy())

    return execute
