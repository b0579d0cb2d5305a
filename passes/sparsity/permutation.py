"""Channels in the order in which N:M keeps the most magnitude. Outputs stay as they are.

1. The units of a group of the coupling analysis are reordered in every tensor that they lie in: in the weights that
   make them, in those that read them, and in what scales them on the way.
2. Only where that is legal. The units of one atom of the analysis are alike: no op tells one from the other, or the
   atom would be frozen. Units that lie over several atoms, index by index (``orbits``), are not, and stay.
3. Channels that reach an output are put back there: one ``index_select``, and only if their order rose in worth.
4. Where the kept magnitude of all that read the units does not rise, they stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.compiler.coupling.groups import Group, Member, couple
from planish.compiler.coupling.inference import Rules
from planish.compiler.program import Program, get_attribute, set_tensor
from planish.passes.sparsity.assignment import best_order
from planish.passes.sparsity.layers import Layer, choose, find_layers
from planish.passes.sparsity.output_order import MARK, restored, unlocked
from planish.passes.sparsity.patterns import NOfM


@dataclass(frozen=True)
class Reader:
    """A layer whose sums run over the units of a group."""

    layer: Layer
    tensor: str
    starts: tuple[int, ...]
    """Input channels at which all units of the group follow one another, in order, on a boundary of N:M."""


@dataclass
class Reordered:
    """The share of the magnitude of a weight that the pattern keeps."""

    before: float
    after: float


def permute_channels(
    program: Program, pattern: NOfM, keep: Sequence[str], min_channels: int, seed: int, rules: Rules | None = None
) -> tuple[Program, dict[str, Reordered]]:
    """``program`` with its channels reordered, and what that gained, by the name of the weight.

    Weights whose inputs stay in order are not named; where all do, ``program`` itself comes back. ``rules`` are
    coupling rules of ops that planish has none for.
    """
    coupling = couple(unlocked(program, _layers(program, pattern, keep, min_channels), rules), rules)
    made = coupling.program.fork()
    layers = {
        str(use.weight.target): layer for layer in _layers(made, pattern, keep, min_channels) for use in layer.uses
    }
    found: dict[str, Reordered] = {}
    for group in coupling.groups:
        readers = [*_readers(group, layers, pattern)] if is_exchangeable(group) else []
        if readers:
            order = best_order(_values(made, group, readers), pattern, seed)
            _apply_if_better(made, readers, reordered(made, group, order), pattern, found)
    return (restored(made), found) if found else (program, {})


def _apply_if_better(
    program: Program, readers: Sequence[Reader], tensors: Mapping[str, Tensor], pattern: NOfM,
    found: dict[str, Reordered],
) -> None:  # fmt: skip
    gained = 0.0
    shares: dict[str, Reordered] = {}
    for reader in readers:
        magnitude = float(tensors[reader.tensor].detach().abs().sum(dtype=torch.float64)) or 1.0
        before = _kept(reader, get_attribute(program.graph_module, reader.tensor), pattern)
        after = _kept(reader, tensors[reader.tensor], pattern)
        shares[reader.tensor] = Reordered(before / magnitude, after / magnitude)
        gained += after - before
    if gained <= 0:
        return
    for name, tensor in tensors.items():
        set_tensor(program.graph_module, name, tensor)
    for name, share in shares.items():
        found.setdefault(name, share).after = share.after


def _layers(program: Program, pattern: NOfM, keep: Sequence[str], min_channels: int) -> list[Layer]:
    chosen = choose(find_layers(program)[0], pattern, keep, min_channels)[0]
    return [layer for layer in chosen if MARK not in layer.node.meta]


def is_exchangeable(group: Group) -> bool:
    """Whether any order of the units is as good as another: they are the indices of one atom."""
    return len(group.units) == 1 and all((cells == range(group.width)).all() for cells in group.units.values())


def _readers(group: Group, layers: Mapping[str, Layer], pattern: NOfM) -> Iterator[Reader]:
    for member in group.members:
        layer = layers.get(member.tensor)
        if layer is None or member.axis != layer.input_axis or layer.kind == "transposed convolution":
            continue
        starts = tuple(_starts(member, group.width, pattern))
        if starts:
            yield Reader(layer, member.tensor, starts)


def _starts(member: Member, width: int, pattern: NOfM) -> Iterator[int]:
    """Where the units follow one another: once for a plain axis, once a head for the width of heads."""
    if width % pattern.group:
        return
    for start in (member.units == 0).nonzero().flatten().tolist():
        run = member.units[start : start + width]
        if start % pattern.group == 0 and torch.equal(run, torch.arange(width)[: len(run)]) and len(run) == width:
            yield start


def _values(program: Program, group: Group, readers: Sequence[Reader]) -> Tensor:
    """[rows, units]: all weights that multiply the units."""
    found = []
    for reader in readers:
        weight = get_attribute(program.graph_module, reader.tensor).detach().float()
        channels = reader.layer.matrix(weight).unflatten(2, (-1, reader.layer.inputs)).flatten(0, 2)
        found += [channels[:, start : start + group.width] for start in reader.starts]
    return torch.cat(found)


def _kept(reader: Reader, weight: Tensor, pattern: NOfM) -> float:
    """The sum of the absolute values that N:M keeps of ``weight``."""
    matrix = reader.layer.matrix(weight.detach()).abs().double()
    return float(matrix.unflatten(2, (-1, pattern.group)).topk(pattern.kept, dim=3).values.sum())


def reordered(program: Program, group: Group, order: Tensor) -> dict[str, Tensor]:
    """All tensors of the group by name, with the units in ``order``; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(member.tensor for member in group.members):
        old = get_attribute(program.graph_module, name)
        if id(old) not in made:
            new = old.detach()
            for member in group.members:
                if member.tensor == name:
                    new = new.index_select(member.axis, _moved(member.units, order))
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        found[name] = made[id(old)]
    return found


def _moved(units: Tensor, order: Tensor) -> Tensor:
    """For each index of an axis the one whose values come there: unit by unit, its indices in their order."""
    places = (units >= 0).nonzero().flatten()
    by_unit = places[units[places].argsort(stable=True)].reshape(len(order), -1)
    moved = torch.arange(len(units))
    moved[by_unit] = by_unit[order]
    return moved
