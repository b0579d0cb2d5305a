"""The files for the device, with a manifest: what they are, what they came from, and their SHA-256 sums."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, fx

from planish.compiler.contracts import Backend, Lowered, Runner
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.signature import Signature

MANIFEST = "manifest.json"


class File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sha256: str
    size_bytes: int


class Input(BaseModel):
    """One tensor that the artifact takes, in the order of the leaves."""

    model_config = ConfigDict(extra="forbid")
    name: str
    dtype: str
    shape: list[int | str]
    """Sizes; a dynamic one by its name."""


class Manifest(BaseModel):
    """``manifest.json`` of an artifact."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    model: str
    backend: str
    profile: HardwareProfile
    signature: dict[str, Any]
    inputs: list[Input]
    constants: dict[str, Any] = {}
    """Outputs that are no tensors, by position: numbers, strings, None."""
    runtime: dict[str, Any] = {}
    """What the backend needs to load the files (session options)."""
    plan: list[dict[str, Any]]
    """The passes that were kept, with their options, in order."""
    seed: int
    versions: dict[str, str]
    files: dict[str, File]


class Artifact:
    """A compiled model in ``folder``. Call it with the arguments of the model."""

    def __init__(self, folder: Path, manifest: Manifest, backend: Backend) -> None:
        self.folder, self.manifest, self.backend = folder, manifest, backend

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs for one call: torch tensors in and out, in the structure of the traced model.

        Raises UserError if the arguments do not fit, or if no runtime here can run the artifact.
        """
        return self._call(*args, **kwargs)

    __call__ = run

    @property
    def size_bytes(self) -> int:
        """Size of the model's own files: without manifest and report."""
        return sum(file.size_bytes for file in self.manifest.files.values())

    @cached_property
    def _call(self) -> Callable[..., Any]:
        signature = Signature.from_json(self.manifest.signature)
        runner = self.backend.load(self.folder, self.manifest.profile, signature, self.manifest.runtime)
        run = calling(runner, signature, self.manifest.constants)

        def checked(*args: Any, **kwargs: Any) -> Any:
            check_leaves(signature.flatten(args, kwargs), self.manifest.inputs)
            return run(*args, **kwargs)

        return checked

    def __repr__(self) -> str:
        megabytes = f"{self.size_bytes / 1e6:.2f} MB"
        return f"Artifact({self.manifest.model} for {self.manifest.profile.name}, {megabytes} in {self.folder})"


def calling(runner: Runner, signature: Signature, constants: Mapping[str, Any]) -> Callable[..., Any]:
    """``runner`` with the arguments and the output structure of the model; ``constants`` fill in what is no tensor."""

    def run(*args: Any, **kwargs: Any) -> Any:
        results = iter(runner(signature.flatten(args, kwargs)))
        positions = map(str, range(signature.outputs.num_leaves))
        return signature.unflatten([constants[at] if at in constants else next(results) for at in positions])

    return run


def inputs_of(program: Program) -> list[Input]:
    """What each placeholder takes that is a tensor."""
    found = []
    for node, leaf in zip(program.placeholders, program.example_inputs.leaves(), strict=True):
        if isinstance(leaf, Tensor):
            axes = program.dynamic_axes.get(node.name, {})
            shape = [axes.get(axis, size) for axis, size in enumerate(leaf.shape)]
            found.append(Input(name=node.name, dtype=str(leaf.dtype).removeprefix("torch."), shape=shape))
    return found


def check_leaves(leaves: Sequence[Any], inputs: Sequence[Input]) -> None:
    """Raise UserError unless the tensors among ``leaves`` have the dtypes and the fixed sizes of ``inputs``."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) != len(inputs):
        names = ", ".join(each.name for each in inputs)
        raise UserError(
            f"Give torch tensors as inputs ({names}); got {', '.join(type(leaf).__name__ for leaf in leaves)}."
        )
    for tensor, wanted in zip(tensors, inputs, strict=True):
        fits = tensor.ndim == len(wanted.shape) and str(tensor.dtype) == f"torch.{wanted.dtype}"
        sizes = zip(tensor.shape, wanted.shape, strict=False)
        if not fits or any(isinstance(size, int) and size != own for own, size in sizes):
            shape = ", ".join(map(str, wanted.shape))
            raise UserError(
                f"Give input {wanted.name!r} as {wanted.dtype} [{shape}]; it is {tensor.dtype} {list(tensor.shape)}."
            )


def drawn_inputs(manifest: Manifest, batch: int = 1) -> list[Tensor]:
    """Random inputs of the right shapes (dynamic sizes: ``batch``); zeros where they are whole numbers."""
    drawn = []
    for each in manifest.inputs:
        sizes = [size if isinstance(size, int) else batch for size in each.shape]
        dtype = getattr(torch, each.dtype)
        drawn.append(torch.randn(sizes, dtype=dtype) if dtype.is_floating_point else torch.zeros(sizes, dtype=dtype))
    return drawn


def constant_outputs(program: Program) -> dict[str, Any]:
    """Outputs that do not depend on the inputs and are no tensors (None, numbers), by position."""
    (leaves,) = program.output.args
    listed = leaves if isinstance(leaves, (tuple, list)) else [leaves]
    return {str(index): leaf for index, leaf in enumerate(listed) if not isinstance(leaf, fx.Node)}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")


def sums(folder: Path, lowered: Lowered) -> dict[str, File]:
    """SHA-256 and size of each file that the backend made."""
    return {
        name: File(sha256=sha256_of(folder / name), size_bytes=(folder / name).stat().st_size)
        for name in sorted(lowered.files)
    }


def read_artifact(folder: Path, find_backend: Any) -> Artifact:
    """The artifact in ``folder``, its sums checked. Raises UserError naming the file that is damaged or missing."""
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_text())
        Signature.from_json(manifest.signature)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"Name the folder of an artifact: {folder} holds no {MANIFEST}.") from None
    except (pydantic.ValidationError, UnicodeDecodeError, KeyError, TypeError) as failure:
        raise UserError(
            f"Compile again: {path} is damaged, or of another version ({str(failure).splitlines()[0]})."
        ) from failure
    for name, file in manifest.files.items():
        _check(folder, name, file)
    return Artifact(folder, manifest, find_backend(manifest.backend))


def _check(folder: Path, name: str, file: File) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"Refused: the manifest of {folder} names a file outside of it ({name}).")
    if not path.is_file():
        raise UserError(f"Compile again: {path} is missing.")
    if sha256_of(path) != file.sha256:
        raise UserError(f"Compile again: {path} is damaged (its SHA-256 is not the manifest's).")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(output: Path | None) -> Iterator[Path]:
    """A folder to write an artifact in; it takes the place of ``output`` when the block ends without an error.

    An artifact that is there already stays intact until then. Raises UserError if ``output`` is anything else.
    """
    if output is None:
        yield Path(tempfile.mkdtemp(prefix="planish-"))
        return
    output = output.resolve()  # a link to an artifact stays a link
    if output.exists() and not (output.is_dir() and ((output / MANIFEST).exists() or not any(output.iterdir()))):
        raise UserError(f"Choose another output: {output} exists and is no artifact of planish.")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        beside.chmod(0o755)
    try:
        yield beside
        with writing(output):
            _replace(beside, output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what to do when ``path`` cannot be written: disk full, no rights."""
    try:
        yield
    except OSError as failure:
        raise UserError(f"Make room or give rights for {path}: writing it failed ({failure}).") from failure


def _replace(new: Path, old: Path) -> None:
    if not old.exists():
        new.rename(old)
        return
    retired = new.with_name(new.name + ".old")
    old.rename(retired)
    try:
        new.rename(old)
    except OSError:
        retired.rename(old)
        raise
    shutil.rmtree(retired)


def versions(of_backend: dict[str, str]) -> dict[str, str]:
    """Versions of what made the artifact."""
    return {"planish": planish_version(), "torch": str(torch.__version__), **of_backend}


def planish_version() -> str:
    try:
        return importlib.metadata.version("planish")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"
