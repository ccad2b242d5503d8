"""From a `ModelSpec` to a network: the builder by name or import path, its arguments, then the recorded structural edits.

The user's own module is imported only because the specification names it; nothing is searched for or discovered.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

import torch
import torch_pruning
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.models import MODELS
from mcompress.compress.models.spec import ModelSpec, PruningEdit
from mcompress.errors import PlanError, UsageError
from mcompress.targets.names import nearest
from mcompress.targets.own_modules import file_beside, source_digests

Builder = Callable[..., nn.Module]

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What foreign code, a user's builder or forward, raises when it is given something that it cannot take."""


def build(spec: ModelSpec, *, weightless: bool = False) -> nn.Module:
    """The network of `spec` with fresh weights, pruned as `spec.edits` say; weights follow with `load_state_dict`.

    A network without weights is only built where `weightless` says so: it can be counted, and there is nothing in it to compress. Raises `PlanError`
    when the network is unknown, cannot be imported, does not take the arguments, or does not have the modules that the edits name.
    """
    network = _call(spec.network, find_builder(spec.network), spec.args)
    if not weightless and next(network.parameters(), None) is None:
        raise PlanError([f"network '{spec.network}' has no parameters with {_shown(spec.args)}; there is nothing to compress"])
    if spec.edits:
        replay(network, spec)
    return network


def build_meta(spec: ModelSpec, *, weightless: bool = False) -> nn.Module:
    """The network of `spec` without memory for its weights (meta device), to count what it costs; on the CPU if its code needs real numbers."""
    try:
        with torch.device("meta"):
            return build(spec, weightless=weightless)
    except PlanError:
        return build(spec, weightless=weightless)  # what is truly wrong is said again; a constructor that reads its own weights works here


def example_inputs(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Repeatable inputs of the shapes of `spec`, uniform over their ranges."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for one in spec.inputs:
        low, high = one.value_range
        found.append(torch.rand(one.shape, generator=generator, device="cpu") * (high - low) + low)
    return tuple(found)


_CODE: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


def code_digest(name: str) -> str:
    """SHA-256 over names and contents of all sources that `package.module:function` may depend on, as they were when the module was imported.

    Which sources these are, and what is not covered, says `mcompress.targets.own_modules.sources_of`. Raises `PlanError` like `find_builder`.
    """
    find_builder(name)
    return _CODE[sys.modules[name.partition(":")[0]]]


def find_builder(name: str) -> Builder:
    """The function that `name` stands for: a line of `MODELS`, or `package.module:function`, which imports the module. Raises `PlanError`."""
    if ":" not in name:
        if name in MODELS:
            return MODELS[name]
        raise PlanError(
            [
                f"network '{name}' is not known{_did_you_mean(name, MODELS)}; known are {', '.join(sorted(MODELS))}. "
                f"Your own network is written package.module:function, for example {name.partition('.')[0] or 'my_network'}:build"
            ]
        )
    module_name, _, function_name = name.partition(":")
    module = _import(name, module_name)
    builder = getattr(module, function_name, None)
    if builder is None:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise PlanError([f"network '{name}': {module_name} has no function '{function_name}'{_did_you_mean(function_name, functions)}{_at(module)}"])
    if not callable(builder):
        raise PlanError(
            [f"network '{name}': {function_name} is a {type(builder).__name__}; it must be a function that returns a torch.nn.Module{_at(module)}"]
        )
    return builder  # type: ignore[no-any-return]


def replay(network: nn.Module, spec: ModelSpec) -> None:
    """Remove the channels that `spec.edits` name, and with them the coupled channels of other layers, in place.

    Coupling follows from torch-pruning's dependency graph of one forward pass at `spec.input_shape`. Raises `PlanError` when an edit does not fit.
    """
    training = {name: module.training for name, module in network.named_modules()}
    trained = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    network.requires_grad_(True)
    device = next(network.parameters()).device
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch-pruning warns of parameters that belong to no known layer; they were handled the same way when the edits were made
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=tuple(one.to(device) for one in example_inputs(spec)))
        except FAILURES as error:
            raise PlanError([f"network '{spec.network}' does not run on an input of {spec.input_shape}: {error}"]) from error
        for position, edit in enumerate(spec.edits):
            _remove(graph, network, edit, f"network '{spec.network}': edit {position + 1} of {len(spec.edits)}")
    for name, module in network.named_modules():
        module.training = training[name]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained[name])


def record_edits(history: Iterable[Sequence[object]]) -> tuple[PruningEdit, ...]:
    """torch-pruning's `pruning_history()`, entries [module, is_output, channels], as edits of a `ModelSpec`."""
    edits = []
    for module, is_output, channels in history:
        if not isinstance(channels, Iterable):
            raise TypeError(f"pruning history of '{module}': channels are {channels!r}, not a list")
        edits.append(PruningEdit(str(module), bool(is_output), tuple(int(channel) for channel in channels)))
    return tuple(edits)


def _remove(graph: torch_pruning.DependencyGraph, network: nn.Module, edit: PruningEdit, where: str) -> None:
    modules = dict(network.named_modules())
    module = modules.get(edit.module)
    if module is None:
        raise PlanError(
            [f"{where} names the layer '{edit.module}', which the network does not have{_did_you_mean(edit.module, modules)}. Was its code changed?"]
        )
    pruner = graph.get_pruner_of_module(module)
    width = None if pruner is None else (pruner.get_out_channels(module) if edit.is_output else pruner.get_in_channels(module))
    if module not in graph.module2node or width is None:
        raise PlanError(
            [f"{where} names the layer '{edit.module}' ({type(module).__name__}), which has no channels to remove. Was the network's code changed?"]
        )
    outside = [channel for channel in edit.channels if not 0 <= channel < width]
    if outside or len(set(edit.channels)) >= width:
        seen = f"channel {outside[0]}" if outside else f"all {width} channels"
        raise PlanError(
            [f"{where} removes {seen} of '{edit.module}', which has {width}. Are these edits of another network, or were its arguments changed?"]
        )
    remover = pruner.prune_out_channels if edit.is_output else pruner.prune_in_channels
    graph.get_pruning_group(module, remover, list(edit.channels)).prune(record_history=False)


def _import(name: str, module_name: str) -> ModuleType:
    before = None if module_name in sys.modules else _digest_of_sources(module_name)  # while the files are what is about to be imported
    module = _imported(name, module_name)
    found, beside = getattr(module, "__file__", None), file_beside(module_name)
    if beside is not None and (found is None or Path(found).resolve() != beside.resolve()):
        raise PlanError(
            [
                f"network '{name}': beside the target lies {beside}, but Python imported the module '{module_name}' from {found or 'elsewhere'}, "
                "which comes first on its path or was imported before; rename one of the two"
            ]
        )
    if module not in _CODE:
        _CODE[module] = before or _digest_of_sources(module_name)
    return module


def _digest_of_sources(module_name: str) -> str:
    return hashlib.sha256(json.dumps(source_digests(module_name)).encode()).hexdigest()


def _imported(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            advice = "put the file beside the target file, install its package, or add its folder to PYTHONPATH"
            raise PlanError([f"network '{name}': there is no module '{missing}'; {advice}"]) from error
        raise PlanError([f"network '{name}': {module_name} needs the module '{missing}', which is not installed"]) from error
    except (ImportError, SyntaxError, *FAILURES) as error:
        raise PlanError([f"network '{name}': importing {module_name} failed: {type(error).__name__}: {error}"]) from error


def _call(name: str, builder: Builder, args: dict[str, JsonValue]) -> nn.Module:
    _check_arguments(name, builder, args)
    try:
        network = builder(**args)
    except UsageError as error:
        raise PlanError([str(error)]) from error
    except FAILURES as error:
        raise PlanError([f"network '{name}': building it with {_shown(args)} failed: {type(error).__name__}: {error}"]) from error
    if not isinstance(network, nn.Module):
        raise PlanError([f"network '{name}' returned a {type(network).__name__}; it must return a torch.nn.Module"])
    return network


def _check_arguments(name: str, builder: Builder, args: dict[str, JsonValue]) -> None:
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):
        return  # a built-in callable tells no signature; calling it will
    by_name = [p.name for p in parameters if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    takes = f"; it takes {', '.join(by_name) or 'no arguments'}"
    problems = [
        f"network '{name}' has no argument '{arg}'{_did_you_mean(arg, by_name)}{takes}" for arg in args if not takes_any and arg not in by_name
    ]
    needed = [
        p
        for p in parameters
        if p.default is inspect.Parameter.empty and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    for parameter in needed:
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            problems.append(f"network '{name}': '{parameter.name}' can only be given by position; arguments are given by name")
        elif parameter.name not in args:
            problems.append(f"network '{name}' needs the argument '{parameter.name}'; add it under args{takes}")
    if problems:
        raise PlanError(problems)


def _did_you_mean(seen: str, known: Iterable[str]) -> str:
    name = nearest(seen, known)
    return "" if name is None else f" (did you mean '{name}'?)"


def _at(module: ModuleType) -> str:
    return f" ({module.__file__})" if getattr(module, "__file__", None) else ""


def _shown(args: dict[str, JsonValue]) -> str:
    return f"args {args}" if args else "no args"
