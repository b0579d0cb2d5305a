"""Scripts that build a model on its device, and the report that they bring back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pydantic

from planish.compiler.artifact import MANIFEST, read_artifact, writing
from planish.compiler.contracts import Backend
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.plugins import registry
from planish.compiler.report import DeviceReport, Report
from planish.compiler.targets import Target, find_backend, find_profile


def build_scripts(model: str | Path, target: Target, output: str | Path, backend: str | None = None) -> tuple[str, ...]:
    """Write the folder ``output``: a model, and what builds and checks it on the device ``target``.

    ``model``: an ONNX file, or the folder of an artifact that the backend of ``target`` has made. Artifacts for devices
    other than this machine have these scripts already. Returns the names of the files. Raises UserError if the backend
    writes nothing for devices, and if ``model`` is not there or ``output`` holds anything.
    """
    model, output = Path(model), Path(output)
    profile = find_profile(target)
    chosen, _ = find_backend(profile, backend)
    files = _files(model, chosen, profile)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"Choose another output: {output} exists and is not empty.")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            beside = Path(scratch) / output.name
            for name, source in files.items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, beside / name)
            names = chosen.write_build_files(beside, profile)
            if not names:
                raise UserError(
                    f"Compile for {profile.title} instead: its {chosen.name} backend needs no scripts there."
                )
            shutil.copytree(beside, output, dirs_exist_ok=True)
    return (*files, *names)


def _files(model: Path, backend: Backend, profile: HardwareProfile) -> dict[str, Path]:
    """What is copied, by its name in the folder."""
    if model.is_file():
        found = {"model.onnx": model}
        if (data := model.with_name(f"{model.name}.data")).is_file():  # where onnx.save puts large weights
            found[data.name] = data
        return found
    if not (model / MANIFEST).is_file():
        raise UserError(f"Name an ONNX file or an artifact that exists: there is no {model}.")
    artifact = read_artifact(model, registry().find_backend)
    if artifact.backend.name != backend.name:
        raise UserError(
            f"Compile for {profile.name}: its {backend.name} backend cannot use {model}, which is for "
            f"{artifact.manifest.profile.name} by {artifact.backend.name}."
        )
    return {name: model / name for name in (*artifact.manifest.files, MANIFEST)}


def import_report(folder: str | Path, file: str | Path) -> DeviceReport:
    """Put the ``device_report.json`` at ``file`` into the report of the artifact in ``folder``.

    A report from the same device that was imported before is replaced. Raises UserError if the file is damaged, or
    tells of another model or target.
    """
    folder, file = Path(folder), Path(file)
    artifact = read_artifact(folder, registry().find_backend)
    try:
        found = DeviceReport.model_validate_json(file.read_text())
    except FileNotFoundError:
        raise UserError(f"Name a file that exists: there is no {file}.") from None
    except (pydantic.ValidationError, UnicodeDecodeError) as failure:
        raise UserError(f"Run the script again: {file} is damaged ({str(failure).splitlines()[0]}).") from failure
    if found.model_sha256 not in {each.sha256 for each in artifact.manifest.files.values()}:
        raise UserError(f"Name the artifact that was built: {file} tells of another model than {folder} holds.")
    if found.target != artifact.manifest.profile.name:
        raise UserError(f"{file} is for {found.target}, the artifact for {artifact.manifest.profile.name}.")
    report = Report.load(folder / "report.json")
    others = [each for each in report.on_device if each.device != found.device]
    report.model_copy(update={"on_device": [*others, found]}).save(folder / "report.json")
    return found
