"""The inputs that a model is traced with: given, declared by the model, or guessed from its first layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from planish.compiler.calibration import InputForm, first_inputs, seeded
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs, check_tensors
from planish.compiler.program import Program
from planish.compiler.trace import check_model

ROWS = 2  # a batch of one is taken for a constant when a model is traced
LENGTHS = (1024, 16000, 512, 256, 128, 64, 32, 16)
SIDES = (224, 512, 384, 299, 256, 192, 160, 128, 96, 64, 48, 32, 28, 24, 16, 8)
VOLUMES = (
    (16, 64, 64),
    (16, 112, 112),
    (8, 32, 32),
    (32, 32, 32),
    (64, 64, 64),
    (16, 16, 16),
)
TOKENS = 16

_PASS = "Pass example inputs: compile(model, target, example_inputs=…), a tensor, a tuple or a dict of tensors"


def find_example_inputs(
    model: nn.Module | ExportedProgram | Program, given: Any = None, calibration: Iterable[Any] | None = None
) -> tuple[Inputs, str]:
    """Example inputs for ``model``, and where they come from in a sentence for the Report.

    In this order: ``given``; the first batch of ``calibration`` (an iterator would lose that batch, so it
    raises TypeError); those of an ExportedProgram or a Program; ``example_input_array`` (Lightning);
    ``dummy_inputs`` (transformers); ``pretrained_cfg["input_size"]`` (timm); what the first layer takes. The
    last two draw values from a normal distribution; the last is a guess, and tried out on the model.

    Raises UserError that says what to pass if the model takes none of these.
    """
    check_model(model)
    if given is not None:
        return check_tensors(Inputs.of(given), "example_inputs"), "The example inputs were given."
    if calibration is not None:
        return _from_calibration(model, calibration), "The example inputs are the first calibration batch."
    if isinstance(model, Program):
        return model.example_inputs, "The example inputs are those of the Program."
    if isinstance(model, ExportedProgram):
        return _of_exported(model), "The example inputs are those of the ExportedProgram."
    return next(_declared(model), None) or _guess(model)


def _from_calibration(model: nn.Module | ExportedProgram | Program, data: Iterable[Any]) -> Inputs:
    if iter(data) is data:
        raise TypeError("keep an iterator's batches in a list first: reading one here would lose it")
    if isinstance(model, nn.Module):
        form = InputForm.of_module(model)
    elif isinstance(model, Program):
        form = InputForm.of_program(model)
    else:
        form = InputForm.of_module(model.module(check_guards=False))
    return first_inputs(data, form)


def _of_exported(model: ExportedProgram) -> Inputs:
    if model.example_inputs is None:
        raise UserError(f"{_PASS}: the ExportedProgram has lost its own.")
    return Inputs(*model.example_inputs)


# ---------------------------------------------------------------------- declared by the model


def _declared(model: nn.Module) -> Iterator[tuple[Inputs, str]]:
    array = getattr(model, "example_input_array", None)
    if array is not None:
        yield _suited(Inputs.of(array), model), "The example inputs are the model's example_input_array."
    dummy = getattr(model, "dummy_inputs", None)
    # transformers declares token ids for models of images and sound too: those are tried out first
    if isinstance(dummy, dict) and dummy and _failure(model, _suited(Inputs.of(dummy), model)) is None:
        yield _suited(Inputs.of(dummy), model), "The example inputs are the model's dummy_inputs."
    for name in ("pretrained_cfg", "default_cfg"):
        size = _input_size(getattr(model, name, None))
        if size is not None:
            inputs = Inputs((_drawn((ROWS, *size), model),))
            if _failure(model, inputs) is None:
                yield inputs, f"The example inputs have the size {list(size)} of the model's {name}."


def _input_size(config: Any) -> tuple[int, ...] | None:
    size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    return tuple(size) if isinstance(size, (tuple, list)) and all(isinstance(side, int) for side in size) else None


def _suited(inputs: Inputs, model: nn.Module) -> Inputs:
    """``inputs`` on the device of the model, and floats in its dtype."""
    like = _parameter(model)

    def suit(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

    return inputs.map(suit)


def _parameter(module: nn.Module) -> Tensor:
    """The first floating-point parameter or buffer, which shows device and dtype."""
    tensors = [*module.parameters(), *module.buffers()]
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


# ---------------------------------------------------------------------- guessed from the first layer


def _guess(model: nn.Module) -> tuple[Inputs, str]:
    _only_input(model)
    failure, tried = "", ""
    for layer, candidate in _candidates(model):
        failed = _failure(model, Inputs((candidate,)))
        if failed is None:
            shape = f"{str(candidate.dtype).removeprefix('torch.')} {list(candidate.shape)}"
            origin = f"The example inputs are a guess ({layer} first: {shape}); pass others if it is wrong."
            return Inputs((candidate,)), origin
        failure, tried = failed, f"{layer} {list(candidate.shape)}"
    if not tried:
        raise UserError(f"{_PASS}; {type(model).__name__} has no layer that tells what it takes.")
    raise UserError(f"{_PASS}; no size that was tried fits {type(model).__name__} (last for its {tried}: {failure}).")


def _only_input(model: nn.Module) -> None:
    """Raise UserError unless a call with one argument may do."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in named if p.default is p.empty]
    if len(required) > 1:
        raise UserError(f"{_PASS}; {type(model).__name__} takes several: {', '.join(required)}.")


def _candidates(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Inputs for the first layer of each kind, in the order in which the model holds them."""
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        return  # a trial would give the lazy layers their sizes
    seen: set[type] = set()
    for module in model.modules():
        kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
        if kind is None or kind in seen:
            continue
        seen.add(kind)
        for shape in _shapes(module):
            if isinstance(module, nn.Embedding):
                ids = torch.randint(module.num_embeddings, shape, generator=seeded(0))
                yield type(module).__name__, ids.to(module.weight.device)
            else:
                yield type(module).__name__, _drawn(shape, module)


_KINDS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.RNNBase)


def _shapes(layer: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(layer, nn.Embedding):
        yield ROWS, TOKENS
    elif isinstance(layer, nn.Linear):
        yield ROWS, layer.in_features
        yield ROWS, TOKENS, layer.in_features
    elif isinstance(layer, nn.RNNBase):
        yield ROWS, TOKENS, layer.input_size
    else:
        sizes: dict[type, Any] = {nn.Conv1d: LENGTHS, nn.Conv2d: SIDES, nn.Conv3d: VOLUMES}
        for size in next(sizes[kind] for kind in sizes if isinstance(layer, kind)):
            sides = (size,) if isinstance(layer, nn.Conv1d) else (size, size) if isinstance(size, int) else size
            yield (ROWS, layer.in_channels, *sides)


def _drawn(shape: tuple[int, ...], module: nn.Module) -> Tensor:
    like = _parameter(module)
    return torch.randn(shape, generator=seeded(0)).to(like.device, like.dtype)


def _failure(model: nn.Module, inputs: Inputs) -> str | None:
    """Why ``model`` does not take ``inputs``, in a line; None if it runs on them. It stays as it was."""
    modes = {module: module.training for module in model.modules()}
    state = torch.random.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            inputs.call(model)
    except Exception as failure:  # whatever the model's own code raises on inputs that it does not take
        return (str(failure).strip().splitlines() or [type(failure).__name__])[0][:200]
    finally:
        torch.random.set_rng_state(state)
        for module, mode in modes.items():
            module.training = mode
    return None
