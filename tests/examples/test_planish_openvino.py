"""planish-openvino as its users have it: installed with pip, found by planish, used through planish.compile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "examples" / "plugins" / "planish-openvino"

pytest.importorskip("openvino", reason="needs openvino, which pip install planish-openvino brings")

MODELS = """
import json, sys
from pathlib import Path
import torch, planish
from torch import nn
from planish.compiler.targets import find_profile

TARGET = "x86-avx512-vnni"
torch.set_num_threads(1)
torch.manual_seed(0)

class Cnn(nn.Module):
    def __init__(self, activation=nn.ReLU):
        super().__init__()
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), activation()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(16, 32, 3, 2, 1), activation())
        self.branch = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 4)
    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.branch(x)).relu().mean((2, 3)))

def stripes(count):
    "Images [count, 1, 16, 16] of stripes in one of four directions, in noise, and the direction."
    labels = torch.randint(4, (count,))
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([(1.3 * ramp + 0.3).sin() for ramp in (x, y, x + y, x - y)])
    return waves[labels][:, None] + 0.7 * torch.randn(count, 1, 16, 16), labels

class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(32, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 2)
    def forward(self, ids):
        return self.head(self.encoder(self.table(ids)).mean(1))

def sentences(count):
    "Ids [count, 12], and whether more of them are even than odd."
    ids = torch.randint(32, (count, 12))
    return ids, ((ids % 2 == 0).sum(1) > 6).long()

def trained(model, draw, steps):
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        inputs, labels = draw(64)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    return model.eval()

def score(run, draw):
    torch.manual_seed(1)
    inputs, labels = draw(256)
    return (run(inputs).argmax(1) == labels).float().mean().item()

def decibels(reference, result):
    return (10 * ((reference**2).sum() / ((reference - result) ** 2).sum()).log10()).item()
"""


def run_python(code: str, *arguments: object, path: tuple[Path, ...]) -> Any:
    """What the last line that ``code`` prints says in JSON."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the plugin."""
    folder = tmp_path_factory.mktemp("installed")
    sources = folder / "sources"  # a copy: the build leaves its own folders beside them
    shutil.copytree(PLUGIN, sources, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    target = folder / "target"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_a_trained_cnn_compiled_to_int8_answers_as_it_does_in_pytorch(installed: Path, tmp_path: Path) -> None:
    code = """
model = trained(Cnn(), stripes, 60)
batches = [stripes(16)[0] for _ in range(4)]
int8 = planish.compile(model, TARGET, calibration=batches, backend="openvino",
                       passes=planish.plan(model, TARGET, batches[0], backend="openvino"), output=sys.argv[1])
exact = planish.compile(model, TARGET, batches[0], backend="openvino", passes=[])
again = planish.load(sys.argv[1])
fresh, odd = stripes(16)[0], stripes(3)[0]
with torch.no_grad():
    print(json.dumps({
        "score": [score(run, stripes) for run in (model, int8.run)],
        "decibels": [decibels(model(x), again.run(x)) for x in (fresh, odd)],
        "float error": [((model(x) - exact.run(x)).abs().max() / model(x).abs().max()).item() for x in (fresh, odd)],
        "report": json.loads(int8.report.model_dump_json()),
    }))
"""
    told = run_python(MODELS + code, tmp_path / "artifact", path=(installed, ROOT))
    in_torch, in_int8 = told["score"]
    assert in_torch > 0.9  # it has learnt something that INT8 could lose
    assert in_int8 >= in_torch - 0.02
    assert min(told["decibels"]) > 20
    assert max(told["float error"]) < 1e-4  # bf16 would be off by 1e-3
    report = told["report"]
    assert report["backend"] == "openvino"
    assert report["runtime_decisions"] == []
    # three convolutions, the sum, the mean and the last layer, whatever the time they take
    (step,) = [step for step in report["steps"] if step["compression"] == "quantize-int8"]
    assert {decision["outcome"] for decision in step["decisions"]} == {"int8"}
    if step["outcome"] == "kept":
        assert "OpenVINO runs 6 of the 6 operators meant for INT8 in integers." in report["notes"]


def test_a_small_transformer_compiled_to_int8_answers_as_it_does_in_pytorch(installed: Path) -> None:
    code = """
from planish.compiler.plugins import registry
model = trained(Transformer(), sentences, 120)
batches = [sentences(16)[0] for _ in range(4)]
int8 = registry().find_pass("quantize-int8")()
result = planish.compile(model, TARGET, calibration=batches, backend="openvino", passes=[int8])
fresh = sentences(16)[0]
with torch.no_grad():
    print(json.dumps([
        [score(run, sentences) for run in (model, result.run)],
        decibels(model(fresh), result.run(fresh)),
        json.loads(result.report.model_dump_json()),
    ]))
"""
    (in_torch, in_int8), decibels, report = run_python(MODELS + code, path=(installed, ROOT))
    assert in_torch > 0.8
    assert in_int8 >= in_torch - 0.02
    assert decibels > 20
    assert any(note.startswith("OpenVINO runs ") for note in report["notes"])
    assert not any("ONNX Runtime" in note for note in report["notes"])


def test_operators_that_openvino_runs_in_float_are_named_with_their_modules(installed: Path) -> None:
    """The oracle: OpenVINO itself, told not to use integers."""
    code = """
from planish.compiler.plugins import registry
from planish_openvino import runtime
model = Cnn().eval()
runtime.CONFIG["LP_TRANSFORMS_MODE"] = "NO"
int8 = registry().find_pass("quantize-int8")()
result = planish.compile(model, TARGET, calibration=[stripes(8)[0]], backend="openvino", passes=[int8])
print(json.dumps([decision.model_dump() for decision in result.report.runtime_decisions]))
"""
    decisions = run_python(MODELS + code, path=(installed, ROOT))
    assert {decision["outcome"] for decision in decisions} == {"float"}
    convolutions = {decision["module"] for decision in decisions if "conv2d" in decision["op"]}
    assert convolutions == {"stem.0", "stem.3", "branch.0"}
    assert all("in f32" in decision["reason"] for decision in decisions)


def test_what_the_scheme_fuses_openvino_runs_in_no_more_layers_than_a_relu(installed: Path) -> None:
    """The oracle: the layers that OpenVINO executes. Hardsigmoid, which the scheme does not fuse, has more."""
    code = """
from planish.compiler.plugins import registry
from planish_openvino.runtime import compiled
x = torch.randn(8, 16, 12, 12)
def layers(activation):
    model = nn.Sequential(nn.Conv2d(16, 32, 3), activation, nn.Conv2d(32, 16, 3)).eval()
    int8 = registry().find_pass("quantize-int8")()
    result = planish.compile(model, TARGET, calibration=[x], backend="openvino", passes=[int8])
    model = compiled(result.artifact.folder / "model.onnx", [x.shape]).get_runtime_model()
    told = [layer.get_rt_info()["layerType"] for layer in model.get_ordered_ops()]
    return [getattr(kind, "value", kind) for kind in told]
fused = nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.LeakyReLU(), nn.ELU(), nn.Sigmoid(), nn.Tanh()
print(json.dumps([layers(nn.ReLU()), layers(nn.Hardsigmoid()), [layers(each) for each in fused]]))
"""
    relu, hardsigmoid, fused = run_python(MODELS + code, path=(installed, ROOT))
    assert relu.count("Convolution") == 2
    assert fused == [relu] * 7
    assert len(hardsigmoid) > len(relu)


def test_several_inputs_and_outputs_of_any_shape_keep_their_order_and_types(installed: Path) -> None:
    code = """
class Mixed(nn.Module):
    def forward(self, values, mask, *, count):
        total = (values * mask).sum(1)
        return {"total": total, "most": values.argmax(1), "kept": mask, "same": (count + 1, total > 0)}
x, mask, count = torch.randn(4, 6), torch.rand(4, 6) > 0.5, torch.arange(4)
example = ((x, mask), {"count": count})
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace_with_notes
program = trace_with_notes(Mixed(), Inputs((x, mask), {"count": count})).program
run = planish.compile(program, TARGET, backend="openvino", passes=[]).run
equal = []
for rows in (4, 2, 4, 1):
    call = (x[:rows], mask[:rows]), {"count": count[:rows]}
    got, expected = run(*call[0], **call[1]), Mixed()(*call[0], **call[1])
    first, second = (torch.utils._pytree.tree_leaves(each) for each in (got, expected))
    equal += [a.dtype == b.dtype and torch.allclose(a, b) for a, b in zip(first, second, strict=True)]
print(json.dumps(equal))
"""
    assert run_python(MODELS + code, path=(installed, ROOT)) == [True] * 20


def test_times_are_openvinos_and_come_from_one_thread(installed: Path) -> None:
    code = """
from planish.compiler.plugins import registry
backend, profile = registry().find_backend("openvino"), find_profile(TARGET)
why_not = backend.cannot_time(profile)
if why_not is None:
    x = torch.randn(1, 16, 32, 32)
    models = [nn.Conv2d(16, 16 * times, 3).eval() for times in (1, 8)]
    folders = [planish.compile(model, TARGET, x, backend="openvino", passes=[]).artifact.folder for model in models]
    print(json.dumps([latency.model_dump() for latency in backend.time(folders, profile, [x])]))
else:
    print(json.dumps(why_not))
"""
    told = run_python(MODELS + code, path=(installed, ROOT))
    if isinstance(told, str):
        pytest.skip(told)
    small, large = told
    assert small["median_ms"] < large["median_ms"]
    for latency in told:
        assert latency["how"].startswith("OpenVINO ")
        assert (latency["threads"], latency["batch"], latency["source"]) == (1, 1, "measured")
        assert latency["runs"] > 10


def test_scripts_for_a_device_verify_and_measure_with_openvino(installed: Path, tmp_path: Path) -> None:
    code = """
from planish.compiler.on_device import build_scripts, import_report
import subprocess
x = torch.randn(2, 1, 16, 16)
folder = Path(sys.argv[1])
calibration = [torch.randn(8, 1, 16, 16)]
result = planish.compile(Cnn().eval(), TARGET, x, calibration, backend="openvino", passes=[planish.QuantizeInt8()])
build_scripts(result.artifact.folder, TARGET, folder, "openvino")
command = [sys.executable, "check.py", "--seconds", "0.05", "--other-device"]
ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
assert ran.returncode == 0, ran.stdout + ran.stderr
print(import_report(result.artifact.folder, folder / "device_report.json").model_dump_json())
"""
    told = run_python(MODELS + code, tmp_path / "folder", path=(installed, ROOT))
    assert told["built_by"].startswith("OpenVINO ") and "nodes in" in told["built_by"]
    assert told["device"]["openvino"] and told["runs"] >= 100
    assert told["outputs"][0]["snr_db"] is None or told["outputs"][0]["snr_db"] > 15


def test_without_openvino_the_error_names_what_to_install(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "openvino" else found(name, *rest)
from planish.compiler.errors import MissingDependency
from planish.compiler.plugins import registry
backend, profile = registry().find_backend("openvino"), find_profile(TARGET)
try:
    planish.compile(nn.Linear(8, 8), TARGET, torch.randn(2, 8), backend="openvino", output=sys.argv[1])
except MissingDependency as failure:
    said = str(failure)
print(json.dumps([said, backend.cannot_run(profile), backend.cannot_time(profile), Path(sys.argv[1]).exists()]))
"""
    said, cannot_run, cannot_time, exists = run_python(MODELS + code, tmp_path / "artifact", path=(installed, ROOT))
    assert said == "Install openvino with: pip install planish-openvino"
    assert "pip install planish-openvino" in cannot_run
    assert cannot_time == cannot_run
    assert not exists


def test_the_schemes_of_other_devices_are_left_as_the_onnx_backend_has_them(installed: Path) -> None:
    code = """
from planish.compiler.plugins import registry
known = registry()
backends = [known.find_backend(name) for name in ("openvino", "onnx")]
print(json.dumps({
    name: [*(str(backend.scheme(profile)) for backend in backends), profile.host.machine if profile.host else ""]
    for name, profile in known.profiles.items()
}))
"""
    schemes = run_python(MODELS + code, path=(installed, ROOT))
    same = {name for name, (ours, theirs, _) in schemes.items() if ours == theirs}
    on_x86 = {name for name, (_, theirs, machine) in schemes.items() if machine == "x86_64" and theirs != "None"}
    assert on_x86
    assert same == set(schemes) - on_x86
