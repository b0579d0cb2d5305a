"""What the command line's arguments name: models, data, metrics and passes. It runs the user's own code."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydantic
import torch
from torch import nn
from torch.export import ExportedProgram

from planish.compiler.contracts import Pass
from planish.compiler.errors import PlanishError, UserError, closest
from planish.compiler.judge import Metric
from planish.compiler.plan import Plan
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.request import Model

PROGRAM = ".planish"
"""Suffix of a saved Program."""
ROWS = 32
"""Rows of a .npy or .npz file that make one calibration batch."""
_FORM = "FILE.py:NAME or MODULE:NAME"
_WEIGHTS_ONLY = "it holds weights and no model"
_REFUSED = {
    ".pt2": "torch.export.load can run code that the file brings along",
    ".pt": "reading it unpickles, which can run code that the file brings along",
    ".pth": "reading it unpickles, which can run code that the file brings along",
    ".ckpt": "reading it unpickles, which can run code that the file brings along",
    ".bin": "reading it unpickles, which can run code that the file brings along",
    ".safetensors": _WEIGHTS_ONLY,
    ".onnx": "planish starts from PyTorch models",
}


def load_model(text: str) -> Model:
    """The model that ``text`` names: a saved Program, or a model or a callable that returns one in the user's code.

    Raises UserError if there is none, with the closest names.
    """
    path = Path(text)
    if path.suffix == PROGRAM:
        return Program.load(path)
    if path.suffix in _REFUSED:
        raise UserError(f"Pass {_FORM} that returns the model: {text} is not read, for {_REFUSED[path.suffix]}.")
    found = find(text, "the model")
    kinds = (nn.Module, ExportedProgram, Program)
    model = found if isinstance(found, kinds) else _call(found, text)
    if not isinstance(model, kinds):
        raise UserError(
            f"Return a torch.nn.Module, an ExportedProgram or a Program from {text}, not {type(model).__name__}."
        )
    return model


def load_inputs(text: str) -> Any:
    """A tensor, a tuple or a dict of tensors: from a .npy or .npz file, or from the user's code."""
    if Path(text).suffix in (".npy", ".npz"):
        return _arrays(Path(text))
    return _called(find(text, "the inputs"), text)


def load_calibration(text: str) -> Iterable[Any]:
    """Batches: the rows of a .npy or .npz file, or an iterable from the user's code."""
    if Path(text).suffix in (".npy", ".npz"):
        return _batches(_arrays(Path(text)), text)
    data = _called(find(text, "the calibration data"), text)
    if not isinstance(data, Iterable):
        raise UserError(f"Return an iterable of batches from {text}, such as a DataLoader, not {type(data).__name__}.")
    return data


def load_metric(text: str) -> Metric:
    """The callable itself: it gets ``run(*inputs) -> outputs`` and returns a float."""
    found = find(text, "the metric")
    if not callable(found):
        raise UserError(f"Name a callable for the metric: {text} is of type {type(found).__name__}.")
    return typing.cast(Metric, found)


def load_passes(plan: Path | None, passes: list[str], no_compression: bool) -> Plan | list[Pass] | None:
    """What the three options say together; None: the plan for the device. Raises UserError if two of them are given."""
    given = [
        name for name, value in (("--plan", plan), ("--pass", passes), ("--no-compression", no_compression)) if value
    ]
    if len(given) > 1:
        raise UserError(f"Choose one of {' and '.join(given)}.")
    if plan is not None:
        return Plan.load(plan)
    if no_compression:
        return []
    return [parse_pass(text) for text in passes] or None


# ---------------------------------------------------------------------- the user's code


def find(text: str, what: str) -> Any:
    """The object that ``FILE.py:NAME`` or ``MODULE:NAME`` names; importing it runs the user's code."""
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise UserError(f"Name {what} as {_FORM}, not {text!r}.")
    found: Any = _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"Name {what} that exists: {place} has no {part!r}{closest(part, _names(found))}")
        found = getattr(found, part)
    return found


def _names(found: Any) -> list[str]:
    """What of ``found`` one may have meant: no modules that it imported, nothing private."""
    named = getattr(found, "__dict__", {}).items()
    return [name for name, value in named if not name.startswith("_") and not isinstance(value, ModuleType)]


def _import(place: str) -> ModuleType:
    path = Path(place).resolve() if place.endswith(".py") else None
    if path is not None and not path.is_file():
        raise UserError(f"Name a file that exists: there is no {place}.")
    folder = str(path.parent if path else Path.cwd())
    if folder not in sys.path:  # as `python FILE` and `python -m MODULE` do
        sys.path.insert(0, folder)
    try:
        return _import_file(path) if path else importlib.import_module(place)
    except PlanishError:
        raise
    except ModuleNotFoundError as failure:
        if path is None and failure.name is not None and f"{place}.".startswith(f"{failure.name}."):
            raise UserError(
                f"Name a module that can be imported, or a file: there is no module {failure.name!r}."
            ) from failure
        raise _raised(f"importing {place}", failure) from failure
    except (Exception, SystemExit) as failure:  # the user's own code
        raise _raised(f"importing {place}", failure) from failure


@cache
def _import_file(path: Path) -> ModuleType:
    """The module, imported once, so that model, data and metric of one file share what it trained or loaded.

    It has its own name where that is free, so that worker processes of a DataLoader find it again.
    """
    taken = path.stem in sys.modules
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _called(found: Any, text: str) -> Any:
    return _call(found, text) if callable(found) else found


def _call(found: Any, text: str) -> Any:
    if not callable(found):
        raise UserError(f"Name a callable or a model: {text} is of type {type(found).__name__}.")
    try:
        return found()
    except PlanishError:
        raise
    except (Exception, SystemExit) as failure:  # the user's own code
        raise _raised(f"calling {text}", failure) from failure


def _raised(doing: str, failure: BaseException) -> UserError:
    return UserError(f"Mend your code: {doing} raised {type(failure).__name__}: {failure}")


# ---------------------------------------------------------------------- arrays


def _arrays(path: Path) -> Any:
    """The tensor of a .npy file; the tensors of a .npz file, by name, or as a tuple if they have none."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return torch.from_numpy(loaded)
        with loaded:
            named = {name: torch.from_numpy(loaded[name]) for name in loaded.files}
    except (OSError, ValueError, TypeError, EOFError) as failure:  # object arrays are refused as ValueError
        raise UserError(
            f"Save {path} again with numpy.save or numpy.savez: it cannot be read ({failure})."
        ) from failure
    unnamed = [f"arr_{index}" for index in range(len(named))]  # what numpy.savez calls positional arrays
    return tuple(named[name] for name in unnamed) if set(unnamed) == set(named) else named


def _batches(arrays: Any, text: str) -> list[Any]:
    if isinstance(arrays, torch.Tensor):
        return [*arrays.split(ROWS)] if arrays.ndim else [arrays]
    named = arrays if isinstance(arrays, Mapping) else dict(enumerate(arrays))
    counts = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in named.items()}
    if len(set(counts.values())) != 1 or None in counts.values():
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UserError(f"Stack the same number of rows in every array of {text}; they have {told}.")
    parts = zip(*(tensor.split(ROWS) for tensor in named.values()), strict=True)
    return [part if isinstance(arrays, tuple) else dict(zip(named, part, strict=True)) for part in parts]


# ---------------------------------------------------------------------- passes


def parse_pass(text: str) -> Pass:
    """``quantize-int8:calibrator=entropy,keep_float=head,keep_float=stem`` -> the pass; a repeated key makes a list."""
    name, _, told = text.partition(":")
    kind = registry().find_pass(name)
    given: dict[str, list[str]] = {}
    for assignment in filter(None, told.split(",")):
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"Write the options of --pass as name:key=value,key=value, not {text!r}.")
        given.setdefault(key.strip(), []).append(value.strip())
    types = typing.get_type_hints(kind)
    known = {option.name for option in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind.from_options(
        {key: _value(types[key], values, f"{name}: {key}") if key in known else values for key, values in given.items()}
    )


def _value(kind: Any, texts: list[str], where: str) -> Any:
    """``texts`` as the type of the field says."""
    adapter = pydantic.TypeAdapter(kind)
    try:
        return adapter.validate_python(texts)
    except pydantic.ValidationError:
        pass  # no list: one value
    if len(texts) > 1:
        raise UserError(f"Give {where} once.")
    try:
        return adapter.validate_strings(texts[0])
    except pydantic.ValidationError as failure:
        told = failure.errors()[0]["msg"]
        raise UserError(
            f"Correct --pass {where}={texts[0]} ({told}), or give it in a plan: planish plan --output."
        ) from failure
