"""Executing .onnx files with ONNX Runtime, and reading the trace of its profiler."""

from __future__ import annotations

import bisect
import json
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple, TypedDict

from .protocol import Operator
from .repetitions import repeat
from .runtimes import Loaded, imported, opened
from .sizes import Asked, sizes_of
from .stopwatch import WARM_UP_RUNS
from .values import input_values


def load_onnx(path: Path, threads: int, asked: Asked) -> Loaded:
    """A session on the CPU, its inputs bound."""
    ort = imported("onnx", "onnxruntime")
    np = imported("onnx", "numpy")

    def session_with(profile_prefix: str) -> object:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        if _saturates_int8_sums():  # as mcompress executes files: x86 without VNNI sums 8-bit products in 16 bits otherwise
            options.add_session_config_entry("session.x64quantprecision", "1")
        if profile_prefix:
            options.enable_profiling, options.profile_file_prefix = True, profile_prefix
        return opened(path, lambda: ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))

    def bound(session: object) -> Callable[[], object]:
        binding = session.io_binding()  # type: ignore[attr-defined]
        for given, sized in zip(session.get_inputs(), sizes.inputs):  # type: ignore[attr-defined]
            name = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}.get(given.type, given.type[7:-1])
            binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(input_values(np, sized["shape"], name)))
        for result in session.get_outputs():  # type: ignore[attr-defined]
            binding.bind_output(result.name)
        return lambda: session.run_with_iobinding(binding)  # type: ignore[attr-defined]

    def operators() -> Tuple[List[Operator], List[str]]:
        session = session_with("operators")
        repeat(bound(session))
        trace = Path(session.end_profiling())  # type: ignore[attr-defined]
        events = json.loads(trace.read_text(encoding="utf-8"))
        trace.unlink()
        return onnx_operators(events), ["onnxruntime's profiler counts whole microseconds"]

    timed = session_with("")
    sizes = sizes_of([(given.name, given.shape) for given in timed.get_inputs()], asked)  # type: ignore[attr-defined]
    return Loaded("onnxruntime %s CPU" % ort.__version__, sizes, bound(timed), operators)


ONNX_CONTAINERS = ("If", "Loop", "Scan", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch")
"""Operators that hold graphs, the last four of them onnxruntime's own."""


class OnnxEvent(TypedDict, total=False):
    """An event of onnxruntime's profiler; times in whole microseconds."""

    cat: str
    name: str
    ts: int
    dur: int
    args: Dict[str, str]


def onnx_operators(events: Sequence[OnnxEvent]) -> List[Operator]:
    """Mean time per run of each operator in a trace, without the warm-up; what is executed several times in a run counts as often."""
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == "model_run")
    runs = runs[WARM_UP_RUNS:] or runs
    begins = [begin for begin, _ in runs]
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    starts = sorted(event["ts"] for event in nodes)
    total_us: Dict[str, int] = {}
    kinds: Dict[str, str] = {}
    for event in nodes:
        start, took, kind = event["ts"], event["dur"], event["args"].get("op_name", "")
        run = bisect.bisect_right(begins, start) - 1
        if run < 0 or start > runs[run][1]:
            continue  # of the warm-up, or of a run that did not fit into the trace
        if kind in ONNX_CONTAINERS and bisect.bisect_left(starts, start + took) - bisect.bisect_left(starts, start) > 1:
            continue  # it contains what its graph executes: counted once
        name = event["name"][: -len("_kernel_time")]
        total_us[name] = total_us.get(name, 0) + took
        kinds[name] = kind
    return [{"name": name, "kind": kinds[name], "mean_ms": took / 1e3 / len(runs)} for name, took in total_us.items()]


def _saturates_int8_sums() -> bool:
    import platform

    facts = Path("/proc/cpuinfo")
    if platform.machine().lower() not in ("x86_64", "amd64") or not facts.exists():
        return False
    return "vnni" not in facts.read_text(encoding="utf-8", errors="replace")
