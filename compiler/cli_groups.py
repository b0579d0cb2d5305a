"""The command that shows what pruning can remove: groups of channels that go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from planish.compiler.cli_command import Answer
from planish.compiler.cli_compile import Inputs, Model

if TYPE_CHECKING:
    from rich.console import RenderableType

    from planish.compiler.coupling.groups import Coupling, Group
    from planish.compiler.hardware import HardwareProfile

MODULES_SHOWN = 8
LONG = 12
"""Characters of a common beginning of names that are worth leaving out."""


def groups(
    model: Model,
    inputs: Inputs = None,
    target: Annotated[
        str | None, Option("--target", "-t", help="Show which widths run fast there: a name, or path of a .toml.")
    ] = None,
) -> Answer:
    """Show which channels of MODEL go together when they are pruned, and what cannot be cut."""
    from planish.compiler import cli_models
    from planish.compiler.coupling.groups import couple
    from planish.compiler.example_inputs import find_example_inputs
    from planish.compiler.plugins import registry
    from planish.compiler.targets import find_profile
    from planish.compiler.trace import trace_with_notes

    profile = find_profile(target) if target is not None else None
    loaded = cli_models.load_model(model)
    example, _ = find_example_inputs(loaded, cli_models.load_inputs(inputs) if inputs else None)
    coupling = couple(trace_with_notes(loaded, example).program, registry().coupling_rules)
    document = _document(coupling, profile)
    return Answer(document, _shown(document))


def _document(coupling: Coupling, profile: HardwareProfile | None) -> dict[str, Any]:
    from planish.compiler.alignment import Alignment, asked_alignment, find_axes
    from planish.compiler.program import op_name, source_module
    from planish.compiler.targets import find_backend
    from planish.compiler.uncut import find_uncut
    from planish.compiler.widths import Widths

    widths = Widths(coupling)
    total = widths.macs({})
    multiple = asked_alignment(profile, find_backend(profile, None)[0].scheme(profile)) if profile else 1
    alignment = Alignment(find_axes(widths), multiple)
    governed = {node for group in coupling.groups for node in widths.governed(group)}
    return {
        "target": profile.name if profile else None,
        "multiple": multiple,
        "macs": total,
        "macs_that_depend_on_groups": widths.macs({}, governed),
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "macs": widths.macs({}, widths.governed(group)),
                "widths_that_run_fast": _choices(group, alignment),
                "members": [
                    {"tensor": member.tensor, "axis": member.axis, "module": member.module} for member in group.members
                ],
            }
            for group in coupling.groups
        ],
        "not_cut": [{"why": uncut.why, "op": uncut.op, "tensors": [*uncut.tensors]} for uncut in find_uncut(coupling)],
        "not_understood": [
            {"op": op_name(node), "module": source_module(node), "why": why}
            for node, why in coupling.not_understood.items()
        ],
    }


def _choices(group: Group, alignment: Any) -> list[int]:
    import numpy as np

    from planish.compiler.alignment import curves_of

    choices: list[int] = alignment.choices(group, curves_of(group, np.arange(group.width)), {}).tolist()
    return choices


# ---------------------------------------------------------------------- the table


def _shown(document: dict[str, Any]) -> RenderableType:
    from rich.console import Group as Lines
    from rich.text import Text

    if not document["groups"]:
        return Lines(Text("No channel of this model can be pruned.", style="yellow"), Text(), *_not_cut(document))
    return Lines(_groups_table(document), Text(), Text(_summary(document)), Text(), *_not_cut(document))


def _summary(document: dict[str, Any]) -> str:
    macs = document["macs"] / 1e6
    share = document["macs_that_depend_on_groups"] / document["macs"] if macs else 0.0
    aligned = f" {document['target']} runs multiples of {document['multiple']} fast." if document["target"] else ""
    return (
        f"{len(document['groups'])} groups; {share:.1%} of {macs:,.0f} M MACs depend on them. A layer counts in the "
        f"groups that it reads and in those that it writes.{aligned}{_told_beginning(document)}"
    )


def _told_beginning(document: dict[str, Any]) -> str:
    beginning = _beginning([group["name"] for group in document["groups"]])
    return f" Names of groups begin with {beginning[:-1]}." if beginning else ""


def _groups_table(document: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    from planish.compiler.cli_tables import new_table

    aligned = ["cut to"] if document["target"] else []
    shown = new_table("group", "width", "MACs", *aligned, "modules that it lies in", right=("width", "MACs"))
    beginning = _beginning([group["name"] for group in document["groups"]])
    for group in document["groups"]:
        share = group["macs"] / document["macs"] if document["macs"] else 0.0
        cells = [_without(beginning, group["name"]), str(group["width"]), f"{share:.1%}"]
        cells += [_ladder(group["widths_that_run_fast"])] if document["target"] else []
        modules = [*dict.fromkeys(member["module"] for member in group["members"])]
        shown.add_row(*(Text(cell) for cell in cells), Text(_abbreviated(modules)))
    return shown


def _ladder(choices: list[int]) -> str:
    """``16, 32 … 240``: what is left of the whole width by a cut."""
    narrower = [str(choice) for choice in choices[:-1]]
    if not narrower:
        return "stays"
    return ", ".join(narrower) if len(narrower) < 4 else f"{narrower[0]}, {narrower[1]} … {narrower[-1]}"


def _abbreviated(modules: list[str]) -> str:
    """``layer1.0.conv1, .bn1, .conv2``: a dot stands for the folder of the module before."""
    told, folder, beginning = [], None, _beginning(modules)
    for module in modules[:MODULES_SHOWN]:
        parent, _, last = module.rpartition(".")
        told.append(f".{last}" if parent and parent == folder else _without(beginning, module) or "the model itself")
        folder = parent
    rest = len(modules) - MODULES_SHOWN
    return ", ".join(told) + (f" and {rest} more" if rest > 0 else "")


def _beginning(names: list[str]) -> str:
    """The modules that all ``names`` begin with, the last dot included; "" where that is short."""
    paths = [name.split(".")[:-1] for name in names]
    common = 0
    while paths and all(len(path) > common and path[common] == paths[0][common] for path in paths):
        common += 1
    beginning = "".join(f"{part}." for part in paths[0][:common]) if paths else ""
    return beginning if len(beginning) > LONG else ""


def _without(beginning: str, name: str) -> str:
    return f"…{name[len(beginning) :]}" if beginning else name


def _not_cut(document: dict[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    from planish.compiler.cli_tables import new_table

    shown: list[RenderableType] = []
    if document["not_cut"]:
        stays = new_table("stays", "op", "tensors", "such as", right=("tensors",))
        for each in document["not_cut"]:
            stays.add_row(
                *(Text(cell) for cell in (each["why"], each["op"], str(len(each["tensors"])), each["tensors"][0]))
            )
        shown.append(stays)
    if document["not_understood"]:
        unknown = new_table("not understood", "in", "why")
        for each in document["not_understood"]:
            unknown.add_row(*(Text(cell) for cell in (each["op"], each["module"] or "forward", each["why"])))
        shown += [Text(), unknown]
    return shown
