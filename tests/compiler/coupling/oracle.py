"""What a cut Program has to compute, found without cutting.

The whole Program runs in float64 with the parameters of the removed units set to zero. Zero is not nothing where values
are averaged, normalized or multiplied with each other: there ``MaskedReference`` leaves out the removed indices, as the
inferred dimensions tell them. Buffers are never masked: one that holds minus infinities would give NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.dims import Dim, atoms
from planish.compiler.coupling.groups import Coupling, Group, couple
from planish.compiler.coupling.inference import Type
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, get_attribute, set_tensor
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import Family, shake
from tests.compiler.coupling.masked_ops import MASKED, Masks

Removed = Mapping[Group, Iterable[int]]
WIDE = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64,
        torch.complex64: torch.complex128, torch.complex32: torch.complex128}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    error: float
    """Largest difference of an output from the reference, relative to the largest value of that output."""
    moved: float
    """The same against the uncut Program: near zero, the comparison would prove nothing."""
    where: str = ""
    """The first node that differs, where every value was compared and one did."""


def enliven(model: nn.Module) -> nn.Module:
    """No gain is zero, no bias constant: the loss of any branch shows in the outputs."""
    for parameter in shake(model).parameters():
        if parameter.numel() == 1 and not bool(parameter.any()):
            nn.init.constant_(parameter, 0.4)
    return model


@functools.cache
def coupled(family: Family) -> tuple[Coupling, Inputs]:
    """The groups of a lively model, and inputs of another batch size than it was traced with."""
    torch.manual_seed(0)
    program = trace(enliven(family.build()).eval(), family.inputs(2))
    return couple(program), family.inputs(3) if program.dynamic_axes else program.example_inputs


def judge(coupling: Coupling, removed: Removed, inputs: Inputs, every_value: bool = False) -> Verdict:
    """Cut ``removed``, and compare on ``inputs`` with the masked reference."""
    whole, smaller = in_double(coupling.program), in_double(cut(coupling, removed))
    leaves = [_wide(leaf) for leaf in inputs.leaves()]
    with torch.no_grad():
        before = _run(fx.Interpreter(whole.graph_module), leaves)
        _zero(whole, removed)
        reference = MaskedReference(whole, _types(coupling, whole), indices_kept(removed), every_value)
        ours = fx.Interpreter(smaller.graph_module, garbage_collect_values=not every_value)
        wanted, got = _run(reference, leaves), _run(ours, leaves)
    where = _first_difference(coupling, reference, ours) if every_value else ""
    return Verdict(_difference(wanted, got), _difference(before, got), where)


def indices_kept(removed: Removed) -> dict[Dim, Tensor]:
    """Of each atom which indices are left: bool [size of the atom]."""
    kept = {}
    for group, units in removed.items():
        gone = {*units}
        for atom, cells in group.units.items():
            kept[atom] = torch.tensor([unit not in gone for unit in cells.tolist()])
    return kept


def some_units(group: Group, generator: np.random.Generator, share: float = 0.5) -> list[int]:
    """A random ``share`` of the units, of which every atom keeps one at least."""
    left = [{*cells.tolist()} for cells in group.units.values()]
    chosen: list[int] = []
    for unit in generator.permutation(group.width).tolist():
        if len(chosen) == max(1, int(group.width * share)):
            break
        if all(units != {unit} for units in left):
            chosen.append(unit)
            left = [units - {unit} for units in left]
    return sorted(chosen)


def some_of_all(coupling: Coupling, generator: np.random.Generator, share: float = 0.5) -> dict[Group, list[int]]:
    return {group: some_units(group, generator, share) for group in coupling.groups}


# ---------------------------------------------------------------------- the reference


class MaskedReference(fx.Interpreter):
    """Runs a Program as if the removed indices were not there, at its full sizes."""

    def __init__(
        self, program: Program, types: Mapping[fx.Node, Type], kept: Mapping[Dim, Tensor], keep_values: bool = False
    ):
        super().__init__(program.graph_module, garbage_collect_values=not keep_values)
        self.types, self.kept = types, kept

    def run_node(self, n: fx.Node) -> Any:
        masked = MASKED.get(getattr(n.target, "overloadpacket", None))
        if n.op != "call_function" or masked is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        assert isinstance(n.target, torch._ops.OpOverload)
        names = [argument.name for argument in n.target._schema.arguments]
        given = {argument.name: argument.default_value for argument in n.target._schema.arguments}
        given |= dict(zip(names, args, strict=False)) | kwargs
        nodes = dict(zip(names, n.args, strict=False)) | n.kwargs
        masks = {name: pytree.tree_map(self._masks, value) for name, value in nodes.items()}
        return masked(n.target, given, masks)

    def _masks(self, node: Any) -> Masks:
        if not isinstance(node, fx.Node) or not isinstance(self.env[node], Tensor):
            return ()
        return masks_of(self.types[node], self.env[node], self.kept)


def masks_of(found: Type, value: Tensor, kept: Mapping[Dim, Tensor]) -> Masks:
    """Which indices are left of each dimension of ``value``; None for all."""
    assert isinstance(found, tuple) and len(found) == value.ndim, f"{found} for {tuple(value.shape)}"
    return tuple(mask_of(dim, size, kept) for dim, size in zip(found, value.shape, strict=True))


def mask_of(dim: Dim, size: int, kept: Mapping[Dim, Tensor]) -> Tensor | None:
    """bool [size], or None for all. In the types a size may be a prime that stands for that of the batch."""
    dim = dim.root()
    if dim.kind == "atom":
        mask = kept.get(dim)
        assert mask is None or len(mask) == size, f"{dim} is {size}"
        return mask
    if kept.keys().isdisjoint(atoms(dim)):  # sizes computed from those of two inputs need not divide
        return None
    sizes = _actual_sizes(dim, size)
    masks = [mask_of(part, actual, kept) for part, actual in zip(dim.parts, sizes, strict=True)]
    whole = [torch.ones(actual, dtype=torch.bool) if mask is None else mask
             for mask, actual in zip(masks, sizes, strict=True)]  # fmt: skip
    if dim.kind == "sum":
        return torch.cat(whole)
    result = whole[0]
    for mask in whole[1:]:
        result = torch.outer(result, mask).flatten()
    return result


def _actual_sizes(dim: Dim, size: int) -> list[int]:
    """The sizes of the parts, where the largest may stand for something else."""
    sizes = [part.root().size for part in dim.parts]
    if dim.size != size:
        largest = sizes.index(max(sizes))
        others = sizes[:largest] + sizes[largest + 1 :]
        sizes[largest] = size - sum(others) if dim.kind == "sum" else size // math.prod(others)
    return sizes


def _zero(program: Program, removed: Removed) -> None:
    """Set the removed units to zero in every parameter, by the members of their groups."""
    for group, units in removed.items():
        gone = torch.tensor([*units])
        for member in group.members:
            if member.learned:
                tensor = get_attribute(program.graph_module, member.tensor)
                tensor.data.index_fill_(member.axis, torch.isin(member.units, gone).nonzero().flatten(), 0)


# ---------------------------------------------------------------------- in float64


def in_double(program: Program) -> Program:
    """A copy of ``program`` that computes in float64, whatever its graph says."""
    program = program.copy()
    for node in program.graph.nodes:
        if node.op == "get_attr" and (tensor := program.tensor(node)) is not None and tensor.dtype in WIDE:
            set_tensor(program.graph_module, str(node.target), _wide(tensor))
        elif node.op == "call_function":
            node.args = pytree.tree_map(_wide, node.args)
            node.kwargs = pytree.tree_map(_wide, node.kwargs)
    program.graph_module.recompile()
    return program


def _wide(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return WIDE.get(value, value)
    if not isinstance(value, Tensor) or value.dtype not in WIDE:
        return value
    wide = value.detach().to(WIDE[value.dtype])
    return nn.Parameter(wide, value.requires_grad) if isinstance(value, nn.Parameter) else wide


def _types(coupling: Coupling, copy: Program) -> dict[fx.Node, Type]:
    pairs = zip(coupling.program.graph.nodes, copy.graph.nodes, strict=True)
    return {theirs: coupling.types[ours] for ours, theirs in pairs}


def _run(interpreter: fx.Interpreter, leaves: list[Any]) -> list[Tensor]:
    torch.set_default_dtype(torch.float64)  # for what the graph makes without naming a dtype
    try:
        results = interpreter.run(*leaves, enable_io_processing=False)
    finally:
        torch.set_default_dtype(torch.float32)
    return [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


def _difference(wanted: list[Tensor], got: list[Tensor]) -> float:
    return max([0.0, *(relative(first, second) for first, second in zip(wanted, got, strict=True))])


def relative(wanted: Tensor, got: Tensor) -> float:
    """Largest difference, relative to the largest value; infinite where shapes, NaN or infinities differ."""
    if wanted.shape != got.shape:
        return math.inf
    if not wanted.numel():
        return 0.0
    first, second = (tensor if tensor.is_complex() else tensor.double() for tensor in (wanted, got))
    if not bool(torch.equal(first.isfinite(), second.isfinite())):
        return math.inf
    finite = first.isfinite()
    difference = torch.where(finite, first - second, 0).abs().max()
    scale = torch.where(finite, first, 0).abs().max().clamp_min(1e-30)
    return float((difference / scale).detach())


# ---------------------------------------------------------------------- value by value


def _first_difference(coupling: Coupling, reference: MaskedReference, ours: fx.Interpreter) -> str:
    """The first node whose kept values differ; "" if none does."""
    cut_nodes = {node.name: node for node in ours.graph.nodes}
    whole_nodes = {node.name: node for node in reference.graph.nodes}
    for node in coupling.program.graph.nodes:
        found, wanted = coupling.types[node], reference.env[whole_nodes[node.name]]
        if node.op != "call_function" or not isinstance(wanted, Tensor) or not isinstance(found, tuple):
            continue
        for axis, mask in enumerate(masks_of(found, wanted, reference.kept)):
            if mask is not None:
                wanted = wanted.index_select(axis, mask.nonzero().flatten())
        got = ours.env[cut_nodes[node.name]]
        if (error := relative(wanted, got)) > 1e-8:
            return f"{node.format_node()}: {tuple(wanted.shape)} and {tuple(got.shape)}, {error:.1e}"
    return ""
