"""Program -> package, step by step: convert, compress, save, and evaluate what was saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coremltools
import torch
from torch import Tensor

from planish.backends.to_coreml.compress import SPARSE_SHARE, compressed, demand, sparse
from planish.backends.to_coreml.convert import Converted, Options, convert, quiet
from planish.backends.to_coreml.converters import LOCK
from planish.backends.to_coreml.flat import Flat
from planish.backends.to_coreml.interface import describe_images
from planish.backends.to_coreml.mil_values import Unevaluated
from planish.backends.to_coreml.neural_engine import expected_share
from planish.backends.to_coreml.package import finish
from planish.backends.to_coreml.runner import PackageRunner
from planish.backends.to_coreml.stored import with_stored_weights
from planish.backends.to_coreml.targets import deployment_target
from planish.compiler.artifact import planish_version
from planish.compiler.contracts import Lowered
from planish.compiler.cost import totals
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.verify import is_quantized

if TYPE_CHECKING:
    from planish.backends.to_coreml.backend import CoreMLBackend


def lower(backend: CoreMLBackend, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
    """Write the package into ``folder``. One at a time: coremltools keeps what it builds in globals."""
    from planish.backends.to_coreml.backend import FILE, NOT_APPLE

    if backend.weights is not None:
        demand(backend.weights, profile)
    target = deployment_target(profile)
    alone = bool(backend.images or backend.labels)
    traced = _one_row(program) if alone else program
    options = Options(backend.precision, backend.largest_batch, backend.images, backend.labels)
    with LOCK:
        converted = convert(traced, target, options)
        notes = [_way(converted), *_save(converted.model, backend, profile, program, folder / FILE)]
    runtime = _runtime(backend, converted.flat, alone)
    finish(folder / FILE, _metadata(backend, program, profile), lambda spec: describe_images(spec, backend.images))
    unproven, stored = _unproven(folder / FILE, program, runtime), None
    if backend.weights is not None and unproven is None:
        try:
            stored, worst = with_stored_weights(program, folder / FILE)
            notes.append(f"Weights as {backend.weights}: at least {worst:.1f} dB, by tensor. The proof is of the rest.")
        except Unevaluated as unknown:
            unproven = f"not verified: {unknown}"
    notes += [expected_share(traced, backend.precision)] + ([] if unproven else [NOT_APPLE])
    return Lowered(
        files=tuple(sorted(str(each.relative_to(folder)) for each in (folder / FILE).rglob("*") if each.is_file())),
        notes=tuple(notes),
        versions={"coremltools": coremltools.__version__, "target": target.name},
        runtime=runtime,
        precision=backend.precision,
        cannot_run=unproven,
        stored=stored,
    )


def _one_row(program: Program) -> Program:
    """``program`` with a batch of one: an app gives one image, and gets one label."""
    inputs: Inputs = next(program.example_inputs.split(1)) if program.dynamic_axes else program.example_inputs
    if any(isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] != 1 for leaf in inputs.leaves()):
        raise UserError("Trace the model with a batch of 1, or a dynamic one: images and labels come one at a time.")
    return Program(program.fork().graph_module, inputs, {})


def _way(converted: Converted) -> str:
    if not converted.decomposed:
        return "coremltools converted every operator as it is."
    return f"Taken apart, because coremltools does not convert them as they are: {', '.join(converted.decomposed)}."


def _save(model: Any, backend: CoreMLBackend, profile: HardwareProfile, program: Program, path: Path) -> list[str]:
    """Compress and save. Returns what the Report should tell."""
    models, notes = [model], []
    try:
        if zeros(program) >= SPARSE_SHARE:
            thinned = sparse(models[-1], profile, is_quantized(program))
            if thinned is None:
                notes.append("The zeros of the weights are stored as such: the system is too old for sparse weights.")
            else:
                models.append(thinned)
        if backend.weights is not None:
            models.append(compressed(models[-1], backend.weights))
        with quiet():
            models[-1].save(str(path))
    finally:
        for model in models:  # coremltools keeps each until the interpreter ends
            shutil.rmtree(model.package_path, ignore_errors=True)
    return notes


def zeros(program: Program) -> float:
    """The share of zeros among the values of matrices and kernels."""
    weights = {str(node.target): program.tensor(node) for node in program.graph.nodes if node.op == "get_attr"}
    large = [weight.detach() for weight in weights.values() if weight is not None and weight.ndim > 1]
    total = sum(weight.numel() for weight in large)
    return sum(int((weight == 0).sum()) for weight in large) / total if total else 0.0


def _metadata(backend: CoreMLBackend, program: Program, profile: HardwareProfile) -> dict[str, str]:
    """The Report's figures that follow from Program and options alone: the same Program gives the same bytes.

    What depends on the machine that measures, latency and SNR, stays in the Report.
    """
    cost, sparsity = totals(program), zeros(program)
    form = "int8, with activations" if is_quantized(program) else backend.weights or backend.precision
    told = (
        f"Compiled by planish for {profile.name}: computes in {backend.precision}, weights in {form}, "
        f"{cost.macs / 1e6:.4g} million MACs a row, {cost.parameters / 1e6:.4g} million parameters."
    )
    own = {
        "description": told,
        "planish.version": planish_version(),
        "planish.target": profile.name,
        "planish.precision": backend.precision,
        "planish.weights": form,
        "planish.macs": str(cost.macs),
        "planish.parameters": str(cost.parameters),
        "planish.zeros": f"{sparsity:.3f}",
    }
    return {**own, **backend.metadata}


def _runtime(backend: CoreMLBackend, flat: Flat, alone: bool) -> dict[str, Any]:
    """What a Runner has to know beyond the package."""
    types = [str(dtype).removeprefix("torch.") for dtype in flat.output_types]
    return {
        "inputs": flat.inputs,
        "outputs": [[*pair] for pair in zip(flat.outputs, types, strict=True)],
        "images": {name: image.to_json() for name, image in backend.images.items()},
        "labels": [*backend.labels],
        "one_row": alone,
    }


def _unproven(path: Path, program: Program, runtime: dict[str, Any]) -> str | None:
    """Why the package cannot be evaluated here, found by evaluating one row; None if it can."""
    inputs = program.example_inputs
    row = next(inputs.split(1)) if program.dynamic_axes else inputs
    try:
        with torch.no_grad():
            PackageRunner(path, runtime)(row.leaves())
    except Unevaluated as unknown:
        return f"not verified: {unknown}"
    return None
