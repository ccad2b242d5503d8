"""The cache of a run: what is damaged is noticed, said and computed again; what another process computes is waited for."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from pydantic import JsonValue

from mcompress import cache as module
from mcompress.cache import ENTRY_FILE, Cache, json_digest, locked, problem_of
from mcompress.errors import UsageError

PARTS: dict[str, JsonValue] = {"name": "evaluate teacher", "seed": 3}


def write(folder: Path, _work: Path) -> None:
    (folder / "scores.json").write_text("[1, 2]")


def never(_folder: Path, _work: Path) -> None:
    raise AssertionError("an entry that is there was computed again")


def replaced(**changes: object) -> Callable[[Path], None]:
    """Write other values into entry.json; None takes the key out."""

    def change(path: Path) -> None:
        record = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))

    return change


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "seconds renamed": replaced(seconds=None, secondz=1.0),
    "seconds missing": replaced(seconds=None),
    "seconds a text": replaced(seconds="1.0"),
    "seconds not a number": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": float("nan")})),
    "files missing": replaced(files=None),
    "files a list": replaced(files=["scores.json"]),
    "a digest is a number": replaced(files={"scores.json": 4}),
    "parts missing": replaced(parts=None),
    "parts a list": replaced(parts=[]),
    "parts of another entry": replaced(parts={"name": "evaluate teacher", "seed": 4}),
    "a list": text("[]"),
    "null": text("null"),
    "a number": text("7"),
    "cut off": text('{"parts": {'),
    "empty": text(""),
    "nested without end": text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "gone": Path.unlink,
    "a folder": become_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_file_is_noticed_said_and_computed_again(damage: Callable[[Path], object], tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.get(PARTS, write)
    assert problem_of(first.folder) is None
    assert cache.get(PARTS, never).cached
    damage(first.folder / ENTRY_FILE)
    assert ENTRY_FILE in (problem_of(first.folder) or "")
    assert cache.nearest({**PARTS, "seed": 5}) in (["seed"], [])
    again = cache.get(PARTS, write)
    assert not again.cached
    assert f"evaluate teacher: the cache entry {json_digest(PARTS)[:12]} is damaged ({ENTRY_FILE} " in (again.rebuilt_because or "")
    assert cache.get(PARTS, never).cached


def test_a_file_where_an_entry_should_be(tmp_path: Path) -> None:
    (tmp_path / json_digest(PARTS)).write_text("")
    again = Cache(tmp_path).get(PARTS, write)
    assert again.rebuilt_because is not None
    assert problem_of(again.folder) is None


def computed_beside(root: Path, build: Callable[[Path, Path], None]) -> tuple[threading.Thread, threading.Event]:
    """Someone else who computes the entry; it begins now, and `build` is called when the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder: Path, work: Path) -> None:
        begun.set()
        assert go_on.wait(20)
        build(folder, work)

    def get() -> None:
        with contextlib.suppress(RuntimeError):
            Cache(root).get(PARTS, slow)

    other = threading.Thread(target=get)
    other.start()
    assert begun.wait(20)
    return other, go_on


def test_an_entry_that_another_process_computes_is_waited_for_and_taken(tmp_path: Path) -> None:
    other, go_on = computed_beside(tmp_path, write)
    notes: list[str] = []

    def note(said: str) -> None:
        notes.append(said)
        go_on.set()

    entry = Cache(tmp_path, note=note).get(PARTS, never)
    other.join()
    assert entry.cached
    assert entry.rebuilt_because is None
    (said,) = notes
    assert said.startswith("waiting for process ")
    assert f"which is computing 'evaluate teacher' in {tmp_path}" in said


def test_an_entry_that_another_process_gave_up_is_computed_here(tmp_path: Path) -> None:
    def fail(_folder: Path, work: Path) -> None:
        (work / "begun").write_text("x")
        raise RuntimeError("stopped")

    other, go_on = computed_beside(tmp_path, fail)
    entry = Cache(tmp_path, note=lambda _said: go_on.set()).get(PARTS, write)
    other.join()
    assert not entry.cached
    assert entry.continued  # the other's time is not in `seconds`
    assert problem_of(entry.folder) is None


def test_waiting_ends_with_ctrl_c(tmp_path: Path) -> None:
    other, go_on = computed_beside(tmp_path, write)

    def soon(_said: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    def ctrl_c(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt):
            Cache(tmp_path, note=soon).get(PARTS, never)
    finally:
        signal.signal(signal.SIGALRM, before)
        go_on.set()
        other.join()


def test_the_time_of_waiting_is_not_the_time_of_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.5)

    def fail(_folder: Path, _work: Path) -> None:
        raise RuntimeError("stopped")

    other, go_on = computed_beside(tmp_path, fail)
    entry = Cache(tmp_path, note=lambda _said: go_on.set()).get(PARTS, write)
    other.join()
    assert entry.seconds < 0.4


def test_what_was_begun_by_an_earlier_process_is_told_also_later(tmp_path: Path) -> None:
    def killed(_folder: Path, work: Path) -> None:
        (work / "state.pt").write_text("x")
        raise KeyboardInterrupt

    cache = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.get(PARTS, killed)
    assert cache.get(PARTS, write).continued
    assert cache.get(PARTS, never).continued
    assert not cache.get(PARTS, write, force=True).continued
    assert not cache.get({**PARTS, "seed": 4}, write).continued


def test_the_lock_of_a_run_folder_refuses_at_once(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, "busy"), pytest.raises(UsageError, match=r"busy \(process \d+\); wait for it"), locked(path, "busy"):
        pass
    with locked(path, "busy"):
        pass
