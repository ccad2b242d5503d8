"""Starts a process per job, and says as lines of JSON what they say."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Sequence, Tuple, cast

from .loaders import preload
from .protocol import Request
from .sensors import Reading, hot, read_sensors
from .worker import child

ALIVE_EVERY_S = 2.0
READ_EVERY_S = 1.0
LOADING_S = 900.0
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MOST_READINGS = 120


class Supervisor:
    """Starts a process per job, looks at the sensors meanwhile, and says what happened."""

    def __init__(self, request: Request, request_file: str, answer: int) -> None:
        """`answer` is the file descriptor that the results go to."""
        self._request, self._file, self._answer = request, request_file, answer
        self._root = Path(request["sys"])
        self._said_at = 0.0
        self._imported: Dict[str, bool] = {}
        self._starting = self._told_to_end = False
        self.process = 0

    def say(self, event: Dict[str, object]) -> None:
        """One line."""
        self._said_at = time.monotonic()
        os.write(self._answer, json.dumps(event).encode() + b"\n")

    def run(self, index: int) -> None:
        """One job (or the pair), from resting to its result."""
        rules = self._request["jobs"][index]["rules"]
        waited_s, still_hot = self._rest(rules["cool_down_s"])
        readings = [read_sensors(self._root)]
        said = self._watch(index, "timing", readings, LOADING_S + rules["warm_up_s"] + rules["max_seconds"])
        readings.append(read_sensors(self._root))
        facts: Dict[str, object] = {"job": index, "readings": readings, "rested_s": waited_s, "hot": still_hot}
        if "results" in said and self._request["jobs"][index]["operators"] and not self._request["rounds"]:
            more = self._watch(index, "operators", readings[:1], LOADING_S)  # a crash in a profiler must not take the times with it
            facts["operators"] = more.get("operators", [])
            facts["unsaid"] = more.get("unsaid", ["no operator times: %s" % more.get("reason")])
        self.say({"event": "result" if "results" in said else "failed", **facts, **said})

    def _rest(self, most_s: float) -> Tuple[float, str]:
        started = time.monotonic()
        while True:
            why, waited = hot(read_sensors(self._root)), time.monotonic() - started
            if not why or waited >= most_s:
                return (waited, why) if why or waited > 0.1 else (0.0, "")
            self._alive()
            time.sleep(min(1.0, max(0.01, most_s - waited)))

    def _watch(self, index: int, what: str, readings: List[Reading], most_s: float) -> Dict[str, object]:
        """Run a child process to its end, and look at the sensors meanwhile. What it said, or `reason`."""
        reader, writer = os.pipe()
        self._start(index, what, reader, writer)
        os.close(writer)
        parts: List[bytes] = []
        until, looked = time.monotonic() + most_s, time.monotonic()
        sensors = any(bool(found) for found in readings[0].values())
        while True:
            ready, _, _ = select.select([reader], [], [], 0.5)
            if ready:
                part = os.read(reader, 1 << 16)
                if not part:
                    break
                parts.append(part)
            if sensors and time.monotonic() - looked >= READ_EVERY_S and len(readings) < MOST_READINGS:
                readings.append(read_sensors(self._root))
                looked = time.monotonic()
            self._alive()
            if time.monotonic() > until:
                os.kill(self.process, signal.SIGKILL)
                until = float("inf")
        os.close(reader)
        _, status = os.waitpid(self.process, 0)
        self.process = 0
        try:
            return cast("Dict[str, object]", json.loads(b"".join(parts).decode("utf-8", errors="replace")))
        except ValueError:
            return {"reason": cause_of_death(status)}

    def _start(self, index: int, what: str, reader: int, writer: int) -> None:
        if not (self._request["fork"] and sys.platform.startswith("linux")):  # a forked process may not use macOS's frameworks
            command = [sys.executable, str(Path(__file__).absolute().parent), self._file, str(index), what, str(writer)]
            self._starting = True
            self.process = subprocess.Popen(command, pass_fds=[writer]).pid
            self._started()
            return
        jobs = self._request["jobs"]
        backend = jobs[index]["backend"]
        several = len(jobs) > 1 and not self._request["rounds"]
        alone = len({job["backend"] for job in jobs}) == 1
        # Importing once is faster where several processes need it; but no file's memory may include another's runtime.
        if several and alone and self._importable(backend):
            preload(backend)
        if self._fork():
            return
        code = 70
        try:  # never leave this frame: the parent's work must not be done twice
            os.close(reader)
            os.close(self._answer)
            code = child(self._request, index, what, writer)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _fork(self) -> int:
        """Fork; 0 in the child process, which signals end as they end any other."""
        self._starting = True
        self.process = os.fork()
        if not self.process:
            for number in ENDING:
                signal.signal(number, signal.SIG_DFL)
        self._started()
        return self.process

    def _started(self) -> None:
        self._starting = False
        if self._told_to_end:
            self.end()

    def end(self) -> None:
        """End this process and the one that it has started. Between starting one and knowing its number, that waits: it would be left behind."""
        if self._starting:
            self._told_to_end = True
            return
        try:
            if self.process:
                os.kill(self.process, signal.SIGKILL)
        finally:  # it may have ended by itself this moment
            os._exit(143)

    def _importable(self, backend: str) -> bool:
        """Whether the runtime can be imported, tried in a process of its own: some end theirs, and this one has the other files to measure."""
        if backend in self._imported:
            return self._imported[backend]
        if not self._fork():
            code = 70
            try:  # never leave this frame: the parent's work must not be done twice
                os.close(self._answer)
                code = 0 if preload(backend) else 1
            finally:
                os._exit(code)
        until = time.monotonic() + LOADING_S
        ended, status = 0, 0
        while not ended:
            time.sleep(0.005)
            ended, status = os.waitpid(self.process, os.WNOHANG)
            self._alive()
            if not ended and time.monotonic() > until:
                os.kill(self.process, signal.SIGKILL)
                until = float("inf")
        self.process = 0
        self._imported[backend] = status == 0
        return self._imported[backend]

    def _alive(self) -> None:
        if time.monotonic() - self._said_at >= ALIVE_EVERY_S:
            self.say({"event": "alive"})


def cause_of_death(status: int) -> str:
    """What to say of a process that ended with this `waitpid` status and gave no result."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = {int(signal.SIGKILL): "out of memory, or it took too long", int(signal.SIGILL): "the runtime was built for another processor"}
        why = known.get(number, "a crash")
        return "the runtime's process was ended by signal %d (%s): %s" % (number, signal.Signals(number).name, why)
    return "the runtime's process ended with code %d and said nothing" % os.WEXITSTATUS(status)


def main(arguments: Sequence[str]) -> int:
    """Entry point: the supervisor with one argument, a child process with four."""
    request = cast("Request", json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    if len(arguments) == 4:
        return child(request, int(arguments[1]), arguments[2], int(arguments[3]))
    answer = os.dup(1)
    os.dup2(2, 1)  # the runtimes' chatter
    supervisor = Supervisor(request, arguments[0], answer)

    def stop(_number: int, _frame: object) -> None:
        supervisor.end()

    for number in ENDING:
        signal.signal(number, stop)
    try:
        supervisor.say({"event": "alive", "python": sys.version.split()[0]})
        for index in range(1 if request["rounds"] else len(request["jobs"])):
            supervisor.run(index)
    except BrokenPipeError:  # nobody listens any more
        if supervisor.process:
            os.kill(supervisor.process, signal.SIGKILL)
        return 1
    return 0
