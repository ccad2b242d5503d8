"""The program that runs on the device: it loads exported files, times them and prints one JSON object per line.

    python agent.py request.json

It needs Python 3.8, numpy and the runtime of the files, and nothing of mcompress: `mcompress profile` copies this one file to the device. Each job
runs in a process of its own. What is said: `{"event": "alive"}` every few seconds, `{"event": "result" | "failed", "job": 0, ...}` for each job.

What is timed is the runtime's execution alone (`Invoke`, `run_with_iobinding`, `Method`), as `benchmark_model` and `executor_runner` time it on
phones: inputs are set before, outputs stay where they are.
"""

# ruff: noqa: UP006, UP031, UP035, UP045, B905  (Python 3.8 has none of what these ask for)
from __future__ import annotations

import bisect
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, TypedDict, TypeVar, cast

if TYPE_CHECKING:
    from types import ModuleType

Value = TypeVar("Value")

ALIVE_EVERY_S = 2.0
READ_EVERY_S = 1.0
LEAST_QUERIES = 10
WARM_UP_RUNS = 3
JUMP_NS = 50_000_000
"""The clocks may disagree by so much about one query: it is more than a busy system takes between reading one and reading the other."""
STALL_NS, STALL_CPU_SHARE, STALL_TIMES = 1_000_000_000, 0.05, 20
"""A query that took this long, this many times the median and hardly any processor time: the machine stood still."""
LOADING_S = 900.0
OPERATOR_RUNS, OPERATOR_SECONDS = 50, 2.0
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MOST_READINGS = 120
BATCH_ASSUMED = "batch 1 assumed, which the file leaves open"
"""As `mcompress count` says it: only where the first sizes are all that is open."""
MISSING = {
    "onnx": "onnxruntime is not installed for {python}; install it with: {python} -m pip install onnxruntime numpy",
    "tflite": "neither ai-edge-litert nor tflite-runtime is installed for {python}; install one with: {python} -m pip install ai-edge-litert numpy",
    "executorch": "executorch is not installed for {python}; install it with: {python} -m pip install executorch",
}
NO_EVENT_TRACER = (
    "no operator times: this build of ExecuTorch's runtime has no event tracing (the wheels on PyPI have none); build it with "
    "EXECUTORCH_ENABLE_EVENT_TRACER=ON"
)
NO_TFLITE_RESIZING = (
    "no operator times: the file leaves sizes open, and this version of LiteRT's profiler takes none; install ai-edge-litert 2.3 or newer there"
)
NO_TFLITE_PROFILER = "no operator times: {runtime} gives Python no profiler; install ai-edge-litert 2 or newer there, or use benchmark_model"


class Rules(TypedDict):
    """As `mcompress.export.profile.Rules`."""

    min_queries: int
    min_seconds: float
    max_seconds: float
    warm_up_s: float
    cool_down_s: float


class Job(TypedDict):
    """One file; `file` is relative to the working directory."""

    file: str
    backend: str
    shape: List[int]
    """Of the first input; where the file states all sizes, their order may be another one. Empty: as the file states it."""
    inputs: Dict[str, List[int]]
    """Name -> shape, just as the file has it; '' is the first input."""
    threads: int
    cpus: Optional[List[int]]
    rules: Rules
    operators: bool


class Request(TypedDict):
    """What is to be done. With `rounds`, the first two jobs are measured in turns in one process."""

    jobs: List[Job]
    rounds: int
    queries_per_round: int
    sys: str
    fork: bool


class Operator(TypedDict):
    """One operator and its mean time."""

    name: str
    kind: str
    mean_ms: float


class Input(TypedDict):
    """An input of a file, with the sizes that it was measured at."""

    name: str
    shape: List[int]


class Result(TypedDict):
    """What a child process found out about one file."""

    runtime: str
    load_ms: float
    samples_ms: List[float]
    clock_jumps: int
    peak_memory_mb: Optional[float]
    warnings: List[str]
    inputs: List[Input]
    assumed: str
    """What the file leaves open and was decided here; empty if nothing was."""


class MissingRuntime(Exception):  # noqa: N818
    """No runtime for the file; the message says what to install."""


class Unusable(Exception):  # noqa: N818
    """The file cannot be measured as asked; the message says why."""


class Clocks(NamedTuple):
    """The three clocks that a query is timed with, in nanoseconds: monotonic, wall, processor time of the process."""

    monotonic: Callable[[], int] = time.perf_counter_ns
    wall: Callable[[], int] = time.time_ns
    processor: Callable[[], int] = time.process_time_ns


class Asked(NamedTuple):
    """The sizes that a job asks for, as `Job` has them."""

    shape: Sequence[int]
    inputs: Dict[str, List[int]]


class Sizes(NamedTuple):
    """The sizes of all inputs, in the file's order."""

    inputs: List[Input]
    assumed: str


class Loaded(NamedTuple):
    """A file ready to be executed: `run` executes it once on inputs that are set already."""

    runtime: str
    sizes: Sizes
    run: Callable[[], object]
    operators: Callable[[], Tuple[List[Operator], List[str]]]
    """Operator times from the runtime's profiler, and what it could not say. A second session: profiling would slow down the first."""


# ---- timing


class Stopwatch:
    """Times queries, and drops those during which the clocks disagreed or the machine stood still."""

    def __init__(self, clocks: Clocks) -> None:
        """Start watching the clocks now."""
        self._clocks = clocks
        self.samples_ns: List[int] = []
        self.jumps: List[str] = []
        self._monotonic, self._wall, self._processor = clocks.monotonic(), clocks.wall(), clocks.processor()

    def query(self, run: Callable[[], object]) -> bool:
        """Run once; True if the sample counts."""
        clocks = self._clocks
        started = clocks.monotonic()
        run()
        took = clocks.monotonic() - started
        monotonic, wall, processor = clocks.monotonic(), clocks.wall(), clocks.processor()
        by_monotonic, by_wall, by_processor = monotonic - self._monotonic, wall - self._wall, processor - self._processor
        self._monotonic, self._wall, self._processor = monotonic, wall, processor
        problem = self._problem(took, by_monotonic, by_wall, by_processor)
        if problem:
            self.jumps.append(problem)
            return False
        self.samples_ns.append(took)
        return True

    def _problem(self, took: int, by_monotonic: int, by_wall: int, by_processor: int) -> str:
        if took < 0:
            return "the monotonic clock went back by %.3f s" % (-took / 1e9)
        apart = by_wall - by_monotonic
        if abs(apart) > JUMP_NS + abs(by_monotonic) // 1000:
            return "the wall clock jumped by %+.3f s against the monotonic clock: set by somebody, or the machine slept" % (apart / 1e9)
        typical = sorted(self.samples_ns)[len(self.samples_ns) // 2] if took > STALL_NS and self.samples_ns else took
        if took > STALL_NS and took > STALL_TIMES * typical and by_processor < STALL_CPU_SHARE * took:
            return "one query took %.1f s and no processor time: the machine stood still" % (took / 1e9)
        return ""


def measure(run: Callable[[], object], rules: Rules, clocks: Clocks) -> Stopwatch:
    """Warm up, then time queries until the rules are met."""
    warm_up(run, rules["warm_up_s"], clocks)
    watch = Stopwatch(clocks)
    started = clocks.monotonic()
    attempts = 0
    while True:
        watch.query(run)
        attempts += 1
        passed_s = (clocks.monotonic() - started) / 1e9
        counted = len(watch.samples_ns)
        if counted >= LEAST_QUERIES and (counted >= rules["min_queries"] or passed_s >= rules["min_seconds"]):
            return watch
        if passed_s >= rules["max_seconds"] or passed_s < 0 or attempts >= 10 * max(rules["min_queries"], LEAST_QUERIES):
            return watch


def warm_up(run: Callable[[], object], seconds: float, clocks: Clocks) -> None:
    """At least `seconds` and three runs, but one is enough for a file that takes longer than ten times `seconds`."""
    started = clocks.monotonic()
    runs = 0
    while True:
        run()
        runs += 1
        passed_s = (clocks.monotonic() - started) / 1e9
        if passed_s < 0 or (passed_s >= seconds and (runs >= WARM_UP_RUNS or passed_s >= 10 * seconds)):
            return


def alternate(a: Callable[[], object], b: Callable[[], object], rounds: int, queries: int, clocks: Clocks) -> Tuple[List[int], List[int], List[str]]:
    """Times of A and B in turns; a round with a dropped query is left out for both, so that both have whole rounds only. Nanoseconds."""
    times: Tuple[List[int], List[int]] = ([], [])
    jumps: List[str] = []
    for _ in range(rounds):
        watches = []
        for run in (a, b):
            run()  # the other file has emptied the caches
            watch = Stopwatch(clocks)
            for _query in range(queries):
                watch.query(run)
            watches.append(watch)
        dropped = [problem for watch in watches for problem in watch.jumps]
        if dropped:
            jumps += dropped
            continue
        for kept, watch in zip(times, watches):
            kept += watch.samples_ns
    return times[0], times[1], jumps


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


# ---- what the device says about heat and clocks


class Reading(TypedDict):
    """One look at the device's sensors; whatever it does not have is left out of the dictionaries."""

    clock_khz: Dict[str, int]
    limit_khz: Dict[str, int]
    top_khz: Dict[str, int]
    throttle_count: Dict[str, int]
    cooling: Dict[str, int]
    zones_mc: Dict[str, int]
    trips_mc: Dict[str, int]
    firmware: Optional[int]


def read_sensors(root: Path) -> Reading:
    """Clocks, their limits, throttle counters, cooling devices, temperatures and trip points below `root` (/sys)."""
    reading: Reading = {
        "clock_khz": {}, "limit_khz": {}, "top_khz": {}, "throttle_count": {}, "cooling": {}, "zones_mc": {}, "trips_mc": {}, "firmware": None,
    }  # fmt: skip
    for core in root.glob("devices/system/cpu/cpu[0-9]*"):
        for numbers, name in (
            (reading["clock_khz"], "scaling_cur_freq"),
            (reading["limit_khz"], "scaling_max_freq"),
            (reading["top_khz"], "cpuinfo_max_freq"),
        ):
            _keep(numbers, core.name, core / "cpufreq" / name)
        for name in ("core_throttle_count", "package_throttle_count"):
            _keep(reading["throttle_count"], core.name + " " + name, core / "thermal_throttle" / name)
    for device in root.glob("class/thermal/cooling_device*"):
        kind = _text(device / "type")
        if kind.startswith(("cpufreq", "Processor", "thermal-cpufreq", "cpu", "devfreq", "thermal-devfreq")):
            _keep(reading["cooling"], device.name + " " + kind, device / "cur_state")
    for zone in root.glob("class/thermal/thermal_zone*"):
        name = zone.name + " " + _text(zone / "type")
        _keep(reading["zones_mc"], name, zone / "temp")
        trips = [trip for trip in zone.glob("trip_point_*_type") if _text(trip) == "passive"]
        for trip in trips:
            _keep(reading["trips_mc"], name, trip.with_name(trip.name.replace("_type", "_temp")))
    bits = _text(root / "devices/platform/soc/soc:firmware/get_throttled")
    if bits:
        reading["firmware"] = int(bits, 16)
    return reading


def hot(reading: Reading) -> str:
    """Why the device should rest before a measurement; empty if it need not."""
    for name, state in reading["cooling"].items():
        if state > 0:
            return "%s is at state %d" % (name, state)
    for name, trip in reading["trips_mc"].items():
        if trip > 0 and reading["zones_mc"].get(name, 0) >= trip:
            return "%s is at %.0f degrees, its limit is %.0f" % (name, reading["zones_mc"][name] / 1e3, trip / 1e3)
    bits = reading["firmware"] or 0
    if bits & 0xF:
        return "the firmware says that it throttles (bits %#x)" % bits  # Raspberry Pi: vcgencmd get_throttled
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # many sensors exist and refuse to be read
        return ""


def _keep(numbers: Dict[str, int], name: str, path: Path) -> None:
    text = _text(path)
    if text.lstrip("-").isdigit():
        numbers[name] = int(text)


# ---- the runtimes


def load_onnx(path: Path, threads: int, asked: Asked) -> Loaded:
    """A session on the CPU, its inputs bound."""
    ort = _module("onnx", "onnxruntime")
    np = _module("onnx", "numpy")

    def session_with(profile_prefix: str) -> object:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        if _saturates_int8_sums():  # as mcompress executes files: x86 without VNNI sums 8-bit products in 16 bits otherwise
            options.add_session_config_entry("session.x64quantprecision", "1")
        if profile_prefix:
            options.enable_profiling, options.profile_file_prefix = True, profile_prefix
        return _opened(path, lambda: ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))

    def bound(session: object) -> Callable[[], object]:
        binding = session.io_binding()  # type: ignore[attr-defined]
        for given, sized in zip(session.get_inputs(), sizes.inputs):  # type: ignore[attr-defined]
            name = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}.get(given.type, given.type[7:-1])
            binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(_values(np, sized["shape"], name)))
        for result in session.get_outputs():  # type: ignore[attr-defined]
            binding.bind_output(result.name)
        return lambda: session.run_with_iobinding(binding)  # type: ignore[attr-defined]

    def operators() -> Tuple[List[Operator], List[str]]:
        session = session_with("operators")
        _repeat(bound(session))
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


def load_tflite(path: Path, threads: int, asked: Asked) -> Loaded:
    """An interpreter with the runtime's default delegate (XNNPACK), its inputs set."""
    np = _module("tflite", "numpy")
    module, name = _tflite()
    interpreter = _opened(path, lambda: module.Interpreter(model_path=str(path), num_threads=threads))
    details = interpreter.get_input_details()
    stated = [[int(size) for size in (one["shape_signature"] if len(one.get("shape_signature", ())) else one["shape"])] for one in details]
    sizes = sizes_of([(one["name"], shape) for one, shape in zip(details, stated)], asked)
    resized = {one["name"]: sized["shape"] for one, shape, sized in zip(details, stated, sizes.inputs) if min(shape, default=1) < 1}
    for one in details:
        if one["name"] in resized:
            interpreter.resize_tensor_input(one["index"], resized[one["name"]])
    if resized:
        try:
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as problem:
            shown = " and ".join("%s=%s" % (one["name"], _shown(one["shape"])) for one in sizes.inputs)
            raise Unusable("the runtime does not take inputs of shape %s: %s" % (shown, str(problem).strip()[:1500])) from problem
    else:
        _opened(path, interpreter.allocate_tensors)
    for one, sized in zip(details, sizes.inputs):
        interpreter.set_tensor(one["index"], _values(np, sized["shape"], np.dtype(one["dtype"]).name))
    runtime = "%s %s CPU" % (name, _version(name))

    def operators() -> Tuple[List[Operator], List[str]]:
        library = Path(str(module.__file__)).with_name("libLiteRt.so")
        if not library.exists():
            return [], [NO_TFLITE_PROFILER.format(runtime=runtime)]
        return litert_operators(library, path, threads, resized)

    return Loaded(runtime, sizes, interpreter.invoke, operators)


def _tflite() -> Tuple[ModuleType, str]:
    try:
        return _module("tflite", "ai_edge_litert.interpreter"), "ai-edge-litert"
    except MissingRuntime:
        try:
            return importlib.import_module("tflite_runtime.interpreter"), "tflite-runtime"
        except (ImportError, OSError):
            pass
        raise  # what is wrong with the newer one is what is to be mended


def runtime_of(backend: str) -> str:
    """As `Result.runtime`, without a file. Raises `MissingRuntime`."""
    name = _tflite()[1] if backend == "tflite" else {"onnx": "onnxruntime", "executorch": "executorch"}[backend]
    return "%s %s CPU" % (name, _version(name))


def load_executorch(path: Path, threads: int, asked: Asked) -> Loaded:
    """The `forward` method with the delegates that are compiled into the runtime."""
    torch = _module("executorch", "torch")  # first: it loads the libraries that the runtime is linked with
    np = _module("executorch", "numpy")
    library = _module("executorch", "executorch.extension.pybindings._portable_lib")
    library._unsafe_reset_threadpool(threads)
    program = _opened(path, lambda: library._load_program(str(path)))
    method = _opened(path, lambda: program.load_method("forward"))
    meta = method.method_meta()
    names = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}  # c10::ScalarType
    facts = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
    sizes = sizes_of([(str(index), list(one.sizes())) for index, one in enumerate(facts)], asked)  # such a file has no names of inputs
    kinds = [names.get(int(one.dtype()), "float32") for one in facts]
    inputs = [torch.from_numpy(_values(np, sized["shape"], kind)) for sized, kind in zip(sizes.inputs, kinds)]
    runtime = "executorch %s CPU" % _version("executorch")

    def operators() -> Tuple[List[Operator], List[str]]:
        traced = library._load_program(str(path), enable_etdump=True, debug_buffer_size=0)
        traced_method = traced.load_method("forward")
        _repeat(lambda: traced_method.call(inputs, clone_outputs=False))
        dump = Path("operators.etdump")
        if dump.exists():
            dump.unlink()
        traced.write_etdump_result_to_file(str(dump), "operators.debug")
        if not dump.exists() or dump.stat().st_size == 0:
            return [], [NO_EVENT_TRACER]
        return etdump_operators(dump), []

    return Loaded(runtime, sizes, lambda: method.call(inputs, clone_outputs=False), operators)


LITERT_CPU = 1
LITERT_EVENTS = {2: "operator", 4: "delegate", 8: "delegate"}
"""Types of profiler events that are operators (LiteRtProfilerEventType); the others are the whole run, telemetry and so on."""
LITERT_EVENT_BYTES = (104, 88)
"""Size of ProfiledEventData: with three numbers per memory figure (ai-edge-litert 2.3), and with two (older)."""


LITERT_LAYOUT_AT, LITERT_LAYOUT_BYTES = 4, 68
"""LiteRtLayout inside LiteRtRankedTensorType: the rank (7 bits), 8 sizes and 8 strides, of 4 bytes each."""


def litert_operators(library: Path, path: Path, threads: int, resized: Dict[str, List[int]]) -> Tuple[List[Operator], List[str]]:
    """Mean times from LiteRT's own profiler, through its C interface (litert/c/litert_profiler.h); the Python interface has none.

    `resized` are the shapes of the inputs whose sizes the file leaves open, by name.
    """
    lite = ctypes.CDLL(str(library))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t

    def call(name: str, *arguments: object) -> None:
        status = getattr(lite, name)(*arguments)
        if status != 0:
            raise Unusable("%s of %s failed with status %d" % (name, library.name, status))

    def made(name: str, *arguments: object) -> ctypes.c_void_p:
        handle = pointer()
        call(name, *arguments, ctypes.byref(handle))
        return handle

    environment = made("LiteRtCreateEnvironment", 0, None)
    model = made("LiteRtCreateModelFromFile", environment, ctypes.c_char_p(str(path).encode()))
    options = made("LiteRtCreateOptions")
    call("LiteRtSetOptionsHardwareAccelerators", options, LITERT_CPU)
    keeps_text = ctypes.CFUNCTYPE(None, pointer)(lambda _text: None)
    texts = [ctypes.create_string_buffer(text) for text in (b"enable_profiling = true\n", b"num_threads = %d\n" % threads)]
    for name, text in zip((b"runtime_options_string", b"xnnpack"), texts):
        call("LiteRtAddOpaqueOptions", options, made("LiteRtCreateOpaqueOptions", ctypes.c_char_p(name), ctypes.cast(text, pointer), keeps_text))
    compiled = made("LiteRtCreateCompiledModel", environment, model, options)
    signature = made("LiteRtGetModelSignature", model, size(0))
    tensors: Dict[str, List[ctypes.c_void_p]] = {}
    for side in ("Input", "Output"):
        count = size()
        call("LiteRtGetNumSignature%ss" % side, signature, ctypes.byref(count))
        tensors[side] = [made("LiteRtGetSignature%sTensorByIndex" % side, signature, size(index)) for index in range(count.value)]
    if resized and not hasattr(lite, "LiteRtCompiledModelResizeInputTensor"):
        return [], [NO_TFLITE_RESIZING]
    for index, tensor in enumerate(tensors["Input"] if resized else ()):
        called = ctypes.c_char_p()
        call("LiteRtGetTensorName", tensor, ctypes.byref(called))
        shape = resized.get((called.value or b"").decode("utf-8", errors="replace"))
        if shape is not None:
            call("LiteRtCompiledModelResizeInputTensor", compiled, size(0), size(index), (ctypes.c_int * len(shape))(*shape), size(len(shape)))
    layouts = {side: ctypes.create_string_buffer(LITERT_LAYOUT_BYTES * len(of_side) + 256) for side, of_side in tensors.items()}
    if resized:
        for index in range(len(tensors["Input"])):
            place = ctypes.byref(layouts["Input"], LITERT_LAYOUT_BYTES * index)
            call("LiteRtGetCompiledModelInputTensorLayout", compiled, size(0), size(index), place)
        outputs = size(len(tensors["Output"])), layouts["Output"], ctypes.c_bool(True)
        call("LiteRtGetCompiledModelOutputTensorLayouts", compiled, size(0), *outputs)
    buffers: List[object] = []
    for side, of_side in tensors.items():
        handles = (pointer * len(of_side))()
        for index, tensor in enumerate(of_side):
            kind = ctypes.create_string_buffer(256)  # LiteRtRankedTensorType
            call("LiteRtGetRankedTensorType", tensor, kind)
            if resized:
                layout = layouts[side].raw[LITERT_LAYOUT_BYTES * index : LITERT_LAYOUT_BYTES * (index + 1)]
                if (layout[0] ^ kind.raw[LITERT_LAYOUT_AT]) & 0x7F:  # open sizes change; how many there are does not
                    return [], [NO_TFLITE_RESIZING]
                ctypes.memmove(ctypes.byref(kind, LITERT_LAYOUT_AT), layout, LITERT_LAYOUT_BYTES)
            needs = made("LiteRtGetCompiledModel%sBufferRequirements" % side, compiled, size(0), size(index))
            handles[index] = made("LiteRtCreateManagedTensorBufferFromRequirements", environment, kind, needs).value
        buffers += [size(len(of_side)), handles]
    profiler = made("LiteRtCompiledModelGetProfiler", compiled)

    def run() -> None:
        call("LiteRtRunCompiledModel", compiled, size(0), *buffers)

    for _ in range(WARM_UP_RUNS):
        run()
    found: Dict[str, List[float]] = {}
    kinds: Dict[str, str] = {}
    until = time.perf_counter() + OPERATOR_SECONDS
    for _ in range(OPERATOR_RUNS):
        call("LiteRtResetProfiler", profiler)
        call("LiteRtStartProfiler", profiler)
        run()
        call("LiteRtStopProfiler", profiler)
        events = ctypes.c_int()
        call("LiteRtGetNumProfilerEvents", profiler, ctypes.byref(events))
        raw = ctypes.create_string_buffer(max(LITERT_EVENT_BYTES) * max(1, events.value))
        call("LiteRtGetProfilerEvents", profiler, events, raw)
        for operator, what, took_ms in _litert_events(raw.raw, events.value):
            found.setdefault(operator, []).append(took_ms)
            kinds[operator] = what
        if time.perf_counter() > until:
            break
    return [{"name": name, "kind": kinds[name], "mean_ms": sum(times) / len(times)} for name, times in found.items()], [
        "LiteRT's profiler counts whole microseconds"
    ]


def _litert_events(raw: bytes, count: int) -> List[Tuple[str, str, float]]:
    """(name with its place in the run, kind, milliseconds) of each operator of one run; a delegate's own operators instead of the delegate."""
    for width in LITERT_EVENT_BYTES:
        rows = []
        for start in range(0, count * width, width):
            words = [int.from_bytes(raw[at : at + 8], "little") for at in range(start, start + width, 8)]
            rows.append((words[0], words[1] & 0xFFFFFFFF, words[3], words[-1] & 0xFFFFFFFF))
        if all(tag and kind in (1, 2, 4, 8, 16, 32, 64, 128, 256) and source <= 2 for tag, kind, _, source in rows):
            break
    else:
        raise Unusable("this version of LiteRT lays out its profiler's events in an unknown way")
    events = [(ctypes.string_at(tag).decode(errors="replace"), kind, took) for tag, kind, took, _ in rows if kind in LITERT_EVENTS]
    inner = any(LITERT_EVENTS[kind] == "delegate" for _, kind, _ in events)
    kept = [event for event in events if not (inner and LITERT_EVENTS[event[1]] == "operator" and "DELEGATE" in event[0].upper())]
    return [("%d %s" % (index, name), name.split(" (")[0], took / 1e3) for index, (name, _, took) in enumerate(kept)]


def etdump_operators(dump: Path) -> List[Operator]:
    """Mean time of each operator in an ETDump, delegated ones included, through ExecuTorch's Inspector."""
    inspector = importlib.import_module("executorch.devtools").Inspector(etdump_path=str(dump))
    found: Dict[str, List[float]] = {}
    kinds: Dict[str, str] = {}
    for block in inspector.event_blocks:
        if block.name != "Execute":
            continue
        inside = any(event.is_delegated_op for event in block.events)
        for index, event in enumerate(block.events):
            if event.perf_data is None or event.name in ("Method::execute", "OPERATOR_CALL") or (event.name == "DELEGATE_CALL" and inside):
                continue  # a call contains what it calls: counted once
            name = "%d %s" % (index, event.name)
            found[name] = list(event.perf_data.raw)
            kinds[name] = "%s delegate" % event.delegate_backend_name if event.is_delegated_op else event.name.replace("native_call_", "")
    return _averages(found, kinds)


LOADERS = {"onnx": load_onnx, "tflite": load_tflite, "executorch": load_executorch}
PRELOADED = {
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert.interpreter",),
    "executorch": ("torch", "executorch.extension.pybindings._portable_lib"),
}


def _module(backend: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as problem:  # an OSError where a package loads its library itself
        absent = (problem.name or "").split(".")[0] if isinstance(problem, ModuleNotFoundError) else None
        if absent in (name.split(".")[0], "numpy"):
            raise MissingRuntime(MISSING[backend].format(python=sys.executable)) from problem
        raise MissingRuntime("%s is installed and cannot be loaded: %s" % (name, problem)) from problem


def _opened(path: Path, call: Callable[[], Value]) -> Value:
    """What a runtime makes of a file. Raises `Unusable` with what it says instead."""
    try:
        return call()
    except Exception as problem:  # runtimes raise whatever they like
        said = "%s: %s" % (type(problem).__name__, str(problem).strip()[:1500])
        hint = "the file has %d bytes; if it is cut off or damaged, copy or export it again" % path.stat().st_size
        raise Unusable("the runtime cannot load it (%s); %s" % (said, hint)) from problem


def _version(distribution: str) -> str:
    from importlib import metadata

    for name in (distribution, distribution + "-nightly"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def sizes_of(stated: Sequence[Tuple[str, Sequence[object]]], asked: Asked) -> Sizes:
    """The sizes to measure at: those that the file states, and what was asked for where it leaves them open.

    `stated` has the name and the sizes of each input. A size is open unless it is a number above 0; a text stands for one size wherever it is.
    Raises `Unusable` for what the file does not take, and for sizes that stay open; an open batch alone is 1, and said.
    """
    first = stated[0][0] if stated else ""
    given = {name or first: list(shape) for name, shape in asked.inputs.items()}
    known = dict(stated)
    for name, shape in given.items():
        if name not in known:
            raise Unusable("--input names '%s', but the inputs of the file are: %s" % (name, ", ".join(known) or "none"))
        if not _takes(known[name], shape):
            raise Unusable("--input is %s=%s, but the file takes %s only" % (name, _shown(shape), _shown(known[name])))
    if asked.shape and not given and stated:
        given = {first: _in_its_order(known[first], asked.shape)}
    called: Dict[str, int] = {}
    for name, shape in given.items():
        for size, one in zip(known[name], shape):
            if isinstance(size, str) and size and called.setdefault(size, one) != one:
                raise Unusable("the file has one size for '%s', and --input gives it %d and %d" % (size, called[size], one))
    inputs: List[Input] = []
    for name, sizes in stated:
        inputs.append({"name": name, "shape": given.get(name) or [_size(size, called) for size in sizes]})
    open_ = [index for index, one in enumerate(inputs) if 0 in one["shape"]]
    if not open_:
        return Sizes(inputs, "")
    if not given and all(0 not in inputs[index]["shape"][1:] for index in open_):
        for index in open_:
            inputs[index]["shape"][0] = 1
        return Sizes(inputs, BATCH_ASSUMED)
    shown = "; ".join("%s: %s" % (stated[index][0], _shown(stated[index][1])) for index in open_)
    how = "--input SHAPE" if len(stated) == 1 else " ".join("--input %s=SHAPE" % stated[index][0] for index in open_)
    raise Unusable("the file leaves sizes open (%s); give %s" % (shown, how))


def _size(size: object, called: Dict[str, int]) -> int:
    """One size of an input; 0 if it is open."""
    if isinstance(size, str):
        return called.get(size, 0)
    return size if isinstance(size, int) and size > 0 else 0


def _takes(sizes: Sequence[object], shape: Sequence[int]) -> bool:
    return len(shape) == len(sizes) and all(_size(size, {}) in (0, one) for size, one in zip(sizes, shape))


def _in_its_order(sizes: Sequence[object], shape: Sequence[int]) -> List[int]:
    """`shape` as the file takes it: one that states all its sizes may have them in the order of another layout."""
    own = [_size(size, {}) for size in sizes]
    if _takes(sizes, shape):
        return list(shape)
    if 0 in own or sorted(own) != sorted(shape):
        raise Unusable("the file takes an input of shape %s, and %s was asked for" % (list(sizes), list(shape)))
    return own


def _shown(sizes: Sequence[object]) -> str:
    return ",".join(str(size) if _size(size, {}) or (isinstance(size, str) and size) else "?" for size in sizes)


def _values(np: ModuleType, shape: Sequence[int], dtype: str) -> object:
    """Random values: 0 to 1 for real numbers, the whole range for 8-bit ones (quantized pictures), 0 or 1 for others (they may be indices)."""
    random = np.random.RandomState(0)
    try:
        if dtype.startswith("float"):
            return random.random_sample(tuple(shape)).astype(dtype)
        if dtype in ("int8", "uint8"):
            low = -128 if dtype == "int8" else 0
            return random.randint(low, low + 256, tuple(shape)).astype(dtype)
        if dtype == "bool" or dtype.startswith(("int", "uint")):
            return random.randint(0, 2, tuple(shape)).astype(dtype)
    except (MemoryError, ValueError) as problem:  # numpy raises either for an array that is too large
        raise Unusable("inputs of shape %s do not fit into memory" % _shown(shape)) from problem
    raise Unusable("the file has an input of type %s, for which no values can be made; allowed: real numbers, whole numbers, bool" % dtype)


def _saturates_int8_sums() -> bool:
    import platform

    facts = Path("/proc/cpuinfo")
    if platform.machine().lower() not in ("x86_64", "amd64") or not facts.exists():
        return False
    return "vnni" not in facts.read_text(encoding="utf-8", errors="replace")


def _repeat(run: Callable[[], object]) -> None:
    """Enough runs for a profiler's averages, the first three of which are left out of them."""
    until = time.perf_counter() + OPERATOR_SECONDS
    for count in range(WARM_UP_RUNS + OPERATOR_RUNS):
        run()
        if count > WARM_UP_RUNS and time.perf_counter() > until:
            return


def _averages(found: Dict[str, List[float]], kinds: Dict[str, str]) -> List[Operator]:
    rows: List[Operator] = []
    for name, times in found.items():
        counted = times[WARM_UP_RUNS:] or times
        rows.append({"name": name, "kind": kinds[name], "mean_ms": sum(counted) / len(counted)})
    return rows


# ---- one process per job


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
        _preload(job["backend"])
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
    return LOADERS[job["backend"]](Path(job["file"]), job["threads"], Asked(job["shape"], job["inputs"]))


def operators_of(job: Job) -> Tuple[List[Operator], List[str]]:
    """What a second child process does: the times of one file's operators, and what the runtime's profiler cannot say."""
    _pin(job["cpus"])
    _preload(job["backend"])
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


def _preload(backend: str) -> bool:
    """Import the runtime; False where it cannot be imported, which the loader says with its reason."""
    try:
        for name in PRELOADED.get(backend, ()):
            importlib.import_module(name)
    except (ImportError, OSError):
        return False
    return True


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
        said = {"reason": str(problem)}
    except Exception as problem:  # noqa: BLE001  whatever a runtime raises is the job's result
        said = {"reason": "%s: %s" % (type(problem).__name__, str(problem).strip()[:1500])}
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        json.dump(said, stream)
    return 0


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
            return {"reason": _death(status)}

    def _start(self, index: int, what: str, reader: int, writer: int) -> None:
        if not (self._request["fork"] and sys.platform.startswith("linux")):  # a forked process may not use macOS's frameworks
            command = [sys.executable, os.path.abspath(__file__), self._file, str(index), what, str(writer)]  # noqa: PTH100
            self._starting = True
            self.process = subprocess.Popen(command, pass_fds=[writer]).pid
            self._started()
            return
        backend = self._request["jobs"][index]["backend"]
        alone = len({job["backend"] for job in self._request["jobs"]}) == 1
        if alone and self._importable(backend):  # importing once is faster; but no file's memory may include another's runtime
            _preload(backend)
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
                code = 0 if _preload(backend) else 1
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


def _death(status: int) -> str:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
