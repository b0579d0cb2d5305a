"""The command line: ``planish --help``. Each command does what the function of the same name in planish does.

torch and the driver are imported inside the commands, so that help and completion answer at once.
"""

from __future__ import annotations

import typer

from planish.compiler import cli_artifacts, cli_compile, cli_devices, cli_groups, cli_lists
from planish.compiler.cli_command import EXIT_CODES, command

_CODES = "; ".join(f"{code} {told}" for code, told in EXIT_CODES.items())

app = typer.Typer(
    help="Compile a trained PyTorch model for one device, and prove that it still computes the same.",
    epilog=f"Exit codes: {_CODES}. --json puts JSON alone on standard output.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for function in (
    cli_compile.compile, cli_compile.plan, cli_compile.check, cli_groups.groups,
    cli_lists.targets, cli_lists.passes, cli_lists.backends,
    cli_artifacts.run, cli_artifacts.bench, cli_artifacts.report,
    cli_devices.build_scripts, cli_devices.import_report,
):  # fmt: skip
    app.command()(command(function))

if __name__ == "__main__":
    app()
