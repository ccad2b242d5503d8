"""Every TFLite file of a bundle on emulated Arm64, in each way in which an app may run it: rows for `mcompress verify --arm64`."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from mcompress.errors import UsageError
from mcompress.export import replay
from mcompress.export.arm64.agreement import STATED, Agreement, Limit, agreement, allowed, passes, same_file_limit
from mcompress.export.arm64.emulation import PACKAGES, Answer, Emulation, find_emulation
from mcompress.export.arm64.program import Kernels
from mcompress.export.arm64.refusals import operator_versions, refusal
from mcompress.export.bundle import plain_facts, plain_vector, read_manifest
from mcompress.export.manifest import ModelFile

BACKEND = "tflite"


@dataclass(frozen=True)
class Way:
    """Whose kernels compute, on which processor."""

    name: str
    kernels: Kernels
    core: str
    """As the emulator calls it."""
    int8_only: bool = False
    """A float file would be computed by the same kernels as in another way."""


WAYS = (
    Way("Arm64, XNNPACK with dot products", "xnnpack", "cortex-a76"),
    Way("Arm64, XNNPACK without dot products", "xnnpack", "cortex-a72", int8_only=True),
    Way("Arm64, built-in kernels", "builtin", "cortex-a76"),
)
"""What Android's library does on cores from the Cortex-A76 on, on older ones, and what a runtime without XNNPACK does."""


@dataclass(frozen=True)
class Side:
    """What is compared with, for each vector; in the file's own layout and type."""

    name: str
    outputs: tuple[replay.Tensor, ...]
    same_file: bool
    """They are this file's own, computed here, and not only the vectors."""


def verify_on_arm64(bundle: Path, *, ways: Sequence[Way] = WAYS) -> list[dict[str, JsonValue]]:
    """One row per TFLite file and way, like those of `verify`: PASS, FAIL or NOT EXECUTED, and why; `on` names the way.

    A file passes if the old runtime loads it, and its outputs are as near to this machine's and to the bundle's vectors as they must be.
    Raises as `read_manifest`, `UsageError` for a bundle without TFLite files, `MissingBackendError` where no emulation is set up, `DeviceError`
    if a file takes too long.
    """
    manifest = read_manifest(bundle)
    files = [file for file in manifest.files if file.backend == BACKEND]
    if not files:
        held = ", ".join(sorted({file.backend for file in manifest.files}))
        raise UsageError(f"the bundle '{bundle}' holds no TFLite file, which is all that --arm64 runs; it holds: {held}. Leave --arm64 out")
    emulation = find_emulation()
    jobs = [(file, way) for file in files for way in ways if file.precision_counts.get("int8", 0) or not way.int8_only]
    sides = {file.path: _sides(bundle, file) for file in files}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # each waits for a process of its own
        return list(pool.map(lambda job: _row(bundle, emulation, job[0], job[1], sides[job[0].path]), jobs))


def _sides(bundle: Path, file: ModelFile) -> tuple[Side, ...]:
    """This machine's outputs, where it has a runtime, and those of the bundle where they are others."""
    given, result = [plain_facts(facts) for facts in file.inputs], plain_facts(file.outputs[0])
    stored = tuple(replay.read_raw(bundle / vector.expected_bin, result) for vector in file.vectors)
    stored_from = f"the vectors ({file.vectors[0].expected_from})" if file.vectors else ""
    vectors = Side(stored_from, stored, same_file=False)
    try:
        run = replay.RUNNERS[BACKEND]
        here = tuple(run(bundle / file.path, replay.read_inputs(bundle, plain_vector(vector), given), given) for vector in file.vectors)
    except (replay.NotExecuted, RuntimeError, ValueError):  # no runtime, or one that refuses the file: the row of `verify` itself says so
        return (vectors,)
    equal = all(np.array_equal(a, b) for a, b in zip(here, stored, strict=True))
    name = f"{platform.machine()} here" + (", which computes the vectors" if equal else "")
    mine = Side(name, here, same_file=True)
    return (mine,) if equal else (mine, vectors)


def _row(bundle: Path, emulation: Emulation, file: ModelFile, way: Way, sides: Sequence[Side]) -> dict[str, JsonValue]:
    result = plain_facts(file.outputs[0])
    with tempfile.TemporaryDirectory(prefix="mcompress-") as name:
        outputs = [Path(name) / f"{index}.bin" for index in range(len(file.vectors))]
        answer = emulation.ask(
            {
                "packages": str(emulation.folder / PACKAGES),
                "file": str((bundle / file.path).resolve()),
                "kernels": way.kernels,
                "inputs": [[str((bundle / one.bin).resolve()) for one in vector.inputs] for vector in file.vectors],
                "outputs": [str(output) for output in outputs],
            },
            core=way.core,
            what=f"{file.path} on {way.name}",
        )
        if not isinstance(answer, Answer):
            return _as_row(file, way, "FAIL", f"{emulation.runtime} ended while it computed, with {answer}")
        if answer.refused and answer.step == "load":
            return _as_row(file, way, "FAIL", refusal(emulation.runtime, answer.refused, operator_versions(bundle / file.path)), answer)
        if answer.refused:
            return _as_row(file, way, "FAIL", f"{emulation.runtime} loads it and cannot run it: {' '.join(answer.refused.split())}", answer)
        try:
            found = [replay.read_raw(output, result) for output in outputs]
        except (ValueError, OSError) as error:
            return _as_row(file, way, "FAIL", f"what {emulation.runtime} computes is not what the manifest states: {error}", answer)
    loads = f"loads in {emulation.runtime}, {answer.delegated} of {answer.operators} operators in XNNPACK"
    if not found:
        return _as_row(file, way, "NOT EXECUTED", f"{loads}; the bundle holds no vector for it", answer)
    parts: list[str] = [loads]
    compared: list[JsonValue] = []
    first, passed = None, True
    for side in sides:
        seen, limit = agreement(found, side.outputs, result), _limit(file, way, side)
        holds = passes(seen, limit.tolerance, result["scale"])
        parts.append(_words(seen, side, limit, result["scale"], passed=holds))
        figures: dict[str, JsonValue] = {**seen.as_json(), "allowed": _plain(limit.tolerance), "reason": limit.reason, "passed": holds}
        compared.append({"with": side.name, **figures})
        first, passed = first or seen, passed and holds
    return {**_as_row(file, way, "PASS" if passed else "FAIL", "; ".join(parts), answer, first), "compared": compared}


def _limit(file: ModelFile, way: Way, side: Side) -> Limit:
    stated: replay.Tolerance = {"max_abs": file.tolerance.max_abs, "or_sqnr_db": file.tolerance.or_sqnr_db}
    return same_file_limit(stated, way.kernels) if side.same_file else Limit(stated, STATED)


def _plain(tolerance: replay.Tolerance) -> dict[str, JsonValue]:
    return {"max_abs": tolerance["max_abs"], "or_sqnr_db": tolerance["or_sqnr_db"]}


def _words(seen: Agreement, side: Side, limit: Limit, step: float | None, *, passed: bool) -> str:
    if not seen.differing:
        return f"against {side.name}: {seen.words()}"
    return f"against {side.name}: {seen.words()} (allowed: {allowed(limit.tolerance, step)}{'' if passed else f', for {limit.reason}'})"


def _as_row(
    file: ModelFile, way: Way, verdict: str, detail: str, answer: Answer | None = None, seen: Agreement | None = None
) -> dict[str, JsonValue]:
    figures = seen.as_json() if seen is not None else {}
    return {
        "file": file.path,
        "verdict": verdict,
        "detail": f"{way.name}: {detail}",
        "max_abs": figures.get("max_abs"),
        "sqnr_db": figures.get("sqnr_db"),
        "on": way.name,
        "runtime": answer.runtime if answer is not None else None,
        "operators": answer.operators if answer is not None else None,
        "delegated": answer.delegated if answer is not None else None,
    }
