"""Reference networks: their layers give the parameter counts and multiply-adds that others published."""

from __future__ import annotations

import importlib
import pickle

import pytest

from mcompress.compress.cost import operator_table
from mcompress.compress.networks import FAMILIES, NETWORKS, family_of, network_table, published_as
from mcompress.errors import MissingBackendError, UsageError
from mcompress.targets.operators import OperatorTable

# Published multiply-adds are rounded to two or three digits, and some leave out attention or resizing.
MACS_WITHIN = 0.015


def table(name: str) -> OperatorTable:
    try:
        return network_table(name)
    except MissingBackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_are_the_published_ones(name: str) -> None:
    """A wrong layer shows in the parameters or in the multiply-adds."""
    network, counted = NETWORKS[name], table(name)
    assert counted.params == pytest.approx(network.parameters, rel=network.parameters_within)
    if network.gmacs is not None:
        assert counted.macs / 1e9 == pytest.approx(network.gmacs, rel=MACS_WITHIN)
    assert counted.macs > 0
    assert counted.operators[0].live_elements > 0


@pytest.mark.parametrize(
    ("name", "convolutions"), [("resnet18", 20), ("resnet50", 53), ("mobilenet_v2", 52), ("squeezenet1_1", 26), ("quicksrnetmedium", 7), ("xlsr", 11)]
)
def test_convolutions_are_as_many_as_the_papers_say(name: str, convolutions: int) -> None:
    assert sum(len(row.kernel) == 2 and "convolution" in row.kind for row in table(name).operators) == convolutions


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.parameters < 10_000_000 and network.normalized])
def test_normalization_in_the_file_is_two_operators_more(name: str) -> None:
    network = NETWORKS[name]
    alone, published = operator_table(network.on_meta(), network.input_shape), table(name)
    assert len(published.operators) == len(alone.operators) + 2
    assert published.macs == alone.macs
    assert [row.output_shape for row in published.operators[:2]] == [network.input_shape] * 2


def test_nothing_is_allocated() -> None:
    assert all(tensor.is_meta for tensor in NETWORKS["fastsam_x"].on_meta().parameters())
    assert not NETWORKS["resnet18"].on_meta().training


def test_tables_are_plain_and_made_once() -> None:
    made = table("mobilenet_v3_small")
    assert pickle.loads(pickle.dumps(made)) == made
    assert network_table("mobilenet_v3_small") is made


def test_names_of_published_rows() -> None:
    assert published_as("resnet18", "ResNet18") == "resnet18"
    assert published_as("mediapipe_pose", "PoseDetector") == "mediapipe_pose/PoseDetector"
    assert published_as("mediapipe_pose", "Else") is None
    assert published_as("unheard_of", "Unheard-Of") is None
    with pytest.raises(UsageError, match="reference network 'unheard_of' is not known; known are resnet18, "):
        network_table("unheard_of")


def test_families_hold_networks_each_in_one() -> None:
    members = [name for family in FAMILIES.values() for name in family]
    assert set(members) <= NETWORKS.keys()
    assert len(members) == len(set(members))
    assert all(len(family) > 1 for family in FAMILIES.values())
    assert not FAMILIES.keys() & (NETWORKS.keys() - set(members))  # a network alone is a family of its own name
    assert family_of("real_esrgan_x4plus") == family_of("esrgan") == "esrgan"
    assert family_of("xlsr") == "xlsr"


def test_networks_of_one_builder_are_one_family() -> None:
    """The same operators at another width or depth: near twins."""
    beginnings = ("ffnet_", "quicksrnet", "mobileone_", "swin", "mobilenet_v3_", "resnet_", "fastsam_", "yolov8_", "yolov11_", "mediapipe_hand/")
    for beginning in beginnings:
        assert len({family_of(name) for name in NETWORKS if name.startswith(beginning)}) == 1, beginning


def test_every_network_says_where_it_is_from() -> None:
    for name, network in NETWORKS.items():
        assert "arXiv" in network.source or "https://" in network.source, name
        assert network.input_shape[0] == 1, name


def test_a_network_of_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingBackendError, match="not installed: pip install 'transformers"):
        NETWORKS["segformer_base"].on_meta()
