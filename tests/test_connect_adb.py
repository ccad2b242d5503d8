"""adb: the real client of the Android SDK against a stand-in device (stand_in_device.py). No phone is reached here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stand_in_device import StandInDevice, adb, needs_adb

from mcompress.errors import DeviceError
from mcompress.targets.connect import CommandFailed, connect


@needs_adb
def test_commands_files_and_facts_through_adb(stand_in: StandInDevice, tmp_path: Path) -> None:
    with connect("adb") as phone:
        assert phone.name == f"adb:127.0.0.1:{stand_in.port}"
        assert phone.python is None
        facts = phone.facts()
        assert (facts.model, facts.soc, facts.os) == ("Stand-in", "SM8250", "Android 14")
        folder = Path(phone.run(["pwd"], timeout_s=10).stdout.strip())
        assert folder.parent == stand_in.tmp
        content = os.urandom(200_001)
        (tmp_path / "a b").write_bytes(content)
        phone.push(tmp_path / "a b", "a b")
        assert (folder / "a b").read_bytes() == content
        done = phone.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=10)
        assert (done.rc, done.stdout, done.stderr) == (7, "out\n", "err\n")
        assert list(phone.stream(["seq", "1", "3"])) == ["1", "2", "3"]
        with pytest.raises(CommandFailed, match="code 3"):
            list(phone.stream(["sh", "-c", "exit 3"]))
    assert not folder.exists()


@needs_adb
def test_a_phone_that_is_not_there_says_what_to_do(stand_in: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"does not see 'NOPE'.*USB debugging"):
        connect("adb:NOPE")
    stand_in.unplug()
    adb("disconnect", check=False)
    with pytest.raises(DeviceError, match="sees no device"):
        connect("adb")
    with monkeypatch.context() as changed:
        changed.setenv("MCOMPRESS_ADB", "/nowhere/adb")
        with pytest.raises(DeviceError, match="cannot be executed"):
            connect("adb")


def test_a_file_that_is_no_program_is_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tmp_path / "adb"
    client.write_text("notes about adb\n", encoding="ascii")
    client.chmod(0o755)
    monkeypatch.setenv("MCOMPRESS_ADB", str(client))
    with pytest.raises(DeviceError, match=r"the adb client .*/adb cannot be executed: Exec format error; set MCOMPRESS_ADB"):
        connect("adb")
