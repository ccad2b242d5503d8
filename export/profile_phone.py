"""Latency on a phone, which has no Python: the runtimes' own programs do the timing, `benchmark_model` for .tflite, `executor_runner` for .pte.

Both are the user's, built for the phone (LiteRT: tflite/tools/benchmark, nightly builds exist; ExecuTorch: examples/portable/executor_runner),
because the runtime inside them is what is measured: the one the app ships. Their paths come from `Programs`.

What the programs print is read by `export/profile_phone_output.py`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcompress.errors import DeviceError, UsageError
from mcompress.export.agent.protocol import Unusable
from mcompress.export.agent.stopwatch import LEAST_QUERIES
from mcompress.export.profile_jobs import FailedJob, Job, Profile, shares
from mcompress.export.profile_phone_output import EXECUTED, SENSORS, STATUS, Timed, hot, parse_benchmark, parse_operators, parse_runner, parse_sensors
from mcompress.export.profile_phone_sizes import PhoneSizes, sizes_on_phone
from mcompress.export.profile_throttle import Reading, cautions, throttled
from mcompress.targets.connect import Connection, Done
from mcompress.targets.connect.files import link_or_copy
from mcompress.targets.connect.interface import ANSWER_TAIL
from mcompress.targets.connect.processes import last_words

BENCHMARK_MODEL, EXECUTOR_RUNNER = "MCOMPRESS_BENCHMARK_MODEL", "MCOMPRESS_EXECUTOR_RUNNER"
SPARE_S = 300.0
REST_EVERY_S = 5.0
WHERE_TO_GET = {
    "tflite": f"--benchmark-binary or {BENCHMARK_MODEL} must name LiteRT's `benchmark_model`, built for the phone (bazel build -c opt "
    "--config=android_arm64 //tflite/tools/benchmark:benchmark_model)",
    "executorch": f"{EXECUTOR_RUNNER} must name ExecuTorch's `executor_runner`, built for the phone (CMake with EXECUTORCH_BUILD_XNNPACK=ON and "
    "EXECUTORCH_BUILD_EXECUTOR_RUNNER=ON)",
}
NO_PROGRAM = (
    "there is no program that times {backend} files on a phone without an app; measure it through ssh, or profile the .tflite or .pte of the bundle"
)
SAID_MARK = "mcompress-ended="
AND_SENSORS = f"""
"$@"; ended=$?
printf '\\n%s%s\\n' "{SAID_MARK}" "$ended"
{SENSORS}"""
"""Runs its arguments, says what they ended with, and reads the sensors while the phone is still warm: one call instead of two."""
FRESH_S = 1.0
"""A reading that is not older stands for the one before the next measurement."""
MODELS = "models"
PUSHED_TOGETHER_BYTES = 64 << 20
"""Files are pushed many at a time, because a call to adb takes longer than a small file, but no more than a phone surely has room for."""


@dataclass(frozen=True)
class Programs:
    """The programs that are pushed to a phone; None: not given."""

    benchmark_model: Path | None = None
    executor_runner: Path | None = None

    @classmethod
    def from_environment(cls) -> Programs:
        """From `MCOMPRESS_BENCHMARK_MODEL` and `MCOMPRESS_EXECUTOR_RUNNER`."""
        named = [Path(text) if text else None for text in (os.environ.get(BENCHMARK_MODEL), os.environ.get(EXECUTOR_RUNNER))]
        return cls(named[0], named[1])

    @classmethod
    def asked(cls, on: str, benchmark_binary: Path | None) -> Programs:
        """From the environment, and the option `--benchmark-binary` of a command that measures on `on`. Raises `UsageError`."""
        programs = cls.from_environment()
        if benchmark_binary is None:
            return programs
        if not benchmark_binary.is_file():
            raise UsageError(
                f"--benchmark-binary is {benchmark_binary}, which is not a file; it must be LiteRT's benchmark_model, built for the phone"
            )
        if on.partition(":")[0] != "adb":
            raise UsageError(f"--benchmark-binary is for phones, and --on is '{on}'; leave it out, or measure with --on adb")
        return replace(programs, benchmark_model=benchmark_binary)

    def of(self, backend: str) -> Path | None:
        """The one for files of a backend. Raises `UsageError` for a path that is not a file."""
        path = {"tflite": self.benchmark_model, "executorch": self.executor_runner}.get(backend)
        if path is not None and not path.is_file():
            raise UsageError(f"the program for {backend} files is {path}, which is not a file; {WHERE_TO_GET[backend]}")
        return path


@dataclass(frozen=True)
class _Model:
    """A file on the phone: its name there, and the sizes that it is measured at."""

    name: str
    sizes: PhoneSizes


@dataclass(frozen=True)
class _Looked:
    """One look at the phone's sensors, and when it was."""

    reading: Reading
    status: int
    """Android's thermal status; -1 where it does not say."""
    at_s: float


def runtime_of(program: Path) -> str:
    """What a profile by this program names as its runtime: the program does not say its version."""
    return f"{program.name} CPU"


def profile_on_phone(connection: Connection, jobs: Sequence[Job], programs: Programs) -> Iterator[Profile | FailedJob]:
    """Measure each file, in order. Raises `DeviceError` when the phone is lost, after everything that was complete."""
    paths = {backend: programs.of(backend) for backend in dict.fromkeys(job.backend for job in jobs)}
    there = {backend: _push_program(connection, path) for backend, path in paths.items() if path is not None}
    todo = {index: job for index, job in enumerate(jobs) if job.backend in there}
    models: dict[int, str] = {}
    looked: _Looked | None = None
    for index, job in enumerate(jobs):
        if job.backend not in WHERE_TO_GET:
            yield FailedJob(job, NO_PROGRAM.format(backend=job.backend))
            continue
        if job.backend not in there:
            yield FailedJob(job, f"no program was given: {WHERE_TO_GET[job.backend]}", missing=True)
            continue
        try:
            sizes = sizes_on_phone(job)
        except (UsageError, Unusable) as error:
            yield FailedJob(job, str(error), usage=isinstance(error, UsageError))
            continue
        if index not in models:
            models = _push_models(connection, {number: other for number, other in todo.items() if number >= index})
        result, looked = _measure(connection, job, there[job.backend], _Model(models[index], sizes), looked)
        yield result


def _push_program(connection: Connection, path: Path) -> str:
    """Its name there. A phone on which it is already, from an earlier call, is not sent it again: it may be many megabytes."""
    with path.open("rb") as stream:
        folder = f"program-{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
    name = f"./{folder}/{path.name}"
    if connection.run(["test", "-x", name], timeout_s=30.0).rc != 0:
        connection.push(path, name[2:])
        connection.run(["chmod", "755", name], timeout_s=30.0)
    return name


def _push_models(connection: Connection, jobs: Mapping[int, Job]) -> dict[int, str]:
    """Replace the files on the phone by the first of these, as many as go together. Number -> name there."""
    connection.run(["rm", "-rf", MODELS], timeout_s=60.0)
    names: dict[int, str] = {}
    total = 0
    with tempfile.TemporaryDirectory(prefix="mcompress-") as folder:
        for number, job in jobs.items():
            total += job.file.stat().st_size
            if names and total > PUSHED_TOGETHER_BYTES:
                break
            names[number] = f"{number}-{job.file.name}"
            link_or_copy(job.file, Path(folder) / names[number])
        connection.push(Path(folder), MODELS)
    return {number: f"{MODELS}/{name}" for number, name in names.items()}


def _measure(connection: Connection, job: Job, program: str, model: _Model, looked: _Looked | None) -> tuple[Profile | FailedJob, _Looked]:
    rested_s, still_hot, before = _rest(connection, job.rules.cool_down_s, looked)
    timed, after = (_benchmark if job.backend == "tflite" else _runner)(connection, job, program, model)
    if isinstance(timed, FailedJob):
        return timed, after
    status = f"Android's thermal status is {STATUS[after.status]}" if 0 < after.status < len(STATUS) else None
    reasons = [throttled([before.reading, after.reading], timed.samples), status]
    warnings = [*timed.warnings, *cautions(timed.samples, timed.n, timed.cv, rested_s, still_hot, [before.reading], job.cpus)]
    operators: list[tuple[str, str, float]] = []
    if job.operators:
        operators, unsaid = _operators(connection, job, program, model, timed.n)
        warnings += unsaid
    found = Profile(
        job=job,
        runtime=runtime_of(Path(program)),
        p50_ms=timed.p50,
        p90_ms=timed.p90,
        mean_ms=timed.mean,
        cv=timed.cv,
        n=timed.n,
        load_ms=timed.load,
        peak_memory_mb=timed.peak_memory_mb,
        throttled="; ".join(filter(None, reasons)) or None,
        clock_jumps=0,
        warnings=tuple(warnings),
        operators=shares(operators),
        samples_ms=timed.samples,
        inputs=model.sizes.inputs,
        assumed=model.sizes.assumed,
    )
    return found, after


def _benchmark(connection: Connection, job: Job, program: str, model: _Model) -> tuple[Timed | FailedJob, _Looked]:
    """As `_run`, with `benchmark_model`, which cannot be told "so long, but not fewer than 10": a slow file, with fewer at first, runs once more."""
    rules = job.rules
    timed, after = _run(connection, job, program, _benchmark_arguments(job, model, rules.min_queries, min(rules.min_seconds, rules.max_seconds)))
    if isinstance(timed, FailedJob) or timed.n >= LEAST_QUERIES:
        return timed, after
    return _run(connection, job, program, _benchmark_arguments(job, model, LEAST_QUERIES, rules.max_seconds))


def _runner(connection: Connection, job: Job, program: str, model: _Model) -> tuple[Timed | FailedJob, _Looked]:
    """As `_run`, with `executor_runner`, which counts executions, not time: the first few say how many fit."""
    count = _executions(connection, job, program, model)
    if isinstance(count, FailedJob):
        return count, _sensors(connection)
    return _run(connection, job, program, _runner_arguments(job, model, count))


def _run(connection: Connection, job: Job, program: str, arguments: Sequence[str]) -> tuple[Timed | FailedJob, _Looked]:
    """What the program said, or why there is nothing; and the sensors right after."""
    started = time.monotonic()
    done = connection.run(["sh", "-c", AND_SENSORS, "sh", *_command(job, program, arguments)], timeout_s=_longest_s(job))
    took_s = time.monotonic() - started
    printed, _, rest = done.stdout.rpartition(f"\n{SAID_MARK}")
    ended, _, sensors = rest.partition("\n")
    if not ended.isdigit():
        raise DeviceError(f"{connection.name}: its shell broke off with code {done.rc}: {last_words(done)}")
    after = _Looked(*parse_sensors(sensors), time.monotonic())
    said = printed + "\n" + done.stderr
    name = Path(program).name
    if ended != "0":
        return _ended(job, name, int(ended), said), after
    timed = parse_benchmark(said) if job.backend == "tflite" else parse_runner(said, job.rules.warm_up_s)
    if timed is None:
        return FailedJob(job, f"{name} said nothing that can be read as a time; the end of it: {said.strip()[-ANSWER_TAIL:]}"), after
    if timed.shortest < 0 or timed.mean * timed.n > took_s * 1e3:
        # benchmark_model reads the wall clock (gettimeofday), which the network may set at any time.
        sum_s = timed.mean * timed.n / 1e3
        reason = f"the phone's clock jumped: {name} says {timed.n} queries of {sum_s:.3g} s together, and ran for {took_s:.3g} s; measure again"
        return FailedJob(job, reason), after
    return timed, after


def _ended(job: Job, name: str, code: int, said: str) -> FailedJob:
    """A program that a shell cannot start (126, 127) is as good as missing: it starts for no other file either."""
    reason = f"{name} ended with code {code}: {said.strip()[-ANSWER_TAIL:]}"
    if code in (126, 127):
        return FailedJob(job, f"{reason}. It was probably built for another processor or system; {WHERE_TO_GET[job.backend]}", missing=True)
    return FailedJob(job, reason)


def _executions(connection: Connection, job: Job, program: str, model: _Model) -> int | FailedJob:
    done = _program(connection, job, program, _runner_arguments(job, model, 3))
    found = EXECUTED.search(done.stdout + "\n" + done.stderr)
    if done.rc != 0 or not found:
        return _ended(job, Path(program).name, done.rc, done.stdout + done.stderr)
    each_s = max(float(found[2]) / 3 / 1e3, 1e-6)
    warm_up = min(200, int(job.rules.warm_up_s / each_s))
    wanted = min(job.rules.min_queries, max(LEAST_QUERIES, int(job.rules.min_seconds / each_s)))
    return max(1, min(wanted, int(job.rules.max_seconds / each_s))) + warm_up


def _program(connection: Connection, job: Job, program: str, arguments: Sequence[str]) -> Done:
    return connection.run(_command(job, program, arguments), timeout_s=_longest_s(job))


def _command(job: Job, program: str, arguments: Sequence[str]) -> list[str]:
    pinned = ["taskset", f"{sum(1 << cpu for cpu in job.cpus):x}"] if job.cpus else []
    return [*pinned, program, *arguments]


def _longest_s(job: Job) -> float:
    return 2 * job.rules.max_seconds + job.rules.warm_up_s + SPARE_S


def _benchmark_arguments(job: Job, model: _Model, queries: int, seconds: float) -> list[str]:
    """So many queries or so many seconds, whichever comes first: `benchmark_model` runs `num_runs` and `min_secs`, both, until `max_secs`."""
    return [
        f"--graph={model.name}",
        f"--num_threads={job.threads}",
        "--use_xnnpack=true",
        "--warmup_runs=3",
        f"--warmup_min_secs={job.rules.warm_up_s:g}",
        f"--num_runs={queries}",
        "--min_secs=0",
        f"--max_secs={seconds:g}",
        *model.sizes.flags,
    ]


def _runner_arguments(job: Job, model: _Model, executions: int) -> list[str]:
    return [f"--model_path={model.name}", f"--cpu_threads={job.threads}", "--print_output=none", f"--num_executions={executions}"]


def _operators(connection: Connection, job: Job, program: str, model: _Model, queries: int) -> tuple[list[tuple[str, str, float]], list[str]]:
    if job.backend != "tflite":
        return [], [
            "no operator times: executor_runner writes them only when it is built with EXECUTORCH_ENABLE_EVENT_TRACER=ON, and mcompress reads none"
        ]
    flags = ["--enable_op_profiling=true", "--op_profiling_output_mode=csv", "--op_profiling_output_file=operators.csv"]
    done = _program(connection, job, program, [*_benchmark_arguments(job, model, queries, job.rules.max_seconds), *flags])
    text = connection.run(["cat", "operators.csv"], timeout_s=60.0)
    said = text.stdout if text.rc == 0 else done.stdout
    found = parse_operators(said)
    return found, [] if found else [f"no operator times: {Path(program).name} wrote none that can be read"]


def _rest(connection: Connection, most_s: float, looked: _Looked | None) -> tuple[float, str, _Looked]:
    """Wait until the phone is no longer hot. (seconds waited, why it is still hot, the last look); `looked` counts as the first if it is fresh."""
    started = time.monotonic()
    look = looked if looked is not None and started - looked.at_s <= FRESH_S else _sensors(connection)
    while True:
        why, waited = hot(look.reading, look.status), time.monotonic() - started
        if not why or waited >= most_s:
            return (waited, why, look) if why or waited > REST_EVERY_S else (0.0, "", look)
        time.sleep(min(REST_EVERY_S, max(0.01, most_s - waited)))
        look = _sensors(connection)


def _sensors(connection: Connection) -> _Looked:
    """What the phone says now."""
    done = connection.run(["sh", "-c", SENSORS], timeout_s=60.0)
    if done.rc != 0:
        raise DeviceError(f"{connection.name}: its sensors could not be read: {last_words(done)}")
    return _Looked(*parse_sensors(done.stdout), time.monotonic())
