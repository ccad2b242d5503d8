"""Two targets in one process whose folders each hold a module of the same name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mcompress.artifact import model_digest
from mcompress.compress.models.build import build, code_digest, find_builder
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import PlanError
from mcompress.pipeline import open_target
from mcompress.targets.own_modules import edited_since_loaded, file_beside, import_beside, source_digests, sources_of

TARGET = """\
name: own
device: snapdragon865
model: {network: "my_network:build", input_shape: [1, 3, 32, 32]}
stages: [{stage: quantize}]
exports: [{backend: onnx}]
"""
SPEC = ModelSpec("my_network:build")
OWN = {"my_network", "my_layers", "my_package"}


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    import_beside(None)  # another file's tests may have left a target open
    for name in OWN:
        sys.modules.pop(name, None)  # and imported the example, which has a module of the same name
    path = list(sys.path)
    yield
    import_beside(None)
    assert sys.path == path
    assert not OWN & sys.modules.keys()


def folder_of(parent: Path, name: str, width: int) -> Path:
    """A target with a network of `width` channels, whose layer comes from a second module beside it."""
    folder = parent / name
    folder.mkdir()
    (folder / "target.yaml").write_text(TARGET, encoding="utf-8")
    (folder / "my_layers.py").write_text(f"from torch import nn\ndef layer():\n    return nn.Conv2d(3, {width}, 1)\n", encoding="utf-8")
    (folder / "my_network.py").write_text(f"# {name}\nfrom my_layers import layer\ndef build():\n    return layer()\n", encoding="utf-8")
    return folder


def width() -> int:
    return int(build(SPEC).weight.shape[0])


def test_each_target_gets_its_own_module_and_what_that_imports(tmp_path: Path) -> None:
    first, second = folder_of(tmp_path, "first", 4), folder_of(tmp_path, "second", 7)
    seen = []
    for folder in (first, second, first):
        open_target(folder / "target.yaml")
        assert str(sys.modules["my_network"].__file__ if find_builder("my_network:build") else "") == str(folder / "my_network.py")
        seen.append(width())
    assert seen == [4, 7, 4]


def test_the_digest_is_that_of_the_module_that_is_used(tmp_path: Path) -> None:
    first, second = folder_of(tmp_path, "first", 4), folder_of(tmp_path, "second", 4)
    digests = []
    for folder in (first, second, first):
        open_target(folder / "target.yaml")
        assert list(sources_of("my_network").values()) == [folder / "my_layers.py", folder / "my_network.py"]
        digests.append(model_digest(SPEC, {"w": torch.zeros(1)}))
    assert digests[0] == digests[2] != digests[1]


def test_a_changed_file_is_imported_again_when_its_target_is_opened_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "first", 4)
    open_target(folder / "target.yaml")
    assert width() == 4
    module, digest = sys.modules["my_network"], code_digest("my_network:build")
    (folder / "my_layers.py").write_text("from torch import nn\ndef layer():\n    return nn.Conv2d(3, 12, 1)\n", encoding="utf-8")
    (folder / "my_network.py").write_text("from my_layers import layer\ndef build():\n    return layer()\n# changed\n", encoding="utf-8")
    assert width() == 4
    assert code_digest("my_network:build") == digest  # of the module that computes, not of the file that came after it
    assert edited_since_loaded("my_network") == ("my_layers.py", "my_network.py")
    open_target(folder / "target.yaml")
    assert width() == 12
    assert code_digest("my_network:build") != digest
    assert edited_since_loaded("my_network") == ()
    again = sys.modules["my_network"]
    open_target(folder / "target.yaml")
    assert width() == 12
    assert sys.modules["my_network"] is again is not module


def test_packages_and_packages_without_an_init_file(tmp_path: Path) -> None:
    for name, channels in (("first", 4), ("second", 7)):
        package = folder_of(tmp_path, name, channels) / "my_package" / "deep"
        package.mkdir(parents=True)
        (package / "net.py").write_text("from my_layers import layer\ndef build():\n    return layer()\n", encoding="utf-8")
        if name == "second":
            (package.parent / "__init__.py").write_text("", encoding="utf-8")
        open_target(tmp_path / name / "target.yaml")
        assert file_beside("my_package.deep.net") == package / "net.py"
        assert int(build(ModelSpec("my_package.deep.net:build")).weight.shape[0]) == channels


def test_a_module_from_elsewhere_in_its_place_is_an_error_and_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = folder_of(tmp_path, "first", 4), folder_of(tmp_path, "second", 7)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(first)  # as `python -m mcompress.cli` in that folder would have it
        open_target(second / "target.yaml")
        with pytest.raises(PlanError) as caught:
            build(SPEC)
    assert f"beside the target lies {second / 'my_network.py'}, but Python imported the module 'my_network' from {first / 'my_network.py'}" in str(
        caught.value
    )
    for name in ("my_network", "my_layers"):
        sys.modules.pop(name, None)


def test_what_others_imported_from_a_folder_on_the_path_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = folder_of(tmp_path, "first", 4), folder_of(tmp_path, "second", 7)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(first)
        open_target(first / "target.yaml")
        assert width() == 4
        module = sys.modules["my_network"]
        import_beside(None)
        assert sys.modules["my_network"] is module
        assert str(first) in sys.path
    for name in ("my_network", "my_layers"):
        sys.modules.pop(name, None)
    open_target(second / "target.yaml")
    assert width() == 7


def test_a_builder_that_python_cannot_find_the_source_of_has_a_digest(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "first", 4)
    (folder / "my_network.py").write_text("import functools\nfrom torch import nn\nbuild = functools.partial(nn.Conv2d, 3, 4, 1)\n", encoding="utf-8")
    open_target(folder / "target.yaml")
    assert len(model_digest(SPEC, build(SPEC).state_dict())) == 64


def test_a_target_that_cannot_be_read_opens_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "first", 4)
    open_target(folder / "target.yaml")
    (folder / "bad.yaml").write_text("x", encoding="utf-8")
    with pytest.raises(Exception, match="must be a mapping"):
        open_target(folder / "bad.yaml")
    assert width() == 4
    open_target("snapdragon865")
    assert file_beside("my_network") is None
    with pytest.raises(PlanError, match="there is no module 'my_network'"):
        build(SPEC)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


NET = "from my_package.parts.blocks import act\nfrom torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 3, 1), act())\n"
PACKAGE = {
    "target.yaml": TARGET.replace("my_network:build", "my_package.my_module:build"),
    "my_package/__init__.py": "",
    "my_package/my_module.py": NET,
    "my_package/parts/__init__.py": "",
    "my_package/parts/blocks.py": "from torch.nn import ReLU as act\n",
}


@pytest.mark.parametrize("init", [True, False])
def test_a_part_of_the_package_counts_for_the_digest_and_is_imported_again(tmp_path: Path, init: bool) -> None:
    write(tmp_path, {name: text for name, text in PACKAGE.items() if init or not name.endswith("__init__.py")})
    spec, seen = ModelSpec("my_package.my_module:build"), []
    for activation in ("ReLU", "Sigmoid", "ReLU"):
        write(tmp_path, {"my_package/parts/blocks.py": f"from torch.nn import {activation} as act\n"})
        open_target(tmp_path / "target.yaml")
        network = build(spec)
        seen.append((type(network[1]).__name__, model_digest(spec, {})))
    assert [name for name, _ in seen] == ["ReLU", "Sigmoid", "ReLU"]
    assert seen[0] == seen[2] != seen[1]
    assert seen[0][1] != seen[1][1]


def test_a_module_beside_counts_for_the_digest_of_one_that_imports_it(tmp_path: Path) -> None:
    folder, digests = folder_of(tmp_path, "first", 4), []
    for text in ("", "# other\n"):
        (folder / "my_layers.py").write_text(f"{text}from torch import nn\ndef layer():\n    return nn.Conv2d(3, 4, 1)\n", encoding="utf-8")
        open_target(folder / "target.yaml")
        digests.append(model_digest(SPEC, build(SPEC).state_dict() and {}))
    assert digests[0] != digests[1]


def test_a_second_network_does_not_hide_that_a_shared_module_is_older_than_its_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "first", 4)
    (folder / "my_package.py").write_text("from my_layers import layer\ndef build():\n    return layer()\n", encoding="utf-8")
    open_target(folder / "target.yaml")
    assert width() == 4
    before = source_digests("my_network")["my_layers.py"]
    (folder / "my_layers.py").write_text("from torch import nn\ndef layer():\n    return nn.Conv2d(3, 12, 1)\n", encoding="utf-8")
    second = ModelSpec("my_package:build")
    assert int(build(second).weight.shape[0]) == 4  # Python keeps the first
    assert source_digests("my_package")["my_layers.py"] == before
    assert code_digest("my_package:build") == code_digest("my_network:build")


def test_which_sources_count(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            **dict.fromkeys(("target.yaml", "my_network.py", "other.py", "notes.txt", "blocks/a.py", "blocks/deep/b.py", "blocks/weights.bin"), ""),
            **dict.fromkeys(
                ("blocks/__pycache__/a.py", ".git/hook.py", "not-a-name/x.py", "photos/train/1.png", "runs/tiny-0123/bundle/verify.py"), ""
            ),
            "target.yaml": TARGET,
        },
    )
    (tmp_path / "blocks" / "deep" / "above").symlink_to(tmp_path / "blocks", target_is_directory=True)
    open_target(tmp_path / "target.yaml")
    assert list(sources_of("my_network")) == ["blocks/a.py", "blocks/deep/b.py", "my_network.py", "other.py"]
    assert sources_of("no_such_module_anywhere") == {}


def test_of_an_installed_module_only_its_own_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    write(site, {"pack_of_test/__init__.py": "", "pack_of_test/parts/a.py": "", "single_of_test.py": "", "another/__init__.py": ""})
    monkeypatch.syspath_prepend(site)
    assert list(sources_of("pack_of_test.parts.a")) == ["pack_of_test/__init__.py", "pack_of_test/parts/a.py"]
    assert list(sources_of("single_of_test")) == ["single_of_test.py"]
    assert list(sources_of("colorsys")) == ["colorsys.py"]
    assert sources_of("math") == {} or all(name.startswith("math.") for name in sources_of("math"))
    assert not {"pack_of_test", "single_of_test"} & sys.modules.keys()  # nothing was imported to find out
