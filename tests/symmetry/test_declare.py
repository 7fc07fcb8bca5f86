"""Specs written by hand, corrections of derived ones, and what `sound` does with a spec that is partly wrong."""

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign.errors import InputError, MismatchError, SymmetryError
from pyalign.symmetry import Kind, SymmetrySpec, sound

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10), nn.ReLU(), nn.Linear(10, 4)]
    return nn.Sequential(*layers)


AXES = {
    "stem": [("0.weight", 0), ("0.bias", 0), ("3.weight", 1)],
    "hidden": [("3.weight", 0), ("3.bias", 0), ("5.weight", 1)],
}


def test_a_declared_spec_equals_the_derived_one() -> None:
    model = network()
    declared, derived = pyalign.declare(model, AXES), pyalign.derive(model, X)
    assert declared.verify(model, X).passed

    def content(spec: SymmetrySpec, names: tuple[str, ...]) -> set[tuple[object, ...]]:
        return {(b.tensor, b.axis, b.positions.shape, str(b.positions.tolist())) for n in names for b in spec.of(n)}

    assert content(declared, ("stem", "hidden")) == content(derived, ("0", "3"))


def test_declared_classes_are_proved_too() -> None:
    model = network()
    assert pyalign.declare(model, AXES, kinds={"hidden": Kind.POSITIVE}).verify(model, X).passed
    with pytest.raises(SymmetryError, match="hidden"):
        pyalign.declare(model, AXES, kinds={"hidden": Kind.SIGNED}).verify(model, X)


def test_a_forgotten_axis_is_named() -> None:
    model = network()
    with pytest.raises(SymmetryError, match=r"'hidden' lacks a binding to axis 0 of '3\.bias'"):
        pyalign.declare(model, {**AXES, "hidden": [("3.weight", 0), ("5.weight", 1)]}).verify(model, X)


def test_correcting_a_derived_spec() -> None:
    model = network()
    base = pyalign.derive(model, X)
    held = pyalign.declare(model, {}, base=base, fixed=["3"])
    assert list(held.groups) == ["0"]
    assert {(f.tensor, f.axis) for f in held.fixed if f.reason == "declared fixed"} == set(AXES["hidden"])
    renamed = pyalign.declare(model, {"mine": AXES["hidden"]}, base=base)
    assert set(renamed.groups) == {"0", "mine"}
    assert renamed.verify(model, X).passed


@pytest.mark.parametrize(
    ("groups", "error", "text"),
    [
        ({"g": [("nowhere", 0)]}, MismatchError, "does not exist"),
        ({"g": [("0.weight", 7)]}, MismatchError, "does not exist"),
        ({"g": [("0.weight", 0), ("3.weight", 0)]}, MismatchError, "do not fit"),
        ({"g": []}, InputError, "no axes"),
        ({"g": [("0.weight", 0)], "h": [("0.weight", 0)]}, InputError, "two groups"),
    ],
)
def test_bad_declarations(groups: dict[str, list[tuple[str, int]]], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        pyalign.declare(network(), groups)


def test_unknown_name_in_fixed() -> None:
    model = network()
    with pytest.raises(InputError, match="cannot fix"):
        pyalign.declare(model, {}, base=pyalign.derive(model, X), fixed=["nothing"])


def test_sound_holds_only_what_is_wrong() -> None:
    model = network()
    spec = pyalign.derive(model, X)
    assert sound(spec, model, X) == (spec, ())
    broken = SymmetrySpec(
        spec.groups, tuple(b for b in spec.bindings if b.tensor != "3.bias"), spec.sites, spec.fixed, spec.shapes
    )
    rest, held = sound(broken, model, X)
    assert held == ("3",)
    assert list(rest.groups) == ["0"]
    assert any("changes the outputs" in f.reason for f in rest.fixed)


def test_spec_survives_json() -> None:
    spec = pyalign.derive(network(), X)
    again = SymmetrySpec.from_dict(spec.to_dict())
    assert again.to_dict() == spec.to_dict()
    assert again.fingerprint == spec.fingerprint
    assert again.fingerprint != pyalign.declare(network(), AXES).fingerprint


def test_sites_count_operators_on_constants_too() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 9), nn.Linear(9, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            offset = torch.relu(torch.ones(6))
            return self.b(torch.relu(self.a(torch.relu(x) + offset)))

    torch.manual_seed(0)
    model, x = Shifted(), torch.randn(400, 6)
    spec = pyalign.derive(model, x[:4])
    assert [site.index for site in spec.sites_of("a")] == [2]
    moved = spec.random(0, Kind.PERMUTATION).apply(model)
    back = pyalign.align(model, moved, [x], spec=spec).apply(moved)
    assert torch.equal(back.a.weight, model.a.weight)


class Masked(nn.Module):
    """Scores of which some are minus infinity, and in float64 perhaps none are numbers."""

    def __init__(self, nan: bool) -> None:
        super().__init__()
        self.first, self.second, self.nan = nn.Linear(3, 4), nn.Linear(4, 5), nan

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        y = y.masked_fill(torch.arange(5) == 2, -torch.inf)
        return y * torch.nan if self.nan and y.dtype == torch.float64 else y


@pytest.mark.parametrize("nan", [False, True], ids=["infinite", "nan in float64"])
def test_outputs_that_are_no_numbers_hide_no_error(nan: bool) -> None:
    torch.manual_seed(0)
    model, x = Masked(nan), torch.randn(6, 3)
    right = pyalign.declare(model, {"hidden": [("first.weight", 0), ("first.bias", 0), ("second.weight", 1)]})
    proven = right.verify(model, x)
    assert proven.passed and proven.tolerance < 1e-2
    with pytest.raises(SymmetryError, match=r"lacks a binding to axis 0 of .first\.bias."):
        pyalign.declare(model, {"hidden": [("first.weight", 0), ("second.weight", 1)]}).verify(model, x)


def test_a_model_without_numbers_proves_nothing() -> None:
    model = Masked(nan=False)
    spec = pyalign.declare(model, {"hidden": [("first.weight", 0), ("first.bias", 0), ("second.weight", 1)]})
    with pytest.raises(SymmetryError, match="nothing can be proven"):
        spec.verify(model, torch.full((6, 3), torch.nan))
