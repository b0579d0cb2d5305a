from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import tomli_w

from planish.compiler.errors import UserError
from planish.compiler.options import fields_of, kind, plain, restored


@dataclass(frozen=True)
class SoftCircle:
    radius: float = 1.0
    note: str | None = None


@dataclass(frozen=True)
class Square:
    side: int = 2


@dataclass(frozen=True)
class Drawing:
    shapes: tuple[SoftCircle | Square, ...] = ()
    frame: Square | None = None
    rate: str | Callable[..., Any] = "slow"
    model: Any = field(default=None, metadata={"saved": False})
    names: dict[str, float] = field(default_factory=dict)


def test_dataclasses_in_options_come_back_as_they_were() -> None:
    drawing = Drawing((SoftCircle(2.5), Square(3), SoftCircle(note="x")), Square(), names={"a.b": 0.5})
    options = fields_of(drawing)
    assert options["shapes"][0] == {"kind": "soft-circle", "radius": 2.5}
    assert tomli_w.dumps(options)
    assert Drawing(**restored(Drawing, options)) == drawing


def test_the_only_dataclass_that_fits_needs_no_kind() -> None:
    assert restored(Drawing, {"frame": {"side": 5}}) == {"frame": Square(5)}


def test_a_model_is_not_saved_and_a_function_is_told_by_its_name() -> None:
    assert fields_of(Drawing(model=object(), rate=plain)) == {
        "shapes": [], "rate": "planish.compiler.options.plain", "names": {}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shape": ()}, "Drawing has no option 'shape'; did you mean 'shapes'"),
        ({"shapes": [{"kind": "squar"}]}, "kind 'squar' is not known; did you mean 'square'"),
        ({"shapes": [{"side": 1}]}, "kind '' is not known; known are soft-circle, square"),
        ({"frame": {"sides": 1}}, "square has no option 'sides'; did you mean 'side'"),
    ],
)
def test_what_does_not_exist_is_told_with_the_closest_names(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        restored(Drawing, options, "Drawing")


@pytest.mark.parametrize(("name", "expected"), [("SoftTargets", "soft-targets"), ("Dist", "dist")])
def test_kinds_are_names_in_kebab_case(name: str, expected: str) -> None:
    assert kind(type(name, (), {})) == expected
