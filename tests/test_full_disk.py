"""A disk that is really full: a file system of a few hundred kilobytes, mounted for the length of a test in a namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_targets import ONE_STAGE

UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
MOUNT = 'mount -t tmpfs -o size="$2" none "$1"'


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_mount(), reason="needs Linux with user namespaces to mount a small file system")


def on_a_disk_of(size: str, script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a file system of that size mounted on `folder`; $1 is the folder, the arguments begin with $3."""
    folder.mkdir()
    command = [*UNSHARE, "sh", "-c", f"{MOUNT} && {script}", "sh", str(folder), size, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    program = Path(__file__).with_name("full_disk_program.py")
    done = on_a_disk_of("4m", 'exec "$3" "$4" "$1"', tmp_path_factory.mktemp("full") / "disk", sys.executable, str(program))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("writer", ["checkpoint", "weights", "run.json"])
def test_a_writer_says_that_the_disk_is_full_and_leaves_what_was_there(writer: str, found: dict[str, dict[str, object]]) -> None:
    facts = found[writer]
    assert str(facts["message"]).startswith("exit 5: no space left while writing to '")
    assert "(0 MB free). What was finished is kept; free some space or give another folder with --out, then run the same command again" in str(
        facts["message"]
    )
    assert facts["kept"] == (3 if writer == "checkpoint" else True)
    assert facts["again"] == "written"
    assert facts["then"] == (4 if writer == "checkpoint" else True)
    assert facts.get("problem") is None


@pytest.mark.pipeline
def test_a_run_on_a_full_disk_is_exit_5_and_continues_when_there_is_space(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(ONE_STAGE, encoding="utf-8")
    run = '"$3" -m mcompress.cli run "$4" --out "$1/runs" >/dev/null'
    script = f'{run}; echo "first $?"; ls "$1"/runs/cache/*/weights.safetensors; mount -o remount,size=100m "$1" && {run}; echo "second $?"'
    done = on_a_disk_of("1m", script, tmp_path / "disk", sys.executable, str(tmp_path / "one.yaml"))
    lines = done.stdout.splitlines()
    assert lines[0] == "first 5", done.stderr
    assert lines[1].endswith("/weights.safetensors")
    assert lines[-1] == "second 0", done.stderr
    assert "Traceback" not in done.stderr
    assert "error: no space left while writing to" in done.stderr
    assert "distill: cached" in done.stderr
