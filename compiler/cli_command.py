"""What all commands have in common: --json, --debug, one sentence for an error, and the exit codes."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from planish.compiler.errors import (
    CompilationError,
    MissingDependency,
    PlanishError,
    PluginError,
    UserError,
    VerificationError,
)

FINDINGS = 1
EXIT_CODES = {
    0: "done",
    FINDINGS: "check found what the target cannot take",
    2: "the command, the model, the data or an option does not fit",
    3: "a library is not installed",
    4: "a plugin failed",
    5: "a pass or a backend failed",
    6: "the artifact does not compute what the model does",
    7: "an unexpected error",
    130: "interrupted",
}
_CODE_OF: dict[type[BaseException], int] = {
    UserError: 2,
    OSError: 2,
    MissingDependency: 3,
    PluginError: 4,
    CompilationError: 5,
    VerificationError: 6,
    KeyboardInterrupt: 130,
    Exception: 7,
}
PIPE_WIDTH = 140
"""Columns where standard output is no terminal: lines stay whole for grep."""


@dataclass(frozen=True)
class Answer:
    """What a command returns."""

    document: Any
    """For --json: made of dicts, lists, strings, numbers and None."""
    shown: RenderableType
    """For people."""
    code: int = 0


def command(function: Callable[..., Answer]) -> Callable[..., None]:
    """``function`` with the options --json and --debug. What anything prints meanwhile goes to standard error."""

    @functools.wraps(function)
    def run(*args: Any, as_json: bool, debug: bool, **kwargs: Any) -> None:
        try:
            with redirect_stdout(sys.stderr):
                answer = function(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as failure:
            raise _exit(failure, debug) from None
        _print(answer, as_json)
        if answer.code:
            raise typer.Exit(answer.code)

    own = inspect.signature(function, eval_str=True)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *_COMMON])  # type: ignore[attr-defined]
    return run


def _flag(name: str, option: str, told: str) -> inspect.Parameter:
    annotation = Annotated[bool, typer.Option(option, help=told)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)


_COMMON = (
    _flag("as_json", "--json", "Print JSON, and nothing else, on standard output."),
    _flag("debug", "--debug", "Show where an error comes from."),
)


def _print(answer: Answer, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer.document, indent=2, allow_nan=False))
        return
    is_free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=PIPE_WIDTH if is_free else None).print(answer.shown)


def _exit(failure: BaseException, debug: bool) -> typer.Exit:
    """Say on standard error what went wrong; the exit with the code for it."""
    console = Console(stderr=True)
    if debug:
        console.print_exception()
    console.print(Text(_sentence(failure), style="red"), soft_wrap=True)
    return typer.Exit(code_of(failure))


def code_of(failure: BaseException) -> int:
    """The exit code of an error."""
    return next(code for kind, code in _CODE_OF.items() if isinstance(failure, kind))


def _sentence(failure: BaseException) -> str:
    if isinstance(failure, PlanishError):
        return str(failure)
    if isinstance(failure, KeyboardInterrupt):
        return "Interrupted."
    if isinstance(failure, OSError):
        return f"Look at the file or the disk: {failure}."
    told = f"{type(failure).__name__}: {failure}".strip()
    return f"Repeat the command with --debug, and report to planish what is not your own code's: {told}"
