"""Target files: what is read, and what is said about files that are wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mcompress.errors import TargetError
from mcompress.targets.document import parse
from mcompress.targets.exports import OnnxConfig
from mcompress.targets.load import digest, load_target, resolved_yaml, shipped_targets
from mcompress.targets.schema import DataConfig, Target
from mcompress.targets.stages import DistillConfig, PruneConfig

GOOD = """\
name: small
device: kona
budget: {latency_ms: 20}
stages:
  - stage: distill
    learning_rate: 1e-4
  - stage: prune
    ratio: 0.5
exports:
  - backend: onnx
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    return path


def problems(path: Path, text: str | bytes | None = None, overrides: tuple[str, ...] = ()) -> list[str]:
    """What loading says, without the folder."""
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TargetError) as caught:
        load_target(path, overrides)
    assert all(problem.startswith(str(path)) for problem in caught.value.problems)
    return [problem.removeprefix(str(path.parent) + "/") for problem in caught.value.problems]


def test_values_and_types(file: Path) -> None:
    target = load_target(file)
    assert target.stages == (DistillConfig(learning_rate=1e-4), PruneConfig(ratio=0.5))
    assert target.budget.latency_ms == 20
    assert target.seed == 0


def test_out_of_range_names_place_value_and_limits(file: Path) -> None:
    assert problems(file, GOOD.replace("0.5", "1.2")) == ["x.yaml:8: stages[1].ratio is 1.2; it must be at least 0 and below 1"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: small\n", "", "x.yaml:1: name is missing; it is required"),
        ("name: small", "name: a b", "x.yaml:1: name is 'a b'; it must be letters, digits, '_', '.' and '-', starting with a letter or digit"),
        ("device: kona", "device: snapdragn865", "x.yaml:2: device 'snapdragn865' is not known"),
        ("device: kona", "device: kona\nunit: gpuu", "x.yaml:3: unit 'gpuu' is not known of snapdragon865; known are cpu, gpu, npu; did you"),
        ("latency_ms: 20", "latency_ms: soon", "x.yaml:3: budget.latency_ms is 'soon'; it must be a number, above 0"),
        ("latency_ms: 20", "latency_ms: .inf", "x.yaml:3: budget.latency_ms is inf; it must be a finite number, above 0"),
        ("latency_ms: 20", "latencyms: 20", "x.yaml:3: budget.latencyms is not known; budget takes latency_ms, "),
        ("{latency_ms: 20}", "fast", "x.yaml:3: budget is 'fast'; it must be a mapping"),
        ("stage: distill", "stage: destill", "is 'destill'; it must be one of search, prune, distill, slim, quantize; did you mean 'di"),
        ("stage: distill\n    ", "", "x.yaml:5: stages[0] has no stage; give stage: one of search, prune, distill, slim, quantize"),
        ("ratio: 0.5", "ratoi: 0.5", "did you mean 'ratio'?"),
        ("    ratio: 0.5\n", "", "x.yaml:7: stages[1]: give exactly one goal: ratio or latency_ratio"),
        ("  - backend: onnx\n", "  - 7\n", "x.yaml:10: exports[0] is 7; it must be a mapping"),
        ("exports:\n  - backend: onnx", "exports: []", "x.yaml:9: exports is an empty list; it must have at least 1 item"),
        ("exports:\n  - backend: onnx", "exports: onnx", "x.yaml:9: exports is 'onnx'; it must be a list"),
        ("backend: onnx", "backend: onxx", "did you mean 'onnx'?"),
        ("backend: onnx", "backend: onnx\n    opset: 99", "x.yaml:11: exports[0].opset is 99; it must be at least 17 and at most 23"),
        ("backend: onnx", "backend: coreml\n    minimum_deployment_target: iOS71", "must be one of iOS16, iOS17, iOS18; did you mean 'iOS1"),
        ("name: small", "name: small\nseed: 1.5", "x.yaml:2: seed is 1.5; it must be a whole number, at least 0"),
        ("name: small", "name: small\nthreads: true", "x.yaml:2: threads is true; it must be a number, without quotes"),
        ("name: small", "name: small\nthreads: '2'", "x.yaml:2: threads is '2'; it must be a number, without quotes"),
        ("name: small", "name: small\nname: other", "x.yaml:2: name is given twice, first in line 1; keep one"),
        ("name: small", "name: small\nmodel: {input_shape: [1, 3, 0, 9]}", "x.yaml:2: model.input_shape[2] is 0; it must be at least 1"),
        ("name: small", "name: small\nmodel: {network: 9x}", "x.yaml:2: model.network is '9x'; it must be a name from `mcompress list models`"),
        ("name: small", "name: small\nmodel: {netwrok: rrdb}", "did you mean 'network'?"),
        ("name: small", "name: small\nmodel: {task: singing}", "x.yaml:2: model.task is 'singing'; it must be one of super_resolution, translation"),
        ("name: small", "name: small\nmodel: {checkpoint: no.pth}", "x.yaml:2: model.checkpoint is 'no.pth'; there is no such file"),
        ("name: small", "name: small\ndata: {training: no, held_out: no}", "x.yaml:2: data.training is 'no'; there is no such folder"),
        ("name: small", "name: small\ndata: {training: .}", "x.yaml:2: data: give both training and held_out, or neither"),
        ("name: small", "name: !!python/object:os.system small", "the tag !!python/object:os.system is not allowed; write plain values"),
        ("name: small", "? [a]\n: small", "a key of the target is not a name"),
        ("budget: {latency_ms: 20}", "budget: {latency_ms: 20", "not valid YAML"),
    ],
)  # fmt: skip
def test_one_mistake(file: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = problems(file, GOOD.replace(old, new))
    assert any(expected in problem for problem in found), found
    assert all("pydantic" not in problem and "validation error" not in problem for problem in found)


def test_all_problems_at_once_in_order_of_the_file(file: Path) -> None:
    text = GOOD.replace("20", "-1").replace("1e-4", "fast").replace("0.5", "1.2").replace("onnx", "onxx") + "seed: x\n"
    assert [problem.split(":")[1] for problem in problems(file, text)] == ["3", "6", "8", "10", "11"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"- 1\n", "the file holds a list; it must be a mapping"),
        (b"\x89PNG\r\n\xff\x00", "not a text file"),
        (b"[" * 3000, "nested too deeply"),
        (b"a: &x [*x]", "nested too deeply"),
        (b"a: 1\n---\nb: 2", "not valid YAML"),
        (b"#" * 1_000_001, "a target has at most 1000000"),
    ],
)
def test_files_that_are_no_targets(file: Path, content: bytes, expected: str) -> None:
    assert any(expected in problem for problem in problems(file, content))


def test_aliases_cannot_grow_without_bound(file: Path) -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    assert any("more than 20000 values" in problem for problem in problems(file, f"a0: &a0 [x]\n{levels}\n"))


def test_anchors_and_merges_are_fine(file: Path) -> None:
    file.write_text(
        GOOD.replace("- stage: distill", "- &d\n    stage: distill").replace("  - stage: prune", "  - {<<: *d, steps: 7}\n  - stage: prune")
    )
    target = load_target(file)
    assert target.stages[1] == DistillConfig(learning_rate=1e-4, steps=7)


def test_missing_file_suggests_shipped_targets(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"there is no such file"):
        load_target(tmp_path / "nope.yaml")
    with pytest.raises(TargetError, match="this is a folder"):
        load_target(tmp_path)


def test_every_shipped_target_loads_by_name() -> None:
    for name in shipped_targets():
        assert load_target(Path(name)).name


def test_overrides(file: Path) -> None:
    target = load_target(file, ["stages[1].ratio=0.25", "seed=7", "data.training=.", "data.held_out=.", "model.input_shape=[1, 3, 64, 64]"])
    assert target.stages[1] == PruneConfig(ratio=0.25)
    assert target.seed == 7
    assert target.model.input_shape == (1, 3, 64, 64)
    assert target.data.training == Path.cwd()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "an override is KEY=VALUE"),
        ("stages[5].ratio=1", "stages has 2 entries, the first is [0]; [5] does not exist"),
        ("name.x=1", "name is 'small'; x cannot be set inside it"),
        ("stages[1].ratio=3", "x.yaml: --set stages[1].ratio=3: stages[1].ratio is 3; it must be at least 0 and below 1"),
        ("seed=[1", "not valid YAML"),
        ("sed=1", "did you mean 'seed'?"),
        ("model.checkpoint=no.pth", "relative paths start at the working directory"),
    ],
)
def test_wrong_overrides(file: Path, override: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(file, None, (override,)))


def test_an_override_repairs_the_file(file: Path) -> None:
    file.write_text(GOOD.replace("0.5", "1.2"))
    assert load_target(file, ["stages[1].ratio=0.1"]).stages[1] == PruneConfig(ratio=0.1)


def test_paths_start_at_the_file(file: Path) -> None:
    (file.parent / "weights.pth").write_bytes(b"")
    file.write_text(GOOD + "model: {checkpoint: weights.pth}\n")
    teacher = load_target(file).model.teacher
    assert (teacher.checkpoint, teacher.network) == (file.parent / "weights.pth", "rrdb")


@pytest.mark.parametrize("name", shipped_targets())
def test_a_shipped_target_written_out_whole_is_the_same_target(name: str, tmp_path: Path) -> None:
    target = load_target(Path(name))
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(target))
    assert load_target(tmp_path / "resolved.yaml") == target


def test_resolved_yaml_and_digest_round_trip(file: Path) -> None:
    target = load_target(file)
    again = file.with_name("resolved.yaml")
    again.write_text(resolved_yaml(target))
    assert load_target(again) == target
    assert digest(load_target(again)) == digest(target)
    assert len(digest(target)) == 64
    file.write_text(GOOD.replace("1e-4", "0.0001").replace("{latency_ms: 20}", "\n  latency_ms: 20.0") + "# a remark\nseed: 0\n")
    assert digest(load_target(file)) == digest(target)
    assert digest(load_target(file, ["seed=1"])) != digest(target)


def test_yaml_1_2_scalars() -> None:
    data = parse("{a: 1e-4, b: yes, c: 0o17, d: 2026-11-21, e: null, f: ~, g: .inf, h: 1_000}", "x").data
    assert data == {"a": 1e-4, "b": "yes", "c": 15, "d": "2026-11-21", "e": None, "f": None, "g": math.inf, "h": 1000}


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(("prune", "distill", "onnx", "host", "gpu"))
)
_FIELDS = ["name", "device", "unit", "model", "data", "budget", "stages", "exports", "seed", "threads", "stage", "backend", "ratio"]
_INNER = [
    "steps",
    "teacher",
    "network",
    "args",
    "checkpoint",
    "input_shape",
    "student",
    "quality",
    "metric",
    "training",
    "held_out",
    "task",
    "latency_ms",
    "precision",
]
_KEYS = st.text(max_size=6) | st.sampled_from([*_FIELDS, *_INNER])
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=20)


def _problems(path: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the file; any other error than `TargetError` fails the test."""
    try:
        load_target(path, overrides)
    except TargetError as error:
        return error.problems or [""]
    return []


def _only_target_errors(path: Path) -> None:
    found = _problems(path)
    assert all(problem.startswith(str(path)) and "\n" not in problem for problem in found), found


@given(data=st.dictionaries(_KEYS, _VALUES, max_size=8))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_mapping_raises_anything_else(tmp_path: Path, data: dict[str, object]) -> None:
    path = tmp_path / "x.yaml"
    with path.open("w", encoding="utf-8", errors="surrogatepass") as stream:
        YAML(typ="safe", pure=True).dump(data, stream)
    _only_target_errors(path)


@given(text=st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>%@`'\"#,?~<=\n \t0123456789.e_\x00\u2028"), max_size=40) | st.binary(max_size=40))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_raises_anything_else(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    _only_target_errors(path)


@given(override=st.text(alphabet=st.sampled_from("abname.[]0123=:{}&*!'\" -\n"), max_size=20) | st.text(max_size=20))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_override_raises_anything_else(tmp_path: Path, override: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    assert all(problem.startswith(str(path)) for problem in _problems(path, (override,)))


def test_methods_of_a_stage_have_options_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\ndevice: snapdragon865\nstages:\n"
        "  - {stage: search, method: semi_supervised, teacher_batches: 3}\n"
        "  - {stage: distill, method: adaptve}\n"
        "  - {stage: distill, method: adaptive, teachers_every: 0}\n"
        "exports: [{backend: onnx}]\n"
    )
    with pytest.raises(TargetError) as error:
        load_target(path)
    problems = str(error.value).splitlines()
    assert "x.yaml:4: stages[0].teacher_batches is not known; stages[0] takes" in problems[0]
    assert "teacher_cost" in problems[0]
    assert "stages[1].method is 'adaptve'; it must be one of online, adaptive, steps, consistency, features; did you mean 'adaptive'?" in problems[1]
    assert problems[2].endswith("stages[2].teachers_every is 0; it must be at least 1 and at most 1000")


def test_data_of_translation_belong_to_translation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.labelled_fraction belongs to the task translation, and model.task is super_resolution"):
        Target.model_validate(
            {"name": "x", "device": "kona", "stages": [DistillConfig()], "exports": [OnnxConfig()], "data": {"labelled_fraction": 0.5}}
        )
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="labelled_fraction"):
            DataConfig(labelled_fraction=fraction)
    with pytest.raises(ValueError, match="labelled_fraction is about pairs, and pairing is unpaired"):
        DataConfig(pairing="unpaired", labelled_fraction=0.5)
    with pytest.raises(ValueError, match="embedded names data that come with mcompress"):
        DataConfig(training=tmp_path, held_out=tmp_path, embedded="photographs")
    with pytest.raises(ValueError, match="unlabelled gives inputs for the pairs in training, which is missing"):
        DataConfig(unlabelled=tmp_path)
