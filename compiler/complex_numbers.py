"""Complex numbers as two real tensors each, for runtimes that have none: a Fourier transform is a matrix product.

Rules:

1. A discrete Fourier transform along one axis of a known size is a product with its matrix, of cosines and sines.
   Padding to another length is a matrix with fewer rows, cutting one with rows of zeros.
2. Transforms along several axes are one after the other.
3. Sums, differences and products are those of the parts; what moves values moves both parts. Constants are split.
4. Parts, magnitude and ``view_as_real`` lead back to real numbers. Whatever else reads complex numbers stays, and a
   Check names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.program import Program, add_tensor, arguments, get_attribute
from planish.compiler.shapes import ensure_shapes

aten = torch.ops.aten
Pair = tuple[fx.Node, fx.Node | None]
"""The real part, and the imaginary one; None is zero."""
_ONE_AXIS = {
    aten.fft_fft.default: (-1, False), aten.fft_ifft.default: (1, False), aten.fft_rfft.default: (-1, True),
}  # fmt: skip
_AXES = {
    aten.fft_fft2.default: (-1, False), aten.fft_ifft2.default: (1, False), aten.fft_rfft2.default: (-1, True),
    aten.fft_fftn.default: (-1, False), aten.fft_ifftn.default: (1, False), aten.fft_rfftn.default: (-1, True),
}  # fmt: skip
"""Operator -> the sign in the exponent, and whether only half of the spectrum is wanted."""
_MOVES = (
    aten.reshape.default, aten.view.default, aten.permute.default, aten.transpose.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.slice.Tensor, aten.select.int, aten.flatten.using_ints, aten.roll.default, aten.flip.default,
    aten.expand.default, aten.contiguous.default, aten.clone.default, aten.neg.default, aten.mean.dim,
    aten.sum.dim_IntList, aten.repeat.default, aten.index_select.default, aten.index.Tensor, aten.squeeze.default,
    aten.squeeze.dims, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
)  # fmt: skip
_CONJUGATES = (aten.conj.default, aten._conj.default, aten.conj_physical.default, aten._conj_physical.default)
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.resolve_conj.default)


def real_numbers(program: Program) -> Program:
    """``program`` with two real tensors for each complex one, where a rule knows how; the original stays as it was."""
    if not has_complex(program):
        return program
    program = program.fork()
    ensure_shapes(program)
    parts = _Parts(program)
    for node in [*program.graph.nodes]:
        with program.graph.inserting_before(node):
            if node.op == "call_function":
                parts.take(node)
            elif node.op == "get_attr" and _is_complex(node):
                parts.split(node)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    return program.with_graph(program.graph)


def has_complex(program: Program) -> bool:
    ensure_shapes(program)
    return any(_is_complex(node) for node in program.graph.nodes)


def _is_complex(node: object) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype.is_complex


class _Parts:
    """The parts of the complex values of one Program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.pairs: dict[fx.Node, Pair] = {}

    def take(self, node: fx.Node) -> None:
        """Write down the parts of ``node``, or lead it back to a real one."""
        target, args = node.target, node.args
        if target in _ONE_AXIS:
            self._transform(node, [arguments(node)["n"]], [arguments(node)["dim"]], *_ONE_AXIS[target])
        elif target in _AXES:
            self._transform_all(node, *_AXES[target])
        elif target is aten.fft_irfft.default and self._known(args[0]):
            self._real_inverse(node)
        elif target is aten.complex.default:
            self.pairs[node] = (args[0], args[1])  # type: ignore[assignment]
        elif target is aten.polar.default:
            turns = [
                self(aten.mul.Tensor, args[0], self(part, args[1])) for part in (aten.cos.default, aten.sin.default)
            ]
            self.pairs[node] = (turns[0], turns[1])
        elif target in _CONJUGATES and self._known(args[0]):
            re, im = self._pair(args[0])
            self.pairs[node] = (re, None if im is None else self(aten.neg.default, im))
        elif target in _CASTS and _is_complex(node) and (pair := self._pair(args[0])) is not None:
            self.pairs[node] = self._cast(pair, args[0], node)
        elif target is aten.view_as_complex.default:
            self.pairs[node] = (self(aten.select.int, args[0], -1, 0), self(aten.select.int, args[0], -1, 1))
        elif target in _BACK and self._known(args[0]):
            node.replace_all_uses_with(_BACK[target](self, *self.pairs[args[0]]))  # type: ignore[index]
        elif _is_complex(node) and target in _MOVES and self._known(args[0]):
            re, im = self.pairs[args[0]]  # type: ignore[index]
            moved = [None if part is None else self(target, part, *args[1:], **node.kwargs) for part in (re, im)]
            self.pairs[node] = (moved[0], moved[1])  # type: ignore[assignment]
        elif _is_complex(node) and target in _ARITHMETIC and not node.kwargs:
            operands = [self._pair(arg) for arg in args]
            if all(operand is not None for operand in operands):
                self.pairs[node] = _ARITHMETIC[target](self, *operands)

    def split(self, node: fx.Node) -> None:
        """Write down the parts of a constant."""
        values = get_attribute(self.program.graph_module, str(node.target)).detach()
        parts = [add_tensor(self.program, f"{node.name}_{name}", getattr(values, name).contiguous())
                 for name in ("real", "imag")]  # fmt: skip
        self.pairs[node] = (parts[0], parts[1])

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.program.graph.call_function(target, args, kwargs)

    def _known(self, node: object) -> bool:
        return node in self.pairs

    def _pair(self, operand: Any) -> Any:
        if isinstance(operand, fx.Node):
            return self.pairs.get(operand, None if _is_complex(operand) else (operand, None))
        return (operand.real, operand.imag or None) if isinstance(operand, complex) else (operand, None)

    def _cast(self, pair: Pair, source: Any, result: fx.Node) -> Pair:
        given, wanted = (each.meta["val"].dtype.to_real() for each in (source, result))
        if given is wanted:
            return pair
        re, im = pair
        return self(aten.to.dtype, re, wanted), None if im is None else self(aten.to.dtype, im, wanted)

    def _transform_all(self, node: fx.Node, sign: int, half: bool) -> None:
        rank = node.meta["val"].ndim
        lengths: Any = arguments(node)["s"]
        own = [*range(-len(lengths), 0)] if lengths else [*range(rank)]
        dims: Any = arguments(node)["dim"] or own
        self._transform(node, [*(lengths or [None] * len(dims))], [*dims], sign, half)

    def _transform(self, node: fx.Node, lengths: list[Any], dims: list[Any], sign: int, half: bool) -> None:
        """Rules 1 and 2: the last axis first, which alone may be halved."""
        source = node.args[0]
        pair, shape = self._pair(source), list(source.meta["val"].shape)  # type: ignore[union-attr]
        norm = arguments(node)["norm"]
        axes = [(dim % len(shape), length) for dim, length in zip(dims, lengths, strict=True)]
        if pair is None or not all(isinstance(shape[dim], int) for dim, _ in axes):
            return
        for place, (dim, length) in enumerate(reversed(axes)):
            n = length or shape[dim]
            kept = n // 2 + 1 if half and place == 0 else n
            matrix = transform_matrix(shape[dim], n, kept, sign) * _scale(n, sign, norm)
            pair = self._product(pair, matrix, dim, len(shape))
        self.pairs[node] = pair

    def _product(self, pair: Pair, matrix: Tensor, dim: int, rank: int) -> Pair:
        re, im = pair
        cosines, sines = (self._constant(part) for part in (matrix.real, matrix.imag))
        by_cosines, by_sines = (self._along(re, by, dim, rank) for by in (cosines, sines))
        if im is None:
            return by_cosines, by_sines
        return (
            self(aten.sub.Tensor, by_cosines, self._along(im, sines, dim, rank)),
            self(aten.add.Tensor, by_sines, self._along(im, cosines, dim, rank)),
        )

    def _along(self, part: fx.Node, matrix: fx.Node, dim: int, rank: int) -> fx.Node:
        if dim == rank - 1:
            return self(aten.matmul.default, part, matrix)
        turned = self(aten.matmul.default, self(aten.transpose.int, part, dim, -1), matrix)
        return self(aten.transpose.int, turned, dim, -1)

    def _real_inverse(self, node: fx.Node) -> None:
        re, im = self.pairs[node.args[0]]  # type: ignore[index]
        shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
        dim = arguments(node)["dim"] % len(shape)
        if not isinstance(shape[dim], int):
            return
        n = arguments(node)["n"] or 2 * (shape[dim] - 1)
        twice = torch.full((shape[dim], 1), 2.0, dtype=torch.float64)
        twice[0] = 1.0
        if n % 2 == 0 and n // 2 < shape[dim]:
            twice[n // 2] = 1.0
        twice[n // 2 + 1 :] = 0.0
        matrix = transform_matrix(shape[dim], n, n, 1) * twice * _scale(n, 1, arguments(node)["norm"])
        real = self._along(re, self._constant(matrix.real), dim, len(shape))
        if im is not None:
            real = self(aten.sub.Tensor, real, self._along(im, self._constant(matrix.imag), dim, len(shape)))
        node.replace_all_uses_with(real)

    def _constant(self, values: Tensor) -> fx.Node:
        return add_tensor(self.program, "transform", values.to(torch.float32).contiguous())


def transform_matrix(size: int, n: int, kept: int, sign: int) -> Tensor:
    """[size, kept] complex: the first ``kept`` of ``n`` frequencies of ``size`` values, padded or cut to ``n``."""
    row, column = torch.arange(size).reshape(-1, 1), torch.arange(kept)
    angles = (row * column % n).to(torch.float64) * (sign * 2 * math.pi / n)
    return torch.where(row < n, torch.polar(torch.ones_like(angles), angles), 0.0)


def _scale(n: int, sign: int, norm: Any) -> float:
    if norm == "ortho":
        return 1 / math.sqrt(n)
    return 1 / n if (norm == "forward") == (sign < 0) else 1.0


def _sum(call: _Parts, a: Pair, b: Pair, operator_: Any = aten.add.Tensor) -> Pair:
    im: Any = b[1] if operator_ is aten.add.Tensor else call(aten.neg.default, b[1])
    if a[1] is not None:
        im = a[1] if b[1] is None else call(operator_, a[1], b[1])
    return call(operator_, a[0], b[0]), im


def _difference(call: _Parts, a: Pair, b: Pair) -> Pair:
    return _sum(call, a, b, aten.sub.Tensor)


def _times(call: _Parts, a: Pair, b: Pair) -> Pair:
    def times(x: Any, y: Any) -> fx.Node:
        return call(aten.mul.Tensor, *((x, y) if isinstance(x, fx.Node) else (y, x)))

    (re, im), (re2, im2) = a, b
    if im is None or im2 is None:
        return times(re, re2), times(re, im2) if im is None else times(im, re2)
    return (
        call(aten.sub.Tensor, times(re, re2), times(im, im2)),
        call(aten.add.Tensor, times(re, im2), times(im, re2)),
    )


def _magnitude(call: _Parts, re: fx.Node, im: fx.Node | None) -> fx.Node:
    if im is None:
        return call(aten.abs.default, re)
    squares = [call(aten.mul.Tensor, part, part) for part in (re, im)]
    return call(aten.sqrt.default, call(aten.add.Tensor, *squares))


def _zero(call: _Parts, re: fx.Node, im: fx.Node | None) -> fx.Node:
    return call(aten.mul.Tensor, re, 0.0) if im is None else im


_BACK: dict[Any, Callable[..., fx.Node]] = {
    aten.real.default: lambda call, re, im: re,
    aten.imag.default: _zero,
    aten.abs.default: _magnitude,
    aten.view_as_real.default: lambda call, re, im: call(aten.stack.default, [re, _zero(call, re, im)], -1),
}
_ARITHMETIC: dict[Any, Callable[..., Pair]] = {
    aten.add.Tensor: _sum, aten.sub.Tensor: _difference, aten.mul.Tensor: _times,
}  # fmt: skip
