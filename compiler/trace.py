"""From ``nn.Module`` to Program."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from planish.compiler.canonical import attentions, canonicalize, dropout_of
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs, check_tensors
from planish.compiler.program import Program, source_module
from planish.compiler.trace_errors import explain


@dataclass(frozen=True)
class Trace:
    program: Program
    notes: tuple[str, ...]
    """What the trace could not keep, in sentences for the Report (a batch that had to be fixed)."""


def trace(model: nn.Module | ExportedProgram | Program, inputs: Any = None) -> Program:
    """Trace ``model`` in evaluation mode. The batch (dimension 0) is dynamic wherever the model allows it.

    The Program shares the parameters of the model and leaves the model itself as it was. ``inputs`` are
    the example inputs; not needed for an ExportedProgram, which brings its own, or a Program.

    Raises UserError if the model cannot be traced: it names the source line and what to change.
    """
    return trace_with_notes(model, None if inputs is None else Inputs.of(inputs)).program


def trace_with_notes(
    model: nn.Module | ExportedProgram | Program, inputs: Inputs | None = None, dynamic_batch: bool = True
) -> Trace:
    """As ``trace``. Without ``dynamic_batch`` all sizes are those of the inputs."""
    check_model(model)
    if isinstance(model, Program):
        return Trace(model.fork(), ())
    if isinstance(model, ExportedProgram):
        return Trace(_to_program(model, Inputs(*model.example_inputs), ()), ())
    if inputs is None:
        raise UserError("Pass example inputs to trace: a tensor, a tuple or a dict of tensors.")
    check_tensors(inputs, "example_inputs")
    with _evaluation_mode(model), torch.no_grad(), quiet_torch():
        exported, note = _export(model, inputs) if dynamic_batch else (_export_static(model, inputs), "")
    dropouts: tuple[float, ...] = ()
    if any(attentions(exported.graph)) and any(_may_drop(module) for module in model.modules()):
        dropouts = _training_dropouts(model, exported, inputs)
    program = _to_program(exported, Inputs(*exported.example_inputs), dropouts)
    return Trace(program, (note,) if note else ())


def check_model(model: Any) -> None:
    """Raise UserError unless ``model`` is something that can be compiled."""
    if not isinstance(model, (nn.Module, ExportedProgram, Program)):
        told = f"the class {model.__name__}; make an instance of it" if isinstance(model, type) else repr(model)[:80]
        raise UserError(f"Pass an nn.Module, an ExportedProgram or a Program as model, not {told}.")


# ---------------------------------------------------------------------- export


def _export(model: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, str]:
    """Export with a dynamic batch, else as the inputs are; the second value says why, where it is static."""
    # A batch of 1 specializes silently (Dim.AUTO) or raises (Dim.DYNAMIC): trace with two rows.
    double = inputs.batched(2)
    shapes: Any = ShapesCollection()
    for leaf in double.leaves():
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == double.batch_size:
            shapes[leaf] = {0: Dim.AUTO}
    try:
        exported = _exported(model, double, dynamic_shapes=shapes)
        if _has_dynamic_batch(exported, double):
            return exported, ""
        why = "the model computes with its size as a constant"
    except Exception as failure:  # whatever a model's own code raises; told below if the static trace fails too
        why = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
    exported = _export_static(model, inputs)
    return exported, f"The batch is fixed at {inputs.batch_size}: {why}."


def _has_dynamic_batch(exported: ExportedProgram, inputs: Inputs) -> bool:
    """Whether the first tensor, which the batch is that of, got a dynamic axis: others alone cannot change theirs."""
    axes, pairs = _dynamic_axes(exported.graph), zip(exported.graph_signature.user_inputs, inputs.leaves(), strict=True)
    first = next((name for name, leaf in pairs if isinstance(leaf, Tensor) and leaf.ndim), None)
    return 0 in axes.get(str(first), {})


def _export_static(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    try:
        return _exported(model, inputs)
    except Exception as failure:  # whatever a model's own code raises
        raise explain(failure, model) from failure


def _exported(model: nn.Module, inputs: Inputs, **options: Any) -> ExportedProgram:
    """``torch.export``, without the whole graph that it prints to stderr beside what it raises."""
    said, graph = io.StringIO(), ""
    try:
        with redirect_stderr(said):
            return torch.export.export(model, inputs.args, inputs.kwargs, strict=False, **options)
    except Exception as failure:
        graph = f"{failure.partial_fx_graph}\n" if hasattr(failure, "partial_fx_graph") else ""
        raise
    finally:
        sys.stderr.write(said.getvalue().replace(graph, ""))


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence what torch says to its own developers (treespecs, flat weights of RNNs) while it exports."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg|torch")
        warnings.filterwarnings("ignore", message="The tensor attributes .* were assigned during export")
        yield


def evaluated(model: nn.Module) -> Callable[..., Any]:
    """``model`` as a function in evaluation mode; its own mode is put back after each call."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _evaluation_mode(model), torch.no_grad():
            return model(*args, **kwargs)

    return run


@contextmanager
def _evaluation_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Put the model into one mode for a while; every submodule gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _may_drop(module: nn.Module) -> bool:
    """Whether the module holds a probability that looks like a dropout's."""
    held = [value for name, value in vars(module).items() if "drop" in name or name == "p"]
    return any(isinstance(value, float) and 0.0 < value < 1.0 for value in held)


def _training_dropouts(model: nn.Module, exported: ExportedProgram, inputs: Inputs) -> tuple[float, ...]:
    """Dropout of each attention in training: an evaluation trace has lost it (models pass ``p if self.training``)."""
    state = torch.random.get_rng_state()
    try:
        with _evaluation_mode(model, training=True), torch.no_grad():
            training = _exported(model, inputs.batched(2))
    except Exception:  # a model that only evaluates is a valid model: its attention then trains without dropout
        return ()
    finally:
        torch.random.set_rng_state(state)
    ours, theirs = attentions(exported.graph), attentions(training.graph)
    if [source_module(node) for node in ours] != [source_module(node) for node in theirs]:
        return ()
    return tuple(dropout_of(node) for node in theirs)


# ---------------------------------------------------------------------- ExportedProgram -> Program


def _to_program(exported: ExportedProgram, inputs: Inputs, dropouts: tuple[float, ...]) -> Program:
    with quiet_torch():
        module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    program = Program(module, inputs, _dynamic_axes(module.graph)).fork()
    canonicalize(program, dropouts)
    return program.eval()


def _dynamic_axes(graph: fx.Graph) -> dict[str, dict[int, str]]:
    axes: dict[str, dict[int, str]] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, Tensor):
            continue
        for axis, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt) and not size.node.is_constant() and size.node.expr.free_symbols:
                symbol = str(size.node.expr)
                default = "batch" if axis == 0 and "batch" not in names.values() else f"size_{len(names)}"
                axes.setdefault(node.name, {})[axis] = names.setdefault(symbol, default)
    return axes
