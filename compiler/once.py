"""What the targets of one compilation have in common, done once.

Nothing is assumed to be common: a step is done once for all that ask for the same. A pass asks with the Program, its
options, the calibration data, and whatever it read of profile and scheme while it ran; where one of these differs, it
runs anew, and the Report says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from planish.compiler.calibration import Calibration, InputForm, from_data
from planish.compiler.contracts import Context, Pass
from planish.compiler.drawn_inputs import draw_calibration
from planish.compiler.example_inputs import find_example_inputs
from planish.compiler.fixed_shapes import with_one_row
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.progress import Stages
from planish.compiler.report import Decision
from planish.compiler.request import Request
from planish.compiler.rules import verify
from planish.compiler.trace import Trace, trace_with_notes
from planish.compiler.watched import Facts, fact, told, watched

Run = Callable[[Pass, Program, Context], Program]


class _Kept:
    """The batches of ``source``, each read once, as far as any reader got; they stay in memory."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._rest = iter(source)
        self._read: list[Any] = []
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while index < len(self._read) or self._reads_on():
            yield self._read[index]
            index += 1

    def _reads_on(self) -> bool:
        if self._failure is not None:  # an iterator that has failed ends without a word when it is asked again
            raise self._failure
        try:
            self._read.append(next(self._rest))
        except StopIteration:
            return False
        except Exception as failure:
            self._failure = failure
            raise
        return True


@dataclass
class _Ran:
    """A pass that has run."""

    compression: Pass
    program: Program
    calibration: Calibration
    of_profile: Facts
    """What it read of the profile."""
    of_scheme: Facts | None
    """None: there was no scheme."""
    target: str
    rewritten: Program
    decisions: list[Decision]
    notes: list[str]

    def fits(self, compression: Pass, program: Program, context: Context) -> bool:
        """Whether it is the same question, but for what the pass reads of profile and scheme."""
        same = self.program is program and self.calibration is context.calibration
        return same and type(self.compression) is type(compression) and self.compression == compression

    def differs(self, context: Context) -> list[str]:
        """The names of the facts that are others here."""
        if (self.of_scheme is None) != (context.scheme is None):
            return ["scheme"]
        asked = ((self.of_profile, context.profile, "profile"), (self.of_scheme or {}, context.scheme, "scheme"))
        names = [
            f"{name}.{told(path)}"
            for read, record, name in asked
            for path, value in read.items()
            if fact(record, path) != value
        ]
        return [*dict.fromkeys(names)]


@dataclass
class Once:
    """One compilation's model and data, and what was made of them so far."""

    request: Request
    progress: Stages
    targets: int = 1
    reused: dict[str, dict[str, str]] = field(default_factory=dict)
    """Target -> pass -> the target that it was run for."""
    _traces: dict[bool, Trace] = field(default_factory=dict)
    _calibrations: dict[tuple[int, bool], Calibration] = field(default_factory=dict)
    _ran: list[_Ran] = field(default_factory=list)

    @cached_property
    def _data(self) -> Iterable[Any] | None:
        """The user's batches. Several targets see the same ones, also of a loader that shuffles."""
        data = self.request.data
        return data if data is None or self.targets == 1 or isinstance(data, (Tensor, Mapping)) else _Kept(data)

    @cached_property
    def inputs(self) -> tuple[Inputs, str]:
        """The example inputs, and where they come from. Raises UserError where none are found."""
        return find_example_inputs(self.request.model, self.request.example_inputs, self._data)

    def prepare(self) -> None:
        """Raises UserError for a model, inputs or data that no target could be compiled from."""
        program = self.traced(any_batch=True).program
        self.calibration(program, draws=False)

    def traced(self, any_batch: bool) -> Trace:
        """The Program that passes work on: it takes any batch wherever the model does.

        For devices that do not take ``any_batch``, ``with_one_row`` makes theirs of it. A model whose batch cannot be
        traced as dynamic is traced for them with one row.
        """
        with self.progress.stage("trace"):
            trace = self._traced(True)
            if any_batch or trace.program.dynamic_axes:
                return trace
            return self._traced(False)

    def _traced(self, dynamic: bool) -> Trace:
        if dynamic not in self._traces:
            inputs, _ = self.inputs
            trace = trace_with_notes(self.request.model, inputs if dynamic else next(inputs.split(1)), dynamic)
            verify(trace.program, "tracing")
            self._traces[dynamic] = trace
        return self._traces[dynamic]

    def calibration(self, program: Program, draws: bool) -> Calibration:
        """Rows for ``program``: the user's; without any, drawn ones, or the example inputs where none are needed."""
        draws = draws and self.request.data is None
        key = (id(program), draws)  # programs live as long as the traces
        if key not in self._calibrations:
            with self.progress.stage("calibration data"):
                self._calibrations[key] = self._rows(program, draws)
        return self._calibrations[key]

    def _rows(self, program: Program, draws: bool) -> Calibration:
        model, data = self.request.model, self._data
        if data is not None:
            form = InputForm.of_module(model) if isinstance(model, nn.Module) else InputForm.of_program(program)
            return from_data(data, form, program)
        if draws:
            return draw_calibration(program, seed=self.request.seed, progress=self.progress)
        return Calibration([program.example_inputs], "the example inputs")

    def rewritten(self, compression: Pass, program: Program, context: Context, run: Run) -> Program:
        """What ``run`` makes of ``program``, or has made of it for another target. The context says which."""
        if self.targets == 1:  # Programs that nobody asks for again are let go
            return run(compression, program, context)
        asked = [ran for ran in self._ran if ran.fits(compression, program, context)]
        for ran in asked:
            if not ran.differs(context):
                self.reused.setdefault(context.profile.name, {})[compression.name] = ran.target
                context.decisions += ran.decisions
                context.notes += [*ran.notes, f"Run once, for {ran.target}: nothing that it reads differs."]
                return ran.rewritten
        of_profile: Facts = {}
        of_scheme: Facts | None = None if context.scheme is None else {}
        watching = dataclasses.replace(
            context,
            profile=watched(context.profile, of_profile),
            scheme=None if of_scheme is None else watched(context.scheme, of_scheme),
        )
        rewritten = run(compression, program, watching)
        self._ran.append(
            _Ran(
                compression, program, context.calibration, of_profile, of_scheme, context.profile.name, rewritten,
                [*context.decisions], [*context.notes],
            )
        )  # fmt: skip
        if asked:
            nearest = min(asked, key=lambda ran: len(ran.differs(context)))
            context.notes.append(
                f"Run anew: not all that it reads is as for {nearest.target} ({', '.join(nearest.differs(context))})."
            )
        return rewritten


def form_of(any_batch: bool) -> Callable[[Program], Program]:
    """What a device is given of a Program."""
    return (lambda program: program) if any_batch else with_one_row
