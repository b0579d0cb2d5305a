"""Unary, binary and activation operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.backends.to_coreml.mil_values import Function, Unevaluated, per_channel


def log(x: Tensor, epsilon: Tensor) -> Tensor:
    return (x + epsilon).log()


def rsqrt(x: Tensor, epsilon: Tensor) -> Tensor:
    return (x + epsilon).rsqrt()


def inverse(x: Tensor, epsilon: Tensor) -> Tensor:
    return 1 / (x + epsilon)


def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x.clamp(alpha, beta)


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    return x.maximum(alpha)


def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.where(x >= 0, x, alpha * x).minimum(beta)


def thresholded_relu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= alpha, x, 0.0)


def leaky_relu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, per_channel(alpha, x.ndim) * x)


def elu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, alpha * x.minimum(torch.zeros(())).expm1())


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def linear_activation(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return alpha * x + beta


def scaled_tanh(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return alpha * (beta * x).tanh()


def sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def softplus(x: Tensor) -> Tensor:
    return x.logaddexp(torch.zeros(()))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return per_channel(alpha, x.ndim) * softplus(per_channel(beta, x.ndim) * x)


def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


def cast(x: Tensor, dtype: str) -> Tensor:
    """To the declared type of the result, which ``dtype`` names; towards zero from real numbers to whole ones."""
    if dtype not in ("fp16", "fp32", "int32", "bool", "int8", "uint8", "int16", "uint16"):
        raise Unevaluated("cast", f"to {dtype}")
    return x.bool() if dtype == "bool" else x


def unary(function: Function) -> Function:
    return lambda x: function(x)


def binary(function: Function) -> Function:
    return lambda x, y: function(x, y)


OPERATIONS: dict[str, Function] = {
    **{
        name: unary(getattr(torch, name))
        for name in (
            "abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "logical_not",
            "relu", "round", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
        )
    },
    "identity": unary(lambda x: x), "relu6": unary(F.relu6), "silu": unary(F.silu),
    "add": binary(torch.add), "sub": binary(torch.sub), "mul": binary(torch.mul), "real_div": binary(torch.true_divide),
    "floor_div": floor_div, "mod": binary(torch.remainder), "pow": binary(torch.pow),
    "maximum": binary(torch.maximum), "minimum": binary(torch.minimum),
    "equal": binary(torch.eq), "not_equal": binary(torch.ne),
    "less": binary(torch.lt), "less_equal": binary(torch.le),
    "greater": binary(torch.gt), "greater_equal": binary(torch.ge),
    "logical_and": binary(torch.logical_and), "logical_or": binary(torch.logical_or),
    "logical_xor": binary(torch.logical_xor),
    "log": log, "rsqrt": rsqrt, "inverse": inverse, "clip": clip, "threshold": threshold,
    "clamped_relu": clamped_relu, "thresholded_relu": thresholded_relu, "leaky_relu": leaky_relu, "prelu": prelu,
    "elu": elu, "gelu": gelu, "linear_activation": linear_activation, "scaled_tanh": scaled_tanh,
    "sigmoid_hard": sigmoid_hard, "softplus": softplus, "softplus_parametric": softplus_parametric,
    "softsign": softsign, "select": select, "cast": cast,
}  # fmt: skip
