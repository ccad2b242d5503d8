"""Networks whose latency on phones is published, as operator tables: what device constants are fitted to.

`NETWORKS` maps the name under which latencies are published (quic/ai-hub-models, folder `qai_hub_models/models/<name>`; `<name>/<component>` where
a model is published in several components) to a `ReferenceNetwork`. Weights are never made: every network is built on the meta device.
"""

from __future__ import annotations

from functools import cache

from mcompress.compress.cost import operator_table
from mcompress.compress.networks.layers import Normalized
from mcompress.compress.networks.published import FAMILIES, NETWORKS
from mcompress.compress.networks.reference import ReferenceNetwork
from mcompress.errors import UsageError
from mcompress.targets.operators import OperatorTable

__all__ = ["FAMILIES", "NETWORKS", "ReferenceNetwork", "family_of", "network_table", "published_as"]


@cache
def network_table(name: str) -> OperatorTable:
    """Operators of the network `name` at its published input, as in the published file: with the normalization of the input where the file has it.

    Raises `UsageError` for a name that is not in `NETWORKS`, and `MissingBackendError` where the architecture needs a package that is not installed.
    """
    if name not in NETWORKS:
        raise UsageError(f"reference network '{name}' is not known; known are {', '.join(NETWORKS)}")
    reference = NETWORKS[name]
    network = reference.on_meta()
    if reference.normalized:
        shape = reference.input_shape
        network = Normalized(network, shape[1], len(shape)).to("meta").eval()
    return operator_table(network, reference.input_shape, dtype=reference.input_dtype)


def published_as(model: str, component: str) -> str | None:
    """The name in `NETWORKS` of a published row's model and component; None where the network is not described."""
    return next((name for name in (model, f"{model}/{component}") if name in NETWORKS), None)


def family_of(name: str) -> str:
    """Key of `FAMILIES`; `name` itself for a network that has no relatives there."""
    return next((family for family, members in FAMILIES.items() if name in members), name)
