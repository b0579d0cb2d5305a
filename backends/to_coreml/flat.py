"""A Program as coremltools takes it: tensors in, a flat tuple of tensors out, of types that Core ML passes on.

Rules:

1. Inputs and outputs are flat: structures, None and numbers stand in the manifest, not in the package.
2. Types that a Core ML array cannot have (bool, int64, uint8 …) cross the border as int32, float64 as float32.
   https://apple.github.io/coremltools/mlmodel/Format/FeatureTypes.html
3. An output that is an input, a constant, or given twice gets a value of its own.
4. What the model writes into its own buffers is lost with the call.
5. Dynamic axes are bounded: coremltools takes no other for an ML Program.
   https://apple.github.io/coremltools/docs-guides/source/flexible-inputs.html
6. An image comes in pixels; what makes of them what the model takes is part of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from planish.backends.to_coreml.interface import Image, demand_images
from planish.compiler.program import Program, add_tensor, rebuild
from planish.compiler.shapes import ensure_shapes
from planish.compiler.signature import Signature

aten = torch.ops.aten
BORDER = {
    torch.bool: torch.int32, torch.int64: torch.int32, torch.uint8: torch.int32, torch.int8: torch.int32,
    torch.int16: torch.int32, torch.float64: torch.float32,
}  # fmt: skip


@dataclass(frozen=True)
class Flat:
    """``exported`` is undecomposed; ``inputs`` and ``outputs`` are the names that the package gets, in order."""

    exported: ExportedProgram
    inputs: list[str]
    outputs: list[str]
    output_types: list[torch.dtype]
    """Of the Program's outputs; BORDER says what the package has instead."""


def flat(program: Program, largest_batch: int, images: Mapping[str, Image]) -> Flat:
    """``program`` in evaluation mode, ready to be decomposed and converted."""
    program = program.fork().eval()
    program.graph.eliminate_dead_code()
    ensure_shapes(program)
    names = output_names(program)
    demand_images(program, images)
    axes, arguments = _flatten_inputs(program, largest_batch)
    _from_pixels(program, images)
    _drop_state(program)
    types = _flatten_outputs(program)
    graph = program.graph
    graph.set_codegen(CodeGen())
    graph.lint()
    module = rebuild(program.graph_module, graph)
    with torch.no_grad():
        exported = torch.export.export(module, tuple(arguments), dynamic_shapes=tuple(axes), strict=False)
    inputs = [str(node.target) for node in program.placeholders]
    return Flat(exported, inputs, names, types)


def output_names(program: Program) -> list[str]:
    """A name for each output tensor: by its place in dicts and dataclasses, else ``output_0``, ``output_1`` …"""
    (leaves,) = program.output.args
    listed = [*leaves] if isinstance(leaves, (tuple, list)) else [leaves]
    spec = Signature.of(program.graph).outputs
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten([*range(spec.num_leaves)], spec))
    taken = {str(node.target) for node in program.placeholders}
    names = []
    for index, (path, _) in enumerate(paths):
        if isinstance(listed[index], fx.Node):
            name = _path_name(path)
            name = name if name.isidentifier() and name not in taken else f"output_{index}"
            taken.add(name)
            names.append(name)
    return names


def _path_name(path: Any) -> str:
    parts = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))) for key in path]
    return "_".join(map(str, parts))


def _flatten_inputs(program: Program, largest_batch: int) -> tuple[list[dict[int, Any]], list[Tensor]]:
    graph = program.graph
    axes, arguments = [], []
    for node, leaf in zip(program.placeholders, program.example_inputs.leaves(), strict=True):
        if not isinstance(leaf, Tensor):
            node.replace_all_uses_with(leaf)  # a number that the trace has fixed
            graph.erase_node(node)
            continue
        own = program.dynamic_axes.get(node.name, {})
        axes.append({axis: Dim.AUTO(min=1, max=largest_batch) for axis in own})
        arguments.append(leaf.to(BORDER.get(leaf.dtype, leaf.dtype)))
        if leaf.dtype in BORDER:
            with graph.inserting_after(program.placeholders[-1]):
                inner = graph.call_function(aten._to_copy.default, (node,), {"dtype": leaf.dtype})
            _redirect(node, inner, but=inner)
    return axes, arguments


def _from_pixels(program: Program, images: Mapping[str, Image]) -> None:
    """Rule 6. The normalization of an image is part of the package: it takes pixels from 0 to 255."""
    graph = program.graph
    for node in program.placeholders:
        image = images.get(str(node.target))
        if image is None:
            continue
        factors = add_tensor(program, f"{node.name}_scale", image.per_channel(image.scale))
        shifts = add_tensor(program, f"{node.name}_bias", image.per_channel(image.bias))
        with graph.inserting_after(program.placeholders[-1]):
            scaled = graph.call_function(aten.mul.Tensor, (node, factors))
        with graph.inserting_after(scaled):
            real = graph.call_function(aten.add.Tensor, (scaled, shifts))
        _redirect(node, real, but=scaled)


def _redirect(node: fx.Node, replacement: fx.Node, but: fx.Node) -> None:
    """All that reads ``node`` reads ``replacement`` instead; ``but`` does not."""
    node.replace_all_uses_with(replacement, delete_user_cb=lambda user: user is not but)


def _drop_state(program: Program) -> None:
    for node in [*program.calls(aten.copy_.default)]:
        target = node.args[0]
        if isinstance(target, fx.Node) and target.op == "get_attr" and not node.users:
            program.graph.erase_node(node)


def _flatten_outputs(program: Program) -> list[torch.dtype]:
    graph, output = program.graph, program.output
    (leaves,) = output.args
    listed = [*leaves] if isinstance(leaves, (tuple, list)) else [leaves]
    computed: list[fx.Node] = []
    types: list[torch.dtype] = []
    with graph.inserting_before(output):
        for leaf in listed:
            if not isinstance(leaf, fx.Node):
                continue
            value = leaf.meta.get("val")
            dtype = value.dtype if isinstance(value, Tensor) else torch.int64
            types.append(dtype)
            if not isinstance(value, Tensor):
                leaf = graph.call_function(aten.scalar_tensor.default, (leaf,), {"dtype": torch.int32})
            elif dtype in BORDER:
                leaf = graph.call_function(aten._to_copy.default, (leaf,), {"dtype": BORDER[dtype]})
            elif leaf.op != "call_function" or leaf in computed:
                leaf = graph.call_function(aten.clone.default, (leaf,))
            computed.append(leaf)
    output.args = (tuple(computed),)
    return types
