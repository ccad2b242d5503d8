"""Executing .pte files with ExecuTorch, and reading the ETDump of its event tracer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Dict, List, Tuple

from .protocol import Operator
from .repetitions import averages, repeat
from .runtimes import Loaded, imported, opened, version
from .sizes import Asked, sizes_of
from .values import input_values

NO_EVENT_TRACER = (
    "no operator times: this build of ExecuTorch's runtime has no event tracing (the wheels on PyPI have none); build it with "
    "EXECUTORCH_ENABLE_EVENT_TRACER=ON"
)


def load_executorch(path: Path, threads: int, asked: Asked) -> Loaded:
    """The `forward` method with the delegates that are compiled into the runtime."""
    torch = imported("executorch", "torch")  # first: it loads the libraries that the runtime is linked with
    np = imported("executorch", "numpy")
    library = imported("executorch", "executorch.extension.pybindings._portable_lib")
    if library._threadpool_get_thread_count() != threads:  # a method that is loaded keeps the address of the old pool, which is freed
        library._unsafe_reset_threadpool(threads)
    program = opened(path, lambda: library._load_program(str(path)))
    method = opened(path, lambda: program.load_method("forward"))
    meta = method.method_meta()
    names = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}  # c10::ScalarType
    facts = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
    inputs_called = input_names(program, len(facts))
    sizes = sizes_of([(name, list(one.sizes())) for name, one in zip(inputs_called, facts)], asked)
    kinds = [names.get(int(one.dtype()), "float32") for one in facts]
    inputs = [torch.from_numpy(input_values(np, sized["shape"], kind)) for sized, kind in zip(sizes.inputs, kinds)]
    runtime = "executorch %s CPU" % version("executorch")

    def operators() -> Tuple[List[Operator], List[str]]:
        traced = library._load_program(str(path), enable_etdump=True, debug_buffer_size=0)
        traced_method = traced.load_method("forward")
        repeat(lambda: traced_method.call(inputs, clone_outputs=False))
        dump = Path("operators.etdump")
        if dump.exists():
            dump.unlink()
        traced.write_etdump_result_to_file(str(dump), "operators.debug")
        if not dump.exists() or dump.stat().st_size == 0:
            return [], [NO_EVENT_TRACER]
        return etdump_operators(dump), []

    return Loaded(runtime, sizes, lambda: method.call(inputs, clone_outputs=False), operators)


def input_names(program: object, count: int) -> List[str]:
    """What a method of the file says (`mcompress.export.executorch_file`), as the format itself has no names of inputs; else their numbers."""
    if "input_names" in [program.get_method_name(index) for index in range(program.num_methods())]:  # type: ignore[attr-defined]
        names = str(program.load_method("input_names").call([])[0]).split(",")  # type: ignore[attr-defined]
        if len(names) == count:
            return names
    return [str(index) for index in range(count)]


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
    return averages(found, kinds)
