"""Shows on a terminal what a compilation is at; silent elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar


class Stages:
    """Names the stage that is running, and keeps the seconds that each took."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._status = console.status("")

    @contextmanager
    def shown(self) -> Iterator[Stages]:
        with self._status:
            yield self

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.say(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def say(self, what: str, share: float | None = None) -> None:
        """Show ``what``, beside a bar where it is known which ``share`` (0..1) of it is done."""
        told = f"planish: {what} …"
        if share is None:
            self._status.update(told)
        else:
            bar = ProgressBar(total=1.0, completed=share, width=20)
            self._status.update(Columns([bar, escape(told)]))


def stages() -> Stages:
    """On standard error: results of scripts go to standard output."""
    return Stages(Console(stderr=True))
