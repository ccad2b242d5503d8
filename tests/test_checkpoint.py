"""Weights files: every published naming loads and computes the same; nothing hostile or broken gets in."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mcompress.compress.models.build import build
from mcompress.compress.models.checkpoint import load_weights, read_state_dict
from mcompress.compress.models.checkpoint_names import rrdb_args_of
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import CheckpointError

NOISE = bytes(torch.randint(256, (3000,), generator=torch.Generator().manual_seed(0)).tolist())
SMALL = {"features": 8, "blocks": 2, "growth": 4}


def published_shapes(features: int, blocks: int, growth: int) -> OrderedDict[str, tuple[int, ...]]:
    """The names of the ESRGAN repository's RRDBNet (2019) with their shapes, written down without our network."""
    shapes: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def conv(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, 3, 3), (outputs,)

    conv("conv_first", 3, features)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for layer in range(1, 6):
                conv(f"RRDB_trunk.{block}.RDB{dense}.conv{layer}", features + (layer - 1) * growth, features if layer == 5 else growth)
    for name in ("trunk_conv", "upconv1", "upconv2", "HRconv"):
        conv(name, features, features)
    conv("conv_last", features, 3)
    return shapes


def weights(features: int, blocks: int, growth: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in published_shapes(features, blocks, growth).items()}


def as_2018(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    layers = {"conv_first": "model.0", "trunk_conv": f"model.1.sub.{blocks}", "upconv1": "model.3", "upconv2": "model.6"}
    layers |= {"HRconv": "model.8", "conv_last": "model.10"}
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{layers[layer]}.{kind}" if layer in layers else f"{layer.replace('RRDB_trunk', 'model.1.sub')}.0.{kind}"] = value
    return renamed


def as_basicsr(state: dict[str, Tensor]) -> dict[str, Tensor]:
    words = (("RRDB_trunk", "body"), ("RDB", "rdb"), ("trunk_conv", "conv_body"), ("upconv", "conv_up"), ("HRconv", "conv_hr"))
    renamed = {}
    for name, value in state.items():
        for old, new in words:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def reference(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """ESRGAN's generator in functional form over the 2019 names: what the published weights compute."""
    f = nn.functional

    def conv(name: str, value: Tensor) -> Tensor:
        return f.conv2d(value, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def act(value: Tensor) -> Tensor:
        return f.leaky_relu(value, 0.2)

    def up(value: Tensor) -> Tensor:
        return f.interpolate(value, scale_factor=2.0, mode="nearest")

    head = conv("conv_first", x)
    trunk = head
    for block in range(blocks):
        before = trunk
        for dense in (1, 2, 3):
            grown = [trunk]
            for layer in range(1, 5):
                grown.append(act(conv(f"RRDB_trunk.{block}.RDB{dense}.conv{layer}", torch.cat(grown, 1))))
            trunk = conv(f"RRDB_trunk.{block}.RDB{dense}.conv5", torch.cat(grown, 1)) * 0.2 + trunk
        trunk = trunk * 0.2 + before
    trunk = head + conv("trunk_conv", trunk)
    trunk = act(conv("upconv2", up(act(conv("upconv1", up(trunk))))))
    return conv("conv_last", act(conv("HRconv", trunk)))


NAMINGS = {"2018": "ESRGAN 2018", "2019": "ESRGAN 2019", "basicsr": "BasicSR"}


def named(naming: str, state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    return {"2018": lambda: as_2018(state, blocks), "2019": lambda: dict(state), "basicsr": lambda: as_basicsr(state)}[naming]()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("naming", list(NAMINGS))
def test_every_naming_loads_and_computes_what_was_published(naming: str, suffix: str, tmp_path: Path) -> None:
    state = weights(**SMALL)
    path = tmp_path / f"weights{suffix}"
    renamed = named(naming, state, SMALL["blocks"])
    save_file(renamed, path) if suffix == ".safetensors" else torch.save(renamed, path)
    assert rrdb_args_of(read_state_dict(path)) == SMALL
    network = build(ModelSpec("rrdb", dict(SMALL)))
    report = load_weights(network, path, "rrdb")
    assert (report.naming, report.wrapper, report.format) == (NAMINGS[naming], None, suffix[1:])
    assert report.tensors == len(state)
    assert report.parameters == sum(value.numel() for value in state.values())
    x = torch.rand(1, 3, 12, 10)
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(state, x, SMALL["blocks"]), atol=1e-6, rtol=1e-5)


def test_the_full_published_generator_loads_from_the_original_file(tmp_path: Path) -> None:
    """23 blocks, 64 features: `RRDB_ESRGAN_x4.pth` as it was first published, and the same weights as Real-ESRGAN publishes them."""
    state = weights(64, 23, 32)
    assert sum(value.numel() for value in state.values()) == 16_697_987
    original = as_2018(state, 23)
    assert {"model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight", "model.1.sub.22.RDB3.conv5.0.bias", "model.1.sub.23.weight"} <= set(original)
    torch.save(original, tmp_path / "RRDB_ESRGAN_x4.pth")
    torch.save({"params_ema": as_basicsr(state)}, tmp_path / "RealESRGAN_x4plus.pth")
    x, outputs = torch.rand(1, 3, 8, 8), []
    for name in ("RRDB_ESRGAN_x4.pth", "RealESRGAN_x4plus.pth"):
        args = rrdb_args_of(read_state_dict(tmp_path / name))
        assert args == {"features": 64, "blocks": 23, "growth": 32}
        network = build(ModelSpec("rrdb", dict(args)))
        load_weights(network, tmp_path / name, "rrdb")
        with torch.no_grad():
            outputs.append(network(x))
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], reference(state, x, 23), atol=1e-5, rtol=1e-4)


def test_averaged_weights_are_preferred_and_the_report_says_so(tmp_path: Path) -> None:
    state = as_basicsr(weights(**SMALL))
    path = tmp_path / "both.pth"
    torch.save({"params": {k: v + 1 for k, v in state.items()}, "params_ema": state}, path)
    network = build(ModelSpec("rrdb", dict(SMALL)))
    report = load_weights(network, path, "rrdb")
    assert report.wrapper == "params_ema"
    assert "took 'params_ema', not 'params'" in report.notes
    assert torch.equal(network.conv_first.weight, state["conv_first.weight"])


@pytest.mark.parametrize("wrapper", ["params", "state_dict", "generator", "anything"])
def test_wrappers_and_the_prefix_of_parallel_training_come_off(wrapper: str, tmp_path: Path) -> None:
    state = weights(**SMALL)
    path = tmp_path / "wrapped.pth"
    torch.save({"epoch": 3, wrapper: {f"module.{name}": value for name, value in state.items()}}, path)
    assert set(read_state_dict(path)) == set(state)
    assert load_weights(build(ModelSpec("rrdb", dict(SMALL))), path, "rrdb").wrapper == wrapper


def test_half_precision_is_converted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in as_basicsr(weights(**SMALL)).items()}, path)
    network = build(ModelSpec("rrdb", dict(SMALL)))
    report = load_weights(network, path, "rrdb")
    assert report.notes == ("stored as float16, converted to the network's precision",)
    assert network.conv_first.weight.dtype == torch.float32


def test_other_networks_load_by_their_own_names_and_old_batch_normalization_without_counters_too(tmp_path: Path) -> None:
    spec = ModelSpec("vgg_discriminator", {"features": 2})
    trained = build(spec)
    trained.bn0_1.running_mean.fill_(0.5)
    state = {name: value for name, value in trained.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "d.pth")
    network = build(spec)
    load_weights(network, tmp_path / "d.pth", "vgg_discriminator")
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), trained.eval()(x))


# --- another architecture ---


def refused(path: Path, *parts: str, network: str = "rrdb", args: dict[str, int] | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_weights(build(ModelSpec(network, dict(SMALL if args is None else args))), path, network)
    for part in parts:
        assert part in str(caught.value)


def test_another_size_names_the_shapes_and_the_size_that_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(as_2018(weights(16, 2, 4), 2), path)
    refused(
        path,
        "does not fit the network 'rrdb'",
        "'conv_first.weight' is (16, 3, 3, 3), the network's is (8, 3, 3, 3)",
        "The file is an RRDBNet with {'features': 16, 'blocks': 2, 'growth': 4}: give these as args, or leave args out.",
    )


def test_more_or_fewer_blocks_name_the_first_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights(8, 1, 4), path)
    refused(path, "30 of 72 missing in the file: 'body.1.rdb1.conv1.weight', 'body.1.rdb1.conv1.bias'", "'blocks': 1")
    torch.save(weights(8, 3, 4), path)
    refused(path, "30 of 72 not in the network: 'body.2.rdb1.conv1.weight'", "'blocks': 3")


def test_another_architecture_names_what_is_missing_and_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(build(ModelSpec("imdn", {"features": 16})).state_dict(), path)
    refused(path, "72 of 72 missing in the file: 'conv_first.weight'", "not in the network: 'IMDB1.c1.bias'", "the first keys are 'IMDB1.c1.bias'")
    with pytest.raises(CheckpointError, match=r"not the weights of ESRGAN's generator x4 \(RRDBNet\): 'conv_first.weight' is missing"):
        rrdb_args_of(read_state_dict(path))


def test_real_esrgan_x2_is_not_taken_for_x4(tmp_path: Path) -> None:
    state = as_basicsr(weights(**SMALL))
    state["conv_first.weight"] = torch.zeros(8, 12, 3, 3)
    with pytest.raises(CheckpointError, match=re.escape("conv_first.weight is (8, 12, 3, 3)")):
        rrdb_args_of(state)


def test_weights_of_a_diverged_training_are_refused(tmp_path: Path) -> None:
    state = weights(**SMALL)
    state["upconv1.bias"][2] = float("nan")
    path = tmp_path / "w.pth"
    torch.save(state, path)
    refused(path, "'conv_up1.bias' holds NaN or infinity", "Use an earlier checkpoint")


# --- broken and hostile files ---


class Writes:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def harmless_after_reading(path: Path, witness: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    assert not witness.exists()


def test_the_witness_works(tmp_path: Path) -> None:
    """A plain unpickler does run the file that the next tests use; otherwise they would prove nothing."""
    pickle.loads(pickle.dumps(Writes(tmp_path / "witness")))
    assert (tmp_path / "witness").exists()


def test_a_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"conv_first.weight": Writes(witness)}, protocol=2))
    harmless_after_reading(path, witness, "was not executed", "system")


def test_a_malicious_torch_file_is_not_executed(tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.pth"
    torch.save({"params": {"conv_first.weight": torch.zeros(3)}, "extra": Writes(witness)}, path)
    harmless_after_reading(path, witness, "was not executed", "system", "torch.save(model.state_dict()")


def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(nn.Conv2d(3, 3, 3), path)
    harmless_after_reading(path, tmp_path / "none", "was not executed", "Conv2d", "torch.save(model.state_dict(), 'weights.pth')")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.98])
def test_a_file_that_is_cut_off_anywhere_is_refused(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state = weights(**SMALL)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    harmless_after_reading(path, tmp_path / "none", "Download or copy it again" if share == 0 else "ownload or copy it again")


@pytest.mark.parametrize("content", [b"<html>404: Not Found</html>", b"\x00" * 4096, b"PK\x03\x04" + b"\x07" * 500, b"\x80\x02}q\x00.", NOISE])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_something_else_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    harmless_after_reading(path, tmp_path / "none")


def test_old_format_files_load_and_cut_off_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    state = weights(**SMALL)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(path)["conv_last.bias"], state["conv_last.bias"])
    path.write_bytes(path.read_bytes()[:-1000])
    harmless_after_reading(path, tmp_path / "none", "cut off or damaged")


def test_a_zip_bomb_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x00" * 50_000_000)
    harmless_after_reading(path, tmp_path / "none", "would unpack to 50000000", "was not opened")


def test_a_tensor_larger_than_its_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"conv_first.weight": torch.zeros(1).expand(10**12)}, path)
    harmless_after_reading(path, tmp_path / "none", "claims the shape (1000000000000,), but the file holds 4 bytes")


def test_a_safetensors_header_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
    harmless_after_reading(path, tmp_path / "none", "cannot be read as safetensors")


@pytest.mark.parametrize(
    ("saved", "part"),
    [
        ({"epoch": 3, "lr": 0.1}, "holds no tensors; its keys are 'epoch', 'lr'"),
        ([torch.zeros(2)], "holds a list; a dictionary of tensors is needed"),
        ({}, "holds no tensors"),
        ({"w": torch.zeros(4).to_sparse()}, "'w' is torch.sparse_coo"),
        ({"w": torch.zeros(4, device="meta")}, "'w' is torch.strided on meta"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(saved: object, part: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(saved, path)
    harmless_after_reading(path, tmp_path / "none", part)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth: there is no such file\. Give a \.safetensors or \.pth file"):
        read_state_dict(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="this is a folder"):
        read_state_dict(tmp_path)
