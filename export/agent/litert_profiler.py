"""Operator times from LiteRT's own profiler, through its C interface."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Dict, List, Tuple

from .protocol import Operator, Unusable
from .repetitions import OPERATOR_RUNS, OPERATOR_SECONDS
from .stopwatch import WARM_UP_RUNS

NO_TFLITE_RESIZING = (
    "no operator times: the file leaves sizes open, and this version of LiteRT's profiler takes none; install ai-edge-litert 2.3 or newer there"
)
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
