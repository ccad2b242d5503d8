"""The journal of a search: one file that several processes write, any of which may be killed at any moment.

Optuna's own lock objects are files that a killed process leaves behind and that others remove after a grace period, whether or not their owner is
alive. The lock here belongs to the operating system, which releases it when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
from io import BufferedRandom
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.storages.journal._file import BaseJournalFileLock  # the base class is not exported

STUDY = "search"


class JournalLock(BaseJournalFileLock):
    """An flock beside the journal; whoever gets it first cuts off a line that a killed process left unfinished."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._first_line = b""
        self._held: BufferedRandom | None = None

    def acquire(self) -> bool:
        """Wait for the lock. Raises `FileNotFoundError` where the journal was removed or replaced, and `OSError` where the disk knows no locks."""
        held = self.journal.with_name(self.journal.name + ".lock").open("a+b")
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            _cut_unfinished_line(self.journal)
            self._check_same()
        except BaseException:
            held.close()
            raise
        self._held = held
        return True

    def release(self) -> None:
        """Give it back."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _check_same(self) -> None:
        """What is written belongs into the journal that was read. Its first line names the process that made it, so no two journals share one."""
        with self.journal.open("rb") as file:
            first = file.readline()
        if self._first_line not in (b"", first):
            raise FileNotFoundError(f"{self.journal} was replaced by the journal of another search")
        self._first_line = first


def _cut_unfinished_line(journal: Path) -> None:
    """Only the holder of the lock may call this: nobody is writing, so a line without its end never gets one."""
    with journal.open("r+b") as file:
        size = file.seek(0, 2)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def open_study(journal: Path) -> optuna.Study:
    """The study in the journal, made if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal.parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(study_name=STUDY, storage=_storage(journal), direction="maximize", load_if_exists=True)


def join_study(journal: Path) -> optuna.Study | None:
    """The study in the journal, or None while the run has not made it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not journal.is_file():
        return None
    try:
        return optuna.load_study(study_name=STUDY, storage=_storage(journal))
    except KeyError:
        return None


def _storage(journal: Path) -> JournalStorage:
    lock = JournalLock(journal)
    backend = JournalFileBackend(str(journal), lock_obj=lock)
    lock.acquire()  # mends the journal before it is read, and remembers which one it is
    lock.release()
    return JournalStorage(backend)
