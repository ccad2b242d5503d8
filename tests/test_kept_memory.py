"""Freed memory that trainings keep. Each in a fresh process: how often the C library asks the system depends on all that was freed in it before."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mcompress.compress.memory import SET_BY_USER

PROGRAM = Path(__file__).with_name("kept_memory_program.py")
pytestmark = pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.36"), reason="glibc alone; older ones keep no blocks of 40 MB")


def said_of(measured: str) -> list[float]:
    usual = {name: value for name, value in os.environ.items() if name not in SET_BY_USER}
    done = subprocess.run([sys.executable, "-B", str(PROGRAM), measured], env=usual, capture_output=True, text=True, timeout=120, check=True)
    return [float(value) for value in json.loads(done.stdout)]


def test_trainings_keep_freed_memory_and_give_it_back() -> None:
    kept, afterwards, given_back_mb = said_of("a_training")
    assert kept < afterwards / 4
    assert given_back_mb > 30


def test_a_training_within_another_does_not_end_it() -> None:
    kept, afterwards = said_of("one_within_another")
    assert kept < afterwards / 4


def test_who_says_how_memory_is_allocated_is_obeyed() -> None:
    obeyed, usual = said_of("one_overruled")
    assert obeyed > usual / 2 > 0
