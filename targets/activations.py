"""The two schemes of INT8 activations: real = scale * (q - zero point), with the zero point 0 or not."""

from __future__ import annotations

from typing import Literal

Activations = Literal["asymmetric", "symmetric"]
"""`asymmetric`: a zero point of each tensor's own, so that all 256 numbers serve its range. `symmetric`: the zero point 0 for every tensor, and the
scale max|x| / 127, as TensorRT has it; of a tensor without negative values half the numbers are unused."""
