"""What zeros gain on a device: speed by the rates and the bandwidth of its profile, an upper bound; and bytes."""

from __future__ import annotations

from collections.abc import Sequence

from planish.compiler.contracts import Situation
from planish.compiler.hardware import HardwareProfile, peak_gops
from planish.compiler.packing import stored_bytes
from planish.compiler.program import Program
from planish.compiler.roofline import estimate_latency
from planish.compiler.shapes import ensure_shapes
from planish.compiler.two_four import min_channels
from planish.passes.sparsity.layers import Layer, choose, find_layers
from planish.passes.sparsity.patterns import NOfM, Pattern

PAYS = 0.98
"""Share of the time that is left at most for a gain to be told from noise, as the judge has it."""
TWO_FOUR = NOfM(2, 4)


def judgement(situation: Situation) -> tuple[bool, str]:
    """Whether the plan should make wide layers 2:4, and why (not)."""
    profile = situation.profile
    if "2:4" not in profile.support.sparsity:
        smaller = "unstructured" in profile.support.sparsity
        files = "zeros only make files smaller there" if smaller else "its files store zeros as any number"
        return False, f"{profile.title} does not compute with 2:4 sparsity, and {files}."
    dtype = "int8" if situation.scheme is not None else "fp16"
    if peak_gops(profile, dtype) is None or peak_gops(profile, f"{dtype}_sparse") is None:
        return False, f"The profile of {profile.title} has no rates for {dtype} with and without 2:4 sparsity."
    ensure_shapes(situation.program)
    layers, _ = choose(find_layers(situation.program)[0], TWO_FOUR, (), 1)
    least = min_channels(profile)
    wide = [layer for layer in layers if min(layer.inputs, layer.outputs) >= least]
    if not wide:
        widest = max((min(layer.inputs, layer.outputs) for layer in layers), default=0)
        return False, f"2:4 kernels win from about {least} channels; the widest layer that could be 2:4 has {widest}."
    return _worth(situation, wide, dtype)


def _worth(situation: Situation, wide: Sequence[Layer], dtype: str) -> tuple[bool, str]:
    program, profile = situation.program, situation.profile
    products = {use.node for layer in wide for use in layer.uses}
    before, after = (
        estimate_latency(program, profile, dtype_of=lambda node: dtype, sparse=sparse).median_ms
        for sparse in ((), products)
    )
    told = (
        f"{len(wide)} layers of at least {min_channels(profile)} channels in 2:4 would take {before:.3g} -> "
        f"{after:.3g} ms ({before / after:.2f}x as fast) by the roofline in {dtype}"
    )
    if after / before >= PAYS:
        return False, f"{told}: no gain."
    if situation.budget.metric_drop is None:
        return False, f"{told}. It costs accuracy: give a metric and Budget(metric_drop=…), so that the loss is judged."
    return True, f"{told}."


def gained(program: Program, pattern: Pattern, profile: HardwareProfile) -> str:
    """What the zeros of ``program`` are good for on the device, and in planish's own archive."""
    if isinstance(pattern, NOfM) and pattern.is_two_four:
        said = "computes 2:4 where its runtime picks sparse kernels, and the file is as large as before"
    elif "unstructured" in profile.support.sparsity:
        said = "computes zeros as any number; its files can store them packed"
    else:
        said = "gains nothing from these zeros: they are stored and computed as any number"
    tensors = {id(tensor): tensor for tensor in program.graph_module.state_dict(keep_vars=True).values()}.values()
    dense, packed = (sum(map(size, tensors)) / 1e6 for size in (lambda tensor: tensor.nbytes, stored_bytes))
    return f"{profile.title} {said}. Program.save packs the tensors: {dense:.3g} -> {packed:.3g} MB."
