"""How a model is called and what it returns: nested structures to flat lists of tensors and back."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from planish.compiler.errors import UserError


@dataclass(frozen=True)
class Signature:
    """The structure of a Program's arguments and of its result; saved beside every artifact as JSON."""

    parameters: tuple[str, ...]
    inputs: pytree.TreeSpec
    outputs: pytree.TreeSpec

    @classmethod
    def of(cls, graph: fx.Graph) -> Signature:
        codegen = graph._codegen
        if not isinstance(codegen, _PyTreeCodeGen):
            raise TypeError("the graph was not made by torch.export")
        info = codegen.pytree_info
        assert info.in_spec is not None and info.out_spec is not None
        return cls(tuple(info.orig_args), info.in_spec, info.out_spec)

    def attach(self, graph: fx.Graph) -> None:
        """Give ``graph``, whose placeholders and outputs are flat, this signature."""
        graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo([*self.parameters], self.inputs, self.outputs)))

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of one call, in order. Positional arguments may stand for traced keywords, and the reverse.

        Raises UserError if the call does not have the structure that was traced.
        """
        traced_args, traced_kwargs = pytree.tree_unflatten([None] * self.inputs.num_leaves, self.inputs)
        names = [*self.parameters[: len(traced_args)], *traced_kwargs]
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        if len(args) > len(names) or set(given) != set(names) or len(given) != len(args) + len(kwargs):
            raise UserError(f"Call with the arguments ({', '.join(names)}); got {self._told(args, kwargs)}.")
        values = [given[name] for name in names]
        call = (tuple(values[: len(traced_args)]), dict(zip(traced_kwargs, values[len(traced_args) :], strict=True)))
        leaves, spec = pytree.tree_flatten(call)
        if spec != self.inputs:
            raise UserError(f"Call with arguments of the structure {self.inputs}; got {spec}.")
        return leaves

    @staticmethod
    def _told(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        told = [f"{len(args)} positional"] if args else []
        return " and ".join([*told, *(f"{name}=" for name in kwargs)]) or "none"

    def arguments(self, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inverse of ``flatten``: positional and keyword arguments from the leaves of one call.

        Raises UserError if the number of leaves is another one (a traced call with numbers among its arguments).
        """
        if len(leaves) != self.inputs.num_leaves:
            raise UserError(
                f"Name the inputs: the call takes {self.inputs.num_leaves} values, {len(leaves)} of them tensors."
            )
        args, kwargs = pytree.tree_unflatten(leaves, self.inputs)
        return tuple(args), dict(kwargs)

    def unflatten(self, leaves: list[Any]) -> Any:
        return pytree.tree_unflatten(leaves, self.outputs)

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": [*self.parameters],
            "inputs": _encode(_skeleton(self.inputs)),
            "outputs": _encode(_skeleton(self.outputs)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        inputs, outputs = (pytree.tree_structure(_decode(data[key])) for key in ("inputs", "outputs"))
        return cls(tuple(data["parameters"]), inputs, outputs)


def _skeleton(spec: pytree.TreeSpec) -> Any:
    return pytree.tree_unflatten([0] * spec.num_leaves, spec)


def _encode(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"type": _type_name(value), "fields": {name: _encode(getattr(value, name)) for name in value._fields}}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if type(value) in (dict, OrderedDict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, Mapping):
        return {"type": _type_name(value), "fields": {key: _encode(item) for key, item in value.items()}}
    if pytree.tree_structure(value).is_leaf():
        return None
    raise UserError(f"Return tensors in tuples, lists and dicts; {_type_name(value)} cannot be saved.")


def _decode(data: Any) -> Any:
    if data is None:
        return 0
    if isinstance(data, list):
        return [_decode(item) for item in data]
    if "tuple" in data:
        return tuple(_decode(item) for item in data["tuple"])
    if "dict" in data:
        return {key: _decode(item) for key, item in data["dict"].items()}
    fields = {key: _decode(item) for key, item in data["fields"].items()}
    # A class (of transformers, say) comes back where its module is loaded already. Nothing is imported on behalf of
    # a file: elsewhere the same fields come as a dict.
    module, _, name = data["type"].rpartition(".")
    kind: Any = getattr(sys.modules.get(module), name, None)
    known = kind in pytree.SUPPORTED_NODES or (isinstance(kind, type) and pytree.is_namedtuple_class(kind))
    return kind(**fields) if known else fields


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
