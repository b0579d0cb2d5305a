from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.trace import trace
from tests.compiler.models import NAMES, Cnn, case

Document = dict[str, Any]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8))).save(tmp_path / "cnn.planish")


def edit(path: Path, change: Callable[[Document], None]) -> None:
    """Rewrite ``graph.json`` of an archive, as someone would who forges one."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(parts["graph.json"])
    change(document)
    parts["graph.json"] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def first_call(document: Document) -> Document:
    return next(node for node in document["graph"]["nodes"] if node["op"] == "call_function")


@pytest.mark.parametrize("name", [*NAMES, "bert"])
def test_a_loaded_program_is_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    found = case(name)
    program = trace(found.model, found.inputs)
    loaded = Program.load(program.save(tmp_path / "program"))
    with torch.no_grad():
        torch.testing.assert_close(found.inputs.call(loaded), found.inputs.call(program), rtol=0, atol=0)
    assert loaded.dynamic_axes == program.dynamic_axes
    saved, original = loaded.state_dict(), program.state_dict()
    assert set(saved) == set(original) and all(torch.equal(saved[key], original[key]) for key in original)
    assert {key for key, _ in loaded.graph_module.named_parameters()} == {
        key for key, _ in program.graph_module.named_parameters()
    }
    told = [[(node.name, op_name(node), source_module(node)) for node in one.calls()] for one in (program, loaded)]
    assert told[0] == told[1]
    for one, other in zip(loaded.example_inputs.leaves(), program.example_inputs.leaves(), strict=True):
        assert torch.equal(one, other)


def test_modes_survive_the_archive(tmp_path: Path) -> None:
    found = case("attention")
    loaded = Program.load(trace(found.model, found.inputs).save(tmp_path / "program"))
    x = found.inputs.leaves()[0]
    assert torch.equal(loaded(x), loaded(x)) and not torch.equal(loaded.train()(x), loaded(x))


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    found = case("tied")
    path = trace(found.model, found.inputs).save(tmp_path / "program")
    with zipfile.ZipFile(path) as archive:
        tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
    assert sum(value.shape == (11, 6) for value in tensors.values()) == 1
    loaded = Program.load(path)
    assert len([*loaded.parameters()]) == 1


def test_views_of_one_storage_are_saved(tmp_path: Path) -> None:
    model = Cnn()
    whole = torch.randn(2, 5)
    model.head.bias = torch.nn.Parameter(whole[0])
    program = trace(model, Inputs(tuple([torch.randn(4, 3, 8, 8)[:2]])))
    loaded = Program.load(program.save(tmp_path / "program"))
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(loaded(x), program(x))


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    first, second = program.save(tmp_path / "a"), program.fork().save(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_an_archive_holds_a_json_graph_and_safetensors_and_nothing_pickled(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["graph.json", "tensors.safetensors"]
        json.loads(opened.read("graph.json"))
        safetensors.torch.load(opened.read("tensors.safetensors"))


def test_loading_never_unpickles(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    for name in ("pickle.loads", "pickle.load", "pickle.Unpickler", "torch.load", "torch.export.load"):
        monkeypatch.setattr(name, refuse)
    Program.load(archive)


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "posix.system", "aten.from_file.default", "torch.load", "aten.conv2d",
        "operator.attrgetter", "prim.rpc_sync.default", "higher_order.wrap", "aten.no_such_op.default",
        "aten.__class__.__name__", "aten.conv2d.__class__", "quantized.linear.default", "", ".", "aten..",
    ],
)  # fmt: skip
def test_a_forged_target_is_refused(archive: Path, target: str) -> None:
    edit(archive, lambda document: first_call(document).update(target=target))
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


@pytest.mark.parametrize("op", ["call_method", "call_module", "root", "nonsense"])
def test_a_forged_kind_of_node_is_refused(archive: Path, op: str) -> None:
    edit(archive, lambda document: first_call(document).update(op=op))
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


def rename(document: Document, kind: str, name: str) -> None:
    """Give the first node of ``kind`` another name, and everything that refers to it."""
    node = next(node for node in document["graph"]["nodes"] if node["op"] == kind)
    text, old = json.dumps(document["graph"]), json.dumps(node["name"])
    document["graph"] = json.loads(text.replace(f'"name": {old}', f'"name": {json.dumps(name)}')
                                   .replace(f'"node": {old}', f'"node": {json.dumps(name)}'))  # fmt: skip


def ends_the_definition(command: str) -> str:
    """Makes ``def forward(self, NAME):`` go on with ``command``; a string hides its repetition."""
    return f"x):\n    pass\n{command}\ndef forward(self, x):\n    '''#"


def forge_parameter(document: Document, command: str) -> None:
    document["signature"]["parameters"] = [ends_the_definition(command)]


def forge_placeholder(document: Document, command: str) -> None:
    rename(document, "placeholder", ends_the_definition(command))


def forge_keyword(document: Document, command: str) -> None:
    first_call(document)["kwargs"] = {f"x=[{command}], y": 1}


def forge_mode(document: Document, command: str) -> None:
    for node in document["graph"]["nodes"]:
        if "mode" in node:
            node["mode"] = [99, f"x=[{command}], y", 1, 1]


def forge_attribute(document: Document, command: str) -> None:
    node = next(node for node in document["graph"]["nodes"] if node["op"] == "get_attr")
    attributes = document["graph"]["attributes"]
    forged = f'training"), [{command}], getattr(self, "training'
    attributes[forged] = attributes.pop(node["target"])
    node["target"] = forged


@pytest.mark.parametrize("forge", [forge_parameter, forge_placeholder, forge_keyword, forge_mode, forge_attribute])
def test_a_forged_name_is_refused_before_it_becomes_code(
    archive: Path, monkeypatch: pytest.MonkeyPatch, forge: Callable[[Document, str], None]
) -> None:
    ran: list[int] = []
    monkeypatch.setattr("builtins.forged_code_ran", ran, raising=False)
    edit(archive, lambda document: forge(document, "getattr(forged_code_ran, 'append')(1)"))
    with pytest.raises(UserError, match=r"cnn\.planish"):
        try:
            Program.load(archive).train()(torch.randn(2, 3, 8, 8))
        finally:
            assert ran == []


@pytest.mark.parametrize("name", ["x, y", "self", "a b", "import", "x\n", ""])
def test_a_parameter_that_is_no_name_is_refused(archive: Path, name: str) -> None:
    edit(archive, lambda document: document["signature"].update(parameters=[name]))
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


@pytest.mark.parametrize("target", ["__class__", "graph", "head.__init__", "nothing.there"])
def test_a_forged_attribute_is_refused(archive: Path, target: str) -> None:
    def change(document: Document) -> None:
        next(node for node in document["graph"]["nodes"] if node["op"] == "get_attr")["target"] = target

    edit(archive, change)
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_truncated_file_is_refused_and_named(archive: Path, kept: float) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


def test_a_flipped_byte_in_the_weights_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.planish"):
        Program.load(tmp_path / "nowhere.planish")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("graph"),
        lambda document: document.update(graph=[]),
        lambda document: document.update(inputs=[]),
        lambda document: document.update(inputs=[{"tensor": "no such tensor"}]),
        lambda document: document.update(signature=None),
        lambda document: document.update(dynamic_axes={"x": {"zero": "batch"}}),
        lambda document: document.update(dynamic_axes={"x": {"9": "batch"}}),
        lambda document: first_call(document).update(args=[{"node": "nobody"}]),
        lambda document: first_call(document).update(args=[{"device": "nonsense"}]),
        lambda document: first_call(document).update(args=[{"two": 1, "keys": 2}]),
        lambda document: first_call(document).update(args=[{"dtype": "load"}]),
        lambda document: first_call(document).update(args=[{"unknown": 1}]),
        lambda document: document["graph"]["nodes"].pop(0),
        lambda document: document["graph"]["nodes"].reverse(),
        lambda document: document.update(format=99),
        lambda document: document.update(persistent=3),
    ],
)
def test_a_damaged_graph_is_refused_and_the_file_named(archive: Path, change: Callable[[Document], Any]) -> None:
    edit(archive, change)
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


def test_graph_json_that_is_no_object_is_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        tensors = opened.read("tensors.safetensors")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("graph.json", "[]")
        opened.writestr("tensors.safetensors", tensors)
    with pytest.raises(UserError, match=r"cnn\.planish"):
        Program.load(archive)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = archive.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(OSError, match="No space"):
        trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8))).save(archive)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
