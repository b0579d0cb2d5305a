"""Sums over the units of a group: everything a unit owns, in all tensors that the group lies in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.compiler.coupling.groups import Coupling, Group, Member
from planish.compiler.program import get_attribute


@dataclass(frozen=True)
class Weights:
    """The learned tensors of a Coupling; a tied one counts once, under the first of its names."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, coupling: Coupling) -> Weights:
        names = {member.tensor: None for group in coupling.groups for member in group.members if member.learned}
        tensors = {name: get_attribute(coupling.program.graph_module, name) for name in names}
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}
        return cls({name: tensor.detach() for name, tensor in tensors.items() if first[id(tensor)] == name})

    def members(self, group: Group) -> Iterator[Member]:
        return (member for member in group.members if member.tensor in self.tensors)

    def sums(self, group: Group, of: Callable[[Tensor], Tensor]) -> Tensor:
        """For each unit the sum of what ``of`` makes of all its weights, element by element. float64 [width]."""
        return self.sums_of({member.tensor: of(self.tensors[member.tensor]) for member in self.members(group)}, group)

    def sums_of(self, values: Mapping[str, Tensor], group: Group) -> Tensor:
        """The same of ``values``, which have the names and shapes of the weights."""
        total = torch.zeros(group.width, dtype=torch.float64)
        for member in self.members(group):
            tensor = values[member.tensor]
            others = [axis for axis in range(tensor.ndim) if axis != member.axis]
            along = tensor.sum(others) if others else tensor
            belongs = member.units >= 0
            total.index_add_(0, member.units[belongs], along.to("cpu", torch.float64)[belongs])
        return total
