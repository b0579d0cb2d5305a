"""Scripts that build a model on its device, and the report that they bring back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pydantic

from planish.compiler.artifact import read_artifact, writing
from planish.compiler.errors import UserError
from planish.compiler.plugins import registry
from planish.compiler.report import DeviceReport, Report
from planish.compiler.targets import Target, find_backend, find_profile


def build_scripts(model: Path, target: Target, output: Path, backend: str | None = None) -> tuple[str, ...]:
    """Write the folder ``output``: the ONNX file ``model``, and what builds and checks it on the device ``target``.

    An artifact has these scripts already. Returns the names of the files. Raises UserError if the target's backend
    builds nothing on the device, and if ``model`` is no file or ``output`` holds anything.
    """
    profile = find_profile(target)
    chosen, _ = find_backend(profile, backend)
    if not model.is_file():
        raise UserError(f"Name an ONNX file that exists: there is no {model}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"Choose another output: {output} exists and is not empty.")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            beside = Path(scratch) / output.name
            beside.mkdir()
            shutil.copyfile(model, beside / "model.onnx")
            names = chosen.write_build_files(beside, profile)
            if not names:
                raise UserError(
                    f"Compile for {profile.title} instead: its {chosen.name} backend needs no scripts there."
                )
            shutil.copytree(beside, output, dirs_exist_ok=True)
    return ("model.onnx", *names)


def import_report(folder: Path, file: Path) -> DeviceReport:
    """Put the ``device_report.json`` at ``file`` into the report of the artifact in ``folder``.

    A report from the same device that was imported before is replaced. Raises UserError if the file is damaged, or
    tells of another model or target.
    """
    artifact = read_artifact(folder, registry().find_backend)
    try:
        found = DeviceReport.model_validate_json(file.read_text())
    except FileNotFoundError:
        raise UserError(f"Name a file that exists: there is no {file}.") from None
    except (pydantic.ValidationError, UnicodeDecodeError) as failure:
        raise UserError(f"Run build.py again: {file} is damaged ({str(failure).splitlines()[0]}).") from failure
    if found.model_sha256 not in {each.sha256 for each in artifact.manifest.files.values()}:
        raise UserError(f"Name the artifact that was built: {file} tells of another model than {folder} holds.")
    if found.target != artifact.manifest.profile.name:
        raise UserError(f"{file} is for {found.target}, the artifact for {artifact.manifest.profile.name}.")
    report = Report.load(folder / "report.json")
    others = [each for each in report.on_device if each.device != found.device]
    report.model_copy(update={"on_device": [*others, found]}).save(folder / "report.json")
    return found
