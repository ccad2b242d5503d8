"""What a child process does: it loads one file, or two, times it, and writes what came out."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from .loaders import LOADERS, preload
from .protocol import Job, MissingRuntime, Operator, Request, Result, Unusable, WrongInput
from .runtimes import Loaded
from .sizes import Asked
from .stopwatch import Clocks, alternate, measure, warm_up


def work(jobs: Sequence[Job], rounds: int, queries: int) -> List[Result]:
    """What a child process does: one job, or two in turns."""
    warnings = _pin(jobs[0]["cpus"])
    loaded: List[Loaded] = []
    load_ms: List[float] = []
    for job in jobs:
        if job["backend"] not in LOADERS:
            raise Unusable("'%s' files cannot be executed here; allowed: %s" % (job["backend"], ", ".join(LOADERS)))
        if not Path(job["file"]).exists():
            raise Unusable("%s is not on the device" % job["file"])
        preload(job["backend"])
        started = time.perf_counter()
        loaded.append(_loaded(job))
        load_ms.append((time.perf_counter() - started) * 1e3)
    gc.collect()
    gc.disable()
    times: List[List[int]]
    if len(jobs) == 1:
        watch = measure(loaded[0].run, jobs[0]["rules"], Clocks())
        times, jumps = [watch.samples_ns], watch.jumps
    else:
        for one, job in zip(loaded, jobs):
            warm_up(one.run, job["rules"]["warm_up_s"], Clocks())
        first, second, jumps = alternate(loaded[0].run, loaded[1].run, rounds, queries, Clocks())
        times = [first, second]
    memory = peak_memory_mb() if len(jobs) == 1 else None  # of two files, nobody could say whose it is
    results: List[Result] = []
    for one, took_ms, samples in zip(loaded, load_ms, times):
        results.append(
            {
                "runtime": one.runtime,
                "load_ms": took_ms,
                "samples_ms": [sample / 1e6 for sample in samples],
                "clock_jumps": len(jumps),
                "peak_memory_mb": memory,
                "warnings": warnings + sorted(set(jumps))[:3],
                "inputs": one.sizes.inputs,
                "assumed": one.sizes.assumed,
            }
        )
    return results


def _loaded(job: Job) -> Loaded:
    return LOADERS[job["backend"]](Path(job["file"]), job["threads"], Asked(job["shapes"], job["inputs"]))


def operators_of(job: Job) -> Tuple[List[Operator], List[str]]:
    """What a second child process does: the times of one file's operators, and what the runtime's profiler cannot say."""
    _pin(job["cpus"])
    preload(job["backend"])
    return _loaded(job).operators()


def _pin(cpus: Optional[Sequence[int]]) -> List[str]:
    if cpus is None:
        return []
    if not hasattr(os, "sched_setaffinity"):
        return ["not pinned to processors %s: this system has no affinity" % list(cpus)]
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as problem:
        allowed = sorted(os.sched_getaffinity(0))
        raise Unusable("the process cannot be pinned to processors %s (%s); allowed are %s" % (list(cpus), problem.strerror, allowed)) from problem
    return []


def peak_memory_mb() -> Optional[float]:
    """Largest resident size of this process so far, 10^6 bytes; None where the system does not say."""
    facts = Path("/proc/self/status")
    if facts.exists():  # getrusage would include what the parent process held when it started this one
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        return None
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / 1e6 if sys.platform == "darwin" else found * 1024 / 1e6


def child(request: Request, index: int, what: str, answer: int) -> int:
    """Time one job (or both in turns), or its operators, and write what came out as JSON to the file descriptor `answer`."""
    jobs = request["jobs"] if request["rounds"] else [request["jobs"][index]]
    said: Dict[str, object]
    try:
        if what == "operators":
            operators, unsaid = operators_of(jobs[0])
            said = {"operators": operators, "unsaid": unsaid}
        else:
            said = {"results": work(jobs, request["rounds"], request["queries_per_round"])}
    except MissingRuntime as problem:
        said = {"reason": str(problem), "missing": True}
    except Unusable as problem:
        said = {"reason": str(problem), "usage": isinstance(problem, WrongInput)}
    except Exception as problem:  # noqa: BLE001  whatever a runtime raises is the job's result
        said = {"reason": "%s: %s" % (type(problem).__name__, str(problem).strip()[:1500])}
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        json.dump(said, stream)
    return 0
