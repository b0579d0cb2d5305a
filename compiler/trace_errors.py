"""Why a model could not be traced, in words its author can act on."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch
from torch import nn

from planish.compiler.errors import UserError

_REMEDIES = (
    (
        r"data-dependent|GuardOnDataDependent|Could not guard|unbacked|boolean value of Tensor|nonzero",
        "The shape or the branch depends on the values of a tensor. Use torch.where, masking or torch.cond instead.",
    ),
    (
        r"\.numpy\(\)|numpy|\.item\(\)|\.tolist\(\)|FakeTensor.*data_ptr",
        "A tensor leaves PyTorch (numpy, item, tolist). Keep the computation in torch operations.",
    ),
    (
        r"Couldn't swap",
        "forward() changes the module itself. Move modules and parameters to their dtype and device before the call.",
    ),
    (
        r"Expected all tensors to be on the same device|device",
        "Put the model and the example inputs on the same device.",
    ),
    (
        r"shapes cannot be multiplied|size mismatch|Expected .* dimension|expected input|must match the size",
        "Check the shapes of example_inputs against what the model takes.",
    ),
    (
        r"missing .* required|unexpected keyword|positional argument",
        "Pass example_inputs in the form that forward() takes: a tensor, a tuple, or a dict of keywords.",
    ),
)
_LIBRARY = str(Path(torch.__file__).parent)


def explain(failure: BaseException, model: nn.Module) -> UserError:
    """A UserError that names the source line, the op where PyTorch tells it, and what to change."""
    text = str(failure)
    remedy = next(
        (words for pattern, words in _REMEDIES if re.search(pattern, text, re.IGNORECASE)),
        "Rewrite that line with tensor operations that torch.export supports.",
    )
    op = re.search(r"aten\.[a-z_0-9]+(\.[a-zA-Z_0-9]+)?", text)
    first = (text.strip().splitlines()[0] if text.strip() else type(failure).__name__).rstrip(".")[:300]
    what = f" (op {op.group(0)})" if op else ""
    return UserError(
        f"{type(model).__name__} cannot be traced at {_source_line(failure, text)}{what}: {first}. {remedy}"
    )


def _source_line(failure: BaseException, text: str) -> str:
    """The innermost line of the model's own code, from the traceback or the one that the message quotes."""
    frames = traceback.extract_tb(failure.__traceback__)
    own = [frame for frame in frames if _is_model_code(frame.filename)]
    quoted = [
        (path, int(line)) for path, line in re.findall(r'File "([^"]+)", line (\d+)', text) if _is_model_code(path)
    ]
    if own:
        return f"{own[-1].filename}:{own[-1].lineno} ({(own[-1].line or '').strip()})"
    if quoted:
        return f"{quoted[-1][0]}:{quoted[-1][1]}"
    return "an unknown line"


def _is_model_code(path: str) -> bool:
    here = str(Path(__file__).parent)
    return not path.startswith((_LIBRARY, here, "<", "torch/")) and "contextlib" not in path
