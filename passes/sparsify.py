"""Zeros where a kernel or a file format can use them: 2:4, N:M, blocks, single values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import planish.hwprofiles
from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.errors import MissingDependency, UserError, closest
from planish.compiler.hardware import HardwareProfile, load_profiles
from planish.compiler.program import Program, source_module
from planish.compiler.shapes import ensure_shapes
from planish.compiler.two_four import min_channels
from planish.passes.sparsity.criteria import CRITERIA, kept_share
from planish.passes.sparsity.gains import gained, judgement
from planish.passes.sparsity.layers import Layer, Refused, choose, find_layers, weight_name
from planish.passes.sparsity.patterns import NOfM, Pattern, pattern_named
from planish.passes.sparsity.permutation import Reordered, permute_channels
from planish.passes.sparsity.picture import draw_masks
from planish.passes.sparsity.ratios import SCOPES, ratios, same_for_all
from planish.passes.sparsity.recovery import divided, mark_sparse, train_sparse, train_while_thinning
from planish.passes.sparsity.sensitivity import sensitivities
from planish.passes.sparsity.walk import prune_by_inputs, prune_by_weights, weight_of
from planish.passes.training.settings import Training


@dataclass(frozen=True)
class Sparsify(Pass):
    """Sets weights of convolutions and matrix products to zero, in a pattern.

    ``pattern``: ``2:4`` (of four neighbouring input channels two are left: what sparse tensor cores compute), another
    ``N:M``, ``unstructured``, blocks as ``4x1`` (outputs by inputs), or ``block``: those that the device's kernels
    skip.
    ``ratio``: share of zeros, above 0 and below 1, for ``unstructured`` and blocks.
    ``scope``: ``global``, one threshold for the model (LAMP, arXiv:2010.07611), or ``layer``, the same share in each.
    ``criterion``: what stays: ``magnitude``; ``wanda`` (arXiv:2306.11695) or ``sparsegpt`` (arXiv:2301.00774, which
    updates what stays), from calibration data.
    ``samples``: rows of calibration data that are read at most; their activations are held at once.
    ``keep``: source modules that stay dense, by name or pattern (``"head"``, ``"layer1.*"``).
    ``min_channels``: layers with fewer input or output channels stay dense.
    ``permute``: reorder channels first so that N:M keeps more magnitude; outputs stay the same. None: for
    ``magnitude`` only. The others do not go by magnitude: the new order cost Wanda 0.15 and SparseGPT 0.06 points on a
    sentence encoder, and gained SparseGPT 0.34 on a ResNet (docs/pass-sparsify.md).
    ``training``: train what is left, the zeros stay; None: one shot. Without it a model loses accuracy.
    ``ramp``: share of that training in which the zeros become more (arXiv:1710.01878), instead of all at once.
    ``picture``: a PNG to draw, with each layer's mask, the magnitude that it keeps, and what it costs alone (for which
    the model runs on eight rows, once a layer).
    """

    name: ClassVar[str] = "sparsify"
    stage: ClassVar[Stage] = Stage.SPARSITY

    pattern: str = "2:4"
    ratio: float | None = None
    scope: str = "global"
    criterion: str = "magnitude"
    samples: int = 128
    keep: tuple[str, ...] = ()
    min_channels: int = 1
    permute: bool | None = None
    training: Training | None = None
    ramp: float = 0.0
    picture: str | None = None

    def __post_init__(self) -> None:
        self._check_ratio(pattern_named(self.pattern))
        for name, choices in (("criterion", CRITERIA), ("scope", SCOPES)):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"{self.name} has no {name} {value!r}{closest(str(value), choices)}")
        if isinstance(self.keep, str):  # read letter by letter otherwise
            raise UserError(f"Give keep a tuple of module names: ({self.keep!r},).")
        for name in ("samples", "min_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"Give Sparsify({name}=…) a whole number of at least 1, not {value!r}.")
        if not isinstance(self.ramp, (int, float)) or not 0 <= self.ramp < 1:
            raise UserError(f"Give Sparsify(ramp=…) a number of at least 0 and below 1, not {self.ramp!r}.")
        if self.ramp and self.training is None:
            raise UserError("Give Sparsify(ramp=…) a training=Training(…) to run in.")

    def _check_ratio(self, pattern: Pattern) -> None:
        if isinstance(pattern, NOfM):
            if self.ratio is not None and self.ratio != 1 - pattern.kept / pattern.group:
                raise UserError(f"Leave out ratio={self.ratio!r}: {pattern} is a ratio already.")
        elif not isinstance(self.ratio, (int, float)) or not 0 < self.ratio < 1:
            raise UserError(f'Give Sparsify(pattern="{self.pattern}", ratio=…) a number above 0 and below 1, '
                            f"not {self.ratio!r}.")  # fmt: skip

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        pays, reason = judgement(situation)
        return Proposal(cls(min_channels=min_channels(situation.profile)) if pays else None, reason)

    def run(self, program: Program, context: Context) -> Program:
        pattern = pattern_named(self.pattern, context.profile)
        demand_kernel(pattern, context.profile)
        self._demand_data(context)
        program = program.fork().eval()
        ensure_shapes(program)
        self._check_names(program)
        chosen = self._chosen(program, pattern, context)
        wished = self.criterion == "magnitude" if self.permute is None else self.permute
        if wished and isinstance(pattern, NOfM):
            program, kept = permute_channels(
                program, pattern, self.keep, self.min_channels, context.seed, context.coupling_rules
            )
            chosen = self._layers(program, pattern)[0]
            _tell_reordered(chosen, kept, context)
        made = self._sparse(program, chosen, pattern, context)
        context.notes.append(gained(made, pattern, context.profile))
        return made

    def _sparse(self, program: Program, chosen: list[Layer], pattern: Pattern, context: Context) -> Program:
        shares = self._shares(program, chosen, pattern)
        dense = program.fork()
        made = self._trained(program, chosen, shares, pattern, context)
        if self.picture is not None:
            context.notes.append(_drawn(made, dense, Path(self.picture), pattern, shares, context))
        return made

    def _trained(
        self, program: Program, chosen: list[Layer], shares: Mapping[Layer, float], pattern: Pattern, context: Context
    ) -> Program:
        if self.training is None:
            return self._pruned(program, chosen, shares, pattern, context)
        rest = self.training
        if self.ramp:
            thin, rest = divided(self.training, self.ramp)
            program = train_while_thinning(program, chosen, shares, pattern, context, thin)
            by_weight = {weight_name(layer): share for layer, share in shares.items()}
            chosen = self._layers(program, pattern)[0]
            shares = {layer: by_weight[weight_name(layer)] for layer in chosen}
        program = self._pruned(program, chosen, shares, pattern, context)
        return train_sparse(program, context, rest)

    def _demand_data(self, context: Context) -> None:
        if self.picture is not None and not Path(self.picture).parent.is_dir():  # training would be for nothing
            raise UserError(f"Make the folder of Sparsify(picture={self.picture!r}) first: it is not there.")
        if CRITERIA[self.criterion].observe is not None and context.calibration.origin != "given":
            raise UserError(
                f'Pass calibration data for Sparsify(criterion="{self.criterion}"), which looks at activations; '
                'criterion="magnitude" needs none.'
            )
        if self.training is not None:
            from planish.passes.training.recover import training_data

            training_data(context)

    def _layers(self, program: Program, pattern: Pattern) -> tuple[list[Layer], list[Refused]]:
        layers, refused = find_layers(program)
        chosen, left = choose(layers, pattern, self.keep, self.min_channels)
        return chosen, [*refused, *left]

    def _chosen(self, program: Program, pattern: Pattern, context: Context) -> list[Layer]:
        chosen, left = self._layers(program, pattern)
        for node, reason in left:
            context.decide(node, "dense", reason)
        if not chosen:
            raise UserError(f"Leave {self.name} out: no layer of this model can be {pattern}{_why(left)}.")
        return chosen

    def _pruned(
        self, program: Program, layers: list[Layer], shares: Mapping[Layer, float], pattern: Pattern, context: Context
    ) -> Program:
        criterion = CRITERIA[self.criterion]

        def prune(layer: Layer, weight: Tensor, seen: Tensor | None) -> Tensor:
            matrix = layer.matrix(weight).to(torch.promote_types(weight.dtype, torch.float32))
            pruned, keep = criterion.prune(matrix, seen, pattern, shares[layer])
            for use in layer.uses:
                context.decide(use.node, str(pattern), _told(matrix, keep))
            return layer.weight(pruned).to(weight.dtype)

        with torch.no_grad():
            if criterion.observe is None:
                prune_by_weights(program, layers, prune)
            else:
                batches = context.calibration.samples(self.samples, at_once=8)
                prune_by_inputs(program, layers, criterion, batches, prune)
        mark_sparse(layers)
        return program

    def _shares(self, program: Program, layers: list[Layer], pattern: Pattern) -> Mapping[Layer, float]:
        if isinstance(pattern, NOfM):
            return same_for_all(layers, 1 - pattern.kept / pattern.group)
        assert self.ratio is not None
        if self.scope == "layer":
            return same_for_all(layers, self.ratio)
        return ratios({layer: weight_of(program, layer) for layer in layers}, pattern, self.ratio)

    def _check_names(self, program: Program) -> None:
        modules = {source_module(node) for node in program.calls()}
        known = {".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 2)}
        for name in self.keep:
            if not set(name) & set("*?[") and name not in known:
                raise UserError(f"keep names {name!r}, which is no module of the model{closest(name, known)}")


def demand_kernel(pattern: Pattern, profile: HardwareProfile) -> None:
    """Raise UserError if ``pattern`` is one that hardware computes with, and the device does not."""
    if not isinstance(pattern, NOfM) or not pattern.is_two_four or "2:4" in profile.support.sparsity:
        return
    folder = Path(next(iter(planish.hwprofiles.__path__)))
    able = [each.name for each in load_profiles(folder) if "2:4" in each.support.sparsity]
    raise UserError(
        f'Choose pattern="unstructured", or a target that computes with 2:4 sparsity ({", ".join(able)}): '
        f"{profile.title} does not."
    )


def _drawn(
    sparse: Program, dense: Program, path: Path, pattern: Pattern, shares: Mapping[Layer, float], context: Context
) -> str:
    """Draw masks, kept magnitude and sensitivities, and say where, and which layers cost most."""
    alone = sensitivities(dense, pattern, shares, [*context.calibration.samples(8, at_once=8)])
    worst = ", ".join(f"{each.layer} {each.snr_db:.1f} dB" for each in alone[:3] if each.snr_db is not None)
    try:
        told = f"Masks, kept magnitude and sensitivity of each layer are in {draw_masks(sparse, path, dense, alone)}."
    except MissingDependency as failure:
        told = f"No picture was drawn: {failure}"
    return f"{told} Signal to noise of the outputs where one layer alone is sparse, the worst: {worst or 'none'}."


def _told(matrix: Tensor, keep: Tensor) -> str:
    zeros = 1 - float(keep.float().mean())
    return f"{zeros:.0%} zeros; {kept_share(matrix, keep):.1%} of the magnitude stays"


def _tell_reordered(layers: list[Layer], kept: Mapping[str, Reordered], context: Context) -> None:
    for layer in layers:
        if (found := kept.get(weight_name(layer))) is not None:
            said = f"its pattern keeps {found.after:.1%} of the magnitude, {found.before:.1%} in the old order"
            context.decide(layer.node, "channels reordered", said)


def _why(reasons: list[Refused]) -> str:
    listed = [f"{source_module(node) or node.name}: {reason}" for node, reason in reasons]
    if not listed:
        return ", it has no convolution or matrix product with weights"
    return f" ({listed[0]}" + (f", and {len(listed) - 1} more)" if len(listed) > 1 else ")")
