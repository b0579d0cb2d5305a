"""The commands that list what there is: targets, passes, backends."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from planish.compiler.cli_command import Answer


def targets(
    name: Annotated[str | None, Argument(help="Show this one, with its sources.", show_default=False)] = None,
) -> Answer:
    """List the targets, or show one with the source of each figure."""
    from planish.compiler import cli_tables
    from planish.compiler.plugins import registry
    from planish.compiler.targets import find_profile

    if name is not None:
        profile = find_profile(name)
        return Answer(cli_tables.target_document(profile), cli_tables.target_sheet(profile))
    profiles = [*registry().profiles.values()]
    return Answer([cli_tables.target_document(profile) for profile in profiles], cli_tables.targets_table(profiles))


def passes() -> Answer:
    """List the passes, with their options."""
    from planish.compiler import cli_tables
    from planish.compiler.plugins import registry

    known = registry()
    rows = [cli_tables.pass_document(kind, known.owners["pass"][name]) for name, kind in known.passes.items()]
    return Answer(rows, cli_tables.passes_table(rows))


def backends() -> Answer:
    """List the backends, and whether their artifacts can be run here."""
    from planish.compiler import cli_tables
    from planish.compiler.plugins import registry

    known = registry()
    rows = [cli_tables.backend_document(backend, known) for backend in known.backends.values()]
    return Answer(rows, cli_tables.backends_table(rows))
