from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from planish.compiler.errors import UserError
from planish.compiler.signature import Signature
from planish.compiler.trace import trace
from tests.compiler.models import NAMES, case

leaf = st.just(0)
names = st.text("abc_", min_size=1, max_size=3)
structures = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names, inner, max_size=3),
    ),
    max_leaves=8,
)


def signature(args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any, parameters: tuple[str, ...]) -> Signature:
    return Signature(parameters, pytree.tree_structure((args, kwargs)), pytree.tree_structure(outputs))


@given(
    args=st.lists(structures, max_size=3),
    kwargs=st.dictionaries(names, structures, max_size=2),
    outputs=structures,
)
def test_any_structure_survives_json(args: list[Any], kwargs: dict[str, Any], outputs: Any) -> None:
    made = signature(tuple(args), kwargs, outputs, tuple(f"p{index}" for index in range(len(args))))
    assert Signature.from_json(json.loads(json.dumps(made.to_json()))) == made


@given(structures)
def test_leaves_are_put_back_where_they_came_from(outputs: Any) -> None:
    made = signature((), {}, outputs, ())
    count = made.outputs.num_leaves
    filled = made.unflatten([*range(count)])
    assert pytree.tree_leaves(filled) == [*range(count)]
    assert pytree.tree_structure(filled) == pytree.tree_structure(outputs)


@pytest.mark.parametrize("name", [*NAMES, "bert"])
def test_the_signature_of_a_program_flattens_its_calls(name: str) -> None:
    found = case(name)
    program = trace(found.model, found.inputs)
    made = Signature.of(program.graph)
    flat = made.flatten(found.inputs.args, found.inputs.kwargs)
    assert all(one is other for one, other in zip(flat, found.inputs.leaves(), strict=True))
    result = found.inputs.call(program)
    again = Signature.from_json(json.loads(json.dumps(made.to_json()))).unflatten(pytree.tree_leaves(result))
    torch.testing.assert_close(pytree.tree_leaves(again), pytree.tree_leaves(result))
    assert type(again) is type(result)


def test_positional_arguments_may_be_passed_by_name_and_keywords_by_position() -> None:
    made = signature((0, 0), {"mask": 0}, 0, ("left", "right"))
    for args, kwargs in (((1, 2, 3), {}), ((1, 2), {"mask": 3}), ((1,), {"mask": 3, "right": 2})):
        assert made.flatten(args, kwargs) == [1, 2, 3]
    assert made.flatten((), {"mask": 3, "right": 2, "left": 1}) == [1, 2, 3]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}),
        ((1, 2, 3, 4), {}),
        ((1, 2), {"mask": 3, "extra": 4}),
        ((1, 2, 3), {"mask": 3}),
        ((), {}),
        ((1, 2, 3), {"left": 1}),
    ],
)
def test_a_call_with_other_arguments_is_a_user_error_that_names_them(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="left, right, mask"):
        signature((0, 0), {"mask": 0}, 0, ("left", "right")).flatten(args, kwargs)


def test_a_call_of_another_structure_is_a_user_error() -> None:
    with pytest.raises(UserError, match="structure"):
        signature(((0, 0),), {}, 0, ("pair",)).flatten((1,), {})


Pair = namedtuple("Pair", ["first", "second"])


class Lookalike(dict):  # type: ignore[type-arg]
    """Not a class that pytree knows."""


def test_named_tuples_come_back_as_what_they_were() -> None:
    made = Signature.from_json(signature((), {}, OrderedDict(a=0, b=[0]), ()).to_json())
    assert made.unflatten([1, 2]) == {"a": 1, "b": [2]}
    pair = Signature.from_json(json.loads(json.dumps(signature((), {}, Pair(0, (0, 0)), ()).to_json())))
    result = pair.unflatten([1, 2, 3])
    assert (result.first, result.second) == (1, (2, 3)) and type(result) is Pair


@pytest.mark.parametrize("kind", ["os.system", "builtins.exec", "subprocess.Popen", "no.such.Type", "", "Type"])
def test_a_forged_type_becomes_a_plain_dict_and_is_not_called(kind: str) -> None:
    data = {
        "parameters": [],
        "inputs": {"tuple": [{"tuple": []}, {"dict": {}}]},
        "outputs": {"type": kind, "fields": {"a": None}},
    }
    assert Signature.from_json(data).unflatten([5]) == {"a": 5}
