"""What a person sees while a run works: progress bars with remaining time, and short notes, all on standard error."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger("mcompress")
PLAIN_EVERY_S = 15.0  # seconds between progress lines where there is no terminal


class Reporter(Protocol):
    """Told what a run does."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def progress(self, title: str) -> Step:
        """Open a progress line."""


class Step(Protocol):
    """One progress line."""

    def __call__(self, done: int, total: int, note: str) -> None:
        """Show how far it is."""


class Silent:
    """For callers from Python: everything goes to the log only."""

    def note(self, text: str) -> None:
        """Log it."""
        logger.info(text)

    def progress(self, title: str) -> Step:
        """Log that it starts."""
        logger.info(title)
        return lambda _done, _total, _note: None


class LastingConsole(Console):
    """A console whose reader may leave (`| head -1`): what is left to say is dropped, and the work goes on."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on, what is still in the stream's buffer included; rich itself would end the process."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class Terminal:
    """Rich bars on a terminal; where standard error is a file or a pipe, a line now and then."""

    def __init__(self) -> None:
        # A copy of the descriptor: while a backend works, standard error itself is led into the run's log.
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, encoding="utf-8")
        self.console = LastingConsole(file=self._stream, highlight=False)
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._bars.stop()
        self._stream.close()

    def note(self, text: str) -> None:
        """A line above the bars."""
        logger.info(text)
        self.console.print(text, markup=False)

    def progress(self, title: str) -> Step:
        """A bar, or a line every few seconds."""
        logger.info(title)
        if self.console.is_terminal:
            return self._bar(self._bars.add_task(title, total=None, note=""))
        return self._lines(title)

    def _bar(self, task: TaskID) -> Step:
        def show(done: int, total: int, note: str) -> None:
            self._bars.update(task, completed=done, total=total, note=note)

        return show

    def _lines(self, title: str) -> Step:
        started = last = time.monotonic()

        def show(done: int, total: int, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < PLAIN_EVERY_S and done != total:
                return
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            self.console.print(f"{title}: {done}/{total}, {left:.0f} s left ({note})", markup=False)

        return show
