"""Programs on disk: a zip of ``graph.json`` and ``tensors.safetensors``.

A tensor with so many zeros that it pays is stored packed (``packing.py``).

``torch.export.load`` unpickles what an archive asks it to (weights and constants flagged ``use_pickle``,
opaque constants). Here the graph is data, the tensors are safetensors, and an operator is looked up by name
among those that only compute.
"""

from __future__ import annotations

import importlib
import json
import keyword
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, fx, nn

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.packing import packed, unpacked
from planish.compiler.program import MODE, ModeArgument, Program, get_attribute, set_tensor, source_module, source_type
from planish.compiler.rules import SYMBOLIC_FUNCTIONS, verify
from planish.compiler.signature import Signature

FORMAT = 2
READS = (1, 2)
"""Format 1 knew no packed tensors."""
NAMESPACES = ("aten", "quantized_decomposed", "torchvision")
"""Operator libraries whose operators an archive may name: none of them runs code or opens files."""
_REFUSED = ("aten.from_file",)
_CONSTANTS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_FUNCTIONS = {f"{function.__module__}.{function.__name__}": function for function in SYMBOLIC_FUNCTIONS}


def save_program(program: Program, path: Path) -> Path:
    """Write ``program`` to ``path``; a file that is there stays whole until the new one is complete."""
    tensors: dict[str, Tensor] = {}
    document = {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "graph": _encode_graph(program.graph_module, "", tensors),
        "signature": Signature.of(program.graph).to_json(),
        "dynamic_axes": {
            name: {str(axis): size for axis, size in axes.items()} for name, axes in program.dynamic_axes.items()
        },
        "persistent": [*program.state_dict()],
        "inputs": [
            {"tensor": _keep(tensors, f"input.{index}", leaf)} if isinstance(leaf, Tensor) else {"value": _encode(leaf)}
            for index, leaf in enumerate(program.example_inputs.leaves())
        ],
    }  # fmt: skip
    stored, document["packed"] = packed(tensors)
    beside = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("graph.json"), json.dumps(document, allow_nan=False))
            archive.writestr(zipfile.ZipInfo("tensors.safetensors"), safetensors.torch.save(stored))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def load_program(path: Path) -> Program:
    """Raises UserError that names ``path`` if the archive is damaged, or asks for what it may not have."""
    try:
        with zipfile.ZipFile(path) as archive:
            document = json.loads(archive.read("graph.json"))
            tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
        if document["format"] not in READS:
            raise UserError(f"it has format {document['format']}, and this version of planish reads {FORMAT}")
        return _decode_program(document, unpacked(tensors, document.get("packed", {})))
    except Exception as failure:  # whatever a damaged or forged file leads to: it is the file's fault
        raise UserError(f"Save the Program again: {path} cannot be loaded ({failure}).") from failure


def _decode_program(document: dict[str, Any], tensors: dict[str, Tensor]) -> Program:
    signature = Signature.from_json(document["signature"])
    for name in (*signature.parameters, *signature.inputs.child(1).context):
        _identifier(name)
    module = _decode_graph(document["graph"], "", tensors)
    signature.attach(module.graph)
    module.recompile()
    persistent = set(document["persistent"])
    for prefix, owner in module.named_modules():
        for name in owner._buffers:
            if (f"{prefix}.{name}" if prefix else name) not in persistent:
                owner._non_persistent_buffers_set.add(name)
    leaves = [
        tensors[entry["tensor"]] if "tensor" in entry else _decode(entry["value"], {}) for entry in document["inputs"]
    ]
    args, kwargs = torch.utils._pytree.tree_unflatten(leaves, signature.inputs)
    axes = {name: {int(axis): size for axis, size in of.items()} for name, of in document["dynamic_axes"].items()}
    program = Program(module, Inputs(args, kwargs), axes)
    verify(program, "loading the archive")
    return program


def _identifier(name: Any) -> str:
    """``name``, if it is one: fx writes the names of nodes and parameters into source code, which it runs."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name == "self":
        raise UserError(f"refused: {name!r} is not a name")
    return name


def _path(name: Any) -> str:
    """``name``, if it is a dotted name of a tensor or sub-graph."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name):
        raise UserError(f"refused: {name!r} is not the name of a tensor")
    return name


# ---------------------------------------------------------------------- graphs


def _keep(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> str:
    """The name under which ``tensor`` is stored; tied tensors are stored once."""
    for known, other in tensors.items():
        if other is tensor:
            return known
    tensors[name] = (
        tensor if tensor.is_contiguous() and not _is_partial(tensor) else tensor.detach().clone().contiguous()
    )
    return name


def _is_partial(tensor: Tensor) -> bool:
    """Whether the tensor is a view of a larger storage (safetensors refuses shared memory)."""
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


def _encode_graph(module: fx.GraphModule, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    nodes, attributes, subgraphs = [], {}, {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            value = get_attribute(module, name)
            if isinstance(value, fx.GraphModule):
                subgraphs[name] = _encode_graph(value, f"{prefix}{name}.", tensors)
            else:
                stored = _keep(tensors, f"{prefix}{name}", value)
                attributes[name] = {"tensor": stored, "parameter": isinstance(value, nn.Parameter)}
        nodes.append(_encode_node(node))
    return {"nodes": nodes, "attributes": attributes, "subgraphs": subgraphs}


def _encode_node(node: fx.Node) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": node.name, "op": node.op}
    if node.op == "call_function":
        entry["target"] = _target_name(node)
    elif node.op == "get_attr":
        entry["target"] = str(node.target)
    if node.op != "placeholder":
        entry["args"] = [_encode(arg) for arg in node.args]
        entry["kwargs"] = {name: _encode(arg) for name, arg in node.kwargs.items()}
    if source_module(node):
        entry["module"] = [source_module(node), source_type(node)]
    if mode := node.meta.get(MODE):
        entry["mode"] = [mode.position, mode.name, mode.training, mode.evaluation]
    return entry


def _target_name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return f"higher_order.{node.target.name()}"
    return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"


def _decode_graph(data: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> fx.GraphModule:
    root, graph = nn.Module(), fx.Graph()
    nodes: dict[str, fx.Node] = {}
    made: dict[str, nn.Parameter] = {}
    for name, entry in data["attributes"].items():
        _path(name)
        value = tensors[entry["tensor"]]
        if entry["parameter"]:
            value = made.setdefault(entry["tensor"], nn.Parameter(value, requires_grad=value.is_floating_point()))
        set_tensor(root, name, value)
    for name, inner in data["subgraphs"].items():
        root.add_module(_identifier(name), _decode_graph(inner, f"{prefix}{name}.", tensors))
    for entry in data["nodes"]:
        node = _decode_node(graph, entry, nodes)
        nodes[entry["name"]] = node
    return fx.GraphModule(root, graph)


def _decode_node(graph: fx.Graph, entry: dict[str, Any], nodes: dict[str, fx.Node]) -> fx.Node:
    op, name = entry["op"], _identifier(entry["name"])
    if op == "placeholder":
        node = graph.create_node("placeholder", name, (), {}, name=name)
    else:
        args = tuple(_decode(arg, nodes) for arg in entry["args"])
        kwargs = {_identifier(key): _decode(arg, nodes) for key, arg in entry["kwargs"].items()}
        if op not in ("call_function", "get_attr", "output"):
            raise UserError(f"refused: node {name!r} is a {op}")
        target = _target(op, entry)
        node = graph.create_node(op, target, args, kwargs, name=name)
    if "module" in entry:
        path, kind = entry["module"]
        node.meta["nn_module_stack"] = {path: (path, kind)}
    if "mode" in entry:
        position, argument, training, evaluation = entry["mode"]
        node.meta[MODE] = ModeArgument(int(position), _identifier(argument), training, evaluation)
    return node


def _target(op: str, entry: dict[str, Any]) -> Any:
    if op == "call_function":
        return _find_target(entry["target"])
    return _path(entry["target"]) if op == "get_attr" else "output"


def _find_target(name: str) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace == "higher_order" and rest in ("cond", "while_loop", "map_impl", "scan"):
        return getattr(torch.ops.higher_order, rest)
    if namespace not in NAMESPACES or f"{namespace}.{packet}" in _REFUSED:
        raise UserError(f"refused: it calls {name!r}, and may call operators of {', '.join(NAMESPACES)}")
    if namespace == "quantized_decomposed":
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
    found = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise UserError(f"{name!r} is no operator of this version of torch")
    return found


# ---------------------------------------------------------------------- arguments


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and value - value != 0:  # infinite or NaN: not JSON
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for kind, of in _CONSTANTS.items():
        if isinstance(value, of):
            return {kind: str(value).removeprefix("torch.")}
    raise UserError(f"Report this to planish: an argument of type {type(value).__name__} cannot be saved.")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "node":
        return nodes[held]
    if kind == "tuple":
        return tuple(_decode(item, nodes) for item in held)
    if kind == "dict":
        return {key: _decode(item, nodes) for key, item in held.items()}
    if kind in _CONSTANTS:
        constant = getattr(torch, held)
        if not isinstance(constant, _CONSTANTS[kind]):
            raise UserError(f"refused: {held!r} is no {kind}")
        return constant
    makers: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "device": torch.device,
        "complex": lambda parts: complex(*parts),
        "slice": lambda parts: slice(*(_decode(part, nodes) for part in parts)),
    }
    return makers[kind](held)
