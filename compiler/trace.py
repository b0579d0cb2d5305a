"""From ``nn.Module`` to Program."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs, check_tensors
from planish.compiler.program import MODE, ModeArgument, Program, source_module
from planish.compiler.trace_errors import explain

aten = torch.ops.aten


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
    if any(_attention(exported.graph)) and any(_may_drop(module) for module in model.modules()):
        dropouts = _training_dropouts(model, exported, inputs)
    program = _to_program(exported, Inputs(*exported.example_inputs), dropouts)
    return Trace(program, (note,) if note else ())


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
        exported = torch.export.export(model, double.args, double.kwargs, dynamic_shapes=shapes, strict=False)
        if _dynamic_axes(exported.graph):
            return exported, ""
        why = "the model computes with its size as a constant"
    except Exception as failure:  # whatever a model's own code raises; told below if the static trace fails too
        why = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
    exported = _export_static(model, inputs)
    return exported, f"The batch is fixed at {inputs.batch_size}: {why}."


def _export_static(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    try:
        return torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
    except Exception as failure:  # whatever a model's own code raises
        raise explain(failure, model) from failure


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


def _attention(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is aten.scaled_dot_product_attention.default]


def _may_drop(module: nn.Module) -> bool:
    """Whether the module holds a probability that looks like a dropout's."""
    held = [value for name, value in vars(module).items() if "drop" in name or name == "p"]
    return any(isinstance(value, float) and 0.0 < value < 1.0 for value in held)


def _training_dropouts(model: nn.Module, exported: ExportedProgram, inputs: Inputs) -> tuple[float, ...]:
    """Dropout of each attention in training: an evaluation trace has lost it (models pass ``p if self.training``)."""
    state = torch.random.get_rng_state()
    try:
        with _evaluation_mode(model, training=True), torch.no_grad():
            double = inputs.batched(2)
            training = torch.export.export(model, double.args, double.kwargs, strict=False)
    except Exception:  # a model that only evaluates is a valid model: its attention then trains without dropout
        return ()
    finally:
        torch.random.set_rng_state(state)
    ours, theirs = _attention(exported.graph), _attention(training.graph)
    if [source_module(node) for node in ours] != [source_module(node) for node in theirs]:
        return ()
    return tuple(float(_argument(node, 4, "dropout_p", 0.0)) for node in theirs)


# ---------------------------------------------------------------------- ExportedProgram -> Program


def _to_program(exported: ExportedProgram, inputs: Inputs, dropouts: tuple[float, ...]) -> Program:
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    program = Program(module, inputs, _dynamic_axes(module.graph)).fork()
    _inline_regions(program)
    _use_reshape(program)
    _use_functional_ops(program)
    _drop_assertions(program)
    _record_modes(program, dropouts)
    program.graph.lint()
    program.graph_module.recompile()
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


_REGIONS = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)


def _inline_regions(program: Program) -> None:
    """1. ``torch.no_grad`` and ``autocast`` regions become plain nodes (autocast is off on the way in)."""
    for node in [*program.calls(*_REGIONS)]:
        start = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
        attribute = node.args[start]
        assert isinstance(attribute, fx.Node)
        region = getattr(program.graph_module, str(attribute.target))
        operands = iter(node.args[start + 1 :])
        values: dict[fx.Node, Any] = {}
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(operands)
        with program.graph.inserting_before(node):
            results = program.graph.graph_copy(region.graph, values)
        for user in [*node.users]:
            if user.target is operator.getitem:
                assert isinstance(results, (tuple, list))
                user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
                program.graph.erase_node(user)
        program.graph.erase_node(node)
        if not attribute.users:
            program.graph.erase_node(attribute)


def _use_reshape(program: Program) -> None:
    """2. ``view`` becomes ``reshape``: a view is recorded where the traced kernel happened to give such strides."""
    for node in program.calls(aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default


def _use_functional_ops(program: Program) -> None:
    """3. ``op_(x)`` becomes ``op(x)`` where nothing but its own result reads ``x`` or a view of it afterwards."""
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    for node in [*program.calls()]:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
            continue
        functional = _functional_twin(target)
        written = node.args[0]
        if functional is None or not isinstance(written, fx.Node) or written.op in ("get_attr", "placeholder"):
            continue
        if all(order[reader] <= order[node] for alias in _aliases(written, node) for reader in alias.users):
            node.target = functional


def _functional_twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    twin = getattr(packet, target._overloadname, None) if packet is not None else None
    same = twin is not None and len(twin._schema.arguments) == len(target._schema.arguments)
    return twin if same else None


def _aliases(node: fx.Node, but: fx.Node) -> set[fx.Node]:
    """``node``, all it is a view of, and all views of those, other than through ``but``."""
    found, waiting = set(), [node]
    while waiting:
        current = waiting.pop()
        if current in found or current is but:
            continue
        found.add(current)
        if _is_view(current) and isinstance(current.args[0], fx.Node):
            waiting.append(current.args[0])
        waiting.extend(user for user in current.users if _is_view(user) and user.args[0] is current)
    return found


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:  # split, chunk and unbind hand out views by getitem
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target.overloadpacket in _MAYBE_VIEWS:
        return True
    return any(result.alias_info is not None for result in node.target._schema.returns)


# These return their input or a copy of it, and their schemas do not say so.
_MAYBE_VIEWS = (
    aten.reshape, aten.reshape_as, aten.contiguous, aten.to, aten.type_as, aten.flatten, aten.dropout,
    aten.feature_dropout, aten.expand_as, aten.unflatten,
)  # fmt: skip


def _drop_assertions(program: Program) -> None:
    """4. Runtime assertions of the export go: planish checks inputs and shapes itself."""
    for node in [*program.calls(aten._assert_tensor_metadata.default, aten._assert_scalar.default)]:
        program.graph.erase_node(node)


# ---------------------------------------------------------------------- training and evaluation


_MODE_ARGUMENTS = {
    aten.dropout.default: (2, "train"),
    aten.feature_dropout.default: (2, "train"),
    aten.alpha_dropout.default: (2, "train"),
    aten.feature_alpha_dropout.default: (2, "train"),
    aten.batch_norm.default: (5, "training"),
    aten.rrelu.default: (3, "training"),
    aten.lstm.input: (6, "train"),
    aten.gru.input: (6, "train"),
    aten.rnn_tanh.input: (6, "train"),
    aten.rnn_relu.input: (6, "train"),
}


def _record_modes(program: Program, dropouts: tuple[float, ...]) -> None:
    """5. Each node that behaves differently in training remembers how, so that the mode can be set right."""
    for node in program.calls(*_MODE_ARGUMENTS):
        position, name = _MODE_ARGUMENTS[node.target]  # type: ignore[index]
        # a batch norm without running statistics uses those of the batch in evaluation too
        always = node.target is aten.batch_norm.default and node.args[3] is None
        node.meta[MODE] = ModeArgument(position, name, training=True, evaluation=always)
    for index, node in enumerate(_attention(program.graph)):
        own = float(_argument(node, 4, "dropout_p", 0.0))
        training = dropouts[index] if index < len(dropouts) else own
        if training:
            node.meta[MODE] = ModeArgument(4, "dropout_p", training=training, evaluation=0.0)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)
