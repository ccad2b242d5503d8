"""Files of the real exporter in the old runtime on emulated Arm64. Skipped where `make arm64` was not run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import int8_plan
from test_arm64 import an_addition
from tiny_bundle import export_record, make_bundle
from torch import nn
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.errors import MissingBackendError
from mcompress.export import tflite
from mcompress.export.arm64.emulation import find_emulation
from mcompress.export.arm64.verifying import WAYS, verify_on_arm64
from mcompress.export.backend import captured
from mcompress.export.bundle import ExportedFile, TestVector
from mcompress.export.interface import TensorFacts, facts_of
from mcompress.targets.exports import TFLiteConfig

Row = Mapping[str, object]
SIDE, SCALE = 16, 2


def _why_not() -> str:
    try:
        find_emulation()
    except MissingBackendError as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.export, pytest.mark.skipif(bool(_why_not()), reason=_why_not())]


class Sharpener(nn.Module):
    """Convolutions, a skip connection and a pixel shuffle: what a generator for phones is made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.tail = nn.Conv2d(16, 3 * SCALE * SCALE, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.head(x))
        return torch.as_tensor(self.shuffle(self.tail(features + self.body(features))))


def exported(folder: Path, variant: str, plan: PrecisionPlan | None, picture: torch.Tensor) -> ExportedFile:
    network = Sharpener().eval()
    with captured(folder / "log.txt"):
        written = tflite.write(TFLiteConfig(), network, {"input": picture}, plan, folder / f"tiny-{variant}")
        computed = tflite.load(written.path, 1).run(picture.numpy())
    with torch.no_grad():
        vector = TestVector("noise", (picture.numpy(),), network(picture).numpy(), computed)
    counts = written.precision_counts
    record = export_record(written.path, backend="tflite", variant=variant, precision_counts=counts)
    facts = [tuple(facts_of(port) for port in ports) for ports in (written.inputs, written.outputs)]
    return ExportedFile(record, written.path, facts[0], facts[1], (vector,))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float and an INT8 file of one network, as they are shipped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("arm64")
    pictures = [torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    plan = int8_plan(Sharpener().eval(), pictures)
    return make_bundle(folder, exported(folder, "float", None, pictures[0]), exported(folder, "mixed", plan, pictures[0]))


@pytest.fixture(scope="module")
def rows(bundle: Path) -> dict[tuple[str, str], Row]:
    done = CliRunner().invoke(app, ["verify", str(bundle), "--arm64", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(row["file"], "on" in row) for row in found[:2]] == [("tiny-float.tflite", False), ("tiny-mixed.tflite", False)]
    return {(row["file"], row["on"]): row for row in found[2:]}


def test_every_file_loads_in_the_old_runtime_in_every_way(rows: dict[tuple[str, str], Row]) -> None:
    ways = {way.name for way in WAYS}
    assert set(rows) == {("tiny-mixed.tflite", way) for way in ways} | {("tiny-float.tflite", way.name) for way in WAYS if not way.int8_only}
    for row in rows.values():
        assert row["verdict"] == "PASS", row
        assert str(row["runtime"]).startswith("tflite-runtime 2.14.0")
        assert "loads in tflite-runtime 2.14.0" in str(row["detail"])


def test_xnnpack_takes_int8_operators_and_built_in_kernels_compute_all_others(rows: dict[tuple[str, str], Row]) -> None:
    for (_, way), row in rows.items():
        assert int(str(row["operators"])) > 3
        assert row["delegated"] == (0 if "built-in" in way else row["operators"])


def test_integer_sums_do_not_depend_on_dot_products(rows: dict[tuple[str, str], Row]) -> None:
    one, other = (rows["tiny-mixed.tflite", way.name]["compared"] for way in WAYS[:2])
    assert one == other


def test_outputs_are_those_of_this_machine(rows: dict[tuple[str, str], Row]) -> None:
    for (name, _), row in rows.items():
        (compared,) = row["compared"]  # type: ignore[attr-defined]
        assert compared["with"].endswith("here, which computes the vectors")
        assert compared["values"] == 3 * (SIDE * SCALE) ** 2
        if name == "tiny-mixed.tflite":
            assert compared["most_steps"] <= 1
            assert compared["sqnr_db"] > 50
        else:
            assert compared["max_abs"] < 1e-5


def test_a_file_that_is_too_new_or_computes_something_else_fails(bundle: Path, tmp_path: Path) -> None:
    new = an_addition(tmp_path / "new-float.tflite", 6)
    good = an_addition(tmp_path / "wrong-float.tflite", 1)
    facts = (TensorFacts(name="x", shape=(1, 4, 4, 3), dtype="float32", layout="NHWC"),)
    picture = np.random.default_rng(1).random((1, 3, 4, 4), dtype=np.float32)
    right = TestVector("noise", (picture,), picture * 4, picture * 4)
    wrong = TestVector("noise", (picture,), picture * 4, picture * 4 + np.float32(2e-3))
    files = [ExportedFile(export_record(path, backend="tflite"), path, facts, facts, (one,)) for path, one in ((new, right), (good, wrong))]
    rows = verify_on_arm64(make_bundle(tmp_path, *files), ways=WAYS[-1:])
    assert [row["verdict"] for row in rows] == ["FAIL", "FAIL"]
    assert "does not load it: it has no ADD in version 6, which 1 of the file's 2 operators are" in str(rows[0]["detail"])
    here, vectors = rows[1]["compared"]  # type: ignore[misc, union-attr]
    assert (here["passed"], here["differing"]) == (True, 0)  # type: ignore[call-overload, index]
    assert vectors["passed"] is False  # type: ignore[call-overload, index]
    assert vectors["max_abs"] == pytest.approx(2e-3, rel=1e-3)  # type: ignore[call-overload, index]
    assert "2e-03" in str(rows[1]["detail"]) or "0.002" in str(rows[1]["detail"])
