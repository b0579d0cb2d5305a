"""HardwareProfile: data about one device, read from a TOML file. No behaviour, no subclass.

Every number is a Figure: it names its source (a key of ``sources``) or says that it is estimated.
Units live in field names; hwprofiles/README.md explains each field. Files are read in hardware_files.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from planish.compiler.errors import closest
from planish.compiler.hardware_files import FieldsError, Location, read_model

DENSE_DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4")
SPARSE_DTYPES = ("fp16_sparse", "int8_sparse")
UNIT_KINDS = ("cpu", "gpu", "npu", "dla", "dsp", "tpu", "mcu")

Items = TypeVar("Items", bound=Sized)


def _one_of(*choices: str) -> AfterValidator:
    def known(text: str) -> str:
        if text not in choices:
            raise ValueError(f"unknown value {text!r}{closest(text, choices)}")
        return text

    return AfterValidator(known)


def _matching(pattern: str, example: str) -> AfterValidator:
    def matches(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"write it like {example!r}, not {text!r}")
        return text

    return AfterValidator(matches)


def _at_least_one(thing: str) -> AfterValidator:
    def holds_one(items: Items) -> Items:
        if not items:
            raise ValueError(f"give at least one {thing}")
        return items

    return AfterValidator(holds_one)


_BOUND = r"(>=|<=|==|~=|>|<)\d+(\.\d+)*"
# Plain `str` to type checkers, so that a dtype computed elsewhere can be looked up without a cast.
Name = Annotated[str, _matching(r"[a-z0-9]+(-[a-z0-9]+)*", "jetson-orin-nx-16")]
Words = Annotated[str, Field(min_length=1)]
RateDtype = Annotated[str, _one_of(*DENSE_DTYPES, *SPARSE_DTYPES)]
DenseDtype = Annotated[str, _one_of(*DENSE_DTYPES)]
VersionRange = Annotated[str, _matching(rf"{_BOUND}(,{_BOUND})*", ">=10.3,<10.4")]
Url = Annotated[str, _matching(r"https://[^\s/]+\S*", "https://vendor.com/datasheet.pdf")]


class _Table(BaseModel):
    """What every table of a profile has in common: it never changes, and holds no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Table):
    """One number, with its origin: a key of ``sources``, an estimate, or a measurement on the very device."""

    value: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    source: Words | None = None
    estimated: StrictBool = False
    measured: StrictBool = False

    @model_validator(mode="after")
    def _one_origin(self) -> Figure:
        if (self.source is not None) + self.estimated + self.measured != 1:
            raise ValueError('give exactly one of source = "a key of [sources]", estimated = true and measured = true')
        return self


class Host(_Table):
    """What a machine must have so that artifacts for this target can be run and timed on it."""

    machine: Annotated[str, _one_of("x86_64", "aarch64")]
    cpu_flags: tuple[Words, ...]
    """Names as Linux writes them in /proc/cpuinfo; a machine needs all of them."""


class ComputeUnit(_Table):
    """One processor of the device. A rate counts a multiply and an add as two operations."""

    name: Words
    kind: Annotated[str, _one_of(*UNIT_KINDS)]
    cores: Figure | None = None
    """CPU cores, or the streaming multiprocessors / GPU cores / neural engine cores as the vendor counts."""
    peak_gops: Annotated[dict[RateDtype, Figure], _at_least_one("rate")]


class Memory(_Table):
    """The memory that a model and its activations share with everything else on the device."""

    size_mb: Figure
    bandwidth_gb_s: Figure
    cache_kb: Figure | None = None
    """The last cache before that memory."""


class Support(_Table):
    """What the device runs through its backend."""

    dtypes: tuple[DenseDtype, ...]
    weight_only: tuple[Annotated[str, _one_of("int8", "int4")], ...] = ()
    sparsity: tuple[Annotated[str, _one_of("2:4", "unstructured")], ...] = ()
    """2:4: computes at the ``_sparse`` rates. unstructured: zeros only make the file smaller."""
    sparse_min_channels: Figure | None = None
    """Products with fewer input or output channels gain nothing by 2:4 kernels."""
    sparse_block: tuple[Figure, Figure] | None = None
    """Outputs and inputs of the tiles of zeros that the runtime's kernels skip; None: it has no such kernels."""
    dynamic_shapes: StrictBool


class Quantization(_Table):
    """The INT8 scheme that runs as INT8 here, and not silently in float."""

    activation_dtype: Annotated[str, _one_of("uint8", "int8", "uint16")]
    activation_symmetric: StrictBool
    weight_dtype: Annotated[str, _one_of("int8")]
    weight_granularity: Annotated[str, _one_of("channel", "tensor")]
    weight_bits: Annotated[StrictInt, Field(ge=2, le=8)]
    """7 where the CPU's 8-bit multiply-add saturates, else 8."""
    min_channels: Annotated[StrictInt, Field(gt=0)] | None = None
    """Convolutions with fewer channels stay float."""
    notes: tuple[Words, ...] = ()


class Runtime(_Table):
    """The software on the device that an artifact has to suit."""

    opset: Annotated[StrictInt, Field(gt=0)] | None = None
    """The newest ONNX opset that it reads."""
    versions: dict[Words, VersionRange] = {}


class HardwareProfile(_Table):
    """Data about one device: what it computes with, how fast, and what its backend accepts.

    Raises ``pydantic.ValidationError`` when built from fields that do not fit together.
    """

    name: Name
    title: Words
    aliases: tuple[Name, ...] = ()
    vendor: Words
    backend: Name
    """Name of the backend that serves the device; a plugin may bring it."""
    host: Host | None = None
    """None: no machine that planish runs on can be this device."""
    units: Annotated[tuple[ComputeUnit, ...], _at_least_one("[[units]] table")]
    memory: Memory
    support: Support
    channel_alignment: dict[DenseDtype, Figure] = {}
    kernel_overhead_us: dict[DenseDtype, Figure] = {}
    """Microseconds that a kernel takes however little it computes, by what it computes in."""
    half_rate_channels: dict[DenseDtype, Figure] = {}
    """Channels with which a product runs at half of the peak rate: narrow layers waste the rest."""
    quantization: Quantization | None = None
    """None: the device runs no INT8."""
    runtime: Runtime = Runtime()
    sources: dict[str, Url] = {}
    notes: tuple[Words, ...] = ()

    @model_validator(mode="after")
    def _fields_fit_together(self) -> HardwareProfile:
        problems = tuple(problem for rule in _RULES for problem in rule(self))
        if problems:
            raise FieldsError(problems)
        return self


def load_profile(path: Path) -> HardwareProfile:
    """The profile in the TOML file at ``path``.

    Raises UserError that names the file and, for each problem, the line, the field and what to write.
    """
    return read_model(path, HardwareProfile)


def load_profiles(folder: Path) -> tuple[HardwareProfile, ...]:
    """The profiles in the ``*.toml`` files of ``folder``, sorted by name; raises as load_profile does."""
    profiles = [load_profile(path) for path in sorted(folder.glob("*.toml"))]
    return tuple(sorted(profiles, key=lambda profile: profile.name))


def peak_gops(profile: HardwareProfile, dtype: str) -> Figure | None:
    """The rate of the fastest unit for ``dtype`` (a key of its ``peak_gops``); None where no unit has one."""
    rates = [unit.peak_gops[dtype] for unit in profile.units if dtype in unit.peak_gops]
    return max(rates, key=lambda rate: rate.value, default=None)


def figures(table: BaseModel, where: Location = ()) -> Iterator[tuple[Location, Figure]]:
    """Every Figure of a table, with its location: ``(("units", 0, "peak_gops", "int8"), Figure)``."""
    for field in type(table).model_fields:
        yield from _figures_in(getattr(table, field), (*where, field))


def _figures_in(value: object, where: Location) -> Iterator[tuple[Location, Figure]]:
    if isinstance(value, Figure):
        yield where, value
    elif isinstance(value, BaseModel):
        yield from figures(value, where)
    elif isinstance(value, dict | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _figures_in(item, (*where, key))


Problems = Iterator[tuple[Location, str]]


def _every_source_is_defined_and_used(profile: HardwareProfile) -> Problems:
    used = [(where, figure.source) for where, figure in figures(profile) if figure.source is not None]
    for where, source in used:
        if source not in profile.sources:
            yield where, f"source {source!r} is not in [sources]{closest(source, profile.sources)}"
    for source in sorted(profile.sources.keys() - {source for _, source in used}):
        yield ("sources", source), f"no figure uses source {source!r}: remove it, or name it in a figure"


def _every_supported_dtype_has_a_rate(profile: HardwareProfile) -> Problems:
    for index, dtype in enumerate(profile.support.dtypes):
        if peak_gops(profile, dtype) is None:
            yield ("support", "dtypes", index), f"{dtype!r} needs a rate in the peak_gops of some unit"


def _sparse_rates_mean_two_four_sparsity(profile: HardwareProfile) -> Problems:
    has_rate = any(peak_gops(profile, dtype) for dtype in SPARSE_DTYPES)
    if has_rate != ("2:4" in profile.support.sparsity):
        missing = '"2:4"' if has_rate else "a rate for int8_sparse or fp16_sparse"
        yield ("support", "sparsity"), f'"2:4" and the sparse rates come together: {missing} is missing'


def _sizes_of_sparse_kernels_are_whole_numbers(profile: HardwareProfile) -> Problems:
    least, block = profile.support.sparse_min_channels, profile.support.sparse_block or ()
    if least is not None and "2:4" not in profile.support.sparsity:
        yield ("support", "sparse_min_channels"), "it is about 2:4 kernels, and support.sparsity has no 2:4"
    for name, figures in (("sparse_min_channels", (least,) if least else ()), ("sparse_block", block)):
        for figure in figures:
            if not figure.value.is_integer():
                yield ("support", name), f"write a whole number of channels, not {figure.value:g}"


def _int8_means_a_quantization_scheme(profile: HardwareProfile) -> Problems:
    if ("int8" in profile.support.dtypes) != (profile.quantization is not None):
        missing = "the table [quantization]" if profile.quantization is None else '"int8" in support.dtypes'
        yield ("support", "dtypes"), f"int8 and its quantization scheme come together: {missing} is missing"


def _alignment_is_a_whole_number_for_a_supported_dtype(profile: HardwareProfile) -> Problems:
    for dtype, figure in profile.channel_alignment.items():
        if not figure.value.is_integer():
            yield ("channel_alignment", dtype), f"write a whole number of channels, not {figure.value:g}"
        if dtype not in profile.support.dtypes:
            yield ("channel_alignment", dtype), f"{dtype!r} is not in support.dtypes"


_RULES: tuple[Callable[[HardwareProfile], Problems], ...] = (
    _every_source_is_defined_and_used,
    _every_supported_dtype_has_a_rate,
    _sparse_rates_mean_two_four_sparsity,
    _sizes_of_sparse_kernels_are_whole_numbers,
    _int8_means_a_quantization_scheme,
    _alignment_is_a_whole_number_for_a_supported_dtype,
)
